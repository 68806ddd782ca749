//! Open files: made, read, written and closed.

use std::io::IoSlice;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, openat};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use super::Server;
use super::handles::Handle;
use super::inodes::Inode;
use super::names::find;
use crate::message::abi::{self, ROOT_ID};
use crate::message::{Reply, Request};

/// What of a guest's `open` holds on the node, besides reading and writing. Not `O_APPEND`: a program may switch it on and off
/// while the file is open, and pages that were changed through a map belong where they are. Each write says whether it appends.
/// Nor `O_DIRECT`: the guest's kernel passes its own cache by, and the last page of a map is no whole block of the node's disk.
const KEPT: OFlags = OFlags::TRUNC.union(OFlags::SYNC).union(OFlags::DSYNC).union(OFlags::NOATIME);

/// Most bytes that one request has copied on the node: a guest asks for the rest.
const MAX_COPY: u64 = 64 << 20;

/// A guest's flags of `open`.
struct Flags {
    flags: OFlags,
    /// Whether an existing file is an error.
    exclusive: bool,
    /// Whether a file that is opened so is changed.
    writes: bool,
    /// Whether what is written is to be appended, for now.
    appends: bool,
}

impl Flags {
    fn parse(raw: u32) -> Result<Self, Errno> {
        let raw = OFlags::from_bits_retain(raw);
        let access = raw.intersection(OFlags::RWMODE);
        if ![OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR].contains(&access) {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            flags: access | raw.intersection(KEPT),
            exclusive: raw.contains(OFlags::EXCL),
            writes: access != OFlags::RDONLY || raw.contains(OFlags::TRUNC),
            appends: raw.contains(OFlags::APPEND),
        })
    }
}

impl Server {
    /// `FUSE_OPEN`.
    pub(super) fn open(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (flags, how) = (Flags::parse(request.body.u32()?)?, request.body.u32()?);
        let inode = self.inodes.get(request.header.node)?;
        let file = self.open_known(&inode, &flags, how)?;
        reply.put_handle(self.handles.add(file))
    }

    fn open_known(&self, inode: &Inode, flags: &Flags, how: u32) -> Result<Handle, Errno> {
        if flags.writes {
            inode.volume.check_writable()?;
        }
        let _guard = self.identity.without_set_id(how & abi::OPEN_KILL_SUIDGID != 0)?;
        match self.open_inode(inode, flags.flags, Mode::empty()) {
            // A file that may only grow (chattr +a) opens no other way.
            Err(Errno::PERM) if flags.appends => {
                self.open_inode(inode, flags.flags | OFlags::APPEND, Mode::empty()).map(Handle::that_grows)
            }
            result => result.map(Handle::new),
        }
    }

    /// `FUSE_CREATE`: opens a file that is made if there is none.
    pub(super) fn create(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (header, body) = (request.header, &mut request.body);
        let (flags, mode, mask, how) = (Flags::parse(body.u32()?)?, body.u32()?, body.u32()?, body.u32()?);
        let name = body.name()?;
        let directory = self.writable_directory(header.node)?;
        let room = self.reserve()?;
        let acting = self.identity.act_for(header.uid, header.gid, mask)?;
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let (file, found) = match openat(&*directory, name, flags.flags | new, mode) {
            Ok(file) => {
                drop((acting, room));
                let found = self.reopen(&file, OFlags::PATH, Mode::empty())?;
                (Handle::new(file), found)
            }
            Err(Errno::EXIST) if !flags.exclusive => {
                drop(room);
                // Somebody else has made it since the guest's kernel looked: whether this user may open it was not decided.
                acting.without_access()?;
                let found = find(&directory, name)?;
                let (inode, _) =
                    self.inodes.learn(&directory.volume, rustix::io::fcntl_dupfd_cloexec(&found, 0)?)?;
                let file = self.open_known(&inode, &flags, how);
                self.inodes.forget(inode.node, 1);
                drop(acting);
                (file?, found)
            }
            Err(errno) => return Err(errno),
        };
        self.put_new(&directory, found, file, reply)
    }

    /// `FUSE_TMPFILE`: makes a file without a name.
    pub(super) fn tmpfile(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (header, body) = (request.header, &mut request.body);
        let (flags, mode, mask, _) = (Flags::parse(body.u32()?)?, body.u32()?, body.u32()?, body.u32()?);
        let directory = self.writable_directory(header.node)?;
        let exclusive = if flags.exclusive { OFlags::EXCL } else { OFlags::empty() };
        let file = {
            let _acting = self.identity.act_for(header.uid, header.gid, mask)?;
            let how = flags.flags | OFlags::TMPFILE | exclusive;
            self.reopen(&*directory, how, Mode::from_raw_mode(mode & 0o7777))?
        };
        let found = self.reopen(&file, OFlags::PATH, Mode::empty())?;
        self.put_new(&directory, found, Handle::new(file), reply)
    }

    /// Tells the guest of a file, `found` with `O_PATH`, and that it has it open.
    fn put_new(
        &self,
        directory: &Inode,
        found: OwnedFd,
        file: Handle,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let (inode, stat) = self.inodes.learn(&directory.volume, found)?;
        reply.put_entry(inode.node, inode.visible_ino(stat.st_ino), &stat)?;
        reply.put_handle(self.handles.add(file))
    }

    /// `FUSE_READ`. A guest takes fewer bytes than it asked for as the file's end.
    pub(super) fn read(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let body = &mut request.body;
        let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let handle = self.handles.get(handle)?;
        reply.fill(size, |bytes| {
            let mut done = 0;
            while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
                let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
                match retry_on_intr(|| rustix::io::pread(&*handle, &mut *rest, at)) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(_) if done > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(done)
        })
    }

    /// `FUSE_WRITE`.
    pub(super) fn write(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let body = &mut request.body;
        let (handle, offset, size, how) = (body.u64()?, body.u64()?, body.u32()?, body.u32()?);
        // Lock owner.
        body.skip(8)?;
        let (flags, _) = (OFlags::from_bits_retain(body.u32()?), body.u32()?);
        let bytes = body.bytes(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
        let handle = self.handles.get(handle)?;
        let appends = flags.contains(OFlags::APPEND) && how & abi::WRITE_CACHE == 0;
        if handle.grows && !appends {
            return Err(Errno::PERM);
        }
        let _guard = self.identity.without_set_id(how & abi::WRITE_KILL_SUIDGID != 0)?;
        let count = if appends {
            // Where the file ends the node knows: the guest's offset is where it saw the end last.
            let bytes = [IoSlice::new(bytes)];
            retry_on_intr(|| rustix::io::pwritev2(&*handle, &bytes, 0, ReadWriteFlags::APPEND))?
        } else {
            retry_on_intr(|| rustix::io::pwrite(&*handle, bytes, offset))?
        };
        reply.put_size(count)
    }

    /// `FUSE_FLUSH`: a descriptor of the guest's is closed. Some file systems say only to this that a write has failed.
    pub(super) fn flush(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let handle = self.handles.get(request.body.u64()?)?;
        let copy = match rustix::io::fcntl_dupfd_cloexec(&*handle, 0) {
            Ok(copy) => copy.into_raw_fd(),
            // What was written is the node's: it is no reason for a program to believe it lost.
            Err(Errno::MFILE | Errno::NFILE) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        // SAFETY: nobody else has the descriptor, and it is closed whatever the call says.
        match unsafe { libc::close(copy) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    /// `FUSE_RELEASE` and `FUSE_RELEASEDIR`.
    pub(super) fn release(&self, mut request: Request<'_>) -> Result<(), Errno> {
        if request.header.node == ROOT_ID {
            return Ok(());
        }
        self.handles.remove(request.body.u64()?)
    }

    /// `FUSE_FSYNC` and `FUSE_FSYNCDIR`.
    pub(super) fn fsync(&self, mut request: Request<'_>) -> Result<(), Errno> {
        if request.header.node == ROOT_ID {
            return Ok(());
        }
        let (handle, how) = (self.handles.get(request.body.u64()?)?, request.body.u32()?);
        if how & abi::FSYNC_FDATASYNC != 0 {
            rustix::fs::fdatasync(&*handle)
        } else {
            rustix::fs::fsync(&*handle)
        }
    }

    /// `FUSE_FALLOCATE`.
    pub(super) fn fallocate(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let body = &mut request.body;
        let (handle, offset, length, mode) = (body.u64()?, body.u64()?, body.u64()?, body.u32()?);
        let mode = FallocateFlags::from_bits_retain(mode);
        rustix::fs::fallocate(&*self.handles.get(handle)?, mode, offset, length)
    }

    /// `FUSE_LSEEK`, of which a guest's kernel asks only what it cannot know: where data and holes are.
    pub(super) fn lseek(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let body = &mut request.body;
        let (handle, offset, whence) = (body.u64()?, body.u64()?, body.u32()?);
        let position = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let handle = self.handles.get(handle)?;
        let _guard = handle.lock_position();
        reply.put_u64(&[rustix::fs::seek(handle.as_fd(), position)?])
    }

    /// `FUSE_COPY_FILE_RANGE`.
    pub(super) fn copy_file_range(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let body = &mut request.body;
        let (from, mut from_offset, _node) = (body.u64()?, body.u64()?, body.u64()?);
        let (to, mut to_offset, length, flags) = (body.u64()?, body.u64()?, body.u64()?, body.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.handles.get(from)?, self.handles.get(to)?);
        let length = usize::try_from(length.min(MAX_COPY)).map_err(|_| Errno::INVAL)?;
        let count =
            rustix::fs::copy_file_range(&*from, Some(&mut from_offset), &*to, Some(&mut to_offset), length)?;
        reply.put_size(count)
    }
}
