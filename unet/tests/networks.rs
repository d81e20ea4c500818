//! Properties of both networks that no golden tensor shows.

mod common;

use common::flat;
use ndarray::{Array4, Axis, s};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::SeedableRng;
use ndarray_rand::rand_distr::StandardNormal;
use rand_chacha::ChaCha8Rng;
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, Role};
use tweedie_unet::residual::{Block, Classes, Config, MidAttention, Null, Sampling, TimeEmbedding, TimeScaleShift};
use tweedie_unet::{BookConfig, Init, Model};

fn images(seed: u64, n: usize, c: usize, side: usize) -> Array4<f32> {
    Array4::random_using((n, c, side, side), StandardNormal, &mut ChaCha8Rng::seed_from_u64(seed))
}

/// Two levels, attention in the second and the middle, three classes and the null condition.
fn tiny() -> Config {
    Config {
        sample_size: Some([8, 8]),
        in_channels: 2,
        out_channels: 2,
        channels: vec![8, 12],
        down_blocks: vec![Block::Plain, Block::Attention],
        up_blocks: vec![Block::Attention, Block::Plain],
        layers_per_block: 1,
        norm_num_groups: Some(4),
        attention_head_dim: Some(4),
        classes: Some(Classes::Table { rows: 4, null: Null::LastRow }),
        ..Config::default()
    }
}

/// [`tiny`] with whole vectors of channels, which the faster convolution needs on every instruction set.
fn wide() -> Config {
    Config { channels: vec![16, 32], norm_num_groups: Some(8), attention_head_dim: Some(16), ..tiny() }
}

/// [`tiny`] with residual blocks that resample.
fn resampling() -> Config {
    Config {
        down_blocks: vec![Block::Resnet, Block::Attention],
        up_blocks: vec![Block::Attention, Block::Resnet],
        upsampling: Sampling::Resnet,
        ..tiny()
    }
}

/// Blocks that resample by filters, on images of three channels.
fn filtering(block: Block) -> Config {
    Config {
        in_channels: 3,
        out_channels: 3,
        channels: vec![32; 2],
        down_blocks: vec![block; 2],
        up_blocks: vec![block; 2],
        dropout: 0.1,
        ..tiny()
    }
}

fn residual(config: Config) -> Model {
    let mut model = Model::residual(config).unwrap();
    model.initialise(Init::PyTorch, 7);
    model
}

fn book() -> Model {
    let mut model =
        Model::book(BookConfig { in_channels: 2, image_size: 8, embed_dim: 20, num_classes: 3, base_channels: 4 })
            .unwrap();
    model.initialise(Init::PyTorch, 7);
    model
}

/// Four samples with and without a label.
fn batch() -> (Array4<f32>, Vec<f64>, Condition) {
    (images(1, 4, 2, 8), vec![1.0, 17.5, 400.0, 999.0], Condition::labels(vec![Some(0), None, Some(2), Some(1)]))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// (d/dh) loss(parameters + h u, x + h v) by central differences equals <gradients, (u, v)>.
///
/// `h` is the step, `tolerance` relative.
fn check_directional_derivative(model: Model, h: f32, tolerance: f64) {
    check_derivative(model, h, tolerance, 1.0);
}

/// The images move by `moved` times their direction: with dropout, none may move, or other elements are dropped.
fn check_derivative(mut model: Model, h: f32, tolerance: f64, moved_images: f32) {
    let (x, times, condition) = batch();
    let cotangent = images(2, 4, 2, 8);
    let mut grads = vec![0.0; model.params().len()];
    let dx = model.forward_backward(x.view(), &times, &condition, &mut |_| cotangent.clone(), &mut grads).unwrap();
    // Half of each direction goes along the gradient, so that the derivative is not small by cancellation.
    let direction = |gradient: &[f32], seed| -> Vec<f32> {
        let noise =
            Array4::random_using((1, 1, 1, gradient.len()), StandardNormal, &mut ChaCha8Rng::seed_from_u64(seed));
        let size = flat::norm(gradient) as f32;
        let spread = (gradient.len() as f32).sqrt();
        gradient.iter().zip(flat(&noise)).map(|(g, z)| g / size + z / spread).collect()
    };
    let (u, mut v) = (direction(&grads, 3), direction(flat(&dx), 4));
    v.iter_mut().for_each(|v| *v *= moved_images);
    let trained: Vec<bool> = {
        let mut trained = vec![false; model.params().len()];
        for p in model.expected().iter().filter(|p| p.role == Role::Weight) {
            trained[p.range.clone()].fill(true);
        }
        // The null condition is frozen.
        if let Some(p) = model.params().find("class_embedding.weight") {
            let width = p.shape[1];
            trained[p.range.end - width..p.range.end].fill(false);
        }
        trained
    };
    let loss = |h: f32| {
        let mut moved = model.clone();
        let values = moved.params_mut().values_mut();
        for ((value, u), _) in values.iter_mut().zip(&u).zip(&trained).filter(|(_, trained)| **trained) {
            *value += h * u;
        }
        let v = Array4::from_shape_vec(x.dim(), v.clone()).unwrap();
        let mut value = 0.0;
        let x = &x + &(v * h);
        moved
            .forward_backward(
                x.view(),
                &times,
                &condition,
                &mut |y| {
                    value = dot(flat(&y.to_owned()), flat(&cotangent));
                    Array4::zeros(y.dim())
                },
                &mut vec![0.0; grads.len()],
            )
            .unwrap();
        value
    };
    let numeric = (loss(h) - loss(-h)) / f64::from(2.0 * h);
    let u: Vec<f32> = u.iter().zip(&trained).map(|(u, &trained)| if trained { *u } else { 0.0 }).collect();
    let analytic = dot(&grads, &u) + dot(flat(&dx), &v);
    assert!(
        (numeric - analytic).abs() < tolerance * analytic.abs(),
        "finite differences {numeric}, backward {analytic}"
    );
}

#[test]
fn gradients_are_derivatives() {
    check_directional_derivative(residual(tiny()), 1e-3, 5e-4);
    check_directional_derivative(
        residual(Config {
            time_scale_shift: TimeScaleShift::ScaleShift,
            mid_block_scale_factor: 1.5,
            mid_attention: MidAttention::With,
            ..tiny()
        }),
        1e-3,
        5e-4,
    );
    check_derivative(residual(Config { dropout: 0.2, ..tiny() }), 1e-3, 5e-4, 0.0);
    check_directional_derivative(residual(resampling()), 1e-3, 5e-4);
    // Within any step some maximum changes hands: the error falls only in proportion to the step.
    check_directional_derivative(book(), 1e-4, 1e-2);
}

/// Everything that a step computes, as bits.
fn step(mut model: Model, threads: usize) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let (_, times, condition) = batch();
        let x = images(1, 4, model.in_channels(), 8);
        let mut grads = vec![0.0; model.params().len()];
        let predicted = model.predict(x.view(), &times, &condition).unwrap();
        let dx =
            model.forward_backward(x.view(), &times, &condition, &mut |y| y.mapv(|y| y - 0.5), &mut grads).unwrap();
        let all = [flat(&predicted), flat(&dx), &grads, model.params().values()];
        all.concat().into_iter().map(f32::to_bits).collect()
    })
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let filtered = [Block::KDiffusion, Block::AttentionSkip].map(|block| residual(filtering(block)));
    for model in [residual(tiny()), residual(wide()), residual(resampling()), book()].into_iter().chain(filtered) {
        let one = step(model.clone(), 1);
        assert!(one.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        for threads in [2, 4] {
            assert!(one == step(model.clone(), threads), "{threads} threads: other bits");
        }
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    // 70 images are two chunks.
    let n = 70;
    let x = images(5, n, 2, 8);
    let times: Vec<f64> = (0..n).map(|i| 13.0 * i as f64 + 1.0).collect();
    let condition = Condition::labels((0..n).map(|i| (i % 4 < 3).then_some(i % 4)).collect());
    for model in [residual(tiny()), residual(wide()), book()] {
        let all = model.predict(x.view(), &times, &condition).unwrap();
        for (from, to) in [(0, 1), (3, 10), (63, 65), (69, 70)] {
            let part = model.predict(x.slice(s![from..to, .., .., ..]), &times[from..to], &condition.slice(from..to));
            assert_eq!(part.unwrap(), all.slice(s![from..to, .., .., ..]), "images {from} to {to}");
        }
    }
}

#[test]
fn any_memory_layout_is_read() {
    let (x, times, condition) = batch();
    let transposed = x.clone().permuted_axes([0, 1, 3, 2]);
    let copied = transposed.as_standard_layout().into_owned();
    let model = book();
    let a = model.predict(transposed.view(), &times, &condition).unwrap();
    assert_eq!(a, model.predict(copied.view(), &times, &condition).unwrap());
    assert_ne!(a, model.predict(x.view(), &times, &condition).unwrap());
}

#[test]
fn changed_parameters_are_used() {
    for mut model in [residual(tiny()), book()] {
        let (x, times, condition) = batch();
        let before = model.predict(x.view(), &times, &condition).unwrap();
        let key =
            if model.params().find("conv_in.weight").is_some() { "conv_in.weight" } else { "down1.convs.0.weight" };
        let weight = model.params().get(key).unwrap()[0];
        model.params_mut().get_mut(key).unwrap()[0] += 1.0;
        let after = model.predict(x.view(), &times, &condition).unwrap();
        assert_ne!(before, after);
        // To subtract what was added would leave another weight, rounded.
        model.params_mut().get_mut(key).unwrap()[0] = weight;
        let mut grads = vec![0.0; model.params().len()];
        let mut in_training = before.clone();
        model
            .forward_backward(
                x.view(),
                &times,
                &condition,
                &mut |y| {
                    in_training = y.to_owned();
                    Array4::zeros(y.dim())
                },
                &mut grads,
            )
            .unwrap();
        // Without a batch normalisation, training and prediction are the same function.
        if key == "conv_in.weight" {
            assert_eq!(in_training, before);
        }
        assert!(grads.iter().all(|&g| g == 0.0), "a loss without a gradient");
    }
}

#[test]
fn gradients_are_added() {
    for model in [residual(tiny()), residual(wide()), book()] {
        let (x, times, condition) = batch();
        let run = |grads: &mut Vec<f32>| {
            model.clone().forward_backward(x.view(), &times, &condition, &mut |y| y.to_owned(), grads).unwrap();
        };
        let mut once = vec![0.0; model.params().len()];
        run(&mut once);
        let mut onto = vec![1.0; once.len()];
        run(&mut onto);
        let expected: Vec<f32> = once.iter().map(|g| g + 1.0).collect();
        assert!(common::relative_error(&onto, &expected) < 1e-6);
    }
}

#[test]
fn the_null_row_is_never_trained() {
    let mut model = residual(tiny());
    let (x, times, condition) = batch();
    let mut grads = vec![0.0; model.params().len()];
    model.forward_backward(x.view(), &times, &condition, &mut |y| y.to_owned(), &mut grads).unwrap();
    let param = model.params().find("class_embedding.weight").unwrap().clone();
    let width = param.shape[1];
    let rows: Vec<_> = grads[param.range.clone()].chunks(width).map(flat::norm).collect();
    assert!(rows[..3].iter().all(|&norm| norm > 0.0) && rows[3] == 0.0, "{rows:?}");
    assert!(model.params().get("class_embedding.weight").unwrap()[3 * width..].iter().all(|&x| x == 0.0));
    assert_eq!((model.classes(), model.has_null_condition()), (3, true));
}

fn message(error: &DenoiserError) -> String {
    error.to_string()
}

#[test]
fn labels_are_checked() {
    let (x, times, _) = batch();
    let with = |label| Condition::labels(vec![Some(0), Some(1), label, Some(2)]);
    for model in [residual(tiny()), residual(wide()), book()] {
        assert!(model.predict(x.view(), &times, &with(None)).is_ok());
        let error = model.predict(x.view(), &times, &with(Some(3))).unwrap_err();
        assert!(message(&error).contains("sample 2 has label 3"), "{error}");
    }
    let no_null = residual(Config { classes: Some(Classes::Table { rows: 4, null: Null::Absent }), ..tiny() });
    assert_eq!((no_null.classes(), no_null.has_null_condition()), (4, false));
    assert!(no_null.predict(x.view(), &times, &with(Some(3))).is_ok());
    let error = no_null.predict(x.view(), &times, &with(None)).unwrap_err();
    assert!(message(&error).contains("_tweedie_null_class"), "{error}");
    let unconditional = residual(Config { classes: None, ..tiny() });
    assert_eq!((unconditional.classes(), unconditional.has_null_condition()), (0, true));
    assert!(unconditional.predict(x.view(), &times, &Condition::none(4)).is_ok());
    let error = unconditional.predict(x.view(), &times, &with(None)).unwrap_err();
    assert!(message(&error).contains("unconditional"), "{error}");
}

#[test]
fn shapes_are_checked() {
    let (x, times, condition) = batch();
    for mut model in [residual(tiny()), book()] {
        let refused = |x: &Array4<f32>, times: &[f64], condition: &Condition, what: &str| {
            let error = model.predict(x.view(), times, condition).unwrap_err();
            assert!(message(&error).contains(what), "{error}");
        };
        refused(&images(1, 4, 3, 8), &times, &condition, "channels");
        refused(&images(1, 4, 2, 7), &times, &condition, "height and width");
        refused(&images(1, 4, 2, 0), &times, &condition, "height and width");
        refused(&x, &times[..3], &condition, "timesteps");
        refused(&x, &times, &Condition::none(5), "condition");
        refused(&x, &[1.0, f64::NAN, 2.0, 3.0], &condition, "finite");
        let nothing = model.predict(images(1, 0, 2, 8).view(), &[], &Condition::none(0)).unwrap();
        assert_eq!(nothing.len_of(Axis(0)), 0);
        let mut grads = vec![0.0; model.params().len()];
        let mut train = |grads: &mut [f32], n: usize, dy: Array4<f32>| {
            let x = images(1, n, 2, 8);
            let loss = &mut |_: ndarray::ArrayView4<'_, f32>| dy.clone();
            message(&model.forward_backward(x.view(), &vec![1.0; n], &Condition::none(n), loss, grads).unwrap_err())
        };
        assert!(train(&mut [0.0], 1, images(1, 1, 2, 8)).contains("gradient vector"));
        assert!(train(&mut grads, 0, images(1, 0, 2, 8)).contains("at least one image"));
        assert!(train(&mut grads, 1, images(1, 1, 2, 4)).contains("gradient of the loss"));
    }
}

#[test]
fn first_values_depend_on_seed_and_name_alone() {
    let small = residual(tiny());
    let large = residual(Config { classes: None, layers_per_block: 2, mid_attention: MidAttention::Without, ..tiny() });
    for key in ["conv_in.weight", "down_blocks.0.resnets.0.conv1.bias", "time_embedding.linear_2.weight"] {
        assert_eq!(small.params().get(key), large.params().get(key), "{key}");
    }
    let mut other = residual(tiny());
    other.initialise(Init::PyTorch, 8);
    assert_ne!(small.params().get("conv_in.weight"), other.params().get("conv_in.weight"));
    let spread = |key: &str| {
        let values = small.params().get(key).unwrap();
        let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        (largest, flat::norm(values) / (values.len() as f64).sqrt())
    };
    // Uniform in +-1/sqrt(fan_in): the standard deviation is a third of sqrt(3) of the bound.
    let bound = (12.0f64 * 9.0).powf(-0.5);
    let (largest, deviation) = spread("mid_block.resnets.0.conv1.weight");
    assert!(f64::from(largest) <= bound && f64::from(largest) > 0.98 * bound);
    assert!((deviation / (bound / 3f64.sqrt()) - 1.0).abs() < 0.05);
    assert_eq!(small.params().get("conv_norm_out.weight"), Some(&[1.0; 8][..]));
    let (_, deviation) = spread("class_embedding.weight");
    assert!((deviation / 0.75f64.sqrt() - 1.0).abs() < 0.2, "three of four rows are standard normal");
}

#[test]
fn residual_branches_may_start_at_zero() {
    let mut model = residual(tiny());
    model.initialise(Init::ZeroResidual, 7);
    for (key, zero) in [
        ("conv_out.weight", true),
        ("mid_block.resnets.1.conv2.bias", true),
        ("mid_block.attentions.0.to_out.0.weight", true),
        ("mid_block.resnets.1.conv1.weight", false),
    ] {
        assert_eq!(model.params().get(key).unwrap().iter().all(|&x| x == 0.0), zero, "{key}");
    }
    let (x, times, condition) = batch();
    assert!(model.predict(x.view(), &times, &condition).unwrap().iter().all(|&y| y == 0.0));
    // Gradients reach the output layer at least, so training can begin.
    let mut grads = vec![0.0; model.params().len()];
    model.forward_backward(x.view(), &times, &condition, &mut |_| images(9, 4, 2, 8), &mut grads).unwrap();
    let range = model.params().find("conv_out.weight").unwrap().range.clone();
    assert!(flat::norm(&grads[range]) > 0.0);
}

/// One step's output and gradients.
fn train(model: &Model, x: &Array4<f32>) -> (Array4<f32>, Vec<f32>) {
    let (_, times, condition) = batch();
    let (mut output, mut grads) = (Array4::zeros((0, 0, 0, 0)), vec![0.0; model.params().len()]);
    let loss = &mut |y: ndarray::ArrayView4<'_, f32>| {
        output = y.to_owned();
        y.mapv(|y| y - 0.5)
    };
    model.clone().forward_backward(x.view(), &times, &condition, loss, &mut grads).unwrap();
    (output, grads)
}

#[test]
fn dropout_is_a_function_of_the_batch_and_absent_from_prediction() {
    let (x, times, condition) = batch();
    let (plain, dropping) = (residual(tiny()), residual(Config { dropout: 0.3, ..tiny() }));
    let predict = |model: &Model| model.predict(x.view(), &times, &condition).unwrap();
    assert_eq!(predict(&plain), predict(&dropping));
    let once = train(&dropping, &x);
    assert_eq!(once, train(&dropping, &x));
    assert_ne!(once.0, train(&plain, &x).0);
    // Another pixel is another draw, of that sample alone.
    let mut other = x.clone();
    other[[2, 0, 3, 3]] += 1e-3;
    let changed = train(&dropping, &other).0;
    for i in 0..4 {
        let difference = common::relative_error(
            changed.index_axis(Axis(0), i).to_slice().unwrap(),
            once.0.index_axis(Axis(0), i).to_slice().unwrap(),
        );
        assert!(if i == 2 { difference > 1e-2 } else { difference == 0.0 }, "sample {i}: {difference}");
    }
}

/// The mean of many draws, made by steps of x too small to matter themselves, is near the prediction, since the last layers
/// are nearly linear in what is dropped.
#[test]
fn dropout_keeps_the_mean_of_a_last_layer() {
    let mut model = residual(Config { dropout: 0.5, mid_attention: MidAttention::Without, ..tiny() });
    // With every second convolution but the last at zero, one dropped tensor is left, and its mean is exact up to conv_norm_out.
    let names: Vec<String> = model.expected().iter().map(|p| p.name.clone()).collect();
    for name in names.iter().filter(|name| name.contains(".conv2.") && !name.starts_with("up_blocks.1.resnets.1")) {
        model.params_mut().get_mut(name).unwrap().fill(0.0);
    }
    let weight = model.params_mut().get_mut("up_blocks.1.resnets.1.conv2.weight").unwrap();
    weight.iter_mut().for_each(|w| *w *= 1e-2);
    let (x, times, condition) = batch();
    let expected = model.predict(x.view(), &times, &condition).unwrap();
    let draws = 400;
    let mut mean = Array4::<f32>::zeros(expected.dim());
    let mut once = 0.0;
    for i in 0..draws {
        let output = train(&model, &(&x + i as f32 * 1e-7)).0;
        once = common::relative_error(flat(&output), flat(&expected));
        mean += &output;
    }
    let error = common::relative_error(flat(&(mean / draws as f32)), flat(&expected));
    assert!(once > 1e-4 && error < once / 8.0, "one draw {once}, mean of {draws} {error}");
}

#[test]
fn times_without_a_logarithm_or_a_row_are_refused() {
    let (x, times, condition) = batch();
    let refused = |model: &Model, time: f64, condition: &Condition, what: &str| {
        let mut times = times.clone();
        times[2] = time;
        let error = model.predict(x.view(), &times, condition).unwrap_err();
        assert!(message(&error).contains(what), "{error}");
    };
    let fourier = residual(Config { time_embedding: TimeEmbedding::Fourier, ..tiny() });
    assert!(fourier.predict(x.view(), &times, &condition).is_ok());
    refused(&fourier, 0.0, &condition, "logarithm");
    refused(&fourier, -2.0, &condition, "logarithm");
    let labels = Some(Classes::Timestep { labels: None });
    let by_time = residual(Config { time_embedding: TimeEmbedding::Fourier, classes: labels, ..tiny() });
    let with = |label| Condition::labels(vec![Some(1), Some(2), label, Some(1)]);
    assert!(by_time.predict(x.view(), &times, &with(Some(40_000))).is_ok());
    refused(&by_time, 1.0, &with(Some(0)), "logarithm");
    refused(&by_time, 1.0, &with(None), "no label");
    let learned =
        residual(Config { time_embedding: TimeEmbedding::Learned { steps: 1000 }, classes: labels, ..tiny() });
    assert_eq!(learned.classes(), 1000);
    for time in [17.5, -1.0, 1000.0] {
        refused(&learned, time, &with(Some(1)), "from 0 to 999");
    }
    refused(&learned, 1.0, &with(Some(1000)), "labels 0 to 999");
}

#[test]
fn reflecting_filters_need_two_pixels() {
    let blocks = vec![Block::KDiffusion; 2];
    let model = residual(Config {
        channels: vec![32; 2],
        down_blocks: blocks.clone(),
        up_blocks: blocks,
        classes: None,
        ..tiny()
    });
    let predict = |side| model.predict(images(1, 1, 2, side).view(), &[1.0], &Condition::none(1));
    assert!(predict(4).is_ok());
    assert!(message(&predict(2).unwrap_err()).contains("at least 4"));
}

#[test]
fn the_textbook_network_counts_its_batches() {
    let mut model = book();
    let (x, times, condition) = batch();
    let mut grads = vec![0.0; model.params().len()];
    for step in 1..=3 {
        model.forward_backward(x.view(), &times, &condition, &mut |y| y.to_owned(), &mut grads).unwrap();
        assert_eq!(model.params().get("bot1.convs.4.num_batches_tracked"), Some(&[step as f32][..]));
    }
    let counter = model.params().find("bot1.convs.4.num_batches_tracked").unwrap();
    assert_eq!((counter.role, counter.shape.len()), (Role::Counter, 0));
}
