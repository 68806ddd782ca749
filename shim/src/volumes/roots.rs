//! Where the kubelet and containerd of this node keep pods' files: the usual places, and those that containerd itself names.
//!
//! Nobody tells a runtime. But containerd hands every shim a bundle in its state directory, and root file systems from snapshots
//! in its root directory; and the kubelet mounts files of the pod's folder into every container of its own.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use oci_spec::runtime::Spec;
use ravelin_policy::{PolicyConfig, Roots, SANDBOX_CONTROLLER};

use crate::config::RootsConfig;
use crate::rootfs::{RootfsMount, directories};
use crate::spec;
use crate::sync::lock;

/// Directories that containerd has below its own: of tasks' bundles and of sandboxes' below its state directory, of snapshots below its
/// root directory.
const TASKS: &str = "io.containerd.runtime.v2.task";
const SNAPSHOTTERS: &str = "io.containerd.snapshotter.v1.";
/// Most roots of one kind: a node has one kubelet and one containerd, with two directories.
const MOST: usize = 8;

/// The roots that are known so far; what the configuration says is all there is.
#[derive(Debug)]
pub struct NodeRoots {
    config: RootsConfig,
    known: Mutex<Arc<Roots>>,
}

impl NodeRoots {
    /// The usual ones, or those of the configuration.
    #[must_use]
    pub fn new(config: &RootsConfig) -> Self {
        Self { config: config.clone(), known: Mutex::new(Arc::new(config.known_beforehand())) }
    }

    /// Those that are known.
    #[must_use]
    pub fn known(&self) -> Arc<Roots> {
        Arc::clone(&lock(&self.known))
    }

    /// Learns containerd's directories from a bundle and the root file system that it hands over.
    pub fn learn_containerd(&self, bundle: &Path, rootfs: &[RootfsMount]) {
        if self.config.containerd.is_some() {
            return;
        }
        let snapshots = directories(rootfs);
        let paths = snapshots.iter().map(PathBuf::as_path).chain([bundle]).filter_map(Path::to_str);
        let found = paths.filter_map(above_containerds).map(str::to_owned);
        for root in found.collect::<Vec<_>>() {
            self.add(|roots| &mut roots.containerd, root);
        }
    }

    /// What looks like the kubelet's directory, and is not known yet, by what it mounts into a container of the pod. The same text could
    /// be a path that the pod's author chose: [`NodeRoots::learn_kubelet`] tells.
    #[must_use]
    pub fn kubelet_by(&self, spec: &Spec, pod_uid: &str, policy: &PolicyConfig) -> Option<String> {
        if self.config.kubelet.is_some() || pod_uid.is_empty() {
            return None;
        }
        let folder = format!("/pods/{pod_uid}/");
        let found = spec::host_mounts(spec).find_map(|(mount, source)| {
            let (root, rest) = source.split_once(&folder)?;
            let is_hosts = rest == "etc-hosts" && mount.destination() == Path::new("/etc/hosts");
            // The termination log: `containers/<name>/<id>`.
            let is_log = rest.strip_prefix("containers/").is_some_and(|rest| rest.split('/').count() == 2);
            let wanted = !root.is_empty() && (is_hosts || is_log) && policy.host_path(source).is_none();
            wanted.then(|| root.to_owned())
        });
        found.filter(|root| !self.known().kubelet.contains(root))
    }

    /// Learns the kubelet's directory, if `root` is one: it holds the folder of this very pod, whose UID its author cannot know
    /// beforehand, no link leads to that, and nobody but the node's root may make what is there. Blocks.
    pub fn learn_kubelet(&self, root: String, pod_uid: &str) {
        if is_roots_alone(Path::new(&format!("{root}/pods/{pod_uid}"))) {
            self.add(|roots| &mut roots.kubelet, root);
        } else {
            tracing::warn!(
                "{root} looks like the kubelet's directory, but others than the node's root may write there: it is not taken for it; name it in kubelet of [roots] in ravelin.toml if it is"
            );
        }
    }

    fn add(&self, of: fn(&mut Roots) -> &mut Vec<String>, root: String) {
        let mut known = lock(&self.known);
        let all = of(Arc::make_mut(&mut known));
        if !all.contains(&root) && all.len() < MOST {
            tracing::info!("the node keeps pods' files in {root} as well");
            all.push(root);
        }
    }
}

/// The directory of containerd's that a path of its own making lies in.
fn above_containerds(path: &str) -> Option<&str> {
    let names = [TASKS, SANDBOX_CONTROLLER].map(|name| format!("/{name}/"));
    let cut = names.iter().map(String::as_str).find_map(|name| path.split_once(name));
    let (root, _) = cut.or_else(|| path.split_once(&format!("/{SNAPSHOTTERS}")))?;
    (!root.is_empty()).then_some(root)
}

/// Whether nobody but root can make, or put something else in the place of, this directory, which is no link and behind none.
fn is_roots_alone(directory: &Path) -> bool {
    let is_real = directory.canonicalize().is_ok_and(|real| real == directory);
    is_real
        && directory.ancestors().all(|directory| {
            directory
                .metadata()
                .is_ok_and(|found| found.is_dir() && found.uid() == 0 && found.mode() & 0o022 == 0)
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known(config: &RootsConfig, learn: impl Fn(&NodeRoots)) -> Roots {
        let roots = NodeRoots::new(config);
        learn(&roots);
        Roots::clone(&roots.known())
    }

    fn rootfs(options: &[&str]) -> Vec<RootfsMount> {
        let options = options.iter().map(ToString::to_string).collect();
        vec![RootfsMount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }]
    }

    #[test]
    fn containerds_directories_are_found_from_what_it_hands_over() {
        let bundle = Path::new("/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/abc");
        let snapshots =
            "/var/lib/rancher/k3s/agent/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let lower = format!("lowerdir={snapshots}/2/fs:{snapshots}/1/fs");
        let mounts = rootfs(&["index=off", &format!("upperdir={snapshots}/3/fs"), &lower]);
        let learn = |roots: &NodeRoots| roots.learn_containerd(bundle, &mounts);
        let usual = Roots::default();
        let found = known(&RootsConfig::default(), learn);
        let k3s = ["/var/lib/rancher/k3s/agent/containerd".to_owned(), "/run/k3s/containerd".to_owned()];
        assert_eq!(found.containerd, [&usual.containerd[..], &k3s[..]].concat());
        assert_eq!(found.kubelet, usual.kubelet);
        // What the configuration says is all there is.
        let said = RootsConfig { containerd: Some(vec!["/c".to_owned()]), ..RootsConfig::default() };
        assert_eq!(known(&said, learn).containerd, ["/c"]);
        for nothing in ["/bundle", "/io.containerd.runtime.v2.task/k8s.io/abc", ""] {
            let found =
                known(&RootsConfig::default(), |roots| roots.learn_containerd(Path::new(nothing), &[]));
            assert_eq!(found, usual, "{nothing}");
        }
    }

    #[test]
    fn the_kubelets_directory_is_found_where_only_root_writes() {
        let root = "/data/kubelet";
        let found = |source: &str, destination: &str, config: &RootsConfig, policy: &str| {
            let mount =
                json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind"] });
            let spec = serde_json::from_value(json!({ "ociVersion": "1.1.0", "mounts": [mount] })).unwrap();
            let policy = toml::from_str(policy).unwrap();
            NodeRoots::new(config).kubelet_by(&spec, "u-1", &policy).as_deref() == Some(root)
        };
        let default = RootsConfig::default();
        let hosts = format!("{root}/pods/u-1/etc-hosts");
        let log = format!("{root}/pods/u-1/containers/main/1a2b");
        assert!(found(&hosts, "/etc/hosts", &default, ""));
        assert!(found(&log, "/dev/termination-log", &default, ""));
        let granted = "mode = \"guest\"\nhost_paths = [\"/data:rw\"]";
        assert!(!found(&hosts, "/etc/hosts", &default, granted));
        let said = RootsConfig { kubelet: Some(vec!["/k".to_owned()]), ..RootsConfig::default() };
        assert!(!found(&hosts, "/etc/hosts", &said, ""));
        assert!(!found(&hosts, "/data", &default, ""));
        for other in [
            format!("{root}/pods/u-2/etc-hosts"),
            format!("{root}/pods/u-1/volumes/kubernetes.io~csi/x/mount"),
            format!("{root}/pods/u-1/containers/main/1a2b/more"),
            "/pods/u-1/etc-hosts".to_owned(),
        ] {
            assert!(!found(&other, "/etc/hosts", &default, ""), "{other}");
        }
    }

    #[test]
    fn a_directory_is_roots_alone_if_nobody_else_can_put_another_in_its_place() {
        // Below /tmp everybody writes.
        let node = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(node.path().join("pods/u-1")).unwrap();
        assert!(!is_roots_alone(node.path()));
        let strange = node.path().to_str().unwrap().to_owned();
        let learned = known(&RootsConfig::default(), |roots| roots.learn_kubelet(strange.clone(), "u-1"));
        assert_eq!(learned, Roots::default());
        assert!(is_roots_alone(Path::new("/")) && is_roots_alone(Path::new("/usr/lib")));
        assert!(!is_roots_alone(Path::new("/proc/self/root/usr")) && !is_roots_alone(Path::new("/no-such")));
    }
}
