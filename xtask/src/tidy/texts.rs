//! What any text file may contain: no paths of a machine, and links that lead somewhere.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Finding;

const TEXTS: &[&str] = &[".rs", ".md", ".toml", ".py", ".sh", ".json", ".yml", ".txt"];

pub(super) fn check(root: &Path, name: &str) -> Result<Vec<Finding>> {
    if !TEXTS.iter().any(|ending| name.ends_with(ending)) && !name.starts_with(".ci/") {
        return Ok(Vec::new());
    }
    let text = match fs::read_to_string(root.join(name)) {
        Ok(text) => text,
        Err(_) => return Ok(vec![Finding { place: name.to_owned(), message: "is not UTF-8 text".to_owned() }]),
    };
    let mut findings = machine_paths(name, &text);
    if name.ends_with(".md") {
        let folder = Path::new(name).parent().unwrap_or(Path::new(""));
        for (line, target) in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || target.starts_with("mailto:") || file.is_empty();
            if !outside && !root.join(folder).join(file).exists() {
                findings.push(Finding {
                    place: format!("{name}:{line}"),
                    message: format!("the link to {target} leads nowhere"),
                });
            }
        }
    }
    Ok(findings)
}

/// Places where a path below somebody's home or work folder is written.
pub(super) fn machine_paths(name: &str, text: &str) -> Vec<Finding> {
    // Put together here, so that this file does not find itself.
    let folders = ["root", "work", "home"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for folder in &folders {
            let starts = line.match_indices(folder.as_str()).map(|(at, _)| at);
            // A folder of that name inside a longer path, or an address, is not a path of a machine.
            if starts.into_iter().any(|at| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-:/~".contains(c)))
            {
                findings.push(Finding {
                    place: format!("{name}:{}", index + 1),
                    message: format!("holds a path of one machine ({folder}…)"),
                });
            }
        }
    }
    findings
}

/// The targets of Markdown links and pictures, with their lines.
pub(super) fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            if let Some(target) = line[at + 2..].split(')').next() {
                found.push((index + 1, target.split_whitespace().next().unwrap_or_default().to_owned()));
            }
        }
        // HTML pictures, which Markdown allows for their size.
        for (at, _) in line.match_indices("src=\"") {
            if let Some(target) = line[at + 5..].split('"').next() {
                found.push((index + 1, target.to_owned()));
            }
        }
    }
    found
}
