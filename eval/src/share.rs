use crate::features::Z95;

/// A share of independent trials that succeeded, with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// How many succeeded.
    pub hits: usize,
    /// How many there were.
    pub count: usize,
    /// `hits / count`, in [0, 1].
    pub value: f64,
    /// The lower end of the interval of 95 %.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Share {
    /// `hits` of `count` with the score interval of Wilson (1927), `z = 1.96` for 95 %:
    ///
    /// ```text
    /// [p + z^2 / (2 n) -+ z sqrt(p (1 - p) / n + z^2 / (4 n^2))] / (1 + z^2 / n)
    /// ```
    ///
    /// Of no trial: NaN within [0, 1].
    ///
    /// Verified by `intervals_of_shares_known_by_hand`. Verified by `intervals_cover_the_true_share`.
    pub fn of(hits: usize, count: usize) -> Self {
        let (n, value) = (count as f64, hits as f64 / count as f64);
        if count == 0 {
            return Self { hits, count, value, low: 0.0, high: 1.0 };
        }
        let z2 = Z95 * Z95;
        let (middle, width) = (value + z2 / (2.0 * n), Z95 * (value * (1.0 - value) / n + z2 / (4.0 * n * n)).sqrt());
        let end = |v: f64| (v / (1.0 + z2 / n)).clamp(0.0, 1.0);
        // The ends of no and of every success are exact, and would miss the share by rounding.
        let low = if hits == 0 { 0.0 } else { end(middle - width) };
        let high = if hits == count { 1.0 } else { end(middle + width) };
        Self { hits, count, value, low, high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_shares_known_by_hand() {
        // The ends solve (p - x)^2 = z^2 x (1 - x) / n.
        for (hits, count) in [(0, 10), (3, 10), (10, 10), (970, 1000), (1, 1)] {
            let share = Share::of(hits, count);
            for end in [share.low, share.high] {
                let residual = (share.value - end).powi(2) - Z95 * Z95 * end * (1.0 - end) / count as f64;
                assert!(residual.abs() < 1e-14, "{share:?}: {residual}");
            }
            assert!(share.low <= share.value && share.value <= share.high && share.low < share.high);
        }
        // Newcombe (1998), table I: 81 of 263.
        let share = Share::of(81, 263);
        assert!((share.low - 0.2553).abs() < 5e-5 && (share.high - 0.3662).abs() < 5e-5, "{share:?}");
        assert!(Share::of(0, 0).value.is_nan());
    }

    /// The probability of covering, summed over the binomial distribution, is 95 % on average over p.
    #[test]
    fn intervals_cover_the_true_share() {
        let n = 40;
        let coverage = |p: f64| {
            let mut weight = (1.0 - p).powi(n);
            let mut covered = 0.0;
            for hits in 0..=n {
                let share = Share::of(hits as usize, n as usize);
                if share.low <= p && p <= share.high {
                    covered += weight;
                }
                weight *= f64::from(n - hits) / f64::from(hits + 1) * p / (1.0 - p);
            }
            covered
        };
        let mean = (1..100).map(|i| coverage(f64::from(i) / 100.0)).sum::<f64>() / 99.0;
        assert!((mean - 0.95).abs() < 0.01, "{mean}");
    }
}
