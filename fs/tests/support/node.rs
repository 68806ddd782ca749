//! A file system of the node's, played by hand: FUSE once more, on the other side of the server.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use ravelin_fs::message::abi::{self, op};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use super::{longs, needs_root, numbers, u32_at, u64_at};

/// `FUSE_EXPORT_SUPPORT`: files of this file system have handles.
const EXPORT_SUPPORT: u32 = 1 << 4;

/// A file as this file system has it: what names it here, its number for everybody else, its kind and mode, and its length.
#[derive(Debug, Clone, Copy)]
pub struct Played {
    pub node: u64,
    pub ino: u64,
    pub mode: u32,
    pub size: u64,
}

/// Makes a file system, which is mounted nowhere: the end at which requests arrive, and its root.
pub fn mount() -> (File, OwnedFd) {
    needs_root();
    let fuse = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let number = fuse.as_raw_fd().to_string();
    for (key, value) in [("fd", number.as_str()), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")]
    {
        fsconfig_set_string(&context, key, value).unwrap();
    }
    fsconfig_create(&context).unwrap();
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    (fuse, root)
}

/// A file system whose root has `file` under every name; returns its root. It ends with its last user.
pub fn with_one_file(file: Arc<Mutex<Played>>) -> OwnedFd {
    let (mut fuse, root) = mount();
    std::thread::spawn(move || {
        let mut known = vec![Played { node: 1, ino: 1, mode: libc::S_IFDIR | 0o755, size: 0 }];
        let mut request = vec![0; 1 << 20];
        while let Ok(length) = fuse.read(&mut request) {
            let (opcode, unique, node) = (u32_at(&request, 4), u64_at(&request, 8), u64_at(&request, 16));
            let of_node = known.iter().rev().find(|file| file.node == node).copied();
            let body = match opcode {
                op::INIT => {
                    [numbers(&[7, 31, 0, EXPORT_SUPPORT]), numbers(&[0x0010_0010, 4096, 1]), vec![0; 36]]
                        .concat()
                }
                op::LOOKUP => {
                    let file = *file.lock().unwrap();
                    known.push(file);
                    // Nothing is believed for any time.
                    [longs(&[file.node, 1, 0, 0, 0]), attr(&file)].concat()
                }
                op::GETATTR => [longs(&[0, 0]), attr(&of_node.unwrap())].concat(),
                op::FORGET | op::BATCH_FORGET | op::INTERRUPT => continue,
                _ => Vec::new(),
            };
            let error = if body.is_empty() { -libc::ENOSYS } else { 0 };
            let length_of_reply = (abi::OUT_HEADER + body.len()) as u32;
            let header = [numbers(&[length_of_reply, error.cast_unsigned()]), longs(&[unique])].concat();
            assert!(length >= abi::IN_HEADER);
            let _ = fuse.write(&[header, body].concat());
        }
    });
    root
}

/// `struct fuse_attr`.
fn attr(file: &Played) -> Vec<u8> {
    let times = [0; 3];
    let mut attr = longs(&[file.ino, file.size, 0, times[0], times[1], times[2]]);
    attr.extend(numbers(&[0, 0, 0, file.mode, 1, 0, 0, 0, 4096, 0]));
    attr
}
