//! The textbook U-Net in candle, as a peer of the benchmark.
//!
//! The layers are candle's own wherever it has them. Candle 0.11 has no gradient of bilinear resampling, so in training that
//! is a product with a matrix along each axis; and its gradient of pooling is a quarter of what it should be (it weighs the
//! maxima of a window by their share of the pixels), so in training pooling is a maximum over two axes.
#![forbid(unsafe_code)]

use anyhow::Result;
use bench_protocol::{Job, LEARNING_RATE, Peer, Tensors, position};
use candle_core::{D, Device, Tensor, Var};
use candle_nn::{AdamW, BatchNorm, Conv2d, Conv2dConfig, Linear, Module, ModuleT, Optimizer, ParamsAdamW, loss};

/// Reads tensors and, for training, remembers the trained ones. A forward pass alone records nothing for gradients.
struct Reader {
    file: Tensors,
    train: bool,
    vars: Vec<Var>,
}

impl Reader {
    fn plain(&self, name: &str) -> Result<Tensor> {
        let (shape, values) = self.file.f32(name)?;
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn trained(&mut self, name: &str) -> Result<Tensor> {
        if !self.train {
            return self.plain(name);
        }
        let var = Var::from_tensor(&self.plain(name)?)?;
        let tensor = var.as_tensor().clone();
        self.vars.push(var);
        Ok(tensor)
    }

    fn conv(&mut self, name: &str, padding: usize) -> Result<Conv2d> {
        let (weight, bias) = (self.trained(&format!("{name}.weight"))?, self.trained(&format!("{name}.bias"))?);
        Ok(Conv2d::new(weight, Some(bias), Conv2dConfig { padding, ..Conv2dConfig::default() }))
    }

    fn linear(&mut self, name: &str) -> Result<Linear> {
        let (weight, bias) = (self.trained(&format!("{name}.weight"))?, self.trained(&format!("{name}.bias"))?);
        Ok(Linear::new(weight, Some(bias)))
    }

    fn norm(&mut self, name: &str) -> Result<BatchNorm> {
        let (weight, bias) = (self.trained(&format!("{name}.weight"))?, self.trained(&format!("{name}.bias"))?);
        let (mean, var) = (self.plain(&format!("{name}.running_mean"))?, self.plain(&format!("{name}.running_var"))?);
        Ok(BatchNorm::new(weight.dim(0)?, mean, var, weight, bias, 1e-5)?)
    }

    fn block(&mut self, name: &str) -> Result<Block> {
        Ok(Block {
            convs: [self.conv(&format!("{name}.convs.0"), 1)?, self.conv(&format!("{name}.convs.3"), 1)?],
            norms: [self.norm(&format!("{name}.convs.1"))?, self.norm(&format!("{name}.convs.4"))?],
            mlp: [self.linear(&format!("{name}.mlp.0"))?, self.linear(&format!("{name}.mlp.2"))?],
        })
    }
}

struct Block {
    convs: [Conv2d; 2],
    norms: [BatchNorm; 2],
    mlp: [Linear; 2],
}

impl Block {
    fn forward(&self, x: &Tensor, v: &Tensor, train: bool) -> Result<Tensor> {
        let added = self.mlp[1].forward(&self.mlp[0].forward(v)?.relu()?)?;
        let mut h = x.broadcast_add(&added.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?)?;
        for (conv, norm) in self.convs.iter().zip(&self.norms) {
            h = norm.forward_t(&conv.forward(&h)?, train)?.relu()?;
        }
        Ok(h)
    }
}

struct Network {
    blocks: [Block; 5],
    out: Conv2d,
    label_emb: Tensor,
}

impl Network {
    fn forward(&self, x: &Tensor, inputs: &Inputs, train: bool) -> Result<Tensor> {
        let emb = self.label_emb.index_select(&inputs.labels, 0)?;
        let v = (&inputs.position + emb.broadcast_mul(&inputs.known)?)?;
        let [down1, down2, bot1, up2, up1] = &self.blocks;
        let skip1 = down1.forward(x, &v, train)?;
        let skip2 = down2.forward(&pool(&skip1, train)?, &v, train)?;
        let h = bot1.forward(&pool(&skip2, train)?, &v, train)?;
        let h = up2.forward(&Tensor::cat(&[&double(&h, train)?, &skip2], 1)?, &v, train)?;
        let h = up1.forward(&Tensor::cat(&[&double(&h, train)?, &skip1], 1)?, &v, train)?;
        Ok(self.out.forward(&h)?)
    }
}

/// The maximum of 2x2 pixels.
fn pool(x: &Tensor, train: bool) -> Result<Tensor> {
    if !train {
        return Ok(x.max_pool2d(2)?);
    }
    let (n, c, h, w) = x.dims4()?;
    Ok(x.reshape((n * c * h / 2, 2, w / 2, 2))?.max(3)?.max(1)?.reshape((n, c, h / 2, w / 2))?)
}

/// Twice the height and width, bilinear.
fn double(x: &Tensor, train: bool) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if !train {
        return Ok(x.upsample_bilinear2d(2 * h, 2 * w, false)?);
    }
    let rows = x.reshape((n * c * h, w))?.matmul(&doubling(w)?)?.reshape((n * c, h, 2 * w))?;
    let columns = rows.transpose(1, 2)?.contiguous()?.reshape((n * c * 2 * w, h))?.matmul(&doubling(h)?)?;
    Ok(columns.reshape((n * c, 2 * w, 2 * h))?.transpose(1, 2)?.contiguous()?.reshape((n, c, 2 * h, 2 * w))?)
}

/// The matrix `[size, 2 size]` of bilinear resampling along one axis: weights 3/4 and 1/4, the edge repeated.
fn doubling(size: usize) -> Result<Tensor> {
    let mut weights = vec![0f32; size * 2 * size];
    for out in 0..2 * size {
        let (near, step) = (out / 2, if out % 2 == 0 { -1 } else { 1 });
        let far = near.saturating_add_signed(step).min(size - 1);
        weights[near * 2 * size + out] += 0.75;
        weights[far * 2 * size + out] += 0.25;
    }
    Ok(Tensor::from_vec(weights, (size, 2 * size), &Device::Cpu)?)
}

struct Inputs {
    sample: Tensor,
    position: Tensor,
    labels: Tensor,
    /// One for each sample that has a label, zero for the others.
    known: Tensor,
}

struct Candle {
    network: Network,
    inputs: Inputs,
    target: Tensor,
    optimiser: AdamW,
}

impl Candle {
    fn load(job: &Job) -> Result<Self> {
        let device = Device::Cpu;
        let mut reader = Reader { file: job.weights()?, train: job.train, vars: Vec::new() };
        let [a, b, c, d, e] = ["down1", "down2", "bot1", "up2", "up1"].map(|name| reader.block(name));
        let network = Network {
            blocks: [a?, b?, c?, d?, e?],
            out: reader.conv("out", 0)?,
            label_emb: reader.trained("label_emb.weight")?,
        };
        let file = job.inputs()?;
        let (shape, sample) = file.f32("sample")?;
        let (n, embed) = (shape[0], network.label_emb.dim(1)?);
        let labels = file.i64("class_labels")?;
        let known: Vec<f32> = labels.iter().map(|&y| if y >= 0 { 1.0 } else { 0.0 }).collect();
        let rows: Vec<u32> = labels.iter().map(|&y| y.max(0) as u32).collect();
        let inputs = Inputs {
            sample: Tensor::from_vec(sample, shape, &device)?,
            position: Tensor::from_vec(position(&file.f32("timestep")?.1, embed), (n, embed), &device)?,
            labels: Tensor::from_vec(rows, n, &device)?,
            known: Tensor::from_vec(known, (n, 1), &device)?,
        };
        let (shape, target) = job.expected()?.f32("target")?;
        // Without decay, AdamW is Adam.
        let params = ParamsAdamW { lr: LEARNING_RATE, weight_decay: 0.0, ..ParamsAdamW::default() };
        Ok(Self {
            target: Tensor::from_vec(target, shape, &device)?,
            optimiser: AdamW::new(reader.vars, params)?,
            network,
            inputs,
        })
    }
}

impl Peer for Candle {
    fn forward(&mut self) -> Result<Vec<f32>> {
        let output = self.network.forward(&self.inputs.sample, &self.inputs, false)?;
        Ok(output.flatten_all()?.to_vec1()?)
    }

    fn train(&mut self) -> Result<f64> {
        let output = self.network.forward(&self.inputs.sample, &self.inputs, true)?;
        let loss = loss::mse(&output, &self.target)?;
        self.optimiser.backward_step(&loss)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}

fn main() -> Result<()> {
    let versions = serde_json::json!({ "candle": "0.11.1" });
    bench_protocol::run(versions, &["book"], Candle::load)
}
