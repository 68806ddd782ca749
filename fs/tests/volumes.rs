//! Volumes: how they come, what may be changed in them, and how they are listed.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use ravelin_fs::message::abi::{self, fattr, op};
use rustix::mount::{OpenTreeFlags, open_tree};
use support::node::{self, Played};
use support::{Fs, ROOT, Scratch, changes, longs, needs_root, numbers, text, u32_at, u64_at};

const READ_WRITE: i32 = libc::O_RDWR;

#[test]
fn the_guest_is_told_what_the_server_can() {
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
    // Of the further flags the one for mounts that map ids, and none to a kernel that knows none.
    assert_eq!(
        (flags & abi::init::INIT_EXT, u32_at(&out, 32)),
        (abi::init::INIT_EXT, abi::init::ALLOW_IDMAP)
    );
    let out = fs.ask(op::INIT, 0, &numbers(&[7, 31, 0, !abi::init::INIT_EXT])).unwrap();
    assert_eq!((u32_at(&out, 12) & abi::init::INIT_EXT, u32_at(&out, 32)), (0, 0));
    // A version before all others, and one that is not known yet.
    assert_eq!(fs.ask(op::INIT, 0, &numbers(&[7, 26, 0, 0])), Err(libc::EPROTO));
    let out = fs.ask(op::INIT, 0, &numbers(&[8, 0, 0, 0])).unwrap();
    assert_eq!((out.len(), u32_at(&out, 0)), (64, 7));
}

#[test]
fn volumes_are_folders_of_the_root_and_come_while_it_runs() {
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
fn large_directories_are_read_to_their_end() {
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
        (op::RENAME2, volume, [longs(&[volume]), numbers(&[2, 0]), text("file"), text("dir")].concat()),
        (op::LINK, volume, [longs(&[file]), text("x")].concat()),
        (op::TMPFILE, volume, [numbers(&[2, 0o600, 0, 0]), text("/")].concat()),
        (op::SETATTR, file, changes(fattr::MODE, 0, 0, [0; 2], 0, (0, 0))),
        (op::SETATTR, file, changes(fattr::SIZE | fattr::FH, handle, 0, [0; 2], 0, (0, 0))),
        (op::SETXATTR, file, [numbers(&[1, 0, 0, 0]), text("user.x"), vec![1]].concat()),
        (op::REMOVEXATTR, file, text("user.x")),
    ] {
        assert_eq!(fs.ask(opcode, node, &body), Err(libc::EROFS), "{opcode}");
    }
    // What is open there is open for reading.
    let fallocate = [longs(&[handle, 0, 4096]), numbers(&[0, 0])].concat();
    assert_eq!(fs.ask(op::FALLOCATE, file, &fallocate), Err(libc::EBADF));
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let punch = [longs(&[handle, 0, 4096]), numbers(&[punch.cast_unsigned(), 0])].concat();
    assert_eq!(fs.ask(op::FALLOCATE, file, &punch), Err(libc::EBADF));
    let copy = longs(&[handle, 0, file, handle, 2, 2, 0]);
    assert_eq!(fs.ask(op::COPY_FILE_RANGE, file, &copy), Err(libc::EBADF));
    assert_eq!(fs::read(scratch.tree.path().join("file")).unwrap(), b"data");
    assert_eq!(fs::read_dir(scratch.tree.path()).unwrap().count(), 2);
}

#[test]
fn two_volumes_are_two_file_systems() {
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

/// On a network file system a number is free for a new file as soon as somebody else has removed the old one.
#[test]
fn two_files_that_had_one_number_are_two() {
    let played = |node, mode, size| Played { node, ino: 42, mode, size };
    let regular = libc::S_IFREG | 0o644;
    let file = Arc::new(Mutex::new(played(2, regular, 3)));
    let mut fs = Fs::start();
    fs.add(0, false, node::with_one_file(Arc::clone(&file))).unwrap();
    fs.init();
    let volume = fs.lookup(ROOT, "0").unwrap();
    let old = fs.lookup(volume, "file").unwrap();
    assert_eq!(fs.lookup(volume, "file"), Ok(old));
    *file.lock().unwrap() = played(3, regular, 5);
    let new = fs.lookup(volume, "file").unwrap();
    assert_ne!(new, old, "another file");
    assert_eq!((fs.size(old), fs.size(new)), (3, 5));
    assert_eq!(fs.lookup(volume, "file"), Ok(new));
    // That the old one is forgotten is nothing to the new one.
    let packet = fs.packet(op::FORGET, old, &longs(&[2]));
    fs.send(&packet);
    while fs.ask(op::GETATTR, old, &[0; 16]).is_ok() {}
    assert_eq!(fs.lookup(volume, "file"), Ok(new));
    *file.lock().unwrap() = played(4, libc::S_IFDIR | 0o755, 0);
    let directory = fs.lookup(volume, "file").unwrap();
    assert_ne!(directory, new);
    assert_eq!(fs.owner(directory).0 & libc::S_IFMT, libc::S_IFDIR);
}

/// As the shim hands volumes over: a clone of the mount that is in no namespace, on which the kernel follows and runs nothing.
#[test]
fn a_detached_mount_is_served_as_any_directory() {
    needs_root();
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), b"data").unwrap();
    std::os::unix::fs::symlink("file", tree.path().join("link")).unwrap();
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let detached = open_tree(rustix::fs::CWD, tree.path(), flags).unwrap();
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NOEXEC
        | libc::MOUNT_ATTR_NOSYMFOLLOW;
    attributes.propagation = libc::MS_PRIVATE;
    // SAFETY: the path is NUL-terminated, and `attributes`, whose size is told, lives through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            detached.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let mut server = Fs::start();
    server.add(3, false, &detached).unwrap();
    drop(detached);
    server.init();
    let volume = server.lookup(ROOT, "3").unwrap();
    let file = server.lookup(volume, "file").unwrap();
    let handle = server.open(file, READ_WRITE).unwrap();
    assert_eq!(server.read(file, handle, 0, 10).unwrap(), b"data");
    server.write(file, handle, 0, b"DATA").unwrap();
    assert_eq!(fs::read(tree.path().join("file")).unwrap(), b"DATA");
    let link = server.lookup(volume, "link").unwrap();
    assert_eq!(server.ask(op::READLINK, link, &[]).unwrap(), b"file");
    let (made, _) = server.create(volume, "made", READ_WRITE, 0o4755).unwrap();
    assert_eq!(server.owner(made).0 & 0o7777, 0o4755);
    assert!(tree.path().join("made").exists());
}
