//! The metrics of images against numpy, scipy and the package prdc (`tools/reference/golden_metrics.py`), and their bits on
//! several threads.

use ndarray::Array2;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tweedie_eval::{
    Confusion, Factored, KidOptions, Moments, frechet, frechet_error, frechet_extrapolated, inception_score, kid, mmd2,
    prdc,
};

struct Golden {
    bytes: Vec<u8>,
    figures: Value,
}

impl Golden {
    fn read() -> Self {
        let path = |name| format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path("metrics.json")).unwrap();
        Self {
            bytes: std::fs::read(path("metrics.safetensors")).unwrap(),
            figures: serde_json::from_str(&text).unwrap(),
        }
    }

    fn cases(&self, kind: &str) -> Vec<(&str, &Value)> {
        let cases = self.figures[kind].as_array().unwrap();
        cases.iter().map(|case| (case["name"].as_str().unwrap(), case)).collect()
    }

    fn matrix(&self, name: &str) -> Array2<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        let words = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into());
        Array2::from_shape_vec((view.shape()[0], view.shape()[1]), words.collect()).unwrap()
    }

    fn labels(&self, name: &str) -> Vec<Option<usize>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let words = file.tensor(name).unwrap().data().chunks_exact(8);
        words.map(|b| Some(i64::from_le_bytes(b.try_into().unwrap()) as usize)).collect()
    }
}

fn close(what: &str, found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{what}: {found} instead of {expected}");
}

#[test]
fn figures_of_python() {
    let golden = Golden::read();
    let cases = golden.cases("features");
    assert_eq!(cases.iter().map(|c| c.0).collect::<Vec<_>>(), ["tall", "wide", "steep", "dead"]);
    for (name, case) in cases {
        let (real, drawn) = (golden.matrix(&format!("{name}.real")), golden.matrix(&format!("{name}.drawn")));
        let distance = frechet(real.view(), drawn.view()).unwrap().distance;
        close(&format!("{name}: fid"), distance, &case["fid"], 1e-9);
        // The root of the product has lost digits where it has not full rank.
        close(&format!("{name}: fid by the root"), distance, &case["fid_sqrtm"], 1e-6);
        let whole = mmd2(real.view(), drawn.view()).unwrap();
        close(&format!("{name}: mmd2"), whole.mean, &case["mmd2"], 1e-9);
        close(&format!("{name}: error of mmd2"), whole.standard_error.unwrap(), &case["mmd2_error"], 1e-9);
        if real.nrows() == drawn.nrows() {
            // A subset of all.
            let all = kid(real.view(), drawn.view(), KidOptions { subsets: 1, size: real.nrows(), seed: 5 }).unwrap();
            close(&format!("{name}: kid"), all.subsets.mean, &case["mmd2"], 1e-9);
        }
        let expected = case["prdc"].as_array().unwrap();
        for (found, expected) in prdc(real.view(), drawn.view(), &[3, 5]).unwrap().iter().zip(expected) {
            let what = |figure: &str| format!("{name}: {figure} for k = {}", found.k);
            assert_eq!(expected["k"], found.k);
            close(&what("precision"), found.precision.value, &expected["precision"], 1e-12);
            close(&what("recall"), found.recall.value, &expected["recall"], 1e-12);
            close(&what("density"), found.density.mean, &expected["density"], 1e-12);
            close(&what("coverage"), found.coverage.value, &expected["coverage"], 1e-12);
        }
    }
    for (name, case) in golden.cases("logits") {
        let logits = golden.matrix(&format!("{name}.logits"));
        let score = inception_score(logits.view(), 10, 0).unwrap();
        close(&format!("{name}: score"), score.whole.mean, &case["score"], 1e-9);
        close(&format!("{name}: error of the score"), score.whole.standard_error.unwrap(), &case["score_error"], 1e-9);
        let labels = golden.labels(&format!("{name}.labels"));
        let accuracy = Confusion::of(logits.view(), &labels).unwrap().accuracy();
        close(&format!("{name}: accuracy"), accuracy.value, &case["accuracy"], 1e-12);
    }
}

/// Every figure of two sets of features, as bits.
fn bits(real: &Array2<f64>, drawn: &Array2<f64>) -> Vec<u64> {
    let (real, drawn) = (real.view(), drawn.view());
    let kid = kid(real, drawn, KidOptions { subsets: 7, size: 100, seed: 3 }).unwrap();
    let whole = mmd2(real, drawn).unwrap();
    let reference = Factored::of(&Moments::of(real).unwrap()).unwrap();
    let mut figures = vec![
        frechet(real, drawn).unwrap().distance,
        frechet_error(real, drawn, 9, 3).unwrap(),
        frechet_extrapolated(&reference, drawn, 5, 3).unwrap().distance,
        kid.subsets.mean,
        kid.deviation,
        whole.mean,
        whole.standard_error.unwrap(),
    ];
    for found in prdc(real, drawn, &[3, 5]).unwrap() {
        figures.extend([found.precision.value, found.recall.value, found.density.mean, found.coverage.value]);
    }
    figures.into_iter().map(f64::to_bits).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let golden = Golden::read();
    let (real, drawn) = (golden.matrix("tall.real"), golden.matrix("tall.drawn"));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&real, &drawn))
    };
    let one = on(1);
    assert!(on(2) == one && on(5) == one);
}
