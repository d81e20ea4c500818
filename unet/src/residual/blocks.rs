//! The levels of the residual U-Net.

use std::sync::Arc;

use tweedie_kernels::act::Act;
use tweedie_kernels::rescale::Edge;

use super::config::Config;
use super::plan::{DownPlan, DownSampler, IMAGE_CHANNELS, LayerPlan, MidPlan, UpPlan, UpSampler};
use crate::layers::{
    Attention, Conv, Downsample, Embedded, EmbeddedGradient, Gradient, GroupNorm, Place, Rescaling, Resnet,
    ResnetCommon, ResnetShape, Upsample, concat, concat_backward,
};
use crate::summary::Summary;
use crate::tensor::{Tape, Tensor};
use crate::weights::{Builder, Pass};

/// How the image of [`Block::Skip`](super::Block::Skip) changes its size.
const IMAGE_DOWN: Rescaling = Rescaling::FirDown(Edge::Zero);
const IMAGE_UP: Rescaling = Rescaling::FirUp(Edge::Zero);

/// What passes from level to level.
pub(super) struct Flow {
    pub hidden: Arc<Tensor>,
    pub skips: Vec<Arc<Tensor>>,
    /// The image that some blocks carry along.
    pub image: Option<Arc<Tensor>>,
}

/// The gradients of a [`Flow`] and of the time embedding.
pub(super) struct Backflow {
    pub hidden: Tensor,
    /// None for a skip connection that is never read.
    pub skips: Vec<Option<Tensor>>,
    pub image: Option<Tensor>,
    pub embedded: EmbeddedGradient,
}

impl Backflow {
    /// Takes the gradient of the skip connection made last.
    pub fn add_skip(&mut self) {
        if let Some(skip) = self.skips.pop().expect("the way up has met every skip") {
            self.hidden.add(&skip);
        }
    }

    /// Another gradient of the image.
    fn add_image(&mut self, gradient: Tensor) {
        match &mut self.image {
            Some(image) => image.add(&gradient),
            None => self.image = Some(gradient),
        }
    }

    /// Replaces the gradient of an output by that of its input.
    fn through(&mut self, p: &Pass<'_>, backward: impl FnOnce(Tensor, &mut EmbeddedGradient) -> Tensor) {
        let hidden = std::mem::replace(&mut self.hidden, p.pool.tensor([0; 4]));
        self.hidden = backward(hidden, &mut self.embedded);
    }
}

fn resnet(b: &mut Builder, config: &Config, name: &str, shape: ResnetShape) -> Resnet {
    let common = ResnetCommon {
        embedding: config.embedding(),
        eps: config.norm_eps as f32,
        act: config.activation.act(),
        dropout: config.dropout as f32,
    };
    Resnet::new(b, name, shape, common)
}

/// A residual block and the attention after it, if any.
#[derive(Clone, Debug)]
struct Layer {
    resnet: Resnet,
    attention: Option<Attention>,
}

impl Layer {
    /// The attention of position `attended` in its block.
    fn new(b: &mut Builder, config: &Config, name: &str, position: usize, attended: usize, plan: &LayerPlan) -> Self {
        let resnet = resnet(b, config, &format!("{name}.resnets.{position}"), plan.resnet);
        let attention = plan
            .attention
            .map(|shape| Attention::new(b, &format!("{name}.attentions.{attended}"), shape, config.norm_eps as f32));
        Self { resnet, attention }
    }

    fn forward(&self, p: &Pass<'_>, x: Arc<Tensor>, e: &Embedded, tape: &mut Tape) -> Arc<Tensor> {
        let h = self.resnet.forward(p, x, e, tape);
        self.attend(p, h, tape)
    }

    /// [`Layer::forward`] of the joined channels of `x` and `skip`.
    fn forward_joined(&self, p: &Pass<'_>, x: &Tensor, skip: &Tensor, e: &Embedded, tape: &mut Tape) -> Arc<Tensor> {
        let h = self.resnet.forward_joined(p, x, skip, e, tape);
        self.attend(p, h, tape)
    }

    fn attend(&self, p: &Pass<'_>, h: Tensor, tape: &mut Tape) -> Arc<Tensor> {
        let h = Arc::new(h);
        match &self.attention {
            Some(attention) => Arc::new(attention.forward(p, h, tape)),
            None => h,
        }
    }

    fn backward(
        &self,
        p: &Pass<'_>,
        tape: &mut Tape,
        mut dh: Tensor,
        de: &mut EmbeddedGradient,
        grads: &mut [f32],
    ) -> Tensor {
        if let Some(attention) = &self.attention {
            dh = attention.backward(p, tape, dh, grads);
        }
        self.resnet.backward(p, tape, dh, de, grads)
    }

    fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.resnet.describe(s, size);
        if let Some(attention) = &self.attention {
            attention.describe(s, size);
        }
    }
}

/// How a level halves the image.
#[derive(Clone, Debug)]
enum Down {
    Conv(Downsample),
    Resnet(Box<Resnet>),
    Skip { resnet: Box<Resnet>, skip_conv: Conv },
    Filter(Rescaling),
}

/// A level on the way down.
#[derive(Clone, Debug)]
pub(super) struct DownLevel {
    layers: Vec<Layer>,
    sampler: Option<Down>,
}

impl DownLevel {
    pub fn new(b: &mut Builder, config: &Config, level: usize, plan: &DownPlan) -> Self {
        let name = format!("down_blocks.{level}");
        let layers = plan.layers.iter().enumerate();
        let layers = layers.map(|(j, plan)| Layer::new(b, config, &name, j, j, plan)).collect();
        let sampler = plan.sampler.map(|sampler| match sampler {
            DownSampler::Conv { c, pad_before } => {
                Down::Conv(Downsample::new(b, &format!("{name}.downsamplers.0"), c, pad_before))
            }
            DownSampler::Resnet(shape) => {
                Down::Resnet(Box::new(resnet(b, config, &format!("{name}.downsamplers.0"), shape)))
            }
            DownSampler::Skip(shape) => Down::Skip {
                resnet: Box::new(resnet(b, config, &format!("{name}.resnet_down"), shape)),
                skip_conv: Conv::same(b, &format!("{name}.skip_conv"), IMAGE_CHANNELS, shape.c_out, 1, Place::Inner),
            },
            DownSampler::Filter => Down::Filter(Rescaling::FirDown(Edge::Reflect)),
        });
        Self { layers, sampler }
    }

    pub fn forward(&self, p: &Pass<'_>, flow: &mut Flow, e: &Embedded, tape: &mut Tape) {
        for layer in &self.layers {
            flow.hidden = layer.forward(p, flow.hidden.clone(), e, tape);
            flow.skips.push(flow.hidden.clone());
        }
        let Some(sampler) = &self.sampler else { return };
        let h = flow.hidden.clone();
        flow.hidden = Arc::new(match sampler {
            Down::Conv(downsample) => downsample.forward(p, &h, tape),
            Down::Resnet(resnet) => resnet.forward(p, h, e, tape),
            Down::Skip { resnet, skip_conv } => {
                let image = flow.image.take().expect("the image runs beside the levels that need it");
                let image = Arc::new(IMAGE_DOWN.forward(p, &image));
                let mut h = resnet.forward(p, h, e, tape);
                h.add(&skip_conv.forward(p, &image));
                tape.push(image.clone());
                flow.image = Some(image);
                h
            }
            Down::Filter(rescaling) => {
                flow.hidden = Arc::new(rescaling.forward(p, &h));
                return;
            }
        });
        flow.skips.push(flow.hidden.clone());
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, back: &mut Backflow, grads: &mut [f32]) {
        if let Some(sampler) = &self.sampler {
            if !matches!(sampler, Down::Filter(_)) {
                back.add_skip();
            }
            match sampler {
                Down::Conv(downsample) => back.through(p, |dh, _| downsample.backward(p, tape, &dh, grads)),
                Down::Resnet(resnet) => back.through(p, |dh, de| resnet.backward(p, tape, dh, de, grads)),
                Down::Skip { resnet, skip_conv } => {
                    let image = tape.pop();
                    let dimage = skip_conv.backward_new(p, &image, &back.hidden, grads);
                    back.add_image(dimage);
                    back.through(p, |dh, de| resnet.backward(p, tape, dh, de, grads));
                    let [n, h, w, c] = image.shape();
                    back.image = back.image.take().map(|d| IMAGE_DOWN.backward(p, &d, [n, 2 * h, 2 * w, c]));
                }
                Down::Filter(rescaling) => {
                    back.through(p, |dh, _| rescaling.backward(p, &dh, [dh.n, 2 * dh.h, 2 * dh.w, dh.c]));
                }
            }
        }
        for layer in self.layers.iter().rev() {
            back.add_skip();
            back.through(p, |dh, de| layer.backward(p, tape, dh, de, grads));
        }
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        self.layers.iter().for_each(|layer| layer.describe(s, size));
        match &self.sampler {
            None => size,
            Some(Down::Conv(downsample)) => downsample.describe(s, size),
            Some(Down::Resnet(resnet)) => resnet.describe(s, size),
            Some(Down::Skip { resnet, skip_conv }) => {
                let size = resnet.describe(s, size);
                skip_conv.describe(s, size)
            }
            Some(Down::Filter(rescaling)) => rescaling.size(size),
        }
    }
}

/// The middle: `UNetMidBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct Mid {
    first: Layer,
    second: Resnet,
}

impl Mid {
    pub fn new(b: &mut Builder, config: &Config, plan: &MidPlan) -> Self {
        let first = Layer::new(b, config, "mid_block", 0, 0, &plan.first);
        Self { first, second: resnet(b, config, "mid_block.resnets.1", plan.second) }
    }

    pub fn forward(&self, p: &Pass<'_>, flow: &mut Flow, e: &Embedded, tape: &mut Tape) {
        let h = self.first.forward(p, flow.hidden.clone(), e, tape);
        flow.hidden = Arc::new(self.second.forward(p, h, e, tape));
    }

    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, back: &mut Backflow, grads: &mut [f32]) {
        back.through(p, |dh, de| {
            let dh = self.second.backward(p, tape, dh, de, grads);
            self.first.backward(p, tape, dh, de, grads)
        });
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) {
        self.first.describe(s, size);
        self.second.describe(s, size);
    }
}

/// How a level doubles the image.
#[derive(Clone, Debug)]
enum Up {
    Conv(Upsample),
    Resnet(Box<Resnet>),
    Skip { skip_norm: GroupNorm, skip_conv: Conv, resnet: Box<Resnet> },
    Filter(Rescaling),
}

/// A level on the way up.
#[derive(Clone, Debug)]
pub(super) struct UpLevel {
    /// Each layer with the channels of its hidden input, where a skip is joined to it.
    layers: Vec<(Option<usize>, Layer)>,
    /// Skips that are taken and not read.
    unread: usize,
    grows_image: bool,
    sampler: Option<Up>,
}

impl UpLevel {
    /// `position` counts from the coarsest level.
    pub fn new(b: &mut Builder, config: &Config, position: usize, plan: &UpPlan) -> Self {
        let name = format!("up_blocks.{position}");
        // The attentions of a block are numbered among themselves.
        let mut attended = 0..;
        let layers = plan.layers.iter().enumerate().map(|(j, (hidden, plan))| {
            let attended = if plan.attention.is_some() { attended.next().unwrap_or_default() } else { 0 };
            (*hidden, Layer::new(b, config, &name, j, attended, plan))
        });
        let layers = layers.collect();
        let sampler = plan.sampler.map(|sampler| match sampler {
            UpSampler::Conv { c, size } => Up::Conv(Upsample::new(b, &format!("{name}.upsamplers.0"), c, size)),
            UpSampler::Resnet(shape) => Up::Resnet(Box::new(resnet(b, config, &format!("{name}.upsamplers.0"), shape))),
            UpSampler::Skip { resnet: shape, groups } => {
                let (key, c) = (|part: &str| format!("{name}.{part}"), shape.c_in);
                let (eps, end) = (config.norm_eps as f32, Place::EndsResidual);
                Up::Skip {
                    resnet: Box::new(resnet(b, config, &key("resnet_up"), shape)),
                    skip_conv: Conv::same(b, &key("skip_conv"), c, IMAGE_CHANNELS, 3, end),
                    skip_norm: GroupNorm::new(b, &key("skip_norm"), c, groups, eps, Act::Silu),
                }
            }
            UpSampler::Filter => Up::Filter(Rescaling::FirUp(Edge::Reflect)),
        });
        Self { layers, unread: plan.unread, grows_image: plan.grows_image, sampler }
    }

    pub fn forward(&self, p: &Pass<'_>, flow: &mut Flow, e: &Embedded, tape: &mut Tape) {
        for (hidden, layer) in &self.layers {
            if hidden.is_some() {
                let skip = flow.skips.pop().expect("the way down makes every skip that the way up takes");
                if layer.resnet.reads_parts(p, tape) {
                    flow.hidden = layer.forward_joined(p, &flow.hidden, &skip, e, tape);
                    continue;
                }
                flow.hidden = Arc::new(concat(p.pool, &flow.hidden, &skip));
            }
            flow.hidden = layer.forward(p, flow.hidden.clone(), e, tape);
        }
        flow.skips.truncate(flow.skips.len() - self.unread);
        if self.grows_image {
            flow.image = flow.image.take().map(|image| Arc::new(IMAGE_UP.forward(p, &image)));
        }
        let Some(sampler) = &self.sampler else { return };
        let h = flow.hidden.clone();
        flow.hidden = Arc::new(match sampler {
            Up::Conv(upsample) => upsample.forward(p, &h, tape),
            Up::Resnet(resnet) => resnet.forward(p, h, e, tape),
            Up::Skip { skip_norm, skip_conv, resnet } => {
                let (a, stats) = skip_norm.forward(p, &h, None);
                let mut image = skip_conv.forward(p, &a);
                tape.push(h.clone());
                tape.push(stats);
                if let Some(grown) = flow.image.take() {
                    image.add(&grown);
                }
                flow.image = Some(Arc::new(image));
                resnet.forward(p, h, e, tape)
            }
            Up::Filter(rescaling) => rescaling.forward(p, &h),
        });
    }

    /// Appends the gradients of the skips.
    pub fn backward(&self, p: &Pass<'_>, tape: &mut Tape, back: &mut Backflow, grads: &mut [f32]) {
        match &self.sampler {
            None => {}
            Some(Up::Conv(upsample)) => back.through(p, |dh, _| upsample.backward(p, tape, &dh, grads)),
            Some(Up::Resnet(resnet)) => back.through(p, |dh, de| resnet.backward(p, tape, dh, de, grads)),
            Some(Up::Skip { skip_norm, skip_conv, resnet }) => {
                back.through(p, |dh, de| resnet.backward(p, tape, dh, de, grads));
                let (stats, h) = (tape.pop(), tape.pop());
                let dimage = back.image.as_ref().expect("the image reaches the output");
                let a = skip_norm.again(p, (&h, &stats), None);
                let da = skip_conv.backward_new(p, &a, dimage, grads);
                let gradient = Gradient::Added { dy: &da, dx: &mut back.hidden };
                skip_norm.backward(p, (&h, &stats), None, gradient, None, grads);
            }
            Some(Up::Filter(rescaling)) => {
                back.through(p, |dh, _| rescaling.backward(p, &dh, [dh.n, dh.h / 2, dh.w / 2, dh.c]));
            }
        }
        back.image = match back.image.take() {
            Some(d) if self.grows_image => Some(IMAGE_UP.backward(p, &d, [d.n, d.h / 2, d.w / 2, d.c])),
            // The image begins at this level.
            _ if self.begins_image() => None,
            other => other,
        };
        back.skips.extend((0..self.unread).map(|_| None));
        for (hidden, layer) in self.layers.iter().rev() {
            back.through(p, |dh, de| layer.backward(p, tape, dh, de, grads));
            if let Some(c) = *hidden {
                let (dhidden, dskip) = concat_backward(p.pool, &back.hidden, c);
                back.skips.push(Some(dskip));
                back.hidden = dhidden;
            }
        }
    }

    /// Whether it adds to a path of the image.
    pub fn makes_image(&self) -> bool {
        matches!(self.sampler, Some(Up::Skip { .. }))
    }

    /// Whether the path of the image starts here.
    fn begins_image(&self) -> bool {
        self.makes_image() && !self.grows_image
    }

    pub fn describe(&self, s: &mut Summary, size: [usize; 2]) -> [usize; 2] {
        self.layers.iter().for_each(|(_, layer)| layer.describe(s, size));
        match &self.sampler {
            None => size,
            Some(Up::Conv(upsample)) => upsample.describe(s, size),
            Some(Up::Resnet(resnet)) => resnet.describe(s, size),
            Some(Up::Skip { skip_norm, skip_conv, resnet }) => {
                skip_norm.describe(s, size);
                skip_conv.describe(s, size);
                resnet.describe(s, size)
            }
            Some(Up::Filter(rescaling)) => rescaling.size(size),
        }
    }
}
