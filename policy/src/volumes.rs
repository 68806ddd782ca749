//! What a bind mount's host path stands for.
//!
//! Kubernetes volumes, `/etc/hosts`, `/dev/shm` and the termination log all reach a runtime as bind mounts from host
//! paths. Only paths that the kubelet or containerd made for this very pod are accepted; everything else is a path of
//! the host that the pod's author chose.
//!
//! This module looks at the text of a path alone. Who opens the path must refuse symbolic links in it
//! (`openat2` with `RESOLVE_NO_SYMLINKS`), or the text proves nothing.

use crate::config::PolicyConfig;
use crate::file_volumes::{CSI_PLUGIN, CsiRecord};
use crate::refusal::{VolumeProblem, VolumeViolation};

/// Directories under which the kubelet and containerd keep what they make for pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The kubelet's root directories.
    pub kubelet: Vec<String>,
    /// containerd's root and state directories.
    pub containerd: Vec<String>,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            kubelet: vec!["/var/lib/kubelet".to_owned()],
            containerd: vec!["/var/lib/containerd".to_owned(), "/run/containerd".to_owned()],
        }
    }
}

/// The names a pod's own paths carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodIdentity<'a> {
    /// containerd's id of the sandbox.
    pub sandbox_id: &'a str,
    /// Kubernetes's UID of the pod; empty if the runtime is not told.
    pub pod_uid: &'a str,
    /// The pod was allowed `hostIPC`, so its `/dev/shm` names the host's, and means the guest's.
    pub host_ipc: bool,
}

/// What a mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeKind {
    /// A small tree or file of the host's that is copied into the guest and kept in step.
    Pushed {
        /// Of which kind.
        kind: PushedKind,
        /// The volume's name in the pod; for single files, their name.
        name: String,
    },
    /// A directory that lives in the guest only, shared by the pod's containers.
    EmptyDir {
        /// The volume's name in the pod.
        name: String,
    },
    /// A part of another volume of the pod, bound here by the kubelet. The path does not tell the volume's kind: look for
    /// the directory `volumes/<plugin>/<volume>` of the pod.
    SubPath {
        /// The volume's name in the pod (of a claim: its persistent volume's name).
        volume: String,
        /// The container that mounts it.
        container: String,
        /// Which of the container's mounts it is.
        index: u32,
    },
    /// The file whose content the kubelet reads when the container has ended.
    TerminationLog,
    /// The pod's `/dev/shm`.
    Shm,
    /// A directory that containerd made for a `VOLUME` of the image, one for each container. The image's own directory
    /// under the container's writable layer does the same.
    ImageDeclared,
    /// A directory that the kubelet has made or mounted for the pod: it is served to the guest, if the policy grants it
    /// ([`VolumeKind::violation`]).
    File {
        /// Kubernetes's volume plugin, such as `kubernetes.io/csi`.
        plugin: String,
        /// The volume's name in the pod; of a claim, its persistent volume's.
        name: String,
    },
    /// The files of an image, which containerd has mounted for the pod, or a part of them: served to the guest read-only, if the
    /// policy grants it.
    Image {
        /// The image, by the digest of its manifest.
        image: String,
        /// Where the part lies below the image's directory; empty for the whole. It may lead through links of the image's.
        sub_path: String,
    },
    /// A path that is not the pod's to mount.
    Unsupported(Unsupported),
}

/// Kinds of pushed content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushedKind {
    /// A config map.
    ConfigMap,
    /// A secret.
    Secret,
    /// A projected volume; service account tokens come this way.
    Projected,
    /// A downward API volume.
    DownwardApi,
    /// `/etc/hosts`.
    EtcHosts,
    /// `/etc/hostname`.
    Hostname,
    /// `/etc/resolv.conf`.
    ResolvConf,
}

/// Why a path is not the pod's to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// It is a path of the host.
    HostPath,
    /// It is not an absolute path in its shortest form (`..`, `.`, `//`, a trailing slash, a NUL).
    NotNormal,
    /// It belongs to another pod.
    OtherPod,
    /// It is under a directory of the kubelet's or containerd's, but nothing that a pod mounts.
    Internal,
}

impl VolumeKind {
    /// The violation that a mount of this kind from `host_path` is, if it is one. `csi` is the kubelet's record of a CSI volume.
    #[must_use]
    pub fn violation(
        &self,
        host_path: &str,
        csi: Option<&CsiRecord>,
        policy: &PolicyConfig,
    ) -> Option<VolumeViolation> {
        match self {
            Self::File { plugin, name } => policy.file_volume(plugin, name, csi),
            Self::Unsupported(Unsupported::HostPath) if policy.host_path(host_path).is_some() => None,
            Self::Image { image, .. } => {
                Some(VolumeViolation { volume: image.clone(), problem: policy.image_volume()? })
            }
            Self::Unsupported(why) => Some(VolumeViolation {
                volume: host_path.to_owned(),
                problem: match why {
                    Unsupported::HostPath => policy.refused_host_path(),
                    _ => VolumeProblem::Type { way_around: None },
                },
            }),
            _ => None,
        }
    }
}

/// Names under which containerd's CRI plugin keeps its directories: one name in 1.x and 2.x, and 2.x's plugin names in
/// case a later version moves there.
const CRI_DIRECTORIES: [&str; 3] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
];

/// The directory below containerd's state directory in which its sandbox API keeps the bundles of sandboxes:
/// `<namespace>/<id>/…`. A shim makes there what containerd makes for other sandboxes.
pub const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1.shim";

/// Tells what a bind mount from `host_path` is to the pod.
#[must_use]
pub fn classify(host_path: &str, pod: PodIdentity<'_>, roots: &Roots) -> VolumeKind {
    if !is_normal(host_path) {
        return VolumeKind::Unsupported(Unsupported::NotNormal);
    }
    if pod.host_ipc && host_path == "/dev/shm" {
        return VolumeKind::Shm;
    }
    for root in &roots.kubelet {
        if let Some(parts) = below(host_path, root) {
            return kubelet(&parts, pod);
        }
    }
    for root in &roots.containerd {
        if let Some(parts) = below(host_path, root) {
            return containerd(&parts, pod);
        }
    }
    VolumeKind::Unsupported(Unsupported::HostPath)
}

/// The key of [`Roots`] that would have to name a directory, and that directory, if `host_path` lies outside of the roots
/// but looks like what the kubelet or containerd makes for pods: theirs may be elsewhere on this node.
#[must_use]
pub fn missing_root<'a>(
    host_path: &'a str,
    pod: PodIdentity<'_>,
    roots: &Roots,
) -> Option<(&'static str, &'a str)> {
    if classify(host_path, pod, roots) != VolumeKind::Unsupported(Unsupported::HostPath) {
        return None;
    }
    let above = |name: &str| host_path.split_once(&format!("/{name}/")).map(|(root, _)| root);
    let containerd = || CRI_DIRECTORIES.into_iter().chain([SANDBOX_CONTROLLER]).find_map(above);
    let kubelet = || above(&format!("pods/{}", pod.pod_uid)).filter(|_| !pod.pod_uid.is_empty());
    let named = containerd().map(|root| ("containerd", root)).or_else(|| Some(("kubelet", kubelet()?)))?;
    (!named.1.is_empty()).then_some(named)
}

/// Absolute, without empty, `.` and `..` components, and without NUL.
pub(crate) fn is_normal(path: &str) -> bool {
    !path.contains('\0')
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

/// The components of `path` below `root`, or none if it is not below.
pub(crate) fn below<'a>(path: &'a str, root: &str) -> Option<Vec<&'a str>> {
    if !is_normal(root) {
        return None;
    }
    Some(path.strip_prefix(root)?.strip_prefix('/')?.split('/').collect())
}

/// Paths below the kubelet's root: `pods/<uid>/…`.
fn kubelet(parts: &[&str], pod: PodIdentity<'_>) -> VolumeKind {
    let ["pods", uid, rest @ ..] = parts else {
        return VolumeKind::Unsupported(Unsupported::Internal);
    };
    if pod.pod_uid.is_empty() || *uid != pod.pod_uid {
        return VolumeKind::Unsupported(Unsupported::OtherPod);
    }
    match rest {
        ["etc-hosts"] => file(PushedKind::EtcHosts, "hosts"),
        ["containers", _container, _log] => VolumeKind::TerminationLog,
        ["volumes", plugin, name, rest @ ..] => volume(plugin, name, rest),
        ["volume-subpaths", volume, container, index] => match index.parse() {
            Ok(index) => VolumeKind::SubPath {
                volume: (*volume).to_owned(),
                container: (*container).to_owned(),
                index,
            },
            Err(_) => VolumeKind::Unsupported(Unsupported::Internal),
        },
        _ => VolumeKind::Unsupported(Unsupported::Internal),
    }
}

/// Paths below a pod's `volumes/<plugin>/<name>`.
fn volume(plugin: &str, name: &str, rest: &[&str]) -> VolumeKind {
    let owned = || name.to_owned();
    let plugin_name = plugin.replacen('~', "/", 1);
    let kind = match plugin {
        "kubernetes.io~configmap" => PushedKind::ConfigMap,
        "kubernetes.io~secret" => PushedKind::Secret,
        "kubernetes.io~projected" => PushedKind::Projected,
        "kubernetes.io~downward-api" => PushedKind::DownwardApi,
        "kubernetes.io~empty-dir" if rest.is_empty() => return VolumeKind::EmptyDir { name: owned() },
        "kubernetes.io~empty-dir" => return VolumeKind::Unsupported(Unsupported::Internal),
        // A CSI volume's directory has its mount point inside, beside the kubelet's record of it.
        _ if rest == volume_directory(&plugin_name) => {
            return VolumeKind::File { plugin: plugin_name, name: owned() };
        }
        _ => return VolumeKind::Unsupported(Unsupported::Internal),
    };
    if rest.is_empty() {
        VolumeKind::Pushed { kind, name: owned() }
    } else {
        VolumeKind::Unsupported(Unsupported::Internal)
    }
}

/// Where the files are below a volume's own directory, `volumes/<plugin>/<name>`.
#[must_use]
pub fn volume_directory(plugin: &str) -> &'static [&'static str] {
    if plugin == CSI_PLUGIN { &["mount"] } else { &[] }
}

/// Paths below containerd's root and state directories: the CRI plugin's `sandboxes/<id>/…` and `containers/<id>/…`, the
/// sandbox API's `<namespace>/<id>/…`.
fn containerd(parts: &[&str], pod: PodIdentity<'_>) -> VolumeKind {
    let [plugin, rest @ ..] = parts else {
        return VolumeKind::Unsupported(Unsupported::Internal);
    };
    if let (&SANDBOX_CONTROLLER, [_namespace, id, name]) = (plugin, rest) {
        return of_a_sandbox(id, name, pod);
    }
    if !CRI_DIRECTORIES.contains(plugin) {
        return VolumeKind::Unsupported(Unsupported::Internal);
    }
    match rest {
        ["sandboxes", id, name] => of_a_sandbox(id, name, pod),
        ["containers", _, "volumes", _] => VolumeKind::ImageDeclared,
        ["image-volumes", id, ..] if !is_sandbox(id, pod) => VolumeKind::Unsupported(Unsupported::OtherPod),
        ["image-volumes", _, image, sub_path @ ..] => {
            VolumeKind::Image { image: (*image).to_owned(), sub_path: sub_path.join("/") }
        }
        _ => VolumeKind::Unsupported(Unsupported::Internal),
    }
}

fn is_sandbox(id: &str, pod: PodIdentity<'_>) -> bool {
    !pod.sandbox_id.is_empty() && id == pod.sandbox_id
}

/// What containerd or the shim makes for a sandbox.
fn of_a_sandbox(id: &str, name: &str, pod: PodIdentity<'_>) -> VolumeKind {
    if !is_sandbox(id, pod) {
        return VolumeKind::Unsupported(Unsupported::OtherPod);
    }
    match name {
        "hosts" => file(PushedKind::EtcHosts, name),
        "hostname" => file(PushedKind::Hostname, name),
        "resolv.conf" => file(PushedKind::ResolvConf, name),
        "shm" => VolumeKind::Shm,
        _ => VolumeKind::Unsupported(Unsupported::Internal),
    }
}

fn file(kind: PushedKind, name: &str) -> VolumeKind {
    VolumeKind::Pushed { kind, name: name.to_owned() }
}

#[cfg(test)]
mod tests;
