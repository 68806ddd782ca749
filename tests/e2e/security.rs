//! What a container may not do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ravelin_tests::{Handler, Host, Run, eventually};
use serde_json::{Value, json};

use crate::report;

const STATUS: &str =
    "awk '/^(Cap|NoNewPrivs|Seccomp:)/ { sub(\":\", \"\"); print $1 \"=\" $2 }' /proc/self/status";

#[test]
fn capabilities_are_the_default_ones_and_those_asked_for() {
    let host = Host::shared();
    let pod = host.common_pod();
    let default = pod.sh(STATUS);
    let none =
        pod.container().sh(STATUS).security("capabilities", json!({ "drop_capabilities": ["ALL"] })).start();
    let capabilities = json!({ "drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"] });
    let one = pod.container().sh(STATUS).security("capabilities", capabilities).start();
    let user = pod.container().sh(STATUS).security("run_as_user", json!({ "value": 1000 })).start();

    // chown, dac_override, fsetid, fowner, mknod, net_raw, setgid, setuid, setfcap, setpcap, net_bind_service,
    // sys_chroot, kill, audit_write.
    let said = report(&default.output());
    assert_eq!((said["CapEff"].as_str(), said["CapBnd"].as_str()), ("00000000a80425fb", "00000000a80425fb"));
    let said = report(&none.output());
    assert_eq!((said["CapEff"].as_str(), said["CapBnd"].as_str()), ("0000000000000000", "0000000000000000"));
    let said = report(&one.output());
    assert_eq!((said["CapEff"].as_str(), said["CapBnd"].as_str()), ("0000000000000400", "0000000000000400"));
    let said = report(&user.output());
    assert_eq!((said["CapEff"].as_str(), said["CapBnd"].as_str()), ("0000000000000000", "00000000a80425fb"));
}

#[test]
fn a_setuid_program_gains_nothing_under_no_new_privileges() {
    let host = Host::shared();
    let pod = host.common_pod();
    let run = |no_new_privs: bool| {
        let container = pod.container().sh(&format!("{STATUS}; effective-uid"));
        let container = container.security("run_as_user", json!({ "value": 1000 }));
        container.security("no_new_privs", no_new_privs).start()
    };
    let (confined, free) = (run(true), run(false));
    let (confined, free) = (confined.output(), free.output());
    assert!(confined.contains("NoNewPrivs=1") && confined.contains("Effective uid: 1000"), "{confined}");
    assert!(free.contains("NoNewPrivs=0") && free.contains("Effective uid: 0"), "{free}");
}

#[test]
fn masked_paths_read_as_nothing_and_read_only_paths_refuse_writes() {
    let host = Host::shared();
    let pod = host.common_pod();
    let script = "echo file=$(cat /proc/cpuinfo | wc -c); echo folder=$(ls /proc/irq | wc -l)
                  echo sysctl=$(sh -c 'echo name > /proc/sys/kernel/hostname' 2>&1 | grep -c Read-only)
                  echo absent=$(ls -d /proc/no/such/path 2>/dev/null | wc -l)";
    let masked = json!(["/proc/cpuinfo", "/proc/irq", "/proc/no/such/path"]);
    let readonly = json!(["/proc/sys", "/proc/no/such/path"]);
    let container =
        pod.container().sh(script).security("masked_paths", masked).security("readonly_paths", readonly);
    let said = report(&container.start().output());
    assert_eq!(said["file"], "0");
    assert_eq!(said["folder"], "0");
    assert_eq!(said["sysctl"], "1");
    assert_eq!(said["absent"], "0");
}

#[test]
fn seccomp_profiles_are_obeyed() {
    let host = Host::shared();
    let pod = host.common_pod();
    let refuse = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
    });
    let file = profile("refuse-mkdir", &refuse);
    let run = |seccomp: Value| {
        let script = format!(
            "{STATUS}; mkdir /folder && echo mkdir=works || echo mkdir=fails; unshare -U true && echo userns=works"
        );
        pod.container().sh(&script).security("seccomp", seccomp).start()
    };
    let unconfined = run(json!({ "profile_type": 1 }));
    let default = run(json!({ "profile_type": 0 }));
    let localhost = run(json!({ "profile_type": 2, "localhost_ref": file }));
    for (container, mode, mkdir, is_default) in
        [(unconfined, "0", "works", false), (default, "2", "works", true), (localhost, "2", "fails", false)]
    {
        container.ended();
        let said = report(&container.logs().out());
        assert_eq!((said["Seccomp"].as_str(), said["mkdir"].as_str()), (mode, mkdir), "{said:?}");
        // The default profile refuses what the others do not forbid.
        assert_eq!(said.contains_key("userns"), !is_default, "{said:?}");
    }
}

#[test]
fn a_seccomp_profile_of_only_what_the_program_calls_is_enough() {
    let host = Host::shared();
    // The host's busybox is the image's: what strace sees here is what it calls there.
    let trace = PathBuf::from(format!("/var/tmp/ravelin-tests-{}.strace", std::process::id()));
    let program = ["cat", "/etc/passwd"];
    Run::new("strace").arg("-f").arg("-o").arg(&trace).arg("/bin/busybox").args(program).ok();
    let text = fs::read_to_string(&trace).unwrap();
    fs::remove_file(&trace).unwrap();
    let calls = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
    let names: BTreeSet<&str> = calls.map(|(name, _)| name).collect();
    assert!(names.contains("execve") && names.contains("exit_group"), "{names:?}");
    assert!(!names.contains("statx") && !names.contains("sendmsg") && !names.contains("capset"), "{names:?}");

    // runc is a Go program that goes on for a while under the profile it has loaded.
    let runc: &[&str] = match Host::handler() {
        Handler::Runc => &[
            "futex",
            "nanosleep",
            "sched_yield",
            "tgkill",
            "getpid",
            "gettid",
            "rt_sigreturn",
            "rt_sigprocmask",
            "rt_sigaction",
            "sigaltstack",
            "epoll_pwait",
            "epoll_ctl",
            "madvise",
            "mmap",
            "munmap",
            "read",
            "write",
            "close",
            "openat",
            "fstat",
            "fcntl",
            "newfstatat",
            "getdents64",
            "fstatfs",
        ],
        Handler::Ravelin | Handler::RavelinSandbox => &[],
    };
    let names: BTreeSet<&str> = names.iter().chain(runc).copied().collect();
    let tight = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] });
    let pod = host.common_pod();
    let container = pod.container().command(&["/bin/busybox", program[0], program[1]]);
    let container = container.security("no_new_privs", true);
    let container = container
        .security("seccomp", json!({ "profile_type": 2, "localhost_ref": profile("tight", &tight) }));
    let container = container.start();
    assert!(container.output().starts_with("root:x:0:0:"), "{:?}", container.logs());
}

#[test]
fn a_container_that_makes_device_nodes_cannot_read_the_disks_behind_them() {
    let host = Host::shared();
    let pod = host.common_pod();
    // Block devices by what the kernel lists, then memory, ports and the machine's own character devices.
    let container = pod.sh(
        "cat /proc/self/status | grep CapEff
         try() { mknod /tmp/node $1 $2 $3 || echo \"mknod of $4 refused\"
                 if dd if=/tmp/node of=/tmp/out bs=512 count=1 2>> /tmp/errors; then echo \"READ $4\"; else echo \"refused $4\"; fi
                 if [ $1 = b ] && dd if=/dev/zero of=/tmp/node bs=512 count=1 conv=notrunc 2>> /tmp/errors; then echo \"WROTE $4\"; fi
                 rm -f /tmp/node; }
         mknod /tmp/null c 1 3 && echo x > /tmp/null && echo control works
         awk 'NR > 2 { print $1, $2, $4 }' /proc/partitions | while read major minor name; do try b $major $minor $name; done
         try b 254 0 vda; try b 254 16 vdb; try b 254 32 vdc; try b 253 0 253; try b 252 0 252
         try c 1 1 mem; try c 1 4 port; try c 10 1 10:1; try c 10 232 kvm; try c 10 200 tun; try c 5 1 console
         echo done",
    );
    let said = container.output();
    assert!(said.contains("control works"), "{said}");
    assert!(said.contains("refused vda") && said.contains("refused mem") && said.contains("done"), "{said}");
    assert!(!said.contains("READ") && !said.contains("WROTE"), "{said}");
}

#[test]
fn the_devices_every_container_has_work() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.sh(
        "head -c 8 /dev/zero | wc -c; head -c 8 /dev/urandom | wc -c; head -c 8 /dev/random | wc -c; cat /dev/null | wc -c
         echo x > /dev/full || echo full; ls -l /dev/fd /dev/stdin /dev/ptmx | wc -l; cat /proc/self/attr/current 2>/dev/null | wc -l > /dev/null
         stat -c '%F' /dev/pts /dev/shm /dev/mqueue; ls /dev | grep -E '^(vd|sd|kvm|mem|kmsg|vsock)' || echo nothing of the machine",
    );
    let said = container.output();
    assert_eq!(said, "8\n8\n8\n0\nfull\n3\ndirectory\ndirectory\ndirectory\nnothing of the machine\n");
}

/// Puts a seccomp profile where a kubelet keeps them. Its path.
fn profile(name: &str, content: &Value) -> String {
    let folder = Path::new("/var/lib/kubelet/seccomp");
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(format!("{name}.json"));
    let temporary = folder.join(format!("{name}.{}", std::process::id()));
    fs::write(&temporary, content.to_string()).unwrap();
    eventually("the profile is in place", || fs::rename(&temporary, &path).ok());
    path.to_str().unwrap().to_owned()
}
