//! The machine's size from what the pod asks for, by AWS EKS Fargate's rules.
//!
//! Memory: Fargate adds 256 MiB to what the pod asks for, for the Kubernetes components that run beside it, and
//! rounds up to a row of its table. Here too: the guest's memory is the row's, and the guest's kernel and agent live
//! in the 256 MiB, so that a pod which asks for 256 MiB gets a machine of 0.5 GB and can use its 256 MiB. What
//! `/proc/meminfo` shows as `MemTotal` is the row less the few MiB that the kernel keeps for itself at boot.
//!
//! Memory outside the guest (the machine's process and the shim) is not taken from the guest; the RuntimeClass's
//! `overhead` makes room for it in the pod's cgroup.

use serde::Deserialize;
use thiserror::Error;

use crate::pod::{Container, Pod};

const MIB: u64 = 1 << 20;
const GIB_IN_MIB: u64 = 1 << 10;

/// Largest number of vCPUs of a machine.
const MAX_VCPUS: u64 = 32;
/// Most CPU time of a machine, in thousandths of a CPU.
pub const MAX_CPU_MILLIS: u64 = MAX_VCPUS * 1000;
/// Least CPU time of a machine, in thousandths of a CPU: Linux knows no quota below a millisecond in each period, which
/// has a hundred.
pub const MIN_CPU_MILLIS: u64 = 10;
/// Largest memory of a machine, in MiB.
pub const MAX_MEMORY_MIB: u64 = 128 * GIB_IN_MIB;
/// Smallest memory of a machine, in MiB.
pub const MIN_MEMORY_MIB: u64 = 128;

/// One CPU size of Fargate's table, with the memory sizes that go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRow {
    /// Thousandths of a vCPU.
    pub cpu_millis: u32,
    /// Memory sizes in MiB, ascending.
    pub memory_mib: &'static [u32],
}

macro_rules! gib {
    ($($gib:literal)*) => { &[$($gib << 10),*] };
}

/// Fargate's table of pod sizes.
pub const FARGATE_TABLE: [TableRow; 7] = [
    TableRow { cpu_millis: 250, memory_mib: &[512, 1024, 2048] },
    TableRow { cpu_millis: 500, memory_mib: gib!(1 2 3 4) },
    TableRow { cpu_millis: 1000, memory_mib: gib!(2 3 4 5 6 7 8) },
    TableRow { cpu_millis: 2000, memory_mib: gib!(4 5 6 7 8 9 10 11 12 13 14 15 16) },
    TableRow {
        cpu_millis: 4000,
        memory_mib: gib!(8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30),
    },
    TableRow { cpu_millis: 8000, memory_mib: gib!(16 20 24 28 32 36 40 44 48 52 56 60) },
    TableRow { cpu_millis: 16000, memory_mib: gib!(32 40 48 56 64 72 80 88 96 104 112 120) },
];

/// The `[sizing]` section of `ravelin.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SizingConfig {
    /// Round up to the table or not.
    pub mode: SizingMode,
    /// MiB added to the pod's memory for the guest's kernel and agent.
    pub overhead_mib: u32,
    /// MiB of memory that a machine is born with beyond its size, for the pod to be given when it is resized.
    pub resize_headroom_mib: u32,
    /// In `exact` mode: thousandths of a CPU of a pod that asks for none.
    pub default_cpu_millis: u32,
    /// In `exact` mode: MiB of memory, overhead included, of a pod that asks for none.
    pub default_memory_mib: u32,
}

impl Default for SizingConfig {
    fn default() -> Self {
        Self {
            mode: SizingMode::Fargate,
            overhead_mib: 256,
            resize_headroom_mib: 0,
            default_cpu_millis: 250,
            default_memory_mib: 512,
        }
    }
}

/// How requests become a size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SizingMode {
    /// Up to the next size of [`FARGATE_TABLE`].
    #[default]
    Fargate,
    /// As asked for.
    Exact,
}

/// What a pod asks for; zero means that it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// A machine's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Whole virtual CPUs.
    pub vcpus: u8,
    /// CPU time the machine may use, in thousandths of a CPU; less than `vcpus` where the size has a fraction.
    pub cpu_millis: u32,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
}

/// A pod asks for more than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Your pod's cpu/memory requirements exceed the max Fargate configuration")]
pub struct SizeError;

impl SizeError {
    /// The reason code of the pod's `PodScheduled` condition that goes with this message.
    pub const REASON: &str = "POD_CPU_MEM_EXCEEDS_MAX_FARGATE_SIZE";
}

impl Size {
    /// The value of Fargate's `CapacityProvisioned` annotation: `0.25vCPU 0.5GB`.
    #[must_use]
    pub fn capacity_provisioned(&self) -> String {
        let cpu = decimal(u64::from(self.cpu_millis), 1000);
        let memory = decimal(u64::from(self.memory_mib), GIB_IN_MIB);
        format!("{cpu}vCPU {memory}GB")
    }

    /// The CPU time limit of the pod's cgroup as quota and period in microseconds; none if the machine may use its
    /// vCPUs fully.
    #[must_use]
    pub fn cpu_max(&self) -> Option<(u64, u64)> {
        const PERIOD_US: u64 = 100_000;
        let millis = u64::from(self.cpu_millis);
        (millis < u64::from(self.vcpus) * 1000).then_some((millis * PERIOD_US / 1000, PERIOD_US))
    }

    fn new(cpu_millis: u64, memory_mib: u64) -> Result<Self, SizeError> {
        let vcpus = cpu_millis.div_ceil(1000);
        if vcpus > MAX_VCPUS || memory_mib > MAX_MEMORY_MIB {
            return Err(SizeError);
        }
        Ok(Self {
            vcpus: u8::try_from(vcpus).map_err(|_| SizeError)?,
            cpu_millis: u32::try_from(cpu_millis).map_err(|_| SizeError)?,
            memory_mib: u32::try_from(memory_mib).map_err(|_| SizeError)?,
        })
    }
}

/// `value / unit` with at most three decimals and no trailing zeros.
fn decimal(value: u64, unit: u64) -> String {
    let thousandths = value * 1000 / unit;
    let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The size of the machine for a pod that asks for `requests`.
///
/// # Errors
///
/// If the pod asks for more than the largest size.
pub fn size(requests: Requests, config: &SizingConfig) -> Result<Size, SizeError> {
    let memory_mib = requests.memory_bytes.div_ceil(MIB).saturating_add(u64::from(config.overhead_mib));
    match config.mode {
        SizingMode::Fargate => {
            let (cpu, memory) = FARGATE_TABLE
                .iter()
                .filter(|row| u64::from(row.cpu_millis) >= requests.cpu_millis)
                .find_map(|row| {
                    let memory = row.memory_mib.iter().find(|memory| u64::from(**memory) >= memory_mib)?;
                    Some((row.cpu_millis, *memory))
                })
                .ok_or(SizeError)?;
            Size::new(u64::from(cpu), u64::from(memory))
        }
        SizingMode::Exact => {
            let cpu = match requests.cpu_millis {
                0 => u64::from(config.default_cpu_millis),
                millis => millis,
            };
            let memory = match requests.memory_bytes {
                0 => u64::from(config.default_memory_mib),
                _ => memory_mib,
            };
            Size::new(cpu.max(MIN_CPU_MILLIS), memory.max(MIN_MEMORY_MIB))
        }
    }
}

/// What a whole pod asks for: the larger of its largest init container and the sum of its containers, for CPU and
/// memory each.
///
/// Native sidecars (init containers that restart `Always`) run on beside the containers and beside the init containers
/// that follow them, and are added to both. A request of the pod itself takes the place of its containers'.
#[must_use]
pub fn pod_requests(pod: &Pod) -> Requests {
    let spec = &pod.spec;
    let total = |resource: &str, amount: fn(crate::Quantity) -> u64| -> u64 {
        if let Some(request) = spec.resources.request(resource) {
            return amount(request);
        }
        let of = |container: &Container| container.resources.request(resource).map_or(0, amount);
        let mut sidecars: u64 = 0;
        let mut init: u64 = 0;
        for container in &spec.init_containers {
            let request = of(container);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars = sidecars.saturating_add(request);
                init = init.max(sidecars);
            } else {
                init = init.max(sidecars.saturating_add(request));
            }
        }
        let running = spec.containers.iter().map(of).fold(sidecars, u64::saturating_add);
        init.max(running)
    };
    Requests {
        cpu_millis: total("cpu", crate::Quantity::millis),
        memory_bytes: total("memory", crate::Quantity::units),
    }
}

/// What CRI tells a runtime about a whole pod: `PodSandboxConfig.linux.resources`, which containerd writes into the
/// sandbox's annotations. Zero, or a negative number, means that nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxResources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds: from the sum of the CPU limits.
    pub cpu_quota: i64,
    /// CPU shares: from the sum of the CPU requests; 2 is the kernel's least and stands for no request.
    pub cpu_shares: i64,
    /// Bytes: the sum of the memory limits.
    pub memory_limit: i64,
}

impl SandboxResources {
    /// Annotation of the CFS period.
    pub const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
    /// Annotation of the CFS quota.
    pub const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
    /// Annotation of the CPU shares.
    pub const CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
    /// Annotation of the memory limit.
    pub const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

    /// Reads the annotations through `get`. An annotation that is absent or no number counts as zero.
    pub fn from_annotations<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        let number = |key| get(key).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self {
            cpu_period: number(Self::CPU_PERIOD),
            cpu_quota: number(Self::CPU_QUOTA),
            cpu_shares: number(Self::CPU_SHARES),
            memory_limit: number(Self::MEMORY),
        }
    }

    /// What the pod asks for, as far as CRI tells.
    ///
    /// Fargate sizes by requests and wants limits equal to them. CRI carries the CPU's request and limit but of memory
    /// only the limit, so the limit counts for both, and of the CPU the larger one: a pod is never given less than it
    /// may use, and a pod whose limits equal its requests gets Fargate's size.
    #[must_use]
    pub fn requests(&self) -> Requests {
        let positive = |number: i64| u64::try_from(number).unwrap_or(0);
        // The kubelet rounds down when it makes shares of millis; rounding up undoes it exactly.
        let requested = match positive(self.cpu_shares) {
            0..=2 => 0,
            shares => shares.saturating_mul(1000).div_ceil(1024),
        };
        let limit = match positive(self.cpu_period) {
            0 => 0,
            period => positive(self.cpu_quota).saturating_mul(1000).div_ceil(period),
        };
        Requests { cpu_millis: requested.max(limit), memory_bytes: positive(self.memory_limit) }
    }
}

#[cfg(test)]
mod tests;
