//! What can be computed, and which of it is wanted.

use anyhow::Result;

use super::args::EvalArgs;
use crate::console::usage;

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The negative log-likelihood of data under the model.
    Nll,
    /// The Fréchet distance.
    Fid,
    /// The same for infinitely many samples.
    FidInfinity,
    /// The kernel distance.
    Kid,
    /// Which samples look real.
    Precision,
    /// Which real images the samples reach.
    Recall,
    /// How many real images are around a sample.
    Density,
    /// Around which real images there is a sample.
    Coverage,
    /// The inception score.
    Score,
    /// Which samples are read as their label.
    Accuracy,
}

impl Metric {
    /// As they are typed, with `all` for every one that the input has what it takes for.
    pub const NAMES: &str = "nll, fid, fid-infinity, kid, precision, recall, density, coverage, is, accuracy, all";

    /// All of them, in the order of [`Metric::NAMES`].
    pub const ALL: [Self; 10] = [
        Self::Nll,
        Self::Fid,
        Self::FidInfinity,
        Self::Kid,
        Self::Precision,
        Self::Recall,
        Self::Density,
        Self::Coverage,
        Self::Score,
        Self::Accuracy,
    ];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        let place = Self::ALL.iter().position(|metric| *metric == self).unwrap_or_default();
        Self::NAMES.split(", ").nth(place).unwrap_or_default()
    }

    /// Whether real images are needed.
    pub fn compares(self) -> bool {
        !matches!(self, Self::Nll | Self::Score | Self::Accuracy)
    }

    /// Whether a classifier's logits are needed.
    pub fn classifies(self) -> bool {
        matches!(self, Self::Score | Self::Accuracy)
    }
}

/// What `--metrics` asks for, each once, in the order of the table.
pub struct Wanted {
    /// The metrics.
    pub metrics: Vec<Metric>,
    /// Whether `all` chose them, so that one without its input is left out and not an error.
    pub all: bool,
    /// Whether there are metrics of images whose samples are to be drawn from the model.
    pub draws: bool,
}

impl Wanted {
    /// Reads `--metrics` and refuses options that none of it uses.
    ///
    /// # Errors
    /// If there is such an option, or a metric needs what is not there.
    pub fn of(args: &EvalArgs) -> Result<Self> {
        let all = args.metrics.iter().any(|name| name == "all");
        let features = args.images.sample_features.is_some();
        let given = features || args.images.samples.is_some();
        let fits = |metric: Metric| match metric {
            // Samples from a file say nothing of which model they are from.
            Metric::Nll => !given,
            _ => !(features && metric.classifies()),
        };
        let named = |metric: Metric| args.metrics.iter().any(|name| name == metric.name());
        let chosen = |metric: &Metric| named(*metric) || all && fits(*metric);
        let metrics: Vec<Metric> = Metric::ALL.into_iter().filter(chosen).collect();
        let draws = !given && metrics.iter().any(|metric| *metric != Metric::Nll);
        let wanted = Self { metrics, all, draws };
        if let Some(metric) = wanted.metrics.iter().find(|metric| features && metric.classifies()) {
            let name = metric.name();
            return Err(usage(format!(
                "--metrics {name}: {name} needs a classifier's answers, which features do not hold; give --samples"
            )));
        }
        let of_images = args.images.given().or_else(|| args.given_for_drawing());
        if let (false, Some(option)) = (wanted.of_images(), of_images) {
            return Err(usage(format!(
                "{option} is for the metrics of images; give --metrics fid, or another of them, too"
            )));
        }
        if let (false, Some(option)) = (wanted.has(Metric::Nll), args.given_for_nll()) {
            return Err(usage(format!("{option} is for the negative log-likelihood; give --metrics nll, too")));
        }
        let files = if features { "--sample-features" } else { "--samples" };
        if let (false, Some(option)) = (draws, args.given_for_drawing()) {
            return Err(usage(format!("{option} is for drawing samples from --model; leave out it or {files}")));
        }
        if let (false, Some(option)) = (draws || wanted.has(Metric::Nll), args.given_for_model()) {
            return Err(usage(format!(
                "{option} is for the negative log-likelihood and for drawing samples; leave out it or {files}"
            )));
        }
        Ok(wanted)
    }

    /// Whether a metric is among them.
    pub fn has(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// Whether there are any of images.
    pub fn of_images(&self) -> bool {
        self.metrics.iter().any(|metric| *metric != Metric::Nll)
    }

    /// Whether real images are needed.
    pub fn compares(&self) -> bool {
        self.metrics.iter().any(|metric| metric.compares())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_the_metrics() {
        let names: Vec<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        assert_eq!(names.join(", ") + ", all", Metric::NAMES);
        assert_eq!((Metric::Score.name(), Metric::FidInfinity.name()), ("is", "fid-infinity"));
    }
}
