//! Training a classifier: what it learns, what is refused, and that a resumed run is the one that was never interrupted.

use ndarray::{Array2, Array4, ArrayView4};
use serde_json::json;
use tweedie_data::Dataset;
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, Params, Role};
use tweedie_train::{
    AugmentConfig, Loss, LrDecay, RunLength, StepSampling, TrainConfig, TrainError, Trainer, WeightingConfig,
};

use crate::common::{self, Tiny, toy_data, unlabelled};

const SIDE: usize = 6;

/// `z = W x + b + c_t`, one vector `c_t` for each number from 0 on.
struct Logistic {
    params: Params,
    classes: usize,
}

impl Logistic {
    fn new(classes: usize, numbers: usize) -> Self {
        let mut params = Params::new();
        params.add("weight", &[classes, SIDE * SIDE], Role::Weight);
        params.add("bias", &[classes], Role::Weight);
        params.add("time", &[numbers, classes], Role::Weight);
        Self { params, classes }
    }

    fn pixels(x: ArrayView4<'_, f32>) -> Array2<f32> {
        x.to_shape((x.dim().0, SIDE * SIDE)).unwrap().to_owned()
    }
}

impl Network for Logistic {
    fn predict(&self, x: ArrayView4<'_, f32>, times: &[f64], _: &Condition) -> Result<Array4<f32>, DenoiserError> {
        let get = |name| self.params.get(name).unwrap();
        let w = Array2::from_shape_vec((self.classes, SIDE * SIDE), get("weight").to_vec()).unwrap();
        let mut z = Self::pixels(x).dot(&w.t());
        for ((i, k), z) in z.indexed_iter_mut() {
            *z += get("bias")[k] + get("time")[times[i] as usize * self.classes + k];
        }
        let n = x.dim().0;
        Ok(z.into_shape_with_order((n, self.classes, 1, 1)).unwrap())
    }

    fn classes(&self) -> usize {
        0
    }

    fn has_null_condition(&self) -> bool {
        true
    }
}

impl NetworkGrad for Logistic {
    fn params(&self) -> &Params {
        &self.params
    }

    fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    fn forward_backward(
        &mut self,
        x: ArrayView4<'_, f32>,
        times: &[f64],
        condition: &Condition,
        loss: &mut dyn FnMut(ArrayView4<'_, f32>) -> Array4<f32>,
        grads: &mut [f32],
    ) -> Result<Array4<f32>, DenoiserError> {
        assert!(condition.is_null(), "a classifier is not told the answer");
        let z = self.predict(x, times, condition)?;
        let dz = loss(z.view());
        let dz = dz.to_shape((times.len(), self.classes)).unwrap();
        let dw = dz.t().dot(&Self::pixels(x));
        let range = |name: &str| self.params.find(name).unwrap().range.clone();
        grads[range("weight")].iter_mut().zip(&dw).for_each(|(g, d)| *g += d);
        for ((i, k), d) in dz.indexed_iter() {
            grads[range("bias").start + k] += d;
            grads[range("time").start + times[i] as usize * self.classes + k] += d;
        }
        Ok(Array4::zeros(x.raw_dim()))
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        loss: Loss::CrossEntropy,
        label_dropout: 0.0,
        timestep: tweedie_schedule::TimestepMapping::ZeroBased,
        ..common::config()
    }
}

fn clean() -> TrainConfig {
    TrainConfig { step_sampling: StepSampling::Clean, ..config() }
}

fn bits(trainer: &Trainer<'_>) -> Vec<u32> {
    let o = trainer.optimizer();
    let all = [trainer.params().values(), o.ema(), o.first_moment(), o.second_moment()];
    all.concat().into_iter().map(f32::to_bits).collect()
}

#[test]
fn it_learns_to_tell_classes_apart() {
    let data = toy_data(60, SIDE);
    for (config, least) in [(clean(), 1.0), (config(), 0.9)] {
        let mut net = Logistic::new(3, 4);
        let range = config.range;
        let mut trainer = Trainer::new(&mut net, &data, config).unwrap();
        let first = trainer.step().unwrap().loss;
        assert!((first - 3f64.ln()).abs() < 1e-6, "without any knowledge every class is as likely: {first}");
        let last = (0..800).map(|_| trainer.step().unwrap()).last().unwrap();
        assert!(last.loss_ema < 0.7 * first, "{last:?}");
        let batch = data.batch(&(0..60).collect::<Vec<_>>(), range).unwrap();
        let z = net.predict(batch.images.view(), &[0.0; 60], &Condition::none(60)).unwrap();
        let right = z.outer_iter().zip(&batch.labels).filter(|(z, label)| {
            let best = (0..3).max_by(|&a, &b| z[[a, 0, 0]].total_cmp(&z[[b, 0, 0]])).unwrap();
            best == **label
        });
        assert!(right.count() as f64 >= 60.0 * least);
    }
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let data = toy_data(43, SIDE);
    let affine = AugmentConfig::from_name("affine").unwrap();
    for config in [
        TrainConfig { label_smoothing: 0.1, augment: AugmentConfig::Shift { pixels: 1 }, flip: true, ..config() },
        TrainConfig { augment: affine, length: RunLength::Steps(14), lr_decay: LrDecay::Cosine, ..clean() },
    ] {
        let mut net = Logistic::new(4, 4);
        let mut straight = Trainer::new(&mut net, &data, config.clone()).unwrap();
        let losses: Vec<u64> = (0..14).map(|_| straight.step().unwrap().loss.to_bits()).collect();
        let expected = bits(&straight);
        let mut found = Vec::new();
        for (from, to, threads) in [(0, 6, 1), (6, 14, 3)] {
            let mut net = Logistic::new(4, 4);
            let mut trainer = Trainer::new(&mut net, &data, config.clone()).unwrap();
            if from > 0 {
                trainer.load_state(&path).unwrap();
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| found.extend((from..to).map(|_| trainer.step().unwrap().loss.to_bits())));
            trainer.save_state(&path).unwrap();
            if to == 14 {
                assert_eq!(bits(&trainer), expected);
            }
        }
        assert_eq!(found, losses);
        // Another augmentation is another run.
        let mut net = Logistic::new(4, 4);
        let other = TrainConfig { augment: AugmentConfig::None, flip: false, ..config };
        let error = Trainer::new(&mut net, &data, other).unwrap().load_state(&path).unwrap_err().to_string();
        assert!(error.contains("config.flip") || error.contains("config.augment"), "{error}");
    }
}

fn refusal(net: &mut dyn NetworkGrad, data: &Dataset, config: TrainConfig) -> String {
    Trainer::new(net, data, config).err().unwrap().to_string()
}

#[test]
fn what_does_not_fit_a_classifier_is_refused_by_name() {
    let data = toy_data(43, SIDE);
    let denoiser = common::config();
    for (config, field) in [
        (TrainConfig { step_sampling: StepSampling::Importance, ..config() }, "step_sampling"),
        (TrainConfig { weighting: WeightingConfig::MinSnr { gamma: 5.0 }, ..config() }, "weighting"),
        (TrainConfig { variance: tweedie_schedule::Variance::LearnedRange, ..config() }, "variance"),
        (TrainConfig { label_dropout: 0.1, ..config() }, "label_dropout"),
        (TrainConfig { label_smoothing: 1.0, ..config() }, "label_smoothing"),
        (TrainConfig { step_sampling: StepSampling::Clean, ..denoiser.clone() }, "step_sampling"),
        (TrainConfig { label_smoothing: 0.1, ..denoiser.clone() }, "label_smoothing"),
        (TrainConfig { flip: true, augment: AugmentConfig::Flip, ..denoiser.clone() }, "flip"),
        (TrainConfig { augment: AugmentConfig::Shift { pixels: 1025 }, ..config() }, "augment.shift.pixels"),
    ] {
        let message = refusal(&mut Logistic::new(3, 4), &data, config);
        assert!(message.contains(&format!("{field} should be")), "{field}: {message}");
    }
    let affine = |rotation, scale, shear, shift| AugmentConfig::Affine { rotation, scale, shear, shift };
    for (augment, field) in [
        (affine(181.0, 0.0, 0.0, 0.0), "rotation"),
        (affine(0.0, 1.0, 0.0, 0.0), "scale"),
        (affine(0.0, 0.0, -0.1, 0.0), "shear"),
        (affine(0.0, 0.0, 0.0, f64::NAN), "shift"),
    ] {
        let message = refusal(&mut Logistic::new(3, 4), &data, TrainConfig { augment, ..config() });
        assert!(message.contains(&format!("augment.affine.{field} should be")), "{message}");
    }
    assert!(refusal(&mut Logistic::new(3, 4), &unlabelled(&data), config()).contains("labelled"));
    let conditional = refusal(&mut Tiny::new(4, 3, SIDE * SIDE, false), &data, config());
    assert!(conditional.contains("conditioned on 3 classes"), "{conditional}");
}

#[test]
fn too_few_logits_end_the_run_before_anything_changes() {
    let data = toy_data(43, SIDE);
    let mut net = Logistic::new(2, 4);
    let mut trainer = Trainer::new(&mut net, &data, config()).unwrap();
    let before = bits(&trainer);
    let error = trainer.step().unwrap_err();
    assert!(matches!(&error, TrainError::OutputShape { expected, found, .. } if expected[1] == 3 && found[1] == 2));
    assert!(error.to_string().contains("as many classes"), "{error}");
    assert_eq!(bits(&trainer), before);
}

#[test]
fn an_augmentation_is_written_by_its_name_and_strengths() {
    let written = |augment| serde_json::to_value(TrainConfig { augment, ..TrainConfig::default() }).unwrap();
    assert!(written(AugmentConfig::None).get("augment").is_none(), "states of earlier versions do not have it");
    assert_eq!(written(AugmentConfig::Shift { pixels: 2 })["augment"], json!({"shift": {"pixels": 2}}));
    for name in AugmentConfig::NAMES {
        let augment = AugmentConfig::from_name(name).unwrap();
        let read: TrainConfig = serde_json::from_value(written(augment)).unwrap();
        assert_eq!(read.augment, augment);
    }
}
