use super::*;
use crate::testing::{self, ACTS, added, assert_close, assert_same_bits_for_any_pool, dot, gradient, numbers, wide};

fn dims(n: usize, hw: usize, c: usize, groups: usize) -> GroupNormDims {
    GroupNormDims { n, hw, c, groups, eps: 1e-5 }
}

/// Gamma, beta, scale, shift in f64; the last two may be empty.
struct Wide {
    gamma: Vec<f64>,
    beta: Vec<f64>,
    scale: Vec<f64>,
    shift: Vec<f64>,
}

/// Wu and He 2018, element by element.
fn reference(d: &GroupNormDims, x: &[f64], p: &Wide, act: Act) -> Vec<f64> {
    let (width, mut y) = (d.c / d.groups, vec![0f64; d.len()]);
    for n in 0..d.n {
        for group in 0..d.groups {
            let members: Vec<usize> = (0..d.hw)
                .flat_map(|position| (0..width).map(move |k| (position, k)))
                .map(|(position, k)| (n * d.hw + position) * d.c + group * width + k)
                .collect();
            let count = members.len() as f64;
            let mean = members.iter().map(|i| x[*i]).sum::<f64>() / count;
            let variance = members.iter().map(|i| (x[*i] - mean).powi(2)).sum::<f64>() / count;
            for i in members {
                let k = i % d.c;
                let mut z = (x[i] - mean) / (variance + f64::from(d.eps)).sqrt() * p.gamma[k] + p.beta[k];
                if !p.scale.is_empty() {
                    z = z * (1.0 + p.scale[n * d.c + k]) + p.shift[n * d.c + k];
                }
                y[i] = testing::act(act, z);
            }
        }
    }
    y
}

struct Case {
    d: GroupNormDims,
    act: Act,
    x: Vec<f32>,
    dy: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    scale_shift: Option<(Vec<f32>, Vec<f32>)>,
}

impl Case {
    fn new(d: GroupNormDims, act: Act, adaptive: bool) -> Self {
        Self {
            d,
            act,
            x: numbers(d.len(), 1),
            dy: numbers(d.len(), 2),
            gamma: numbers(d.c, 3),
            beta: numbers(d.c, 4),
            scale_shift: adaptive.then(|| (numbers(d.n * d.c, 5), numbers(d.n * d.c, 6))),
        }
    }

    fn affine(&self) -> Affine<'_> {
        let scale_shift = self.scale_shift.as_ref().map(|(a, b)| (a.as_slice(), b.as_slice()));
        Affine { gamma: &self.gamma, beta: &self.beta, scale_shift }
    }

    fn wide(&self) -> Wide {
        let (scale, shift) = self.scale_shift.as_ref().map_or((vec![], vec![]), |(a, b)| (wide(a), wide(b)));
        Wide { gamma: wide(&self.gamma), beta: wide(&self.beta), scale, shift }
    }

    fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut y, mut stats) = (vec![f32::NAN; self.d.len()], vec![f32::NAN; self.d.stats_len()]);
        forward(&self.d, &self.x, &self.affine(), self.act, &mut y, &mut stats);
        (y, stats)
    }

    /// dx, dgamma, dbeta, dscale, dshift, added to [`Case::before`].
    fn backward(&self, stats: &[f32]) -> [Vec<f32>; 5] {
        let [mut dx, mut dgamma, mut dbeta, mut dscale, mut dshift] = self.before();
        let extra = self.scale_shift.is_some().then_some((&mut dscale[..], &mut dshift[..]));
        let (d, x, affine, act) = (&self.d, &self.x, &self.affine(), self.act);
        backward(d, x, affine, act, stats, &self.dy, &mut dx, &mut dgamma, &mut dbeta, extra);
        [dx, dgamma, dbeta, dscale, dshift]
    }

    fn before(&self) -> [Vec<f32>; 5] {
        let (c, nc) = (self.d.c, self.d.n * self.d.c);
        [numbers(self.d.len(), 7), numbers(c, 8), numbers(c, 9), numbers(nc, 10), numbers(nc, 11)]
    }
}

#[test]
fn forward_agrees_with_the_reference() {
    let shapes = [
        dims(0, 4, 8, 2),
        dims(2, 0, 8, 2),
        dims(1, 1, 2, 1),
        dims(2, 9, 6, 3),
        dims(3, 49, 40, 8),
        dims(1, 1025, 32, 32),
        dims(2, 700, 67, 1),
        dims(9, 256, 128, 32),
        dims(1, 300, 96, 4),
    ];
    for d in shapes {
        for act in ACTS {
            for adaptive in [false, true] {
                let case = Case::new(d, act, adaptive);
                let exact = reference(&d, &wide(&case.x), &case.wide(), act);
                assert_close(&format!("{d:?} {act:?} {adaptive}"), &case.forward().0, &exact, 2e-6);
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for d in [dims(1, 1, 10, 2), dims(2, 5, 6, 3), dims(1, 7, 17, 1), dims(9, 3, 4, 2), dims(2, 0, 4, 2)] {
        for act in ACTS {
            for adaptive in [false, true] {
                let case = Case::new(d, act, adaptive);
                let found = case.backward(&case.forward().1);
                let before = case.before();
                let what = |name: &str| format!("{name} {d:?} {act:?} {adaptive}");
                let loss = |x: &[f64], p: &Wide| dot(&reference(&d, x, p, act), &case.dy);
                let x = wide(&case.x);
                let dx = gradient(&case.x, |x| loss(x, &case.wide()));
                assert_close(&what("dx"), &found[0], &added(&before[0], &dx), 3e-6);
                let dgamma = gradient(&case.gamma, |gamma| loss(&x, &Wide { gamma: gamma.to_vec(), ..case.wide() }));
                assert_close(&what("dgamma"), &found[1], &added(&before[1], &dgamma), 3e-6);
                let dbeta = gradient(&case.beta, |beta| loss(&x, &Wide { beta: beta.to_vec(), ..case.wide() }));
                assert_close(&what("dbeta"), &found[2], &added(&before[2], &dbeta), 3e-6);
                if let Some((scale, shift)) = &case.scale_shift {
                    let dscale = gradient(scale, |scale| loss(&x, &Wide { scale: scale.to_vec(), ..case.wide() }));
                    assert_close(&what("dscale"), &found[3], &added(&before[3], &dscale), 3e-6);
                    let dshift = gradient(shift, |shift| loss(&x, &Wide { shift: shift.to_vec(), ..case.wide() }));
                    assert_close(&what("dshift"), &found[4], &added(&before[4], &dshift), 3e-6);
                }
            }
        }
    }
}

#[test]
fn a_directional_derivative_over_several_chunks_agrees() {
    // Three chunks of rows in each sample, the last one short.
    let d = dims(2, 600, 64, 4);
    assert!(d.hw > 2 * chunk_rows(d.c) && !d.hw.is_multiple_of(chunk_rows(d.c)));
    let case = Case::new(d, Act::Silu, true);
    let (found, before) = (case.backward(&case.forward().1), case.before());
    let direction = numbers(d.len(), 20);
    let at = |h: f64| {
        let x: Vec<f64> = case.x.iter().zip(&direction).map(|(x, u)| f64::from(*x) + h * f64::from(*u)).collect();
        dot(&reference(&d, &x, &case.wide(), case.act), &case.dy)
    };
    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
    let projected: f64 = (0..d.len()).map(|i| f64::from(found[0][i] - before[0][i]) * f64::from(direction[i])).sum();
    assert!((slope - projected).abs() < 2e-3, "{projected}, by differences {slope}");
}

#[test]
fn a_large_mean_does_not_spoil_the_result() {
    let d = dims(2, 400, 64, 8);
    let mut case = Case::new(d, Act::None, false);
    case.x.iter_mut().for_each(|x| *x += 4096.0);
    let exact = reference(&d, &wide(&case.x), &case.wide(), case.act);
    // The mean is stored in f32, whose spacing here is 5e-4.
    assert_close("mean 4096", &case.forward().0, &exact, 3e-4);
    let stats = case.forward().1;
    for (group, stats) in stats.chunks_exact(2).enumerate() {
        let (n, first) = (group / 8, group % 8 * 8);
        let members: Vec<f64> =
            (0..d.hw * 8).map(|i| f64::from(case.x[(n * d.hw + i / 8) * d.c + first + i % 8])).collect();
        let mean = members.iter().sum::<f64>() / members.len() as f64;
        let variance = members.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / members.len() as f64;
        let rstd = 1.0 / (variance + 1e-5).sqrt();
        assert!((f64::from(stats[1]) - rstd).abs() < 1e-6 * rstd, "{}, exactly {rstd}", stats[1]);
    }
}

#[test]
fn a_sample_does_not_depend_on_its_neighbours() {
    // Nine samples take the path of one task per sample, one sample that of one task per chunk.
    let d = dims(9, 600, 64, 4);
    let case = Case::new(d, Act::Silu, true);
    let (y, stats) = case.forward();
    let dx = &case.backward(&stats)[0];
    let len = d.hw * d.c;
    for n in [0, 8] {
        let (all, channels) = (n * len..(n + 1) * len, n * d.c..(n + 1) * d.c);
        let one = GroupNormDims { n: 1, ..d };
        let (scale, shift) = case.scale_shift.as_ref().expect("adaptive");
        let affine = Affine { scale_shift: Some((&scale[channels.clone()], &shift[channels])), ..case.affine() };
        let (mut y_one, mut stats_one) = (vec![0.0; len], vec![0.0; one.stats_len()]);
        forward(&one, &case.x[all.clone()], &affine, case.act, &mut y_one, &mut stats_one);
        assert!(y_one == y[all.clone()], "sample {n}");
        let mut dx_one = case.before()[0][all.clone()].to_vec();
        let (x, dy) = (&case.x[all.clone()], &case.dy[all.clone()]);
        let mut sums = [vec![0.0; d.c], vec![0.0; d.c]];
        let [dgamma, dbeta] = &mut sums;
        backward(&one, x, &affine, case.act, &stats_one, dy, &mut dx_one, dgamma, dbeta, None);
        assert!(dx_one == dx[all], "gradient of sample {n}");
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    for d in [dims(9, 300, 64, 8), dims(2, 2000, 32, 4)] {
        let case = Case::new(d, Act::Silu, true);
        assert_same_bits_for_any_pool(|| {
            let (y, stats) = case.forward();
            let mut all = vec![y, stats.clone()];
            all.extend(case.backward(&stats));
            all
        });
    }
}

#[test]
#[should_panic(expected = "6 channels cannot be split into 4 equal groups")]
fn groups_are_checked() {
    let _ = Case::new(dims(1, 2, 6, 4), Act::None, false).forward();
}

#[test]
fn coefficients_carry_the_normalisation_out() {
    for d in [dims(0, 4, 8, 2), dims(2, 0, 8, 2), dims(3, 49, 40, 8), dims(1, 1025, 32, 32), dims(9, 256, 64, 4)] {
        for adaptive in [false, true] {
            let case = Case::new(d, Act::Silu, adaptive);
            let (exact, expected_stats) = case.forward();
            let (mut scale, mut shift) = (vec![f32::NAN; d.n * d.c], vec![f32::NAN; d.n * d.c]);
            let (mut stats, mut y) = (vec![f32::NAN; d.stats_len()], vec![f32::NAN; d.len()]);
            statistics(&d, &case.x, &mut stats);
            assert!(stats == expected_stats, "{d:?}");
            coefficients(&d, &case.affine(), &stats, &mut scale, &mut shift);
            let map = crate::map::Map { scale: &scale, shift: &shift, per_sample: true, act: case.act };
            crate::map::apply(d.n, d.hw, d.c, &case.x, &map, &mut y);
            assert_close(&format!("{d:?} {adaptive}"), &y, &wide(&exact), 2e-6);
        }
    }
}

#[test]
fn gradients_that_are_overwritten_have_the_same_bits() {
    for d in [dims(2, 0, 4, 2), dims(2, 5, 6, 3), dims(9, 300, 64, 8), dims(2, 2000, 32, 4)] {
        let case = Case::new(d, Act::Silu, true);
        let stats = case.forward().1;
        let run = |way: usize| {
            let [mut dx, mut dgamma, mut dbeta, mut dscale, mut dshift] = case.before();
            let extra = Some((&mut dscale[..], &mut dshift[..]));
            let (x, affine, act, dy) = (&case.x, &case.affine(), case.act, &case.dy);
            match way {
                0 => {
                    dx.fill(0.0);
                    backward(&d, x, affine, act, &stats, dy, &mut dx, &mut dgamma, &mut dbeta, extra);
                }
                1 => backward_into(&d, x, affine, act, &stats, dy, &mut dx, &mut dgamma, &mut dbeta, extra),
                _ => {
                    dx.copy_from_slice(dy);
                    backward_in_place(&d, x, affine, act, &stats, &mut dx, &mut dgamma, &mut dbeta, extra);
                }
            }
            [dx, dgamma, dbeta, dscale, dshift]
        };
        let added = run(0);
        assert!(added == run(1), "overwritten {d:?}");
        assert!(added == run(2), "in place {d:?}");
    }
}

/// Whatever the parts, and however many chunks a sample has.
#[test]
fn joined_parts_have_the_bits_of_the_tensor_that_they_stand_for() {
    for (d, split) in [(dims(2, 6, 12, 3), 5), (dims(9, 130, 48, 4), 32), (dims(1, 700, 96, 8), 64)] {
        let case = Case::new(d, Act::Silu, true);
        let part = |columns: std::ops::Range<usize>| -> Vec<f32> {
            case.x.chunks_exact(d.c).flat_map(|row| &row[columns.clone()]).copied().collect()
        };
        let (a, b) = (part(0..split), part(split..d.c));
        let parts = [ChannelPart::new(&a, split), ChannelPart::new(&b, d.c - split)];
        let (mut y, mut stats) = (vec![f32::NAN; d.len()], vec![f32::NAN; d.stats_len()]);
        forward_joined(&d, &parts, &case.affine(), case.act, &mut y, &mut stats);
        assert!((y, stats) == case.forward(), "{d:?}");
    }
}

#[test]
#[should_panic(expected = "channels of x has 5 elements")]
fn parts_with_channels_missing_are_refused() {
    let d = dims(1, 2, 6, 2);
    let case = Case::new(d, Act::None, false);
    let (mut y, mut stats) = (vec![0.0; d.len()], vec![0.0; d.stats_len()]);
    forward_joined(&d, &[ChannelPart::new(&case.x[..10], 5)], &case.affine(), case.act, &mut y, &mut stats);
}
