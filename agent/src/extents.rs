//! Extents: ranges of the layers and volumes disks that the machine has mapped files into.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ravelin_proto::agent as api;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::time::Instant;

use crate::error::{AgentError, Attempt, Result};
use crate::sync::blocking;
use crate::{partition, paths};

/// Names an extent.
pub type Key = (api::ExtentDisk, u32);

/// Which extents are there.
#[derive(Debug, Default)]
pub struct Extents {
    known: HashMap<Key, Extent>,
}

/// An extent that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    offset: u64,
    length: u64,
    filesystem: String,
    /// False when it was unmounted to be removed, and its partition could not be taken away.
    mounted: bool,
    /// How many containers use it.
    users: usize,
}

impl Extent {
    fn of(request: &api::AddExtentRequest) -> Self {
        Self {
            offset: request.offset,
            length: request.length,
            filesystem: request.filesystem.clone(),
            mounted: true,
            users: 0,
        }
    }

    fn is_the_same(&self, other: &Self) -> bool {
        let place = |extent: &Self| (extent.offset, extent.length);
        place(self) == place(other) && self.filesystem == other.filesystem
    }
}

/// What an extent lacks to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// It is there.
    Nothing,
    /// It has its partition and is not mounted: removing it came that far.
    Mount,
    /// It is not known.
    Everything,
}

impl Extents {
    /// What is to be done for an extent to be there.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] for impossible extents, [`AgentError::AlreadyExists`] if the id names another one.
    pub fn lack(&self, request: &api::AddExtentRequest) -> Result<Lack> {
        let key = key(request.disk, request.id)?;
        const BLOCK: u64 = 4096;
        if request.length == 0
            || !request.length.is_multiple_of(BLOCK)
            || !request.offset.is_multiple_of(BLOCK)
        {
            return Err(AgentError::Invalid(format!("extent {} is not made of whole blocks", request.id)));
        }
        match self.known.get(&key) {
            None => Ok(Lack::Everything),
            Some(known) if !known.is_the_same(&Extent::of(request)) => {
                Err(AgentError::AlreadyExists(format!("extent {} is another one already", request.id)))
            }
            Some(known) if known.mounted => Ok(Lack::Nothing),
            Some(_) => Ok(Lack::Mount),
        }
    }

    /// Notes an extent that has been added: containers may use it from now on.
    pub fn insert(&mut self, request: &api::AddExtentRequest) {
        if let Ok(key) = key(request.disk, request.id) {
            self.known.insert(key, Extent::of(request));
        }
    }

    /// Takes an extent that is about to be removed out of containers' reach.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], or [`AgentError::WrongState`] while a container uses it.
    pub fn take(&mut self, request: &api::RemoveExtentRequest) -> Result<(Key, Extent)> {
        let key = key(request.disk, request.id)?;
        match self.known.get(&key) {
            None => Err(AgentError::NotFound(format!("there is no extent {}", request.id))),
            Some(extent) if extent.users > 0 => Err(AgentError::WrongState(format!(
                "extent {} is used by {} containers",
                request.id, extent.users
            ))),
            Some(extent) => {
                let extent = extent.clone();
                self.known.remove(&key);
                Ok((key, extent))
            }
        }
    }

    /// Puts back an extent that could not be removed.
    pub fn put_back(&mut self, (key, extent): (Key, Extent)) {
        self.known.insert(key, extent);
    }

    /// Counts one more user of each of these layers.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] if one is not there; none is counted then.
    pub fn take_layers(&mut self, layers: &[u32]) -> Result<()> {
        for layer in layers {
            let known = self.known.get(&(api::ExtentDisk::Layers, *layer));
            if !known.is_some_and(|extent| extent.mounted) {
                return Err(AgentError::NotFound(format!("there is no extent {layer} for a layer")));
            }
        }
        for layer in layers {
            if let Some(extent) = self.known.get_mut(&(api::ExtentDisk::Layers, *layer)) {
                extent.users += 1;
            }
        }
        Ok(())
    }

    /// Counts one user less of each.
    pub fn give_layers(&mut self, layers: &[u32]) {
        for layer in layers {
            if let Some(extent) = self.known.get_mut(&(api::ExtentDisk::Layers, *layer)) {
                extent.users = extent.users.saturating_sub(1);
            }
        }
    }
}

fn key(disk: i32, id: u32) -> Result<Key> {
    let disk = api::ExtentDisk::try_from(disk)
        .map_err(|_| AgentError::Invalid(format!("there is no extent disk {disk}")))?;
    if !(1..=255).contains(&id) {
        return Err(AgentError::Invalid(format!("extent {id} is not from 1 to 255")));
    }
    Ok((disk, id))
}

/// Makes a partition of the extent and mounts what is on it; the device may take until `deadline` to appear.
///
/// # Errors
///
/// When the kernel refuses; the partition is taken away again.
pub fn add(request: &api::AddExtentRequest, deadline: Instant) -> Result<()> {
    let key = key(request.disk, request.id)?;
    let disk = disk(key.0);
    partition::add(disk, key.1, request.offset, request.length)
        .attempt(|| format!("add extent {} to {disk}", key.1))?;
    let mounted = wait_for_node(&node(key), deadline).and_then(|()| mount_extent(key, &request.filesystem));
    if mounted.is_err() {
        let _ = partition::delete(disk, key.1);
    }
    mounted
}

/// Mounts an extent that has its partition.
///
/// # Errors
///
/// When the kernel refuses.
pub fn mount_again(request: &api::AddExtentRequest) -> Result<()> {
    mount_extent(key(request.disk, request.id)?, &request.filesystem)
}

/// Unmounts an extent and takes its partition away; notes in `extent` how far that came.
///
/// # Errors
///
/// When the kernel refuses: while something still has a file of it, or the device, the partition stays.
pub async fn remove(key: Key, extent: &mut Extent) -> Result<()> {
    blocking(move || unmount_extent(key)).await?;
    extent.mounted = false;
    blocking(move || {
        partition::delete(disk(key.0), key.1)
            .attempt(|| format!("remove extent {} of {}", key.1, disk(key.0)))
    })
    .await
}

fn unmount_extent(key: Key) -> Result<()> {
    let target = target(key);
    match unmount(&target, UnmountFlags::empty()) {
        // A bare block device was never mounted.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).attempt(|| format!("unmount {}", target.display())),
    }
    let _ = fs::remove_dir(&target);
    Ok(())
}

fn mount_extent(key: Key, filesystem: &str) -> Result<()> {
    let (kind, flags) = match (key.0, filesystem) {
        (_, "") => return Ok(()),
        (_, "erofs") => (c"erofs", MountFlags::RDONLY),
        (api::ExtentDisk::Volumes, "ext4") => (c"ext4", MountFlags::NOATIME),
        (_, other) => {
            return Err(AgentError::Invalid(format!("extent {} cannot be mounted as {other:?}", key.1)));
        }
    };
    let target = target(key);
    fs::create_dir_all(&target).attempt(|| format!("create {}", target.display()))?;
    let node = node(key);
    mount(&node, &target, kind, flags, None).attempt(|| format!("mount {node} on {}", target.display()))
}

const fn disk(disk: api::ExtentDisk) -> &'static str {
    match disk {
        api::ExtentDisk::Layers => paths::LAYERS_DISK,
        api::ExtentDisk::Volumes => paths::VOLUMES_DISK,
    }
}

fn node(key: Key) -> String {
    format!("{}{}", disk(key.0), key.1)
}

fn target(key: Key) -> PathBuf {
    match key.0 {
        api::ExtentDisk::Layers => paths::layer(key.1),
        api::ExtentDisk::Volumes => Path::new(paths::BLOCK_VOLUMES).join(key.1.to_string()),
    }
}

/// The kernel makes the node before the ioctl returns on every kernel seen; the wait costs nothing then.
fn wait_for_node(node: &str, deadline: Instant) -> Result<()> {
    while !Path::new(node).exists() {
        if Instant::now() > deadline {
            return Err(AgentError::Failed(format!("the device node {node} does not appear")));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(id: u32, offset: u64) -> api::AddExtentRequest {
        api::AddExtentRequest { id, disk: 0, offset, length: 4096, filesystem: "erofs".into() }
    }

    #[test]
    fn adding_the_same_extent_twice_is_one_extent() {
        let mut extents = Extents::default();
        assert_eq!(extents.lack(&extent(1, 0)).unwrap(), Lack::Everything);
        // Until it is there, nobody can use it.
        assert!(matches!(extents.take_layers(&[1]), Err(AgentError::NotFound(_))));
        extents.insert(&extent(1, 0));
        assert_eq!(extents.lack(&extent(1, 0)).unwrap(), Lack::Nothing);
        assert!(matches!(extents.lack(&extent(1, 4096)), Err(AgentError::AlreadyExists(_))));
    }

    #[test]
    fn impossible_extents_are_refused() {
        let extents = Extents::default();
        for bad in [extent(0, 0), extent(256, 0), extent(1, 100)] {
            assert!(matches!(extents.lack(&bad), Err(AgentError::Invalid(_))));
        }
    }

    #[test]
    fn an_extent_that_is_half_removed_is_no_layer_until_it_is_mounted_again() {
        let mut extents = Extents::default();
        extents.insert(&extent(1, 0));
        let remove = api::RemoveExtentRequest { id: 1, disk: 0 };
        let (key, mut half) = extents.take(&remove).unwrap();
        half.mounted = false;
        extents.put_back((key, half));
        assert!(matches!(extents.take_layers(&[1]), Err(AgentError::NotFound(_))));
        // It is the same one still, of which the partition is there.
        assert_eq!(extents.lack(&extent(1, 0)).unwrap(), Lack::Mount);
        assert!(matches!(extents.lack(&extent(1, 4096)), Err(AgentError::AlreadyExists(_))));
        extents.insert(&extent(1, 0));
        extents.take_layers(&[1]).unwrap();
        assert_eq!(extents.lack(&extent(1, 0)).unwrap(), Lack::Nothing);
        extents.give_layers(&[1]);
        extents.take(&remove).unwrap();
        assert_eq!(extents.lack(&extent(1, 0)).unwrap(), Lack::Everything);
    }

    #[test]
    fn a_device_that_does_not_appear_is_waited_for_until_the_callers_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let node = directory.path().join("vda1");
        let node = node.to_str().unwrap();
        let soon = || Instant::now() + Duration::from_millis(20);
        let begin = Instant::now();
        assert!(wait_for_node(node, soon()).unwrap_err().to_string().contains("does not appear"));
        assert!(begin.elapsed() >= Duration::from_millis(20));
        fs::write(node, "").unwrap();
        wait_for_node(node, soon()).unwrap();
    }

    #[test]
    fn an_extent_in_use_stays() {
        let mut extents = Extents::default();
        extents.insert(&extent(1, 0));
        assert!(matches!(extents.take_layers(&[1, 2]), Err(AgentError::NotFound(_))));
        extents.take_layers(&[1]).unwrap();
        let remove = api::RemoveExtentRequest { id: 1, disk: 0 };
        assert!(matches!(extents.take(&remove), Err(AgentError::WrongState(_))));
        extents.give_layers(&[1]);
        let taken = extents.take(&remove).unwrap();
        assert!(matches!(extents.take(&remove), Err(AgentError::NotFound(_))));
        extents.put_back(taken);
        extents.take_layers(&[1]).unwrap();
    }
}
