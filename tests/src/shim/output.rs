//! A process's fifos, as containerd makes and reads them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::{Run, eventually};

/// What is read of a process's fifos until they end.
#[derive(Debug)]
pub struct Output {
    stdout: Reader,
    stderr: Reader,
}

/// Reads a fifo to its end, in the background.
#[derive(Debug)]
struct Reader {
    heard: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Output {
    /// Reads both fifos to their ends.
    pub(super) fn read(stdout: &Path, stderr: &Path) -> Self {
        Self { stdout: read(stdout), stderr: read(stderr) }
    }

    /// Waits for both outputs' ends: stdout and stderr.
    #[track_caller]
    pub fn whole(self) -> (String, String) {
        eventually("the outputs end", || {
            (self.stdout.thread.is_finished() && self.stderr.thread.is_finished()).then_some(())
        });
        (self.stdout.heard(), self.stderr.heard())
    }

    /// Waits until stdout holds `text`.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually("the process says what it has to", || self.stdout.heard().contains(text).then_some(()));
    }
}

/// A new fifo in a bundle.
pub(super) fn fifo(bundle: &Path, name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let path = bundle.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    Run::new("mkfifo").arg(&path).ok();
    path
}

fn read(fifo: &Path) -> Reader {
    let (fifo, heard) = (fifo.to_owned(), Arc::<Mutex<Vec<u8>>>::default());
    let sink = Arc::clone(&heard);
    let thread = std::thread::spawn(move || {
        let Ok(mut file) = fs::File::open(&fifo) else { return };
        let mut bytes = [0; 4096];
        // An error is an end.
        while let Ok(count @ 1..) = file.read(&mut bytes) {
            sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
        }
    });
    Reader { heard, thread }
}
