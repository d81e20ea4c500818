//! Paths of the forward process, of the probability flow and of ancestral sampling, on a mixture in the plane.

use std::error::Error;
use std::ops::ControlFlow;

use ndarray::Array4;
use plotters::coord::Shift;
use plotters::prelude::*;
use tweedie_denoiser::{Component, Condition, MixtureOracle, Noise, Purpose, SeededNoise};
use tweedie_samplers::{Ddim, Ddpm, Solver, sample};
use tweedie_schedule::forward::q_step;
use tweedie_schedule::{BetaSchedule, LevelGrid, NoiseLevel, Schedule, Spacing, StepGrid};

use crate::common::draws;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (1500, 1040);
/// Steps of the process.
const STEPS: usize = 200;
/// Paths that are drawn over time.
const PATHS: usize = 9;
/// Random paths that are drawn in the plane, where they cross; of smooth ones all are.
const RANDOM_PATHS: usize = 4;
/// Points whose ends are shown.
const POINTS: usize = 400;
/// Half the side of the square that is shown.
const REACH: f64 = 3.4;
/// Levels of the shading.
const SHADES: usize = 8;
const MEANS: [[f64; 2]; 3] = [[-1.9, 0.8], [1.5, 1.7], [0.7, -1.9]];
const COLOURS: [RGBColor; 3] = [RGBColor(31, 105, 170), RGBColor(205, 96, 25), RGBColor(40, 130, 80)];
const SHADE: (f64, f64, f64) = (120.0, 130.0, 165.0);

fn mixture() -> Result<MixtureOracle, Box<dyn Error>> {
    let covariances = [[0.16, 0.10, 0.14], [0.20, -0.09, 0.10], [0.09, 0.04, 0.20]];
    let part = |(mean, [a, b, c]): ([f64; 2], [f64; 3])| {
        Component::new(1.0, mean.to_vec(), vec![vec![a, b], vec![b, c]], None)
    };
    Ok(MixtureOracle::new([2, 1, 1], MEANS.into_iter().zip(covariances).map(part).collect())?)
}

/// States of all points in the order of time.
struct Paths {
    title: &'static str,
    /// The 1-based step, or 0, of each state.
    steps: Vec<usize>,
    states: Vec<Array4<f64>>,
    /// Which of the states is data: the first or the last.
    data: usize,
    /// How many paths the plane shows.
    in_plane: usize,
}

impl Paths {
    /// `x_t = sqrt(1 - b_t) x_{t-1} + sqrt(b_t) z` from exact draws of the data.
    fn forward(oracle: &MixtureOracle, schedule: &Schedule) -> Result<Self, Box<dyn Error>> {
        let noise = SeededNoise::new(8);
        let mut states = vec![draws(oracle, NoiseLevel::CLEAN, POINTS, 12)];
        for t in 1..=STEPS {
            let (transition, mut x) = (q_step(schedule, t), states[t - 1].clone());
            for (i, mut point) in x.outer_iter_mut().enumerate() {
                let mut z = [0.0; 2];
                noise.fill(Purpose::Step(t), i, &mut z)?;
                point.iter_mut().zip(z).for_each(|(x, z)| *x = transition.apply(*x, z));
            }
            states.push(x);
        }
        Ok(Self {
            title: "forward: noise is added",
            steps: (0..=STEPS).collect(),
            states,
            data: 0,
            in_plane: RANDOM_PATHS,
        })
    }

    /// The states of a sampler, from noise to data.
    fn reverse(
        title: &'static str,
        oracle: &MixtureOracle,
        schedule: &Schedule,
        solver: &mut dyn Solver,
        in_plane: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let noise = SeededNoise::new(3);
        let grid = StepGrid::new(STEPS, STEPS, Spacing::Trailing, 0)?;
        let mut first = Array4::zeros((POINTS, 2, 1, 1));
        for (i, mut point) in first.outer_iter_mut().enumerate() {
            let mut z = [0.0; 2];
            noise.fill(Purpose::Initial, i, &mut z)?;
            point.iter_mut().zip(z).for_each(|(x, z)| *x = z);
        }
        let mut states = vec![first];
        sample(oracle, &LevelGrid::of_steps(&grid, schedule)?, solver, &noise, [POINTS, 2, 1, 1], &mut |info| {
            states.push(info.x.to_owned());
            ControlFlow::Continue(())
        })?;
        Ok(Self { title, steps: (0..=STEPS).rev().collect(), states, data: STEPS, in_plane })
    }

    /// One coordinate of a point at a position.
    fn at(&self, position: usize, point: usize, coordinate: usize) -> f64 {
        self.states[position][[point, coordinate, 0, 0]]
    }

    /// The colour of a point: that of the nearest mean to where it is data.
    fn colour(&self, point: usize) -> RGBColor {
        let distance = |mean: [f64; 2]| (0..2).map(|i| (self.at(self.data, point, i) - mean[i]).powi(2)).sum::<f64>();
        let nearest = (0..3).min_by(|&a, &b| distance(MEANS[a]).total_cmp(&distance(MEANS[b])));
        COLOURS[nearest.unwrap_or_default()]
    }
}

/// The picture.
pub fn figure() -> Result<String, Box<dyn Error>> {
    let (oracle, schedule) = (mixture()?, Schedule::new(&BetaSchedule::Linear { start: 5e-4, end: 0.06 }, STEPS)?);
    let all = [
        Paths::forward(&oracle, &schedule)?,
        Paths::reverse("reverse: the ODE (ddim)", &oracle, &schedule, &mut Ddim::default(), PATHS)?,
        Paths::reverse("reverse: the SDE (ddpm)", &oracle, &schedule, &mut Ddpm::default(), RANDOM_PATHS)?,
    ];
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (above, below) = root.margin(8, 8, 8, 8).split_vertically(570);
        for ((paths, plane), strip) in all.iter().zip(above.split_evenly((1, 3))).zip(below.split_evenly((1, 3))) {
            draw_plane(&plane, paths, &oracle)?;
            draw_strip(&strip, paths, &oracle, &schedule)?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// Rectangles of one shade, from columns of densities: runs of equal shade are one rectangle.
fn shading(columns: &[Vec<f64>], across: impl Fn(usize) -> f64) -> Vec<Rectangle<(f64, f64)>> {
    let highest = |column: &Vec<f64>| column.iter().copied().fold(0.0, f64::max);
    let all = columns.iter().map(highest).fold(0.0, f64::max);
    let mut rectangles = Vec::new();
    for (c, column) in columns.iter().enumerate() {
        // The square root shows what is faint.
        let shade = |density: f64| ((density / all).sqrt() * SHADES as f64).round() as usize;
        let up = |r: usize| -REACH + 2.0 * REACH * r as f64 / column.len() as f64;
        let mut from = 0;
        for to in 1..=column.len() {
            if to < column.len() && shade(column[to]) == shade(column[from]) {
                continue;
            }
            let strength = 0.75 * shade(column[from]) as f64 / SHADES as f64;
            if strength > 0.0 {
                let mix = |c: f64| (255.0 - strength * (255.0 - c)).round() as u8;
                let colour = RGBColor(mix(SHADE.0), mix(SHADE.1), mix(SHADE.2));
                rectangles.push(Rectangle::new([(across(c), up(from)), (across(c + 1), up(to))], colour.filled()));
            }
            from = to;
        }
    }
    rectangles
}

fn draw_plane(area: &Area<'_>, paths: &Paths, oracle: &MixtureOracle) -> Result<(), Box<dyn Error>> {
    const CELLS: usize = 60;
    let mut chart = ChartBuilder::on(area)
        .caption(paths.title, ("sans-serif", 26))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(34)
        .build_cartesian_2d(-REACH..REACH, -REACH..REACH)?;
    chart.configure_mesh().disable_mesh().x_labels(5).y_labels(5).label_style(("sans-serif", 15)).draw()?;

    let middle = |i: usize| -REACH + 2.0 * REACH * (i as f64 + 0.5) / CELLS as f64;
    let cells = Array4::from_shape_fn((CELLS * CELLS, 2, 1, 1), |(k, i, _, _)| {
        middle(if i == 0 { k / CELLS } else { k % CELLS })
    });
    let density = oracle.log_density(cells.view(), NoiseLevel::CLEAN, &Condition::none(CELLS * CELLS))?;
    let columns: Vec<Vec<f64>> = density.chunks(CELLS).map(|c| c.iter().map(|d| d.exp()).collect()).collect();
    chart.draw_series(shading(&columns, |c| -REACH + 2.0 * REACH * c as f64 / CELLS as f64))?;

    let end = paths.states.len() - 1;
    let dot = |point: usize| {
        let place = (paths.at(end, point, 0), paths.at(end, point, 1));
        Circle::new(place, 2, paths.colour(point).mix(0.4).filled())
    };
    chart.draw_series((PATHS..POINTS).map(dot))?;
    for point in 0..paths.in_plane {
        let colour = paths.colour(point);
        let line = (0..=end).map(|k| (paths.at(k, point, 0), paths.at(k, point, 1)));
        chart.draw_series(LineSeries::new(line, colour.mix(0.75).stroke_width(2)))?;
        let place = |k: usize| (paths.at(k, point, 0), paths.at(k, point, 1));
        chart.draw_series([
            Circle::new(place(0), 6, WHITE.filled()),
            Circle::new(place(0), 6, colour.stroke_width(2)),
        ])?;
        chart.draw_series([Circle::new(place(end), 6, colour.filled())])?;
    }
    Ok(())
}

fn draw_strip(
    area: &Area<'_>,
    paths: &Paths,
    oracle: &MixtureOracle,
    schedule: &Schedule,
) -> Result<(), Box<dyn Error>> {
    const COLUMNS: usize = 60;
    const ROWS: usize = 60;
    let end = paths.states.len() - 1;
    let steps = &paths.steps;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(50)
        .y_label_area_size(34)
        .build_cartesian_2d(0.0..end as f64, -REACH..REACH)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|x| steps.get(x.round() as usize).map(ToString::to_string).unwrap_or_default())
        .x_desc("step t; above, the first coordinate and its exact density")
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 17))
        .draw()?;

    // The first coordinate of a mixture is a mixture of the first coordinates.
    let columns: Vec<Vec<f64>> = (0..COLUMNS)
        .map(|c| {
            let position = (c as f64 + 0.5) / COLUMNS as f64 * end as f64;
            let noised = oracle.noised(schedule.level(steps[position.round() as usize]));
            let density = |x: f64| -> f64 {
                let parts = noised.components().iter();
                parts
                    .map(|part| {
                        let (mean, variance) = (part.mean()[0], part.covariance()[[0, 0]]);
                        part.weight() * (-0.5 * (x - mean).powi(2) / variance).exp() / variance.sqrt()
                    })
                    .sum()
            };
            (0..ROWS).map(|r| density(-REACH + 2.0 * REACH * (r as f64 + 0.5) / ROWS as f64)).collect()
        })
        .collect();
    chart.draw_series(shading(&columns, |c| c as f64 / COLUMNS as f64 * end as f64))?;
    for point in 0..PATHS {
        let colour = paths.colour(point);
        let line = (0..=end).map(|k| (k as f64, paths.at(k, point, 0)));
        chart.draw_series(LineSeries::new(line, colour.mix(0.8).stroke_width(2)))?;
    }
    Ok(())
}
