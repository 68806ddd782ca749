//! The virtual processors, a thread each.

pub mod gate;
mod kick;
mod run;
pub mod setup;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VcpuFd;

use super::bus::Bus;
use super::exits::ExitCounters;
use crate::control::ExitReason;
use crate::jail::seccomp::{self, Thread};
use crate::virtio::owner::Reset;
use gate::{Gate, Passed};

/// How long processors may take to end; they come out of the guest at once unless the host itself hangs.
const END_TIME: Duration = Duration::from_secs(1);

/// What the processors' threads tell the machine's owner.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The agent's ready mark, told once.
    AgentReady,
    /// All processors stand still.
    AtRest,
    /// The machine is over.
    End(ExitReason),
    /// The machine cannot go on, with a sentence why.
    Failed(String),
}

/// What all processors' threads share.
pub struct Shared {
    /// Devices and ports.
    pub bus: Bus,
    /// Exit counters.
    pub exits: ExitCounters,
    /// Takes events to the machine's owner.
    report: Box<dyn Fn(VcpuEvent) + Send + Sync>,
    gate: Arc<Gate>,
    agent_ready: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("bus", &self.bus).finish_non_exhaustive()
    }
}

impl Shared {
    /// Shared state of processors that pass `gate`.
    #[must_use]
    pub fn new(bus: Bus, gate: Arc<Gate>, report: Box<dyn Fn(VcpuEvent) + Send + Sync>) -> Self {
        Self { bus, exits: ExitCounters::default(), report, gate, agent_ready: AtomicBool::new(false) }
    }

    /// A guest that repeats the mark is not worth a message each time.
    fn agent_is_ready(&self) {
        if !self.agent_ready.swap(true, Ordering::SeqCst) {
            (self.report)(VcpuEvent::AgentReady);
        }
    }

    fn pass(&self) -> Passed {
        self.gate.pass(|| (self.report)(VcpuEvent::AtRest))
    }

    /// Waits until a device has let go of the guest's memory. Drivers do not look again after they have reset a device
    /// (Linux's `vm_reset` is one write): a guest that went on earlier would have a disk write into what it uses anew.
    fn wait_for(&self, reset: &Reset) -> Passed {
        self.gate.wait(|| reset.is_done(), || (self.report)(VcpuEvent::AtRest))
    }
}

/// The running processors.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
}

impl Vcpus {
    /// Starts one thread per processor.
    ///
    /// # Errors
    /// When the host has no more threads; those that were started end.
    pub fn start(vcpus: Vec<VcpuFd>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        kick::install_handler()?;
        let mut running = Self { threads: Vec::with_capacity(vcpus.len()), gate: Arc::clone(&shared.gate) };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let shared = Arc::clone(shared);
            shared.gate.enter();
            let gate = Arc::clone(&shared.gate);
            let spawned = Builder::new().name(format!("vcpu{id}")).spawn(move || {
                seccomp::tighten(Thread::Vcpu);
                run::run(vcpu, &shared);
                shared.gate.leave();
            });
            match spawned {
                Ok(thread) => running.threads.push(thread),
                Err(error) => {
                    gate.leave();
                    // One that does not end in time loses nothing when the caller gives up: its thread holds its
                    // descriptor, which keeps the virtual machine, and the devices; and memory is never unmapped.
                    running.end();
                    return Err(error);
                }
            }
        }
        Ok(running)
    }

    /// Asks all processors to stand still between two instructions; [`VcpuEvent::AtRest`] says that they do.
    pub fn pause(&self) {
        self.gate.close();
        self.kick();
    }

    /// Whether all processors stand still.
    #[must_use]
    pub fn are_at_rest(&self) -> bool {
        self.gate.is_at_rest()
    }

    /// Lets all processors go on.
    pub fn resume(&self) {
        self.gate.open();
    }

    /// Ends all processors; whether they did end, which may fail when the host hangs.
    pub fn end(&mut self) -> bool {
        self.gate.end();
        self.kick();
        let ended = self.gate.wait_for_end(END_TIME);
        if ended {
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        }
        ended
    }

    fn kick(&self) {
        self.threads.iter().for_each(kick::kick);
    }
}

#[cfg(test)]
mod tests;
