//! The agent of Transship.
fn main() {}
