//! One virtual processor and the thread that runs it.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::null_mut;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::bus::{Bus, Consequence};
use super::cpuid;
use super::exits::{Exit, ExitCounters};
use super::layout::{GDT, IDT, PVH_START_INFO};
use super::memory::GuestMemory;
use crate::control::ExitReason;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Memory type ranges on, everything write-back unless said otherwise.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const LAPIC_LVT0: usize = 0x350;
const LAPIC_LVT1: usize = 0x360;
const LAPIC_EXTERNAL: i8 = 7;
const LAPIC_NMI: i8 = 4;

const CR0_PROTECTED: u64 = 1;

/// How long all processors may take to come to rest.
const PAUSE_TIME: Duration = Duration::from_secs(10);

/// A processor that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refuses a step.
    #[error("KVM refuses to {step} of virtual CPU {id}")]
    Kvm {
        /// Which processor.
        id: u8,
        /// What was attempted.
        step: &'static str,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The segment table lies outside memory.
    #[error("Cannot write the initial segment table to guest memory")]
    SegmentTable(#[source] GuestMemoryError),
}

/// Makes processor `id` of `vcpus` and prepares what all processors need.
///
/// # Errors
/// When KVM refuses.
pub fn create(
    vm: &VmFd,
    id: u8,
    vcpus: u8,
    supported: &CpuId,
    tsc_deadline: bool,
) -> Result<VcpuFd, VcpuError> {
    let kvm = |step| move |source| VcpuError::Kvm { id, step, source };
    let vcpu = vm.create_vcpu(u64::from(id)).map_err(kvm("make the state"))?;
    let mut cpuid = supported.clone();
    cpuid::tailor(&mut cpuid, id, vcpus, tsc_deadline);
    vcpu.set_cpuid2(&cpuid).map_err(kvm("set the features"))?;
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let values = [msr(MSR_MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK), msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING)];
    if let Ok(msrs) = Msrs::from_entries(&values) {
        vcpu.set_msrs(&msrs).map_err(kvm("set the model-specific registers"))?;
    }
    let mut lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    for (register, mode) in [(LAPIC_LVT0, LAPIC_EXTERNAL), (LAPIC_LVT1, LAPIC_NMI)] {
        // Bits 8 to 10 of the register hold the delivery mode.
        if let Some(byte) = lapic.regs.get_mut(register + 1) {
            *byte = (*byte & !0b111) | mode;
        }
    }
    vcpu.set_lapic(&lapic).map_err(kvm("set the local APIC"))?;
    Ok(vcpu)
}

/// Points the first processor at the kernel: 32 bits, protected, no paging (the PVH boot protocol).
///
/// # Errors
/// When KVM refuses or guest memory has no room.
pub fn enter_kernel(vcpu: &VcpuFd, memory: &GuestMemory, entry: GuestAddress) -> Result<(), VcpuError> {
    let kvm = |step| move |source| VcpuError::Kvm { id: 0, step, source };
    let segment = |selector: u16, type_: u8, s: u8, limit: u32| kvm_segment {
        base: 0,
        limit,
        selector,
        type_,
        present: 1,
        s,
        db: s,
        g: s,
        ..Default::default()
    };
    let code = segment(0x8, 0xb, 1, u32::MAX);
    let data = segment(0x10, 0x3, 1, u32::MAX);
    let task = segment(0x18, 0xb, 0, 0x67);
    let table = [0, descriptor(&code), descriptor(&data), descriptor(&task)];
    for (index, entry) in (0u64..).zip(table) {
        memory.write_obj(entry, GuestAddress(GDT + index * 8)).map_err(VcpuError::SegmentTable)?;
    }
    memory.write_obj(0u64, GuestAddress(IDT)).map_err(VcpuError::SegmentTable)?;

    let mut sregs = vcpu.get_sregs().map_err(kvm("read the special registers"))?;
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = task;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = IDT;
    sregs.idt.limit = 7;
    sregs.cr0 = CR0_PROTECTED;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(kvm("set the special registers"))?;

    let mut regs = vcpu.get_regs().map_err(kvm("read the registers"))?;
    regs.rflags = 2;
    regs.rip = entry.0;
    regs.rbx = PVH_START_INFO;
    vcpu.set_regs(&regs).map_err(kvm("set the registers"))
}

/// A segment as its descriptor in the table.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    (limit & 0xffff) | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

/// What the processors' threads tell the machine's owner.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The agent's ready mark, with the exits counted until then.
    AgentReady,
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
    pub report: Box<dyn Fn(VcpuEvent) + Send + Sync>,
    gate: Gate,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("bus", &self.bus).finish_non_exhaustive()
    }
}

impl Shared {
    /// Shared state of running processors.
    #[must_use]
    pub fn new(bus: Bus, report: Box<dyn Fn(VcpuEvent) + Send + Sync>) -> Self {
        Self { bus, exits: ExitCounters::default(), report, gate: Gate::default() }
    }
}

/// Where processors wait while the machine is paused.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    waiting: usize,
}

impl Gate {
    /// Waits while the gate is closed; true if it was.
    fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = state.closed;
        while state.closed {
            state.waiting += 1;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        waited
    }
}

/// The running processors.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Vcpus {
    /// Starts one thread per processor.
    ///
    /// # Errors
    /// When the host has no more threads.
    pub fn start(vcpus: Vec<VcpuFd>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        install_kick_handler()?;
        let mut threads = Vec::with_capacity(vcpus.len());
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let shared = Arc::clone(shared);
            let builder = std::thread::Builder::new().name(format!("vcpu{id}"));
            threads.push(builder.spawn(move || run(vcpu, &shared))?);
        }
        Ok(Self { threads, shared: Arc::clone(shared) })
    }

    /// Stops all processors between two instructions.
    ///
    /// # Errors
    /// A sentence, when some processor does not come to rest in time; they are then all let go again.
    pub fn pause(&self) -> Result<(), String> {
        let gate = &self.shared.gate;
        let mut state = gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        for thread in &self.threads {
            // SAFETY: the thread has not been joined, so its id is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
        let deadline = Instant::now() + PAUSE_TIME;
        while state.waiting < self.threads.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let missing = self.threads.len() - state.waiting;
                state.closed = false;
                gate.changed.notify_all();
                return Err(format!("{missing} virtual CPUs did not stop in time"));
            }
            state = gate.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Lets all processors go on.
    pub fn resume(&self) {
        self.shared.gate.state.lock().unwrap_or_else(PoisonError::into_inner).closed = false;
        self.shared.gate.changed.notify_all();
    }
}

thread_local! {
    /// Address of the `immediate_exit` flag of this thread's processor.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the signal that takes a processor out of the guest do so even if it arrives just before it enters it.
fn install_kick_handler() -> std::io::Result<()> {
    extern "C" fn handler(_signal: libc::c_int) {
        let flag = IMMEDIATE_EXIT.get();
        if !flag.is_null() {
            // SAFETY: the pointer leads into this thread's mapped kvm_run page; `run` clears it before unmapping.
            unsafe { flag.write_volatile(1) };
        }
    }
    // SAFETY: an all-zero sigaction is valid; the handler only does what is allowed in one: it reads a
    // const-initialized thread-local without a destructor and writes one byte.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(kick_signal(), &raw const action, null_mut())
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The processor's thread: until the machine ends, enter the guest and serve what it comes out for.
fn run(mut vcpu: VcpuFd, shared: &Shared) {
    IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
    let end = loop {
        match step(&mut vcpu, shared) {
            Step::Continue => {}
            Step::Interrupted => {
                shared.exits.count(Exit::Interrupted);
                vcpu.set_kvm_immediate_exit(0);
                if shared.gate.pass() {
                    // Tells the guest's watchdogs that time stood still; not all hosts can.
                    let _ = vcpu.kvmclock_ctrl();
                }
            }
            Step::End(event) => break event,
        }
    };
    IMMEDIATE_EXIT.set(null_mut());
    (shared.report)(end);
}

enum Step {
    Continue,
    Interrupted,
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
            shared.bus.mmio_write(address, data);
            Step::Continue
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
                    (shared.report)(VcpuEvent::AgentReady);
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
        Ok(VcpuExit::Intr) => Step::Interrupted,
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
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Step::Interrupted,
        Err(error) => Step::End(VcpuEvent::Failed(format!("KVM cannot run a virtual CPU: {error}"))),
    }
}

#[cfg(test)]
mod tests;
