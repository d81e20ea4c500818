//! Configurations: what is read, what is refused by name, and the layers that follow.

use serde_json::{Map, Value, json};
use tweedie_denoiser::{Network, NetworkGrad, Role};
use tweedie_unet::residual::{
    Activation, Block, Classes, Config, DownsamplePadding, InputRange, MidAttention, MidBlock, Null, Sampling,
    SinusoidOrder, TimeEmbedding, TimeScaleShift,
};
use tweedie_unet::{BookConfig, Model, UnetError, canonical_key, from_config};

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("not an object") };
    map
}

/// google/ddpm-cifar10-32.
fn cifar10() -> Value {
    json!({
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": null,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": false,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": false,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    })
}

fn totals(model: &Model) -> (usize, usize) {
    (model.expected().len(), model.params().trainable())
}

#[test]
fn cifar10_has_its_published_size() {
    let model = Model::from_config(&object(cifar10())).unwrap();
    assert_eq!(totals(&model), (328, 35_746_307));
    assert_eq!((model.in_channels(), model.out_channels(), model.size_multiple()), (3, 3, 8));
    assert_eq!(model.image_shape(), Some([3, 32, 32]));
    assert_eq!((model.classes(), model.has_null_condition()), (0, true));
    let shape = |key: &str| model.params().find(key).map(|p| p.shape.clone());
    assert_eq!(shape("down_blocks.1.attentions.0.to_out.0.weight"), Some(vec![256, 256]));
    assert_eq!(shape("up_blocks.2.attentions.2.group_norm.bias"), Some(vec![256]));
    assert_eq!(shape("up_blocks.3.resnets.0.conv_shortcut.weight"), Some(vec![128, 384, 1, 1]));
    assert_eq!(shape("down_blocks.0.resnets.0.conv_shortcut.weight"), None);
}

#[test]
fn summaries_account_for_every_parameter() {
    let mut model = Model::from_config(&object(cifar10())).unwrap();
    let s = model.summary(32, 32);
    assert_eq!(s.params(), model.params().trainable());
    let find = |name: &str| s.layers.iter().find(|layer| layer.name == name).unwrap();
    let conv = find("down_blocks.1.resnets.0.conv1");
    assert_eq!((conv.output, conv.flops), ([256, 16, 16], 2 * 9 * 128 * 256 * 16 * 16));
    assert_eq!(find("up_blocks.0.upsamplers.0.conv").output, [256, 8, 8]);
    assert_eq!(find("conv_out").output, [3, 32, 32]);
    let attention = s.layers.iter().find(|layer| layer.kind.starts_with("Attention")).unwrap();
    assert_eq!(attention.flops, 4 * 256 * 256 * 256);

    model = Model::book(BookConfig::default()).unwrap();
    let s = model.summary(28, 28);
    assert_eq!(s.params(), model.params().trainable());
    let find = |name: &str| s.layers.iter().find(|layer| layer.name == name).unwrap();
    assert_eq!(find("bot1.convs.3").output, [256, 7, 7]);
    assert_eq!(find("up1.convs.0").flops, 2 * 9 * 192 * 64 * 28 * 28);
    assert_eq!(s.flops(), s.layers.iter().map(|layer| layer.flops).sum::<u64>());
}

#[test]
fn the_textbook_network_has_its_keys() {
    let model = Model::from_config(&object(json!({"_class_name": "UNetCond"}))).unwrap();
    let Model::Book(network) = &model else { panic!("the wrong network") };
    assert_eq!(*network.config(), BookConfig::default());
    let mut keys: Vec<_> = model.expected().iter().map(|p| p.name.clone()).collect();
    let mut expected = vec!["out.weight".to_owned(), "out.bias".into(), "label_emb.weight".into()];
    for block in ["down1", "down2", "bot1", "up2", "up1"] {
        for layer in ["convs.0", "convs.3", "mlp.0", "mlp.2"] {
            expected.extend(["weight", "bias"].map(|part| format!("{block}.{layer}.{part}")));
        }
        for layer in ["convs.1", "convs.4"] {
            let parts = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];
            expected.extend(parts.map(|part| format!("{block}.{layer}.{part}")));
        }
    }
    keys.sort();
    expected.sort();
    assert_eq!(keys, expected);
    let roles = |role| model.expected().iter().filter(|p| p.role == role).count();
    assert_eq!((roles(Role::Buffer), roles(Role::Counter)), (20, 10));
}

/// Another value than the default for every key.
fn unusual() -> Config {
    Config {
        sample_size: Some([16, 24]),
        in_channels: 4,
        out_channels: 5,
        input_range: InputRange::Centered,
        time_embedding: TimeEmbedding::Fourier,
        time_embedding_dim: Some(48),
        freq_shift: 1.0,
        sinusoid: SinusoidOrder::SinCos,
        down_blocks: vec![Block::Attention, Block::Plain],
        up_blocks: vec![Block::Plain, Block::Attention],
        channels: vec![8, 16],
        layers_per_block: 3,
        downsampling: Sampling::Resnet,
        upsampling: Sampling::Resnet,
        mid_block: MidBlock::Absent,
        mid_block_scale_factor: 1.25,
        downsample_padding: DownsamplePadding::Asymmetric,
        activation: Activation::Mish,
        dropout: 0.25,
        attention_head_dim: None,
        norm_num_groups: Some(2),
        attn_norm_num_groups: Some(4),
        norm_eps: 1e-6,
        time_scale_shift: TimeScaleShift::ScaleShift,
        mid_attention: MidAttention::Without,
        classes: Some(Classes::Table { rows: 11, null: Null::LastRow }),
    }
}

#[test]
fn configurations_survive_a_round_trip() {
    use Block::{AttentionSkip, KDiffusion, Resnet, Skip};
    let two = |down: Block, up: Block, c: usize| Config {
        channels: vec![c; 2],
        down_blocks: vec![down; 2],
        up_blocks: vec![up; 2],
        in_channels: 3,
        out_channels: 3,
        ..unusual()
    };
    for config in [
        Config::default(),
        unusual(),
        Config { classes: None, activation: Activation::Relu, ..unusual() },
        Config { classes: Some(Classes::Timestep { labels: None }), activation: Activation::Gelu, ..unusual() },
        Config { classes: Some(Classes::Timestep { labels: Some(7) }), ..unusual() },
        Config { time_embedding: TimeEmbedding::Learned { steps: 90 }, upsampling: Sampling::Conv, ..unusual() },
        Config { norm_num_groups: None, ..two(KDiffusion, KDiffusion, 32) },
        Config { norm_num_groups: None, ..two(Skip, Skip, 16) },
        two(AttentionSkip, AttentionSkip, 32),
        two(Resnet, Resnet, 6),
    ] {
        let map = config.to_json();
        assert_eq!(map["_class_name"], "UNet2DModel");
        assert_eq!(Config::from_json(&map).unwrap(), config);
    }
    let book = BookConfig { in_channels: 3, image_size: 32, embed_dim: 64, num_classes: 7, base_channels: 16 };
    assert_eq!(BookConfig::from_json(&book.to_json()).unwrap(), book);
    for model in [Model::book(book).unwrap(), Model::residual(unusual()).unwrap()] {
        let again = Model::from_config(&model.config()).unwrap();
        assert_eq!(again.expected(), model.expected());
        assert_eq!(from_config(&model.config()).unwrap().params().table(), model.expected());
    }
}

#[test]
fn missing_keys_take_the_defaults_of_diffusers() {
    assert_eq!(Config::from_json(&object(json!({}))).unwrap(), Config::default());
    let masked = json!({"layers_per_block": 5, "_use_default_values": ["layers_per_block"]});
    assert_eq!(Config::from_json(&object(masked)).unwrap(), Config::default());
}

/// Each change of one key is refused with an error that names the key.
#[test]
fn unsupported_values_are_refused_by_name() {
    for (key, value) in [
        ("time_embedding_type", json!("rotary")),
        ("num_train_timesteps", json!(-1)),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("downsample_type", json!("fir")),
        ("upsample_type", json!(2)),
        ("act_fn", json!("tanh")),
        ("act_fn", json!(null)),
        ("class_embed_type", json!("identity")),
        ("class_embed_type", json!("projection")),
        ("dropout", json!(1)),
        ("dropout", json!(-0.1)),
        ("downsample_padding", json!(2)),
        ("resnet_time_scale_shift", json!("spatial")),
        ("down_block_types", json!(["DownBlock2D", "SkipDownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("down_block_types", json!(["DownBlock2D", "DownBlock2D", "DownBlock2D", "UpBlock2D"])),
        ("up_block_types", json!(["KUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"])),
        ("up_block_types", json!("UpBlock2D")),
        ("block_out_channels", json!([128, 0, 256, 256])),
        ("block_out_channels", json!([128, 99_999_999, 256, 256])),
        ("block_out_channels", json!([128, 256])),
        ("sample_size", json!([32, 32, 32])),
        ("sample_size", json!(-1)),
        ("in_channels", json!(0)),
        ("in_channels", json!("3")),
        ("layers_per_block", json!([2, 2, 2, 2])),
        ("norm_num_groups", json!(null)),
        ("norm_num_groups", json!(48)),
        ("attn_norm_num_groups", json!(48)),
        ("attention_head_dim", json!(257)),
        ("attention_head_dim", json!(0)),
        ("norm_eps", json!(0)),
        ("freq_shift", json!(64)),
        ("center_input_sample", json!(1)),
        ("mid_block_scale_factor", json!(0)),
        ("num_class_embeds", json!(-3)),
        ("_tweedie_null_class", json!(10)),
        ("encoder_hid_dim", json!(null)),
    ] {
        let mut config = object(cifar10());
        config.insert(key.into(), value.clone());
        let error = Model::from_config(&config).map(|_| ()).expect_err(&format!("{key} = {value} was accepted"));
        assert!(error.to_string().contains(&format!("`{key}`")), "{key} = {value}: {error}");
    }
}

/// The remaining names of blocks that diffusers knows: each with the reason why they are refused.
#[test]
fn blocks_of_other_networks_are_refused_with_their_reasons() {
    for (key, name, reason) in [
        ("down_block_types", "CrossAttnDownBlock2D", "second input"),
        ("down_block_types", "SimpleCrossAttnDownBlock2D", "second input"),
        ("down_block_types", "KCrossAttnDownBlock2D", "second input"),
        ("down_block_types", "DownEncoderBlock2D", "autoencoders"),
        ("down_block_types", "AttnDownEncoderBlock2D", "autoencoders"),
        ("up_block_types", "CrossAttnUpBlock2D", "second input"),
        ("up_block_types", "SimpleCrossAttnUpBlock2D", "second input"),
        ("up_block_types", "KCrossAttnUpBlock2D", "second input"),
        ("up_block_types", "UpDecoderBlock2D", "autoencoders"),
        ("up_block_types", "AttnUpDecoderBlock2D", "autoencoders"),
        ("up_block_types", "MyBlock", "KUpBlock2D"),
    ] {
        let mut config = object(cifar10());
        config[key][2] = json!(name);
        let message = Config::from_json(&config).unwrap_err().to_string();
        assert!([key, name, reason].iter().all(|part| message.contains(part)), "{name}: {message}");
    }
}

#[test]
fn other_spellings_mean_the_same() {
    let plain = Config::from_json(&object(cifar10())).unwrap();
    for (key, value) in [
        ("act_fn", json!("SiLU")),
        ("downsample_type", json!(null)),
        ("upsample_type", json!("conv")),
        ("time_embedding_dim", json!(0)),
        ("num_train_timesteps", json!(1000)),
        ("dropout", json!(0)),
        ("up_block_types", json!(["UNetResUpBlock2D", "UpBlock2D", "UNetResAttnUpBlock2D", "UpBlock2D"])),
    ] {
        let mut config = object(cifar10());
        config.insert(key.into(), value);
        assert_eq!(Config::from_json(&config).unwrap(), plain, "{key}");
    }
}

#[test]
fn a_learned_time_embedding_needs_its_steps() {
    let mut config = object(cifar10());
    config.insert("time_embedding_type".into(), json!("learned"));
    let message = Config::from_json(&config).unwrap_err().to_string();
    assert!(message.contains("`num_train_timesteps`"), "{message}");
    config.insert("num_train_timesteps".into(), json!(1000));
    let model = Model::from_config(&config).unwrap();
    assert_eq!(model.params().find("time_proj.weight").unwrap().shape, [1000, 128]);
}

/// Labels that are embedded as times have no row of the null condition.
#[test]
fn labels_as_times_know_no_null_condition() {
    let mut config = object(cifar10());
    config.insert("class_embed_type".into(), json!("timestep"));
    let model = Model::from_config(&config).unwrap();
    assert_eq!((model.classes(), model.has_null_condition()), (65_536, false));
    config.insert("num_class_embeds".into(), json!(12));
    assert_eq!(Model::from_config(&config).unwrap().classes(), 12);
    config.insert("_tweedie_null_class".into(), json!(11));
    let message = Config::from_json(&config).unwrap_err().to_string();
    assert!(message.contains("`_tweedie_null_class`") && message.contains("timestep"), "{message}");
}

#[test]
fn the_null_class_is_the_last_row() {
    let mut config = object(cifar10());
    config.insert("num_class_embeds".into(), json!(11));
    config.insert("_tweedie_null_class".into(), json!(10));
    let model = Model::from_config(&config).unwrap();
    assert_eq!((model.classes(), model.has_null_condition()), (10, true));
    config.insert("_tweedie_null_class".into(), json!(3));
    assert!(matches!(Model::from_config(&config), Err(UnetError::Value { key, .. }) if key == "_tweedie_null_class"));
}

#[test]
fn huge_networks_are_refused_before_they_are_made() {
    let mut config = object(cifar10());
    config.insert("block_out_channels".into(), json!([32_768, 32_768, 32_768, 32_768]));
    let error = Model::from_config(&config).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("parameters"), "{error}");
    config.insert("block_out_channels".into(), json!([128, 256, 256, 256]));
    config.insert("layers_per_block".into(), json!(60_000));
    assert!(Model::from_config(&config).is_err());
}

#[test]
fn the_textbook_configuration_is_checked() {
    for (key, value) in [
        ("base", json!(64)),
        ("base_channels", json!(0)),
        ("image_size", json!(30)),
        ("embed_dim", json!(-1)),
        ("num_classes", json!("ten")),
        ("in_channels", json!(100_000)),
    ] {
        let config = object(json!({"_class_name": "UNetCond", key: value}));
        let error = Model::from_config(&config).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
    let commented = object(json!({"_class_name": "UNetCond", "_comment": "metadata is ignored"}));
    assert!(Model::from_config(&commented).is_ok());
}

#[test]
fn other_classes_are_refused_by_name() {
    for (config, found) in [
        (json!({"_class_name": "UNet2DConditionModel"}), "UNet2DConditionModel"),
        (json!({"in_channels": 3}), "no such key"),
    ] {
        let error = from_config(&object(config)).map(|_| ()).unwrap_err();
        assert!(matches!(error, UnetError::Class { .. }) && error.to_string().contains(found), "{error}");
    }
}

#[test]
fn legacy_attention_keys_have_present_names() {
    for (old, new) in [
        ("mid_block.attentions.0.query.weight", "mid_block.attentions.0.to_q.weight"),
        ("down_blocks.1.attentions.0.key.bias", "down_blocks.1.attentions.0.to_k.bias"),
        ("up_blocks.2.attentions.1.value.weight", "up_blocks.2.attentions.1.to_v.weight"),
        ("up_blocks.2.attentions.1.proj_attn.weight", "up_blocks.2.attentions.1.to_out.0.weight"),
        ("up_blocks.2.attentions.1.to_out.0.weight", "up_blocks.2.attentions.1.to_out.0.weight"),
        ("up_blocks.2.attentions.1.group_norm.weight", "up_blocks.2.attentions.1.group_norm.weight"),
        ("key.value", "key.value"),
        ("", ""),
    ] {
        assert_eq!(canonical_key(old), new);
    }
}
