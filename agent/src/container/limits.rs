//! A container's limits, for the guest: what means the same there passes, what names things of the node does not.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::error::{AgentError, Result};

/// The limits that mean something in the guest. The device rules are enforced by the agent itself.
///
/// Without effect, as with cgroup v2 on a node: classes and priorities of network traffic, kernel memory, swappiness,
/// realtime budgets. Without object: RDMA. Of the node alone: which CPUs and memory nodes are used.
///
/// # Errors
///
/// [`AgentError::Invalid`] for what the guest cannot enforce and a container would miss: limits of block devices, which
/// the node's numbers name, and control files that the guest's kernel does not have.
pub fn limit(resources: &LinuxResources, has_control: &dyn Fn(&str) -> bool) -> Result<LinuxResources> {
    let mut limits = LinuxResources::default();
    limits.set_devices(None);
    let mut unified = HashMap::new();
    let swap = has_control("memory.swap.max");
    limits.set_memory(resources.memory().map(|memory| limit_memory(memory, swap)));
    if swap && resources.memory().is_some_and(has_no_swap) {
        // libcontainer takes nought for "not said".
        unified.insert("memory.swap.max".to_owned(), "0".to_owned());
    }
    limits.set_cpu(resources.cpu().as_ref().map(limit_cpu));
    limits.set_pids(*resources.pids());
    limits.set_hugepage_limits(resources.hugepage_limits().as_ref().map(|limits| {
        let known = |limit: &&LinuxHugepageLimit| has_control(&format!("hugetlb.{}.max", limit.page_size()));
        limits.iter().filter(known).cloned().collect()
    }));
    if let Some(weight) = resources.block_io().as_ref().map(io_weight).transpose()?.flatten() {
        unified.insert("io.weight".to_owned(), weight.to_string());
    }
    for (file, value) in resources.unified().iter().flatten() {
        if check_unified(file, value, has_control)? {
            unified.insert(file.clone(), value.clone());
        }
    }
    limits.set_unified(Some(unified).filter(|unified| !unified.is_empty()));
    Ok(limits)
}

/// Whether a control file is to be written.
fn check_unified(file: &str, value: &str, has_control: &dyn Fn(&str) -> bool) -> Result<bool> {
    let refused =
        |why: &str| Err(AgentError::Invalid(format!("the limit {file}={value:?} cannot be set: {why}")));
    if file.starts_with("cpuset.") {
        return Ok(false);
    }
    if file.contains('/') {
        return refused("it is no file of a cgroup");
    }
    if file.starts_with("io.") && value.contains(':') {
        return refused("it names a device of the node");
    }
    if !has_control(file) {
        return refused("the guest's kernel has no such control");
    }
    Ok(true)
}

/// The weight of a container's block I/O, from 1 to 10000.
fn io_weight(io: &LinuxBlockIo) -> Result<Option<u64>> {
    let devices = io.weight_device().iter().flatten().next().is_some()
        || [
            io.throttle_read_bps_device(),
            io.throttle_write_bps_device(),
            io.throttle_read_iops_device(),
            io.throttle_write_iops_device(),
        ]
        .into_iter()
        .any(|throttled| throttled.iter().flatten().next().is_some());
    if devices {
        return Err(AgentError::Invalid(
            "limits of block devices cannot be set: they name devices of the node".to_owned(),
        ));
    }
    // From version 1's range of 10 to 1000, as runc converts it.
    let weight = io.weight().filter(|weight| *weight != 0);
    Ok(weight.map(|weight| 1 + u64::from(weight).saturating_sub(10) * 9999 / 990))
}

fn limit_memory(memory: LinuxMemory, swap: bool) -> LinuxMemory {
    let mut limits = LinuxMemory::default();
    limits.set_limit(memory.limit().filter(|limit| *limit != 0));
    limits.set_reservation(memory.reservation().filter(|reservation| *reservation != 0));
    if swap && limits.limit().is_some() {
        limits.set_swap(memory.swap());
    }
    limits
}

/// Whether memory and swap together may be no more than memory alone.
fn has_no_swap(memory: LinuxMemory) -> bool {
    memory.limit().is_some_and(|limit| limit > 0) && memory.limit() == memory.swap()
}

/// Everything but the host's CPU numbers and realtime budgets, which cgroup v2 lacks.
fn limit_cpu(cpu: &LinuxCpu) -> LinuxCpu {
    let mut limits = LinuxCpu::default();
    limits.set_shares(cpu.shares());
    limits.set_quota(cpu.quota().filter(|quota| *quota != 0));
    limits.set_period(cpu.period().filter(|period| *period != 0));
    limits.set_burst(cpu.burst());
    limits.set_idle(cpu.idle());
    limits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limited(resources: serde_json::Value) -> Result<LinuxResources> {
        let known = ["hugetlb.2MB.max", "memory.oom.group", "memory.high", "io.weight", "io.max", "a/b"];
        limit(&serde_json::from_value(resources).unwrap(), &|file| known.contains(&file))
    }

    #[test]
    fn what_means_the_same_in_the_guest_passes() {
        let limits = limited(json!({
            "cpu": { "shares": 512, "cpus": "40-47", "mems": "1", "realtimeRuntime": 5, "quota": 0 },
            "memory": { "limit": 1_048_576, "swap": 1_048_576, "swappiness": 60, "kernel": 5 },
            "pids": { "limit": 10 },
            "blockIO": { "weight": 500 },
            "network": { "classID": 7 },
            "rdma": { "mlx5_1": { "hcaHandles": 3 } },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }, { "pageSize": "1GB", "limit": 0 }],
            "unified": { "memory.oom.group": "1", "memory.high": "5", "cpuset.cpus": "9" },
            "devices": [{ "allow": false, "access": "rwm" }]
        }));
        let expected = json!({
            "cpu": { "shares": 512 },
            "memory": { "limit": 1_048_576 },
            "pids": { "limit": 10 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
            "unified": { "memory.oom.group": "1", "memory.high": "5", "io.weight": "4950" }
        });
        assert_eq!(serde_json::to_value(limits.unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_container_that_may_not_swap_is_given_no_swap() {
        let swap = |memory: serde_json::Value, unified: serde_json::Value| {
            let resources = json!({ "memory": memory, "unified": unified });
            let limits = limit(&serde_json::from_value(resources).unwrap(), &|_| true).unwrap();
            limits.unified().as_ref().and_then(|unified| unified.get("memory.swap.max").cloned())
        };
        assert_eq!(swap(json!({ "limit": 4096, "swap": 4096 }), json!({})).as_deref(), Some("0"));
        for memory in [json!({ "limit": 4096, "swap": 8192 }), json!({ "limit": -1, "swap": -1 }), json!({})]
        {
            assert_eq!(swap(memory, json!({})), None);
        }
        let told = swap(json!({ "limit": 4096, "swap": 4096 }), json!({ "memory.swap.max": "1" }));
        assert_eq!(told.as_deref(), Some("1"));
    }

    #[test]
    fn what_the_guest_cannot_enforce_is_refused_by_name() {
        for (resources, word) in [
            (json!({ "unified": { "io.max": "8:0 rbps=1" } }), "io.max"),
            (json!({ "unified": { "a/b": "1" } }), "a/b"),
            (json!({ "unified": { "memory.nothing": "1" } }), "memory.nothing"),
            (
                json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 5 }] } }),
                "block",
            ),
            (
                json!({ "blockIO": { "throttleWriteIOPSDevice": [{ "major": 8, "minor": 0, "rate": 5 }] } }),
                "block",
            ),
            (json!({ "blockIO": { "weightDevice": [{ "major": 8, "minor": 0, "weight": 5 }] } }), "block"),
        ] {
            let refused = limited(resources.clone()).unwrap_err();
            assert!(
                matches!(&refused, AgentError::Invalid(text) if text.contains(word)),
                "{resources}: {refused}"
            );
        }
        // Empty lists are no limits.
        limited(json!({ "blockIO": { "throttleReadBpsDevice": [] } })).unwrap();
    }
}
