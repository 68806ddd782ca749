//! Answers FUSE requests for volumes.
//!
//! Nothing that a guest sends names more than one component of a path, and no symbolic link is followed on the node: a file is
//! found by its name in a directory that is held open, and used through a descriptor from then on. What is neither a file nor
//! a directory, a device or a pipe, is never opened.

mod attributes;
mod directories;
mod files;
mod generation;
mod handles;
mod identity;
mod inodes;
mod names;
mod session;
mod volumes;
mod xattrs;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use self::handles::Handles;
use self::identity::Identity;
use self::inodes::{Inode, Inodes};
use self::volumes::Volumes;
use crate::message::abi::{ROOT_ID, op};
use crate::message::{Reply, Request};

pub use volumes::VolumeError;

/// A file server.
#[derive(Debug)]
pub struct Server {
    /// `/proc/self/fd`, through which what is open with `O_PATH` is opened for more.
    descriptors: OwnedFd,
    volumes: Volumes,
    inodes: Inodes,
    handles: Handles,
    identity: Identity,
    /// What was agreed on with the guest's kernel ([`crate::message::abi::init`]).
    agreed: AtomicU32,
}

impl Server {
    /// A server without volumes. `descriptors` is the directory `/proc/self/fd`.
    #[must_use]
    pub fn new(descriptors: OwnedFd) -> Self {
        Self {
            descriptors,
            volumes: Volumes::default(),
            inodes: Inodes::default(),
            handles: Handles::default(),
            identity: Identity::of_process(),
            agreed: AtomicU32::new(0),
        }
    }

    /// Serves a directory as the folder of this number from now on.
    ///
    /// # Errors
    /// When it is no directory, or the number is taken.
    pub fn add_volume(&self, number: u32, read_only: bool, directory: OwnedFd) -> Result<(), VolumeError> {
        self.volumes.add(number, read_only, directory)
    }

    /// Answers the request in `packet`, of which the reply's bytes are put into `buffer`, with at most `data` bytes of a file. None
    /// is due to what has no header, and to what the guest wants no reply to. The thread must have been prepared by
    /// [`crate::worker::prepare`].
    pub fn answer<'a>(&self, packet: &[u8], buffer: &'a mut [u8], data: usize) -> Option<&'a [u8]> {
        let request = Request::parse(packet)?;
        let header = request.header;
        let mut reply = Reply::new(buffer, data);
        if usize::try_from(header.len) != Ok(packet.len()) {
            return Some(reply.finish(header.unique, Err(Errno::INVAL)));
        }
        let result = match header.opcode {
            op::FORGET | op::BATCH_FORGET => {
                // One that is cut short is for nobody to hear of.
                let _ = self.forget(request);
                return None;
            }
            // Nothing is given up half-way: what a request waits for is the node's, and is awaited. Nor was anything asked of the
            // guest that it could reply to. No answer is due to either.
            op::INTERRUPT | op::NOTIFY_REPLY => return None,
            _ => self.dispatch(request, &mut reply),
        };
        Some(reply.finish(header.unique, result))
    }

    fn dispatch(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        match request.header.opcode {
            op::INIT => self.init(request, reply),
            op::DESTROY => self.destroy(),
            op::STATFS => self.statfs(request, reply),
            op::SYNCFS => self.syncfs(request),
            op::LOOKUP => self.lookup(request, reply),
            op::MKNOD => self.mknod(request, reply),
            op::MKDIR => self.mkdir(request, reply),
            op::SYMLINK => self.symlink(request, reply),
            op::READLINK => self.readlink(request, reply),
            op::LINK => self.link(request, reply),
            op::UNLINK => self.unlink(request, false),
            op::RMDIR => self.unlink(request, true),
            op::RENAME => self.rename(request, false),
            op::RENAME2 => self.rename(request, true),
            op::GETATTR => self.getattr(request, reply),
            op::SETATTR => self.setattr(request, reply),
            op::OPEN => self.open(request, reply),
            op::CREATE => self.create(request, reply),
            op::TMPFILE => self.tmpfile(request, reply),
            op::READ => self.read(request, reply),
            op::WRITE => self.write(request, reply),
            op::FLUSH => self.flush(request),
            op::RELEASE | op::RELEASEDIR => self.release(request),
            op::FSYNC | op::FSYNCDIR => self.fsync(request),
            op::FALLOCATE => self.fallocate(request),
            op::LSEEK => self.lseek(request, reply),
            op::COPY_FILE_RANGE => self.copy_file_range(request, reply),
            op::OPENDIR => self.opendir(request, reply),
            op::READDIR => self.readdir(request, reply, false),
            op::READDIRPLUS => self.readdir(request, reply, true),
            op::GETXATTR => self.getxattr(request, reply),
            op::LISTXATTR => self.listxattr(request, reply),
            op::SETXATTR => self.setxattr(request),
            op::REMOVEXATTR => self.removexattr(request),
            // Locks are the guest's own: its kernel does not ask for what was not agreed on.
            _ => Err(Errno::NOSYS),
        }
    }

    /// A directory that is to be changed.
    fn writable_directory(&self, node: u64) -> Result<Arc<Inode>, Errno> {
        if node == ROOT_ID {
            return Err(Errno::ROFS);
        }
        let inode = self.inodes.get(node)?;
        inode.volume.check_writable()?;
        if inode.kind == FileType::Directory { Ok(inode) } else { Err(Errno::NOTDIR) }
    }

    /// A file, of whatever kind, that is to be changed.
    fn writable(&self, node: u64) -> Result<Arc<Inode>, Errno> {
        if node == ROOT_ID {
            return Err(Errno::ROFS);
        }
        let inode = self.inodes.get(node)?;
        inode.volume.check_writable()?;
        Ok(inode)
    }

    /// Opens what a descriptor stands for once more, with other flags.
    fn reopen(&self, file: impl AsFd, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        openat(&self.descriptors, number(&file), flags | OFlags::CLOEXEC | OFlags::NOCTTY, mode)
    }

    /// Opens a file or a directory that the guest knows for reading or writing. Devices, pipes and sockets are the guest's.
    fn open_inode(&self, inode: &Inode, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        match inode.kind {
            FileType::RegularFile | FileType::Directory => self.reopen(inode, flags | OFlags::NONBLOCK, mode),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Keeps a descriptor free until what is returned is dropped: for what a request makes, which would be there although the
    /// request had failed, if there were none to look at it with. Another thread may be quicker in the moment between.
    fn reserve(&self) -> Result<OwnedFd, Errno> {
        openat(&self.descriptors, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    fn has_agreed_on(&self, flag: u32) -> bool {
        self.agreed.load(Ordering::Relaxed) & flag != 0
    }
}

/// The name of a descriptor in `/proc/self/fd`.
fn number(file: &impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    file.as_fd().as_raw_fd().to_string()
}

/// Takes a mutex, also after a thread that held it panicked: what these guard is whole after every statement.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
