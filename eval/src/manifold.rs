//! How many samples look real, and how much of the real the samples reach: precision and recall (Kynkäänniemi et al. 2019,
//! eq. 1 and 2), density and coverage (Naeem et al. 2020, eq. 3 and 4).
//!
//! With `B_k(x)` the closed ball around a feature vector `x` that reaches to its k-th nearest neighbour in its own set:
//!
//! ```text
//! precision = share of the samples y that lie in B_k(x) of some real x
//! recall    = share of the real x that lie in B_k(y) of some sample y
//! density   = 1/(k M) sum_y #{x : y in B_k(x)}
//! coverage  = share of the real x whose B_k(x) holds some sample y
//! ```
//!
//! The neighbours are exact. The intervals are those of the set that is counted, with the balls of the other one as they are.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::features::check_pair;
use crate::{Estimate, EvalError, Share};

const OPERATION: &str = "nearest neighbours";
/// Rows of the matrix of distances that are computed at once.
const ROWS: usize = 128;
/// A squared distance below this part of the squared lengths is computed again from differences, where the product cancels.
const CLOSE: f64 = 1e-6;

/// Precision, recall, density and coverage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prdc {
    /// Which neighbour the balls reach to.
    pub k: usize,
    /// Of the samples: quality.
    pub precision: Share,
    /// Of the reference: diversity; a single far sample with a large ball can raise it.
    pub recall: Share,
    /// Of the samples: 1 is expected where both sets come from one distribution; may be more.
    pub density: Estimate,
    /// Of the reference: `1 - prod_{i < k} (n - 1 - i) / (n + m - 1 - i)`, about `1 - 2^-k` for equal numbers, is expected
    /// where both sets come from one distribution.
    pub coverage: Share,
}

/// Compares `samples` `[M, D]` with a `reference` `[N, D]`, once for each `k`.
///
/// # Errors
/// If the numbers of features differ, a value is not finite, no `k` or 0 is given, or a set has not more rows than the largest.
///
/// Verified by `configurations_known_by_hand`. Verified by `coverage_of_one_distribution`. Verified by `figures_of_python`.
pub fn prdc(
    reference: ArrayView2<'_, f64>,
    samples: ArrayView2<'_, f64>,
    ks: &[usize],
) -> Result<Vec<Prdc>, EvalError> {
    Manifold::of(reference, ks)?.compare(samples)
}

/// A reference with the balls around its rows, to be compared with several sets of samples.
#[derive(Debug)]
pub struct Manifold {
    ks: Vec<usize>,
    centre: Array1<f64>,
    points: Points,
    radii: Vec<Vec<f64>>,
}

impl Manifold {
    /// Finds the neighbours of `reference` `[N, D]` for each `k`.
    ///
    /// # Errors
    /// If a value is not finite, no `k` or 0 is given, or there are not more rows than the largest.
    pub fn of(reference: ArrayView2<'_, f64>, ks: &[usize]) -> Result<Self, EvalError> {
        if ks.is_empty() || ks.contains(&0) {
            return parameter("k", "1 or more".to_owned(), format!("{ks:?}"), "3 and 5 are usual");
        }
        let most = ks.iter().copied().max().unwrap_or(0);
        more_than(most, "the number of real images", reference.nrows())?;
        check_pair(OPERATION, reference, reference, 2)?;
        // The product loses digits where the features are far from the origin.
        let centre = reference.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(reference.ncols()));
        let points = Points::new(reference, &centre);
        let radii = points.radii(most);
        Ok(Self { ks: ks.to_vec(), centre, points, radii })
    }

    /// Each `k` that neighbours were found for.
    pub fn ks(&self) -> &[usize] {
        &self.ks
    }

    /// [`prdc`] of `samples` `[M, D]`.
    ///
    /// # Errors
    /// If the numbers of features differ, a value is not finite, or there are not more rows than the largest `k`.
    pub fn compare(&self, samples: ArrayView2<'_, f64>) -> Result<Vec<Prdc>, EvalError> {
        let most = self.ks.iter().copied().max().unwrap_or(0);
        more_than(most, "the number of samples", samples.nrows())?;
        check_pair(OPERATION, self.points.x.view(), samples, 2)?;
        let drawn = Points::new(samples, &self.centre);
        Ok(counts(&self.points, &drawn, &self.radii, &drawn.radii(most), &self.ks))
    }
}

fn parameter<T>(what: &'static str, expected: String, found: String, remedy: &'static str) -> Result<T, EvalError> {
    Err(EvalError::Parameter { operation: OPERATION, what, expected, found, remedy })
}

fn more_than(k: usize, what: &'static str, n: usize) -> Result<(), EvalError> {
    if n > k {
        return Ok(());
    }
    parameter(what, format!("more than k = {k}"), n.to_string(), "give more images, or a smaller k")
}

/// Rows and their squared lengths.
#[derive(Debug)]
struct Points {
    x: Array2<f64>,
    squares: Vec<f64>,
}

impl Points {
    fn new(x: ArrayView2<'_, f64>, centre: &Array1<f64>) -> Self {
        let x = &x - centre;
        let squares = x.outer_iter().map(|row| row.dot(&row)).collect();
        Self { x, squares }
    }

    fn blocks(&self) -> Vec<(usize, ArrayView2<'_, f64>)> {
        let blocks = self.x.axis_chunks_iter(Axis(0), ROWS);
        blocks.enumerate().map(|(b, rows)| (b * ROWS, rows)).collect()
    }

    /// The squared distances of some of these rows, from `first` on, to all of `other`.
    fn distances(&self, first: usize, rows: ArrayView2<'_, f64>, other: &Self) -> Array2<f64> {
        let mut products = rows.dot(&other.x.t());
        for (i, mut row) in products.outer_iter_mut().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                let lengths = self.squares[first + i] + other.squares[j];
                let square = lengths - 2.0 * *value;
                *value = if square > CLOSE * lengths {
                    square
                } else {
                    rows.row(i).iter().zip(other.x.row(j)).map(|(a, b)| (a - b) * (a - b)).sum()
                };
            }
        }
        products
    }

    /// The squared distance of each row to its first, second, ... `k`-th nearest other row, `[N][k]`.
    fn radii(&self, k: usize) -> Vec<Vec<f64>> {
        let rows: Vec<Vec<Vec<f64>>> = self
            .blocks()
            .into_par_iter()
            .map(|(first, rows)| {
                let distances = self.distances(first, rows, self);
                let nearest = |(i, row): (usize, ndarray::ArrayView1<'_, f64>)| {
                    let mut others: Vec<f64> = row.to_vec();
                    others.swap_remove(first + i);
                    others.select_nth_unstable_by(k - 1, f64::total_cmp);
                    others.truncate(k);
                    others.sort_by(f64::total_cmp);
                    others
                };
                distances.outer_iter().enumerate().map(nearest).collect()
            })
            .collect();
        rows.concat()
    }
}

/// What the balls of one block of real rows hold, for one k.
struct Held {
    /// For each sample, how many of the balls it lies in.
    of_sample: Vec<u32>,
    /// How many of the real rows lie in a ball of a sample.
    recalled: usize,
    /// How many of the balls hold a sample.
    covered: usize,
}

fn counts(real: &Points, drawn: &Points, real_radii: &[Vec<f64>], drawn_radii: &[Vec<f64>], ks: &[usize]) -> Vec<Prdc> {
    let (n, m) = (real.squares.len(), drawn.squares.len());
    let blocks: Vec<Vec<Held>> = real
        .blocks()
        .into_par_iter()
        .map(|(first, rows)| {
            let distances = real.distances(first, rows, drawn);
            let held = |&k: &usize| {
                let mut held = Held { of_sample: vec![0; m], recalled: 0, covered: 0 };
                for (i, row) in distances.outer_iter().enumerate() {
                    let own = real_radii[first + i][k - 1];
                    let (mut recalled, mut covered) = (false, false);
                    for (j, &distance) in row.iter().enumerate() {
                        let inside = distance <= own;
                        held.of_sample[j] += u32::from(inside);
                        covered |= inside;
                        recalled |= distance <= drawn_radii[j][k - 1];
                    }
                    held.recalled += usize::from(recalled);
                    held.covered += usize::from(covered);
                }
                held
            };
            ks.iter().map(held).collect()
        })
        .collect();
    let of_k = |(at, &k): (usize, &usize)| {
        let parts = || blocks.iter().map(|block| &block[at]);
        let mut balls = vec![0; m];
        parts().for_each(|held| balls.iter_mut().zip(&held.of_sample).for_each(|(sum, v)| *sum += v));
        let densities: Vec<f64> = balls.iter().map(|count| f64::from(*count) / k as f64).collect();
        Prdc {
            k,
            precision: Share::of(balls.iter().filter(|count| **count > 0).count(), m),
            recall: Share::of(parts().map(|held| held.recalled).sum(), n),
            density: Estimate::of(&densities),
            coverage: Share::of(parts().map(|held| held.covered).sum(), n),
        }
    };
    ks.iter().enumerate().map(of_k).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::{array, concatenate};

    use super::*;
    use crate::features::testing::{normal, rotation, shuffled};

    fn of(real: &Array2<f64>, drawn: &Array2<f64>, k: usize) -> Prdc {
        prdc(real.view(), drawn.view(), &[k]).unwrap()[0]
    }

    fn hits(found: &Prdc) -> (usize, usize, f64, usize) {
        (found.precision.hits, found.recall.hits, found.density.mean, found.coverage.hits)
    }

    #[test]
    fn configurations_known_by_hand() {
        // Points on a line. Radii of the real for k = 1: 1, 1, 2, 7; for k = 2: 3, 2, 3, 9.
        let real = array![[0.0], [1.0], [3.0], [10.0]];
        // Radii of the samples for k = 1: 4.5, 4.5, 15; for k = 2: 19.5, 15, 19.5.
        let drawn = array![[0.5], [5.0], [20.0]];
        // 0.5 lies in the balls of 0 and 1, and 5 in those of 3 and 10, on the edge of the former; 20 in none.
        // All but none of the real lie within 4.5 of 0.5 or of 5, or 15 of 20: 0, 1, 3 by 0.5, and 10 by 20.
        assert_eq!(hits(&of(&real, &drawn, 1)), (2, 4, 4.0 / 3.0, 4));
        // 0.5: 0, 1, 3. 5: 3, 10. 20: none.
        assert_eq!(hits(&of(&real, &drawn, 2)), (2, 4, 5.0 / 6.0, 4));
        // Two clusters far apart, of which the samples know one.
        let real = array![[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [100.0, 0.0], [101.0, 0.0], [100.0, 1.0]];
        let drawn = array![[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]];
        // Squared radii of the real: 1, 1, 1, 1, 1, 1. All samples lie within 1 of (0, 0); (0.9, 0.1) within 1 of (1, 0) and
        // not of (0, 1), (0.1, 0.1) within 1 of both, which makes 3 + 2 + 2 balls.
        let found = of(&real, &drawn, 1);
        assert_eq!(hits(&found), (3, 3, 7.0 / 3.0, 3));
        assert_eq!(
            (found.precision.count, found.recall.count, found.density.count, found.coverage.count),
            (3, 6, 3, 6)
        );
        // Far away.
        assert_eq!(hits(&of(&real, &(&drawn + 1000.0), 2)), (0, 0, 0.0, 0));
    }

    #[test]
    fn copies_are_inside_however_far_from_the_origin() {
        let x = normal(300, 5, 1) + 1e4;
        let found = of(&x, &x, 3);
        assert_eq!((found.precision.value, found.recall.value, found.coverage.value), (1.0, 1.0, 1.0));
        // Itself and three neighbours.
        assert!((found.density.mean - 4.0 / 3.0).abs() < 0.02, "{:?}", found.density);
        // Every row twice, where a ball of k = 1 is a point.
        let twice = concatenate![Axis(0), x, x];
        assert_eq!(hits(&of(&twice, &x, 1)), (300, 600, 2.0, 600));
    }

    #[test]
    fn rotations_and_order_do_not_matter_to_neighbours() {
        let (x, y) = (normal(200, 6, 1), normal(150, 6, 2) * 1.1);
        let both = prdc(x.view(), y.view(), &[3, 5]).unwrap();
        assert_eq!(both, [of(&x, &y, 3), of(&x, &y, 5)]);
        let q = rotation(6, 3);
        let turned = [shuffled(x.dot(&q).view(), 4), shuffled(y.dot(&q).view(), 5)];
        let moved = prdc((&turned[0] + 3.0).view(), (&turned[1] + 3.0).view(), &[3, 5]).unwrap();
        for (a, b) in both.iter().zip(&moved) {
            assert_eq!((a.precision, a.recall, a.coverage), (b.precision, b.recall, b.coverage));
            assert!((a.density.mean - b.density.mean).abs() < 1e-12);
        }
    }

    /// Naeem et al. (2020), section 4: the coverage that is expected of two samples of one distribution is known in any
    /// dimension, and the density is 1.
    #[test]
    fn coverage_of_one_distribution() {
        let (n, m, k) = (60, 40, 3);
        let (mut coverage, mut density) = (Vec::new(), Vec::new());
        for seed in 0..150 {
            let found = of(&normal(n, 3, 2 * seed), &normal(m, 3, 2 * seed + 1), k);
            coverage.push(found.coverage.value);
            density.push(found.density.mean);
        }
        let missed: f64 = (0..k).map(|i| (n - 1 - i) as f64 / (n + m - 1 - i) as f64).product();
        let found = Estimate::of(&coverage);
        assert!((found.mean - 1.0 + missed).abs() < 5.0 * found.standard_error.unwrap(), "{found:?}, {missed}");
        let found = Estimate::of(&density);
        assert!((found.mean - 1.0).abs() < 5.0 * found.standard_error.unwrap(), "{found:?}");
    }

    #[test]
    fn too_few_neighbours_are_an_error() {
        let (x, y) = (normal(6, 2, 1), normal(5, 2, 2));
        assert!(prdc(x.view(), y.view(), &[4]).is_ok());
        let error = prdc(x.view(), y.view(), &[3, 5]).unwrap_err().to_string();
        assert!(
            error.contains("the number of samples") && error.contains("k = 5") && error.contains("found 5"),
            "{error}"
        );
        assert!(prdc(x.view(), y.view(), &[]).is_err() && prdc(x.view(), y.view(), &[0]).is_err());
    }
}
