//! The beginning and the end of a mount, and what is said about a file system as a whole.

use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, fstatvfs, syncfs};
use rustix::io::Errno;

use super::Server;
use crate::message::abi::{self, ROOT_ID, init, op};
use crate::message::{Reply, Request};

/// What is agreed on if the guest's kernel has it. Left out, besides what needs more than a socket: `WRITEBACK_CACHE`, with
/// which a guest would hold back writes that other pods and the node are to see, and would know the end of a file better than
/// they do; `POSIX_LOCKS` and `FLOCK_LOCKS`, without which locks hold between all processes of the guest.
const WANTED: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT;

/// The same of the further flags. With mounts that map ids a pod with a user namespace of its own has its volumes; the guest's
/// kernel maps, and names a user in those requests alone that make a file.
const WANTED_TOO: u32 = init::ALLOW_IDMAP;

/// Requests that the guest's kernel may have under way for nobody in particular, and from how many on it reads ahead less.
const MAX_BACKGROUND: u16 = 64;
const CONGESTION_THRESHOLD: u16 = 48;
/// Length of `fuse_init_out` behind what is set here.
const INIT_OUT_REST: usize = 28;

impl Server {
    /// `FUSE_INIT`: a mount begins.
    pub(super) fn init(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let body = &mut request.body;
        let (major, minor, readahead, flags) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        if major < abi::KERNEL_VERSION || (major == abi::KERNEL_VERSION && minor < abi::LEAST_MINOR_VERSION) {
            return Err(Errno::PROTO);
        }
        if major > abi::KERNEL_VERSION {
            // A newer kernel asks again in this version.
            reply.put_u32(&[abi::KERNEL_VERSION, abi::KERNEL_MINOR_VERSION])?;
            return reply.put_zeros(20 + INIT_OUT_REST + 8);
        }
        // What an earlier mount knew is nobody's any more.
        self.destroy()?;
        // Kernels that know no further flags send none.
        let further = if flags & init::INIT_EXT == 0 { 0 } else { body.u32()? & WANTED_TOO };
        let mut agreed = flags & WANTED;
        if further != 0 {
            agreed |= init::INIT_EXT;
        }
        self.agreed.store(agreed, Ordering::Relaxed);
        let data = reply.max_data();
        let pages = u16::try_from(data / abi::PAGE).unwrap_or(1);
        reply.put_u32(&[abi::KERNEL_VERSION, abi::KERNEL_MINOR_VERSION, readahead, agreed])?;
        reply.put(&MAX_BACKGROUND.to_le_bytes())?;
        reply.put(&CONGESTION_THRESHOLD.to_le_bytes())?;
        // Times are in nanoseconds.
        reply.put_u32(&[u32::try_from(data).unwrap_or(0), 1])?;
        reply.put(&pages.to_le_bytes())?;
        reply.put_zeros(2)?;
        reply.put_u32(&[further])?;
        reply.put_zeros(INIT_OUT_REST)
    }

    /// `FUSE_DESTROY`: a mount ends.
    pub(super) fn destroy(&self) -> Result<(), Errno> {
        self.handles.clear();
        self.inodes.clear();
        Ok(())
    }

    /// `FUSE_FORGET` and `FUSE_BATCH_FORGET`.
    pub(super) fn forget(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let body = &mut request.body;
        if request.header.opcode == op::FORGET {
            self.inodes.forget(request.header.node, body.u64()?);
            return Ok(());
        }
        let count = body.u32()?;
        body.u32()?;
        for _ in 0..count {
            let (node, lookups) = (body.u64()?, body.u64()?);
            self.inodes.forget(node, lookups);
        }
        Ok(())
    }

    /// `FUSE_STATFS`, of the file system that a file is on.
    pub(super) fn statfs(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        if request.header.node == ROOT_ID {
            // Nothing is in the root but folders of other file systems.
            reply.put_u64(&[0; 5])?;
            reply.put_u32(&[4096, 255, 4096])?;
            return reply.put_zeros(28);
        }
        let inode = self.inodes.get(request.header.node)?;
        let stat = fstatvfs(&*inode)?;
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        reply.put_u64(&[stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree])?;
        reply.put_u32(&[number(stat.f_bsize), number(stat.f_namemax), number(stat.f_frsize)])?;
        reply.put_zeros(28)
    }

    /// `FUSE_SYNCFS`: all that was written to a volume reaches its disk; for the root, to all volumes.
    pub(super) fn syncfs(&self, request: Request<'_>) -> Result<(), Errno> {
        if request.header.node != ROOT_ID {
            let inode = self.inodes.get(request.header.node)?;
            return self.sync_directory(&inode.volume);
        }
        let mut from = 0;
        while let Some(volume) = self.volumes.next(from) {
            self.sync_directory(&volume)?;
            let Some(next) = volume.number.checked_add(1) else { break };
            from = next;
        }
        Ok(())
    }

    fn sync_directory(&self, volume: &super::volumes::Volume) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.reopen(volume.open()?, flags, Mode::empty())?;
        syncfs(directory)
    }
}
