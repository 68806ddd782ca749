//! Runs real processors on a few bytes of code, where this machine has a KVM that can.

use std::sync::mpsc::{Receiver, channel};

use kvm_ioctls::{Cap, Kvm};

use super::*;
use crate::machine::memory;
use crate::virtio::rng::Rng;
use crate::virtio::slot::Slot;

const CODE: u64 = 0x10_0000;
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    memory: GuestMemory,
    vcpus: Vcpus,
    events: Receiver<VcpuEvent>,
    shared: Arc<Shared>,
    _vm: VmFd,
}

/// A machine with one processor about to run `code`, or `None`, with a reason printed, if this host cannot.
fn start(code: &[u8]) -> Option<Bench> {
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
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let vcpu = match create(&vm, 0, 1, &supported, deadline) {
        Ok(vcpu) => vcpu,
        Err(error) => return skip("no processor", &error),
    };
    enter_kernel(&vcpu, &memory, GuestAddress(CODE)).unwrap();
    let slot = Slot::new(Box::new(Rng::default()), memory.clone()).unwrap();
    let (sender, events) = channel();
    let report = Box::new(move |event| drop(sender.send(event)));
    let shared = Arc::new(Shared::new(Bus::new(vec![Arc::new(slot)], None), report));
    let vcpus = Vcpus::start(vec![vcpu], &shared).unwrap();
    Some(Bench { memory, vcpus, events, shared, _vm: vm })
}

impl Bench {
    fn event(&self) -> VcpuEvent {
        self.events.recv_timeout(PATIENCE).unwrap()
    }
}

/// `mov dx, 0x600; mov al, MARK; out dx, al`.
fn mark(mark: u8) -> Vec<u8> {
    vec![0x66, 0xba, 0x00, 0x06, 0xb0, mark, 0xee]
}

#[test]
fn marks_reach_the_owner() {
    let Some(bench) = start(&[mark(1), mark(2)].concat()) else { return };
    assert!(matches!(bench.event(), VcpuEvent::AgentReady));
    assert!(matches!(bench.event(), VcpuEvent::End(ExitReason::PowerOff)));
    assert_eq!(bench.shared.exits.snapshot()["io_out"], 2);
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
    let counter = || bench.memory.read_obj::<u32>(GuestAddress(0x2000)).unwrap();
    let wait_for_change = || {
        let (before, deadline) = (counter(), Instant::now() + PATIENCE);
        while counter() == before {
            assert!(Instant::now() < deadline, "the processor does not run");
        }
    };
    for _ in 0..20 {
        wait_for_change();
        bench.vcpus.pause().unwrap();
        let still = counter();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(counter(), still);
        bench.vcpus.resume();
    }
    wait_for_change();
    bench.vcpus.pause().unwrap();
}
