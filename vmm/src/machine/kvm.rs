//! The virtual machine as KVM knows it: memory slots and processors.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use super::memory::GuestMemory;
use super::{MachineError, kvm_error, vcpu};

/// Takes `/dev/kvm` and checks that it can do what the machine is built on.
pub(super) fn open_kvm(fd: OwnedFd) -> Result<Kvm, MachineError> {
    // SAFETY: the descriptor is owned and given up here. If it is not /dev/kvm, the first ioctl fails.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    if kvm.get_api_version() != 12 {
        return Err(MachineError::Missing("the stable KVM API; is the descriptor /dev/kvm?"));
    }
    let needed = [
        (Cap::UserMemory, "user memory slots"),
        (Cap::Irqchip, "in-kernel interrupt controllers"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::Irqfd, "irqfd"),
        (Cap::ImmediateExit, "immediate exit"),
        (Cap::ExtCpuid, "CPUID control"),
        (Cap::SetTssAddr, "a TSS address"),
        // The guest has no other timer: there is no PIT, no HPET and no clock that interrupts.
        (Cap::TscDeadlineTimer, "the local APIC's TSC-deadline timer"),
    ];
    for (capability, name) in needed {
        if !kvm.check_extension(capability) {
            return Err(MachineError::Missing(name));
        }
    }
    Ok(kvm)
}

/// Makes the virtual machine. KVM may report an interruption although there was no signal; then it is worth trying again.
pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    const TRIES: u32 = 8;
    let mut tries = 0;
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR && tries < TRIES => tries += 1,
            result => break result.map_err(kvm_error("make a virtual machine"))?,
        }
    };
    vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(kvm_error("place the identity map"))?;
    vm.set_tss_address(KVM_TSS).map_err(kvm_error("place the TSS"))?;
    // The guest gets no performance counters (see `cpuid`); hosts that can then keep none for it.
    let mut no_counters = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    if let Some(argument) = no_counters.args.first_mut() {
        *argument = u64::from(kvm_bindings::KVM_PMU_CAP_DISABLE);
    }
    let _ = vm.enable_cap(&no_counters);
    Ok(vm)
}

/// Gives the virtual machine its memory.
pub(super) fn add_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), MachineError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let start = region.start_addr();
        let host = memory.get_host_address(start).map_err(MachineError::Region)?;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start.raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region is mapped for the life of the process and overlaps no other slot.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm_error("add guest memory"))?;
    }
    Ok(())
}

/// Makes all processors.
pub(super) fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8) -> Result<Vec<VcpuFd>, MachineError> {
    if kvm.get_max_vcpus() < usize::from(count) {
        return Err(MachineError::Missing("room for that many virtual CPUs"));
    }
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("tell the processor features that it supports"))?;
    (0..count).map(|id| vcpu::setup::create(vm, id, count, &supported).map_err(MachineError::Vcpu)).collect()
}
