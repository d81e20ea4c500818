//! PNDM, PLMS, the singlestep DPM-Solver and consistency sampling against their formulas, on denoisers whose answers are known.

mod common;

use std::ops::ControlFlow;
use std::sync::Mutex;

use common::Silence;
use ndarray::{Array4, ArrayView4};
use tweedie_denoiser::{Denoiser, DenoiserError, Noise, Purpose, SeededNoise};
use tweedie_samplers::{
    Clip, Compat, Consistency, ConsistencyForm, DpmSinglestep, GroupSize, LastMove, Pndm, PndmLevels, PndmStart,
    SamplerError, SinglestepOptions, Solver, sample,
};
use tweedie_schedule::{LevelGrid, NoiseLevel, Prediction};

const SHAPE: [usize; 4] = [1, 1, 1, 2];
/// `s = sigma / alpha` of the levels that the runs visit.
const VISITED: [f64; 6] = [9.0, 6.0, 4.0, 2.5, 1.0, 0.4];
/// Where they end.
const END: f64 = 0.1;

/// The first state, and no other noise.
struct Start([f64; 2]);

impl Noise for Start {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        if purpose != Purpose::Initial {
            return Silence.fill(purpose, sample, out);
        }
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

/// A denoiser whose estimate of `eps` is a function of `s` alone, and which notes every `s` that it is asked at.
struct Slopes<F> {
    eps: F,
    asked: Mutex<Vec<f64>>,
}

impl<F: Fn(f64) -> f64> Denoiser for Slopes<F> {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        self.asked.lock().unwrap().push(level.edm_sigma());
        let eps = (self.eps)(level.edm_sigma());
        Ok(x.mapv(|x| (x - level.sigma() * eps) / level.alpha()))
    }
}

fn level(s: f64) -> NoiseLevel {
    NoiseLevel::from_edm_sigma(s).unwrap()
}

fn grid(visited: &[f64]) -> LevelGrid {
    let visited: Vec<_> = visited.iter().zip(1..).map(|(&s, k)| (level(s), 100.0 / f64::from(k))).collect();
    LevelGrid::through(&visited, level(END)).unwrap()
}

/// The states `x / alpha` of a run, the first one first, and where the denoiser was asked.
fn states(solver: &mut dyn Solver, visited: &[f64], eps: impl Fn(f64) -> f64) -> (Vec<f64>, Vec<f64>) {
    let grid = grid(visited);
    let denoiser = Slopes { eps, asked: Mutex::default() };
    let start = [0.7, -0.2];
    let mut states = vec![start[0] / grid.moves()[0].from.alpha()];
    sample(&denoiser, &grid, solver, &Start(start), SHAPE, &mut |info| {
        states.push(info.x[[0, 0, 0, 0]] / grid.moves()[info.position].to.alpha());
        ControlFlow::Continue(())
    })
    .unwrap();
    (states, denoiser.asked.into_inner().unwrap())
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (position, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() < 1e-12 * e.abs().max(1.0), "{what}: {f} instead of {e} at {position}");
    }
}

/// `y' = y + (s' - s) e`, where the mean slope `e` is that of the formula of each move; runs of one to six moves.
#[test]
fn pndm_by_hand() {
    let eps = |s: f64| (0.3 * s).sin() + 0.1 * s;
    for count in 1..=VISITED.len() {
        let visited = &VISITED[VISITED.len() - count..];
        let ends: Vec<f64> = visited.iter().copied().chain([END]).collect();
        let e: Vec<f64> = visited.iter().map(|&s| eps(s)).collect();
        let middle = |k: usize| (ends[k] * ends[k + 1]).sqrt();
        for start in [PndmStart::Multistep, PndmStart::RungeKutta] {
            let mut y = 0.7 / level(visited[0]).alpha();
            let (mut expected, mut asked) = (vec![y], Vec::new());
            for k in 0..count {
                asked.push(visited[k]);
                let last = k + 1 == count;
                let slope = if start == PndmStart::Multistep && k == 0 && !last {
                    asked.push(ends[1]);
                    (e[0] + eps(ends[1])) / 2.0
                } else if start == PndmStart::RungeKutta && k < 3 && !last {
                    asked.extend([middle(k), middle(k), ends[k + 1]]);
                    (e[k] + 4.0 * eps(middle(k)) + eps(ends[k + 1])) / 6.0
                } else {
                    match k {
                        0 => e[0],
                        1 => (3.0 * e[1] - e[0]) / 2.0,
                        2 => (23.0 * e[2] - 16.0 * e[1] + 5.0 * e[0]) / 12.0,
                        k => (55.0 * e[k] - 59.0 * e[k - 1] + 37.0 * e[k - 2] - 9.0 * e[k - 3]) / 24.0,
                    }
                };
                y += (ends[k + 1] - ends[k]) * slope;
                expected.push(y);
            }
            let mut solver = Pndm::new(start, Prediction::Eps);
            // A run leaves nothing behind for the next one.
            for _ in 0..2 {
                let found = states(&mut solver, visited, eps);
                assert_close(&found.0, &expected, &format!("{start:?}, {count} moves"));
                assert_close(&found.1, &asked, &format!("{start:?}, {count} moves, asked"));
            }
        }
    }
}

/// Levels that are given take the place of the solver's own.
#[test]
fn pndm_takes_given_levels() {
    let eps = |s: f64| 0.2 * s * s;
    let (led, asked, end) = (7.0, 7.5, 6.0);
    let levels = PndmLevels { middles: vec![(level(led), level(asked))], first: None };
    let mut solver = Pndm::new(PndmStart::RungeKutta, Prediction::Eps).with_levels(levels);
    let (found, at) = states(&mut solver, &VISITED, eps);
    let y = 0.7 / level(9.0).alpha();
    assert_close(&at[..4], &[9.0, asked, asked, end], "asked");
    assert_close(&found[1..2], &[y + (end - 9.0) * (eps(9.0) + 4.0 * eps(asked) + eps(end)) / 6.0], "Runge-Kutta");
    // The state is taken from the second level, as if it had been there.
    let first = Some((level(5.0), level(8.0)));
    let levels = PndmLevels { middles: Vec::new(), first };
    let mut solver = Pndm::new(PndmStart::Multistep, Prediction::Eps).with_levels(levels);
    let (found, at) = states(&mut solver, &VISITED, eps);
    assert_close(&at[..2], &[9.0, end], "asked");
    let y = 0.7 / level(8.0).alpha();
    assert_close(&found[1..2], &[y + (end - 8.0) * (eps(9.0) + eps(end)) / 2.0], "PLMS");
}

/// A denoiser whose estimate of `x_0` is a function of `lambda` alone.
struct Data;

fn data(lambda: f64) -> f64 {
    (0.7 * lambda).cos() + 0.2 * lambda
}

impl Denoiser for Data {
    fn denoise(&self, x: ArrayView4<'_, f64>, level: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(Array4::from_elem(x.dim(), data(-level.edm_sigma().ln())))
    }
}

/// Each move from the first state of its group, over the whole way so far: four moves in groups of two, of which the last would
/// end a group and is of order 1, and five in groups of three.
#[test]
fn singlestep_moves_by_hand() {
    for (group, moves, orders) in [(GroupSize::Two, 4, [1, 2, 1, 1, 0]), (GroupSize::Three, 5, [1, 2, 3, 1, 2])] {
        let visited = &VISITED[..moves];
        let grid = grid(visited);
        let ends: Vec<f64> = visited.iter().copied().chain([END]).collect();
        let lambda = |k: usize| -ends[k].ln();
        let mut x = vec![0.7];
        for (k, order) in orders.into_iter().enumerate().take(moves) {
            let first = k + 1 - order;
            let (h, e) = (lambda(k + 1) - lambda(first), 1.0 - ends[k + 1] / ends[first]);
            let m = |k: usize| data(lambda(k));
            let slope = |k: usize| (m(k) - m(first)) / ((lambda(k) - lambda(first)) / h);
            let bracket = match order {
                1 => e * m(k),
                2 => e * m(first) + 0.5 * e * slope(k),
                _ => e * m(first) + (1.0 - e / h) * slope(k),
            };
            let (from, to) = (level(ends[first]), level(ends[k + 1]));
            x.push(to.sigma() / from.sigma() * x[first] + to.alpha() * bracket);
        }
        let options = SinglestepOptions { last: LastMove::First, ..SinglestepOptions::plus_plus(group) };
        let mut solver = DpmSinglestep::new(options, Clip::None, Compat::Published);
        for _ in 0..2 {
            let mut found = vec![0.7];
            sample(&Data, &grid, &mut solver, &Start([0.7, -0.2]), SHAPE, &mut |info| {
                found.push(info.x[[0, 0, 0, 0]]);
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_close(&found, &x, &format!("{group:?}"));
        }
    }
}

/// A denoiser with one answer.
struct Constant(f64);

impl Denoiser for Constant {
    fn denoise(&self, x: ArrayView4<'_, f64>, _: NoiseLevel) -> Result<Array4<f64>, DenoiserError> {
        Ok(Array4::from_elem(x.dim(), self.0))
    }
}

/// The states of a run under the noise of a seed, and the noise of its moves.
fn noisy(form: ConsistencyForm, clip: Clip, grid: &LevelGrid) -> Result<Vec<f64>, SamplerError> {
    let mut states = Vec::new();
    let mut solver = Consistency { form, clip };
    let result = sample(&Constant(1.5), grid, &mut solver, &SeededNoise::new(6), SHAPE, &mut |info| {
        states.push(info.x[[0, 0, 0, 0]]);
        ControlFlow::Continue(())
    });
    result.map(|_| states)
}

fn draw(purpose: Purpose) -> f64 {
    let mut z = [0.0; 2];
    SeededNoise::new(6).fill(purpose, 0, &mut z).unwrap();
    z[0]
}

/// Noise after each move but the last, to the level that it leads to: above `s_min` for a consistency model, and in full for a
/// latent one, whose function is a mean of the state and the estimate.
#[test]
fn consistency_moves_by_hand() {
    let visited: Vec<_> = [(3.0, 8.0), (1.0, 4.0), (0.5, 1.5)].map(|(s, t)| (level(s), t)).to_vec();
    let grid = LevelGrid::through(&visited, NoiseLevel::CLEAN).unwrap();
    let (z0, z1) = (draw(Purpose::Step(0)), draw(Purpose::Step(1)));
    let at = |s: f64, f: f64, noise: f64, z: f64| level(s).alpha() * (f + noise * z);
    let plain = ConsistencyForm::Plain { sigma_min: 0.3, noise: 1.1 };
    let found = noisy(plain, Clip::None, &grid).unwrap();
    let noise = |s: f64| 1.1 * (s * s - 0.09_f64).sqrt();
    assert_close(&found, &[at(1.0, 1.5, noise(1.0), z0), at(0.5, 1.5, noise(0.5), z1), 1.5], "plain");
    let clipped = noisy(plain, Clip::Range(0.75), &grid).unwrap();
    assert_close(&clipped, &[at(1.0, 0.75, noise(1.0), z0), at(0.5, 0.75, noise(0.5), z1), 0.75], "clipped");

    let latent = ConsistencyForm::Latent { scaling: 0.1, original_steps: 50 };
    let found = noisy(latent, Clip::None, &grid).unwrap();
    let function = |x: f64, t: f64| {
        let u = 0.1 * (t - 1.0);
        0.25 / (u * u + 0.25) * x + u / (u * u + 0.25_f64).sqrt() * 1.5
    };
    let first = at(1.0, function(draw(Purpose::Initial), 8.0), 1.0, z0);
    let second = at(0.5, function(first, 4.0), 0.5, z1);
    assert_close(&found, &[first, second, function(second, 1.5)], "latent");
}
