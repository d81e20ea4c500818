//! The invariants of ARCHITECTURE.md, checked on the text of the repository.

mod manifests;
mod sources;
#[cfg(test)]
mod tests;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::math;

/// A place that breaks an invariant.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the root, with a line where one is known.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Prints every finding; true if there is none.
pub fn run(root: &Path) -> Result<bool> {
    let files = repository_files(root)?;
    let mut findings = manifests::check(root)?;
    let rust = rust_files(root)?;
    for file in &files {
        findings.extend(texts::check(root, &slashes(file))?);
    }
    for (name, text) in &rust {
        findings.extend(sources::check(name, text)?);
    }
    findings.extend(math::check(root, &rust)?);
    for Finding { place, message } in &findings {
        println!("{place}: {message}");
    }
    println!("tidy: {} files, {} of them Rust, {} findings", files.len(), rust.len(), findings.len());
    Ok(findings.is_empty())
}

/// Every Rust file, by its path from the root with forward slashes, with its text.
///
/// # Errors
/// If one cannot be read.
pub fn rust_files(root: &Path) -> Result<Vec<(String, String)>> {
    let names = repository_files(root)?.into_iter().map(|file| slashes(&file)).filter(|name| name.ends_with(".rs"));
    names
        .map(|name| {
            let text = fs::read_to_string(root.join(&name)).with_context(|| format!("cannot read {name}"))?;
            Ok((name, text))
        })
        .collect()
}

fn slashes(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

/// Every file of the repository but build outputs and what dot-folders other than `.ci` and `.cargo` hold.
fn repository_files(root: &Path) -> Result<Vec<PathBuf>> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        let entries = fs::read_dir(root.join(folder)).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = folder.join(&name);
            let skipped = matches!(name.as_str(), "target" | "runs" | "__pycache__" | "node_modules")
                || (name.starts_with('.') && !matches!(name.as_str(), ".ci" | ".cargo" | ".gitignore"));
            if skipped {
                continue;
            }
            if entry.file_type()?.is_dir() { walk(root, &path, found)? } else { found.push(path) }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(root, Path::new(""), &mut found)?;
    found.sort();
    Ok(found)
}
