//! Sources of standard normal noise, keyed by purpose and sample.
//!
//! A draw is a function of (seed, purpose, sample index) alone and never of a stream's position, so image i of seed s is the
//! same image whatever the batch size, the number of threads or how many others are drawn with it. Values are representable
//! in f32, so that noise saved as f32 and replayed gives the same bits.

use std::cell::RefCell;

use ndarray::{Array4, Array5, Axis};
use ndarray_rand::rand::{Rng, SeedableRng};
use ndarray_rand::rand_distr::StandardNormal;
use rand_chacha::ChaCha8Rng;

use crate::DenoiserError;

/// What noise is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The state that sampling starts from.
    Initial,
    /// The k-th draw of a stochastic sampler (from 0; moves that draw nothing do not count).
    Step(usize),
}

/// A source of standard normal noise.
pub trait Noise {
    /// Fills `out` (one sample, `C * H * W` values) with the noise of sample `sample` for `purpose`.
    ///
    /// # Errors
    /// If the source has no such noise, or not of that length.
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError>;
}

impl<T: Noise + ?Sized> Noise for &T {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        (**self).fill(purpose, sample, out)
    }
}

impl<T: Noise + ?Sized> Noise for Box<T> {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        (**self).fill(purpose, sample, out)
    }
}

/// A ChaCha8 generator whose 256-bit key is (seed, domain, a, b), for random numbers that depend on what they are for and
/// not on how many were drawn before.
///
/// `domain` names what the numbers are for, so that two uses of the same indices never share a stream; it enters the key as
/// its 64-bit FNV-1a hash.
pub fn rng_for(seed: u64, domain: &str, a: u64, b: u64) -> ChaCha8Rng {
    let hash = domain
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut key = [0; 32];
    for (slot, word) in key.chunks_exact_mut(8).zip([seed, hash, a, b]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Noise computed from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeededNoise {
    seed: u64,
}

impl SeededNoise {
    /// The noise of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl Noise for SeededNoise {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        let (domain, step) = match purpose {
            Purpose::Initial => ("noise/initial", 0),
            Purpose::Step(k) => ("noise/step", k as u64),
        };
        let mut rng = rng_for(self.seed, domain, sample as u64, step);
        for value in out {
            let z: f64 = rng.sample(StandardNormal);
            *value = f64::from(z as f32);
        }
        Ok(())
    }
}

/// Another source whose sample indices start later: what a batch that begins at sample `first` draws from.
#[derive(Clone, Copy, Debug)]
pub struct ShiftedNoise<S> {
    inner: S,
    first: usize,
}

impl<S: Noise> ShiftedNoise<S> {
    /// `inner`, where sample 0 is sample `first`.
    pub fn new(inner: S, first: usize) -> Self {
        Self { inner, first }
    }
}

impl<S: Noise> Noise for ShiftedNoise<S> {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        self.inner.fill(purpose, self.first + sample, out)
    }
}

/// Given noise, used in order.
#[derive(Clone, Debug)]
pub struct ReplayNoise {
    initial: Array4<f32>,
    steps: Array5<f32>,
}

impl ReplayNoise {
    /// Replays `initial` `[N, C, H, W]` and `steps` `[K, N, C, H, W]`; K may be 0 for deterministic samplers, and the
    /// other dimensions of `steps` do not matter then.
    ///
    /// # Errors
    /// If there are steps and they are not of the shape of `initial`.
    pub fn new(initial: Array4<f32>, steps: Array5<f32>) -> Result<Self, DenoiserError> {
        if steps.shape()[0] > 0 && steps.shape()[1..] != *initial.shape() {
            return Err(DenoiserError::Noise {
                what: "`steps`",
                expected: format!("shape [K, N, C, H, W] with [N, C, H, W] = {:?} as `initial`", initial.shape()),
                found: format!("{:?}", steps.shape()),
                remedy: "give both tensors the same N, C, H, W",
            });
        }
        Ok(Self { initial, steps })
    }
}

impl Noise for ReplayNoise {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        let (what, of_batch) = match purpose {
            Purpose::Initial => ("`initial`", self.initial.view()),
            Purpose::Step(k) => {
                let given = self.steps.len_of(Axis(0));
                if k >= given {
                    return Err(DenoiserError::Noise {
                        what: "`steps`",
                        expected: format!("noise for {} or more stochastic steps", k + 1),
                        found: given.to_string(),
                        remedy: "give [K, N, C, H, W] with one entry per stochastic step, or sample with fewer steps",
                    });
                }
                ("`steps`", self.steps.index_axis(Axis(0), k))
            }
        };
        let given = of_batch.len_of(Axis(0));
        if sample >= given {
            return Err(DenoiserError::Noise {
                what,
                expected: format!("noise for {} or more samples", sample + 1),
                found: given.to_string(),
                remedy: "give noise for every sample, or draw fewer samples",
            });
        }
        let of_sample = of_batch.index_axis(Axis(0), sample);
        if of_sample.len() != out.len() {
            return Err(DenoiserError::Noise {
                what,
                expected: format!("{} values per sample", out.len()),
                found: format!("{} (shape {:?})", of_sample.len(), of_sample.shape()),
                remedy: "give noise of the model's sample shape [C, H, W]",
            });
        }
        for (value, &z) in out.iter_mut().zip(&of_sample) {
            *value = f64::from(z);
        }
        Ok(())
    }
}

/// The noise that a run used, ready to be saved and replayed.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedNoise {
    /// `[N, C, H, W]`.
    pub initial: Array4<f32>,
    /// `[K, N, C, H, W]`, where K is the number of draws per sample.
    pub steps: Array5<f32>,
}

/// Another source that keeps what was drawn from it.
#[derive(Debug)]
pub struct RecordingNoise<S> {
    inner: S,
    shape: [usize; 4],
    initial: RefCell<Vec<f32>>,
    steps: RefCell<Vec<Vec<f32>>>,
}

impl<S: Noise> RecordingNoise<S> {
    /// Records `inner` for samples 0..N of `shape` `[N, C, H, W]`.
    pub fn new(inner: S, shape: [usize; 4]) -> Self {
        Self { inner, shape, initial: RefCell::new(vec![0.0; shape.iter().product()]), steps: RefCell::new(Vec::new()) }
    }

    /// What was drawn; noise that was never asked for is 0.
    pub fn into_recorded(self) -> RecordedNoise {
        let [n, c, h, w] = self.shape;
        let steps = self.steps.into_inner();
        let count = steps.len();
        let flat: Vec<f32> = steps.into_iter().flatten().collect();
        // The buffers are allocated with exactly these sizes, so neither conversion can fail.
        RecordedNoise {
            initial: Array4::from_shape_vec((n, c, h, w), self.initial.into_inner()).unwrap_or_default(),
            steps: Array5::from_shape_vec((count, n, c, h, w), flat).unwrap_or_default(),
        }
    }
}

impl<S: Noise> Noise for RecordingNoise<S> {
    fn fill(&self, purpose: Purpose, sample: usize, out: &mut [f64]) -> Result<(), DenoiserError> {
        self.inner.fill(purpose, sample, out)?;
        let [n, c, h, w] = self.shape;
        if sample >= n || out.len() != c * h * w {
            return Err(DenoiserError::Noise {
                what: "the record",
                expected: format!("sample {sample} of {} values", out.len()),
                found: format!("shape {:?}", self.shape),
                remedy: "record with the shape [N, C, H, W] of all samples",
            });
        }
        let range = sample * out.len()..(sample + 1) * out.len();
        let keep = |buffer: &mut Vec<f32>| {
            for (kept, &value) in buffer[range].iter_mut().zip(out.iter()) {
                *kept = value as f32;
            }
        };
        match purpose {
            Purpose::Initial => keep(&mut self.initial.borrow_mut()),
            Purpose::Step(k) => {
                let mut steps = self.steps.borrow_mut();
                while steps.len() <= k {
                    steps.push(vec![0.0; n * c * h * w]);
                }
                keep(&mut steps[k]);
            }
        }
        Ok(())
    }
}
