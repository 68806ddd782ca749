//! Extended attributes, and with them ACLs. Those that mean something to the node may be read and not be set.
//!
//! The kernel takes no descriptor that was opened with `O_PATH` here, but a path: the threads' working directory is
//! `/proc/self/fd`, where a descriptor's number is a path that leads to the file itself, also if that is a symbolic link.

use std::ffi::CStr;

use rustix::fs::{XattrFlags, getxattr, getxattr_query, listxattr, listxattr_query, removexattr, setxattr};
use rustix::io::Errno;

use super::{Server, number};
use crate::message::abi::{ROOT_ID, SETXATTR_ACL_KILL_SGID, init};
use crate::message::{Reply, Request};

impl Server {
    /// `FUSE_GETXATTR`.
    pub(super) fn getxattr(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (size, _, name) = (request.body.u32()?, request.body.u32()?, request.body.text()?);
        if request.header.node == ROOT_ID {
            return Err(Errno::NODATA);
        }
        let inode = self.inodes.get(request.header.node)?;
        if size == 0 {
            return reply.put_size(getxattr_query(number(&*inode), name)?);
        }
        reply.fill(size, |bytes| getxattr(number(&*inode), name, bytes))
    }

    /// `FUSE_LISTXATTR`.
    pub(super) fn listxattr(&self, mut request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let size = request.body.u32()?;
        if request.header.node == ROOT_ID {
            return if size == 0 { reply.put_size(0) } else { Ok(()) };
        }
        let inode = self.inodes.get(request.header.node)?;
        if size == 0 {
            return reply.put_size(listxattr_query(number(&*inode))?);
        }
        reply.fill(size, |bytes| listxattr(number(&*inode), bytes))
    }

    /// `FUSE_SETXATTR`.
    pub(super) fn setxattr(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let body = &mut request.body;
        let (size, flags) = (body.u32()?, body.u32()?);
        let mut how = 0;
        if self.has_agreed_on(init::SETXATTR_EXT) {
            how = body.u32()?;
            body.u32()?;
        }
        let name = settable(body.text()?)?;
        let value = body.bytes(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
        let inode = self.writable(request.header.node)?;
        let _guard = self.identity.without_set_id(how & SETXATTR_ACL_KILL_SGID != 0)?;
        setxattr(number(&*inode), name, value, XattrFlags::from_bits_retain(flags))
    }

    /// `FUSE_REMOVEXATTR`.
    pub(super) fn removexattr(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let name = settable(request.body.text()?)?;
        removexattr(number(&*self.writable(request.header.node)?), name)
    }
}

/// Lets the name of an attribute pass that a guest may set: a program's own, or an ACL. Others tell the node's kernel what a
/// program may do, or how file systems lie over each other.
fn settable(name: &CStr) -> Result<&CStr, Errno> {
    let bytes = name.to_bytes();
    let is_acl = matches!(bytes, b"system.posix_acl_access" | b"system.posix_acl_default");
    if is_acl || bytes.starts_with(b"user.") { Ok(name) } else { Err(Errno::PERM) }
}
