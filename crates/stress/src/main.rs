//! The guest side of klpfarm.
fn main() {}
