//! Names that become files: those of volumes and of sysctls.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use ravelin_agent::sysctl::fuzzing::path;
use ravelin_agent::volumes::check_name;

fuzz_target!(|name: &str| {
    if check_name(name).is_ok() {
        let mut parts = Path::new(name).components();
        assert!(matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)), "{name:?}");
    }
    if let Ok(path) = path(name) {
        assert!(path.starts_with("/proc/sys") && path != Path::new("/proc/sys"), "{name:?}");
        assert!(!path.components().any(|part| part == Component::ParentDir), "{name:?}");
    }
});
