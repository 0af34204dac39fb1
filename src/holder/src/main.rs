//! The holder of Transship.
fn main() {}
