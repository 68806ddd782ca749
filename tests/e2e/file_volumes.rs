//! Volumes that the kubelet has mounted for a pod: a directory of the node as a CSI plugin lays it out. What is not about Ravelin runs
//! with runc on the same directory too.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use ravelin_tests::{Container, ContainerSpec, Host, Pod, Run, Volume, eventually, images};

use crate::assert_says;
use crate::start_failures::configured;

/// What Fargate mounts.
const EFS: &str = "efs.csi.aws.com";

fn debian<'p>(pod: &'p Pod<'p>, volume: &Volume) -> ContainerSpec<'p> {
    pod.container().image(images::DEBIAN).idle().mount(&volume.path, "/data", false)
}

fn python(container: &Container<'_>, program: &str) -> String {
    let done = container.exec(&["python3", "-c", program]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    done.text().to_owned()
}

#[test]
fn a_file_volume_is_the_nodes_directory_from_both_sides() {
    let host = Host::shared();
    let pod = host.common_pod();
    let volume = Volume::csi(&pod, "pvc-both", EFS);
    fs::write(volume.path.join("old"), "of the node").unwrap();
    let container = debian(&pod, &volume).start();
    assert_eq!(
        container.exec_sh("cat /data/old; mkdir -p /data/a/b; echo new > /data/a/b/file"),
        "of the node"
    );
    assert_eq!(fs::read_to_string(volume.path.join("a/b/file")).unwrap(), "new\n");
    // A MiB each way, by its checksum.
    container.exec_sh("head -c 1048576 /dev/urandom > /data/from-guest");
    let sum = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let here = |name: &str| sum(&Run::new("sha256sum").arg(volume.path.join(name)).ok());
    assert_eq!(sum(&container.exec_sh("sha256sum /data/from-guest")), here("from-guest"));
    Run::new("sh")
        .args(["-c", "head -c 1048576 /dev/urandom > \"$0\""])
        .arg(volume.path.join("from-node"))
        .ok();
    assert_eq!(sum(&container.exec_sh("sha256sum /data/from-node")), here("from-node"));
    // What the node changes is seen within two seconds, by who looks all the time. The guest has the node's clock.
    let look = "
import os, time
print('looking', flush=True)
while open('/data/old').read() != 'changed': time.sleep(0.01)
print('after', time.time() - os.stat('/data/old').st_mtime, flush=True)";
    let mut looking = container.exec_session(&["python3", "-c", look]);
    looking.hear("looking");
    fs::write(volume.path.join("new"), "changed").unwrap();
    fs::rename(volume.path.join("new"), volume.path.join("old")).unwrap();
    looking.hear("after");
    assert_eq!(looking.finish(), 0);
    let heard = looking.heard();
    let after: f64 = heard.split("after ").nth(1).and_then(|text| text.trim().parse().ok()).unwrap();
    assert!(after < 2.0, "a change is seen after {after} s");
}

#[test]
fn files_behave_in_a_file_volume_as_on_the_node() {
    let host = Host::shared();
    let pod = host.common_pod();
    let volume = Volume::csi(&pod, "pvc-behave", EFS);
    let container = debian(&pod, &volume).start();
    let program = r#"
import os
os.chdir("/data")
def put(name, text):
    with open(name, "w") as file: file.write(text)
put("one", "one"); put("two", "two")
opened = open("two")
os.rename("one", "two")
print("rename over:", opened.read(), open("two").read())
os.unlink("two")
print("unlinked:", os.fstat(opened.fileno()).st_nlink, os.path.exists("two"))
put("here", "x"); os.link("here", "there"); os.symlink("here", "link")
print("links:", os.stat("there").st_nlink, os.readlink("link"), open("link").read())
fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
os.pwrite(fd, b"abc", 4096)
print("written:", os.pread(fd, 3, 4096))
tmp = os.open(".", os.O_TMPFILE | os.O_RDWR)
os.write(tmp, b"nameless")
print("nameless:", os.pread(tmp, 8, 0), os.fstat(tmp).st_nlink)
os.fsync(fd)
os.mkdir("full")
for number in range(1000): put("full/%d" % number, "")
print("entries:", len(os.listdir("full")))
name = "n" * 255
put(name, "long"); print("long:", open(name).read())
"#;
    let expected = "rename over: two one\nunlinked: 0 False\nlinks: 2 here x\nwritten: b'abc'\nnameless: b'nameless' 0\nentries: 1000\nlong: long";
    assert_eq!(python(&container, program), expected);
    assert_eq!(&fs::read(volume.path.join("sparse")).unwrap()[4096..4099], b"abc");
}

#[test]
fn containers_of_a_pod_lock_and_append_together() {
    let host = Host::shared();
    let pod = host.common_pod();
    let volume = Volume::csi(&pod, "pvc-together", EFS);
    let (one, two) = (debian(&pod, &volume).start(), debian(&pod, &volume).start());
    one.exec_sh("touch /data/lock");
    let mut holder = one.exec_session(&["flock", "/data/lock", "sh", "-c", "echo held; read line"]);
    holder.hear("held");
    let attempt = || two.exec(&["flock", "--nonblock", "/data/lock", "true"]).code;
    assert_eq!(attempt(), 1, "two hold one lock");
    holder.send("\n");
    assert_eq!(holder.finish(), 0);
    assert_eq!(attempt(), 0);
    let append = "i=0; while [ $i -lt 200 ]; do echo 0123456789 >> /data/log; i=$((i + 1)); done";
    let mut other = two.exec_session(&["sh", "-c", append]);
    one.exec_sh(append);
    assert_eq!(other.finish(), 0);
    let log = fs::read_to_string(volume.path.join("log")).unwrap();
    assert_eq!(log.lines().filter(|line| *line == "0123456789").count(), 400);
    assert_eq!(log.lines().count(), 400);
}

#[test]
fn owners_and_modes_of_a_file_volume_are_the_nodes() {
    let host = Host::shared();
    let pod = host.common_pod();
    let volume = Volume::csi(&pod, "pvc-owners", EFS);
    // As the kubelet sets an fsGroup.
    chown(&volume.path, None, Some(2000)).unwrap();
    fs::set_permissions(&volume.path, fs::Permissions::from_mode(0o2770)).unwrap();
    let user = serde_json::json!({ "value": 1000 });
    let container = debian(&pod, &volume)
        .security("run_as_user", user.clone())
        .security("run_as_group", user)
        .security("supplemental_groups", serde_json::json!([2000]))
        .start();
    assert_eq!(
        container.exec_sh("touch /data/file; chmod 640 /data/file; stat -c '%u:%g %a' /data/file"),
        "1000:2000 640"
    );
    let made = fs::metadata(volume.path.join("file")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 2000, 0o640));
    fs::write(volume.path.join("secret"), "of root").unwrap();
    fs::set_permissions(volume.path.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(container.exec(&["cat", "/data/secret"]).code, 0, "a file of root's is read");
}

#[test]
fn nothing_of_a_file_volume_leads_out_of_it() {
    let host = Host::shared();
    let pod = host.common_pod();
    let volume = Volume::csi(&pod, "pvc-inside", EFS);
    fs::write("/var/lib/kubelet/e2e-secret", "of the node").unwrap();
    symlink("/var/lib/kubelet/e2e-secret", volume.path.join("absolute")).unwrap();
    symlink("../../../../../../e2e-secret", volume.path.join("relative")).unwrap();
    symlink("/etc/hostname", volume.path.join("containers")).unwrap();
    fs::create_dir(volume.path.join("sub")).unwrap();
    symlink("/var/lib/kubelet", volume.path.join("sub/out")).unwrap();
    let container = debian(&pod, &volume).start();
    for name in ["absolute", "relative", "sub/out/e2e-secret", "../e2e-secret"] {
        assert_ne!(container.exec(&["cat", &format!("/data/{name}")]).code, 0, "{name} is read");
    }
    // A link means what it means in the container.
    assert_eq!(container.exec_sh("cat /data/containers"), container.exec_sh("cat /etc/hostname"));
    fs::remove_file("/var/lib/kubelet/e2e-secret").unwrap();
}

#[test]
fn a_file_volume_is_mounted_read_only_and_by_parts() {
    let host = Host::shared();
    let pod = host.common_pod();
    let volume = Volume::csi(&pod, "pvc-parts", EFS);
    fs::create_dir_all(volume.path.join("deep/part")).unwrap();
    fs::write(volume.path.join("deep/part/file"), "part").unwrap();
    fs::write(volume.path.join("whole"), "whole").unwrap();
    let part = volume.part(&pod, "pvc-parts", "deep/part");
    let container = pod
        .container()
        .image(images::DEBIAN)
        .idle()
        .mount(&volume.path, "/whole", true)
        .mount(&part.path, "/part", false)
        .start();
    assert_eq!(container.exec_sh("cat /whole/whole /part/file; ls /part"), "wholepartfile");
    assert_ne!(container.exec(&["touch", "/whole/new"]).code, 0, "a read-only volume is written");
    container.exec_sh("echo more > /part/new");
    assert_eq!(fs::read_to_string(volume.path.join("deep/part/new")).unwrap(), "more\n");
    // What one mount writes the other has at once: they are one file system.
    assert_eq!(container.exec_sh("cat /whole/deep/part/new"), "more");
}

#[test]
fn only_a_pod_with_file_volumes_has_a_file_server_and_it_goes_with_the_pod() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let pod = host.pod().start();
    let empty = Volume::empty_dir(&pod, "scratch");
    let _plain = pod.container().idle().mount(&empty.path, "/data", false).start();
    assert_eq!(pod.process("ravelin-fs"), None);
    let volume = Volume::csi(&pod, "pvc-server", EFS);
    let container = debian(&pod, &volume).start();
    let server = pod.process("ravelin-fs").expect("a file server serves the pod");
    // Another volume, and another container, have the same.
    let second = Volume::csi(&pod, "pvc-second", EFS);
    let other = debian(&pod, &second).start();
    assert_eq!(host.processes("ravelin-fs"), [server]);
    assert_eq!(other.exec_sh("ls -A /data; stat -f -c %T /data"), "fuseblk");
    let of = |pid: &str, space: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
    for space in ["ipc", "mnt", "net", "pid", "uts"] {
        assert_ne!(of(&server.to_string(), space), of("self", space), "{space}");
    }
    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod");
    let cgroup = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroup(server), cgroup(machine));
    drop((container, other));
    pod.remove();
    assert_eq!(host.processes("ravelin-fs"), [0_u32; 0]);
    host.assert_clean();
}

#[test]
fn a_file_server_that_is_killed_leaves_io_errors_and_a_pod_that_can_be_removed() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let pod = host.pod().start();
    let volume = Volume::csi(&pod, "pvc-killed", EFS);
    let container = debian(&pod, &volume).start();
    container.exec_sh("echo kept > /data/file; sync /data/file");
    let server = pod.process("ravelin-fs").expect("a file server serves the pod");
    Run::new("kill").args(["-KILL", &server.to_string()]).ok();
    eventually("the file server is gone", || pod.process("ravelin-fs").is_none().then_some(()));
    let failed = container.exec(&["sh", "-c", "cat /data/file; echo more > /data/other"]);
    assert_says(&failed.stderr, "Input/output error");
    // The rest of the pod goes on.
    assert_eq!(container.exec_sh("echo alive"), "alive");
    let error = debian(&pod, &volume).create().try_start().expect_err("there is no file server any more");
    assert_says(&error, "the pod's file server has ended (killed by signal 9)");
    assert_eq!(fs::read_to_string(volume.path.join("file")).unwrap(), "kept\n");
    drop(container);
    pod.remove();
    host.assert_clean();
}

#[test]
fn a_shim_that_is_killed_leaves_no_file_server() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let pod = host.pod().start();
    let volume = Volume::csi(&pod, "pvc-shim", EFS);
    let container = debian(&pod, &volume).start();
    let shim = pod.process("containerd-shim-ravelin-v2").expect("a shim serves the pod");
    Run::new("kill").args(["-KILL", &shim.to_string()]).ok();
    eventually("the file server ends", || pod.process("ravelin-fs").is_none().then_some(()));
    // containerd removes nothing of whose end it has not heard.
    container.ended();
    eventually("the pod is seen to have ended", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    pod.remove();
    host.assert_clean();
}

#[test]
fn volumes_that_the_policy_does_not_grant_are_refused_word_for_word() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.common_pod();
    let refused = |volume: &Volume| match debian(&pod, volume).try_create() {
        Ok(container) => container.try_start().expect_err("the container is refused"),
        Err(error) => error,
    };
    let words = "Pod not supported on Fargate: volumes not supported: ";
    assert_says(
        &refused(&Volume::csi(&pod, "pvc-ebs", "ebs.csi.aws.com")),
        &format!(
            "{words}pvc-ebs not supported because: PVC bound to invalid PV pvc-ebs with CSI Driver: ebs.csi.aws.com (csi_drivers in [policy] of ravelin.toml lists the drivers whose volumes are mounted)"
        ),
    );
    assert_says(
        &refused(&Volume::of_plugin(&pod, "nfs", "share")),
        &format!(
            "{words}share not supported because: volumes of kubernetes.io/nfs are not supported in mode fargate"
        ),
    );
}

#[test]
fn the_guests_mode_mounts_paths_of_the_host_that_are_listed_and_all_that_the_kubelet_mounts() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let folder = Path::new("/var/e2e-host-paths");
    fs::create_dir_all(folder.join("rw")).unwrap();
    fs::write(folder.join("file"), "of the node").unwrap();
    let policy =
        format!("[policy]\nmode = \"guest\"\nhost_paths = [\"{0}\", \"{0}/rw:rw\"]\n", folder.display());
    let pod = configured(&policy, || host.pod().start());
    let share = Volume::of_plugin(&pod, "nfs", "share");
    let container = pod
        .container()
        .image(images::DEBIAN)
        .idle()
        .mount(folder, "/host", false)
        .mount(folder.join("rw"), "/rw", false)
        .mount(&share.path, "/share", false)
        .start();
    assert_eq!(
        container.exec_sh("cat /host/file; echo more > /rw/new; echo more > /share/new"),
        "of the node"
    );
    let denied = container.exec(&["touch", "/host/new"]);
    assert_says(&denied.stderr, "Read-only file system");
    assert_eq!(fs::read_to_string(folder.join("rw/new")).unwrap(), "more\n");
    let listed = pod.container().idle().mount("/etc", "/etc-of-the-host", true).create();
    let error = listed.try_start().expect_err("/etc is not listed");
    assert_says(
        &error,
        "/etc is of an unsupported volume Type (host_paths in [policy] of ravelin.toml lists",
    );
    drop(container);
    pod.remove();
    fs::remove_dir_all(folder).unwrap();
    host.assert_clean();
}
