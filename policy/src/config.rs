//! The `[policy]` section of `ravelin.toml`.

use serde::Deserialize;

/// What pods may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// The base on which [`PolicyConfig::allow`] makes exceptions.
    pub mode: Mode,
    /// Exceptions, item by item.
    pub allow: Allow,
}

/// A set of answers for every item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refuse what AWS EKS Fargate refuses.
    #[default]
    Fargate,
    /// Host namespaces, privilege, capabilities and host ports are granted, and mean the guest's. Volumes from the
    /// host's file system are still refused.
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
}
