//! The shim's command line, an argument a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_shim::cli::Args;

fuzz_target!(|text: &str| {
    let arguments: Vec<String> = text.split('\n').map(str::to_owned).collect();
    match Args::parse(&arguments) {
        Ok(args) => {
            // Everything that was understood was there.
            for value in [&args.id, &args.namespace, &args.bundle, &args.action] {
                assert!(text.contains(value.as_str()));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
