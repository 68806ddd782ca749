use std::io;
use std::os::fd::OwnedFd;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;

/// Longest line that is logged whole; a longer one is logged in pieces.
const MAX_LINE: usize = 1024;

/// Makes a pipe whose lines go to the log, marked with the sandbox and `what` wrote them. Returns its write end, which is
/// close-on-exec and blocking.
///
/// Must be called inside a tokio runtime. Reading stops when all write ends are closed.
///
/// # Errors
/// When the process has no descriptors left.
pub fn log_pipe(sandbox_id: &str, what: &'static str) -> io::Result<OwnedFd> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    let reader = pipe::Receiver::from_owned_fd(reader)?;
    let sandbox = sandbox_id.to_owned();
    tokio::spawn(async move {
        each_line(reader, |line| tracing::info!(sandbox, from = what, "{line}")).await;
    });
    Ok(writer)
}

/// Calls `log` with every line, without control characters.
pub(super) async fn each_line(mut reader: impl AsyncRead + Unpin, mut log: impl FnMut(&str)) {
    let mut buffer = [0_u8; 4096];
    let mut line = Vec::with_capacity(MAX_LINE);
    let mut emit = |line: &mut Vec<u8>| {
        let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
        if !text.is_empty() {
            log(&text);
        }
        line.clear();
    };
    while let Ok(count) = reader.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        for byte in buffer.iter().take(count) {
            if *byte != b'\n' {
                line.push(*byte);
            }
            if *byte == b'\n' || line.len() >= MAX_LINE {
                emit(&mut line);
            }
        }
    }
    emit(&mut line);
}
