//! The shim's log: lines to the `log` fifo in the bundle, which containerd copies to its own log.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Sends `tracing` to the fifo `path`. A log that cannot be opened is no reason to fail: there is none then.
pub fn init(path: &Path, debug: bool) {
    // Open at both ends: a containerd that restarts finds the pipe as it was, and a write never fails for want of a
    // reader. Non-blocking: when nobody reads, lines are lost rather than the pod held up.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fifo) = rustix::fs::open(path, flags, Mode::empty()) else { return };
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_writer(Log::new(fifo))
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The fifo; each line is one write.
#[derive(Debug, Clone)]
struct Log(Arc<Mutex<File>>);

impl Log {
    fn new(fifo: OwnedFd) -> Self {
        Self(Arc::new(Mutex::new(fifo.into())))
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Ok(mut file) = self.0.lock() {
            let _ = file.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_reads_never_blocks_or_fails() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let fifo = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        let mut log = Log::new(fifo.unwrap());
        for _ in 0..1000 {
            log.write_all(&[b'x'; 1000]).unwrap();
        }
    }
}
