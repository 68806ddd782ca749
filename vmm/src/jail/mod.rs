//! Confines this process: it sees no file system, no network but its pod's and no other process, has no privileges and
//! can get none, and makes no system call but those it is known to need. What it needs arrives as open descriptors.
//!
//! Called first thing, while the process has one thread.

mod core_scheduling;
mod descriptors;
mod landlock;
mod limits;
mod namespaces;
mod privileges;
mod root;
pub mod seccomp;

use std::fs::File;
use std::io;
use std::path::PathBuf;

pub use descriptors::is_open;
pub use limits::{Limits, MOST_OTHER_THREADS};
pub use privileges::Identity;

/// What the process is confined by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jail {
    /// Who it becomes.
    pub identity: Identity,
    /// The pod's network namespace; without one it gets a new and empty one.
    pub netns: Option<PathBuf>,
    /// What it may take of the host's kernel.
    pub limits: Limits,
}

/// The process could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("Cannot confine the process: {step}")]
pub struct JailError {
    step: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { step, source: error.into().into() }
}

/// What is kept from outside.
#[derive(Debug)]
pub struct Kept {
    /// This process's `/proc/self/statm`.
    pub statm: Option<File>,
}

/// Confines the process for good.
///
/// # Errors
/// When a step fails, which it does if the process is not root. The process must then end.
pub fn enter(jail: &Jail) -> Result<Kept, JailError> {
    descriptors::close()?;
    let statm = File::open("/proc/self/statm").ok();
    namespaces::leave(jail.netns.as_deref())?;
    root::empty()?;
    core_scheduling::keep_apart();
    limits::set(jail.limits)?;
    privileges::drop(jail.identity)?;
    landlock::restrict()?;
    seccomp::restrict()?;
    Ok(Kept { statm })
}
