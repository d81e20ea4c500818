//! Transformed filters.

use rayon::prelude::*;

use super::input::MOST_CHANNELS;
use super::tiles::{PATCH, POINTS};
use crate::conv::pack::{is_narrow, lanes, panel_vectors};
use crate::par::Shared;
use crate::simd::Isa;

/// Outputs whose filters are transformed together, at least; it divides the width of every panel.
const OUTPUTS_AT_ONCE: usize = 8;

/// Transformed filters, `[panel][point][channel][width]`.
#[derive(Clone, Debug)]
pub(in crate::conv) struct WinogradPanels {
    pub(super) isa: Isa,
    pub(super) vectors: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) outputs: usize,
    values: Vec<f32>,
}

impl WinogradPanels {
    /// Whether a filter of this size can be transformed for this instruction set: whole vectors of channels.
    pub(in crate::conv) fn fits(isa: Isa, kernel: usize, channels: usize, outputs: usize) -> bool {
        let whole = |count: usize| count > 0 && count.is_multiple_of(lanes(isa).max(OUTPUTS_AT_ONCE));
        let fits = channels.max(outputs) <= MOST_CHANNELS;
        kernel == 3 && fits && whole(channels) && whole(outputs) && !is_narrow(outputs)
    }

    pub(in crate::conv) fn new(isa: Isa, channels: usize, outputs: usize) -> Self {
        let vectors = panel_vectors(isa, outputs);
        let width = vectors * lanes(isa);
        let values = vec![0.0; POINTS * outputs.next_multiple_of(width) * channels];
        Self { isa, vectors, width, channels, outputs, values }
    }

    /// Number of panels.
    pub(super) fn count(&self) -> usize {
        self.outputs.div_ceil(self.width)
    }

    /// Transforms `weight(output, channel, tap)`: `G g G^T`.
    pub(in crate::conv) fn fill(&mut self, weight: impl Fn(usize, usize, usize) -> f32 + Sync) {
        // Whole cache lines are written where the width allows it.
        if self.width.is_multiple_of(16) && self.outputs.is_multiple_of(16) {
            self.fill_groups::<16>(weight);
        } else {
            self.fill_groups::<OUTPUTS_AT_ONCE>(weight);
        }
    }

    fn fill_groups<const GROUP: usize>(&mut self, weight: impl Fn(usize, usize, usize) -> f32 + Sync) {
        let (width, channels, outputs) = (self.width, self.channels, self.outputs);
        let values = Shared::new(&mut self.values);
        // One task transforms a few outputs of every channel.
        (0..outputs / GROUP).into_par_iter().for_each(|group| {
            let first = group * GROUP;
            for channel in 0..channels {
                let taps: [[f32; GROUP]; 9] =
                    std::array::from_fn(|tap| std::array::from_fn(|o| weight(first + o, channel, tap)));
                let rows: [[[f32; GROUP]; PATCH]; 3] =
                    std::array::from_fn(|v| filter_transform([taps[v], taps[3 + v], taps[6 + v]]));
                for u in 0..PATCH {
                    let row = filter_transform([rows[0][u], rows[1][u], rows[2][u]]);
                    for (v, transformed) in row.iter().enumerate() {
                        let panel = first / width * POINTS + u * PATCH + v;
                        let at = (panel * channels + channel) * width + first % width;
                        // SAFETY: no other task has these outputs.
                        unsafe { values.part(at, GROUP) }.copy_from_slice(transformed);
                    }
                }
            }
        });
    }

    /// The filters of a panel at a point, `[channel][width]`.
    #[inline(always)]
    pub(super) fn panel(&self, panel: usize, point: usize) -> &[f32] {
        let len = self.width * self.channels;
        &self.values[(panel * POINTS + point) * len..][..len]
    }
}

/// `G g` for several outputs at once.
#[inline(always)]
fn filter_transform<const N: usize>(g: [[f32; N]; 3]) -> [[f32; N]; PATCH] {
    let mut out = [[0.0; N]; PATCH];
    for o in 0..N {
        let (a, b, c) = (g[0][o], g[1][o], g[2][o]);
        out[0][o] = a / 4.0;
        out[1][o] = -(a + b + c) / 6.0;
        out[2][o] = -(a - b + c) / 6.0;
        out[3][o] = (a + 2.0 * b + 4.0 * c) / 24.0;
        out[4][o] = (a - 2.0 * b + 4.0 * c) / 24.0;
        out[5][o] = c;
    }
    out
}
