//! Locks by name, and places by number, that all shims of a node share.
//!
//! A name is one byte, at the place that its hash says, of one lock file. The kernel drops a lock when the last copy of
//! its file descriptor is closed, however the process ends, and there are no lock files to clean up.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::sync::blocking;

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// A held lock.
#[derive(Debug)]
pub struct NodeLock {
    /// The lock goes with it. Nobody else is given it: it can be written to.
    _file: File,
}

/// Takes the lock on `name` in `directory`, waiting at most `patience` for whoever has it. Blocks.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when somebody else keeps it; otherwise the file system's refusal.
pub fn acquire(directory: &Path, name: &str, patience: Duration) -> io::Result<NodeLock> {
    acquire_any(directory, name, 1, patience)
}

/// Takes the lock on `name` in `directory` if nobody has it.
///
/// # Errors
/// The file system's refusal.
pub fn try_acquire(directory: &Path, name: &str) -> io::Result<Option<NodeLock>> {
    let file = open(directory)?;
    Ok(try_place(&file, name, 0)?.then_some(NodeLock { _file: file }))
}

/// Takes one of `count` places called `name`, waiting at most `patience` for one to be free. Blocks.
///
/// # Errors
/// As [`acquire`].
pub fn acquire_any(directory: &Path, name: &str, count: usize, patience: Duration) -> io::Result<NodeLock> {
    let until = Instant::now() + patience;
    let file = open(directory)?;
    let (mut pause, longest) = PAUSE;
    loop {
        for place in 0..count.max(1) {
            if try_place(&file, name, place)? {
                return Ok(NodeLock { _file: file });
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(longest);
    }
}

/// [`acquire_any`], in the order in which the callers came: who waits longest is next.
///
/// For a call or two in a process's life: one that gives up leaves a thread that waits on.
///
/// # Errors
/// As [`acquire`].
pub async fn take_turn(
    directory: &Path,
    name: &'static str,
    count: usize,
    patience: Duration,
) -> io::Result<NodeLock> {
    let directory = directory.to_owned();
    let turn = blocking(move || {
        fs::create_dir_all(&directory)?;
        // Usually nobody waits, and a place is free.
        let queue = open(&directory)?;
        let head = format!("{name} queue");
        // The kernel wakes those who wait for a lock in the order in which they came. Only the first of them looks for a
        // place, so that thirty waiting shims do not all keep a busy node's processors awake.
        wait_for(&queue, &head)?;
        acquire_any(&directory, name, count, patience)
    });
    tokio::time::timeout(patience, turn).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn open(directory: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(directory.join("lock"))
}

fn try_place(file: &File, name: &str, place: usize) -> io::Result<bool> {
    let named = if place == 0 { name.to_owned() } else { format!("{name} {place}") };
    match set(file, &named, libc::F_OFD_SETLK) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn wait_for(file: &File, name: &str) -> io::Result<()> {
    loop {
        match set(file, name, libc::F_OFD_SETLKW) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn set(file: &File, name: &str, command: libc::c_int) -> io::Result<()> {
    let hash = Sha256::digest(name.as_bytes());
    let place = hash.iter().take(8).fold(0_u64, |place, byte| (place << 8) | u64::from(*byte));
    // SAFETY: flock is plain data for which all zeros is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = (place >> 2).cast_signed();
    lock.l_len = 1;
    // SAFETY: `lock` outlives the call, and the kernel only reads it for these commands.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::sync::lock;

    const SOON: Duration = Duration::from_millis(50);
    // A program that another test is just starting may hold a copy of a descriptor for a moment.
    const LATER: Duration = Duration::from_secs(10);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_lock_has_one_holder_and_others_wait_no_longer_than_they_want_to() {
        let dir = tempfile::tempdir().unwrap();
        let held = acquire(dir.path(), "a", SOON).unwrap();
        assert!(try_acquire(dir.path(), "a").unwrap().is_none());
        assert_eq!(acquire(dir.path(), "a", SOON).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(try_acquire(dir.path(), "b").unwrap().is_some());
        drop(held);
        acquire(dir.path(), "a", LATER).unwrap();
    }

    #[tokio::test]
    async fn there_are_as_many_places_as_were_asked_for_and_a_freed_one_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let first = take_turn(dir.path(), "start", 2, LATER).await.unwrap();
        let _second = take_turn(dir.path(), "start", 2, LATER).await.unwrap();
        let third = take_turn(dir.path(), "start", 2, SOON).await.unwrap_err();
        assert_eq!(third.kind(), io::ErrorKind::TimedOut);
        let (path, waiting) = (dir.path().to_owned(), tokio::time::sleep(SOON));
        let fourth = tokio::spawn(async move { take_turn(&path, "start", 2, LATER).await.map(drop) });
        waiting.await;
        assert!(!fourth.is_finished());
        drop(first);
        fourth.await.unwrap().unwrap();
    }

    /// Waits until there are so many locks on the directory's file, with those that are waited for.
    async fn listed(directory: &Path, count: usize) {
        let inode = format!(":{} ", fs::metadata(directory.join("lock")).unwrap().ino());
        let of_ours = |line: &&str| line.contains("OFDLCK") && line.contains(&inode);
        let reached = async {
            while fs::read_to_string("/proc/locks").unwrap().lines().filter(of_ours).count() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, reached).await.expect("they queue");
    }

    #[tokio::test]
    async fn places_are_given_in_the_order_in_which_they_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = take_turn(dir.path(), "start", 1, LATER).await.unwrap();
        listed(dir.path(), 1).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for number in 0..4 {
            let (path, order) = (dir.path().to_owned(), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let turn = take_turn(&path, "start", 1, LONG).await.unwrap();
                lock(&order).push(number);
                drop(turn);
            }));
            // It stands in the queue before the next one comes: the place, the queue's head, and who waits for that.
            listed(dir.path(), 2 + number).await;
        }
        drop(first);
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(*lock(&order), [0, 1, 2, 3]);
    }
}
