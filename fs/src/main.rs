//! `ravelin-fs`: jails itself, then serves a pod's file volumes to the machine at descriptor 4 for the shim that started it and
//! left the control socket at descriptor 3. It ends when either of them is gone.

use std::error::Error;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::thread::Builder;

use ravelin_fs::control::{self, CONTROL_FD, REQUESTS_FD};
use ravelin_fs::server::Server;
use ravelin_fs::worker::WORKERS;
use ravelin_fs::{jail, message, worker};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::sockopt;

const USAGE: &str = "Usage: ravelin-fs | ravelin-fs --version\n\
    Serves a pod's file volumes. Started by containerd-shim-ravelin-v2, with sockets at descriptors 3 and 4.";

/// Bytes of a worker's stack.
const STACK: usize = 256 << 10;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        None => {}
        Some("--version") => {
            println!("ravelin-fs {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprintln!("Unknown argument {other:?}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("The file server cannot serve: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (control, requests) = (take(CONTROL_FD)?, take(REQUESTS_FD)?);
    fcntl_setfl(&control, fcntl_getfl(&control)? - OFlags::NONBLOCK)?;
    worker::make_ready(&requests)?;
    tame_the_allocator();
    let data = message::data_bytes(sockopt::socket_send_buffer_size(&requests)?);
    let descriptors = jail::enter()?;
    let server = Arc::new(Server::new(rustix::io::fcntl_dupfd_cloexec(&descriptors, 0)?));
    let (descriptors, requests) = (Arc::new(descriptors), Arc::new(requests));
    // All are there before they are confined, and none of them reads before that.
    let together = Arc::new(Barrier::new(WORKERS + 1));
    for number in 0..WORKERS {
        let (server, requests) = (Arc::clone(&server), Arc::clone(&requests));
        let (descriptors, together) = (Arc::clone(&descriptors), Arc::clone(&together));
        let work = move || {
            let prepared = worker::prepare(&*descriptors);
            together.wait();
            together.wait();
            let ended = prepared.and_then(|()| worker::serve(&*requests, &server, data));
            // The machine is gone, or this thread cannot go on: the others could not tell.
            end(ended)
        };
        Builder::new().name(format!("worker{number}")).stack_size(STACK).spawn(work)?;
    }
    together.wait();
    jail::restrict_calls()?;
    together.wait();
    end(control::serve(&control, &*requests, &server))
}

/// Has the C library give large pieces of memory back to the kernel as soon as they are free, and take no heap for each thread.
fn tame_the_allocator() {
    // SAFETY: mallopt takes numbers, and may be called while the process has one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Ends the process with all its threads.
fn end(result: io::Result<()>) -> ! {
    if let Err(error) = &result {
        eprintln!("The file server cannot go on: its socket fails: {error}");
    }
    std::process::exit(i32::from(result.is_err()))
}

/// A socket that was inherited.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD has no argument and fails cleanly on a number that is not open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::other(format!("there is no socket at descriptor {number}")));
    }
    // SAFETY: the descriptor is open, and nothing else in this process uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
