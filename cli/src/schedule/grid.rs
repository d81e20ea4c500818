//! The steps that a sampler visits, with their noise levels.

use anyhow::Result;
use serde_json::{Value, json};
use tweedie_schedule::{NoiseLevel, Schedule, Spacing, StepGrid, TimestepMapping, karras_sigmas};

use crate::args::ScheduleArgs;
use crate::console;

/// The exponent of Karras (2022).
const RHO: f64 = 7.0;

/// A grid on a schedule.
pub struct Grid {
    grid: StepGrid,
    spacing: Spacing,
    levels: Vec<NoiseLevel>,
    /// As many levels between those of steps T and 1 by Karras (2022, eq. 5); `None` where the first one has no signal, or
    /// there is only one step.
    karras: Option<Vec<f64>>,
}

impl Grid {
    /// The grid that was asked for.
    ///
    /// # Errors
    /// If the schedule has fewer steps.
    pub fn of(schedule: &Schedule, args: &ScheduleArgs) -> Result<Option<Self>> {
        let Some(count) = args.steps else { return Ok(None) };
        let wrong = |e: tweedie_schedule::ScheduleError| console::usage(format!("--steps {count}: {e}"));
        let spacing = Spacing::from_name(args.spacing.as_deref().unwrap_or("trailing")).map_err(wrong)?;
        let grid = StepGrid::new(schedule.steps(), count.get(), spacing, 0).map_err(wrong)?;
        let levels = grid.steps().iter().map(|&t| schedule.level(t)).collect();
        let ends = (schedule.level(1).edm_sigma(), schedule.level(schedule.steps()).edm_sigma());
        let karras = karras_sigmas(ends.0, ends.1, RHO, count.get()).ok();
        Ok(Some(Self { grid, spacing, levels, karras }))
    }

    /// The 1-based steps, falling.
    pub fn steps(&self) -> &[usize] {
        self.grid.steps()
    }

    /// The numbers that a diffusers network sees.
    fn timesteps(&self) -> Vec<usize> {
        self.steps().iter().map(|&t| TimestepMapping::ZeroBased.of_step(t as f64) as usize).collect()
    }

    /// The table.
    pub fn text(&self) -> String {
        let plural = if self.grid.len() == 1 { "" } else { "s" };
        let mut text = format!(
            "{} sampling step{plural}, {}; timestep is what a diffusers network sees, sigma = sqrt(1/alphas_cumprod - 1)\n\n",
            self.grid.len(),
            self.spacing.name()
        );
        text += &format!(
            "{:>7} {:>8} {:>14} {:>9} {:>12} {:>12}\n",
            "t", "timestep", "alphas_cumprod", "log_snr", "sigma", "karras_sigma"
        );
        for (i, (step, level)) in self.steps().iter().zip(&self.levels).enumerate() {
            let karras = self.karras.as_ref().map_or_else(|| "-".to_owned(), |sigmas| format!("{:.6}", sigmas[i]));
            text += &format!(
                "{step:>7} {:>8} {:>14.8} {:>9.4} {:>12.6} {karras:>12}\n",
                self.timesteps()[i],
                level.abar(),
                level.log_snr(),
                level.edm_sigma(),
            );
        }
        text
    }

    /// The part of the document.
    pub fn json(&self) -> Value {
        let of = |f: fn(NoiseLevel) -> f64| self.levels.iter().map(|&level| f(level)).collect::<Vec<f64>>();
        json!({
            "spacing": self.spacing.name(),
            "steps": self.steps(),
            "timesteps": self.timesteps(),
            "alphas_cumprod": of(NoiseLevel::abar),
            "log_snr": of(NoiseLevel::log_snr),
            "sigmas": of(NoiseLevel::edm_sigma),
            "karras_sigmas": self.karras,
        })
    }
}
