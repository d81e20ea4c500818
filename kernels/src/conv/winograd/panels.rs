//! Transformed filters.

use std::ops::Range;

use super::SCRATCH;
use super::input::MOST_CHANNELS;
use super::tiles::{PATCH, POINTS};
use crate::conv::pack::{is_narrow, lanes, panel_vectors};
use crate::par::{Shared, tasks, with_kept};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};
use crate::weight::Weight;

/// Filters are transformed for inputs and outputs in multiples of this, or of whole vectors where these are longer.
const WHOLE: usize = 8;
/// Channels of a panel that a task transforms.
const CHANNELS_AT_ONCE: usize = 8;
/// Taps of a filter.
const TAPS: usize = 9;
/// `G`, a row for each point.
const FILTER_POINTS: [[f32; 3]; PATCH] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

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
        let whole = |count: usize| count > 0 && count.is_multiple_of(lanes(isa).max(WHOLE));
        let fits = channels.max(outputs) <= MOST_CHANNELS;
        kernel == 3 && fits && whole(channels) && whole(outputs) && !is_narrow(outputs)
    }

    pub(in crate::conv) fn new(isa: Isa, channels: usize, outputs: usize) -> Self {
        Self::within(Vec::new(), isa, channels, outputs)
    }

    /// Panels of some outputs' filters in memory that another use has left, whatever it holds.
    pub(in crate::conv) fn within(memory: Vec<f32>, isa: Isa, channels: usize, outputs: usize) -> Self {
        let vectors = panel_vectors(isa, outputs);
        let mut values = memory;
        values.resize(Self::floats(isa, channels, outputs), 0.0);
        Self { isa, vectors, width: vectors * lanes(isa), channels, outputs, values }
    }

    /// Their memory, for another use.
    pub(in crate::conv) fn into_memory(self) -> Vec<f32> {
        self.values
    }

    /// Floats of the transformed filters.
    pub(in crate::conv) fn floats(isa: Isa, channels: usize, outputs: usize) -> usize {
        POINTS * outputs.next_multiple_of(panel_vectors(isa, outputs) * lanes(isa)) * channels
    }

    #[cfg(test)]
    pub(in crate::conv) fn len(&self) -> usize {
        self.values.len()
    }

    /// Number of panels.
    pub(super) fn count(&self) -> usize {
        self.outputs.div_ceil(self.width)
    }

    /// Transforms `weight` `[output][channel][tap]`: `G g G^T`.
    pub(in crate::conv) fn fill(&mut self, weight: &[f32]) {
        self.fill_stored(Weight::F32(weight), 0);
    }

    /// [`WinogradPanels::fill`] with the filters of the outputs from `first` on.
    pub(in crate::conv) fn fill_stored(&mut self, weight: Weight<'_>, first: usize) {
        assert!(weight.len() >= TAPS * self.channels * (first + self.outputs), "floats of the filters");
        self.fill_from(Origin::Forward { weight, first });
    }

    /// Transforms `weight` `[channel][output][tap]`, each filter turned by half a turn, as the gradient of the input needs it.
    pub(in crate::conv) fn fill_turned(&mut self, weight: &[f32]) {
        assert_eq!(weight.len(), TAPS * self.channels * self.outputs, "floats of the filters");
        self.fill_from(Origin::Turned(weight));
    }

    fn fill_from(&mut self, origin: Origin<'_>) {
        let (width, channels, outputs) = (self.width, self.channels, self.outputs);
        let (isa, panels, values) = (self.isa, self.count(), Shared::new(&mut self.values));
        // A task fills the rows of some channels of one panel: each point's rows lie side by side.
        let ranges = channels.div_ceil(CHANNELS_AT_ONCE);
        tasks(panels * ranges, |index| {
            let (panel, first) = (index / ranges, index % ranges * CHANNELS_AT_ONCE);
            let range = first..channels.min(first + CHANNELS_AT_ONCE);
            with_kept(SCRATCH, TAPS * range.len() * width, |taps| {
                dispatch_to(isa, Fill { origin, values, panel, range, channels, outputs, width, taps });
            });
        });
    }

    /// The filters of a panel at a point, `[channel][width]`.
    #[inline(always)]
    pub(super) fn panel(&self, panel: usize, point: usize) -> &[f32] {
        let len = self.width * self.channels;
        &self.values[(panel * POINTS + point) * len..][..len]
    }
}

/// Filters as they come.
#[derive(Clone, Copy)]
enum Origin<'a> {
    /// `[output][channel][tap]`, from this output on.
    Forward { weight: Weight<'a>, first: usize },
    /// `[channel][output][tap]`, to be turned.
    Turned(&'a [f32]),
}

/// The filters of some channels of one panel.
struct Fill<'a> {
    origin: Origin<'a>,
    values: Shared<'a, f32>,
    panel: usize,
    range: Range<usize>,
    channels: usize,
    outputs: usize,
    width: usize,
    /// Room for the taps, `[tap][channel][width]`.
    taps: &'a mut [f32],
}

impl WithSimd for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let first = self.panel * self.width;
        let count = self.width.min(self.outputs - first);
        let run = self.range.len() * self.width;
        assert!(self.taps.len() == TAPS * run && count.is_multiple_of(S::LANES));
        self.origin.spread(&self.range, first..first + count, (self.channels, self.outputs), self.width, self.taps);
        let taps = self.taps.as_ptr();
        for (u, [a, b, c]) in FILTER_POINTS.into_iter().enumerate() {
            let (a, b, c) = (s.splat(a), s.splat(b), s.splat(c));
            let mut targets = [std::ptr::null_mut(); PATCH];
            for (v, target) in targets.iter_mut().enumerate() {
                let point = self.panel * POINTS + u * PATCH + v;
                let at = (point * self.channels + self.range.start) * self.width;
                // SAFETY: no other task has this panel and these channels.
                *target = unsafe { self.values.part(at, run) }.as_mut_ptr();
            }
            for row in (0..run).step_by(self.width) {
                for at in (row..row + count).step_by(S::LANES) {
                    let mut column = [s.splat(0.0); 3];
                    for (v, column) in column.iter_mut().enumerate() {
                        let tap = taps.wrapping_add(v * run + at);
                        // SAFETY: `at` begins a vector of a run, and every tap has a run; three taps lie between rows.
                        let (x, y, z) = unsafe { (s.load(tap), s.load(tap.add(3 * run)), s.load(tap.add(6 * run))) };
                        *column = s.fma(c, z, s.fma(b, y, s.mul(a, x)));
                    }
                    let points = filter_transform(s, column);
                    for v in 0..PATCH {
                        // SAFETY: the target is a run, too.
                        unsafe { s.store(targets[v].add(at), points[v]) };
                    }
                }
            }
        }
    }
}

impl Origin<'_> {
    /// Writes some filters as `[tap][channel][width]`.
    #[inline(always)]
    fn spread(
        &self,
        range: &Range<usize>,
        wanted: Range<usize>,
        (channels, outputs): (usize, usize),
        width: usize,
        taps: &mut [f32],
    ) {
        let run = range.len() * width;
        match self {
            Self::Turned(weight) => {
                for (k, channel) in range.clone().enumerate() {
                    let filters = &weight[channel * outputs * TAPS..][wanted.start * TAPS..wanted.end * TAPS];
                    for (o, filter) in filters.chunks_exact(TAPS).enumerate() {
                        for tap in 0..TAPS {
                            taps[(TAPS - 1 - tap) * run + k * width + o] = filter[tap];
                        }
                    }
                }
            }
            Self::Forward { weight, first } => {
                let mut widened = [0.0; TAPS * CHANNELS_AT_ONCE];
                for (o, output) in wanted.enumerate() {
                    let start = ((first + output) * channels + range.start) * TAPS;
                    let filters = match weight {
                        Weight::F32(weight) => &weight[start..start + range.len() * TAPS],
                        _ => {
                            let widened = &mut widened[..range.len() * TAPS];
                            weight.widen(start, widened);
                            &*widened
                        }
                    };
                    for (k, filter) in filters.chunks_exact(TAPS).enumerate() {
                        for tap in 0..TAPS {
                            taps[tap * run + k * width + o] = filter[tap];
                        }
                    }
                }
            }
        }
    }
}

/// `G g`
#[inline(always)]
fn filter_transform<S: Simd>(s: S, [a, b, c]: [S::V; 3]) -> [S::V; PATCH] {
    let (sixth, minus_sixth) = (s.splat(1.0 / 6.0), s.splat(-1.0 / 6.0));
    let (twelfth, minus_twelfth) = (s.splat(1.0 / 12.0), s.splat(-1.0 / 12.0));
    let near = s.add(a, c);
    let far = s.fma(sixth, c, s.mul(s.splat(1.0 / 24.0), a));
    [
        s.mul(s.splat(0.25), a),
        s.mul(minus_sixth, s.add(near, b)),
        s.mul(sixth, s.sub(b, near)),
        s.fma(twelfth, b, far),
        s.fma(minus_twelfth, b, far),
        c,
    ]
}
