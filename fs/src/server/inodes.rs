//! Files that the guest knows: each is held open with `O_PATH`, which reads nothing, wakes no driver and follows no name, and
//! is the same file whatever becomes of its names.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Stat, fstat};
use rustix::io::Errno;

use super::generation::Generation;
use super::lock;
use super::volumes::Volume;
use crate::message::abi::ROOT_ID;

/// Where the number of a file's device goes in the number that the guest is told: file systems count their files from below.
const DEVICE_SHIFT: u32 = 56;
/// Most devices that are told apart so.
const MAX_DEVICES: usize = 255;

/// What a file is to the node: the volume through which it was found, and its device and number there.
type Key = (u32, u64, u64);

/// A file that the guest knows.
#[derive(Debug)]
pub(super) struct Inode {
    /// The guest's number for it.
    pub node: u64,
    /// The volume that it is in.
    pub volume: Arc<Volume>,
    /// What kind of file it is, which never changes.
    pub kind: FileType,
    /// What makes the guest's number of its device's.
    device: u64,
    generation: Generation,
    file: OwnedFd,
}

impl Inode {
    /// The number that programs see for the file `ino` of this file's device. Files of several devices are files of one in the
    /// guest.
    pub fn visible_ino(&self, ino: u64) -> u64 {
        ino ^ self.device << DEVICE_SHIFT
    }

    /// What the file is like now.
    pub fn stat(&self) -> Result<Stat, Errno> {
        fstat(&self.file)
    }
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Debug)]
struct Entry {
    inode: Arc<Inode>,
    key: Key,
    /// How many times the guest was told of it and has not forgotten it.
    lookups: u64,
}

#[derive(Debug, Default)]
struct Table {
    by_node: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    devices: Vec<(u32, u64)>,
    last_node: u64,
}

/// All files that the guest knows. The limit on open files is their limit.
#[derive(Debug, Default)]
pub(super) struct Inodes(Mutex<Table>);

impl Inodes {
    /// A file that the guest names.
    pub fn get(&self, node: u64) -> Result<Arc<Inode>, Errno> {
        lock(&self.0).by_node.get(&node).map(|entry| Arc::clone(&entry.inode)).ok_or(Errno::STALE)
    }

    /// The file that `file`, opened with `O_PATH`, is, of which the guest is going to be told.
    pub fn learn(&self, volume: &Arc<Volume>, file: OwnedFd) -> Result<(Arc<Inode>, Stat), Errno> {
        let stat = fstat(&file)?;
        let (kind, generation) = (FileType::from_raw_mode(stat.st_mode), Generation::of(&file));
        let key = (volume.number, stat.st_dev, stat.st_ino);
        let mut table = lock(&self.0);
        let table = &mut *table;
        if let Some(node) = table.by_key.get(&key)
            && let Some(entry) = table.by_node.get_mut(node)
            && entry.inode.kind == kind
            && entry.inode.generation.agrees(&generation)
        {
            entry.lookups = entry.lookups.saturating_add(1);
            return Ok((Arc::clone(&entry.inode), stat));
        }
        // Nodes are not used again, so that one that is forgotten is never mistaken for another.
        table.last_node = table.last_node.max(ROOT_ID) + 1;
        let node = table.last_node;
        let inode = Arc::new(Inode {
            node,
            volume: Arc::clone(volume),
            kind,
            device: device_number(&mut table.devices, (volume.number, stat.st_dev)),
            generation,
            file,
        });
        // One that had the number before is known by its node alone from now on.
        table.by_key.insert(key, node);
        table.by_node.insert(node, Entry { inode: Arc::clone(&inode), key, lookups: 1 });
        Ok((inode, stat))
    }

    /// The guest has forgotten the file so many times.
    pub fn forget(&self, node: u64, count: u64) {
        let mut table = lock(&self.0);
        let Some(entry) = table.by_node.get_mut(&node) else { return };
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups == 0
            && let Some(entry) = table.by_node.remove(&node)
            && table.by_key.get(&entry.key) == Some(&node)
        {
            table.by_key.remove(&entry.key);
        }
    }

    /// The guest has forgotten everything.
    pub fn clear(&self) {
        let mut table = lock(&self.0);
        table.by_node.clear();
        table.by_key.clear();
    }
}

/// The number of a device, which is new if need be.
fn device_number(devices: &mut Vec<(u32, u64)>, device: (u32, u64)) -> u64 {
    let known = devices.iter().position(|other| *other == device);
    let position = known.unwrap_or_else(|| {
        if devices.len() < MAX_DEVICES {
            devices.push(device);
        }
        devices.len() - 1
    });
    position as u64
}
