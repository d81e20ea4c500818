//! Pictures: a grid of samples as a PNG that says how it was made, and a preview in the terminal.

mod grid;
mod png;
mod preview;

pub use grid::{Canvas, Layout};
pub use png::encode;
pub use preview::preview;
