//! The descriptors a process gets, and the ends the agent keeps.

use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::time::Instant;

use super::registry::{BoxStream, Registry};
use crate::error::{Attempt, Result};

/// The host's connections of one process.
pub struct Endpoints {
    /// Host to process.
    pub stdin: Option<BoxStream>,
    /// Process to host; with a terminal, all it shows.
    pub stdout: Option<BoxStream>,
    /// Process to host.
    pub stderr: Option<BoxStream>,
}

impl Endpoints {
    /// Takes the connections a call names; waits for them until `deadline`.
    ///
    /// # Errors
    ///
    /// When one does not come.
    pub async fn take(
        registry: &Registry,
        stdio: &ravelin_proto::agent::Stdio,
        deadline: Instant,
    ) -> Result<Self> {
        Ok(Self {
            stdin: registry.take(stdio.stdin, deadline).await?,
            stdout: registry.take(stdio.stdout, deadline).await?,
            stderr: registry.take(stdio.stderr, deadline).await?,
        })
    }
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoints").finish_non_exhaustive()
    }
}

/// The agent's ends of a process's pipes; `None` where the process has `/dev/null`.
#[derive(Debug)]
pub struct Ends {
    /// Written by the agent.
    pub stdin: Option<OwnedFd>,
    /// Read by the agent.
    pub stdout: Option<OwnedFd>,
    /// Read by the agent.
    pub stderr: Option<OwnedFd>,
}

/// Makes a process's standard descriptors: pipes that belong to its user, so that it may open `/dev/stdout`, or
/// `/dev/null` where the host has no connection.
///
/// # Errors
///
/// When the kernel refuses.
pub fn prepare(endpoints: &Endpoints, uid: u32) -> Result<([OwnedFd; 3], Ends)> {
    let (stdin, ours_in) = input(endpoints.stdin.is_some(), uid)?;
    let (stdout, ours_out) = output(endpoints.stdout.is_some(), uid)?;
    let (stderr, ours_err) = output(endpoints.stderr.is_some(), uid)?;
    Ok(([stdin, stdout, stderr], Ends { stdin: ours_in, stdout: ours_out, stderr: ours_err }))
}

fn input(connected: bool, uid: u32) -> Result<(OwnedFd, Option<OwnedFd>)> {
    if !connected {
        return Ok((null()?, None));
    }
    let (read, write) = pipe(uid)?;
    Ok((read, Some(nonblocking(write)?)))
}

fn output(connected: bool, uid: u32) -> Result<(OwnedFd, Option<OwnedFd>)> {
    if !connected {
        return Ok((null()?, None));
    }
    let (read, write) = pipe(uid)?;
    Ok((write, Some(nonblocking(read)?)))
}

fn pipe(uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let attempt = || "make a pipe for a process".to_owned();
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).attempt(attempt)?;
    fchown(&read, Some(Uid::from_raw(uid)), None::<Gid>).attempt(attempt)?;
    Ok((read, write))
}

/// Only the agent's end: the flag belongs to that end alone, and programs expect to block on theirs.
fn nonblocking(fd: OwnedFd) -> Result<OwnedFd> {
    rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK).attempt(|| "ready a pipe".to_owned())?;
    Ok(fd)
}

fn null() -> Result<OwnedFd> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).attempt(|| "open /dev/null".to_owned())
}
