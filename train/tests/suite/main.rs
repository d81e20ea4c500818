//! The training loop on a network that can be checked by hand.

mod classifier;
mod common;
mod learning;
mod resume;
