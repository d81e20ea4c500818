//! Filters in the order in which the register tiles read them.

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::gather::Tap;
use super::winograd::{self, PLAIN, Phase, TWICE, WinogradPanels};
use super::{ConvDims, thin};
use crate::lanes::turn;
use crate::memory::{Floats, Kept, with_kept};
use crate::panels::{Panelling, lanes};
use crate::par::{Shared, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};
use crate::weight::{Stored, Weight};

/// One operand of the product, `[panel][tap][channel][width]`, zeros where the last panel is wider than the output.
///
/// For a few outputs each is a panel of its own: the product then runs along the channels, see [`is_narrow`].
#[derive(Clone, Debug)]
pub(super) struct Panels {
    pub(super) isa: Isa,
    pub(super) panelling: Panelling,
    pub(super) taps: usize,
    pub(super) channels: usize,
    pub(super) outputs: usize,
    pub(super) values: Floats,
}

impl Panels {
    pub(super) fn new(isa: Isa, taps: usize, channels: usize, outputs: usize) -> Self {
        Self::within(Floats::new(), isa, taps, channels, outputs)
    }

    /// Panels in memory that another use has left, whatever it holds and however much more it is.
    pub(super) fn within(mut memory: Floats, isa: Isa, taps: usize, channels: usize, outputs: usize) -> Self {
        memory.room(Self::floats(isa, taps, channels, outputs));
        Self { values: memory, ..Self::empty(isa, taps, channels, outputs) }
    }

    /// Panels without their values.
    fn empty(isa: Isa, taps: usize, channels: usize, outputs: usize) -> Self {
        let panelling = panelling(isa, taps, channels, outputs);
        Self { isa, panelling, taps, channels, outputs, values: Floats::new() }
    }

    pub(super) fn floats(isa: Isa, taps: usize, channels: usize, outputs: usize) -> usize {
        panelling(isa, taps, channels, outputs).room() * taps * channels
    }

    /// Calls `f(outputs, values)` for every panel, in parallel, with the outputs that exist, and the panel's floats.
    fn each_panel(&mut self, f: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let (panelling, depth, outputs) = (self.panelling, self.taps * self.channels, self.outputs);
        let values = Shared::new(&mut self.values);
        tasks(if depth == 0 { 0 } else { panelling.count() }, |panel| {
            let (start, width) = (panelling.start(panel), panelling.width(panel));
            // SAFETY: each task takes its own panel.
            let values = unsafe { values.part(start * depth, width * depth) };
            f(start..outputs.min(start + width), values);
        });
    }

    /// Writes `weight(output, channel, tap)` in panel order, and zeros beyond the last output.
    fn fill(&mut self, weight: impl Fn(usize, usize, usize) -> f32 + Sync) {
        let (taps, channels) = (self.taps, self.channels);
        self.each_panel(|outputs, values| {
            let width = values.len() / (taps * channels);
            for channel in 0..channels {
                for tap in 0..taps {
                    let row = &mut values[(tap * channels + channel) * width..][..width];
                    let (row, beyond) = row.split_at_mut(outputs.len());
                    for (k, value) in row.iter_mut().enumerate() {
                        *value = weight(outputs.start + k, channel, tap);
                    }
                    beyond.fill(0.0);
                }
            }
        });
    }

    /// Writes the weights of the outputs from `first` on, `[output][channel][tap]`, in panel order.
    pub(super) fn fill_stored(&mut self, weight: Weight<'_>, first: usize) {
        let (isa, taps, channels) = (self.isa, self.taps, self.channels);
        let row = taps * channels;
        assert!(weight.len() >= (first + self.outputs) * row, "floats of the filters");
        let at_once = (ROW_FLOATS / taps.max(1)).max(1).min(channels);
        self.each_panel(|outputs, values| {
            let (width, count) = (values.len() / row, outputs.len());
            with_kept(&ROWS as &Kept<f32>, count * at_once * taps, |rows| {
                for channel in (0..channels).step_by(at_once) {
                    let len = at_once.min(channels - channel) * taps;
                    for (k, numbers) in rows.chunks_exact_mut(len).take(count).enumerate() {
                        weight.widen((first + outputs.start + k) * row + channel * taps, numbers);
                    }
                    let rows = &rows[..count * len];
                    if taps == 1 {
                        let to = &mut values[channel * width..][..len * width];
                        dispatch_to(isa, Turn { rows, to, width });
                        continue;
                    }
                    for at in 0..len {
                        let to = ((at % taps) * channels + channel + at / taps) * width;
                        let to = &mut values[to..to + width];
                        for k in 0..count {
                            to[k] = rows[k * len + at];
                        }
                        to[count..].fill(0.0);
                    }
                }
            });
        });
    }

    /// The index of a filter tap.
    #[inline(always)]
    pub(super) fn tap(&self, (u, v): Tap) -> usize {
        if self.taps == 1 { 0 } else { 3 * u + v }
    }

    /// Panel `index`.
    pub(super) fn panel(&self, index: usize) -> &[f32] {
        let depth = self.taps * self.channels;
        &self.values[self.panelling.start(index) * depth..][..self.panelling.width(index) * depth]
    }
}

/// Floats of an output's weights that are brought into panel order at a time.
const ROW_FLOATS: usize = 512;

thread_local! {
    /// Weights of some outputs, widened.
    static ROWS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// Memory of a filter that is packed for one pass; not every thread that may begin one should have its own.
static PASSING: Mutex<Floats> = Mutex::new(Floats::new());

/// Calls `f` with the memory of [`PASSING`], which another thread finds empty meanwhile, and keeps what it returns.
fn with_kept_by_all<R>(f: impl FnOnce(Floats) -> (Floats, R)) -> R {
    let place = || PASSING.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = std::mem::take(&mut *place());
    let (memory, result) = f(memory);
    let mut place = place();
    if place.len() < memory.len() {
        *place = memory;
    }
    result
}

/// Whether so few outputs are made that vectors of channels waste less than vectors of outputs.
pub(super) fn is_narrow(outputs: usize) -> bool {
    outputs <= 4
}

/// How the outputs of a filter are divided.
fn panelling(isa: Isa, taps: usize, channels: usize, outputs: usize) -> Panelling {
    let vectors = panel_vectors(isa, outputs);
    if is_narrow(outputs) {
        Panelling::single(outputs)
    } else if thin::fits(taps, channels, outputs) {
        Panelling::even(isa, outputs, vectors)
    } else {
        Panelling::mixed(isa, outputs, vectors)
    }
}

/// Vectors in a row of a panel, where all have the same number and there are more than a few outputs: wide panels need fewer
/// loads per multiplication, narrow ones waste less.
pub(super) fn panel_vectors(isa: Isa, outputs: usize) -> usize {
    let vectors = outputs.div_ceil(lanes(isa)).max(1);
    match isa {
        Isa::Avx512 if vectors >= 4 && (vectors.is_multiple_of(4) || vectors > 8) => 4,
        Isa::Avx512 | Isa::Avx2 | Isa::Neon => vectors.min(2),
        Isa::Portable => 1,
    }
}

/// Outputs of the first panels of a filter with many outputs.
pub(super) fn panel_width(isa: Isa, outputs: usize) -> usize {
    panelling(isa, usize::MAX, 1, outputs).width(0)
}

/// Writes `rows` `[width or fewer][len]` as `[len][width]`, with zeros where there are fewer.
struct Turn<'a> {
    rows: &'a [f32],
    to: &'a mut [f32],
    width: usize,
}

impl WithSimd for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let len = self.to.len() / self.width;
        let count = self.rows.len() / len;
        turn(s, (self.rows, len), (count, len), (self.to, self.width));
        if count < self.width {
            self.to.chunks_exact_mut(self.width).for_each(|row| row[count..].fill(0.0));
        }
    }
}

/// What a filter of [`Filter::same`] or [`Filter::upsampled`] cannot do.
const NOT_THE_SAME: &str = "convolution: a filter that was packed for pictures of another kind, which keep their size or double it: use Filter::new";

/// What a filter is packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The forward pass.
    Forward,
    /// The gradient of the input.
    Backward,
}

/// A filter packed for the forward pass and, if asked for, for the gradient of the input.
#[derive(Clone, Debug)]
pub struct Filter {
    kernel: usize,
    forward: Panels,
    backward: Panels,
    forward_winograd: Option<WinogradPanels>,
    backward_winograd: Option<WinogradPanels>,
    has_backward: bool,
    /// Whether the transformed form is kept where the size allows it.
    transformed: bool,
    /// Whether the gathered form is kept, too, where there is a transformed one.
    gathered: bool,
    /// Weights that are kept as a file holds them, instead of any packed form.
    streamed: Option<Arc<dyn Stored>>,
}

impl Filter {
    /// A filter of zeros of the given size, for the best instruction set of this processor.
    pub fn new(kernel: usize, c_in: usize, c_out: usize) -> Self {
        Self::for_isa(Isa::best(), kernel, c_in, c_out)
    }

    /// A filter of zeros for convolutions that keep the size of the picture, see [`ConvDims::same`]: of two packed forms only
    /// the one that they use is kept.
    pub fn same(kernel: usize, c_in: usize, c_out: usize) -> Self {
        Self::of_zeros(Isa::best(), PLAIN, false, kernel, [c_in, c_out])
    }

    /// A filter of zeros for convolutions of stride 2, which have no use for its transformed form.
    pub fn strided(kernel: usize, c_in: usize, c_out: usize) -> Self {
        Self { transformed: false, forward_winograd: None, ..Self::new(kernel, c_in, c_out) }
    }

    /// A 3x3 filter of zeros for [`super::forward_upsampled`] alone, and for the gradient of a convolution that keeps the size.
    pub fn upsampled(c_in: usize, c_out: usize) -> Self {
        Self::upsampled_for(Isa::best(), c_in, c_out)
    }

    /// [`Filter::upsampled`] for a given instruction set.
    pub(super) fn upsampled_for(isa: Isa, c_in: usize, c_out: usize) -> Self {
        Self::of_zeros(isa, TWICE, false, 3, [c_in, c_out])
    }

    /// Whether [`super::forward_joined`] with this filter reads plain parts where they lie, and need not join them; of a filter that has
    /// a transformed form, those with whole vectors of channels.
    pub fn reads_parts(&self) -> bool {
        let Panels { taps, channels, outputs, .. } = self.forward;
        let gathers = !is_narrow(outputs) && !thin::fits(taps, channels, outputs);
        self.streamed.is_none() && (self.forward_winograd().is_some() || gathers)
    }

    /// Whether a filter of [`Filter::upsampled`] is the better one for images of this size (height, width) before they are doubled: of
    /// smaller ones, too few pixels meet what is 2.8 times as much memory.
    pub fn upsampled_pays(size: [usize; 2]) -> bool {
        winograd::worth_keeping(size)
    }

    /// Whether [`super::forward_upsampled`] takes this filter for a convolution of this size.
    pub fn upsamples(&self, d: &ConvDims) -> bool {
        match &self.streamed {
            Some(_) => self.transformed && winograd::worth_making(d),
            None => self.phases().is_some(),
        }
    }

    /// A filter whose weights `[c_out, c_in, kernel, kernel]` stay as they are stored: each forward pass packs them anew, in
    /// pieces that fit into the caches. There is no backward pass.
    ///
    /// # Panics
    /// If `weight` does not have the filter's size.
    pub fn streamed(kernel: usize, stride: usize, c_in: usize, c_out: usize, weight: Arc<dyn Stored>) -> Self {
        let (isa, taps, found) = (Isa::best(), kernel * kernel, weight.view().len());
        assert_eq!(found, taps * c_in * c_out, "Filter::streamed: numbers of the weight [{c_out}, {c_in}, {taps}]");
        Self {
            kernel,
            forward: Panels::empty(isa, taps, c_in, c_out),
            backward: Panels::empty(isa, taps, 0, c_in),
            forward_winograd: None,
            backward_winograd: None,
            has_backward: false,
            transformed: stride == 1 && WinogradPanels::fits(isa, kernel, c_in, c_out),
            gathered: false,
            streamed: Some(weight),
        }
    }

    /// Calls `run` with weights `[c_out, c_in, kernel, kernel]` that are packed for one pass in this direction alone, in memory that is
    /// kept for the next: as [`Filter::same`] of stride 1, and [`Filter::strided`]. Where weights change from step to step, a pass
    /// takes them from the cache, and no step writes what is several times as large as they are.
    ///
    /// # Panics
    /// If `weight` does not have the filter's size.
    pub fn with_passing<R>(
        direction: Direction,
        kernel: usize,
        stride: usize,
        [c_in, c_out]: [usize; 2],
        weight: &[f32],
        run: impl FnOnce(&Self) -> R,
    ) -> R {
        let mut filter = Self::unpacked(kernel, stride, [c_in, c_out], weight);
        filter.has_backward = direction == Direction::Backward;
        let (isa, taps) = (filter.isa(), kernel * kernel);
        let (channels, outputs) = if filter.has_backward { (c_out, c_in) } else { (c_in, c_out) };
        with_kept_by_all(|memory| {
            let (winograd, gathered) = filter.packed(direction);
            if stride == 1 && WinogradPanels::fits(isa, kernel, channels, outputs) {
                let mut panels = WinogradPanels::within(memory, isa, PLAIN, channels, outputs);
                match direction {
                    Direction::Forward => panels.fill(weight),
                    Direction::Backward => panels.fill_turned(weight),
                }
                *winograd = Some(panels);
            } else {
                *gathered = Panels::within(memory, isa, taps, channels, outputs);
                match direction {
                    Direction::Forward => gathered.fill_stored(Weight::F32(weight), 0),
                    Direction::Backward => gathered.fill(|c, o, tap| weight[(o * c_in + c) * taps + tap]),
                }
            }
            let result = run(&filter);
            let (winograd, gathered) = filter.packed(direction);
            let memory = winograd.take().map(WinogradPanels::into_memory);
            (memory.unwrap_or_else(|| std::mem::take(&mut gathered.values)), result)
        })
    }

    /// What a pass in this direction reads.
    fn packed(&mut self, direction: Direction) -> (&mut Option<WinogradPanels>, &mut Panels) {
        match direction {
            Direction::Forward => (&mut self.forward_winograd, &mut self.forward),
            Direction::Backward => (&mut self.backward_winograd, &mut self.backward),
        }
    }

    /// A filter without any packed form of `weight`.
    fn unpacked(kernel: usize, stride: usize, [c_in, c_out]: [usize; 2], weight: &[f32]) -> Self {
        let (isa, taps) = (Isa::best(), kernel * kernel);
        assert_eq!(weight.len(), taps * c_in * c_out, "Filter: floats of the weight [{c_out}, {c_in}, {taps}]");
        Self {
            kernel,
            forward: Panels::empty(isa, taps, c_in, c_out),
            backward: Panels::empty(isa, taps, c_out, c_in),
            forward_winograd: None,
            backward_winograd: None,
            has_backward: false,
            transformed: stride == 1,
            gathered: false,
            streamed: None,
        }
    }

    /// Floats that a filter takes for the forward pass: [`Filter::same`] of stride 1, and [`Filter::strided`].
    pub fn forward_floats(kernel: usize, stride: usize, c_in: usize, c_out: usize) -> usize {
        Self::floats_of(PLAIN, kernel, stride, [c_in, c_out])
    }

    /// Floats that [`Filter::upsampled`] takes for the forward pass.
    pub fn upsampled_floats(c_in: usize, c_out: usize) -> usize {
        Self::floats_of(TWICE, 3, 1, [c_in, c_out])
    }

    fn floats_of(phases: &[Phase], kernel: usize, stride: usize, [c_in, c_out]: [usize; 2]) -> usize {
        let isa = Isa::best();
        if stride == 1 && WinogradPanels::fits(isa, kernel, c_in, c_out) {
            return WinogradPanels::floats(isa, phases, c_in, c_out);
        }
        Panels::floats(isa, kernel * kernel, c_in, c_out)
    }

    /// A filter of zeros for a given instruction set, so that each can be tested.
    pub(super) fn for_isa(isa: Isa, kernel: usize, c_in: usize, c_out: usize) -> Self {
        Self::of_zeros(isa, PLAIN, true, kernel, [c_in, c_out])
    }

    /// A filter of zeros whose transformed form, if it has one, is of these phases; `gathered` says whether it has the gathered one, too.
    fn of_zeros(isa: Isa, phases: &'static [Phase], gathered: bool, kernel: usize, [c_in, c_out]: [usize; 2]) -> Self {
        let (taps, fits) = (kernel * kernel, WinogradPanels::fits(isa, kernel, c_in, c_out));
        let panels = if gathered || !fits { Panels::new } else { Panels::empty };
        Self {
            kernel,
            forward: panels(isa, taps, c_in, c_out),
            backward: Panels::new(isa, taps, 0, c_in),
            forward_winograd: fits.then(|| WinogradPanels::new(isa, phases, c_in, c_out)),
            backward_winograd: None,
            has_backward: false,
            transformed: true,
            gathered,
            streamed: None,
        }
    }

    /// Packs `weight` `[c_out, c_in, kernel, kernel]` (PyTorch's order); `backward` adds what [`super::backward_input`] needs.
    ///
    /// # Panics
    /// If `weight` does not have the filter's size, or the filter keeps its weights as they are stored.
    pub fn pack(&mut self, weight: &[f32], backward: bool) {
        let (taps, c_in, c_out) = (self.forward.taps, self.forward.channels, self.forward.outputs);
        assert!(self.streamed.is_none(), "Filter::pack: a filter of Filter::streamed keeps its weights");
        assert_eq!(weight.len(), taps * c_in * c_out, "Filter::pack: floats of the weight [{c_out}, {c_in}, {taps}]");
        if self.gathered || self.forward_winograd.is_none() {
            self.forward.fill(|o, c, tap| weight[(o * c_in + c) * taps + tap]);
        }
        if let Some(panels) = &mut self.forward_winograd {
            panels.fill(weight);
        }
        self.has_backward = backward;
        if backward {
            let isa = self.forward.isa;
            let transformed = self.transformed && WinogradPanels::fits(isa, self.kernel, c_out, c_in);
            if self.gathered || !transformed {
                if self.backward.channels != c_out {
                    self.backward = Panels::new(isa, taps, c_out, c_in);
                }
                self.backward.fill(|c, o, tap| weight[(o * c_in + c) * taps + tap]);
            }
            if transformed {
                // Seen from the input, the filter is turned by half a turn.
                let new = || WinogradPanels::new(isa, PLAIN, c_out, c_in);
                self.backward_winograd.get_or_insert_with(new).fill_turned(weight);
            }
        }
    }

    pub(super) fn forward(&self) -> &Panels {
        assert!(self.gathered || self.forward_winograd.is_none(), "{NOT_THE_SAME}");
        &self.forward
    }

    pub(super) fn backward(&self) -> &Panels {
        assert!(self.has_backward, "conv::backward_input: the filter was packed without its backward half");
        assert!(self.gathered || self.backward_winograd.is_none(), "{NOT_THE_SAME}");
        &self.backward
    }

    pub(super) fn forward_winograd(&self) -> Option<&WinogradPanels> {
        self.forward_winograd.as_ref().filter(|panels| panels.step() == 1)
    }

    /// What [`Filter::upsampled`] keeps.
    pub(super) fn phases(&self) -> Option<&WinogradPanels> {
        self.forward_winograd.as_ref().filter(|panels| panels.step() == 2)
    }

    pub(super) fn backward_winograd(&self) -> Option<&WinogradPanels> {
        self.backward_winograd.as_ref().filter(|_| self.has_backward)
    }

    /// The weights of [`Filter::streamed`].
    pub(super) fn stored(&self) -> Option<&dyn Stored> {
        self.streamed.as_deref()
    }

    /// Whether the forward pass has a transformed form, at hand or to be made.
    pub(super) fn is_transformed(&self) -> bool {
        self.forward_winograd().is_some() || self.streamed.is_some() && self.transformed
    }

    /// Floats that are kept.
    #[cfg(test)]
    pub(super) fn floats(&self) -> usize {
        let transformed = [&self.forward_winograd, &self.backward_winograd].into_iter().flatten();
        transformed.map(WinogradPanels::len).sum::<usize>() + self.forward.values.len() + self.backward.values.len()
    }

    /// The instruction set that it was packed for.
    pub(super) fn isa(&self) -> Isa {
        self.forward.isa
    }

    pub(super) fn check(&self, operation: &str, d: &ConvDims) {
        let found = (self.kernel, self.forward.channels, self.forward.outputs);
        assert_eq!(found, (d.kernel, d.c_in, d.c_out), "{operation}: (kernel, c_in, c_out) of the filter for {d:?}");
    }
}
