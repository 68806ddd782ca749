//! The file system device (virtio 1.3 §5.11). It passes FUSE messages between its queues and a file server, a process of its
//! own at the other end of a socket, and knows nothing of a message but its length and the number by which a reply names its
//! request.
//!
//! Without a server, and after one has died or broken the protocol, every request fails with `EIO` at once.

mod connection;
mod message;
mod patience;
mod waiting;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::connection::{Connection, Fault, Sent};
use self::message::{REPLY_HEADER, fail};
use self::patience::Patience;
use self::waiting::{Request, Room, Waiting};
use super::queue::{Budget, Chain, Malformed, QueueSpec, Verdict, Virtqueue};
use super::{Description, Device};
use crate::event::{Mailbox, Readiness, Registrar};
use crate::log::{describe, log};

const ID: u32 = 26;
/// The queue of high priority, and one for requests.
const QUEUES: usize = 2;
/// Descriptors of a queue: more than a request has that moves 1 MiB in pages.
const QUEUE_SIZE: u16 = 512;
/// Most bytes of a message: 1 MiB of data, and its headers.
pub const MAX_MESSAGE_BYTES: usize = (1 << 20) + 4096;

/// What the guest mounts the file system by (virtio 1.3 §5.11.4).
pub const TAG: &str = "ravelin";
/// `tag`, padded with zeros, and `num_request_queues`.
const CONFIG_BYTES: usize = 40;
const NUM_REQUEST_QUEUES: usize = 36;

/// Messages moved one way before others get their turn. Each may be a copy of 1 MiB.
const BUDGET: u16 = 16;

const COMMANDS: u32 = 0;
const SERVER: u32 = 1;
const TIMER: u32 = 2;

/// Gives the device a server.
pub struct Attach {
    /// One end of a connected `SOCK_SEQPACKET` Unix socket, whose buffer takes the longest message that the server agrees on
    /// with the guest.
    pub server: OwnedFd,
    /// Told whether the device has taken it; the error is a sentence.
    pub answer: Box<dyn FnOnce(Result<(), String>) + Send>,
}

impl std::fmt::Debug for Attach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attach").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The file system device.
#[derive(Debug)]
pub struct Fs {
    commands: Arc<Mailbox<Attach>>,
    registrar: Option<Registrar>,
    queues: [Option<Virtqueue>; QUEUES],
    server: Option<Connection>,
    waiting: Waiting,
    patience: Patience,
    /// Whether chains were left in a queue.
    stalled: bool,
}

impl Fs {
    /// A device that takes servers from `commands`, one at a time.
    #[must_use]
    pub fn new(commands: Arc<Mailbox<Attach>>) -> Self {
        Self {
            commands,
            registrar: None,
            queues: [None, None],
            server: None,
            waiting: Waiting::default(),
            patience: Patience::default(),
            stalled: false,
        }
    }

    fn attach_server(&mut self, server: OwnedFd) -> Result<(), String> {
        // One that has died meanwhile is in nobody's way.
        self.receive();
        if self.server.is_some() {
            return Err("The file device has a server already, which is alive".into());
        }
        let registrar = self.registrar.as_ref().ok_or("The file device is not served yet")?;
        let connection = Connection::new(server, registrar, SERVER)
            .map_err(|error| format!("Cannot wait for the file server's socket: {error}"))?;
        self.server = Some(connection);
        Ok(())
    }

    fn serve_queue(&mut self, index: usize) {
        let Some(mut queue) = self.queues.get_mut(index).and_then(Option::take) else { return };
        let mut fault = None;
        queue.serve(&mut Budget::new(BUDGET), |chain| {
            self.serve_chain(index, chain).unwrap_or_else(|cause| {
                fault = Some(cause);
                // Looked at again when those that wait have their answers.
                Verdict::PutBack
            })
        });
        if let Some(place) = self.queues.get_mut(index) {
            *place = Some(queue);
        }
        if let Some(fault) = fault {
            // What it said before it died still counts.
            self.receive();
            if self.server.is_some() {
                self.lose_server(&fault);
            }
        }
    }

    fn serve_chain(&mut self, queue: usize, chain: &mut Chain) -> Result<Verdict, Fault> {
        let Some(unique) = message::request(&chain.readable) else {
            return Ok(Verdict::Used(fail(&chain.writable, 0, libc::EINVAL)));
        };
        let wants_reply = !chain.writable.is_empty();
        if wants_reply {
            if chain.writable.len() < REPLY_HEADER {
                return Ok(Verdict::Used(0));
            }
            match self.waiting.room(unique, queue, chain.writable.pieces()) {
                Room::Yes => {}
                Room::Later => {
                    self.stalled = true;
                    return Ok(Verdict::PutBack);
                }
                Room::Never => return Ok(Verdict::Broken),
                Room::Taken => return Ok(Verdict::Used(fail(&chain.writable, unique, libc::EINVAL))),
            }
        }
        let Some(server) = &mut self.server else {
            return Ok(Verdict::Used(fail(&chain.writable, unique, libc::EIO)));
        };
        let sent = if self.patience.is_pausing() { Sent::Later } else { server.send(&chain.readable)? };
        let verdict = match sent {
            Sent::Yes if wants_reply => {
                let writable = std::mem::take(&mut chain.writable);
                self.waiting.add(unique, Request { queue, head: chain.head, writable });
                Verdict::Kept
            }
            Sent::Yes => Verdict::Used(0),
            Sent::NoMemory(_) if self.patience.put_off(queue) => Verdict::PutBack,
            Sent::Later => Verdict::PutBack,
            Sent::NoMemory(errno) | Sent::Refused(errno) => {
                Verdict::Used(fail(&chain.writable, unique, errno))
            }
        };
        if matches!(verdict, Verdict::PutBack) {
            self.stalled = true;
        } else {
            self.patience.is_done(queue);
        }
        Ok(verdict)
    }

    /// Serves the queues in which chains were left, unless the server's socket has no room still, or the node no memory.
    fn go_on(&mut self) {
        let is_full = self.server.as_ref().is_some_and(Connection::is_full);
        if self.stalled && !is_full && !self.patience.is_pausing() {
            self.stalled = false;
            for index in 0..QUEUES {
                self.serve_queue(index);
            }
        }
    }

    /// Gives replies to those who wait for them, as many as there are or the budget allows: the rest is reported again.
    fn receive(&mut self) {
        let mut result = Ok(());
        for _ in 0..BUDGET {
            match self.receive_one() {
                Ok(true) => {}
                Ok(false) => break,
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        self.queues.iter_mut().flatten().for_each(Virtqueue::signal);
        if let Err(fault) = result {
            self.lose_server(&fault);
        }
    }

    /// Gives one reply to who waits for it; whether there was one.
    fn receive_one(&mut self) -> Result<bool, Fault> {
        let Some(server) = &self.server else { return Ok(false) };
        let Some(reply) = server.peek()? else { return Ok(false) };
        let (length, room) = (reply.len as usize, self.waiting.reply_bytes(reply.unique));
        match room {
            None => return Err(Fault::Unexpected),
            Some(room) if length > room => return Err(Fault::TooLong { length, room }),
            Some(_) => {}
        }
        let request = self.waiting.take(reply.unique).ok_or(Fault::Unexpected)?;
        let received = server.receive(&request.writable, reply);
        let written = match received {
            Ok(()) => reply.len,
            Err(_) => fail(&request.writable, reply.unique, libc::EIO),
        };
        self.give_back(&request, written);
        received.map(|()| true)
    }

    /// Closes the connection to a server that is dead or broken. Nobody waits for it any longer.
    fn lose_server(&mut self, fault: &Fault) {
        log(&format!("The connection to the file server is closed: {}", describe(fault)));
        self.server = None;
        for (unique, request) in self.waiting.take_all() {
            let written = fail(&request.writable, unique, libc::EIO);
            self.give_back(&request, written);
        }
        self.queues.iter_mut().flatten().for_each(Virtqueue::signal);
        // Chains that were left in the queues are not to wait either.
        self.stalled = false;
        self.patience.forget();
        self.queues.iter().flatten().for_each(Virtqueue::serve_again);
    }

    fn give_back(&mut self, request: &Request, written: u32) {
        if let Some(Some(queue)) = self.queues.get_mut(request.queue) {
            queue.give_back(request.head, written);
        }
    }
}

/// The configuration space (virtio 1.3 §5.11.4).
fn config() -> Vec<u8> {
    let mut config = TAG.as_bytes().to_vec();
    config.resize(NUM_REQUEST_QUEUES, 0);
    config.extend(1u32.to_le_bytes());
    config.resize(CONFIG_BYTES, 0);
    config
}

impl Device for Fs {
    fn describe(&self) -> Description {
        let queue = QueueSpec {
            size: QUEUE_SIZE,
            max_chain_bytes: MAX_MESSAGE_BYTES,
            // Whoever waits for a reply goes on while the next one is moved.
            signal_every: 1,
            // Drivers look for the result in the reply, and take none for a success.
            malformed: Malformed::Break,
        };
        Description {
            name: "fs",
            id: ID,
            queues: vec![queue; QUEUES],
            config: config(),
            ..Description::default()
        }
    }

    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add_readable(&*self.commands, COMMANDS)?;
        self.patience = Patience::new(&registrar, TIMER)?;
        self.registrar = Some(registrar);
        Ok(())
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        let mut queues = queues.into_iter();
        self.queues = std::array::from_fn(|_| queues.next().flatten());
    }

    fn reset(&mut self) {
        self.queues = [None, None];
        self.waiting = Waiting::default();
        self.patience.forget();
        self.stalled = false;
        // What it knows of open files was this driver's, and its replies to come belong to requests that are gone.
        self.server = None;
    }

    fn serve(&mut self, queue: usize) {
        self.serve_queue(queue);
    }

    fn event(&mut self, token: u32, readiness: Readiness) {
        match token {
            COMMANDS => {
                for Attach { server, answer } in self.commands.receive() {
                    answer(self.attach_server(server));
                }
            }
            TIMER => self.patience.go_on(),
            _ => {
                if readiness.writable
                    && let Some(server) = &mut self.server
                    && let Err(fault) = server.has_room()
                {
                    self.lose_server(&fault);
                }
                self.receive();
            }
        }
        self.go_on();
    }
}

#[cfg(test)]
mod tests;
