//! What a classifier says of samples: the inception score (Salimans et al. 2016), and how many are read as their label.
//!
//! ```text
//! IS = exp( mean_x KL(p(y | x) || p(y)) ),   p(y) = mean_x p(y | x)
//! ```
//!
//! It lies between 1 and the number of classes K: high where each sample is surely of one class, and all classes are as
//! frequent. It never looks at real images.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::features::{check, subset};
use crate::{Estimate, EvalError, Share};

const OPERATION: &str = "inception score";

/// An inception score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InceptionScore {
    /// That of all samples; its standard error is of first order, `IS sd(KL) / sqrt(n)`. Biased downwards by about
    /// `(K - 1) / (2 n)` of itself.
    pub whole: Estimate,
    /// The mean over the splits, which is what is usually told, and its standard error.
    pub splits: Estimate,
    /// The standard deviation over the splits.
    pub deviation: f64,
}

/// The inception score of `logits` `[N, K]`, of all and of `splits` random parts of (nearly) equal size. The parts are
/// random, keyed by the seed, because samples may be sorted by their label.
///
/// # Errors
/// If a value is not finite, there is no split, or fewer samples than splits.
///
/// Verified by `scores_known_by_hand`. Verified by `figures_of_python`.
pub fn inception_score(logits: ArrayView2<'_, f64>, splits: usize, seed: u64) -> Result<InceptionScore, EvalError> {
    check(OPERATION, "the logits", logits, 1)?;
    let n = logits.nrows();
    if !(1..=n).contains(&splits) {
        return Err(EvalError::Parameter {
            operation: OPERATION,
            what: "the number of splits",
            expected: format!("1 to {n}, the number of samples"),
            found: splits.to_string(),
            remedy: "10 are usual",
        });
    }
    let logs = log_softmax(logits);
    let all = divergences(logs.view());
    let of_all = Estimate::of(&all);
    let value = of_all.mean.exp();
    let whole = Estimate { mean: value, ..of_all.scaled(value) };
    let order = subset(n, n, seed, "eval/inception-splits", 0, 0);
    let scores: Vec<f64> = (0..splits)
        .map(|s| {
            let part = logs.select(Axis(0), &order[s * n / splits..(s + 1) * n / splits]);
            Estimate::of(&divergences(part.view())).mean.exp()
        })
        .collect();
    let of_splits = Estimate::of(&scores);
    // The convention divides by their number, as numpy's `std`.
    let squares: f64 = scores.iter().map(|s| (s - of_splits.mean).powi(2)).sum();
    Ok(InceptionScore { whole, splits: of_splits, deviation: (squares / splits as f64).sqrt() })
}

fn log_softmax(logits: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut logs = logits.to_owned();
    for mut row in logs.outer_iter_mut() {
        let highest = row.fold(f64::NEG_INFINITY, |m, v| m.max(*v));
        let sum = row.fold(0.0, |s, v| s + (v - highest).exp());
        row.mapv_inplace(|v| v - highest - sum.ln());
    }
    logs
}

/// `KL(p(y | x) || p(y))` of each row, in nats.
fn divergences(logs: ArrayView2<'_, f64>) -> Vec<f64> {
    let mut marginal: Array1<f64> = Array1::zeros(logs.ncols());
    logs.outer_iter().for_each(|row| marginal.zip_mut_with(&row, |sum, log| *sum += log.exp()));
    marginal /= logs.nrows() as f64;
    let log_marginal = marginal.mapv(f64::ln);
    let term = |(log, of_all): (&f64, &f64)| if log.exp() > 0.0 { log.exp() * (log - of_all) } else { 0.0 };
    logs.outer_iter().map(|row| row.iter().zip(&log_marginal).map(term).sum()).collect()
}

/// How often samples that were meant to be of one class were read as another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// `[label][class that was read]`.
    pub counts: Vec<Vec<usize>>,
}

impl Confusion {
    /// Of `logits` `[N, K]` and the label of each sample; samples without one do not count. The class that is read is the one
    /// of the highest logit, the first of several.
    ///
    /// # Errors
    /// If a value is not finite, there are not as many labels, or a label is not below K.
    ///
    /// Verified by `labels_are_counted`.
    pub fn of(logits: ArrayView2<'_, f64>, labels: &[Option<usize>]) -> Result<Self, EvalError> {
        let (n, classes) = logits.dim();
        let operation = "accuracy";
        check(operation, "the logits", logits, 1)?;
        let parameter = |what, expected: String, found: String, remedy| {
            Err(EvalError::Parameter { operation, what, expected, found, remedy })
        };
        if labels.len() != n {
            let found = labels.len().to_string();
            return parameter("the number of labels", format!("{n} as of the samples"), found, "give one for each");
        }
        if let Some(label) = labels.iter().flatten().find(|label| **label >= classes) {
            let expected = format!("below {classes}, the number of classes");
            return parameter("every label", expected, label.to_string(), "use the classifier of these classes");
        }
        let mut counts = vec![vec![0; classes]; classes];
        for (row, label) in logits.outer_iter().zip(labels) {
            if let Some(label) = label {
                let best = (1..classes).fold(0, |best, class| if row[class] > row[best] { class } else { best });
                counts[*label][best] += 1;
            }
        }
        Ok(Self { counts })
    }

    /// The share of labelled samples that were read as their label.
    pub fn accuracy(&self) -> Share {
        let hits = (0..self.counts.len()).map(|class| self.counts[class][class]).sum();
        Share::of(hits, self.counts.iter().flatten().sum())
    }

    /// The same for each label.
    pub fn of_classes(&self) -> Vec<Share> {
        self.counts.iter().enumerate().map(|(class, row)| Share::of(row[class], row.iter().sum())).collect()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::features::testing::{normal, shuffled};

    #[test]
    fn scores_known_by_hand() {
        // Sure of one class each, every class as often: K. No class ever: 1.
        let sure = Array2::from_shape_fn((40, 4), |(i, k)| if i % 4 == k { 1000.0 } else { 0.0 });
        let found = inception_score(sure.view(), 1, 0).unwrap();
        assert!((found.whole.mean - 4.0).abs() < 1e-12 && found.whole.standard_error.unwrap() < 1e-12, "{found:?}");
        assert_eq!((found.splits.mean, found.deviation), (found.whole.mean, 0.0));
        let unsure = inception_score(Array2::from_elem((9, 4), 0.25).view(), 3, 0).unwrap();
        assert!((unsure.whole.mean - 1.0).abs() < 1e-14 && unsure.deviation < 1e-14);
        // p = (3/4, 1/4) and (1/4, 3/4): each is 3/4 ln 3/2 + 1/4 ln 1/2 from the half; logits are free of a constant.
        let (a, b) = (0.75_f64.ln(), 0.25_f64.ln());
        let found = inception_score(array![[a, b], [b + 7.0, a + 7.0]].view(), 1, 0).unwrap();
        let expected = (0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln()).exp();
        assert!((found.whole.mean - expected).abs() < 1e-14, "{found:?}");
        // Splits of one sample have nothing to differ from.
        assert_eq!(inception_score(sure.view(), 40, 1).unwrap().splits.mean, 1.0);
    }

    /// The error against the spread of fresh draws, and no dependence on the order.
    #[test]
    fn errors_of_scores_are_those_of_fresh_draws() {
        let scores: Vec<InceptionScore> =
            (0..300).map(|seed| inception_score((normal(200, 5, seed) * 2.0).view(), 10, 0).unwrap()).collect();
        let values: Vec<f64> = scores.iter().map(|score| score.whole.mean).collect();
        let spread = Estimate::of(&values).standard_error.unwrap() * 300.0_f64.sqrt();
        let errors: Vec<f64> = scores.iter().map(|score| score.whole.standard_error.unwrap()).collect();
        let ratio = Estimate::of(&errors).mean / spread;
        assert!((ratio - 1.0).abs() < 0.2, "{ratio}");
        let x = normal(200, 5, 0) * 2.0;
        let moved = inception_score(shuffled(x.view(), 1).view(), 10, 0).unwrap();
        assert!((moved.whole.mean - values[0]).abs() < 1e-12);
    }

    #[test]
    fn labels_are_counted() {
        let logits = array![[1.0, 0.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 3.0], [5.0, 1.0, 0.0], [0.0, 9.0, 0.0]];
        let labels = [Some(0), Some(2), Some(2), None, Some(1)];
        let found = Confusion::of(logits.view(), &labels).unwrap();
        assert_eq!(found.counts, [[1, 0, 0], [0, 1, 0], [0, 1, 1]]);
        let accuracy = found.accuracy();
        assert_eq!((accuracy.hits, accuracy.count, accuracy.value), (3, 4, 0.75));
        assert_eq!(found.of_classes().iter().map(|s| s.hits).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(found.of_classes()[2].count, 2);
        assert!(Confusion::of(logits.view(), &labels[..4]).unwrap_err().to_string().contains("5 as of the samples"));
        let wrong = [Some(3), None, None, None, None];
        assert!(Confusion::of(logits.view(), &wrong).unwrap_err().to_string().contains("below 3"));
        assert!(inception_score(logits.view(), 6, 0).is_err() && inception_score(logits.view(), 0, 0).is_err());
    }
}
