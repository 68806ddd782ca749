//! How the process of a pod's machine is confined.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ravelin_tests::{Host, Pod, eventually, takeover};

const ROOT: &str = "0";

#[test]
fn every_thread_of_a_machine_has_lost_all_it_does_not_need() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.pod().start();
    let _idle = pod.container().idle().start();
    let process = machine(&pod);
    let scratch = 20_u64 << 30;

    let threads = threads(&process);
    for name in ["ravelin-vmm", "disks", "net", "sockets", "vcpu0"] {
        assert!(threads.contains_key(name), "{name}: {threads:?}");
    }
    for (name, thread) in &threads {
        let status = status(thread);
        let field = |field: &str| status.get(field).map(String::as_str).unwrap_or_default();
        // A filter of every thread's own, behind the process's two.
        assert_eq!((field("Seccomp"), field("Seccomp_filters")), ("2", "3"), "{name}: {status:?}");
        assert_eq!(field("NoNewPrivs"), "1", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{name}: {set}");
        }
        assert!(!field("Uid").split_whitespace().any(|id| id == ROOT), "{name}: {status:?}");
        assert!(!field("Gid").split_whitespace().any(|id| id == ROOT), "{name}: {status:?}");
        assert_eq!(field("Groups"), "", "{name}");
        // The host's number and that in a process namespace of its own.
        assert_eq!(field("NSpid").split_whitespace().count(), 2, "{name}: {status:?}");
    }
    let status = status(&process);
    assert!(status["NSpid"].ends_with("\t1"), "{status:?}");

    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).take(2).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max file size"), [scratch.to_string(), scratch.to_string()]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max processes"), ["33", "33"]);

    let cgroup = fs::read_to_string(process.join("cgroup")).unwrap();
    assert!(cgroup.contains(&pod.uid), "{cgroup}");
    if let Some(path) = cgroup.lines().find_map(|line| line.strip_prefix("0::/")) {
        let most = fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join("pids.max")).unwrap();
        // And those of a file server.
        assert_eq!(most, "38\n");
    }
    assert_eq!(fs::read_dir(process.join("root")).unwrap().count(), 0, "its root is not empty");
    let maps = fs::read_to_string(process.join("maps")).unwrap();
    for line in maps.lines() {
        let rights = line.split_whitespace().nth(1).unwrap();
        assert!(!(rights.contains('w') && rights.contains('x')), "{line}");
    }
    for space in ["ipc", "mnt", "net", "pid", "uts"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(space)).unwrap();
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{space}");
    }
}

#[test]
fn the_shim_keeps_of_roots_rights_what_it_uses() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.common_pod();
    let shim = pod.process("containerd-shim-ravelin-v2").expect("a shim serves the pod");
    for (name, thread) in threads(&Path::new("/proc").join(shim.to_string())) {
        let status = status(&thread);
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_ADMIN, SYS_ADMIN, SYS_RESOURCE.
            assert_eq!(status[set], "00000000012011ff", "{name}: {set}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
    }
}

#[test]
fn the_shim_writes_to_nothing_that_is_not_its_own() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap();
    assert!(modules.split(',').any(|module| module == "landlock"), "the host has no Landlock: {modules:?}");
    let pod = host.common_pod();
    let shim = pod.process("containerd-shim-ravelin-v2").expect("a shim serves the pod");
    let shim = i32::try_from(shim).unwrap();
    let kept = format!("/run/ravelin/{}/state.json", pod.id);
    for path in ["/etc/hostname", "/usr/local/share/ravelin/vmlinux", "/proc/sys/kernel/core_pattern"] {
        let error = takeover::open(shim, path, libc::O_WRONLY).expect_err(path);
        assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{path}: {error}");
        takeover::open(shim, path, libc::O_RDONLY).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let error = takeover::open(shim, "/etc/cron.d/stranger", libc::O_WRONLY | libc::O_CREAT).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}");
    takeover::open(shim, &kept, libc::O_WRONLY).expect("its own state");
    // It works on.
    assert_eq!(pod.sh("echo alive").output(), "alive\n");
}

/// Whoever took a thread over would begin with a call that it never makes.
#[test]
fn a_machine_that_makes_a_forbidden_call_ends_and_the_log_says_which_it_was() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let all = [
        ("vcpu0", libc::SYS_unshare, "thread vcpu made the system call 272 (unshare)"),
        ("net", libc::SYS_socket, "thread net made the system call 41 (socket)"),
        ("disks", libc::SYS_openat, "thread disks made the system call 257 (openat)"),
        ("sockets", libc::SYS_execve, "thread sockets made the system call 59 (execve)"),
        ("ravelin-vmm", libc::SYS_io_uring_setup, "thread main made the system call 425 (io_uring_setup)"),
    ];
    for (thread, call, said) in all.into_iter().take(if Host::whole() { all.len() } else { 1 }) {
        let pod = host.pod().start();
        let idle = pod.container().idle().start();
        let traces = pod.traces();
        let process = machine(&pod);
        let tid = threads(&process)[thread].file_name().unwrap().to_str().unwrap().parse().unwrap();
        takeover::make_call(tid, call);
        assert_ne!(idle.ended().code, 0);
        eventually("the pod is seen to have ended", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
        eventually("the log says why", || {
            let log = fs::read_to_string("/var/log/containerd.log").expect("containerd's log");
            let mut lines = log.lines().filter(|line| line.contains(&pod.id));
            lines.any(|line| line.contains(said)).then_some(())
        });
        pod.remove();
        traces.assert_gone();
    }
}

/// The folder in /proc of the pod's machine.
fn machine(pod: &Pod<'_>) -> PathBuf {
    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod");
    Path::new("/proc").join(machine.to_string())
}

/// The threads of a process by their names: their folders.
fn threads(process: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(process.join("task")).unwrap();
    let threads = entries.map(|entry| entry.unwrap().path());
    threads.map(|path| (fs::read_to_string(path.join("comm")).unwrap().trim().to_owned(), path)).collect()
}

/// The fields of a status file.
fn status(process: &Path) -> BTreeMap<String, String> {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}
