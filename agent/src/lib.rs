//! ravelin-agent: PID 1 of the guest. It prepares the guest, serves the agent protocol to the host, and runs the
//! pod's containers.

pub mod agent;
pub mod apparmor;
pub mod clock;
pub mod container;
pub mod deadline;
pub mod dial;
pub mod error;
pub mod extents;
pub mod init;
pub mod log;
pub mod mount_attributes;
pub mod namespaces;
pub mod network;
pub mod oom;
pub mod opening;
pub mod partition;
pub mod paths;
pub mod process;
pub mod reaper;
mod removal;
pub mod server;
pub mod service;
pub mod services;
pub mod spawner;
pub mod stdio;
pub mod sync;
pub mod sysctl;
pub mod trim;
pub mod volumes;
