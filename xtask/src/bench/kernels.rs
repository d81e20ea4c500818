//! Single kernels: runs the benchmarks of `tweedie-kernels`, which check themselves first, and reads what criterion wrote.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::ours::Ours;

/// One benchmark of criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Kernel {
    /// Its group and name.
    pub(super) name: String,
    /// The median time of a call, in seconds.
    pub(super) seconds_median: f64,
    /// Operations of a call over that time, in GFLOP/s, where the benchmark says how many there are.
    pub(super) gflops_per_second: Option<f64>,
}

/// Runs the benchmarks with the given number of threads.
///
/// # Errors
/// If a kernel is wrong or the benchmarks fail for another reason.
pub(super) fn run(ours: &Ours, threads: usize) -> Result<Vec<Kernel>> {
    let folder = ours.target.join("bench-criterion");
    if folder.exists() {
        // Results of earlier runs would be taken for those of this one.
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let status = ours
        .cargo()
        .args(["bench", "--package", "tweedie-kernels"])
        .env("CRITERION_HOME", &folder)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdout(std::process::Stdio::from(std::io::stderr()))
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "cargo bench -p tweedie-kernels ended with {status}; its message stands above");
    read(&folder)
}

/// Every result below criterion's folder, sorted by name.
pub(super) fn read(folder: &Path) -> Result<Vec<Kernel>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if !path.is_dir() {
                continue;
            }
            if path.ends_with("new") && path.join("benchmark.json").is_file() {
                let json = |name: &str| -> Result<Value> {
                    let path = path.join(name);
                    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
                };
                let kernel = kernel(&json("benchmark.json")?, &json("estimates.json")?);
                found.push(kernel.with_context(|| format!("{} has not the keys of criterion", path.display()))?);
            } else {
                open.push(path);
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// One result from criterion's two files; times are in nanoseconds.
pub(super) fn kernel(benchmark: &Value, estimates: &Value) -> Option<Kernel> {
    let nanoseconds = estimates["median"]["point_estimate"].as_f64()?;
    Some(Kernel {
        name: benchmark["full_id"].as_str()?.to_owned(),
        seconds_median: nanoseconds / 1e9,
        gflops_per_second: benchmark["throughput"]["Elements"].as_f64().map(|operations| operations / nanoseconds),
    })
}
