//! The socket device (virtio 1.3 §5.10), entirely in user space: the host opens streams to the guest, never the other
//! way round. Requests of the guest are reset.
//!
//! Every stream's host side is a socket that somebody else handed over; the device moves bytes, keeps to the guest's
//! credit and makes the guest keep to its own.

mod connect;
mod packet;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::time::{TimerfdClockId, TimerfdFlags};

use self::connect::Attempt;
use self::packet::{
    GUEST_CID, HEADER_BYTES, HOST_CID, Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_RESPONSE, OP_RST,
    OP_RW, OP_SHUTDOWN, TYPE_STREAM,
};
use self::stream::{BUFFER_BYTES, State, Stream};
use super::Device;
use super::buffers::Buffers;
use super::queue::{Chain, QueueBroken, Virtqueue};
use crate::event::{Mailbox, Readiness, Registrar};

const ID: u32 = 19;
/// To the guest, from the guest, events (of which there are none).
const QUEUES: [u16; 3] = [128, 128, 16];
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

/// Most streams at a time.
const MAX_STREAMS: usize = 1024;
/// Resets for the guest that are held back until it offers buffers; then its own packets wait.
const MAX_RESETS: usize = 256;
/// Packets moved before other devices get their turn.
const BUDGET: usize = 256;

/// Host ports count up from here; the tokens of the streams' sockets are the ports.
const FIRST_PORT: u32 = 0x4000_0000;
const COMMANDS: u32 = 0;
const TIMER: u32 = 1;
const AGAIN: u32 = 2;

/// A message for the device.
#[derive(Debug)]
pub enum Command {
    /// Connect `socket` to the guest's `port` and answer with `id`.
    Connect {
        /// Repeated in the answer.
        id: u64,
        /// The guest's port.
        port: u32,
        /// The host's side.
        socket: OwnedFd,
    },
    /// The guest's agent listens now.
    AgentReady,
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
    backlog: Arc<AtomicUsize>,
    timer: Option<OwnedFd>,
    again: crate::event::Wake,
    registrar: Option<Registrar>,
    config: [u8; 8],
    agent_ready: bool,
    to_guest: Option<Virtqueue>,
    from_guest: Option<Virtqueue>,
    streams: HashMap<u32, Stream>,
    attempts: HashMap<u32, Attempt>,
    /// Streams that may have a packet for the guest, each once.
    waiting: VecDeque<u32>,
    resets: VecDeque<Header>,
    next_port: u32,
    chain: Chain,
    data: Buffers,
    scratch: Buffers,
}

impl std::fmt::Debug for Vsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vsock").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl Vsock {
    /// A device that takes `commands` and gives its answers to `answer`. `backlog` always holds the number of bytes
    /// from the guest that the host has not yet taken.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(
        commands: Arc<Mailbox<Command>>,
        answer: Box<dyn Fn(Connected) + Send>,
        backlog: Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        Ok(Self {
            commands,
            answer,
            backlog,
            timer: None,
            again: crate::event::Wake::new()?,
            registrar: None,
            config: GUEST_CID.to_le_bytes(),
            agent_ready: false,
            to_guest: None,
            from_guest: None,
            streams: HashMap::new(),
            attempts: HashMap::new(),
            waiting: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            chain: Chain::default(),
            data: Buffers::new(),
            scratch: Buffers::new(),
        })
    }

    /// Puts a stream into line if it has something for the guest, and forgets it if it is finished.
    fn queue_stream(&mut self, port: u32) {
        let Some(stream) = self.streams.get_mut(&port) else { return };
        if stream.is_finished() {
            if let Some(registrar) = &self.registrar {
                registrar.remove(&*stream);
            }
            self.streams.remove(&port);
        } else if stream.has_packet() && !stream.in_line {
            stream.in_line = true;
            self.waiting.push_back(port);
        }
    }

    /// Moves packets both ways until nothing moves or the budget is used up.
    fn pump(&mut self) {
        if self.receive_packets().is_err() {
            self.from_guest = None;
        }
        if self.send_packets().is_err() {
            self.to_guest = None;
        }
        let held = self.streams.values().map(Stream::backlog).sum();
        self.backlog.store(held, Ordering::SeqCst);
    }

    fn receive_packets(&mut self) -> Result<(), QueueBroken> {
        let Some(mut queue) = self.from_guest.take() else { return Ok(()) };
        let mut budget = BUDGET;
        let mut any = false;
        loop {
            queue.pause_notifications();
            while self.resets.len() < MAX_RESETS && queue.pop(&mut self.chain)? {
                any = true;
                self.receive_packet();
                queue.push_used(self.chain.head, 0)?;
                budget -= 1;
                if budget == 0 {
                    break;
                }
            }
            if budget == 0 {
                self.again.wake();
                break;
            }
            // A guest that does not take its resets is not listened to until it does.
            if self.resets.len() >= MAX_RESETS || !queue.resume_notifications() {
                break;
            }
        }
        if any {
            queue.signal();
        }
        self.from_guest = Some(queue);
        Ok(())
    }

    /// Handles the packet in `self.chain`.
    fn receive_packet(&mut self) {
        let mut bytes = [0; HEADER_BYTES];
        if self.chain.readable.read(0, &mut bytes) < HEADER_BYTES {
            return;
        }
        let header = Header::parse(&bytes);
        if header.src_cid != GUEST_CID || header.dst_cid != HOST_CID {
            return;
        }
        let length = header.len as usize;
        let present = self.chain.readable.len() - HEADER_BYTES;
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
                self.chain.readable.slice_into(HEADER_BYTES, length, &mut self.data);
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

    fn send_packets(&mut self) -> Result<(), QueueBroken> {
        let Some(mut queue) = self.to_guest.take() else { return Ok(()) };
        let mut any = false;
        let mut budget = BUDGET;
        while !(self.resets.is_empty() && self.waiting.is_empty()) {
            if budget == 0 {
                self.again.wake();
                break;
            }
            if !queue.pop(&mut self.chain)? {
                if queue.resume_notifications() {
                    continue;
                }
                break;
            }
            if self.chain.writable.len() < HEADER_BYTES {
                queue.push_used(self.chain.head, 0)?;
                continue;
            }
            let Some(header) = self.next_packet() else {
                queue.undo_pop(1);
                break;
            };
            self.chain.writable.write(0, &header.encode());
            let length = header.len.saturating_add(HEADER_BYTES as u32);
            queue.push_used(self.chain.head, length)?;
            any = true;
            budget -= 1;
        }
        if any {
            queue.signal();
        }
        self.to_guest = Some(queue);
        Ok(())
    }

    /// The next packet in line, with its data behind the header's place in `self.chain`.
    fn next_packet(&mut self) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            if self.resets.len() == MAX_RESETS - 1 {
                self.again.wake();
            }
            return Some(reset);
        }
        self.chain.writable.slice_into(HEADER_BYTES, usize::MAX, &mut self.data);
        while let Some(port) = self.waiting.pop_front() {
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
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn max_chain_bytes(&self, _queue: usize) -> usize {
        // Drivers use 4 KiB one way and up to 64 KiB the other.
        HEADER_BYTES + BUFFER_BYTES as usize
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        registrar.add_readable(&*self.commands, COMMANDS)?;
        registrar.add_readable(&timer, TIMER)?;
        registrar.add_readable(&self.again, AGAIN)?;
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
        self.chain = Chain::default();
        self.resets.clear();
        self.waiting.clear();
        // Open streams die with the driver that had them; attempts start over with the next.
        self.streams.retain(|_, stream| stream.state() == State::Connecting);
        self.streams.values_mut().for_each(|stream| stream.in_line = false);
        let ports: Vec<u32> = self.streams.keys().copied().collect();
        ports.into_iter().for_each(|port| self.request(port));
    }

    fn notified(&mut self, queue: usize) {
        if matches!(queue, TO_GUEST | FROM_GUEST) {
            self.pump();
            if !self.attempts.is_empty() {
                self.tick();
            }
        }
    }

    fn ready(&mut self, token: u32, readiness: Readiness) {
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
            }
            AGAIN => self.again.clear(),
            port => {
                if let Some(stream) = self.streams.get_mut(&port) {
                    stream.socket_ready(readiness.readable, readiness.writable, readiness.closed);
                }
                self.queue_stream(port);
            }
        }
        let connecting = !self.attempts.is_empty();
        if connecting {
            self.tick();
        }
        self.pump();
        if connecting {
            self.tick();
        }
    }
}

#[cfg(test)]
mod tests;
