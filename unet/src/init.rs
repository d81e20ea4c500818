//! First values of the parameters: PyTorch's defaults, drawn from one random stream per tensor.
//!
//! Convolution and linear layers (weights and biases) are uniform in [-1/sqrt(fan_in), 1/sqrt(fan_in)], which is
//! `kaiming_uniform(a = sqrt(5))` (He et al. 2015, eq. 10 with the leaky slope a); norms start at weight 1, bias 0;
//! embeddings are standard normal, and the frequencies of a Fourier embedding 16 times that.

use ndarray_rand::rand::{Rng, SeedableRng};
use ndarray_rand::rand_distr::StandardNormal;
use rand_chacha::ChaCha8Rng;
use tweedie_denoiser::Params;

/// How a network gets its first values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// PyTorch's defaults for every layer.
    PyTorch,
    /// PyTorch's defaults, but zeros for the layers that end a residual branch and for the output layer, so that
    /// every residual block starts as the identity (Ho et al. 2020 in their code, Dhariwal & Nichol 2021).
    #[default]
    ZeroResidual,
}

/// The rule for the first values of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fill {
    /// Zero.
    Zero,
    /// One.
    One,
    /// Uniform in [-bound, bound].
    Uniform { bound: f32, ends_residual: bool },
    /// Normal with the given standard deviation, but zero in the `frozen` row of `width` numbers.
    Normal { deviation: f32, width: usize, frozen: Option<usize> },
}

impl Fill {
    /// The rule of a convolution or linear layer.
    pub fn fan_in(fan_in: usize, ends_residual: bool) -> Self {
        Self::Uniform { bound: 1.0 / (fan_in.max(1) as f32).sqrt(), ends_residual }
    }
}

/// FNV-1a, so that the random stream of a tensor depends on its name only.
pub(crate) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Writes first values: the tensor `name` depends on (`seed`, `name`) alone, whatever other layers there are.
pub(crate) fn initialise(params: &mut Params, fills: &[Fill], init: Init, seed: u64) {
    let table: Vec<_> = params.table().iter().map(|p| (p.name.clone(), p.range.clone())).collect();
    for ((name, range), fill) in table.into_iter().zip(fills) {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&hash(&name).to_le_bytes());
        key[16..28].copy_from_slice(b"tweedie/init");
        let mut rng = ChaCha8Rng::from_seed(key);
        let values = &mut params.values_mut()[range];
        match *fill {
            Fill::Zero => values.fill(0.0),
            Fill::One => values.fill(1.0),
            Fill::Uniform { ends_residual: true, .. } if init == Init::ZeroResidual => values.fill(0.0),
            Fill::Uniform { bound, .. } => values.fill_with(|| rng.random_range(-bound..=bound)),
            Fill::Normal { deviation, width, frozen } => {
                values.fill_with(|| deviation * rng.sample::<f32, _>(StandardNormal));
                if let Some(row) = frozen {
                    values[row * width..(row + 1) * width].fill(0.0);
                }
            }
        }
    }
}
