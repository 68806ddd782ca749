//! Runs the programs that make images.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::RootfsError;
use super::lock::Lock;

/// Sizes of images are multiples of this many bytes.
pub(super) const PAGE: u64 = 4096;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest message of a program that is passed on, in characters.
const MAX_MESSAGE: usize = 512;
/// Longest file name, in bytes, that Linux knows.
const LONGEST_NAME: usize = 255;
/// How deep a directory is searched for one.
const MAX_DEPTH: usize = 64;
/// Free bytes below which a failure is put down to the full disk.
const FULL: u64 = 1 << 20;

/// Makes an EROFS image of `directory` at `image`, which must not be taken for whole before this returns.
///
/// Uncompressed, with extended attributes and whiteouts as they are, so that overlayfs in the guest understands them.
/// Blocks. `lock` stays held until the program has ended, even if this process is killed.
pub(super) fn erofs(directory: &Path, image: &Path, uuid: &str, lock: &Lock) -> Result<(), RootfsError> {
    create(image)?;
    let mut command = Command::new("mkfs.erofs");
    command.args(["--quiet", "--preserve-mtime", "-U", uuid]).arg(image).arg(directory);
    run(command, "mkfs.erofs", "erofs-utils", directory, image, lock).map_err(|error| match error {
        RootfsError::Tool { .. } => find_longest_name(directory, 0).map_or(error, |path| {
            RootfsError::NotSupported(format!(
                "a file name of {LONGEST_NAME} bytes, which this node's mkfs.erofs cannot take: {}",
                path.display()
            ))
        }),
        other => other,
    })?;
    let failed = |source| RootfsError::file("finish the layer image", image)(source);
    let file = OpenOptions::new().write(true).open(image).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    file.set_len(length.next_multiple_of(PAGE).max(PAGE)).map_err(failed)
}

/// Makes a sparse ext4 image of `bytes` bytes at `image`: no journal, since nobody reads it after its machine is gone;
/// no reserved blocks; nothing that the guest's kernel would fill in later; few places written, so that it copies fast.
pub(super) fn ext4(image: &Path, bytes: u64, lock: &Lock) -> Result<(), RootfsError> {
    let file = create(image)?;
    file.set_len(bytes).map_err(RootfsError::file("size the scratch disk", image))?;
    drop(file);
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-G", "256"])
        .args(["-O", "^has_journal,^metadata_csum,^resize_inode,^64bit,uninit_bg,sparse_super2"])
        .args(["-E", "num_backup_sb=0,root_owner=0:0,lazy_itable_init=1"])
        .arg(image);
    run(command, "mkfs.ext4", "e2fsprogs", image, image, lock)
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

/// Makes an empty file that only root can read, in place of one that an interrupted build left.
fn create(image: &Path) -> Result<File, RootfsError> {
    let failed = RootfsError::file("create", image);
    match fs::remove_file(image) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(image).map_err(failed)
}

fn run(
    mut command: Command,
    tool: &'static str,
    package: &'static str,
    about: &Path,
    image: &Path,
    lock: &Lock,
) -> Result<(), RootfsError> {
    let lock = lock.file.as_raw_fd();
    command.env_clear().env("PATH", PATH).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: between fork and exec the closure calls only prctl and fcntl with plain integers; both are
    // async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // The program inherits the lock.
            if libc::fcntl(lock, libc::F_SETFD, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RootfsError::MissingTool { tool, package },
        _ => RootfsError::File { what: "run", path: tool.into(), source },
    })?;
    if output.status.success() {
        return Ok(());
    }
    if is_full(image) {
        return Err(RootfsError::DiskFull { path: image.to_owned() });
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
    let message: String = last.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
    Err(RootfsError::Tool { tool, path: about.to_owned(), message: format!("{message} ({})", output.status) })
}

/// Whether the file system of a file has no space left.
pub(super) fn is_full(file: &Path) -> bool {
    let directory = file.parent().unwrap_or(file);
    rustix::fs::statvfs(directory).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < FULL)
}
