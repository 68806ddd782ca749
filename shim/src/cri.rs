//! What a shim reads of `PodSandboxConfig`, with which CRI describes a pod (Kubernetes's `runtime.v1`, `api.proto`).
//!
//! containerd hands it on as it came from the kubelet when its sandbox API is used. Fields that are left out here are
//! skipped when a message is read.

use std::collections::HashMap;

/// The type that containerd writes beside an encoded [`PodSandboxConfig`].
pub const POD_SANDBOX_CONFIG: &str = "runtime.v1.PodSandboxConfig";

/// A pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxConfig {
    /// Its names.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Host name; empty for the node's.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// How names are resolved; none for the node's way.
    #[prost(message, optional, tag = "4")]
    pub dns_config: Option<DnsConfig>,
    /// What is Linux's.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// A pod's names.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PodSandboxMetadata {
    /// Kubernetes's UID.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// What goes into `resolv.conf`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DnsConfig {
    /// Name servers.
    #[prost(string, repeated, tag = "1")]
    pub servers: Vec<String>,
    /// Search domains.
    #[prost(string, repeated, tag = "2")]
    pub searches: Vec<String>,
    /// Options.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
}

/// What is Linux's of a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxPodSandboxConfig {
    /// The cgroup below which the pod's are to be.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// Privileges.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxSandboxSecurityContext>,
    /// Sysctls.
    #[prost(map = "string, string", tag = "3")]
    pub sysctls: HashMap<String, String>,
    /// The sum of what the containers ask for.
    #[prost(message, optional, tag = "5")]
    pub resources: Option<LinuxContainerResources>,
}

/// A pod's privileges.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LinuxSandboxSecurityContext {
    /// Namespaces.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
    /// A container of the pod is privileged.
    #[prost(bool, tag = "6")]
    pub privileged: bool,
}

/// Whose namespaces a pod has.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NamespaceOption {
    /// Network.
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub network: i32,
    /// Processes.
    #[prost(enumeration = "NamespaceMode", tag = "2")]
    pub pid: i32,
    /// IPC objects.
    #[prost(enumeration = "NamespaceMode", tag = "3")]
    pub ipc: i32,
    /// Users and groups; none for the node's.
    #[prost(message, optional, tag = "5")]
    pub userns_options: Option<UserNamespace>,
}

/// Whose users and groups a pod has.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UserNamespace {
    /// The pod's or the node's.
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub mode: i32,
    /// Users of the pod's own.
    #[prost(message, repeated, tag = "2")]
    pub uids: Vec<IdMapping>,
    /// Groups of the pod's own.
    #[prost(message, repeated, tag = "3")]
    pub gids: Vec<IdMapping>,
}

/// A range of ids.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct IdMapping {
    /// The first on the node.
    #[prost(uint32, tag = "1")]
    pub host_id: u32,
    /// The first in the pod.
    #[prost(uint32, tag = "2")]
    pub container_id: u32,
    /// How many there are.
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

/// Whose a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum NamespaceMode {
    /// The pod's.
    Pod = 0,
    /// The container's.
    Container = 1,
    /// The node's.
    Node = 2,
    /// Another container's.
    Target = 3,
}

/// What a container, or a whole pod, asks for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LinuxContainerResources {
    /// CFS period in microseconds.
    #[prost(int64, tag = "1")]
    pub cpu_period: i64,
    /// CFS quota in microseconds.
    #[prost(int64, tag = "2")]
    pub cpu_quota: i64,
    /// CPU shares, 2 to 262144.
    #[prost(int64, tag = "3")]
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    #[prost(int64, tag = "4")]
    pub memory_limit_in_bytes: i64,
}
