//! The machine monitor's own tests of virtual processors: elsewhere they are left out for want of a KVM that works.

use ravelin_tests::{Host, Run};

use crate::assert_says;

#[test]
fn virtual_processors_run_pause_and_end() {
    let Some(_host) = Host::shared_with_ravelin() else { return };
    let tests = Run::new("/usr/local/libexec/ravelin/vmm-tests");
    let said = tests.args(["machine::vcpu::", "--show-output", "--test-threads=1"]).ok();
    assert_says(&said, "a_busy_processor_pauses_and_goes_on ... ok");
    assert!(!said.contains("skipped"), "{said}");
}
