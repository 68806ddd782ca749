//! The part of a Kubernetes `Pod` that the policy and the sizing look at, in the API's own spelling.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::quantity::Quantity;

/// A pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `spec`.
    pub spec: PodSpec,
}

/// A pod's `spec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// `hostNetwork`.
    pub host_network: bool,
    /// `hostPID`.
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    /// `hostIPC`.
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    /// `volumes`.
    pub volumes: Vec<Volume>,
    /// `initContainers`, native sidecars included.
    pub init_containers: Vec<Container>,
    /// `containers`.
    pub containers: Vec<Container>,
    /// `ephemeralContainers`.
    pub ephemeral_containers: Vec<Container>,
    /// `resources` of the whole pod.
    pub resources: ResourceRequirements,
}

/// A volume of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// `name`, unique in the pod.
    pub name: String,
    /// `emptyDir`.
    pub empty_dir: Option<IgnoredAny>,
    /// `secret`.
    pub secret: Option<IgnoredAny>,
    /// `configMap`.
    pub config_map: Option<IgnoredAny>,
    /// `projected`.
    pub projected: Option<IgnoredAny>,
    /// `downwardAPI`.
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<IgnoredAny>,
    /// `nfs`.
    pub nfs: Option<IgnoredAny>,
    /// `persistentVolumeClaim`.
    pub persistent_volume_claim: Option<ClaimSource>,
    /// Every other source, by its field's name.
    #[serde(flatten)]
    pub other: BTreeMap<String, Option<IgnoredAny>>,
}

/// A volume's `persistentVolumeClaim`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSource {
    /// `claimName`.
    pub claim_name: String,
}

/// What is known about the persistent volume claims of the pod's namespace, by name.
pub type Claims = BTreeMap<String, Claim>;

/// A persistent volume claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It has no volume yet.
    Pending,
    /// It is bound.
    Bound {
        /// The persistent volume's name.
        volume: String,
        /// The persistent volume's CSI driver, if it has one.
        driver: Option<String>,
    },
}

/// A container of any of the three lists.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// `name`, unique in the pod.
    pub name: String,
    /// `restartPolicy`; `Always` makes an init container a native sidecar.
    pub restart_policy: Option<String>,
    /// `securityContext`.
    pub security_context: SecurityContext,
    /// `ports`.
    pub ports: Vec<ContainerPort>,
    /// `resources`.
    pub resources: ResourceRequirements,
}

/// A container's `securityContext`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityContext {
    /// `privileged`.
    pub privileged: Option<bool>,
    /// `allowPrivilegeEscalation`.
    pub allow_privilege_escalation: Option<bool>,
    /// `capabilities`.
    pub capabilities: Capabilities,
}

/// A security context's `capabilities`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// `add`.
    pub add: Vec<String>,
}

/// One of a container's `ports`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// `hostPort`; 0 means none.
    pub host_port: i32,
    /// `hostIP`; empty means none.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

/// `resources` of a container or a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    /// `requests`, by resource name.
    pub requests: BTreeMap<String, Quantity>,
    /// `limits`, by resource name.
    pub limits: BTreeMap<String, Quantity>,
}

impl ResourceRequirements {
    /// The request for `resource`; as in the API server's defaults, a limit without a request is one.
    #[must_use]
    pub fn request(&self, resource: &str) -> Option<Quantity> {
        self.requests.get(resource).or_else(|| self.limits.get(resource)).copied()
    }
}
