//! Further processes.

use std::time::{Duration, Instant};

use ravelin_proto::agent as api;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::container::{Container, sleeper};
use crate::host::{Client, Streams, process, spec};

pub async fn exec_cases(client: Client) {
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

/// As with runc, a container that waits to be started takes execs, and is started as ever afterwards.
pub async fn exec_before_start(client: Client) {
    let mut container = Container::create(&client, "early", spec(&["cat", "/left"])).await.unwrap();
    let (status, out, err) =
        container.exec("e", &["sh", "-c", "echo early > /left; cat /proc/self/cgroup; pwd"]).await;
    assert_eq!((status, out.as_str()), (0, "0::/\n/\n"), "{err}");
    let name = api::ContainerRequest { container_id: "early".into() };
    container.client.pause(name.clone()).await.unwrap();
    container.client.resume(name).await.unwrap();
    assert_eq!(container.finish().await, (0, "early\n".to_owned(), String::new()));
}

pub async fn exec_terminal(client: Client) {
    let mut container = sleeper(&client, "ext").await;
    let mut tty = process(&["sh", "-c", "stty size; tty; exit 4"]);
    tty["consoleSize"] = json!({"width": 77, "height": 22});
    let mut streams = container.exec_with("t", tty, true).await.unwrap();
    let out = streams.out().await;
    assert!(out.contains("22 77") && out.contains("/dev/pts/"), "{out}");
    assert_eq!(container.wait("t").await.exit_status, 4);
    container.end().await;
}

pub async fn exec_many(client: Client) {
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

pub async fn exec_leaves_nothing(client: Client) {
    let mut container = sleeper(&client, "left").await;
    let files = || {
        let mut files = 0;
        let mut directories = vec![std::path::PathBuf::from(ravelin_agent::paths::RUN)];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                files += 1;
                let below = [ravelin_agent::paths::SCRATCH, ravelin_agent::paths::LAYERS];
                let other = below.iter().any(|below| entry.path().starts_with(below));
                if entry.file_type().unwrap().is_dir() && !other && entry.file_name() != "rootfs" {
                    directories.push(entry.path());
                }
            }
        }
        files
    };
    let before = files();
    for _ in 0..50 {
        assert_eq!(container.exec("e", &["true"]).await.0, 0);
    }
    container.exec_with("t", process(&["true"]), true).await.unwrap();
    container.wait("t").await;
    assert_eq!(files(), before);
    container.end().await;
}

pub async fn exec_own_cgroups(client: Client) {
    // As systemd or a container manager inside has it: no process may be in a cgroup that hands controllers down.
    let script = "cd /sys/fs/cgroup; mkdir init && echo 1 > init/cgroup.procs && \
        echo +memory +pids > cgroup.subtree_control && echo ready; exec sleep 1000";
    let mut manager = spec(&["sh", "-c", script]);
    manager["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
    let mut container = Container::create(&client, "own", manager).await.unwrap();
    container.start().await;
    let mut ready = [0; 6];
    container.streams.stdout.read_exact(&mut ready).await.unwrap();
    let (status, out, err) = container.exec("e", &["cat", "/proc/self/cgroup"]).await;
    assert_eq!((status, out.as_str()), (0, "0::/init\n"), "{err}");
    container.end().await;
}

pub async fn home(client: Client) {
    let mut file = client.clone();
    let entry = api::VolumeEntry {
        path: String::new(),
        mode: 0o644,
        content: Some(api::volume_entry::Content::File(
            b"web:x:1000:1000::/home/web:/bin/sh\n".to_vec().into(),
        )),
        ..Default::default()
    };
    let push = api::PushVolumeRequest {
        volume: "passwd".into(),
        single_file: true,
        entries: vec![entry],
        ..Default::default()
    };
    file.push_volume(push).await.unwrap();
    let mut mounted = spec(&["sh", "-c", "echo $HOME; exec sleep 1000"]);
    mounted["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    mounted["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/etc/passwd", "type": "bind", "source": "/x", "options": ["rbind", "ro"]}),
    );
    let spec_index = u32::try_from(mounted["mounts"].as_array().unwrap().len() - 1).unwrap();
    let pushed = api::PushedVolume { volume: "passwd".into(), sub_path: String::new() };
    let mut container = Container::create_with(&client, "home", mounted, false, |request| {
        request
            .mounts
            .push(api::MountSource { spec_index, source: Some(api::mount_source::Source::Pushed(pushed)) });
    })
    .await
    .unwrap();
    container.start().await;
    let mut text = [0; 10];
    container.streams.stdout.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"/home/web\n");
    for (set, expected) in [(None, "/home/web\n"), (Some("HOME="), "/home/web\n"), (Some("HOME=/x"), "/x\n")]
    {
        let mut echo = process(&["sh", "-c", "echo $HOME"]);
        echo["user"] = json!({"uid": 1000, "gid": 1000});
        echo["env"].as_array_mut().unwrap().extend(set.map(|set| json!(set)));
        let mut streams = container.exec_with("e", echo, false).await.unwrap();
        assert_eq!(streams.out().await, expected);
        container.wait("e").await;
        container.client.delete(container.name("e")).await.unwrap();
    }
    container.end().await;
}

/// What a container has put where files are opened for an exec is looked at before, and nothing waits for it.
pub async fn not_what_it_seems(client: Client) {
    let mut container = sleeper(&client, "seems").await;
    let script = "rm /etc/passwd && mkfifo /etc/passwd && rm /dev/ptmx && mkfifo /dev/ptmx";
    assert_eq!(container.exec("e", &["sh", "-c", script]).await, (0, String::new(), String::new()));
    assert_eq!(container.exec("e", &["sh", "-c", "echo $HOME"]).await.1, "/\n");
    let refused = container.exec_with("t", process(&["true"]), true).await.err().unwrap();
    assert!(refused.message().contains("/dev/ptmx does not lead to the container's terminals"), "{refused}");
    // The kernel's log: whoever writes to it would be seen.
    let script = "rm /etc/passwd && ln -s ../../proc/self/root/etc/top /etc/passwd && rm /dev/ptmx && ln -s kmsg /dev/ptmx \
        && mknod /dev/kmsg c 1 11";
    assert_eq!(container.exec("f", &["sh", "-c", script]).await, (0, String::new(), String::new()));
    assert_eq!(container.exec("f", &["sh", "-c", "echo $HOME"]).await.1, "/\n");
    let refused = container.exec_with("u", process(&["true"]), true).await.err().unwrap();
    assert!(refused.message().contains("/dev/ptmx does not lead to the container's terminals"), "{refused}");
    container.end().await;
}

pub async fn exec_attributes(client: Client) {
    let mut container = sleeper(&client, "attr").await;
    let mut asked = process(&[
        "sh",
        "-c",
        "id; umask; pwd; ulimit -n; grep -E 'Cap(Inh|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status; ls /proc/self/fd | wc -l",
    ]);
    asked["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 63});
    asked["cwd"] = json!("/tmp");
    asked["noNewPrivileges"] = json!(true);
    asked["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    let some = json!(["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]);
    asked["capabilities"] =
        json!({"bounding": some, "effective": some, "permitted": some, "inheritable": some, "ambient": some});
    let mut streams = container.exec_with("a", asked, false).await.unwrap();
    let (out, err) = (streams.out().await, streams.err().await);
    for part in [
        "uid=1000 gid=1001",
        "groups=5,6",
        "0077\n/tmp\n100\n",
        "CapInh:\t0000000000000401",
        "CapEff:\t0000000000000401",
        "CapBnd:\t0000000000000401",
        "CapAmb:\t0000000000000401",
        "NoNewPrivs:\t1",
    ] {
        assert!(out.contains(part), "{part}: {out} {err}");
    }
    assert!(out.ends_with("\n4\n"), "{out}");
    for (cwd, text) in [
        ("/nowhere", "change to the working directory \"/nowhere\": no such file or directory"),
        ("/etc/top", "change to the working directory \"/etc/top\": not a directory"),
        ("/proc/self/fd/3", "change to the working directory"),
    ] {
        let mut elsewhere = process(&["true"]);
        elsewhere["cwd"] = json!(cwd);
        let refused = container.exec_with("b", elsewhere, false).await.err().unwrap();
        assert!(refused.message().contains(text), "{refused}");
        container.wait("b").await;
        container.client.delete(container.name("b")).await.unwrap();
    }
    for (args, text) in [
        (["/etc/notelf"], "exec /etc/notelf: exec format error"),
        (["/etc/top"], "exec: \"/etc/top\": permission denied"),
        (["/etc"], "exec: \"/etc\": is a directory"),
    ] {
        let refused = container.exec_with("b", process(&args), false).await.err().unwrap();
        assert!(refused.message().ends_with(text), "{refused}");
        container.client.delete(container.name("b")).await.unwrap();
    }
    let mut lost = process(&["true"]);
    lost["env"] = json!([]);
    let refused = container.exec_with("b", lost, false).await.err().unwrap();
    assert!(refused.message().ends_with("exec: \"true\": executable file not found in $PATH"), "{refused}");
    let (_, out, _) = container.exec("c", &["ps"]).await;
    assert_eq!(out.lines().count(), 3, "{out}");
    container.end().await;
}

pub async fn exec_scheduling(client: Client) {
    let mut old = spec(&["sleep", "1000"]);
    old["linux"]["personality"] = json!({"domain": "LINUX32"});
    let mut container = Container::create(&client, "sched", old).await.unwrap();
    container.start().await;
    // The 41st number is the policy, of which 3 is SCHED_BATCH.
    let mut asked = process(&["sh", "-c", "uname -m; cut -d' ' -f41 /proc/self/stat"]);
    asked["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    asked["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 7});
    let mut streams = container.exec_with("s", asked, false).await.unwrap();
    assert_eq!(streams.out().await, "i686\n3\n");
    container.end().await;
}

/// An exec that says nothing of its capabilities and limits has its container's; a name of any length is answered with an
/// error that a person can read.
pub async fn exec_inherits(client: Client) {
    let mut spec = spec(&["sleep", "1000"]);
    spec["process"]["capabilities"] =
        json!({ "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] });
    spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 99 }]);
    let mut container = Container::create(&client, "heir", spec).await.unwrap();
    container.start().await;
    let script = "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f 2; ulimit -n";
    let bare = json!({ "args": ["sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] });
    let mut streams = container.exec_with("e", bare, false).await.unwrap();
    assert_eq!(streams.out().await, format!("{}77\n", "0000000000000020\n".repeat(3)));
    let error =
        container.exec_with("f", process(&["x".repeat(100_000).as_str()]), false).await.err().unwrap();
    let text = error.message();
    assert!(text.contains("exec: \"xxx") && text.len() < 8192, "{} bytes: {:.80}", text.len(), text);
    let error = container
        .exec_with("g", json!({ "args": ["id"], "cwd": "/", "user": { "uid": u32::MAX, "gid": 0 } }), false)
        .await
        .err()
        .unwrap();
    assert!(error.message().contains("the user or group 4294967295 does not exist"), "{error}");
    container.end().await;
}

pub async fn exec_given_up(client: Client) {
    // Frozen behind the agent's back, the container holds the process at its first step.
    let mut container = sleeper(&client, "gone").await;
    let cgroup = ravelin_agent::paths::container_cgroup("gone");
    let processes = || std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().lines().count();
    std::fs::write(cgroup.join("cgroup.freeze"), "1").unwrap();
    let streams = Streams::open(false).await;
    let request = api::ExecRequest {
        container_id: "gone".into(),
        exec_id: "e".into(),
        process: process(&["sleep", "1000"]).to_string().into_bytes().into(),
        stdio: Some(streams.stdio),
    };
    container.client.exec(request).await.unwrap();
    let mut start = tonic::Request::new(container.name("e"));
    start.set_timeout(Duration::from_secs(1));
    container.client.start(start).await.unwrap_err();
    assert_eq!(container.wait("e").await.exit_status, 255);
    std::fs::write(cgroup.join("cgroup.freeze"), "0").unwrap();
    let begin = Instant::now();
    while processes() > 1 {
        assert!(begin.elapsed() < Duration::from_secs(10), "the process lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(container.exec("f", &["true"]).await.0, 0);
    container.end().await;
}
