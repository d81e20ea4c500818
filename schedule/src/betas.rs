//! Schedules `b_1..b_T` (FORMULAS 1.3); the equations stand at [`BetaSchedule`].

use std::f64::consts::FRAC_PI_2;

use crate::ScheduleError;
use crate::level::parameter;

/// Diffusers' upper bound of a beta that is a ratio of levels.
const MAX_BETA: f64 = 0.999;

/// A rule for `b_1..b_T`. With `u_i = i / (T - 1)` for `i = 0..T`, `lerp(p, q, u) = p + (q - p) u`, and real-valued arguments:
///
/// ```text
/// linear         lerp(start, end, u)                                  Ho 2020, section 4
/// scaled-linear  lerp(sqrt start, sqrt end, u)^2                      Rombach 2022
/// sqrt           sqrt(lerp(start, end, u))                            the name of latent diffusion's code
/// sigmoid        start + (end - start) / (1 + exp(-lerp(-6, 6, u)))   Xu 2022
/// exponential    start (end / start)^u
/// cosine         b_t = min(1 - f(t) / f(t - 1), max_beta),            Nichol & Dhariwal 2021, eq. 17
///                f(t) = cos^2(pi/2 (t/T + s) / (1 + s))
/// laplace        as cosine with f(t) = sqrt(snr / (1 + snr)),         Hang 2024, "Improved Noise Schedule", as diffusers has it
///                ln snr = -sign(1/2 - u)/2 ln(1 - 2 |1/2 - u| + 1e-6), u = t/T
/// exp            as cosine with f(t) = exp(-12 t/T)                   the name of k-diffusion's users
/// ```
///
/// Verified by `families_follow_their_definitions`. Verified by `cosine_follows_its_definition`.
/// Verified by `tables_agree_with_numpy`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum BetaSchedule {
    /// Linear from `start` to `end` (Ho 2020: 1e-4 to 0.02).
    Linear {
        /// `b_1`, in (0, 1).
        start: f64,
        /// `b_T`, in (0, 1).
        end: f64,
    },
    /// Linear in `sqrt(b)` (Rombach 2022: 0.00085 to 0.012).
    ScaledLinear {
        /// `b_1`, in (0, 1).
        start: f64,
        /// `b_T`, in (0, 1).
        end: f64,
    },
    /// A squared cosine for `abar` (Nichol & Dhariwal 2021, eq. 17).
    Cosine {
        /// The offset that keeps `b_1` from vanishing, 0.008 in the paper; not negative.
        s: f64,
        /// Upper bound of every beta, 0.999 in the paper; in (0, 1).
        max_beta: f64,
    },
    /// The square root of a linear ramp.
    Sqrt {
        /// `b_1^2`, in (0, 1).
        start: f64,
        /// `b_T^2`, in (0, 1).
        end: f64,
    },
    /// A logistic ramp over [-6, 6].
    Sigmoid {
        /// Lower asymptote, in (0, 1).
        start: f64,
        /// Upper asymptote, in (0, 1).
        end: f64,
    },
    /// Geometric from `start` to `end`.
    Exponential {
        /// `b_1`, in (0, 1).
        start: f64,
        /// `b_T`, in (0, 1).
        end: f64,
    },
    /// A Laplace distribution of the log-SNR (Hang 2024), as diffusers' DDPM has it; every beta at most 0.999.
    Laplace,
    /// `abar` falling exponentially, to `e^-12`, as diffusers' Heun has it: every beta is the same, at most 0.999.
    FallingAbar,
    /// A given table `b_1..b_T`.
    Custom(Vec<f64>),
}

impl BetaSchedule {
    /// The names that [`BetaSchedule::from_name`] knows.
    pub const NAMES: &'static str = "linear, scaled-linear, cosine, sqrt, sigmoid, exponential";
    /// The names that [`BetaSchedule::from_config_name`] knows.
    pub const CONFIG_NAMES: &'static str = "linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace, exp";

    /// The cosine schedule with the paper's constants.
    pub const fn cosine() -> Self {
        Self::Cosine { s: 0.008, max_beta: 0.999 }
    }

    /// The schedule of a command-line name. `cosine` has constants of its own and ignores `start` and `end`.
    ///
    /// # Errors
    /// If there is no such name; the error lists those that exist.
    pub fn from_name(name: &str, start: f64, end: f64) -> Result<Self, ScheduleError> {
        Ok(match name {
            "linear" => Self::Linear { start, end },
            "scaled-linear" => Self::ScaledLinear { start, end },
            "cosine" => Self::cosine(),
            "sqrt" => Self::Sqrt { start, end },
            "sigmoid" => Self::Sigmoid { start, end },
            "exponential" => Self::Exponential { start, end },
            _ => {
                return Err(ScheduleError::UnknownName {
                    what: "schedule",
                    found: name.to_owned(),
                    known: Self::NAMES,
                });
            }
        })
    }

    /// The schedule of a `beta_schedule` entry in a diffusers scheduler file.
    ///
    /// # Errors
    /// If there is no such name; the error lists those that exist.
    pub fn from_config_name(name: &str, start: f64, end: f64) -> Result<Self, ScheduleError> {
        Ok(match name {
            "linear" => Self::Linear { start, end },
            "scaled_linear" => Self::ScaledLinear { start, end },
            "squaredcos_cap_v2" => Self::cosine(),
            "sigmoid" => Self::Sigmoid { start, end },
            "laplace" => Self::Laplace,
            "exp" => Self::FallingAbar,
            _ => {
                return Err(ScheduleError::UnknownName {
                    what: "beta_schedule",
                    found: name.to_owned(),
                    known: Self::CONFIG_NAMES,
                });
            }
        })
    }

    /// The `beta_schedule` entry of a diffusers scheduler file, or `None` where only `trained_betas` can say it.
    pub fn config_name(&self) -> Option<&'static str> {
        match self {
            Self::Linear { .. } => Some("linear"),
            Self::ScaledLinear { .. } => Some("scaled_linear"),
            Self::Cosine { .. } if *self == Self::cosine() => Some("squaredcos_cap_v2"),
            Self::Sigmoid { .. } => Some("sigmoid"),
            Self::Laplace => Some("laplace"),
            Self::FallingAbar => Some("exp"),
            _ => None,
        }
    }

    /// `b_1..b_T` for `T = steps`, not yet checked to lie in (0, 1).
    ///
    /// # Errors
    /// If a parameter is out of range, or a custom table has another length.
    pub(crate) fn table(&self, steps: usize) -> Result<Vec<f64>, ScheduleError> {
        let ramp = |from: f64, to: f64| {
            (0..steps).map(move |i| {
                // Both ends are hit exactly; a single step takes the first, as numpy's linspace does.
                if i == 0 {
                    from
                } else if i + 1 == steps {
                    to
                } else {
                    from + (to - from) * (i as f64 / (steps - 1) as f64)
                }
            })
        };
        Ok(match *self {
            Self::Linear { start, end } => {
                check_ends(start, end)?;
                ramp(start, end).collect()
            }
            Self::ScaledLinear { start, end } => {
                check_ends(start, end)?;
                ramp(start.sqrt(), end.sqrt()).map(|r| r * r).collect()
            }
            Self::Sqrt { start, end } => {
                check_ends(start, end)?;
                ramp(start, end).map(f64::sqrt).collect()
            }
            Self::Sigmoid { start, end } => {
                check_ends(start, end)?;
                ramp(-6.0, 6.0).map(|r| start + (end - start) / (1.0 + (-r).exp())).collect()
            }
            Self::Exponential { start, end } => {
                check_ends(start, end)?;
                ramp(start.ln(), end.ln()).map(f64::exp).collect()
            }
            Self::Cosine { s, max_beta } => {
                if !(s >= 0.0 && s.is_finite()) {
                    return Err(parameter("cosine schedule", "s", "finite and not negative", s));
                }
                if !(max_beta > 0.0 && max_beta < 1.0) {
                    return Err(parameter("cosine schedule", "max_beta", "in (0, 1)", max_beta));
                }
                let angle = |t: usize| FRAC_PI_2 * (t as f64 / steps as f64 + s) / (1.0 + s);
                (1..=steps)
                    .map(|t| {
                        let (a, b) = (angle(t - 1), angle(t));
                        // 1 - cos^2 b / cos^2 a, written as a product so that no digits cancel.
                        ((b - a).sin() * (b + a).sin() / a.cos().powi(2)).min(max_beta)
                    })
                    .collect()
            }
            Self::Laplace => {
                let abar = |t: usize| {
                    let off = 0.5 - t as f64 / steps as f64;
                    let sign = if off < 0.0 { -1.0 } else { 1.0 };
                    let snr = (-0.5 * sign * (1.0 - 2.0 * off.abs() + 1e-6).ln()).exp();
                    (snr / (1.0 + snr)).sqrt()
                };
                (1..=steps).map(|t| (1.0 - abar(t) / abar(t - 1)).min(MAX_BETA)).collect()
            }
            Self::FallingAbar => vec![(-(-12.0 / steps as f64).exp_m1()).min(MAX_BETA); steps],
            Self::Custom(ref betas) => {
                if betas.len() != steps {
                    return Err(ScheduleError::Count {
                        operation: "custom schedule",
                        what: "the number of betas",
                        lowest: steps,
                        highest: steps,
                        found: betas.len(),
                    });
                }
                betas.clone()
            }
        })
    }
}

fn check_ends(start: f64, end: f64) -> Result<(), ScheduleError> {
    for (what, value) in [("beta start", start), ("beta end", end)] {
        if !(value > 0.0 && value < 1.0) {
            return Err(parameter("schedule", what, "in (0, 1)", value));
        }
    }
    Ok(())
}
