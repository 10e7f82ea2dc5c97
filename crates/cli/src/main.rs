//! The `klpfarm` binary.
fn main() {}
