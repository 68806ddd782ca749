//! What files are like: looked at and changed.

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, fstat, utimensat,
};
use rustix::io::Errno;

use super::{Server, number};
use crate::message::abi::{GETATTR_FH, ROOT_ID, fattr};
use crate::message::{Reply, Request};

/// `struct fuse_setattr_in`.
#[derive(Debug)]
struct Changes {
    valid: u32,
    handle: u64,
    size: u64,
    /// Seconds and nanoseconds: of the last access, of the last change.
    times: [(u64, u32); 2],
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Changes {
    fn parse(request: &mut Request<'_>) -> Result<Self, Errno> {
        let body = &mut request.body;
        let (valid, _) = (body.u32()?, body.u32()?);
        let (handle, size, _lock_owner) = (body.u64()?, body.u64()?, body.u64()?);
        let (accessed, modified, _changed) = (body.u64()?, body.u64()?, body.u64()?);
        let (accessed_nsec, modified_nsec, _) = (body.u32()?, body.u32()?, body.u32()?);
        let (mode, _, uid, gid) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let times = [(accessed, accessed_nsec), (modified, modified_nsec)];
        Ok(Self { valid, handle, size, times, mode, uid, gid })
    }

    fn has(&self, flags: u32) -> bool {
        self.valid & flags != 0
    }

    /// The new times, if there are any.
    fn timestamps(&self) -> Result<Option<Timestamps>, Errno> {
        if !self.has(fattr::ATIME | fattr::MTIME) {
            return Ok(None);
        }
        let time = |set, now, (seconds, nanoseconds): (u64, u32)| {
            if self.has(now) {
                return Ok(Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW });
            }
            if !self.has(set) {
                return Ok(Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT });
            }
            if nanoseconds >= 1_000_000_000 {
                return Err(Errno::INVAL);
            }
            Ok(Timespec { tv_sec: seconds.cast_signed(), tv_nsec: nanoseconds.into() })
        };
        let [accessed, modified] = self.times;
        Ok(Some(Timestamps {
            last_access: time(fattr::ATIME, fattr::ATIME_NOW, accessed)?,
            last_modification: time(fattr::MTIME, fattr::MTIME_NOW, modified)?,
        }))
    }

    /// The new owner and group, if they change.
    fn owners(&self) -> Result<(Option<Uid>, Option<Gid>), Errno> {
        let id = |flag, id| match (self.has(flag), id) {
            (false, _) => Ok(None),
            // The last number means "no change" to the kernel.
            (true, u32::MAX) => Err(Errno::INVAL),
            (true, id) => Ok(Some(id)),
        };
        let (uid, gid) = (id(fattr::UID, self.uid)?, id(fattr::GID, self.gid)?);
        Ok((uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
    }
}

impl Server {
    /// `FUSE_GETATTR`.
    pub(super) fn getattr(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (how, _, handle) = (request.body.u32()?, request.body.u32()?, request.body.u64()?);
        if request.header.node == ROOT_ID {
            return reply.put_attributes(ROOT_ID, &self.root()?);
        }
        let inode = self.inodes.get(request.header.node)?;
        let stat = if how & GETATTR_FH != 0 { fstat(&*self.handles.get(handle)?) } else { inode.stat() };
        let stat = stat?;
        reply.put_attributes(inode.visible_ino(stat.st_ino), &stat)
    }

    /// What the root is like: as old as this process, and the same for all.
    fn root(&self) -> Result<Stat, Errno> {
        let mut stat = fstat(&self.descriptors)?;
        stat.st_mode = libc::S_IFDIR | 0o555;
        stat.st_nlink = 2;
        (stat.st_uid, stat.st_gid, stat.st_size) = (0, 0, 0);
        Ok(stat)
    }

    /// `FUSE_SETATTR`. The owner comes first, because a change of it takes set-id bits away.
    pub(super) fn setattr(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let changes = Changes::parse(&mut request)?;
        let inode = self.writable(request.header.node)?;
        let (uid, gid) = changes.owners()?;
        let times = changes.timestamps()?;
        if uid.is_some() || gid.is_some() {
            chownat(&*inode, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if changes.has(fattr::MODE) {
            let mode = Mode::from_raw_mode(changes.mode & 0o7777);
            chmodat(&self.descriptors, number(&*inode), mode, AtFlags::empty())?;
        }
        if changes.has(fattr::SIZE) {
            let _guard = self.identity.without_set_id(changes.has(fattr::KILL_SUIDGID))?;
            if changes.has(fattr::FH) {
                rustix::fs::ftruncate(&*self.handles.get(changes.handle)?, changes.size)?;
            } else {
                let file = self.open_inode(&inode, OFlags::WRONLY, Mode::empty())?;
                rustix::fs::ftruncate(file, changes.size)?;
            }
        }
        if let Some(times) = times {
            utimensat(&*inode, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        let stat = inode.stat()?;
        reply.put_attributes(inode.visible_ino(stat.st_ino), &stat)
    }
}
