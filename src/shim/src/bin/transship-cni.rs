//! `transship-cni`, the chained CNI plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    transship_shim::cni::run()
}
