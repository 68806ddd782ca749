//! Puts kernel, initramfs and command line into guest memory and describes them by the PVH boot protocol.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::image::Image;
use super::layout::{
    COMMAND_LINE, COMMAND_LINE_MAX, HIMEM, MP_TABLE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO,
};
use super::memory::{self, GuestMemory, PAGE};

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
const MEMORY_USABLE: u32 = 1;
const MEMORY_RESERVED: u32 = 2;

/// A kernel that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not an ELF file, cut short, or too large for the memory.
    #[error("Cannot load the kernel image into guest memory")]
    Load(#[source] linux_loader::loader::Error),
    /// The kernel was built without `CONFIG_PVH`.
    #[error(
        "The kernel image has no PVH entry point; it must be an uncompressed vmlinux built with CONFIG_PVH"
    )]
    NoPvhEntry,
    /// The initramfs cannot be read.
    #[error("Cannot read the initramfs")]
    ReadInitramfs(#[source] io::Error),
    /// The initramfs does not fit between the kernel and the end of low memory.
    #[error("An initramfs of {size} bytes does not fit the guest's memory beside the kernel")]
    InitramfsTooLarge {
        /// Its size.
        size: u64,
    },
    /// Longer than the kernel takes, or not printable ASCII.
    #[error("The kernel command line is longer than {} bytes or holds control characters", COMMAND_LINE_MAX - 1)]
    CommandLine,
    /// The boot information lies outside memory.
    #[error("Cannot write the boot information to guest memory")]
    Write(#[source] GuestMemoryError),
    /// The PVH structures lie outside memory.
    #[error("Cannot write the PVH start information to guest memory")]
    Pvh(#[source] linux_loader::configurator::Error),
}

/// Loads everything a kernel needs to start, and returns its entry point.
///
/// # Errors
/// When an image is not what it should be or does not fit.
pub fn load(
    memory: &GuestMemory,
    kernel: &mut File,
    initramfs: &File,
    command_line: &str,
) -> Result<GuestAddress, KernelError> {
    // Copied, not mapped: a kernel that boots patches nearly every page of its code, and then huge pages serve it better.
    let loaded = Elf::load(memory, None, kernel, Some(GuestAddress(HIMEM))).map_err(KernelError::Load)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(KernelError::NoPvhEntry);
    };
    let module = load_initramfs(memory, initramfs, loaded.kernel_end)?;
    write_command_line(memory, command_line)?;
    write_start_info(memory, module)?;
    Ok(entry)
}

/// Maps the initramfs at the end of low memory.
fn load_initramfs(
    memory: &GuestMemory,
    initramfs: &File,
    kernel_end: u64,
) -> Result<hvm_modlist_entry, KernelError> {
    let size = initramfs.metadata().map_err(KernelError::ReadInitramfs)?.size();
    let too_large = || KernelError::InitramfsTooLarge { size };
    let page = PAGE as u64;
    let start = memory::low_end(memory).checked_sub(size).ok_or_else(too_large)? / page * page;
    if start < kernel_end {
        return Err(too_large());
    }
    let length = usize::try_from(size).map_err(|_| too_large())?;
    let mut initramfs = initramfs;
    io::Seek::rewind(&mut initramfs).map_err(KernelError::ReadInitramfs)?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut Image(initramfs), length)
        .map_err(|error| KernelError::ReadInitramfs(io::Error::other(error)))?;
    Ok(hvm_modlist_entry { paddr: start, size, ..Default::default() })
}

fn write_command_line(memory: &GuestMemory, command_line: &str) -> Result<(), KernelError> {
    let printable = command_line.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !printable || command_line.len() >= COMMAND_LINE_MAX {
        return Err(KernelError::CommandLine);
    }
    let mut bytes = command_line.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(COMMAND_LINE)).map_err(KernelError::Write)
}

fn write_start_info(memory: &GuestMemory, module: hvm_modlist_entry) -> Result<(), KernelError> {
    let map = memory_map(memory);
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: PVH_MODULES,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut parameters = BootParams::new(&start_info, GuestAddress(PVH_START_INFO));
    parameters.set_sections(&map, GuestAddress(PVH_MEMORY_MAP));
    parameters.set_modules(&[module], GuestAddress(PVH_MODULES));
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(KernelError::Pvh)
}

/// The memory map told to the guest: all its memory but the top of the first MiB, where the MP table lies.
fn memory_map(memory: &GuestMemory) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, end: u64, type_| hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 };
    let mut map = vec![entry(0, MP_TABLE, MEMORY_USABLE), entry(MP_TABLE, HIMEM, MEMORY_RESERVED)];
    for region in memory.iter() {
        let start = region.start_addr().0.max(HIMEM);
        map.push(entry(start, region.last_addr().0 + 1, MEMORY_USABLE));
    }
    map
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::machine::layout::{HIGH_MEMORY_START, HOLE_START, MIB};

    #[test]
    fn the_memory_map_covers_all_memory_but_the_legacy_area() {
        let memory = memory::allocate(6144).unwrap();
        let map: Vec<_> =
            memory_map(&memory).iter().map(|entry| (entry.addr, entry.size, entry.type_)).collect();
        assert_eq!(
            map,
            [
                (0, MP_TABLE, 1),
                (MP_TABLE, HIMEM - MP_TABLE, 2),
                (HIMEM, HOLE_START - HIMEM, 1),
                (HIGH_MEMORY_START, 6144 * MIB - HOLE_START, 1),
            ]
        );
    }

    #[test]
    fn the_initramfs_lands_page_aligned_at_the_end_of_low_memory() {
        let memory = memory::allocate(64).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let module = load_initramfs(&memory, &file, MIB).unwrap();
        assert_eq!((module.paddr, module.size), (64 * MIB - 8192, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(module.paddr + 4999)).unwrap(), 7);
        assert!(matches!(
            load_initramfs(&memory, &file, 64 * MIB - 4096),
            Err(KernelError::InitramfsTooLarge { size: 5000 })
        ));
    }

    #[test]
    fn start_information_points_at_map_module_and_command_line() {
        let memory = memory::allocate(64).unwrap();
        write_start_info(&memory, hvm_modlist_entry { paddr: 0x1234, size: 9, ..Default::default() })
            .unwrap();
        let word = |offset| memory.read_obj::<u32>(GuestAddress(PVH_START_INFO + offset)).unwrap();
        assert_eq!(word(0), START_MAGIC);
        assert_eq!(u64::from(word(24)), COMMAND_LINE);
        assert_eq!(word(48), 3, "usable, reserved, usable");
        assert_eq!(memory.read_obj::<u64>(GuestAddress(PVH_MODULES)).unwrap(), 0x1234);
    }

    #[test]
    fn a_command_line_is_bounded_and_printable() {
        let memory = memory::allocate(64).unwrap();
        assert!(write_command_line(&memory, &"x".repeat(COMMAND_LINE_MAX - 1)).is_ok());
        assert!(write_command_line(&memory, &"x".repeat(COMMAND_LINE_MAX)).is_err());
        assert!(write_command_line(&memory, "a\nb").is_err());
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let memory = memory::allocate(64).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"#!/bin/sh\n").unwrap();
        let initramfs = tempfile::tempfile().unwrap();
        assert!(matches!(load(&memory, &mut file, &initramfs, ""), Err(KernelError::Load(_))));
    }
}
