//! A pod with a user namespace of its own, in the guest that `run` boots for it.

use std::fs;

use ravelin_proto::agent as api;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::volumes::{empty_dir, file, link, pushed, with_binds};
use crate::container::{Container, sh};
use crate::host::{Client, FIRST_ID, IDS, process, spec, stream};

/// What the node has `net.ipv4.tcp_rmem` set to.
pub const TCP_RMEM: &str = "4096\t131072\t16777216";

/// The guest's first process that has these words in its command line, and its owner.
fn owner_of(words: &str) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let has_them = |process: &std::path::PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == words.as_bytes())
    };
    Some(fs::metadata(processes.into_iter().find(has_them)?).ok()?.uid())
}

pub async fn ids(client: Client) {
    let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; hostname; \
        stat -c '%u:%g %n' / /etc/top /proc/1; touch /etc/new; chown 1000:2000 /etc/new; stat -c '%u:%g' /etc/new; \
        rm /etc/top && echo removed; stat -c '%u %n' /dev/null /dev/pts";
    let (status, out, err) = sh(&client, "ids", script).await;
    let map = format!(" 0 {FIRST_ID} {IDS}\n");
    let expected = format!(
        "0\n{map}{map}pod-1\n0:0 /\n0:0 /etc/top\n0:0 /proc/1\n1000:2000\nremoved\n65534 /dev/null\n0 /dev/pts\n"
    );
    assert_eq!((status, out.as_str()), (0, expected.as_str()), "{err}");
    let mut users = spec(&["sleep", "4711"]);
    users["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
    let mut container = Container::create(&client, "owner", users).await.unwrap();
    container.start().await;
    assert_eq!(owner_of("4711"), Some(FIRST_ID + 7));
    let (_, out, _) =
        container.exec("e", &["sh", "-c", "id -u; stat -c %u /proc/1; echo x > /dev/stdout"]).await;
    assert_eq!(out, "0\n7\nx\n");
    container.end().await;
}

pub async fn root_is_nobody_outside(client: Client) {
    let mut all = spec(&[
        "sh",
        "-c",
        "mknod /x b 254 0 || echo mknod; mount -t tmpfs none /tmp && echo tmpfs; \
        mount -t ext4 /dev/vdb /tmp 2> /dev/null || echo disk; hostname other && hostname; \
        echo c > /proc/sysrq-trigger || echo sysrq; echo 1 > /proc/sys/vm/panic_on_oom || echo sysctl; \
        dmesg > /dev/null 2>&1 || echo dmesg; date -s 2001-01-01 > /dev/null 2>&1; [ $(date +%Y) != 2001 ] && echo date",
    ]);
    let capabilities: Vec<String> = ["SYS_ADMIN", "MKNOD", "SYSLOG", "SYS_TIME", "NET_ADMIN", "DAC_OVERRIDE"]
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
    for set in ["bounding", "effective", "permitted"] {
        all["process"]["capabilities"][set] = json!(capabilities);
    }
    all["linux"]["readonlyPaths"] = json!([]);
    let (_, out, err) = Container::create(&client, "all", all).await.unwrap().finish().await;
    assert_eq!(out, "mknod\ntmpfs\ndisk\nother\nsysrq\nsysctl\ndmesg\ndate\n", "{err}");
    // The name was the pod's own; it gets it back.
    let mut back = spec(&["hostname", "pod-1"]);
    back["process"]["capabilities"]["effective"] = json!(["CAP_SYS_ADMIN"]);
    back["process"]["capabilities"]["permitted"] = json!(["CAP_SYS_ADMIN"]);
    back["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]);
    assert_eq!(Container::create(&client, "back", back).await.unwrap().finish().await.0, 0);
}

pub async fn network(client: Client) {
    let mut admin = spec(&[
        "sh",
        "-c",
        "ip -o addr show | awk '{ print $2, $4 }'; ip link set eth0 mtu 1300 && echo set; \
        ip route | grep -c 203.0.113; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/tcp_rmem; ls /sys/class/net | tr '\\n' ' '",
    ]);
    for set in ["bounding", "effective", "permitted"] {
        admin["process"]["capabilities"][set] = json!(["CAP_NET_ADMIN"]);
    }
    let (_, out, err) = Container::create(&client, "net", admin).await.unwrap().finish().await;
    for words in ["lo 127.0.0.1/8", "eth0 10.9.8.7/24", "set\n1\n80\n", TCP_RMEM, "eth0 lo "] {
        assert!(out.contains(words), "{words} is not in {out} {err}");
    }
}

pub async fn dialled(mut client: Client) {
    let mut container =
        Container::create(&client, "server", spec(&["nc", "-l", "-p", "79", "-e", "echo", "hello"]))
            .await
            .unwrap();
    container.start().await;
    let (id, mut answer) = loop {
        let (id, answer) = stream().await;
        match client.dial(api::DialRequest { port: 79, stream: id }).await {
            Ok(_) => break (id, answer),
            Err(error) => assert_eq!(error.code(), Code::FailedPrecondition, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let mut text = String::new();
    answer.write_all(b"").await.unwrap();
    answer.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello\n", "{id}");
    container.end().await;
}

pub async fn limits(client: Client) {
    let mut limited = spec(&["sh", "-c", "ulimit -l; ulimit -H -l; ulimit -n; ulimit -H -n"]);
    limited["process"]["rlimits"] = json!([
        {"type": "RLIMIT_MEMLOCK", "soft": 1 << 30, "hard": 2_u64 << 30},
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}
    ]);
    let (_, out, err) = Container::create(&client, "limited", limited).await.unwrap().finish().await;
    assert_eq!(out, "1048576\n2097152\n100\n200\n", "{err}");
}

pub async fn own_cgroups(client: Client) {
    let script = "cd /sys/fs/cgroup; mkdir one && echo 0 > one/cgroup.procs && cat /proc/self/cgroup; echo 1 > memory.max || echo limit";
    let of = async |options: Value| {
        let mut spec = spec(&["sh", "-c", script]);
        spec["mounts"][5]["options"] = options;
        let (_, out, err) = Container::create(&client, "cgroups", spec).await.unwrap().finish().await;
        (out, err)
    };
    let (out, err) = of(json!(["nosuid", "noexec", "nodev", "relatime", "rw"])).await;
    assert_eq!(out, "0::/one\nlimit\n", "{err}");
    let (out, err) = of(json!(["nosuid", "noexec", "nodev", "relatime", "ro"])).await;
    assert_eq!(out, "limit\n", "{err}");
}

/// With the mappings that CRI gives mounts.
fn mapped(mut spec: Value) -> Value {
    let mapping = json!([{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]);
    for mount in spec["mounts"].as_array_mut().unwrap().iter_mut().skip(6) {
        mount["uidMappings"] = mapping.clone();
        mount["gidMappings"] = mapping.clone();
        mount["options"].as_array_mut().unwrap().push(json!("ridmap"));
    }
    spec
}

pub async fn volumes(mut client: Client) {
    let mut token = file("..1/token", "secret");
    (token.mode, token.uid, token.gid) = (0o640, 0, 3000);
    let config = api::PushVolumeRequest {
        volume: "users".into(),
        entries: vec![token, link("..data", "..1"), link("token", "..data/token")],
        single_file: false,
        writable: false,
    };
    client.push_volume(config).await.unwrap();
    let log = api::PushVolumeRequest {
        volume: "users-log".into(),
        single_file: true,
        writable: true,
        entries: vec![file("", "")],
    };
    client.push_volume(log).await.unwrap();
    let binds = ["/cfg", "/log", "/data", "/mem", "/dev/shm", "/sub", "/own"];
    let mounted = |script: &str| {
        let mut spec = mapped(with_binds(spec(&["sh", "-c", script]), &binds));
        spec["process"]["cwd"] = json!("/data/made/here");
        spec
    };
    let sources = |request: &mut api::CreateContainerRequest| {
        let own = api::mount_source::Source::OwnDirectory(api::Empty {});
        request.mounts = vec![
            pushed(6, "users", ""),
            pushed(7, "users-log", ""),
            empty_dir(8, "users", false, ""),
            empty_dir(9, "users-m", true, ""),
            api::MountSource { spec_index: 10, source: Some(api::mount_source::Source::Shm(api::Empty {})) },
            empty_dir(11, "users", false, "part"),
            api::MountSource { spec_index: 12, source: Some(own) },
        ];
    };
    let script = "stat -L -c '%a %u:%g %n' /cfg/token /log /data /mem /dev/shm /sub /own .; echo bye > /log; \
        for at in /data /mem /dev/shm /sub /own; do echo x > $at/f && chown 5:6 $at/f; stat -c '%u:%g' $at/f; done; \
        touch /cfg/x 2> /dev/null || echo ro";
    let container = Container::create_with(&client, "one", mounted(script), false, sources).await.unwrap();
    let (_, out, err) = container.finish().await;
    let expected = "640 0:3000 /cfg/token\n644 0:0 /log\n2770 0:2000 /data\n2770 0:2000 /mem\n1777 0:0 /dev/shm\n\
        2770 0:2000 /sub\n755 0:0 /own\n2755 0:2000 .\n5:6\n5:6\n5:6\n5:6\n5:6\nro\n";
    assert_eq!(out, expected, "{err}");
    let read = api::ReadVolumeRequest { volume: "users-log".into(), max_bytes: 4096, remove: true };
    assert_eq!(&client.read_volume(read).await.unwrap().into_inner().data[..], b"bye\n");
    // What lies on the disk has the containers' ids, and another container sees them.
    use std::os::unix::fs::MetadataExt;
    let kept = fs::metadata("/run/ravelin/scratch/emptydir/users/f").unwrap();
    assert_eq!((kept.uid(), kept.gid()), (5, 6));
    let binds = mapped(with_binds(spec(&["stat", "-c", "%u:%g", "/data/f"]), &["/data"]));
    let container = Container::create_with(&client, "two", binds, false, |request| {
        request.mounts = vec![empty_dir(6, "users", false, "")];
    });
    assert_eq!(container.await.unwrap().finish().await.1, "5:6\n");
}

pub async fn shared_pids(client: Client) {
    let shared =
        |request: &mut api::CreateContainerRequest| request.pid_namespace = api::NamespaceMode::Pod.into();
    let script = "ps -o pid,comm | grep -c pause; ls /proc/1/root/ > /dev/null 2>&1 || echo closed; id -u";
    let container =
        Container::create_with(&client, "pids", spec(&["sh", "-c", script]), false, shared).await.unwrap();
    let (_, out, err) = container.finish().await;
    assert_eq!(out, "1\nclosed\n0\n", "{err}");
}

pub async fn refused(client: Client) {
    let refusal = async |spec: Value, words: &str| {
        let error = Container::create(&client, "refused", spec).await.err().expect("it is refused");
        assert!(error.code() == Code::InvalidArgument && error.message().contains(words), "{error}");
    };
    let mut nobody = spec(&["true"]);
    nobody["process"]["user"] = json!({"uid": IDS, "gid": 0});
    refusal(nobody, "does not exist").await;
    for user in [json!({"uid": 0, "gid": IDS}), json!({"uid": 0, "gid": 0, "additionalGids": [5, IDS]})] {
        let mut nobody = spec(&["true"]);
        nobody["process"]["user"] = user;
        refusal(nobody, "the group 65536 does not exist").await;
    }
    let mut of_the_guest = spec(&["true"]);
    let namespaces = of_the_guest["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "user");
    refusal(of_the_guest, "both, or neither").await;
    let mut other = spec(&["true"]);
    other["linux"]["uidMappings"][0]["hostID"] = json!(FIRST_ID + 1);
    refusal(other, "another user namespace").await;
    let mut mount = mapped(with_binds(spec(&["true"]), &["/data"]));
    mount["mounts"][6]["uidMappings"][0]["size"] = json!(5);
    let error = Container::create_with(&client, "refused", mount, false, |request| {
        request.mounts = vec![empty_dir(6, "users", false, "")];
    });
    let error = error.await.err().expect("it is refused");
    assert!(error.message().contains("mapping"), "{error}");
    let mut container = Container::create(&client, "execs", spec(&["sleep", "1000"])).await.unwrap();
    container.start().await;
    let mut nobody = process(&["true"]);
    nobody["user"]["uid"] = json!(IDS);
    let error = container.exec_with("e", nobody, false).await.err().expect("it is refused");
    assert!(error.message().contains("does not exist"), "{error}");
    container.end().await;
}
