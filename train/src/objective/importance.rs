//! Importance sampling of the steps (Nichol & Dhariwal 2021, eq. 18): `p_t ~ sqrt(E[L_t^2])`, and each loss is divided by
//! `T p_t`, so that its mean stays what it is under uniform steps while its variance falls.

/// Losses of a step that are remembered.
const MEMORY: usize = 10;
/// The share of the steps that is drawn uniformly, so that no step is forgotten.
const UNIFORM_SHARE: f64 = 1e-3;

/// The last losses of every step.
///
/// Until every step has been seen ten times, steps are drawn uniformly.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    steps: usize,
    /// Ten losses for each step.
    history: Vec<f32>,
    /// How many losses of a step are there, up to ten; beyond, ten and the number of those that were replaced since the last
    /// full round.
    counts: Vec<f32>,
}

/// A distribution over the steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Chances {
    /// `p_t`, which sum to 1; entry `t - 1` is step `t`.
    chances: Vec<f64>,
    /// Sums of the entries up to each one.
    sums: Vec<f64>,
}

impl Importance {
    /// An empty memory for `steps` steps.
    pub fn new(steps: usize) -> Self {
        Self { steps, history: vec![0.0; steps * MEMORY], counts: vec![0.0; steps] }
    }

    /// `p_t`, or `None` while they are uniform.
    ///
    /// Verified by `chances_follow_the_losses`.
    pub fn chances(&self) -> Option<Chances> {
        if self.counts.iter().any(|&count| (count as usize) < MEMORY) {
            return None;
        }
        let roots: Vec<f64> = self
            .history
            .chunks_exact(MEMORY)
            .map(|losses| (losses.iter().map(|&l| f64::from(l) * f64::from(l)).sum::<f64>() / MEMORY as f64).sqrt())
            .collect();
        let total: f64 = roots.iter().sum();
        let even = 1.0 / self.steps as f64;
        let of =
            |root: f64| if total > 0.0 { (1.0 - UNIFORM_SHARE) * root / total + UNIFORM_SHARE * even } else { even };
        Some(Chances::new(roots.into_iter().map(of).collect()))
    }

    /// Remembers the loss of each image at its step, in order.
    pub fn record(&mut self, steps: &[usize], losses: &[f64]) {
        for (&t, &loss) in steps.iter().zip(losses) {
            let count = self.counts[t - 1] as usize;
            self.history[(t - 1) * MEMORY + count % MEMORY] = loss as f32;
            self.counts[t - 1] = if count + 1 == 2 * MEMORY { MEMORY as f32 } else { (count + 1) as f32 };
        }
    }

    /// How many numbers [`Importance::to_numbers`] returns for T steps.
    pub fn numbers(steps: usize) -> usize {
        steps * (MEMORY + 1)
    }

    /// The memory as numbers, for a state.
    pub fn to_numbers(&self) -> Vec<f32> {
        self.history.iter().chain(&self.counts).copied().collect()
    }

    /// The memory that [`Importance::to_numbers`] wrote; `None` if they are no such numbers.
    pub fn from_numbers(steps: usize, numbers: &[f32]) -> Option<Self> {
        if numbers.len() != Self::numbers(steps) {
            return None;
        }
        let (history, counts) = numbers.split_at(steps * MEMORY);
        let whole = counts.iter().all(|c| c.fract() == 0.0 && (0.0..2.0 * MEMORY as f32).contains(c));
        let finite = history.iter().all(|loss| loss.is_finite());
        (whole && finite).then(|| Self { steps, history: history.to_vec(), counts: counts.to_vec() })
    }
}

impl Chances {
    fn new(chances: Vec<f64>) -> Self {
        let mut sum = 0.0;
        let sums = chances
            .iter()
            .map(|p| {
                sum += p;
                sum
            })
            .collect();
        Self { chances, sums }
    }

    /// The step in 1..=T at a uniform number in [0, 1).
    pub fn step(&self, uniform: f64) -> usize {
        let last = self.sums.len() - 1;
        self.sums.partition_point(|&sum| sum <= uniform * self.sums[last]).min(last) + 1
    }

    /// `1 / (T p_t)`, what a loss at step `t` counts.
    pub fn importance(&self, t: usize) -> f64 {
        1.0 / (self.chances.len() as f64 * self.chances[t - 1])
    }
}
