//! Lines for the shim's log.

use std::error::Error;
use std::io::Write;

use crate::event::set_nonblocking;

/// Writes a line to the shim's log, which may be gone.
pub fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Makes [`log`] drop lines rather than wait, if the log is a pipe or a socket.
pub fn do_not_wait_for_the_log() {
    use rustix::fs::FileType;
    let kind = rustix::fs::fstat(rustix::stdio::stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
        let _ = set_nonblocking(rustix::stdio::stderr());
    }
}

/// An error with its causes, as one sentence.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
