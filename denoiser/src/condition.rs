/// What a batch is conditioned on: one entry per sample.
///
/// `None` is the null condition (FORMULAS 5.1: the zero vector of the label embedding).
///
/// Verified by `no_condition_is_null`. Verified by `the_null_row_is_never_trained`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    labels: Vec<Option<usize>>,
}

impl Condition {
    /// No condition for any of `n` samples.
    pub fn none(n: usize) -> Self {
        Self { labels: vec![None; n] }
    }

    /// One optional class label per sample.
    pub fn labels(labels: Vec<Option<usize>>) -> Self {
        Self { labels }
    }

    /// The class label of each sample; `None` where there is no condition.
    pub fn as_labels(&self) -> &[Option<usize>] {
        &self.labels
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Whether every sample has the null condition.
    pub fn is_null(&self) -> bool {
        self.labels.iter().all(Option::is_none)
    }

    /// `self` followed by `other`: the condition of two batches run as one.
    pub fn concat(&self, other: &Self) -> Self {
        Self { labels: self.labels.iter().chain(&other.labels).copied().collect() }
    }

    /// The condition of the samples of `indices`, in their order, each below the length.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self { labels: indices.iter().map(|&i| self.labels[i]).collect() }
    }

    /// The condition of samples `range`.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self { labels: self.labels[range].to_vec() }
    }
}
