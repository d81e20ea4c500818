//! The textbook U-Net in burn, as a peer of the benchmark, with the backend `flex`: burn's own kernels for processors. Its other
//! one, `cpu`, needs LLVM's libraries.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use bench_protocol::{Job, LEARNING_RATE, Peer, Tensors, position};
use burn::module::{Module, Param, RunningState};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::interpolate::{Interpolate2d, Interpolate2dConfig, InterpolateMode};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Reads tensors of the model directory.
struct Reader {
    file: Tensors,
    device: Device,
}

impl Reader {
    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        let (shape, values) = self.file.f32(name)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), &self.device))
    }

    fn param<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>> {
        Ok(Param::from_tensor(self.tensor(name)?))
    }

    fn conv(&self, name: &str, padding: usize) -> Result<Conv2d> {
        let weight: Param<Tensor<4>> = self.param(&format!("{name}.weight"))?;
        let [c_out, c_in, height, width] = weight.dims();
        let mut conv = Conv2dConfig::new([c_in, c_out], [height, width])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .init(&self.device);
        conv.weight = weight;
        conv.bias = Some(self.param(&format!("{name}.bias"))?);
        Ok(conv)
    }

    fn linear(&self, name: &str) -> Result<Linear> {
        // Burn's matrix is the transpose of PyTorch's.
        let (shape, values) = self.file.f32(&format!("{name}.weight"))?;
        let (d_out, d_in) = (shape[0], shape[1]);
        let turned: Vec<f32> = (0..d_in * d_out).map(|i| values[i % d_out * d_in + i / d_out]).collect();
        let mut linear = LinearConfig::new(d_in, d_out).init(&self.device);
        linear.weight = Param::from_tensor(Tensor::from_data(TensorData::new(turned, [d_in, d_out]), &self.device));
        linear.bias = Some(self.param(&format!("{name}.bias"))?);
        Ok(linear)
    }

    fn norm(&self, name: &str) -> Result<BatchNorm> {
        let gamma: Param<Tensor<1>> = self.param(&format!("{name}.weight"))?;
        let mut norm = BatchNormConfig::new(gamma.dims()[0]).init(&self.device);
        norm.gamma = gamma;
        norm.beta = self.param(&format!("{name}.bias"))?;
        norm.running_mean = RunningState::new(self.tensor(&format!("{name}.running_mean"))?);
        norm.running_var = RunningState::new(self.tensor(&format!("{name}.running_var"))?);
        Ok(norm)
    }

    fn block(&self, name: &str) -> Result<Block> {
        Ok(Block {
            conv0: self.conv(&format!("{name}.convs.0"), 1)?,
            norm1: self.norm(&format!("{name}.convs.1"))?,
            conv3: self.conv(&format!("{name}.convs.3"), 1)?,
            norm4: self.norm(&format!("{name}.convs.4"))?,
            mlp0: self.linear(&format!("{name}.mlp.0"))?,
            mlp2: self.linear(&format!("{name}.mlp.2"))?,
        })
    }
}

#[derive(Module, Debug)]
struct Block {
    conv0: Conv2d,
    norm1: BatchNorm,
    conv3: Conv2d,
    norm4: BatchNorm,
    mlp0: Linear,
    mlp2: Linear,
}

impl Block {
    fn forward(&self, x: Tensor<4>, v: Tensor<2>) -> Tensor<4> {
        let added = self.mlp2.forward(relu(self.mlp0.forward(v)));
        let [n, c] = added.dims();
        let h = x + added.reshape([n, c, 1, 1]);
        let h = relu(self.norm1.forward(self.conv0.forward(h)));
        relu(self.norm4.forward(self.conv3.forward(h)))
    }
}

#[derive(Module, Debug)]
struct Network {
    down1: Block,
    down2: Block,
    bot1: Block,
    up2: Block,
    up1: Block,
    out: Conv2d,
    label_emb: Param<Tensor<2>>,
    pool: MaxPool2d,
    double: Interpolate2d,
}

impl Network {
    fn load(reader: &Reader) -> Result<Self> {
        Ok(Self {
            down1: reader.block("down1")?,
            down2: reader.block("down2")?,
            bot1: reader.block("bot1")?,
            up2: reader.block("up2")?,
            up1: reader.block("up1")?,
            out: reader.conv("out", 0)?,
            label_emb: reader.param("label_emb.weight")?,
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            double: Interpolate2dConfig::new()
                .with_scale_factor(Some([2.0, 2.0]))
                .with_mode(InterpolateMode::Linear)
                .with_align_corners(false)
                .init(),
        })
    }

    fn forward(&self, inputs: &Inputs) -> Tensor<4> {
        let emb = self.label_emb.val().select(0, inputs.labels.clone());
        let v = inputs.position.clone() + emb * inputs.known.clone();
        let skip1 = self.down1.forward(inputs.sample.clone(), v.clone());
        let skip2 = self.down2.forward(self.pool.forward(skip1.clone()), v.clone());
        let h = self.bot1.forward(self.pool.forward(skip2.clone()), v.clone());
        let h = self.up2.forward(Tensor::cat(vec![self.double.forward(h), skip2], 1), v.clone());
        let h = self.up1.forward(Tensor::cat(vec![self.double.forward(h), skip1], 1), v);
        self.out.forward(h)
    }
}

struct Inputs {
    sample: Tensor<4>,
    position: Tensor<2>,
    labels: Tensor<1, Int>,
    /// One for each sample that has a label, zero for the others.
    known: Tensor<2>,
}

struct Burn {
    /// Taken out for the time of a training step.
    network: Option<Network>,
    inputs: Inputs,
    target: Tensor<4>,
    optimiser: ModuleOptimizer,
}

impl Burn {
    fn load(job: &Job) -> Result<Self> {
        // A device without gradients computes in evaluation mode.
        let device = if job.train { Device::flex().autodiff() } else { Device::flex() };
        let network = Network::load(&Reader { file: job.weights()?, device: device.clone() })?;
        let file = job.inputs()?;
        let (shape, sample) = file.f32("sample")?;
        let (n, [_, embed]) = (shape[0], network.label_emb.dims());
        let labels = file.i64("class_labels")?;
        let known: Vec<f32> = labels.iter().map(|&y| if y >= 0 { 1.0 } else { 0.0 }).collect();
        let rows: Vec<i64> = labels.iter().map(|&y| y.max(0)).collect();
        let inputs = Inputs {
            sample: Tensor::from_data(TensorData::new(sample, shape), &device),
            position: Tensor::from_data(
                TensorData::new(position(&file.f32("timestep")?.1, embed), [n, embed]),
                &device,
            ),
            labels: Tensor::from_data(TensorData::new(rows, [n]), &device),
            known: Tensor::from_data(TensorData::new(known, [n, 1]), &device),
        };
        let (shape, target) = job.expected()?.f32("target")?;
        Ok(Self {
            network: Some(network),
            inputs,
            target: Tensor::from_data(TensorData::new(target, shape), &device),
            optimiser: AdamConfig::new().with_epsilon(1e-8).init(),
        })
    }
}

impl Peer for Burn {
    fn forward(&mut self) -> Result<Vec<f32>> {
        let network = self.network.as_ref().context("a training step has failed before")?;
        let data = network.forward(&self.inputs).into_data();
        data.try_to_vec().map_err(|error| anyhow::anyhow!("the output is no tensor of f32: {error:?}"))
    }

    fn train(&mut self) -> Result<f64> {
        let network = self.network.take().context("a training step has failed before")?;
        let loss = (network.forward(&self.inputs) - self.target.clone()).powi_scalar(2).mean();
        let value: f32 = loss.clone().into_scalar();
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        self.network = Some(self.optimiser.step(LEARNING_RATE, network, gradients));
        Ok(f64::from(value))
    }
}

fn main() -> Result<()> {
    let versions = serde_json::json!({ "burn": "0.22.1" });
    bench_protocol::run(versions, &["book"], Burn::load)
}
