//! An exec, from the builder's side: a process is born in the container's cgroup and PID namespace and is watched until it
//! runs its program.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Signal, WaitOptions, kill_process, set_dumpable_behavior, waitpid};

use super::birth::{self, Birth, Origin};
use super::join::Exec;
use super::message::{Reply, SpawnerError, failure, receive, send};
use super::program::plain;
use crate::sync::lock;

/// Makes the process and waits until it runs its program. `init` is the pid of the container's first process, which
/// `exec` has a descriptor of. `agent` learns the terminal's master side, if there is one.
///
/// # Errors
///
/// The new process's own words when it does not come to run its program; nothing of it is left then.
pub(super) fn start(id: &str, init: i32, exec: Exec, agent: &OwnedFd) -> Result<i32, String> {
    let failed = |what: &str, error: io::Error| format!("{what}: {}", plain(&error));
    // The container's processes see the new one before it runs its program.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| failed("shield a process of the agent", error.into()))?;
    // From its birth, and never the agent's own, which is exempt.
    let score = exec.process.oom_score_adj().unwrap_or(0);
    set_oom_score(score).map_err(|error| failed(&format!("set the OOM score to {score}"), error))?;
    let (ours, theirs) = super::pair().map_err(|error| failed("make a socket", error))?;
    let agents = agent.try_clone().map_err(|error| failed("make a socket", error))?;
    let origin = Origin { id: id.to_owned(), init, exec, agent: agents };

    let birth = Arc::new(Mutex::new(Birth::Expected));
    // Whoever has it may use the C library, of whose locks the new process has copies: none is held when it is born.
    let alone = lock(&birth);
    let (left, has_left) = mpsc::channel();
    let copy = Arc::clone(&birth);
    let midwife = std::thread::Builder::new().spawn(move || {
        let done = birth::leave_the_others();
        let apart = done.is_ok();
        let _ = left.send(done);
        if apart && let Err(text) = birth::bear(origin, &theirs, &copy) {
            // Nobody may be listening.
            let _ = send(&theirs, &failure(text), &[]);
        }
    });
    midwife.map_err(|error| failed("make a thread", error))?;
    has_left
        .recv()
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
        .and_then(|()| {
            // The other thread's, above all its end of `ours`.
            birth::close_all_but(&[&ours, agent].map(|fd| fd.as_raw_fd().unsigned_abs()))
        })
        .map_err(|error| failed("take a thread's descriptors apart", error))?;
    let (running, mut alone) = watch(&ours, agent, &birth, alone);
    // What builds it is as precious as ever, now that the process has its own.
    let _ = set_oom_score(EXEMPT);
    match (running, std::mem::replace(&mut *alone, Birth::Unwanted)) {
        (Ok(()), Birth::Born(pid)) => Ok(pid.as_raw_nonzero().get()),
        (Err(text), Birth::Born(pid)) => {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
            Err(text)
        }
        (Ok(()), _) => Err(NOT_RUN.to_owned()),
        (Err(text), _) => Err(text),
    }
}

/// What the OOM killer never chooses.
const EXEMPT: i32 = -1000;

fn set_oom_score(score: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string())
}

const NOT_RUN: &str = "the process ended before it ran its program";

/// Waits until the process runs its program, which closes its end of `status`, or the agent gives up. The birth's lock is free
/// only while this thread waits.
fn watch<'a>(
    status: &OwnedFd,
    agent: &OwnedFd,
    birth: &'a Mutex<Birth>,
    mut alone: MutexGuard<'a, Birth>,
) -> (Result<(), String>, MutexGuard<'a, Birth>) {
    let mut going = false;
    loop {
        drop(alone);
        let mut fds = [PollFd::new(status, PollFlags::IN), PollFd::new(agent, PollFlags::IN)];
        let polled = poll(&mut fds, None);
        alone = lock(birth);
        match polled {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return (Err(format!("wait for a process: {error}")), alone),
        }
        let [said, given_up] = fds.map(|fd| !fd.revents().is_empty());
        // The agent has nothing to say before it has its answer.
        if given_up {
            return (Err("nobody waits for the process any more".to_owned()), alone);
        }
        if !said {
            continue;
        }
        // A process that a container's own has taken over says what that wants: which one it is, it is not asked.
        match receive::<Reply>(status) {
            Ok((Reply::Going, _)) => going = true,
            Ok((Reply::Error(text), _)) => return (Err(text), alone),
            Err(SpawnerError::NoAnswer) if going => return (Ok(()), alone),
            Ok((Reply::Pid(_) | Reply::Console, _)) | Err(_) => return (Err(NOT_RUN.to_owned()), alone),
        }
    }
}
