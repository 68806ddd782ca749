//! The `containerd-shim-ravelin-v2` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match ravelin_shim::cli::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this to the user; it is the only thing ever written here.
            eprintln!("{}", ravelin_shim::error::chain(&error));
            ExitCode::FAILURE
        }
    }
}
