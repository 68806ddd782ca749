//! The birth of an exec: a thread of the builder's gets ready for it out of the container's sight.
//!
//! A process is seen in its PID namespace from its first moment, and whoever may trace it there can follow `/proc/PID/root`,
//! `cwd`, `exe` and `fd`. So the thread that makes it has joined the container's mount namespace before, and has no descriptor
//! that leads out of it. Tables of descriptors, root directories and namespaces are a thread's own affair: the builder goes on
//! talking to the agent beside it, and a process that is made by the thread has only what the thread has.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::Pid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe};

use super::console;
use super::join::{self, Exec};
use super::message::{Reply, send};
use super::program::plain;
use super::user;
use crate::mount_attributes::make_readonly;
use crate::opening::{self, Proc};
use crate::paths;
use crate::sync::lock;

/// How far the birth has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Birth {
    /// The process may come any moment.
    Expected,
    /// It is there.
    Born(Pid),
    /// It is not to come any more.
    Unwanted,
}

/// What an exec's process is born from.
#[derive(Debug)]
pub(super) struct Origin {
    /// Container id.
    pub(super) id: String,
    /// Pid of the container's first process.
    pub(super) init: i32,
    /// What is to become of it.
    pub(super) exec: Exec,
    /// The builder's socket to the agent, who gets the terminal.
    pub(super) agent: OwnedFd,
}

/// Gives the calling thread descriptors and directories of its own.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn leave_the_others() -> io::Result<()> {
    // SAFETY: every object of the builder's that has a descriptor finds it in both tables, and each thread closes and opens
    // only in its own.
    Ok(unsafe { unshare_unsafe(UnshareFlags::FILES | UnshareFlags::FS) }?)
}

/// Makes the process, which says on `status` how it fares. Called by a thread that has left the others; does not return in the
/// new process.
///
/// # Errors
///
/// A sentence, when there is no process.
pub(super) fn bear(origin: Origin, status: &OwnedFd, birth: &Mutex<Birth>) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{what}: {}", plain(&error));
    let Origin { id, init, mut exec, agent } = origin;
    let cgroups = cgroups(&id, init).map_err(|error| failed("open the container's cgroup", error))?;
    // The agent's, which no container can have put anything into.
    let proc = Proc::open().map_err(|error| failed("open /proc", error))?;
    move_into_thread_name_spaces(
        exec.init.as_fd(),
        ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::NETWORK,
    )
    .map_err(|error| failed("join the container's namespaces", error.into()))?;
    let root =
        opening::directory(Path::new("/")).map_err(|error| failed("open the container's root", error))?;
    exec.home = user::home(&proc, &root, exec.process.user().uid());
    let streams = match exec.console {
        Some(console) => {
            let (master, peer) =
                console::make(console, &proc, &root).map_err(|error| failed("make a terminal", error))?;
            send(&agent, &Reply::Console, &[master.as_fd()]).map_err(|error| error.to_string())?;
            let copy = || peer.try_clone().map_err(|error| failed("make a terminal", error));
            Some([copy()?, copy()?, copy()?])
        }
        None => exec.stdio.take(),
    };
    if let Some([stdin, stdout, stderr]) = streams {
        dup2_stdin(stdin)
            .and_then(|()| dup2_stdout(stdout))
            .and_then(|()| dup2_stderr(stderr))
            .map_err(|error| failed("take the standard descriptors", error.into()))?;
    }
    drop((agent, proc, root));
    let kept: Vec<_> =
        [status, &exec.init].into_iter().chain(&cgroups).map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    close_all_but(&kept).map_err(|error| failed("close descriptors", error))?;
    move_into_thread_name_spaces(exec.init.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .map_err(|error| failed("join the container's PID namespace", error.into()))?;

    let mut birth = lock(birth);
    if *birth == Birth::Unwanted {
        return Err("nobody waits for the process any more".to_owned());
    }
    match clone_into_first(&cgroups) {
        Ok(Some(pid)) => *birth = Birth::Born(pid),
        Ok(None) => {
            drop(cgroups);
            join::run(exec, status)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
            return Err("make a process: the container has as many processes as it may".to_owned());
        }
        Err(error) => return Err(failed("make a process in the container's cgroup", error)),
    }
    Ok(())
}

/// Closes the calling thread's descriptors, except the standard ones and `kept`.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn close_all_but(kept: &[u32]) -> io::Result<()> {
    const FIRST: u32 = 3;
    let mut kept: Vec<u32> = kept.iter().copied().filter(|kept| *kept >= FIRST).collect();
    kept.sort_unstable();
    let mut first = FIRST;
    for last in kept.iter().map(|kept| kept - 1).chain([u32::MAX]) {
        // SAFETY: objects that have one of these descriptors belong to the other thread, which has it in its own table, or are
        // neither used nor dropped any more.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        first = last.saturating_add(2);
    }
    Ok(())
}

/// The container's cgroup and, if that has given its processes to cgroups of its own, the one that its first process is in.
fn cgroups(id: &str, init: i32) -> io::Result<Vec<OwnedFd>> {
    let container = paths::container_cgroup(id);
    let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    let below = below_container(&text, &container).filter(|below| *below != container);
    [Some(container), below].into_iter().flatten().map(|cgroup| alone(&cgroup)).collect()
}

/// The path in a `/proc/PID/cgroup`, if it lies below `container`.
fn below_container(text: &str, container: &Path) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = Path::new(paths::CGROUP).join(path);
    let plain = !path.components().any(|part| part == std::path::Component::ParentDir);
    (plain && path.starts_with(container)).then_some(path)
}

/// A cgroup's directory as a read-only mount of its own that lies nowhere: from it no path leads to other cgroups, and none to
/// the agent's files. The new process has a copy of the descriptor at first.
fn alone(cgroup: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, cgroup, flags)?;
    make_readonly(&tree)?;
    Ok(tree)
}

/// Clones the calling thread as a process into the first of these cgroups that may have processes; `None` in the new one.
fn clone_into_first(cgroups: &[OwnedFd]) -> io::Result<Option<Pid>> {
    let mut born = Err(io::ErrorKind::NotFound.into());
    for cgroup in cgroups {
        born = clone_into(cgroup);
        let full = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP));
        if !born.as_ref().is_err_and(full) {
            break;
        }
    }
    born
}

/// `clone3(2)`, without memory shared, into a cgroup: the new process is never anywhere else.
fn clone_into(cgroup: &OwnedFd) -> io::Result<Option<Pid>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    arguments.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    // SAFETY: `arguments` lives through the call. As with fork, the new process has a copy of this one's memory and its calling
    // thread. The other thread holds no lock of the C library's: without the birth's lock, it does nothing but wait in the
    // kernel. So the new process may go on as an ordinary one.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(i32::try_from(pid).ok().and_then(Pid::from_raw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_outside_the_containers_is_not_taken_for_its_own() {
        let container = paths::container_cgroup("c");
        let below = |text| below_container(text, &container);
        assert_eq!(below("0::/pod/c/init\n"), Some(container.join("init")));
        assert_eq!(below("1:name=x:/pod/c\n0::/pod/c\n"), Some(container.clone()));
        for other in ["", "0::/", "0::/pod/other", "0::/pod/cc", "0::/pod/c/../../agent", "1:cpu:/pod/c"] {
            assert_eq!(below(other), None, "{other}");
        }
    }

    #[test]
    fn a_thread_that_left_the_others_closes_what_is_not_kept_in_its_own_table() {
        let (one, two) = super::super::pair().unwrap();
        let (three, four) = super::super::pair().unwrap();
        let numbers = [&one, &two, &three, &four].map(AsRawFd::as_raw_fd);
        let open = |number| std::fs::read_link(format!("/proc/thread-self/fd/{number}")).is_ok();
        let seen = std::thread::spawn(move || {
            leave_the_others().unwrap();
            close_all_but(&[3, 1, 3].map(|at: usize| numbers[at].unsigned_abs())).unwrap();
            numbers.map(open)
        });
        assert_eq!(seen.join().unwrap(), [false, true, false, true]);
        assert_eq!(numbers.map(open), [true; 4]);
    }
}
