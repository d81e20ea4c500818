//! The embedding of time and class that every residual block receives.

use std::f64::consts::TAU;
use std::ops::Range;
use std::sync::Arc;

use tweedie_denoiser::Role;
use tweedie_kernels::act::{self, Act};
use tweedie_kernels::sinusoid;

use super::config::{Classes, Config, SinusoidOrder, TimeEmbedding};
use crate::init::Fill;
use crate::layers::{Embedded, EmbeddedGradient, Embedding, Linear, Place};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// The function of the time that the embedding begins with.
#[derive(Clone, Debug)]
enum Projection {
    /// Sines and cosines of fixed frequencies, as many numbers as the width.
    Positional { order: SinusoidOrder, freq_shift: f64, width: usize },
    /// `[sin(2 pi w ln t), cos(2 pi w ln t)]` for every stored frequency w, which are not trained.
    Fourier(Range<usize>),
    /// A row of a table.
    Learned(Embedding),
}

/// Two linear layers with SiLU between them.
#[derive(Clone, Debug)]
struct Mlp {
    linear_1: Linear,
    linear_2: Linear,
}

/// The class embedding.
#[derive(Clone, Debug)]
enum Labels {
    Table(Embedding),
    /// The label is treated as a time.
    Timestep(Mlp),
}

/// `e = W2 SiLU(W1 projection(t) + b1) + b2 + class embedding`, and its activation.
#[derive(Clone, Debug)]
pub(super) struct Embed {
    act: Act,
    projection: Projection,
    time: Mlp,
    labels: Option<Labels>,
}

fn activate(p: &Pass<'_>, act: Act, x: &Tensor) -> Tensor {
    let mut y = p.pool.tensor(x.shape());
    act::forward(act, &x.data, &mut y.data);
    y
}

fn activate_backward(p: &Pass<'_>, act: Act, x: &Tensor, dy: &Tensor) -> Tensor {
    let mut dx = p.pool.zeros_like(x);
    act::backward(act, &x.data, &dy.data, &mut dx.data);
    dx
}

/// The rows of a table that times or labels name; those that have none were refused before.
fn rows(numbers: &[f64]) -> Vec<Option<usize>> {
    numbers.iter().map(|&number| Some(number as usize)).collect()
}

/// Labels as times.
fn numbers(ids: &[Option<usize>]) -> Vec<f64> {
    ids.iter().map(|id| id.map_or(f64::NAN, |id| id as f64)).collect()
}

impl Projection {
    fn new(b: &mut Builder, config: &Config) -> Self {
        let width = config.channels[0];
        match config.time_embedding {
            TimeEmbedding::Positional => {
                Self::Positional { order: config.sinusoid, freq_shift: config.freq_shift, width }
            }
            TimeEmbedding::Fourier => {
                let fill = Fill::Normal { deviation: 16.0, width, frozen: None };
                Self::Fourier(b.add("time_proj.weight".to_owned(), &[width], Role::Buffer, fill))
            }
            TimeEmbedding::Learned { steps } => Self::Learned(Embedding::new(b, "time_proj", steps, width, None)),
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Positional { width, .. } => *width,
            Self::Fourier(frequencies) => 2 * frequencies.len(),
            Self::Learned(table) => table.c,
        }
    }

    fn forward(&self, p: &Pass<'_>, times: &[f64]) -> Tensor {
        let mut y = p.pool.tensor([times.len(), 1, 1, self.width()]);
        match self {
            Self::Positional { order, freq_shift, width } => {
                sinusoid::diffusers(times, *width, *order == SinusoidOrder::CosSin, *freq_shift, &mut y.data);
            }
            Self::Fourier(frequencies) => {
                let half = frequencies.len();
                for (time, y) in times.iter().zip(y.data.chunks_exact_mut(2 * half)) {
                    for (k, &frequency) in p.values[frequencies.clone()].iter().enumerate() {
                        let (sin, cos) = (TAU * f64::from(frequency) * time.ln()).sin_cos();
                        (y[k], y[half + k]) = (sin as f32, cos as f32);
                    }
                }
            }
            Self::Learned(table) => return table.forward(p, &rows(times)),
        }
        y
    }
}

impl Mlp {
    fn new(b: &mut Builder, name: &str, width: usize, embedding: usize) -> Self {
        Self {
            linear_1: Linear::new(b, &format!("{name}.linear_1"), width, embedding, Place::Inner),
            linear_2: Linear::new(b, &format!("{name}.linear_2"), embedding, embedding, Place::Inner),
        }
    }

    fn forward(&self, p: &Pass<'_>, s: Tensor, tape: &mut Tape) -> Tensor {
        let h = self.linear_1.forward(p, &s);
        let a = activate(p, Act::Silu, &h);
        let y = self.linear_2.forward(p, &a);
        for saved in [s, h, a] {
            tape.push(saved);
        }
        y
    }

    /// The gradient also goes to the table of a learned projection of `times`.
    fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        dy: &Tensor,
        (projection, times): (&Projection, &[f64]),
        grads: &mut [f32],
    ) {
        let [a, h, s] = std::array::from_fn(|_| tape.pop());
        let da = self.linear_2.backward_new(p, &a, dy, grads);
        let dh = activate_backward(p, Act::Silu, &h, &da);
        match projection {
            Projection::Learned(table) => {
                let ds = self.linear_1.backward_new(p, &s, &dh, grads);
                table.backward(&rows(times), &ds, grads);
            }
            // Of a time itself there is no gradient here.
            _ => self.linear_1.backward_weights(&s, &dh, grads),
        }
    }

    fn describe(&self, s: &mut Summary) {
        self.linear_1.describe(s, [1, 1]);
        self.linear_2.describe(s, [1, 1]);
    }
}

impl Embed {
    pub fn new(b: &mut Builder, config: &Config) -> Self {
        let embedding = config.embedding();
        let projection = Projection::new(b, config);
        let width = projection.width();
        let time = Mlp::new(b, "time_embedding", width, embedding);
        let labels = config.classes.map(|classes| match classes {
            Classes::Table { rows, .. } => {
                Labels::Table(Embedding::new(b, "class_embedding", rows, embedding, classes.null_row()))
            }
            Classes::Timestep { .. } => Labels::Timestep(Mlp::new(b, "class_embedding", width, embedding)),
        });
        Self { act: config.activation.act(), projection, time, labels }
    }

    /// Numbers of the embedding of a sample.
    pub fn width(&self) -> usize {
        self.time.linear_2.c_out
    }

    /// `ids` are the labels of a network that has classes.
    pub fn forward(&self, p: &Pass<'_>, times: &[f64], ids: &[Option<usize>], tape: &mut Tape) -> Embedded {
        let mut e = self.time.forward(p, self.projection.forward(p, times), tape);
        match &self.labels {
            Some(Labels::Table(table)) => e.add(&table.forward(p, ids)),
            Some(Labels::Timestep(mlp)) => {
                e.add(&mlp.forward(p, self.projection.forward(p, &numbers(ids)), tape));
            }
            None => {}
        }
        let active = Arc::new(activate(p, self.act, &e));
        let raw = Arc::new(e);
        tape.push(raw.clone());
        Embedded { raw, active }
    }

    pub fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        gradient: EmbeddedGradient,
        (times, ids): (&[f64], &[Option<usize>]),
        grads: &mut [f32],
    ) {
        let e = tape.pop();
        let mut de = activate_backward(p, self.act, &e, &gradient.active);
        de.add(&gradient.raw);
        match &self.labels {
            Some(Labels::Table(table)) => table.backward(ids, &de, grads),
            Some(Labels::Timestep(mlp)) => {
                mlp.backward(p, tape, &de, (&self.projection, &numbers(ids)), grads);
            }
            None => {}
        }
        self.time.backward(p, tape, &de, (&self.projection, times), grads);
    }

    pub fn describe(&self, s: &mut Summary) {
        match &self.projection {
            Projection::Learned(table) => table.describe(s),
            Projection::Positional { .. } | Projection::Fourier(_) => {}
        }
        self.time.describe(s);
        match &self.labels {
            Some(Labels::Table(table)) => table.describe(s),
            Some(Labels::Timestep(mlp)) => mlp.describe(s),
            None => {}
        }
    }
}
