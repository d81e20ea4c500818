//! A network small enough to be checked by hand, and data to train it on.

use ndarray::{Array2, Array4, ArrayView4, Axis};
use tweedie_data::Dataset;
use tweedie_denoiser::{Condition, DenoiserError, Network, NetworkGrad, Params, Role};
use tweedie_schedule::TimestepMapping;
use tweedie_train::{AdamW, NoiseConfig, RunLength, TrainConfig};

/// `f(x, t, y) = scale_t x + offset_t + label_y + W x`, with gradients by hand.
///
/// `W` is optional; two buffers count the passes and follow the mean of the input, as BatchNorm's do.
pub struct Tiny {
    params: Params,
    classes: usize,
    null: bool,
    dense: bool,
    passes: u64,
    /// The pass (from 1) whose output is this number.
    pub poison: Option<(u64, f32)>,
    /// The pass (from 1) whose gradient is infinite, although its loss is not.
    pub poison_gradient: Option<u64>,
    /// The pass (from 1) that leaves a NaN among the running statistics, although loss and gradient are finite.
    pub poison_mean: Option<u64>,
    /// Extra channels of the output, which no target has.
    pub extra_channels: usize,
}

impl Tiny {
    /// A network for `steps` noise steps, one-based, and images of `pixels` pixels; `W` only if `dense`.
    pub fn new(steps: usize, classes: usize, pixels: usize, dense: bool) -> Self {
        let mut params = Params::new();
        params.add("scale", &[steps, 1], Role::Weight);
        params.add("offset", &[steps], Role::Weight);
        params.add("label", &[classes, 1], Role::Weight);
        params.add("mean", &[1], Role::Buffer);
        if dense {
            params.add("dense", &[pixels, pixels], Role::Weight);
        }
        params.add("passes", &[], Role::Counter);
        let (poison, poison_gradient, poison_mean) = (None, None, None);
        Self { params, classes, null: true, dense, passes: 0, poison, poison_gradient, poison_mean, extra_channels: 0 }
    }

    /// Without a null condition.
    pub fn without_null(mut self) -> Self {
        self.null = false;
        self
    }

    fn output(&self, x: ArrayView4<'_, f32>, timesteps: &[f64], condition: &Condition) -> Array4<f32> {
        let get = |name| self.params.get(name).unwrap();
        let mut out = x.to_owned();
        for (i, mut image) in out.outer_iter_mut().enumerate() {
            let t = timesteps[i] as usize - 1;
            let shift = get("offset")[t] + condition.as_labels()[i].map_or(0.0, |y| get("label")[y]);
            image.mapv_inplace(|v| get("scale")[t] * v + shift);
        }
        if self.dense {
            let (n, pixels) = (x.dim().0, x.len() / x.dim().0);
            let w = Array2::from_shape_vec((pixels, pixels), get("dense").to_vec()).unwrap();
            let product = x.to_shape((n, pixels)).unwrap().dot(&w);
            out += &product.to_shape(x.dim()).unwrap();
        }
        out
    }
}

impl Network for Tiny {
    fn predict(
        &self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
    ) -> Result<Array4<f32>, DenoiserError> {
        Ok(self.output(x, timesteps, condition))
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn has_null_condition(&self) -> bool {
        self.null
    }
}

impl NetworkGrad for Tiny {
    fn params(&self) -> &Params {
        &self.params
    }

    fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    fn forward_backward(
        &mut self,
        x: ArrayView4<'_, f32>,
        timesteps: &[f64],
        condition: &Condition,
        loss: &mut dyn FnMut(ArrayView4<'_, f32>) -> Array4<f32>,
        grads: &mut [f32],
    ) -> Result<Array4<f32>, DenoiserError> {
        self.passes += 1;
        let mean = x.mean().unwrap();
        let mut output = self.output(x, timesteps, condition);
        let running = &mut self.params.get_mut("mean").unwrap()[0];
        *running = 0.9 * *running + 0.1 * mean;
        self.params.get_mut("passes").unwrap()[0] += 1.0;
        if let Some((pass, value)) = self.poison
            && pass == self.passes
        {
            output[(0, 0, 0, 0)] = value;
            self.params.get_mut("mean").unwrap()[0] = value;
        }
        if self.poison_mean == Some(self.passes) {
            self.params.get_mut("mean").unwrap()[0] = f32::NAN;
        }
        if self.extra_channels > 0 {
            let (n, _, h, w) = x.dim();
            output.append(Axis(1), Array4::zeros((n, self.extra_channels, h, w)).view()).unwrap();
        }
        let dout = loss(output.view());
        assert_eq!(dout.dim(), output.dim(), "the gradient has the shape of the output");
        if self.extra_channels > 0 {
            return Ok(x.to_owned());
        }
        let at = |name: &str| self.params.find(name).unwrap().range.start;
        let (scale, offset, label) = (at("scale"), at("offset"), at("label"));
        let mut dx = dout.clone();
        for (i, d) in dout.outer_iter().enumerate() {
            let t = timesteps[i] as usize - 1;
            grads[scale + t] += (&d * &x.index_axis(Axis(0), i)).sum();
            grads[offset + t] += d.sum();
            if let Some(y) = condition.as_labels()[i] {
                grads[label + y] += d.sum();
            }
            dx.index_axis_mut(Axis(0), i).mapv_inplace(|v| v * self.params.values()[scale + t]);
        }
        if self.dense {
            let (n, pixels) = (x.dim().0, x.len() / x.dim().0);
            let dw = x.to_shape((n, pixels)).unwrap().t().dot(&dout.to_shape((n, pixels)).unwrap());
            let start = at("dense");
            for (g, d) in grads[start..start + pixels * pixels].iter_mut().zip(&dw) {
                *g += d;
            }
        }
        if self.poison_gradient == Some(self.passes) {
            grads[0] = f32::INFINITY;
        }
        Ok(dx)
    }
}

/// `n` images `[1, side, side]` of three classes: class y is brighter by y, with a fixed texture.
pub fn toy_data(n: usize, side: usize) -> Dataset {
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    let pixel = |i: usize, p: usize| 40 + 60 * (i % 3) + (i * 7919 + p * 131) % 70;
    let images = (0..n).flat_map(|i| (0..side * side).map(move |p| pixel(i, p) as u8)).collect();
    Dataset::new("toy", [1, side, side], images, Some(labels)).unwrap()
}

/// The same images without labels.
pub fn unlabelled(data: &Dataset) -> Dataset {
    let images = (0..data.len()).flat_map(|i| data.image(i).unwrap().to_vec()).collect();
    Dataset::new("unlabelled", data.shape(), images, None).unwrap()
}

/// A configuration for [`Tiny`] with four noise steps.
pub fn config() -> TrainConfig {
    TrainConfig {
        seed: 11,
        length: RunLength::Steps(1000),
        batch: 8,
        timestep: TimestepMapping::OneBased,
        lr: 0.01,
        lr_warmup: 5,
        noise: NoiseConfig { train_steps: 4, beta_start: 0.1, beta_end: 0.6, ..NoiseConfig::default() },
        adamw: AdamW { weight_decay: 0.0, ..AdamW::default() },
        ..TrainConfig::default()
    }
}
