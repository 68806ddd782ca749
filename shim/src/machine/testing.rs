//! A machine for tests: a process that sleeps, and a control socket whose other end the test has.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use ravelin_vmm::control::{Answer, Command, Message, Request, transport};

use super::client::Client;
use super::{Inner, Machine, SpawnConfig, spawn};
use std::sync::Arc;

/// The machine and its own end of the control socket.
pub fn machine() -> (Machine, OwnedFd) {
    let dir = tempfile::tempdir().unwrap();
    let vmm = dir.path().join("vmm");
    std::fs::write(&vmm, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&vmm, PermissionsExt::from_mode(0o755)).unwrap();
    let config = SpawnConfig {
        vmm,
        uid: 1,
        gid: 1,
        netns: "/netns".into(),
        deadline: std::time::Duration::from_secs(15),
        sandbox_id: "test".to_owned(),
    };
    let spawned = spawn::spawn(&config).unwrap();
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

/// Answers every `connect` with a connection to nobody, and nothing else, in a thread.
pub fn connect_to_nobody(control: OwnedFd) {
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok(Some(mut packet)) = transport::recv::<Request>(&control) {
            if let Command::Connect { .. } = packet.message.command {
                held.append(&mut packet.fds);
                let reply = Message::Reply { id: packet.message.id, result: Ok(Answer::Done) };
                transport::send(&control, &reply, &[]).unwrap();
            }
        }
    });
}
