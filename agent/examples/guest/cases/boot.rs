//! What the guest is like before its first container.

use std::fs;
use std::os::fd::AsFd;

use ravelin_agent::paths;

use crate::host::Client;

fn mounted(at: &str) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let found = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(at));
    found.unwrap_or_else(|| panic!("nothing is mounted at {at}: {mounts}")).to_owned()
}

/// A container's cgroup namespace is a boundary, and what is kept free for the agent is kept from all below.
pub async fn cgroups_are_delegated(_: Client) {
    let line = mounted(paths::CGROUP);
    let options: Vec<&str> = line.split(' ').nth(3).unwrap().split(',').collect();
    for option in ["nsdelegate", "memory_recursiveprot", "nosuid", "nodev", "noexec"] {
        assert!(options.contains(&option), "{option}: {line}");
    }
    let least = fs::read_to_string(format!("{}/memory.min", paths::AGENT_CGROUP)).unwrap();
    assert!(least.trim().parse::<u64>().unwrap() > 0, "{least}");
}

/// The file system that the kernel unpacked, below everything that is mounted: it is empty, and no process runs from it by a
/// name.
pub async fn nothing_is_left_of_the_initramfs(_: Client) {
    assert_eq!(fs::read_link("/proc/1/exe").unwrap().to_str(), Some("/init (deleted)"));
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let left = initial_root();
        println!("        {left:?}");
        std::process::exit(i32::from(left.unwrap_or_default() != ["/newroot"]));
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
}

/// What lies in the initial root file system, for a process that has nothing else to do.
fn initial_root() -> std::io::Result<Vec<String>> {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
    use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
    // SAFETY: the process shares its descriptors with nobody.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let own = fs::File::open("/proc/self/ns/mnt")?;
    unmount("/", UnmountFlags::DETACH)?;
    // Whoever joins a mount namespace begins at its root.
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))?;
    let mut left = Vec::new();
    let mut directories = vec![std::path::PathBuf::from("/")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            left.push(entry.path().display().to_string());
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(left)
}
