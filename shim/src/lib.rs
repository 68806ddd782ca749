//! `containerd-shim-ravelin-v2`: the process that containerd starts once per pod.
//!
//! It speaks containerd's task protocol (ttrpc), prepares the pod's network, disks and cgroup on the host, starts
//! the machine (`ravelin-vmm`) and drives the agent inside it.
//!
//! * [`cli`]: what containerd calls the binary for: `start`, `delete`, `-info`, `-v`.
//! * [`service`]: the task protocol; each call ends in [`sandbox`] or [`task`].
//! * [`sandbox`]: one pod: its machine and what belongs to it on the host.
//! * [`task`]: containers and execs.
//! * [`cgroup`], [`machine`], [`network`], [`rootfs`], [`volumes`]: the pieces a pod is made of.

pub mod agent;
pub mod apparmor;
pub mod birth;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod cri;
pub mod error;
pub mod events;
pub mod extents;
pub mod logging;
pub mod machine;
pub mod network;
pub mod node_lock;
pub mod privileges;
pub mod process;
pub mod rootfs;
pub mod sandbox;
pub mod service;
pub mod spec;
pub mod state;
pub mod stats;
pub mod stdio;
pub mod sync;
pub mod task;
#[cfg(test)]
mod testing;
pub mod volumes;

/// What only fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use containerd_shim_protos::cgroups_v2::metrics::Metrics;

    pub use crate::cli::fuzzing::parse_bootstrap;
}
