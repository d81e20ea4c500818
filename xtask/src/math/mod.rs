//! `docs/verified-math.md`: which function carries which equation, and which test would fail if it were wrong.
//!
//! The page is made of the sources alone. An item says in its rustdoc "Verified by `test`."; its number in the list of
//! [`formulas`] is the one that its own rustdoc names ("FORMULAS 2.1"), or the only one that the header of its file names.

mod formulas;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::tidy::Finding;
use formulas::FORMULAS;
use scan::{Item, Source};

/// The page.
const PAGE: &str = "docs/verified-math.md";
/// Crates whose equations have to name their tests.
const CRATES: &[&str] = &["schedule", "denoiser", "guidance", "samplers", "eval"];
/// Crates whose items are on the page where they name tests.
const OTHERS: &[&str] = &["train", "unet", "kernels", "latent"];
/// Where the identities of `tweedie verify` stand.
const IDENTITIES: &str = "cli/src/verify/";
/// What a number is missing for that is no equation of the list.
const OTHER: &str = "";

/// Writes the page, unless something is wrong with what it is made of; true if it was written.
///
/// # Errors
/// If a file cannot be read or written.
pub fn run(root: &Path) -> Result<bool> {
    let sources = crate::tidy::rust_files(root)?;
    let math = Math::of(&sources)?;
    let findings = math.findings();
    for Finding { place, message } in &findings {
        println!("{place}: {message}");
    }
    if !findings.is_empty() {
        return Ok(false);
    }
    fs::write(root.join(PAGE), math.page()).with_context(|| format!("cannot write {PAGE}"))?;
    println!("math: {PAGE} names {} items", math.items.len());
    Ok(true)
}

/// What is wrong with the sources' equations and tests, or with the page.
///
/// # Errors
/// If a file cannot be read.
pub fn check(root: &Path, sources: &[(String, String)]) -> Result<Vec<Finding>> {
    let math = Math::of(sources)?;
    let mut findings = math.findings();
    let page = fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    if findings.is_empty() && page != math.page() {
        findings.push(Finding {
            place: PAGE.to_owned(),
            message: "is not what the sources say; `cargo xtask math` writes it anew".to_owned(),
        });
    }
    Ok(findings)
}

/// Items and tests of the workspace.
struct Math {
    /// Items that name tests or carry an equation, in the order of files and lines.
    items: Vec<(String, Item)>,
    /// What the header of a file says.
    headers: BTreeMap<String, Vec<String>>,
    /// Files that hold a test of a name.
    tests: BTreeMap<String, Vec<String>>,
    /// Numbers that `tweedie verify` evaluates.
    evaluated: Vec<String>,
}

impl Math {
    fn of(sources: &[(String, String)]) -> Result<Self> {
        let mut math =
            Self { items: Vec::new(), headers: BTreeMap::new(), tests: BTreeMap::new(), evaluated: Vec::new() };
        for (file, text) in sources {
            let Source { header, items, tests, identities } = scan::source(file, text)?;
            for test in tests {
                math.tests.entry(test).or_default().push(file.clone());
            }
            if file.starts_with(IDENTITIES) {
                math.evaluated.extend(identities);
            }
            let of = |crates: &[&str]| crates.iter().any(|name| file.starts_with(&format!("{name}/src/")));
            let (must, may) = (of(CRATES), of(OTHERS));
            if must || may {
                math.headers.insert(file.clone(), scan::numbers(&header));
                let relevant = |item: &Item| !item.verified_by.is_empty() || must && scan::is_equation(&item.doc);
                math.items.extend(items.into_iter().filter(relevant).map(|item| (file.clone(), item)));
            }
        }
        Ok(math)
    }

    /// The numbers of an item.
    fn numbers(&self, file: &str, item: &Item) -> Vec<String> {
        let own = scan::numbers(&item.doc);
        if own.is_empty() { self.headers.get(file).cloned().unwrap_or_default() } else { own }
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (file, item) in &self.items {
            let mut report = |message: String| {
                findings.push(Finding { place: format!("{file}:{}", item.line), message });
            };
            if item.verified_by.is_empty() {
                report(format!("{} carries an equation; say \"Verified by `test`.\" in its rustdoc", item.name));
            }
            for test in item.verified_by.iter().filter(|test| !self.tests.contains_key(*test)) {
                report(format!("{} is verified by `{test}`, which is no test of the workspace", item.name));
            }
            let numbers = self.numbers(file, item);
            if scan::numbers(&item.doc).is_empty() && numbers.len() > 1 {
                let of_file = numbers.join(", ");
                report(format!("{}: its file is about FORMULAS {of_file}; say which one it is", item.name));
            }
            for number in numbers.iter().filter(|number| !FORMULAS.iter().any(|f| f.number == *number)) {
                report(format!("{}: there is no FORMULAS {number} in xtask/src/math/formulas.rs", item.name));
            }
        }
        for formula in FORMULAS {
            if !self.items.iter().any(|(file, item)| self.numbers(file, item).iter().any(|n| n == formula.number)) {
                let message = format!("no item says that it is FORMULAS {} ({})", formula.number, formula.name);
                findings.push(Finding { place: PAGE.to_owned(), message });
            }
        }
        findings
    }

    fn page(&self) -> String {
        let mut page = String::from(
            "<!-- Written by `cargo xtask math` from the rustdoc of the sources; `cargo xtask tidy` checks it. -->\n\n\
             # Verified mathematics\n\n\
             Every equation, the items of the library that carry it, and the tests that would fail if it were wrong. \
             Where it\nsays so, `tweedie verify` evaluates the equation on random schedules, mixtures and states, too.\n",
        );
        for formula in FORMULAS {
            let items = self.rows(formula.number);
            if items.is_empty() {
                continue;
            }
            page += &format!("\n## {} {}\n\n```text\n{}\n```\n", formula.number, formula.name, formula.equation);
            if self.evaluated.iter().any(|number| number == formula.number) {
                page += &format!("\n`tweedie verify --only {}`\n", formula.number);
            }
            page += &items;
        }
        let others = self.rows(OTHER);
        if !others.is_empty() {
            page += "\n## Beside the list\n\nNo equation of the list, but what those rest on.\n";
            page += &others;
        }
        page
    }

    /// The table of the items of a number; empty if there is none.
    fn rows(&self, number: &str) -> String {
        let mut rows = String::new();
        for (file, item) in &self.items {
            let numbers = self.numbers(file, item);
            let belongs = if number == OTHER { numbers.is_empty() } else { numbers.iter().any(|n| n == number) };
            if belongs {
                let tests: Vec<String> = item.verified_by.iter().map(|test| self.link(file, test)).collect();
                let says = item.summary().replace('|', "\\|");
                let krate = file.split('/').next().unwrap_or_default();
                rows += &format!("| [`{krate}::{}`](../{file}) | {says} | {} |\n", item.name, tests.join("<br>"));
            }
        }
        if rows.is_empty() {
            return rows;
        }
        format!("\n| item | what it says | tests |\n|---|---|---|\n{rows}")
    }

    /// A test with its file: that of the same crate, if several have a test of the name.
    fn link(&self, file: &str, test: &str) -> String {
        let krate = |file: &str| file.split('/').next().unwrap_or_default().to_owned();
        let files = self.tests.get(test).map(Vec::as_slice).unwrap_or_default();
        match files.iter().find(|found| krate(found) == krate(file)).or(files.first()) {
            Some(found) => format!("[`{test}`](../{found})"),
            None => format!("`{test}`"),
        }
    }
}
