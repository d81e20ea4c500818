//! `--classifier`: what tells classes apart while images are drawn.

use std::path::Path;

use anyhow::{Result, bail};
use tweedie_denoiser::{LevelClassifier, MixtureOracle};
use tweedie_samplers::{Plan, SchedulerSpec};

use crate::console::usage;
use crate::model::{self, Loaded};

/// The name that stands for the exact classifier of an oracle that is drawn.
const OF_THE_MODEL: &str = "oracle";

/// A classifier that can guide.
pub struct GuidingClassifier {
    /// The file, in messages and files.
    pub name: String,
    /// Every label that it tells apart, in ascending order.
    pub labels: Vec<usize>,
    kind: Kind,
}

/// How it knows.
enum Kind {
    /// By the densities of a mixture.
    Exact(Box<MixtureOracle>),
}

/// Opens what `--classifier` names, for drawing from `model`.
///
/// # Errors
/// If it is no classifier, or one without labels.
pub fn open(path: &Path, model: &Loaded) -> Result<GuidingClassifier> {
    let classifier = open_any(path, model)?;
    if classifier.labels.is_empty() {
        return Err(usage(format!(
            "--classifier {}: {} has no labels to guide towards; give a classifier that tells labels apart",
            path.display(),
            classifier.name
        )));
    }
    Ok(classifier)
}

fn open_any(path: &Path, model: &Loaded) -> Result<GuidingClassifier> {
    if path.as_os_str() == OF_THE_MODEL {
        let Loaded::Oracle(oracle) = model else {
            return Err(usage(format!(
                "--classifier {OF_THE_MODEL}: the model {} is a network, and only an oracle has an exact classifier; give \
                 the directory of a classifier",
                model.name()
            )));
        };
        let kind = Kind::Exact(Box::new(oracle.oracle.clone()));
        return Ok(GuidingClassifier { name: oracle.name.clone(), labels: oracle.labels.clone(), kind });
    }
    match model::open(Some(path), None)? {
        Loaded::Oracle(oracle) => {
            let labels = oracle.labels.clone();
            Ok(GuidingClassifier { name: oracle.name.clone(), labels, kind: Kind::Exact(Box::new(oracle.oracle)) })
        }
        Loaded::Network(network) => bail!(
            "{} is a {}, which is no classifier; give the directory of a classifier, or an oracle's .json",
            network.name,
            network.class_name
        ),
    }
}

impl GuidingClassifier {
    /// Whether it can judge the states of a run that draws images of `shape` `[N, C, H, W]`.
    ///
    /// # Errors
    /// If it is for images of another shape, or of a process other than that of `spec`.
    pub fn check(&self, _model: &Loaded, _spec: &SchedulerSpec, [_, c, h, w]: [usize; 4]) -> Result<()> {
        let Kind::Exact(oracle) = &self.kind;
        if oracle.shape() == [c, h, w] {
            return Ok(());
        }
        Err(usage(format!(
            "--classifier {}: it is for images of shape {:?}, and the model draws {:?}; give one of the same shape",
            self.name,
            oracle.shape(),
            [c, h, w]
        )))
    }

    /// It at the noise levels of a plan.
    pub fn at_levels(&self, _plan: &Plan) -> Box<dyn LevelClassifier + '_> {
        let Kind::Exact(oracle) = &self.kind;
        Box::new(&**oracle)
    }
}
