//! Faults: what runs a pod dies at every step of its life, what the shim asks the kernel for is refused, and what a node has
//! is used up. After each fault the same is expected ([`trial`]): containerd is told an exit or an error, or nothing was lost; the
//! pod can be removed in its time; and the host's footprint is what it was.
//!
//! In `make test` each test tries a few of its faults, in `make faults` and `make test-all` all of them. What came out is a line
//! a fault in `/var/log/faults.tsv`, of which `make faults` makes the tables of docs/reliability.md.

mod errors;
mod events;
mod exhaustion;
mod footprint;
mod guest;
mod inject;
mod kill;
mod kubelet;
mod random;
mod report;
mod soak;
mod steps;
mod trial;
mod watch;
