//! Volumes.

use std::time::Duration;

use ravelin_proto::agent as api;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tonic::Code;

use crate::container::Container;
use crate::host::{Client, spec};

pub fn file(path: &str, text: &'static str) -> api::VolumeEntry {
    let content = Some(api::volume_entry::Content::File(text.as_bytes().into()));
    api::VolumeEntry { path: path.into(), mode: 0o644, uid: 0, gid: 0, content }
}

pub fn link(path: &str, to: &str) -> api::VolumeEntry {
    let content = Some(api::volume_entry::Content::Symlink(to.into()));
    api::VolumeEntry { path: path.into(), mode: 0o777, uid: 0, gid: 0, content }
}

pub fn pushed(spec_index: u32, volume: &str, sub_path: &str) -> api::MountSource {
    let pushed = api::PushedVolume { volume: volume.into(), sub_path: sub_path.into() };
    api::MountSource { spec_index, source: Some(api::mount_source::Source::Pushed(pushed)) }
}

pub fn empty_dir(spec_index: u32, name: &str, memory: bool, sub_path: &str) -> api::MountSource {
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

pub fn with_binds(mut spec: Value, binds: &[&str]) -> Value {
    for bind in binds {
        let mount = json!({"destination": bind, "type": "bind", "source": "", "options": ["rbind", "rprivate", "rw"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    spec
}

pub async fn volumes(mut client: Client) {
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
    let read = api::ReadVolumeRequest { volume: "log".into(), max_bytes: 4096, remove: true };
    assert_eq!(&client.read_volume(read.clone()).await.unwrap().into_inner().data[..], b"bye\n");
    // Nothing of it stays in the guest.
    assert_eq!(client.read_volume(read).await.unwrap_err().code(), Code::NotFound);
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

pub async fn subpaths(mut client: Client) {
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
    // What the kubelet makes of a subPath has the mode of its volume, which it makes with 0777.
    let binds = with_binds(spec(&["sh", "-c", "cd /whole; stat -c %a a a/b"]), &["/deep", "/whole"]);
    let plain = |spec_index, sub_path: &str| {
        let dir = api::EmptyDir {
            name: "plain".into(),
            mode: 0o777,
            sub_path: sub_path.into(),
            ..Default::default()
        };
        api::MountSource { spec_index, source: Some(api::mount_source::Source::EmptyDir(dir)) }
    };
    let container = Container::create_with(&client, "sub", binds, false, |request| {
        request.mounts = vec![plain(6, "a/b"), plain(7, "")];
    })
    .await
    .unwrap();
    assert_eq!(container.finish().await.1, "777\n777\n");
    // A link a container left leads to the volume's own "etc", which does not exist, not to the guest's.
    let again = with_binds(spec(&["sh", "-c", "ls -A /deep | wc -l"]), &["/deep"]);
    let container = Container::create_with(&client, "sub", again, false, |request| {
        request.mounts = vec![empty_dir(6, "s", false, "a/b/out/x")];
    })
    .await;
    assert!(container.is_err());
}

pub async fn links(mut client: Client) {
    let token = api::PushVolumeRequest {
        volume: "token".into(),
        entries: vec![file("..1/token", "secret"), link("..data", "..1"), link("token", "..data/token")],
        single_file: false,
        writable: false,
    };
    client.push_volume(token).await.unwrap();
    let resolver = api::PushVolumeRequest {
        volume: "resolver".into(),
        entries: vec![file("", "nameserver 1.2.3.4\n")],
        single_file: true,
        writable: false,
    };
    client.push_volume(resolver).await.unwrap();
    // The image has neither what /var/run leads to nor what /etc/resolv.conf does.
    let script = "cat /run/secrets/pod/token /etc/resolv.conf; readlink /var/run; stat -c %a /tmp; df -k /tmp | tail -n 1";
    let mut linked = with_binds(spec(&["sh", "-c", script]), &["/var/run/secrets/pod", "/etc/resolv.conf"]);
    let tmpfs = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]});
    linked["mounts"].as_array_mut().unwrap().push(tmpfs);
    let mounts = vec![pushed(6, "token", ""), pushed(7, "resolver", "")];
    let container =
        Container::create_with(&client, "links", linked, false, |request| request.mounts = mounts.clone());
    let (status, out, err) = container.await.unwrap().finish().await;
    assert!(
        out.starts_with("secretnameserver 1.2.3.4\n/run\n755\n") && out.contains(" 64 "),
        "{status} {out} {err}"
    );
    for (at, why) in [("/etc/top/below", "not a directory"), ("/proc/self/attr", "inside /proc")] {
        let refused = with_binds(spec(&["true"]), &["/var/run/secrets/pod", at]);
        let refused = Container::create_with(&client, "links", refused, false, |request| {
            request.mounts = mounts.clone();
        });
        let refused = refused.await.err().expect("it is refused");
        assert!(refused.message().contains(at) && refused.message().contains(why), "{refused}");
    }
}

/// A container that may mount, or at least see others' mounts: its volume at `/data` has this propagation.
async fn mounter(client: &Client, id: &str, propagation: &str, sub_path: &str) -> Container {
    let mut mounter = with_binds(spec(&["sleep", "1000"]), &["/data"]);
    mounter["mounts"][6]["options"] = json!(["rbind", propagation, "rw"]);
    if propagation != "rprivate" {
        mounter["linux"]["rootfsPropagation"] = json!(propagation);
    }
    for set in ["bounding", "effective", "permitted"] {
        mounter["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    let mounts = vec![empty_dir(6, "spread", false, sub_path)];
    let container = Container::create_with(client, id, mounter, false, |request| request.mounts = mounts);
    let mut container = container.await.unwrap();
    container.start().await;
    container
}

/// Runs a script as a process that may mount.
async fn as_root(container: &mut Container, script: &str) -> String {
    let mut process = crate::host::process(&["sh", "-c", script]);
    for set in ["bounding", "effective", "permitted"] {
        process["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    let mut streams = container.exec_with("m", process, false).await.unwrap();
    let said = streams.out().await + &streams.err().await;
    container.wait("m").await;
    let name = container.name("m");
    container.client.delete(name).await.unwrap();
    said
}

pub async fn propagation(client: Client) {
    let mut alone = mounter(&client, "pr-a", "rprivate", "").await;
    let mut both = mounter(&client, "pr-b", "rshared", "").await;
    let mut sees = mounter(&client, "pr-c", "rslave", "").await;
    let mut part = mounter(&client, "pr-d", "rslave", "deep/er").await;
    let see = "cat /data/sub/file";
    assert_eq!(
        as_root(&mut both, "mkdir /data/sub; mount -t tmpfs x /data/sub && echo one > /data/sub/file").await,
        ""
    );
    assert_eq!(as_root(&mut sees, see).await, "one\n");
    assert!(as_root(&mut alone, see).await.contains("No such file"));
    // What one that only takes mounts in makes stays its own.
    assert_eq!(
        as_root(&mut sees, "mkdir /data/own; mount -t tmpfs x /data/own && touch /data/own/file").await,
        ""
    );
    assert!(as_root(&mut both, "cat /data/own/file").await.contains("No such file"));
    let deep = "mkdir /data/deep/er/x; mount -t tmpfs x /data/deep/er/x && touch /data/deep/er/x/file";
    assert_eq!(as_root(&mut both, deep).await, "");
    assert_eq!(as_root(&mut part, "ls /data/x").await, "file\n");
    // One that comes later finds what is mounted, and the end of the one that mounted takes nothing away.
    let mut late = mounter(&client, "pr-e", "rslave", "").await;
    assert_eq!(as_root(&mut late, see).await, "one\n");
    // Also what is mounted over the volume's own root, which covers the volume's mount with everybody.
    let over = "echo kept > /data/kept; mount -t tmpfs x /data && echo over > /data/over";
    assert_eq!(as_root(&mut both, over).await, "");
    both.end().await;
    assert_eq!(
        as_root(&mut sees, "cat /data/over && umount /data && cat /data/kept /data/sub/file").await,
        "over\nkept\none\n"
    );
    assert_eq!(as_root(&mut sees, see).await, "one\n");
    late.end().await;
    assert_eq!(as_root(&mut sees, see).await, "one\n");
    for mut container in [alone, sees, part] {
        container.end().await;
    }
}

pub async fn at_once(client: Client) {
    // All make the same volume; each must find it ready.
    let script = "stat -c '%a %g' /data; df -k /data | tail -1 | grep -c ' 1024 '";
    let all = (0..4).map(|at| {
        let client = client.clone();
        async move {
            let binds = with_binds(spec(&["sh", "-c", script]), &["/data"]);
            let mounts = vec![empty_dir(6, "together", true, "")];
            let id = format!("once-{at}");
            let container =
                Container::create_with(&client, &id, binds, false, |request| request.mounts = mounts).await;
            container.unwrap().finish().await.1
        }
    });
    for said in futures_util::future::join_all(all).await {
        assert_eq!(said, "2770 2000\n1\n");
    }
}

/// What containers write into their single files has an end, and takes nothing from what the host pushes.
pub async fn room(mut client: Client) {
    let single = |volume: &str, writable| api::PushVolumeRequest {
        volume: volume.into(),
        entries: vec![file("", "short\n")],
        single_file: true,
        writable,
    };
    client.push_volume(single("room-log", true)).await.unwrap();
    client.push_volume(single("room-file", false)).await.unwrap();
    // More than there is memory for single files.
    let fill =
        |path| format!("dd if=/dev/zero of={path} bs=1M count=24 2>/dev/null; echo $?; stat -c %s {path}; ");
    let script = fill("/dev/termlog") + &fill("/etc/hosts") + "read line; cat /etc/hosts";
    let binds = with_binds(spec(&["sh", "-c", &script]), &["/dev/termlog", "/etc/hosts"]);
    let mounts = vec![pushed(6, "room-log", ""), pushed(7, "room-file", "")];
    let container = Container::create_with(&client, "room", binds, false, |request| request.mounts = mounts);
    let mut container = container.await.unwrap();
    container.start().await;
    let mut lines = BufReader::new(&mut container.streams.stdout).lines();
    let mut numbers = Vec::new();
    while numbers.len() < 4 {
        numbers.push(lines.next_line().await.unwrap().unwrap().parse::<u64>().unwrap());
    }
    // The log lies on the disk and took nothing from the file, which is as large as it may be.
    assert_eq!(numbers[..3], [0, 24 << 20, 1]);
    assert!((12 << 20..=16 << 20).contains(&numbers[3]), "{numbers:?}");
    let tree = api::PushVolumeRequest {
        volume: "room-tree".into(),
        entries: vec![file("key", "value")],
        ..Default::default()
    };
    client.push_volume(tree).await.unwrap();
    client.push_volume(single("room-file", false)).await.unwrap();
    container.streams.stdin.write_all(b"\n").await.unwrap();
    assert_eq!(container.streams.out().await, "short\n");
    let read = api::ReadVolumeRequest { volume: "room-log".into(), max_bytes: 4, remove: true };
    assert_eq!(client.read_volume(read).await.unwrap().into_inner().data[..], [0; 4]);
    container.end().await;
}

/// A container that may mount takes the read-only off what the agent pushes, and puts links there: the agent follows none.
pub async fn made_writable(mut client: Client) {
    let victim = std::path::Path::new("/run/victim");
    std::fs::create_dir(victim).unwrap();
    std::fs::write(victim.join("file"), "kept").unwrap();
    let config = |version: &'static str| api::PushVolumeRequest {
        volume: "rw".into(),
        entries: vec![file("below/key", version), file("other", version)],
        single_file: false,
        writable: false,
    };
    client.push_volume(config("one")).await.unwrap();
    let script = "mount -o remount,bind,rw /cfg && cd /cfg && rm -r below other && ln -s /run/victim below && \
        ln -s /run/victim/file other && ln -s /run/victim ..writing && mkdir -p more/more && ln -s /run/victim more/more/x && \
        echo done; exec sleep 1000";
    let mut mounter = with_binds(spec(&["sh", "-c", script]), &["/cfg"]);
    for set in ["bounding", "effective", "permitted"] {
        mounter["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    let mounts = vec![pushed(6, "rw", "")];
    let container = Container::create_with(&client, "rw", mounter, false, |request| request.mounts = mounts);
    let mut container = container.await.unwrap();
    container.start().await;
    let mut lines = BufReader::new(&mut container.streams.stdout).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("done"));
    client.push_volume(config("two")).await.unwrap();
    let seen = container.exec("e", &["sh", "-c", "cd /cfg; cat below/key other; ls -A"]).await;
    assert_eq!(seen, (0, "twotwobelow\nother\n".to_owned(), String::new()));
    assert_eq!(std::fs::read_to_string(victim.join("file")).unwrap(), "kept");
    assert_eq!(std::fs::read_dir(victim).unwrap().count(), 1);
    container.end().await;
}
