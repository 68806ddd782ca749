//! The machine's layers disk: which image lies where, shared by the pod's containers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use ravelin_proto::agent::{AddExtentRequest, RemoveExtentRequest};
use ravelin_vmm::control::{EXTENT_DISK_BYTES, Extent, ExtentDisk};
use tokio::sync::OnceCell;

use crate::agent::{Agent, AgentError};
use crate::machine::MachineError;
use crate::rootfs::Layer;
use crate::sync::lock;

/// Unit of places and lengths.
const PAGE: u64 = 4096;
/// Largest number of partitions on one disk.
const MAX_IDS: u8 = 255;

/// A layer that could not be put on the disk.
#[derive(Debug, thiserror::Error)]
pub enum ExtentError {
    /// Too many or too large.
    #[error(
        "the pod's machine has no room for another image layer (at most {MAX_IDS} layers of 8 TiB in all)"
    )]
    Full,
    /// The machine did not take it.
    #[error("cannot put an image layer on the machine's layers disk")]
    Machine(#[source] MachineError),
    /// The agent did not take it.
    #[error(transparent)]
    Agent(AgentError),
}

/// The layers disk of one machine.
#[derive(Debug, Default)]
pub struct Extents {
    table: Mutex<Table>,
}

/// A container's hold on an extent; to be given back with [`Extents::release`].
#[derive(Debug)]
pub struct Held {
    key: String,
    region: Arc<Region>,
}

impl Held {
    /// The extent's id in the guest.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.region.id.into()
    }
}

#[derive(Debug)]
struct Region {
    id: u8,
    offset: u64,
    length: u64,
    added: OnceCell<()>,
}

#[derive(Debug, Default)]
struct Table {
    /// Live extents by the image's key, with the number of holders.
    live: BTreeMap<String, (Arc<Region>, usize)>,
    /// Everything that takes up room, by id; also extents that are on their way out.
    taken: BTreeMap<u8, Arc<Region>>,
}

impl Table {
    fn hold(&mut self, key: &str, length: u64) -> Result<Arc<Region>, ExtentError> {
        if let Some((region, holders)) = self.live.get_mut(key) {
            *holders += 1;
            return Ok(Arc::clone(region));
        }
        let region = Arc::new(self.place(length)?);
        self.taken.insert(region.id, Arc::clone(&region));
        self.live.insert(key.to_owned(), (Arc::clone(&region), 1));
        Ok(region)
    }

    fn place(&self, length: u64) -> Result<Region, ExtentError> {
        let length = length.max(1).checked_next_multiple_of(PAGE).ok_or(ExtentError::Full)?;
        let id = (1..=MAX_IDS).find(|id| !self.taken.contains_key(id)).ok_or(ExtentError::Full)?;
        let mut ranges: Vec<_> = self.taken.values().map(|region| (region.offset, region.length)).collect();
        ranges.sort_unstable();
        // The first page stays free: it is where a disk's partition table would be.
        let mut offset = PAGE;
        for (start, taken) in ranges {
            if start.saturating_sub(offset) >= length {
                break;
            }
            offset = start.saturating_add(taken);
        }
        if offset.checked_add(length).is_none_or(|end| end > EXTENT_DISK_BYTES) {
            return Err(ExtentError::Full);
        }
        Ok(Region { id, offset, length, added: OnceCell::new() })
    }

    /// Gives back one hold; the region if it was the last.
    fn release(&mut self, key: &str) -> Option<Arc<Region>> {
        let (_, holders) = self.live.get_mut(key)?;
        *holders = holders.saturating_sub(1);
        if *holders > 0 {
            return None;
        }
        self.live.remove(key).map(|(region, _)| region)
    }
}

impl Extents {
    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Puts the layers on the disk, or finds them there, in the order given. On an error nothing is held.
    ///
    /// # Errors
    /// When the disk is full, or the machine or the agent refuses.
    pub async fn hold(&self, agent: &Agent, layers: &[Layer]) -> Result<Vec<Held>, ExtentError> {
        let mut held = Vec::with_capacity(layers.len());
        let mut error = None;
        for layer in layers {
            match self.table().hold(&layer.key, layer.length) {
                Ok(region) => held.push(Held { key: layer.key.clone(), region }),
                Err(full) => {
                    error = Some(full);
                    break;
                }
            }
        }
        if error.is_none() {
            let additions = held.iter().zip(layers).map(|(held, layer)| {
                held.region.added.get_or_try_init(move || add(agent, &held.region, layer))
            });
            error = futures_util::future::join_all(additions).await.into_iter().find_map(Result::err);
        }
        match error {
            None => Ok(held),
            Some(error) => {
                self.release(agent, held).await;
                Err(error)
            }
        }
    }

    /// Gives extents back; the ones nobody holds any more leave the disk.
    pub async fn release(&self, agent: &Agent, held: Vec<Held>) {
        let removals = held.into_iter().filter_map(|held| {
            let region = self.table().release(&held.key)?;
            Some(self.remove(agent, region))
        });
        futures_util::future::join_all(removals).await;
    }

    async fn remove(&self, agent: &Agent, region: Arc<Region>) {
        if let Err(error) = take_away(agent, &region).await {
            // Its place stays taken: the guest may still have it open.
            tracing::warn!("an image layer stays on the layers disk: {}", crate::error::chain(&error));
            return;
        }
        self.table().taken.remove(&region.id);
    }
}

async fn add(agent: &Agent, region: &Region, layer: &Layer) -> Result<(), ExtentError> {
    let extent =
        Extent { disk: ExtentDisk::Layers, offset: region.offset, length: region.length, writable: false };
    agent.machine().add_extent(extent, &layer.file).await.map_err(ExtentError::Machine)?;
    let request = AddExtentRequest {
        id: region.id.into(),
        disk: ravelin_proto::agent::ExtentDisk::Layers.into(),
        offset: region.offset,
        length: region.length,
        filesystem: "erofs".to_owned(),
    };
    let added = agent.call("mount an image layer", agent.client().add_extent(agent.request(request))).await;
    if let Err(error) = added {
        let _ = agent.machine().remove_extent(ExtentDisk::Layers, region.offset).await;
        return Err(ExtentError::Agent(error));
    }
    Ok(())
}

async fn take_away(agent: &Agent, region: &Region) -> Result<(), ExtentError> {
    if region.added.get().is_none() {
        return Ok(());
    }
    let disk = ravelin_proto::agent::ExtentDisk::Layers.into();
    let request = RemoveExtentRequest { id: region.id.into(), disk };
    agent
        .call("unmount an image layer", agent.client().remove_extent(request))
        .await
        .map_err(ExtentError::Agent)?;
    agent.machine().remove_extent(ExtentDisk::Layers, region.offset).await.map_err(ExtentError::Machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_image_is_placed_once_and_goes_with_its_last_holder() {
        let mut table = Table::default();
        let first = table.hold("a", 5000).unwrap();
        let again = table.hold("a", 5000).unwrap();
        assert_eq!((first.id, first.offset, first.length), (again.id, PAGE, 8192));
        assert!(table.release("a").is_none());
        assert_eq!(table.release("a").map(|region| region.id), Some(1));
        assert!(table.release("a").is_none());
    }

    #[test]
    fn places_never_overlap_and_gaps_are_used_again() {
        let mut table = Table::default();
        let mut regions: Vec<_> = (0..10).map(|n| table.hold(&n.to_string(), 10_000).unwrap()).collect();
        let gone = table.release("3").unwrap();
        // While it is on its way out its place is taken.
        let other = table.hold("x", 10_000).unwrap();
        assert!(other.offset > regions.last().unwrap().offset);
        table.taken.remove(&gone.id);
        let back = table.hold("y", 10_000).unwrap();
        assert_eq!((back.id, back.offset), (gone.id, gone.offset));
        regions.remove(3);
        regions.extend([other, back]);
        let mut ranges: Vec<_> = regions.iter().map(|region| (region.offset, region.length)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut table = Table::default();
        for n in 0..255 {
            table.hold(&n.to_string(), 1).unwrap();
        }
        assert!(matches!(table.hold("one more", 1), Err(ExtentError::Full)));
        assert!(matches!(Table::default().hold("big", EXTENT_DISK_BYTES), Err(ExtentError::Full)));
        assert!(matches!(Table::default().hold("huge", u64::MAX), Err(ExtentError::Full)));
    }
}
