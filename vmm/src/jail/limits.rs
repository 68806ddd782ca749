//! What the process may take of the host's kernel.

use rustix::process::{Resource, Rlimit};

use super::{JailError, failed};

/// Descriptors that the process may hold: extents, sockets, events.
const MAX_DESCRIPTORS: u64 = 8192;

/// Most threads of a machine's process besides those of the virtual processors: the first, the devices' and their disks',
/// and those that KVM makes in its name.
pub const MOST_OTHER_THREADS: u64 = 32;

/// Limits that depend on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes up to which the process may write to a file: the scratch disk's size.
    pub file_bytes: u64,
    /// Threads that the process may have, all of its user's counted.
    pub threads: u64,
}

/// Sets the limits for good.
pub(super) fn set(limits: Limits) -> Result<(), JailError> {
    // A write beyond the limit is then an error to be handled, not the process's end.
    // SAFETY: to ignore a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let all = [
        (Resource::Core, 0),
        (Resource::Nofile, MAX_DESCRIPTORS),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nproc, limits.threads),
        (Resource::Msgqueue, 0),
        (Resource::Memlock, 0),
    ];
    for (resource, value) in all {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        rustix::process::setrlimit(resource, limit).map_err(failed("set resource limits"))?;
    }
    Ok(())
}
