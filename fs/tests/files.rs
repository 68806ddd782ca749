//! Files: made, written, read, moved and closed, on a scratch tree through the server.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use ravelin_fs::message::abi::{self, op};
use support::{Fs, ROOT, Scratch, longs, numbers, text, tree_on_disk, u32_at, u64_at};

const READ_WRITE: i32 = libc::O_RDWR;

#[test]
fn a_file_is_made_written_read_and_synced() {
    let Scratch { mut fs, tree, volume } = Scratch::new();
    let (node, handle) = fs.create(volume, "file", READ_WRITE, 0o666).unwrap();
    assert_eq!(fs.owner(node), (libc::S_IFREG | 0o644, 0, 0));
    assert_eq!(fs.write(node, handle, 0, b"hello"), Ok(5));
    assert_eq!(fs.write(node, handle, 10, b"world"), Ok(5));
    assert_eq!(fs.read(node, handle, 0, 100).unwrap(), b"hello\0\0\0\0\0world");
    assert_eq!(fs.read(node, handle, 15, 100).unwrap(), b"");
    for how in [0, abi::FSYNC_FDATASYNC] {
        fs.ask(op::FSYNC, node, &[longs(&[handle]), numbers(&[how, 0])].concat()).unwrap();
    }
    fs.ask(op::FLUSH, node, &longs(&[handle, 0, 0])).unwrap();
    for node in [node, volume, ROOT] {
        fs.ask(op::SYNCFS, node, &[0; 8]).unwrap();
        fs.ask(op::STATFS, node, &[]).unwrap();
    }
    fs.ask(op::RELEASE, node, &longs(&[handle, 0, 0])).unwrap();
    assert_eq!(fs.read(node, handle, 0, 1), Err(libc::EBADF));
    assert_eq!(fs::read(tree.path().join("file")).unwrap(), b"hello\0\0\0\0\0world");
    // As on the node, a name is taken once.
    assert_eq!(fs.create(volume, "file", READ_WRITE | libc::O_EXCL, 0o600), Err(libc::EEXIST));
    let (again, _) = fs.create(volume, "file", libc::O_RDONLY, 0o600).unwrap();
    assert_eq!(again, node);
}

#[test]
fn one_mebibyte_passes_both_ways_and_directly() {
    let tree = tree_on_disk();
    let mut fs = Fs::start();
    fs.add_path(0, false, tree.path());
    fs.init();
    let volume = fs.lookup(ROOT, "0").unwrap();
    let data: Vec<u8> = (0..1_u32 << 20).map(|number| (number >> 9) as u8).collect();
    for flags in [READ_WRITE, READ_WRITE | libc::O_DIRECT] {
        let name = format!("file{flags}");
        let (node, handle) = fs.create(volume, &name, flags, 0o600).unwrap();
        assert_eq!(fs.write(node, handle, 0, &data), Ok(1 << 20));
        assert!(fs.read(node, handle, 0, 1 << 20).unwrap() == data);
    }
    let (node, handle) = fs.create(volume, "odd", READ_WRITE | libc::O_DIRECT, 0o600).unwrap();
    assert_eq!(fs.write(node, handle, 1, b"abc"), Ok(3), "no block of a disk's has to be filled");
    assert_eq!(fs.read(node, handle, 1, 100).unwrap(), b"abc");
    assert_eq!(fs.read(node, handle, 0, (1 << 20) + 1), Err(libc::EINVAL));
    // The last page of a map ends where the file does.
    let name = tree.path().join("map");
    fs::write(&name, [b'A'; 100]).unwrap();
    let node = fs.lookup(volume, "map").unwrap();
    let handle = fs.open(node, READ_WRITE | libc::O_DIRECT).unwrap();
    assert_eq!(fs.write_with(node, handle, 0, &[b'B'; 100], abi::WRITE_CACHE, 0), Ok(100));
    assert_eq!(fs::read(&name).unwrap(), [b'B'; 100]);
}

#[test]
fn what_is_open_outlives_its_names() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let (old, old_handle) = fs.create(volume, "old", READ_WRITE, 0o600).unwrap();
    let (new, new_handle) = fs.create(volume, "new", READ_WRITE, 0o600).unwrap();
    fs.write(old, old_handle, 0, b"old").unwrap();
    fs.write(new, new_handle, 0, b"new").unwrap();
    let rename = [longs(&[volume]), text("new"), text("old")].concat();
    fs.ask(op::RENAME, volume, &rename).unwrap();
    assert_eq!(fs.read(old, old_handle, 0, 9).unwrap(), b"old");
    assert_eq!(fs.lookup(volume, "old"), Ok(new));
    fs.ask(op::UNLINK, volume, &text("old")).unwrap();
    assert_eq!(fs.write(new, new_handle, 3, b"er"), Ok(2));
    assert_eq!(fs.read(new, new_handle, 0, 9).unwrap(), b"newer");
    assert_eq!(fs.open(new, libc::O_RDONLY).map(|_| ()), Ok(()), "as through a descriptor");
    // No replacing, an exchange, and what is neither.
    fs.create(volume, "a", READ_WRITE, 0o600).unwrap();
    fs.create(volume, "b", READ_WRITE, 0o600).unwrap();
    let mut rename2 = |flags| {
        let body = [longs(&[volume]), numbers(&[flags, 0]), text("a"), text("b")].concat();
        fs.ask(op::RENAME2, volume, &body).map(drop)
    };
    assert_eq!(rename2(1), Err(libc::EEXIST));
    assert_eq!(rename2(2), Ok(()));
    assert_eq!(rename2(4), Err(libc::EINVAL));
    assert_eq!(rename2(1 << 20), Err(libc::EINVAL));
    assert_eq!(rename2(0), Ok(()));
}

#[test]
fn a_file_without_a_name_can_be_given_one() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    fs.user = (1000, 1000);
    let flags = (READ_WRITE | libc::O_TMPFILE).cast_unsigned();
    let entry = fs.ask(op::TMPFILE, volume, &[numbers(&[flags, 0o640, 0, 0]), text("/")].concat()).unwrap();
    let (node, handle) = (u64_at(&entry, 0), u64_at(&entry, abi::ENTRY_OUT));
    fs.write(node, handle, 0, b"data").unwrap();
    assert_eq!(fs.list(volume).len(), 2);
    fs.ask(op::LINK, volume, &[longs(&[node]), text("named")].concat()).unwrap();
    fs.ask(op::LINK, volume, &[longs(&[node]), text("twice")].concat()).unwrap();
    let metadata = fs::metadata(scratch.tree.path().join("named")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.nlink()), (0o640, 1000, 2));
    assert_eq!(fs::read(scratch.tree.path().join("twice")).unwrap(), b"data");
}

#[test]
fn two_who_append_do_not_overwrite_each_other() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let (node, one) = fs.create(volume, "log", libc::O_WRONLY | libc::O_APPEND, 0o600).unwrap();
    let other = fs.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    let flags = libc::O_WRONLY | libc::O_APPEND;
    // Each believes that the file ends where it last saw its end.
    fs.write_with(node, one, 0, b"one ", 0, flags).unwrap();
    fs.write_with(node, other, 0, b"two ", 0, flags).unwrap();
    fs.write_with(node, one, 4, b"three", 0, flags).unwrap();
    // Nor does what the node has appended get lost, wherever a guest believes the end to be.
    fs::File::options()
        .append(true)
        .open(scratch.tree.path().join("log"))
        .unwrap()
        .write_all(b" four")
        .unwrap();
    assert_eq!(fs.write_with(node, one, u64::MAX, b" five", 0, flags), Ok(5));
    assert_eq!(fs::read(scratch.tree.path().join("log")).unwrap(), b"one two three four five");
}

#[test]
fn pages_of_a_map_go_where_they_are_also_if_the_file_is_appended_to() {
    let mut scratch = Scratch::new();
    let (volume, path) = (scratch.volume, scratch.path("file"));
    let fs = &mut scratch.fs;
    let flags = READ_WRITE | libc::O_APPEND;
    let (node, handle) = fs.create(volume, "file", flags, 0o600).unwrap();
    fs.write_with(node, handle, 0, b"AAAA", 0, flags).unwrap();
    // The guest's kernel sends pages with no flags of a file's; those of another one's would mean nothing.
    for (number, flags) in [0, flags].into_iter().enumerate() {
        let data = [b'B' + number as u8; 4];
        assert_eq!(fs.write_with(node, handle, 0, &data, abi::WRITE_CACHE, flags), Ok(4));
        assert_eq!(fs::read(&path).unwrap(), data);
    }
    // One that was opened before, by its own handle.
    let again = fs.open(node, flags).unwrap();
    assert_eq!(fs.write_with(node, again, 2, b"DD", abi::WRITE_CACHE, 0), Ok(2));
    assert_eq!(fs::read(&path).unwrap(), b"CCDD");
}

#[test]
fn appending_can_be_switched_on_and_off() {
    let mut scratch = Scratch::new();
    let (volume, path) = (scratch.volume, scratch.path("file"));
    let fs = &mut scratch.fs;
    for (name, opened) in [("file", READ_WRITE), ("file", READ_WRITE | libc::O_APPEND)] {
        let (node, handle) = fs.create(volume, name, opened | libc::O_TRUNC, 0o600).unwrap();
        fs.write_with(node, handle, 0, b"0123", 0, READ_WRITE).unwrap();
        fs.write_with(node, handle, 0, b"45", 0, READ_WRITE | libc::O_APPEND).unwrap();
        fs.write_with(node, handle, 0, b"x", 0, READ_WRITE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x12345", "opened with {opened:#o}");
    }
}

/// A file that the node's administrator lets only be appended to (`chattr +a`).
#[test]
fn a_file_that_only_grows_is_appended_to_and_not_changed() {
    let tree = tree_on_disk();
    let path = tree.path().join("log");
    fs::write(&path, b"one ").unwrap();
    let file = fs::File::open(&path).unwrap();
    let Ok(attributes) = rustix::fs::ioctl_getflags(&file) else {
        eprintln!("the scratch file system has no such files");
        return;
    };
    rustix::fs::ioctl_setflags(&file, attributes | rustix::fs::IFlags::APPEND).unwrap();
    let mut fs = Fs::start();
    fs.add_path(0, false, tree.path());
    fs.init();
    let volume = fs.lookup(ROOT, "0").unwrap();
    let node = fs.lookup(volume, "log").unwrap();
    let flags = READ_WRITE | libc::O_APPEND;
    let refused = fs.open(node, READ_WRITE);
    let opened = fs.open(node, flags);
    let written = opened.map(|handle| {
        [
            fs.write_with(node, handle, 0, b"two", 0, flags),
            fs.write_with(node, handle, 0, b"x", 0, READ_WRITE),
            fs.write_with(node, handle, 0, b"x", abi::WRITE_CACHE, 0),
        ]
    });
    // So that the tree can be removed, whatever comes below.
    rustix::fs::ioctl_setflags(&file, attributes).unwrap();
    assert_eq!(refused, Err(libc::EPERM));
    assert_eq!(written, Ok([Ok(3), Err(libc::EPERM), Err(libc::EPERM)]));
    assert_eq!(fs::read(&path).unwrap(), b"one two");
}

#[test]
fn space_is_allocated_punched_and_found() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let (node, handle) = fs.create(volume, "file", READ_WRITE, 0o600).unwrap();
    let fallocate = |fs: &mut Fs, offset, length, mode: i32| {
        let body = [longs(&[handle, offset, length]), numbers(&[mode.cast_unsigned(), 0])].concat();
        fs.ask(op::FALLOCATE, node, &body).map(drop)
    };
    assert_eq!(fallocate(fs, 0, 1 << 20, 0), Ok(()));
    assert_eq!(fs.size(node), 1 << 20);
    fs.write(node, handle, 0, &[1; 4096]).unwrap();
    fs.write(node, handle, 65536, &[2; 4096]).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(fs, 0, 65536, punch), Ok(()));
    assert_eq!(fs.read(node, handle, 0, 4).unwrap(), [0; 4]);
    let seek = [longs(&[handle, 0]), numbers(&[libc::SEEK_DATA.cast_unsigned(), 0])].concat();
    assert_eq!(u64_at(&fs.ask(op::LSEEK, node, &seek).unwrap(), 0), 65536);
    assert!(fallocate(fs, 0, 0, 0).is_err());
    assert!(fallocate(fs, u64::MAX, u64::MAX, 0).is_err());
    assert!(fallocate(fs, 0, 1, -1).is_err());
    let (copy, to) = fs.create(volume, "copy", READ_WRITE, 0o600).unwrap();
    let body = longs(&[handle, 65536, copy, to, 0, 4096, 0]);
    assert_eq!(u32_at(&fs.ask(op::COPY_FILE_RANGE, node, &body).unwrap(), 0), 4096);
    assert_eq!(fs.read(copy, to, 0, 2).unwrap(), [2; 2]);
}

#[test]
fn memory_of_long_messages_is_given_back() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let resident = |fs: &Fs| {
        let text = fs::read_to_string(format!("/proc/{}/statm", fs.child.id())).unwrap();
        let pages = text.split(' ').map(|field| field.trim().parse::<u64>().unwrap()).collect::<Vec<_>>();
        (pages[1] - pages[2]) * 4096
    };
    let (node, handle) = fs.create(volume, "file", READ_WRITE, 0o600).unwrap();
    let before = resident(fs);
    let data = vec![7; 1 << 20];
    for _ in 0..16 {
        fs.write(node, handle, 0, &data).unwrap();
        fs.read(node, handle, 0, 1 << 20).unwrap();
    }
    assert!(resident(fs) > before + (1 << 20));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while resident(fs) > before + (256 << 10) {
        assert!(std::time::Instant::now() < deadline, "{} bytes are still resident", resident(fs));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // And it serves on.
    assert!(fs.read(node, handle, 0, 1 << 20).unwrap() == data);
}
