//! The configuration file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Scratch;
use ravelin_shim::config::Config;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("config"));

fuzz_target!(|text: &[u8]| {
    let path = SCRATCH.write("ravelin.toml", text);
    match Config::of_runtime(Some(&path)) {
        Ok(config) => {
            // What a machine and its disk are made from.
            assert!(
                config.vmm.uid_base > 0 && config.vmm.uid_base.checked_add(config.vmm.uid_count).is_some()
            );
            assert!((1..16_384).contains(&config.storage.scratch_gib));
            assert!(config.guest.kernel.is_absolute() && config.storage.directory.is_absolute());
            assert!(config.guest.cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            assert!(config.boot_deadline().as_secs() <= 86_400 && config.starts() > 0);
        }
        Err(error) => assert!(error.to_string().contains(path.to_str().unwrap())),
    }
});
