//! `transship-runc`, the OCI runtime wrapper; under the name `transship-hold`, CRIU's action script.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default();
    if name == transship_shim::hold::PROGRAM {
        transship_shim::hold::run()
    } else {
        transship_shim::wrapper::run(arguments.collect())
    }
}
