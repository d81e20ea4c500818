//! The parameters of a network while it is being built, and its convolution weights in the kernels' packed form.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use tweedie_denoiser::{Param, ParamTable, Params, Role};
use tweedie_kernels::conv::{Direction, Filter};

use crate::init::{self, Fill, Init};
use crate::tensor::Pool;
use crate::{UnetError, WeightSource};

/// What a layer needs of its network during a pass.
pub(crate) struct Pass<'a> {
    /// All parameters, see [`Params::values`].
    pub values: &'a [f32],
    /// The weights of convolutions and linear layers.
    pub filters: Filters<'a>,
    /// Where activations get their memory.
    pub pool: &'a Pool,
    /// In training with dropout, a key for every sample; else empty.
    pub dropout: &'a [u64],
}

/// The weights of convolutions and linear layers, by the position that [`Builder::filter`] gave out.
#[derive(Clone, Copy)]
pub(crate) enum Filters<'a> {
    /// Packed for many passes.
    Kept(&'a Packed),
    /// To be packed for each layer's turn, because the next pass will have others.
    Passing(&'a [FilterSpec]),
}

impl<'a> Pass<'a> {
    /// Calls `run` with a filter for a pass in this direction.
    pub fn with_filter<R>(&self, filter: usize, direction: Direction, run: impl FnOnce(&Filter) -> R) -> R {
        match self.filters {
            Filters::Kept(packed) => run(&packed.filters[filter]),
            Filters::Passing(specs) => {
                let FilterSpec { kernel, stride, c_in, c_out, ref weight, .. } = specs[filter];
                Filter::with_passing(direction, kernel, stride, [c_in, c_out], &self.values[weight.clone()], run)
            }
        }
    }

    /// A filter that is packed for many passes, or stays as it is stored.
    pub fn kept(&self, filter: usize) -> Option<&'a Filter> {
        match self.filters {
            Filters::Kept(packed) => Some(&packed.filters[filter]),
            Filters::Passing(_) => None,
        }
    }

    /// The layer that a chain amounts to, by the position that [`Builder::chain`] gave out, with its bias; none where weights change
    /// from pass to pass, or stay as they are stored.
    pub fn chain(&self, chain: usize) -> Option<(&'a Filter, &'a [f32])> {
        match self.filters {
            Filters::Kept(packed) => packed.chains.get(chain).map(|(filter, bias)| (filter, &bias[..])),
            Filters::Passing(_) => None,
        }
    }

    /// Whether weights change from pass to pass.
    pub fn is_training(&self) -> bool {
        matches!(self.filters, Filters::Passing(_))
    }
}

/// Weights in the kernels' order.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    filters: Vec<Filter>,
    /// What the chains amount to, for forward passes.
    chains: Vec<(Filter, Vec<f32>)>,
}

/// Two linear layers with nothing between them, which are one.
#[derive(Clone, Debug)]
pub(crate) struct ChainSpec {
    /// `A`, `[inner, c]`, and `a`.
    pub first: (Range<usize>, Option<Range<usize>>),
    /// `B`, `[c, inner]`, or where it is transposed `[inner, c]`, and `b`.
    pub then: (Range<usize>, Option<Range<usize>>),
    pub transposed: bool,
    pub c: usize,
}

impl ChainSpec {
    /// The number of `B` that output `o` has for what passes at `h`.
    fn factor(&self, values: &[f32], o: usize, h: usize) -> f64 {
        let (b, c) = (&values[self.then.0.clone()], self.c);
        f64::from(if self.transposed { b[h * c + o] } else { b[o * (b.len() / c) + h] })
    }

    /// The one layer's weight, `[c, c]`, computed in double precision.
    fn weight(&self, values: &[f32]) -> Vec<f32> {
        let (a, c) = (&values[self.first.0.clone()], self.c);
        let mut weight = vec![0.0; c * c];
        weight.par_chunks_exact_mut(c).enumerate().for_each(|(o, row)| {
            let mut sums = vec![0.0f64; c];
            for (h, a) in a.chunks_exact(c).enumerate() {
                let factor = self.factor(values, o, h);
                sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * f64::from(*a));
            }
            row.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum as f32);
        });
        weight
    }

    /// The one layer's bias, `[c]`, likewise.
    pub fn bias(&self, values: &[f32]) -> Vec<f32> {
        let bias_of = |bias: &Option<Range<usize>>| bias.clone().map(|bias| &values[bias]);
        let (a, b) = (bias_of(&self.first.1), bias_of(&self.then.1).filter(|_| !self.transposed));
        let through = |o: usize, a: &[f32]| -> f64 {
            a.iter().enumerate().map(|(h, a)| self.factor(values, o, h) * f64::from(*a)).sum()
        };
        let of = |o: usize| a.map_or(0.0, |a| through(o, a)) + b.map_or(0.0, |b| f64::from(b[o]));
        (0..self.c).map(|o| of(o) as f32).collect()
    }
}

/// Where one weight to be packed lies, and its shape.
#[derive(Clone, Debug)]
pub(crate) struct FilterSpec {
    kernel: usize,
    stride: usize,
    /// Whether forward passes that keep it packed meet every pixel four times.
    upsamples: bool,
    c_in: usize,
    c_out: usize,
    weight: Range<usize>,
    /// Its position in the table of parameters.
    entry: usize,
}

impl FilterSpec {
    /// Floats that it takes packed for forward passes.
    fn forward_floats(&self) -> usize {
        match self.upsamples {
            true => Filter::upsampled_floats(self.c_in, self.c_out),
            false => Filter::forward_floats(self.kernel, self.stride, self.c_in, self.c_out),
        }
    }
}

/// Collects the parameters of the layers while a network is being built.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    pub params: ParamTable,
    filters: Vec<FilterSpec>,
    chains: Vec<ChainSpec>,
    fills: Vec<Fill>,
    /// Of a network that is only run, the entries of the table that are no filters; their values alone are a vector.
    small: Option<Vec<usize>>,
    small_len: usize,
}

impl Builder {
    /// A builder of a network that is only run: the ranges of filters count numbers, and lie nowhere.
    pub fn run_only() -> Self {
        Self { small: Some(Vec::new()), ..Self::default() }
    }

    /// A parameter with the rule for its first values.
    pub fn add(&mut self, name: String, shape: &[usize], role: Role, fill: Fill) -> Range<usize> {
        self.fills.push(fill);
        let range = self.params.add(name, shape, role);
        match &mut self.small {
            None => range,
            Some(small) => {
                small.push(self.params.entries().len() - 1);
                let start = self.small_len;
                self.small_len += range.len();
                start..self.small_len
            }
        }
    }

    /// The weight of a convolution (OIHW) or of a linear layer (`[out, in]`), which is to be packed: its position among the
    /// filters, and its range.
    pub fn filter(&mut self, name: String, shape: &[usize], stride: usize, fill: Fill) -> (usize, Range<usize>) {
        self.fills.push(fill);
        let weight = self.params.add(name, shape, Role::Weight);
        let kernel = shape.get(2).copied().unwrap_or(1);
        let entry = self.params.entries().len() - 1;
        self.filters.push(FilterSpec {
            kernel,
            stride,
            upsamples: false,
            c_in: shape[1],
            c_out: shape[0],
            weight: weight.clone(),
            entry,
        });
        (self.filters.len() - 1, weight)
    }

    /// Says that forward passes meet every pixel four times with a filter, see [`Filter::upsampled`].
    pub fn upsamples(&mut self, filter: usize) {
        self.filters[filter].upsamples = true;
    }

    /// A chain of layers that forward passes take for one: its position among the chains.
    pub fn chain(&mut self, chain: ChainSpec) -> usize {
        self.chains.push(chain);
        self.chains.len() - 1
    }

    /// The finished parameters.
    pub fn finish(self) -> Weights {
        Weights {
            params: self.params.into(),
            fills: self.fills,
            specs: self.filters,
            chains: self.chains,
            shared: Mutex::new(Shared::default()),
        }
    }

    /// The parameters of a network that is only run.
    ///
    /// # Errors
    /// If `source` does not have one of them, or not in its shape.
    pub fn read(self, source: &dyn WeightSource) -> Result<RunWeights, UnetError> {
        let small = self.small.expect("a network that is only run has a builder of its own");
        let entries = self.params.entries();
        let check = |name: &str, shape: &[usize], found: usize| match shape.iter().product::<usize>() {
            expected if expected == found => Ok(()),
            expected => Err(UnetError::Weight {
                name: name.to_owned(),
                message: format!("should hold {expected} numbers, for the shape {shape:?}, found {found}"),
            }),
        };
        let mut values = Vec::with_capacity(self.small_len);
        for param in small.into_iter().map(|entry| &entries[entry]) {
            let vector = source.vector(&param.name, &param.shape)?;
            check(&param.name, &param.shape, vector.len())?;
            values.extend(vector);
        }
        let filter = |spec: &FilterSpec| {
            let Param { name, shape, .. } = &entries[spec.entry];
            let stored = source.weight(name, shape)?;
            check(name, shape, stored.view().len())?;
            Ok::<_, UnetError>(Filter::streamed(spec.kernel, spec.stride, spec.c_in, spec.c_out, stored))
        };
        let filters = self.filters.iter().map(filter).collect::<Result<_, UnetError>>()?;
        Ok(RunWeights { params: self.params, values, packed: Packed { filters, chains: Vec::new() } })
    }
}

/// The parameters of a network that is only run: the filters as they are stored, everything else in single precision.
pub(crate) struct RunWeights {
    params: ParamTable,
    values: Vec<f32>,
    packed: Packed,
}

impl RunWeights {
    /// Every parameter; of the ranges the lengths alone mean something.
    pub fn expected(&self) -> &[Param] {
        self.params.entries()
    }

    /// What the layers need.
    pub fn pass<'a>(&'a self, pool: &'a Pool) -> Pass<'a> {
        Pass { values: &self.values, filters: Filters::Kept(&self.packed), pool, dropout: &[] }
    }
}

/// How much of the packed weights agrees with the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Fresh {
    /// Nothing: the parameters have changed.
    #[default]
    Stale,
    /// What a forward pass reads.
    Forward,
    /// What forward and backward passes read.
    Both,
}

#[derive(Default)]
struct Shared {
    packed: Arc<Packed>,
    fresh: Fresh,
}

/// The parameters and their packed form, which is made when first needed after a change.
pub(crate) struct Weights {
    params: Params,
    fills: Vec<Fill>,
    specs: Vec<FilterSpec>,
    chains: Vec<ChainSpec>,
    shared: Mutex<Shared>,
}

impl Weights {
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The parameters, to be changed: the packed weights are out of date from here on, and given up.
    pub fn params_mut(&mut self) -> &mut Params {
        *self.shared.get_mut().unwrap_or_else(PoisonError::into_inner) = Shared::default();
        &mut self.params
    }

    /// Floats of the packed weights that a forward pass reads.
    pub fn packed_floats(&self) -> usize {
        let filters = self.specs.iter().map(FilterSpec::forward_floats);
        let chains = self.chains.iter().map(|chain| Filter::forward_floats(1, 1, chain.c, chain.c));
        filters.chain(chains).sum()
    }

    /// Draws the first values of every parameter.
    pub fn initialise(&mut self, init: Init, seed: u64) {
        *self.shared.get_mut().unwrap_or_else(PoisonError::into_inner) = Shared::default();
        init::initialise(&mut self.params, &self.fills, init, seed);
    }

    /// The parameters, to change entries that are not packed (running statistics).
    pub fn buffers_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// The packed weights for a forward pass.
    pub fn for_predict(&self) -> Arc<Packed> {
        self.at_least(Fresh::Forward)
    }

    /// The packed weights for a forward and a backward pass of a network that is not being trained.
    pub fn for_gradient(&self) -> Arc<Packed> {
        self.at_least(Fresh::Both)
    }

    fn at_least(&self, least: Fresh) -> Arc<Packed> {
        let lock = || self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = lock();
        if shared.fresh >= least {
            return shared.packed.clone();
        }
        // Packing may run on the thread pool, so the lock is not held meanwhile: a thread that waits for its share
        // may be given another prediction of the same network.
        drop(shared);
        let packed = Arc::new(self.pack(least == Fresh::Both));
        let mut shared = lock();
        // Another thread may have packed more meanwhile.
        if shared.fresh < least {
            *shared = Shared { packed: packed.clone(), fresh: least };
        }
        packed
    }

    /// The weights for a forward and a backward pass after which they change.
    pub fn for_training(&self) -> Filters<'_> {
        Filters::Passing(&self.specs)
    }

    fn pack(&self, backward: bool) -> Packed {
        let values = self.params.values();
        let filter = |s: &FilterSpec| {
            let mut filter = match s.stride {
                _ if s.upsamples => Filter::upsampled(s.c_in, s.c_out),
                1 => Filter::same(s.kernel, s.c_in, s.c_out),
                _ => Filter::strided(s.kernel, s.c_in, s.c_out),
            };
            filter.pack(&values[s.weight.clone()], backward);
            filter
        };
        let chain = |chain: &ChainSpec| {
            let mut filter = Filter::same(1, chain.c, chain.c);
            filter.pack(&chain.weight(values), false);
            (filter, chain.bias(values))
        };
        Packed {
            filters: self.specs.par_iter().map(filter).collect(),
            chains: self.chains.par_iter().map(chain).collect(),
        }
    }
}

impl Clone for Weights {
    fn clone(&self) -> Self {
        Self {
            params: self.params.clone(),
            fills: self.fills.clone(),
            specs: self.specs.clone(),
            chains: self.chains.clone(),
            shared: Mutex::new(Shared::default()),
        }
    }
}
