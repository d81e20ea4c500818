//! The log of a run: one CSV row per logged step, and what remains of a log when a run is resumed.
//!
//! Numbers are written with the fewest digits that read back to the same f32.

use crate::TrainError;

/// The first line of a log.
pub const HEADER: &str = "step,epoch,images,loss,loss_ema,grad_norm,lr,seconds";

/// One row of the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogRow {
    /// The step, counted from 1.
    pub step: u64,
    /// The epoch that the step belongs to, counted from 1.
    pub epoch: u64,
    /// Images seen so far.
    pub images: u64,
    /// The loss of the step's batch.
    pub loss: f32,
    /// The smoothed loss.
    pub loss_ema: f32,
    /// The norm of the gradient before clipping.
    pub grad_norm: f32,
    /// The learning rate.
    pub lr: f32,
    /// Seconds of training so far, earlier parts of a resumed run included.
    pub seconds: f32,
}

impl LogRow {
    /// The row as a line, with its line break.
    pub fn to_csv(&self) -> String {
        let Self { step, epoch, images, loss, loss_ema, grad_norm, lr, seconds } = self;
        format!("{step},{epoch},{images},{loss},{loss_ema},{grad_norm},{lr},{seconds:.2}\n")
    }

    /// Reads a line without its line break; `None` if it is not a row.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(',');
        let mut next = || fields.next();
        let row = Self {
            step: next()?.parse().ok()?,
            epoch: next()?.parse().ok()?,
            images: next()?.parse().ok()?,
            loss: next()?.parse().ok()?,
            loss_ema: next()?.parse().ok()?,
            grad_norm: next()?.parse().ok()?,
            lr: next()?.parse().ok()?,
            seconds: next()?.parse().ok()?,
        };
        next().is_none().then_some(row)
    }
}

/// Reads a log. A last line without a line break is dropped: it is what a killed process leaves behind.
///
/// # Errors
/// If the first line is not [`HEADER`], or a complete line is not a row: the error names the line.
pub fn parse(text: &str) -> Result<Vec<LogRow>, TrainError> {
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    if complete.is_empty() {
        return Ok(Vec::new());
    }
    let mut lines = complete.split('\n').enumerate();
    let malformed = |line: usize, found: &str| TrainError::Log {
        line: line + 1,
        found: found.chars().take(80).collect(),
        expected: HEADER,
    };
    match lines.next() {
        Some((_, HEADER)) => {}
        found => return Err(malformed(0, found.map_or("", |(_, line)| line))),
    }
    lines.map(|(i, line)| LogRow::parse(line).ok_or_else(|| malformed(i, line))).collect()
}

/// A whole log: the header and the rows.
pub fn format(rows: &[LogRow]) -> String {
    let mut text = format!("{HEADER}\n");
    for row in rows {
        text.push_str(&row.to_csv());
    }
    text
}

/// The log of a run that is resumed from a checkpoint of step `step`: later rows, whose steps will be trained and
/// logged again, are dropped, and so is an incomplete last line.
///
/// # Errors
/// As [`parse`].
pub fn truncate(text: &str, step: u64) -> Result<String, TrainError> {
    let mut rows = parse(text)?;
    rows.retain(|row| row.step <= step);
    Ok(format(&rows))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(step: u64) -> LogRow {
        LogRow {
            step,
            epoch: 1 + step / 3,
            images: step * 64,
            loss: 1.0 / step as f32,
            loss_ema: 0.125,
            grad_norm: 1e-7,
            lr: 2e-4,
            seconds: 0.25 * step as f32,
        }
    }

    #[test]
    fn a_row_is_readable() {
        assert_eq!(row(4).to_csv(), "4,2,256,0.25,0.125,0.0000001,0.0002,1.00\n");
        assert_eq!(HEADER.split(',').count(), row(1).to_csv().split(',').count());
    }

    #[test]
    fn resuming_drops_later_rows_and_the_incomplete_line() {
        let rows: Vec<_> = (1..=7).map(row).collect();
        let mut text = format(&rows);
        text.push_str("8,3,51");
        assert_eq!(truncate(&text, 5).unwrap(), format(&rows[..5]));
        assert_eq!(truncate(&text, 7).unwrap(), format(&rows));
        assert_eq!(truncate(&text, 0).unwrap(), format(&[]));
        // A kill while the header was written.
        assert_eq!(truncate("step,ep", 5).unwrap(), format(&[]));
        assert_eq!(truncate("", 5).unwrap(), format(&[]));
    }

    #[test]
    fn a_foreign_file_and_a_damaged_line_are_named() {
        let error = parse("time,value\n1,2\n").unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("time,value") && error.contains(HEADER), "{error}");
        let text = format!("{}2,1,x,1,1,1,1,1\n", format(&[row(1)]));
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("2,1,x"), "{error}");
        let text = format!("{}2,1,3,1,1,1,1,1,9\n", format(&[row(1)]));
        assert!(parse(&text).is_err(), "a field too many");
    }

    proptest! {
        #[test]
        fn rows_read_back_as_they_were_written(
            step in 1u64.., epoch in 1u64.., images in 0u64.., loss in 0f32..1e9, grad in 0f32..1e9, lr in 0f32..1.0,
            hundredths in 0u32..1_000_000,
        ) {
            let seconds = format!("{:.2}", f64::from(hundredths) / 100.0).parse().unwrap();
            let row = LogRow { step, epoch, images, loss, loss_ema: loss * 0.5, grad_norm: grad, lr, seconds };
            prop_assert_eq!(parse(&format(&[row])).unwrap(), vec![row]);
        }

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text);
            let _ = parse(&std::format!("{HEADER}\n{text}\n"));
        }
    }
}
