//! Names in directories: found, made, moved and taken away.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, mknodat, openat, readlinkat_raw,
    renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::inodes::Inode;
use super::{Server, number};
use crate::message::abi::ROOT_ID;
use crate::message::{Reply, Request};

/// What `FUSE_RENAME2` may ask for. A whiteout is a device, which is not made on the node.
const RENAMES: RenameFlags = RenameFlags::NOREPLACE.union(RenameFlags::EXCHANGE);

impl Server {
    /// `FUSE_LOOKUP`.
    pub(super) fn lookup(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let name = request.body.name()?;
        if request.header.node == ROOT_ID {
            let volume = self.volumes.find(name)?;
            let (inode, stat) = self.inodes.learn(&volume, volume.open()?)?;
            return reply.put_entry(inode.node, inode.visible_ino(stat.st_ino), &stat);
        }
        let directory = self.inodes.get(request.header.node)?;
        self.put_entry(&directory, name, reply)
    }

    /// Looks a name up and tells the guest what it found.
    fn put_entry(&self, directory: &Inode, name: &CStr, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let file = find(directory, name)?;
        let (inode, stat) = self.inodes.learn(&directory.volume, file)?;
        reply.put_entry(inode.node, inode.visible_ino(stat.st_ino), &stat)
    }

    /// `FUSE_MKNOD`: a file, a pipe or a socket. Devices are not made on the node.
    pub(super) fn mknod(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (header, body) = (request.header, &mut request.body);
        let (mode, _device, mask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let name = body.name()?;
        let directory = self.writable_directory(header.node)?;
        let (kind, mode) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o7777));
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        let room = self.reserve()?;
        {
            let _acting = self.identity.act_for(header.uid, header.gid, mask)?;
            mknodat(&*directory, name, kind, mode, 0)?;
        }
        drop(room);
        self.put_entry(&directory, name, reply)
    }

    /// `FUSE_MKDIR`.
    pub(super) fn mkdir(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (header, body) = (request.header, &mut request.body);
        let (mode, mask) = (body.u32()?, body.u32()?);
        let name = body.name()?;
        let directory = self.writable_directory(header.node)?;
        let room = self.reserve()?;
        {
            let _acting = self.identity.act_for(header.uid, header.gid, mask)?;
            mkdirat(&*directory, name, Mode::from_raw_mode(mode & 0o7777))?;
        }
        drop(room);
        self.put_entry(&directory, name, reply)
    }

    /// `FUSE_SYMLINK`. Where it leads to is the guest's own affair.
    pub(super) fn symlink(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let header = request.header;
        let (name, target) = (request.body.name()?, request.body.text()?);
        let directory = self.writable_directory(header.node)?;
        let room = self.reserve()?;
        {
            let _acting = self.identity.act_for(header.uid, header.gid, 0)?;
            symlinkat(target, &*directory, name)?;
        }
        drop(room);
        self.put_entry(&directory, name, reply)
    }

    /// `FUSE_READLINK`.
    pub(super) fn readlink(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        const LONGEST: u32 = libc::PATH_MAX as u32 - 1;
        let inode = self.inodes.get(request.header.node)?;
        reply.fill(LONGEST.min(reply.max_data() as u32), |bytes| readlinkat_raw(&*inode, c"", bytes))
    }

    /// `FUSE_LINK`.
    pub(super) fn link(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (node, name) = (request.body.u64()?, request.body.name()?);
        let directory = self.writable_directory(request.header.node)?;
        let inode = self.writable(node)?;
        check_same_volume(&inode, &directory)?;
        let room = self.reserve()?;
        linkat(&self.descriptors, number(&*inode), &*directory, name, AtFlags::SYMLINK_FOLLOW)?;
        drop(room);
        self.put_entry(&directory, name, reply)
    }

    /// `FUSE_UNLINK` and `FUSE_RMDIR`.
    pub(super) fn unlink(&self, mut request: Request<'_>, directory: bool) -> Result<(), Errno> {
        let name = request.body.name()?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(&*self.writable_directory(request.header.node)?, name, flags)
    }

    /// `FUSE_RENAME` and, with flags, `FUSE_RENAME2`.
    pub(super) fn rename(&self, mut request: Request<'_>, with_flags: bool) -> Result<(), Errno> {
        let body = &mut request.body;
        let new_node = body.u64()?;
        let mut flags = RenameFlags::empty();
        if with_flags {
            flags = RenameFlags::from_bits_retain(body.u32()?);
            body.u32()?;
        }
        let (old_name, new_name) = (body.name()?, body.name()?);
        if !RENAMES.contains(flags) {
            return Err(Errno::INVAL);
        }
        let old = self.writable_directory(request.header.node)?;
        let new = self.writable_directory(new_node)?;
        check_same_volume(&old, &new)?;
        renameat_with(&*old, old_name, &*new, new_name, flags)
    }
}

/// Opens the file of a name with `O_PATH`, whatever it is; a symbolic link is not followed.
pub(super) fn find(directory: &Inode, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Two volumes are two file systems, also where the node has them on one.
fn check_same_volume(one: &Arc<Inode>, other: &Arc<Inode>) -> Result<(), Errno> {
    if one.volume.number == other.volume.number { Ok(()) } else { Err(Errno::XDEV) }
}
