//! Throws away the store's images that nobody needs any more.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::identity;
use super::place::Place;
use super::record::Record;
use crate::node_lock;

/// Pause between two collections on a node.
const INTERVAL: Duration = Duration::from_secs(60);
/// An image stays at least this long after its last use.
const UNUSED: Duration = Duration::from_secs(600);

/// Collects, if nobody did so within the last minute. Blocks. What cannot be removed is tried again another time.
pub(super) fn collect(directory: &Path) {
    let mark = directory.join("collected");
    if age(&mark).is_some_and(|age| age < INTERVAL) {
        return;
    }
    // A mark that cannot be written means a collection too many, no more.
    let _ = fs::write(&mark, "");
    if let Err(error) = sweep(directory, UNUSED)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot look for unused layer images in {}: {error}", directory.display());
    }
}

pub(super) fn sweep(directory: &Path, unused: Duration) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let (Some(name), Some(extension)) = (path.file_stem(), path.extension()) else { continue };
        let (Some(name), Some(extension)) = (name.to_str(), extension.to_str()) else { continue };
        let garbage = match extension {
            "erofs" | "record" => is_unused(&path, unused) && !is_wanted(directory, name),
            "record-new" => is_unused(&path, unused),
            _ => false,
        };
        if !garbage {
            continue;
        }
        if let Ok(Some(_lock)) = node_lock::try_acquire(directory, name) {
            tracing::info!("removing the unused layer image {}", path.display());
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

fn is_unused(path: &Path, unused: Duration) -> bool {
    age(path).is_some_and(|age| age >= unused)
}

fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(fs::metadata(path).ok()?.modified().ok()?).ok()
}

/// Whether the directory that an image was made of is still there, and still the same.
fn is_wanted(directory: &Path, key: &str) -> bool {
    Record::read(&Place::named(directory, key).record)
        .is_ok_and(|record| identity::identify(&record.source).is_ok_and(|found| found.key == key))
}
