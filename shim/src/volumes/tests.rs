use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use oci_spec::runtime::Spec;
use ravelin_policy::{HostPath, Mode, PolicyConfig, Roots, VolumeKind};
use ravelin_proto::agent::mount_source::Source;
use ravelin_proto::agent::volume_entry::Content;
use ravelin_proto::agent::{Empty, FileVolume, MountSource, PushVolumeRequest, ReadVolumeRequest};
use serde_json::json;

use super::guest::VolumeCalls;
use super::{Directory, Guest, NodeRoots, PodPaths, PodVolumes, Serve, VolumeError, files, tree};
use crate::config::RootsConfig;

/// A guest that remembers what it was told.
#[derive(Clone, Default)]
struct Fake {
    pushes: Arc<Mutex<Vec<PushVolumeRequest>>>,
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    served: Arc<Mutex<Vec<Directory>>>,
}

#[async_trait]
impl VolumeCalls for Fake {
    async fn push(&self, request: PushVolumeRequest) -> Result<(), String> {
        self.pushes.lock().unwrap().push(request);
        Ok(())
    }

    async fn read(&self, request: ReadVolumeRequest) -> Result<Vec<u8>, String> {
        assert!(request.remove, "the guest shall keep nothing of it");
        self.files.lock().unwrap().get(&request.volume).cloned().ok_or_else(|| "no such volume".to_owned())
    }
}

#[async_trait]
impl Serve for Fake {
    async fn serve(&self, directory: Directory) -> Result<u32, String> {
        let mut served = self.served.lock().unwrap();
        served.push(directory);
        Ok(u32::try_from(served.len()).unwrap() + 6)
    }
}

impl Fake {
    fn pushes(&self) -> Vec<PushVolumeRequest> {
        self.pushes.lock().unwrap().clone()
    }

    async fn wait_for(&self, count: usize) -> Vec<PushVolumeRequest> {
        for _ in 0..100 {
            if self.pushes().len() >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.pushes()
    }
}

/// A node's directories with one pod in them.
struct Node {
    dir: tempfile::TempDir,
    guest: Fake,
    volumes: PodVolumes,
}

impl Node {
    fn new() -> Self {
        Self::patient(Duration::from_secs(30))
    }

    fn patient(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let paths = PodPaths {
            sandbox_id: "box".to_owned(),
            pod_uid: "uid".to_owned(),
            host_ipc: false,
            roots: Arc::new(NodeRoots::new(&RootsConfig {
                kubelet: Some(vec![root("kubelet")]),
                containerd: Some(vec![root("containerd")]),
            })),
            policy: PolicyConfig {
                mode: Mode::Guest,
                host_paths: vec![
                    HostPath { path: root("data"), writable: false },
                    HostPath { path: root("data/rw"), writable: true },
                ],
                ..PolicyConfig::default()
            },
        };
        let guest = Fake::default();
        let calls = Guest::new(guest.clone(), patience);
        let volumes = PodVolumes::new(calls, Arc::new(guest.clone()), paths);
        Self { dir, guest, volumes }
    }

    fn roots(&self) -> Arc<Roots> {
        self.volumes.shared.paths.roots.known()
    }

    fn pod(&self, path: &str) -> PathBuf {
        self.dir.path().join("kubelet/pods/uid").join(path)
    }

    fn sandbox(&self, path: &str) -> PathBuf {
        self.dir.path().join("containerd/io.containerd.grpc.v1.cri/sandboxes/box").join(path)
    }

    fn file(&self, path: &Path, text: &str) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        path.to_owned()
    }

    async fn resolve(
        &self,
        container: &str,
        mounts: &[&Path],
    ) -> Result<(Spec, Vec<MountSource>), VolumeError> {
        let mut all = vec![json!({ "destination": "/proc", "type": "proc", "source": "proc" })];
        all.extend(mounts.iter().enumerate().map(|(index, path)| {
            json!({ "destination": format!("/m{index}"), "type": "bind", "source": path, "options": ["rbind", "ro"] })
        }));
        let mut spec: Spec = serde_json::from_value(json!({ "ociVersion": "1.1.0", "mounts": all })).unwrap();
        let paths: Vec<_> = mounts.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
        let roots = self.roots();
        let found = self.volumes.look(paths, &roots).await?;
        let sources = self.volumes.resolve(container, &mut spec, &found, &roots).await?;
        Ok((spec, sources))
    }
}

/// A mount that goes with this.
struct Bound(PathBuf);

impl Bound {
    /// Binds a part of a volume as the kubelet does for a subPath.
    fn bind(part: &Path, to: &Path) -> Self {
        if part.is_dir() {
            fs::create_dir_all(to).unwrap();
        } else {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::File::create(to).unwrap();
        }
        rustix::mount::mount_bind(part, to).unwrap();
        Self(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// The kubelet's way of replacing a volume's content.
fn swap(volume: &Path, stamp: &str, files: &[(&str, &str)]) {
    fs::create_dir_all(volume.join(stamp)).unwrap();
    for (name, text) in files {
        fs::write(volume.join(stamp).join(name), text).unwrap();
        if !volume.join(name).is_symlink() {
            symlink(format!("..data/{name}"), volume.join(name)).unwrap();
        }
    }
    symlink(stamp, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

fn text(request: &PushVolumeRequest, path: &str) -> Option<String> {
    let entry = request.entries.iter().find(|entry| entry.path == path)?;
    Some(match entry.content.as_ref()? {
        Content::File(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Content::Symlink(target) => format!("-> {target}"),
        Content::Directory(_) => "directory".to_owned(),
    })
}

#[tokio::test]
async fn a_config_map_is_pushed_once_and_kept_in_step() {
    let node = Node::new();
    let volume = node.pod("volumes/kubernetes.io~configmap/conf");
    swap(&volume, "..1", &[("key", "one")]);
    let (spec, sources) = node.resolve("a", &[&volume]).await.unwrap();
    node.resolve("b", &[&volume]).await.unwrap();
    assert_eq!(spec.mounts().as_ref().unwrap()[1].source().as_deref(), Some(Path::new("")));
    assert_eq!(sources[0].spec_index, 1);
    let pushes = node.guest.pushes();
    assert_eq!(pushes.len(), 1);
    let Some(Source::Pushed(pushed)) = &sources[0].source else { panic!("{sources:?}") };
    assert_eq!(pushed.volume, pushes[0].volume);
    assert_eq!(text(&pushes[0], "..data").as_deref(), Some("-> ..1"));
    assert_eq!(text(&pushes[0], "..1").as_deref(), Some("directory"));
    assert_eq!(text(&pushes[0], "..1/key").as_deref(), Some("one"));
    assert_eq!(text(&pushes[0], "key").as_deref(), Some("-> ..data/key"));

    // A node has few inotify instances, and its pods shall not use them up.
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let files = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    assert!(!files.map(|file| file.display().to_string()).any(|file| file.contains("inotify")));

    // The old directory is still there for a moment; it is not pushed.
    swap(&volume, "..2", &[("key", "two")]);
    let pushes = node.guest.wait_for(2).await;
    assert_eq!(text(&pushes[1], "..2/key").as_deref(), Some("two"));
    assert_eq!(text(&pushes[1], "..1/key"), None);
    // Its removal changes nothing in the guest.
    fs::remove_dir_all(volume.join("..1")).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.guest.pushes().len(), 2);
    node.volumes.close();
    swap(&volume, "..3", &[("key", "three")]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.guest.pushes().len(), 2);
}

#[tokio::test]
async fn the_pods_files_are_pushed_and_kept_in_step() {
    let node = Node::new();
    let hosts = node.file(&node.pod("etc-hosts"), "127.0.0.1 localhost\n");
    let resolv = node.file(&node.sandbox("resolv.conf"), "nameserver 1.1.1.1\n");
    fs::set_permissions(&hosts, PermissionsExt::from_mode(0o640)).unwrap();
    node.resolve("a", &[&hosts, &resolv]).await.unwrap();
    let pushes = node.guest.pushes();
    assert_eq!(pushes.len(), 2);
    assert!(pushes.iter().all(|push| push.single_file && !push.writable));
    assert_eq!(pushes[0].entries[0].mode, 0o640);
    assert_eq!(text(&pushes[1], "").as_deref(), Some("nameserver 1.1.1.1\n"));
    fs::write(&hosts, "10.0.0.1 pod\n").unwrap();
    let pushes = node.guest.wait_for(3).await;
    assert_eq!(text(&pushes[2], "").as_deref(), Some("10.0.0.1 pod\n"));
    assert_eq!(pushes[2].volume, pushes[0].volume);
}

#[tokio::test]
async fn the_termination_log_is_carried_back() {
    let node = Node::new();
    let log = node.file(&node.pod("containers/main/1a2b3c4d"), "");
    let (_, sources) = node.resolve("a", &[&log]).await.unwrap();
    let Some(Source::Pushed(pushed)) = &sources[0].source else { panic!("{sources:?}") };
    let push = &node.guest.pushes()[0];
    assert!(push.single_file && push.writable && push.volume == pushed.volume);
    // A hostile agent sends more than it was asked for; the host's file was put out of the way meanwhile.
    node.guest.files.lock().unwrap().insert(pushed.volume.clone(), vec![b'x'; 1 << 20]);
    let moved = node.dir.path().join("moved");
    fs::rename(&log, &moved).unwrap();
    fs::write(&log, "another").unwrap();
    node.volumes.container_exited("a").await;
    assert_eq!(fs::read(&moved).unwrap(), vec![b'x'; 64 << 10]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "another");
    node.volumes.container_exited("a").await;
    node.volumes.container_removed("a").await;
}

#[tokio::test]
async fn an_empty_dir_keeps_its_mode_and_owner() {
    let node = Node::new();
    let dir = node.pod("volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o2770)).unwrap();
    let shm = node.sandbox("shm");
    let (_, sources) = node.resolve("a", &[&dir, &shm]).await.unwrap();
    let Some(Source::EmptyDir(empty)) = &sources[0].source else { panic!("{sources:?}") };
    assert_eq!(
        (empty.name.as_str(), empty.mode, empty.memory, empty.size_bytes),
        ("cache", 0o2770, false, 0)
    );
    assert!(matches!(sources[1].source, Some(Source::Shm(_))));
    assert!(node.guest.pushes().is_empty());
}

#[tokio::test]
async fn volumes_declared_by_the_image_are_directories_of_the_containers_own() {
    let node = Node::new();
    let declared = node.dir.path().join("containerd/io.containerd.grpc.v1.cri/containers/c/volumes/v");
    let hosts = node.file(&node.pod("etc-hosts"), "x");
    let (spec, sources) = node.resolve("a", &[&declared, &hosts]).await.unwrap();
    let mounts = spec.mounts().as_ref().unwrap();
    let index = usize::try_from(sources[0].spec_index).unwrap();
    assert_eq!(sources[0].source, Some(Source::OwnDirectory(Empty {})));
    assert_eq!(mounts[index].source().as_deref(), Some(Path::new("")));
    assert_eq!(sources.len(), 2);
}

#[tokio::test]
async fn a_sub_path_of_pushed_content_is_pushed_by_itself() {
    needs_root();
    let node = Node::new();
    let (config, bound) =
        (node.pod("volumes/kubernetes.io~configmap/conf"), node.pod("volume-subpaths/conf/main/0"));
    swap(&config, "..1", &[("key", "one")]);
    let old = Bound::bind(&config.join("..1/key"), &bound);
    node.resolve("a", &[&bound]).await.unwrap();
    let push = &node.guest.pushes()[0];
    assert!(push.single_file);
    assert_eq!(text(push, "").as_deref(), Some("one"));
    // The next incarnation of the container finds what the kubelet has bound there by then.
    node.resolve("b", &[&bound]).await.unwrap();
    assert_eq!(node.guest.pushes().len(), 1);
    // Until then it is what was bound, whose name the kubelet has taken away.
    swap(&config, "..2", &[("key", "two")]);
    fs::remove_dir_all(config.join("..1")).unwrap();
    node.resolve("c", &[&bound]).await.unwrap();
    assert_eq!(node.guest.pushes().len(), 1);
    drop(old);
    let _new = Bound::bind(&config.join("..2/key"), &bound);
    node.resolve("c", &[&bound]).await.unwrap();
    assert_eq!(text(&node.guest.pushes()[1], "").as_deref(), Some("two"));

    fs::create_dir_all(node.pod("volumes/kubernetes.io~empty-dir/cache")).unwrap();
    let not_bound = node.pod("volume-subpaths/cache/main/0");
    fs::create_dir_all(&not_bound).unwrap();
    let error = node.resolve("a", &[&not_bound]).await.unwrap_err().to_string();
    assert!(error.contains("is not a part of the volume"), "{error}");
}

#[tokio::test]
async fn other_paths_are_refused() {
    let node = Node::new();
    for (path, words) in [
        ("/etc", "the host path /etc is not a volume of this pod"),
        (node.pod("volumes/kubernetes.io~nfs/data").to_str().unwrap(), "cannot read the volume"),
        (node.pod("etc-hosts").to_str().unwrap(), "cannot read the volume"),
    ] {
        let error = node.resolve("a", &[Path::new(path)]).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(node.guest.pushes().is_empty());
}

/// Who is not root cannot detach and bind mounts, as the shim does; a test that is left out would pass for one that holds.
fn needs_root() {
    assert!(rustix::process::geteuid().is_root(), "this test has to be run by root: it makes mounts");
}

#[tokio::test]
async fn directories_that_the_kubelet_has_mounted_are_served() {
    needs_root();
    let node = Node::new();
    let claim = node.pod("volumes/kubernetes.io~csi/pvc-1/mount");
    let share = node.pod("volumes/kubernetes.io~nfs/share");
    node.file(&claim.join("inside"), "one");
    node.file(&share.join("inside"), "two");
    let (spec, sources) = node.resolve("a", &[&claim, &share]).await.unwrap();
    let volume =
        |number| Some(Source::FileVolume(FileVolume { number, sub_path: String::new(), mapped: false }));
    assert_eq!((&sources[0].source, &sources[1].source), (&volume(7), &volume(8)));
    assert!(
        spec.mounts().iter().flatten().skip(1).all(|mount| mount.source().as_deref() == Some(Path::new("")))
    );
    let served = node.guest.served.lock().unwrap();
    for (directory, text) in served.iter().zip(["one", "two"]) {
        let path = format!("/proc/self/fd/{}/inside", directory.tree.as_raw_fd());
        assert_eq!(fs::read_to_string(path).unwrap(), text);
        assert!(!directory.read_only);
    }
}

#[tokio::test]
async fn paths_of_the_host_are_served_as_the_policy_grants_them() {
    needs_root();
    let node = Node::new();
    let (plain, writable) = (node.dir.path().join("data/logs"), node.dir.path().join("data/rw"));
    for directory in [&plain, &writable] {
        node.file(&directory.join("old"), "old");
    }
    node.resolve("a", &[&plain, &writable, &node.dir.path().join("data")]).await.unwrap();
    let write = |directory: &Directory| {
        fs::write(format!("/proc/self/fd/{}/new", directory.tree.as_raw_fd()), "new")
            .map_err(|error| error.kind())
    };
    let served: Vec<_> = node.guest.served.lock().unwrap().drain(..).collect();
    assert!(served[0].read_only && !served[1].read_only && served[2].read_only);
    // By the mount too, whatever the server would do.
    assert_eq!(write(&served[0]), Err(std::io::ErrorKind::ReadOnlyFilesystem));
    assert_eq!(write(&served[1]), Ok(()));
    // What is not listed, a link, and a single file.
    symlink("/etc", node.dir.path().join("data/link")).unwrap();
    for (path, words) in [
        (node.dir.path().join("database"), "is not a volume of this pod"),
        (node.dir.path().join("data/link"), "is not a directory"),
        (node.dir.path().join("data/link/ssh"), "cannot read the volume"),
        (node.dir.path().join("data/missing"), "cannot read the volume"),
        (node.dir.path().join("data/logs/old"), "is not a directory"),
    ] {
        let error = node.resolve("a", &[&path]).await.unwrap_err().to_string();
        assert!(error.contains(words), "{}: {error}", path.display());
    }
    assert!(node.guest.served.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_path_of_the_host_that_holds_the_kubelets_files_is_refused_however_they_were_found() {
    needs_root();
    let mut node = Node::new();
    let kubelet = node.dir.path().join("kubelet").to_str().unwrap().to_owned();
    fs::create_dir_all(&kubelet).unwrap();
    let shared = Arc::get_mut(&mut node.volumes.shared).unwrap();
    let whole = node.dir.path().to_str().unwrap().to_owned();
    shared.paths.policy.host_paths = vec![HostPath { path: whole.clone(), writable: true }];
    let error = node.resolve("a", &[Path::new(&whole)]).await.unwrap_err().to_string();
    assert!(error.contains(&format!("must be apart from {kubelet}")), "{error}");
}

#[test]
fn what_is_served_neither_follows_nor_is_a_device() {
    needs_root();
    let node = tempfile::tempdir().unwrap();
    let roots = Roots { kubelet: vec![node.path().to_str().unwrap().to_owned()], containerd: Vec::new() };
    fs::create_dir(node.path().join("v")).unwrap();
    symlink("/etc", node.path().join("v/link")).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        node.path().join("v/null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        null,
    );
    let directory = files::open(node.path().join("v").to_str().unwrap(), &roots, false).unwrap();
    let at = |name: &str| format!("/proc/self/fd/{}/{name}", directory.tree.as_raw_fd());
    let error = fs::read_dir(at("link")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/etc"));
    if made.is_ok() {
        assert_eq!(fs::read(at("null")).unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
    // One that is mounted anew at the same place is another one.
    fs::rename(node.path().join("v"), node.path().join("w")).unwrap();
    fs::create_dir(node.path().join("v")).unwrap();
    let again = files::open(node.path().join("v").to_str().unwrap(), &roots, false).unwrap();
    assert_ne!(directory.identity, again.identity);
}

#[tokio::test]
async fn what_the_kubelet_has_written_down_of_a_csi_volume_is_known() {
    needs_root();
    let node = Node::new();
    let claim = |name: &str| node.pod(&format!("volumes/kubernetes.io~csi/{name}/mount"));
    let known = claim("pvc-1");
    let record = r#"{"driverName":"efs.csi.aws.com","specVolID":"pvc-1","volumeLifecycleMode":"Persistent"}"#;
    node.file(&known.with_file_name("vol_data.json"), record);
    node.file(&claim("broken").with_file_name("vol_data.json"), "{");
    symlink("/etc/hostname", {
        fs::create_dir_all(claim("link")).unwrap();
        claim("link").with_file_name("vol_data.json")
    })
    .unwrap();
    fs::create_dir_all(&known).unwrap();
    // A part of it, as the kubelet binds it elsewhere.
    let part = node.pod("volume-subpaths/pvc-1/main/0");
    fs::create_dir_all(known.join("a/b")).unwrap();
    let _bound = Bound::bind(&known.join("a/b"), &part);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let paths = [&known, &claim("broken"), &claim("link"), &claim("none"), &part, &node.pod("etc-hosts")]
        .map(|path| text(path));
    let found = node.volumes.look(paths.to_vec(), &node.roots()).await.unwrap();
    assert_eq!(found.len(), 5);
    for (path, inside) in [(&known, ""), (&part, "a/b")] {
        let volume = &found[&text(path)];
        assert_eq!((volume.whole.as_str(), volume.sub_path.as_str()), (text(&known).as_str(), inside));
        assert_eq!(volume.csi.as_ref().unwrap().driver, "efs.csi.aws.com");
        assert!(matches!(&volume.kind, VolumeKind::File { name, .. } if name == "pvc-1"));
        assert_eq!(volume.violation(&text(path), &PolicyConfig::default()), None);
    }
    for name in ["broken", "link", "none"] {
        assert_eq!(found[&text(&claim(name))].csi, None, "{name}");
        let words = found[&text(&claim(name))].violation("", &PolicyConfig::default()).unwrap().to_string();
        assert_eq!(words, format!("{name} not supported because: PVC bound to invalid PV {name}"));
    }
}

/// A volume of another kind may have the name of a claim's.
#[tokio::test]
async fn a_part_is_of_the_volume_from_which_it_is_bound_whatever_others_are_called() {
    needs_root();
    let node = Node::new();
    let claim = node.pod("volumes/kubernetes.io~csi/pvc-1/mount");
    node.file(&claim.join("part/secret"), "of the claim");
    node.file(&claim.with_file_name("vol_data.json"), r#"{"driverName":"ebs.csi.aws.com"}"#);
    let part = node.pod("volume-subpaths/pvc-1/main/0");
    for other in ["configmap", "projected", "downward-api", "secret", "empty-dir"] {
        fs::create_dir_all(node.pod(&format!("volumes/kubernetes.io~{other}/pvc-1"))).unwrap();
    }
    let bound = Bound::bind(&claim.join("part"), &part);
    let text = part.to_str().unwrap().to_owned();
    let found = node.volumes.look(vec![text.clone()], &node.roots()).await.unwrap();
    let refused = found[&text].violation(&text, &PolicyConfig::default()).unwrap().to_string();
    assert_eq!(
        refused,
        "pvc-1 not supported because: PVC bound to invalid PV pvc-1 with CSI Driver: ebs.csi.aws.com"
    );
    node.resolve("a", &[&part]).await.unwrap();
    assert!(node.guest.pushes().is_empty());
    assert_eq!(node.guest.served.lock().unwrap().len(), 1);
    drop(bound);
    // A part of none of them, and one that is no more.
    let stranger = Bound::bind(&node.dir.path().join("kubelet"), &part);
    let error = node.volumes.look(vec![text.clone()], &node.roots()).await.unwrap_err().to_string();
    assert!(error.contains("is not a part of the volume pvc-1"), "{error}");
    drop(stranger);
    let _gone = Bound::bind(&claim.join("part"), &part);
    fs::remove_dir_all(claim.join("part")).unwrap();
    let error = node.volumes.look(vec![text], &node.roots()).await.unwrap_err().to_string();
    assert!(error.contains("has been removed"), "{error}");
}

/// A file system of the network whose server does not answer.
#[tokio::test]
async fn a_volume_that_does_not_answer_takes_few_of_the_shims_threads() {
    let node = Node::patient(Duration::from_millis(200));
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (held, begun) = (Arc::new(Mutex::new(held)), Arc::new(AtomicUsize::new(0)));
    for number in 0..20 {
        let (held, begun) = (Arc::clone(&held), Arc::clone(&begun));
        let stuck = move || {
            begun.fetch_add(1, Ordering::Relaxed);
            let _ = held.lock().unwrap().recv();
            Ok(())
        };
        let error = node.volumes.shared.of_the_node("/mnt/nfs", stuck).await.unwrap_err().to_string();
        let words = if number < super::PLACES { "the node had no answer" } else { "looks at other volumes" };
        assert!(error.contains("/mnt/nfs") && error.contains(words), "{number}: {error}");
    }
    assert_eq!(begun.load(Ordering::Relaxed), super::PLACES);
    // Containers without such volumes are made all the same; and others when the node answers again.
    let hosts = node.file(&node.pod("etc-hosts"), "127.0.0.1 localhost");
    node.resolve("a", &[&hosts]).await.unwrap();
    drop(release);
    node.volumes.shared.of_the_node("/mnt/nfs", || Ok(())).await.unwrap();
}

#[test]
fn a_tree_shows_nothing_of_the_host() {
    let node = tempfile::tempdir().unwrap();
    let roots = Roots { kubelet: vec![node.path().to_str().unwrap().to_owned()], containerd: Vec::new() };
    let volume = node.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let path = volume.to_str().unwrap();
    let says = |words: &str| {
        let error = tree::read(path, &roots).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    symlink("/etc/shadow", volume.join("out")).unwrap();
    says("leads out of it");
    fs::remove_file(volume.join("out")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(volume.join("socket")).unwrap();
    says("neither a directory, a file nor a link");
    fs::remove_file(volume.join("socket")).unwrap();
    let big = fs::File::create(volume.join("big")).unwrap();
    big.set_len(tree::MAX_BYTES as u64 + 1).unwrap();
    says("holds more than 3 MiB");
    big.set_len(tree::MAX_BYTES as u64).unwrap();
    let names: Vec<_> =
        tree::read(path, &roots).unwrap().entries.into_iter().map(|entry| entry.path).collect();
    assert_eq!(names, ["", "big"]);
    // A link in the place of the volume itself, or on the way to it.
    symlink(&volume, node.path().join("link")).unwrap();
    assert!(tree::read(node.path().join("link").to_str().unwrap(), &roots).is_err());
    assert!(tree::read(node.path().join("link/big").to_str().unwrap(), &roots).is_err());
    assert!(tree::read("/etc/passwd", &roots).is_err());
}
