//! The MP table (Intel MultiProcessor Specification 1.4): how a kernel without ACPI finds processors and interrupts.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{IO_APIC, LOCAL_APIC, MP_TABLE, MP_TABLE_MAX};
use super::memory::GuestMemory;

/// Interrupt lines of the I/O APIC that the table describes.
const IO_APIC_PINS: u8 = 24;
const APIC_VERSION: u8 = 0x14;

const POINTER_LENGTH: usize = 16;
const HEADER_LENGTH: usize = 44;

/// An MP table that could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {
    /// More processors than the table's place has room for.
    #[error("The MP table of {0} processors does not fit its place")]
    TooLarge(u8),
    /// Not memory.
    #[error("Cannot write the MP table to guest memory")]
    Write(#[source] GuestMemoryError),
}

/// Writes the table for `vcpus` processors, whose APIC ids count from 0.
///
/// # Errors
/// When it does not fit, or guest memory is too small to hold it.
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), MpTableError> {
    let table = build(vcpus);
    if table.len() > MP_TABLE_MAX {
        return Err(MpTableError::TooLarge(vcpus));
    }
    memory.write_slice(&table, GuestAddress(MP_TABLE)).map_err(MpTableError::Write)
}

fn build(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        // Enabled; the first is the bootstrap processor. Signature and features are for kernels without CPUID.
        let flags = if id == 0 { 0b11 } else { 0b01 };
        let mut bytes = [0u8; 20];
        bytes[1] = id;
        bytes[2] = APIC_VERSION;
        bytes[3] = flags;
        bytes[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        bytes[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        entry(&bytes);
    }
    entry(&[1, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = IO_APIC.to_le_bytes();
    entry(&[2, io_apic_id, APIC_VERSION, 1, address[0], address[1], address[2], address[3]]);
    for pin in 0..IO_APIC_PINS {
        // Type INT, polarity and trigger as the (ISA) bus has them.
        entry(&[3, 0, 0, 0, 0, pin, io_apic_id, pin]);
    }
    // The legacy controller's interrupts arrive at LINT0 of the first processor, non-maskable ones at all LINT1.
    entry(&[4, 3, 0, 0, 0, 0, 0, 0]);
    entry(&[4, 1, 0, 0, 0, 0, 0xff, 1]);

    let mut header = [0u8; HEADER_LENGTH];
    let length = u16::try_from(HEADER_LENGTH + entries.len()).unwrap_or(u16::MAX);
    header[0..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = 4;
    header[8..16].copy_from_slice(b"RAVELIN ");
    header[16..28].copy_from_slice(b"MICROVM     ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    header[7] = checksum(header.iter().chain(&entries));

    let mut pointer = [0u8; POINTER_LENGTH];
    pointer[0..4].copy_from_slice(b"_MP_");
    let table = u32::try_from(MP_TABLE).unwrap_or(0) + POINTER_LENGTH as u32;
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1;
    pointer[9] = 4;
    pointer[10] = checksum(pointer.iter());

    [&pointer[..], &header[..], &entries[..]].concat()
}

/// The byte that makes the sum of all bytes zero.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u8 {
    bytes.fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_checksums_are_zero_for_every_number_of_processors() {
        for vcpus in 1..=32 {
            let table = build(vcpus);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&table[..POINTER_LENGTH]), 0);
            assert_eq!(sum(&table[POINTER_LENGTH..]), 0);
            let length = usize::from(u16::from_le_bytes([table[20], table[21]]));
            assert_eq!(length, table.len() - POINTER_LENGTH);
            let entries = u16::from_le_bytes([table[50], table[51]]);
            assert_eq!(entries, u16::from(vcpus) + 1 + 1 + 24 + 2);
        }
    }

    #[test]
    fn thirty_two_processors_fit() {
        let memory = crate::machine::memory::allocate(64).unwrap();
        write(&memory, 32).unwrap();
        assert!(matches!(write(&memory, 38), Err(MpTableError::TooLarge(38))));
        let signature: [u8; 4] = memory.read_obj(GuestAddress(MP_TABLE)).unwrap();
        assert_eq!(&signature, b"_MP_");
    }
}
