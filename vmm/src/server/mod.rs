//! Serves the control socket: builds the machine that the shim asks for, steers it, and says how it ended.
//!
//! This is the work of the process's first thread. It waits for nothing but messages and touches no data of the guest's,
//! so that neither a guest nor a disk can delay it.

mod metrics;
mod pausing;
mod shim;
mod steering;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::control::transport::{self, Packet, TransportError};
use crate::control::{Answer, Command, ExitReason, Message, Request};
use crate::event::{Mailbox, Poller, set_nonblocking};
use crate::jail::seccomp::{self, Thread};
use crate::log::{describe, log};
use crate::machine::Built;
use metrics::{Facts, anonymous_bytes};
use steering::Server;

/// Tokens of the event loop's descriptors.
const CONTROL: u32 = 0;
const NOTICES: u32 = 1;

/// How long the shim may take to read the last message.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// What the process knows of itself from before it was jailed.
#[derive(Debug)]
pub struct Origin {
    /// When it started.
    pub started: Instant,
    /// `/proc/self/statm`, opened while it could be.
    pub statm: Option<File>,
}

/// Serves `control` until the machine ends, and returns why it did. The last message has then been sent; the caller
/// is to end the process at once, for the devices' threads are still there.
pub fn serve(control: OwnedFd, origin: Origin) -> ExitReason {
    let reason = match boot(&control, origin) {
        Ok(server) => server.run(),
        Err(reason) => reason,
    };
    let _ = set_nonblocking(&control);
    let deadline = Instant::now() + FAREWELL_TIME;
    while let Err(error) = transport::send(&control, &Message::Exited(reason), &[]) {
        if !error.would_block() || Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    reason
}

/// Waits for the request to boot and does what it says.
fn boot(control: &OwnedFd, origin: Origin) -> Result<Server<'_>, ExitReason> {
    let reply = |id, result| transport::send(control, &Message::Reply { id, result }, &[]);
    loop {
        let Packet { message, fds } = match transport::recv::<Request>(control) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err(ExitReason::Stopped),
            Err(TransportError::Socket(_)) => return Err(ExitReason::Stopped),
            Err(error) => {
                log(&describe(&error));
                return Err(ExitReason::Error);
            }
        };
        let config = match message.command {
            Command::Boot(config) => config,
            Command::Stop => {
                let _ = reply(message.id, Ok(Answer::Done));
                return Err(ExitReason::Stopped);
            }
            _ => {
                let _ = reply(message.id, Err("The machine has not been booted yet".into()));
                continue;
            }
        };
        let failed = |text: String| {
            log(&text);
            let _ = reply(message.id, Err(text));
            ExitReason::Error
        };
        let resident_before = anonymous_bytes(origin.statm.as_ref());
        let events = (|| {
            let (poller, notices) = (Poller::new()?, Mailbox::new()?);
            poller.registrar(0).add_readable(&*notices, NOTICES)?;
            poller.registrar(0).add_readable(control, CONTROL)?;
            set_nonblocking(control)?;
            Ok::<_, std::io::Error>((poller, notices))
        })();
        let (poller, notices) =
            events.map_err(|error| failed(format!("Cannot make the event loop: {error}")))?;
        let machine = Built::build(&config, fds, &notices).map_err(|error| failed(describe(&error)))?;
        let facts = Facts::new(origin, resident_before);
        let machine = machine.start().map_err(|error| failed(describe(&error)))?;
        seccomp::tighten(Thread::Main);
        let mut server = Server::new(control, machine, poller, notices, facts);
        server.reply(message.id, Ok(Answer::Done));
        return Ok(server);
    }
}
