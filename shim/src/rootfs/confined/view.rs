//! What a confined program sees of the node's file system.

use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::{ConfineError, IMAGE, LAYER, failed};

/// Where the dynamic loader looks a library up.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
/// Of what is seen nothing is a device, and nothing gives privileges.
const HARMLESS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// The whole of it.
pub(super) struct View<'a> {
    /// The program's libraries and loader; where they are on the node.
    pub code: &'a [PathBuf],
    /// The program; where it is on the node.
    pub program: &'a Path,
    /// Seen as [`LAYER`].
    pub layer: &'a Path,
    /// Seen as [`IMAGE`].
    pub image: RawFd,
}

/// The libraries of a program and its loader: the loader says which ones it would load, and from where.
pub(super) fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    // A program without a loader ignores the variable, and what it says names no library.
    let listed = Command::new(program)
        .env_clear()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    named(&listed)
}

/// The paths in what a loader has said.
fn named(listed: &Output) -> io::Result<Vec<PathBuf>> {
    // One that was killed has not said all; without its loader the program would later seem not to be there.
    if let Some(signal) = listed.status.signal() {
        return Err(io::Error::other(format!("its loader was ended by signal {signal}")));
    }
    // "name => path (address)", or for the loader "path (address)".
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut paths: Vec<_> =
        listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}

impl View<'_> {
    /// Exchanges the root of this process, which is alone in its mount namespace.
    pub fn enter(&self) -> Result<(), ConfineError> {
        // A directory that every node has; only this process sees what is mounted on it.
        const PLACE: &str = "/proc";
        let read = HARMLESS | MountFlags::RDONLY;
        rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
            .map_err(failed("detach from the node's mounts"))?;
        rustix::mount::mount("none", PLACE, "tmpfs", HARMLESS, Some(c"size=64k,nr_inodes=1k,mode=0755"))
            .map_err(failed("mount an empty file system"))?;
        rustix::process::chdir(PLACE).map_err(failed("enter the empty file system"))?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let cache = Some(Path::new(LOADER_CACHE)).filter(|cache| cache.exists());
        for code in self.code.iter().map(PathBuf::as_path).chain([self.program]).chain(cache) {
            show(code, code, read)?;
        }
        show(self.layer, Path::new(LAYER), read | MountFlags::NOEXEC)?;
        show_image(self.image).map_err(failed("show it the image"))?;
        rustix::process::pivot_root(".", ".").map_err(failed("make the view the root"))?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leave the node's file systems"))?;
        rustix::process::chdir("/").map_err(failed("enter the new root"))?;
        rustix::mount::mount_remount("/", read | MountFlags::BIND, "")
            .map_err(failed("make the new root unwritable"))
    }
}

/// Shows a file or a directory of the node, without what is mounted below it, at a path of the view that this process is in.
fn show(source: &Path, at: &Path, flags: MountFlags) -> Result<(), ConfineError> {
    let at = at.strip_prefix("/").unwrap_or(at);
    let place = || {
        if source.metadata()?.is_dir() {
            fs::create_dir_all(at)?;
        } else {
            fs::create_dir_all(at.parent().unwrap_or(at))?;
            File::create(at)?;
        }
        rustix::mount::mount_bind(source, at)?;
        // The kernel heeds a bind mount's flags only afterwards.
        rustix::mount::mount_remount(at, flags | MountFlags::BIND, "")?;
        Ok::<_, io::Error>(())
    };
    place().map_err(failed(format!("show it {}", source.display())))
}

/// Shows an open file, which may have no name: a link to where the kernel shows this process what it has open, and of `/proc` no
/// more. A file without a name cannot be mounted.
fn show_image(image: RawFd) -> io::Result<()> {
    const PROCESSES: &str = "processes";
    const OPEN: &str = "open";
    fs::create_dir(PROCESSES)?;
    fs::create_dir(OPEN)?;
    let flags = HARMLESS | MountFlags::NOEXEC;
    // This process, alone in its process namespace, stays the same when it becomes the program.
    rustix::mount::mount("proc", PROCESSES, "proc", flags, Some(c"subset=pid"))?;
    rustix::mount::mount_bind(format!("{PROCESSES}/self/fd"), OPEN)?;
    rustix::mount::unmount(PROCESSES, UnmountFlags::DETACH)?;
    fs::remove_dir(PROCESSES)?;
    symlink(format!("/{OPEN}/{image}"), IMAGE.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn what_a_killed_loader_has_said_is_not_taken_for_all() {
        let said = |status| Output {
            status: ExitStatus::from_raw(status),
            stdout: b"\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n"
                .to_vec(),
            stderr: Vec::new(),
        };
        let all = ["/lib/libc.so.6", "/lib64/ld.so"].map(PathBuf::from);
        assert_eq!(named(&said(0)).unwrap(), all);
        // A program without a loader has run, and failed for want of arguments.
        assert_eq!(named(&said(1 << 8)).unwrap(), all);
        let error = named(&said(libc::SIGKILL)).unwrap_err().to_string();
        assert!(error.contains("signal 9"), "{error}");
    }
}
