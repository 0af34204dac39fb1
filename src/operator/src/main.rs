//! The operator of Transship.
fn main() {}
