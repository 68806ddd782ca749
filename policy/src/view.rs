//! What a container runtime sees of a pod: less than the API server does.
//!
//! The kubelet and containerd turn a pod into OCI specs, and some fields do not survive:
//!
//! * a volume's name: its host path stands for it;
//! * `allowPrivilegeEscalation: true`: the runtime is only told `noNewPrivileges`, which is false both for `true` and
//!   for unset, and unset is allowed. It is therefore not refused here;
//! * host ports: the network plug-in serves them before the runtime is asked;
//! * `hostNetwork`, `hostPID`, `hostIPC` of a container: they belong to the sandbox;
//! * the case of a capability's name: containerd writes it in capitals, so `chown`, which Fargate refuses, is `CHOWN`.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Spec};

use crate::capability::{addable, stands_for_all};
use crate::refusal::VolumeViolation;

/// A sandbox, as its OCI spec tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a field of the pod")]
pub struct SandboxView {
    /// The pod asks for the host's network.
    pub host_network: bool,
    /// The pod asks for the host's processes.
    pub host_pid: bool,
    /// The pod asks for the host's IPC objects.
    pub host_ipc: bool,
    /// A container of the pod is privileged.
    pub privileged: bool,
}

/// A container, as its OCI spec tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerView {
    /// The container is privileged.
    pub privileged: bool,
    /// Capabilities beyond the default set as the pod writes them and in its order; `ALL` alone if it adds them all.
    pub added_capabilities: Vec<String>,
    /// Mounts that do not come into the guest, in the order of the spec; filled in by who classifies them (see
    /// [`crate::VolumeKind::violation`]).
    pub unsupported_volumes: Vec<VolumeViolation>,
}

impl SandboxView {
    /// Reads the OCI spec that containerd makes for a sandbox.
    ///
    /// A host namespace shows as a namespace that is not listed, a privileged sandbox as a writable `/sys`: containerd
    /// 2.x leaves no other trace. containerd 1.6 leaves none at all; there, the privileged container is refused
    /// ([`ContainerView`]), which without a privileged sandbox cannot exist.
    #[must_use]
    pub fn from_spec(spec: &Spec) -> Self {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let lacks = |wanted: LinuxNamespaceType| {
            !namespaces.is_some_and(|list| list.iter().any(|namespace| namespace.typ() == wanted))
        };
        Self {
            host_network: lacks(LinuxNamespaceType::Network),
            host_pid: lacks(LinuxNamespaceType::Pid),
            host_ipc: lacks(LinuxNamespaceType::Ipc),
            privileged: sys_is_writable(spec),
        }
    }
}

impl ContainerView {
    /// Reads the OCI spec that containerd makes for a container. The mounts are left to the caller.
    ///
    /// `bounding` is the spec's bounding set as it is written: the parsed one has lost its order, and takes the
    /// `CAP_CAP_CHOWN` that containerd makes of a pod's `CAP_CHOWN` for `CAP_CHOWN`.
    #[must_use]
    pub fn from_spec(spec: &Spec, bounding: &[String]) -> Self {
        let names: Vec<&str> =
            bounding.iter().map(|name| name.strip_prefix("CAP_").unwrap_or(name)).collect();
        let added_capabilities = if stands_for_all(&names) {
            vec!["ALL".to_owned()]
        } else {
            names.into_iter().filter(|name| !addable(name)).map(str::to_owned).collect()
        };
        let rules = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref())
            .and_then(|resources| resources.devices().as_ref());
        Self {
            privileged: sys_is_writable(spec)
                || rules.is_some_and(|rules| rules.iter().any(allows_every_device)),
            added_capabilities,
            unsupported_volumes: Vec::new(),
        }
    }
}

/// Whether `/sys` is mounted without `ro`, which containerd does for privilege alone.
fn sys_is_writable(spec: &Spec) -> bool {
    spec.mounts().iter().flatten().any(|mount| {
        mount.destination().as_os_str() == "/sys"
            && mount.typ().as_deref() == Some("sysfs")
            && !mount.options().iter().flatten().any(|option| option == "ro" || option == "rro")
    })
}

/// Whether a device rule opens every device to writing or making, which containerd does for privilege alone.
fn allows_every_device(rule: &LinuxDeviceCgroup) -> bool {
    let wild = |number: Option<i64>| number.is_none_or(|number| number < 0);
    rule.allow()
        && matches!(rule.typ(), None | Some(LinuxDeviceType::A))
        && wild(rule.major())
        && wild(rule.minor())
        && rule.access().as_deref().is_none_or(|access| access.contains('w'))
}

#[cfg(test)]
mod tests;
