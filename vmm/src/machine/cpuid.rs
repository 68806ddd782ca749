//! What the guest's processors say about themselves.
//!
//! The host's features as KVM supports them, less nested virtualization and the performance counters, in a topology
//! of one socket with one thread per core.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const FEATURES: u32 = 0x1;
const CACHES_INTEL: u32 = 0x4;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const EXTENDED_STATES: u32 = 0xd;
const TOPOLOGY_V2: u32 = 0x1f;
const SGX: u32 = 0x12;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const ADDRESS_SIZES: u32 = 0x8000_0008;
const SVM: u32 = 0x8000_000a;
const CACHES_AMD: u32 = 0x8000_001d;
const TOPOLOGY_AMD: u32 = 0x8000_001e;
const ENCRYPTION: u32 = 0x8000_001f;
const PERFORMANCE_AMD: u32 = 0x8000_0022;
const TOPOLOGY_AMD_V2: u32 = 0x8000_0026;

const ECX_VMX: u32 = 1 << 5;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_XSAVE: u32 = 1 << 26;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const ECX_PDCM: u32 = 1 << 15;
const EXTENDED_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXTENDED_ECX_SVM: u32 = 1 << 2;
const EXTENDED_ECX_PERFCTR_CORE: u32 = 1 << 23;

/// Turns what KVM supports into the leaves of virtual CPU `id` out of `vcpus`.
///
/// # Errors
/// When the list has no room for the levels of the topology.
pub fn tailor(cpuid: &mut CpuId, id: u8, vcpus: u8) -> Result<(), vmm_sys_util::fam::Error> {
    complete_topology(cpuid)?;
    let apic_id = u32::from(id);
    let cores = u32::from(vcpus);
    // Bits of an APIC id that tell cores apart.
    let core_bits = cores.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            FEATURES => features(entry, apic_id, cores),
            CACHES_INTEL if entry.eax & 0x1f != 0 => {
                share_cache(entry, cores);
                entry.eax = (entry.eax & !(0x3f << 26)) | (((1 << core_bits) - 1) << 26);
            }
            TOPOLOGY | TOPOLOGY_V2 => topology(entry, apic_id, cores, core_bits),
            PERFORMANCE | SGX | SVM | ENCRYPTION | PERFORMANCE_AMD | TOPOLOGY_AMD_V2 => clear(entry),
            EXTENDED_FEATURES => {
                entry.ecx &= !(EXTENDED_ECX_SVM | EXTENDED_ECX_PERFCTR_CORE | EXTENDED_ECX_CMP_LEGACY);
                if cores > 1 {
                    entry.ecx |= EXTENDED_ECX_CMP_LEGACY;
                }
            }
            ADDRESS_SIZES => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits << 12) | (cores - 1),
            CACHES_AMD if entry.eax & 0x1f != 0 => share_cache(entry, cores),
            TOPOLOGY_AMD => {
                entry.eax = apic_id;
                entry.ebx = apic_id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The extended states that a processor with these leaves has, as bits of XCR0; 0 without XSAVE.
#[must_use]
pub fn extended_states(cpuid: &CpuId) -> u64 {
    let leaves = cpuid.as_slice();
    let has_xsave = leaves.iter().any(|entry| entry.function == FEATURES && entry.ecx & ECX_XSAVE != 0);
    let states = leaves.iter().find(|entry| entry.function == EXTENDED_STATES && entry.index == 0);
    states.filter(|_| has_xsave).map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
}

fn features(entry: &mut kvm_cpuid_entry2, apic_id: u32, cores: u32) {
    // Brand index and flush line size stay; the counts and the id are ours.
    entry.ebx = (entry.ebx & 0xffff) | (cores.next_power_of_two() << 16) | (apic_id << 24);
    entry.ecx &= !(ECX_VMX | ECX_PDCM);
    // KVM does not list the last by itself.
    entry.ecx |= ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE;
    entry.edx &= !EDX_HTT;
    if cores > 1 {
        entry.edx |= EDX_HTT;
    }
}

/// The last-level cache belongs to all cores, the others to one each.
fn share_cache(entry: &mut kvm_cpuid_entry2, cores: u32) {
    let level = (entry.eax >> 5) & 0b111;
    let sharing = if level >= 3 { cores.next_power_of_two() - 1 } else { 0 };
    entry.eax = (entry.eax & !(0xfff << 14)) | (sharing << 14);
}

/// Adds the core level to topology leaves of which KVM lists the first level only: without it, a guest takes every
/// processor for a package of its own.
fn complete_topology(cpuid: &mut CpuId) -> Result<(), vmm_sys_util::fam::Error> {
    for function in [TOPOLOGY, TOPOLOGY_V2] {
        let lists =
            |index| cpuid.as_slice().iter().any(|entry| (entry.function, entry.index) == (function, index));
        if lists(0) && !lists(1) {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            cpuid.push(kvm_cpuid_entry2 { function, index: 1, flags, ..Default::default() })?;
        }
    }
    Ok(())
}

fn topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, cores: u32, core_bits: u32) {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let (shift, count, kind) = match entry.index {
        0 => (0, 1, THREAD),
        1 => (core_bits, cores, CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = count;
    entry.ecx = (entry.index & 0xff) | (kind << 8);
    entry.edx = apic_id;
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    entry.eax = 0;
    entry.ebx = 0;
    entry.ecx = 0;
    entry.edx = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tailored(function: u32, index: u32, value: u32, id: u8, vcpus: u8) -> kvm_cpuid_entry2 {
        let entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[entry]).unwrap();
        tailor(&mut cpuid, id, vcpus).unwrap();
        cpuid.as_slice()[0]
    }

    #[test]
    fn nested_virtualization_is_never_offered() {
        let entry = tailored(FEATURES, 0, u32::MAX, 0, 1);
        assert_eq!(entry.ecx & ECX_VMX, 0);
        let entry = tailored(EXTENDED_FEATURES, 0, u32::MAX, 0, 1);
        assert_eq!(entry.ecx & EXTENDED_ECX_SVM, 0);
        let entry = tailored(SVM, 0, u32::MAX, 0, 1);
        assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0));
    }

    #[test]
    fn the_deadline_timer_and_the_apic_id_are_told() {
        let entry = tailored(FEATURES, 0, 0, 3, 4);
        assert_ne!(entry.ecx & ECX_TSC_DEADLINE, 0);
        assert_eq!(entry.ebx >> 24, 3);
        assert_eq!((entry.ebx >> 16) & 0xff, 4);
        assert_ne!(entry.edx & EDX_HTT, 0);
    }

    #[test]
    fn extended_states_need_xsave() {
        let entry =
            |function, eax, ecx, edx| kvm_cpuid_entry2 { function, eax, ecx, edx, ..Default::default() };
        let states = |ecx| {
            let leaves = [entry(FEATURES, 0, ecx, 0), entry(EXTENDED_STATES, 0x207, 0, 1)];
            extended_states(&CpuId::from_entries(&leaves).unwrap())
        };
        assert_eq!(states(ECX_XSAVE), 1 << 32 | 0x207);
        assert_eq!(states(0), 0);
        assert_eq!(extended_states(&CpuId::new(0).unwrap()), 0);
    }

    #[test]
    fn topology_is_one_socket_of_single_thread_cores() {
        for vcpus in 1..=32u8 {
            let id = vcpus - 1;
            let threads = tailored(TOPOLOGY, 0, 0, id, vcpus);
            assert_eq!((threads.eax, threads.ebx, threads.edx), (0, 1, u32::from(id)));
            let cores = tailored(TOPOLOGY, 1, 0, id, vcpus);
            assert_eq!(cores.ebx, u32::from(vcpus));
            assert!(u32::from(id) < 1 << cores.eax);
            let end = tailored(TOPOLOGY, 2, 0, id, vcpus);
            assert_eq!((end.eax, end.ebx, end.ecx >> 8), (0, 0, 0));
            let amd = tailored(ADDRESS_SIZES, 0, 0, id, vcpus);
            assert_eq!(amd.ecx & 0xff, u32::from(id));
        }
    }

    #[test]
    fn the_core_level_is_added_where_kvm_lists_the_first_level_only() {
        for function in [TOPOLOGY, TOPOLOGY_V2] {
            for vcpus in 1..=32u8 {
                for id in 0..vcpus {
                    let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
                    let first = kvm_cpuid_entry2 { function, flags, ..Default::default() };
                    let mut cpuid = CpuId::from_entries(&[first]).unwrap();
                    tailor(&mut cpuid, id, vcpus).unwrap();
                    let [threads, cores] = cpuid.as_slice() else { panic!("{cpuid:?}") };
                    assert_eq!((threads.index, threads.ebx, threads.ecx), (0, 1, 0x100));
                    assert_eq!((cores.function, cores.index, cores.flags), (function, 1, flags));
                    assert_eq!((cores.ebx, cores.ecx), (u32::from(vcpus), 0x201));
                    assert_eq!(cores.edx, u32::from(id));
                    assert_eq!(cores.edx >> cores.eax, 0, "one package");
                }
            }
        }
    }

    #[test]
    fn topology_leaves_that_are_absent_or_whole_stay_so() {
        let entry = |function, index| kvm_cpuid_entry2 { function, index, ..Default::default() };
        let mut cpuid =
            CpuId::from_entries(&[entry(TOPOLOGY, 0), entry(TOPOLOGY, 1), entry(FEATURES, 0)]).unwrap();
        tailor(&mut cpuid, 0, 2).unwrap();
        assert_eq!(cpuid.as_slice().len(), 3);
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let second = tailored(CACHES_AMD, 2, 0x143, 0, 8);
        assert_eq!((second.eax >> 14) & 0xfff, 0);
        let third = tailored(CACHES_AMD, 3, 0x163, 0, 8);
        assert_eq!((third.eax >> 14) & 0xfff, 7);
    }
}
