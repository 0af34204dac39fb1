//! OCI runtime wrapper.
fn main() {}
