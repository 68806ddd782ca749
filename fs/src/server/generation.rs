//! What tells a file from another one that had its number. Of a file that is held open the node's own file systems give the number
//! to no other; a network file system does, when somebody else has removed the file there.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, StatxFlags, statx};

/// `MAX_HANDLE_SZ`: most bytes of a handle.
const MAX_HANDLE: usize = 128;

/// What of a file stays as it is from its beginning to its end, and is not its number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Generation {
    /// When it was made: seconds and nanoseconds.
    Born(i64, u32),
    /// Its handle: its kind, and its bytes.
    Handle(i32, Box<[u8]>),
    /// Its file system does not say.
    Unknown,
}

/// `struct file_handle`, with room for any.
#[repr(C)]
struct FileHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; MAX_HANDLE],
}

impl Generation {
    /// That of a file. No file system has to ask anybody for it. The time of birth takes the kernel half as long as a handle, but NFS
    /// tells it on newer kernels only.
    pub fn of(file: impl AsFd) -> Self {
        birth(&file).or_else(|| handle(&file)).unwrap_or(Self::Unknown)
    }

    /// Whether two files of one number are one, as far as their file system tells.
    pub fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Handle(..), Self::Handle(..)) | (Self::Born(..), Self::Born(..)) => self == other,
            _ => true,
        }
    }
}

fn handle(file: &impl AsFd) -> Option<Generation> {
    let mut handle =
        FileHandle { handle_bytes: MAX_HANDLE as u32, handle_type: 0, f_handle: [0; MAX_HANDLE] };
    let mut mount: libc::c_int = 0;
    // SAFETY: the path is empty and ends with a zero byte; `handle` has room for as many bytes as it says, and both places live
    // through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    let bytes = handle.f_handle.get(..usize::try_from(handle.handle_bytes).ok()?)?;
    (result == 0).then(|| Generation::Handle(handle.handle_type, bytes.into()))
}

fn birth(file: &impl AsFd) -> Option<Generation> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(file, c"", flags, StatxFlags::BTIME).ok()?;
    let told = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    told.then_some(Generation::Born(stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_agrees_with_itself_and_with_what_is_not_known() {
        let file = tempfile::tempfile().unwrap();
        // Not every file system tells both.
        let tell = [birth, handle].into_iter().filter_map(|of| Some((of, of(&&file)?)));
        for (of, generation) in tell {
            assert!(generation.agrees(&of(&&file).unwrap()));
            assert!(generation.agrees(&Generation::Unknown) && Generation::Unknown.agrees(&generation));
        }
        let handle = |bytes: &[u8]| Generation::Handle(1, bytes.into());
        assert!(handle(b"same").agrees(&handle(b"same")) && !handle(b"one").agrees(&handle(b"two")));
        assert!(!Generation::Born(1, 2).agrees(&Generation::Born(1, 3)));
        assert!(Generation::Born(1, 2).agrees(&handle(b"one")), "two measures are not compared");
    }
}
