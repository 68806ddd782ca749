//! Stands in the place of the shim's program, asks the test which system calls it wants to see, and becomes the shim
//! (`tests/faults/inject.rs`). Where nobody listens it only becomes the shim.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The test's socket, in the abstract namespace: no file of it is anywhere.
const SOCKET: &[u8] = b"ravelin-faults";
/// linux/kvm.h
const KVM_RUN: u32 = 0xae80;

fn main() {
    let address = SocketAddr::from_abstract_name(SOCKET).expect("an address");
    if let Ok(stream) = UnixStream::connect_addr(&address) {
        submit(stream);
    }
    let own = std::env::current_exe().expect("this program has a path");
    let mut shim = own.clone().into_os_string();
    shim.push(".away");
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let error = Command::new(shim).arg0(name).args(arguments).exec();
    panic!("the shim cannot be run: {error}");
}

/// Has the calls that the test names sent to it from now on, and waits until it sees them. Between the filter and that, no call may
/// be made that the filter may hold up: this reads and writes, and allocates nothing.
fn submit(stream: UnixStream) {
    let mut stream = File::from(OwnedFd::from(stream));
    let mut order = String::new();
    let mut byte = [0];
    while stream.read(&mut byte).expect("the test's order") == 1 && byte != *b"\n" {
        order.push(char::from(byte[0]));
    }
    let calls: Vec<u32> = order.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    let mut program = filter(&calls);
    let mut answer = Vec::with_capacity(64);
    let listener = if calls.is_empty() { -1 } else { listen(&mut program) };
    writeln!(answer, "{} {listener}", std::process::id()).expect("memory can be written");
    stream.write_all(&answer).expect("the test can be told");
    stream.read_exact(&mut byte).expect("the test sees them");
}

/// Asks a listener about these calls.
fn filter(calls: &[u32]) -> Vec<libc::sock_filter> {
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: code.try_into().unwrap_or_default(), jt, jf, k };
    let (load, equal, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    // The call's number is what the kernel's structure begins with; its arguments are behind 16 bytes.
    let mut program = vec![statement(load, 0, 0, 0)];
    for &call in calls {
        if i64::from(call) == libc::SYS_ioctl {
            // Not for every entry into a guest, which takes nothing.
            program.push(statement(equal, 0, 4, call));
            program.push(statement(load, 0, 0, 24));
            program.push(statement(equal, 0, 1, KVM_RUN));
            program.push(statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW));
        } else {
            program.push(statement(equal, 0, 1, call));
        }
        program.push(statement(answer, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

/// Loads a filter for this process and all that come of it; the listener's descriptor.
fn listen(program: &mut [libc::sock_filter]) -> i32 {
    let length = program.len().try_into().expect("a short program");
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    assert!(listener >= 0, "the filter: {}", std::io::Error::last_os_error());
    i32::try_from(listener).expect("a descriptor")
}
