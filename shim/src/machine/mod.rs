//! One machine: the `ravelin-vmm` process of a pod, started, steered and ended.
//!
//! The machine's process may have been taken over by its guest, so everything it says is bounded and matched against
//! what was asked, every request has a deadline, and its end is read from its exit status alone.

mod client;
mod exit;
mod files;
mod log;
mod spawn;
mod starvation;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use exit::Exit;
pub use files::{open_initramfs, open_kernel, open_kvm};
pub use log::log_pipe;
pub use spawn::SpawnConfig;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ravelin_proto::STREAM_PORT;
use ravelin_vmm::control::{Answer, Command, Extent, ExtentDisk, MachineConfig, Metrics};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::birth::kill;
use client::Client;

/// Time between the end of the conversation with a machine and the end of its process.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);
/// First and longest pause between two attempts to reach an agent that is still starting.
const CONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// A machine that could not be started or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// `/dev/kvm` is not there.
    #[error("no /dev/kvm: load kvm-amd or kvm-intel, enable virtualization")]
    NoKvm(#[source] io::Error),
    /// A file of the machine could not be opened.
    #[error("cannot open the {what} {path} (configuration key `{key}`)")]
    Open {
        /// What the file is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The key of ravelin.toml that names it.
        key: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The vmm could not be started.
    #[error("cannot start the machine's process {path} (configuration key `vmm.path`)")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket or pipe for the machine could not be made.
    #[error("cannot make a {what} for the machine")]
    Plumbing {
        /// Socket pair, pipe, ...
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A request could not be sent.
    #[error("cannot send the machine its `{command}` request")]
    Send {
        /// The request.
        command: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine refused a request.
    #[error("the machine refused to {command}: {message}")]
    Refused {
        /// The request.
        command: &'static str,
        /// The machine's words, bounded.
        message: String,
    },
    /// The machine answered with something that was not asked for.
    #[error("the machine gave a wrong answer to its `{command}` request")]
    WrongAnswer {
        /// The request.
        command: &'static str,
    },
    /// The machine stayed silent.
    #[error("the machine did not answer its `{command}` request within {} s", .after.as_secs())]
    Timeout {
        /// The request.
        command: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// The machine is gone.
    #[error("the machine has ended: {0}")]
    Ended(Exit),
}

/// File descriptors a machine is built from.
#[derive(Debug)]
pub struct BootFds {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The guest kernel.
    pub kernel: OwnedFd,
    /// The initramfs with the agent.
    pub initramfs: OwnedFd,
    /// The scratch disk, read-write.
    pub scratch: OwnedFd,
    /// The tap's queues.
    pub taps: Vec<OwnedFd>,
    /// Where the serial console's output goes, if the machine has one.
    pub console: Option<OwnedFd>,
}

/// A running machine. When the last clone is dropped the process is killed.
#[derive(Debug, Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pid: u32,
    start_time: u64,
    pidfd: OwnedFd,
    client: Client,
    exit: watch::Receiver<Option<Exit>>,
    deadline: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.client.close();
        kill(self.pidfd.as_fd());
    }
}

impl Machine {
    /// Starts the machine's process. It jails itself and then waits for [`Machine::boot`].
    ///
    /// It is in `cgroup`, a directory of cgroup v2, if one is given.
    ///
    /// # Errors
    /// When the program cannot be run, does not begin to within the deadline, or the process is out of descriptors.
    pub async fn spawn(config: &SpawnConfig, cgroup: Option<OwnedFd>) -> Result<Self, MachineError> {
        let spawned = spawn::spawn(config, cgroup).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                pid: spawned.pid,
                start_time: spawned.start_time,
                pidfd: spawned.pidfd,
                client: Client::new(spawned.control, spawned.exit.clone())?,
                exit: spawned.exit,
                deadline: config.deadline,
            }),
        })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// The process's start time in clock ticks since the host's boot; with the pid it names the process for ever
    /// (see [`crate::state::ProcessRef`]).
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.inner.start_time
    }

    /// Builds the machine and starts it, within `patience`.
    ///
    /// # Errors
    /// The machine's refusal, its silence or its end.
    pub async fn boot(
        &self,
        config: MachineConfig,
        fds: BootFds,
        patience: Duration,
    ) -> Result<(), MachineError> {
        let mut all = vec![fds.kvm.as_fd(), fds.kernel.as_fd(), fds.initramfs.as_fd(), fds.scratch.as_fd()];
        all.extend(fds.taps.iter().map(AsFd::as_fd));
        all.extend(fds.console.iter().map(AsFd::as_fd));
        self.done("boot", Command::Boot(config), &all, patience).await
    }

    /// Opens a connection to a vsock port of the guest.
    ///
    /// # Errors
    /// The guest's refusal, the machine's silence or its end.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, MachineError> {
        self.connect_within(port, self.inner.deadline).await
    }

    /// Opens a connection to a port that the guest may not serve yet, trying until `patience` is over.
    ///
    /// # Errors
    /// The last refusal, or the machine's end.
    pub async fn connect_when_ready(
        &self,
        port: u32,
        patience: Duration,
    ) -> Result<UnixStream, MachineError> {
        let until = Instant::now() + patience;
        let (mut pause, longest) = CONNECT_PAUSE;
        loop {
            // The machine itself holds a connection until the guest listens.
            let left = until.saturating_duration_since(Instant::now());
            let error = match self.connect_within(port, left).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let again = matches!(error, MachineError::Refused { .. } | MachineError::Timeout { .. });
            if !again || Instant::now() + pause >= until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn connect_within(&self, port: u32, deadline: Duration) -> Result<UnixStream, MachineError> {
        let plumbing = |source| MachineError::Plumbing { what: "socket pair", source };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(plumbing)?;
        ours.set_nonblocking(true).map_err(plumbing)?;
        theirs.set_nonblocking(true).map_err(plumbing)?;
        let ours = UnixStream::from_std(ours).map_err(plumbing)?;
        let within_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        self.done("connect", Command::Connect { port, within_ms }, &[theirs.as_fd()], deadline).await?;
        Ok(ours)
    }

    /// Opens a raw stream into the guest, for the agent to find by its `id` (not 0).
    ///
    /// # Errors
    /// As for [`Machine::connect`].
    pub async fn open_stream(&self, id: u64) -> Result<UnixStream, MachineError> {
        let mut stream = self.connect(STREAM_PORT).await?;
        let named = stream.write_all(&id.to_le_bytes()).await;
        named.map_err(|source| MachineError::Send { command: "stream", source })?;
        Ok(stream)
    }

    /// Maps a file into an extent disk.
    ///
    /// # Errors
    /// The machine's refusal (an overlap, for one), its silence or its end.
    pub async fn add_extent(&self, extent: Extent, file: impl AsFd) -> Result<(), MachineError> {
        self.done("add an extent", Command::AddExtent(extent), &[file.as_fd()], self.inner.deadline).await
    }

    /// Takes an extent off its disk.
    ///
    /// # Errors
    /// As for [`Machine::add_extent`].
    pub async fn remove_extent(&self, disk: ExtentDisk, offset: u64) -> Result<(), MachineError> {
        self.done("remove an extent", Command::RemoveExtent { disk, offset }, &[], self.inner.deadline).await
    }

    /// Gives the machine's file device its server, at the other end of `requests`.
    ///
    /// # Errors
    /// The machine's refusal (the device has one that is alive), its silence or its end.
    pub async fn attach_file_server(&self, requests: impl AsFd) -> Result<(), MachineError> {
        let fds = [requests.as_fd()];
        self.done("attach a file server", Command::AttachFileServer, &fds, self.inner.deadline).await
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// The machine's refusal, its silence or its end.
    pub async fn pause(&self) -> Result<(), MachineError> {
        self.done("pause", Command::Pause, &[], self.inner.deadline).await
    }

    /// Lets the vCPUs run again.
    ///
    /// # Errors
    /// As for [`Machine::pause`].
    pub async fn resume(&self) -> Result<(), MachineError> {
        self.done("resume", Command::Resume, &[], self.inner.deadline).await
    }

    /// Asks the guest to give up so many MiB of its memory in all; [`Metrics::balloon_mib`] tells how far it is.
    ///
    /// # Errors
    /// As for [`Machine::pause`].
    pub async fn set_balloon(&self, mib: u32) -> Result<(), MachineError> {
        self.done("set the balloon", Command::SetBalloon { mib }, &[], self.inner.deadline).await
    }

    /// The machine's own counters; not to be trusted further than its guest.
    ///
    /// # Errors
    /// As for [`Machine::pause`].
    pub async fn metrics(&self) -> Result<Metrics, MachineError> {
        match self.inner.client.request("metrics", Command::Metrics, &[], self.inner.deadline).await? {
            Answer::Metrics(metrics) => Ok(metrics),
            Answer::Done => Err(MachineError::WrongAnswer { command: "metrics" }),
        }
    }

    /// Tells the machine to end as if power were cut; its process ends soon after.
    ///
    /// # Errors
    /// As for [`Machine::pause`].
    pub async fn stop(&self, deadline: Duration) -> Result<(), MachineError> {
        match self.done("stop", Command::Stop, &[], deadline).await {
            Ok(()) | Err(MachineError::Ended(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the machine's process no longer takes part in the conversation, because it broke off or broke the
    /// protocol, and yet has not ended.
    pub async fn hung_up(&self) {
        self.inner.client.over().await;
        tokio::time::sleep(HANG_UP_GRACE).await;
    }

    /// Kills the machine's process; [`Machine::wait`] tells when it is gone.
    pub fn kill(&self) {
        kill(self.inner.pidfd.as_fd());
    }

    /// Waits for the process's end. Any number of callers may wait, also after the end.
    pub async fn wait(&self) -> Exit {
        exit::ended(&mut self.inner.exit.clone()).await
    }

    /// Completes when the machine has had `patience` in which its threads could run; a node that is overloaded may let it
    /// wait a minute longer.
    pub async fn had_time(&self, patience: Duration) {
        starvation::had_time(self.inner.pid, patience).await;
    }

    /// How the machine ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<Exit> {
        *self.inner.exit.borrow()
    }

    async fn done(
        &self,
        name: &'static str,
        command: Command,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<(), MachineError> {
        match self.inner.client.request(name, command, fds, deadline).await? {
            Answer::Done => Ok(()),
            Answer::Metrics(_) => Err(MachineError::WrongAnswer { command: name }),
        }
    }
}
