//! An agent that was taken over: it speaks the protocol and lies. The kernel's command line says how (`hostile=MODE`), so
//! that a pod can be started from it; see [`Mode`]. It runs no containers. What it is asked for before its lie it claims to have done.
//!
//! With `dies=` instead it is the real one, and dies at one of its calls: see [`mortal`].
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod cut;
mod liar;
mod mortal;

use std::ffi::{c_char, c_int};
use std::io;
use std::sync::Arc;

use ravelin_agent::init::mark::{self, Mark};
use ravelin_agent::{init, sync};
use ravelin_proto::agent::agent_server::AgentServer;
use ravelin_proto::{CONTROL_PORT, STREAM_PORT};
use tokio_stream::StreamExt;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use tonic::transport::Server;

use liar::Liar;

/// How it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// From the first container's start on it answers nothing.
    Silent,
    /// Every answer comes after ten seconds.
    Late,
    /// Every answer is as large as a message may be, or larger.
    Huge,
    /// Answers break off in their middle.
    Half,
    /// Containers are said to have ended that nobody has ended, and others that do not exist, without end.
    Ended,
    /// Containers end, and their outputs never close.
    Open,
    /// Every answer is an error with as many words as fit.
    Errors,
}

impl Mode {
    fn of_command_line(line: &str) -> Self {
        match line.split_whitespace().find_map(|word| word.strip_prefix("hostile=")) {
            Some("silent") => Self::Silent,
            Some("late") => Self::Late,
            Some("huge") => Self::Huge,
            Some("half") => Self::Half,
            Some("ended") => Self::Ended,
            Some("open") => Self::Open,
            Some("errors") => Self::Errors,
            other => panic!("hostile={other:?} on the kernel's command line"),
        }
    }
}

/// As of the agent itself: Rust's own would not start without descriptors.
#[unsafe(no_mangle)]
extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    ravelin_agent::spawner::serve_if_called();
    if std::process::id() != 1 {
        return 2;
    }
    init::prepare().expect("prepare the guest");
    let line = std::fs::read_to_string("/proc/cmdline").expect("the command line");
    if let Some(death) = mortal::Death::of_command_line(&line) {
        println!("{:?}", mortal::run(death));
        return 1;
    }
    let mode = Mode::of_command_line(&line);
    let served: io::Result<()> = sync::runtime().and_then(|runtime| runtime.block_on(serve(mode)));
    println!("{served:?}");
    1
}

async fn serve(mode: Mode) -> io::Result<()> {
    let liar = Arc::new(Liar::new(mode));
    let control = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, CONTROL_PORT))?;
    let streams = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT))?;
    mark::write(Mark::Ready);
    tokio::spawn(Arc::clone(&liar).keep(streams));
    let control =
        control.incoming().map(move |stream| stream.map(|stream| cut::Cut::new(stream, mode == Mode::Half)));
    let service =
        AgentServer::from_arc(liar).max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20);
    Server::builder().add_service(service).serve_with_incoming(control).await.map_err(io::Error::other)
}
