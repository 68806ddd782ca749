//! The volumes that a kubelet mounts into containers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use ravelin_tests::{Host, Run, Volume, eventually};

use crate::start_failures::Full;

#[test]
fn config_maps_and_secrets_are_there_and_follow_their_updates() {
    let host = Host::shared();
    let pod = host.common_pod();
    let config = Volume::atomic(&pod, "configmap", "config", &[("colour", "blue"), ("nested/file", "deep")]);
    let secret = Volume::atomic(&pod, "secret", "secret", &[("password", "s3cret")]);
    let container = pod.container().idle().mount(&config.path, "/etc/config", true).mount(
        &secret.path,
        "/etc/secret",
        true,
    );
    let container = container.start();
    assert_eq!(
        container.exec_sh("cd /etc/config; cat colour nested/file /etc/secret/password; ls"),
        "bluedeeps3cretcolour\nnested"
    );
    // The kubelet gives a volume's directory to the pod's fsGroup.
    chown(&config.path, None, Some(2000)).expect("the volume's folder can be given away");
    fs::set_permissions(&config.path, fs::Permissions::from_mode(0o2770)).expect("the mode can be set");
    assert_ne!(container.exec(&["touch", "/etc/config/colour"]).code, 0, "a read-only volume is written");
    // A reader that keeps looking sees the old or the new, never nothing.
    let reader = container.exec_session(&[
        "sh",
        "-c",
        "cd /etc/config; echo start; until [ \"$(cat colour)\" = green ]; do [ -n \"$(cat colour)\" ] || echo EMPTY; done; cat nested/file",
    ]);
    reader.hear("start");
    config.replace(&[("colour", "green"), ("nested/file", "deeper")]);
    secret.replace(&[("password", "changed"), ("another", "key")]);
    reader.hear("deeper");
    assert!(!reader.heard().contains("EMPTY") && !reader.heard().contains("No such"), "{}", reader.heard());
    assert_eq!(container.exec_sh("stat -c '%a %u:%g' /etc/config"), "2770 0:2000");
    eventually("the secret's new key appears", || {
        let done = container.exec(&["sh", "-c", "cat /etc/secret/password /etc/secret/another"]);
        (done.text() == "changedkey").then_some(())
    });
}

#[test]
fn a_part_of_a_config_map_is_what_it_was_when_its_container_was_made() {
    let host = Host::shared();
    let pod = host.common_pod();
    let config = Volume::atomic(&pod, "configmap", "parts", &[("key", "one"), ("other", "x")]);
    let part = config.part(&pod, "parts", "key");
    let container = |part: &Volume| pod.container().idle().mount(&part.path, "/etc/key", true);
    let first = container(&part).start();
    assert_eq!(first.exec_sh("cat /etc/key"), "one");
    config.replace(&[("key", "two"), ("other", "x")]);
    // The kubelet binds it anew before it makes the container again.
    drop(part);
    let part = config.part(&pod, "parts", "key");
    let second = container(&part).start();
    assert_eq!(second.exec_sh("cat /etc/key"), "two");
}

#[test]
fn an_empty_dir_is_shared_by_the_containers_and_outlives_them() {
    let host = Host::shared();
    let pod = host.common_pod();
    let empty = Volume::empty_dir(&pod, "scratch");
    let writer = pod
        .container()
        .sh("echo first > /data/file; mkdir /data/folder; echo done")
        .mount(&empty.path, "/data", false)
        .start();
    assert_eq!(writer.output(), "done\n");
    writer.remove();
    let reader = pod.container().idle().mount(&empty.path, "/elsewhere", false).start();
    let other = pod.container().idle().mount(&empty.path, "/data", true).start();
    assert_eq!(reader.exec_sh("cat /elsewhere/file; echo second > /elsewhere/folder/more"), "first");
    assert_eq!(other.exec_sh("cat /data/folder/more"), "second");
    assert_ne!(other.exec(&["touch", "/data/file"]).code, 0, "a read-only mount is written");
    assert_eq!(reader.exec_sh("id -u; chmod 700 /elsewhere/folder; stat -c %a /elsewhere/folder"), "0\n700");
}

#[test]
fn what_a_pod_writes_waits_while_the_nodes_disk_is_full() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let folder = "/var/lib/ravelin";
    let _cramped = Full::make(folder, "64m");
    let pod = host.pod().start();
    let empty = Volume::empty_dir(&pod, "scratch");
    let container = pod.container().idle().mount(&empty.path, "/data", false).start();
    let filler = Path::new(folder).join("filler");
    fs::write(&filler, vec![0; 52 << 20]).expect("there is room for the filler");
    let write = "head -c 16777216 /dev/urandom > /words; cp /words /data/words; dd if=/dev/null of=/data/words conv=notrunc,fsync 2> /dev/null; echo $?";
    let mut writing = container.exec_session(&["sh", "-c", write]);
    eventually("the node's disk is full", || {
        let free = Run::new("df").args(["--output=avail", folder]).ok();
        free.ends_with(" 0").then_some(())
    });
    assert_eq!(writing.heard(), "", "an error is heard");
    fs::remove_file(&filler).expect("there is room again");
    assert_eq!(writing.finish(), 0);
    assert_eq!(writing.heard().trim(), "0");
    assert_eq!(container.exec_sh("cmp /words /data/words && echo same"), "same");
    // The pod is as it was: containers start, and can make sure that what they write is written.
    let next =
        pod.sh("echo more > /file && dd if=/dev/null of=/file conv=notrunc,fsync 2> /dev/null && cat /file");
    assert_eq!(next.output(), "more\n");
    drop(next);
    pod.remove();
    host.assert_clean();
}

#[test]
fn an_empty_dir_in_memory_is_a_tmpfs_of_its_size() {
    let host = Host::shared();
    let pod = host.common_pod();
    let memory = Volume::memory_dir(&pod, "cache", 8 << 20);
    let script = "echo kept > /cache/file; awk '$2 == \"/cache\" { print $3 }' /proc/mounts; df -k /cache | awk 'NR > 1 { print $2 }'
                  head -c 9000000 /dev/zero > /cache/big || echo full";
    let writer = pod.container().sh(script).mount(&memory.path, "/cache", false).start();
    assert_eq!(writer.output(), "tmpfs\n8192\nfull\n");
    let reader = pod.container().sh("cat /cache/file").mount(&memory.path, "/cache", false).start();
    assert_eq!(reader.output(), "kept\n");
}

#[test]
fn a_volume_of_the_image_is_writable_where_the_root_is_not_and_made_where_it_is_missing() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.common_pod();
    // containerd makes such a directory for each VOLUME of an image.
    let made = |name| format!("/var/lib/containerd/io.containerd.grpc.v1.cri/containers/e2e/volumes/{name}");
    let container = pod
        .container()
        .sh("touch /missing/deep/x /var/www/y && ls /missing/deep /var/www; touch /z 2> /dev/null || echo read-only")
        .security("readonly_rootfs", true)
        .mount(made("deep"), "/missing/deep", false)
        .mount(made("www"), "/var/www", false)
        .start();
    assert_eq!(container.output(), "/missing/deep:\nx\n\n/var/www:\nindex.html\ny\nread-only\n");
    // A device of the node is none of the pod's.
    let device = serde_json::json!([{ "container_path": "/dev/claim", "host_path": "/dev/null", "permissions": "rwm" }]);
    let with_device = pod.container().idle().set("/devices", device).create();
    let refused = with_device.try_start().expect_err("a device of the node is refused");
    assert!(
        refused.contains("devices of the node are not supported yet") && refused.contains("/dev/claim"),
        "{refused}"
    );
}

#[test]
fn the_termination_log_comes_back_to_the_node() {
    let host = Host::shared();
    let pod = host.common_pod();
    let file = pod.kubelet_folder().join("containers/main/0123abcd");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "").unwrap();
    // More than is carried back: the kubelet reads the end.
    let container = pod.container().sh(
        "head -c 100000 /dev/zero > /dev/termination-log; echo last words >> /dev/termination-log; exit 4",
    );
    let container = container.mount(&file, "/dev/termination-log", false).start();
    assert_eq!(container.ended().code, 4);
    // With runc it is the file that the container has written to.
    let length = if Host::handler().is_ravelin() { 64 << 10 } else { 100_011 };
    eventually("the last words arrive", || {
        let words = fs::read(&file).unwrap();
        (words.len() == length && words.ends_with(b"\0last words\n")).then_some(())
    });
}

#[test]
fn the_kubelets_hosts_file_is_mounted() {
    let host = Host::shared();
    let pod = host.common_pod();
    let file = pod.kubelet_folder().join("etc-hosts");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "127.0.0.1 localhost\n10.9.8.7 far.example\n").unwrap();
    let container =
        pod.container().sh("cat /etc/hosts; echo '10.1.1.1 added' >> /etc/hosts; tail -n 1 /etc/hosts");
    let container = container.mount(&file, "/etc/hosts", false).start();
    assert_eq!(container.output(), "127.0.0.1 localhost\n10.9.8.7 far.example\n10.1.1.1 added\n");
}

#[test]
fn what_a_pod_deletes_is_given_back_to_the_nodes_disk() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let pod = host.pod().start();
    let container = pod.container().idle().start();
    let free = || {
        let done = Run::new("df").args(["--output=avail", "-k", "/var/lib/ravelin"]).ok();
        done.lines().last().and_then(|line| line.trim().parse::<u64>().ok()).expect("df says what is free")
            >> 10
    };
    let before = free();
    container.exec_sh("head -c 300000000 /dev/zero > /big && sync");
    let full = free();
    assert!(full + 200 < before, "300 MB were written and {before} MiB of free space became {full}");
    container.exec_sh("rm /big && sync");
    eventually("the space is given back", || (free() + 100 > before).then_some(()));
}
