//! `containerd-shim-ravelin-v2`: the process that containerd starts once per pod.
//!
//! It speaks containerd's task protocol (ttrpc), prepares the pod's network, disks and cgroup on the host, starts
//! the machine (`ravelin-vmm`) and drives the agent inside it.

pub mod cgroup;
pub mod machine;
pub mod network;
pub mod rootfs;
pub mod volumes;
