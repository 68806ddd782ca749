//! The `[policy]` section of `ravelin.toml`.

use serde::Deserialize;

use crate::file_volumes::HostPath;

/// What pods may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// The base on which [`PolicyConfig::allow`] makes exceptions.
    pub mode: Mode,
    /// Exceptions, item by item.
    pub allow: Allow,
    /// CSI drivers whose volumes are mounted in mode `fargate`; `*` stands for any. Mode `guest` mounts those of all.
    pub csi_drivers: Vec<String>,
    /// Directories of the node that pods may mount, in mode `guest` only.
    pub host_paths: Vec<HostPath>,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            allow: Allow::default(),
            // What Fargate mounts.
            csi_drivers: vec!["efs.csi.aws.com".to_owned()],
            host_paths: Vec::new(),
        }
    }
}

/// A set of answers for every item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refuse what AWS EKS Fargate refuses.
    #[default]
    Fargate,
    /// Host namespaces, privilege, capabilities and host ports are granted, and mean the guest's; so are all volumes that the
    /// kubelet mounts for a pod. Paths of the host are still refused, but for those that are listed.
    Guest,
}

/// Per-item switches: `true` grants, `false` refuses, unset follows the mode.
///
/// What a container runtime does not see (`allowPrivilegeEscalation: true`, host ports) has none: only a check of the whole
/// pod judges it, by the mode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allow {
    /// `hostNetwork: true`; what the pod gets is the guest's network.
    pub host_network: Option<bool>,
    /// `hostPID: true`; what the pod sees is the guest's processes.
    pub host_pid: Option<bool>,
    /// `hostIPC: true`; what the pod sees is the guest's IPC objects.
    pub host_ipc: Option<bool>,
    /// `privileged: true`; privileged inside the guest.
    pub privileged: Option<bool>,
    /// Capabilities beyond the default set.
    pub capabilities: Option<bool>,
    /// CSI volumes that the pod's own spec describes (inline, ephemeral ones).
    pub inline_csi: Option<bool>,
    /// Volumes that are an image's files (`image`), read-only.
    pub image_volumes: Option<bool>,
}

impl PolicyConfig {
    /// The resolved answers.
    pub(crate) fn resolve(&self) -> Resolved {
        let base = self.mode == Mode::Guest;
        let allow = &self.allow;
        Resolved {
            host_network: allow.host_network.unwrap_or(base),
            host_pid: allow.host_pid.unwrap_or(base),
            host_ipc: allow.host_ipc.unwrap_or(base),
            privileged: allow.privileged.unwrap_or(base),
            privilege_escalation: base,
            capabilities: allow.capabilities.unwrap_or(base),
            host_ports: base,
            inline_csi: allow.inline_csi.unwrap_or(base),
            image_volumes: allow.image_volumes.unwrap_or(base),
        }
    }
}

/// [`Allow`] with the mode worked in.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is an item of the configuration")]
pub(crate) struct Resolved {
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub privileged: bool,
    pub privilege_escalation: bool,
    pub capabilities: bool,
    pub host_ports: bool,
    pub inline_csi: bool,
    pub image_volumes: bool,
}
