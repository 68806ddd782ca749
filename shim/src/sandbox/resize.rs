//! A pod whose containers are given other limits while they run.
//!
//! A machine has what it was born with. Within its vCPUs the node's limit on its CPU time follows the containers' limits
//! upwards; what the machine has not is refused, or Kubernetes would report a resize that never came to be.
//!
//! Memory that the guest is not to have is in its balloon: the headroom from birth on, and what the kubelet is about to
//! take away from a pod whose limits it lowers, which otherwise would be killed for the page cache that its guest keeps.

use std::sync::atomic::Ordering;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use ravelin_policy::{MIN_MEMORY_MIB, Size};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::plan::machine_bytes;
use super::supervisor::deadline;
use super::{Plan, Sandbox};
use crate::cgroup::{Limits, PodCgroup};
use crate::config::Config;
use crate::error::TaskError;
use crate::sync::lock;

/// Pause between two looks at how far the guest is with its balloon.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// CFS period in microseconds, as Kubernetes has it.
const PERIOD_US: u64 = 100_000;

/// What containers may use at most; zero stands for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Some of them have no limit on memory.
    pub unbounded: bool,
}

impl Asked {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            unbounded: self.unbounded || other.unbounded,
        }
    }
}

/// All the limits of a container: its spec's `linux.resources`, as JSON, with every change since.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerLimits(Value);

impl Default for ContainerLimits {
    /// Those of a container that has none, in words that take others back.
    fn default() -> Self {
        Self(json!({
            "cpu": { "quota": -1, "period": PERIOD_US, "shares": 1024 },
            "memory": { "limit": -1 },
            "pids": { "limit": -1 },
        }))
    }
}

impl ContainerLimits {
    /// What they become by an OCI spec's `linux.resources`, in which what is not there stays as it is. Devices are no limits.
    ///
    /// # Errors
    /// When the resources cannot be written as JSON.
    pub fn changed_by(&self, resources: &LinuxResources) -> serde_json::Result<Self> {
        let mut change = serde_json::to_value(resources)?;
        if let Some(change) = change.as_object_mut() {
            change.remove("devices");
        }
        let mut limits = self.0.clone();
        merge(&mut limits, change);
        Ok(Self(limits))
    }

    /// What the container may use by them.
    #[must_use]
    pub fn asked(&self) -> Asked {
        let number = |group: &str, name: &str| self.0[group][name].as_u64().unwrap_or_default();
        let period = number("cpu", "period").max(1);
        let memory_bytes = number("memory", "limit");
        Asked {
            cpu_millis: number("cpu", "quota").saturating_mul(1000) / period,
            memory_bytes,
            unbounded: memory_bytes == 0,
        }
    }

    /// The `LinuxResources`, as JSON, that bring them back whole.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }
}

/// Lays a change over limits, member by member. Numbers of which zero stands for "as it is" are left as they are.
fn merge(limits: &mut Value, change: Value) {
    const ZERO_IS_NONE: [&str; 5] = ["quota", "period", "shares", "limit", "reservation"];
    let Value::Object(change) = change else {
        *limits = change;
        return;
    };
    if !limits.is_object() {
        *limits = json!({});
    }
    for (name, value) in change {
        let says_nothing = value.is_null() || value == 0 && ZERO_IS_NONE.contains(&name.as_str());
        if !says_nothing {
            merge(&mut limits[name.as_str()], value);
        }
    }
}

/// MiB of memory that the guest of a pod is to have whose containers may use `asked` together.
///
/// What the kubelet limits has no more than its containers and the guest's kernel need; another pod has its size at least.
fn guest_memory(plan: &Plan, overhead_mib: u32, limited: bool, asked: Asked) -> u32 {
    let (size, born) = (plan.size.memory_mib, plan.size.memory_mib.saturating_add(plan.headroom_mib));
    let needed = asked.memory_bytes.div_ceil(1 << 20).saturating_add(u64::from(overhead_mib));
    let needed = u32::try_from(needed.max(MIN_MEMORY_MIB)).unwrap_or(u32::MAX);
    if limited && !asked.unbounded { needed.min(born) } else { needed.clamp(size, born) }
}

/// Whether a machine of this size and with so much memory can give a container `to`, which has `from`, beside what the
/// `others` have. Less is always given.
fn check(
    size: Size,
    memory_mib: u32,
    overhead_mib: u32,
    from: Asked,
    to: Asked,
    others: Asked,
) -> Result<(), String> {
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
    let memory = u64::from(memory_mib.saturating_sub(overhead_mib)) << 20;
    if to.memory_bytes > from.memory_bytes && sum.memory_bytes > memory {
        return Err(format!(
            "the pod's machine has {} MiB of memory, of which {overhead_mib} MiB are its kernel's and other containers have {} MiB: this one can have {} MiB, not {}; a pod that is to have more must be made anew",
            memory_mib,
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
        let memory_mib = self.born_mib();
        check(self.plan.size, memory_mib, overhead_mib, from, to, others).map_err(TaskError::Failed)
    }

    fn born_mib(&self) -> u32 {
        self.plan.size.memory_mib.saturating_add(self.plan.headroom_mib)
    }

    /// Whether nothing has changed its memory yet.
    #[must_use]
    pub fn has_the_memory_of_its_birth(&self) -> bool {
        self.memory_mib.load(Ordering::Acquire) == self.plan.size.memory_mib
    }

    fn cgroup(&self) -> Result<PodCgroup, TaskError> {
        let ended = || TaskError::FailedPrecondition("the pod's machine has ended".to_owned());
        lock(&self.resources).cgroup.clone().ok_or_else(ended)
    }

    /// Lets the guest have as much memory as its containers may use now. One call at a time.
    ///
    /// # Errors
    /// When the guest cannot give up what it is to lose: it has then what it had.
    pub async fn give_memory(&self, asked: Asked, config: &Config) -> Result<(), TaskError> {
        let cgroup = self.cgroup()?;
        let limited = cgroup.memory_allowed_above().is_some();
        let wanted = guest_memory(&self.plan, config.sizing.overhead_mib, limited, asked);
        let had = self.memory_mib.load(Ordering::Acquire);
        if wanted == had {
            return Ok(());
        }
        if wanted > had {
            let limits = Limits {
                cpu_period_us: PERIOD_US,
                memory_bytes: Some(machine_bytes(wanted, config)),
                ..Limits::default()
            };
            cgroup.set(&limits).map_err(TaskError::failed)?;
        }
        let balloon = self.born_mib().saturating_sub(wanted);
        self.machine.set_balloon(balloon).await.map_err(TaskError::failed)?;
        if let Err(held) = self.balloon_holds(balloon).await?
            && wanted < had
        {
            let _ = self.machine.set_balloon(self.born_mib().saturating_sub(had)).await;
            let left = self.born_mib().saturating_sub(held);
            return Err(TaskError::Failed(format!(
                "the pod's guest is to live in {wanted} MiB of memory and uses {left}, of which {} MiB are its kernel's: stop programs or empty memory-backed volumes, then try again",
                config.sizing.overhead_mib
            )));
        }
        self.memory_mib.store(wanted, Ordering::Release);
        Ok(())
    }

    /// Waits until the guest's balloon holds so much; else, in the inner error, what it holds.
    async fn balloon_holds(&self, mib: u32) -> Result<Result<(), u32>, TaskError> {
        let began = Instant::now();
        let mut last = (u32::MAX, began);
        loop {
            let held = self.machine.metrics().await.map_err(TaskError::failed)?.balloon_mib;
            if held == mib {
                return Ok(Ok(()));
            }
            if held != last.0 {
                last = (held, Instant::now());
            }
            if last.1.elapsed() > deadline::BALLOON_STALL || began.elapsed() > deadline::BALLOON {
                return Ok(Err(held));
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
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
        self.cgroup()?.set(&limits).map_err(TaskError::failed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::*;

    fn asked(cpu_millis: u64, memory_mib: u64) -> Asked {
        Asked { cpu_millis, memory_bytes: memory_mib << 20, unbounded: false }
    }

    #[test]
    fn what_a_container_asks_for_is_read_from_its_spec() {
        let changed =
            |had: &ContainerLimits, by: Value| had.changed_by(&serde_json::from_value(by).unwrap()).unwrap();
        let of = |resources| changed(&ContainerLimits::default(), resources);
        let limits =
            of(json!({ "cpu": { "quota": 25000, "period": 50000 }, "memory": { "limit": 1048576 } }));
        assert_eq!(limits.asked(), asked(500, 1));
        let unbounded = Asked { unbounded: true, ..Asked::default() };
        assert_eq!(of(json!({ "cpu": { "quota": -1 }, "memory": { "limit": -1 } })).asked(), unbounded);
        assert_eq!(of(json!({})).asked(), unbounded);
        // What an update does not speak of stays, and so does what it says nothing about with a zero.
        assert_eq!(changed(&limits, json!({ "cpu": { "quota": 20000 } })).asked(), asked(400, 1));
        assert_eq!(changed(&limits, json!({ "memory": { "limit": 2097152 } })).asked(), asked(500, 2));
        assert_eq!(changed(&limits, json!({ "cpu": { "quota": 0 }, "memory": { "limit": 0 } })), limits);
    }

    #[test]
    fn limits_come_back_whole() {
        let parsed = |limits: &ContainerLimits| -> LinuxResources {
            serde_json::from_slice(&limits.to_json()).unwrap()
        };
        let spec = json!({
            "devices": [{ "allow": false, "access": "rwm" }],
            "cpu": { "quota": 25000, "period": 50000, "shares": 512, "cpus": "0-1" },
            "memory": { "limit": 1048576, "swap": 1048576 },
            "pids": { "limit": 100 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
            "unified": { "memory.high": "900000" },
        });
        let had =
            ContainerLimits::default().changed_by(&serde_json::from_value(spec.clone()).unwrap()).unwrap();
        let update = json!({
            "cpu": { "quota": 1000, "shares": 2 }, "memory": { "limit": 2097152, "swap": 4194304 },
            "pids": { "limit": 7 }, "unified": { "memory.high": "max" }
        });
        let now = had.changed_by(&serde_json::from_value(update).unwrap()).unwrap();
        assert_eq!(now.changed_by(&parsed(&had)).unwrap(), had);
        let mut limits = spec;
        limits.as_object_mut().unwrap().remove("devices");
        assert_eq!(parsed(&had), serde_json::from_value(limits).unwrap());
        // What the container did not limit has no limit again.
        let none = ContainerLimits::default();
        assert_eq!(now.changed_by(&parsed(&none)).unwrap().asked(), none.asked());
    }

    #[test]
    fn a_guest_has_what_its_containers_may_use_as_far_as_it_was_born_with_it() {
        let config = Config::default();
        let mut plan = plan::tests::plan(&config);
        plan.size = Size { vcpus: 1, cpu_millis: 1000, memory_mib: 1024 };
        plan.headroom_mib = 512;
        let memory = |limited, asked| guest_memory(&plan, 256, limited, asked);
        // In a pod that the kubelet limits, down to what a guest needs at least.
        for (mib, guest_mib) in [(100, 356), (768, 1024), (1000, 1256), (9000, 1536)] {
            assert_eq!(memory(true, asked(0, mib)), guest_mib);
        }
        assert_eq!(guest_memory(&plan, 0, true, asked(0, 1)), 128);
        // In another never below its size; nor where a container has no limit.
        let unbounded = Asked { unbounded: true, ..asked(0, 100) };
        for (limited, asked) in [(false, asked(0, 100)), (true, unbounded), (false, unbounded)] {
            assert_eq!(memory(limited, asked), 1024);
        }
        assert_eq!(memory(false, asked(0, 1000)), 1256);
    }

    #[test]
    fn a_machine_gives_what_it_has_and_says_what_that_is() {
        let size = Size { vcpus: 2, cpu_millis: 1500, memory_mib: 1024 };
        let check = |from, to, others| check(size, 1024, 256, from, to, others);
        check(asked(500, 256), asked(1500, 512), asked(500, 256)).unwrap();
        let error = check(asked(500, 256), asked(1600, 256), asked(500, 256)).unwrap_err();
        assert!(error.contains("can have 1500 millis, not 1600"), "{error}");
        let error = check(asked(500, 256), asked(500, 600), asked(500, 256)).unwrap_err();
        assert!(error.contains("can have 512 MiB, not 600"), "{error}");
        // Less is given whatever the others have, and so is what stays as it is.
        check(asked(500, 600), asked(400, 600), asked(9000, 9000)).unwrap();
    }
}
