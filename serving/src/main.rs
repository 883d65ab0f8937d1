//! The `va` binary.
fn main() {}
