use super::*;
use crate::simd::{Isa, dispatch_to};
use crate::testing::{self, ACTS, added, assert_close, numbers, wide};

/// Rows and channels with tails of every kind.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 16), (3, 5), (7, 17), (50, 31), (129, 64), (33, 67), (1000, 3), (2, 128)];

#[test]
fn moments_agree_with_two_passes_in_f64() {
    for &isa in Isa::available() {
        for (rows, c) in SHAPES {
            for offset in [0.0, 1000.0, -3e5] {
                let x: Vec<f32> = numbers(rows * c, 1).iter().map(|x| x + offset).collect();
                let mut out = vec![f64::NAN; 2 * c];
                let (means, m2) = out.split_at_mut(c);
                dispatch_to(isa, ChannelMoments { x: &x, c, means, m2 });
                for k in 0..c {
                    let column: Vec<f64> = x.iter().skip(k).step_by(c).map(|x| f64::from(*x)).collect();
                    let mean = column.iter().sum::<f64>() / rows as f64;
                    let m2: f64 = column.iter().map(|x| (x - mean) * (x - mean)).sum();
                    let what = format!("{isa:?} {rows}x{c} channel {k} offset {offset}");
                    let near = 1e-6 + 1e-9 * f64::from(offset.abs());
                    assert!((out[k] - mean).abs() <= near, "{what}: mean {}, exactly {mean}", out[k]);
                    assert!((out[c + k] - m2).abs() <= 2e-5 * m2 + 1e-9, "{what}: {}, exactly {m2}", out[c + k]);
                }
            }
        }
    }
}

#[test]
fn first_rows_far_from_the_others_do_not_spoil_the_variance() {
    // The worst case for the rows that the guess is taken from: they are a different constant.
    let (rows, c) = (512, 16);
    let x: Vec<f32> = numbers(rows * c, 4).iter().enumerate().map(|(i, x)| if i < 32 * c { 1e4 } else { *x }).collect();
    let mut out = vec![0f64; 2 * c];
    let (means, m2) = out.split_at_mut(c);
    channel_moments(&x, c, means, m2);
    for k in 0..c {
        let column: Vec<f64> = x.iter().skip(k).step_by(c).map(|x| f64::from(*x)).collect();
        let mean = column.iter().sum::<f64>() / rows as f64;
        let m2: f64 = column.iter().map(|x| (x - mean) * (x - mean)).sum();
        assert!((out[c + k] - m2).abs() <= 1e-5 * m2, "{} exactly {m2}", out[c + k]);
    }
}

#[test]
fn merged_moments_are_those_of_the_union() {
    let of = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        Moments { count: x.len() as f64, mean, m2: x.iter().map(|x| (x - mean).powi(2)).sum() }
    };
    let x = wide(&numbers(90, 5));
    let all = of(&x);
    let merged = of(&x[..20]).merge(of(&x[20..21])).merge(Moments::default()).merge(of(&x[21..]));
    assert!((merged.mean - all.mean).abs() < 1e-14 && (merged.m2 - all.m2).abs() < 1e-11 && merged.count == 90.0);
    let parts: Vec<Moments> = x.chunks(30).map(of).collect();
    let (means, m2): (Vec<f64>, Vec<f64>) = parts.iter().map(|m| (m.mean, m.m2)).unzip();
    let joined = Moments::of_channels(30, &means, &m2);
    assert!((joined.mean - all.mean).abs() < 1e-14 && (joined.m2 - all.m2).abs() < 1e-11 && joined.count == 90.0);
    let (mean, rstd) = Moments::default().stats(0.25);
    assert_eq!((mean, rstd), (0.0, 2.0));
}

/// x - mean and z in f64.
fn normalised(x: f64, table: &[f32], c: usize, k: usize) -> (f64, f64) {
    let [mean, p, b] = [0, 1, 2].map(|i| f64::from(table[i * c + k]));
    (x - mean, (x - mean) * p + b)
}

#[test]
fn passes_agree_with_f64_for_every_instruction_set() {
    for &isa in Isa::available() {
        for (rows, c) in SHAPES {
            for act in ACTS {
                let what = format!("{isa:?} {rows}x{c} {act:?}");
                let (x, dy, table, qr) =
                    (numbers(rows * c, 1), numbers(rows * c, 2), numbers(3 * c, 3), numbers(2 * c, 4));
                let t = Coefficients::of(&table);
                let (mut y, mut sums, before) = (vec![f32::NAN; rows * c], vec![f64::NAN; 2 * c], numbers(rows * c, 5));
                dispatch_to(isa, Apply { act, x: &x, t, y: &mut y, row: c, offset: 0 });
                dispatch_to(isa, BackwardSums { act, x: &x, dy: &dy, t, out: &mut sums });
                let dx = |dy: Gradient<'_>, mut dx: Vec<f32>| {
                    dispatch_to(isa, ApplyBackward { act, x: &x, dy, t, qr: &qr, dx: &mut dx });
                    dx
                };

                let (mut exact_y, mut exact_sums, mut exact_dx) = (vec![], vec![0f64; 2 * c], vec![]);
                for i in 0..rows * c {
                    let k = i % c;
                    let (centred, z) = normalised(f64::from(x[i]), &table, c, k);
                    let dz = testing::slope(act, z) * f64::from(dy[i]);
                    exact_y.push(testing::act(act, z));
                    exact_sums[k] += dz;
                    exact_sums[c + k] += dz * centred;
                    let [q, r] = [0, 1].map(|j| f64::from(qr[j * c + k]));
                    exact_dx.push(f64::from(table[c + k]) * dz - q - r * centred);
                }
                assert_close(&what, &y, &exact_y, 1e-6);
                let summed = added(&before, &exact_dx);
                assert_close(&what, &dx(Gradient::Add(&dy), before), &summed, 1e-6);
                assert_close(&what, &dx(Gradient::Overwrite(&dy), vec![f32::NAN; rows * c]), &exact_dx, 1e-6);
                assert_close(&what, &dx(Gradient::InPlace, dy.clone()), &exact_dx, 1e-6);
                for (sum, exact) in sums.iter().zip(&exact_sums) {
                    assert!((sum - exact).abs() <= 2e-6 * (rows as f64).max(4.0), "{what}: {sum}, exactly {exact}");
                }
            }
        }
    }
}
