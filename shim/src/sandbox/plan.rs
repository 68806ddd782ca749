//! What a sandbox is to be, judged and sized, before anything is started.

use std::collections::HashMap;
use std::path::PathBuf;

use ravelin_policy::{MAX_MEMORY_MIB, MIN_MEMORY_MIB, Size, check_sandbox, size};
use ravelin_proto::agent::{IdRange, UserNamespace};
use ravelin_vmm::jail::MOST_OTHER_THREADS;

use super::files::PodFiles;
use super::request::{IdMappings, Request};
use crate::cgroup::{Limits, PodCgroup};
use crate::config::Config;
use crate::cri::IdMapping;
use crate::error::TaskError;

/// Longest hostname, in bytes.
const MAX_HOSTNAME: usize = 64;

/// A pod to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// containerd's id of the sandbox.
    pub sandbox_id: String,
    /// Kubernetes's UID of the pod; may be empty.
    pub pod_uid: String,
    /// Hostname.
    pub hostname: String,
    /// The network namespace the CNI has set up.
    pub netns: PathBuf,
    /// The pod's cgroup, in the form of the OCI spec.
    pub cgroups_path: String,
    /// Sysctls for the pod's namespaces.
    pub sysctls: HashMap<String, String>,
    /// The machine's size.
    pub size: Size,
    /// MiB of memory beyond it that the guest is given only when the pod is resized.
    pub headroom_mib: u32,
    /// CPU shares of the pod's cgroup, if it asks for CPU.
    pub cpu_shares: Option<u64>,
    /// The pod asked for the host's IPC objects, and may have the guest's.
    pub host_ipc: bool,
    /// Its user namespace, if it has one of its own.
    pub user_namespace: Option<UserNamespace>,
    /// The files that containerd does not make for it.
    pub files: Option<PodFiles>,
}

impl Plan {
    /// Judges what is asked for and sizes it, to fit into what the node allows the pod.
    ///
    /// # Errors
    /// The policy's refusal, a size that does not exist or does not fit, or what the request lacks.
    pub fn new(request: Request, config: &Config) -> Result<Self, TaskError> {
        let mut plan = Self::judge(request, config)?;
        let cgroup = PodCgroup::open(&plan.cgroups_path).map_err(TaskError::failed)?;
        plan.fit(cgroup.memory_allowed_above(), config)?;
        let most = u32::try_from(MAX_MEMORY_MIB).unwrap_or(u32::MAX);
        plan.headroom_mib = plan.headroom_mib.min(most.saturating_sub(plan.size.memory_mib));
        Ok(plan)
    }

    fn judge(request: Request, config: &Config) -> Result<Self, TaskError> {
        let (view, resources) = (request.view, request.resources);
        check_sandbox(&view, &config.policy).map_err(|refusal| TaskError::Refused(refusal.to_string()))?;
        let size = size(resources.requests(), &config.sizing)
            .map_err(|error| TaskError::Refused(error.to_string()))?;
        // A pod without a name of its own has the node's, as with runc.
        let hostname = Some(request.hostname)
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
        if hostname.len() > MAX_HOSTNAME {
            return Err(TaskError::InvalidArgument(format!(
                "the pod's hostname {hostname:?} is longer than {MAX_HOSTNAME} bytes"
            )));
        }
        let netns = request.netns.ok_or_else(|| {
            TaskError::Failed(
                "not supported yet: a pod without a network namespace of its own (hostNetwork)".to_owned(),
            )
        })?;
        let shares = u64::try_from(resources.cpu_shares).ok().filter(|shares| *shares > 2);
        Ok(Self {
            cgroups_path: request.cgroups_path.unwrap_or_else(|| format!("/ravelin-{}", request.sandbox_id)),
            sandbox_id: request.sandbox_id,
            pod_uid: request.pod_uid,
            hostname,
            netns,
            sysctls: request.sysctls,
            size,
            headroom_mib: config.sizing.resize_headroom_mib,
            cpu_shares: shares,
            host_ipc: view.host_ipc,
            user_namespace: request.users.as_ref().map(user_namespace).transpose()?,
            files: None,
        })
    }

    /// Makes the machine no larger than the cgroups above the pod's allow (`allowed` bytes), if they have a limit.
    ///
    /// The kubelet's limit is the containers' limits and the RuntimeClass's overhead, which can be less than a row of
    /// Fargate's table. A guest takes all the memory it is given, for its page cache if for nothing else: one with more
    /// than the node has set apart would be killed with everything in it.
    ///
    /// # Errors
    /// When what is allowed is too little for a guest.
    fn fit(&mut self, allowed: Option<u64>, config: &Config) -> Result<(), TaskError> {
        let Some(allowed_mib) = allowed.map(|bytes| bytes >> 20) else { return Ok(()) };
        let room = allowed_mib.saturating_sub(u64::from(config.vmm.overhead_mib));
        if room >= u64::from(self.size.memory_mib) {
            return Ok(());
        }
        if room < MIN_MEMORY_MIB {
            return Err(TaskError::Failed(format!(
                "the node allows the pod {allowed_mib} MiB of memory, too little for a machine: {} MiB for its process and {MIN_MEMORY_MIB} MiB for its guest at least; give the RuntimeClass an overhead of 320Mi of memory",
                config.vmm.overhead_mib
            )));
        }
        tracing::info!(
            sandbox = self.sandbox_id,
            wanted_mib = self.size.memory_mib,
            given_mib = room,
            "the machine gets less memory: the node allows the pod {allowed_mib} MiB"
        );
        self.size.memory_mib = u32::try_from(room).unwrap_or(u32::MAX);
        Ok(())
    }

    /// The limits of the pod's cgroup, in which the machine runs.
    #[must_use]
    pub fn limits(&self, config: &Config) -> Limits {
        let (quota, period) = self.size.cpu_max().unzip();
        Limits {
            cpu_quota_us: quota.and_then(|quota| i64::try_from(quota).ok()),
            cpu_period_us: period.unwrap_or(100_000),
            cpu_shares: self.cpu_shares,
            memory_bytes: Some(machine_bytes(self.size.memory_mib, config)),
            threads: Some(u64::from(self.size.vcpus) + MOST_OTHER_THREADS + ravelin_fs::THREADS),
        }
    }
}

/// A user namespace as the agent is told of it.
fn user_namespace(users: &IdMappings) -> Result<UserNamespace, TaskError> {
    Ok(UserNamespace {
        users: Some(range("users", &users.uids)?),
        groups: Some(range("groups", &users.gids)?),
    })
}

fn range(of: &str, mappings: &[IdMapping]) -> Result<IdRange, TaskError> {
    let refused = |why: String| {
        TaskError::InvalidArgument(format!("the {of} of the pod's user namespace (hostUsers: false) {why}"))
    };
    match mappings {
        [IdMapping { container_id: 0, host_id: first, length: size }]
            if *first > 0 && *size > 0 && first.checked_add(*size).is_some() =>
        {
            Ok(IdRange { first: *first, size: *size })
        }
        [one] => Err(refused(format!(
            "must begin with 0, be others than the node's root and end before 4294967295: {} of them are asked for, {} and on, as the node's {} and on",
            one.length, one.container_id, one.host_id
        ))),
        several => Err(refused(format!("must be in one range, and not in {}", several.len()))),
    }
}

/// Bytes of memory that a machine may use whose guest has so many MiB.
pub(super) fn machine_bytes(guest_mib: u32, config: &Config) -> u64 {
    (u64::from(guest_mib) + u64::from(config.vmm.overhead_mib)) << 20
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ravelin_policy::SandboxResources;
    use serde_json::json;

    fn sandbox(annotations: serde_json::Value, namespaces: serde_json::Value) -> Request {
        let spec = serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "hostname": "web",
            "mounts": [{ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }],
            "linux": { "cgroupsPath": "/k8s.io/abc", "namespaces": namespaces },
            "annotations": annotations
        }));
        Request::from_spec("abc", &spec.unwrap())
    }

    fn own_namespaces() -> serde_json::Value {
        json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
               { "type": "network", "path": "/var/run/netns/cni-1" }])
    }

    /// Some pod's.
    pub fn plan(config: &Config) -> Plan {
        Plan::judge(sandbox(json!({}), own_namespaces()), config).unwrap()
    }

    #[test]
    fn a_pod_that_says_nothing_gets_the_smallest_size_and_a_cpu_limit() {
        let config = Config::default();
        let plan = Plan::judge(sandbox(json!({}), own_namespaces()), &config).unwrap();
        assert_eq!((plan.size.vcpus, plan.size.memory_mib), (1, 512));
        let limits = plan.limits(&config);
        assert_eq!((limits.cpu_quota_us, limits.cpu_period_us), (Some(25_000), 100_000));
        assert_eq!(limits.memory_bytes, Some(576 << 20));
    }

    #[test]
    fn a_pod_in_the_hosts_namespaces_is_refused_in_fargates_words() {
        let request = sandbox(json!({}), json!([{ "type": "mount" }, { "type": "uts" }]));
        let error = Plan::judge(request, &Config::default()).unwrap_err().to_string();
        assert_eq!(
            error,
            "Pod not supported on Fargate: fields not supported: HostNetwork, HostPID, HostIPC"
        );
    }

    #[test]
    fn a_machine_is_no_larger_than_the_node_allows_the_pod() {
        let config = Config::default();
        let annotations = json!({ SandboxResources::MEMORY: (512_u64 << 20).to_string() });
        let mut plan = Plan::judge(sandbox(annotations, own_namespaces()), &config).unwrap();
        assert_eq!(plan.size.memory_mib, 1024);
        for (allowed_mib, memory_mib) in [(None, 1024), (Some(1088), 1024), (Some(832), 768)] {
            plan.fit(allowed_mib.map(|mib: u64| mib << 20), &config).unwrap();
            assert_eq!(plan.size.memory_mib, memory_mib);
        }
        assert_eq!(plan.limits(&config).memory_bytes, Some(832 << 20));
        let error = plan.fit(Some(191 << 20), &config).unwrap_err().to_string();
        assert!(error.contains("191 MiB") && error.contains("overhead"), "{error}");
    }

    #[test]
    fn a_user_namespace_begins_with_root_and_is_one_range() {
        let mapping = |container_id, host_id, length| IdMapping { host_id, container_id, length };
        let planned = |uids: &[IdMapping], gids: &[IdMapping]| {
            let users = Some(IdMappings { uids: uids.to_vec(), gids: gids.to_vec() });
            let request = Request { users, ..sandbox(json!({}), own_namespaces()) };
            Plan::judge(request, &Config::default()).map(|plan| plan.user_namespace)
        };
        let (users, groups) = (mapping(0, 65_536, 65_536), mapping(0, 131_072, 10));
        let range = |first, size| Some(IdRange { first, size });
        let asked = UserNamespace { users: range(65_536, 65_536), groups: range(131_072, 10) };
        assert_eq!(planned(&[users], &[groups]).unwrap(), Some(asked));
        for bad in [
            vec![],
            vec![users, users],
            vec![mapping(1, 65_536, 5)],
            vec![mapping(0, 0, 5)],
            vec![mapping(0, 5, 0)],
            vec![mapping(0, u32::MAX - 5, 6)],
        ] {
            let error = planned(&bad, &[groups]).unwrap_err().to_string();
            assert!(error.contains("the users of the pod's user namespace"), "{error}");
            planned(&[users], &bad).unwrap_err();
        }
    }

    #[test]
    fn a_pod_that_is_too_big_is_refused() {
        let annotations = json!({ SandboxResources::MEMORY: (200_u64 << 30).to_string() });
        let error = Plan::judge(sandbox(annotations, own_namespaces()), &Config::default()).unwrap_err();
        assert!(error.to_string().contains("exceed the max Fargate configuration"), "{error}");
    }
}
