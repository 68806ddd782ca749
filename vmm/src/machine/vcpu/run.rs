//! The processor's loop: enter the guest, serve what it comes out for.

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::gate::Passed;
use super::{Shared, VcpuEvent, kick};
use crate::control::ExitReason;
use crate::machine::bus::Consequence;
use crate::machine::exits::Exit;

/// Runs the processor until the machine ends or stops it.
pub(super) fn run(mut vcpu: VcpuFd, shared: &Shared) {
    kick::remember(&mut vcpu);
    // A signal that came before could not keep the processor from entering the guest.
    let mut next = Step::Passed(shared.pass());
    let end = loop {
        match next {
            Step::Continue | Step::Passed(Passed::Straight) => {}
            // Tells the guest's watchdogs that time stood still; not all hosts can.
            Step::Passed(Passed::Rested) => drop(vcpu.kvmclock_ctrl()),
            Step::Passed(Passed::Over) => break None,
            Step::End(event) => break Some(event),
        }
        next = step(&mut vcpu, shared);
    };
    kick::forget();
    drop(vcpu);
    if let Some(event) = end {
        (shared.report)(event);
    }
}

enum Step {
    Continue,
    /// It came by the gate.
    Passed(Passed),
    End(VcpuEvent),
}

fn step(vcpu: &mut VcpuFd, shared: &Shared) -> Step {
    let count = |exit| shared.exits.count(exit);
    let end = |reason| Step::End(VcpuEvent::End(reason));
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => {
            count(Exit::MmioRead);
            shared.bus.mmio_read(address, data);
            Step::Continue
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            count(Exit::MmioWrite);
            match shared.bus.mmio_write(address, data) {
                None => Step::Continue,
                Some(reset) => Step::Passed(shared.wait_for(&reset)),
            }
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            count(Exit::IoIn);
            shared.bus.io_in(port, data);
            Step::Continue
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            count(Exit::IoOut);
            match shared.bus.io_out(port, data) {
                Consequence::None => Step::Continue,
                Consequence::AgentReady => {
                    shared.agent_is_ready();
                    Step::Continue
                }
                Consequence::End(reason) => end(reason),
            }
        }
        Ok(VcpuExit::Hlt) => {
            count(Exit::Hlt);
            Step::Continue
        }
        Ok(VcpuExit::Shutdown) => {
            count(Exit::Shutdown);
            end(ExitReason::TripleFault)
        }
        Ok(VcpuExit::SystemEvent(kind, _)) => {
            count(Exit::SystemEvent);
            end(match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => ExitReason::PowerOff,
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => ExitReason::Reboot,
                _ => ExitReason::Panic,
            })
        }
        Ok(VcpuExit::Intr) => interrupted(vcpu, shared),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            let text = format!("The processor {cpu} refuses to enter the guest (reason {reason:#x})");
            Step::End(VcpuEvent::Failed(text))
        }
        Ok(VcpuExit::InternalError) => {
            // SAFETY: every member of the union is plain data; for this exit KVM fills `internal`.
            let kind = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
            let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
            let text = format!("KVM cannot emulate what the guest does at {rip:#x} (internal error {kind})");
            Step::End(VcpuEvent::Failed(text))
        }
        Ok(exit) => {
            let text = format!("KVM left the guest for an unknown reason: {exit:?}");
            Step::End(VcpuEvent::Failed(text))
        }
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => interrupted(vcpu, shared),
        Err(error) => Step::End(VcpuEvent::Failed(format!("KVM cannot run a virtual CPU: {error}"))),
    }
}

fn interrupted(vcpu: &mut VcpuFd, shared: &Shared) -> Step {
    shared.exits.count(Exit::Interrupted);
    // Before the gate is looked at: whoever closes it afterwards sends the signal again.
    vcpu.set_kvm_immediate_exit(0);
    Step::Passed(shared.pass())
}
