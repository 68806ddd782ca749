//! Steers a running machine: requests, notices, and the order of its end.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CONTROL;
use super::metrics::Facts;
use super::pausing::{Next, Pausing};
use super::shim::Shim;
use crate::control::transport::{Packet, TransportError};
use crate::control::{Answer, Command, ExitReason, Request};
use crate::event::{Event, Mailbox, Poller};
use crate::log::{describe, log};
use crate::machine::vcpu::VcpuEvent;
use crate::machine::{Machine, Notice};
use crate::virtio::vsock;

/// How often a console's unfinished line is written.
const CONSOLE_MS: u32 = 50;
/// How long the last output of a guest that powers off may take to reach the host's readers.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A machine and the one who steers it.
pub(super) struct Server<'a> {
    shim: Shim<'a>,
    machine: Machine,
    poller: Poller,
    notices: Arc<Mailbox<Notice>>,
    facts: Facts,
    pausing: Pausing,
    ended: Option<ExitReason>,
    shim_is_gone: bool,
    drained: bool,
}

impl<'a> Server<'a> {
    pub fn new(
        control: &'a OwnedFd,
        machine: Machine,
        poller: Poller,
        notices: Arc<Mailbox<Notice>>,
        facts: Facts,
    ) -> Self {
        Self {
            shim: Shim::new(control),
            machine,
            poller,
            notices,
            facts,
            pausing: Pausing::default(),
            ended: None,
            shim_is_gone: false,
            drained: false,
        }
    }

    /// Steers the machine until it ends, and ends its processors.
    pub fn run(mut self) -> ExitReason {
        let reason = loop {
            if let Err(error) = self.turn(None) {
                log(&format!("The machine's event loop failed: {error}"));
                break ExitReason::Error;
            }
            if let Some(reason) = self.ended {
                break reason;
            }
        };
        let stopped = self.machine.end();
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
        if !stopped {
            log("Some virtual CPUs did not end in time");
            // Nothing may be taken from under them; all of it ends with the process.
            std::mem::forget(self);
        }
        reason
    }

    /// Waits once, at most for `limit` if given, and handles what there is.
    fn turn(&mut self, limit: Option<Duration>) -> std::io::Result<()> {
        // Before the wait: what is to be said may be what the other end waits for before it says anything.
        self.flush();
        if self.shim_is_gone {
            return Ok(());
        }
        // Nobody is listened to when the machine has ended.
        self.shim.watch(&self.poller.registrar(0), self.ended.is_none())?;
        let limit = limit.map(|limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX));
        let console = self.machine.console().map(|_| CONSOLE_MS);
        let timeout = [limit, console, self.pausing.timeout_ms()].into_iter().flatten().min();
        for event in self.poller.wait(timeout)? {
            match event.token {
                CONTROL => self.control(event),
                _ => self.notices(),
            }
        }
        let next = self.pausing.check(Instant::now());
        self.go_on_pausing(next);
        if let Some(console) = self.machine.console() {
            console.flush();
        }
        Ok(())
    }

    /// Lets what the guest sent before it powered off reach whoever reads it.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_TIME;
        // A pause may just have been under way: devices that stand still bring nothing out.
        self.machine.resume();
        self.machine.drain();
        while !self.drained && !self.shim_is_gone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.turn(Some(left)).is_err() {
                return;
            }
        }
    }

    fn notices(&mut self) {
        for notice in self.notices.receive() {
            match notice {
                Notice::Vcpu(VcpuEvent::AgentReady) => {
                    self.facts.agent_is_ready(&self.machine);
                    self.machine.vsock(vsock::Command::AgentReady);
                }
                // It may have been said about a pause before this one.
                Notice::Vcpu(VcpuEvent::AtRest) if !self.machine.vcpus_are_at_rest() => {}
                Notice::Vcpu(VcpuEvent::AtRest) => {
                    let next = self.pausing.processors_rest(self.machine.device_threads());
                    self.go_on_pausing(next);
                }
                Notice::Vcpu(VcpuEvent::End(reason)) => self.end(reason),
                Notice::Vcpu(VcpuEvent::Failed(text)) => {
                    log(&text);
                    self.end(ExitReason::Error);
                }
                Notice::Connected(connected) => {
                    self.reply(connected.id, connected.result.map(|()| Answer::Done));
                }
                Notice::FileServer { id, result } => self.reply(id, result.map(|()| Answer::Done)),
                Notice::Drained => self.drained = true,
                Notice::ExtentClosed { id } => self.reply(id, Ok(Answer::Done)),
                Notice::DevicesPaused { pause } => {
                    let next = self.pausing.devices_rest(pause);
                    self.go_on_pausing(next);
                }
                Notice::ThreadFailed(error) => {
                    log(&format!("A thread of the machine's devices failed: {error}"));
                    self.end(ExitReason::Error);
                }
            }
        }
    }

    /// The first reason counts.
    fn end(&mut self, reason: ExitReason) {
        self.ended.get_or_insert(reason);
    }

    fn lose_shim(&mut self) {
        self.shim_is_gone = true;
        self.end(ExitReason::Stopped);
    }

    fn control(&mut self, event: Event) {
        while self.ended.is_none() {
            match self.shim.receive() {
                Ok(Some(packet)) => self.request(packet),
                Ok(None) => self.lose_shim(),
                Err(error) if error.would_block() => break,
                Err(TransportError::Socket(_)) => self.lose_shim(),
                // Dropped; without an id there is nothing to answer.
                Err(error) => log(&describe(&error)),
            }
        }
        if event.readiness.closed {
            self.lose_shim();
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
                self.machine.remove_extent(disk, offset, id).map_err(|error| describe(&error))?;
                return Ok(None);
            }
            Command::Connect { port, within_ms } => {
                let socket = one(fds)?;
                let within = Duration::from_millis(within_ms.into());
                self.machine.vsock(vsock::Command::Connect { id, port, within, socket });
                return Ok(None);
            }
            Command::AttachFileServer => {
                self.machine.attach_file_server(one(fds)?, id);
                return Ok(None);
            }
            Command::Pause => {
                let next = self.pausing.pause(id);
                self.go_on_pausing(next);
                return Ok(None);
            }
            Command::Resume => {
                let next = self.pausing.resume();
                self.go_on_pausing(next);
            }
            Command::SetBalloon { mib } => self.machine.set_balloon(mib).map_err(|error| describe(&error))?,
            Command::Metrics => return Ok(Some(Answer::Metrics(self.facts.metrics(&self.machine)))),
            Command::Stop => self.end(ExitReason::Stopped),
        }
        Ok(Some(Answer::Done))
    }

    fn go_on_pausing(&mut self, next: Next) {
        let decided = match next {
            Next::Wait => return,
            Next::PauseProcessors => return self.machine.pause_vcpus(),
            Next::PauseDevices(pause) => return self.machine.pause_devices(pause),
            Next::Answer(decided) => decided,
            Next::Resume(decided) => {
                self.machine.resume();
                decided
            }
        };
        for id in decided.ids {
            self.reply(id, decided.result.map(|()| Answer::Done).map_err(str::to_owned));
        }
    }

    pub fn reply(&mut self, id: u64, result: Result<Answer, String>) {
        self.shim.reply(id, result);
    }

    fn flush(&mut self) {
        if !self.shim.flush() {
            self.lose_shim();
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
