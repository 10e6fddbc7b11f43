//! The densely program.
fn main() {}
