//! Runs real processors on a few bytes of code, where this machine has a KVM that can.

use std::sync::mpsc::{Receiver, channel};

use std::time::Instant;

use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::event::{EventFd, Readiness, Registrar};
use crate::machine::memory::{self, GuestMemory};
use crate::virtio::queue::Virtqueue;
use crate::virtio::thread::DeviceThread;
use crate::virtio::{Description, Device};

const CODE: u64 = 0x10_0000;
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    memory: GuestMemory,
    vcpus: Vcpus,
    events: Receiver<VcpuEvent>,
    shared: Arc<Shared>,
    in_flight: Arc<AtomicBool>,
    landed: Arc<EventFd>,
    _vm: VmFd,
}

/// A device with a request in flight that the test decides on.
struct Busy {
    in_flight: Arc<AtomicBool>,
    landed: Arc<EventFd>,
}

impl Device for Busy {
    fn describe(&self) -> Description {
        Description { name: "busy", id: 42, ..Description::default() }
    }

    fn attach(&mut self, registrar: Registrar) -> std::io::Result<()> {
        registrar.add_readable(&*self.landed, 0)
    }

    fn activate(&mut self, _features: u64, _queues: Vec<Option<Virtqueue>>) {}

    fn reset(&mut self) {}

    fn serve(&mut self, _queue: usize) {}

    fn event(&mut self, _token: u32, _readiness: Readiness) {
        self.landed.clear();
    }

    fn in_flight(&self) -> usize {
        usize::from(self.in_flight.load(Ordering::SeqCst))
    }
}

/// A machine with one processor about to run `code`, or `None`, with a reason printed, if this host cannot.
fn start(code: &[u8]) -> Option<Bench> {
    start_with(code, false)
}

/// The same, with a request in flight at the device or without.
fn start_with(code: &[u8], in_flight: bool) -> Option<Bench> {
    let skip = |step: &str, error: &dyn std::fmt::Display| {
        println!("skipped: {step}: {error}");
        None
    };
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return skip("cannot open /dev/kvm", &error),
    };
    let vm = match crate::machine::kvm::create_vm(&kvm) {
        Ok(vm) => vm,
        Err(error) => return skip("cannot make a virtual machine", &error),
    };
    let memory = memory::allocate(64).unwrap();
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    crate::machine::kvm::add_memory(&vm, &memory).unwrap();
    if let Err(error) = vm.create_irq_chip() {
        return skip("no interrupt controllers", &error);
    }
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    let vcpu = match setup::create(&vm, 0, 1, &supported) {
        Ok(vcpu) => vcpu,
        Err(error) => return skip("no processor", &error),
    };
    setup::enter_kernel(&vcpu, &memory, GuestAddress(CODE)).unwrap();
    let gate = Arc::new(Gate::default());
    let look_again = Arc::clone(&gate);
    let completed: Arc<dyn Fn() + Send + Sync> = Arc::new(move || look_again.look_again());
    let (in_flight, landed) = (Arc::new(AtomicBool::new(in_flight)), Arc::new(EventFd::new().unwrap()));
    let busy = Busy { in_flight: Arc::clone(&in_flight), landed: Arc::clone(&landed) };
    let mut thread = DeviceThread::new(crate::jail::seccomp::Thread::Sockets).unwrap();
    let window = thread.add(Box::new(busy), &memory, &completed).unwrap();
    thread.start(|error| panic!("{error}")).unwrap();
    let (sender, events) = channel();
    let report = Box::new(move |event| drop(sender.send(event)));
    let shared = Arc::new(Shared::new(Bus::new(vec![Arc::new(window)], None), gate, report));
    let vcpus = Vcpus::start(vec![vcpu], &shared).unwrap();
    Some(Bench { memory, vcpus, events, shared, in_flight, landed, _vm: vm })
}

impl Bench {
    fn event(&self) -> VcpuEvent {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    fn pause(&self) {
        self.vcpus.pause();
        loop {
            // Of a pause that was over before it began there may be a word left.
            assert!(matches!(self.event(), VcpuEvent::AtRest));
            if self.vcpus.are_at_rest() {
                return;
            }
        }
    }
}

/// `mov dx, 0x600; mov al, MARK; out dx, al`.
fn mark(mark: u8) -> Vec<u8> {
    vec![0x66, 0xba, 0x00, 0x06, 0xb0, mark, 0xee]
}

#[test]
fn marks_reach_the_owner() {
    // A guest that repeats that it is ready is heard once.
    let Some(bench) = start(&[mark(1), mark(1), mark(1), mark(2)].concat()) else { return };
    assert!(matches!(bench.event(), VcpuEvent::AgentReady));
    assert!(matches!(bench.event(), VcpuEvent::End(ExitReason::PowerOff)));
    assert_eq!(bench.shared.exits.snapshot()["io_out"], 4);
}

#[test]
fn a_triple_fault_ends_the_machine() {
    // ud2, with an interrupt table that has nothing in it.
    let Some(bench) = start(&[0x0f, 0x0b]) else { return };
    assert!(matches!(bench.event(), VcpuEvent::End(ExitReason::TripleFault)));
}

#[test]
fn a_device_window_is_read() {
    // mov eax, [0xd0000000]; mov [0x2000], eax; then power off.
    let code = [vec![0xa1, 0, 0, 0, 0xd0, 0xa3, 0, 0x20, 0, 0], mark(2)].concat();
    let Some(bench) = start(&code) else { return };
    assert!(matches!(bench.event(), VcpuEvent::End(ExitReason::PowerOff)));
    assert_eq!(&bench.memory.read_obj::<[u8; 4]>(GuestAddress(0x2000)).unwrap(), b"virt");
    assert_eq!(bench.shared.exits.snapshot()["mmio_read"], 1);
}

#[test]
fn a_busy_processor_pauses_and_goes_on() {
    // inc dword [0x2000]; jmp back.
    let Some(bench) = start(&[0xff, 0x05, 0, 0x20, 0, 0, 0xeb, 0xf8]) else { return };
    let counter = |bench: &Bench| bench.memory.read_obj::<u32>(GuestAddress(0x2000)).unwrap();
    let wait_for_change = || {
        let (before, deadline) = (counter(&bench), Instant::now() + PATIENCE);
        while counter(&bench) == before {
            assert!(Instant::now() < deadline, "the processor does not run");
        }
    };
    for _ in 0..20 {
        wait_for_change();
        bench.pause();
        let still = counter(&bench);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(counter(&bench), still);
        bench.vcpus.resume();
    }
    wait_for_change();
    let mut bench = bench;
    assert!(bench.vcpus.end());
    let still = counter(&bench);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(counter(&bench), still);
}

/// `mov dword [ADDRESS], VALUE`.
fn store(address: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

#[test]
fn a_processor_that_waits_for_a_device_can_be_paused_and_ended() {
    const WINDOW: u32 = 0xd000_0000;
    let register = |offset, value| store(WINDOW + offset, value);
    // Start the device and reset it, twice, each time with a note afterwards.
    let begin = [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15), (0x70, 0)];
    let begin: Vec<u8> = begin.into_iter().flat_map(|(offset, value)| register(offset, value)).collect();
    let code = [begin.clone(), store(0x2000, 1), mark(1), begin, store(0x2000, 2), mark(2)].concat();
    let Some(mut bench) = start_with(&code, true) else { return };
    let note = |bench: &Bench| bench.memory.read_obj::<u32>(GuestAddress(0x2000)).unwrap();
    // It waits for the reset until the request has landed, but not for a pause.
    for _ in 0..3 {
        bench.pause();
        assert_eq!(note(&bench), 0);
        bench.vcpus.resume();
    }
    bench.in_flight.store(false, Ordering::SeqCst);
    bench.landed.signal();
    assert!(matches!(bench.event(), VcpuEvent::AgentReady));
    // The second reset needs no waiting unless a request is in flight again.
    assert!(matches!(bench.event(), VcpuEvent::End(ExitReason::PowerOff)));
    assert_eq!(note(&bench), 2);
    assert!(bench.vcpus.end());

    let Some(mut bench) = start_with(&code, true) else { return };
    bench.pause();
    bench.vcpus.resume();
    assert!(bench.vcpus.end(), "a machine ends, whatever its devices do");
    assert_eq!(note(&bench), 0);
}
