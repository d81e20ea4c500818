//! Error against calls of the network, on a mixture whose denoiser is exact.

use std::error::Error;

use ndarray::Array4;
use plotters::prelude::*;
use tweedie_denoiser::MixtureOracle;
use tweedie_samplers::{Clip, Compat, DpmForm, DpmMultistep, DpmOptions, Solver, SolverSpec, solver_by_name};
use tweedie_schedule::Schedule;

use crate::common::{From, Silence, coupled, draws, flow, median_distance, plane, run, uniform_grid, uniform_schedule};

/// Numbers of moves; divisors of the finest one.
const MOVES: [usize; 13] = [6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384];
const FINEST: usize = 3072;
const POINTS: usize = 200;
const SIZE: (u32, u32) = (1120, 700);

/// A sampler's line.
struct Line {
    label: &'static str,
    colour: RGBColor,
    stochastic: bool,
    /// Calls of the network and the error.
    points: Vec<(f64, f64)>,
}

/// What the errors are measured on.
struct Problem {
    oracle: MixtureOracle,
    schedule: Schedule,
    start: Array4<f64>,
    exact: Array4<f64>,
    exact_path: Array4<f64>,
}

impl Problem {
    fn new() -> Self {
        let (oracle, schedule) = (plane(), uniform_schedule(0.02, 80.0, FINEST + 1));
        let (top, bottom) = (schedule.level(FINEST + 1), schedule.level(1));
        let start = draws(&oracle, top, POINTS, 7);
        let exact = flow(&oracle, &start, top, bottom, 3000);
        let noise = coupled(&schedule, start.clone(), FINEST, FINEST);
        let grid = uniform_grid(&schedule, FINEST);
        let mut solver = DpmMultistep::new(DpmOptions::sde(DpmForm::Second), Clip::None);
        let exact_path = run(&oracle, &grid, &schedule, &mut solver, &noise, [POINTS, 2, 1, 1]);
        Self { oracle, schedule, start, exact, exact_path }
    }

    /// The median distance to the flow, or under the same noise to the path of the SDE.
    fn error(&self, solver: &mut dyn Solver, stochastic: bool, moves: usize) -> f64 {
        let grid = uniform_grid(&self.schedule, moves);
        let shape = [POINTS, 2, 1, 1];
        if stochastic {
            let noise = coupled(&self.schedule, self.start.clone(), moves, FINEST);
            median_distance(&run(&self.oracle, &grid, &self.schedule, solver, &noise, shape), &self.exact_path)
        } else {
            let noise = From { start: self.start.clone(), steps: Silence };
            median_distance(&run(&self.oracle, &grid, &self.schedule, solver, &noise, shape), &self.exact)
        }
    }
}

fn lines() -> Result<Vec<Line>, Box<dyn Error>> {
    let problem = Problem::new();
    let multistep = |form| SolverSpec::Dpm(DpmOptions::plus_plus(form));
    let samplers = [
        ("ddpm, euler-ancestral, ddim with eta 1", SolverSpec::ddpm(), RGBColor(150, 150, 150), true, 1.0),
        ("dpm++2m-sde", SolverSpec::Dpm(DpmOptions::sde(DpmForm::Second)), RGBColor(148, 103, 189), true, 1.0),
        ("ddim, euler", SolverSpec::ddim(), RGBColor(196, 78, 82), false, 1.0),
        ("heun", SolverSpec::heun(), RGBColor(221, 132, 42), false, 2.0),
        ("kdpm2", SolverSpec::Kdpm2, RGBColor(205, 170, 60), false, 2.0),
        ("lms", SolverSpec::lms(), RGBColor(120, 100, 80), false, 1.0),
        ("unipc", solver_by_name("unipc")?, RGBColor(214, 39, 160), false, 1.0),
        ("dpm++2m", multistep(DpmForm::Second), RGBColor(46, 139, 87), false, 1.0),
        ("dpm++3m", multistep(DpmForm::Third), RGBColor(100, 160, 220), false, 1.0),
        ("dpm++3m-exact", multistep(DpmForm::ThirdExact), RGBColor(30, 70, 150), false, 1.0),
    ];
    let mut lines = Vec::new();
    for (label, spec, colour, stochastic, calls) in samplers {
        let mut solver = spec.build(Clip::None, Compat::Published)?;
        let point = |&moves: &usize| (calls * moves as f64, problem.error(&mut *solver, stochastic, moves));
        lines.push(Line { label, colour, stochastic, points: MOVES.iter().map(point).collect() });
    }
    Ok(lines)
}

/// The picture.
pub fn figure() -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    draw(&mut svg, &lines()?)?;
    Ok(svg)
}

fn draw(svg: &mut String, lines: &[Line]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = (5.5_f64.log2(), 820.0_f64.log2());
    let mut chart = ChartBuilder::on(&root)
        .caption("Error against calls of the network, on a mixture of three Gaussians", ("sans-serif", 24))
        .margin(18)
        .margin_right(30)
        .x_label_area_size(52)
        .y_label_area_size(80)
        .build_cartesian_2d(left..right, -6.6..0.15_f64)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(8)
        .y_labels(8)
        .x_label_formatter(&|x| if x.fract().abs() < 1e-9 { format!("{}", x.exp2()) } else { String::new() })
        .y_label_formatter(&|y| if y.fract().abs() < 1e-9 { format!("1e{y}") } else { String::new() })
        .label_style(("sans-serif", 17))
        .axis_desc_style(("sans-serif", 19))
        .x_desc("calls of the network for one sample")
        .y_desc("distance to the exact result, median")
        .draw()?;
    // What an order looks like.
    for (order, from, length, label) in [
        (1.0, (7.2, -2.3), 1.3, (0.06, 0.07)),
        (2.0, (7.2, -3.95), 1.1, (0.06, 0.07)),
        (3.0, (6.3, -4.45), 1.1, (-0.62, 0.0)),
    ] {
        let to = (from.0 + length, from.1 - order * length * 2.0_f64.log10());
        chart.draw_series(DashedLineSeries::new([from, to], 3, 5, BLACK.mix(0.45).stroke_width(1)))?;
        let style = ("sans-serif", 16).into_font().color(&BLACK.mix(0.6));
        chart.draw_series([Text::new(format!("order {order}"), (to.0 + label.0, to.1 + label.1), style)])?;
    }
    for Line { label, colour, stochastic, points } in lines {
        let places: Vec<(f64, f64)> = points.iter().map(|&(calls, error)| (calls.log2(), error.log10())).collect();
        let (style, stochastic) = (colour.stroke_width(3), *stochastic);
        let drawn = if stochastic {
            chart.draw_series(DashedLineSeries::new(places.iter().copied(), 9, 6, style))?
        } else {
            chart.draw_series(LineSeries::new(places.iter().copied(), style))?
        };
        let label = if stochastic { format!("{label} (same noise)") } else { (*label).to_owned() };
        drawn.label(label).legend(move |(x, y)| {
            let gap = if stochastic { 4 } else { 0 };
            EmptyElement::at((x, y))
                + PathElement::new([(0, 0), (13 - gap, 0)], style)
                + PathElement::new([(13 + gap, 0), (26, 0)], style)
        });
        chart.draw_series(places.iter().map(|&place| Circle::new(place, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font(("sans-serif", 17))
        .legend_area_size(36)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
