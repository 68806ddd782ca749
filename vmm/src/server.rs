//! Serves the control socket: builds the machine that the shim asks for, steers it, and says how it ended.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::control::transport::{self, Packet, TransportError};
use crate::control::{Answer, Command, ExitReason, Message, Metrics, Request};
use crate::event::{Event, Mailbox, Poller, set_nonblocking};
use crate::machine::vcpu::VcpuEvent;
use crate::machine::{Machine, Notice};
use crate::virtio::vsock;

/// Owners of descriptors in the main event loop that are not devices.
const CONTROL: u32 = u32::MAX;
const NOTICES: u32 = u32::MAX - 1;

/// How often a console's unfinished line is written.
const CONSOLE_MS: u32 = 50;
/// How long the last output of a guest that powers off may take to reach the host's readers.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// How long the shim may take to read the last message.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

const PAGE_BYTES: u64 = 4096;

/// What the process knows of itself from before it was jailed.
#[derive(Debug)]
pub struct Origin {
    /// When it started.
    pub started: Instant,
    /// `/proc/self/statm`, opened while it could be.
    pub statm: Option<File>,
}

/// Serves `control` until the machine ends, and returns why it did. The last message has then been sent; the caller
/// is to end the process at once, for the machine's threads are still there.
pub fn serve(control: OwnedFd, origin: Origin) -> ExitReason {
    let reason = match boot(&control, origin) {
        Ok(mut server) => server.run(),
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

/// Writes a line to the shim's log, which may be gone.
pub fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Makes [`log`] drop lines rather than wait, if the log is a pipe or a socket.
pub fn do_not_wait_for_the_log() {
    use rustix::fs::FileType;
    let kind = rustix::fs::fstat(rustix::stdio::stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
        let _ = set_nonblocking(rustix::stdio::stderr());
    }
}

/// An error with its causes, as one sentence.
fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
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
            poller.registrar(NOTICES).add_readable(&*notices, 0)?;
            poller.registrar(CONTROL).add_readable(control, 0)?;
            set_nonblocking(control)?;
            Ok::<_, std::io::Error>((poller, notices))
        })();
        let (poller, notices) =
            events.map_err(|error| failed(format!("Cannot make the event loop: {error}")))?;
        let mut machine =
            Machine::build(&config, fds, &poller, &notices).map_err(|error| failed(describe(&error)))?;
        let kernel_entry_us = micros(origin.started);
        machine.start().map_err(|error| failed(describe(&error)))?;
        let mut server = Server {
            control,
            origin,
            resident_before,
            kernel_entry_us,
            agent_ready_us: 0,
            exits_at_ready: BTreeMap::new(),
            machine,
            poller,
            notices,
            outgoing: VecDeque::new(),
            ended: None,
        };
        server.reply(message.id, Ok(Answer::Done));
        return Ok(server);
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Private memory of this process that is resident: nearly all of it the guest's.
fn anonymous_bytes(statm: Option<&File>) -> u64 {
    let mut text = [0; 128];
    let length = statm.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
    // Pages: size, resident, shared, ...
    let mut fields = text.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    resident.saturating_sub(shared).saturating_mul(PAGE_BYTES)
}

struct Server<'a> {
    control: &'a OwnedFd,
    origin: Origin,
    resident_before: u64,
    kernel_entry_us: u64,
    agent_ready_us: u64,
    exits_at_ready: BTreeMap<String, u64>,
    machine: Machine,
    poller: Poller,
    notices: Arc<Mailbox<Notice>>,
    outgoing: VecDeque<Message>,
    ended: Option<ExitReason>,
}

impl Server<'_> {
    /// Serves devices and requests until the machine ends.
    fn run(&mut self) -> ExitReason {
        let timeout = self.machine.console().map(|_| CONSOLE_MS);
        let reason = loop {
            // A shim that does not take its replies is asked again soon; there is nothing to wait for meanwhile.
            let timeout = if self.outgoing.is_empty() { timeout } else { Some(CONSOLE_MS) };
            if let Err(error) = self.turn(timeout) {
                log(&format!("The machine's event loop failed: {error}"));
                break ExitReason::Error;
            }
            if let Some(reason) = self.ended {
                break reason;
            }
        };
        if matches!(reason, ExitReason::PowerOff | ExitReason::Reboot) {
            self.drain();
        }
        // A console has shown them already.
        if reason == ExitReason::Panic && self.machine.console().is_none() {
            self.machine.last_words().iter().for_each(|line| log(&format!("guest: {line}")));
        }
        if let Some(console) = self.machine.console() {
            console.flush();
        }
        self.flush();
        reason
    }

    /// Waits once and handles what there is.
    fn turn(&mut self, timeout_ms: Option<u32>) -> std::io::Result<()> {
        for event in self.poller.wait(timeout_ms)? {
            match event.owner {
                CONTROL => self.control(event),
                NOTICES => self.notices(),
                position => {
                    if let Some(slot) = self.machine.slot(position) {
                        slot.handle(event);
                    }
                }
            }
        }
        if let Some(console) = self.machine.console() {
            console.flush();
        }
        self.flush();
        Ok(())
    }

    /// Lets what the guest sent before it powered off reach whoever reads it.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_TIME;
        let mut idle = false;
        loop {
            let backlog = self.machine.vsock_backlog.load(Ordering::SeqCst);
            if (idle && backlog == 0) || Instant::now() >= deadline {
                return;
            }
            match self.poller.wait(Some(if backlog == 0 { 0 } else { 20 })) {
                Ok(events) => {
                    idle = true;
                    for event in events {
                        if let Some(slot) = self.machine.slot(event.owner) {
                            idle = false;
                            slot.handle(event);
                        }
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn notices(&mut self) {
        for notice in self.notices.receive() {
            match notice {
                Notice::Vcpu(VcpuEvent::AgentReady) if self.agent_ready_us == 0 => {
                    self.agent_ready_us = micros(self.origin.started).max(1);
                    self.exits_at_ready = self.machine.shared.exits.snapshot();
                    self.machine.vsock.send(vsock::Command::AgentReady);
                }
                Notice::Vcpu(VcpuEvent::AgentReady) => {}
                Notice::Vcpu(VcpuEvent::End(reason)) => self.end(reason),
                Notice::Vcpu(VcpuEvent::Failed(text)) => {
                    log(&text);
                    self.end(ExitReason::Error);
                }
                Notice::Connected(connected) => {
                    self.reply(connected.id, connected.result.map(|()| Answer::Done));
                }
            }
        }
    }

    /// The first reason counts.
    fn end(&mut self, reason: ExitReason) {
        self.ended.get_or_insert(reason);
    }

    fn control(&mut self, event: Event) {
        // The shim gets its turn for reading replies before it may ask for more.
        const MAX_OUTGOING: usize = 256;
        while self.ended.is_none() && self.outgoing.len() < MAX_OUTGOING {
            match transport::recv::<Request>(self.control) {
                Ok(Some(packet)) => self.request(packet),
                Ok(None) => self.end(ExitReason::Stopped),
                Err(error) if error.would_block() => break,
                Err(TransportError::Socket(_)) => self.end(ExitReason::Stopped),
                // Dropped; without an id there is nothing to answer.
                Err(error) => log(&describe(&error)),
            }
        }
        if event.readiness.closed {
            self.end(ExitReason::Stopped);
        }
    }

    fn request(&mut self, packet: Packet<Request>) {
        let Packet { message: Request { id, command }, fds } = packet;
        match self.perform(id, command, fds) {
            Ok(Some(answer)) => self.reply(id, Ok(answer)),
            // Answered later.
            Ok(None) => {}
            Err(text) => self.reply(id, Err(text)),
        }
    }

    fn perform(&mut self, id: u64, command: Command, fds: Vec<OwnedFd>) -> Result<Option<Answer>, String> {
        match command {
            Command::Boot(_) => return Err("The machine has already been booted".into()),
            Command::AddExtent(extent) => {
                let file = File::from(one(fds)?);
                self.machine
                    .extents(extent.disk)
                    .add(extent.offset, extent.length, file, extent.writable)
                    .map_err(|error| describe(&error))?;
            }
            Command::RemoveExtent { disk, offset } => {
                self.machine.extents(disk).remove(offset).map_err(|error| describe(&error))?;
            }
            Command::Connect { port } => {
                let socket = one(fds)?;
                self.machine.vsock.send(vsock::Command::Connect { id, port, socket });
                return Ok(None);
            }
            Command::Pause => {
                if let Some(vcpus) = self.machine.vcpus() {
                    vcpus.pause()?;
                }
            }
            Command::Resume => {
                if let Some(vcpus) = self.machine.vcpus() {
                    vcpus.resume();
                }
            }
            Command::Metrics => return Ok(Some(Answer::Metrics(self.metrics()))),
            Command::Stop => self.end(ExitReason::Stopped),
        }
        Ok(Some(Answer::Done))
    }

    fn metrics(&self) -> Metrics {
        let resident = anonymous_bytes(self.origin.statm.as_ref());
        Metrics {
            exits: self.machine.shared.exits.snapshot(),
            exits_at_ready: self.exits_at_ready.clone(),
            kernel_entry_us: self.kernel_entry_us,
            agent_ready_us: self.agent_ready_us,
            guest_resident_bytes: resident.saturating_sub(self.resident_before),
            guest_errors: self
                .machine
                .slots()
                .iter()
                .map(|slot| (slot.name().to_owned(), slot.interrupt().guest_errors()))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    fn reply(&mut self, id: u64, result: Result<Answer, String>) {
        self.outgoing.push_back(Message::Reply { id, result });
    }

    /// Sends what the socket takes.
    fn flush(&mut self) {
        while let Some(message) = self.outgoing.front() {
            match transport::send(self.control, message, &[]) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(error) if error.would_block() => break,
                Err(TransportError::Socket(_)) => {
                    self.outgoing.clear();
                    self.end(ExitReason::Stopped);
                }
                Err(error) => {
                    log(&describe(&error));
                    self.outgoing.pop_front();
                }
            }
        }
    }
}

/// The one descriptor that a request comes with.
fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    let got = fds.len();
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([fd]) => {
            rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::CLOEXEC)
                .map_err(|errno| format!("Cannot use the request's file descriptor: {errno}"))?;
            Ok(fd)
        }
        Err(_) => Err(format!("The request needs 1 file descriptor but came with {got}")),
    }
}
