//! An exec, from its own side: how a process just born becomes one of a container's and comes to its program.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libcontainer::capabilities;
use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{LinuxPersonalityDomain, Process, User};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{chdir, getcwd, ioctl_tiocsctty, setsid, umask};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::message::{Console, Reply, failure, send};
use super::program::{Program, plain};
use super::scheduling;
use crate::error::{AgentError, Attempt, Result, chain};

/// What is to become of the process.
#[derive(Debug)]
pub(super) struct Exec {
    /// The container's first process.
    pub(super) init: OwnedFd,
    /// It is in a user namespace of its pod's.
    pub(super) user_namespace: bool,
    /// What to run, and as whom.
    pub(super) process: Process,
    /// That user's home directory in the container; known once its root is.
    pub(super) home: String,
    /// Standard descriptors, unless there is a terminal.
    pub(super) stdio: Option<[OwnedFd; 3]>,
    /// The terminal to make.
    pub(super) console: Option<Console>,
    /// The container's personality.
    pub(super) personality: Option<LinuxPersonalityDomain>,
    /// The container's seccomp filter.
    pub(super) filter: Option<Vec<u8>>,
}

/// Runs the program, or says on `status` why it cannot be run, and ends. The process has its container's mount namespace and
/// its standard streams; beside them it has descriptors of `status` and of `exec` only.
pub(super) fn run(mut exec: Exec, status: &OwnedFd) -> ! {
    let filter = exec.filter.take();
    let text = match become_one(exec) {
        Ok(program) => {
            let _ = send(status, &Reply::Going, &[]);
            program.execute(filter.as_deref())
        }
        Err(error) => error.to_string(),
    };
    // One packet, by `write`: a filter made for the program may refuse `sendmsg`.
    let packet = serde_json::to_vec(&failure(text)).unwrap_or_default();
    let _ = rustix::io::write(status, &packet);
    // SAFETY: the process ends here and now; nothing of the builder's that it has copies of is torn down.
    unsafe { libc::_exit(255) }
}

/// From the builder's copy to a process of the container that has only to execute its program.
fn become_one(exec: Exec) -> Result<Program> {
    let Exec { init, user_namespace, process, home, console, personality, .. } = exec;
    // First, and not before the birth: whoever is in it may make no processes in cgroups outside.
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::CONTROL_GROUP)
        .attempt(|| "join the container's cgroup namespace".to_owned())?;
    setsid().attempt(|| "make a session".to_owned())?;
    if console.is_some() {
        ioctl_tiocsctty(io::stdin()).attempt(|| "take the terminal".to_owned())?;
    }
    scheduling::apply(&process)?;
    if let Some(domain) = personality {
        set_personality(domain).attempt(|| format!("set the personality {domain:?}"))?;
    }
    set_limits(&process)?;
    let late = enter_directory(process.cwd(), true)?;
    if user_namespace {
        // Raised limits are the guest's root's to have; whom the process becomes now is a user of the pod's.
        move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::USER)
            .attempt(|| "join the container's user namespace".to_owned())?;
    }
    drop(init);
    drop_privileges(&process)?;
    if late {
        enter_directory(process.cwd(), false)?;
    }
    check_directory()?;
    if process.no_new_privileges() == Some(true) {
        set_no_new_privs(true).attempt(|| "forbid new privileges".to_owned())?;
    }
    Program::find(&process, &|| home.clone()).map_err(AgentError::Failed)
}

fn set_personality(domain: LinuxPersonalityDomain) -> io::Result<()> {
    // `PER_LINUX` and `PER_LINUX32` of linux/personality.h.
    let domain = match domain {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    // SAFETY: the call takes a plain number.
    if unsafe { libc::personality(domain) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The file mode mask and the resource limits.
fn set_limits(process: &Process) -> Result<()> {
    if let Some(mask) = process.user().umask() {
        umask(Mode::from_raw_mode(mask));
    }
    let syscall = create_syscall();
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(|error| {
            AgentError::Failed(format!("set the resource limit {}: {}", limit.typ(), chain(&error)))
        })?;
    }
    Ok(())
}

/// Changes to the working directory. With `try_later`, true when only the process's own user may be let in.
fn enter_directory(cwd: &Path, try_later: bool) -> Result<bool> {
    match chdir(cwd) {
        Ok(()) => Ok(false),
        Err(Errno::PERM | Errno::ACCESS) if try_later => Ok(true),
        Err(error) => Err(AgentError::Failed(format!(
            "change to the working directory {:?}: {}",
            cwd.display().to_string(),
            plain(&error.into())
        ))),
    }
}

/// A directory that cannot be reached from the root is one of the guest's, let in through a descriptor.
fn check_directory() -> Result<()> {
    match getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(AgentError::Failed("the working directory lies outside of the container".to_owned())),
    }
}

/// Becomes the process's user, with no more capabilities than the process is to have.
fn drop_privileges(process: &Process) -> Result<()> {
    let user: &User = process.user();
    let groups: Vec<Gid> =
        user.additional_gids().iter().flatten().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    set_keep_capabilities(true)
        .and_then(|()| set_thread_groups(&groups))
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .and_then(|()| set_keep_capabilities(false))
        .attempt(|| format!("become user {}, group {}", user.uid(), user.gid()))?;
    let syscall = create_syscall();
    // Changing the user took the effective ones, without which the others cannot be changed.
    capabilities::reset_effective(syscall.as_ref())
        .and_then(|()| match process.capabilities() {
            Some(capabilities) => capabilities::drop_privileges(capabilities, syscall.as_ref()),
            None => Ok(()),
        })
        .map_err(|error| AgentError::Failed(format!("set the capabilities: {}", chain(&error))))
}
