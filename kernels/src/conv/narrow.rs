//! A few outputs: dot products along the channels, several outputs sharing what is loaded of several pixels.
//!
//! ```text
//! y[p, o] = sum_{tap, c} x[source(p, tap), c] w[o, tap, c]         dw[o, tap, c] = sum_p dy[p, o] x[source(p, tap), c]
//! ```
//!
//! The weights are few and stay in the first-level cache; the work is bound by reading `x` once.

use std::cell::Cell;

use super::gather::Start;
use super::pack::Panels;
use super::part::Part;
use super::tile::sum_lanes;
use super::window::{Reader, Window};
use super::{ConvDims, TASKS};
use crate::memory::{Floats, Kept, with_kept};
use crate::par::{CHUNK, Shared, tasks};
use crate::simd::{Isa, Simd, WithSimd, dispatch_to};

thread_local! {
    /// Rows of the input as they are read, and a pixel of zeros.
    static MEMORY: Cell<Floats> = const { Cell::new(Floats::new()) };
    /// Gradients of the weights of each group of rows.
    static SUMS: Cell<Floats> = const { Cell::new(Floats::new()) };
}

/// `y` (`[pixels, outputs]`) from a part with as many channels as the panels.
pub(super) fn convolve(window: &Window, part: &Part<'_>, panels: &Panels, start: Start<'_>, y: &mut [f32]) {
    assert_eq!(y.len(), window.rows() * window.out_w * panels.outputs, "convolution: floats of the output");
    if y.is_empty() {
        return;
    }
    let window = &window.with_long_rows(part);
    // Neighbouring rows of the output share rows of the input, which may have to be computed.
    let rows = (CHUNK / (window.w * part.channels * window.stride).max(1)).max(if window.kernel > 1 { 4 } else { 1 });
    let y = Shared::new(y);
    tasks(window.rows().div_ceil(rows), |task| {
        with_kept(&MEMORY as &Kept<f32>, part.channels + Reader::memory(window, part), |memory| {
            let (zeros, memory) = memory.split_at_mut(part.channels);
            zeros.fill(0.0);
            let reader = Reader::new(window, part, memory);
            let rows = task * rows..window.rows().min((task + 1) * rows);
            dispatch_to(panels.isa, Dots { window, rows, zeros, reader, panels, start, y });
        });
    });
}

/// Some output rows, all outputs.
struct Dots<'a> {
    window: &'a Window,
    rows: std::ops::Range<usize>,
    zeros: &'a [f32],
    reader: Reader<'a>,
    panels: &'a Panels,
    start: Start<'a>,
    y: Shared<'a, f32>,
}

impl WithSimd for Dots<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        // Sums enough to hide the latency of the additions, few enough for the registers.
        match self.panels.outputs {
            1 => self.run::<S, 1, 8>(s),
            2 => self.run::<S, 2, 4>(s),
            3 => match S::LANES {
                16 => self.run::<S, 3, 6>(s),
                _ => self.run::<S, 3, 3>(s),
            },
            _ => match S::LANES {
                16 => self.run::<S, 4, 4>(s),
                _ => self.run::<S, 4, 2>(s),
            },
        }
    }
}

impl Dots<'_> {
    #[inline(always)]
    fn run<S: Simd, const OUTPUTS: usize, const PIXELS: usize>(mut self, s: S) {
        let Self { window, panels, .. } = self;
        let (c, kernel) = (panels.channels, window.kernel);
        let (whole, step) = (c - c % S::LANES, window.stride * c);
        let meets: [std::ops::Range<usize>; 3] = std::array::from_fn(|v| window.columns(v.min(kernel - 1)));
        assert!(panels.outputs == OUTPUTS && panels.panelling.width(0) == 1 && panels.taps == kernel * kernel);
        assert!(panels.values.len() >= OUTPUTS * panels.taps * c && self.zeros.len() == c);
        let filter = |o: usize, tap: usize| &panels.values[(o * panels.taps + tap) * c..][..c];
        for row in self.rows.clone() {
            for u in 0..kernel {
                if let Some(source) = window.source_row(row, u) {
                    self.reader.prepare(s, source);
                }
            }
            let sources: [Option<&[f32]>; 3] = std::array::from_fn(|u| {
                let source = if u < kernel { window.source_row(row, u) } else { None };
                source.map(|source| self.reader.row(source))
            });
            for j in (0..window.out_w).step_by(PIXELS) {
                let count = PIXELS.min(window.out_w - j);
                let mut acc = [[s.splat(0.0); PIXELS]; OUTPUTS];
                let mut tails = [[0.0f32; PIXELS]; OUTPUTS];
                for u in 0..kernel {
                    let Some(x) = sources[u] else { continue };
                    for v in 0..kernel {
                        // Pointers, which stay in registers, to `c` floats each.
                        let inside = count == PIXELS && meets[v].start <= j && j + PIXELS <= meets[v].end;
                        let pixels: [*const f32; PIXELS] = if inside {
                            let x = &x[window.source_column(j, v) * c..][..(PIXELS - 1) * step + c];
                            std::array::from_fn(|i| x[i * step..].as_ptr())
                        } else {
                            std::array::from_fn(|i| {
                                let l = window.source_column(j + i.min(count - 1), v);
                                if l < window.w { x[l * c..][..c].as_ptr() } else { self.zeros.as_ptr() }
                            })
                        };
                        let filters: [&[f32]; OUTPUTS] = std::array::from_fn(|o| filter(o, u * kernel + v));
                        for k in (0..whole).step_by(S::LANES) {
                            // SAFETY: pixels and filters have `c` floats each, and `k + LANES <= c`.
                            unsafe {
                                let x: [S::V; PIXELS] = std::array::from_fn(|i| s.load(pixels[i].add(k)));
                                for o in 0..OUTPUTS {
                                    let w = s.load(filters[o].as_ptr().add(k));
                                    for i in 0..PIXELS {
                                        acc[o][i] = s.fma(x[i], w, acc[o][i]);
                                    }
                                }
                            }
                        }
                        for k in whole..c {
                            for o in 0..OUTPUTS {
                                for i in 0..PIXELS {
                                    // SAFETY: as above.
                                    let x = unsafe { *pixels[i].add(k) };
                                    tails[o][i] = s.fma1(x, filters[o][k], tails[o][i]);
                                }
                            }
                        }
                    }
                }
                for i in 0..count {
                    for o in 0..OUTPUTS {
                        let sum = sum_lanes(s, acc[o][i]) + tails[o][i];
                        // SAFETY: the pixel belongs to a row of this task, and no other task writes it.
                        unsafe {
                            let y = self.y.start().add((row * window.out_w + j + i) * OUTPUTS + o);
                            *y = sum
                                + match self.start {
                                    Start::Bias(bias) => bias.map_or(0.0, |bias| bias[o]),
                                    Start::Accumulate => *y,
                                };
                        }
                    }
                }
            }
        }
    }
}

/// Adds the gradient of the filter.
pub(super) fn backward_weight(isa: Isa, d: &ConvDims, part: &Part<'_>, dy: &[f32], dw: &mut [f32]) {
    let (taps, c, outputs) = (d.taps(), d.c_in, d.c_out);
    assert_eq!(dy.len(), d.out_pixels() * outputs, "convolution: floats of the gradient");
    if dy.is_empty() || dw.is_empty() {
        return;
    }
    let window = &Window::forward(d).with_long_rows(part);
    let groups = window.rows().min(TASKS);
    // `[group][tap][output][channel]`
    with_kept(&SUMS as &Kept<f32>, groups * dw.len(), |sums| {
        let shared = Shared::new(sums);
        tasks(groups, |group| {
            // SAFETY: only this task takes the sums of the group.
            let sums = unsafe { shared.part(group * taps * outputs * c, taps * outputs * c) };
            with_kept(&MEMORY as &Kept<f32>, Reader::memory(window, part), |memory| {
                let rows = group * window.rows() / groups..(group + 1) * window.rows() / groups;
                let reader = Reader::new(window, part, memory);
                dispatch_to(isa, Gradient { window, rows, reader, outputs, c, dy, sums });
            });
        });
        for sums in sums.chunks_exact(taps * outputs * c) {
            for (line, sums) in sums.chunks_exact(c).enumerate() {
                let (tap, o) = (line / outputs, line % outputs);
                for (k, sum) in sums.iter().enumerate() {
                    dw[(o * c + k) * taps + tap] += sum;
                }
            }
        }
    });
}

/// The gradient of the filter from some output rows.
struct Gradient<'a> {
    window: &'a Window,
    rows: std::ops::Range<usize>,
    reader: Reader<'a>,
    outputs: usize,
    c: usize,
    dy: &'a [f32],
    /// `[tap][output][channel]`
    sums: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match S::LANES {
            16 => match self.outputs {
                1 => self.run::<S, 1, 4>(s),
                2 => self.run::<S, 2, 4>(s),
                3 => self.run::<S, 3, 4>(s),
                _ => self.run::<S, 4, 4>(s),
            },
            _ => match self.outputs {
                1 => self.run::<S, 1, 4>(s),
                2 => self.run::<S, 2, 2>(s),
                3 => self.run::<S, 3, 2>(s),
                _ => self.run::<S, 4, 2>(s),
            },
        }
    }
}

impl Gradient<'_> {
    #[inline(always)]
    fn run<S: Simd, const OUTPUTS: usize, const NV: usize>(mut self, s: S) {
        let Self { window, c, dy, .. } = self;
        assert!(self.outputs == OUTPUTS);
        self.sums.fill(0.0);
        for row in self.rows.clone() {
            for u in 0..window.kernel {
                let Some(source) = window.source_row(row, u) else { continue };
                self.reader.prepare(s, source);
                for v in 0..window.kernel {
                    let columns = window.columns(v);
                    if columns.is_empty() {
                        continue;
                    }
                    let run = Run {
                        x: &self.reader.row(source)[window.source_column(columns.start, v) * c..],
                        step: window.stride * c,
                        dy: &dy[(row * window.out_w + columns.start) * OUTPUTS..][..columns.len() * OUTPUTS],
                    };
                    let sums = &mut self.sums[(u * window.kernel + v) * OUTPUTS * c..][..OUTPUTS * c];
                    let mut k = 0;
                    while k + NV * S::LANES <= c {
                        run.add::<S, OUTPUTS, NV>(s, c, k, sums);
                        k += NV * S::LANES;
                    }
                    while k + S::LANES <= c {
                        run.add::<S, OUTPUTS, 1>(s, c, k, sums);
                        k += S::LANES;
                    }
                    for k in k..c {
                        for (x, dy) in run.x[k..].iter().step_by(run.step).zip(run.dy.chunks_exact(OUTPUTS)) {
                            for o in 0..OUTPUTS {
                                sums[o * c + k] = s.fma1(*x, dy[o], sums[o * c + k]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Neighbouring output pixels and what they meet under one tap.
struct Run<'a> {
    x: &'a [f32],
    /// From one pixel of `x` to the next.
    step: usize,
    dy: &'a [f32],
}

impl Run<'_> {
    /// `sums[o c + k..] += sum_p dy[p, o] x[p, k..]`, for `NV` vectors of channels.
    #[inline(always)]
    fn add<S: Simd, const OUTPUTS: usize, const NV: usize>(&self, s: S, c: usize, k: usize, sums: &mut [f32]) {
        let pixels = self.dy.len() / OUTPUTS;
        assert!(k + NV * S::LANES <= c && (pixels - 1) * self.step + c <= self.x.len() && sums.len() == OUTPUTS * c);
        let x = self.x[k..].as_ptr();
        let mut acc = [[s.splat(0.0); NV]; OUTPUTS];
        for (o, acc) in acc.iter_mut().enumerate() {
            for (v, sum) in acc.iter_mut().enumerate() {
                // SAFETY: by the assertion, NV vectors follow channel k of each output's sums.
                *sum = unsafe { s.load(sums.as_ptr().add(o * c + k + v * S::LANES)) };
            }
        }
        for (p, dy) in self.dy.chunks_exact(OUTPUTS).enumerate() {
            // SAFETY: by the assertion, NV vectors follow channel k of each pixel.
            let x: [S::V; NV] = std::array::from_fn(|v| unsafe { s.load(x.add(p * self.step + v * S::LANES)) });
            for o in 0..OUTPUTS {
                let g = s.splat(dy[o]);
                for v in 0..NV {
                    acc[o][v] = s.fma(g, x[v], acc[o][v]);
                }
            }
        }
        for (o, acc) in acc.iter().enumerate() {
            for (v, sum) in acc.iter().enumerate() {
                // SAFETY: as above.
                unsafe { s.store(sums.as_mut_ptr().add(o * c + k + v * S::LANES), *sum) };
            }
        }
    }
}
