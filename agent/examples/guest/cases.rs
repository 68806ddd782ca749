//! The cases: each a short story told to the agent by its host.

use std::time::{Duration, Instant};

use ravelin_proto::agent as api;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};

use crate::host::{Client, Streams, connect, process, spec};

/// Runs every case whose name contains `CASE`, each in a process of its own.
pub fn run() {
    if !in_child("set up", |client| async move { set_up(client).await }) {
        return;
    }
    let only = std::env::var("CASE").unwrap_or_default();
    let mut failed = 0;
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {$(
            if stringify!($case).contains(&only) && !in_child(stringify!($case), $case) {
                failed += 1;
            }
        )*};
    }
    cases!(
        plain_run,
        errors,
        output_apart,
        big_output,
        standard_input,
        terminal,
        user_terminal,
        exec_cases,
        exec_terminal,
        signals,
        daemon_keeps_stdout,
        isolation,
        rootfs,
        devices,
        tight_seccomp,
        users,
        volumes,
        subpaths,
        shared_pids,
        target_pids,
        limits,
        oom,
        fork_bomb,
        pause,
        stats,
        readonly,
        exec_many,
        restart,
        timing,
    );
    println!("CASES DONE, {failed} failed");
    in_child("shutdown", |mut client| async move {
        let _ = client.shutdown(api::Empty {}).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
}

fn in_child<F: Future<Output = ()>>(name: &str, case: impl FnOnce(Client) -> F) -> bool {
    let begin = Instant::now();
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(90), async { case(connect().await).await })
                .await
                .expect("the case ends");
        });
        std::process::exit(0);
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    println!("{} {name} ({:?})", if status == 0 { "ok     " } else { "FAILED " }, begin.elapsed());
    status == 0
}

async fn set_up(mut client: Client) {
    let request = api::SetupSandboxRequest {
        protocol_version: ravelin_proto::PROTOCOL_VERSION,
        sandbox_id: "s".into(),
        hostname: "pod-1".into(),
        shared_pid_namespace: true,
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into(),
        ..Default::default()
    };
    let answer = client.setup_sandbox(request.clone()).await.unwrap().into_inner();
    println!("guest kernel {}", answer.kernel_release);
    assert_eq!(client.setup_sandbox(request).await.unwrap_err().code(), Code::FailedPrecondition);
    for (id, offset) in [(1, 0), (2, 64 << 20)] {
        let extent =
            api::AddExtentRequest { id, disk: 0, offset, length: 16 << 20, filesystem: "erofs".into() };
        client.add_extent(extent.clone()).await.unwrap();
        client.add_extent(extent).await.unwrap();
    }
}

struct Container {
    client: Client,
    id: String,
    streams: Streams,
}

impl Container {
    async fn create(client: &Client, id: &str, spec: Value) -> Result<Self, Status> {
        Self::create_with(client, id, spec, false, |_| ()).await
    }

    async fn create_with(
        client: &Client,
        id: &str,
        spec: Value,
        terminal: bool,
        change: impl FnOnce(&mut api::CreateContainerRequest),
    ) -> Result<Self, Status> {
        let mut client = client.clone();
        let streams = Streams::open(terminal).await;
        let mut request = api::CreateContainerRequest {
            container_id: id.into(),
            spec: spec.to_string().into_bytes().into(),
            layers: vec![2, 1],
            stdio: Some(streams.stdio),
            ..Default::default()
        };
        change(&mut request);
        client.create_container(request).await?;
        Ok(Self { client, id: id.into(), streams })
    }

    fn name(&self, exec: &str) -> api::ProcessRequest {
        api::ProcessRequest { container_id: self.id.clone(), exec_id: exec.into() }
    }

    async fn start(&mut self) {
        self.client.start(self.name("")).await.unwrap();
    }

    async fn wait(&mut self, exec: &str) -> api::WaitResponse {
        self.client.wait(self.name(exec)).await.unwrap().into_inner()
    }

    async fn delete(&mut self) {
        self.client.delete(self.name("")).await.unwrap();
    }

    async fn kill(&mut self, exec: &str, signal: u32, all: bool) -> Result<(), Status> {
        let request = api::KillRequest { container_id: self.id.clone(), exec_id: exec.into(), signal, all };
        self.client.kill(request).await.map(drop)
    }

    async fn end(&mut self) {
        let _ = self.kill("", 9, true).await;
        self.wait("").await;
        self.delete().await;
    }

    /// Starts, reads all, waits, deletes.
    async fn finish(mut self) -> (u32, String, String) {
        self.start().await;
        let (out, err) = (self.streams.out().await, self.streams.err().await);
        let status = self.wait("").await.exit_status;
        self.delete().await;
        (status, out, err)
    }

    async fn exec_with(&mut self, id: &str, process: Value, terminal: bool) -> Result<Streams, Status> {
        let streams = Streams::open(terminal).await;
        let request = api::ExecRequest {
            container_id: self.id.clone(),
            exec_id: id.into(),
            process: process.to_string().into_bytes().into(),
            stdio: Some(streams.stdio),
        };
        self.client.exec(request).await?;
        self.client.start(self.name(id)).await?;
        Ok(streams)
    }

    async fn exec(&mut self, id: &str, args: &[&str]) -> (u32, String, String) {
        let mut streams = self.exec_with(id, process(args), false).await.unwrap();
        let (out, err) = (streams.out().await, streams.err().await);
        let status = self.wait(id).await.exit_status;
        self.client.delete(self.name(id)).await.unwrap();
        (status, out, err)
    }
}

async fn sh(client: &Client, id: &str, script: &str) -> (u32, String, String) {
    Container::create(client, id, spec(&["sh", "-c", script])).await.unwrap().finish().await
}

async fn sleeper(client: &Client, id: &str) -> Container {
    let mut container = Container::create(client, id, spec(&["sleep", "1000"])).await.unwrap();
    container.start().await;
    container
}

async fn plain_run(client: Client) {
    let (status, out, err) = sh(&client, "plain", "echo hello; echo $HOME; hostname; exit 7").await;
    assert_eq!((status, out.as_str(), err.as_str()), (7, "hello\n/root\npod-1\n", ""));
}

async fn errors(client: Client) {
    let refused = Container::create(&client, "bad", spec(&["nope"])).await.err().unwrap();
    assert!(refused.message().contains("exec: \"nope\": executable file not found in $PATH"), "{refused}");
    println!("        {}", refused.message());
    let refused = Container::create(&client, "bad", spec(&["/nope"])).await.err().unwrap();
    assert!(refused.message().contains("stat /nope: no such file or directory"), "{refused}");
    let mut bind = spec(&["true"]);
    bind["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/x", "type": "bind", "options": ["rbind"]}));
    let refused = Container::create(&client, "bad", bind).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut first = Container::create(&client, "bad", spec(&["true"])).await.unwrap();
    assert_eq!(
        Container::create(&client, "bad", spec(&["true"])).await.err().unwrap().code(),
        Code::AlreadyExists
    );
    let mut other = client.clone();
    let missing = api::ProcessRequest { container_id: "nobody".into(), exec_id: String::new() };
    assert_eq!(other.start(missing).await.unwrap_err().code(), Code::NotFound);
    first.start().await;
    first.wait("").await;
    assert_eq!(other.start(first.name("")).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(first.kill("", 15, false).await.unwrap_err().code(), Code::NotFound);
    first.delete().await;
    let format = sh(&client, "bad", "echo junk > /junk; chmod +x /junk; exec /junk").await;
    assert_ne!(format.0, 0);
    let mut script = Container::create(&client, "bad", spec(&["/etc/notelf"])).await.unwrap();
    script.start().await;
    let text = script.streams.err().await;
    println!("        {}", text.trim());
    assert!(text.contains("exec /etc/notelf: exec format error"), "{text}");
    assert_eq!(script.wait("").await.exit_status, 255);
    script.delete().await;
    // Created, never started.
    let mut never = Container::create(&client, "bad", spec(&["true"])).await.unwrap();
    never.delete().await;
}

async fn output_apart(client: Client) {
    let (status, out, err) = sh(&client, "apart", "echo out; echo err >&2; ls /proc/self/fd | wc -l").await;
    assert_eq!((status, err.as_str()), (0, "err\n"));
    // stdin, stdout, stderr, and the directory itself.
    assert_eq!(out, "out\n4\n");
    let mut user = spec(&["sh", "-c", "echo opened > /dev/stdout; echo err > /dev/stderr"]);
    user["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let container = Container::create(&client, "apart", user).await.unwrap();
    let (status, out, err) = container.finish().await;
    assert_eq!((status, out.as_str(), err.as_str()), (0, "opened\n", "err\n"));
}

async fn big_output(client: Client) {
    let script = "dd if=/dev/zero bs=64k count=1600 2>/dev/null; echo end";
    let mut container = Container::create(&client, "big", spec(&["sh", "-c", script])).await.unwrap();
    container.start().await;
    // A slow start: the process waits, nothing is lost.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    let mut all = Vec::new();
    container.streams.stdout.read_to_end(&mut all).await.unwrap();
    println!("        100 MiB in {:?}", begin.elapsed());
    assert_eq!(all.len(), 1600 * 65536 + 4);
    assert!(all.ends_with(b"end\n"));
    assert_eq!(container.wait("").await.exit_status, 0);
    container.delete().await;
}

async fn standard_input(client: Client) {
    let mut container =
        Container::create(&client, "in", spec(&["sh", "-c", "cat; echo done"])).await.unwrap();
    container.start().await;
    container.streams.stdin.write_all(b"some words\n").await.unwrap();
    container.streams.stdin.shutdown().await.unwrap();
    assert_eq!(container.streams.out().await, "some words\ndone\n");
    container.end().await;
}

async fn terminal(client: Client) {
    let mut tty =
        spec(&["sh", "-c", "tty; stty size; read line; echo got $line; stty size; ls -l /dev/console"]);
    tty["process"]["consoleSize"] = json!({"width": 90, "height": 33});
    tty["process"]["terminal"] = json!(true);
    let mut container = Container::create_with(&client, "tty", tty, true, |_| ()).await.unwrap();
    container.start().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let resize =
        api::ResizeTtyRequest { container_id: "tty".into(), exec_id: String::new(), columns: 120, rows: 40 };
    container.client.resize_tty(resize).await.unwrap();
    container.streams.stdin.write_all(b"word\n").await.unwrap();
    let out = container.streams.out().await;
    for part in ["/dev/pts/0", "33 90", "got word", "40 120", "/dev/console"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    container.end().await;
}

async fn user_terminal(client: Client) {
    let mut tty = spec(&["sh", "-c", "echo opened > /dev/stdout; id -u"]);
    tty["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let mut container = Container::create_with(&client, "tty", tty, true, |_| ()).await.unwrap();
    container.start().await;
    let out = container.streams.out().await;
    assert!(out.contains("opened") && out.contains("1000"), "{out}");
    container.end().await;
}

async fn exec_cases(client: Client) {
    let mut container = sleeper(&client, "ex").await;
    let (status, out, _) =
        container.exec("e1", &["sh", "-c", "echo $$; hostname; cat /proc/1/cmdline; exit 3"]).await;
    assert_eq!(status, 3);
    assert!(out.contains("pod-1") && out.contains("sleep"), "{out}");
    let (_, out, _) = container.exec("e1", &["cat", "/proc/self/cgroup", "/proc/self/oom_score_adj"]).await;
    assert_eq!(out, "0::/\n0\n");
    let refused = container.exec_with("e2", process(&["nope"]), false).await.err().unwrap();
    println!("        {}", refused.message());
    assert!(refused.message().contains("exec: \"nope\": executable file not found in $PATH"), "{refused}");
    assert_eq!(container.wait("e2").await.exit_status, 255);
    // As containerd does after a failed start: the container is not meant.
    assert_eq!(container.kill("e2", 9, true).await.unwrap_err().code(), Code::NotFound);
    container.client.delete(container.name("e2")).await.unwrap();
    let mut streams = container.exec_with("e3", process(&["cat"]), false).await.unwrap();
    streams.stdin.write_all(b"abc").await.unwrap();
    streams.stdin.shutdown().await.unwrap();
    assert_eq!(streams.out().await, "abc");
    container.wait("e3").await;
    let mut streams = container.exec_with("e4", process(&["sleep", "1000"]), false).await.unwrap();
    let refused = container.client.delete(container.name("e4")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    container.kill("e4", 15, false).await.unwrap();
    assert_eq!(container.wait("e4").await.exit_status, 143);
    streams.out().await;
    // An exec ends with its container.
    container.exec_with("e5", process(&["sleep", "1000"]), false).await.unwrap();
    container.kill("", 9, false).await.unwrap();
    assert_eq!(container.wait("").await.exit_status, 137);
    assert_eq!(container.wait("e5").await.exit_status, 137);
    let refused = container.exec_with("e6", process(&["true"]), false).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    container.delete().await;
}

async fn exec_terminal(client: Client) {
    let mut container = sleeper(&client, "ext").await;
    let mut tty = process(&["sh", "-c", "stty size; tty; exit 4"]);
    tty["consoleSize"] = json!({"width": 77, "height": 22});
    let mut streams = container.exec_with("t", tty, true).await.unwrap();
    let out = streams.out().await;
    assert!(out.contains("22 77") && out.contains("/dev/pts/"), "{out}");
    assert_eq!(container.wait("t").await.exit_status, 4);
    container.end().await;
}

async fn signals(client: Client) {
    let script = "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut container = Container::create(&client, "sig", spec(&["sh", "-c", script])).await.unwrap();
    container.start().await;
    let mut ready = [0; 6];
    container.streams.stdout.read_exact(&mut ready).await.unwrap();
    container.kill("", 15, false).await.unwrap();
    assert_eq!(container.streams.out().await, "term\n");
    assert_eq!(container.wait("").await.exit_status, 5);
    container.delete().await;
    let mut container = sleeper(&client, "sig").await;
    container.kill("", 9, true).await.unwrap();
    assert_eq!(container.wait("").await.exit_status, 137);
    container.delete().await;
    // SIGPIPE is as the program expects it.
    let (_, out, _) = sh(&client, "sig", "grep -E 'Sig(Ign|Blk)' /proc/self/status").await;
    assert!(out.contains("SigBlk:\t0000000000000000") && out.contains("SigIgn:\t0000000000000000"), "{out}");
}

async fn daemon_keeps_stdout(client: Client) {
    let mut container = sleeper(&client, "dm").await;
    let mut streams =
        container.exec_with("e", process(&["sh", "-c", "(sleep 1000 &) ; echo words"]), false).await.unwrap();
    let waited =
        tokio::time::timeout(Duration::from_secs(5), container.wait("e")).await.expect("wait answers");
    assert_eq!(waited.exit_status, 0);
    container.client.delete(container.name("e")).await.unwrap();
    assert_eq!(streams.out().await, "words\n");
    container.end().await;
}

async fn isolation(client: Client) {
    let script = "ps | wc -l; ls / | tr '\\n' ' '; mount | grep -c ravelin; cat /proc/self/cgroup; \
        cat /proc/self/oom_score_adj; ls /sys/fs/cgroup | grep -c memory.max; echo 1 > /proc/sys/kernel/printk; \
        touch /sys/x; cat /proc/kcore | wc -c; grep Cap /proc/self/status; ulimit -n; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let (status, out, err) = sh(&client, "iso", script).await;
    println!("        {}", out.replace('\n', "\n        "));
    println!("        {}", err.replace('\n', "\n        "));
    assert_eq!(status, 0);
    assert!(out.contains("0::/\n0\n1\n"), "{out}");
    assert!(out.contains("CapBnd:\t00000000a80425fb"), "{out}");
    assert!(out.contains("CapEff:\t00000000a80425fb"), "{out}");
    assert!(err.contains("Read-only"), "{err}");
}

async fn rootfs(client: Client) {
    let script = "cat /etc/top; test -e /etc/hidden || echo gone; echo new > /etc/new; cat /etc/new; \
        stat -c %a /; df -h / | tail -1";
    let (status, out, err) = sh(&client, "root", script).await;
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("layer two\ngone\nnew\n755\n"), "{out}");
    let (_, out, _) = sh(&client, "root", "test -e /etc/new || echo fresh").await;
    assert_eq!(out, "fresh\n");
}

async fn devices(client: Client) {
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

async fn tight_seccomp(client: Client) {
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

async fn users(client: Client) {
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

fn file(path: &str, text: &'static str) -> api::VolumeEntry {
    let content = Some(api::volume_entry::Content::File(text.as_bytes().into()));
    api::VolumeEntry { path: path.into(), mode: 0o644, uid: 0, gid: 0, content }
}

fn link(path: &str, to: &str) -> api::VolumeEntry {
    let content = Some(api::volume_entry::Content::Symlink(to.into()));
    api::VolumeEntry { path: path.into(), mode: 0o777, uid: 0, gid: 0, content }
}

fn pushed(spec_index: u32, volume: &str, sub_path: &str) -> api::MountSource {
    let pushed = api::PushedVolume { volume: volume.into(), sub_path: sub_path.into() };
    api::MountSource { spec_index, source: Some(api::mount_source::Source::Pushed(pushed)) }
}

fn empty_dir(spec_index: u32, name: &str, memory: bool, sub_path: &str) -> api::MountSource {
    let dir = api::EmptyDir {
        name: name.into(),
        mode: 0o2770,
        uid: 0,
        gid: 2000,
        memory,
        size_bytes: if memory { 1 << 20 } else { 0 },
        sub_path: sub_path.into(),
    };
    api::MountSource { spec_index, source: Some(api::mount_source::Source::EmptyDir(dir)) }
}

fn with_binds(mut spec: Value, binds: &[&str]) -> Value {
    for bind in binds {
        let mount = json!({"destination": bind, "type": "bind", "source": "", "options": ["rbind", "rprivate", "rw"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    spec
}

async fn volumes(mut client: Client) {
    let config = |version: &'static str, dir: &str| api::PushVolumeRequest {
        volume: "config".into(),
        entries: vec![file(&format!("{dir}/key"), version), link("..data", dir), link("key", "..data/key")],
        single_file: false,
        writable: false,
    };
    client.push_volume(config("one", "..1")).await.unwrap();
    let hosts = |text| api::PushVolumeRequest {
        volume: "hosts".into(),
        entries: vec![file("", text)],
        single_file: true,
        writable: false,
    };
    client.push_volume(hosts("1.2.3.4 a\n")).await.unwrap();
    let log = api::PushVolumeRequest {
        volume: "log".into(),
        single_file: true,
        writable: true,
        entries: vec![file("", "")],
    };
    client.push_volume(log).await.unwrap();
    let script = "cat /cfg/key /etc/hosts; touch /cfg/x || echo ro; echo bye > /dev/termlog; \
        stat -c '%a %g' /data /mem; df -k /mem | tail -1; echo shared > /data/f; echo shm > /dev/shm/f; \
        read line; cat /cfg/key /etc/hosts";
    let binds = with_binds(
        spec(&["sh", "-c", script]),
        &["/cfg", "/etc/hosts", "/dev/termlog", "/data", "/mem", "/dev/shm"],
    );
    let mut container = Container::create_with(&client, "vol", binds, false, |request| {
        request.mounts = vec![
            pushed(6, "config", ""),
            pushed(7, "hosts", ""),
            pushed(8, "log", ""),
            empty_dir(9, "d", false, ""),
            empty_dir(10, "m", true, ""),
            api::MountSource { spec_index: 11, source: Some(api::mount_source::Source::Shm(api::Empty {})) },
        ];
    })
    .await
    .unwrap();
    container.start().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.push_volume(config("two", "..2")).await.unwrap();
    client.push_volume(hosts("5.6.7.8 b\n")).await.unwrap();
    container.streams.stdin.write_all(b"\n").await.unwrap();
    let (out, err) = (container.streams.out().await, container.streams.err().await);
    assert!(out.starts_with("one1.2.3.4 a\nro\n2770 2000\n2770 2000\n"), "{out} {err}");
    assert!(out.contains(" 1024 ") && out.ends_with("two5.6.7.8 b\n"), "{out}");
    let read = api::ReadVolumeRequest { volume: "log".into(), max_bytes: 4096 };
    assert_eq!(&client.read_volume(read).await.unwrap().into_inner().data[..], b"bye\n");
    container.end().await;
    let again = with_binds(spec(&["sh", "-c", "cat /data/f /dev/shm/f"]), &["/data", "/dev/shm"]);
    let container = Container::create_with(&client, "vol", again, false, |request| {
        request.mounts = vec![
            empty_dir(6, "d", false, ""),
            api::MountSource { spec_index: 7, source: Some(api::mount_source::Source::Shm(api::Empty {})) },
        ];
    })
    .await
    .unwrap();
    assert_eq!(container.finish().await.1, "shared\nshm\n");
}

async fn subpaths(mut client: Client) {
    let config = api::PushVolumeRequest {
        volume: "sub".into(),
        entries: vec![file("..1/key", "inner"), link("..data", "..1"), link("key", "..data/key")],
        single_file: false,
        writable: false,
    };
    client.push_volume(config).await.unwrap();
    let binds = with_binds(
        spec(&["sh", "-c", "cat /one; echo x > /deep/f; ln -s /etc /deep/out; mount | grep -c /deep"]),
        &["/one", "/deep"],
    );
    let container = Container::create_with(&client, "sub", binds, false, |request| {
        request.mounts = vec![pushed(6, "sub", "key"), empty_dir(7, "s", false, "a/b")];
    })
    .await
    .unwrap();
    let (status, out, err) = container.finish().await;
    assert_eq!((status, out.as_str()), (0, "inner1\n"), "{err}");
    // A link a container left leads to the volume's own "etc", which does not exist, not to the guest's.
    let again = with_binds(spec(&["sh", "-c", "ls -A /deep | wc -l"]), &["/deep"]);
    let container = Container::create_with(&client, "sub", again, false, |request| {
        request.mounts = vec![empty_dir(6, "s", false, "a/b/out/x")];
    })
    .await;
    assert!(container.is_err());
}

async fn shared_pids(client: Client) {
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

async fn target_pids(client: Client) {
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

async fn limits(client: Client) {
    let mut limited = spec(&["sleep", "1000"]);
    limited["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 64 << 20});
    limited["linux"]["resources"]["pids"] = json!({"limit": 20});
    limited["linux"]["resources"]["unified"] = json!({"memory.oom.group": "1", "memory.swap.max": "0"});
    limited["linux"]["resources"]["hugepageLimits"] =
        json!([{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}]);
    let mut container = Container::create(&client, "lim", limited).await.unwrap();
    container.start().await;
    let show = ["sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max memory.oom.group"];
    assert_eq!(container.exec("e", &show).await.1, "67108864\n20\n200000 100000\n1\n");
    let resources = json!({"memory": {"limit": 128 << 20}, "cpu": {"quota": 50000, "period": 100000}});
    let update = api::UpdateRequest {
        container_id: "lim".into(),
        resources: resources.to_string().into_bytes().into(),
    };
    container.client.update(update).await.unwrap();
    assert_eq!(container.exec("e", &show).await.1, "134217728\n20\n50000 100000\n1\n");
    container.end().await;
}

async fn oom(mut client: Client) {
    let mut events = client.events(api::Empty {}).await.unwrap().into_inner();
    let mut hungry = spec(&["sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1"]);
    hungry["linux"]["resources"]["memory"] = json!({"limit": 32 << 20});
    let mut container = Container::create(&client, "oom", hungry).await.unwrap();
    container.start().await;
    let ended = container.wait("").await;
    assert!(ended.oom_killed, "{ended:?}");
    assert_eq!(ended.exit_status, 137);
    let next = events.message().await.unwrap().unwrap();
    assert!(matches!(next.kind, Some(api::event::Kind::Oom(oom)) if oom.container_id == "oom"));
    let next = events.message().await.unwrap().unwrap();
    assert!(matches!(next.kind, Some(api::event::Kind::Exit(exit)) if exit.exit_status == 137));
    container.delete().await;
    let (status, _, _) = sh(&client, "oom", "exit 0").await;
    assert_eq!(status, 0);
}

async fn fork_bomb(client: Client) {
    let bomb = "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done";
    let mut container = Container::create(&client, "bomb", spec(&["sh", "-c", bomb])).await.unwrap();
    container.start().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let pids = api::ContainerRequest { container_id: "bomb".into() };
    let begin = Instant::now();
    let count = container.client.list_pids(pids).await.unwrap().into_inner().pids.len();
    println!("        {count} processes; the agent answers in {:?}", begin.elapsed());
    assert!(count > 200);
    let begin = Instant::now();
    container.kill("", 9, true).await.unwrap();
    assert_eq!(container.wait("").await.exit_status, 137);
    container.delete().await;
    println!("        gone in {:?}", begin.elapsed());
    assert_eq!(sh(&client, "after", "exit 0").await.0, 0);
}

async fn pause(client: Client) {
    let mut container = sleeper(&client, "pau").await;
    let name = api::ContainerRequest { container_id: "pau".into() };
    container.client.pause(name.clone()).await.unwrap();
    let refused = container.exec_with("e", process(&["true"]), false).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    container.client.resume(name).await.unwrap();
    assert_eq!(container.exec("e2", &["true"]).await.0, 0);
    container.end().await;
}

async fn stats(client: Client) {
    let mut container = sleeper(&client, "sta").await;
    let name = api::ContainerRequest { container_id: "sta".into() };
    let before = container.client.stats(name.clone()).await.unwrap().into_inner();
    container
        .exec(
            "e",
            &[
                "sh",
                "-c",
                "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/f bs=1M count=8; sync",
            ],
        )
        .await;
    let after = container.client.stats(name.clone()).await.unwrap().into_inner();
    assert!(after.cpu.unwrap().usage_usec > before.cpu.unwrap().usage_usec);
    let memory = after.memory.unwrap();
    assert!(memory.usage > 0 && memory.usage_limit == u64::MAX && memory.stat.contains_key("anon"));
    assert_eq!(after.pids_current, 1);
    println!("        io {:?}", after.io);
    assert_eq!(container.client.list_pids(name).await.unwrap().into_inner().pids.len(), 1);
    container.end().await;
}

async fn readonly(client: Client) {
    let mut readonly = spec(&["sh", "-c", "touch /x || echo refused; touch /dev/shm-x && echo dev"]);
    readonly["root"] = json!({"path": "", "readonly": true});
    let (_, out, _) = Container::create(&client, "ro", readonly).await.unwrap().finish().await;
    assert_eq!(out, "refused\ndev\n");
}

async fn exec_many(client: Client) {
    let container = sleeper(&client, "many").await;
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..50 {
        let mut one =
            Container { client: client.clone(), id: "many".into(), streams: Streams::open(false).await };
        tasks.push(tokio::spawn(async move {
            let text = format!("number {number}");
            let (status, out, _) = one.exec(&format!("e{number}"), &["echo", &text]).await;
            assert_eq!((status, out), (0, format!("{text}\n")));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    println!("        50 execs at once in {:?}", begin.elapsed());
    let mut container = container;
    container.end().await;
}

async fn restart(mut client: Client) {
    for round in 0..5 {
        assert_eq!(sh(&client, "again", &format!("exit {round}")).await.0, round);
    }
    let refused = client.remove_extent(api::RemoveExtentRequest { id: 9, disk: 0 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let mut container = sleeper(&client, "user").await;
    let layer = api::RemoveExtentRequest { id: 2, disk: 0 };
    assert_eq!(client.remove_extent(layer).await.unwrap_err().code(), Code::FailedPrecondition);
    container.end().await;
    client.remove_extent(layer).await.unwrap();
    let again = api::AddExtentRequest {
        id: 2,
        disk: 0,
        offset: 64 << 20,
        length: 16 << 20,
        filesystem: "erofs".into(),
    };
    client.add_extent(again).await.unwrap();
    assert_eq!(sh(&client, "again", "cat /etc/top").await.1, "layer two\n");
    let left = std::fs::read_dir(ravelin_agent::paths::CONTAINERS).unwrap().count();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert_eq!((left, mounts.matches("overlay").count()), (0, 0), "{mounts}");
}

async fn timing(client: Client) {
    for _ in 0..4 {
        let begin = Instant::now();
        let mut container = Container::create(&client, "time", spec(&["sleep", "1000"])).await.unwrap();
        let created = begin.elapsed();
        let begin = Instant::now();
        container.start().await;
        let started = begin.elapsed();
        let begin = Instant::now();
        container.exec("e", &["true"]).await;
        let executed = begin.elapsed();
        let begin = Instant::now();
        container.kill("", 9, false).await.unwrap();
        container.wait("").await;
        let killed = begin.elapsed();
        let begin = Instant::now();
        container.delete().await;
        let deleted = begin.elapsed();
        println!(
            "        create {created:?} start {started:?} exec {executed:?} kill {killed:?} delete {deleted:?}"
        );
    }
}
