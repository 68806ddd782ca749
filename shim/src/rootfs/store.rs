use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;

use super::identity::{self, Identity};
use super::mounts::{self, Kind, RootfsMount, Source};
use super::place::Place;
use super::record::{self, Record};
use super::{RootfsError, build, collect, unnamed};
use crate::node_lock::{self, NodeLock};
use crate::privileges::unrestricted;
use crate::sync::Cancelled;

/// Most images that are made at a time, by one shim and by all of a node.
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
/// An image of a committed snapshot is named by the identity of its directory and made once, under a lock. It gets its name
/// in its place (see [`Place`]) when it is whole. It goes with the snapshot; machines that still use it hold it open.
/// Images of a container's own directories have no name at all.
#[derive(Debug, Clone)]
pub struct LayerStore {
    directory: Arc<PathBuf>,
    builds: Arc<Semaphore>,
    patience: Duration,
}

impl LayerStore {
    /// Images are kept in `directory`, which is made when it is first needed. `patience` is the time one may take to be
    /// made, and how long others wait for it.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, patience: Duration) -> Self {
        let builds = Arc::new(Semaphore::new(at_once()));
        Self { directory: Arc::new(directory.into()), builds, patience }
    }

    /// The layers of a root file system, topmost first; images that do not exist yet are made.
    ///
    /// # Errors
    /// For mounts of other kinds than `overlay` and `bind`, and when an image cannot be made.
    pub async fn prepare(&self, mounts: &[RootfsMount]) -> Result<Vec<Layer>, RootfsError> {
        let sources = mounts::sources(mounts)?;
        let directory = Arc::clone(&self.directory);
        let found = unrestricted("layers", move || {
            fs::create_dir_all(&*directory).map_err(RootfsError::file("create", directory.as_path()))?;
            without_empty(sources)?
                .into_iter()
                .map(|source| look_up(&directory, source))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;

        let patience = self.patience;
        let jobs: Vec<_> = found
            .into_iter()
            .map(|found| {
                let (directory, builds) = (Arc::clone(&self.directory), Arc::clone(&self.builds));
                tokio::spawn(async move {
                    let missing = match found {
                        Found::Layer(layer) => return Ok(layer),
                        Found::Missing(missing) => missing,
                    };
                    let _turn = builds.acquire().await.map_err(|_| Cancelled)?;
                    unrestricted("layer", move || Maker { directory: &directory, patience }.make(&missing))
                        .await
                })
            })
            .collect();
        let mut layers = Vec::with_capacity(jobs.len());
        for job in jobs {
            layers.push(job.await.map_err(|_| Cancelled)??);
        }
        self.collect();
        Ok(layers)
    }

    /// Throws away, in the background, images whose directories are gone. Does nothing when somebody did so shortly before.
    pub fn collect(&self) {
        let directory = Arc::clone(&self.directory);
        tokio::task::spawn_blocking(move || collect::collect(&directory));
    }
}

fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(1, MAX_BUILDS)
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
        let own = matches!(source.kind, Kind::Private | Kind::Mapped);
        if several && own && empty().map_err(failed)? {
            continue;
        }
        if source.kind == Kind::Mapped {
            return Err(RootfsError::NotSupported(format!(
                "a container of a pod with hostUsers: false whose own layer {} is not empty from the start",
                source.path.display()
            )));
        }
        kept.push(source);
    }
    Ok(kept)
}

fn look_up(directory: &Path, source: Source) -> Result<Found, RootfsError> {
    if source.kind == Kind::Private {
        return Ok(Found::Missing(Missing::Private(source.path)));
    }
    let identity = identity::identify(&source.path)?;
    Ok(match cached(&Place::of(&identity, directory), &identity.key)? {
        Some(layer) => Found::Layer(layer),
        None => Found::Missing(Missing::Committed(identity)),
    })
}

fn cached(place: &Place, key: &str) -> Result<Option<Layer>, RootfsError> {
    if !Record::read(&place.record).is_ok_and(|record| record.is_valid()) {
        return Ok(None);
    }
    match open(&place.image, key) {
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

/// Makes images. Blocks.
struct Maker<'a> {
    directory: &'a Path,
    patience: Duration,
}

impl Maker<'_> {
    fn make(&self, missing: &Missing) -> Result<Layer, RootfsError> {
        match missing {
            Missing::Committed(identity) => self.committed(identity),
            Missing::Private(source) => self.private(source),
        }
    }

    fn committed(&self, identity: &Identity) -> Result<Layer, RootfsError> {
        let key = &identity.key;
        let _lock =
            self.wait("the wait for another pod that makes the layer image of", &identity.path, || {
                node_lock::acquire(self.directory, key, self.patience)
            })?;
        let place = Place::of(identity, self.directory);
        // Another shim may have made it while we waited.
        if let Some(layer) = cached(&place, key)? {
            return Ok(layer);
        }
        let _turn = self.turn(&identity.path)?;
        let started = Instant::now();
        let directory = place.image.parent().unwrap_or(self.directory);
        let made = build::erofs(&identity.path, directory, &uuid(key), self.patience)?;
        // One that a power cut may have spoilt must not come under the new record if we are killed before the new one is in
        // its place.
        remove_if_there(&place.image)
            .map_err(RootfsError::file("remove the old layer image", &place.image))?;
        let mut entry = Record { boot: record::boot_id(), synced: false, source: identity.path.clone() };
        entry.write(&place.record).map_err(RootfsError::file("write the record", &place.record))?;
        unnamed::name(&made, &place.image)
            .map_err(RootfsError::file("put in place the layer image", &place.image))?;
        place.remove_others();
        let layer = open(&place.image, key)?.ok_or_else(|| empty_image(&identity.path))?;
        tracing::info!(
            source = %identity.path.display(),
            bytes = layer.length,
            milliseconds = started.elapsed().as_millis(),
            "made a layer image"
        );
        if let Ok(file) = layer.file.try_clone() {
            // No one waits for the disk; until it is done, or without a thread for it, the image counts for this boot only.
            let _ = std::thread::Builder::new().name("sync".to_owned()).spawn(move || {
                entry.synced = file.sync_all().is_ok();
                if entry.synced {
                    let _ = entry.write(&place.record);
                }
            });
        }
        Ok(layer)
    }

    fn private(&self, source: &Path) -> Result<Layer, RootfsError> {
        let _turn = self.turn(source)?;
        let mut unique = [0; 20];
        getrandom(&mut unique).map_err(RootfsError::file("read randomness for the image of", source))?;
        let key = identity::hex(unique.iter());
        let made = build::erofs(source, self.directory, &uuid(&key), self.patience)?;
        // Who writes to it cannot be the one who maps it for a machine.
        let file =
            unnamed::reopen(&made).map_err(RootfsError::file("open the layer image in", self.directory))?;
        let length =
            file.metadata().map_err(RootfsError::file("measure the layer image in", self.directory))?.len();
        Ok(Layer { key, file, length })
    }

    /// A place among the few that make images on this node: a burst of new images must not take the disk from
    /// everything else.
    fn turn(&self, source: &Path) -> Result<NodeLock, RootfsError> {
        self.wait("the wait for other pods' layer images before that of", source, || {
            node_lock::acquire_any(self.directory, "build", at_once(), self.patience)
        })
    }

    fn wait(
        &self,
        what: &'static str,
        path: &Path,
        lock: impl FnOnce() -> io::Result<NodeLock>,
    ) -> Result<NodeLock, RootfsError> {
        lock().map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => {
                RootfsError::TooLong { what, path: path.to_owned(), patience: self.patience }
            }
            _ => RootfsError::file("lock the layer images in", self.directory)(source),
        })
    }
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn empty_image(source: &Path) -> RootfsError {
    RootfsError::Tool {
        tool: "mkfs.erofs",
        path: source.to_owned(),
        message: "it made an empty image".to_owned(),
    }
}

fn getrandom(buffer: &mut [u8]) -> io::Result<()> {
    io::Read::read_exact(&mut File::open("/dev/urandom")?, buffer)
}

/// A UUID made of the beginning of a key, so that the same image is made every time.
fn uuid(key: &str) -> String {
    let part = |from: usize, to: usize| key.get(from..to).unwrap_or("0000");
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// Takes the locks that `hold` gives, and tells what a container hears whose image would have to be made meanwhile.
    async fn while_held(hold: impl FnOnce(&Path, &Identity) -> Vec<NodeLock>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (source, layers) = (dir.path().join("source"), dir.path().join("layers"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&layers).unwrap();
        let identity = identity::identify(&source).unwrap();
        let _held = hold(&layers, &identity);
        let (kind, options) = ("bind".to_owned(), vec!["ro".to_owned()]);
        let mount = RootfsMount { kind, source: identity.path.to_str().unwrap().to_owned(), options };
        let (store, mounts) = (LayerStore::new(layers, SOON), [mount]);
        let prepared = tokio::time::timeout(Duration::from_secs(30), store.prepare(&mounts)).await;
        let error = prepared.expect("it does not wait").unwrap_err();
        assert!(matches!(&error, RootfsError::TooLong { patience: SOON, .. }), "{error}");
        error.to_string()
    }

    #[tokio::test]
    async fn an_image_of_an_earlier_boot_is_gone_before_the_record_of_a_new_one_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (source, layers) = (dir.path().join("source"), dir.path().join("layers"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&layers).unwrap();
        fs::write(source.join("file"), "whole").unwrap();
        let identity = identity::identify(&source).unwrap();
        let place = Place::of(&identity, &layers);
        let old = Record { boot: "an-earlier-one".to_owned(), synced: false, source: identity.path.clone() };
        old.write(&place.record).unwrap();
        fs::write(&place.image, vec![0; 4096]).unwrap();
        let store = LayerStore::new(&layers, Duration::from_secs(60));
        let (kind, options) = ("bind".to_owned(), vec!["ro".to_owned()]);
        let mounts = [RootfsMount { kind, source: identity.path.to_str().unwrap().to_owned(), options }];
        // As far as it comes where it cannot write the record.
        let obstacle = place.record.with_extension("record-new");
        fs::create_dir(&obstacle).unwrap();
        let error = store.prepare(&mounts).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot write the record"), "{error}");
        assert!(!place.image.exists());
        fs::remove_dir(&obstacle).unwrap();
        let made = store.prepare(&mounts).await.unwrap();
        let mut magic = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&made[0].file, &mut magic, 1024).unwrap();
        assert_eq!(u32::from_le_bytes(magic), 0xe0f5_e1e2);
    }

    #[tokio::test]
    async fn an_image_that_somebody_else_makes_for_too_long_is_not_waited_for() {
        let words = while_held(|layers, identity| {
            vec![node_lock::acquire(layers, &identity.key, Duration::ZERO).unwrap()]
        });
        let words = words.await;
        assert!(words.starts_with("the wait for another pod that makes the layer image of /"), "{words}");
    }

    #[tokio::test]
    async fn no_more_images_are_made_at_a_time_than_the_node_has_places_for() {
        let words = while_held(|layers, _| {
            let place = |_| node_lock::acquire_any(layers, "build", at_once(), Duration::ZERO).unwrap();
            (0..at_once()).map(place).collect()
        });
        let words = words.await;
        assert!(words.starts_with("the wait for other pods' layer images before that of /"), "{words}");
    }
}
