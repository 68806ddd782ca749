//! Runs the programs that make images.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::confined::{self, Confined};
use super::{RootfsError, unnamed};

/// Sizes of images are multiples of this many bytes.
pub(super) const PAGE: u64 = 4096;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most that is kept of what a program says, in bytes.
const MAX_WORDS: u64 = 64 << 10;
/// Longest message of a program that is passed on, in characters.
const MAX_MESSAGE: usize = 512;
/// Longest file name, in bytes, that Linux knows.
const LONGEST_NAME: usize = 255;
/// How deep a directory is searched for one.
const MAX_DEPTH: usize = 64;
/// Time a killed program has to go.
const LAST_MOMENT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Free bytes below which a failure is put down to the full disk.
const FULL: u64 = 1 << 20;
/// Bytes by which a layer image may be longer than its file system has room for when it is begun: others may make room.
const HOPE: u64 = 1 << 30;

/// Makes an EROFS image of `layer`: a file without a name yet, on the file system of `directory`.
///
/// Uncompressed, with extended attributes and whiteouts as they are, so that overlayfs in the guest understands them.
/// Blocks, for at most `patience`: a disk that does not answer must not keep others waiting for ever.
pub(super) fn erofs(
    layer: &Path,
    directory: &Path,
    uuid: &str,
    patience: Duration,
) -> Result<File, RootfsError> {
    let program = find("mkfs.erofs").ok_or(MKFS_EROFS.missing())?;
    let arguments = ["--quiet", "--preserve-mtime", "-U", uuid, confined::IMAGE, confined::LAYER];
    confine(&program, &arguments, layer, directory, patience).map_err(|error| match error {
        RootfsError::Tool { .. } => find_longest_name(layer, 0).map_or(error, |path| {
            RootfsError::NotSupported(format!(
                "a file name of {LONGEST_NAME} bytes, which this node's mkfs.erofs cannot take: {}",
                path.display()
            ))
        }),
        other => other,
    })
}

/// Has `program` make an image of `layer`, confined: both have strangers' content to deal with.
pub(super) fn confine(
    program: &Path,
    arguments: &[&str],
    layer: &Path,
    directory: &Path,
    patience: Duration,
) -> Result<File, RootfsError> {
    let failed = |source| {
        RootfsError::file(
            "make a layer image, which has no name (O_TMPFILE) until it is whole, in",
            directory,
        )(source)
    };
    let image = unnamed::create(directory).map_err(failed)?;
    fchown(&image, Some(confined::USER), Some(confined::USER)).map_err(failed)?;
    let confined = Confined {
        program: program.to_owned(),
        arguments: arguments.iter().map(Into::into).collect(),
        layer: layer.to_owned(),
        image: image.as_raw_fd(),
        file_bytes: free_bytes(directory).map_err(failed)?.saturating_add(HOPE),
        // Newer versions work in two threads.
        seconds: patience.as_secs().saturating_add(1).saturating_mul(2),
    };
    MKFS_EROFS.run(confined.command(), Work { about: layer, directory, image: &image }, patience)?;
    fchown(&image, Some(0), Some(0)).map_err(failed)?;
    let length = image.metadata().map_err(failed)?.len();
    image.set_len(length.next_multiple_of(PAGE).max(PAGE)).map_err(failed)?;
    Ok(image)
}

/// Where a program is.
fn find(name: &str) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    PATH.split(':').map(|directory| Path::new(directory).join(name)).find(runs)
}

/// Makes a sparse ext4 image of `bytes` bytes: a file without a name yet, on the file system of `directory`. It has no journal,
/// since nobody reads it after its machine is gone; no reserved blocks; nothing that the guest's kernel would fill in later; few places written, so that it copies fast.
pub(super) fn ext4(directory: &Path, bytes: u64, patience: Duration) -> Result<File, RootfsError> {
    let made = unnamed::create(directory).and_then(|file| file.set_len(bytes).map(|()| file));
    let image = made.map_err(RootfsError::file(
        "make a template, which has no name (O_TMPFILE) until it is whole, in",
        directory,
    ))?;
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-G", "256"])
        .args(["-O", "^has_journal,^metadata_csum,^resize_inode,^64bit,uninit_bg,sparse_super2"])
        .args(["-E", "num_backup_sb=0,root_owner=0:0,lazy_itable_init=1"])
        .arg(format!("/proc/self/fd/{}", image.as_raw_fd()));
    MKFS_EXT4.run(command, Work { about: directory, directory, image: &image }, patience)?;
    Ok(image)
}

/// A file whose name is as long as a name can be: mkfs.erofs 1.5 cuts such names and then misses the file.
fn find_longest_name(directory: &Path, depth: usize) -> Option<PathBuf> {
    if depth > MAX_DEPTH {
        return None;
    }
    let entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().collect();
    let long = entries.iter().find(|entry| entry.file_name().len() >= LONGEST_NAME).map(fs::DirEntry::path);
    long.or_else(|| {
        let directories = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(fs::DirEntry::path).find_map(|path| find_longest_name(&path, depth + 1))
    })
}

/// What a program is run for.
#[derive(Clone, Copy)]
struct Work<'a> {
    /// What an image is made of, or where.
    about: &'a Path,
    /// Where the image is made.
    directory: &'a Path,
    /// The image, which the program inherits.
    image: &'a File,
}

/// A program that makes an image.
struct Tool {
    name: &'static str,
    /// The package that has it.
    package: &'static str,
    /// It is the first of a process namespace: with it end all that it may have begun.
    alone: bool,
}

const MKFS_EROFS: Tool = Tool { name: "mkfs.erofs", package: "erofs-utils", alone: true };
const MKFS_EXT4: Tool = Tool { name: "mkfs.ext4", package: "e2fsprogs", alone: false };

impl Tool {
    /// Runs the program.
    fn run(&self, mut command: Command, work: Work<'_>, patience: Duration) -> Result<(), RootfsError> {
        let image = work.image.as_raw_fd();
        let failed = |source| RootfsError::File { what: "run", path: self.name.into(), source };
        let (heard, said) = io::pipe().map_err(failed)?;
        command.env_clear().env("PATH", PATH).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        // SAFETY: between fork and exec the closure calls only prctl, close_range and fcntl with plain integers; all are
        // async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Whatever a library may have left open.
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
                // The program has the image, and nothing else of ours that it could write to.
                if libc::fcntl(image, libc::F_SETFD, 0) < 0 {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
        let words = listen(heard).map_err(failed)?;
        let status = if self.alone { run_alone(command, patience) } else { run_within(command, patience) };
        let status = status.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => self.missing(),
            _ => failed(source),
        })?;
        let Some(status) = status else {
            return Err(RootfsError::TooLong { what: self.name, path: work.about.to_owned(), patience });
        };
        if status.success() {
            return Ok(());
        }
        if is_full(work.directory) {
            return Err(RootfsError::DiskFull { path: work.directory.to_owned() });
        }
        let words = words.join().unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let last = words.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
        let message: String = last.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
        let message = format!("{message} ({status})");
        Err(RootfsError::Tool { tool: self.name, path: work.about.to_owned(), message })
    }

    const fn missing(&self) -> RootfsError {
        RootfsError::MissingTool { tool: self.name, package: self.package }
    }
}

/// Reads to its end what a program says, so that it never waits for us, and keeps the beginning.
fn listen(mut said: impl Read + Send + 'static) -> io::Result<JoinHandle<Vec<u8>>> {
    // `thread::spawn` would end the whole shim where the node gives no more threads.
    thread::Builder::new().name("listen".to_owned()).spawn(move || {
        let mut kept = Vec::new();
        let _ = (&mut said).take(MAX_WORDS).read_to_end(&mut kept);
        let _ = io::copy(&mut said, &mut io::sink());
        kept
    })
}

/// [`run_within`], as the first process of a process namespace.
fn run_alone(command: Command, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let run = || {
        // SAFETY: the flag parts no descriptors. It concerns what this thread begins from now on, and the thread begins
        // nothing else; nor does it end before the program, whose end its own would be.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
        run_within(command, patience)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("alone".to_owned()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that runs it broke off")))
    })
}

/// Runs a program and waits for its end. `None` if it did not come in time: the program is killed then.
fn run_within(mut command: Command, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let mut child = command.spawn()?;
    // With it goes our copy of the descriptor that the program speaks through.
    drop(command);
    end_within(&mut child, patience)
}

/// Waits for a program's end. `None` if it did not come in time: the program is killed then, and gone unless the disk
/// holds it.
fn end_within(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + patience;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // The child has not been waited for, so the pid is its own.
    let pidfd = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            child.kill()?;
            // A killed program that the disk holds may stay; it must not hold us too.
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&LAST_MOMENT));
            let _ = child.try_wait();
            return Ok(None);
        }
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the file system of a directory has no space left.
pub(super) fn is_full(directory: &Path) -> bool {
    free_bytes(directory).is_ok_and(|bytes| bytes < FULL)
}

/// Bytes that are free, for others than root, on the file system of a directory.
fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_ended_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let tool = Tool { name: "sleep", package: "coreutils", alone: false };
        let mut command = Command::new("sleep");
        command.arg("1000");
        let image = unnamed::create(dir.path()).unwrap();
        let work = Work { about: dir.path(), directory: dir.path(), image: &image };
        let error = tool.run(command, work, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().starts_with("sleep "), "{error}");
        assert!(error.to_string().contains("took more than 0 s (layer_seconds"), "{error}");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let tool = Tool { name: "sh", package: "dash", alone: false };
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 200000 /dev/zero >&2; echo 'no more' >&2; exit 3"]);
        let image = unnamed::create(dir.path()).unwrap();
        let work = Work { about: dir.path(), directory: dir.path(), image: &image };
        let error = tool.run(command, work, Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.starts_with("sh cannot make") && error.ends_with("(exit status: 3)"), "{error}");
    }
}
