//! A pod whose containers are given other limits while they run.
//!
//! A machine has what it was born with. Within its vCPUs the node's limit on its CPU time follows the containers' limits
//! upwards; what the machine has not is refused, or Kubernetes would report a resize that never came to be.

use oci_spec::runtime::LinuxResources;
use ravelin_policy::Size;

use super::Sandbox;
use crate::cgroup::Limits;
use crate::error::TaskError;
use crate::sync::lock;

/// CFS period in microseconds, as Kubernetes has it.
const PERIOD_US: u64 = 100_000;

/// What containers may use at most; zero stands for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Asked {
    /// By an OCI spec's `linux.resources`.
    #[must_use]
    pub fn of(resources: &LinuxResources) -> Self {
        let cpu = resources.cpu().as_ref();
        let quota = cpu.and_then(|cpu| u64::try_from(cpu.quota()?).ok()).unwrap_or_default();
        let period = cpu.and_then(oci_spec::runtime::LinuxCpu::period).filter(|period| *period > 0);
        let memory = resources.memory().as_ref().and_then(oci_spec::runtime::LinuxMemory::limit);
        Self {
            cpu_millis: quota.saturating_mul(1000) / period.unwrap_or(PERIOD_US),
            memory_bytes: memory.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default(),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }
}

/// Whether a machine of this size can give a container `to`, which has `from`, beside what the `others` have. Less is always
/// given.
fn check(size: Size, overhead_mib: u32, from: Asked, to: Asked, others: Asked) -> Result<(), String> {
    let sum = others.plus(to);
    let cpus = u64::from(size.vcpus) * 1000;
    if to.cpu_millis > from.cpu_millis && sum.cpu_millis > cpus {
        return Err(format!(
            "the pod's machine has {} vCPUs, of which other containers have {} millis: this one can have {} millis, not {}; a pod that is to have more must be made anew",
            size.vcpus,
            others.cpu_millis,
            cpus.saturating_sub(others.cpu_millis),
            to.cpu_millis
        ));
    }
    let memory = u64::from(size.memory_mib.saturating_sub(overhead_mib)) << 20;
    if to.memory_bytes > from.memory_bytes && sum.memory_bytes > memory {
        return Err(format!(
            "the pod's machine has {} MiB of memory, of which {overhead_mib} MiB are its kernel's and other containers have {} MiB: this one can have {} MiB, not {}; a pod that is to have more must be made anew",
            size.memory_mib,
            others.memory_bytes >> 20,
            memory.saturating_sub(others.memory_bytes) >> 20,
            to.memory_bytes >> 20
        ));
    }
    Ok(())
}

impl Sandbox {
    /// Whether the machine can give a container `to`, which has `from`, beside what the `others` have.
    ///
    /// # Errors
    /// Says what it can have.
    pub fn can_give(
        &self,
        overhead_mib: u32,
        from: Asked,
        to: Asked,
        others: Asked,
    ) -> Result<(), TaskError> {
        check(self.plan.size, overhead_mib, from, to, others).map_err(TaskError::Failed)
    }

    /// Lets the machine use as much CPU time as its containers may now, and never less than it was born with.
    ///
    /// # Errors
    /// When the node's kernel refuses.
    pub fn give_cpu_time(&self, asked: Asked) -> Result<(), TaskError> {
        let size = self.plan.size;
        if size.cpu_max().is_none() {
            return Ok(());
        }
        let millis = asked.cpu_millis.clamp(u64::from(size.cpu_millis), u64::from(size.vcpus) * 1000);
        let limits = Limits {
            cpu_quota_us: i64::try_from(millis * PERIOD_US / 1000).ok(),
            cpu_period_us: PERIOD_US,
            ..Limits::default()
        };
        match lock(&self.resources).cgroup.as_ref() {
            Some(cgroup) => cgroup.set(&limits).map_err(TaskError::failed),
            None => Err(TaskError::FailedPrecondition("the pod's machine has ended".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(cpu_millis: u64, memory_mib: u64) -> Asked {
        Asked { cpu_millis, memory_bytes: memory_mib << 20 }
    }

    #[test]
    fn what_a_container_asks_for_is_read_from_its_spec() {
        let of = |resources: serde_json::Value| Asked::of(&serde_json::from_value(resources).unwrap());
        let resources = json!({ "cpu": { "quota": 25000, "period": 50000 }, "memory": { "limit": 1048576 } });
        assert_eq!(of(resources), asked(500, 1));
        assert_eq!(of(json!({ "cpu": { "quota": -1 }, "memory": { "limit": -1 } })), Asked::default());
        assert_eq!(of(json!({})), Asked::default());
    }

    #[test]
    fn a_machine_gives_what_it_has_and_says_what_that_is() {
        let size = Size { vcpus: 2, cpu_millis: 1500, memory_mib: 1024 };
        let check = |from, to, others| check(size, 256, from, to, others);
        check(asked(500, 256), asked(1500, 512), asked(500, 256)).unwrap();
        let error = check(asked(500, 256), asked(1600, 256), asked(500, 256)).unwrap_err();
        assert!(error.contains("can have 1500 millis, not 1600"), "{error}");
        let error = check(asked(500, 256), asked(500, 600), asked(500, 256)).unwrap_err();
        assert!(error.contains("can have 512 MiB, not 600"), "{error}");
        // Less is given whatever the others have, and so is what stays as it is.
        check(asked(500, 600), asked(400, 600), asked(9000, 9000)).unwrap();
    }
}
