//! The cells of a study, and what was measured of them, as a CSV file that an interrupted study goes on from.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

/// How a label is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Classifier-free: `u + gamma (c - u)`.
    Free,
    /// By a noisy classifier, from the model without labels.
    Classifier,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Free, Self::Classifier];

    /// As it is written in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "cfg",
            Self::Classifier => "classifier",
        }
    }

    /// As it stands in a report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Free => "classifier-free guidance",
            Self::Classifier => "classifier guidance",
        }
    }

    /// The kind of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One way of drawing.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// How labels are enforced.
    pub kind: Kind,
    /// `gamma`: 0 is no label, 1 is Bayes' rule, above 1 is more.
    pub scale: f64,
    /// The sampler.
    pub sampler: String,
    /// Its steps.
    pub steps: usize,
}

impl Cell {
    /// What it is called where a line tells about it.
    pub fn title(&self) -> String {
        format!("{} {}, {} steps, gamma {}", self.kind.name(), self.sampler, self.steps, self.scale)
    }
}

/// A figure and the ends of its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// The lower end of its interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// What was measured of a cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The cell.
    pub cell: Cell,
    /// Images.
    pub count: usize,
    /// Calls of the denoising network for an image, conditional and unconditional ones together.
    pub calls: f64,
    /// Gradients of the classifier for an image.
    pub gradients: f64,
    /// Seconds of drawing for an image.
    pub seconds: f64,
    /// The share of images that are read as their label.
    pub accuracy: Figure,
    /// The Frechet distance of the features.
    pub fid: Figure,
    /// The kernel distance of the features.
    pub kid: Figure,
    /// The share of images among the real ones.
    pub precision: Figure,
    /// The share of real images among these.
    pub recall: Figure,
}

/// The first line of the file.
const HEADER: &str = "kind,scale,sampler,steps,count,calls,gradients,seconds,accuracy,accuracy_low,accuracy_high,fid,fid_low,\
                      fid_high,kid,kid_low,kid_high,precision,precision_low,precision_high,recall,recall_low,recall_high";
/// Columns of the file.
const COLUMNS: usize = 23;

impl Row {
    fn figures(&self) -> [Figure; 5] {
        [self.accuracy, self.fid, self.kid, self.precision, self.recall]
    }
}

/// The file: a line about the study, which must be the same for it to go on, the header, and a line for each row.
pub fn to_csv(study: &str, rows: &[Row]) -> String {
    let mut text = format!("# {study}\n{HEADER}\n");
    for row in rows {
        let Row { cell, count, calls, gradients, seconds, .. } = row;
        let Cell { kind, scale, sampler, steps } = cell;
        let _ = write!(text, "{},{scale},{sampler},{steps},{count},{calls},{gradients},{seconds}", kind.name());
        for Figure { value, low, high } in row.figures() {
            let _ = write!(text, ",{value},{low},{high}");
        }
        text.push('\n');
    }
    text
}

/// Reads what [`to_csv`] wrote.
///
/// # Errors
/// If it is another file, or that of another study.
pub fn from_csv(study: &str, text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines();
    match lines.next().and_then(|line| line.strip_prefix("# ")) {
        Some(found) if found == study => {}
        Some(found) => bail!(
            "it belongs to another study:\n  there: {found}\n  here:  {study}\ngive another --out, or remove the file to start anew"
        ),
        None => bail!("it is not the file of a study; give another --out"),
    }
    if lines.next() != Some(HEADER) {
        bail!("its columns are not those of this version; give another --out, or remove the file to start anew");
    }
    lines.enumerate().map(|(i, line)| row(line).with_context(|| format!("line {}: {line:?}", i + 3))).collect()
}

fn row(line: &str) -> Result<Row> {
    let parts: Vec<&str> = line.split(',').collect();
    if parts.len() != COLUMNS {
        bail!("{COLUMNS} entries are expected, found {}; remove the line", parts.len());
    }
    let number = |i: usize| -> Result<f64> {
        parts[i].parse().with_context(|| format!("\"{}\" is no number; remove the line", parts[i]))
    };
    let figure =
        |i: usize| -> Result<Figure> { Ok(Figure { value: number(i)?, low: number(i + 1)?, high: number(i + 2)? }) };
    let whole = |i: usize| -> Result<usize> {
        parts[i].parse().with_context(|| format!("\"{}\" is no whole number; remove the line", parts[i]))
    };
    let kind = Kind::from_name(parts[0]).with_context(|| format!("no guidance is called \"{}\"", parts[0]))?;
    Ok(Row {
        cell: Cell { kind, scale: number(1)?, sampler: parts[2].to_owned(), steps: whole(3)? },
        count: whole(4)?,
        calls: number(5)?,
        gradients: number(6)?,
        seconds: number(7)?,
        accuracy: figure(8)?,
        fid: figure(11)?,
        kid: figure(14)?,
        precision: figure(17)?,
        recall: figure(20)?,
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn example(kind: Kind, scale: f64, sampler: &str, steps: usize) -> Row {
        let figure = |value: f64| Figure { value, low: 0.9 * value, high: 1.1 * value };
        let guided = if scale == 0.0 || scale == 1.0 { 1.0 } else { 2.0 };
        Row {
            cell: Cell { kind, scale, sampler: sampler.to_owned(), steps },
            count: 100,
            calls: guided * steps as f64,
            gradients: if kind == Kind::Classifier { steps as f64 } else { 0.0 },
            seconds: 0.125,
            accuracy: figure(0.5 + 0.05 * scale),
            fid: figure(3.0 + (scale - 1.5).powi(2)),
            kid: figure(1e-3 * scale),
            precision: figure(0.8),
            recall: figure(0.6 - 0.05 * scale),
        }
    }

    #[test]
    fn rows_are_read_back_to_the_last_bit() {
        let rows: Vec<Row> = [0.0, 1.0 / 3.0, 8.0].map(|scale| example(Kind::Classifier, scale, "dpm++2m", 20)).into();
        let text = to_csv("a study", &rows);
        assert_eq!(from_csv("a study", &text).unwrap(), rows);
        assert_eq!(HEADER.split(',').count(), COLUMNS);
    }

    #[test]
    fn another_file_is_refused() {
        let text = to_csv("a study", &[example(Kind::Free, 1.0, "ddim", 10)]);
        let error = |study: &str, text: &str| format!("{:#}", from_csv(study, text).unwrap_err());
        assert!(error("another", &text).contains("another study"));
        assert!(error("a study", "my,notes\n").contains("not the file of a study"));
        let cut = &text[..text.len() - 4];
        let broken = cut.rsplit_once(',').unwrap().0;
        assert!(error("a study", broken).contains("line 3"));
        assert!(error("a study", &text.replace("ddim,10", "ddim,ten")).contains("no whole number"));
    }
}
