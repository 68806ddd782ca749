//! One connection: a socket on the host's side, credit and state on the guest's.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::net::Shutdown;

use super::packet::{
    Header, OP_CREDIT_UPDATE, OP_REQUEST, OP_RST, OP_RW, OP_SHUTDOWN, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
};
use crate::virtio::buffers::Buffers;

/// Bytes from the guest that are held back while the host's reader is slow; what the guest is told it may send.
pub const BUFFER_BYTES: u32 = 128 << 10;
/// Bytes passed on after which the guest hears that it may send more.
const CREDIT_STEP: u32 = BUFFER_BYTES / 4;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The guest has not answered yet.
    Connecting,
    /// Data flows.
    Open,
    /// For the guest the connection is over; the host still reads what arrived before.
    Draining,
}

/// The guest broke the rules of a connection, which is reset.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation;

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    host_port: u32,
    guest_port: u32,
    state: State,
    // From the host to the guest.
    readable: bool,
    host_finished: bool,
    host_closed: bool,
    sent: u32,
    guest_space: u32,
    guest_taken: u32,
    // From the guest to the host.
    writable: bool,
    host_gone: bool,
    backlog: VecDeque<u8>,
    received: u32,
    passed_on: u32,
    told_passed_on: u32,
    // What each side said about ending, and what the guest still has to be told.
    guest_shutdown: u32,
    told_shutdown: u32,
    wants_request: bool,
    wants_credit: bool,
    wants_reset: bool,
    /// Whether the device has it in line for the guest's next buffers.
    pub in_line: bool,
    /// When the device gives it up, if it [awaits the guest](Stream::awaits_guest).
    pub deadline: Option<Instant>,
}

impl Stream {
    /// A connection to `guest_port` that is still to be made.
    #[must_use]
    pub fn new(socket: OwnedFd, host_port: u32, guest_port: u32) -> Self {
        Self {
            socket,
            host_port,
            guest_port,
            state: State::Connecting,
            readable: false,
            host_finished: false,
            host_closed: false,
            sent: 0,
            guest_space: 0,
            guest_taken: 0,
            writable: true,
            host_gone: false,
            backlog: VecDeque::new(),
            received: 0,
            passed_on: 0,
            told_passed_on: 0,
            guest_shutdown: 0,
            told_shutdown: 0,
            wants_request: false,
            wants_credit: false,
            wants_reset: false,
            in_line: false,
            deadline: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The guest's port.
    #[must_use]
    pub fn guest_port(&self) -> u32 {
        self.guest_port
    }

    /// Bytes held back for the host.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Asks the guest for the connection, (again) from the beginning.
    pub fn request(&mut self) {
        self.wants_request = true;
    }

    /// The guest accepted.
    pub fn accept(&mut self) {
        self.state = State::Open;
        self.wants_request = false;
        self.readable = true;
    }

    /// Ends the connection towards the guest with a reset; the host still gets what is held back.
    pub fn reset(&mut self) {
        self.state = State::Draining;
        self.wants_reset = true;
    }

    /// The guest says that the connection is over.
    pub fn guest_reset(&mut self) {
        self.state = State::Draining;
        self.guest_shutdown = SHUTDOWN_BOTH;
        self.wants_reset = false;
        self.wants_request = false;
        self.pass_on();
    }

    /// Whether nothing is left to do for it.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.state == State::Draining && !self.wants_reset && (self.backlog.is_empty() || self.host_gone)
    }

    /// Whether nothing keeps it but the guest, which has to take its end.
    #[must_use]
    pub fn awaits_guest(&self) -> bool {
        match self.state {
            State::Connecting => false,
            State::Open => self.shutdown_flags() == SHUTDOWN_BOTH,
            State::Draining => self.wants_reset && (self.backlog.is_empty() || self.host_gone),
        }
    }

    /// The guest did not take the end in its time: it is reset, and forgotten if it does not take even that.
    pub fn guest_is_overdue(&mut self) {
        self.deadline = None;
        match self.state {
            State::Draining => self.wants_reset = false,
            State::Connecting | State::Open => self.reset(),
        }
    }

    /// The guest's credit, part of every packet.
    pub fn update_credit(&mut self, header: &Header) {
        self.guest_space = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
    }

    /// The guest asked how much it may send.
    pub fn credit_requested(&mut self) {
        self.wants_credit = true;
    }

    /// How many bytes the guest has room for.
    #[must_use]
    pub fn credit(&self) -> u32 {
        self.guest_space.saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// The guest sends `data`.
    ///
    /// # Errors
    /// When it sends more than it may or after it said that it would not.
    pub fn receive(&mut self, data: &Buffers) -> Result<(), Violation> {
        let length = u32::try_from(data.len()).map_err(|_| Violation)?;
        let held = self.received.wrapping_sub(self.passed_on);
        let full = held.checked_add(length).is_none_or(|total| total > BUFFER_BYTES);
        if self.state != State::Open || self.guest_shutdown & SHUTDOWN_SEND != 0 || full {
            return Err(Violation);
        }
        self.received = self.received.wrapping_add(length);
        let mut done = 0;
        if self.backlog.is_empty() && !self.host_gone {
            done = self.sent_to_host(data.send_to(&self.socket));
        }
        if self.host_gone {
            self.count_passed_on(data.len() - done);
            return Ok(());
        }
        let mut chunk = [0; 4096];
        while done < data.len() {
            let count = data.read(done, &mut chunk);
            self.backlog.extend(chunk.iter().take(count));
            done += count;
        }
        Ok(())
    }

    /// The guest ends one or both directions.
    pub fn guest_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            // The host's writer learns that nobody listens.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
            self.notice_closed_host();
        }
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // The guest waits for a reset to forget the connection.
            self.reset();
        }
        self.pass_on();
    }

    /// The host's socket changed. Data may flow in either direction.
    pub fn socket_ready(&mut self, readable: bool, writable: bool, closed: bool) {
        self.readable |= readable;
        self.writable |= writable;
        if self.writable {
            self.pass_on();
        }
        self.host_closed |= closed;
        self.notice_closed_host();
    }

    /// A host that has closed its end altogether neither reads nor writes, once the guest has all that it wrote or wants
    /// no more of it.
    fn notice_closed_host(&mut self) {
        let all_taken = self.host_finished || self.guest_shutdown & SHUTDOWN_RECEIVE != 0;
        if self.host_closed && all_taken && !self.host_gone {
            self.host_finished = true;
            self.lose_host();
        }
    }

    /// Writes held-back bytes to the host, and the end after the last of them.
    fn pass_on(&mut self) {
        while !self.backlog.is_empty() && !self.host_gone && self.writable {
            let (bytes, _) = self.backlog.as_slices();
            let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
            let result = rustix::net::send(&self.socket, bytes, flags).map_err(io::Error::from);
            let count = self.sent_to_host(result);
            self.backlog.drain(..count.min(self.backlog.len()));
        }
        if self.backlog.is_empty() {
            // A burst should not cost memory for ever.
            if self.backlog.capacity() > 4096 {
                self.backlog = VecDeque::new();
            }
            if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.host_gone {
                let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
            }
        }
    }

    /// Accounts for an attempt to write to the host; returns how many bytes it took.
    fn sent_to_host(&mut self, result: io::Result<usize>) -> usize {
        match result {
            Ok(count) => {
                self.count_passed_on(count);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => {
                self.lose_host();
                0
            }
        }
    }

    /// The host reads no more: what the guest sent and sends is dropped.
    fn lose_host(&mut self) {
        self.host_gone = true;
        self.count_passed_on(self.backlog.len());
        self.backlog = VecDeque::new();
    }

    fn count_passed_on(&mut self, count: usize) {
        self.passed_on = self.passed_on.wrapping_add(u32::try_from(count).unwrap_or(0));
        if self.passed_on.wrapping_sub(self.told_passed_on) >= CREDIT_STEP {
            self.wants_credit = true;
        }
    }

    /// What the guest has to be told about ends.
    fn shutdown_flags(&self) -> u32 {
        (if self.host_finished { SHUTDOWN_SEND } else { 0 })
            | (if self.host_gone { SHUTDOWN_RECEIVE } else { 0 })
    }

    fn can_send_data(&self) -> bool {
        self.state == State::Open
            && self.readable
            && !self.host_finished
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit() > 0
    }

    /// Whether [`Stream::next_packet`] may have something.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        match self.state {
            State::Connecting => self.wants_request,
            State::Draining => self.wants_reset,
            State::Open => {
                self.wants_credit || self.shutdown_flags() != self.told_shutdown || self.can_send_data()
            }
        }
    }

    /// The next packet for the guest, with its data put into `data`, the free space behind the header.
    pub fn next_packet(&mut self, data: &Buffers, scratch: &mut Buffers) -> Option<Header> {
        let packet = match self.state {
            State::Connecting if self.wants_request => {
                self.wants_request = false;
                self.packet(OP_REQUEST)
            }
            State::Draining if self.wants_reset => {
                self.wants_reset = false;
                self.packet(OP_RST)
            }
            State::Connecting | State::Draining => return None,
            State::Open => self.data_packet(data, scratch).or_else(|| self.control_packet())?,
        };
        self.told_passed_on = self.passed_on;
        self.wants_credit = false;
        Some(packet)
    }

    fn data_packet(&mut self, data: &Buffers, scratch: &mut Buffers) -> Option<Header> {
        if !self.can_send_data() {
            return None;
        }
        data.slice_into(0, self.credit() as usize, scratch);
        if scratch.is_empty() {
            return None;
        }
        let received = loop {
            match scratch.receive_from(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        match received {
            Ok(0) => {
                self.host_finished = true;
                self.notice_closed_host();
            }
            Ok(count) => {
                let len = u32::try_from(count).ok()?;
                self.sent = self.sent.wrapping_add(len);
                return Some(Header { len, ..self.packet(OP_RW) });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host_finished = true;
                self.lose_host();
            }
        }
        None
    }

    fn control_packet(&mut self) -> Option<Header> {
        let flags = self.shutdown_flags();
        if flags != self.told_shutdown {
            self.told_shutdown = flags;
            return Some(Header { flags, ..self.packet(OP_SHUTDOWN) });
        }
        self.wants_credit.then(|| self.packet(OP_CREDIT_UPDATE))
    }

    fn packet(&self, op: u16) -> Header {
        Header {
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.passed_on,
            ..Header::to_guest(self.host_port, self.guest_port, op)
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
