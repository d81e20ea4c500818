//! Properties of the classifier that no golden tensor shows.

mod common;

use common::flat;
use ndarray::{Array4, s};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::SeedableRng;
use ndarray_rand::rand_distr::StandardNormal;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tweedie_denoiser::{Classifier, Condition, Network, NetworkGrad};
use tweedie_unet::classifier::{Config, Pooling, Time};
use tweedie_unet::residual::{self, Block, MidAttention, MidBlock, TimeScaleShift};
use tweedie_unet::{EncoderClassifier, Init};

const CLASSES: usize = 3;

fn images(seed: u64, n: usize) -> Array4<f32> {
    Array4::random_using((n, 2, 8, 8), StandardNormal, &mut ChaCha8Rng::seed_from_u64(seed))
}

/// Two levels with attention in the first, where more pixels than one block of the kernel attend to each other.
fn config(pool: Pooling, time: Time) -> Config {
    let encoder = residual::Config {
        sample_size: Some([8, 8]),
        in_channels: 2,
        channels: vec![8, 12],
        down_blocks: vec![Block::Attention, Block::Plain],
        layers_per_block: 1,
        norm_num_groups: Some(4),
        attention_head_dim: Some(4),
        ..residual::Config::default()
    };
    Config { encoder, time, pool, classes: CLASSES, head_dropout: 0.0 }
}

/// Every pooling with and without time, with and without attention, a middle and AdaGN.
fn variations() -> Vec<Config> {
    let mut all = Vec::new();
    for pool in [Pooling::Attention, Pooling::Average] {
        for time in [Time::Positional, Time::Absent] {
            let with = config(pool, time);
            let mut without = with.clone();
            without.encoder.down_blocks = vec![Block::Plain, Block::Resnet];
            without.encoder.mid_attention = MidAttention::Without;
            let mut short = with.clone();
            short.encoder.mid_block = MidBlock::Absent;
            // Whole vectors of channels, which the faster convolution needs on every instruction set.
            short.encoder.channels = vec![16, 32];
            if time == Time::Positional {
                short.encoder.time_scale_shift = TimeScaleShift::ScaleShift;
            }
            all.extend([with, without, short]);
        }
    }
    all
}

fn network(config: Config) -> EncoderClassifier {
    let mut network = EncoderClassifier::new(config).unwrap();
    network.initialise(Init::PyTorch, 7);
    network
}

fn batch() -> (Array4<f32>, Vec<f64>, Condition) {
    (images(1, 4), vec![0.0, 17.5, 400.0, 999.0], Condition::labels([0, 2, 1, 2].map(Some).to_vec()))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Half of the direction goes along the gradient, so that the derivative is not small by cancellation.
fn direction(gradient: &[f32], seed: u64) -> Vec<f32> {
    let noise = Array4::random_using((1, 1, 1, gradient.len()), StandardNormal, &mut ChaCha8Rng::seed_from_u64(seed));
    let (size, spread) = (flat::norm(gradient) as f32, (gradient.len() as f32).sqrt());
    gradient.iter().zip(flat(&noise)).map(|(g, z)| g / size + z / spread).collect()
}

/// `ln softmax(z)_k`, of the logits of every image.
fn log_probabilities(network: &EncoderClassifier, x: &Array4<f32>, times: &[f64]) -> Vec<Vec<f64>> {
    let logits = network.classify(x.view(), times).unwrap().logits;
    let of = |z: ndarray::ArrayView1<'_, f32>| {
        let sum: f64 = z.iter().map(|&z| f64::from(z).exp()).sum();
        z.iter().map(|&z| f64::from(z) - sum.ln()).collect()
    };
    logits.outer_iter().map(of).collect()
}

#[test]
fn label_gradients_are_derivatives() {
    let (x, times, condition) = batch();
    for config in variations() {
        let network = network(config.clone());
        let gradient = network.label_gradient(x.view(), &times, &condition).unwrap();
        let v = Array4::from_shape_vec(x.dim(), direction(flat(&gradient), 3)).unwrap();
        let value = |h: f32| -> f64 {
            let log_p = log_probabilities(&network, &(&x + &(&v * h)), &times);
            log_p.iter().zip(condition.as_labels()).map(|(log_p, label)| log_p[label.unwrap()]).sum()
        };
        // The logits are f32 numbers of size one, rounded at 1e-7; the third derivatives are of the size of the first.
        let h = 1.0 / 64.0;
        let (numeric, analytic) = ((value(h) - value(-h)) / f64::from(2.0 * h), dot(flat(&gradient), flat(&v)));
        assert!((numeric - analytic).abs() < 1e-3 * analytic, "{config:?}: {numeric} {analytic}");
    }
}

#[test]
fn parameter_gradients_are_derivatives() {
    let (x, times, _) = batch();
    let none = Condition::none(4);
    let cotangent = Array4::from_shape_fn((4, CLASSES, 1, 1), |(n, k, _, _)| ((n * 5 + k * 3) % 7) as f32 / 3.0 - 1.0);
    let mut dropping = config(Pooling::Attention, Time::Positional);
    (dropping.head_dropout, dropping.encoder.dropout) = (0.3, 0.2);
    for config in variations().into_iter().chain([dropping]) {
        let drops = config.head_dropout > 0.0;
        let mut network = network(config.clone());
        let mut grads = vec![0.0; network.params().len()];
        network.forward_backward(x.view(), &times, &none, &mut |_| cotangent.clone(), &mut grads).unwrap();
        let mut u = direction(&grads, 4);
        if drops {
            // What is dropped depends on the last bias.
            u[network.params().find("classifier.bias").unwrap().range.clone()].fill(0.0);
        }
        let value = |h: f32| {
            let mut moved = network.clone();
            moved.params_mut().values_mut().iter_mut().zip(&u).for_each(|(value, u)| *value += h * u);
            let mut value = 0.0;
            let mut loss = |z: ndarray::ArrayView4<'_, f32>| {
                value = dot(flat(&z.to_owned()), flat(&cotangent));
                Array4::zeros(z.dim())
            };
            moved.forward_backward(x.view(), &times, &none, &mut loss, &mut vec![0.0; u.len()]).unwrap();
            value
        };
        let h = 1e-3;
        let (numeric, analytic) = ((value(h) - value(-h)) / f64::from(2.0 * h), dot(&grads, &u));
        assert!((numeric - analytic).abs() < 1e-3 * analytic.abs(), "{config:?}: {numeric} {analytic}");
    }
}

#[test]
fn label_gradients_cancel_over_the_classes() {
    let (x, times, _) = batch();
    for config in variations() {
        let network = network(config);
        let log_p = log_probabilities(&network, &x, &times);
        let mut sum = vec![0.0; x.len()];
        let mut size = 0.0;
        for y in 0..CLASSES {
            let gradient = network.label_gradient(x.view(), &times, &Condition::labels(vec![Some(y); 4])).unwrap();
            size += flat::norm(flat(&gradient));
            for ((sum, gradient), log_p) in
                sum.chunks_mut(x.len() / 4).zip(flat(&gradient).chunks(x.len() / 4)).zip(&log_p)
            {
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += log_p[y].exp() * f64::from(*g));
            }
        }
        let rest = sum.iter().map(|s| s * s).sum::<f64>().sqrt();
        assert!(size > 1e-3 && rest < 1e-5 * size, "{rest} {size}");
    }
}

/// Everything that is computed, as bits.
fn bits(config: &Config, threads: usize) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let (x, times, condition) = batch();
        let mut network = network(config.clone());
        let classified = network.classify(x.view(), &times).unwrap();
        let gradient = network.label_gradient(x.view(), &times, &condition).unwrap();
        let mut grads = vec![0.0; network.params().len()];
        let none = Condition::none(4);
        let dx = network.forward_backward(x.view(), &times, &none, &mut |z| z.mapv(|z| z - 0.5), &mut grads).unwrap();
        let (logits, features) = (classified.logits.as_slice().unwrap(), classified.features.as_slice().unwrap());
        let all = [logits, features, flat(&gradient), flat(&dx), &grads];
        all.concat().into_iter().map(f32::to_bits).collect()
    })
}

#[test]
fn same_bits_for_any_number_of_threads() {
    for mut config in variations() {
        config.head_dropout = 0.2;
        let one = bits(&config, 1);
        assert!(one.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        for threads in [2, 4] {
            assert!(one == bits(&config, threads), "{config:?}: other bits with {threads} threads");
        }
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    // 70 images are two chunks.
    let n = 70;
    let x = images(5, n);
    let times: Vec<f64> = (0..n).map(|i| 13.0 * i as f64 + 1.0).collect();
    let condition = Condition::labels((0..n).map(|i| (i % 4 < CLASSES).then_some(i % 4)).collect());
    for config in variations() {
        let network = network(config.clone());
        let all = network.classify(x.view(), &times).unwrap();
        let gradient = network.label_gradient(x.view(), &times, &condition).unwrap();
        for (from, to) in [(0, 1), (3, 10), (63, 65), (68, 69)] {
            let (part, times) = (x.slice(s![from..to, .., .., ..]), &times[from..to]);
            let classified = network.classify(part, times).unwrap();
            assert_eq!(classified.logits, all.logits.slice(s![from..to, ..]), "{config:?}: images {from} to {to}");
            assert_eq!(classified.features, all.features.slice(s![from..to, ..]));
            let found = network.label_gradient(part, times, &condition.slice(from..to)).unwrap();
            assert_eq!(found, gradient.slice(s![from..to, .., .., ..]), "{config:?}: images {from} to {to}");
        }
        for (gradient, label) in gradient.outer_iter().zip(condition.as_labels()) {
            assert_eq!(gradient.iter().any(|g| *g != 0.0), label.is_some());
        }
    }
}

#[test]
fn a_label_gradient_is_the_input_gradient_of_training() {
    let (x, times, condition) = batch();
    for config in variations() {
        let mut network = network(config);
        let gradient = network.label_gradient(x.view(), &times, &condition).unwrap();
        let log_p = log_probabilities(&network, &x, &times);
        let cotangent = Array4::from_shape_fn((4, CLASSES, 1, 1), |(n, k, _, _)| {
            (f64::from(u8::from(condition.as_labels()[n] == Some(k))) - log_p[n][k].exp()) as f32
        });
        let mut grads = vec![0.0; network.params().len()];
        let none = Condition::none(4);
        let dx = network.forward_backward(x.view(), &times, &none, &mut |_| cotangent.clone(), &mut grads).unwrap();
        assert!(common::relative_error(flat(&gradient), flat(&dx)) < 1e-5);
        // Changed parameters are packed again.
        network.params_mut().get_mut("conv_in.weight").unwrap()[0] += 1.0;
        assert_ne!(gradient, network.label_gradient(x.view(), &times, &condition).unwrap());
    }
}

#[test]
fn only_a_noisy_classifier_sees_the_time() {
    let (x, times, condition) = batch();
    for config in variations() {
        let network = network(config.clone());
        let at = |times: &[f64]| {
            let classified = network.classify(x.view(), times).unwrap();
            (classified, network.label_gradient(x.view(), times, &condition).unwrap())
        };
        assert_eq!(at(&times) == at(&[3.0, 2.0, 1.0, 0.0]), config.time == Time::Absent);
    }
}

#[test]
fn clean_images_lose_other_features_at_every_step() {
    let mut network = network(Config { head_dropout: 0.5, ..config(Pooling::Average, Time::Absent) });
    let (x, times, _) = batch();
    let none = Condition::none(4);
    let outputs = |network: &mut EncoderClassifier| {
        let mut output = None;
        let mut grads = vec![0.0; network.params().len()];
        let mut loss = |z: ndarray::ArrayView4<'_, f32>| {
            output = Some(z.to_owned());
            Array4::zeros(z.dim())
        };
        network.forward_backward(x.view(), &times, &none, &mut loss, &mut grads).unwrap();
        output.unwrap()
    };
    let first = outputs(&mut network);
    assert_eq!(first, outputs(&mut network), "the same parameters drop the same");
    assert_ne!(first, network.predict(x.view(), &times, &none).unwrap(), "nothing is dropped in a prediction");
    network.params_mut().get_mut("classifier.bias").unwrap()[1] += 1e-6;
    let second = outputs(&mut network);
    assert!(first.iter().zip(&second).filter(|(a, b)| (*a - *b).abs() > 1e-4).count() > 6, "{first} {second}");
}

#[test]
fn wrong_batches_are_refused() {
    let network = network(config(Pooling::Attention, Time::Positional));
    let (x, times, condition) = batch();
    let gradient = |x: &Array4<f32>, times: &[f64], condition: &Condition| {
        network.label_gradient(x.view(), times, condition).unwrap_err().to_string()
    };
    let wrong = Condition::labels(vec![Some(0), Some(3), None, None]);
    assert!(gradient(&x, &times, &wrong).contains("sample 1 has label 3"));
    assert!(gradient(&x, &times[..3], &condition).contains("timesteps"));
    assert!(gradient(&x, &times, &Condition::none(3)).contains("condition"));
    assert!(gradient(&Array4::zeros((4, 3, 8, 8)), &times, &condition).contains("channels"));
    let large = Array4::zeros((4, 2, 16, 16));
    let message = network.classify(large.view(), &times).unwrap_err().to_string();
    assert!(message.contains("8 x 8 (`sample_size`)") && message.contains("16 x 16"), "{message}");
    let message = network.predict(x.view(), &times, &condition).unwrap_err().to_string();
    assert!(message.contains("unconditional"), "{message}");
    // A mean takes any size.
    let average = self::network(config(Pooling::Average, Time::Absent));
    assert_eq!(average.classify(large.view(), &times).unwrap().logits.dim(), (4, CLASSES));
    assert_eq!(average.classify(Array4::zeros((0, 2, 8, 8)).view(), &[]).unwrap().features.dim(), (0, 12));
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn configurations_survive_a_round_trip_and_are_refused_by_name() {
    for config in variations() {
        let map = config.to_json();
        assert_eq!(Config::from_json(&map).unwrap(), config);
        let rebuilt = EncoderClassifier::from_config(&map).unwrap();
        assert_eq!(rebuilt.expected(), network(config.clone()).expected());
        let summary = rebuilt.summary(8, 8);
        assert_eq!(summary.params(), rebuilt.params().trainable());
        assert_eq!(EncoderClassifier::table(&map, 1 << 20).unwrap().entries(), rebuilt.expected());
    }
    let base = object(json!({"_class_name": "EncoderClassifier", "block_out_channels": [8, 8], "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "sample_size": 8, "num_classes": 3}));
    Config::from_json(&base).unwrap();
    for (change, expected) in [
        (json!({"up_block_types": ["UpBlock2D", "UpBlock2D"]}), "unknown key `up_block_types`"),
        (json!({"out_channels": 3}), "unknown key `out_channels`"),
        (json!({"num_classes": null}), "`num_classes`"),
        (json!({"num_classes": 0}), "`num_classes`"),
        (json!({"pool": "max"}), "`pool`"),
        (json!({"time": "fourier"}), "`time`"),
        (json!({"head_dropout": 1.0}), "`head_dropout`"),
        (json!({"sample_size": null}), "`sample_size`"),
        (json!({"sample_size": 9}), "`sample_size`"),
        (json!({"norm_num_groups": 3}), "`norm_num_groups`"),
        (json!({"attention_head_dim": 9}), "`attention_head_dim`"),
        (json!({"time": "none", "resnet_time_scale_shift": "scale_shift"}), "`resnet_time_scale_shift`"),
        (
            json!({"time": "none", "block_out_channels": [32, 32], "down_block_types": ["DownBlock2D", "KDownBlock2D"]}),
            "`down_block_types`",
        ),
        (json!({"down_block_types": ["DownBlock2D"]}), "`down_block_types`"),
        (json!({"block_out_channels": [8192, 65536]}), "parameters"),
    ] {
        let mut map = base.clone();
        map.extend(object(change.clone()));
        let message = Config::from_json(&map).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("EncoderClassifier"), "{change}: {message}");
    }
    let mut clean = base.clone();
    clean.insert("time".to_owned(), Value::Null);
    assert_eq!(Config::from_json(&clean).unwrap().time, Time::Absent);
    let mut missing = base.clone();
    missing.remove("num_classes");
    assert!(Config::from_json(&missing).unwrap_err().to_string().contains("`num_classes`"));
    let other = object(json!({"_class_name": "UNet2DModel"}));
    assert!(EncoderClassifier::from_config(&other).unwrap_err().to_string().contains("UNet2DModel"));
    let wide = object(json!({"_class_name": "EncoderClassifier", "num_classes": 3, "sample_size": 32}));
    assert!(EncoderClassifier::table(&wide, 1000).unwrap_err().to_string().contains("1000 numbers"));
}
