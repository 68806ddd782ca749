use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{NetworkError, TAP_NAME};

/// Length of `struct virtio_net_hdr_v1`, which precedes every frame (virtio 1.3 §5.1.6).
const VNET_HEADER_BYTES: libc::c_int = 12;

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// Makes the tap in the calling thread's network namespace, one descriptor a queue. It goes when all are closed.
pub(super) fn create(queues: u8) -> Result<Vec<OwnedFd>, NetworkError> {
    (0..queues).map(|_| queue(queues > 1)).collect()
}

fn queue(multi_queue: bool) -> Result<OwnedFd, NetworkError> {
    let failed = |what| move |source| NetworkError::Tap { what, source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(failed("open /dev/net/tun for"))?;
    let fd: OwnedFd = file.into();

    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP_NAME.bytes()) {
        *to = from.cast_signed();
    }
    // The flags are 16 bits wide in the kernel's structure.
    request.ifr_ifru.ifru_flags = (flags & 0xffff) as libc::c_short;
    // SAFETY: `request` is an ifreq that outlives the call, as TUNSETIFF wants.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF as _, &raw mut request) })
        .map_err(failed("create"))?;
    let size = VNET_HEADER_BYTES;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) })
        .map_err(failed("set the header size of"))?;
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as _, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) })
        .map_err(failed("set the offloads of"))?;
    Ok(fd)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
