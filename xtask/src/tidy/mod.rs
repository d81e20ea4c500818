//! The invariants of ARCHITECTURE.md, checked on the text of the repository.

mod manifests;
mod sources;
#[cfg(test)]
mod tests;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A place that breaks an invariant.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The file, relative to the root, with a line where one is known.
    place: String,
    /// What is wrong and what to do.
    message: String,
}

/// Prints every finding; true if there is none.
pub fn run(root: &Path) -> Result<bool> {
    let files = repository_files(root)?;
    let mut findings = manifests::check(root)?;
    let mut sources = 0;
    for file in &files {
        let path = root.join(file);
        let name = file.to_string_lossy().replace('\\', "/");
        if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
            findings.extend(sources::check(&name, &text)?);
            sources += 1;
        }
        findings.extend(texts::check(root, &name)?);
    }
    for Finding { place, message } in &findings {
        println!("{place}: {message}");
    }
    println!("tidy: {} files, {sources} of them Rust, {} findings", files.len(), findings.len());
    Ok(findings.is_empty())
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
