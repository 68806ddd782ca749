//! Directories, read entry by entry.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::Server;
use super::handles::Handle;
use super::inodes::Inode;
use super::names::find;
use crate::message::abi::{self, ROOT_ID};
use crate::message::{Reply, Request};

/// Bytes of entries that the kernel is asked for at a time.
const ENTRIES: usize = 32 << 10;

/// An entry, as the guest gets it.
struct Entry<'a> {
    ino: u64,
    /// Where the directory is read on behind it.
    next: u64,
    kind: FileType,
    name: &'a CStr,
}

impl Server {
    /// `FUSE_OPENDIR`.
    pub(super) fn opendir(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        if request.header.node == ROOT_ID {
            return reply.put_handle(0);
        }
        let inode = self.inodes.get(request.header.node)?;
        let directory = self.open_inode(&inode, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        reply.put_handle(self.handles.add(Handle::new(directory)))
    }

    /// `FUSE_READDIR` and, with what each entry is, `FUSE_READDIRPLUS`.
    pub(super) fn readdir(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
        plus: bool,
    ) -> Result<(), Errno> {
        let body = &mut request.body;
        let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let room = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        if room > reply.max_data() {
            return Err(Errno::INVAL);
        }
        if request.header.node == ROOT_ID {
            return self.read_root(offset, room, plus, reply);
        }
        let inode = self.inodes.get(request.header.node)?;
        let handle = self.handles.get(handle)?;
        let _guard = handle.lock_position();
        rustix::fs::seek(&*handle, SeekFrom::Start(offset))?;
        let mut buffer = [const { MaybeUninit::uninit() }; ENTRIES];
        let mut entries = RawDir::new(&*handle, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What was read is good; the guest meets the error when it goes on.
                Err(_) if !reply.is_empty() => break,
                Err(errno) => return Err(errno),
            };
            let entry = Entry {
                ino: inode.visible_ino(entry.ino()),
                next: entry.next_entry_cookie(),
                kind: entry.file_type(),
                name: entry.file_name(),
            };
            if !fits(&entry, room, plus, reply) {
                break;
            }
            if plus {
                self.put_what_it_is(&inode, entry.name, reply)?;
            }
            put(&entry, reply)?;
        }
        Ok(())
    }

    /// Tells the guest what an entry is, which is a lookup for it. One that is gone meanwhile, or cannot be opened, is told
    /// without.
    fn put_what_it_is(
        &self,
        directory: &Arc<Inode>,
        name: &CStr,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let looked_up = if matches!(name.to_bytes(), b"." | b"..") {
            None
        } else {
            find(directory, name).and_then(|file| self.inodes.learn(&directory.volume, file)).ok()
        };
        match looked_up {
            Some((inode, stat)) => reply.put_entry(inode.node, inode.visible_ino(stat.st_ino), &stat),
            None => reply.put_zeros(abi::ENTRY_OUT),
        }
    }

    /// The root's entries are the volumes.
    fn read_root(&self, offset: u64, room: usize, plus: bool, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let Ok(mut from) = u32::try_from(offset) else { return Ok(()) };
        while let Some(volume) = self.volumes.next(from) {
            let name = format!("{}\0", volume.number);
            let name = CStr::from_bytes_with_nul(name.as_bytes()).map_err(|_| Errno::IO)?;
            let directory = volume.open()?;
            let ino = rustix::fs::fstat(&directory)?.st_ino;
            let next = u64::from(volume.number) + 1;
            let entry = Entry { ino, next, kind: FileType::Directory, name };
            if !fits(&entry, room, plus, reply) {
                break;
            }
            if plus {
                let (inode, stat) = self.inodes.learn(&volume, directory)?;
                reply.put_entry(inode.node, inode.visible_ino(stat.st_ino), &stat)?;
            }
            put(&entry, reply)?;
            let Some(next) = volume.number.checked_add(1) else { break };
            from = next;
        }
        Ok(())
    }
}

/// Whether a reply of at most `room` bytes has room for another entry.
fn fits(entry: &Entry<'_>, room: usize, plus: bool, reply: &Reply<'_>) -> bool {
    let length = (abi::DIRENT + entry.name.count_bytes()).next_multiple_of(8);
    reply.len() + length + if plus { abi::ENTRY_OUT } else { 0 } <= room
}

/// `struct fuse_dirent`.
fn put(entry: &Entry<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
    let name = entry.name.to_bytes();
    let kind = match entry.kind {
        FileType::Unknown => 0,
        // `DT_*` are what these bits of a mode are.
        known => known.as_raw_mode() >> 12,
    };
    reply.put_u64(&[entry.ino, entry.next])?;
    reply.put_u32(&[u32::try_from(name.len()).unwrap_or(0), kind])?;
    reply.put(name)?;
    reply.put_zeros(name.len().next_multiple_of(8) - name.len())
}
