//! A file of the guest's that is held up behind the agent's back: when the agent opens it, it waits.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// There is a FIFO without another end in the file's place.
pub struct Held {
    path: PathBuf,
    fifo: PathBuf,
}

impl Held {
    pub fn at(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        let fifo = Path::new("/run").join(path.file_name().unwrap());
        let (from, to) = (c_path(&fifo), c_path(&path));
        let none = std::ptr::null();
        // SAFETY: the paths live through the calls, and a bind mount has nothing else.
        let held = unsafe {
            libc::mkfifo(from.as_ptr(), 0o600) == 0
                && libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()) == 0
        };
        assert!(held, "{}: {}", path.display(), std::io::Error::last_os_error());
        Self { path, fifo }
    }

    /// Returns when a thread of the agent waits in its `openat`.
    pub async fn is_waited_for(&self) {
        let waits = |thread: fs::DirEntry| {
            let call = fs::read_to_string(thread.path().join("syscall"));
            call.is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_openat)))
        };
        let begin = Instant::now();
        while !fs::read_dir("/proc/1/task").unwrap().flatten().any(waits) {
            assert!(begin.elapsed() < Duration::from_secs(60), "{} is not opened", self.path.display());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lets one go on that waits to read: it reads what the file says.
    pub fn let_read(self) {
        let mut fifo = fs::OpenOptions::new().write(true).open(&self.fifo).unwrap();
        self.end();
        fifo.write_all(&fs::read(&self.path).unwrap()).unwrap();
    }

    /// Lets one go on that waits to write: the file is written for it.
    pub fn let_write(self) {
        let text = fs::read(&self.fifo).unwrap();
        self.end();
        fs::write(&self.path, text).unwrap();
    }

    /// The file is again what it was.
    fn end(&self) {
        // SAFETY: the path lives through the call.
        let ended = unsafe { libc::umount2(c_path(&self.path).as_ptr(), libc::MNT_DETACH) };
        assert_eq!(ended, 0, "{}", std::io::Error::last_os_error());
        fs::remove_file(&self.fifo).unwrap();
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}
