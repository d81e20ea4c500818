//! The report of a study: Markdown with tables, plots and grids.

use std::fmt::Write as _;

use super::cells::{Cell, Figure, Kind, Row};
use super::plot::{Level, Panel, Series};

/// What a report says beside its rows.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The command that makes it again.
    pub command: String,
    /// The model that was drawn from.
    pub model: String,
    /// The noisy classifier, where there was one.
    pub noisy: Option<String>,
    /// The network whose features and labels the figures are made of.
    pub features: String,
    /// The real images that samples are compared with.
    pub reference: String,
    /// What as many real images of the other part score.
    pub baseline: Option<Baseline>,
    /// Images of each cell.
    pub count: usize,
    /// The seed.
    pub seed: u64,
    /// The confidence of the intervals, such as 0.95.
    pub confidence: f64,
    /// The cells along which the scale changes: sampler and steps.
    pub along_scale: (String, usize),
    /// The scale at which samplers are compared.
    pub at_scale: f64,
    /// Grids of samples: the cell, and the name of the picture.
    pub grids: Vec<(Cell, String)>,
}

/// The figures of real images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Baseline {
    /// The share that is read as its label.
    pub accuracy: Figure,
    /// The Frechet distance.
    pub fid: Figure,
    /// The kernel distance.
    pub kid: Figure,
    /// Precision.
    pub precision: Figure,
    /// Recall.
    pub recall: Figure,
}

/// The names of the two plots.
pub const PLOT_OF_SCALE: &str = "scale.svg";
/// The plot over network calls.
pub const PLOT_OF_CALLS: &str = "calls.svg";

/// Rows of one kind with one sampler and number of steps, by rising scale.
fn along_scale<'a>(rows: &'a [Row], kind: Kind, (sampler, steps): &(String, usize)) -> Vec<&'a Row> {
    let same = |row: &&Row| row.cell.kind == kind && row.cell.sampler == *sampler && row.cell.steps == *steps;
    let mut found: Vec<&Row> = rows.iter().filter(same).collect();
    found.sort_by(|a, b| a.cell.scale.total_cmp(&b.cell.scale));
    found
}

/// Rows of classifier-free guidance with one scale: sampler by sampler in the order of `rows`, by rising number of calls.
fn along_calls(rows: &[Row], scale: f64) -> Vec<(&str, Vec<&Row>)> {
    let mut groups: Vec<(&str, Vec<&Row>)> = Vec::new();
    for row in rows.iter().filter(|row| row.cell.kind == Kind::Free && row.cell.scale == scale) {
        match groups.iter_mut().find(|(name, _)| *name == row.cell.sampler) {
            Some((_, group)) => group.push(row),
            None => groups.push((&row.cell.sampler, vec![row])),
        }
    }
    groups.iter_mut().for_each(|(_, group)| group.sort_by(|a, b| a.calls.total_cmp(&b.calls)));
    groups
}

/// The figures that are plotted: title, figure, whether its axis is logarithmic, and the baseline.
type Plotted = (&'static str, fn(&Row) -> Figure, bool, fn(&Baseline) -> Figure);

const PLOTTED: [Plotted; 4] = [
    ("accuracy: read as their label", |row| row.accuracy, false, |real| real.accuracy),
    ("FID", |row| row.fid, true, |real| real.fid),
    ("precision", |row| row.precision, false, |real| real.precision),
    ("recall", |row| row.recall, false, |real| real.recall),
];

/// The panels of one plot: `lines` are the names and rows, `place` is where a row stands.
fn panels(
    lines: &[(String, Vec<&Row>)],
    along: &'static str,
    log_along: bool,
    place: fn(&Row) -> f64,
    baseline: Option<&Baseline>,
) -> Vec<Panel> {
    let panel = |&(title, figure, log_up, real): &Plotted| Panel {
        title,
        along,
        log_along,
        log_up,
        series: lines
            .iter()
            .map(|(name, rows)| Series {
                name: name.clone(),
                points: rows.iter().map(|row| (place(row), figure(row))).collect(),
            })
            .collect(),
        levels: baseline
            .map(|all| Level { name: "real images".to_owned(), value: real(all).value })
            .into_iter()
            .collect(),
    };
    PLOTTED.iter().map(panel).collect()
}

/// The panels over the scale.
pub fn panels_of_scale(facts: &Facts, rows: &[Row]) -> Vec<Panel> {
    let lines = Kind::ALL.map(|kind| (kind.title().to_owned(), along_scale(rows, kind, &facts.along_scale)));
    let lines: Vec<_> = lines.into_iter().filter(|(_, rows)| !rows.is_empty()).collect();
    panels(&lines, "gamma", false, |row| row.cell.scale, facts.baseline.as_ref())
}

/// The panels over the number of network calls.
pub fn panels_of_calls(facts: &Facts, rows: &[Row]) -> Vec<Panel> {
    let lines = along_calls(rows, facts.at_scale);
    let lines: Vec<_> = lines.into_iter().map(|(name, rows)| (name.to_owned(), rows)).collect();
    panels(&lines, "network calls for an image", true, |row| row.calls, facts.baseline.as_ref())
}

fn share(figure: Figure) -> String {
    format!("{:.1} ({:.1} to {:.1})", 100.0 * figure.value, 100.0 * figure.low, 100.0 * figure.high)
}

fn number(figure: Figure) -> String {
    let digits = if figure.value.abs() < 10.0 { 2 } else { 1 };
    format!("{:.digits$} ({:.digits$} to {:.digits$})", figure.value, figure.low, figure.high)
}

fn small(figure: Figure) -> String {
    format!("{:.2} ({:.2} to {:.2})", 1e3 * figure.value, 1e3 * figure.low, 1e3 * figure.high)
}

const COLUMNS: &str = "accuracy, % | FID | KID, 1e-3 | precision, % | recall, %";

fn cells_of(accuracy: Figure, fid: Figure, kid: Figure, precision: Figure, recall: Figure) -> String {
    format!("{} | {} | {} | {} | {}", share(accuracy), number(fid), small(kid), share(precision), share(recall))
}

fn figures(row: &Row) -> String {
    cells_of(row.accuracy, row.fid, row.kid, row.precision, row.recall)
}

fn header(text: &mut String, first: &str) {
    let columns = 1 + first.matches('|').count() + COLUMNS.matches('|').count();
    let _ = writeln!(text, "| {first} | {COLUMNS} |\n|{}|", "--:|".repeat(columns + 1).trim_end_matches('|'));
}

/// The whole report.
pub fn markdown(facts: &Facts, rows: &[Row]) -> String {
    let mut text = String::new();
    opening(&mut text, facts);
    by_scale(&mut text, facts, rows);
    by_calls(&mut text, facts, rows);
    grids(&mut text, facts);
    text
}

fn opening(text: &mut String, facts: &Facts) {
    let Facts { command, model, features, reference, count, seed, confidence, .. } = facts;
    let _ = writeln!(
        text,
        "# What guidance gives and what it costs\n\nMade by\n\n```sh\n{command}\n```\n\n\
         - **Model:** {model}; {count} images for each row, labels in turn, seed {seed}.\n\
         - **Figures:** of {features}, against {reference}. In brackets, intervals of {:.0} % confidence for what the drawing of \
         images leaves open; models and classifiers were trained once.",
        100.0 * confidence
    );
    if let Some(noisy) = &facts.noisy {
        let _ = writeln!(text, "- **Classifier guidance:** the model without labels, guided by {noisy}.");
    }
    let _ = writeln!(
        text,
        "- **Accuracy** is the share that the classifier reads as the label that was asked for. **FID** and **KID** are distances \
         between distributions, smaller is better; they depend on the features and, FID, on the number of images, so they compare \
         with each other and with the real images below, and with no other report's. **Precision** is the share of samples that \
         look like real images, **recall** the share of real images that samples look like: quality and variety."
    );
    if let Some(Baseline { accuracy, fid, kid, precision, recall }) = facts.baseline {
        let _ = writeln!(text, "\nAs many real images that the reference does not hold:\n");
        header(text, "");
        let _ = writeln!(text, "| real | {} |", cells_of(accuracy, fid, kid, precision, recall));
    }
}

fn by_scale(text: &mut String, facts: &Facts, rows: &[Row]) {
    let (sampler, steps) = &facts.along_scale;
    let _ = writeln!(
        text,
        "\n## Over the scale\n\n{sampler} with {steps} steps. At gamma 0 no label is enforced, gamma 1 is Bayes' rule, and beyond it \
         the label counts for more than it should: images become clearer and more alike.\n\n![Figures over gamma]({PLOT_OF_SCALE})"
    );
    for kind in Kind::ALL {
        let rows = along_scale(rows, kind, &facts.along_scale);
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n**{}**\n", capitalised(kind.title()));
        header(text, "gamma | network calls | gradients");
        for row in &rows {
            let Row { cell: Cell { scale, .. }, calls, gradients, .. } = row;
            let _ = writeln!(text, "| {scale} | {calls} | {gradients} | {} |", figures(row));
        }
        if let Some(best) = least(&rows, |row| row.fid.value) {
            let _ = writeln!(
                text,
                "\nThe smallest FID, {:.2}, is that of gamma {}, with an accuracy of {:.1} %.{}",
                best.fid.value,
                best.cell.scale,
                100.0 * best.accuracy.value,
                match rows.iter().find(|row| row.accuracy.value >= 0.99) {
                    Some(row) => format!(
                        " 99 % of the images are read as their label from gamma {} on, where the FID is {:.2}.",
                        row.cell.scale, row.fid.value
                    ),
                    None => " No gamma here brings the accuracy to 99 %.".to_owned(),
                }
            );
        }
    }
}

fn by_calls(text: &mut String, facts: &Facts, rows: &[Row]) {
    let groups = along_calls(rows, facts.at_scale);
    if groups.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n## Over network calls\n\nClassifier-free guidance with gamma {}. A guided step asks the network twice for each evaluation, \
         with the label and without.\n\n![Figures over network calls]({PLOT_OF_CALLS})\n",
        facts.at_scale
    );
    header(text, "sampler | steps | network calls");
    for row in groups.iter().flat_map(|(_, rows)| rows) {
        let _ = writeln!(text, "| {} | {} | {} | {} |", row.cell.sampler, row.cell.steps, row.calls, figures(row));
    }
}

fn grids(text: &mut String, facts: &Facts) {
    if facts.grids.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n## Samples\n\nThe same noise in every picture.");
    for (cell, name) in &facts.grids {
        let (kind, Cell { scale, sampler, steps, .. }) = (capitalised(cell.kind.title()), cell);
        let _ =
            writeln!(text, "\n{kind}, gamma {scale} ({sampler}, {steps} steps):\n\n![{kind}, gamma {scale}]({name})");
    }
}

fn least<'a>(rows: &[&'a Row], of: fn(&Row) -> f64) -> Option<&'a Row> {
    rows.iter().copied().filter(|row| of(row).is_finite()).min_by(|a, b| of(a).total_cmp(&of(b)))
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::super::cells::tests::example;
    use super::*;

    fn facts() -> Facts {
        Facts {
            command: "tweedie study guidance".to_owned(),
            model: "digits".to_owned(),
            noisy: Some("a noisy classifier".to_owned()),
            features: "a classifier".to_owned(),
            reference: "60000 images".to_owned(),
            baseline: None,
            count: 100,
            seed: 0,
            confidence: 0.95,
            along_scale: ("ddim".to_owned(), 25),
            at_scale: 2.0,
            grids: vec![(example(Kind::Free, 2.0, "ddim", 25).cell, "grid.png".to_owned())],
        }
    }

    fn rows() -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for kind in Kind::ALL {
            rows.extend([4.0, 0.0, 2.0].map(|scale| example(kind, scale, "ddim", 25)));
        }
        rows.extend([50, 10].map(|steps| example(Kind::Free, 2.0, "ddim", steps)));
        rows.push(example(Kind::Free, 2.0, "heun", 10));
        rows
    }

    #[test]
    fn tables_are_sorted_and_have_as_many_entries_as_columns() {
        let text = markdown(&facts(), &rows());
        let mut width = None;
        for line in text.lines() {
            let bars = line.matches('|').count();
            match width {
                _ if bars == 0 => width = None,
                None => width = Some(bars),
                Some(width) => assert_eq!(bars, width, "{line}"),
            }
        }
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} in {text}"));
        assert!(at("| 0 | 25 | 0 |") < at("| 2 | 50 | 0 |") && at("| 2 | 50 | 0 |") < at("| 4 | 50 | 0 |"));
        assert!(
            at("| ddim | 10 | 20 |") < at("| ddim | 50 | 100 |")
                && at("| ddim | 50 | 100 |") < at("| heun | 10 | 20 |")
        );
        // Of 0, 2 and 4, the example's distance is least at 2.
        assert!(text.contains("The smallest FID, 3.25, is that of gamma 2"));
        assert!(text.contains("grid.png") && text.contains("a noisy classifier"));
    }

    #[test]
    fn plots_show_both_kinds_and_all_samplers() {
        let (facts, rows) = (facts(), rows());
        let names = |panels: &[Panel]| panels[0].series.iter().map(|s| s.name.clone()).collect::<Vec<_>>().join(", ");
        let (scale, calls) = (panels_of_scale(&facts, &rows), panels_of_calls(&facts, &rows));
        assert_eq!((scale.len(), calls.len()), (4, 4));
        assert_eq!(names(&scale), "classifier-free guidance, classifier guidance");
        assert_eq!(names(&calls), "ddim, heun");
        let places: Vec<f64> = calls[1].series[0].points.iter().map(|point| point.0).collect();
        assert_eq!(places, [20.0, 50.0, 100.0]);
    }
}
