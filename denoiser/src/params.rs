use std::collections::HashMap;
use std::ops::Range;

/// What an entry of [`Params`] is to the optimiser and to a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Trained by gradient descent, averaged by EMA.
    Weight,
    /// Updated by the forward pass in training (running statistics); copied, not averaged, by EMA.
    Buffer,
    /// A count of forward passes in training; an integer (I64, shape []) in checkpoints.
    Counter,
}

/// One named tensor of [`Params`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// The key in a checkpoint, such as `down_blocks.0.resnets.1.conv1.weight`.
    pub name: String,
    /// The shape in a checkpoint (PyTorch's order); empty for a scalar.
    pub shape: Vec<usize>,
    /// How the optimiser and the checkpoint treat it.
    pub role: Role,
    /// Where its values lie in [`Params::values`].
    pub range: Range<usize>,
}

/// The names, shapes and places of a network's parameters, without their values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParamTable {
    entries: Vec<Param>,
    index: HashMap<String, usize>,
    len: usize,
}

impl ParamTable {
    /// Appends a tensor and returns where its values will lie.
    ///
    /// # Panics
    /// If the name is taken: two layers of an architecture cannot share a key.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], role: Role) -> Range<usize> {
        let name = name.into();
        let range = self.len..self.len + shape.iter().product::<usize>();
        let previous = self.index.insert(name.clone(), self.entries.len());
        assert!(previous.is_none(), "two parameters are named {name}");
        self.len = range.end;
        self.entries.push(Param { name, shape: shape.to_vec(), role, range: range.clone() });
        range
    }

    /// Every tensor, in the order of the values.
    pub fn entries(&self) -> &[Param] {
        &self.entries
    }

    /// How many values there are in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// All parameters of a network as one flat vector with a table of names.
///
/// Gradients, optimiser moments and the EMA are vectors of the same length and order, so each of them is one loop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    table: ParamTable,
    values: Vec<f32>,
}

impl Params {
    /// No parameters yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a tensor of zeros and returns where its values lie.
    ///
    /// # Panics
    /// If the name is taken: two layers of an architecture cannot share a key.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], role: Role) -> Range<usize> {
        let range = self.table.add(name, shape, role);
        self.values.resize(range.end, 0.0);
        range
    }

    /// The table of names, in the order of the values.
    pub fn table(&self) -> &[Param] {
        self.table.entries()
    }

    /// The entry of a key.
    pub fn find(&self, name: &str) -> Option<&Param> {
        self.table.index.get(name).map(|&i| &self.table.entries[i])
    }

    /// The values of a key.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.find(name).map(|p| &self.values[p.range.clone()])
    }

    /// The values of a key, to be written.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        let range = self.find(name)?.range.clone();
        Some(&mut self.values[range])
    }

    /// Every value, in the order of the table.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Every value, to be written.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// How many values there are in all.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// How many values are trained (entries of [`Role::Weight`]).
    pub fn trainable(&self) -> usize {
        self.table().iter().filter(|p| p.role == Role::Weight).map(|p| p.range.len()).sum()
    }
}

/// Every value zero.
impl From<ParamTable> for Params {
    fn from(table: ParamTable) -> Self {
        let values = vec![0.0; table.len()];
        Self { table, values }
    }
}
