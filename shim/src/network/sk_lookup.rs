//! A BPF program that hands every TCP connection made to a network namespace to one listening socket, whatever address
//! and port it was made to (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9; bpf(2), the kernel's `bpf/prog_sk_lookup.rst`).
//!
//! A listening socket of the wanted port would not do: it takes a socket for each of 65,535 ports, and redirecting by
//! packet filters takes their tools on the node and hides the port that was meant.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_TYPE_SK_LOOKUP: u32 = 36;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// Sends every lookup to the socket in the map: `if ((sk = map[0])) { bpf_sk_assign(ctx, sk, 0); release(sk); } pass`.
///
/// What cannot be assigned (a datagram's lookup, one of IPv6) passes, and is looked up as ever.
fn program(map: i32) -> [Instruction; 17] {
    const MOVE: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const MAP_LOOKUP_ELEM: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SK_ASSIGN: i32 = 124;
    const SK_PASS: i32 = 1;
    /// The second half of a 64-bit load, and of which kind it is: a map by its descriptor.
    const MAP_FD: u8 = 1;
    [
        instruction(MOVE, 6, 1, 0, 0),
        instruction(0x62, 10, 0, -4, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x18, 1, MAP_FD, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        // Without a socket: to the end.
        instruction(0x15, 0, 0, 7, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 7, 0, 0),
        instruction(SET, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, SK_ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, SK_RELEASE),
        instruction(SET, 0, 0, 0, SK_PASS),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// Hands the TCP connections made to the namespace `netns` to `listener`, a listening socket of it, until the returned
/// descriptor is closed.
///
/// # Errors
/// The kernel's refusal: it is too old, or this process may not use BPF.
pub(super) fn attach(netns: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_bytes: u32,
        value_bytes: u32,
        max_entries: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Update {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    #[repr(C)]
    struct Load {
        program_type: u32,
        instructions: u32,
        first: u64,
        license: u64,
        log_level: u32,
        log_bytes: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    #[repr(C)]
    struct Link {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    let raw = |fd: i32| fd.cast_unsigned();

    let create =
        Create { map_type: MAP_TYPE_SOCKMAP, key_bytes: 4, value_bytes: 8, max_entries: 1, flags: 0 };
    // SAFETY: `Create` is the head of bpf_attr that this command reads; it has no pointers.
    let map = unsafe { bpf(MAP_CREATE, &create) }?;

    let key: u32 = 0;
    let value = u64::from(raw(listener.as_raw_fd()));
    let update = Update {
        map: raw(map.as_raw_fd()),
        padding: 0,
        key: (&raw const key).addr() as u64,
        value: (&raw const value).addr() as u64,
        flags: 0,
    };
    // SAFETY: `Update` is the head of bpf_attr that this command reads; its pointers are to a key and a value of the
    // map's sizes, which live through the call.
    unsafe { bpf_status(MAP_UPDATE_ELEM, &update) }?;

    let instructions = program(map.as_raw_fd());
    let license = c"Apache-2.0";
    let load = Load {
        program_type: PROG_TYPE_SK_LOOKUP,
        instructions: u32::try_from(instructions.len()).unwrap_or(0),
        first: instructions.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"ravelin\0\0\0\0\0\0\0\0\0",
        interface: 0,
        attach_type: ATTACH_TYPE_SK_LOOKUP,
    };
    // SAFETY: `Load` is the head of bpf_attr that this command reads; its pointers are to that many instructions and to
    // a string, which live through the call.
    let program = unsafe { bpf(PROG_LOAD, &load) }?;

    let link = Link {
        program: raw(program.as_raw_fd()),
        target: raw(netns.as_raw_fd()),
        attach_type: ATTACH_TYPE_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: `Link` is the head of bpf_attr that this command reads; it has no pointers.
    unsafe { bpf(LINK_CREATE, &link) }
}

/// A command of bpf(2) that makes a descriptor (all of them are closed on exec).
///
/// # Safety
/// `attributes` must be the head of `union bpf_attr` that `command` reads, its pointers valid.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf_status(command, attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A command of bpf(2).
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_status<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the size is that of `attributes`, which lives through the call; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_long)
    };
    match i32::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
