//! One learned vector per class label or time step.

use std::ops::Range;

use tweedie_denoiser::Role;
use tweedie_kernels::embedding;

use crate::init::Fill;
use crate::summary::Summary;
use crate::tensor::Tensor;
use crate::weights::{Builder, Pass};

/// A table of `rows` vectors, of which one may be frozen at zero.
#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    name: String,
    pub rows: usize,
    pub c: usize,
    frozen: Option<usize>,
    table: Range<usize>,
}

impl Embedding {
    pub fn new(b: &mut Builder, name: &str, rows: usize, c: usize, frozen: Option<usize>) -> Self {
        let fill = Fill::Normal { deviation: 1.0, width: c, frozen };
        let table = b.add(format!("{name}.weight"), &[rows, c], Role::Weight, fill);
        Self { name: name.to_owned(), rows, c, frozen, table }
    }

    /// `[n, 1, 1, c]`; zeros for a sample without an id.
    pub fn forward(&self, p: &Pass<'_>, ids: &[Option<usize>]) -> Tensor {
        let mut y = p.pool.tensor([ids.len(), 1, 1, self.c]);
        embedding::forward(&p.values[self.table.clone()], self.c, ids, &mut y.data);
        y
    }

    /// The frozen row gets no gradient.
    pub fn backward(&self, ids: &[Option<usize>], dy: &Tensor, grads: &mut [f32]) {
        if grads.is_empty() {
            return;
        }
        let trained: Vec<_> = ids.iter().map(|id| id.filter(|_| *id != self.frozen)).collect();
        embedding::backward(self.c, &trained, &dy.data, &mut grads[self.table.clone()]);
    }

    pub fn describe(&self, s: &mut Summary) {
        s.push(&self.name, format!("Embedding({})", self.rows), [self.c, 1, 1], self.table.len(), 0);
    }
}
