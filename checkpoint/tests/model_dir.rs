//! Model directories: every layout that is opened, what is written, and one clear error for each way to be wrong.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tweedie_checkpoint::{
    CheckpointError, Dtype, ModelDir, ModelKind, Storage, Tensor, WEIGHTS_NAME, default_metadata, read_config,
    save_safetensors, write_component, write_config, write_pipeline,
};

fn unet() -> Value {
    json!({"_class_name": "UNet2DModel", "sample_size": 28, "norm_eps": 1e-5, "class_embed_type": null})
}

fn scheduler() -> Value {
    json!({"_class_name": "DDPMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000})
}

fn weights(path: &Path, name: &str, value: f32) {
    save_safetensors(path, &[Tensor::f32(name, &[1], &[value])], Dtype::F32, &default_metadata()).unwrap();
}

fn config(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_config(path, value.as_object().unwrap()).unwrap();
}

fn pipeline(directory: &Path, value: f32) {
    write_pipeline(directory, &unet(), &scheduler(), &[Tensor::f32("w", &[1], &[value])], Dtype::F32).unwrap();
}

/// The message of the error of opening a directory, which must hold every part.
fn refused(path: &Path, parts: &[&str]) -> String {
    let message = ModelDir::open(path).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{part}: {message}");
    }
    message
}

#[test]
fn a_written_pipeline_opens() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("runs/a");
    let tensors = [Tensor::f32("conv_in.weight", &[2], &[1.0, 0.1]), Tensor::i64("n", &[], &[7])];
    write_pipeline(&root, &unet(), &scheduler(), &tensors, Dtype::F16).unwrap();
    let model = ModelDir::open(&root).unwrap();
    assert_eq!((model.kind, model.class_name.as_str()), (ModelKind::Pipeline, "UNet2DModel"));
    assert_eq!(model.config_path, root.join("unet/config.json"));
    assert_eq!(model.config["norm_eps"], json!(1e-5));
    assert_eq!(model.config["class_embed_type"], Value::Null);
    assert_eq!(model.scheduler.as_ref().unwrap()["beta_end"], json!(0.02));
    assert_eq!(model.scheduler_path, root.join("scheduler/scheduler_config.json"));
    assert_eq!(model.weights.read_f32("conv_in.weight").unwrap(), [1.0, 0.099975586]);
    assert_eq!(model.weights.read_i64("n").unwrap(), [7]);
    assert_eq!(model.weights.metadata()["format"], "pt");

    // The files that Python diffusers reads.
    let index = read_config(root.join("model_index.json")).unwrap();
    let expected = json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    });
    assert_eq!(Value::Object(index), expected);
    let text = fs::read_to_string(root.join("unet/config.json")).unwrap();
    assert!(
        text.starts_with("{\n  \"_class_name\": \"UNet2DModel\",\n  \"_diffusers_version\": \"0.42.1\",\n"),
        "{text}"
    );
    assert!(text.ends_with("\n}\n"));
}

#[test]
fn the_scheduler_decides_on_the_pipeline_class() {
    let directory = tempfile::tempdir().unwrap();
    for (scheduler, pipeline, class) in [
        (json!({}), "DDPMPipeline", "DDPMScheduler"),
        (json!({"_class_name": "DDIMScheduler"}), "DDIMPipeline", "DDIMScheduler"),
        (json!({"_class_name": "EulerDiscreteScheduler"}), "DDPMPipeline", "EulerDiscreteScheduler"),
    ] {
        write_pipeline(directory.path(), &json!({}), &scheduler, &[], Dtype::F32).unwrap();
        let index = read_config(directory.path().join("model_index.json")).unwrap();
        assert_eq!((&index["_class_name"], &index["scheduler"]), (&json!(pipeline), &json!(["diffusers", class])));
        assert_eq!(ModelDir::open(directory.path()).unwrap().class_name, "UNet2DModel");
    }
}

#[test]
fn a_book_directory_opens() {
    let directory = tempfile::tempdir().unwrap();
    let book = json!({"_class_name": "UNetCond", "embedding_dim": 100});
    write_component(directory.path(), &book, None, &[Tensor::f32("out.bias", &[1], &[0.5])], Dtype::F32).unwrap();
    let model = ModelDir::open(directory.path()).unwrap();
    assert_eq!((model.kind, model.class_name.as_str(), &model.scheduler), (ModelKind::Book, "UNetCond", &None));
    assert_eq!(model.weights.read_f32("out.bias").unwrap(), [0.5]);

    write_component(directory.path(), &book, Some(&scheduler()), &[], Dtype::F32).unwrap();
    let model = ModelDir::open(directory.path()).unwrap();
    assert_eq!(model.scheduler.unwrap()["beta_start"], json!(0.0001));
    assert_eq!(model.scheduler_path, directory.path().join("scheduler_config.json"));
    let message = write_component(directory.path(), &json!({}), None, &[], Dtype::F32).unwrap_err().to_string();
    assert!(message.contains("config.json: _class_name should be the name of an architecture"), "{message}");
    assert!(write_component(directory.path(), &json!([]), None, &[], Dtype::F32).is_err());
    assert!(write_pipeline(directory.path(), &json!([]), &json!({}), &[], Dtype::F32).is_err());
}

#[test]
fn a_component_finds_its_scheduler() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    config(&root.join("config.json"), &unet());
    weights(&root.join(WEIGHTS_NAME), "w", 1.0);
    let open = || ModelDir::open(root).unwrap();
    assert_eq!((open().kind, open().scheduler), (ModelKind::Component, None));
    config(&root.join("scheduler/scheduler_config.json"), &json!({"beta_start": 1}));
    assert_eq!(open().scheduler.unwrap()["beta_start"], 1);
    config(&root.join("scheduler_config.json"), &json!({"beta_start": 2}));
    assert_eq!(open().scheduler.unwrap()["beta_start"], 2);
    // Early repositories have model_index.json beside the only network.
    config(
        &root.join("model_index.json"),
        &json!({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}),
    );
    assert_eq!((open().kind, open().scheduler.unwrap()["beta_start"].clone()), (ModelKind::Component, json!(2)));

    let run = root.join("run");
    pipeline(&run, 1.0);
    let model = ModelDir::open(run.join("unet")).unwrap();
    assert_eq!((model.kind, model.scheduler.unwrap()["beta_end"].clone()), (ModelKind::Component, json!(0.02)));
}

#[test]
fn weights_under_other_names() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    config(&root.join("config.json"), &unet());
    let value = || ModelDir::open(root).unwrap().weights.read_f32("w").unwrap()[0];
    weights(&root.join("diffusion_pytorch_model.fp16.safetensors"), "w", 16.0);
    assert_eq!(value(), 16.0);
    weights(&root.join("diffusion_pytorch_model.non_ema.safetensors"), "w", 32.0);
    refused(root, &["several variants", "--variant (fp16, non_ema)"]);
    let variant = |name| ModelDir::open_variant(root, Some(name)).map(|model| model.weights.read_f32("w").unwrap()[0]);
    assert_eq!((variant("fp16").unwrap(), variant("non_ema").unwrap()), (16.0, 32.0));
    let message = variant("ema").unwrap_err().to_string();
    assert!(
        message.contains("diffusion_pytorch_model.ema.safetensors, diffusion_pytorch_model.safetensors.index.ema.json")
    );
    assert!(message.contains("the variants fp16, non_ema: choose one"), "{message}");
    weights(&root.join("diffusion_pytorch_model.half-00001-of-00001.safetensors"), "w", 8.0);
    let index = json!({"weight_map": {"w": "diffusion_pytorch_model.half-00001-of-00001.safetensors"}});
    config(&root.join("diffusion_pytorch_model.safetensors.index.half.json"), &index);
    assert_eq!(variant("half").unwrap(), 8.0);
    weights(&root.join("diffusion_pytorch_model-00001-of-00001.safetensors"), "w", 4.0);
    let index = json!({"weight_map": {"w": "diffusion_pytorch_model-00001-of-00001.safetensors"}});
    config(&root.join("diffusion_pytorch_model.safetensors.index.json"), &index);
    assert_eq!(value(), 4.0);
    weights(&root.join(WEIGHTS_NAME), "w", 1.0);
    assert_eq!((value(), variant("fp16").unwrap()), (1.0, 16.0));
    for name in ["../w", "", "fp16.safetensors"] {
        assert!(variant(name).is_err(), "{name}");
    }
    // A pipeline hands the choice on to its network.
    let outer = tempfile::tempdir().unwrap();
    pipeline(outer.path(), 2.0);
    weights(&outer.path().join("unet/diffusion_pytorch_model.fp16.safetensors"), "w", 3.0);
    let value = |variant| ModelDir::open_variant(outer.path(), variant).unwrap().weights.read_f32("w").unwrap()[0];
    assert_eq!((value(None), value(Some("fp16"))), (2.0, 3.0));
    let message = ModelDir::open_variant(outer.path().join("scheduler"), Some("fp16")).unwrap_err().to_string();
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn shards_are_written_as_diffusers_writes_them_and_the_other_form_goes() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let numbers: Vec<f32> = (0..10).map(|i| i as f32).collect();
    let tensors = [
        Tensor::f32("z", &[3], &numbers[..3]),
        Tensor::f32("a", &[1], &numbers[3..4]),
        Tensor::f32("large", &[5], &numbers[4..9]),
        Tensor::i64("n", &[], &[7]),
        Tensor::f32("b", &[1], &numbers[9..]),
    ];
    let names = |folder: &Path| {
        let mut names: Vec<_> =
            folder.read_dir().unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let check = |model: ModelDir| {
        assert_eq!(model.weights.len(), 5);
        assert_eq!(model.weights.read_f32("large").unwrap(), numbers[4..9]);
        assert_eq!(model.weights.read_i64("n").unwrap(), [7]);
    };
    write_pipeline(root, &unet(), &scheduler(), &tensors, Dtype::F32).unwrap();
    let storage = |most| Storage { dtype: Dtype::F32, max_shard_size: Some(most) };
    write_pipeline(root, &unet(), &scheduler(), &tensors, storage(16)).unwrap();
    let unet_folder = root.join("unet");
    let shard = |i: usize| format!("diffusion_pytorch_model-{i:05}-of-00003.safetensors");
    let index = "diffusion_pytorch_model.safetensors.index.json";
    assert_eq!(names(&unet_folder), ["config.json".to_owned(), shard(1), shard(2), shard(3), index.to_owned()]);
    let expected = json!({
        "metadata": {"total_size": 48},
        "weight_map": {"a": shard(1), "b": shard(3), "large": shard(2), "n": shard(3), "z": shard(1)},
    });
    assert_eq!(Value::Object(read_config(unet_folder.join(index)).unwrap()), expected);
    check(ModelDir::open(root).unwrap());
    // One file again: the index, which diffusers would prefer, is gone.
    write_pipeline(root, &unet(), &scheduler(), &tensors, storage(48)).unwrap();
    assert!(unet_folder.join(WEIGHTS_NAME).is_file() && !unet_folder.join(index).exists());
    check(ModelDir::open(root).unwrap());
    // A shard that is missing is named.
    write_component(root.join("single"), &unet(), None, &tensors, storage(1)).unwrap();
    std::fs::remove_file(root.join("single/diffusion_pytorch_model-00004-of-00005.safetensors")).unwrap();
    refused(&root.join("single"), &["cannot open", "diffusion_pytorch_model-00004-of-00005.safetensors"]);
    let twice = [tensors[0], tensors[0]];
    let error = write_component(root.join("twice"), &unet(), None, &twice, storage(1)).unwrap_err().to_string();
    assert!(error.contains("unique in the file"), "{error}");
}

#[test]
fn attention_weights_of_convolutions_lose_their_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let values = [1.0, 2.0, 3.0, 4.0];
    let tensors = [
        Tensor::f32("up_blocks.0.attentions.0.query.weight", &[2, 2, 1, 1], &values),
        Tensor::f32("up_blocks.0.attentions.0.proj_attn.weight", &[2, 2, 1, 1], &values),
        Tensor::f32("up_blocks.0.attentions.0.to_k.weight", &[2, 2, 1, 1], &values),
        Tensor::f32("up_blocks.0.resnets.0.conv_shortcut.weight", &[2, 2, 1, 1], &values),
    ];
    write_component(directory.path(), &unet(), None, &tensors, Dtype::F32).unwrap();
    let model = ModelDir::open(directory.path()).unwrap();
    for name in ["attentions.0.to_q", "attentions.0.to_out.0", "attentions.0.to_k"] {
        let name = format!("up_blocks.0.{name}.weight");
        assert_eq!(model.weights.get(&name).unwrap().shape, [2, 2], "{name}");
        assert_eq!(model.weights.read_f32(&name).unwrap(), values);
    }
    assert_eq!(model.weights.get("up_blocks.0.resnets.0.conv_shortcut.weight").unwrap().shape, [2, 2, 1, 1]);
}

#[test]
fn old_names_of_attention_layers() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["query", "key", "value", "proj_attn", "to_k", "group_norm"];
    let old: Vec<String> =
        names.iter().map(|n| format!("mid_block.attentions.{}.{n}.weight", usize::from(*n == "to_k"))).collect();
    let mut tensors: Vec<_> = old.iter().map(|name| Tensor::f32(name, &[1], &[1.0])).collect();
    tensors.push(Tensor::f32("elsewhere.query.weight", &[1], &[1.0]));
    write_component(directory.path(), &unet(), None, &tensors, Dtype::F32).unwrap();
    let model = ModelDir::open(directory.path()).unwrap();
    let found: Vec<_> = model.weights.tensors().map(|t| t.name.to_owned()).collect();
    let mut expected: Vec<_> = ["0.to_q", "0.to_k", "0.to_v", "0.to_out.0", "1.to_k", "0.group_norm"]
        .map(|n| format!("mid_block.attentions.{n}.weight"))
        .into();
    expected.push("elsewhere.query.weight".into());
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_model_in_memory() {
    let mut bytes = Vec::new();
    let tensors = [Tensor::f32("w", &[1], &[2.0])];
    tweedie_checkpoint::write_safetensors(&mut bytes, "m", &tensors, Dtype::F16, &default_metadata()).unwrap();
    let open = |text: &str| ModelDir::from_memory("bundled", text, Some("{\"beta_end\": 1}"), bytes.clone());
    let model = open(&unet().to_string()).unwrap();
    assert_eq!(
        (model.weights.read_f32("w").unwrap(), model.scheduler.unwrap()["beta_end"].clone()),
        (vec![2.0], json!(1))
    );
    let message = open("{").unwrap_err().to_string();
    assert!(message.contains("bundled") && message.contains("config.json"), "{message}");
    // Bytes that are compiled in need no copy.
    let fixed: &'static [u8] = Box::leak(bytes.into_boxed_slice());
    assert!(ModelDir::from_memory("bundled", &unet().to_string(), None, fixed).is_ok());
}

#[test]
fn what_is_missing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    refused(&root.join("none"), &["none", "there is no such directory"]);
    refused(root, &["looked for model_index.json, config.json"]);
    fs::write(root.join("notes.txt"), "").unwrap();
    refused(&root.join("notes.txt"), &["it is a file", "name the directory"]);
    weights(&root.join(WEIGHTS_NAME), "w", 1.0);
    refused(root, &["no config in", "diffusion_pytorch_model.safetensors is there", "put its config.json beside"]);
    fs::remove_file(root.join(WEIGHTS_NAME)).unwrap();
    config(&root.join("config.json"), &unet());
    refused(root, &["no weights in", WEIGHTS_NAME, "index.json", "VARIANT", "fetch the weights"]);
    fs::write(root.join("diffusion_pytorch_model.bin"), b"PK").unwrap();
    refused(root, &["only diffusion_pytorch_model.bin is there, a Python pickle", "safe_serialization=True"]);

    let run = root.join("run");
    pipeline(&run, 1.0);
    fs::remove_file(run.join("scheduler/scheduler_config.json")).unwrap();
    refused(&run, &["no scheduler config", "looked for scheduler_config.json", "model_index.json lists a scheduler"]);
    let mut index = read_config(run.join("model_index.json")).unwrap();
    index["scheduler"] = json!([null, null]);
    write_config(run.join("model_index.json"), &index).unwrap();
    assert_eq!(ModelDir::open(&run).unwrap().scheduler, None);
    fs::remove_file(run.join("unet/config.json")).unwrap();
    refused(&run, &["no config in", "unet", "weights say nothing of it"]);
    fs::remove_dir_all(run.join("unet")).unwrap();
    refused(&run, &["no network in", "looked for unet/"]);
    index.remove("unet");
    write_config(run.join("model_index.json"), &index).unwrap();
    refused(&run, &["model_index.json: unet should be [library, class], found nothing"]);
    index.insert("unet".into(), json!(["diffusers"]));
    write_config(run.join("model_index.json"), &index).unwrap();
    refused(&run, &["unet should be [library, class], found [\"diffusers\"]"]);
}

#[test]
fn configs_that_are_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let path = root.join("config.json");
    weights(&root.join(WEIGHTS_NAME), "w", 1.0);
    let put = |text: &str| fs::write(&path, text).unwrap();
    put("{\n  \"a\": 1,\n  \"b\" 2\n}");
    refused(root, &["config.json is not valid JSON: line 3, column 7: expected `:`"]);
    put("");
    refused(root, &["config.json is not valid JSON: line 1, column 0: EOF"]);
    put(&"[".repeat(100_000));
    refused(root, &["recursion limit"]);
    put("[1]");
    refused(root, &["the file should be a JSON object, found an array"]);
    put("{\"a\": 1}");
    refused(root, &["config.json: _class_name should be UNet2DModel, UNetCond or EncoderClassifier, found nothing"]);
    put("{\"_class_name\": 3}");
    refused(root, &["found a number"]);
    put("{\"_class_name\": \"UNet2DConditionModel\"}");
    refused(root, &["UNetCond or EncoderClassifier, found UNet2DConditionModel"]);
    fs::write(&path, [b"{\"_class_name\": \"".as_slice(), b"\xff\"}"].concat()).unwrap();
    refused(root, &["not valid JSON"]);
    config(&path, &unet());
    fs::write(root.join(WEIGHTS_NAME), [0xff; 64]).unwrap();
    let error = ModelDir::open(root).unwrap_err();
    assert!(matches!(error, CheckpointError::Damaged { .. }) && error.to_string().contains(WEIGHTS_NAME), "{error}");
    // The class in model_index.json serves a config that names none.
    let run = root.join("run");
    pipeline(&run, 1.0);
    fs::write(run.join("unet/config.json"), "{}").unwrap();
    assert_eq!(ModelDir::open(&run).unwrap().class_name, "UNet2DModel");
}

/// Python's `json` writes non-numbers that JSON does not know.
#[test]
fn non_numbers_of_python() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scheduler_config.json");
    fs::write(&path, r#"{"lambda_min_clipped": -Infinity, "a": [NaN, Infinity, 1], "b": "\"NaN\\", "c": "Infinity"}"#)
        .unwrap();
    let expected =
        json!({"lambda_min_clipped": "-Infinity", "a": ["NaN", "Infinity", 1], "b": "\"NaN\\", "c": "Infinity"});
    assert_eq!(Value::Object(read_config(&path).unwrap()), expected);
    fs::write(&path, "{\"a\": NaN, \"b\": }").unwrap();
    let message = read_config(&path).unwrap_err().to_string();
    assert!(message.contains("line 1, column 7"), "{message}");
}

/// With the configs unchanged, a write touches the weights alone, in one rename: nothing can be caught half-way.
#[test]
fn overwriting_with_the_same_config_touches_only_the_weights() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    pipeline(root, 1.0);
    let others = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"];
    let times = || others.map(|name| root.join(name).metadata().unwrap().modified().unwrap());
    let before = times();
    std::thread::sleep(std::time::Duration::from_millis(20));
    pipeline(root, 2.0);
    assert_eq!(times(), before);
    assert_eq!(ModelDir::open(root).unwrap().weights.read_f32("w").unwrap(), [2.0]);
}

/// A write that fails before its renames, as on a full disk, leaves the old model whole, even if the config is another.
#[test]
fn a_change_of_config_that_cannot_be_written_leaves_the_old_model() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    pipeline(root, 1.0);
    let other = json!({"_class_name": "UNet2DModel", "sample_size": 32});
    let write = |value| write_pipeline(root, &other, &scheduler(), &[Tensor::f32("w", &[1], &[value])], Dtype::F32);
    // The weights cannot be staged, then one of the configs cannot.
    let weights = root.join("unet").join(WEIGHTS_NAME);
    let bytes = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::create_dir(&weights).unwrap();
    write(3.0).unwrap_err();
    fs::remove_dir(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    let scheduler_path = root.join("scheduler/scheduler_config.json");
    let bytes = fs::read(&scheduler_path).unwrap();
    fs::remove_file(&scheduler_path).unwrap();
    fs::create_dir(&scheduler_path).unwrap();
    write(3.0).unwrap_err();
    fs::remove_dir(&scheduler_path).unwrap();
    fs::write(&scheduler_path, bytes).unwrap();
    let model = ModelDir::open(root).unwrap();
    assert_eq!((model.config["sample_size"].clone(), model.weights.read_f32("w").unwrap()), (json!(28), vec![1.0]));
    let left = |folder: &str| fs::read_dir(root.join(folder)).unwrap().count();
    assert_eq!((left("."), left("unet"), left("scheduler")), (3, 2, 1), "no temporary file is left");
    write(3.0).unwrap();
    assert_eq!(ModelDir::open(root).unwrap().weights.read_f32("w").unwrap(), [3.0]);
}

/// Where a write of another config ends between its renames, the directory says that it is incomplete.
#[test]
fn an_interrupted_change_of_config_is_not_taken_for_a_model() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    pipeline(root, 1.0);
    let other = json!({"_class_name": "UNet2DModel", "sample_size": 32});
    let unsavable = [Tensor::f32("w", &[2], &[1.0])];
    write_pipeline(root, &other, &scheduler(), &unsavable, Dtype::F32).unwrap_err();
    assert_eq!(ModelDir::open(root).unwrap().weights.read_f32("w").unwrap(), [1.0]);
    // A kill after the removal of the entry.
    fs::remove_file(root.join("model_index.json")).unwrap();
    refused(root, &["looked for model_index.json, config.json"]);
    write_pipeline(root, &other, &scheduler(), &[Tensor::f32("w", &[1], &[3.0])], Dtype::F32).unwrap();
    let model = ModelDir::open(root).unwrap();
    assert_eq!((model.config["sample_size"].clone(), model.weights.read_f32("w").unwrap()), (json!(32), vec![3.0]));
}
