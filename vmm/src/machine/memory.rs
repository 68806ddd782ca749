//! The guest's memory: private, anonymous, huge pages where the host has them.

use std::io;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap,
};

use super::layout::{HIGH_MEMORY_START, HOLE_START, MIB};

/// The guest's memory as every part of the machine sees it. Cloning it is cheap and keeps the mapping alive.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Size of the host's pages, in bytes.
pub const PAGE: usize = 4096;
/// Alignment of the host mapping, so that huge pages of host and guest coincide.
const HUGE_PAGE: usize = 2 << 20;

/// Guest memory that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refuses the mapping.
    #[error("Cannot map {0} bytes of guest memory")]
    Map(usize, #[source] io::Error),
    /// The mapping does not suit vm-memory.
    #[error("Cannot use a mapping as guest memory")]
    Region(#[source] MmapRegionError),
    /// The regions overlap or exceed the address space.
    #[error("Cannot lay out the guest's memory")]
    Layout(#[source] GuestRegionCollectionError),
    /// A size that does not fit an address space.
    #[error("Guest memory of {0} MiB does not fit the address space")]
    TooLarge(u32),
}

/// The ranges (start, length) that `memory_mib` of memory takes, leaving out the hole below 4 GiB.
#[must_use]
pub fn ranges(memory_mib: u32) -> Vec<(u64, u64)> {
    let size = u64::from(memory_mib) * MIB;
    if size <= HOLE_START {
        vec![(0, size)]
    } else {
        vec![(0, HOLE_START), (HIGH_MEMORY_START, size - HOLE_START)]
    }
}

/// Makes the guest's memory. Pages come into being, zeroed, when they are first touched.
///
/// # Errors
/// When the host has no room in this process's address space.
pub fn allocate(memory_mib: u32) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::new();
    for (start, length) in ranges(memory_mib) {
        let length = usize::try_from(length).map_err(|_| MemoryError::TooLarge(memory_mib))?;
        let address = map(length).map_err(|error| MemoryError::Map(length, error))?;
        let builder = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: `address` is the start of a mapping of `length` bytes that this process never unmaps.
        let region =
            unsafe { builder.with_raw_mmap_pointer(address) }.build().map_err(MemoryError::Region)?;
        regions.push(
            GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::TooLarge(memory_mib))?,
        );
    }
    GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
}

/// Maps `length` bytes at an address that is a multiple of [`HUGE_PAGE`]. Before and behind them are pages that cannot be
/// touched, so that who runs over the end of guest memory does not run on into this process's own.
#[cfg(not(miri))]
fn map(length: usize) -> io::Result<*mut u8> {
    let room = length.checked_add(2 * HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            room,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let address = address.cast::<u8>();
    let skip = PAGE + address.wrapping_add(PAGE).align_offset(HUGE_PAGE);
    // SAFETY: `skip` is less than HUGE_PAGE + PAGE, so that the range [aligned, aligned + length) lies inside the mapping
    // made above, with at least a page on both sides.
    let aligned = unsafe { address.add(skip) };
    // SAFETY: as above; nothing else knows of the range.
    if unsafe { libc::mprotect(aligned.cast(), length, libc::PROT_READ | libc::PROT_WRITE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Neither call's failure matters: without huge pages the guest is slower, with a dump it is larger.
    // SAFETY: the range [aligned, aligned + length) lies inside the mapping made above.
    unsafe {
        libc::madvise(aligned.cast(), length, libc::MADV_HUGEPAGE);
        libc::madvise(aligned.cast(), length, libc::MADV_DONTDUMP);
    }
    Ok(aligned)
}

/// The same of the allocator's memory: the interpreter of the tests knows no pages. It is never given back either.
#[cfg(miri)]
fn map(length: usize) -> io::Result<*mut u8> {
    let layout = std::alloc::Layout::from_size_align(length, HUGE_PAGE).map_err(io::Error::other)?;
    // SAFETY: no guest memory is empty.
    let address = unsafe { std::alloc::alloc_zeroed(layout) };
    if address.is_null() { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(address) }
}

/// Gives the pages wholly inside `[start, start + length)` back to the host; the guest reads from them next what they held
/// at its start: zeros, or a piece of the initramfs.
///
/// # Errors
/// When the range is not guest memory.
pub fn discard(memory: &GuestMemory, start: GuestAddress, length: u64) -> io::Result<()> {
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let slice = memory.get_slice(start, length).map_err(io::Error::other)?;
    // SAFETY: the slice lies inside guest memory.
    unsafe { discard_mapped(slice.ptr_guard_mut().as_ptr(), length) }
}

/// As [`discard`], for bytes where this process has them.
///
/// # Errors
/// The kernel's refusal.
///
/// # Safety
/// The bytes lie inside guest memory: a private mapping, of whose contents this process assumes nothing.
pub unsafe fn discard_mapped(start: *mut u8, length: usize) -> io::Result<()> {
    let skip = start.align_offset(PAGE);
    let whole = length.saturating_sub(skip) / PAGE * PAGE;
    // SAFETY: whole pages inside the range that the caller vouches for.
    if whole > 0 && unsafe { libc::madvise(start.wrapping_add(skip).cast(), whole, libc::MADV_DONTNEED) } < 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Last usable address below the hole, plus one.
#[must_use]
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn what_lies_beside_guest_memory_cannot_be_touched() {
        let memory = allocate(3 * 1024 + 512).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let rights = |address: usize| {
            let line = maps.lines().find(|line| {
                let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
                let number = |text| usize::from_str_radix(text, 16).unwrap();
                (number(start)..number(end)).contains(&address)
            });
            line.map_or("nothing", |line| line.split(' ').nth(1).unwrap())
        };
        assert_eq!(memory.num_regions(), 2);
        for region in memory.iter() {
            let start = memory.get_host_address(region.start_addr()).unwrap() as usize;
            let end = start + usize::try_from(region.len()).unwrap();
            assert_eq!(start % HUGE_PAGE, 0);
            assert_eq!((rights(start), rights(end - 1)), ("rw-p", "rw-p"));
            assert_eq!((rights(start - 1), rights(end)), ("---p", "---p"));
        }
    }

    #[test]
    fn memory_leaves_the_hole_free() {
        assert_eq!(ranges(512), [(0, 512 * MIB)]);
        assert_eq!(ranges(3328), [(0, HOLE_START)]);
        assert_eq!(ranges(4096), [(0, HOLE_START), (HIGH_MEMORY_START, 4096 * MIB - HOLE_START)]);
        let total: u64 = ranges(131_072).iter().map(|range| range.1).sum();
        assert_eq!(total, 131_072 * MIB);
    }

    #[test]
    fn the_largest_machine_can_be_mapped() {
        let memory = allocate(131_072).unwrap();
        memory.write_obj(7u8, GuestAddress(HIGH_MEMORY_START + 100 * 1024 * MIB)).unwrap();
        assert!(memory.write_obj(7u8, GuestAddress(HOLE_START)).is_err());
    }

    #[test]
    fn discarded_pages_read_as_zeros_and_their_neighbours_stay() {
        let memory = allocate(64).unwrap();
        for page in 0..4u64 {
            memory.write_obj(1u8, GuestAddress(MIB + page * 4096)).unwrap();
        }
        discard(&memory, GuestAddress(MIB + 1), 3 * 4096).unwrap();
        let left: Vec<u8> =
            (0..4u64).map(|page| memory.read_obj(GuestAddress(MIB + page * 4096)).unwrap()).collect();
        assert_eq!(left, [1, 0, 0, 1]);
        assert!(discard(&memory, GuestAddress(u64::MAX - 10), 100).is_err());
        assert!(discard(&memory, GuestAddress(63 * MIB), 2 * MIB).is_err());
    }
}
