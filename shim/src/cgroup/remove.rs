use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Pause between two attempts, and how many there are: killed processes take a moment to go.
const PAUSE: Duration = Duration::from_millis(10);
const ATTEMPTS: u32 = 300;

/// Kills what is in the cgroup's directories and removes them, trying for a few seconds.
pub(super) async fn until_gone(directories: &[PathBuf]) -> io::Result<()> {
    let mut left = ATTEMPTS;
    loop {
        match once(directories) {
            Ok(()) => return Ok(()),
            Err(error) if left == 0 => return Err(error),
            Err(_) => left -= 1,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One attempt.
pub(super) fn once(directories: &[PathBuf]) -> io::Result<()> {
    directories.iter().filter(|directory| directory.exists()).try_for_each(|directory| remove(directory))
}

fn remove(directory: &Path) -> io::Result<()> {
    // cgroup v2, Linux 5.14 and later: the whole tree at once, so that nothing can fork away.
    let _ = fs::write(directory.join("cgroup.kill"), "1");
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                remove(&entry.path())?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    for pid in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        // 0 stands for a process of another PID namespace; none of ours is.
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
