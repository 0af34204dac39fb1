//! Chained CNI plugin.
fn main() {}
