//! What a sandbox is to be, in whichever of its two ways containerd says it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use ravelin_policy::{SandboxResources, SandboxView};

use crate::cri::{IdMapping, LinuxContainerResources, NamespaceMode, PodSandboxConfig};
use crate::error::TaskError;
use crate::spec;

/// Sysctls that containerd 2.x sets for a pause container unless the pod sets them: low ports and pings need no
/// privileges in a network namespace of one's own.
const SYSCTLS: [(&str, &str); 2] = [("net.ipv4.ip_unprivileged_port_start", "0"), (PING, "0 2147483647")];
const PING: &str = "net.ipv4.ping_group_range";

/// A sandbox as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// containerd's id of it.
    pub sandbox_id: String,
    /// Kubernetes's UID of the pod; may be empty.
    pub pod_uid: String,
    /// What policy judges.
    pub view: SandboxView,
    /// The sum of what its containers ask for.
    pub resources: SandboxResources,
    /// Host name; empty for the node's.
    pub hostname: String,
    /// The network namespace the CNI has set up; none for the node's.
    pub netns: Option<PathBuf>,
    /// Its cgroup in the form of the OCI spec; none if it is left to the runtime.
    pub cgroups_path: Option<String>,
    /// Sysctls for its namespaces.
    pub sysctls: HashMap<String, String>,
    /// Users and groups of its own; none for the node's.
    pub users: Option<IdMappings>,
}

/// The users and groups of a user namespace, in ranges of ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMappings {
    /// Users.
    pub uids: Vec<IdMapping>,
    /// Groups.
    pub gids: Vec<IdMapping>,
}

impl Request {
    /// As the task API asks for it: by the OCI spec of a pause container.
    #[must_use]
    pub fn from_spec(sandbox_id: &str, spec: &Spec) -> Self {
        Self {
            sandbox_id: sandbox_id.to_owned(),
            pod_uid: spec::annotation(spec, spec::SANDBOX_UID).unwrap_or_default().to_owned(),
            view: SandboxView::from_spec(spec),
            resources: SandboxResources::from_annotations(|key| spec::annotation(spec, key)),
            hostname: spec.hostname().clone().unwrap_or_default(),
            netns: spec::network_namespace(spec),
            cgroups_path: spec::cgroups_path(spec),
            sysctls: spec::sysctls(spec),
            users: spec::id_mappings(spec).map(|(uids, gids)| IdMappings { uids, gids }),
        }
    }

    /// As the sandbox API asks for it: in CRI's words, with the network namespace beside them.
    ///
    /// # Errors
    /// For a user namespace that is neither the pod's nor the node's, which containerd refuses where it writes a spec.
    pub fn from_cri(sandbox_id: &str, netns: &str, config: &PodSandboxConfig) -> Result<Self, TaskError> {
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        let namespaces = security.namespace_options.unwrap_or_default();
        let of_the_node = |mode: i32| mode == NamespaceMode::Node as i32;
        let users = namespaces.userns_options.filter(|users| !of_the_node(users.mode));
        if let Some(users) = &users
            && users.mode != NamespaceMode::Pod as i32
        {
            return Err(TaskError::InvalidArgument(format!(
                "unsupported user namespace mode: {:?}",
                users.mode()
            )));
        }
        let mut sysctls = linux.sysctls;
        for (name, value) in SYSCTLS {
            // The groups that may ping must all be the pod's own.
            if users.is_some() && name == PING {
                continue;
            }
            sysctls.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        let host_network = of_the_node(namespaces.network);
        Ok(Self {
            sandbox_id: sandbox_id.to_owned(),
            pod_uid: config.metadata.as_ref().map(|names| names.uid.clone()).unwrap_or_default(),
            view: SandboxView {
                host_network,
                host_pid: of_the_node(namespaces.pid),
                host_ipc: of_the_node(namespaces.ipc),
                privileged: security.privileged,
            },
            resources: resources(&linux.resources.unwrap_or_default()),
            hostname: config.hostname.clone(),
            netns: (!netns.is_empty() && !host_network).then(|| netns.into()),
            cgroups_path: cgroups_path(&linux.cgroup_parent, sandbox_id),
            sysctls,
            users: users.map(|users| IdMappings { uids: users.uids, gids: users.gids }),
        })
    }
}

fn resources(resources: &LinuxContainerResources) -> SandboxResources {
    SandboxResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit: resources.memory_limit_in_bytes,
    }
}

/// The cgroup that containerd names for a pause container below this parent.
fn cgroups_path(parent: &str, sandbox_id: &str) -> Option<String> {
    let name = Path::new(parent).file_name()?.to_str()?;
    if name.ends_with(".slice") {
        return Some(format!("{name}:cri-containerd:{sandbox_id}"));
    }
    Some(format!("{}/{sandbox_id}", parent.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, PodSandboxMetadata,
        UserNamespace,
    };
    use serde_json::json;

    #[test]
    fn both_ways_of_asking_ask_for_the_same() {
        let namespace = |network: NamespaceMode, ipc: NamespaceMode| NamespaceOption {
            network: network.into(),
            pid: NamespaceMode::Container.into(),
            ipc: ipc.into(),
            userns_options: None,
        };
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { uid: "u-1".into() }),
            hostname: "web".into(),
            dns_config: None,
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespace(NamespaceMode::Pod, NamespaceMode::Node)),
                    privileged: false,
                }),
                sysctls: HashMap::from([("net.ipv4.ping_group_range".to_owned(), "1 0".to_owned())]),
                resources: Some(LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_quota: 50_000,
                    cpu_shares: 512,
                    memory_limit_in_bytes: 1 << 30,
                }),
            }),
        };
        let spec = serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "hostname": "web",
            "mounts": [{ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }],
            "linux": {
                "cgroupsPath": "/kubepods/pod1/abc",
                "sysctl": { "net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "1 0" },
                "namespaces": [{ "type": "pid" }, { "type": "network", "path": "/var/run/netns/cni-1" }]
            },
            "annotations": {
                spec::SANDBOX_UID: "u-1",
                SandboxResources::CPU_PERIOD: "100000", SandboxResources::CPU_QUOTA: "50000",
                SandboxResources::CPU_SHARES: "512", SandboxResources::MEMORY: "1073741824"
            }
        }))
        .unwrap();
        let by_cri = Request::from_cri("abc", "/var/run/netns/cni-1", &config).unwrap();
        assert_eq!(by_cri, Request::from_spec("abc", &spec));
        assert!(by_cri.view.host_ipc && !by_cri.view.host_network);

        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        let mapping = IdMapping { host_id: 65_536, container_id: 0, length: 65_536 };
        let mut users = UserNamespace { mode: 0, uids: vec![mapping], gids: vec![mapping] };
        let options = security.namespace_options.as_mut().unwrap();
        options.userns_options = Some(users.clone());
        let mut spec = serde_json::to_value(&spec).unwrap();
        let json = json!([{ "containerID": 0, "hostID": 65_536, "size": 65_536 }]);
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user", "path": "/x" }));
        spec["linux"]["uidMappings"] = json.clone();
        spec["linux"]["gidMappings"] = json;
        let spec = serde_json::from_value(spec).unwrap();
        let by_cri = Request::from_cri("abc", "/var/run/netns/cni-1", &config).unwrap();
        assert_eq!(by_cri, Request::from_spec("abc", &spec));
        assert_eq!(by_cri.users, Some(IdMappings { uids: vec![mapping], gids: vec![mapping] }));
        for mode in [NamespaceMode::Container, NamespaceMode::Target] {
            users.mode = mode.into();
            let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            security.namespace_options.as_mut().unwrap().userns_options = Some(users.clone());
            let refused = Request::from_cri("abc", "", &config).unwrap_err().to_string();
            assert!(refused.contains(&format!("unsupported user namespace mode: {mode:?}")), "{refused}");
        }
        users.mode = NamespaceMode::Node.into();
        let linux = config.linux.as_mut().unwrap();
        linux.sysctls.clear();
        let security = linux.security_context.as_mut().unwrap();
        security.namespace_options.as_mut().unwrap().userns_options = Some(users);
        let by_cri = Request::from_cri("abc", "/var/run/netns/cni-1", &config).unwrap();
        assert!(by_cri.users.is_none() && by_cri.sysctls.contains_key(PING));
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.privileged = true;
        security.namespace_options = Some(namespace(NamespaceMode::Node, NamespaceMode::Pod));
        let request = Request::from_cri("abc", "", &config).unwrap();
        assert!(request.view.privileged && request.view.host_network && request.netns.is_none());
        assert_eq!(Request::from_cri("abc", "", &PodSandboxConfig::default()).unwrap().cgroups_path, None);
    }

    #[test]
    fn a_slice_has_a_scope_in_it() {
        let path = cgroups_path("/kubepods.slice/kubepods-pod1.slice", "abc");
        assert_eq!(path.as_deref(), Some("kubepods-pod1.slice:cri-containerd:abc"));
        assert_eq!(cgroups_path("/k8s.io/", "abc").as_deref(), Some("/k8s.io/abc"));
        assert_eq!(cgroups_path("", "abc"), None);
    }
}
