//! Medians of times, and words for numbers.

use serde::Serialize;

/// The steps of one turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Turn {
    /// Which turn of its round it was, from 0.
    pub(super) place: usize,
    /// Timed steps.
    pub(super) steps: usize,
    /// The median step, in seconds.
    pub(super) median: f64,
    /// The fastest step, in seconds.
    pub(super) best: f64,
    /// Every step, in seconds; empty where only the summary is known.
    pub(super) seconds: Vec<f64>,
}

impl Turn {
    /// The summary of measured steps; `None` if there are none, or one is no time.
    pub(super) fn from_steps(place: usize, seconds: Vec<f64>) -> Option<Self> {
        if seconds.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
            return None;
        }
        let best = seconds.iter().copied().reduce(f64::min)?;
        Some(Self { place, steps: seconds.len(), median: median(&seconds)?, best, seconds })
    }
}

/// The middle of the values, or the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { 0.5 * (sorted[sorted.len() / 2 - 1] + upper) })
}

/// The median over the turns of their median steps.
pub(super) fn median_of_turns(turns: &[Turn]) -> Option<f64> {
    median(&turns.iter().map(|turn| turn.median).collect::<Vec<_>>())
}

/// The fastest step of all turns.
pub(super) fn best_of_turns(turns: &[Turn]) -> Option<f64> {
    turns.iter().map(|turn| turn.best).reduce(f64::min)
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar.
pub(super) fn civil(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that the leap day is the last one; an era is 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// A text as a part of a file's name: lower-case letters, digits and single dashes.
pub(super) fn slug(text: &str) -> String {
    let plain = text.replace("(R)", " ").replace("(TM)", " ").to_lowercase();
    let words = plain.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}
