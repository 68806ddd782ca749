//! The socket device (virtio 1.3 §5.10), entirely in user space: the host opens streams to the guest, never the other
//! way round. Requests of the guest are reset.
//!
//! Every stream's host side is a socket that somebody else handed over; the device moves bytes, keeps to the guest's
//! credit and makes the guest keep to its own.

mod connect;
mod deadlines;
mod packet;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{TimerfdClockId, TimerfdFlags};

use self::connect::Attempt;
use self::deadlines::FAREWELL;
use self::packet::{
    GUEST_CID, HEADER_BYTES, HOST_CID, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_RESPONSE, OP_RST,
    OP_RW, OP_SHUTDOWN, TYPE_STREAM,
};
use self::stream::{BUFFER_BYTES, State, Stream};
use super::buffers::Buffers;
use super::queue::{Budget, Chain, Malformed, QueueSpec, Verdict, Virtqueue};
use super::{Description, Device};
use crate::event::{Mailbox, Readiness, Registrar};

const ID: u32 = 19;
/// Sizes of the queues: to the guest, from the guest, events (of which there are none).
const QUEUES: [u16; 3] = [128, 128, 16];
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

/// Most streams at a time.
const MAX_STREAMS: usize = 1024;
/// Resets for the guest that are held back until it offers buffers; then its own packets wait.
const MAX_RESETS: usize = 256;
/// Packets moved one way before other devices get their turn.
const BUDGET: u16 = 256;

/// Host ports count up from here; the tokens of the streams' sockets are the ports.
const FIRST_PORT: u32 = 0x4000_0000;
const COMMANDS: u32 = 0;
const TIMER: u32 = 1;

/// A message for the device.
pub enum Command {
    /// Connect `socket` to the guest's `port` and answer with `id`.
    Connect {
        /// Repeated in the answer.
        id: u64,
        /// The guest's port.
        port: u32,
        /// Time for the guest's answer.
        within: Duration,
        /// The host's side.
        socket: OwnedFd,
    },
    /// The guest's agent listens now.
    AgentReady,
    /// Call this once, as soon as the host holds no byte back that the guest has sent.
    WhenDrained(Box<dyn FnOnce() + Send>),
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect { id, port, .. } => write!(f, "Connect({id}, port {port})"),
            Self::AgentReady => f.write_str("AgentReady"),
            Self::WhenDrained(_) => f.write_str("WhenDrained"),
        }
    }
}

/// How an attempt to connect ended; the error is a sentence.
#[derive(Debug)]
pub struct Connected {
    /// Of the command.
    pub id: u64,
    /// Whether there is a connection.
    pub result: Result<(), String>,
}

/// The socket device.
pub struct Vsock {
    commands: Arc<Mailbox<Command>>,
    answer: Box<dyn Fn(Connected) + Send>,
    when_drained: Option<Box<dyn FnOnce() + Send>>,
    timer: Option<OwnedFd>,
    /// Whether the timer has to be set anew.
    rearm: bool,
    farewell: Duration,
    registrar: Option<Registrar>,
    agent_ready: bool,
    to_guest: Option<Virtqueue>,
    from_guest: Option<Virtqueue>,
    streams: HashMap<u32, Stream>,
    attempts: HashMap<u32, Attempt>,
    /// Streams that may have a packet for the guest, each once.
    waiting: VecDeque<u32>,
    resets: VecDeque<Header>,
    next_port: u32,
    data: Buffers,
    scratch: Buffers,
}

impl std::fmt::Debug for Vsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vsock").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Vsock {
    /// A device that takes `commands` and gives its answers to `answer`.
    #[must_use]
    pub fn new(commands: Arc<Mailbox<Command>>, answer: Box<dyn Fn(Connected) + Send>) -> Self {
        Self {
            commands,
            answer,
            when_drained: None,
            timer: None,
            rearm: false,
            farewell: FAREWELL,
            registrar: None,
            agent_ready: false,
            to_guest: None,
            from_guest: None,
            streams: HashMap::new(),
            attempts: HashMap::new(),
            waiting: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            data: Buffers::new(),
            scratch: Buffers::new(),
        }
    }

    /// Puts a stream into line if it has something for the guest, and forgets it if it is finished.
    fn queue_stream(&mut self, port: u32) {
        let Some(stream) = self.streams.get_mut(&port) else { return };
        if stream.is_finished() {
            if let Some(registrar) = &self.registrar {
                registrar.remove(&*stream);
            }
            if stream.in_line {
                self.waiting.retain(|waiting| *waiting != port);
            }
            self.streams.remove(&port);
            return;
        }
        self.rearm |= stream.awaits_guest() && stream.deadline.is_none();
        if stream.has_packet() && !stream.in_line {
            stream.in_line = true;
            self.waiting.push_back(port);
        }
    }

    /// Moves packets both ways until nothing moves or the budget is used up.
    fn pump(&mut self) {
        self.receive_packets();
        let was_deaf = self.is_deaf();
        self.send_packets();
        if was_deaf
            && !self.is_deaf()
            && let Some(queue) = &self.from_guest
        {
            queue.serve_again();
        }
        if self.when_drained.is_some()
            && self.streams.values().all(|stream| stream.backlog() == 0)
            && let Some(tell) = self.when_drained.take()
        {
            tell();
        }
    }

    /// A guest that does not take its resets is not listened to until it does.
    fn is_deaf(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    fn receive_packets(&mut self) {
        let Some(mut queue) = self.from_guest.take() else { return };
        queue.serve(&mut Budget::new(BUDGET), |chain| {
            if self.is_deaf() {
                return Verdict::PutBack;
            }
            self.receive_packet(chain);
            Verdict::Used(0)
        });
        self.from_guest = Some(queue);
    }

    fn receive_packet(&mut self, chain: &Chain) {
        let mut bytes = [0; HEADER_BYTES];
        if chain.readable.read(0, &mut bytes) < HEADER_BYTES {
            return;
        }
        let header = Header::parse(&bytes);
        if header.src_cid != GUEST_CID || header.dst_cid != HOST_CID {
            return;
        }
        let length = header.len as usize;
        let present = chain.readable.len() - HEADER_BYTES;
        let port = header.dst_port;
        let known = self.streams.get_mut(&port).filter(|stream| {
            stream.guest_port() == header.src_port
                && stream.state() != State::Draining
                && header.kind == TYPE_STREAM
        });
        let Some(stream) = known else {
            // Nobody listens on the host.
            if header.op != OP_RST {
                self.resets.push_back(header.reset());
            }
            return;
        };
        stream.update_credit(&header);
        let connecting = stream.state() == State::Connecting;
        match header.op {
            OP_RESPONSE if connecting => self.accepted(port),
            OP_RST if connecting => self.refused(port),
            OP_RST => stream.guest_reset(),
            OP_RW if !connecting && length <= present => {
                chain.readable.slice_into(HEADER_BYTES, length, &mut self.data);
                if stream.receive(&self.data).is_err() {
                    stream.reset();
                }
            }
            OP_SHUTDOWN if !connecting => stream.guest_shutdown(header.flags),
            OP_CREDIT_UPDATE if !connecting => {}
            OP_CREDIT_REQUEST if !connecting => stream.credit_requested(),
            _ => {
                stream.reset();
                if let Some(attempt) = self.attempts.remove(&port) {
                    self.reply(attempt.id, Err("The guest answered a connection with nonsense".into()));
                }
            }
        }
        self.queue_stream(port);
    }

    fn send_packets(&mut self) {
        if self.resets.is_empty() && self.waiting.is_empty() {
            return;
        }
        let Some(mut queue) = self.to_guest.take() else { return };
        queue.serve(&mut Budget::new(BUDGET), |chain| {
            if chain.writable.len() <= HEADER_BYTES {
                // No room for a single byte of data: not a buffer that a driver offers.
                return Verdict::Used(0);
            }
            let Some(header) = self.next_packet(&chain.writable) else { return Verdict::PutBack };
            chain.writable.write(0, &header.encode());
            let length = header.len.saturating_add(HEADER_BYTES as u32);
            if self.resets.is_empty() && self.waiting.is_empty() {
                Verdict::LastUsed(length)
            } else {
                Verdict::Used(length)
            }
        });
        self.to_guest = Some(queue);
    }

    /// The next packet in line, with its data put behind the header's place in `buffer`.
    fn next_packet(&mut self, buffer: &Buffers) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        buffer.slice_into(HEADER_BYTES, usize::MAX, &mut self.data);
        // Each in line once: a stream that has nothing after all is not asked again here.
        for _ in 0..self.waiting.len() {
            let port = self.waiting.pop_front()?;
            let Some(stream) = self.streams.get_mut(&port) else { continue };
            stream.in_line = false;
            let packet = stream.next_packet(&self.data, &mut self.scratch);
            // Back to the end of the line, so that streams take turns.
            self.queue_stream(port);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }
}

impl Device for Vsock {
    fn describe(&self) -> Description {
        let queue = |size| QueueSpec {
            size,
            // Drivers use 4 KiB one way and up to 64 KiB the other.
            max_chain_bytes: HEADER_BYTES + BUFFER_BYTES as usize,
            signal_every: 64,
            malformed: Malformed::GiveBack,
        };
        Description {
            name: "vsock",
            id: ID,
            queues: QUEUES.map(queue).into(),
            config: GUEST_CID.to_le_bytes().into(),
            ..Description::default()
        }
    }

    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        registrar.add_readable(&*self.commands, COMMANDS)?;
        registrar.add_readable(&timer, TIMER)?;
        self.timer = Some(timer);
        self.registrar = Some(registrar);
        Ok(())
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        let mut queues = queues.into_iter();
        self.to_guest = queues.next().flatten();
        self.from_guest = queues.next().flatten();
    }

    fn reset(&mut self) {
        self.to_guest = None;
        self.from_guest = None;
        self.resets.clear();
        self.waiting.clear();
        // Open streams die with the driver that had them, but what it sent before still reaches the host; attempts
        // start over with the next driver.
        let ports: Vec<u32> = self.streams.keys().copied().collect();
        for port in ports {
            let Some(stream) = self.streams.get_mut(&port) else { continue };
            stream.in_line = false;
            if stream.state() == State::Connecting {
                stream.request();
            } else {
                stream.guest_reset();
            }
            self.queue_stream(port);
        }
        self.pump();
    }

    fn serve(&mut self, queue: usize) {
        if matches!(queue, TO_GUEST | FROM_GUEST) {
            self.pump();
            self.arm();
        }
    }

    fn event(&mut self, token: u32, readiness: Readiness) {
        match token {
            COMMANDS => {
                for command in self.commands.receive() {
                    self.command(command);
                }
            }
            TIMER => {
                if let Some(timer) = &self.timer {
                    let _ = rustix::io::read(timer, &mut [0; 8]);
                }
                self.expire();
            }
            port => {
                if let Some(stream) = self.streams.get_mut(&port) {
                    stream.socket_ready(readiness.readable, readiness.writable, readiness.closed);
                }
                self.queue_stream(port);
            }
        }
        self.pump();
        self.arm();
    }
}

#[cfg(test)]
mod tests;
