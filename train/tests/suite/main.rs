//! The training loop on a network that can be checked by hand.

mod common;
mod learning;
mod resume;
