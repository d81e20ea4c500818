//! The options of guidance, for every command that draws.

use std::path::PathBuf;

use clap::Args;
use tweedie_guidance::{ClassifierForm, scale_from_weight};

use crate::args::{closed_unit, finite, names};
use crate::labels::LabelList;

/// How the model is guided; docs/guidance.md explains each option.
#[derive(Args, Clone, Debug, Default)]
pub struct GuidanceArgs {
    /// Guidance scale: 1 is none, 2 to 3 gives clearer digits [default: what the model's config recommends for drawing
    /// labels, unless --guide or --classifier guide; else 1]
    #[arg(long, value_name = "G", value_parser = finite)]
    pub guidance: Option<f64>,
    /// The same as a weight, 0 for none: --guidance 1 + W
    #[arg(long, value_name = "W", value_parser = finite, conflicts_with = "guidance")]
    pub guidance_weight: Option<f64>,
    /// Labels to be guided away from: one for each entry of --labels, or one for all; `none` is the null condition
    /// [default: none]
    #[arg(long, value_name = "LABELS")]
    pub negative_labels: Option<LabelList>,
    /// Guide only at noise levels whose sigma = sqrt((1 - abar) / abar) is above LO and at most HI, such as 0.3,5 or 0.2,inf
    #[arg(long, value_name = "LO,HI", value_parser = interval)]
    pub guidance_interval: Option<[f64; 2]>,
    /// Give the guided output the standard deviation of the conditional one, by a share from 0 to 1 (Lin 2023; 0.7 there)
    #[arg(long, value_name = "PHI", value_parser = closed_unit)]
    pub guidance_rescale: Option<f64>,
    /// Limit estimates of the image to a percentile of their own values, above 0 to 1, and scale them back (Imagen; 0.995 there)
    #[arg(long, value_name = "P", value_parser = percentile)]
    pub dynamic_threshold: Option<f64>,
    /// The highest such limit, at least 1 [default: any]
    #[arg(long, value_name = "S", value_parser = at_least_one, requires = "dynamic_threshold")]
    pub threshold_max: Option<f64>,
    /// A weaker model to be guided away from, under the same labels (autoguidance): smaller, or trained for less long
    #[arg(long, value_name = "MODEL", requires = "guide_scale")]
    pub guide: Option<PathBuf>,
    /// Scale of --guide: 1 is none
    #[arg(long, value_name = "W", value_parser = finite, requires = "guide")]
    pub guide_scale: Option<f64>,
    /// A classifier to be guided by: a directory, `bundled` for the bundled one of noisy digits, an oracle's .json, or `oracle` for
    /// the exact one of an oracle that is drawn
    #[arg(long, value_name = "CLASSIFIER")]
    pub classifier: Option<PathBuf>,
    /// Scale of --classifier: 0 is none, 1 is Bayes' rule for a model without labels [default: 1]
    #[arg(long, value_name = "GAMMA", value_parser = finite, requires = "classifier")]
    pub classifier_scale: Option<f64>,
    /// The highest sigma = sqrt((1 - abar) / abar) at which --classifier is asked; a trained one is only a disturbance where
    /// nothing can be seen [default: 10; for an exact one any]
    #[arg(long, value_name = "S", value_parser = positive, requires = "classifier")]
    pub classifier_sigma_max: Option<f64>,
    /// What the classifier moves: the score, in any sampler, or the mean of the reverse step, in ddpm alone [default: score]
    #[arg(long, value_name = "FORM", value_parser = names(ClassifierForm::NAMES), requires = "classifier")]
    pub classifier_form: Option<String>,
}

impl GuidanceArgs {
    /// The scale that was asked for, and the option as it was typed.
    pub fn scale(&self) -> Option<(f64, String)> {
        let by_weight = || self.guidance_weight.map(|w| (scale_from_weight(w), format!("--guidance-weight {w}")));
        self.guidance.map(|scale| (scale, format!("--guidance {scale}"))).or_else(by_weight)
    }

    /// The first option that was given, as it is typed.
    pub fn given(&self) -> Option<&'static str> {
        [
            (self.guidance.is_some(), "--guidance"),
            (self.guidance_weight.is_some(), "--guidance-weight"),
            (self.negative_labels.is_some(), "--negative-labels"),
            (self.guidance_interval.is_some(), "--guidance-interval"),
            (self.guidance_rescale.is_some(), "--guidance-rescale"),
            (self.dynamic_threshold.is_some(), "--dynamic-threshold"),
            (self.guide.is_some(), "--guide"),
            (self.classifier.is_some(), "--classifier"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }

    /// The form of the classifier's guidance.
    pub fn form(&self) -> ClassifierForm {
        self.classifier_form.as_deref().and_then(ClassifierForm::from_name).unwrap_or_default()
    }
}

/// `LO,HI`.
fn interval(text: &str) -> Result<[f64; 2], String> {
    let end = |text: &str| text.trim().parse::<f64>().ok();
    match text.split_once(',').map(|(low, high)| (end(low), end(high))) {
        Some((Some(low), Some(high))) if low >= 0.0 && low < high => Ok([low, high]),
        Some((Some(_), Some(_))) => Err("expected a lower end from 0 to below the upper one".to_owned()),
        _ => Err("expected two numbers such as 0.3,5 or 0.2,inf".to_owned()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s: &f64| *s > 0.0)
        .ok_or_else(|| "expected a number above 0, such as 10 or inf".to_owned())
}

fn percentile(text: &str) -> Result<f64, String> {
    let inside = |p: &f64| *p > 0.0 && *p <= 1.0;
    text.parse().ok().filter(inside).ok_or_else(|| "expected a number above 0, at most 1".to_owned())
}

fn at_least_one(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s: &f64| *s >= 1.0).ok_or_else(|| "expected a number of at least 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_and_percentiles_are_checked() {
        assert_eq!(interval("0.3,5"), Ok([0.3, 5.0]));
        assert_eq!(interval("0, inf"), Ok([0.0, f64::INFINITY]));
        for wrong in ["", "1", "1,", "a,b", "5,0.3", "1,1", "-1,1", "nan,1", "0,nan", "1,2,3"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0", "1.01", "nan", "99.5", ""] {
            assert!(percentile(wrong).is_err(), "{wrong}");
        }
        assert_eq!((percentile("1"), at_least_one("1")), (Ok(1.0), Ok(1.0)));
        assert_eq!(positive("inf"), Ok(f64::INFINITY));
        assert!(positive("0").is_err() && positive("nan").is_err());
        assert!(at_least_one("0.9").is_err() && at_least_one("nan").is_err());
    }

    #[test]
    fn a_weight_is_a_scale() {
        let args = |guidance, guidance_weight| GuidanceArgs { guidance, guidance_weight, ..GuidanceArgs::default() };
        assert_eq!(args(Some(2.5), None).scale(), Some((2.5, "--guidance 2.5".to_owned())));
        assert_eq!(args(None, Some(1.5)).scale(), Some((2.5, "--guidance-weight 1.5".to_owned())));
        assert_eq!(args(None, None).scale(), None);
    }
}
