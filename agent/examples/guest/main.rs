//! Tries the agent inside a guest without a machine that has a vsock: this program is `/init`, serves the agent over
//! Unix sockets, and beside it runs the `cases` against them. `run` in this folder boots it in QEMU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod cases;
mod container;
mod held;
mod host;

use ravelin_agent::{init, server, spawner};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;

const CONTROL: &str = "/run/control.sock";
const STREAMS: &str = "/run/streams.sock";

fn main() {
    spawner::serve_if_called();
    let begin = std::time::Instant::now();
    init::prepare().expect("prepare the guest");
    println!("prepared in {:?}", begin.elapsed());
    // SAFETY: there is no other thread yet.
    if unsafe { libc::fork() } == 0 {
        cases::run();
        return;
    }
    let failed = server::serve_with(|agent| async move {
        let control = UnixListenerStream::new(tokio::net::UnixListener::bind(CONTROL)?);
        let streams = UnixListenerStream::new(tokio::net::UnixListener::bind(STREAMS)?);
        println!("serving after {:?}", begin.elapsed());
        let streams = streams.map(|stream| stream.map(|stream| Box::new(stream) as _));
        server::serve(agent, control, streams).await
    });
    println!("the agent ended: {failed:?}");
}
