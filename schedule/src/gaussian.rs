//! Isotropic Gaussians in D dimensions, and the normal distribution on an interval (FORMULAS 4.1).

use std::f64::consts::{FRAC_1_SQRT_2, PI, TAU};

/// `ln N(x; m, v I)` from the squared distance `|x - m|^2`: `-D/2 ln(2 pi v) - |x - m|^2 / (2 v)`, in nats.
///
/// Verified by `kl_agrees_with_quadrature`.
pub fn log_normal(squared_distance: f64, variance: f64, dims: usize) -> f64 {
    -0.5 * (dims as f64 * (TAU * variance).ln() + squared_distance / variance)
}

/// `KL(N(m_q, v_q I) || N(m_p, v_p I)) = D/2 (v_q/v_p - 1 - ln(v_q/v_p)) + |m_q - m_p|^2 / (2 v_p)`, in nats.
///
/// `squared_distance` is `|m_q - m_p|^2`; both variances are positive.
///
/// Verified by `kl_agrees_with_quadrature`.
pub fn kl_isotropic(squared_distance: f64, variance_q: f64, variance_p: f64, dims: usize) -> f64 {
    // ratio - 1 - ln ratio, without losing digits where the variances are nearly the same.
    let excess = (variance_q - variance_p) / variance_p;
    0.5 * (dims as f64 * (excess - excess.ln_1p()) + squared_distance / variance_p)
}

/// `ln(Phi(b) - Phi(a))` of the standard normal distribution for `a < b`, which may be infinite.
///
/// An interval with its middle above 0 is mirrored; in the lower tail, with `x = -b / sqrt(2)` and `y = -a / sqrt(2)`, it is
/// `-x^2 + ln[(erfcx(x) - exp(x^2 - y^2) erfcx(y)) / 2]`, which neither underflows nor cancels, however far it lies.
///
/// Verified by `interval_agrees_with_mpmath`.
/// Verified by `interval_far_out_agrees_with_the_asymptotic_series`.
pub fn log_interval(a: f64, b: f64) -> f64 {
    if a + b > 0.0 {
        return log_interval(-b, -a);
    }
    let (x, y) = (-b * FRAC_1_SQRT_2, -a * FRAC_1_SQRT_2);
    if b > 0.0 {
        // erf(y) + erf(-x) are both positive; next to the whole line the complement keeps the digits.
        let outside = 0.5 * (libm::erfc(y) + libm::erfc(-x));
        return if outside < 0.5 { (-outside).ln_1p() } else { (0.5 * (libm::erf(y) + libm::erf(-x))).ln() };
    }
    let beyond = if y.is_infinite() { 0.0 } else { ((x - y) * (x + y)).exp() * erfcx(y) };
    -x * x + (0.5 * (erfcx(x) - beyond)).ln()
}

/// Beyond this the asymptotic series has all digits of an f64 with the terms below.
const FAR: f64 = 12.0;

/// `exp(x^2) erfc(x)` for `x >= 0`.
fn erfcx(x: f64) -> f64 {
    if x < FAR {
        return (x * x).exp() * libm::erfc(x);
    }
    // 1 / (x sqrt(pi)) sum_k (-1)^k (2k - 1)!! / (2 x^2)^k (Abramowitz & Stegun 7.1.23), from the smallest term on.
    let u = 0.5 / (x * x);
    let series = (1..=9).rev().fold(1.0, |sum, k| 1.0 - f64::from(2 * k - 1) * u * sum);
    series / (x * PI.sqrt())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The integral of `f` by the trapezoidal rule, which converges exponentially for Gaussians.
    fn integral(f: impl Fn(f64) -> f64, middle: f64, std: f64) -> f64 {
        let h = std / 64.0;
        (-64 * 14..=64 * 14).map(|i| f(middle + f64::from(i) * h)).sum::<f64>() * h
    }

    proptest! {
        #[test]
        fn kl_agrees_with_quadrature(
            m in -2.0..2.0_f64, s in 0.3..2.0_f64, n in -2.0..2.0_f64, r in 0.5..3.0_f64, dims in 1..5_usize,
        ) {
            let log_q = |x: f64| -0.5 * ((x - m) / s).powi(2) - (s * (2.0 * PI).sqrt()).ln();
            let log_p = |x: f64| -0.5 * ((x - n) / r).powi(2) - (r * (2.0 * PI).sqrt()).ln();
            prop_assert!((log_normal((1.7 - m).powi(2), s * s, 1) - log_q(1.7)).abs() < 1e-12);
            let mass = integral(|x| log_normal((x - m).powi(2), s * s, 1).exp(), m, s);
            prop_assert!((mass - 1.0).abs() < 1e-12, "{mass}");
            let expected = dims as f64 * integral(|x| log_q(x).exp() * (log_q(x) - log_p(x)), m, s);
            let found = kl_isotropic(dims as f64 * (m - n).powi(2), s * s, r * r, dims);
            prop_assert!((found - expected).abs() < 1e-10 * (1.0 + expected), "{found} instead of {expected}");
            // The density of several dimensions is the product.
            let product = dims as f64 * log_q(0.4);
            prop_assert!((log_normal(dims as f64 * (0.4 - m).powi(2), s * s, dims) - product).abs() < 1e-12 * product.abs().max(1.0));
        }

        /// Intervals next to each other add up, wherever they lie.
        #[test]
        fn intervals_add_up(a in -40.0..40.0_f64, b in 1e-3..3.0_f64, c in 1e-3..3.0_f64) {
            let (low, high, whole) = (log_interval(a, a + b), log_interval(a + b, a + b + c), log_interval(a, a + b + c));
            let sum = low.max(high) + (-(low - high).abs()).exp().ln_1p();
            prop_assert!((sum - whole).abs() < 1e-12 * (1.0 + whole.abs()) + 1e-11, "{sum} instead of {whole}");
            let mirrored = log_interval(-a - b, -a);
            prop_assert!((low - mirrored).abs() < 1e-11, "{low} is not {mirrored}");
        }
    }

    #[test]
    fn interval_agrees_with_mpmath() {
        // mpmath with 60 digits: log(ncdf(b) - ncdf(a)).
        for (a, b, expected) in MPMATH {
            let found = log_interval(a, b);
            let error = (found - expected).abs() / expected.abs().max(1e-3);
            assert!(error < 1e-13, "ln P({a} < z < {b}) = {found} instead of {expected}, relative error {error:e}");
        }
    }

    #[test]
    fn interval_far_out_agrees_with_the_asymptotic_series() {
        // P(z > x) = phi(x) / x (1 - 1/x^2 + 3/x^4 - ...): four digits after the leading term at x = 1000.
        let x: f64 = 1e3;
        let expected = -0.5 * x * x - 0.5 * TAU.ln() - x.ln() + (-1.0 / (x * x) + 3.0 / x.powi(4)).ln_1p();
        assert!((log_interval(x, f64::INFINITY) - expected).abs() < 1e-9);
        assert_eq!(log_interval(f64::NEG_INFINITY, f64::INFINITY), 0.0);
        // An empty interval has no mass, wherever it lies.
        for at in [-3.0, 0.0, 2.0] {
            assert_eq!(log_interval(at, at), f64::NEG_INFINITY);
        }
        assert!((log_interval(0.0, f64::INFINITY) + 2.0_f64.ln()).abs() < 1e-15);
        assert!((log_interval(f64::NEG_INFINITY, 0.0) + 2.0_f64.ln()).abs() < 1e-15);
    }

    // All digits of a double, as they were printed.
    #[expect(clippy::excessive_precision)]
    const MPMATH: [(f64, f64, f64); 12] = [
        (-1.0, 1.0, -0.38171514630212607),
        (-0.25, 3.0, -0.5152413125000841),
        (-0.001953125, 0.0009765625, -6.7517985269730379),
        (0.5, 0.75, -2.5021319204099832),
        (-3.0, -2.5, -5.3267647240790622),
        (2.0, f64::INFINITY, -3.7831843336820319),
        (-8.0, -7.0, -27.384793700719941),
        (10.0, 10.5, -53.236969371752502),
        (16.5, 16.75, -139.86649324193214),
        (17.0, 17.0078125, -150.33665002644189),
        (-60.0, -59.5, -1775.1301971124938),
        (-10.0, 8.0, -6.2209606504703163e-16),
    ];

    /// Next to the whole line the digits are those of the tails: ln(1 - 2 Phi(-9)) = -2.2571768119e-19.
    #[test]
    fn an_interval_that_is_almost_everything_keeps_its_digits() {
        let found = log_interval(-9.0, 9.0);
        assert!((found / -2.257_176_811_9e-19 - 1.0).abs() < 1e-9, "{found:e}");
    }
}
