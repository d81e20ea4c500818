//! What Rust files may contain, by crate. Code under `#[cfg(test)]`, in `tests/`, in `benches/` and in `examples/` (programs of
//! their own) is exempt where noted.

use anyhow::{Context, Result};
use proc_macro2::LineColumn;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Finding;

/// Crates that may open files; the peers of the benchmark belong to none of them.
const MAY_TOUCH_FILES: &[&str] = &["data", "checkpoint", "cli", "xtask", "bench"];
/// Crates that may print.
const MAY_PRINT: &[&str] = &["cli", "xtask"];
/// Places that may hold unsafe code.
const MAY_BE_UNSAFE: &[&str] = &["kernels/src/", "checkpoint/src/mapped.rs"];
/// Where predictions are converted into each other, and where their names are read from files and options.
const MAY_MATCH_PREDICTIONS: &[&str] = &["schedule/", "cli/src/scheduler.rs", "cli/src/args.rs"];
/// Longest file, tests not counted.
const LONGEST: usize = 600;

/// Findings in one Rust file; `name` is its path from the root with forward slashes.
pub(super) fn check(name: &str, text: &str) -> Result<Vec<Finding>> {
    let file = syn::parse_file(text).with_context(|| format!("{name} is not Rust"))?;
    let mut scan = Scan::default();
    scan.visit_file(&file);
    let krate = name.split('/').next().unwrap_or_default();
    let exempt = ["/tests/", "/benches/", "/examples/"];
    let only_tests = exempt.iter().any(|folder| name.contains(folder)) || name.ends_with("/tests.rs");
    let mut findings = Vec::new();
    let mut report = |line: usize, message: String| {
        findings.push(Finding { place: format!("{name}:{line}"), message });
    };

    if !MAY_BE_UNSAFE.iter().any(|place| name.starts_with(place)) {
        for line in &scan.unsafes {
            report(*line, format!("unsafe code belongs in {MAY_BE_UNSAFE:?} only"));
        }
    }
    let lines: Vec<&str> = text.lines().collect();
    for &line in &scan.unsafes {
        // The reason stands in the comment above, which may be long, or within the block's own first lines.
        let comment = lines[..line - 1].iter().rev().take_while(|l| l.trim_start().starts_with("//")).count();
        let near = &lines[line.saturating_sub(6.max(comment + 1))..(line + 1).min(lines.len())];
        if !near.iter().any(|l| l.contains("SAFETY") || l.contains("# Safety")) {
            report(line, "unsafe code without a SAFETY comment".to_owned());
        }
    }
    if is_crate_root(name) && !matches!(krate, "kernels" | "checkpoint") && !text.contains("#![forbid(unsafe_code)]") {
        report(1, "write `#![forbid(unsafe_code)]` at the top of the crate".to_owned());
    }
    if only_tests {
        return Ok(findings);
    }
    if !MAY_TOUCH_FILES.contains(&krate) {
        for line in &scan.files {
            report(*line, format!("only {MAY_TOUCH_FILES:?} touch files"));
        }
    }
    if !MAY_PRINT.contains(&krate) {
        for line in &scan.prints {
            report(*line, format!("only {MAY_PRINT:?} print; return the text instead"));
        }
    }
    if !MAY_MATCH_PREDICTIONS.iter().any(|place| name.starts_with(place)) {
        for line in &scan.predictions {
            report(*line, "predictions are told apart in schedule::prediction only; call it".to_owned());
        }
    }
    let length = lines.len() - scan.test_lines;
    if length > LONGEST {
        report(1, format!("{length} lines without its tests; divide it (at most {LONGEST})"));
    }
    Ok(findings)
}

fn is_crate_root(name: &str) -> bool {
    name.ends_with("/src/lib.rs") || name.ends_with("/src/main.rs")
}

/// The lines at which a file does what only some crates may do.
#[derive(Default)]
struct Scan {
    unsafes: Vec<usize>,
    files: Vec<usize>,
    prints: Vec<usize>,
    predictions: Vec<usize>,
    test_lines: usize,
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes
        .iter()
        .any(|a| a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|argument| argument == "test"))
}

fn line(at: LineColumn) -> usize {
    at.line
}

impl Visit<'_> for Scan {
    fn visit_item(&mut self, item: &syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if is_test(attributes) {
            self.test_lines += line(item.span().end()) - line(item.span().start()) + 1;
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &syn::ExprUnsafe) {
        self.unsafes.push(line(block.unsafe_token.span().start()));
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &syn::Signature) {
        if let Some(token) = &signature.unsafety {
            self.unsafes.push(line(token.span().start()));
        }
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &syn::ItemImpl) {
        if let Some(token) = &item.unsafety {
            self.unsafes.push(line(token.span().start()));
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let at = line(path.span().start());
        let has = |pair: [&str; 2]| names.windows(2).any(|w| w[0] == pair[0] && w[1] == pair[1]);
        if has(["std", "fs"]) || has(["File", "open"]) || has(["File", "create"]) || names[0] == "fs" {
            self.files.push(at);
        }
        visit::visit_path(self, path);
    }

    fn visit_use_path(&mut self, path: &syn::UsePath) {
        let inner = match &*path.tree {
            syn::UseTree::Path(inner) => Some(&inner.ident),
            syn::UseTree::Name(inner) => Some(&inner.ident),
            _ => None,
        };
        if path.ident == "std" && inner.is_some_and(|inner| inner == "fs") {
            self.files.push(line(path.ident.span().start()));
        }
        visit::visit_use_path(self, path);
    }

    fn visit_macro(&mut self, call: &syn::Macro) {
        let name = call.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default();
        if matches!(name.as_str(), "print" | "println" | "eprint" | "eprintln") {
            self.prints.push(line(call.path.span().start()));
        }
        visit::visit_macro(self, call);
    }

    fn visit_arm(&mut self, arm: &syn::Arm) {
        struct Patterns(bool);
        impl Visit<'_> for Patterns {
            fn visit_path(&mut self, path: &syn::Path) {
                let mut names = path.segments.iter().rev().skip(1);
                self.0 |= names.next().is_some_and(|s| s.ident == "Prediction");
            }
        }
        let mut patterns = Patterns(false);
        patterns.visit_pat(&arm.pat);
        if patterns.0 {
            self.predictions.push(line(arm.span().start()));
        }
        visit::visit_arm(self, arm);
    }
}
