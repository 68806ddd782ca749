//! The part of a Kubernetes `Pod` that the policy and the sizing look at, in the API's own spelling. As in the API, a field
//! that is `null` is one that is absent.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::quantity::Quantity;

/// Reads a field that may be `null`.
fn null_is_absent<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `spec`.
    #[serde(deserialize_with = "null_is_absent")]
    pub spec: PodSpec,
}

/// A pod's `spec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// `hostNetwork`.
    #[serde(deserialize_with = "null_is_absent")]
    pub host_network: bool,
    /// `hostPID`.
    #[serde(rename = "hostPID")]
    #[serde(deserialize_with = "null_is_absent")]
    pub host_pid: bool,
    /// `hostIPC`.
    #[serde(rename = "hostIPC")]
    #[serde(deserialize_with = "null_is_absent")]
    pub host_ipc: bool,
    /// `volumes`.
    #[serde(deserialize_with = "null_is_absent")]
    pub volumes: Vec<Volume>,
    /// `initContainers`, native sidecars included.
    #[serde(deserialize_with = "null_is_absent")]
    pub init_containers: Vec<Container>,
    /// `containers`.
    #[serde(deserialize_with = "null_is_absent")]
    pub containers: Vec<Container>,
    /// `ephemeralContainers`.
    #[serde(deserialize_with = "null_is_absent")]
    pub ephemeral_containers: Vec<Container>,
    /// `resources` of the whole pod.
    #[serde(deserialize_with = "null_is_absent")]
    pub resources: ResourceRequirements,
}

/// A volume of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// `name`, unique in the pod.
    #[serde(deserialize_with = "null_is_absent")]
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
    /// `hostPath`.
    pub host_path: Option<HostPathSource>,
    /// `csi`, an inline volume.
    pub csi: Option<CsiSource>,
    /// Every other source, by its field's name.
    #[serde(flatten)]
    pub other: BTreeMap<String, Option<IgnoredAny>>,
}

/// A volume's `persistentVolumeClaim`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSource {
    /// `claimName`.
    #[serde(deserialize_with = "null_is_absent")]
    pub claim_name: String,
}

/// A volume's `hostPath`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct HostPathSource {
    /// `path`.
    #[serde(deserialize_with = "null_is_absent")]
    pub path: String,
}

/// A volume's `csi`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CsiSource {
    /// `driver`.
    #[serde(deserialize_with = "null_is_absent")]
    pub driver: String,
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
    #[serde(deserialize_with = "null_is_absent")]
    pub name: String,
    /// `restartPolicy`; `Always` makes an init container a native sidecar.
    pub restart_policy: Option<String>,
    /// `securityContext`.
    #[serde(deserialize_with = "null_is_absent")]
    pub security_context: SecurityContext,
    /// `ports`.
    #[serde(deserialize_with = "null_is_absent")]
    pub ports: Vec<ContainerPort>,
    /// `resources`.
    #[serde(deserialize_with = "null_is_absent")]
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
    #[serde(deserialize_with = "null_is_absent")]
    pub capabilities: Capabilities,
}

/// A security context's `capabilities`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// `add`.
    #[serde(deserialize_with = "null_is_absent")]
    pub add: Vec<String>,
}

/// One of a container's `ports`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// `hostPort`; 0 means none.
    #[serde(deserialize_with = "null_is_absent")]
    pub host_port: i32,
    /// `hostIP`; empty means none.
    #[serde(rename = "hostIP")]
    #[serde(deserialize_with = "null_is_absent")]
    pub host_ip: String,
}

/// `resources` of a container or a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    /// `requests`, by resource name.
    #[serde(deserialize_with = "null_is_absent")]
    pub requests: BTreeMap<String, Quantity>,
    /// `limits`, by resource name.
    #[serde(deserialize_with = "null_is_absent")]
    pub limits: BTreeMap<String, Quantity>,
}

impl ResourceRequirements {
    /// The request for `resource`; as in the API server's defaults, a limit without a request is one.
    #[must_use]
    pub fn request(&self, resource: &str) -> Option<Quantity> {
        self.requests.get(resource).or_else(|| self.limits.get(resource)).copied()
    }
}
