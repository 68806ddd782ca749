//! An exec, from the builder's side: a process is born in the container's cgroup and PID namespace and is watched until it
//! runs its program.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, kill_process, set_dumpable_behavior, waitpid,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::join::{self, Exec};
use super::message::{Reply, SpawnerError, receive, send};
use super::program::plain;
use crate::paths;

/// Makes the process and waits until it runs its program. `init` is the pid of the container's first process, which
/// `exec` has a descriptor of. `agent` learns the terminal's master side, if there is one.
///
/// # Errors
///
/// The new process's own words when it does not come to run its program; nothing of it is left then.
pub(super) fn start(id: &str, init: i32, exec: Exec, agent: &OwnedFd) -> Result<i32, String> {
    let failed = |what: &str, error: &io::Error| format!("{what}: {}", plain(error));
    // The container's processes see the new one before it is one of them.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| failed("shield a process of the agent", &error.into()))?;
    move_into_thread_name_spaces(exec.init.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .map_err(|error| failed("join the container's PID namespace", &error.into()))?;
    let (ours, theirs) = super::pair().map_err(|error| failed("make a socket", &error))?;
    let child = match be_born(id, init) {
        Ok(Some(pid)) => pid,
        Ok(None) => join::run(exec, theirs),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
            return Err("make a process: the container has as many processes as it may".to_owned());
        }
        Err(error) => return Err(failed("make a process in the container's cgroup", &error)),
    };
    drop((theirs, exec));
    let running = watch(&ours, agent);
    if running.is_err() {
        let _ = kill_process(child, Signal::KILL);
        let _ = waitpid(Some(child), WaitOptions::empty());
    }
    running.map(|()| child.as_raw_nonzero().get())
}

/// Waits until the process runs its program, which closes its end of `status`, or the agent gives up.
fn watch(status: &OwnedFd, agent: &OwnedFd) -> Result<(), String> {
    let mut going = false;
    loop {
        let mut fds = [PollFd::new(status, PollFlags::IN), PollFd::new(agent, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(format!("wait for a process: {error}")),
        }
        let [said, given_up] = fds.map(|fd| !fd.revents().is_empty());
        // The agent has nothing to say before it has its answer.
        if given_up {
            return Err("nobody waits for the process any more".to_owned());
        }
        if !said {
            continue;
        }
        match receive::<Reply>(status) {
            Ok((Reply::Console, fds)) => {
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                send(agent, &Reply::Console, &fds).map_err(|error| error.to_string())?;
            }
            Ok((Reply::Going, _)) => going = true,
            Ok((Reply::Error(text), _)) => return Err(text),
            Err(SpawnerError::NoAnswer) if going => return Ok(()),
            Ok((Reply::Pid(_), _)) | Err(_) => {
                return Err("the process ended before it ran its program".to_owned());
            }
        }
    }
}

/// Clones the calling process into the container's cgroup, or, when that has given its processes to cgroups of its own, into
/// the one that the container's first process is in; `None` in the new process.
fn be_born(id: &str, init: i32) -> io::Result<Option<Pid>> {
    match clone_into(&paths::container_cgroup(id)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
            clone_into(&cgroup_of_init(id, init)?)
        }
        born => born,
    }
}

/// The cgroup of a container's first process, which lies below the container's own.
fn cgroup_of_init(id: &str, init: i32) -> io::Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    below_container(&text, &paths::container_cgroup(id)).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The path in a `/proc/PID/cgroup`, if it lies below `container`.
fn below_container(text: &str, container: &Path) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = Path::new(paths::CGROUP).join(path);
    let plain = !path.components().any(|part| part == std::path::Component::ParentDir);
    (plain && path.starts_with(container)).then_some(path)
}

/// `clone3(2)`, without memory shared, into a cgroup: the new process is never anywhere else.
fn clone_into(cgroup: &Path) -> io::Result<Option<Pid>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let cgroup = rustix::fs::open(cgroup, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    arguments.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    // SAFETY: `arguments` lives through the call. As with fork, the new process has a copy of this one's memory and its only
    // thread, so it may go on as an ordinary process.
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
}
