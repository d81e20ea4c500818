//! The parameters of a network while it is being built, and its convolution weights in the kernels' packed form.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use tweedie_denoiser::{ParamTable, Params, Role};
use tweedie_kernels::conv::Filter;

use crate::init::{self, Fill, Init};
use crate::tensor::Pool;

/// What a layer needs of its network during a pass.
pub(crate) struct Pass<'a> {
    /// All parameters, see [`Params::values`].
    pub values: &'a [f32],
    /// The packed weights, by the position that [`Builder::filter`] gave out.
    pub filters: &'a [Filter],
    /// Where activations get their memory.
    pub pool: &'a Pool,
    /// In training with dropout, a key for every sample; else empty.
    pub dropout: &'a [u64],
}

/// Where one weight to be packed lies, and its shape.
#[derive(Clone, Debug)]
pub(crate) struct FilterSpec {
    pub kernel: usize,
    pub stride: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub weight: Range<usize>,
}

/// Collects the parameters of the layers while a network is being built.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    pub params: ParamTable,
    pub filters: Vec<FilterSpec>,
    pub fills: Vec<Fill>,
}

impl Builder {
    /// A parameter with the rule for its first values.
    pub fn add(&mut self, name: String, shape: &[usize], role: Role, fill: Fill) -> Range<usize> {
        self.fills.push(fill);
        self.params.add(name, shape, role)
    }

    /// Registers a convolution weight (OIHW) to be packed.
    pub fn filter(&mut self, spec: FilterSpec) -> usize {
        self.filters.push(spec);
        self.filters.len() - 1
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

    /// The parameters, to be changed: the packed weights are out of date from here on.
    pub fn params_mut(&mut self) -> &mut Params {
        self.packed.get_mut().unwrap_or_else(PoisonError::into_inner).fresh = Fresh::Stale;
        &mut self.params
    }

    /// Floats of the packed weights that a forward pass reads.
    pub fn packed_floats(&self) -> usize {
        self.specs.iter().map(|s| Filter::forward_floats(s.kernel, s.stride, s.c_in, s.c_out)).sum()
    }

    /// Draws the first values of every parameter.
    pub fn initialise(&mut self, init: Init, seed: u64) {
        self.packed.get_mut().unwrap_or_else(PoisonError::into_inner).fresh = Fresh::Stale;
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
        let filters = Arc::new(self.pack(self.empty(), least == Fresh::Both));
        let mut packed = lock();
        // Another thread may have packed more meanwhile.
        if packed.fresh < least {
            *packed = Packed { filters: filters.clone(), fresh: least };
        }
        filters
    }

    /// The packed weights for a forward and a backward pass.
    pub fn for_training(&mut self) -> Arc<Vec<Filter>> {
        let packed = std::mem::take(self.packed.get_mut().unwrap_or_else(PoisonError::into_inner));
        let filters = if packed.fresh == Fresh::Both {
            packed.filters
        } else {
            let filters = Arc::try_unwrap(packed.filters).unwrap_or_default();
            let filters = if filters.is_empty() { self.empty() } else { filters };
            Arc::new(self.pack(filters, true))
        };
        *self.packed.get_mut().unwrap_or_else(PoisonError::into_inner) =
            Packed { filters: filters.clone(), fresh: Fresh::Both };
        filters
    }

    fn empty(&self) -> Vec<Filter> {
        let empty = |s: &FilterSpec| match s.stride {
            1 => Filter::same(s.kernel, s.c_in, s.c_out),
            _ => Filter::strided(s.kernel, s.c_in, s.c_out),
        };
        self.specs.iter().map(empty).collect()
    }

    fn pack(&self, mut filters: Vec<Filter>, backward: bool) -> Vec<Filter> {
        filters.par_iter_mut().zip(&self.specs).for_each(|(filter, spec)| {
            filter.pack(&self.params.values()[spec.weight.clone()], backward);
        });
        filters
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
