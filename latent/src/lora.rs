//! Low-rank adapters of a network's weights (Hu et al. 2021, arXiv:2106.09685, eq. 3).
//!
//! ```text
//! W' = W + w (alpha / r) B A,   A: [r, in],  B: [out, r],   alpha = r where the file does not say
//! ```
//!
//! Files name the layers as diffusers does (`unet.….to_q.lora_A.weight`, `….lora.down.weight`, `….processor.to_q_lora.down.weight`,
//! `….lora_linear_layer.down.weight`), or as kohya's scripts (`lora_unet_…_to_q.lora_down.weight`), with every dot an underscore.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tweedie_checkpoint::{CheckpointError, TensorFile};
use tweedie_kernels::conv::{self, ConvDims, Filter};
use tweedie_kernels::weight::Stored;
use tweedie_unet::{UnetError, WeightSource};

use crate::weights::stored_like;

/// Which part of a pipeline an adapter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Adapted {
    /// The network that removes noise.
    Network,
    /// The text encoder.
    TextEncoder,
}

/// The two factors of a layer.
#[derive(Clone, Debug, Default)]
struct Factors {
    /// A, `[r, in ...]`.
    down: Option<(Vec<usize>, Vec<f32>)>,
    /// B, `[out, r ...]`.
    up: Option<(Vec<usize>, Vec<f32>)>,
    alpha: Option<f32>,
}

/// The adapters of a file, by part and layer.
#[derive(Clone, Debug)]
pub struct Lora {
    name: String,
    layers: BTreeMap<(Adapted, String), Factors>,
}

/// What of a layer a tensor is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Alpha,
}

/// Part, layer (its name with underscores) and role of a key; `None` of a key that is none of an adapter.
fn read_key(key: &str) -> Option<(Adapted, String, Role)> {
    const ENDINGS: [(&str, Role); 13] = [
        (".lora_A.weight", Role::Down),
        (".lora_B.weight", Role::Up),
        (".lora_A.default.weight", Role::Down),
        (".lora_B.default.weight", Role::Up),
        (".lora_down.weight", Role::Down),
        (".lora_up.weight", Role::Up),
        (".lora.down.weight", Role::Down),
        (".lora.up.weight", Role::Up),
        (".lora_linear_layer.down.weight", Role::Down),
        (".lora_linear_layer.up.weight", Role::Up),
        ("_lora.down.weight", Role::Down),
        ("_lora.up.weight", Role::Up),
        (".alpha", Role::Alpha),
    ];
    let (layer, role) = ENDINGS.iter().find_map(|(ending, role)| Some((key.strip_suffix(ending)?, *role)))?;
    let prefixes = [
        ("lora_unet_", Adapted::Network),
        ("lora_te_", Adapted::TextEncoder),
        ("unet.", Adapted::Network),
        ("text_encoder.", Adapted::TextEncoder),
    ];
    // Files of the network alone have no prefix.
    let (layer, part) = prefixes
        .iter()
        .find_map(|(prefix, part)| Some((layer.strip_prefix(prefix)?, *part)))
        .unwrap_or((layer, Adapted::Network));
    // `attn1.processor.to_q` and `attn1.to_out` stand for what is `attn1.to_q` and `attn1.to_out.0` today.
    let layer = layer.replace('.', "_").replace("_processor_", "_");
    let layer = if layer.ends_with("_to_out") { layer + "_0" } else { layer };
    Some((part, layer, role))
}

impl Lora {
    /// The adapters of a file.
    ///
    /// # Errors
    /// If a tensor cannot be read or is not finite, a layer lacks a factor, or no tensor is one of an adapter.
    pub fn read(file: &TensorFile) -> Result<Self, CheckpointError> {
        let name = file.name().to_owned();
        let damaged = |problem: String| CheckpointError::Damaged {
            file: name.clone(),
            problem,
            remedy: "give a LoRA file as diffusers or kohya's scripts write it",
        };
        let mut layers: BTreeMap<(Adapted, String), Factors> = BTreeMap::new();
        for tensor in file.tensors() {
            let Some((part, layer, role)) = read_key(tensor.name) else {
                return Err(damaged(format!("the tensor {} is none of a low-rank adapter", tensor.name)));
            };
            let values = file.read_f32_finite(tensor.name)?;
            let factors = layers.entry((part, layer)).or_default();
            match role {
                Role::Down => factors.down = Some((tensor.shape.to_vec(), values)),
                Role::Up => factors.up = Some((tensor.shape.to_vec(), values)),
                Role::Alpha => factors.alpha = values.first().copied(),
            }
        }
        if layers.is_empty() {
            return Err(damaged("it holds no tensor".to_owned()));
        }
        for ((_, layer), factors) in &layers {
            let (Some((down, _)), Some((up, _))) = (&factors.down, &factors.up) else {
                return Err(damaged(format!("the layer {layer} has only one of its two factors")));
            };
            let rank = down.first().copied().unwrap_or(0);
            if down.len() < 2 || up.len() < 2 || rank == 0 || up[1..].iter().product::<usize>() != rank {
                return Err(damaged(format!("the factors of the layer {layer} have the shapes {down:?} and {up:?}")));
            }
        }
        Ok(Self { name, layers })
    }

    /// The file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many layers of a part it changes.
    pub fn layers(&self, part: Adapted) -> usize {
        self.layers.keys().filter(|(of, _)| *of == part).count()
    }
}

/// A source of weights with adapters added.
pub struct AdaptedWeights<'a, S> {
    inner: S,
    part: Adapted,
    adapters: &'a [(Lora, f32)],
    used: Mutex<BTreeSet<(usize, String)>>,
}

impl<'a, S: WeightSource> AdaptedWeights<'a, S> {
    /// `inner` with the adapters of a part, each with its weight `w`; 0 leaves the network as it is.
    pub fn new(inner: S, part: Adapted, adapters: &'a [(Lora, f32)]) -> Self {
        Self { inner, part, adapters, used: Mutex::default() }
    }

    /// Layers of the adapters that no weight was asked for, with their file: they belong to another network.
    pub fn unused(&self) -> Vec<(&'a str, &'a str)> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = Vec::new();
        for (index, (lora, _)) in self.adapters.iter().enumerate() {
            for (part, layer) in lora.layers.keys() {
                if *part == self.part && !used.contains(&(index, layer.clone())) {
                    unused.push((lora.name.as_str(), layer.as_str()));
                }
            }
        }
        unused
    }
}

impl<S: WeightSource> WeightSource for AdaptedWeights<'_, S> {
    /// The weight of the source with the adapters of its layer added.
    ///
    /// Verified by `adapters_are_added_in_every_style`.
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError> {
        let stored = self.inner.weight(name, shape)?;
        let Some(layer) = name.strip_suffix(".weight").map(|layer| layer.replace('.', "_")) else { return Ok(stored) };
        let mut sum: Option<Vec<f32>> = None;
        for (index, (lora, weight)) in self.adapters.iter().enumerate() {
            let Some(factors) = lora.layers.get(&(self.part, layer.clone())) else { continue };
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert((index, layer.clone()));
            let (Some((down_shape, down)), Some((_, up))) = (&factors.down, &factors.up) else { continue };
            let (rank, out) = (down_shape[0], shape.first().copied().unwrap_or(0));
            let columns = down.len() / rank;
            if out * rank != up.len() || out * columns != shape.iter().product::<usize>() {
                return Err(UnetError::Weight {
                    name: name.to_owned(),
                    message: format!(
                        "of the shape {shape:?} does not take the adapter of {}, which is [{}, {rank}] times [{rank}, {columns}]",
                        lora.name,
                        up.len() / rank
                    ),
                });
            }
            let scale = weight * factors.alpha.unwrap_or(rank as f32) / rank as f32;
            let scaled: Vec<f32> = up.iter().map(|x| x * scale).collect();
            // B A as a linear layer with the weights A^T on the rows of B.
            let transposed: Vec<f32> =
                (0..columns).flat_map(|c| (0..rank).map(move |r| down[r * columns + c])).collect();
            let filter = Filter::streamed(1, 1, rank, columns, Arc::new(transposed));
            let mut product = vec![0.0; out * columns];
            conv::forward(&ConvDims::linear(out, rank, columns), &scaled, &filter, None, &mut product);
            let sum = sum.get_or_insert_with(|| stored.view().to_vec());
            sum.iter_mut().zip(&product).for_each(|(sum, x)| *sum += x);
        }
        Ok(sum.map_or_else(|| stored.clone(), |values| stored_like(stored.view(), values)))
    }

    fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
        self.inner.vector(name, shape)
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;

    /// W[i, j] = i - j of every name.
    struct Plain;

    impl WeightSource for Plain {
        fn weight(&self, _: &str, shape: &[usize]) -> Result<Arc<dyn Stored>, UnetError> {
            let columns: usize = shape[1..].iter().product();
            let all = (0..shape[0] * columns).map(|k| (k / columns) as f32 - (k % columns) as f32);
            Ok(Arc::new(all.collect::<Vec<f32>>()))
        }

        fn vector(&self, _: &str, shape: &[usize]) -> Result<Vec<f32>, UnetError> {
            Ok(vec![0.0; shape.iter().product()])
        }
    }

    fn lora(tensors: &[(&str, &[usize], &[f32])]) -> Result<Lora, CheckpointError> {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(_, _, x)| x.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape, _), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        Lora::read(&TensorFile::from_bytes(bytes, "lora.safetensors").unwrap())
    }

    const DOWN: [f32; 6] = [1.0, 2.0, 3.0, 0.0, -1.0, 0.5];
    const UP: [f32; 4] = [1.0, 0.0, 2.0, -4.0];

    /// The sum by hand, for the rank 2, the shape [2, 3] and a factor.
    fn expected(factor: f32) -> Vec<f32> {
        let product = |i: usize, j: usize| UP[2 * i] * DOWN[j] + UP[2 * i + 1] * DOWN[3 + j];
        (0..6).map(|k| (k / 3) as f32 - (k % 3) as f32 + factor * product(k / 3, k % 3)).collect()
    }

    #[test]
    fn adapters_are_added_in_every_style() {
        let layer = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0";
        let styles = [
            (format!("unet.{layer}.lora_A.weight"), format!("unet.{layer}.lora_B.weight")),
            (format!("unet.{layer}.lora.down.weight"), format!("unet.{layer}.lora.up.weight")),
            (
                "down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_out_lora.down.weight".into(),
                "down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_out_lora.up.weight".into(),
            ),
            (
                format!("lora_unet_{}.lora_down.weight", layer.replace('.', "_")),
                format!("lora_unet_{}.lora_up.weight", layer.replace('.', "_")),
            ),
        ];
        for (down, up) in styles {
            let adapter = lora(&[(&down, &[2, 3], &DOWN), (&up, &[2, 2], &UP)]).unwrap();
            let adapters = [(adapter, 0.5)];
            let source = AdaptedWeights::new(Plain, Adapted::Network, &adapters);
            assert_eq!(source.unused().len(), 1);
            let found = source.weight(&format!("{layer}.weight"), &[2, 3]).unwrap();
            assert_eq!(found.view().to_vec(), expected(0.5), "{down}");
            assert!(source.unused().is_empty(), "{down}");
            assert_eq!(source.weight("conv_in.weight", &[2, 3]).unwrap().view().to_vec(), expected(0.0));
            let text = AdaptedWeights::new(Plain, Adapted::TextEncoder, &adapters);
            assert_eq!(text.weight(&format!("{layer}.weight"), &[2, 3]).unwrap().view().to_vec(), expected(0.0));
        }
    }

    #[test]
    fn alpha_scales_and_convolutions_are_reshaped() {
        let key = "lora_te_text_model_encoder_layers_3_mlp_fc1";
        let (down, up, alpha) =
            (format!("{key}.lora_down.weight"), format!("{key}.lora_up.weight"), format!("{key}.alpha"));
        let adapter = lora(&[(&down, &[2, 3, 1, 1], &DOWN), (&up, &[2, 2, 1, 1], &UP), (&alpha, &[], &[8.0])]).unwrap();
        assert_eq!((adapter.layers(Adapted::TextEncoder), adapter.layers(Adapted::Network)), (1, 0));
        let adapters = [(adapter, 0.25)];
        let source = AdaptedWeights::new(Plain, Adapted::TextEncoder, &adapters);
        let found = source.weight("text_model.encoder.layers.3.mlp.fc1.weight", &[2, 3, 1, 1]).unwrap();
        assert_eq!(found.view().to_vec(), expected(0.25 * 8.0 / 2.0));
        let error = source.weight("text_model.encoder.layers.3.mlp.fc1.weight", &[3, 3]).unwrap_err().to_string();
        assert!(error.contains("lora.safetensors"), "{error}");
    }

    #[test]
    fn files_that_are_no_adapters_are_refused() {
        for (tensors, part) in [
            (vec![("conv_in.weight", &[6][..], &DOWN[..])], "conv_in.weight"),
            (vec![("unet.a.lora_A.weight", &[2, 3][..], &DOWN[..])], "only one of its two factors"),
            (vec![("a.lora_A.weight", &[2, 3][..], &DOWN[..]), ("a.lora_B.weight", &[4, 1][..], &UP[..])], "[4, 1]"),
            (vec![("a.lora_A.weight", &[1][..], &[f32::NAN][..])], "NaN"),
        ] {
            let message = lora(&tensors).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
