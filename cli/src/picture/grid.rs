//! Samples side by side, each enlarged by a whole factor, with a header above each column.

use anyhow::{Result, bail};
use font8x8::legacy::BASIC_LEGACY;
use ndarray::{ArrayView3, ArrayView4, Axis};
use tweedie_data::Range;

/// Space around the grid.
const MARGIN: usize = 8;
/// Space between two images.
const GAP: usize = 3;
/// Factor by which the 8 x 8 letters of headers are enlarged, where there is room.
const LETTER: usize = 2;
/// Small images are enlarged to about this many pixels.
const CELL: usize = 96;
/// A larger picture is drawn without enlargement.
const COMFORTABLE: usize = 1 << 24;
/// A larger picture is not drawn at all.
const LARGEST: usize = 1 << 28;

const PAPER: [u8; 3] = [246, 246, 244];
const INK: [u8; 3] = [40, 44, 52];

/// An RGB image in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canvas {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` pixels of three bytes, row by row.
    pub rgb: Vec<u8>,
}

/// Where each sample of a grid stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Column and row of each sample.
    cells: Vec<(usize, usize)>,
    headers: Vec<String>,
    columns: usize,
    rows: usize,
    scale: usize,
    height: usize,
    width: usize,
}

impl Layout {
    /// The layout of samples of `shape` `[N, C, H, W]`.
    ///
    /// `columns[i]` is the column of sample i; samples of a column stand below each other in their order. Without columns
    /// the grid is about square, row by row. `headers` has one entry per column, or one for the whole grid, or none at all.
    ///
    /// # Errors
    /// If there is no sample, the samples have neither 1 nor 3 channels, or the picture would be absurdly large.
    pub fn new(shape: [usize; 4], columns: &[usize], headers: Vec<String>) -> Result<Self> {
        let [count, channels, height, width] = shape;
        if channels != 1 && channels != 3 {
            bail!(
                "a picture shows 1 channel (grey) or 3 (colour), and these samples have {channels}; \
                 write them as .npy or .safetensors"
            );
        }
        if count == 0 || height == 0 || width == 0 {
            bail!("there is nothing to draw in samples of shape {shape:?}");
        }
        let cells: Vec<(usize, usize)> = if columns.is_empty() {
            let side = (count as f64).sqrt().ceil() as usize;
            (0..count).map(|i| (i % side, i / side)).collect()
        } else {
            let mut filled = vec![0; columns.iter().max().map_or(0, |last| last + 1)];
            let place = |&column: &usize| {
                filled[column] += 1;
                (column, filled[column] - 1)
            };
            columns.iter().map(place).collect()
        };
        let extent = |of: fn(&(usize, usize)) -> usize| cells.iter().map(of).max().map_or(0, |last| last + 1);
        let (columns, rows) = (extent(|c| c.0), extent(|c| c.1));
        let mut layout = Self { columns, rows, headers, scale: 1, height, width, cells };
        let preferred = (CELL / height.max(width)).clamp(1, 12);
        layout.scale = preferred;
        if layout.pixels() > COMFORTABLE {
            layout.scale = 1;
        }
        if layout.pixels() > LARGEST {
            bail!(
                "a picture of {count} samples of {height} x {width} would be too large; \
                 write them as .npy or .safetensors"
            );
        }
        Ok(layout)
    }

    fn pixels(&self) -> usize {
        let (width, height) = self.size();
        width.saturating_mul(height)
    }

    /// Width and height of the whole picture.
    fn size(&self) -> (usize, usize) {
        let along = |count: usize, cell: usize| {
            count.saturating_mul(cell.saturating_mul(self.scale).saturating_add(GAP)).saturating_add(2 * MARGIN - GAP)
        };
        (along(self.columns, self.width), along(self.rows, self.height).saturating_add(self.header_height()))
    }

    fn header_height(&self) -> usize {
        if self.headers.is_empty() { 0 } else { 8 * self.letter() + MARGIN }
    }

    /// Enlargement of the letters: as preferred, unless the longest header would not fit its column.
    fn letter(&self) -> usize {
        let longest = self.headers.iter().map(|h| h.chars().count()).max().unwrap_or(0);
        if 8 * LETTER * longest <= self.header_width() { LETTER } else { 1 }
    }

    /// Width that a header is centred in: that of its column, or that of all columns if there is one header for them.
    fn header_width(&self) -> usize {
        let columns = if self.headers.len() == 1 { self.columns } else { 1 };
        columns * (self.width * self.scale + GAP) - GAP
    }

    /// Draws samples `[N, C, H, W]` whose values lie in `range`; values outside are clamped.
    ///
    /// # Panics
    /// If the samples are not of the shape that the layout was made for.
    pub fn draw(&self, samples: ArrayView4<'_, f32>, range: Range) -> Canvas {
        assert_eq!(samples.len_of(Axis(0)), self.cells.len(), "a layout is for a number of samples");
        let (width, height) = self.size();
        let mut canvas = Canvas { width, height, rgb: PAPER.repeat(width * height) };
        let column_left = |column: usize| MARGIN + column * (self.width * self.scale + GAP);
        // The name of a class may be longer than its column is wide.
        let fits = (self.header_width() / (8 * self.letter())).max(1);
        for (column, header) in self.headers.iter().enumerate() {
            let header: String = header.chars().take(fits).collect();
            let text_width = 8 * self.letter() * header.chars().count();
            let left = (column_left(column) + self.header_width() / 2).saturating_sub(text_width / 2);
            canvas.write(&header, left, MARGIN, self.letter());
        }
        for (sample, &(column, row)) in samples.axis_iter(Axis(0)).zip(&self.cells) {
            let top = MARGIN + self.header_height() + row * (self.height * self.scale + GAP);
            canvas.paste(sample, range, column_left(column), top, self.scale);
        }
        canvas
    }
}

impl Canvas {
    /// Fills a rectangle, as much of it as lies on the canvas.
    fn fill(&mut self, left: usize, top: usize, width: usize, height: usize, colour: [u8; 3]) {
        for y in top..(top + height).min(self.height) {
            for x in left..(left + width).min(self.width) {
                let at = 3 * (y * self.width + x);
                self.rgb[at..at + 3].copy_from_slice(&colour);
            }
        }
    }

    /// Writes text in the 8 x 8 font; what the font lacks becomes a question mark.
    fn write(&mut self, text: &str, left: usize, top: usize, scale: usize) {
        for (i, letter) in text.chars().enumerate() {
            let glyph = BASIC_LEGACY.get(letter as usize).unwrap_or(&BASIC_LEGACY['?' as usize]);
            for (y, bits) in glyph.iter().enumerate() {
                for x in (0..8).filter(|x| bits & (1 << x) != 0) {
                    self.fill(left + (8 * i + x) * scale, top + y * scale, scale, scale, INK);
                }
            }
        }
    }

    fn paste(&mut self, sample: ArrayView3<'_, f32>, range: Range, left: usize, top: usize, scale: usize) {
        let (channels, height, width) = sample.dim();
        for y in 0..height {
            for x in 0..width {
                // A single channel is grey: it is each of the three.
                let colour = [0, 1, 2].map(|c| range.to_byte(sample[[c.min(channels - 1), y, x]]));
                self.fill(left + x * scale, top + y * scale, scale, scale, colour);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;

    fn pixel(canvas: &Canvas, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * canvas.width + x);
        [canvas.rgb[at], canvas.rgb[at + 1], canvas.rgb[at + 2]]
    }

    #[test]
    fn samples_stand_in_their_columns_enlarged() {
        // Three samples of one value each: two in the first column, one in the second.
        let samples = Array4::from_shape_fn((3, 1, 16, 16), |(n, ..)| [-1.0, 0.0, 1.0][n]);
        let layout = Layout::new([3, 1, 16, 16], &[0, 0, 1], vec!["3".into(), "none".into()]).unwrap();
        assert_eq!(layout.scale, 6);
        let canvas = layout.draw(samples.view(), Range::MinusOneOne);
        let (cell, top) = (96, MARGIN + 16 + MARGIN);
        assert_eq!((canvas.width, canvas.height), (2 * cell + GAP + 2 * MARGIN, top + 2 * cell + GAP + MARGIN));
        for (x, y, grey) in [(0, 0, 0), (0, cell + GAP, 128), (cell + GAP, 0, 255)] {
            let (left, top) = (MARGIN + x, top + y);
            for (dx, dy) in [(0, 0), (cell - 1, 0), (0, cell - 1), (cell - 1, cell - 1)] {
                assert_eq!(pixel(&canvas, left + dx, top + dy), [grey; 3], "{x} {y} {dx} {dy}");
            }
            assert_eq!(pixel(&canvas, left - 1, top), PAPER);
        }
        // The place below the only sample of the second column stays empty.
        assert_eq!(pixel(&canvas, MARGIN + cell + GAP + 5, top + cell + GAP + 5), PAPER);
        let ink = (0..canvas.width).any(|x| (0..top).any(|y| pixel(&canvas, x, y) == INK));
        assert!(ink, "the header is written");
    }

    #[test]
    fn without_columns_the_grid_is_about_square() {
        let layout = Layout::new([10, 3, 28, 28], &[], Vec::new()).unwrap();
        assert_eq!((layout.columns, layout.rows, layout.scale), (4, 3, 3));
        assert_eq!(layout.cells[5], (1, 1));
        assert_eq!(layout.header_height(), 0);
    }

    #[test]
    fn one_header_stands_above_the_middle_of_all_columns() {
        let samples = Array4::from_elem((9, 1, 32, 32), 0.0);
        let canvas = Layout::new([9, 1, 32, 32], &[], vec!["7".into()]).unwrap().draw(samples.view(), Range::ZeroOne);
        let (cell, top) = (96, MARGIN + 16 + MARGIN);
        assert_eq!((canvas.width, canvas.height), (3 * cell + 2 * GAP + 2 * MARGIN, top + 3 * cell + 2 * GAP + MARGIN));
        let ink: Vec<usize> = (0..canvas.width).filter(|&x| (0..top).any(|y| pixel(&canvas, x, y) == INK)).collect();
        let middle = canvas.width / 2;
        assert!(!ink.is_empty() && ink.iter().all(|x| x.abs_diff(middle) <= 8), "{ink:?} around {middle}");
    }

    #[test]
    fn colours_and_values_outside_the_range() {
        let samples = Array4::from_shape_fn((1, 3, 1, 1), |(_, c, ..)| [-0.5, 0.5, 7.0][c]);
        let canvas = Layout::new([1, 3, 1, 1], &[], Vec::new()).unwrap().draw(samples.view(), Range::ZeroOne);
        assert_eq!(pixel(&canvas, MARGIN, MARGIN), [0, 128, 255]);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        assert!(Layout::new([1, 4, 8, 8], &[], Vec::new()).is_err());
        assert!(Layout::new([0, 1, 8, 8], &[], Vec::new()).is_err());
        assert!(Layout::new([1 << 20, 1, 64, 64], &[], Vec::new()).is_err());
    }

    #[test]
    fn large_grids_are_not_enlarged() {
        assert_eq!(Layout::new([10_000, 1, 28, 28], &[], Vec::new()).unwrap().scale, 1);
    }
}
