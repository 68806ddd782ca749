//! What a container sees and may do.

use ravelin_proto::agent as api;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::container::{Container, sh, sleeper};
use crate::host::{Client, process, spec};

pub async fn isolation(client: Client) {
    let script = "ps | wc -l; ls / | tr '\\n' ' '; mount | grep -c ravelin; cat /proc/self/cgroup; \
        cat /proc/self/oom_score_adj; ls /sys/fs/cgroup | grep -c memory.max; echo 1 > /proc/sys/kernel/printk; \
        touch /sys/x; cat /proc/kcore | wc -c; grep Cap /proc/self/status; ulimit -n; \
        ulimit -c; ulimit -Hc; cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let (status, out, err) = sh(&client, "iso", script).await;
    println!("        {}", out.replace('\n', "\n        "));
    println!("        {}", err.replace('\n', "\n        "));
    assert_eq!(status, 0);
    assert!(out.contains("0::/\n0\n1\n"), "{out}");
    assert!(out.contains("CapBnd:\t00000000a80425fb"), "{out}");
    assert!(out.contains("CapEff:\t00000000a80425fb"), "{out}");
    // No core dumps, unless a program asks for them.
    assert!(out.contains("\n1048576\n0\nunlimited\n"), "{out}");
    assert!(err.contains("Read-only"), "{err}");
}

pub async fn rootfs(client: Client) {
    let script = "cat /etc/top; test -e /etc/hidden || echo gone; echo new > /etc/new; cat /etc/new; \
        stat -c %a /; df -h / | tail -1";
    let (status, out, err) = sh(&client, "root", script).await;
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("layer two\ngone\nnew\n755\n"), "{out}");
    let (_, out, _) = sh(&client, "root", "test -e /etc/new || echo fresh").await;
    assert_eq!(out, "fresh\n");
}

pub async fn readonly(client: Client) {
    let mut readonly = spec(&["sh", "-c", "touch /x || echo refused; touch /dev/shm-x && echo dev"]);
    readonly["root"] = json!({"path": "", "readonly": true});
    let (_, out, _) = Container::create(&client, "ro", readonly).await.unwrap().finish().await;
    assert_eq!(out, "refused\ndev\n");
}

pub async fn devices(client: Client) {
    let script = "for major in 254 259; do for minor in 0 1 2 16 17; do mknod /b b $major $minor && \
        dd if=/b of=/dev/null bs=512 count=1 && echo READ $major $minor; rm -f /b; done; done; \
        mknod /m c 1 1 && dd if=/m of=/dev/null bs=1 count=1 && echo MEM; \
        echo ok > /dev/null && head -c 4 /dev/urandom | wc -c";
    let (_, out, err) = sh(&client, "dev", script).await;
    assert_eq!(out, "4\n", "{err}");
    assert!(err.contains("Operation not permitted"), "{err}");
    let mut all = spec(&["sh", "-c", script]);
    all["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let (_, out, _) = Container::create(&client, "dev", all).await.unwrap().finish().await;
    assert!(!out.contains("READ"), "{out}");
}

/// One that may do everything in its guest takes its device rules away. The disks stay out of its reach.
pub async fn lifted_device_rules(client: Client) {
    let script = "kernel lift; mknod /k c 1 11 && echo '<7>lifted' > /k && echo other devices; \
        for major in 254 259; do for minor in 0 1 2 16 17; do mknod /b b $major $minor && \
        dd if=/b of=/dev/null bs=512 count=1 && echo READ $major $minor; rm -f /b; done; done";
    let mut all = spec(&["sh", "-c", script]);
    let capabilities = json!(["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_OVERRIDE"]);
    for set in ["bounding", "effective", "permitted"] {
        all["process"]["capabilities"][set] = capabilities.clone();
    }
    let (_, out, err) = Container::create(&client, "lift", all).await.unwrap().finish().await;
    assert_eq!(out, "query: ok\nlift: ok\nother devices\n", "{err}");
    assert!(err.contains("Operation not permitted"), "{err}");
}

pub async fn privileged_devices(client: Client) {
    // The node's numbers, which mean other devices here or none.
    let listed = json!([{"path": "/dev/null", "type": "c", "major": 99, "minor": 99},
                        {"path": "/dev/nvme0", "type": "c", "major": 240, "minor": 0}]);
    let script =
        "stat -c %t:%T /dev/null /dev/kmsg; ls /dev/nvme0 /dev/vda /dev/vdb 2>/dev/null || echo none";
    let mut privileged = spec(&["sh", "-c", script]);
    privileged["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    privileged["linux"]["devices"] = listed.clone();
    let container = Container::create(&client, "priv", privileged).await.unwrap();
    assert_eq!(container.finish().await.1, "1:3\n1:b\nnone\n");
    let mut plain = spec(&["true"]);
    plain["linux"]["devices"] = listed;
    let refused = Container::create(&client, "priv", plain).await.err().expect("it is refused");
    assert!(refused.message().contains("/dev/nvme0"), "{refused}");
}

pub async fn cgroup_boundary(client: Client) {
    // As a container manager inside would: limits below are its own, those it has are not.
    let script = "cd /sys/fs/cgroup; mkdir init app && echo 1 > init/cgroup.procs && echo +memory +pids > cgroup.subtree_control
        echo 8388608 > app/memory.max; cat app/memory.max; echo max > memory.max; cat memory.max";
    let mut manager = spec(&["sh", "-c", script]);
    manager["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
    manager["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    let (_, out, err) = Container::create(&client, "cgb", manager).await.unwrap().finish().await;
    assert_eq!(out, "8388608\n67108864\n", "{err}");
    assert!(err.contains("Operation not permitted"), "{err}");
}

/// Cgroups in one another, deeper than any path can name: only so deep, and the container is taken down all the same.
pub async fn cgroups_without_end(client: Client) {
    let script = "cd /sys/fs/cgroup; name=$(printf %0200d 0); deep=0; \
        while [ $deep -lt 500 ] && mkdir $name && cd -P $name; do deep=$((deep+1)); done 2>/dev/null; \
        echo $deep; exec sleep 1000";
    let mut manager = spec(&["sh", "-c", script]);
    manager["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
    let mut container = Container::create(&client, "deep", manager).await.unwrap();
    container.start().await;
    let mut deep = [0; 3];
    container.streams.stdout.read_exact(&mut deep).await.unwrap();
    println!("        {} deep", String::from_utf8_lossy(&deep).trim());
    assert_eq!(&deep, b"63\n");
    let name = api::ContainerRequest { container_id: "deep".into() };
    assert_eq!(container.client.list_pids(name).await.unwrap().into_inner().pids.len(), 1);
    container.end().await;
}

pub async fn tight_seccomp(client: Client) {
    let seccomp = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["execve", "brk", "arch_prctl", "set_tid_address",
            "set_robust_list", "rseq", "prlimit64", "readlink", "readlinkat", "getrandom", "mprotect", "write",
            "exit_group", "getuid", "geteuid", "getgid", "getegid", "uname", "fstat", "newfstatat", "ioctl", "mmap"]}]});
    for (id, privileges) in [("sec-a", json!(true)), ("sec-b", json!(null))] {
        for uid in [0, 1000] {
            let mut tight = spec(&["echo", "through"]);
            tight["linux"]["seccomp"] = seccomp.clone();
            tight["process"]["noNewPrivileges"] = privileges.clone();
            tight["process"]["user"] = json!({"uid": uid, "gid": uid});
            let container = Container::create(&client, id, tight).await.unwrap();
            let (status, out, err) = container.finish().await;
            assert_eq!((status, out.as_str()), (0, "through\n"), "{id} {uid}: {err}");
        }
    }
    let mut open = spec(&[
        "sh",
        "-c",
        "grep -E 'Cap(Eff|Prm|Bnd)|Seccomp:|NoNew' /proc/self/status; mkdir /x || echo refused",
    ]);
    open["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"action": "SCMP_ACT_ERRNO", "names": ["mkdir", "mkdirat"]}]});
    let mut container = Container::create(&client, "sec", open).await.unwrap();
    container.start().await;
    let out = container.streams.out().await;
    assert!(out.contains("CapEff:\t00000000a80425fb") && out.contains("refused"), "{out}");
    assert!(out.contains("Seccomp:\t2") && out.contains("NoNewPrivs:\t0"), "{out}");
    container.wait("").await;
    container.delete().await;
    // The filter holds for execs too.
    let mut filtered = spec(&["sleep", "1000"]);
    filtered["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"action": "SCMP_ACT_ERRNO", "names": ["mkdir", "mkdirat"]}]});
    let mut container = Container::create(&client, "sec", filtered).await.unwrap();
    container.start().await;
    let (status, out, err) =
        container.exec("e", &["sh", "-c", "mkdir /x; grep CapEff /proc/self/status"]).await;
    assert!(
        err.contains("Operation not permitted") && out.contains("00000000a80425fb"),
        "{status} {out} {err}"
    );
    container.end().await;
}

pub async fn users(client: Client) {
    let mut user =
        spec(&["sh", "-c", "id; umask; cat /proc/self/status | grep -E 'Cap(Eff|Inh|Amb)'; echo $HOME; pwd"]);
    user["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 63});
    user["process"]["cwd"] = json!("/tmp");
    user["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    let (status, out, err) = Container::create(&client, "usr", user).await.unwrap().finish().await;
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("uid=1000 gid=1001") && out.contains("5") && out.contains("0077"), "{out}");
    assert!(out.contains("CapEff:\t0000000000000000"), "{out}");
    assert!(out.ends_with("/\n/tmp\n"), "{out}");
    let mut none = spec(&["sh", "-c", "grep Cap /proc/self/status"]);
    none["process"]["capabilities"] = json!({});
    let (_, out, _) = Container::create(&client, "usr", none).await.unwrap().finish().await;
    assert!(out.contains("CapEff:\t0000000000000000") && out.contains("CapBnd:\t0000000000000000"), "{out}");
}

pub async fn shared_pids(client: Client) {
    let pod = |request: &mut api::CreateContainerRequest| request.set_pid_namespace(api::NamespaceMode::Pod);
    let mut first =
        Container::create_with(&client, "sp1", spec(&["sleep", "777"]), false, pod).await.unwrap();
    first.start().await;
    let script = "ps; ls /proc/1/root/ ; cat /proc/1/comm; touch /proc/1/root/tmp/x";
    let second =
        Container::create_with(&client, "sp2", spec(&["sh", "-c", script]), false, pod).await.unwrap();
    let (_, out, err) = second.finish().await;
    assert!(out.contains("sleep 777") && out.contains("pause"), "{out} {err}");
    // Its leftovers die with it.
    let third =
        Container::create_with(&client, "sp3", spec(&["sh", "-c", "sleep 888 & exit 0"]), false, pod).await;
    third.unwrap().finish().await;
    let (_, out, _) = first.exec("e", &["ps"]).await;
    assert!(!out.contains("888"), "{out}");
    first.end().await;
}

pub async fn target_pids(client: Client) {
    let mut target = sleeper(&client, "tgt").await;
    let container = Container::create_with(&client, "dbg", spec(&["ps"]), false, |request| {
        request.set_pid_namespace(api::NamespaceMode::Target);
        request.pid_target = "tgt".into();
    })
    .await
    .unwrap();
    let (_, out, _) = container.finish().await;
    assert!(out.contains("sleep 1000"), "{out}");
    target.end().await;
}

pub async fn session_keyring(client: Client) {
    let rings = || {
        let keys = std::fs::read_to_string("/proc/keys").unwrap();
        keys.lines().filter(|line| line.contains("_ses.ring")).count()
    };
    let mut user = spec(&["sleep", "1000"]);
    user["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let mut container = Container::create(&client, "ring", user).await.unwrap();
    container.start().await;
    assert_eq!(rings(), 1);
    // An exec has the container's, not one more.
    container.exec_with("e", process(&["sleep", "1000"]), false).await.unwrap();
    assert_eq!(rings(), 1);
    // Another container has another, whatever its user.
    let mut other = spec(&["sleep", "1000"]);
    other["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let mut other = Container::create(&client, "ring-b", other).await.unwrap();
    other.start().await;
    assert_eq!(rings(), 2);
    other.end().await;
    container.end().await;
}
