//! Which crate may depend on which, and where versions are written.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use super::Finding;

/// What each crate of the workspace may depend on within it. A crate that is not listed here is a finding.
const ALLOWED: &[(&str, &[&str])] = &[
    ("schedule", &[]),
    ("kernels", &[]),
    ("denoiser", &["schedule"]),
    ("guidance", &["denoiser", "schedule"]),
    ("samplers", &["denoiser", "schedule"]),
    ("unet", &["denoiser", "kernels"]),
    ("data", &[]),
    ("checkpoint", &[]),
    ("train", &["denoiser", "schedule", "data", "checkpoint"]),
    ("eval", &["denoiser", "schedule", "data"]),
    ("latent", &["denoiser", "schedule", "unet", "samplers", "guidance", "kernels", "checkpoint"]),
    (
        "cli",
        &[
            "schedule",
            "kernels",
            "denoiser",
            "guidance",
            "samplers",
            "unet",
            "data",
            "checkpoint",
            "train",
            "eval",
            "latent",
        ],
    ),
    ("xtask", &[]),
];

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let workspace = read(root, "Cargo.toml")?;
    let Some(members) = workspace.get("workspace").and_then(|w| w.get("members")).and_then(Value::as_array) else {
        bail!("Cargo.toml: expected an array at workspace.members");
    };
    let mut findings = Vec::new();
    for member in members.iter().filter_map(Value::as_str) {
        let place = format!("{member}/Cargo.toml");
        findings.extend(check_crate(member, &place, &read(root, &place)?));
    }
    Ok(findings)
}

fn read(root: &Path, place: &str) -> Result<Table> {
    let text = fs::read_to_string(root.join(place)).with_context(|| format!("cannot read {place}"))?;
    text.parse().with_context(|| format!("{place} is not TOML"))
}

/// Findings in the manifest of crate `member`.
pub(super) fn check_crate(member: &str, place: &str, manifest: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = |message: String| findings.push(Finding { place: place.to_owned(), message });
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == member) else {
        report(format!("crate {member} has no entry in the table of directions in xtask/src/tidy/manifests.rs"));
        return findings;
    };
    if manifest.get("lints").and_then(|l| l.get("workspace")).and_then(Value::as_bool) != Some(true) {
        report("write `[lints] workspace = true`, so that the workspace's lints hold here".to_owned());
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, value) in manifest.get(section).and_then(Value::as_table).into_iter().flatten() {
            if value.get("workspace").and_then(Value::as_bool) != Some(true) {
                report(format!(
                    "{section}.{name}: write `{name}.workspace = true`; versions stand in the root manifest"
                ));
            }
            // Tests may look at more than the crate itself does, as long as nothing points back.
            if let Some(inner) = name.strip_prefix("tweedie-").filter(|_| section != "dev-dependencies")
                && !allowed.contains(&inner)
            {
                report(format!("{member} must not depend on {inner}; it may depend on {allowed:?}"));
            }
        }
    }
    findings
}
