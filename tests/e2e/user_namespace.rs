//! Pods with a user namespace of their own (`hostUsers: false`).

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use ravelin_tests::{ContainerSpec, Containerd, Host, PATIENCE, Pod, PodSpec, Run, Session, Volume, until};
use serde_json::{Value, json};

use crate::report;

/// The pod's root on the node, as the kubelet gives pods ranges, and how many ids it has.
const FIRST: u32 = 720_896;
const IDS: u32 = 65_536;
const NAMESPACE: &str = "/linux/security_context/namespace_options/userns_options";

pub fn mapping() -> Value {
    json!([{ "host_id": FIRST, "container_id": 0, "length": IDS }])
}

/// What the kubelet asks for.
fn users() -> Value {
    json!({ "mode": 0, "uids": mapping(), "gids": mapping() })
}

/// The host, if its containerd has user namespaces for pods and Ravelin is under test: Debian's runc knows no idmapped mounts.
fn host() -> Option<Host> {
    if Host::containerd() == Containerd::V1_6 {
        println!("left out: containerd 1.6 does not know hostUsers");
        return None;
    }
    Host::shared_with_ravelin()
}

pub fn pod(host: &Host) -> PodSpec<'_> {
    host.pod().sized(1000, 512).set(NAMESPACE, users())
}

pub fn container<'p>(pod: &'p Pod<'p>) -> ContainerSpec<'p> {
    pod.container().set(NAMESPACE, users())
}

#[test]
fn the_pods_root_is_root_in_the_pod_and_nobody_beyond() {
    let Some(host) = host() else { return };
    let pod = pod(&host).start();
    let script = "echo id=$(id -u); echo map=$(cat /proc/self/uid_map); echo groups=$(cat /proc/self/gid_map)
        echo name=$(hostname); echo shell=$(stat -c %u:%g /bin/sh) root=$(stat -c %u:%g /)
        touch /new && chown 7:8 /new && echo new=$(stat -c %u:%g /new)
        echo null=$(stat -c %u /dev/null); echo host=$(stat -c %u /proc/sys)
        mkdir /m && mount -t tmpfs none /m && echo mount=yes
        ip link set lo mtu 60000 && echo link=yes
        echo f > /proc/sysrq-trigger && echo sysrq=yes
        date -s 2001-01-01 > /dev/null 2>&1; echo year=$(date +%Y)
        mknod /disk b 254 0 && echo disk=yes
        nc -l -p 80 & until nc 127.0.0.1 80 < /dev/null; do sleep 1; done; echo port=yes; exec sleep 9999";
    let one = container(&pod).sh(script).start();
    one.says("port=yes");
    let said = report(&one.logs().out());
    for (name, value) in [
        ("id", "0"),
        ("map", &format!("0 {FIRST} {IDS}")),
        ("groups", &format!("0 {FIRST} {IDS}")),
        ("shell", "0:0 root=0:0"),
        ("new", "7:8"),
        ("null", "65534"),
        ("host", "65534"),
        ("year", "2026"),
    ] {
        assert_eq!(said[name].trim(), value, "{name}: {said:?}");
    }
    assert!(!["sysrq", "disk", "mount", "link"].iter().any(|name| said.contains_key(*name)), "{said:?}");
    let exec =
        report(&one.exec_sh("echo map=$(cat /proc/self/uid_map) id=$(id -u) one=$(stat -c %u /proc/1)"));
    assert_eq!(exec["map"].trim(), format!("0 {FIRST} {IDS} id=0 one=0"));
}

#[test]
fn volumes_have_the_owners_that_the_kubelet_gave_them() {
    let Some(host) = host() else { return };
    let pod = pod(&host).start();
    let config = Volume::atomic(&pod, "configmap", "config", &[("key", "value")]);
    Run::new("chown").args(["-R", "0:2000"]).arg(&config.path).ok();
    let data = Volume::empty_dir(&pod, "data");
    Run::new("chgrp").arg("2000").arg(&data.path).ok();
    Run::new("chmod").arg("2770").arg(&data.path).ok();
    let mount = |host_path: &Path, container_path: &str| {
        json!({ "host_path": host_path, "container_path": container_path,
                "uidMappings": mapping(), "gidMappings": mapping() })
    };
    let mounts = json!([mount(&config.path, "/config"), mount(&data.path, "/data")]);
    let mounted = || {
        let groups = "/linux/security_context/supplemental_groups";
        container(&pod).set("/mounts", mounts.clone()).set(groups, json!([2000]))
    };
    let script = "echo config=$(stat -L -c %u:%g /config/key):$(cat /config/key); echo data=$(stat -c %a:%u:%g /data)
        echo hosts=$(stat -c %u /etc/hosts); echo shm=$(stat -c %a:%u /dev/shm); (echo > /dev/shm/x) && echo shm_file=yes
        (echo > /data/file) && echo file=$(stat -c %u:%g /data/file); echo groups=$(id -G)";
    let user = json!({ "value": 1000 });
    let one = mounted().security("run_as_user", user).security("run_as_group", json!({ "value": 1000 }));
    let said = report(&one.sh(script).start().output());
    for (name, value) in [
        ("config", "0:2000:value"),
        ("data", "2770:0:2000"),
        ("hosts", "0"),
        ("shm", "1777:0"),
        ("shm_file", "yes"),
        ("file", "1000:2000"),
        // The image's own list adds one.
        ("groups", "1000 2000 50000"),
    ] {
        assert_eq!(said[name].trim(), value, "{name}: {said:?}");
    }
    let two = mounted().sh("echo file=$(stat -c %u:%g /data/file)").start();
    assert_eq!(report(&two.output())["file"], "1000:2000");
}

#[test]
fn such_a_pod_can_be_reached_and_its_containers_share_processes() {
    let Some(host) = host() else { return };
    let pod = pod(&host).with_shared_pids().start();
    let server = container(&pod)
        .set("/linux/security_context/namespace_options/pid", 0)
        .sh("echo ready; while :; do echo hello | nc -l -p 80; done")
        .start();
    server.says("ready");
    let two = container(&pod)
        .set("/linux/security_context/namespace_options/pid", 0)
        .sh("ps -o user,comm | grep -q 'root.*sleep\\|root.*nc' && echo seen; until nc 127.0.0.1 80 < /dev/null; do sleep 1; done")
        .start();
    assert_eq!(two.output(), "seen\nhello\n");
    let forward = Session::pipes(&Run::crictl().args(["port-forward", &pod.id, "0:80"]));
    forward.hear(" -> 80");
    let said = forward.heard();
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
    let port: u16 = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port in {said}"));
    // The server is away for a moment after each.
    let hello = |address: SocketAddr| {
        let heard = until(PATIENCE, || {
            let mut text = String::new();
            let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
            (&stream).read_to_string(&mut text).ok()?;
            (text == "hello\n").then_some(())
        });
        assert!(heard.is_some(), "nothing is heard from {address}");
    };
    hello(([127, 0, 0, 1], port).into());
    for address in pod.addresses() {
        hello((address, 80).into());
    }
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let Some(host) = host() else { return };
    let from_one = json!([{ "host_id": FIRST, "container_id": 1, "length": IDS }]);
    let several = json!([{ "host_id": FIRST, "container_id": 0, "length": 5 }, { "host_id": 900_000, "container_id": 5, "length": 5 }]);
    for bad in [from_one, several, json!([])] {
        let users = json!({ "mode": 0, "uids": bad.clone(), "gids": bad });
        host.pod().sized(1000, 512).set(NAMESPACE, users).try_start().map(drop).unwrap_err();
    }
    let pod = pod(&host).start();
    let nobody = container(&pod).security("run_as_user", json!({ "value": IDS })).sh("true").create();
    nobody.try_start().unwrap_err();
}
