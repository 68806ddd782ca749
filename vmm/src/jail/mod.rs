//! Confines this process: it sees no file system, no network but its pod's and no other process's memory, has no
//! privileges and can get none. What it needs arrives as open descriptors.
//!
//! Called first thing, while the process has one thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space,
};

use crate::control::CONTROL_FD;

/// Descriptors that the process may hold: extents, sockets, events.
const MAX_DESCRIPTORS: u64 = 8192;

/// Who the process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User, not 0.
    pub uid: u32,
    /// Group, not 0.
    pub gid: u32,
}

/// The process could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("Cannot confine the process: {step}")]
pub struct JailError {
    step: &'static str,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { step, source: error.into() }
}

/// What is kept from outside.
#[derive(Debug)]
pub struct Kept {
    /// This process's `/proc/self/statm`.
    pub statm: Option<File>,
}

/// Confines the process for good: in the network namespace at `netns`, or in a new and empty one.
///
/// # Errors
/// When a step fails, which it does if the process is not root. The process must then end.
pub fn enter(identity: Identity, netns: Option<&Path>) -> Result<Kept, JailError> {
    close_descriptors()?;
    let statm = File::open("/proc/self/statm").ok();
    isolate(netns)?;
    empty_root()?;
    drop_privileges(identity)?;
    Ok(Kept { statm })
}

/// Keeps standard input, output and error and the control socket.
fn close_descriptors() -> Result<(), JailError> {
    let first = libc::c_uint::try_from(CONTROL_FD + 1).unwrap_or(4);
    // SAFETY: nothing in this process has opened a descriptor yet.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } < 0 {
        return Err(failed("close inherited descriptors")(io::Error::last_os_error()));
    }
    Ok(())
}

/// Namespaces of its own, in which there is nothing. Only the network is its pod's: tools of the node find a pod's
/// counters and addresses through the namespace of the process that CRI names.
fn isolate(netns: Option<&Path>) -> Result<(), JailError> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if let Some(path) = netns {
        let netns = File::open(path).map_err(failed("open the pod's network namespace"))?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(failed("enter the pod's network namespace"))?;
    } else {
        flags |= UnshareFlags::NEWNET;
    }
    // SAFETY: the process has one thread and holds no descriptor table that it shares.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(failed("leave the host's namespaces"))
}

/// Exchanges the root for an empty, unwritable file system.
fn empty_root() -> Result<(), JailError> {
    // A directory that every host has; only this process sees what is mounted on it.
    const PLACE: &str = "/proc";
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(failed("detach from the host's mounts"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", PLACE, "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=0555"))
        .map_err(failed("mount an empty file system"))?;
    rustix::process::chdir(PLACE).map_err(failed("enter the empty file system"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("make the empty file system the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leave the host's file systems"))?;
    rustix::process::chdir("/").map_err(failed("enter the new root"))?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, "")
        .map_err(failed("make the new root unwritable"))?;
    rustix::process::umask(Mode::from_raw_mode(0o777));
    Ok(())
}

fn drop_privileges(identity: Identity) -> Result<(), JailError> {
    let mut last = 0;
    while drop_bounding(last).map_err(failed("give up the bounding capabilities"))? {
        last += 1;
    }
    rustix::thread::clear_ambient_capability_set().map_err(failed("give up ambient capabilities"))?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, MAX_DESCRIPTORS)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    // The raw calls change this thread only, and it is the only one.
    rustix::thread::set_thread_groups(&[]).map_err(failed("give up supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(failed("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("refuse new privileges"))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(failed("refuse to be traced"))
}

/// Drops one capability from the bounding set; false if there is no such capability.
fn drop_bounding(capability: libc::c_ulong) -> io::Result<bool> {
    // SAFETY: PR_CAPBSET_DROP takes its argument by value.
    if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(false) } else { Err(error) }
}

fn limit(resource: Resource, value: u64) -> Result<(), JailError> {
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    rustix::process::setrlimit(resource, limit).map_err(failed("set resource limits"))
}

/// Whether descriptor `fd` is open.
#[must_use]
pub fn is_open(fd: &impl AsRawFd) -> bool {
    // SAFETY: F_GETFD has no argument and fails cleanly on a number that is not open.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) >= 0 }
}
