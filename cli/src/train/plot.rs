//! The loss of a run over its steps, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use tweedie_train::log::LogRow;

use crate::axis::Decades;

/// Points of each series; more would not be seen.
const POINTS: usize = 1500;
/// The lowest loss on the logarithmic axis.
const LOWEST: f64 = 1e-9;

const FAINT: RGBColor = RGBColor(170, 190, 215);
const STRONG: RGBColor = RGBColor(52, 90, 150);

/// The loss of each step as points and the smoothed loss as a line, on a logarithmic axis.
///
/// # Errors
/// If it cannot be drawn.
pub fn loss(rows: &[LogRow], title: &str) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, rows, title).map_err(|e| anyhow!("cannot draw the plot of the loss: {e}"))?;
    Ok(svg)
}

/// Every `stride`-th value, and the last.
fn series(rows: &[LogRow], value: fn(&LogRow) -> f32) -> Vec<(f64, f64)> {
    let stride = rows.len().div_ceil(POINTS).max(1);
    let last = rows.len().saturating_sub(1);
    let shown = rows.iter().enumerate().filter(|(i, _)| i % stride == 0 || *i == last);
    shown.map(|(_, row)| (row.step as f64, f64::from(value(row)).max(LOWEST))).collect()
}

fn draw(svg: &mut String, rows: &[LogRow], title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let (raw, smooth) = (series(rows, |row| row.loss), series(rows, |row| row.loss_ema));
    let values = || raw.iter().chain(&smooth).map(|point| point.1);
    let lowest = values().fold(f64::INFINITY, f64::min).min(1.0);
    let highest = values().fold(lowest, f64::max);
    let last = rows.last().map_or(1.0, |row| row.step as f64).max(2.0);
    let place = |points: Vec<(f64, f64)>| points.into_iter().map(|(step, loss)| (step, loss.log10()));

    let root = SVGBackend::with_string(svg, (860, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..last, Decades::new(0.9 * lowest, 1.1 * highest))?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 17))
        .x_desc("step")
        .y_desc("loss (mean squared error)")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .draw()?;
    let dots = place(raw).map(|point| Circle::new(point, 1, FAINT.filled()));
    chart.draw_series(dots)?.label("each step").legend(|(x, y)| Circle::new((x + 9, y), 2, FAINT.filled()));
    chart
        .draw_series(LineSeries::new(place(smooth), STRONG.stroke_width(2)))?
        .label("smoothed")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], STRONG.stroke_width(2)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 16))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: u64) -> Vec<LogRow> {
        let loss = |step: u64| 1.0 / (1.0 + step as f32 / 50.0);
        let row = |step| LogRow {
            step,
            epoch: 1,
            images: 64 * step,
            loss: loss(step),
            loss_ema: loss(step),
            grad_norm: 1.0,
            lr: 1e-3,
            seconds: step as f32,
        };
        (1..=n).map(row).collect()
    }

    #[test]
    fn the_plot_has_axes_a_line_and_a_bounded_size() {
        let svg = loss(&rows(40_000), "runs/mnist").unwrap();
        for part in
            ["<svg", "</svg>", "polyline", "circle", "step", "loss (mean squared error)", "runs/mnist", "smoothed"]
        {
            assert!(svg.contains(part), "{part}");
        }
        assert!(svg.len() < 400_000, "{}", svg.len());
    }

    #[test]
    fn few_rows_and_losses_of_zero_can_be_drawn() {
        for n in 0..3 {
            assert!(loss(&rows(n), "short").unwrap().contains("</svg>"));
        }
        let mut flat = rows(2);
        flat.iter_mut().for_each(|row| (row.loss, row.loss_ema) = (0.0, 0.0));
        assert!(loss(&flat, "flat").unwrap().contains("</svg>"));
    }

    #[test]
    fn the_last_row_is_always_shown() {
        for n in [1, 1499, 1500, 1501, 4000] {
            let points = series(&rows(n), |row| row.loss);
            assert!(points.len() <= POINTS + 1);
            assert_eq!(points.last().unwrap().0, n as f64);
        }
    }
}
