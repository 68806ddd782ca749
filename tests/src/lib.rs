//! What the end-to-end tests are written with: pods, containers, terminals and a search for leftovers, all driven
//! through `crictl` and `ctr` as on any node.
//!
//! The tests run as root inside a host that has containerd, crictl, CNI plugins and Ravelin installed. Everything
//! here panics when the host does not do what was asked: a panic is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod command;
mod container;
mod host;
mod kubelet;
mod leaks;
mod logs;
mod pod;
mod session;
pub mod shim;
pub mod takeover;
mod wait;

pub use command::{Finished, Run};
pub use container::{Container, ContainerSpec, Ended};
pub use host::{Containerd, Handler, Host};
pub use kubelet::Volume;
pub use leaks::Traces;
pub use logs::Logs;
pub use pod::{Pod, PodSpec};
pub use session::Session;
pub use wait::{PATIENCE, eventually, until};

/// Images that are in the host's containerd before the tests start.
pub mod images {
    /// Busybox, one layer.
    pub const BUSYBOX: &str = "localhost/ravelin/busybox:latest";
    /// Busybox whose image says user 1000, `/home/user` and `GREETING=hello`.
    pub const USER: &str = "localhost/ravelin/user:latest";
    /// Busybox under 29 layers of everything that layers can hold.
    pub const LAYERS30: &str = "localhost/ravelin/layers30:latest";
    /// A real Debian userland: bash, coreutils, procps, iproute2, ping, python3, nginx, curl, strace, iptables, nc.
    pub const DEBIAN: &str = "localhost/ravelin/debian:latest";
    /// Another one with databases and what else is hard on a file system: python3, sqlite3, git, fio, redis. Imported by the test that
    /// needs it.
    pub const PROGRAMS: &str = "localhost/ravelin/programs:latest";
    /// Busybox and `/big`, one file of 1 GiB. Imported by the test that needs it.
    pub const BIG: &str = "localhost/ravelin/big:latest";
}
