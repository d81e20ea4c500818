//! Logarithmic axes of plots.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// An axis of decimal logarithms, labelled with the numbers themselves.
#[derive(Clone)]
pub struct Decades {
    bottom: f64,
    top: f64,
}

impl Decades {
    /// From `lowest` to `highest`, both positive.
    pub fn new(lowest: f64, highest: f64) -> Self {
        Self { bottom: lowest.log10(), top: highest.log10() }
    }
}

impl Ranged for Decades {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.bottom) / (self.top - self.bottom);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        ticks(self.bottom, self.top)
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.bottom..self.top
    }
}

impl ValueFormatter<f64> for Decades {
    fn format(exponent: &f64) -> String {
        label(*exponent)
    }
}

/// Decimal logarithms of round numbers between two others: more of them to a decade, the fewer decades there are.
fn ticks(bottom: f64, top: f64) -> Vec<f64> {
    let digits: &[f64] = match top - bottom {
        decades if decades > 4.0 => &[1.0],
        decades if decades > 0.7 => &[1.0, 2.0, 5.0],
        _ => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    };
    let decades = bottom.floor() as i32..=top.ceil() as i32;
    let all = decades.flat_map(|decade| digits.iter().map(move |digit| digit.log10() + f64::from(decade)));
    all.filter(|tick| (bottom..=top).contains(tick)).collect()
}

/// The number of a decimal logarithm, with as many digits as two significant ones need.
fn label(exponent: f64) -> String {
    let value = 10f64.powf(exponent);
    if value < 1e-4 {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.5}");
    let digits = text.find(|digit: char| ('1'..='9').contains(&digit)).unwrap_or_default() + 2;
    let text = &text[..digits.max(text.find('.').unwrap_or(0)).min(text.len())];
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_with_short_labels() {
        let labels = |lowest: f64, highest: f64| {
            ticks(lowest.log10(), highest.log10()).into_iter().map(label).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(labels(0.018, 1.1), "0.02 0.05 0.1 0.2 0.5 1");
        assert_eq!(labels(0.35, 1.05), "0.4 0.5 0.6 0.7 0.8 0.9 1");
        assert_eq!(labels(9.0, 250.0), "10 20 50 100 200");
        assert_eq!(labels(3e-7, 2.0), "1.0e-6 1.0e-5 0.0001 0.001 0.01 0.1 1");
    }
}
