//! FUSE messages of any kind on a scratch tree: each is answered, and nothing outside the tree is touched.
#![no_main]

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use ravelin_fs::message::abi::{self, ROOT_ID, op};
use ravelin_fs::message::{MAX_DATA, buffer};
use ravelin_fs::server::Server;
use ravelin_fs::worker;
use ravelin_fuzz::{Input, Scratch};
use rustix::process::{Resource, Rlimit, setrlimit};

const SECRET: &[u8] = b"secret";
/// Bytes that a file may have: the tree is in memory.
const FILE_BYTES: u64 = 1 << 20;
const SILENT: [u32; 4] = [op::FORGET, op::BATCH_FORGET, op::INTERRUPT, op::NOTIFY_REPLY];
const NAMES: [&str; 16] = [
    "a",
    "b",
    "c",
    "dir",
    "link",
    "out",
    "up",
    "pipe",
    "0",
    "1",
    "..",
    ".",
    "",
    "dir/a",
    "/etc/passwd",
    "user.x",
];

/// What a request's body is made of.
#[derive(Clone, Copy)]
enum Field {
    /// A number of 32 bits.
    Word,
    /// One of 64 bits.
    Long,
    /// A file.
    Node,
    /// An open file.
    Handle,
    Name,
    Data,
}

use Field::{Data, Handle, Long, Name, Node, Word};

/// Bodies as the protocol has them.
const BODIES: &[(u32, &[Field])] = &[
    (op::LOOKUP, &[Name]),
    (op::FORGET, &[Long]),
    (op::GETATTR, &[Word, Word, Handle]),
    (
        op::SETATTR,
        &[Word, Word, Handle, Long, Long, Long, Long, Long, Word, Word, Word, Word, Word, Word, Word, Word],
    ),
    (op::READLINK, &[]),
    (op::SYMLINK, &[Name, Name]),
    (op::MKNOD, &[Word, Word, Word, Word, Name]),
    (op::MKDIR, &[Word, Word, Name]),
    (op::UNLINK, &[Name]),
    (op::RMDIR, &[Name]),
    (op::RENAME, &[Node, Name, Name]),
    (op::RENAME2, &[Node, Word, Word, Name, Name]),
    (op::LINK, &[Node, Name]),
    (op::OPEN, &[Word, Word]),
    (op::CREATE, &[Word, Word, Word, Word, Name]),
    (op::TMPFILE, &[Word, Word, Word, Word, Name]),
    (op::READ, &[Handle, Long, Word, Word, Long, Word, Word]),
    (op::WRITE, &[Handle, Long, Word, Word, Long, Word, Word, Data]),
    (op::STATFS, &[]),
    (op::RELEASE, &[Handle, Word, Word, Long]),
    (op::FSYNC, &[Handle, Word, Word]),
    (op::FLUSH, &[Handle, Word, Word, Long]),
    (op::GETXATTR, &[Word, Word, Name]),
    (op::LISTXATTR, &[Word, Word]),
    (op::SETXATTR, &[Word, Word, Word, Word, Name, Data]),
    (op::REMOVEXATTR, &[Name]),
    (op::INIT, &[Word, Word, Word, Word]),
    (op::OPENDIR, &[Word, Word]),
    (op::READDIR, &[Handle, Long, Word, Word, Long, Word, Word]),
    (op::READDIRPLUS, &[Handle, Long, Word, Word, Long, Word, Word]),
    (op::RELEASEDIR, &[Handle, Word, Word, Long]),
    (op::BATCH_FORGET, &[Word, Word, Node, Long, Node, Long]),
    (op::FALLOCATE, &[Handle, Long, Long, Word, Word]),
    (op::LSEEK, &[Handle, Long, Word, Word]),
    (op::COPY_FILE_RANGE, &[Handle, Long, Node, Handle, Long, Long, Long]),
    (op::DESTROY, &[]),
];

/// The thread that answers, which has a working directory of its own.
static WORKER: LazyLock<Mutex<(SyncSender<Vec<u8>>, Receiver<()>)>> = LazyLock::new(|| {
    let (inputs, take) = sync_channel::<Vec<u8>>(0);
    let (done, wait) = sync_channel(0);
    let limit = Rlimit { current: Some(FILE_BYTES), maximum: Some(FILE_BYTES) };
    setrlimit(Resource::Fsize, limit).unwrap();
    // A file that would grow beyond it is an error then, not the end.
    // SAFETY: to ignore a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    std::thread::spawn(move || {
        let scratch = Scratch::new("fuse");
        let descriptors: OwnedFd = File::open("/proc/self/fd").unwrap().into();
        worker::prepare(&descriptors).unwrap();
        for bytes in take {
            play(scratch.path(), descriptors.try_clone().unwrap(), &mut Input::new(&bytes));
            done.send(()).unwrap();
        }
    });
    Mutex::new((inputs, wait))
});

fuzz_target!(|bytes: &[u8]| {
    let worker = WORKER.lock().unwrap();
    worker.0.send(bytes.to_vec()).unwrap();
    worker.1.recv().unwrap();
});

/// A fresh tree with links that lead out of it, and what it must not touch beside it.
fn make_tree(root: &Path) {
    for part in ["tree", "outside"] {
        let _ = fs::remove_dir_all(root.join(part));
        fs::create_dir(root.join(part)).unwrap();
    }
    let (tree, outside) = (root.join("tree"), root.join("outside"));
    fs::write(outside.join("a"), SECRET).unwrap();
    fs::create_dir(tree.join("dir")).unwrap();
    fs::write(tree.join("a"), b"data").unwrap();
    symlink(outside.join("a"), tree.join("link")).unwrap();
    symlink(&outside, tree.join("out")).unwrap();
    symlink("../outside/a", tree.join("up")).unwrap();
}

fn play(root: &Path, descriptors: OwnedFd, input: &mut Input<'_>) {
    make_tree(root);
    let server = Server::new(descriptors);
    let open = |path: &str| File::open(root.join(path)).unwrap();
    server.add_volume(0, false, open("tree").into()).unwrap();
    server.add_volume(1, true, open("tree/dir").into()).unwrap();
    let (mut nodes, mut handles) = (vec![ROOT_ID], vec![0]);
    let mut reply = buffer();
    let mut first = true;
    let mut unique = 0;
    while first || !input.is_empty() {
        let packet = if first { lookup_of_volume() } else { packet(input, &nodes, &handles) };
        first = false;
        unique += 1;
        let mut packet = packet;
        if let Some(place) = packet.get_mut(8..16) {
            place.copy_from_slice(&u64::to_le_bytes(unique));
        }
        let answer = server.answer(&packet, &mut reply, MAX_DATA);
        let opcode = packet.get(4..8).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
        let Some(answer) = answer else {
            assert!(packet.len() < abi::IN_HEADER || opcode.is_some_and(|opcode| SILENT.contains(&opcode)));
            continue;
        };
        assert_eq!(u32_at(answer, 0) as usize, answer.len());
        let error = u32_at(answer, 4).cast_signed();
        assert!((-511..=0).contains(&error), "{opcode:?}: {error}");
        assert_eq!(u64_at(answer, 8), unique);
        assert!(error == 0 || answer.len() == abi::OUT_HEADER);
        if error == 0 {
            let data = &answer[abi::OUT_HEADER..];
            match opcode.unwrap() {
                op::LOOKUP | op::MKDIR | op::MKNOD | op::SYMLINK | op::LINK => nodes.push(u64_at(data, 0)),
                op::CREATE | op::TMPFILE => {
                    nodes.push(u64_at(data, 0));
                    handles.push(u64_at(data, abi::ENTRY_OUT));
                }
                op::OPEN | op::OPENDIR => handles.push(u64_at(data, 0)),
                _ => {}
            }
        }
    }
    drop(server);
    assert_eq!(fs::read_dir(root.join("outside")).unwrap().count(), 1);
    let metadata = fs::metadata(root.join("outside/a")).unwrap();
    assert_eq!((metadata.len(), metadata.uid(), metadata.nlink()), (SECRET.len() as u64, 0, 1));
    assert_eq!(fs::read(root.join("outside/a")).unwrap(), SECRET);
}

fn lookup_of_volume() -> Vec<u8> {
    head(op::LOOKUP, ROOT_ID, (0, 0), b"0\0".to_vec())
}

fn packet(input: &mut Input<'_>, nodes: &[u64], handles: &[u64]) -> Vec<u8> {
    let choice = usize::from(input.u8());
    if choice == 255 {
        let length = input.below(128);
        return input.bytes(length).to_vec();
    }
    let (opcode, fields) = BODIES[choice % BODIES.len()];
    let mut body = Vec::new();
    for field in fields {
        match field {
            Word => body.extend(word(input).to_le_bytes()),
            Long => body.extend(long(input).to_le_bytes()),
            Node => body.extend(one_of(input, nodes).to_le_bytes()),
            Handle => body.extend(one_of(input, handles).to_le_bytes()),
            Name => {
                let name = match input.u8() {
                    255 => {
                        let length = usize::from(input.u8());
                        input.bytes(length)
                    }
                    known => NAMES[usize::from(known) % NAMES.len()].as_bytes(),
                };
                body.extend(name);
                body.push(0);
            }
            Data => body.resize(body.len() + usize::from(input.u8()) * 16, 0x5a),
        }
    }
    match input.u8() {
        // Cut short, or with something behind it.
        0 => body.truncate(usize::from(input.u8())),
        1 => body.resize(body.len() + usize::from(input.u8()), 0xff),
        _ => {}
    }
    let node = one_of(input, nodes);
    let user = (u32::from(input.u8() % 4) * 1000, 0);
    head(opcode, node, user, body)
}

fn head(opcode: u32, node: u64, (uid, gid): (u32, u32), body: Vec<u8>) -> Vec<u8> {
    let length = (abi::IN_HEADER + body.len()) as u32;
    let mut packet = [length.to_le_bytes(), opcode.to_le_bytes(), [0; 4], [0; 4]].concat();
    packet.extend(node.to_le_bytes());
    packet.extend([uid, gid, 0, 0].map(u32::to_le_bytes).concat());
    packet.extend(body);
    packet
}

fn word(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        255 => input.u32(),
        254 => 1 << (input.u8() % 32),
        253 => input.choose(&[0o100_644, 0o10_644, 0o20_644, 0o60_644, 0o2_777, 0o40_755]),
        small => u32::from(small),
    }
}

fn long(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        255 => input.u64(),
        254 => 1 << (input.u8() % 64),
        small => u64::from(small),
    }
}

fn one_of(input: &mut Input<'_>, known: &[u64]) -> u64 {
    match input.u8() {
        255 => input.u64(),
        254 => 0,
        // Mostly those that came last.
        back => known[known.len() - 1 - usize::from(back) % known.len()],
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
