use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;

use super::identity::{self, Identity};
use super::mounts::{self, Kind, RootfsMount, Source};
use super::record::{self, Record};
use super::{RootfsError, build, collect, lock};

/// Most images that one shim makes at a time.
const MAX_BUILDS: usize = 4;
/// An image's modification time tells when it was last used, to this precision.
const TOUCH: Duration = Duration::from_secs(60);

/// One layer of a root file system.
#[derive(Debug)]
pub struct Layer {
    /// Names the image: layers of equal keys are the same image, and one extent can serve them all.
    pub key: String,
    /// The image, read-only.
    pub file: File,
    /// Its length in bytes, a multiple of 4096.
    pub length: u64,
}

/// The node's layer images.
///
/// An image of a committed snapshot is named by the identity of its directory, made once under a lock, and renamed
/// into its place when it is whole. It goes when its directory is gone and it has not been used for a while; machines
/// that still use it hold it open. Images of a container's own directories have no name at all.
#[derive(Debug, Clone)]
pub struct LayerStore {
    directory: Arc<PathBuf>,
    builds: Arc<Semaphore>,
}

static PRIVATE: AtomicU64 = AtomicU64::new(0);

impl LayerStore {
    /// Images are kept in `directory`, which is made when it is first needed.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let builds = Arc::new(Semaphore::new(cores.clamp(1, MAX_BUILDS)));
        Self { directory: Arc::new(directory.into()), builds }
    }

    /// The layers of a root file system, topmost first; images that do not exist yet are made.
    ///
    /// # Errors
    /// For mounts of other kinds than `overlay` and `bind`, and when an image cannot be made.
    pub async fn prepare(&self, mounts: &[RootfsMount]) -> Result<Vec<Layer>, RootfsError> {
        let sources = mounts::sources(mounts)?;
        let directory = Arc::clone(&self.directory);
        let found = blocking(move || {
            fs::create_dir_all(&*directory).map_err(RootfsError::file("create", directory.as_path()))?;
            without_empty(sources)?
                .into_iter()
                .map(|source| look_up(&directory, source))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;

        let jobs: Vec<_> = found
            .into_iter()
            .map(|found| {
                let (directory, builds) = (Arc::clone(&self.directory), Arc::clone(&self.builds));
                tokio::spawn(async move {
                    let missing = match found {
                        Found::Layer(layer) => return Ok(layer),
                        Found::Missing(missing) => missing,
                    };
                    let _turn = builds.acquire().await.map_err(|_| RootfsError::Cancelled)?;
                    blocking(move || make(&directory, &missing)).await
                })
            })
            .collect();
        let mut layers = Vec::with_capacity(jobs.len());
        for job in jobs {
            layers.push(job.await.map_err(|_| RootfsError::Cancelled)??);
        }
        let directory = Arc::clone(&self.directory);
        // Nobody waits for the collection; it does nothing when one ran shortly before.
        tokio::task::spawn_blocking(move || collect::collect(&directory));
        Ok(layers)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RootfsError> + Send + 'static,
) -> Result<T, RootfsError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RootfsError::Cancelled)?
}

enum Found {
    Layer(Layer),
    Missing(Missing),
}

enum Missing {
    Committed(Identity),
    Private(PathBuf),
}

/// Leaves out private directories in which nothing is, unless nothing else is there.
fn without_empty(sources: Vec<Source>) -> Result<Vec<Source>, RootfsError> {
    let mut kept = Vec::new();
    let several = sources.len() > 1;
    for source in sources {
        let empty = || {
            let mut entries = fs::read_dir(&source.path)?;
            Ok::<_, io::Error>(entries.next().transpose()?.is_none())
        };
        let failed = |error| RootfsError::Source { path: source.path.clone(), source: error };
        if !(several && source.kind == Kind::Private && empty().map_err(failed)?) {
            kept.push(source);
        }
    }
    Ok(kept)
}

fn look_up(directory: &Path, source: Source) -> Result<Found, RootfsError> {
    if source.kind == Kind::Private {
        return Ok(Found::Missing(Missing::Private(source.path)));
    }
    let identity = identity::identify(&source.path)?;
    Ok(match cached(directory, &identity)? {
        Some(layer) => Found::Layer(layer),
        None => Found::Missing(Missing::Committed(identity)),
    })
}

/// Where an image, or the record beside it, is.
pub(super) fn path(directory: &Path, key: &str, extension: &str) -> PathBuf {
    directory.join(format!("{key}.{extension}"))
}

/// Where an image is being made.
pub(super) fn temporary(directory: &Path, name: &str) -> PathBuf {
    path(directory, name, "tmp")
}

fn cached(directory: &Path, identity: &Identity) -> Result<Option<Layer>, RootfsError> {
    if !Record::read(&path(directory, &identity.key, "record")).is_ok_and(|record| record.is_valid()) {
        return Ok(None);
    }
    let image = path(directory, &identity.key, "erofs");
    match open(&image, &identity.key) {
        Ok(layer) => Ok(layer),
        Err(RootfsError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `None` if the file cannot be an image.
fn open(image: &Path, key: &str) -> Result<Option<Layer>, RootfsError> {
    let failed = |source| RootfsError::file("open the layer image", image)(source);
    let file = File::open(image).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let now = SystemTime::now();
    let unused = metadata.modified().ok().and_then(|used| now.duration_since(used).ok());
    if unused.is_some_and(|unused| unused > TOUCH) {
        // Without this the collector thinks of an older date; it still does not touch images that are needed.
        let _ = file.set_modified(now);
    }
    let length = metadata.len();
    Ok((length > 0 && length % build::PAGE == 0).then(|| Layer { key: key.to_owned(), file, length }))
}

fn make(directory: &Path, missing: &Missing) -> Result<Layer, RootfsError> {
    match missing {
        Missing::Committed(identity) => make_committed(directory, identity),
        Missing::Private(source) => make_private(directory, source),
    }
}

fn make_committed(directory: &Path, identity: &Identity) -> Result<Layer, RootfsError> {
    let key = &identity.key;
    let lock =
        lock::acquire(directory, key).map_err(RootfsError::file("lock the layer image in", directory))?;
    // Another shim may have made it while we waited.
    if let Some(layer) = cached(directory, identity)? {
        return Ok(layer);
    }
    let started = std::time::Instant::now();
    let (image, record) = (path(directory, key, "erofs"), path(directory, key, "record"));
    let temporary = temporary(directory, key);
    build::erofs(&identity.path, &temporary, &uuid(key), &lock).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    let mut entry = Record { boot: record::boot_id(), synced: false, source: identity.path.clone() };
    entry.write(&record).map_err(RootfsError::file("write the record", &record))?;
    fs::rename(&temporary, &image).map_err(RootfsError::file("put in place the layer image", &image))?;
    let layer = open(&image, key)?.ok_or_else(|| RootfsError::Tool {
        tool: "mkfs.erofs",
        path: identity.path.clone(),
        message: "it made an empty image".to_owned(),
    })?;
    tracing::info!(
        source = %identity.path.display(),
        bytes = layer.length,
        milliseconds = started.elapsed().as_millis(),
        "made a layer image"
    );
    if let Ok(file) = layer.file.try_clone() {
        // No one waits for the disk; until it is done the image counts for this boot only.
        std::thread::spawn(move || {
            entry.synced = file.sync_all().is_ok();
            if entry.synced {
                let _ = entry.write(&record);
            }
        });
    }
    Ok(layer)
}

fn make_private(directory: &Path, source: &Path) -> Result<Layer, RootfsError> {
    let name = format!("private-{}-{}", std::process::id(), PRIVATE.fetch_add(1, Ordering::Relaxed));
    let lock =
        lock::acquire(directory, &name).map_err(RootfsError::file("lock the layer image in", directory))?;
    let temporary = temporary(directory, &name);
    let mut unique = [0; 20];
    let made =
        getrandom(&mut unique).map_err(RootfsError::file("read randomness for", &temporary)).and_then(|()| {
            let key = identity::hex(unique.iter());
            build::erofs(source, &temporary, &uuid(&key), &lock)?;
            open(&temporary, &key)
        });
    // From here on the image lives as long as it is open.
    let _ = fs::remove_file(&temporary);
    made?.ok_or_else(|| RootfsError::Tool {
        tool: "mkfs.erofs",
        path: source.to_owned(),
        message: "it made an empty image".to_owned(),
    })
}

fn getrandom(buffer: &mut [u8]) -> io::Result<()> {
    io::Read::read_exact(&mut File::open("/dev/urandom")?, buffer)
}

/// A UUID made of the beginning of a key, so that the same image is made every time.
fn uuid(key: &str) -> String {
    let part = |from: usize, to: usize| key.get(from..to).unwrap_or("0000");
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}
