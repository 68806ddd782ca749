//! A machine's process that was taken over: it does to the shim what its name says. A pod can be started with it
//! (`vmm.path` in the configuration, a link `…/hostile-MODE` to this program).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use ravelin_vmm::control::transport;
use ravelin_vmm::control::{Answer, CONTROL_FD, ExitReason, MAX_PACKET_BYTES, Message, Metrics, Request};
use rustix::net::{SendFlags, Shutdown};

fn main() {
    let name = std::env::args().next().unwrap();
    // SAFETY: the shim has left the control socket there, and nothing else in this process uses it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    match name.rsplit_once("hostile-").map(|(_, mode)| mode) {
        // Reads nothing and says nothing.
        Some("deaf") => sleep(),
        // Reads everything and says nothing.
        Some("mute") => while transport::recv::<Request>(&control).is_ok_and(|packet| packet.is_some()) {},
        // Says what nobody understands, as fast as it can.
        Some("mad") => {
            while rustix::net::send(&control, b"\0{]\xff", SendFlags::NOSIGNAL).is_ok() {}
            sleep();
        }
        // Answers what nobody asked, as largely as it can, and says again and again that it ends.
        Some("large") => {
            let mut metrics = Metrics::default();
            let room = MAX_PACKET_BYTES / 2;
            metrics.exits.insert("x".repeat(room), u64::MAX);
            for id in 0.. {
                let reply = Message::Reply { id, result: Ok(Answer::Metrics(metrics.clone())) };
                let error = Message::Reply { id, result: Err("\u{1b}[31m lies ".repeat(room / 16)) };
                let sent = [reply, error, Message::Exited(ExitReason::PowerOff)]
                    .iter()
                    .try_for_each(|message| transport::send(&control, message, &[]));
                if sent.is_err() {
                    break;
                }
            }
            sleep();
        }
        // Claims to have done everything.
        Some("yes") => {
            while let Ok(Some(packet)) = transport::recv::<Request>(&control) {
                let reply = Message::Reply { id: packet.message.id, result: Ok(Answer::Done) };
                let _ = transport::send(&control, &reply, &[]);
            }
            sleep();
        }
        // Hangs up and lives on.
        Some("closed") => {
            rustix::net::shutdown(&control, Shutdown::Both).unwrap();
            drop(control);
            sleep();
        }
        // Fills the log.
        Some("loud") => while std::io::stderr().write_all(&[b'x'; 4096]).is_ok() {},
        Some("gone") => {}
        other => panic!("{other:?}"),
    }
}

fn sleep() {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}
