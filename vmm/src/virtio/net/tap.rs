//! One queue of a tap interface.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::HEADER_BYTES;
use crate::event::{raw, set_nonblocking};

/// `TUN_F_CSUM`: the reader takes frames without a checksum.
pub const OFFLOAD_CSUM: u32 = 1;
/// `TUN_F_TSO4`: the reader takes large TCP segments over IPv4.
pub const OFFLOAD_TSO4: u32 = 2;
/// `TUN_F_TSO6`: the reader takes large TCP segments over IPv6.
pub const OFFLOAD_TSO6: u32 = 4;
/// `TUN_F_TSO_ECN`: also with ECN bits.
pub const OFFLOAD_TSO_ECN: u32 = 8;

pub(crate) const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
pub(crate) const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
pub(crate) const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
pub(crate) const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

/// A tap queue, non-blocking, that puts a virtio-net header in front of each frame.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Prepares a tap queue that is already bound to its interface.
    ///
    /// # Errors
    /// When the descriptor is not a tap queue with `IFF_NO_PI` and `IFF_VNET_HDR`.
    pub fn new(file: File) -> io::Result<Self> {
        // SAFETY: an all-zero ifreq is valid; the kernel fills it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes an ifreq to the address given.
        check(unsafe { libc::ioctl(raw(&file), TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF sets the flags member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "The tap queue was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
            ));
        }
        let (size, little_endian) = (HEADER_BYTES as libc::c_int, 1 as libc::c_int);
        // SAFETY: both calls read an int from the address given.
        check(unsafe { libc::ioctl(raw(&file), TUNSETVNETHDRSZ, &raw const size) })?;
        // SAFETY: as above.
        check(unsafe { libc::ioctl(raw(&file), TUNSETVNETLE, &raw const little_endian) })?;
        set_nonblocking(&file)?;
        Ok(Self(file))
    }

    /// A socket in the place of a tap.
    #[cfg(any(test, fuzzing))]
    pub fn stand_in(socket: std::os::unix::net::UnixDatagram) -> Self {
        Self(std::os::fd::OwnedFd::from(socket).into())
    }

    /// Says which frames the guest takes from all queues of this interface, as `OFFLOAD_` bits. Best effort: without an
    /// offload the host does the work.
    pub fn set_offloads(&self, offloads: u32) {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        unsafe { libc::ioctl(raw(&self.0), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
