//! The init of the pod's PID namespace: it holds the namespace and reaps what its containers leave behind.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{WaitOptions, chdir, wait};
use rustix::thread::{CapabilitySets, UnshareFlags, set_capabilities, unshare_unsafe};

use super::user_namespace;
use crate::namespaces::Ids;

/// Makes the namespace and its init; returns the init's pid as seen from here. With `ids`, they are in a new user namespace.
pub(super) fn start(ids: Option<&Ids>) -> io::Result<i32> {
    // What its init is to have, and could not take any more: an ordinary place among the OOM killer's choices.
    fs::create_dir_all(PAUSE_CGROUP)?;
    fs::write(Path::new(PAUSE_CGROUP).join("cgroup.procs"), "0")?;
    fs::write("/proc/self/oom_score_adj", "-998")?;
    if let Some(ids) = ids {
        user_namespace::enter_new(ids)?;
    }
    // SAFETY: this process has one thread, and a PID namespace concerns its children only.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
    // SAFETY: this process has one thread, so the child may go on as an ordinary process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Containers of the pod see this process; it must offer them nothing, whatever fails below.
            if let Err(error) = strip() {
                crate::log!("cannot confine the init of the pod's PID namespace: {error}");
                std::process::exit(1);
            }
            reap()
        }
        pid => Ok(pid),
    }
}

/// An empty root, no descriptors, no capabilities.
fn strip() -> io::Result<()> {
    super::set_name(c"pause");
    // SAFETY: this process has one thread, and its file descriptors stay shared with nobody.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("pause", "/tmp", c"tmpfs", MountFlags::empty(), Some(c"size=4k,mode=0555"))?;
    chdir("/tmp")?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    mount_remount("/", MountFlags::RDONLY, c"")?;
    // SAFETY: closes every descriptor; this process uses none from here on, and objects that own some are leaked
    // because it never returns.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    // SAFETY: default actions and an empty mask install no handlers. PID 1 of a namespace ignores what it
    // does not handle, except from the outside.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::setsid();
    }
    let none = rustix::thread::CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

fn reap() -> ! {
    // SAFETY: an all-zero sigset_t is a valid value, and sigemptyset makes it a defined one.
    let mut child: libc::sigset_t = unsafe { std::mem::zeroed() };
    // A blocked signal is kept even though its default is to be ignored, so none is lost between wait and sleep.
    // SAFETY: `child` lives through the calls, which only read or fill it.
    unsafe {
        libc::sigemptyset(&raw mut child);
        libc::sigaddset(&raw mut child, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const child, std::ptr::null_mut());
    }
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        // SAFETY: `child` lives through the call; no information is asked for.
        unsafe { libc::sigwaitinfo(&raw const child, std::ptr::null_mut()) };
    }
}

/// Its own cgroup, so that no container's limits or kill reach it.
const PAUSE_CGROUP: &str = "/sys/fs/cgroup/pod/pause";
