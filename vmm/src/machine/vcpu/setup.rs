//! Making processors and putting the first at the kernel's entry point.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_segment, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::machine::cpuid;
use crate::machine::layout::{GDT, IDT, PVH_START_INFO};
use crate::machine::memory::GuestMemory;

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
    /// KVM lists so many features that there is no room for the topology.
    #[error("Cannot describe the topology to virtual CPU {id}: the list of processor features is full")]
    Topology {
        /// Which processor.
        id: u8,
        /// What the list says.
        #[source]
        source: vmm_sys_util::fam::Error,
    },
    /// The segment table lies outside memory.
    #[error("Cannot write the initial segment table to guest memory")]
    SegmentTable(#[source] GuestMemoryError),
}

/// Makes processor `id` of `vcpus` and prepares what all processors need.
///
/// # Errors
/// When KVM refuses.
pub fn create(vm: &VmFd, id: u8, vcpus: u8, supported: &CpuId) -> Result<VcpuFd, VcpuError> {
    let kvm = |step| move |source| VcpuError::Kvm { id, step, source };
    let vcpu = vm.create_vcpu(u64::from(id)).map_err(kvm("make the state"))?;
    let mut cpuid = supported.clone();
    cpuid::tailor(&mut cpuid, id, vcpus).map_err(|source| VcpuError::Topology { id, source })?;
    vcpu.set_cpuid2(&cpuid).map_err(kvm("set the features"))?;
    enable_states(&vcpu, &cpuid).map_err(kvm("enable the extended states"))?;
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

/// Enables all extended states (XCR0), as firmware may have left them; kernels set them anew before they use them.
///
/// KVM tells the guest the size of the enabled states (CPUID leaf 0xd) and learns of a change by intercepting XSETBV.
/// An emulated host that does not know that interception, QEMU's up to 7.2, would go on telling the size of a processor
/// that was just reset, take the guest's states away at the next exit, and make Linux give up XSAVE and with it AVX.
fn enable_states(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), kvm_ioctls::Error> {
    let value = cpuid::extended_states(cpuid);
    if value == 0 {
        return Ok(());
    }
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    if let Some(first) = xcrs.xcrs.first_mut() {
        *first = kvm_xcr { xcr: 0, value, ..Default::default() };
    }
    vcpu.set_xcrs(&xcrs)
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
