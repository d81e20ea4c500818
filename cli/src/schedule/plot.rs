//! Curves of one or several schedules over t, as SVG.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use tweedie_schedule::Schedule;

use crate::axis::Decades;

/// Points per curve; more would not be seen.
const POINTS: usize = 1000;
/// The name of the first panel.
const BETAS: &str = "beta";
/// One for each schedule.
const COLOURS: [RGBColor; 6] = [
    RGBColor(52, 90, 150),
    RGBColor(196, 78, 82),
    RGBColor(85, 140, 80),
    RGBColor(221, 132, 32),
    RGBColor(129, 90, 170),
    RGBColor(90, 90, 90),
];

/// Betas on a logarithmic axis, `alphas_cumprod` and log-SNR over t below each other; `marks` are steps of the first schedule
/// to be marked.
///
/// # Errors
/// If they cannot be drawn.
pub fn curves(schedules: &[(String, Schedule)], marks: &[usize], title: &str) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, schedules, marks, title).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    Ok(svg)
}

/// A curve, or a list of marks.
type Points = Vec<(f64, f64)>;

/// What a panel shows.
struct Panel {
    name: &'static str,
    curves: Vec<(String, Points)>,
    marks: Points,
}

impl Panel {
    /// The values of a quantity at about [`POINTS`] steps of each schedule; what is infinite is left out.
    fn new(
        name: &'static str,
        schedules: &[(String, Schedule)],
        marks: &[usize],
        of: impl Fn(&Schedule, usize) -> f64,
    ) -> Self {
        let finite = |schedule: &Schedule, steps: &[usize]| {
            let points = steps.iter().map(|&t| (t as f64, of(schedule, t)));
            points.filter(|point| point.1.is_finite()).collect::<Points>()
        };
        let curve = |(name, schedule): &(String, Schedule)| (name.clone(), finite(schedule, &spread(schedule.steps())));
        let marks = finite(&schedules[0].1, marks);
        Self { name, curves: schedules.iter().map(curve).collect(), marks }
    }

    /// The lowest and the highest value.
    fn range(&self) -> (f64, f64) {
        let values = || self.curves.iter().flat_map(|curve| &curve.1).map(|point| point.1);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    }
}

/// Steps 1 to T, or some of them with both ends.
fn spread(total: usize) -> Vec<usize> {
    let stride = total.div_ceil(POINTS);
    (1..=total).step_by(stride).chain((!(total - 1).is_multiple_of(stride)).then_some(total)).collect()
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(svg: &mut String, schedules: &[(String, Schedule)], marks: &[usize], title: &str) -> Drawn {
    let total = schedules[0].1.steps();
    let betas = Panel::new(BETAS, schedules, &[], Schedule::beta);
    let abar = Panel::new("alphas_cumprod", schedules, marks, Schedule::abar);
    let log_snr = Panel::new("log-SNR", schedules, marks, Schedule::log_snr);

    let root = SVGBackend::with_string(svg, (860, 1000)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 24))?;
    let areas = root.split_evenly((3, 1));
    let (low, high) = betas.range();
    panel(&areas[0], &betas, total, Decades::new(0.7 * low, 1.4 * high), f64::log10)?;
    panel(&areas[1], &abar, total, -0.03..1.03, |y| y)?;
    let (low, high) = log_snr.range();
    // A flat curve still needs an axis of some height.
    let room = (0.05 * (high - low)).max(0.5);
    panel(&areas[2], &log_snr, total, low - room..high + room, |y| y)?;
    root.present()?;
    Ok(())
}

/// One panel, whose values stand at `place(value)` on the axis.
fn panel<Y>(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    total: usize,
    axis: Y,
    place: fn(f64) -> f64,
) -> Drawn
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(44)
        .y_label_area_size(86)
        .build_cartesian_2d(1.0..(total as f64).max(2.0), axis)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 17))
        .x_desc("t")
        .y_desc(panel.name)
        .x_label_formatter(&|t| format!("{t:.0}"))
        .draw()?;
    let placed = |points: &Points| points.iter().map(|&(t, y)| (t, place(y))).collect::<Points>();
    for ((name, points), colour) in panel.curves.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(placed(points), colour.stroke_width(2)))?
            .label(name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.draw_series(placed(&panel.marks).into_iter().map(|at| Circle::new(at, 4, COLOURS[0].filled())))?;
    // One legend is enough for all panels; the betas leave room for it.
    if panel.name == BETAS && panel.curves.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font(("sans-serif", 15))
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    Ok(())
}
