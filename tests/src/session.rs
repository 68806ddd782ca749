//! A program one talks to while it runs, through pipes or through a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::command::{Run, exit_code};
use crate::wait::{eventually, until};

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    line: String,
    input: Option<File>,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Session {
    /// Starts the program with pipes; stdout and stderr are heard together.
    #[track_caller]
    pub fn pipes(run: &Run) -> Self {
        let (mut command, line) = (run.command(), run.line().to_owned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        let heard = Arc::new(Mutex::new(Vec::new()));
        listen(File::from(OwnedFd::from(child.stdout.take().expect("stdout is a pipe"))), &heard);
        listen(File::from(OwnedFd::from(child.stderr.take().expect("stderr is a pipe"))), &heard);
        let input = child.stdin.take().map(|stdin| File::from(OwnedFd::from(stdin)));
        Self { child, line, input, heard }
    }

    /// Starts the program on a terminal of its own with this size.
    #[track_caller]
    pub fn terminal(run: &Run, rows: u16, columns: u16) -> Self {
        let (mut command, line) = (run.command(), run.line().to_owned());
        let (master, slave) = open_terminal();
        set_size(&master, rows, columns);
        let clone = || Stdio::from(slave.try_clone().expect("a descriptor can be duplicated"));
        command.stdin(clone()).stdout(clone()).stderr(clone());
        // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        let heard = Arc::new(Mutex::new(Vec::new()));
        listen(master.try_clone().expect("a descriptor can be duplicated"), &heard);
        Self { child, line, input: Some(master), heard }
    }

    /// Gives the terminal another size, as a user who drags a window's corner.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(self.input.as_ref().expect("the terminal is open"), rows, columns);
    }

    /// Types `text`.
    #[track_caller]
    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        let input = self.input.as_mut().expect("the input is open");
        input
            .write_all(text.as_ref())
            .unwrap_or_else(|error| panic!("cannot write to {}: {error}", self.line));
    }

    /// Ends the program's input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// All that was heard so far.
    #[must_use]
    pub fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().expect("the listener does not panic")).into_owned()
    }

    /// Waits until `text` was heard.
    #[track_caller]
    pub fn hear(&self, text: &str) {
        let found = until(crate::PATIENCE, || self.heard().contains(text).then_some(()));
        assert!(found.is_some(), "{} never said {text:?} but {:?}", self.line, self.heard());
    }

    /// Waits for the program's end. Its exit code.
    #[track_caller]
    pub fn finish(&mut self) -> i32 {
        eventually(&format!("{} ends", self.line), || exit_code(&mut self.child))
    }

    /// Whether the program ends by itself within `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        until(limit, || exit_code(&mut self.child)).is_some()
    }

    /// Kills the program, as a client that vanishes.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(mut from: File, heard: &Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::clone(heard);
    thread::spawn(move || {
        let mut part = vec![0; 65536];
        // A terminal whose last user is gone reads as an I/O error.
        while let Ok(count @ 1..) = from.read(&mut part) {
            let Some(bytes) = part.get(..count) else { return };
            let Ok(mut heard) = heard.lock() else { return };
            heard.extend_from_slice(bytes);
        }
    });
}

fn open_terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: both out-pointers are valid; the optional arguments may be null.
    let result = unsafe { libc::openpty(&raw mut master, &raw mut slave, null, null.cast(), null.cast()) };
    assert!(result == 0, "openpty: {}", std::io::Error::last_os_error());
    for fd in [master, slave] {
        // SAFETY: plain fcntl on a descriptor we have just opened.
        let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        assert!(result == 0, "fcntl: {}", std::io::Error::last_os_error());
    }
    // SAFETY: openpty succeeded, so both are open and owned by nobody else.
    unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

fn set_size(terminal: &File, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is a terminal and `size` outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert!(result == 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
}
