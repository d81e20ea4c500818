use std::sync::Arc;

use ndarray::Array2;

/// A text as an encoder has read it: `[L, D]`, one vector for each of its L tokens.
pub type Text = Arc<Array2<f32>>;

/// What a batch is conditioned on: one entry per sample, which may have a class label, a text, both or neither.
///
/// `None` is the null condition (FORMULAS 5.1: the zero vector of the label embedding).
///
/// Verified by `no_condition_is_null`. Verified by `the_null_row_is_never_trained`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Condition {
    labels: Vec<Option<usize>>,
    /// As many as there are labels.
    texts: Vec<Option<Text>>,
}

impl Condition {
    /// No condition for any of `n` samples.
    pub fn none(n: usize) -> Self {
        Self { labels: vec![None; n], texts: vec![None; n] }
    }

    /// One optional class label per sample.
    pub fn labels(labels: Vec<Option<usize>>) -> Self {
        Self { texts: vec![None; labels.len()], labels }
    }

    /// One text per sample; samples with the same text may share it.
    pub fn texts(texts: Vec<Text>) -> Self {
        Self { labels: vec![None; texts.len()], texts: texts.into_iter().map(Some).collect() }
    }

    /// The class label of each sample; `None` where there is no condition.
    pub fn as_labels(&self) -> &[Option<usize>] {
        &self.labels
    }

    /// The text of each sample; `None` where there is none.
    pub fn as_texts(&self) -> &[Option<Text>] {
        &self.texts
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
        self.labels.iter().all(Option::is_none) && self.texts.iter().all(Option::is_none)
    }

    /// Whether sample `i`, below both lengths, has the same condition in `self` and in `other`.
    pub fn agrees(&self, other: &Self, i: usize) -> bool {
        let same = match (&self.texts[i], &other.texts[i]) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (a, b) => a.is_none() && b.is_none(),
        };
        same && self.labels[i] == other.labels[i]
    }

    /// `self` followed by `other`: the condition of two batches run as one.
    pub fn concat(&self, other: &Self) -> Self {
        Self {
            labels: self.labels.iter().chain(&other.labels).copied().collect(),
            texts: self.texts.iter().chain(&other.texts).cloned().collect(),
        }
    }

    /// The condition of the samples of `indices`, in their order, each below the length.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            texts: indices.iter().map(|&i| self.texts[i].clone()).collect(),
        }
    }

    /// The condition of samples `range`.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self { labels: self.labels[range.clone()].to_vec(), texts: self.texts[range].to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: f32) -> Text {
        Arc::new(Array2::from_elem((3, 2), value))
    }

    #[test]
    fn texts_stay_with_their_samples() {
        let (a, b) = (text(1.0), text(2.0));
        let condition = Condition::texts(vec![a.clone(), b.clone(), a.clone()]);
        assert_eq!(condition.len(), 3);
        assert!(!condition.is_null());
        assert_eq!(condition.as_labels(), [None; 3]);
        assert_eq!(condition.select(&[1, 0]), Condition::texts(vec![b.clone(), a.clone()]));
        assert_eq!(condition.slice(1..3), Condition::texts(vec![b.clone(), a.clone()]));
        let joined = condition.slice(1..2).concat(&Condition::labels(vec![Some(4)]));
        assert_eq!(joined.as_texts(), [Some(b), None]);
        assert_eq!(joined.as_labels(), [None, Some(4)]);
        assert!(Condition::texts(Vec::new()).is_null());
        assert!(Arc::ptr_eq(condition.as_texts()[2].as_ref().unwrap(), &a), "a text is shared, not copied");
    }

    #[test]
    fn samples_agree_where_label_and_text_do() {
        let (one, other) = (Condition::texts(vec![text(1.0); 2]), Condition::texts(vec![text(1.0), text(2.0)]));
        assert!(one.agrees(&other, 0) && one.agrees(&one, 1));
        assert!(!one.agrees(&other, 1) && !one.agrees(&Condition::none(2), 0));
        let labels = Condition::labels(vec![Some(1), None]);
        assert!(!labels.agrees(&Condition::none(2), 0) && labels.agrees(&Condition::none(2), 1));
    }
}
