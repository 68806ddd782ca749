//! The pod's scratch disk: writable layers and emptyDirs live on it, and it goes with the pod.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::SeekFrom;

use super::{RootfsError, build, unnamed};
use crate::node_lock;
use crate::sync::blocking;

/// Smallest scratch disk.
pub const MIN_BYTES: u64 = 16 << 20;
/// Bytes copied in one go.
const CHUNK: usize = 1 << 20;

/// Makes the scratch disk of a pod in `directory`, `bytes` in size (rounded up to 4096): a sparse file with an empty ext4
/// file system, copied from a template in `templates` that is made when a size is first asked for.
///
/// The file never has a name: it is gone when the last descriptor of it is closed, whatever happens.
///
/// # Errors
/// When the disk is full, its file system has no files without names, or mkfs.ext4 is missing or fails.
pub async fn create(
    templates: &Path,
    directory: &Path,
    bytes: u64,
    patience: Duration,
) -> Result<File, RootfsError> {
    let (templates, directory) = (templates.to_owned(), directory.to_owned());
    blocking(move || make(&templates, &directory, bytes, patience)).await
}

fn make(templates: &Path, directory: &Path, bytes: u64, patience: Duration) -> Result<File, RootfsError> {
    let bytes = bytes
        .max(MIN_BYTES)
        .checked_next_multiple_of(build::PAGE)
        .ok_or_else(|| RootfsError::Invalid(format!("a scratch disk of {bytes} bytes")))?;
    for directory in [templates, directory] {
        fs::create_dir_all(directory).map_err(RootfsError::file("create", directory))?;
    }
    if build::is_full(directory) {
        return Err(RootfsError::DiskFull { path: directory.to_owned() });
    }
    let template = template(templates, bytes, patience)?;
    let failed = |source| {
        RootfsError::file("make a scratch disk, which is a file without a name (O_TMPFILE), in", directory)(
            source,
        )
    };
    let disk = unnamed::create(directory).map_err(failed)?;
    disk.set_len(bytes).and_then(|()| copy_data(&template, &disk, bytes)).map_err(failed)?;
    Ok(disk)
}

/// The template for a size. A template that a power cut may have spoilt is not used: its name holds the boot's id.
fn template(templates: &Path, bytes: u64, patience: Duration) -> Result<File, RootfsError> {
    let boot = super::record::boot_id();
    let name = format!("scratch-{bytes}-{boot}");
    let path = templates.join(format!("{name}.ext4"));
    let failed = |source| RootfsError::file("open the scratch disk's template", &path)(source);
    match File::open(&path) {
        Ok(file) => return Ok(file),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Err(_) => {}
    }
    let _lock = node_lock::acquire(templates, &name, patience)
        .map_err(RootfsError::file("lock the scratch disks' templates in", templates))?;
    if let Ok(file) = File::open(&path) {
        return Ok(file);
    }
    remove_old(templates, &boot);
    let made = build::ext4(templates, bytes, patience)?;
    unnamed::name(&made, &path)
        .map_err(RootfsError::file("put in place the scratch disk's template", &path))?;
    Ok(made)
}

/// Removes templates of earlier boots.
fn remove_old(templates: &Path, boot: &str) {
    let Ok(entries) = fs::read_dir(templates) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        if name.starts_with("scratch-") && !name.ends_with(boot) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Copies the parts of a sparse file that hold data.
fn copy_data(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < bytes {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // No more data.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(bytes);
        let mut at = start;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            from.read_exact_at(part, at)?;
            to.write_all_at(part, at)?;
            at += wanted as u64;
        }
        position = end;
    }
    Ok(())
}
