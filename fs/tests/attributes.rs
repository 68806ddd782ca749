//! Owners, modes, times, extended attributes and ACLs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use ravelin_fs::message::abi::{self, fattr, op};
use support::{Fs, ROOT, Scratch, changes, numbers, text, tree_on_disk, u32_at};

const READ_WRITE: i32 = libc::O_RDWR;

#[test]
fn files_belong_to_who_makes_them() {
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
fn a_file_that_somebody_else_made_first_is_opened_by_those_who_may() {
    let mut scratch = Scratch::new();
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    for (name, owner, mode) in [("mine", 1000, 0o600), ("roots", 0, 0o600), ("all", 0, 0o666)] {
        fs::write(scratch.tree.path().join(name), b"data").unwrap();
        let (node, _) = fs.create(volume, name, READ_WRITE, 0).unwrap();
        fs.ask(op::SETATTR, node, &changes(fattr::UID | fattr::MODE, 0, 0, [0; 2], mode, (owner, 0)))
            .unwrap();
    }
    fs.user = (1000, 1000);
    for (name, result) in [("mine", Ok(())), ("roots", Err(libc::EACCES)), ("all", Ok(()))] {
        assert_eq!(fs.create(volume, name, READ_WRITE, 0o644).map(drop), result, "{name}");
    }
    // And the thread is root's again.
    fs.user = (0, 0);
    for _ in 0..8 {
        assert!(fs.create(volume, "roots", READ_WRITE, 0o644).is_ok());
    }
}

/// The guest's kernel says of an unprivileged user that who opens a file so has no right to keep its set-id bits.
#[test]
fn who_may_not_keep_set_id_bits_may_not_open_more_either() {
    let mut scratch = Scratch::new();
    let (volume, path) = (scratch.volume, scratch.path("roots"));
    fs::write(&path, b"root's").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(scratch.path("all"), b"x").unwrap();
    fs::set_permissions(scratch.path("all"), fs::Permissions::from_mode(0o4777)).unwrap();
    let fs = &mut scratch.fs;
    let create = |fs: &mut Fs, name: &str, flags: i32| {
        let how = abi::OPEN_KILL_SUIDGID;
        let body = [numbers(&[flags.cast_unsigned(), 0o600, 0o022, how]), text(name)].concat();
        fs.ask(op::CREATE, volume, &body).map(drop)
    };
    // Each thread of the server's, most likely.
    for _ in 0..8 {
        fs.user = (1000, 1000);
        for flags in [libc::O_RDONLY, READ_WRITE, READ_WRITE | libc::O_TRUNC, libc::O_RDONLY | libc::O_TRUNC]
        {
            assert_eq!(create(fs, "roots", flags), Err(libc::EACCES), "{flags:#o}");
        }
        assert_eq!(create(fs, "all", READ_WRITE), Ok(()));
        fs.user = (0, 0);
        assert_eq!(create(fs, "roots", READ_WRITE), Ok(()));
    }
    assert_eq!(fs::read(&path).unwrap(), b"root's");
    // What is held again afterwards is all, the right to keep set-id bits too; without it they go.
    let all = fs.lookup(volume, "all").unwrap();
    let handle = fs.open(all, READ_WRITE).unwrap();
    fs.write(all, handle, 0, b"y").unwrap();
    assert_eq!(fs.owner(all).0 & 0o7777, 0o4777);
    fs.user = (1000, 1000);
    assert_eq!(create(fs, "all", READ_WRITE | libc::O_TRUNC), Ok(()));
    assert_eq!(fs.owner(all).0 & 0o7777, 0o777);
}

#[test]
fn attributes_change_as_they_are_told() {
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
fn attributes_of_programs_and_acls_are_the_files_own() {
    let tree = tree_on_disk();
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
fn pipes_and_sockets_are_made_and_never_opened() {
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
