//! Which labels are drawn: `0-3,7` or `none`.

use std::fmt;
use std::str::FromStr;

/// A list of labels as it is typed: numbers, ranges and `none`, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelList(pub Vec<Option<usize>>);

/// The longest list; a bound, so that a mistyped range is an error and not an allocation of gigabytes.
const LONGEST: usize = 1 << 16;

impl FromStr for LabelList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut labels = Vec::new();
        for entry in text.split(',').map(str::trim) {
            if entry.eq_ignore_ascii_case("none") {
                labels.push(None);
            } else if let Some((first, last)) = entry.split_once('-') {
                let wrong = || format!("\"{entry}\" is no range: write it as FIRST-LAST, such as 0-9");
                let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
                if last < first {
                    return Err(format!("the range \"{entry}\" runs backwards: write it as {last}-{first}"));
                }
                if last - first >= LONGEST {
                    return Err(format!("the range \"{entry}\" has more than {LONGEST} labels"));
                }
                labels.extend((first..=last).map(Some));
            } else {
                let wrong = || format!("\"{entry}\" is no label: give numbers, ranges such as 0-9, or `none`");
                labels.push(Some(number(entry).ok_or_else(wrong)?));
            }
            if labels.len() > LONGEST {
                return Err(format!("the list has more than {LONGEST} labels"));
            }
        }
        Ok(Self(labels))
    }
}

/// Digits alone: no sign, no blank inside.
fn number(text: &str) -> Option<usize> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for LabelList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, label) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, name(*label))?;
        }
        Ok(())
    }
}

/// A label as it is typed.
pub fn name(label: Option<usize>) -> String {
    label.map_or_else(|| "none".to_owned(), |label| label.to_string())
}

/// A label as it stands above a column: by the name of its class, if that has one.
pub fn header(label: Option<usize>, class_names: &[String]) -> String {
    label.and_then(|label| class_names.get(label)).cloned().unwrap_or_else(|| name(label))
}

/// How many images of each column are drawn, and in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrangement {
    /// The label of each image, in the order in which the images are numbered.
    pub labels: Vec<Option<usize>>,
    /// The column of the picture that each image stands in; empty if the picture has no columns.
    pub columns: Vec<usize>,
    /// The label of each column; that of all images where there are no columns, unless they have none.
    pub headers: Vec<Option<usize>>,
    /// Which entry of the list each image is of.
    pub entry_of: Vec<usize>,
    /// How many entries the list has.
    pub entries: usize,
}

impl Arrangement {
    /// `per_label` images of each entry, label by label: image i is of entry `i / per_label`.
    pub fn by_label(entries: &[Option<usize>], per_label: usize) -> Self {
        let count = entries.len().saturating_mul(per_label);
        Self::new(entries, (0..count).map(|i| i / per_label))
    }

    /// `count` images that take the entries in turn: image i is of entry `i % entries`.
    pub fn in_turn(entries: &[Option<usize>], count: usize) -> Self {
        Self::new(entries, (0..count).map(|i| i % entries.len().max(1)))
    }

    fn new(entries: &[Option<usize>], of_image: impl Iterator<Item = usize>) -> Self {
        let columns: Vec<usize> = of_image.collect();
        let (labels, entry_of) = (columns.iter().map(|&column| entries[column]).collect(), columns.clone());
        // One kind of image needs no columns: it becomes a square, under the one label.
        if entries.iter().all(|entry| *entry == entries[0]) {
            let headers = entries.first().filter(|entry| entry.is_some()).copied().into_iter().collect();
            return Self { labels, columns: Vec::new(), headers, entry_of, entries: entries.len() };
        }
        let used = columns.iter().max().map_or(0, |last| last + 1);
        Self { labels, columns, headers: entries[..used].to_vec(), entry_of, entries: entries.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Option<usize>>, String> {
        text.parse::<LabelList>().map(|list| list.0)
    }

    #[test]
    fn lists_and_ranges_mix() {
        assert_eq!(parse("0-3,7"), Ok(vec![Some(0), Some(1), Some(2), Some(3), Some(7)]));
        assert_eq!(parse("3, 3 ,7"), Ok(vec![Some(3), Some(3), Some(7)]));
        assert_eq!(parse("none"), Ok(vec![None]));
        assert_eq!(parse("5-5,None"), Ok(vec![Some(5), None]));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for wrong in
            ["", "3-", "-3", "a", "1,,2", "1,", "3-1", "1.5", "+1", "0-99999999", "1-2-3", "18446744073709551616"]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn printing_and_parsing_agree() {
        for text in ["0,1,2", "none", "3,3,7", "none,4"] {
            assert_eq!(text.parse::<LabelList>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn label_major_and_in_turn() {
        let entries = [Some(4), Some(2)];
        let by_label = Arrangement::by_label(&entries, 2);
        assert_eq!(by_label.labels, [Some(4), Some(4), Some(2), Some(2)]);
        assert_eq!(by_label.columns, [0, 0, 1, 1]);
        let in_turn = Arrangement::in_turn(&entries, 3);
        assert_eq!(in_turn.labels, [Some(4), Some(2), Some(4)]);
        assert_eq!(in_turn.headers, entries);
        assert_eq!(Arrangement::in_turn(&entries, 1).headers, [Some(4)]);
        let unlabelled = Arrangement::by_label(&[None], 16);
        assert!(unlabelled.columns.is_empty() && unlabelled.headers.is_empty());
        let threes = Arrangement::by_label(&[Some(3), Some(3)], 2);
        assert_eq!((threes.columns, threes.headers), (vec![], vec![Some(3)]));
        // Equal entries stay apart: what else is listed entry by entry may differ.
        assert_eq!((threes.entry_of, threes.entries), (vec![0, 0, 1, 1], 2));
    }
}
