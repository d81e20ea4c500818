//! Colour images and class names from a folder to a picture; data that stay on disk; weights in variants and shards; configs
//! that make up a network.

mod common;

use common::Bench;
use serde_json::json;
use tweedie_checkpoint::{Dtype, ModelDir, Tensor, read_config, write_component};

/// 40 images of CIFAR-10's training files, 8 of each, and 6 of the test file, in the folder `cifar`.
fn cifar(bench: &Bench) {
    let records = |first: usize, count: usize| -> Vec<u8> {
        (first..first + count)
            .flat_map(|i| {
                let pixel = move |p: usize| ((i % 10) * 20 + (i * 7919 + p * 31) % 50) as u8;
                std::iter::once((i % 10) as u8).chain((0..3072).map(pixel))
            })
            .collect()
    };
    std::fs::create_dir(bench.path("cifar")).unwrap();
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(bench.path("cifar").join(name), bytes).unwrap();
    (0..5).for_each(|i| write(&format!("data_batch_{}.bin", i + 1), records(8 * i, 8)));
    write("test_batch.bin", records(100, 6));
    let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n";
    write("batches.meta.txt", names.into());
}

/// PNG images of two classes and two sizes in the folder `photos`, with a file that is none.
fn photos(bench: &Bench) {
    for (class, side) in [("cat", 20), ("dog", 12)] {
        std::fs::create_dir_all(bench.path("photos").join(class)).unwrap();
        for i in 0..4u8 {
            let pixel = |x: u32, y: u32| image::Rgb([10 * i + x as u8, 5 * y as u8, 100]);
            let image = image::RgbImage::from_fn(side, side + 3, pixel);
            image.save(bench.path("photos").join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    std::fs::write(bench.path("photos/cat/readme.txt"), "no image").unwrap();
}

const SMALL: &str = "--preset tiny --batch 4 --lr-warmup 2";

#[test]
fn cifar_trains_resumes_and_is_evaluated_in_colours_and_names() {
    let bench = Bench::new();
    cifar(&bench);
    let train = format!("train --data cifar {SMALL} --flip");
    let done = bench.run(&format!("{train} --out whole --steps 6"));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("cifar (40 images of 3 x 32 x 32 in 10 classes)"), "{}", done.stderr);
    bench.succeed(&format!("{train} --out part --steps 3"));
    bench.succeed("train --out part --resume --steps 6");
    for file in ["unet/diffusion_pytorch_model.safetensors", "samples/step-000006.png"] {
        assert_eq!(bench.bytes(&format!("whole/{file}")), bench.bytes(&format!("part/{file}")), "{file}");
    }
    bench.succeed(&format!("{} --out plain --steps 6", train.replace(" --flip", "")));
    let weights = |run: &str| bench.bytes(&format!("{run}/unet/diffusion_pytorch_model.safetensors"));
    assert_ne!(weights("whole"), weights("plain"), "mirrored images are other images");
    let config = read_config(bench.path("whole/unet/config.json")).unwrap();
    assert_eq!(config["_tweedie_class_names"][1], "automobile");
    assert_eq!((&config["in_channels"], &config["num_class_embeds"]), (&json!(3), &json!(11)));
    // A column under a name is not the column under a number.
    bench.succeed("sample --model whole --labels 3 --per-label 1 --steps 1 --out named.png");
    bench.succeed("convert --model whole --out copy");
    let copy = read_config(bench.path("copy/unet/config.json")).unwrap();
    assert_eq!(copy["_tweedie_class_names"], config["_tweedie_class_names"]);
    let unnamed = config.iter().filter(|(key, _)| *key != "_tweedie_class_names");
    let unnamed = unnamed.map(|(key, value)| (key.clone(), value.clone())).collect();
    tweedie_checkpoint::write_config(bench.path("copy/unet/config.json"), &unnamed).unwrap();
    bench.succeed("sample --model copy --labels 3 --per-label 1 --steps 1 --out numbered.png");
    let pixels = |file: &str| image::open(bench.path(file)).unwrap().into_rgb8().into_raw();
    assert_ne!(pixels("named.png"), pixels("numbered.png"));
    let report = bench.succeed("eval --model whole --data cifar --limit 2 --steps-per-image 1 --json");
    assert!(report.contains("\"split\": \"test\""), "{report}");
    bench.fail("train --preset cifar10 --out none", 2, &["--data cifar-10-batches-bin"]);
}

#[test]
fn photos_are_resized_for_a_network_and_for_its_evaluation() {
    let bench = Bench::new();
    photos(&bench);
    bench.fail(&format!("train --data photos {SMALL} --out run"), 1, &["--size", "0.png is 23 x 20"]);
    let done = bench.run(&format!("train --data photos --size 8 {SMALL} --out run --steps 2"));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("note: photos: left out 1 file"), "{}", done.stderr);
    assert!(done.stderr.contains("8 images of 3 x 8 x 8 in 2 classes"), "{}", done.stderr);
    bench.succeed("train --out run --resume --steps 3");
    bench.fail("eval --model run --data photos", 1, &["no part for test", "--split train"]);
    bench.succeed("eval --model run --data photos --split train --limit 1 --steps-per-image 1");
    bench.succeed(&format!("train --data photos --size 8x12 --colour grey {SMALL} --out grey --steps 1"));
    let config = read_config(bench.path("grey/unet/config.json")).unwrap();
    assert_eq!((&config["in_channels"], &config["sample_size"]), (&json!(1), &json!([8, 12])));
    bench.fail("train --data mnist --size 8 --out small", 1, &["--size", "leave it out"]);
}

#[test]
fn an_array_larger_than_the_limit_trains_from_disk_to_the_same_bits() {
    let bench = Bench::new();
    // 1.5 MiB of images.
    let (count, side) = (1536usize, 32usize);
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, {side}, {side}), }}");
    let header = format!("{header:<117}\n");
    let pixels = (0..count * side * side).map(|i| ((i * 2_654_435_761) >> 13) as u8);
    let file: Vec<u8> = b"\x93NUMPY\x01\x00"
        .iter()
        .copied()
        .chain((header.len() as u16).to_le_bytes())
        .chain(header.into_bytes())
        .chain(pixels)
        .collect();
    std::fs::write(bench.path("noise.npy"), file).unwrap();
    for (run, memory) in [("memory", "2"), ("disk", "1")] {
        let done = bench.run(&format!("train --data noise.npy --data-memory {memory} {SMALL} --out {run} --steps 3"));
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(done.stderr.contains("read from disk"), run == "disk", "{}", done.stderr);
    }
    let weights = |run: &str| bench.bytes(&format!("{run}/unet/diffusion_pytorch_model.safetensors"));
    assert_eq!(weights("disk"), weights("memory"));
    // What was begun on disk goes on in memory.
    bench.succeed("train --out disk --resume --steps 4");
    bench.succeed("train --out memory --resume --steps 4 --data-memory 1");
    assert_eq!(weights("disk"), weights("memory"));
}

#[test]
fn variants_and_shards_are_chosen_and_written() {
    let bench = Bench::new();
    bench.succeed("convert --out shards --max-shard-size 100KB --dtype bf16");
    let index = read_config(bench.path("shards/unet/diffusion_pytorch_model.safetensors.index.json")).unwrap();
    assert!(
        index["weight_map"].as_object().unwrap().values().any(|file| file.as_str().unwrap().contains("-00002-of-"))
    );
    bench.succeed("convert --model shards --out whole --dtype bf16");
    bench.succeed("convert --out direct --dtype bf16");
    let single = "unet/diffusion_pytorch_model.safetensors";
    assert_eq!(bench.bytes(&format!("whole/{single}")), bench.bytes(&format!("direct/{single}")));
    let renamed = |tag: &str| bench.path(&format!("whole/unet/diffusion_pytorch_model.{tag}.safetensors"));
    std::fs::copy(bench.path(&format!("whole/{single}")), renamed("non_ema")).unwrap();
    std::fs::rename(bench.path(&format!("whole/{single}")), renamed("fp16")).unwrap();
    let sample = "sample --model whole --labels 1 --per-label 1 --steps 1 --out out.npy";
    bench.fail(sample, 1, &["--variant (fp16, non_ema)"]);
    bench.succeed(&format!("{sample} --variant fp16"));
    bench.fail("inspect whole --variant ema", 1, &["fp16, non_ema: choose one"]);
    bench.fail("convert --out more --max-shard-size 5TB", 2, &["5GB"]);
}

#[test]
fn a_config_that_makes_up_a_network_takes_no_memory_for_it() {
    let bench = Bench::new();
    // A billion parameters or thousands of layers, and weights of two numbers: gigabytes, if they were believed.
    for (name, widths, layers, parts) in [
        ("wide", json!([2048, 2048]), 2, ["the configuration asks for about", "2 numbers"]),
        ("deep", json!([8, 8]), 60_000, ["the configuration asks for about", "2 numbers"]),
        ("small", json!([8, 8]), 1, ["missing (", "conv_in.weight"]),
    ] {
        let config = json!({
            "_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": widths, "layers_per_block": layers,
            "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
        });
        let tensors = [Tensor::f32("odd.weight", &[2], &[1.0, 2.0])];
        write_component(bench.path(name), &config, None, &tensors, Dtype::F32).unwrap();
        assert!(ModelDir::open(bench.path(name)).is_ok());
        bench.fail(&format!("inspect {name}"), 1, &parts);
    }
}
