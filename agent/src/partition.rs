//! Partitions that are told to the kernel, not read from a disk (`BLKPG`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const ADD: libc::c_int = 1;
const DELETE: libc::c_int = 2;

/// Makes partition `number` of a disk, from `start`, `length` long, both in bytes.
///
/// # Errors
///
/// When the kernel refuses.
pub fn add(disk: &str, number: u32, start: u64, length: u64) -> io::Result<()> {
    change(disk, ADD, number, start, length)
}

/// Takes a partition away.
///
/// # Errors
///
/// When the kernel refuses.
pub fn delete(disk: &str, number: u32) -> io::Result<()> {
    change(disk, DELETE, number, 0, 0)
}

/// `struct blkpg_partition` of `linux/blkpg.h`.
#[repr(C)]
struct Partition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Argument {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut Partition,
}

fn change(disk: &str, operation: libc::c_int, number: u32, start: u64, length: u64) -> io::Result<()> {
    const BLKPG: libc::c_ulong = 0x1269;
    let impossible = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = Partition {
        start: start.try_into().map_err(impossible)?,
        length: length.try_into().map_err(impossible)?,
        number: number.try_into().map_err(impossible)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let mut argument = Argument {
        operation,
        flags: 0,
        length: size_of::<Partition>().try_into().map_err(impossible)?,
        data: &raw mut partition,
    };
    let disk = File::open(disk)?;
    // SAFETY: BLKPG takes a blkpg_ioctl_arg whose data is a blkpg_partition; both live through the call.
    if unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw mut argument) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
