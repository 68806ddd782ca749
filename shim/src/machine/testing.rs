//! A machine for tests: a process that sleeps, and a control socket whose other end the test has.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ravelin_vmm::control::transport::{self, TransportError};
use ravelin_vmm::control::{Answer, Command, Message, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::client::Client;
use super::{Inner, Machine, SpawnConfig, spawn};

/// A machine's process that runs `script`, which is put into `directory`.
pub fn program(directory: &Path, script: &str) -> SpawnConfig {
    let vmm = directory.join("vmm");
    // By a program of its own: if this process had the file open for writing, what another test starts at that moment would
    // have it open too, and a file that is written to cannot be run.
    let write = r##"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 755 "$2""##;
    let written = std::process::Command::new("sh").args(["-c", write, "sh", script]).arg(&vmm).status();
    assert!(written.unwrap().success());
    SpawnConfig {
        vmm,
        uid: 1,
        gid: 1,
        vcpus: 1,
        scratch_bytes: 1 << 30,
        oom_score: 0,
        netns: "/netns".into(),
        deadline: Duration::from_secs(15),
        sandbox_id: "test".to_owned(),
    }
}

/// The machine and its own end of the control socket.
pub fn machine() -> (Machine, OwnedFd) {
    let dir = tempfile::tempdir().unwrap();
    let config = program(dir.path(), "exec sleep 1000");
    let (control, birth) = spawn::prepare(&config, None).unwrap();
    let spawned = spawn::follow(&config, control, birth().unwrap()).unwrap();
    // The script must have been read before it is removed with its directory.
    let comm = format!("/proc/{}/comm", spawned.pid);
    while std::fs::read_to_string(&comm).is_ok_and(|name| name != "sleep\n") {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let (ours, theirs) = transport::pair().unwrap();
    let client = Client::new(ours, spawned.exit.clone()).unwrap();
    let (pid, start_time, pidfd, exit) = (spawned.pid, spawned.start_time, spawned.pidfd, spawned.exit);
    (
        Machine {
            inner: Arc::new(Inner { pid, start_time, pidfd, client, exit, deadline: config.deadline }),
        },
        theirs,
    )
}

/// Answers every `connect` and nothing else. Gives the guest's ends of the connections, with their ports.
///
/// In a task and not in a thread, so that a paused clock does not run on while an answer is on its way.
pub fn connections(control: OwnedFd) -> mpsc::UnboundedReceiver<(u32, UnixStream)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    rustix::io::ioctl_fionbio(&control, true).unwrap();
    // SAFETY: an OwnedFd stays open, and the same, as long as the AsyncFd owns it.
    let control = unsafe { AsyncFd::register(control) }.unwrap();
    tokio::spawn(async move {
        let next = |control: &OwnedFd| match transport::recv::<Request>(control) {
            Err(TransportError::Socket(error)) => Err(error),
            other => Ok(other.unwrap()),
        };
        while let Ok(Some(mut packet)) = control.async_io(Interest::READABLE, next).await {
            let Command::Connect { port, .. } = packet.message.command else { continue };
            let stream = packet.fds.pop().and_then(|fd| stream(fd).ok()).unwrap();
            let _ = sender.send((port, stream));
            let reply = Message::Reply { id: packet.message.id, result: Ok(Answer::Done) };
            transport::send(control.get_ref(), &reply, &[]).unwrap();
        }
    });
    receiver
}

fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Answers every `connect` with a connection to nobody.
pub fn connect_to_nobody(control: OwnedFd) {
    let mut connections = connections(control);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(connection) = connections.recv().await {
            held.push(connection);
        }
    });
}
