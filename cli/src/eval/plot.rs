//! The terms of the bound over t, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use tweedie_eval::bits_per_dim;

use super::likelihood::Likelihood;
use crate::axis::Decades;

/// Intervals of t, equal on the logarithmic axis, over which the line is a mean.
const INTERVALS: usize = 60;
/// The lowest value that is drawn, in bits per dimension.
const LOWEST: f64 = 1e-12;

const FAINT: RGBColor = RGBColor(170, 190, 215);
const STRONG: RGBColor = RGBColor(52, 90, 150);
const DECODER: RGBColor = RGBColor(196, 78, 82);

/// `L_{t-1}` of every step that was computed as a point, their means over intervals of t as a line and the decoder's term
/// beside them, in bits per dimension, on logarithmic axes.
///
/// # Errors
/// If it cannot be drawn.
pub fn terms(result: &Likelihood, title: &str) -> Result<String> {
    let of_unit = |nats: f64| bits_per_dim(nats, result.vlb.dims);
    let terms: Vec<(usize, f64)> = result.vlb.terms.iter().map(|term| (term.t, of_unit(term.estimate.mean))).collect();
    let mut svg = String::new();
    draw(&mut svg, &terms, result.train_steps, title).map_err(|e| anyhow!("cannot draw the plot of the terms: {e}"))?;
    Ok(svg)
}

/// The mean of `t` and of the value over each interval that holds a term.
fn means(terms: &[(usize, f64)], last: usize) -> Vec<(f64, f64)> {
    let place = |t: usize| ((t as f64).ln() / (last as f64).ln().max(f64::MIN_POSITIVE) * INTERVALS as f64) as usize;
    let groups = terms.chunk_by(|a, b| place(a.0) == place(b.0));
    groups
        .map(|group| {
            let mean = |f: &dyn Fn(&(usize, f64)) -> f64| group.iter().map(f).sum::<f64>() / group.len() as f64;
            (mean(&|term| term.0 as f64), mean(&|term| term.1))
        })
        .collect()
}

fn draw(svg: &mut String, terms: &[(usize, f64)], last: usize, title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let values = || terms.iter().map(|term| term.1).filter(|value| *value > LOWEST);
    let (lowest, highest) = (values().fold(1.0, f64::min), values().fold(LOWEST, f64::max));
    let place = |(t, value): (f64, f64)| (t.log10(), value.max(LOWEST).log10());
    let (decoder, steps): (Vec<_>, Vec<_>) = terms.iter().partition(|term| term.0 == 1);

    let root = SVGBackend::with_string(svg, (860, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .margin_right(34)
        .x_label_area_size(46)
        .y_label_area_size(84)
        .build_cartesian_2d(
            Decades::new(0.9, (last as f64).max(2.0)),
            Decades::new(0.7 * lowest, (1.4 * highest).max(1.4 * lowest)),
        )?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 17))
        .x_desc("t")
        .y_desc("bits/dim")
        .draw()?;
    let points = steps.iter().map(|&(t, value)| Circle::new(place((t as f64, value)), 2, FAINT.filled()));
    chart.draw_series(points)?.label("L_(t-1) of a step").legend(|(x, y)| Circle::new((x + 9, y), 2, FAINT.filled()));
    chart
        .draw_series(LineSeries::new(means(&steps, last).into_iter().map(place), STRONG.stroke_width(2)))?
        .label("mean over neighbouring steps")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], STRONG.stroke_width(2)));
    let decoder = decoder.iter().map(|&(t, value)| Circle::new(place((t as f64, value)), 5, DECODER.filled()));
    chart
        .draw_series(decoder)?
        .label("L_0, the decoder (t = 1)")
        .legend(|(x, y)| Circle::new((x + 9, y), 4, DECODER.filled()));
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

    fn svg(terms: &[(usize, f64)], last: usize) -> String {
        let mut svg = String::new();
        draw(&mut svg, terms, last, "a model on data").unwrap();
        svg
    }

    #[test]
    fn the_plot_has_axes_points_and_a_line() {
        let terms: Vec<(usize, f64)> = (1..=1000).map(|t| (t, 1.0 / t as f64)).collect();
        let svg = svg(&terms, 1000);
        for part in ["<svg", "</svg>", "polyline", "circle", "bits/dim", "a model on data", "L_0, the decoder"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(svg.len() < 200_000, "{}", svg.len());
    }

    #[test]
    fn few_terms_and_terms_of_zero_can_be_drawn() {
        for terms in [&[(1, 0.5)][..], &[(1, -0.5)], &[(1, 0.5), (2, 0.0)], &[(1, 2.0), (2, 1e-20), (3, -1e-18)]] {
            for last in [1, 3] {
                assert!(svg(&terms[..terms.len().min(last)], last).contains("</svg>"));
            }
        }
    }

    #[test]
    fn means_are_over_neighbours() {
        let terms: Vec<(usize, f64)> = (2..=1000).map(|t| (t, t as f64)).collect();
        let means = means(&terms, 1000);
        assert!(means.len() > 30 && means.len() <= INTERVALS + 1, "{}", means.len());
        assert_eq!(means[0], (2.0, 2.0));
        assert!(means.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(means.iter().all(|(t, value)| (t - value).abs() < 1e-9));
    }
}
