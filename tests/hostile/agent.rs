//! Pods whose agent was taken over: it speaks the protocol and lies (`agent/examples/hostile-agent`). Whatever it says, the shim
//! does what containerd asks for, in its time, and does not grow.

use std::fs;
use std::time::{Duration, Instant};

use ravelin_tests::{Host, Run};

use crate::failures::time;
use crate::start_failures::Away;

const CONFIG: &str = "/etc/ravelin/ravelin.toml";
const INITRAMFS: &str = "/usr/local/libexec/ravelin/hostile.cpio";
/// Most that a shim may grow by.
const MAX_GROWTH_KIB: u64 = 64 << 10;
/// How much longer than that of a healthy one the removal of a pod may take.
const LIMIT: Duration = Duration::from_secs(15);

#[test]
fn an_agent_that_lies_holds_nothing_up_and_fills_nothing() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    // What everything takes on this host without a lie.
    let healthy = host.pod().start();
    let _container = healthy.container().idle().start();
    let removal = time(|| {
        healthy.stop();
        healthy.remove();
    });
    let modes = ["silent", "ended", "huge", "open", "half", "late", "errors"];
    for mode in modes.into_iter().take(if Host::whole() { modes.len() } else { 3 }) {
        let away = Away::take(CONFIG);
        fs::write(CONFIG, format!("[guest]\ninitramfs = \"{INITRAMFS}\"\ncmdline = \"hostile={mode}\"\n"))
            .unwrap();
        let pod = host.pod().start();
        drop(away);
        let shim = pod.process("containerd-shim-ravelin-v2").expect("a shim serves the pod");
        let before = resident_kib(shim).expect("the shim runs");
        let container = pod.container().idle().create();
        // Whether it is said to have started is the agent's to say.
        let _ = container.try_start();
        let traces = pod.traces();
        let took = time(|| {
            drop(Run::crictl().args(["stats", "-o", "json", "--id", &container.id]).run());
            drop(Run::crictl().args(["statsp", "-o", "json", "--id", &pod.id]).run());
            drop(Run::crictl().args(["inspect", &container.id]).run());
        });
        println!("{mode}: looked at in {took:?}");
        assert!(took < LIMIT * 2, "{mode}: to look at the pod took {took:?}");
        let exec = Run::crictl().args(["exec", "--sync", "--timeout", "5", &container.id, "true"]).run();
        println!("{mode}: exec says {:?}", exec.text());
        // Time for floods.
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
        }
        // Who took no answer to its SIGKILL for one has ended the machine by now, and itself when containerd had no more use
        // for it.
        let grown = resident_kib(shim).unwrap_or_default().saturating_sub(before);
        assert!(grown < MAX_GROWTH_KIB, "{mode}: the shim has grown by {grown} KiB");
        let took = time(|| {
            pod.stop();
            pod.remove();
        });
        println!("{mode}: grown by {grown} KiB, removed in {took:?}, {removal:?} without a lie");
        assert!(took < removal + LIMIT, "{mode}: the removal took {took:?}, {removal:?} without a lie");
        traces.assert_gone();
    }
    // And the node is as it was.
    let pod = host.pod().start();
    assert_eq!(pod.container().sh("echo whole").start().output(), "whole\n");
    pod.remove();
}

/// Memory of a process that is in use, in KiB, if there is such a process.
fn resident_kib(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
