//! Draws the public pictures of the samplers as SVG into a folder: `cargo xtask figures`.
//!
//! Everything is computed from fixed seeds, so that the files change only where the samplers do.
#![forbid(unsafe_code)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod errors;
mod paths;

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: figures FOLDER")?);
    for (name, svg) in [("solver-errors.svg", errors::figure()?), ("trajectories.svg", paths::figure()?)] {
        let path = folder.join(name);
        std::fs::write(&path, svg + "\n").map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
