//! The numbers of the ioctls that the machine makes, as <linux/kvm.h> and <linux/if_tun.h> have them. The crates that make
//! the calls keep theirs to themselves.

use kvm_bindings::{
    kvm_cpuid2, kvm_enable_cap, kvm_ioeventfd, kvm_irqfd, kvm_lapic_state, kvm_msrs, kvm_regs, kvm_sregs,
    kvm_userspace_memory_region, kvm_xcrs,
};

/// Of `/dev/kvm`, the virtual machine and its processors, before they run.
pub(super) const KVM_SETUP: &[u32] = &[
    kvm(0x00),                                   // KVM_GET_API_VERSION
    kvm(0x01),                                   // KVM_CREATE_VM
    kvm(0x03),                                   // KVM_CHECK_EXTENSION
    kvm(0x04),                                   // KVM_GET_VCPU_MMAP_SIZE
    kvm_both::<kvm_cpuid2>(0x05),                // KVM_GET_SUPPORTED_CPUID
    kvm(0x41),                                   // KVM_CREATE_VCPU
    kvm_in::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    kvm(0x47),                                   // KVM_SET_TSS_ADDR
    kvm_in::<u64>(0x48),                         // KVM_SET_IDENTITY_MAP_ADDR
    kvm(0x60),                                   // KVM_CREATE_IRQCHIP
    kvm_in::<kvm_irqfd>(0x76),                   // KVM_IRQFD
    kvm_in::<kvm_ioeventfd>(0x79),               // KVM_IOEVENTFD
    kvm_in::<kvm_regs>(0x82),                    // KVM_SET_REGS
    kvm_out::<kvm_sregs>(0x83),                  // KVM_GET_SREGS
    kvm_in::<kvm_sregs>(0x84),                   // KVM_SET_SREGS
    kvm_in::<kvm_msrs>(0x89),                    // KVM_SET_MSRS
    kvm_out::<kvm_lapic_state>(0x8e),            // KVM_GET_LAPIC
    kvm_in::<kvm_lapic_state>(0x8f),             // KVM_SET_LAPIC
    kvm_in::<kvm_cpuid2>(0x90),                  // KVM_SET_CPUID2
    kvm_in::<kvm_enable_cap>(0xa3),              // KVM_ENABLE_CAP
    kvm_in::<kvm_xcrs>(0xa7),                    // KVM_SET_XCRS
];

/// Of a processor that runs.
pub(super) const VCPU: &[u32] = &[
    kvm(0x80),                 // KVM_RUN
    kvm_out::<kvm_regs>(0x81), // KVM_GET_REGS
    kvm(0xad),                 // KVM_KVMCLOCK_CTRL
];

const KVM: u32 = 0xae;

/// `_IO`, `_IOW`, `_IOR` and `_IOWR` of <asm-generic/ioctl.h>.
const fn number(direction: u32, kind: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | kind << 8 | number
}

const fn kvm(nr: u32) -> u32 {
    number(0, KVM, nr, 0)
}

const fn kvm_in<T>(nr: u32) -> u32 {
    number(1, KVM, nr, size_of::<T>())
}

const fn kvm_out<T>(nr: u32) -> u32 {
    number(2, KVM, nr, size_of::<T>())
}

const fn kvm_both<T>(nr: u32) -> u32 {
    number(3, KVM, nr, size_of::<T>())
}
