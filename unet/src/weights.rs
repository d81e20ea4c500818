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
    Kept(&'a [Filter]),
    /// To be packed for each layer's turn, because the next pass will have others.
    Passing(&'a [FilterSpec]),
}

impl Pass<'_> {
    /// Calls `run` with a filter for a pass in this direction.
    pub fn with_filter<R>(&self, filter: usize, direction: Direction, run: impl FnOnce(&Filter) -> R) -> R {
        match self.filters {
            Filters::Kept(filters) => run(&filters[filter]),
            Filters::Passing(specs) => {
                let FilterSpec { kernel, stride, c_in, c_out, ref weight, .. } = specs[filter];
                Filter::with_passing(direction, kernel, stride, [c_in, c_out], &self.values[weight.clone()], run)
            }
        }
    }
}

/// Where one weight to be packed lies, and its shape.
#[derive(Clone, Debug)]
pub(crate) struct FilterSpec {
    kernel: usize,
    stride: usize,
    c_in: usize,
    c_out: usize,
    weight: Range<usize>,
    /// Its position in the table of parameters.
    entry: usize,
}

/// Collects the parameters of the layers while a network is being built.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    pub params: ParamTable,
    filters: Vec<FilterSpec>,
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
            c_in: shape[1],
            c_out: shape[0],
            weight: weight.clone(),
            entry,
        });
        (self.filters.len() - 1, weight)
    }

    /// The finished parameters.
    pub fn finish(self) -> Weights {
        Weights {
            params: self.params.into(),
            fills: self.fills,
            specs: self.filters,
            packed: Mutex::new(Packed::default()),
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
        Ok(RunWeights { params: self.params, values, filters })
    }
}

/// The parameters of a network that is only run: the filters as they are stored, everything else in single precision.
pub(crate) struct RunWeights {
    params: ParamTable,
    values: Vec<f32>,
    filters: Vec<Filter>,
}

impl RunWeights {
    /// Every parameter; of the ranges the lengths alone mean something.
    pub fn expected(&self) -> &[Param] {
        self.params.entries()
    }

    /// What the layers need.
    pub fn pass<'a>(&'a self, pool: &'a Pool) -> Pass<'a> {
        Pass { values: &self.values, filters: Filters::Kept(&self.filters), pool, dropout: &[] }
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
struct Packed {
    filters: Arc<Vec<Filter>>,
    fresh: Fresh,
}

/// The parameters and their packed form, which is made when first needed after a change.
pub(crate) struct Weights {
    params: Params,
    fills: Vec<Fill>,
    specs: Vec<FilterSpec>,
    packed: Mutex<Packed>,
}

impl Weights {
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The parameters, to be changed: the packed weights are out of date from here on, and given up.
    pub fn params_mut(&mut self) -> &mut Params {
        *self.packed.get_mut().unwrap_or_else(PoisonError::into_inner) = Packed::default();
        &mut self.params
    }

    /// Floats of the packed weights that a forward pass reads.
    pub fn packed_floats(&self) -> usize {
        self.specs.iter().map(|s| Filter::forward_floats(s.kernel, s.stride, s.c_in, s.c_out)).sum()
    }

    /// Draws the first values of every parameter.
    pub fn initialise(&mut self, init: Init, seed: u64) {
        *self.packed.get_mut().unwrap_or_else(PoisonError::into_inner) = Packed::default();
        init::initialise(&mut self.params, &self.fills, init, seed);
    }

    /// The parameters, to change entries that are not packed (running statistics).
    pub fn buffers_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// The packed weights for a forward pass.
    pub fn for_predict(&self) -> Arc<Vec<Filter>> {
        self.shared(Fresh::Forward)
    }

    /// The packed weights for a forward and a backward pass of a network that is not being trained.
    pub fn for_gradient(&self) -> Arc<Vec<Filter>> {
        self.shared(Fresh::Both)
    }

    fn shared(&self, least: Fresh) -> Arc<Vec<Filter>> {
        let lock = || self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let packed = lock();
        if packed.fresh >= least {
            return packed.filters.clone();
        }
        // Packing may run on the thread pool, so the lock is not held meanwhile: a thread that waits for its share
        // may be given another prediction of the same network.
        drop(packed);
        let filters = Arc::new(self.pack(least == Fresh::Both));
        let mut packed = lock();
        // Another thread may have packed more meanwhile.
        if packed.fresh < least {
            *packed = Packed { filters: filters.clone(), fresh: least };
        }
        filters
    }

    /// The weights for a forward and a backward pass after which they change.
    pub fn for_training(&self) -> Filters<'_> {
        Filters::Passing(&self.specs)
    }

    fn pack(&self, backward: bool) -> Vec<Filter> {
        let packed = |s: &FilterSpec| {
            let new = if s.stride == 1 { Filter::same } else { Filter::strided };
            let mut filter = new(s.kernel, s.c_in, s.c_out);
            filter.pack(&self.params.values()[s.weight.clone()], backward);
            filter
        };
        self.specs.par_iter().map(packed).collect()
    }
}

impl Clone for Weights {
    fn clone(&self) -> Self {
        Self {
            params: self.params.clone(),
            fills: self.fills.clone(),
            specs: self.specs.clone(),
            packed: Mutex::new(Packed::default()),
        }
    }
}
