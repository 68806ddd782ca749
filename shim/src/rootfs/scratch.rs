//! The pod's scratch disk: writable layers and emptyDirs live on it, and it goes with the pod.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::SeekFrom;

use super::{RootfsError, build, lock, store};

/// Smallest scratch disk.
pub const MIN_BYTES: u64 = 16 << 20;
/// Bytes copied in one go.
const CHUNK: usize = 1 << 20;

/// Makes the scratch disk of a pod, `bytes` in size (rounded up to 4096): a sparse file with an empty ext4 file system,
/// copied from a template in `templates` that is made when a size is first asked for.
///
/// The file has no name any more when this returns: it is gone when the last descriptor of it is closed, whatever
/// happens. `path` names it only for the moment of its making.
///
/// # Errors
/// When the disk is full or mkfs.ext4 is missing or fails.
pub async fn create(templates: &Path, path: &Path, bytes: u64) -> Result<File, RootfsError> {
    let (templates, path) = (templates.to_owned(), path.to_owned());
    tokio::task::spawn_blocking(move || make(&templates, &path, bytes))
        .await
        .map_err(|_| RootfsError::Cancelled)?
}

fn make(templates: &Path, path: &Path, bytes: u64) -> Result<File, RootfsError> {
    let bytes = bytes
        .max(MIN_BYTES)
        .checked_next_multiple_of(build::PAGE)
        .ok_or_else(|| RootfsError::Invalid(format!("a scratch disk of {bytes} bytes")))?;
    for directory in [Some(templates), path.parent()].into_iter().flatten() {
        fs::create_dir_all(directory).map_err(RootfsError::file("create", directory))?;
    }
    if build::is_full(path) {
        return Err(RootfsError::DiskFull { path: path.to_owned() });
    }
    let template = template(templates, bytes)?;
    let failed = |source| RootfsError::file("create the scratch disk", path)(source);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let disk =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let copied = disk.set_len(bytes).and_then(|()| copy_data(&template, &disk, bytes));
    fs::remove_file(path).map_err(failed)?;
    copied.map_err(failed)?;
    Ok(disk)
}

/// The template for a size. A template that a power cut may have spoilt is not used: its name holds the boot's id.
fn template(templates: &Path, bytes: u64) -> Result<File, RootfsError> {
    let boot = super::record::boot_id();
    let name = format!("scratch-{bytes}-{boot}");
    let path = store::path(templates, &name, "ext4");
    let failed = |source| RootfsError::file("open the scratch disk's template", &path)(source);
    match File::open(&path) {
        Ok(file) => return Ok(file),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Err(_) => {}
    }
    let lock =
        lock::acquire(templates, &name).map_err(RootfsError::file("lock the templates in", templates))?;
    if let Ok(file) = File::open(&path) {
        return Ok(file);
    }
    remove_old(templates, &boot);
    let temporary = store::temporary(templates, &name);
    build::ext4(&temporary, bytes, &lock).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    fs::rename(&temporary, &path).map_err(failed)?;
    File::open(&path).map_err(failed)
}

/// Removes templates of earlier boots and what interrupted builds left.
fn remove_old(templates: &Path, boot: &str) {
    let Ok(entries) = fs::read_dir(templates) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        if !name.starts_with("scratch-")
            || (path.extension().is_some_and(|e| e == "ext4") && name.ends_with(boot))
        {
            continue;
        }
        if let Ok(Some(_lock)) = lock::try_acquire(templates, name) {
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
