//! Pods whose machine's process was taken over (`vmm/examples/hostile-vmm.rs`), before it has confined itself even. The shim tells
//! containerd so in its time, takes everything back, and does not grow.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use ravelin_tests::Host;

use crate::start_failures::Away;

const CONFIG: &str = "/etc/ravelin/ravelin.toml";
const PROGRAM: &str = "/usr/local/libexec/ravelin/hostile-vmm";
const FOLDER: &str = "/run/ravelin-hostile";
/// Beyond the time that the configuration gives a machine for its boot: to take everything back, on an emulated host.
const LIMIT: Duration = Duration::from_secs(45);

#[test]
fn a_machine_that_breaks_the_control_protocol_fails_its_pod_and_nothing_else() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    fs::create_dir_all(FOLDER).unwrap();
    let modes = ["mad", "yes", "large", "closed", "deaf", "mute", "loud", "gone"];
    for mode in modes.into_iter().take(if Host::whole() { modes.len() } else { 4 }) {
        let program = format!("{FOLDER}/hostile-{mode}");
        symlink(PROGRAM, &program).unwrap();
        let began = Instant::now();
        let error = {
            let _away = Away::take(CONFIG);
            fs::write(CONFIG, format!("[vmm]\npath = \"{program}\"\n[timeouts]\nboot_seconds = 6\n"))
                .unwrap();
            host.pod().try_start().expect_err("there is no machine")
        };
        println!("{mode}: {error} (after {:?})", began.elapsed());
        assert!(began.elapsed() < LIMIT, "{mode}: it took {:?}", began.elapsed());
        assert!(error.len() < 4096, "{mode}: {} bytes of error", error.len());
        assert!(error.contains("machine"), "{mode}: {error}");
        host.assert_clean();
    }
    fs::remove_dir_all(FOLDER).unwrap();
    host.pod().start().remove();
}
