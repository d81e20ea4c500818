//! `tweedie schedule`: the tables of a noise schedule as numbers, as a table for people, and as a plot.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use serde_json::json;
use tweedie_checkpoint::atomic_write;
use tweedie_schedule::Schedule;

use crate::args::{Common, ScheduleArgs};
use crate::console;

/// Rows of the table for people.
const ROWS: usize = 11;

/// Runs the command.
///
/// # Errors
/// If the options describe no schedule, or the plot cannot be written.
pub fn run(args: &ScheduleArgs, common: &Common) -> Result<()> {
    let process = &args.process;
    let schedule = Schedule::new(&process.betas()?, process.steps()).map_err(|e| console::usage(e.to_string()))?;
    let name = process.schedule.as_deref().unwrap_or("linear");
    if let Some(path) = &args.plot {
        let title = format!("{name} schedule, T = {}", schedule.steps());
        atomic_write(path, plot(&schedule, &title)?.as_bytes())?;
        console::report(common, &format!("wrote {}", path.display()));
    }
    let tables = Tables::new(&schedule);
    if args.json {
        // The cosine has constants of its own.
        let ends = (name != "cosine").then(|| (process.beta_start.unwrap_or(1e-4), process.beta_end.unwrap_or(0.02)));
        console::print_json(&json!({
            "schedule": name,
            "train_steps": schedule.steps(),
            "beta_start": ends.map(|e| e.0),
            "beta_end": ends.map(|e| e.1),
            "betas": tables.betas,
            "alphas_cumprod": tables.abar,
            "posterior_variance": tables.variance,
            "posterior_mean_coef_x0": tables.coef_x0,
            "posterior_mean_coef_xt": tables.coef_xt,
            "log_snr": tables.log_snr,
        }))
    } else {
        console::print(&tables.to_text(name))
    }
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

    fn to_text(&self, name: &str) -> String {
        let total = self.betas.len();
        let mut text = format!("{name} schedule, T = {total}; --json prints every step\n\n");
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

/// Points per curve; more would not be seen.
const POINTS: usize = 1000;

/// Three curves over t below each other, as SVG.
fn plot(schedule: &Schedule, title: &str) -> Result<String> {
    let total = schedule.steps();
    let stride = total.div_ceil(POINTS);
    let steps: Vec<usize> =
        (1..=total).step_by(stride).chain((!(total - 1).is_multiple_of(stride)).then_some(total)).collect();
    let curve = |f: &dyn Fn(usize) -> f64| steps.iter().map(|&t| (t as f64, f(t))).collect::<Vec<_>>();
    let curves = [
        ("beta", curve(&|t| schedule.beta(t)), RGBColor(196, 78, 82)),
        ("alphas_cumprod", curve(&|t| schedule.abar(t)), RGBColor(76, 114, 176)),
        ("log-SNR", curve(&|t| schedule.log_snr(t)), RGBColor(85, 140, 80)),
    ];
    let mut svg = String::new();
    draw(&mut svg, title, total, &curves).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    Ok(svg)
}

type Curve = (&'static str, Vec<(f64, f64)>, RGBColor);

fn draw(svg: &mut String, title: &str, total: usize, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (760, 860)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 22))?;
    for ((name, points, colour), area) in curves.iter().zip(root.split_evenly((curves.len(), 1))) {
        let lowest = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let highest = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        // A flat curve still needs an axis of some height.
        let room = if highest > lowest { 0.05 * (highest - lowest) } else { 0.5 * highest.abs().max(1e-6) };
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(70)
            .build_cartesian_2d(1.0..(total as f64).max(2.0), lowest - room..highest + room)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("t")
            .y_desc(*name)
            .x_label_formatter(&|t| format!("{t:.0}"))
            .y_label_formatter(&|y| axis_label(*y, highest))
            .draw()?;
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
    }
    root.present()?;
    Ok(())
}

/// A number at an axis that reaches to `highest`.
fn axis_label(y: f64, highest: f64) -> String {
    if highest < 0.01 {
        format!("{y:.1e}")
    } else if highest < 0.1 {
        format!("{y:.3}")
    } else {
        format!("{y:.1}")
    }
}
