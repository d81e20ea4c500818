//! `tweedie study guidance`: cells are drawn and measured one after the other, and a report is made of them.

mod args;
mod cells;
mod plot;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use flate2::Crc;
use ndarray::{Array4, Axis, Slice};
use tweedie_checkpoint::atomic_write;
use tweedie_data::Split;
use tweedie_denoiser::{NetworkGrad, SeededNoise};
use tweedie_guidance::ClassifierForm;
use tweedie_samplers::SchedulerSpec;

use crate::args::{Common, ProcessArgs};
use crate::classifier::{self, LoadedClassifier};
use crate::console::{self, usage};
use crate::eval::images::{Extracted, Extractor, Metric, Settings, chosen, figures, open_real};
use crate::labels::{self, Arrangement};
use crate::model::{self, Loaded, LoadedNetwork};
use crate::picture::{self, Layout};
use crate::sample::GuidingClassifier;
use crate::sample::drawing::Drawing;
use crate::sample::guidance::{ByClassifier, Guidance};
use crate::sample::plan::{self, Overrides};

pub use args::StudyArgs;
use args::{GuidanceStudyArgs, RunName, Study};
use cells::{Cell, Figure, Kind, Row};
use report::{Baseline, Facts, PLOT_OF_CALLS, PLOT_OF_SCALE};

/// The file of what was measured.
const CELLS: &str = "cells.csv";
/// The report.
const REPORT: &str = "report.md";
/// Rows of a grid of samples.
const ROWS: usize = 4;
/// The confidence of all intervals.
const CONFIDENCE: f64 = 0.95;
/// What is measured of every cell.
const METRICS: [Metric; 5] = [Metric::Accuracy, Metric::Fid, Metric::Kid, Metric::Precision, Metric::Recall];

/// Runs the command.
///
/// # Errors
/// If the model, a classifier, the data or an option cannot be used, or a file cannot be read or written. What was measured
/// before is kept.
pub fn run(args: &StudyArgs, common: &Common) -> Result<()> {
    match &args.of {
        Study::Guidance(args) => guidance(args, common),
    }
}

fn guidance(args: &GuidanceStudyArgs, common: &Common) -> Result<()> {
    let start = Instant::now();
    let study = Setting::open(args, common)?;
    let cells = study.cells();
    let file = args.out.join(CELLS);
    let identity = study.identity();
    let mut rows = read_rows(&file, &identity)?;
    // A grid that was not asked for when its cell was measured is drawn with its cell once more.
    let is_there = |cell: &&Cell| {
        rows.iter().any(|row| row.cell == **cell) && (!study.shows(cell) || study.grid_path(cell).exists())
    };
    let missing: Vec<&Cell> = cells.iter().filter(|cell| !is_there(cell)).collect();
    // What cannot be drawn is found before anything takes time.
    for cell in &missing {
        study.plan(cell).with_context(|| cell.title())?;
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}; choose another directory with --out", args.out.display()))?;
    let bar = console::progress(common, missing.iter().map(|cell| cell.steps as u64).sum(), "steps");
    console::report(
        common,
        &format!(
            "{} cells of {} images{}",
            cells.len(),
            args.count,
            match cells.len() - missing.len() {
                0 => String::new(),
                done => format!(", of which {done} are there already"),
            }
        ),
    );
    for &cell in &missing {
        bar.set_message(cell.title());
        let row = study.measure(cell, &|done| bar.inc(done)).with_context(|| cell.title())?;
        console::report(common, &told(&row));
        rows.retain(|row| row.cell != *cell);
        rows.push(row);
        atomic_write(&file, cells::to_csv(&identity, &rows).as_bytes())?;
    }
    bar.finish_and_clear();
    // Cells of another list of scales or runs stay in the file, but not in the report.
    let shown: Vec<Row> = cells.iter().filter_map(|cell| rows.iter().find(|row| row.cell == *cell).cloned()).collect();
    let facts = study.facts();
    let write = |name: &str, text: &str| atomic_write(args.out.join(name), text.as_bytes());
    write(PLOT_OF_SCALE, &plot::panels(&report::panels_of_scale(&facts, &shown))?)?;
    write(PLOT_OF_CALLS, &plot::panels(&report::panels_of_calls(&facts, &shown))?)?;
    write(REPORT, &report::markdown(&facts, &shown))?;
    console::report(
        common,
        &format!(
            "wrote {}: {} cells, {} of them measured now, in {}",
            args.out.join(REPORT).display(),
            shown.len(),
            missing.len(),
            console::seconds(start.elapsed())
        ),
    );
    Ok(())
}

/// A row as a line.
fn told(row: &Row) -> String {
    format!(
        "{}: accuracy {:.1} %, FID {:.2}, precision {:.1} %, recall {:.1} %",
        row.cell.title(),
        100.0 * row.accuracy.value,
        row.fid.value,
        100.0 * row.precision.value,
        100.0 * row.recall.value
    )
}

/// What was measured before.
fn read_rows(file: &Path, identity: &str) -> Result<Vec<Row>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    cells::from_csv(identity, &text).with_context(|| file.display().to_string())
}

/// Everything that all cells have in common.
struct Setting<'a> {
    args: &'a GuidanceStudyArgs,
    model: Loaded,
    judge: LoadedClassifier,
    reference: Extracted,
    reference_name: String,
    baseline: Option<Baseline>,
    settings: Settings,
    shape: [usize; 4],
    arrangement: Arrangement,
    at_scale: f64,
    quiet: Common,
    /// The classifier that guides, if there is one, and the checksum of its weights.
    noisy: Option<(GuidingClassifier, u32)>,
}

/// What a cell is drawn with.
struct Planned {
    spec: SchedulerSpec,
    steps: usize,
    guidance: Guidance,
}

/// A checksum of a network's weights.
fn checksum(network: &dyn NetworkGrad) -> u32 {
    let mut crc = Crc::new();
    network.params().values().iter().for_each(|value| crc.update(&value.to_le_bytes()));
    crc.sum()
}

impl<'a> Setting<'a> {
    fn open(args: &'a GuidanceStudyArgs, common: &Common) -> Result<Self> {
        let model = model::open(args.model.model.as_deref(), args.model.variant.as_deref())?;
        let network = network(&model)?;
        let known = model.labels();
        if known.is_empty() || !model.has_null_condition() {
            bail!(
                "{}: a study of guidance needs a model that knows labels and can do without them; train one with \
                 label_dropout above 0",
                model.name()
            );
        }
        if args.scales.is_empty() || args.kinds().is_empty() {
            return Err(usage("--scales and --kinds should each name at least one"));
        }
        let at_scale = args.at_scale.or(network.guidance).unwrap_or(2.0);
        let entries: Vec<Option<usize>> = known.iter().copied().map(Some).collect();
        let arrangement = Arrangement::in_turn(&entries, args.count.get());
        let shape = plan::shape(&model, args.count.get(), None)?;
        let judge = classifier::open(args.judge.as_deref()).context("--judge")?;
        let noisy = noisy(args)?;
        let settings = Settings::usual(args.resamples, args.seed);
        let split = Split::from(args.split);
        let [_, c, h, w] = shape;
        let open = |split| open_real(&args.data, &args.data_options, [c, h, w], split, common);
        let data = open(split)?;
        let extractor = Extractor { network: &judge.network, range: judge.range };
        let all: Vec<usize> = (0..data.len()).collect();
        let reference = extractor.data(&data, &all, "features of the real images", common)?;
        let reference_name = format!("all {} images of {} ({split})", data.len(), data.name());
        let quiet = Common { quiet: true, ..common.clone() };
        // A folder of images may have one part only, and then there is nothing to compare with.
        let baseline = match open(split.other()) {
            Ok(data) => {
                let indices = chosen(data.len(), args.count.get(), args.seed);
                let real = extractor.data(&data, &indices, "features of the baseline", common)?;
                let [accuracy, fid, kid, precision, recall] = measured(&reference, &real, &settings, &quiet)?;
                Some(Baseline { accuracy, fid, kid, precision, recall })
            }
            Err(_) => None,
        };
        Ok(Self {
            args,
            model,
            judge,
            reference,
            reference_name,
            baseline,
            settings,
            shape,
            arrangement,
            at_scale,
            quiet,
            noisy,
        })
    }

    /// Every cell, each once: the scales for each kind, then the runs.
    fn cells(&self) -> Vec<Cell> {
        let args = self.args;
        let RunName { sampler, steps } = &args.run;
        let mut cells: Vec<Cell> = Vec::new();
        let mut add = |cell: Cell| {
            if !cells.contains(&cell) {
                cells.push(cell);
            }
        };
        for kind in args.kinds() {
            if kind == Kind::Classifier && self.noisy.is_none() {
                continue;
            }
            for &scale in &args.scales {
                add(Cell { kind, scale, sampler: sampler.clone(), steps: *steps });
            }
        }
        for RunName { sampler, steps } in &args.runs {
            add(Cell { kind: Kind::Free, scale: self.at_scale, sampler: sampler.clone(), steps: *steps });
        }
        cells
    }

    /// What a file of rows has to agree with.
    fn identity(&self) -> String {
        let model = match &self.model {
            Loaded::Network(network) => checksum(&network.network),
            Loaded::Oracle(_) => 0,
        };
        let noisy = self.noisy.as_ref().map_or(0, |(_, checksum)| *checksum);
        format!(
            "guidance; model {model:08x}; noisy classifier {noisy:08x}; judge {:08x}; reference: {}; count {}; seed {}; \
             resamples {}",
            checksum(&self.judge.network),
            self.reference_name,
            self.args.count,
            self.args.seed,
            self.args.resamples
        )
    }

    /// What a cell is drawn with.
    fn plan(&self, cell: &Cell) -> Result<Planned> {
        let process = ProcessArgs::default();
        let options = Overrides { sampler: Some(&cell.sampler), ..Overrides::none(&process) };
        let spec = plan::scheduler(&self.model, &options)?;
        let steps = plan::steps(Some(cell.steps), &spec)?;
        spec.plan(steps)?;
        let guidance = self.guidance(cell, &spec)?;
        Ok(Planned { spec, steps, guidance })
    }

    /// How a cell guides.
    fn guidance(&self, cell: &Cell, spec: &SchedulerSpec) -> Result<Guidance> {
        match cell.kind {
            Kind::Free => Ok(Guidance { scale: cell.scale, ..Guidance::default() }),
            Kind::Classifier => {
                let noisy = self.noisy.as_ref().map(|(classifier, _)| classifier.clone());
                let classifier = noisy.context("there is no noisy classifier; give --noisy-classifier")?;
                classifier.check(&self.model, spec, self.shape)?;
                // Without labels the model is what the classifier is to guide.
                let highest = classifier.highest();
                let by = ByClassifier { classifier, scale: cell.scale, form: ClassifierForm::Score, highest };
                Ok(Guidance { classifier: Some(by), scale: 0.0, ..Guidance::default() })
            }
        }
    }

    /// Draws a cell, measures it and, where it is to be shown, writes its grid.
    fn measure(&self, cell: &Cell, tick: &dyn Fn(u64)) -> Result<Row> {
        let Planned { spec, steps, guidance } = self.plan(cell)?;
        let drawing = Drawing::new(&self.model, &spec, steps, &self.arrangement.labels, &guidance, self.shape);
        let batches = drawing.ticks() / steps;
        let start = Instant::now();
        let ticks = std::cell::Cell::new(0usize);
        let drawn = drawing.draw(&SeededNoise::new(self.args.seed), &|| {
            ticks.set(ticks.get() + 1);
            // The bar counts the steps of cells, whatever their batches.
            if ticks.get().is_multiple_of(batches) {
                tick(1);
            }
        })?;
        let seconds = start.elapsed().as_secs_f64();
        if self.shows(cell) {
            self.write_grid(cell, &drawn.samples)?;
        }
        let extractor = Extractor { network: &self.judge.network, range: self.judge.range };
        let labels = Some(self.arrangement.labels.clone());
        let found = extractor.samples(&drawn.samples, labels, self.model.range(), true, &self.quiet)?;
        let [accuracy, fid, kid, precision, recall] = measured(&self.reference, &found, &self.settings, &self.quiet)?;
        Ok(Row {
            cell: cell.clone(),
            count: self.args.count.get(),
            calls: drawn.calls.per_image(),
            gradients: drawn.calls.gradients_per_image(),
            seconds: seconds / self.args.count.get() as f64,
            accuracy,
            fid,
            kid,
            precision,
            recall,
        })
    }

    /// Whether a grid is made of a cell.
    fn shows(&self, cell: &Cell) -> bool {
        let RunName { sampler, steps } = &self.args.run;
        self.args.show.contains(&cell.scale) && cell.sampler == *sampler && cell.steps == *steps
    }

    fn grid_path(&self, cell: &Cell) -> PathBuf {
        self.args.out.join(grid_name(cell))
    }

    fn write_grid(&self, cell: &Cell, samples: &Array4<f32>) -> Result<()> {
        let entries = self.model.labels().len();
        let count = (ROWS * entries).min(samples.dim().0);
        let samples = samples.slice_axis(Axis(0), Slice::from(..count));
        let part = Arrangement::in_turn(&self.arrangement.labels[..entries.min(count)], count);
        let headers = part.headers.iter().map(|label| labels::header(*label, self.model.class_names())).collect();
        let [_, c, h, w] = self.shape;
        let layout = Layout::new([count, c, h, w], &part.columns, headers)?;
        let png = picture::encode(&layout.draw(samples, self.model.range()), &[("Title", &cell.title())])?;
        Ok(atomic_write(self.grid_path(cell), &png)?)
    }

    fn facts(&self) -> Facts {
        let args = self.args;
        let mut command = "tweedie study guidance".to_owned();
        // The words after the program's name and those two, as they were typed.
        for word in std::env::args().skip_while(|word| word != "guidance").skip(1) {
            command += &format!(" {word}");
        }
        let accuracy = |classifier: &LoadedClassifier| match classifier.accuracy {
            Some(share) => format!(", which names {:.2} % of its test images right", 100.0 * share),
            None => String::new(),
        };
        let grids = self.cells().into_iter().filter(|cell| self.shows(cell));
        Facts {
            command,
            model: self.model.name().to_owned(),
            noisy: self.noisy.as_ref().map(|(classifier, _)| classifier.name.clone()),
            features: format!(
                "the {} features of {}{}",
                self.reference.features.ncols(),
                self.judge.name,
                accuracy(&self.judge)
            ),
            reference: self.reference_name.clone(),
            baseline: self.baseline,
            count: args.count.get(),
            seed: args.seed,
            confidence: CONFIDENCE,
            along_scale: (args.run.sampler.clone(), args.run.steps),
            at_scale: self.at_scale,
            grids: grids
                .map(|cell| {
                    let name = grid_name(&cell);
                    (cell, name)
                })
                .collect(),
        }
    }
}

fn grid_name(cell: &Cell) -> String {
    format!("grid-{}-{}.png", cell.kind.name(), cell.scale)
}

fn network(model: &Loaded) -> Result<&LoadedNetwork> {
    match model {
        Loaded::Network(network) => Ok(network),
        Loaded::Oracle(oracle) => bail!(
            "{} is an oracle, and a study measures networks by a classifier's features; give a model directory",
            oracle.name
        ),
    }
}

/// The classifier that guides, if there is one: the bundled one for the bundled model.
fn noisy(args: &GuidanceStudyArgs) -> Result<Option<(GuidingClassifier, u32)>> {
    let loaded = match (&args.noisy_classifier, &args.model.model) {
        (Some(path), _) => classifier::open(Some(path)).context("--noisy-classifier")?,
        (None, None) => classifier::open_noisy()?,
        (None, Some(_)) => return Ok(None),
    };
    let checksum = checksum(&loaded.network);
    Ok(Some((GuidingClassifier::of_network(loaded)?, checksum)))
}

/// The five figures of some images.
fn measured(reference: &Extracted, images: &Extracted, settings: &Settings, common: &Common) -> Result<[Figure; 5]> {
    let found = figures(&METRICS, Some(reference), images, settings, common)?;
    let figure = |metric: Metric| -> Result<Figure> {
        let figure = found.iter().find(|figure| figure.metric == metric);
        let figure = figure.with_context(|| format!("{} is missing", metric.name()))?;
        let (low, high) = figure.interval.unwrap_or((figure.value, figure.value));
        Ok(Figure { value: figure.value, low, high })
    };
    let [a, b, c, d, e] = METRICS.map(figure);
    Ok([a?, b?, c?, d?, e?])
}
