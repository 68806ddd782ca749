//! An exec, from its own side: how a process just born becomes one of a container's and comes to its program.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use libcontainer::capabilities;
use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{LinuxPersonalityDomain, Process, User};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{chdir, getcwd, setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::console;
use super::message::{Console, Reply, failure, send};
use super::program::{Program, plain};
use super::scheduling;
use crate::error::{AgentError, Attempt, Result, chain};

/// What is to become of the process.
#[derive(Debug)]
pub(super) struct Exec {
    /// The container's first process.
    pub(super) init: OwnedFd,
    /// What to run, and as whom.
    pub(super) process: Process,
    /// Standard descriptors, unless there is a terminal.
    pub(super) stdio: Option<[OwnedFd; 3]>,
    /// The terminal to make.
    pub(super) console: Option<Console>,
    /// The container's personality.
    pub(super) personality: Option<LinuxPersonalityDomain>,
    /// The container's seccomp filter.
    pub(super) filter: Option<Vec<u8>>,
}

/// Runs the program, or says on `status` why it cannot be run, and ends.
pub(super) fn run(mut exec: Exec, status: OwnedFd) -> ! {
    let filter = exec.filter.take();
    let text = match become_one(exec, &status) {
        Ok(program) => {
            let _ = send(&status, &Reply::Going, &[]);
            program.execute(filter.as_deref())
        }
        Err(error) => error.to_string(),
    };
    // One packet, by `write`: a filter made for the program may refuse `sendmsg`.
    let packet = serde_json::to_vec(&failure(text)).unwrap_or_default();
    let _ = rustix::io::write(&status, &packet);
    // SAFETY: the process ends here and now; nothing of the builder's that it has copies of is torn down.
    unsafe { libc::_exit(255) }
}

/// From the builder's copy to a process of the container that has only to execute its program.
fn become_one(exec: Exec, status: &OwnedFd) -> Result<Program> {
    let Exec { init, process, stdio, console, personality, .. } = exec;
    // While `/proc` is the agent's. Never the agent's own score, which is exempt.
    let score = process.oom_score_adj().unwrap_or(0);
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .attempt(|| format!("set the OOM score to {score}"))?;
    setsid().attempt(|| "make a session".to_owned())?;
    scheduling::apply(&process)?;
    move_into_thread_name_spaces(
        init.as_fd(),
        ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::CONTROL_GROUP
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::NETWORK,
    )
    .attempt(|| "join the container's namespaces".to_owned())?;
    drop(init);
    if let Some([stdin, stdout, stderr]) = stdio {
        dup2_stdin(stdin)
            .and_then(|()| dup2_stdout(stdout))
            .and_then(|()| dup2_stderr(stderr))
            .attempt(|| "take the standard descriptors".to_owned())?;
    }
    if let Some(console) = console {
        let master = console::open(console).attempt(|| "make a terminal".to_owned())?;
        send(status, &Reply::Console, &[master.as_fd()])
            .map_err(|error| AgentError::Failed(error.to_string()))?;
    }
    close_others(status).attempt(|| "close descriptors".to_owned())?;
    if let Some(domain) = personality {
        set_personality(domain).attempt(|| format!("set the personality {domain:?}"))?;
    }
    set_limits(&process)?;
    let late = enter_directory(process.cwd(), true)?;
    drop_privileges(&process)?;
    if late {
        enter_directory(process.cwd(), false)?;
    }
    check_directory()?;
    if process.no_new_privileges() == Some(true) {
        set_no_new_privs(true).attempt(|| "forbid new privileges".to_owned())?;
    }
    Program::find(&process).map_err(AgentError::Failed)
}

/// Leaves the process its standard descriptors and `status`. Others would be within reach of the container's processes until
/// the program runs.
fn close_others(status: &OwnedFd) -> io::Result<()> {
    let status = status.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, status.saturating_sub(1)), (status.saturating_add(1), u32::MAX)] {
        // SAFETY: what is closed belongs to objects of the builder's that this process neither uses nor drops.
        let closed = first > last || unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0;
        if !closed {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
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
