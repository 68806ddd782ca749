//! A process on the node, named for ever.

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process, named for ever: its pid may be taken by another one, its start time may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Its pid.
    pub pid: u32,
    /// Its start in clock ticks since the host's boot.
    pub start_time: u64,
}

impl ProcessRef {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).map_err(|error| match error.raw_os_error() {
            // It ended while its file was being read.
            Some(libc::ESRCH) => io::ErrorKind::NotFound.into(),
            _ => error,
        })?;
        let start_time = start_time(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))?;
        Ok(Self { pid, start_time })
    }

    /// Whether it is there; also when it has ended and its parent has not asked for its end yet, or when nobody can tell.
    #[must_use]
    pub fn is_there(self) -> bool {
        match Self::of(self.pid) {
            Ok(found) => found == self,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Kills it and tells whether it was still there.
    ///
    /// # Errors
    /// When it is there and cannot be killed.
    pub fn kill(self) -> io::Result<bool> {
        let Some(raw) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(false);
        };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        // The descriptor names one process for good, so comparing afterwards leaves no race.
        match Self::of(self.pid) {
            Ok(found) if found == self => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Field 22 of `/proc/PID/stat`.
fn start_time(stat: &[u8]) -> Option<u64> {
    // The second field, the program's name in parentheses, may hold anything.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = stat.get(after..)?.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    std::str::from_utf8(fields.nth(19)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_an_odd_name() {
        let stat = b"12 (a) b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 2 3";
        assert_eq!(start_time(stat), Some(98765));
        assert_eq!(start_time(b"12 (a"), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_and_killed_once() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessRef::of(child.id()).unwrap();
        let other = ProcessRef { start_time: process.start_time + 1, ..process };
        assert!(process.is_there() && !other.is_there());
        assert!(!other.kill().unwrap());
        assert!(process.kill().unwrap());
        child.wait().unwrap();
        assert!(!process.is_there());
        assert!(!process.kill().unwrap());
        assert_eq!(ProcessRef::of(process.pid).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
