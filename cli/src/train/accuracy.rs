//! How many test images a classifier names right, in the course of its training.
//!
//! ```text
//! step,epoch,images,clean                      of a classifier of clean images
//! step,epoch,images,t1,t100,t250,t500,t750     of one of noisy images, at these steps of 1000
//! ```

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use ndarray::{Array4, Axis};
use ndarray_rand::rand::Rng;
use ndarray_rand::rand_distr::StandardNormal;
use tweedie_data::{Dataset, Split};
use tweedie_denoiser::{Condition, Network, rng_for};
use tweedie_schedule::{NoiseLevel, Schedule};
use tweedie_train::StepSampling;

use super::config::RunConfig;
use super::directory::RunDirectory;
use crate::args::Common;
use crate::data::{self, DataArgs};

/// Images computed at once.
const BATCH: usize = 250;
/// Test images at each noise level after an epoch; at the end of a run it is all of them.
const SAMPLE: usize = 2000;
/// The noise levels that are looked at, as shares of all steps; the first is step 1.
const SHARES: [f64; 5] = [0.0, 0.1, 0.25, 0.5, 0.75];

/// How many test images are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Some, where there is noise at several levels.
    Sample,
    /// All.
    Whole,
}

/// The shares of test images that were named right.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    step: u64,
    epoch: u64,
    images: usize,
    /// Of each noise level.
    pub shares: Vec<f64>,
}

/// Test images, and what was found of them so far.
pub struct Accuracy {
    /// None where there are no test images.
    data: Option<Dataset>,
    /// The step and its level; none for clean images.
    levels: Vec<Option<(usize, NoiseLevel)>>,
    rows: Vec<Row>,
}

impl Accuracy {
    /// Opens the test images of a run that has done `step` steps; later rows of its file are dropped. Where there are no test
    /// images, this is said, and nothing is measured.
    ///
    /// # Errors
    /// If the process cannot be built, or the file is none of this kind.
    pub fn new(run: &RunConfig, read: &DataArgs, directory: &RunDirectory, step: u64, common: &Common) -> Result<Self> {
        let levels = match run.train.step_sampling {
            StepSampling::Clean => vec![None],
            _ => {
                let schedule: Schedule = run.train.noise.build()?;
                let steps = schedule.steps();
                let mut chosen: Vec<usize> =
                    SHARES.iter().map(|share| ((share * steps as f64) as usize).clamp(1, steps)).collect();
                chosen.dedup();
                chosen.into_iter().map(|t| Some((t, schedule.level(t)))).collect()
            }
        };
        let opened = data::open(&run.data, Split::Test, &read.options(), common).and_then(|data| {
            if data.labels().is_none() {
                bail!("they have no labels");
            }
            Ok(data)
        });
        let data = match opened {
            Ok(data) => Some(data),
            Err(error) => {
                crate::console::report(common, &format!("note: there are no test images to measure with: {error:#}"));
                None
            }
        };
        let mut accuracy = Self { data, levels, rows: Vec::new() };
        accuracy.rows = accuracy.parse(&directory.accuracy()?).with_context(|| {
            format!("{}/accuracy.csv is none of this run; move it away", directory.root().display())
        })?;
        accuracy.rows.retain(|row| row.step <= step);
        Ok(accuracy)
    }

    fn header(&self) -> String {
        let name = |level: &Option<(usize, NoiseLevel)>| level.map_or("clean".to_owned(), |(t, _)| format!("t{t}"));
        let levels: Vec<String> = self.levels.iter().map(name).collect();
        format!("step,epoch,images,{}", levels.join(","))
    }

    fn parse(&self, text: &str) -> Result<Vec<Row>> {
        let mut lines = text.lines();
        match lines.next() {
            None => return Ok(Vec::new()),
            Some(header) if header == self.header() => {}
            Some(header) => bail!("its first line should be \"{}\", found \"{header}\"", self.header()),
        }
        lines
            .map(|line| {
                let row = || {
                    let mut fields = line.split(',');
                    let row = Row {
                        step: fields.next()?.parse().ok()?,
                        epoch: fields.next()?.parse().ok()?,
                        images: fields.next()?.parse().ok()?,
                        shares: fields.map(|share| share.parse().ok()).collect::<Option<_>>()?,
                    };
                    (row.shares.len() == self.levels.len()).then_some(row)
                };
                row().with_context(|| format!("\"{line}\" is no row of {}", self.header()))
            })
            .collect()
    }

    fn text(&self) -> String {
        let mut text = self.header() + "\n";
        for Row { step, epoch, images, shares } in &self.rows {
            let shares: Vec<String> = shares.iter().map(f64::to_string).collect();
            text += &format!("{step},{epoch},{images},{}\n", shares.join(","));
        }
        text
    }

    /// Whether the last row is of this step and of every test image.
    pub fn is_known(&self, step: u64) -> bool {
        let all = self.data.as_ref().map_or(0, Dataset::len);
        self.data.is_none() || self.rows.last().is_some_and(|row| row.step == step && row.images == all)
    }

    /// Whether there is no row of this step, although there are test images.
    pub fn lacks(&self, step: u64) -> bool {
        self.data.is_some() && self.at(step).is_none()
    }

    /// The last row, if it is of this step.
    pub fn at(&self, step: u64) -> Option<&Row> {
        self.rows.last().filter(|row| row.step == step)
    }

    /// Measures and writes a row; `None` if there are no test images, or `stop` was raised.
    ///
    /// # Errors
    /// If an image cannot be read, the network cannot take it, or the file cannot be written.
    pub fn measure(
        &mut self,
        network: &dyn Network,
        run: &RunConfig,
        directory: &RunDirectory,
        (step, epoch): (u64, u64),
        extent: Extent,
        stop: &AtomicBool,
    ) -> Result<Option<Row>> {
        let Some(data) = &self.data else { return Ok(None) };
        let images = match extent {
            Extent::Sample if self.levels.len() > 1 => data.len().min(SAMPLE),
            _ => data.len(),
        };
        let mut shares = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            match share(network, run, data, *level, images, stop)? {
                Some(share) => shares.push(share),
                None => return Ok(None),
            }
        }
        let row = Row { step, epoch, images, shares };
        self.rows.retain(|row| row.step < step);
        self.rows.push(row.clone());
        directory.write_accuracy(&self.text())?;
        Ok(Some(row))
    }

    /// A row in words.
    pub fn describe(&self, row: &Row) -> String {
        let of = |(level, share): (&Option<(usize, NoiseLevel)>, &f64)| match level {
            None => format!("{:.2} %", 100.0 * share),
            Some((t, _)) => format!("{:.1} % at t = {t}", 100.0 * share),
        };
        let shares: Vec<String> = self.levels.iter().zip(&row.shares).map(of).collect();
        format!("test accuracy {} ({} images)", shares.join(", "), row.images)
    }
}

/// The share of the first `images` images that are named right at a level.
fn share(
    network: &dyn Network,
    run: &RunConfig,
    data: &Dataset,
    level: Option<(usize, NoiseLevel)>,
    images: usize,
    stop: &AtomicBool,
) -> Result<Option<f64>> {
    let mut right = 0;
    for first in (0..images).step_by(BATCH) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let indices: Vec<usize> = (first..images.min(first + BATCH)).collect();
        let batch = data.batch(&indices, run.train.range)?;
        let mut x = batch.images;
        let mut number = 0.0;
        if let Some((t, level)) = level {
            number = run.train.timestep.of_step(t as f64);
            for (mut image, &index) in x.outer_iter_mut().zip(&indices) {
                let mut random = rng_for(run.train.seed, "train/accuracy", t as u64, index as u64);
                image.mapv_inplace(|x0| {
                    let eps: f32 = random.sample(StandardNormal);
                    level.alpha() as f32 * x0 + level.sigma() as f32 * eps
                });
            }
        }
        let n = indices.len();
        let logits: Array4<f32> = network.predict(x.view(), &vec![number; n], &Condition::none(n))?;
        let best = |z: ndarray::ArrayView3<'_, f32>| {
            z.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(k, _)| k)
        };
        right += logits.axis_iter(Axis(0)).zip(&batch.labels).filter(|(z, label)| best(*z) == **label).count();
    }
    Ok(Some(right as f64 / images as f64))
}
