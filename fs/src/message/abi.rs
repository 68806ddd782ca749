//! Numbers of the protocol, under their names in `include/uapi/linux/fuse.h` without `FUSE_`.

#![allow(missing_docs, reason = "the header documents them")]

/// Bytes of a page of the guest's.
pub const PAGE: usize = 4096;

/// The protocol's version that replies are written in.
pub const KERNEL_VERSION: u32 = 7;
/// See [`KERNEL_VERSION`].
pub const KERNEL_MINOR_VERSION: u32 = 38;
/// The oldest one whose messages have this form.
pub const LEAST_MINOR_VERSION: u32 = 27;

/// The node of the file system's root.
pub const ROOT_ID: u64 = 1;

/// Lengths of `fuse_in_header` and `fuse_out_header`.
pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;
/// Lengths of `fuse_attr`, `fuse_entry_out` and `fuse_dirent` without its name.
pub const ATTR: usize = 88;
pub const ENTRY_OUT: usize = 40 + ATTR;
pub const DIRENT: usize = 24;

/// `enum fuse_opcode`.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
}

/// Flags of `fuse_init_in` and `fuse_init_out`.
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const DONT_MASK: u32 = 1 << 6;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const POSIX_ACL: u32 = 1 << 20;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const SETXATTR_EXT: u32 = 1 << 29;
    /// There are further flags, `flags2`.
    pub const INIT_EXT: u32 = 1 << 30;
    /// Of `flags2`, where it is bit 40 of all flags.
    pub const ALLOW_IDMAP: u32 = 1 << 8;
}

/// `valid` of `fuse_setattr_in`.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `getattr_flags` of `fuse_getattr_in`: it names an open file.
pub const GETATTR_FH: u32 = 1 << 0;
/// `write_flags` of `fuse_write_in`: pages of the guest's that were changed through a map, written back to where they are.
pub const WRITE_CACHE: u32 = 1 << 0;
/// The same: the writer has no right to keep the file's set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `open_flags` of `fuse_open_in` and `fuse_create_in`: the same.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `setxattr_flags` of `fuse_setxattr_in`: the same.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `fsync_flags` of `fuse_fsync_in`: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
