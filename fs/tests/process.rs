//! The process: what it is confined to, what the shim may order, and when it ends.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use ravelin_fs::message::abi::op;
use ravelin_fs::worker::WORKERS;
use support::{Fs, ROOT, Scratch, longs, node, numbers, text, u32_at};

/// Lets the server have so many descriptors, as a node's administrator may.
fn allow(fs: &Fs, descriptors: u64) {
    let limit = format!("--nofile={descriptors}:{descriptors}");
    let set = Command::new("prlimit").args([&limit, "--pid", &fs.child.id().to_string()]).status().unwrap();
    assert!(set.success());
}

/// Opens a file until there are no descriptors left.
fn open_all(fs: &mut Fs, file: u64) -> Vec<u64> {
    let mut handles = Vec::new();
    loop {
        match fs.open(file, libc::O_RDONLY) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                assert_eq!(error, libc::EMFILE);
                return handles;
            }
        }
        assert!(handles.len() < 200);
    }
}

#[test]
fn a_guest_that_opens_without_end_meets_a_limit() {
    let mut scratch = Scratch::new();
    fs::write(scratch.path("file"), b"data").unwrap();
    fs::write(scratch.path("other"), b"data").unwrap();
    allow(&scratch.fs, 200);
    let volume = scratch.volume;
    let fs = &mut scratch.fs;
    let file = fs.lookup(volume, "file").unwrap();
    let handles = open_all(fs, file);
    // What needs a descriptor says so, and all else goes on.
    assert_eq!(fs.lookup(volume, "other"), Err(libc::EMFILE));
    assert_eq!(fs.ask(op::OPENDIR, volume, &[0; 8]), Err(libc::EMFILE));
    assert_eq!(fs.read(file, handles[0], 0, 10).unwrap(), b"data");
    assert_eq!(fs.size(file), 4);
    fs.ask(op::UNLINK, volume, &text("other")).unwrap();
    for handle in handles {
        // close() must not fail: programs take that for lost data.
        assert_eq!(fs.ask(op::FLUSH, file, &longs(&[handle, 0, 0])), Ok(Vec::new()));
        fs.ask(op::RELEASE, file, &longs(&[handle, 0, 0])).unwrap();
    }
    assert_eq!(fs.open(file, libc::O_RDONLY).map(drop), Ok(()));
}

#[test]
fn what_the_guest_cannot_be_told_of_is_not_made() {
    let mut scratch = Scratch::new();
    fs::write(scratch.path("file"), b"data").unwrap();
    allow(&scratch.fs, 200);
    let regular = libc::S_IFREG | 0o600;
    let read_write = libc::O_RDWR.cast_unsigned();
    // With the descriptors that each takes: one for what it has made, and one if that is opened too.
    for (opcode, body, takes) in [
        (op::MKDIR, [numbers(&[0o755, 0]), text("new")].concat(), 1),
        (op::MKNOD, [numbers(&[regular, 0, 0, 0]), text("new")].concat(), 1),
        (op::SYMLINK, [text("new"), text("file")].concat(), 1),
        (op::LINK, text("new"), 1),
        (op::CREATE, [numbers(&[read_write, 0o600, 0, 0]), text("new")].concat(), 2),
    ] {
        for free in 0..=takes {
            // A new mount: what an earlier one had open is closed.
            scratch.fs.init();
            let volume = scratch.fs.lookup(ROOT, "0").unwrap();
            let file = scratch.fs.lookup(volume, "file").unwrap();
            for handle in open_all(&mut scratch.fs, file).into_iter().take(free) {
                scratch.fs.ask(op::RELEASE, file, &longs(&[handle, 0, 0])).unwrap();
            }
            let body =
                if opcode == op::LINK { [longs(&[file]), body.clone()].concat() } else { body.clone() };
            let made = scratch.fs.ask(opcode, volume, &body).map(drop);
            let expected = if free < takes { Err(libc::EMFILE) } else { Ok(()) };
            assert_eq!(made, expected, "{opcode} with {free} descriptors");
            let there = fs::symlink_metadata(scratch.path("new")).is_ok();
            assert_eq!(there, made.is_ok(), "{opcode} with {free} descriptors");
        }
        let path = scratch.path("new");
        fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)).unwrap();
    }
}

#[test]
fn it_ends_with_either_of_its_sockets() {
    let mut fs = Fs::start();
    fs.init();
    drop(fs.requests.take());
    assert!(fs.ends());
    let mut fs = Fs::start();
    fs.init();
    drop(fs.control.take());
    assert!(fs.ends());
}

/// As a network file system of a node's may be: nobody answers for it, and who waits waits.
#[test]
fn a_volume_that_does_not_answer_holds_up_neither_orders_nor_the_end() {
    for closes_control in [true, false] {
        let (_nobody, hung) = node::mount();
        let good = tempfile::tempdir().unwrap();
        let mut fs = Fs::start();
        fs.init();
        let begin = Instant::now();
        fs.add(0, false, &hung).unwrap();
        fs.add_path(1, false, good.path());
        let file = tempfile::tempfile().unwrap();
        assert!(fs.add(2, false, file).unwrap_err().to_string().contains("is not a directory"));
        assert!(begin.elapsed() < Duration::from_secs(5));
        fs.lookup(ROOT, "1").unwrap();
        // All that answer requests wait for it now, and one request more for them.
        for _ in 0..=WORKERS {
            let packet = fs.packet(op::LOOKUP, ROOT, &text("0"));
            fs.send(&packet);
        }
        let other = tempfile::tempdir().unwrap();
        fs.add_path(3, false, other.path());
        drop(if closes_control { fs.control.take() } else { fs.requests.take() });
        assert!(fs.ends(), "closes_control: {closes_control}");
    }
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let mut scratch = Scratch::new();
    let control = scratch.fs.control.as_ref().unwrap();
    for packet in [
        &[0_u8][..],
        &numbers(&[16, 1, 5, 0]),
        &numbers(&[16, 2, 5, 0]),
        &numbers(&[16, 1, 5, 2]),
        &numbers(&[20, 1, 5, 0]),
        &numbers(&[20, 1, 5, 0, 0]),
        &[0xff; 4096],
    ] {
        rustix::net::send(control, packet, rustix::net::SendFlags::NOSIGNAL).unwrap();
        let mut answer = [0; 1024];
        let (_, length) = rustix::net::recv(control, &mut answer, rustix::net::RecvFlags::empty()).unwrap();
        assert_eq!((u32_at(&answer, 0) as usize, u32_at(&answer, 4)), (length, 1), "{packet:?}");
    }
    assert_eq!(scratch.fs.lookup(ROOT, "5"), Err(libc::ENOENT));
    assert_eq!(scratch.fs.lookup(ROOT, "0"), Ok(scratch.volume));
}

/// What a pod may have whose cgroup is this process's.
fn descriptors_of_a_pod() -> u64 {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("none");
    let memory = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).unwrap_or_default();
    memory.trim().parse::<u64>().map_or(1 << 18, |bytes| (bytes >> 14).clamp(1 << 16, 1 << 20))
}

#[test]
fn the_process_has_little() {
    let scratch = Scratch::new();
    let pid = scratch.fs.child.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID.
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(field(set), "00000000000000db", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2") && status.contains("CapEff:\t00000000000000db"), "{status}");
    }
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
    // A share of the node's open files, by the memory of the pod's cgroup.
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limit: u64 = limit.split_whitespace().next().unwrap().parse().unwrap();
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let share = descriptors_of_a_pod();
    assert!(limit == share || limit < share && Some(limit) == hard, "{share}, {limits}");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
}
