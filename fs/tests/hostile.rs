//! What a guest that means harm may send, and what a tree may hold that a stranger made: an error each, and nothing else.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use ravelin_fs::message::abi::{fattr, op};
use support::{ROOT, Scratch, longs, numbers, text, widen};

/// Whether the server still serves.
fn serves(scratch: &mut Scratch) -> bool {
    scratch.fs.init();
    scratch.volume = scratch.fs.lookup(ROOT, "0").unwrap();
    scratch.fs.lookup(scratch.volume, "no such file") == Err(libc::ENOENT)
}

fn make_device(path: &Path) {
    // SAFETY: the path ends with a zero byte.
    let made = unsafe {
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3))
    };
    assert_eq!(made, 0);
}

#[test]
fn no_name_leads_out_of_a_volume() {
    let mut scratch = Scratch::new();
    fs::create_dir_all(scratch.path("a/b")).unwrap();
    let fs = &mut scratch.fs;
    let a = fs.lookup(scratch.volume, "a").unwrap();
    let b = fs.lookup(a, "b").unwrap();
    for node in [ROOT, scratch.volume, a, b] {
        for name in ["..", ".", "", "/", "/etc", "../..", "a/b", "a/../..", "./a"] {
            assert_eq!(fs.lookup(node, name), Err(libc::EINVAL), "{name:?}");
            let create = [numbers(&[2, 0o600, 0, 0]), text(name)].concat();
            let expected = Err(libc::EINVAL);
            assert_eq!(fs.ask(op::CREATE, node, &create), expected, "{name:?}");
            assert_eq!(fs.ask(op::MKDIR, node, &[numbers(&[0o755, 0]), text(name)].concat()), expected);
            assert_eq!(fs.ask(op::SYMLINK, node, &[text(name), text("x")].concat()), expected);
            assert_eq!(fs.ask(op::UNLINK, node, &text(name)), expected);
            assert_eq!(fs.ask(op::RMDIR, node, &text(name)), expected);
            assert_eq!(fs.ask(op::LINK, node, &[longs(&[a]), text(name)].concat()), expected);
            let rename = [longs(&[a]), text("b"), text(name)].concat();
            assert_eq!(fs.ask(op::RENAME, node, &rename), expected);
        }
    }
    let long = "x".repeat(256);
    assert_eq!(fs.lookup(a, &long), Err(libc::ENAMETOOLONG));
    assert_eq!(fs.lookup(a, &long[1..]), Err(libc::ENOENT));
    // A directory that the node has moved elsewhere has no way up either.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(scratch.tree.path().join("a"), elsewhere.path().join("a")).unwrap();
    assert_eq!(scratch.fs.lookup(b, ".."), Err(libc::EINVAL));
}

#[test]
fn symbolic_links_are_not_followed() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("file"), b"secret").unwrap();
    let mut scratch = Scratch::new();
    symlink(secret.path().join("file"), scratch.path("file")).unwrap();
    symlink(secret.path(), scratch.path("dir")).unwrap();
    symlink(secret.path().join("new"), scratch.path("new")).unwrap();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let dir = fs.lookup(volume, "dir").unwrap();
    assert_eq!(fs.lookup(dir, "file"), Err(libc::ENOTDIR));
    assert_eq!(fs.ask(op::OPENDIR, dir, &[0; 8]), Err(libc::EOPNOTSUPP));
    let file = fs.lookup(volume, "file").unwrap();
    // With all flags that open(2) has, and with those that it has not.
    for bit in 0..32 {
        let flags = (1_u32 << bit).cast_signed();
        assert!(fs.open(file, flags).is_err(), "{flags:#o}");
        for name in ["file", "dir", "new"] {
            assert!(fs.create(volume, name, flags, 0o666).is_err(), "{name} {flags:#o}");
            assert!(fs.create(volume, name, flags | libc::O_RDWR, 0o666).is_err(), "{name} {flags:#o}");
        }
    }
    let mut body = numbers(&[fattr::MODE | fattr::SIZE, 0]);
    body.extend(longs(&[0; 6]));
    body.extend(numbers(&[0, 0, 0, 0o777, 0, 0, 0, 0]));
    assert!(fs.ask(op::SETATTR, file, &body).is_err());
    assert!(fs.ask(op::MKDIR, dir, &[numbers(&[0o755, 0]), text("x")].concat()).is_err());
    // What is linked is the link.
    fs.ask(op::LINK, volume, &[longs(&[file]), text("hard")].concat()).unwrap();
    assert!(fs::symlink_metadata(scratch.tree.path().join("hard")).unwrap().is_symlink());
    assert_eq!(fs::read(secret.path().join("file")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(secret.path()).unwrap().count(), 1);
    assert_eq!(fs::metadata(secret.path().join("file")).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn devices_are_neither_made_nor_opened() {
    let mut scratch = Scratch::new();
    make_device(&scratch.path("null"));
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let node = fs.lookup(volume, "null").unwrap();
    assert_eq!(fs.owner(node).0 & libc::S_IFMT, libc::S_IFCHR);
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_PATH, libc::O_RDWR | libc::O_TRUNC] {
        assert_eq!(fs.open(node, flags), Err(libc::EOPNOTSUPP), "{flags:#o}");
        assert!(fs.create(volume, "null", flags, 0o666).is_err());
    }
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK, 0o170_000, 0] {
        let body = [numbers(&[kind | 0o666, 0x0103, 0, 0]), text("device")].concat();
        assert_eq!(fs.ask(op::MKNOD, volume, &body), Err(libc::EPERM), "{kind:#o}");
    }
    // A whiteout is a device.
    let whiteout = [longs(&[volume]), numbers(&[4, 0]), text("null"), text("moved")].concat();
    assert_eq!(fs.ask(op::RENAME2, volume, &whiteout), Err(libc::EINVAL));
}

#[test]
fn every_opcode_takes_bodies_of_every_length() {
    let mut scratch = Scratch::new();
    fs::write(scratch.path("file"), b"data").unwrap();
    let file = scratch.fs.lookup(scratch.volume, "file").unwrap();
    let silent = [op::FORGET, op::BATCH_FORGET, op::INTERRUPT, op::NOTIFY_REPLY];
    let fills = [0x00_u8, 0x01, 0x7f, 0xff];
    for opcode in (0..64).chain([4096, u32::MAX]).filter(|opcode| !silent.contains(opcode)) {
        for node in [ROOT, scratch.volume, file, 0, u64::MAX] {
            for (number, length) in [0, 1, 7, 8, 15, 16, 24, 40, 64, 88, 100, 200].into_iter().enumerate() {
                let fill = fills[number % fills.len()];
                // An answer comes, whatever it says; what it calls off is asked for again below.
                let _ = scratch.fs.ask(opcode, node, &vec![fill; length]);
            }
        }
    }
    for opcode in silent {
        for length in [0, 1, 8, 16, 24, 100] {
            let packet = scratch.fs.packet(opcode, scratch.volume, &vec![0xff; length]);
            scratch.fs.send(&packet);
        }
    }
    assert!(serves(&mut scratch));
}

#[test]
fn lengths_that_do_not_agree_are_an_error() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    for said in [0_u32, 1, 39, 40, 46, 48, 1 << 20, u32::MAX] {
        let mut packet = fs.packet(op::LOOKUP, volume, &text("file\0"));
        packet[..4].copy_from_slice(&said.to_le_bytes());
        fs.send(&packet);
        assert_eq!(fs.receive().1, if said == 46 { libc::ENOENT } else { libc::EINVAL }, "{said}");
    }
    // Shorter than a header: nobody knows whom to answer.
    for length in [1, 8, 16, 39] {
        fs.send(&vec![0xff; length]);
    }
    // Longer than any message.
    widen(fs.requests.as_ref().unwrap());
    let packet = fs.packet(op::LOOKUP, volume, &vec![b'x'; 3 << 20]);
    fs.send(&packet);
    assert_eq!(fs.receive().1, libc::EINVAL);
    // Sizes of data that is not there, or that no reply holds.
    let (node, handle) = fs.create(volume, "file", libc::O_RDWR, 0o600).unwrap();
    for size in [5, 4096, u32::MAX] {
        let mut body = longs(&[handle, 0]);
        body.extend(numbers(&[size, 0, 0, 0, 0, 0]));
        body.extend(b"data");
        assert_eq!(fs.ask(op::WRITE, node, &body), Err(libc::EINVAL));
    }
    for opcode in [op::READ, op::READDIR, op::READDIRPLUS, op::GETXATTR] {
        let body = match opcode {
            op::GETXATTR => [numbers(&[u32::MAX, 0]), text("user.x")].concat(),
            _ => [longs(&[handle, 0]), numbers(&[u32::MAX, 0, 0, 0, 0, 0])].concat(),
        };
        assert_eq!(fs.ask(opcode, node, &body), Err(libc::EINVAL), "{opcode}");
    }
    for offset in [u64::MAX, 1 << 63] {
        assert_eq!(fs.read(node, handle, offset, 16), Err(libc::EINVAL));
        assert_eq!(fs.write(node, handle, offset, b"x"), Err(libc::EINVAL));
    }
    assert!(serves(&mut scratch));
}

#[test]
fn numbers_that_were_never_given_out_name_nothing() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let (node, handle) = fs.create(volume, "file", libc::O_RDWR, 0o600).unwrap();
    for other in [0, node + 1, u64::MAX] {
        assert_eq!(fs.lookup(other, "x"), Err(libc::ESTALE));
        assert_eq!(fs.open(other, 0), Err(libc::ESTALE));
    }
    for other in [0, handle + 1, u64::MAX] {
        assert_eq!(fs.read(node, other, 0, 1), Err(libc::EBADF));
        assert_eq!(fs.ask(op::RELEASE, node, &longs(&[other, 0, 0])), Err(libc::EBADF));
    }
    // Forgotten more often than it was known, it is gone, and only it.
    let packet = fs.packet(op::FORGET, node, &longs(&[u64::MAX]));
    fs.send(&packet);
    while fs.open(node, 0).is_ok() {}
    let packet = fs.packet(op::FORGET, ROOT, &longs(&[u64::MAX]));
    fs.send(&packet);
    let found = fs.lookup(volume, "file").unwrap();
    assert_ne!(found, node);
    assert_eq!(fs.write(found, handle, 0, b"still open"), Ok(10));
    // A file is no directory, and a directory no file.
    assert_eq!(fs.lookup(found, "x"), Err(libc::ENOTDIR));
    let read = [longs(&[handle, 0]), numbers(&[4096, 0, 0, 0, 0, 0])].concat();
    assert_eq!(fs.ask(op::READDIR, found, &read), Err(libc::ENOTDIR));
    assert_eq!(fs.open(volume, libc::O_RDWR), Err(libc::EISDIR));
}
