//! Transformed filters.

use std::ops::Range;

use super::SCRATCH;
use super::input::MOST_CHANNELS;
use super::phase::Phase;
use super::tiles::PATCH;
use crate::conv::pack::{is_narrow, panel_vectors};
use crate::lanes::turn;
use crate::memory::{Floats, with_kept};
use crate::panels::{Panelling, lanes};
use crate::par::{Shared, tasks};
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

/// Floats from the filters of a point to those of the next beyond their content. A transform writes to all points in turn: without
/// the gap their places share cache sets.
pub(super) const FILTER_GAP: usize = 32;

/// Transformed filters, `[phase][panel][point][channel][width]`, with gaps.
#[derive(Clone, Debug)]
pub(in crate::conv) struct WinogradPanels {
    pub(super) isa: Isa,
    /// The panels of a phase.
    panelling: Panelling,
    phases: &'static [Phase],
    pub(super) channels: usize,
    pub(super) outputs: usize,
    values: Floats,
}

impl WinogradPanels {
    /// Whether a filter of this size can be transformed for this instruction set: whole vectors of channels.
    pub(in crate::conv) fn fits(isa: Isa, kernel: usize, channels: usize, outputs: usize) -> bool {
        let whole = |count: usize| count > 0 && count.is_multiple_of(lanes(isa).max(WHOLE));
        let fits = channels.max(outputs) <= MOST_CHANNELS;
        kernel == 3 && fits && whole(channels) && whole(outputs) && !is_narrow(outputs)
    }

    pub(in crate::conv) fn new(isa: Isa, phases: &'static [Phase], channels: usize, outputs: usize) -> Self {
        Self::within(Floats::new(), isa, phases, channels, outputs)
    }

    /// Panels of some outputs' filters in memory that another use has left, whatever it holds and however much more it is.
    pub(in crate::conv) fn within(
        mut memory: Floats,
        isa: Isa,
        phases: &'static [Phase],
        channels: usize,
        outputs: usize,
    ) -> Self {
        memory.room(Self::floats(isa, phases, channels, outputs));
        Self { isa, panelling: Self::panelling(isa, outputs), phases, channels, outputs, values: memory }
    }

    /// Makes room for filters of another number of channels.
    pub(super) fn set_channels(&mut self, channels: usize) {
        self.channels = channels;
        self.values.room(Self::floats(self.isa, self.phases, channels, self.outputs));
    }

    /// Their memory, for another use.
    pub(in crate::conv) fn into_memory(self) -> Floats {
        self.values
    }

    /// Floats of the transformed filters.
    pub(in crate::conv) fn floats(isa: Isa, phases: &[Phase], channels: usize, outputs: usize) -> usize {
        let panelling = Self::panelling(isa, outputs);
        phases.iter().map(|phase| phase.points().0.len() * plane(panelling, channels)).sum()
    }

    pub(super) fn panelling(isa: Isa, outputs: usize) -> Panelling {
        Panelling::mixed(isa, outputs, panel_vectors(isa, outputs))
    }

    /// Number of panels of all phases.
    pub(super) fn count(&self) -> usize {
        self.phases.len() * self.panelling.count()
    }

    /// Floats in a row of the widest panels.
    pub(super) fn widest(&self) -> usize {
        self.panelling.width(0)
    }

    /// A panel.
    #[inline(always)]
    pub(super) fn panel(&self, index: usize) -> Panel {
        self.layout().panel(index)
    }

    /// How many times as high and as wide as the input the result is.
    pub(in crate::conv) fn step(&self) -> usize {
        self.phases[0].step()
    }

    #[cfg(test)]
    pub(in crate::conv) fn len(&self) -> usize {
        self.values.len()
    }

    /// Transforms `weight` `[output][channel][tap]`: `G g G^T`.
    pub(in crate::conv) fn fill(&mut self, weight: &[f32]) {
        self.fill_stored(Weight::F32(weight), 0);
    }

    /// [`WinogradPanels::fill`] with the filters of the outputs from `first` on.
    pub(in crate::conv) fn fill_stored(&mut self, weight: Weight<'_>, first: usize) {
        self.fill_from(Origin::stored(weight, [first, self.outputs], [0, self.channels, self.channels]));
    }

    /// [`WinogradPanels::fill_stored`] of filters of which `of` channels exist and those from `channel` on are wanted, on this thread.
    pub(super) fn fill_part(&mut self, weight: Weight<'_>, first: usize, channel: usize, of: usize) {
        let origin = Origin::stored(weight, [first, self.outputs], [channel, self.channels, of]);
        self.with_fill(origin, |tasks, fill| (0..tasks).for_each(fill));
    }

    /// Transforms `weight` `[channel][output][tap]`, each filter turned by half a turn, as the gradient of the input needs it.
    pub(in crate::conv) fn fill_turned(&mut self, weight: &[f32]) {
        assert_eq!(self.step(), 1, "turned filters for a result of another size");
        assert_eq!(weight.len(), TAPS * self.channels * self.outputs, "floats of the filters");
        self.fill_from(Origin::Turned(weight));
    }

    fn fill_from(&mut self, origin: Origin<'_>) {
        self.with_fill(origin, |count, fill| tasks(count, fill));
    }

    /// Calls `each` with a number of tasks that fill the panels, and what a task does.
    fn with_fill(&mut self, origin: Origin<'_>, each: impl FnOnce(usize, &(dyn Fn(usize) + Sync))) {
        let (isa, layout, count) = (self.isa, self.layout(), self.count());
        let outputs = self.outputs;
        let values = Shared::new(&mut self.values);
        // A task fills the rows of some channels of one panel: each point's rows lie side by side.
        let ranges = layout.channels.div_ceil(CHANNELS_AT_ONCE);
        each(count * ranges, &|index| {
            let (panel, first) = (index / ranges, index % ranges * CHANNELS_AT_ONCE);
            let range = first..layout.channels.min(first + CHANNELS_AT_ONCE);
            let panel = layout.panel(panel);
            let width = panel.width;
            // Filters as they come, and by taps.
            with_kept(SCRATCH, 2 * TAPS * range.len() * width, |room| {
                let (rows, taps) = room.split_at_mut(TAPS * range.len() * width);
                dispatch_to(isa, Fill { origin, values, panel, range, outputs, rows, taps });
            });
        });
    }

    #[inline(always)]
    fn layout(&self) -> Layout {
        Layout { panelling: self.panelling, phases: self.phases, channels: self.channels }
    }

    /// The filters of a panel at a point of this rank in its phase, `[channel][width]`.
    #[inline(always)]
    pub(super) fn filters(&self, panel: &Panel, rank: usize) -> &[f32] {
        &self.values[panel.place(rank)..][..panel.width * self.channels]
    }
}

/// Floats of the filters of all panels at a point.
fn plane(panelling: Panelling, channels: usize) -> usize {
    panelling.room() * channels + panelling.count() * FILTER_GAP
}

/// How filters lie.
#[derive(Clone, Copy)]
struct Layout {
    panelling: Panelling,
    phases: &'static [Phase],
    channels: usize,
}

impl Layout {
    #[inline(always)]
    fn panel(&self, index: usize) -> Panel {
        let Self { panelling, phases, channels } = *self;
        let count = panelling.count();
        // The common case does without a division, which takes as long as many multiplications.
        let (of, index) = if phases.len() == 1 { (0, index) } else { (index / count, index % count) };
        let (phase, start, width) = (&phases[of], panelling.start(index), panelling.width(index));
        let points = phase.points().0.len();
        let phases_before = of * points * plane(panelling, channels);
        let panels_before = points * (start * channels + index * FILTER_GAP);
        let first = phases_before + panels_before;
        Panel { phase, start, width, vectors: panelling.vectors(index), first, plane: width * channels + FILTER_GAP }
    }
}

/// A panel.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// The pixels that it makes.
    pub(super) phase: &'static Phase,
    /// Its first output.
    pub(super) start: usize,
    /// Floats in a row.
    pub(super) width: usize,
    /// Vectors in a row.
    pub(super) vectors: usize,
    /// Where it begins.
    first: usize,
    /// Floats from point to point.
    plane: usize,
}

impl Panel {
    /// Where the filters at a point of this rank in its phase begin.
    #[inline(always)]
    fn place(&self, rank: usize) -> usize {
        self.first + rank * self.plane
    }
}

/// Filters as they come.
#[derive(Clone, Copy)]
enum Origin<'a> {
    /// `[output][channel][tap]` with so many channels, from this output and this channel on.
    Forward { weight: Weight<'a>, first: usize, channel: usize, of: usize },
    /// `[channel][output][tap]`, to be turned.
    Turned(&'a [f32]),
}

/// The filters of some channels of one panel.
struct Fill<'a> {
    origin: Origin<'a>,
    values: Shared<'a, f32>,
    panel: Panel,
    range: Range<usize>,
    outputs: usize,
    /// Room for filters as they come.
    rows: &'a mut [f32],
    /// Room for the taps, `[channel][tap][width]`, the channels in their order.
    taps: &'a mut [f32],
}

impl WithSimd for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { panel, outputs, .. } = self;
        let Panel { phase, start, width, .. } = panel;
        let count = width.min(outputs - start);
        let run = self.range.len() * width;
        assert!(self.taps.len() == TAPS * run && count.is_multiple_of(S::LANES));
        let wanted = start..start + count;
        let spread = self.origin.spread(s, &self.range, wanted, outputs, width, self.rows, self.taps);
        let taps = self.taps.as_ptr().wrapping_add(spread.first);
        for (u, point) in FILTER_POINTS.into_iter().enumerate().filter(|(u, _)| phase.has_row(*u)) {
            let [a, b, c] = phase.rows(point).map(|factor| s.splat(factor));
            let mut targets = [std::ptr::null_mut(); PATCH];
            for (v, target) in targets.iter_mut().enumerate() {
                let Some(rank) = phase.rank(u * PATCH + v) else { continue };
                let at = panel.place(rank) + self.range.start * width;
                // SAFETY: no other task has this panel and these channels.
                *target = unsafe { self.values.part(at, run) }.as_mut_ptr();
            }
            for (channel, row) in (0..run).step_by(width).enumerate() {
                for at in (row..row + count).step_by(S::LANES) {
                    let mut column = [s.splat(0.0); 3];
                    for (v, column) in column.iter_mut().enumerate() {
                        let tap = |index: usize| {
                            let tap = taps.wrapping_offset(index as isize * spread.tap);
                            // SAFETY: `at - row` begins a vector of the width, which every tap of every channel has.
                            unsafe { s.load(tap.add(channel * spread.channel + at - row)) }
                        };
                        // Three taps lie between rows.
                        let (x, y, z) = (tap(v), tap(v + 3), tap(v + 6));
                        *column = s.fma(c, z, s.fma(b, y, s.mul(a, x)));
                    }
                    let points = filter_transform(s, phase.columns(s, column));
                    for v in (0..PATCH).filter(|v| phase.has_column(*v)) {
                        // SAFETY: the target is a run, too.
                        unsafe { s.store(targets[v].add(at), points[v]) };
                    }
                }
            }
        }
    }
}

/// Where filters lie by taps.
struct Spread {
    /// The first tap of the first channel.
    first: usize,
    /// Floats from tap to tap: negative for filters that are turned.
    tap: isize,
    /// Floats from channel to channel.
    channel: usize,
}

impl<'a> Origin<'a> {
    /// So many outputs from `first` on, and so many channels from `channel` on, of filters with `of` channels.
    fn stored(weight: Weight<'a>, [first, outputs]: [usize; 2], [channel, channels, of]: [usize; 3]) -> Self {
        assert!(channel + channels <= of && weight.len() >= TAPS * of * (first + outputs), "floats of the filters");
        Self::Forward { weight, first, channel, of }
    }
}

impl Origin<'_> {
    /// Writes some filters by taps, and returns where they are.
    #[inline(always)]
    fn spread<S: Simd>(
        &self,
        s: S,
        range: &Range<usize>,
        wanted: Range<usize>,
        outputs: usize,
        width: usize,
        rows: &mut [f32],
        taps: &mut [f32],
    ) -> Spread {
        match self {
            Self::Turned(weight) => {
                let run = range.len() * width;
                for (k, channel) in range.clone().enumerate() {
                    let filters = &weight[channel * outputs * TAPS..][wanted.start * TAPS..wanted.end * TAPS];
                    turn(s, (filters, TAPS), (wanted.len(), TAPS), (&mut taps[k * width..], run));
                }
                Spread { first: (TAPS - 1) * run, tap: -(run as isize), channel: width }
            }
            Self::Forward { weight, first, channel, of } => {
                // The taps of all channels of an output are a row, whose numbers become columns.
                let (len, count) = (TAPS * range.len(), wanted.len());
                let place = |output: usize| ((first + output) * of + channel + range.start) * TAPS;
                match weight {
                    Weight::F32(weight) => {
                        let from = &weight[place(wanted.start)..place(wanted.end - 1) + len];
                        turn(s, (from, of * TAPS), (count, len), (taps, width));
                    }
                    _ => {
                        for (row, output) in rows.chunks_exact_mut(len).zip(wanted) {
                            weight.widen(place(output), row);
                        }
                        turn(s, (rows, len), (count, len), (taps, width));
                    }
                }
                Spread { first: 0, tap: width as isize, channel: TAPS * width }
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
