//! What a person sees of a run while it goes on, and how it is interrupted.

use std::io::{self, IsTerminal, Write};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tweedie_train::{RunLength, StepReport, Trainer};

use crate::args::Common;
use crate::console;

/// Between two lines where there is no terminal for a bar.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks at the speed.
const SPEED_INTERVAL: Duration = Duration::from_secs(2);

/// Raised by the first Ctrl-C.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C (and a request to terminate) raise [`STOP`]; a second one ends the process at once.
pub fn catch_interrupts(common: &Common) {
    let quiet = common.quiet;
    // Without a handler Ctrl-C ends the process at once, which the last checkpoint survives.
    let _ = ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::Relaxed) {
            process::exit(130);
        }
        if !quiet {
            // A closed stderr is no reason to end without saving, which a panic here would do.
            let _ = writeln!(io::stderr(), "\nstopping after this step; Ctrl-C again ends the run without saving");
        }
    });
}

/// The progress of a run: a bar on a terminal, lines elsewhere.
pub struct Progress<'a> {
    common: &'a Common,
    bar: ProgressBar,
    length: RunLength,
    steps_per_epoch: u64,
    images_per_step: u64,
    /// Time and images of the last look at the speed.
    mark: (Instant, u64),
    images_per_second: Option<f64>,
    last_line: Instant,
}

impl<'a> Progress<'a> {
    /// Starts where the trainer stands.
    pub fn new(common: &'a Common, trainer: &Trainer<'_>) -> Self {
        let length = trainer.config().length;
        let bar = match length {
            RunLength::Minutes(minutes) => console::progress(common, (60.0 * minutes).ceil() as u64, "s"),
            _ => console::progress(common, trainer.total_steps().unwrap_or_default(), "steps"),
        };
        let images_per_step = trainer.images_per_step() as u64;
        let mut progress = Self {
            common,
            bar,
            length,
            steps_per_epoch: trainer.steps_per_epoch(),
            images_per_step,
            mark: (Instant::now(), trainer.steps_done() * images_per_step),
            images_per_second: None,
            last_line: Instant::now(),
        };
        progress.place(trainer.steps_done(), trainer.seconds());
        progress.bar.reset_eta();
        progress
    }

    fn place(&mut self, step: u64, seconds: f64) {
        self.bar.set_position(match self.length {
            RunLength::Minutes(_) => seconds as u64,
            _ => step,
        });
    }

    /// Shows a step.
    pub fn step(&mut self, report: &StepReport) {
        let elapsed = self.mark.0.elapsed();
        if elapsed >= SPEED_INTERVAL || self.images_per_second.is_none() {
            self.images_per_second = Some((report.images - self.mark.1) as f64 / elapsed.as_secs_f64().max(1e-9));
            self.mark = (Instant::now(), report.images);
        }
        let speed = self.images_per_second.unwrap_or_default();
        if self.bar.is_hidden() {
            if self.last_line.elapsed() >= LINE_INTERVAL {
                self.last_line = Instant::now();
                console::report(self.common, &self.line(report, speed));
            }
        } else {
            self.bar.set_message(format!("epoch {}, loss {:.4}, {speed:.0} images/s", report.epoch, report.loss_ema));
            self.place(report.step, report.seconds);
        }
    }

    /// A line that stands for itself.
    fn line(&self, report: &StepReport, speed: f64) -> String {
        let total = self.length.steps(self.steps_per_epoch);
        let of = total.map_or_else(String::new, |total| format!("/{total}"));
        let left = match (self.length, total) {
            (RunLength::Minutes(minutes), _) => Some(60.0 * minutes - report.seconds),
            (_, Some(total)) if speed > 0.0 => {
                Some(total.saturating_sub(report.step) as f64 * self.images_per_step as f64 / speed)
            }
            _ => None,
        };
        let left = left.and_then(|left| Duration::try_from_secs_f64(left).ok());
        let left = left.map_or_else(String::new, |left| format!(", {} left", console::seconds(left)));
        format!(
            "epoch {}, step {}{of}: loss {:.4}, {speed:.0} images/s{left}",
            report.epoch, report.step, report.loss_ema
        )
    }

    /// Says something above the bar.
    pub fn say(&mut self, text: &str) {
        if self.bar.is_hidden() || !io::stderr().is_terminal() {
            console::report(self.common, text);
        } else {
            self.bar.println(text);
        }
        // The pause for samples and files does not count as training.
        self.last_line = Instant::now();
    }

    /// Leaves the time since the last step out of the speed.
    pub fn pause_over(&mut self, images: u64) {
        self.mark = (Instant::now(), images);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
