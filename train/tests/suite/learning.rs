//! Training reaches what it should reach: a lower loss, and the optimum that is known in closed form.

use crate::common::{Tiny, config, toy_data, unlabelled};
use tweedie_data::Range;
use tweedie_denoiser::{Condition, NetworkGrad};
use tweedie_schedule::{Prediction, TimestepMapping, Variance};
use tweedie_train::{Loss, LrDecay, NoiseConfig, RunLength, StepSampling, TrainConfig, Trainer, WeightingConfig};

#[test]
fn the_loss_falls_on_images_with_labels() {
    let data = toy_data(60, 4);
    let mut net = Tiny::new(4, 3, 16, true);
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    let losses: Vec<f64> = (0..400).map(|_| trainer.step().unwrap().loss).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    // A network of zeros predicts eps with the loss E eps² = 1.
    assert!((losses[0] - 1.0).abs() < 0.3, "{}", losses[0]);
    assert!(mean(&losses[350..]) < 0.25 * mean(&losses[..10]), "{losses:?}");
}

/// The best affine map of `x_t` depends on the data only through its mean m and variance s²: with
/// `V = alpha² s² + sigma²`, the optimum is `E[target] + Cov(target, x_t) / V (x_t - alpha m)`, where
/// `Cov(eps, x_t) = sigma`, `Cov(x_0, x_t) = alpha s²`, `v = alpha eps - sigma x_0`, the score is `-eps / sigma` and the mean
/// `c_0 x_0 + c_t x_t`. For Gaussian data this is the
/// posterior mean itself (Tweedie).
#[test]
fn an_affine_denoiser_reaches_the_optimum_in_closed_form() {
    let data = unlabelled(&toy_data(200, 4));
    let pixels: Vec<f64> = (0..data.len())
        .flat_map(|i| {
            data.image(i).unwrap().iter().map(|&b| f64::from(Range::MinusOneOne.from_byte(b))).collect::<Vec<_>>()
        })
        .collect();
    let n = pixels.len() as f64;
    let mean = pixels.iter().sum::<f64>() / n;
    let variance = pixels.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    // The optimum depends neither on the weights of the steps nor on how they are drawn, as long as these make up for it.
    let cases = [
        (Prediction::Eps, Loss::Simple, StepSampling::Uniform),
        (Prediction::X0, Loss::Simple, StepSampling::Uniform),
        (Prediction::V, Loss::Simple, StepSampling::Uniform),
        (Prediction::Score, Loss::Simple, StepSampling::Uniform),
        (Prediction::Mean, Loss::Simple, StepSampling::Uniform),
        (Prediction::Eps, Loss::Simple, StepSampling::Importance),
    ];
    for (prediction, loss, step_sampling) in cases {
        let config = TrainConfig {
            prediction,
            loss,
            step_sampling,
            batch: 50,
            length: RunLength::Steps(1500),
            lr: 0.02,
            lr_decay: LrDecay::Cosine,
            lr_floor: 0.0,
            ema_decay: 0.99,
            ..config()
        };
        let schedule = config.noise.build().unwrap();
        let mut net = Tiny::new(4, 0, 16, false);
        let mut trainer = Trainer::new(&mut net, &data, config).unwrap();
        for _ in 0..1500 {
            trainer.step().unwrap();
        }
        let ema = trainer.ema_params();
        for t in 1..=4 {
            let (alpha, sigma) = (schedule.level(t).alpha(), schedule.level(t).sigma());
            let spread = alpha * alpha * variance + sigma * sigma;
            let (target_mean, covariance) = match prediction {
                Prediction::Eps => (0.0, sigma),
                Prediction::X0 => (mean, alpha * variance),
                Prediction::Score => (0.0, -1.0),
                Prediction::Mean => {
                    let posterior = schedule.posterior(t);
                    let (of_x0, of_xt) = (posterior.coef_x0(), posterior.coef_xt());
                    ((of_x0 + of_xt * alpha) * mean, of_x0 * alpha * variance + of_xt * spread)
                }
                _ => (-sigma * mean, alpha * sigma * (1.0 - variance)),
            };
            let scale = covariance / spread;
            let offset = target_mean - scale * alpha * mean;
            let found = (f64::from(ema.get("scale").unwrap()[t - 1]), f64::from(ema.get("offset").unwrap()[t - 1]));
            assert!((found.0 - scale).abs() < 0.015, "{prediction:?} {t}: {found:?} {scale} {offset}");
            assert!((found.1 - offset).abs() < 0.015, "{prediction:?} {t}: {found:?} {scale} {offset}");
        }
    }
}

#[test]
fn the_first_moment_shows_that_gradients_are_clipped() {
    let data = toy_data(24, 3);
    let moment = |clip_norm| {
        let mut net = Tiny::new(4, 3, 9, false);
        let mut trainer = Trainer::new(&mut net, &data, TrainConfig { clip_norm, ..config() }).unwrap();
        let report = trainer.step().unwrap();
        let m: f64 = trainer.optimizer().first_moment().iter().map(|&m| f64::from(m).powi(2)).sum();
        (report.grad_norm, m.sqrt() / (1.0 - 0.9))
    };
    let (norm, unclipped) = moment(0.0);
    assert!(norm > 0.1 && (unclipped - norm).abs() < 1e-5 * norm, "{norm} {unclipped}");
    let (same, clipped) = moment(0.05);
    assert_eq!(same, norm, "the report has the norm before clipping");
    assert!((clipped - 0.05).abs() < 1e-5, "{clipped}");
    assert!((moment(1e3).1 - norm).abs() < 1e-5 * norm);
}

#[test]
fn the_network_is_lent_with_the_averaged_weights_and_gets_its_own_back() {
    let data = toy_data(24, 3);
    let mut net = Tiny::new(4, 3, 9, false);
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    for _ in 0..10 {
        trainer.step().unwrap();
    }
    let (own, ema) = (trainer.params().clone(), trainer.ema_params());
    assert_ne!(own, ema);
    for name in ["mean", "passes"] {
        assert_eq!(own.get(name), ema.get(name), "{name} is copied");
    }
    let mut averaged = Tiny::new(4, 3, 9, false);
    averaged.params_mut().values_mut().copy_from_slice(ema.values());
    let batch = data.batch(&[0, 1], Range::MinusOneOne).unwrap().images;
    let condition = Condition::labels(vec![Some(0), None]);
    let expected = tweedie_denoiser::Network::predict(&averaged, batch.view(), &[1.0, 3.0], &condition).unwrap();
    let lent = trainer.with_ema(|net| net.predict(batch.view(), &[1.0, 3.0], &condition).unwrap());
    assert_eq!(lent, expected);
    assert_eq!((trainer.params(), &trainer.ema_params()), (&own, &ema));
}

#[test]
fn reports_count_steps_epochs_and_images() {
    let data = toy_data(26, 3);
    let mut net = Tiny::new(4, 3, 9, false);
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    assert_eq!((trainer.steps_per_epoch(), trainer.images_per_step(), trainer.total_steps()), (3, 8, Some(1000)));
    let mut smooth = (0.0, 0.0);
    for step in 1..=7 {
        let report = trainer.step().unwrap();
        smooth = (0.98 * smooth.0 + report.loss, 0.98 * smooth.1 + 1.0);
        assert_eq!((report.step, report.epoch, report.ends_epoch), (step, 1 + (step - 1) / 3, step % 3 == 0));
        assert_eq!((report.images, trainer.steps_done(), trainer.epochs_done()), (8 * step, step, step / 3));
        assert!((report.loss_ema - smooth.0 / smooth.1).abs() < 1e-12);
        assert!((report.lr - 0.01 * (step as f64 / 5.0).min(1.0)).abs() < 1e-15);
        assert_eq!(report.row().loss, report.loss as f32);
    }
}

#[test]
fn a_data_set_smaller_than_the_batch_is_one_batch() {
    let data = toy_data(5, 3);
    let mut net = Tiny::new(4, 3, 9, false);
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    assert_eq!((trainer.steps_per_epoch(), trainer.images_per_step()), (1, 5));
    assert_eq!(trainer.step().unwrap().images, 5);
}

#[test]
fn network_data_and_configuration_must_fit_together() {
    let data = toy_data(24, 3);
    let plain = unlabelled(&data);
    let error =
        |mut net: Tiny, data, config| Trainer::new(&mut net, data, config).err().expect("they do not fit").to_string();
    let message = error(Tiny::new(4, 3, 9, false), &plain, config());
    assert!(message.contains("without labels"), "{message}");
    let message = error(Tiny::new(4, 2, 9, false), &data, config());
    assert!(message.contains("at most 2 classes") && message.contains("toy with 3"), "{message}");
    let message = error(Tiny::new(4, 3, 9, false).without_null(), &data, config());
    assert!(message.contains("label_dropout") && message.contains("null"), "{message}");
    let fits = TrainConfig { label_dropout: 0.0, ..config() };
    assert!(Trainer::new(&mut Tiny::new(4, 3, 9, false).without_null(), &data, fits).is_ok());
    assert!(Trainer::new(&mut Tiny::new(4, 0, 9, false), &plain, config()).is_ok());
    let noise = NoiseConfig { schedule: "lineal".into(), ..NoiseConfig::default() };
    let message = error(Tiny::new(4, 3, 9, false), &data, TrainConfig { noise, ..config() });
    assert!(message.contains("lineal") && message.contains("scaled-linear"), "{message}");
}

#[test]
fn a_network_with_other_output_channels_is_refused_with_both_shapes() {
    let data = toy_data(24, 3);
    let mut net = Tiny::new(4, 3, 9, false);
    net.extra_channels = 1;
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    let message = trainer.step().unwrap_err().to_string();
    assert!(message.contains("[8, 1, 3, 3]") && message.contains("[8, 2, 3, 3]"), "{message}");
    assert_eq!(trainer.steps_done(), 0);
}

#[test]
fn every_field_out_of_range_is_named() {
    let change = |f: fn(&mut TrainConfig)| {
        let mut config = TrainConfig::default();
        f(&mut config);
        config.validate().err().map(|e| e.to_string())
    };
    assert_eq!(change(|_| {}), None);
    type Case = (&'static str, fn(&mut TrainConfig));
    let cases: [Case; 26] = [
        ("seed", |c| c.seed = 1 << 63),
        ("length", |c| c.length = RunLength::Epochs(0)),
        ("length", |c| c.length = RunLength::Steps(0)),
        ("length.minutes", |c| c.length = RunLength::Minutes(f64::NAN)),
        ("batch", |c| c.batch = 0),
        ("loss", |c| c.variance = Variance::LearnedRange),
        ("variance", |c| c.loss = Loss::Hybrid),
        ("weighting", |c| (c.loss, c.weighting) = (Loss::Vlb, WeightingConfig::MinSnr { gamma: 5.0 })),
        ("gamma of min-SNR", |c| c.weighting = WeightingConfig::MinSnr { gamma: -1.0 }),
        ("sigma_data", |c| c.weighting = WeightingConfig::Edm { sigma_data: 0.0 }),
        ("label_dropout", |c| c.label_dropout = 1.1),
        ("lr ", |c| c.lr = 0.0),
        // Numbers of f64 that f32 does not have.
        ("lr ", |c| c.lr = 1e39),
        ("lr ", |c| c.lr = 1e-39),
        ("adamw.eps", |c| c.adamw.eps = 1e-46),
        ("adamw.eps", |c| c.adamw.eps = 1e300),
        ("lr_floor", |c| c.lr_floor = -0.1),
        ("lr_decay_minutes", |c| c.lr_decay_minutes = Some(0.0)),
        ("clip_norm", |c| c.clip_norm = f64::INFINITY),
        ("ema_decay", |c| c.ema_decay = 1.0),
        ("checkpoint_minutes", |c| c.checkpoint_minutes = 0.0),
        ("adamw.beta1", |c| c.adamw.beta1 = 1.0),
        ("adamw.beta2", |c| c.adamw.beta2 = -0.5),
        ("adamw.eps", |c| c.adamw.eps = 0.0),
        ("adamw.weight_decay", |c| c.adamw.weight_decay = f64::NAN),
        ("training steps", |c| c.noise.train_steps = 0),
    ];
    for (field, f) in cases {
        let message = change(f).unwrap_or_else(|| panic!("{field} was accepted"));
        assert!(message.contains(field) && message.contains("found"), "{field}: {message}");
    }
}

#[test]
fn a_cosine_ends_with_the_run() {
    let cosine = |length| TrainConfig { lr_decay: LrDecay::Cosine, length, ..config() };
    let ends = |config: TrainConfig| {
        let resolved = config.resolved(25);
        (resolved.lr_decay_steps, resolved.lr_decay_minutes)
    };
    assert_eq!(ends(cosine(RunLength::Epochs(4))), (Some(100), None));
    assert_eq!(ends(cosine(RunLength::Steps(7))), (Some(7), None));
    assert_eq!(ends(cosine(RunLength::Minutes(5.0))), (None, Some(5.0)));
    // What was given, or written out by an earlier part of the run, stays.
    let given = TrainConfig { lr_decay_steps: Some(9), ..cosine(RunLength::Minutes(5.0)) };
    assert_eq!(ends(given), (Some(9), None));
    for length in [RunLength::Minutes(7.0), RunLength::Steps(7)] {
        assert_eq!(ends(TrainConfig { lr_decay_minutes: Some(5.0), ..cosine(length) }), (None, Some(5.0)));
    }
    assert_eq!(ends(config()), (None, None));
}

#[test]
fn a_configuration_is_read_by_name_and_typing_errors_are_refused() {
    let read = |text: &str| serde_json::from_str::<TrainConfig>(text);
    assert_eq!(read("{}").unwrap(), TrainConfig::default());
    let text = r#"{"prediction": "v", "timestep": "one-based", "range": "zero-one", "length": {"minutes": 1.5},
        "lr_decay": "cosine", "noise": {"schedule": "cosine"}, "adamw": {"beta2": 0.999}}"#;
    let config = read(text).unwrap();
    assert_eq!((config.prediction, config.timestep), (Prediction::V, TimestepMapping::OneBased));
    assert_eq!((config.range, config.length), (Range::ZeroOne, RunLength::Minutes(1.5)));
    assert_eq!((config.noise.schedule.as_str(), config.noise.train_steps, config.adamw.beta2), ("cosine", 1000, 0.999));
    let back = serde_json::to_string(&config).unwrap();
    assert_eq!(read(&back).unwrap(), config);
    for (text, says) in [
        (r#"{"learning_rate": 1}"#, "learning_rate"),
        (r#"{"noise": {"steps": 5}}"#, "steps"),
        (r#"{"adamw": {"beta3": 0.9}}"#, "beta3"),
        (r#"{"prediction": "noise"}"#, "eps, x0, v"),
        (r#"{"range": "0..1"}"#, "minus-one-one, zero-one"),
        (r#"{"length": {"epochs": 3, "steps": 4}}"#, "length"),
    ] {
        let message = read(text).err().map(|e| e.to_string());
        let message = message.unwrap_or_else(|| panic!("{text} was accepted"));
        assert!(message.contains(says) || says == "length", "{text}: {message}");
    }
}
