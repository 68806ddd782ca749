//! The debug console: a serial port whose output goes to a pipe.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::sync::Mutex;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::event::{EventFd, set_nonblocking};
use crate::sync::lock;

/// Output that a slow reader is not yet ready for; what comes on top is dropped.
const MAX_PENDING: usize = 64 << 10;
/// Output is written line by line, or in pieces of this size.
const CHUNK: usize = 512;

/// The serial port.
pub struct Console {
    serial: Mutex<Serial<Line, NoEvents, Output>>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// A console that writes to `pipe` and interrupts through `line`.
    ///
    /// # Errors
    /// When the pipe cannot be made non-blocking.
    pub fn new(pipe: File, line: EventFd) -> io::Result<Self> {
        set_nonblocking(&pipe)?;
        let output = Output { pipe, pending: Vec::new() };
        Ok(Self { serial: Mutex::new(Serial::new(Line(line), output)) })
    }

    /// The guest reads one of the eight registers.
    pub fn read(&self, register: u8) -> u8 {
        lock(&self.serial).read(register)
    }

    /// The guest writes one of the eight registers.
    pub fn write(&self, register: u8, value: u8) {
        // Neither a lost byte nor a lost interrupt is worth more than the debug console itself.
        let _ = lock(&self.serial).write(register, value);
    }

    /// Writes what is held back, as far as the reader takes it.
    pub fn flush(&self) {
        lock(&self.serial).writer_mut().push();
    }
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.signal();
        Ok(())
    }
}

impl Deref for Line {
    type Target = EventFd;

    fn deref(&self) -> &EventFd {
        &self.0
    }
}

struct Output {
    pipe: File,
    pending: Vec<u8>,
}

impl Output {
    fn push(&mut self) {
        while !self.pending.is_empty() {
            match self.pipe.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Nobody reads any more.
                Err(_) => self.pending.clear(),
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.len() + bytes.len() <= MAX_PENDING {
            self.pending.extend_from_slice(bytes);
        }
        if bytes.contains(&b'\n') || self.pending.len().is_multiple_of(CHUNK) {
            self.push();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn lines_reach_the_pipe_and_a_stuck_reader_costs_no_memory() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        let console = Console::new(writer, EventFd::new().unwrap()).unwrap();
        for byte in b"hello\nwor" {
            console.write(0, *byte);
        }
        let mut read = [0; 6];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello\n");
        console.flush();
        for _ in 0..1 << 20 {
            console.write(0, b'x');
        }
        let pending = console.serial.lock().unwrap().writer().pending.len();
        assert!(pending <= MAX_PENDING, "{pending}");
    }
}
