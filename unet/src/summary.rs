//! What a network consists of: layers, parameters and operations.

/// One layer of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// The prefix of the layer's keys.
    pub name: String,
    /// What it is, such as `Conv 3x3`.
    pub kind: String,
    /// Channels, height and width of its output.
    pub output: [usize; 3],
    /// Number of trained parameters.
    pub params: usize,
    /// Floating-point operations of one forward pass of one image: two for each multiplication of a convolution
    /// (counted for the direct algorithm), a linear layer or attention; norms and activations are not counted.
    pub flops: u64,
}

/// All layers of a network in the order of the forward pass, for one image of a given size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The layers.
    pub layers: Vec<LayerSummary>,
}

impl Summary {
    /// Number of trained parameters.
    pub fn params(&self) -> usize {
        self.layers.iter().map(|layer| layer.params).sum()
    }

    /// Floating-point operations of one forward pass of one image, counted as in [`LayerSummary::flops`].
    pub fn flops(&self) -> u64 {
        self.layers.iter().map(|layer| layer.flops).sum()
    }

    pub(crate) fn push(&mut self, name: &str, kind: impl Into<String>, output: [usize; 3], params: usize, flops: u64) {
        self.layers.push(LayerSummary { name: name.to_owned(), kind: kind.into(), output, params, flops });
    }
}
