//! What runs a pod dies at the worst moment: each death is seen as an exit and leaves nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use ravelin_tests::{Host, Pod, Run, Session, eventually, images};

#[test]
fn a_killed_machine_is_seen_as_an_exit_and_cleaned_up() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    dies(&host, |pod| kill(pod, "ravelin-vmm"));
}

#[test]
fn a_killed_shim_is_seen_as_an_exit_and_cleaned_up() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    dies(&host, |pod| kill(pod, "containerd-shim-ravelin-v2"));
}

/// The kubelet's limit of the pod is on the machine too: what the node's kernel kills for it is told as what it would tell
/// of a container.
#[test]
fn a_machine_killed_by_the_nodes_kernel_for_memory_is_reported_as_oom_killed() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    if !Host::has_cgroup2() {
        println!("left out: cgroup v1 gives no limit below what is used");
        return;
    }
    let pod = host.pod().start();
    let idle = pod.container().idle().start();
    let hungry = pod.container().idle().start();
    // Memory of the machine that the node can take only by killing it.
    hungry.exec_sh("head -c 60000000 /dev/zero > /dev/shm/kept");
    let traces = pod.traces();
    pod.allow(32);
    for container in [&idle, &hungry] {
        let ended = container.ended();
        assert_eq!((ended.code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    }
    eventually("the pod is seen to have ended", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    pod.remove();
    traces.assert_gone();
}

/// As systemd does when the node goes down and nobody has ended the pods before.
#[test]
fn a_shim_that_is_told_to_end_lets_its_containers_end_first() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.pod().start();
    let script = "trap 'echo goodbye; exit 7' TERM; echo begun; while :; do sleep 0.2; done";
    let container = pod.sh(script);
    container.says("begun\n");
    let traces = pod.traces();
    let shim = pod.process("containerd-shim-ravelin-v2").expect("a shim serves the pod");
    Run::new("kill").args(["-TERM", &shim.to_string()]).ok();
    assert_eq!(container.ended().code, 7);
    assert_eq!(container.logs().out(), "begun\ngoodbye\n");
    eventually("the pod is seen to have ended", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    pod.remove();
    traces.assert_gone();

    // One whose machine stands still is not waited for: the node is on its way down.
    let pod = host.pod().start();
    let idle = pod.container().idle().start();
    let traces = pod.traces();
    let [shim, machine] = ["containerd-shim-ravelin-v2", "ravelin-vmm"].map(|program| {
        pod.process(program).unwrap_or_else(|| panic!("no {program} serves the pod")).to_string()
    });
    Run::new("kill").args(["-STOP", &machine]).ok();
    Run::new("kill").args(["-TERM", &shim]).ok();
    for process in [shim, machine] {
        let process = Path::new("/proc").join(process);
        eventually("shim and machine have ended", || (!process.exists()).then_some(()));
    }
    // Before that, containerd does not remove it.
    assert_ne!(idle.ended().code, 0);
    pod.remove();
    traces.assert_gone();
}

/// The guest's kernel panics from the inside: a container whose `/proc/sys` is writable asks the kernel to panic when
/// memory runs out, and lets it run out. An agent that dies ends the same way: the kernel panics without its init.
#[test]
fn a_guest_whose_kernel_panics_is_seen_as_an_exit_and_cleaned_up() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    dies(&host, |pod| {
        let script = "echo 2 > /proc/sys/vm/panic_on_oom && exec dd if=/dev/zero of=/dev/null bs=256M";
        let container = pod.container().sh(script).set("/linux/resources/memory_limit_in_bytes", 32 << 20);
        let killer = container
            .security("readonly_paths", serde_json::json!([]))
            // containerd's own profile refuses the write.
            .security("apparmor", serde_json::json!({ "profile_type": 1 }))
            .start();
        let ended = killer.ended();
        assert_ne!(ended.code, 0, "{ended:?} {:?}", killer.logs());
        assert_ne!(ended.reason, "OOMKilled", "the kernel did not panic");
        // Why is said without a console.
        let said =
            |line: &str| line.contains(&pod.id) && line.contains("Kernel panic - not syncing: Out of memory");
        eventually("the guest kernel's last words are in the log", || {
            let log = std::fs::read_to_string("/var/log/containerd.log").expect("containerd's log");
            log.lines().any(said).then_some(())
        });
    });
}

/// A machine that stands still is what a hung or hostile guest looks like: whatever it is asked, no answer comes.
#[test]
fn a_hung_machine_stalls_nobody_and_is_removed_when_that_is_asked_for() {
    // Nothing beside it, for it looks at the clock.
    let Some(host) = Host::alone_with_ravelin() else { return };
    // How long it takes on this host without a fault: the difference is what the fault costs.
    let healthy = host.pod().start();
    let _containers = [healthy.container().idle().start(), healthy.container().idle().start()];
    let removal = time(|| {
        healthy.stop();
        healthy.remove();
    });
    let pod = host.pod().start();
    let first = pod.container().idle().start();
    let second = pod.container().idle().start();
    let counted = |id: &str| {
        !Run::crictl().args(["stats", "-o", "json", "--id", id]).json()["stats"][0]["cpu"].is_null()
    };
    eventually("the node has statistics", || (counted(&first.id) && counted(&second.id)).then_some(()));
    let counting = time(|| assert!(counted(&first.id) && counted(&second.id)));
    let traces = pod.traces();
    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod").to_string();
    Run::new("kill").args(["-STOP", &machine]).ok();

    let limit = Duration::from_secs(15);
    let took = time(|| assert!(counted(&first.id) && counted(&second.id), "the last counters are not given"));
    assert!(took < counting + limit, "the statistics took {took:?}, {counting:?} without the fault");
    let took = time(|| {
        pod.stop();
        pod.remove();
    });
    assert!(took < removal + limit, "the removal took {took:?}, {removal:?} without the fault");
    traces.assert_gone();

    if !Host::whole() {
        return;
    }
    // Between a container's end and its removal; while a container is being started; while an exec is.
    for moment in ["ended", "starting", "exec"] {
        let pod = host.pod().start();
        let idle = pod.container().idle().start();
        let ended = pod.sh("exit 3");
        assert_eq!(ended.ended().code, 3);
        let created = pod.container().idle().create();
        let traces = pod.traces();
        let machine = pod.process("ravelin-vmm").expect("a machine serves the pod").to_string();
        Run::new("kill").args(["-STOP", &machine]).ok();
        let mut waits = match moment {
            "starting" => Some(Session::pipes(&Run::crictl().args(["start", &created.id]))),
            "exec" => Some(idle.exec_session(&["true"])),
            _ => None,
        };
        let took = time(|| {
            pod.stop();
            pod.remove();
        });
        assert!(took < removal + limit, "{moment}: the removal took {took:?}, {removal:?} without the fault");
        if let Some(waits) = &mut waits {
            assert_ne!(waits.finish(), 0, "{moment}");
        }
        traces.assert_gone();
    }
}

#[test]
fn a_machine_that_gets_no_processor_is_not_taken_for_a_hung_one() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    if !Host::has_cgroup2() {
        return;
    }
    let pod = host.pod().start();
    let killed = pod.container().idle().start();
    let beside = pod.container().idle().start();
    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod");
    let cgroup = fs::read_to_string(format!("/proc/{machine}/cgroup")).expect("the machine has a cgroup");
    let topmost = cgroup.trim().trim_start_matches("0::/").split('/').next().unwrap_or_default();
    let starve = |idle: &str| {
        fs::write(Path::new("/sys/fs/cgroup").join(topmost).join("cpu.idle"), idle)
            .expect("a cgroup can be starved");
    };
    // Whoever is busy on the node leaves next to nothing to an idle cgroup.
    let busy: Vec<_> = (0..2).map(|_| Busy::start()).collect();
    starve("1");
    let stop = Run::crictl().args(["stop", "--timeout", "0", &killed.id]);
    let mut stop = Session::pipes(&stop);
    // Longer than any deadline that counted the node's time.
    thread::sleep(Duration::from_secs(20));
    drop(busy);
    starve("0");
    assert_eq!(stop.finish(), 0, "{}", stop.heard());
    assert_eq!(killed.ended().code, 137);
    assert_eq!(beside.exec_sh("echo alive"), "alive");
}

/// A process that is always busy.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        let program = ["-c", "while :; do :; done"];
        Self(Command::new("sh").args(program).spawn().expect("a shell can be started"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn time(work: impl FnOnce()) -> Duration {
    let since = Instant::now();
    work();
    since.elapsed()
}

/// Runs a pod, lets `death` come to it, and expects both its containers to be seen to end, and a clean removal.
#[track_caller]
fn dies(host: &Host, death: impl FnOnce(&Pod<'_>)) {
    let pod = host.pod().start();
    let busy = pod.sh("while :; do echo line; done > /dev/null");
    let idle = pod.container().image(images::USER).idle().start();
    let mut exec = idle.exec_session(&["sh", "-c", "echo ready; exec sleep 1000"]);
    exec.hear("ready");
    // Noted now: what dies by itself must be gone as well.
    let traces = pod.traces();
    death(&pod);
    for container in [&busy, &idle] {
        let ended = container.ended();
        assert_ne!(ended.code, 0, "{ended:?}");
    }
    exec.finish();
    eventually("the pod is seen to have ended", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    pod.remove();
    traces.assert_gone();
    traces.assert_closed();
}

#[track_caller]
fn kill(pod: &Pod<'_>, program: &str) {
    let pid = pod.process(program).unwrap_or_else(|| panic!("no process {program} serves the pod"));
    Run::new("kill").args(["-9", &pid.to_string()]).ok();
}
