//! Emulates one KVM microVM, the machine that a pod runs in.
//!
//! [`control`] is the protocol between the machine and the shim that owns it; [`server::serve`] is the machine's end of
//! it. [`machine`] builds and runs the machine, [`virtio`] holds its devices, and [`jail`] confines the process before
//! any of that sees a guest's byte.

pub mod control;
pub mod event;
pub mod jail;
pub mod log;
pub mod machine;
pub mod server;
mod sync;
pub mod virtio;
