//! The file server: answers the FUSE requests of one pod's guest for the directories that are its file volumes.
//!
//! [`server`] answers requests, one packet each ([`message`]); [`worker`] is the loop that takes them off a socket; through
//! [`control`] the shim hands over directories, as open descriptors; [`jail`] confines the process before any of that.

pub mod control;
pub mod jail;
pub mod message;
pub mod server;
pub mod worker;

/// Threads of the process: those that answer requests, and the one that serves the shim.
pub const THREADS: u64 = worker::WORKERS as u64 + 1;
