//! What comes to run while it is watched.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A process that is part of a pod's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    Containerd,
    /// `containerd-shim-ravelin-v2 start`.
    Start,
    /// The shim's daemon.
    Shim,
    Machine,
    /// mkfs.ext4 or mkfs.erofs.
    Mkfs,
}

impl Process {
    pub const ALL: [Self; 5] = [Self::Containerd, Self::Start, Self::Shim, Self::Machine, Self::Mkfs];

    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Start => "shim start",
            Self::Shim => "shim",
            Self::Machine => "machine",
            Self::Mkfs => "mkfs",
        }
    }

    fn is(self, comm: &str, pid: u32) -> bool {
        let line = || {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        match self {
            Self::Containerd => false,
            Self::Start => comm == "containerd-shim" && line().ends_with(" start "),
            Self::Shim => comm == "containerd-shim" && line().contains(" -socket "),
            Self::Machine => comm == "ravelin-vmm",
            // Without an argument it only lists its libraries.
            Self::Mkfs => comm.starts_with("mkfs.") && line().split_whitespace().nth(1).is_some(),
        }
    }
}

/// The processes that were there when the watch began: what is not among them has begun since.
#[derive(Debug)]
pub struct Watch(BTreeSet<u32>);

impl Watch {
    pub fn begin() -> Self {
        Self(pids().collect())
    }

    /// A process that has begun since, if there is one now.
    pub fn find(&self, process: Process) -> Option<u32> {
        if process == Process::Containerd {
            return fs::read_to_string("/run/containerd.pid").ok()?.trim().parse().ok();
        }
        // Looked for in haste: what is waited for may be over in a moment.
        pids().filter(|pid| !self.0.contains(pid)).find(|&pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            process.is(comm.trim_end(), pid) && !is_over(pid)
        })
    }

    /// Whether the machine has begun to run its guest.
    pub fn boots(&self) -> bool {
        let Some(machine) = self.find(Process::Machine) else { return false };
        let threads = fs::read_dir(format!("/proc/{machine}/task")).into_iter().flatten().flatten();
        let mut names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.any(|name| name.trim_end() == "vcpu0")
    }

    /// Whether the machine has the images of layers.
    pub fn has_layers(&self) -> bool {
        let Some(machine) = self.find(Process::Machine) else { return false };
        let files = fs::read_dir(format!("/proc/{machine}/fd")).into_iter().flatten().flatten();
        let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
        files.any(|file| file.extension().is_some_and(|extension| extension == "erofs"))
    }
}

/// Kills it, if it is there.
pub fn kill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // SAFETY: a plain system call on numbers.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

fn is_over(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
