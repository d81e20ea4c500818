//! Figures of a study over a scale or a number of calls, as SVG.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::cells::Figure;
use crate::axis::Decades;

const COLOURS: [RGBColor; 8] = [
    RGBColor(52, 90, 150),
    RGBColor(196, 78, 82),
    RGBColor(85, 140, 85),
    RGBColor(150, 110, 180),
    RGBColor(200, 140, 50),
    RGBColor(70, 160, 170),
    RGBColor(120, 120, 120),
    RGBColor(160, 80, 130),
];

/// A line of a plot.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it shows.
    pub name: String,
    /// Its points by the place along the axis.
    pub points: Vec<(f64, Figure)>,
}

/// A level that is drawn across a plot.
#[derive(Clone, Debug)]
pub struct Level {
    /// What it shows.
    pub name: String,
    /// Where.
    pub value: f64,
}

/// A panel of a plot.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What stands above it.
    pub title: &'static str,
    /// What the horizontal axis shows.
    pub along: &'static str,
    /// Whether that axis is logarithmic.
    pub log_along: bool,
    /// Whether the vertical axis is.
    pub log_up: bool,
    /// The lines.
    pub series: Vec<Series>,
    /// Levels to compare them with.
    pub levels: Vec<Level>,
}

/// Panels side by side, two to a row; every point has its interval as a thin line.
///
/// # Errors
/// If it cannot be drawn.
pub fn panels(panels: &[Panel]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, panels).map_err(|e| anyhow!("cannot draw the plots of the study: {e}"))?;
    Ok(svg)
}

fn draw(svg: &mut String, panels: &[Panel]) -> Result<(), Box<dyn std::error::Error>> {
    let rows = panels.len().div_ceil(2).max(1);
    let root = SVGBackend::with_string(svg, (1080, 400 * rows as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((rows, 2))) {
        draw_panel(&area, panel)?;
    }
    root.present()?;
    Ok(())
}

/// An axis that is linear or, through decimal logarithms, logarithmic.
fn place(log: bool, value: f64) -> f64 {
    if log { value.max(f64::MIN_POSITIVE).log10() } else { value }
}

/// The ends of an axis that shows all values.
fn extent(log: bool, values: impl Iterator<Item = f64>) -> (f64, f64) {
    let shown = values.filter(|v| v.is_finite() && (!log || *v > 0.0));
    let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    match (low <= high, log) {
        (false, false) => (0.0, 1.0),
        (false, true) => (1.0, 10.0),
        (true, true) => (low / 1.15, high * 1.15),
        (true, false) => {
            let room = if high > low { 0.05 * (high - low) } else { 0.5 };
            (low - room, high + room)
        }
    }
}

fn draw_panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    panel: &Panel,
) -> Result<(), Box<dyn std::error::Error>>
where
    DB::ErrorType: 'static,
{
    let points = || panel.series.iter().flat_map(|series| &series.points);
    let along = extent(panel.log_along, points().map(|point| point.0));
    let levels = panel.levels.iter().map(|level| level.value);
    let ends = points().flat_map(|(_, figure)| [figure.value, figure.low, figure.high]);
    let up = extent(panel.log_up, ends.chain(levels));
    // Each of the four kinds of axes is a type of its own.
    match (panel.log_along, panel.log_up) {
        (false, false) => draw_on(area, panel, along.0..along.1, up.0..up.1),
        (false, true) => draw_on(area, panel, along.0..along.1, Decades::new(up.0, up.1)),
        (true, false) => draw_on(area, panel, Decades::new(along.0, along.1), up.0..up.1),
        (true, true) => draw_on(area, panel, Decades::new(along.0, along.1), Decades::new(up.0, up.1)),
    }
}

fn draw_on<DB: DrawingBackend, X, Y>(
    area: &DrawingArea<DB, Shift>,
    panel: &Panel,
    along: X,
    up: Y,
) -> Result<(), Box<dyn std::error::Error>>
where
    DB::ErrorType: 'static,
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let at = |x: f64, y: f64| (place(panel.log_along, x), place(panel.log_up, y));
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 19))
        .margin(12)
        .margin_right(26)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(along, up)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .x_desc(panel.along)
        .draw()?;
    let ends = panel.series.iter().flat_map(|series| &series.points).map(|point| point.0);
    let (first, last) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    for level in panel.levels.iter().filter(|_| first < last) {
        let style = BLACK.mix(0.45).stroke_width(1);
        chart
            .draw_series(DashedLineSeries::new([first, last].map(|x| at(x, level.value)), 6, 4, style))?
            .label(level.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
        let shown = || series.points.iter().filter(|(_, figure)| figure.value.is_finite());
        let intervals = shown().filter(|(_, figure)| figure.low < figure.high).map(|&(x, figure)| {
            PathElement::new([at(x, figure.low), at(x, figure.high)], colour.mix(0.5).stroke_width(1))
        });
        chart.draw_series(intervals)?;
        chart.draw_series(shown().map(|&(x, figure)| Circle::new(at(x, figure.value), 3, colour.filled())))?;
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(shown().map(|&(x, figure)| at(x, figure.value)), style))?
            .label(series.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 13))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(log_along: bool, log_up: bool, points: Vec<(f64, Figure)>) -> Panel {
        Panel {
            title: "distance",
            along: "gamma",
            log_along,
            log_up,
            series: vec![Series { name: "a sampler".to_owned(), points }],
            levels: vec![Level { name: "real images".to_owned(), value: 2.0 }],
        }
    }

    #[test]
    fn every_kind_of_axes_shows_points_lines_and_levels() {
        let points: Vec<_> =
            [1.0, 2.0, 8.0].map(|x| (x, Figure { value: x * x, low: x * x - 0.5, high: x * x + 1.0 })).into();
        let axes = [(false, false), (false, true), (true, false), (true, true)];
        let svg = panels(&axes.map(|(along, up)| panel(along, up, points.clone()))).unwrap();
        for part in ["<svg", "</svg>", "polyline", "circle", "distance", "gamma", "a sampler", "real images"] {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!(svg.matches("<circle").count(), 4 * 3);
    }

    #[test]
    fn nothing_and_what_is_no_number_can_be_drawn() {
        let figure = |value: f64| Figure { value, low: value, high: value };
        for points in [vec![], vec![(0.0, figure(0.0))], vec![(1.0, figure(f64::NAN)), (2.0, figure(0.0))]] {
            for log in [false, true] {
                assert!(panels(&[panel(log, log, points.clone())]).unwrap().contains("</svg>"));
            }
        }
        assert!(panels(&[]).unwrap().contains("</svg>"));
    }
}
