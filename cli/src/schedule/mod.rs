//! `tweedie schedule`: the tables of a noise schedule as numbers, as a table for people, and as a plot.

mod grid;
mod plot;

use anyhow::Result;
use serde_json::json;
use tweedie_checkpoint::atomic_write;
use tweedie_schedule::{BetaSchedule, Schedule};

use crate::args::{Common, ScheduleArgs};
use crate::console;
use grid::Grid;

/// Rows of the table for people.
const ROWS: usize = 11;

/// Runs the command.
///
/// # Errors
/// If the options describe no schedule or no grid, or the plot cannot be written.
pub fn run(args: &ScheduleArgs, common: &Common) -> Result<()> {
    let process = &args.process;
    let name = process.name();
    let schedule = build(&process.betas()?, args)?;
    let rescaled = if args.rescale_zero_snr { ", rescaled to zero terminal SNR" } else { "" };
    let title = format!("{name} schedule, T = {}{rescaled}", schedule.steps());
    let grid = Grid::of(&schedule, args)?;
    if let Some(path) = &args.plot {
        let mut curves = vec![(name.to_owned(), schedule.clone())];
        for other in &args.compare {
            if curves.iter().all(|(name, _)| name != other) {
                curves.push((other.clone(), build(&process.betas_of(other)?, args)?));
            }
        }
        let compared = format!("{} schedules, T = {}{rescaled}", curves.len(), schedule.steps());
        let title = if curves.len() > 1 { &compared } else { &title };
        let marks = grid.as_ref().map(Grid::steps).unwrap_or_default();
        atomic_write(path, plot::curves(&curves, marks, title)?.as_bytes())?;
        console::report(common, &format!("wrote {}", path.display()));
    }
    let tables = Tables::new(&schedule);
    if args.json {
        // The cosine has constants of its own.
        let ends = (name != "cosine").then(|| process.ends());
        let mut document = json!({
            "schedule": name,
            "train_steps": schedule.steps(),
            "beta_start": ends.map(|e| e.0),
            "beta_end": ends.map(|e| e.1),
            "rescale_zero_snr": args.rescale_zero_snr,
            "betas": tables.betas,
            "alphas_cumprod": tables.abar,
            "posterior_variance": tables.variance,
            "posterior_mean_coef_x0": tables.coef_x0,
            "posterior_mean_coef_xt": tables.coef_xt,
            "log_snr": tables.log_snr,
        });
        if let Some(grid) = grid {
            document["grid"] = grid.json();
        }
        return console::print_json(&document);
    }
    let of_grid = grid.map(|grid| format!("\n{}", grid.text())).unwrap_or_default();
    console::print(&(tables.to_text(&title) + &of_grid))
}

/// The schedule of a rule, rescaled if that is wanted.
fn build(betas: &BetaSchedule, args: &ScheduleArgs) -> Result<Schedule> {
    let schedule = Schedule::new(betas, args.process.steps());
    let rescaled = |s: Schedule| if args.rescale_zero_snr { s.rescaled_zero_terminal_snr() } else { Ok(s) };
    schedule.and_then(rescaled).map_err(|e| console::usage(e.to_string()))
}

/// Every quantity for t = 1..T; entry i is step i + 1.
struct Tables {
    betas: Vec<f64>,
    abar: Vec<f64>,
    variance: Vec<f64>,
    coef_x0: Vec<f64>,
    coef_xt: Vec<f64>,
    log_snr: Vec<f64>,
}

impl Tables {
    fn new(schedule: &Schedule) -> Self {
        let of = |f: &dyn Fn(usize) -> f64| (1..=schedule.steps()).map(f).collect();
        Self {
            betas: schedule.betas().to_vec(),
            abar: of(&|t| schedule.abar(t)),
            variance: of(&|t| schedule.posterior(t).variance()),
            coef_x0: of(&|t| schedule.posterior(t).coef_x0()),
            coef_xt: of(&|t| schedule.posterior(t).coef_xt()),
            log_snr: of(&|t| schedule.log_snr(t)),
        }
    }

    fn to_text(&self, title: &str) -> String {
        let total = self.betas.len();
        let mut text = format!("{title}; --json prints every step\n\n");
        text += &format!(
            "{:>7} {:>12} {:>14} {:>18} {:>12} {:>12} {:>9}\n",
            "t", "beta", "alphas_cumprod", "posterior_variance", "coef_x0", "coef_xt", "log_snr"
        );
        let rows = ROWS.min(total);
        for row in 0..rows {
            let i = if rows > 1 { row * (total - 1) / (rows - 1) } else { 0 };
            text += &format!(
                "{:>7} {:>12.4e} {:>14.8} {:>18.4e} {:>12.8} {:>12.8} {:>9.4}\n",
                i + 1,
                self.betas[i],
                self.abar[i],
                self.variance[i],
                self.coef_x0[i],
                self.coef_xt[i],
                self.log_snr[i]
            );
        }
        text
    }
}
