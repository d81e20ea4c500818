//! `--classifier`: what tells classes apart while images are drawn.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use tweedie_denoiser::{LevelClassifier, LevelledClassifier, MixtureOracle};
use tweedie_samplers::{Plan, Process, SchedulerSpec};
use tweedie_schedule::TimestepMapping;

use super::guidance::other_process;
use crate::classifier::{self, LoadedClassifier};
use crate::console::usage;
use crate::model::{self, Loaded};
use crate::scheduler;

/// The name that stands for the exact classifier of an oracle that is drawn.
const OF_THE_MODEL: &str = "oracle";
/// The name that stands for the bundled classifier of noisy digits.
const BUNDLED: &str = "bundled";
/// The highest EDM sigma at which a trained classifier is asked: above it hardly any image can be told from another.
const HIGHEST: f64 = 10.0;

/// A classifier that can guide; copies share its weights.
#[derive(Clone)]
pub struct GuidingClassifier {
    /// The file, in messages and files.
    pub name: String,
    /// Every label that it tells apart, in ascending order.
    pub labels: Vec<usize>,
    kind: Kind,
}

/// How it knows.
#[derive(Clone)]
enum Kind {
    /// By the densities of a mixture.
    Exact(Arc<MixtureOracle>),
    /// By a network of noisy images, and the process that these were noised by.
    Network(Arc<LoadedClassifier>, Arc<SchedulerSpec>),
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
        let kind = Kind::Exact(Arc::new(oracle.oracle.clone()));
        return Ok(GuidingClassifier { name: oracle.name.clone(), labels: oracle.labels.clone(), kind });
    }
    if path.as_os_str() == BUNDLED {
        return GuidingClassifier::of_network(classifier::open_noisy()?);
    }
    if classifier::is_classifier(path) {
        return GuidingClassifier::of_network(classifier::open(Some(path))?);
    }
    match model::open(Some(path), None)? {
        Loaded::Oracle(oracle) => {
            let labels = oracle.labels.clone();
            Ok(GuidingClassifier { name: oracle.name.clone(), labels, kind: Kind::Exact(Arc::new(oracle.oracle)) })
        }
        Loaded::Network(network) => bail!(
            "{} is a {}, which is no classifier; give a directory that tweedie train-classifier has written, or an oracle's \
             .json",
            network.name,
            network.class_name
        ),
    }
}

impl GuidingClassifier {
    /// A trained one.
    ///
    /// # Errors
    /// If it has never seen noise, or does not say by which process.
    pub fn of_network(loaded: LoadedClassifier) -> Result<Self> {
        let name = loaded.name.clone();
        if !loaded.noisy {
            bail!(
                "{name} was trained on clean images, and guidance asks about noisy ones; give one that \
                 tweedie train-classifier has written without --clean"
            );
        }
        let Some((config, path)) = &loaded.scheduler else {
            bail!(
                "{name} has no scheduler_config.json, which tells what noise it knows; put it back beside the weights"
            );
        };
        let spec = scheduler::from_config(config, path, None)?;
        let labels = (0..loaded.network.classes()).collect();
        Ok(Self { name, labels, kind: Kind::Network(Arc::new(loaded), Arc::new(spec)) })
    }

    /// Whether it can judge the states of a run that draws images of `shape` `[N, C, H, W]`.
    ///
    /// # Errors
    /// If it is for images of another shape or range, or of a process other than that of `spec`.
    pub fn check(&self, model: &Loaded, spec: &SchedulerSpec, [_, c, h, w]: [usize; 4]) -> Result<()> {
        let name = &self.name;
        let (own, process) = match &self.kind {
            Kind::Exact(oracle) => (Some(oracle.shape()), None),
            Kind::Network(loaded, process) => {
                if loaded.range != model.range() {
                    return Err(usage(format!(
                        "--classifier {name}: it knows pixels of another range than those of the model {}; give one that was \
                         trained for it",
                        model.name()
                    )));
                }
                (loaded.network.image_shape(), Some(process))
            }
        };
        if let Some(own) = own.filter(|own| *own != [c, h, w]) {
            return Err(usage(format!(
                "--classifier {name}: it is for images of shape {own:?}, and the model draws {:?}; give one of the same shape",
                [c, h, w]
            )));
        }
        let difference = process.map(|process| other_process(process, spec)).transpose()?.flatten();
        if let Some(difference) = difference {
            return Err(usage(format!(
                "--classifier {name}: its process is not that of the model {}: {difference}; train one with the schedule of \
                 the model",
                model.name()
            )));
        }
        match (&self.kind, &spec.process) {
            (Kind::Network(..), process) if *process != Process::Table => Err(usage(format!(
                "--classifier {name}: it knows the steps of a table of noise levels, and the model {} has none; leave it out",
                model.name()
            ))),
            _ => Ok(()),
        }
    }

    /// The highest EDM sigma at which it is asked, unless told otherwise: an exact one knows all of them.
    pub fn highest(&self) -> f64 {
        match self.kind {
            Kind::Exact(_) => f64::INFINITY,
            Kind::Network(..) => HIGHEST,
        }
    }

    /// It at the noise levels of a plan.
    pub fn at_levels(&self, plan: &Plan) -> Box<dyn LevelClassifier + '_> {
        match &self.kind {
            Kind::Exact(oracle) => Box::new(&**oracle),
            Kind::Network(loaded, _) => {
                let bridge = plan.bridge(TimestepMapping::ZeroBased);
                Box::new(LevelledClassifier::new(&loaded.network, bridge))
            }
        }
    }
}
