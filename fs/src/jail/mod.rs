//! Confines this process: it sees no file but those below the directories that are handed to it, no network and no other process,
//! has the few rights that it takes to keep owners and modes, and makes no system call but those it is known to need.
//!
//! Called first thing, while the process has one thread; [`restrict_calls`] when it has all, and before any of them has read a
//! byte from outside.

mod calls;
mod limits;
mod privileges;
mod root;

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;

use landlock::{ABI, Access, AccessNet, Ruleset, RulesetAttr, RulesetError, Scope};
use rustix::thread::UnshareFlags;

use crate::control::REQUESTS_FD;

pub use calls::restrict as restrict_calls;
pub use privileges::CAPABILITIES;

/// The newest of Landlock's interfaces that the rights are taken from; an older kernel denies what it knows.
const NEWEST: ABI = ABI::V6;
/// The process could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("Cannot confine the process: {step}")]
pub struct JailError {
    step: &'static str,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

fn failed<E: Into<Box<dyn Error + Send + Sync>>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { step, source: error.into() }
}

/// Confines the process for good, but for its system calls. Returns what it keeps of the node's file system: the directory
/// `/proc/self/fd`, from which no path leads up.
///
/// # Errors
/// When a step fails, which it does if the process is not root. The process must then end.
pub fn enter() -> Result<OwnedFd, JailError> {
    close_descriptors()?;
    let files = limits::descriptors();
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: the process has one thread, and none of the flags parts descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(failed("leave the node's namespaces"))?;
    let descriptors = root::leave()?;
    limits::set(files)?;
    privileges::drop()?;
    deny_network().map_err(failed("restrict it by Landlock"))?;
    Ok(descriptors)
}

/// Keeps standard input, output and error and the two sockets.
fn close_descriptors() -> Result<(), JailError> {
    let first = libc::c_uint::try_from(REQUESTS_FD + 1).unwrap_or(5);
    // SAFETY: nothing in this process has opened a descriptor yet.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } < 0 {
        return Err(failed("close inherited descriptors")(io::Error::last_os_error()));
    }
    Ok(())
}

/// Denies what Landlock can deny to a process that is handed directories while it runs: the network, abstract sockets and signals
/// to processes outside. Its rules for files name directories before it is in force, and none can be added; where it has any, it
/// also takes renames from one directory to another away. A kernel without Landlock denies nothing.
fn deny_network() -> Result<(), RulesetError> {
    Ruleset::default()
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(())
}
