//! Outputs, parameter gradients and input gradients of all networks against PyTorch and diffusers.
//!
//! The files hold f64 results of f32 parameters and inputs, so a difference is the error of this implementation alone.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;

use common::{config, flat, golden, relative_error, unit};
use ndarray::Array4;
use tweedie_denoiser::{Classified, Classifier, Condition, Network, NetworkGrad, Role};
use tweedie_unet::{BookConfig, EncoderClassifier, Model};

type Tensors = BTreeMap<String, common::Tensor>;

/// The largest relative L2 error of any tensor.
const TOLERANCE: f64 = 1e-4;

struct Batch {
    x: Array4<f32>,
    times: Vec<f64>,
    condition: Condition,
    cotangent: Array4<f32>,
}

fn batch(tensors: &Tensors) -> Batch {
    let times: Vec<f64> = tensors["timesteps"].values.iter().map(|&t| f64::from(t)).collect();
    let condition = match tensors.get("class_labels") {
        None => Condition::none(times.len()),
        Some(labels) => Condition::labels(labels.values.iter().map(|&y| (y >= 0.0).then_some(y as usize)).collect()),
    };
    Batch { x: tensors["input"].images(), times, condition, cotangent: tensors["cotangent"].images() }
}

/// Errors of all compared tensors of one file.
#[derive(Default)]
struct Report(Vec<(f64, String)>);

impl Report {
    fn compare(&mut self, name: &str, found: &[f32], expected: &[f32]) {
        self.0.push((relative_error(found, expected), name.to_owned()));
    }

    /// For a gradient that is zero but for rounding: its size relative to a gradient that goes the same way.
    fn compare_vanishing(&mut self, name: &str, found: &[f32], scale: &[f32]) {
        self.0.push((flat::norm(found) / flat::norm(scale), name.to_owned()));
    }

    fn check(mut self, file: &str, least: usize) {
        assert!(self.0.len() >= least, "{file}: only {} tensors compared", self.0.len());
        self.0.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!("{file}: {} tensors, worst {:.2e} ({})", self.0.len(), self.0[0].0, self.0[0].1);
        let mut failures = String::new();
        for (error, name) in self.0.iter().filter(|(error, _)| error.is_nan() || *error >= TOLERANCE) {
            writeln!(failures, "  {name}: relative error {error:.2e}").unwrap();
        }
        assert!(failures.is_empty(), "{file}: beyond {TOLERANCE:.0e}\n{failures}");
    }
}

/// Copies `param/<key>` for every key, and checks that the keys and shapes are exactly those of the network.
fn load(model: &mut Model, tensors: &Tensors) {
    let mut found: BTreeMap<_, _> = tensors
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("param/")?.to_owned(), t.shape.clone())))
        .collect();
    for param in model.expected().to_vec() {
        let shape = found.remove(&param.name);
        assert_eq!(shape.as_ref(), Some(&param.shape), "shape of {}", param.name);
        let values = &tensors[&format!("param/{}", param.name)].values;
        model.params_mut().get_mut(&param.name).unwrap().copy_from_slice(values);
    }
    assert!(found.is_empty(), "keys that the network does not have: {found:?}");
}

/// The gradient next to one that vanishes, which tells how large its rounding may be.
fn neighbour(key: &str) -> Option<String> {
    // A shift of all keys does not change a softmax, and a batch normalisation takes away a bias before it.
    if let Some(attention) = key.strip_suffix("to_k.bias") {
        return Some(format!("{attention}to_q.bias"));
    }
    let before_norm = key.ends_with(".convs.0.bias") || key.ends_with(".convs.3.bias");
    before_norm.then(|| key.replace(".bias", ".weight"))
}

/// Compares a prediction (under a name, with a tensor) and a pass in training with its input gradient; returns the
/// gradients of the parameters.
fn compare_passes(
    report: &mut Report,
    model: &mut Model,
    tensors: &Tensors,
    (name, predicted): (&str, &str),
    trained: &str,
) -> Vec<f32> {
    let b = batch(tensors);
    let output = model.predict(b.x.view(), &b.times, &b.condition).unwrap();
    report.compare(name, flat(&output), &tensors[predicted].values);
    let mut grads = vec![0.0; model.params().len()];
    let input_grad = model
        .forward_backward(
            b.x.view(),
            &b.times,
            &b.condition,
            &mut |y| {
                report.compare(trained, flat(&y.to_owned()), &tensors[trained].values);
                b.cotangent.clone()
            },
            &mut grads,
        )
        .unwrap();
    report.compare("input_grad", flat(&input_grad), &tensors["input_grad"].values);
    grads
}

fn residual(file: &str) {
    residual_filled(file, load);
}

/// Variants whose parameters follow from the formula of the script that makes their files.
fn variant(name: &str) {
    residual_filled(&format!("variant_{name}"), |model, tensors| {
        let stored: BTreeMap<_, _> =
            tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix("grad/")?, &t.shape))).collect();
        let own: BTreeMap<_, _> = model.expected().iter().map(|p| (&*p.name, &p.shape)).collect();
        assert_eq!(own, stored, "keys and shapes");
        fill_by_formula(model, |key, shape, u| match key {
            "class_embedding.weight" | "time_proj.weight" => u,
            _ if !key.ends_with(".weight") => 0.1 * u,
            _ if shape.len() == 1 => 1.0 + 0.25 * u,
            _ => (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt() * u,
        });
    });
}

fn residual_filled(file: &str, fill: impl Fn(&mut Model, &Tensors)) {
    let tensors = golden(file);
    let mut model = Model::from_config(&config(file)).unwrap();
    fill(&mut model, &tensors);
    let mut report = Report::default();
    let grads = compare_passes(&mut report, &mut model, &tensors, ("predict", "output"), "output");
    compare_gradients(&mut report, &model, &tensors, &grads);
    let weights = model.expected().iter().filter(|p| p.role == Role::Weight).count();
    report.check(file, 3 + weights);
}

/// Parameters out of the numbers u in [-1, 1) that the scripts behind the golden files document, by key and shape.
fn fill_by_formula(model: &mut dyn NetworkGrad, value: impl Fn(&str, &[usize], f64) -> f64) {
    let mut params = model.params().table().to_vec();
    params.retain(|p| p.role != Role::Counter);
    params.sort_by(|a, b| a.name.cmp(&b.name));
    for (k, param) in params.iter().enumerate() {
        let values = model.params_mut().get_mut(&param.name).unwrap();
        for (j, x) in values.iter_mut().enumerate() {
            *x = value(&param.name, &param.shape, unit(k, j)) as f32;
        }
    }
}

fn compare_gradients(report: &mut Report, model: &dyn NetworkGrad, tensors: &Tensors, grads: &[f32]) {
    for param in model.params().table().iter().filter(|p| p.role == Role::Weight) {
        let found = &grads[param.range.clone()];
        let expected = |key: &str| {
            let whole = tensors.get(&format!("grad/{key}"));
            &whole.unwrap_or_else(|| &tensors[&format!("grad_head/{key}")]).values
        };
        let name = format!("grad/{}", param.name);
        match neighbour(&param.name) {
            Some(other) => report.compare_vanishing(&name, found, expected(&other)),
            None => {
                let expected = expected(&param.name);
                report.compare(&name, &found[..expected.len()], expected);
            }
        }
    }
}

fn book(file: &str, base_channels: usize, fill: impl Fn(&mut Model, &Tensors)) {
    let tensors = golden(file);
    let mut model = Model::book(BookConfig { base_channels, ..BookConfig::default() }).unwrap();
    fill(&mut model, &tensors);
    let mut report = Report::default();
    let grads = compare_passes(&mut report, &mut model, &tensors, ("output_eval", "output_eval"), "output_train");
    compare_gradients(&mut report, &model, &tensors, &grads);
    for param in model.expected().iter().filter(|p| p.role != Role::Weight) {
        let name = format!("stat/{}", param.name);
        report.compare(&name, model.params().get(&param.name).unwrap(), &tensors[&name].values);
        assert!(grads[param.range.clone()].iter().all(|&g| g == 0.0), "a buffer has a gradient: {name}");
    }
    report.check(file, 3 + model.expected().len());
}

fn classifier(file: &str) {
    let tensors = golden(file);
    let mut model = EncoderClassifier::from_config(&config(file)).unwrap();
    let keys: BTreeMap<_, _> = model.expected().iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    let stored: BTreeMap<_, _> = tensors
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("grad/")?.to_owned(), t.shape.clone())))
        .collect();
    assert_eq!(keys, stored, "keys and shapes");
    fill_by_formula(&mut model, |key, shape, u| match key {
        "pool.positional_embedding" => 0.5 * u,
        _ if !key.ends_with(".weight") => 0.1 * u,
        _ if shape.len() == 1 => 1.0 + 0.25 * u,
        _ => (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt() * u,
    });
    let x = tensors["input"].images();
    let times: Vec<f64> = tensors["timesteps"].values.iter().map(|&t| f64::from(t)).collect();
    let labels = Condition::labels(tensors["labels"].values.iter().map(|&y| Some(y as usize)).collect());
    let cotangent = &tensors["cotangent"];
    let mut report = Report::default();
    let Classified { logits, features } = model.classify(x.view(), &times).unwrap();
    report.compare("logits", logits.as_slice().unwrap(), &tensors["logits"].values);
    report.compare("features", features.as_slice().unwrap(), &tensors["features"].values);
    let gradient = model.label_gradient(x.view(), &times, &labels).unwrap();
    report.compare("label_grad", flat(&gradient), &tensors["label_grad"].values);
    let mut grads = vec![0.0; model.params().len()];
    let none = Condition::none(times.len());
    let cotangent =
        |z: ndarray::ArrayView4<'_, f32>| Array4::from_shape_vec(z.dim(), cotangent.values.clone()).unwrap();
    let dx = model.forward_backward(x.view(), &times, &none, &mut |z| cotangent(z), &mut grads).unwrap();
    report.compare("input_grad", flat(&dx), &tensors["input_grad"].values);
    compare_gradients(&mut report, &model, &tensors, &grads);
    report.check(file, 4 + model.expected().len());
}

#[test]
fn classifiers() {
    classifier("classifier_attention");
    classifier("classifier_clean");
    classifier("classifier_average");
    classifier("classifier_features");
}

#[test]
fn book_small() {
    book("book", 8, load);
}

#[test]
fn book_full() {
    book("book_full", 64, |model, _| {
        fill_by_formula(model, |key, shape, u| match key {
            "label_emb.weight" => u,
            _ if [".convs.1.weight", ".convs.4.weight"].iter().any(|end| key.ends_with(end)) => 1.0 + 0.25 * u,
            _ if key.ends_with("running_var") => 1.0 + 0.5 * u,
            _ if key.ends_with(".weight") => (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt() * u,
            _ => 0.1 * u,
        });
    });
}

#[test]
fn residual_plain() {
    residual("residual_plain");
}

#[test]
fn residual_attention() {
    residual("residual_attention");
}

#[test]
fn residual_ddpm() {
    residual("residual_ddpm");
}

#[test]
fn residual_digits() {
    residual("residual_digits");
}

#[test]
fn residual_scale_shift() {
    residual("residual_scale_shift");
}

#[test]
fn residual_scale_shift_norm() {
    residual("residual_scale_shift_norm");
}

#[test]
fn variant_adm() {
    variant("adm");
}

#[test]
fn variant_resampling() {
    variant("resampling");
}

#[test]
fn variant_score() {
    variant("score");
}

#[test]
fn variant_score_attention() {
    variant("score_attention");
}

#[test]
fn variant_mixed() {
    variant("mixed");
}

#[test]
fn variant_k_blocks() {
    variant("k_blocks");
}

#[test]
fn variant_learned() {
    variant("learned");
}

#[test]
fn variant_fourier_labels() {
    variant("fourier_labels");
}

#[test]
fn variant_odd() {
    variant("odd");
}

#[test]
fn variant_one_level() {
    variant("one_level");
}

/// No golden file is left out above.
#[test]
fn every_file_is_compared() {
    let source = concat!(include_str!("golden.rs"), include_str!("stable.rs"));
    for entry in std::fs::read_dir(common::folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let name = name.strip_prefix("variant_").unwrap_or(name);
            assert!(source.contains(&format!("(\"{name}\"")), "{name} is not compared");
        }
    }
}
