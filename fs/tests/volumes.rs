//! What the guest's programs do with files, done to a scratch tree through the server.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use ravelin_fs::message::abi::{self, fattr, op};
use support::{Fs, ROOT, Scratch, is_root, longs, numbers, text, u32_at, u64_at};

const READ_WRITE: i32 = libc::O_RDWR;

/// `struct fuse_setattr_in`.
fn changes(valid: u32, handle: u64, size: u64, times: [u64; 2], mode: u32, ids: (u32, u32)) -> Vec<u8> {
    let mut body = numbers(&[valid, 0]);
    body.extend(longs(&[handle, size, 0, times[0], times[1], 0]));
    body.extend(numbers(&[7, 8, 0, mode, 0, ids.0, ids.1, 0]));
    body
}

#[test]
fn the_guest_is_told_what_the_server_can() {
    if !is_root() {
        return;
    }
    let mut fs = Fs::start();
    let out = fs.init();
    assert_eq!(out.len(), 64);
    assert_eq!((u32_at(&out, 0), u32_at(&out, 4)), (7, 38));
    let flags = u32_at(&out, 12);
    // WRITEBACK_CACHE, POSIX_LOCKS, FLOCK_LOCKS.
    assert_eq!(flags & (1 << 16 | 1 << 1 | 1 << 10), 0);
    assert_ne!(flags & abi::init::AUTO_INVAL_DATA, 0);
    assert_eq!(u32_at(&out, 20), 1 << 20);
    assert_eq!(u32_at(&out, 28) & 0xffff, 256);
    // A version before all others, and one that is not known yet.
    assert_eq!(fs.ask(op::INIT, 0, &numbers(&[7, 26, 0, 0])), Err(libc::EPROTO));
    let out = fs.ask(op::INIT, 0, &numbers(&[8, 0, 0, 0])).unwrap();
    assert_eq!((out.len(), u32_at(&out, 0)), (64, 7));
}

#[test]
fn volumes_are_folders_of_the_root_and_come_while_it_runs() {
    if !is_root() {
        return;
    }
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(second.path().join("here"), b"x").unwrap();
    let mut fs = Fs::start();
    fs.init();
    assert_eq!(fs.list(ROOT), []);
    assert_eq!(fs.lookup(ROOT, "0"), Err(libc::ENOENT));
    fs.add_path(7, false, first.path());
    fs.add_path(0, true, second.path());
    let names: Vec<String> = fs.list(ROOT).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["0", "7"]);
    let node = fs.lookup(ROOT, "0").unwrap();
    fs.lookup(node, "here").unwrap();
    for other in ["1", "00", "+0", "a", "07"] {
        assert_eq!(fs.lookup(ROOT, other), Err(libc::ENOENT), "{other}");
    }
    assert_eq!(fs.owner(ROOT), (libc::S_IFDIR | 0o555, 0, 0));
    // What is wrong is refused, and what is there stays.
    let error = fs.add(7, false, fs::File::open(second.path()).unwrap()).unwrap_err().to_string();
    assert_eq!(error, "there is a volume 7 already");
    let file = fs::File::open(second.path().join("here")).unwrap();
    assert!(fs.add(1, false, file).unwrap_err().to_string().contains("is not a directory"));
    for (opcode, body) in [
        (op::MKDIR, [numbers(&[0o755, 0]), text("x")].concat()),
        (op::RMDIR, text("7")),
        (op::SETATTR, changes(fattr::MODE, 0, 0, [0; 2], 0o777, (0, 0))),
    ] {
        assert_eq!(fs.ask(opcode, ROOT, &body), Err(libc::EROFS));
    }
}

#[test]
fn a_file_is_made_written_read_and_synced() {
    if !is_root() {
        return;
    }
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
    if !is_root() {
        return;
    }
    let tree = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
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
    assert_eq!(fs.write(node, handle, 1, b"abc"), Err(libc::EINVAL), "the node's disk decides");
    assert_eq!(fs.read(node, handle, 0, (1 << 20) + 1), Err(libc::EINVAL));
}

#[test]
fn files_belong_to_who_makes_them() {
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::new();
    let Scratch { fs, volume, .. } = &mut scratch;
    let volume = *volume;
    fs.user = (1000, 2000);
    // The directory is root's: whether this user may make files in it, by a group perhaps, the guest's kernel has decided.
    let (file, _) = fs.create(volume, "file", READ_WRITE, 0o4755).unwrap();
    assert_eq!(fs.owner(file), (libc::S_IFREG | 0o4755, 1000, 2000));
    fs.ask(op::MKDIR, volume, &[numbers(&[0o777, 0o027]), text("dir")].concat()).unwrap();
    let directory = fs.lookup(volume, "dir").unwrap();
    assert_eq!(fs.owner(directory), (libc::S_IFDIR | 0o750, 1000, 2000));
    fs.ask(op::SYMLINK, volume, &[text("link"), text("../../etc/passwd")].concat()).unwrap();
    let link = fs.lookup(volume, "link").unwrap();
    assert_eq!(fs.owner(link), (libc::S_IFLNK | 0o777, 1000, 2000));
    assert_eq!(fs.ask(op::READLINK, link, &[]).unwrap(), b"../../etc/passwd");
    // A directory that passes its group on.
    fs.user = (0, 0);
    fs.ask(op::SETATTR, directory, &changes(fattr::GID, 0, 0, [0; 2], 0, (0, 3000))).unwrap();
    fs.ask(op::SETATTR, directory, &changes(fattr::MODE, 0, 0, [0; 2], 0o2775, (0, 0))).unwrap();
    fs.user = (1001, 1001);
    let (inside, _) = fs.create(directory, "inside", READ_WRITE, 0o664).unwrap();
    assert_eq!(fs.owner(inside), (libc::S_IFREG | 0o644, 1001, 3000));
    fs.ask(op::MKDIR, directory, &[numbers(&[0o755, 0]), text("below")].concat()).unwrap();
    let below = fs.lookup(directory, "below").unwrap();
    assert_eq!(fs.owner(below), (libc::S_IFDIR | 0o2755, 1001, 3000));
    // Nobody is not somebody.
    fs.user = (u32::MAX, 0);
    assert_eq!(fs.create(volume, "nobody", READ_WRITE, 0o600), Err(libc::EINVAL));
    fs.user = (0, 0);
    let (root, _) = fs.create(volume, "root", READ_WRITE, 0o600).unwrap();
    assert_eq!(fs.owner(root).1, 0);
}

#[test]
fn attributes_change_as_they_are_told() {
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let (node, handle) = fs.create(volume, "file", READ_WRITE, 0o600).unwrap();
    fs.write(node, handle, 0, b"0123456789").unwrap();
    let all = fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::ATIME | fattr::MTIME;
    fs.ask(op::SETATTR, node, &changes(all, 0, 4, [1000, 2000], 0o6755, (5, 6))).unwrap();
    let metadata = fs::metadata(scratch.tree.path().join("file")).unwrap();
    assert_eq!((metadata.mode(), metadata.uid(), metadata.gid()), (libc::S_IFREG | 0o6755, 5, 6));
    assert_eq!((metadata.len(), metadata.atime(), metadata.mtime()), (4, 1000, 2000));
    assert_eq!((metadata.atime_nsec(), metadata.mtime_nsec()), (7, 8));
    fs.ask(op::SETATTR, node, &changes(fattr::SIZE | fattr::FH, handle, 1 << 40, [0; 2], 0, (0, 0))).unwrap();
    assert_eq!(fs.size(node), 1 << 40);
    // A writer without the right to keep them takes the set-id bits away.
    fs.write(node, handle, 0, b"x").unwrap();
    assert_eq!(fs.owner(node).0 & 0o7777, 0o6755);
    fs.write_as(node, handle, 0, b"x", abi::WRITE_KILL_SUIDGID).unwrap();
    assert_eq!(fs.owner(node).0 & 0o7777, 0o755);
    // A link's own time, not that of what it leads to.
    std::os::unix::fs::symlink("file", scratch.tree.path().join("link")).unwrap();
    let link = fs.lookup(volume, "link").unwrap();
    fs.ask(op::SETATTR, link, &changes(fattr::MTIME | fattr::UID, 0, 0, [0, 77], 0, (9, 0))).unwrap();
    let metadata = fs::symlink_metadata(scratch.tree.path().join("link")).unwrap();
    assert_eq!((metadata.mtime(), metadata.uid()), (77, 9));
    assert_eq!(
        fs.ask(op::SETATTR, node, &changes(fattr::UID, 0, 0, [0; 2], 0, (u32::MAX, 0))),
        Err(libc::EINVAL)
    );
}

#[test]
fn what_is_open_outlives_its_names() {
    if !is_root() {
        return;
    }
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
    if !is_root() {
        return;
    }
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
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let (node, one) = fs.create(volume, "log", libc::O_WRONLY | libc::O_APPEND, 0o600).unwrap();
    let other = fs.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    // Each believes that the file ends where it last saw its end.
    fs.write(node, one, 0, b"one ").unwrap();
    fs.write(node, other, 0, b"two ").unwrap();
    fs.write(node, one, 4, b"three").unwrap();
    assert_eq!(fs::read(scratch.tree.path().join("log")).unwrap(), b"one two three");
}

#[test]
fn space_is_allocated_punched_and_found() {
    if !is_root() {
        return;
    }
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
fn attributes_of_programs_and_acls_are_the_files_own() {
    if !is_root() {
        return;
    }
    let tree = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut fs = Fs::start();
    fs.add_path(0, false, tree.path());
    fs.init();
    let volume = fs.lookup(ROOT, "0").unwrap();
    let (node, _) = fs.create(volume, "file", READ_WRITE, 0o600).unwrap();
    let set = |name: &str, value: &[u8]| {
        [numbers(&[value.len() as u32, 0, 0, 0]), text(name), value.to_vec()].concat()
    };
    let get = |size: u32, name: &str| [numbers(&[size, 0]), text(name)].concat();
    fs.ask(op::SETXATTR, node, &set("user.mine", b"value")).unwrap();
    assert_eq!(u32_at(&fs.ask(op::GETXATTR, node, &get(0, "user.mine")).unwrap(), 0), 5);
    assert_eq!(fs.ask(op::GETXATTR, node, &get(100, "user.mine")).unwrap(), b"value");
    assert_eq!(fs.ask(op::GETXATTR, node, &get(2, "user.mine")), Err(libc::ERANGE));
    assert_eq!(fs.ask(op::GETXATTR, node, &get(100, "user.none")), Err(libc::ENODATA));
    assert_eq!(fs.ask(op::LISTXATTR, node, &numbers(&[1000, 0])).unwrap(), b"user.mine\0");
    assert!(u32_at(&fs.ask(op::LISTXATTR, node, &numbers(&[0, 0])).unwrap(), 0) >= 10);
    fs.ask(op::REMOVEXATTR, node, &text("user.mine")).unwrap();
    // What means something to the node is not the guest's to say.
    for name in ["trusted.overlay.opaque", "security.capability", "security.selinux", "system.none", ""] {
        assert!(fs.ask(op::SETXATTR, node, &set(name, b"y")).is_err(), "{name}");
    }
    // An ACL: owner, one more user (1234: rw), group, mask, others.
    let mut acl = numbers(&[2]);
    for (tag, permission, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 6, 1234), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend([tag.to_le_bytes(), permission.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    match fs.ask(op::SETXATTR, node, &set("system.posix_acl_access", &acl)) {
        Err(libc::EOPNOTSUPP) => eprintln!("the scratch file system has no ACLs"),
        other => {
            other.unwrap();
            assert_eq!(fs.ask(op::GETXATTR, node, &get(100, "system.posix_acl_access")).unwrap(), acl);
            assert_eq!(fs.owner(node).0 & 0o777, 0o660);
            // A directory's default ACL counts, and the mask of who makes a file does not.
            fs.ask(op::SETXATTR, volume, &set("system.posix_acl_default", &acl)).unwrap();
            let (inside, _) = fs.create(volume, "inside", READ_WRITE, 0o666).unwrap();
            assert_eq!(fs.owner(inside).0 & 0o777, 0o660);
        }
    }
}

#[test]
fn large_directories_are_read_to_their_end() {
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::new();
    for number in 0..3000 {
        fs::write(scratch.path(&format!("{number:0>200}")), b"").unwrap();
    }
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    assert_eq!(fs.list(volume).len(), 3002);
    // With what the entries are; each counts as a lookup.
    let before = fs.descriptors();
    let handle = u64_at(&fs.ask(op::OPENDIR, volume, &[0; 8]).unwrap(), 0);
    let (mut nodes, mut offset) = (Vec::new(), 0);
    loop {
        let body = [longs(&[handle, offset]), numbers(&[32768, 0, 0, 0, 0, 0])].concat();
        let data = fs.ask(op::READDIRPLUS, volume, &body).unwrap();
        if data.is_empty() {
            break;
        }
        let mut at = 0;
        while at < data.len() {
            nodes.push(u64_at(&data, at));
            offset = u64_at(&data, at + 128 + 8);
            at += 128 + (24 + u32_at(&data, at + 128 + 16) as usize).next_multiple_of(8);
        }
    }
    assert_eq!(nodes.iter().filter(|node| **node == 0).count(), 2, ". and ..");
    assert_eq!(fs.descriptors(), before + 3001);
    let mut forget = numbers(&[nodes.len() as u32, 0]);
    nodes.iter().for_each(|node| forget.extend(longs(&[*node, 1])));
    let packet = fs.packet(op::BATCH_FORGET, 0, &forget);
    fs.send(&packet);
    fs.ask(op::RELEASEDIR, volume, &longs(&[handle, 0, 0])).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while fs.descriptors() > before && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(fs.descriptors(), before);
}

#[test]
fn nothing_changes_in_a_volume_that_is_read_only() {
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::with(true);
    fs::write(scratch.path("file"), b"data").unwrap();
    fs::create_dir(scratch.path("dir")).unwrap();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let file = fs.lookup(volume, "file").unwrap();
    let handle = fs.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(fs.read(file, handle, 0, 9).unwrap(), b"data");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(fs.open(file, flags), Err(libc::EROFS));
    }
    assert_eq!(fs.write(file, handle, 0, b"x"), Err(libc::EBADF));
    assert_eq!(fs.create(volume, "new", READ_WRITE, 0o600), Err(libc::EROFS));
    for (opcode, node, body) in [
        (op::MKDIR, volume, [numbers(&[0o755, 0]), text("x")].concat()),
        (op::MKNOD, volume, [numbers(&[libc::S_IFREG | 0o644, 0, 0, 0]), text("x")].concat()),
        (op::SYMLINK, volume, [text("x"), text("y")].concat()),
        (op::UNLINK, volume, text("file")),
        (op::RMDIR, volume, text("dir")),
        (op::RENAME, volume, [longs(&[volume]), text("file"), text("x")].concat()),
        (op::LINK, volume, [longs(&[file]), text("x")].concat()),
        (op::TMPFILE, volume, [numbers(&[2, 0o600, 0, 0]), text("/")].concat()),
        (op::SETATTR, file, changes(fattr::MODE, 0, 0, [0; 2], 0, (0, 0))),
        (op::SETATTR, file, changes(fattr::SIZE | fattr::FH, handle, 0, [0; 2], 0, (0, 0))),
        (op::SETXATTR, file, [numbers(&[1, 0, 0, 0]), text("user.x"), vec![1]].concat()),
        (op::REMOVEXATTR, file, text("user.x")),
    ] {
        assert_eq!(fs.ask(opcode, node, &body), Err(libc::EROFS), "{opcode}");
    }
    assert_eq!(fs::read(scratch.tree.path().join("file")).unwrap(), b"data");
}

#[test]
fn two_volumes_are_two_file_systems() {
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::new();
    let other = tempfile::tempdir().unwrap();
    scratch.fs.add_path(1, false, other.path());
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let second = fs.lookup(ROOT, "1").unwrap();
    let (node, _) = fs.create(volume, "file", READ_WRITE, 0o600).unwrap();
    let link = [longs(&[node]), text("x")].concat();
    assert_eq!(fs.ask(op::LINK, second, &link), Err(libc::EXDEV));
    let rename = [longs(&[second]), text("file"), text("x")].concat();
    assert_eq!(fs.ask(op::RENAME, volume, &rename), Err(libc::EXDEV));
}

#[test]
fn a_change_of_the_nodes_is_seen() {
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let (node, handle) = fs.create(volume, "file", READ_WRITE, 0o600).unwrap();
    let entry = fs.ask(op::LOOKUP, volume, &text("file")).unwrap();
    assert_eq!((u64_at(&entry, 16), u64_at(&entry, 24)), (1, 1), "believed for a second");
    fs::write(scratch.tree.path().join("file"), b"from the node").unwrap();
    assert_eq!(fs.size(node), 13);
    assert_eq!(fs.read(node, handle, 0, 99).unwrap(), b"from the node");
    let mut permissions = fs::metadata(scratch.tree.path().join("file")).unwrap().permissions();
    permissions.set_mode(0o640);
    fs::set_permissions(scratch.tree.path().join("file"), permissions).unwrap();
    assert_eq!(fs.owner(node).0 & 0o777, 0o640);
}

#[test]
fn pipes_and_sockets_are_made_and_never_opened() {
    if !is_root() {
        return;
    }
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    for (name, kind) in [("pipe", libc::S_IFIFO), ("socket", libc::S_IFSOCK)] {
        fs.ask(op::MKNOD, volume, &[numbers(&[kind | 0o666, 0, 0o022, 0]), text(name)].concat()).unwrap();
        let node = fs.lookup(volume, name).unwrap();
        assert_eq!(fs.owner(node).0, kind | 0o644);
        assert_eq!(fs.open(node, libc::O_RDONLY), Err(libc::EOPNOTSUPP));
        let cut = changes(fattr::SIZE, 0, 0, [0; 2], 0, (0, 0));
        assert_eq!(fs.ask(op::SETATTR, node, &cut), Err(libc::EOPNOTSUPP));
    }
    assert!(fs::metadata(scratch.tree.path().join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn memory_of_long_messages_is_given_back() {
    if !is_root() {
        return;
    }
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
