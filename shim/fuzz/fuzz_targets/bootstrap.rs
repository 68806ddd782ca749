//! What containerd writes to the standard input of `start`: parameters of several versions, options, or nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_shim::fuzzing::parse_bootstrap;

fuzz_target!(|bytes: &[u8]| {
    for (id, namespace) in [("abc", "k8s.io"), ("", "")] {
        let bootstrap = parse_bootstrap(bytes, id, namespace);
        assert!(bootstrap.socket_dir.is_none_or(|directory| directory.starts_with('/')));
        assert!(bootstrap.config.is_none_or(|path| !path.as_os_str().is_empty()));
        assert!(bootstrap.is_params || bootstrap.ttrpc_address.is_none());
    }
});
