//! Pictures of small Stable Diffusion pipelines against diffusers' (`tools/reference/golden_pipeline.py`), and what is refused.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Bench;
use ndarray::Array4;
use ndarray_npy::ReadNpyExt;
use serde_json::Value;
use tweedie_checkpoint::{Dtype, Tensor, TensorFile, default_metadata, save_safetensors};
use tweedie_latent::clip::{self, TextConfig};
use tweedie_latent::{FileWeights, TextEncoder};
use tweedie_unet::autoencoder::AutoencoderKl;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stable")
}

/// Status, stdout and stderr.
fn tweedie(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tweedie"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit status and no signal"), text(output.stdout), text(output.stderr))
}

/// A copy of a pipeline that may be damaged.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

fn read_npy(path: &Path) -> Array4<f32> {
    Array4::read_npy(fs::File::open(path).expect("the file is there")).expect("numbers")
}

/// Relative L2 distance of a picture from the expected one.
fn distance(found: &Array4<f32>, expected: &Array4<f32>) -> f64 {
    assert_eq!(found.dim(), expected.dim());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

fn expected(name: &str) -> Array4<f32> {
    let file = TensorFile::open(golden().join("pictures.safetensors")).expect("the golden pictures");
    let shape: [usize; 4] = file.get(name).expect("the picture").shape.try_into().expect("[1, H, W, 3]");
    Array4::from_shape_vec(shape, file.read_f32(name).expect("numbers")).expect("that many")
}

fn cases() -> Vec<Value> {
    let text = fs::read_to_string(golden().join("cases.json")).expect("the golden cases");
    serde_json::from_str(&text).expect("JSON")
}

/// The options of a case beside the file that is written.
fn arguments(case: &Value) -> Vec<String> {
    let text = |key: &str| case[key].as_str().expect("a text").to_owned();
    let mut arguments = vec!["--model".to_owned(), text("pipeline")];
    arguments.extend(["--noise".to_owned(), format!("noise_{}.safetensors", text("name"))]);
    let own = case["arguments"].as_array().expect("a list");
    arguments.extend(own.iter().map(|a| a.as_str().expect("a text").to_owned()));
    arguments
}

fn run_case(case: &Value, extra: &[&str], out: &Path) -> Array4<f32> {
    let arguments = arguments(case);
    let command = if arguments.iter().any(|a| a == "--mask") { "inpaint" } else { "txt2img" };
    let mut all = vec![command];
    all.extend(arguments.iter().map(String::as_str));
    all.extend(extra);
    let out = out.to_str().expect("UTF-8");
    all.extend(["--out", out, "--quiet"]);
    let (code, _, stderr) = tweedie(&golden(), &all);
    assert_eq!(code, 0, "{}: {stderr}", case["name"]);
    read_npy(Path::new(out))
}

#[test]
fn pictures_are_those_of_diffusers() {
    let bench = Bench::new();
    let mut seen = 0;
    for case in cases() {
        let name = case["name"].as_str().expect("a text");
        let found = run_case(&case, &[], &bench.path("picture.npy"));
        let error = distance(&found, &expected(name));
        assert!(error < 1e-4, "{name}: {error:.1e}");
        seen += 1;
    }
    assert!(seen >= 15, "{seen} cases");
}

/// The bits do not depend on the threads; bytes in the place of halves change the picture a little, and tiles of the whole size not at
/// all.
#[test]
fn threads_tiles_and_bytes() {
    let bench = Bench::new();
    let case = cases().into_iter().find(|case| case["name"] == "dpm").expect("the case");
    let one = run_case(&case, &["--threads", "1"], &bench.path("one.npy"));
    let three = run_case(&case, &["--threads", "3"], &bench.path("three.npy"));
    assert!(one.iter().zip(&three).all(|(a, b)| a.to_bits() == b.to_bits()));
    let tiled = run_case(&case, &["--tiling"], &bench.path("tiled.npy"));
    assert_eq!(one, tiled);
    let rounded = run_case(&case, &["--int8"], &bench.path("rounded.npy"));
    let error = distance(&rounded, &one);
    assert!(error > 0.0 && error < 0.2, "{error}");
}

#[test]
fn a_png_says_how_it_was_made_and_has_the_numbers_of_the_npy() {
    let bench = Bench::new();
    let out = bench.path("p.png");
    let model = golden().join("first");
    let arguments =
        ["txt2img", "--model", model.to_str().unwrap(), "--prompt", "a fox 🦊", "--steps", "3", "--seed", "4"];
    let mut png = arguments.to_vec();
    png.extend(["--count", "3", "--preview-every", "2", "--out", out.to_str().unwrap(), "--json"]);
    let (code, stdout, stderr) = tweedie(bench.path("").as_path(), &png);
    assert_eq!(code, 0, "{stderr}");
    let document: Value = serde_json::from_str(&stdout).expect("one JSON document");
    assert_eq!(
        (&document["prompt"], &document["sampler"], &document["seed"]),
        (&"a fox 🦊".into(), &"plms".into(), &4.into())
    );
    let numbers = bench.path("p.npy");
    let mut npy = arguments.to_vec();
    npy.extend(["--count", "3", "--out", numbers.to_str().unwrap()]);
    assert_eq!(tweedie(bench.path("").as_path(), &npy).0, 0);
    let pictures = read_npy(&numbers);
    assert_eq!(pictures.dim(), (3, 32, 32, 3));
    assert!(pictures.iter().all(|x| (0.0..=1.0).contains(x)));
    // The third picture lies in the second row.
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(&out).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let text = &reader.info().utf8_text;
    assert!(text.iter().any(|chunk| chunk.get_text().unwrap().contains("a fox 🦊")));
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut rgb).unwrap();
    assert_eq!((reader.info().width, reader.info().height), (64, 64));
    for (k, corner) in [(0, 0), (1, 32 * 3), (2, 32 * 64 * 3)] {
        for c in 0..3 {
            assert_eq!(rgb[corner + c], (pictures[(k, 0, 0, c)] * 255.0).round_ties_even() as u8);
        }
    }
    assert!(bench.path("p.preview.png").is_file());
    // Picture 2 of three is picture 2, alone or among others: with another count only its number matters.
    let mut two = arguments.to_vec();
    let other = bench.path("two.npy");
    two.extend(["--count", "2", "--out", other.to_str().unwrap()]);
    assert_eq!(tweedie(bench.path("").as_path(), &two).0, 0);
    assert_eq!(read_npy(&other).index_axis(ndarray::Axis(0), 1), pictures.index_axis(ndarray::Axis(0), 1));
}

#[test]
fn a_picture_to_start_from_is_kept_in_part() {
    let bench = Bench::new();
    let (model, picture) = (golden().join("first"), golden().join("picture.png"));
    let run = |extra: &[&str]| {
        let out = bench.path("out.npy");
        let mut all = vec!["img2img", "--model", model.to_str().unwrap(), "--image", picture.to_str().unwrap()];
        all.extend(["--prompt", "a fox", "--steps", "20", "--out", out.to_str().unwrap(), "--quiet"]);
        all.extend(extra);
        let (code, _, stderr) = tweedie(bench.path("").as_path(), &all);
        assert_eq!(code, 0, "{stderr}");
        read_npy(&out)
    };
    let (weak, strong) = (run(&["--strength", "0.05"]), run(&["--strength", "1"]));
    let other = run(&["--strength", "0.05", "--seed", "1"]);
    // The latents of a random encoder are small, and the noise of the last step is not so small beside them.
    let (noise, all) = (distance(&weak, &other), distance(&weak, &strong));
    assert!(noise < 0.8 * all, "a single step should leave most of the picture: {noise} of {all}");
    assert_ne!(weak, other);
}

#[test]
fn what_is_kept_of_a_picture_stays_with_any_network() {
    let bench = Bench::new();
    let golden = golden();
    let out = bench.path("out.npy");
    let arguments = |mask: &str| {
        let path = |name: &str| golden.join(name).to_str().unwrap().to_owned();
        ["inpaint", "--model", &path("first"), "--image", &path("picture.png"), "--mask", &path(mask)]
            .map(str::to_owned)
            .to_vec()
    };
    let mut all = arguments("mask.png");
    all.extend(["--prompt", "a fox", "--steps", "6", "--quiet", "--out"].map(str::to_owned));
    all.push(out.to_str().unwrap().to_owned());
    let borrowed: Vec<&str> = all.iter().map(String::as_str).collect();
    let (code, _, stderr) = tweedie(bench.path("").as_path(), &borrowed);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(read_npy(&out).dim(), (1, 32, 32, 3));
}

#[test]
fn bad_input_is_refused() {
    let bench = Bench::new();
    copy(&golden().join("first"), &bench.path("sd"));
    fs::copy(golden().join("picture.png"), bench.path("picture.png")).unwrap();
    let text = "--prompt fox --steps 2 --quiet";
    let model = format!("--model sd {text}");
    bench.fail(&format!("txt2img --model nowhere {text}"), 1, &["nowhere", "no such directory"]);
    bench.fail("txt2img --model sd --prompt fox --steps 0", 2, &["--steps"]);
    bench.fail("txt2img --model sd --prompt fox --steps 1001", 2, &["1001", "1000"]);
    bench.fail(&format!("txt2img {model} --width 33"), 2, &["--width 33", "multiples of", "--width 32"]);
    bench.fail(&format!("txt2img {model} --height 0"), 2, &["--height 0"]);
    bench.fail(&format!("txt2img {model} --out x.jpg"), 2, &["x.jpg", ".png or .npy"]);
    bench.fail(&format!("txt2img {model} --out none/x.png"), 1, &["none"]);
    bench.fail(&format!("txt2img {model} --guidance inf"), 2, &["--guidance"]);
    bench.fail(&format!("txt2img {model} --clip-skip 2"), 2, &["--clip-skip 2", "2 layers"]);
    bench.fail(&format!("txt2img {model} --lora missing.safetensors"), 1, &["missing.safetensors"]);
    bench.fail(&format!("txt2img {model} --noise missing.safetensors"), 1, &["missing.safetensors"]);
    bench.fail(&format!("img2img {model} --image missing.png"), 1, &["missing.png"]);
    bench.fail(&format!("img2img {model} --image sd/model_index.json"), 1, &["sd/model_index.json", "PNG"]);
    bench.fail(&format!("img2img {model} --image picture.png --strength 0"), 2, &["--strength"]);
    bench.fail(&format!("img2img {model} --image picture.png --strength 0.3"), 2, &["--strength 0.3", "0.5"]);
    bench.fail(&format!("inpaint {model} --image picture.png --mask missing.png"), 1, &["missing.png"]);
    bench.fail("clip-score --model sd --image picture.png --prompt x", 1, &["sd", "config.json"]);

    let vae = bench.path("sd/vae");
    fs::rename(&vae, bench.path("kept")).unwrap();
    bench.fail(&format!("txt2img {model}"), 1, &["vae", "model_index.json"]);
    fs::rename(bench.path("kept"), &vae).unwrap();
    let index = bench.path("sd/model_index.json");
    let before = fs::read_to_string(&index).unwrap();
    fs::write(&index, before.replace("\"StableDiffusionPipeline\"", "\"StableDiffusionXLPipeline\"")).unwrap();
    bench.fail(&format!("txt2img {model}"), 1, &["StableDiffusionXLPipeline", "StableDiffusionPipeline"]);
    fs::write(&index, &before).unwrap();
    let config = bench.path("sd/unet/config.json");
    let network = fs::read_to_string(&config).unwrap();
    fs::write(&config, network.replace("\"class_embed_type\": null", "\"class_embed_type\": \"timestep\"")).unwrap();
    bench.fail(&format!("txt2img {model}"), 1, &["sd/unet/config.json", "class_embed_type"]);
    fs::write(&config, &network).unwrap();

    // A safety checker is left alone.
    fs::write(
        &index,
        before.replace(
            "\"safety_checker\": [\n    null,\n    null\n  ]",
            "\"safety_checker\": [\n    \"stable_diffusion\",\n    \"StableDiffusionSafetyChecker\"\n  ]",
        ),
    )
    .unwrap();
    bench.succeed(&format!("txt2img {model} --out fine.npy"));
    fs::remove_file(bench.path("fine.npy")).unwrap();

    // A NaN among the weights is found and named.
    let weights = bench.path("sd/unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = header + names["conv_in.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    bench.fail(&format!("txt2img {model}"), 1, &["conv_in.weight", "NaN"]);
}

/// The decoder and the text encoder of a pipeline, each from its own directory.
#[test]
fn parts_of_a_pipeline_are_run_alone() {
    let bench = Bench::new();
    copy(&golden().join("first"), &bench.path("sd"));
    let config = |part: &str| tweedie_checkpoint::read_config(bench.path(&format!("sd/{part}/config.json"))).unwrap();
    let weights = |file: &str| TensorFile::open(bench.path(&format!("sd/{file}.safetensors"))).unwrap();
    let write = |file: &str, tensor: Tensor<'_>| {
        save_safetensors(bench.path(file), &[tensor], Dtype::F32, &default_metadata()).unwrap();
    };

    let source = FileWeights::new(weights("vae/diffusion_pytorch_model"));
    let network = AutoencoderKl::from_config(&config("vae"), &source).unwrap();
    let latents = Array4::from_shape_fn([2, network.config().latent_channels, 3, 5], |(n, c, i, j)| {
        ((n * 7 + c * 5 + i * 3 + j) % 11) as f32 / 5.0 - 1.0
    });
    write("latents.safetensors", Tensor::f32("sample", latents.shape(), latents.as_slice().unwrap()));
    bench.succeed("predict --model sd/vae --input latents.safetensors --out pictures.safetensors");
    let expected = network.decode(latents.view()).unwrap();
    let (shape, found) = bench.tensor("pictures.safetensors", "sample");
    assert_eq!(shape, expected.shape());
    assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "pictures");

    let mut file = weights("text_encoder/model");
    file.rename(clip::text_key).unwrap();
    let encoder =
        TextEncoder::new(TextConfig::from_json(&config("text_encoder")).unwrap(), &FileWeights::new(file)).unwrap();
    let ids: Vec<Vec<u32>> = vec![vec![1, 5, 2, 7], vec![3, 3, 0, 4]];
    let numbers: Vec<f32> = ids.iter().flatten().map(|id| *id as f32).collect();
    write("ids.safetensors", Tensor::f32("input_ids", &[2, 4], &numbers));
    bench.succeed("predict --model sd/text_encoder --input ids.safetensors --out states.safetensors");
    let expected = encoder.states(&ids, 0).unwrap();
    let (shape, found) = bench.tensor("states.safetensors", "sample");
    assert_eq!(shape, expected.shape());
    assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "states");

    for (part, work) in [("vae", "decoding"), ("text_encoder", "encoding")] {
        let text = bench.succeed(&format!("bench --model sd/{part} --batch 1 --seconds 0.01 --json"));
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["work"], work);
        assert!(document["gflops_per_image"].as_f64().unwrap() > 0.0 && document["passes"].as_u64().unwrap() >= 3);
        bench.fail(&format!("bench --model sd/{part} --train"), 1, &[part, "--train"]);
    }

    let run = |part: &str| format!("predict --model sd/{part} --input wrong.safetensors --out none.safetensors");
    write("wrong.safetensors", Tensor::f32("input_ids", &[1, 2], &[1.0, 0.5]));
    bench.fail(&run("text_encoder"), 1, &["input_ids", "0.5"]);
    bench.fail(&run("vae"), 1, &["wrong.safetensors", "input_ids", "sample"]);
    write("wrong.safetensors", Tensor::f32("input_ids", &[2], &[1.0, 2.0]));
    bench.fail(&run("text_encoder"), 1, &["input_ids", "[N,L]", "[2]"]);
    write("wrong.safetensors", Tensor::f32("sample", &[1, 1, 2, 2], &[0.0; 4]));
    bench.fail(&run("vae"), 1, &["channels"]);
    assert!(!bench.path("none.safetensors").exists());
}

#[test]
fn a_dry_run_draws_nothing() {
    let bench = Bench::new();
    let model = golden().join("first");
    let text = bench.succeed(&format!("txt2img --model {} --prompt fox --dry-run", model.display()));
    assert!(text.contains("memory") && text.contains("50 steps of plms"), "{text}");
    let distilled = golden().join("distilled");
    let text = bench.succeed(&format!("txt2img --model {} --prompt fox --dry-run", distilled.display()));
    assert!(text.contains("4 steps of lcm"), "{text}");
    let json = bench.succeed(&format!("txt2img --model {} --prompt fox --dry-run --json", model.display()));
    let document: Value = serde_json::from_str(&json).unwrap();
    assert!(document["peak_memory_bytes"].as_u64().unwrap() > 100_000);
    assert!(!bench.path("picture.png").exists());
}
