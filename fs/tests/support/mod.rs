//! A client that speaks FUSE by hand, and the server under it: the real program, in its jail.

#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "tests")]

pub mod node;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ravelin_fs::control::{self, CONTROL_FD, REQUESTS_FD};
use ravelin_fs::message::abi::{self, op};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};
use tempfile::TempDir;

pub const ROOT: u64 = abi::ROOT_ID;
/// Longest time that an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fails where the server cannot be jailed: a test that is left out looks like one that has passed.
pub fn needs_root() {
    let root = rustix::process::geteuid().is_root();
    assert!(root, "these tests have to be run by root: nobody else can jail the file server");
}

/// A scratch directory on a disk, where files have all attributes.
pub fn tree_on_disk() -> TempDir {
    needs_root();
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A server and its two sockets.
pub struct Fs {
    pub child: Child,
    pub control: Option<OwnedFd>,
    pub requests: Option<OwnedFd>,
    unique: u64,
    /// Who asks.
    pub user: (u32, u32),
}

/// A server with one volume, 0, on a scratch directory.
pub struct Scratch {
    pub fs: Fs,
    pub tree: TempDir,
    /// The volume's node.
    pub volume: u64,
}

impl Fs {
    pub fn start() -> Self {
        needs_root();
        let (control, control_end) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (requests, requests_end) = control::request_sockets().unwrap();
        sockopt::set_socket_timeout(&requests, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        sockopt::set_socket_timeout(&control, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ravelin-fs"));
        let (near, far) = (control_end.as_raw_fd(), requests_end.as_raw_fd());
        // SAFETY: the calls between fork and exec take numbers only.
        unsafe {
            command.pre_exec(move || {
                // Out of the way first: either may be where the other belongs.
                let (near, far) = (libc::fcntl(near, libc::F_DUPFD, 10), libc::fcntl(far, libc::F_DUPFD, 10));
                libc::dup2(near, CONTROL_FD);
                libc::dup2(far, REQUESTS_FD);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Self { child, control: Some(control), requests: Some(requests), unique: 1, user: (0, 0) }
    }

    pub fn add(&self, number: u32, read_only: bool, directory: impl AsFd) -> std::io::Result<()> {
        control::add_volume(self.control.as_ref().unwrap(), number, read_only, directory)
    }

    pub fn add_path(&self, number: u32, read_only: bool, path: &Path) {
        self.add(number, read_only, File::open(path).unwrap()).unwrap();
    }

    /// Sends bytes as they are.
    pub fn send(&self, packet: &[u8]) {
        send(self.requests.as_ref().unwrap(), packet, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next answer: which request, its error, and what follows.
    pub fn receive(&self) -> (u64, i32, Vec<u8>) {
        let mut bytes = vec![0; 2 << 20];
        let (_, length) = recv(self.requests.as_ref().unwrap(), &mut bytes, RecvFlags::empty()).unwrap();
        bytes.truncate(length);
        assert_eq!(u32_at(&bytes, 0) as usize, length);
        (u64_at(&bytes, 8), -u32_at(&bytes, 4).cast_signed(), bytes.split_off(abi::OUT_HEADER))
    }

    pub fn packet(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let mut packet = ((abi::IN_HEADER + body.len()) as u32).to_le_bytes().to_vec();
        packet.extend(opcode.to_le_bytes());
        packet.extend(self.unique.to_le_bytes());
        packet.extend(node.to_le_bytes());
        packet.extend(self.user.0.to_le_bytes());
        packet.extend(self.user.1.to_le_bytes());
        packet.extend([0; 8]);
        packet.extend(body);
        packet
    }

    /// Asks and takes the answer: what follows its header, or its error.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let packet = self.packet(opcode, node, body);
        self.send(&packet);
        let (unique, error, data) = self.receive();
        assert_eq!(unique, self.unique, "an answer to something else");
        if error == 0 { Ok(data) } else { Err(error) }
    }

    pub fn init(&mut self) -> Vec<u8> {
        let body = numbers(&[7, 41, 131_072, u32::MAX, u32::MAX]);
        self.ask(op::INIT, 0, &[&body[..], &[0; 44]].concat()).unwrap()
    }

    /// The node of a name.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        self.ask(op::LOOKUP, parent, &text(name)).map(|entry| u64_at(&entry, 0))
    }

    /// `mode`, `uid` and `gid` of a node.
    pub fn owner(&mut self, node: u64) -> (u32, u32, u32) {
        let attributes = self.ask(op::GETATTR, node, &[0; 16]).unwrap();
        let attr = &attributes[16..];
        (u32_at(attr, 60), u32_at(attr, 68), u32_at(attr, 72))
    }

    pub fn size(&mut self, node: u64) -> u64 {
        u64_at(&self.ask(op::GETATTR, node, &[0; 16]).unwrap()[16..], 8)
    }

    /// Makes a file and opens it: node and handle.
    pub fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Result<(u64, u64), i32> {
        let body = [numbers(&[flags.cast_unsigned(), mode, 0o022, 0]), text(name)].concat();
        let entry = self.ask(op::CREATE, parent, &body)?;
        Ok((u64_at(&entry, 0), u64_at(&entry, abi::ENTRY_OUT)))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.ask(op::OPEN, node, &numbers(&[flags.cast_unsigned(), 0])).map(|out| u64_at(&out, 0))
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_as(node, handle, offset, data, 0)
    }

    pub fn write_as(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        how: u32,
    ) -> Result<u32, i32> {
        self.write_with(node, handle, offset, data, how, libc::O_RDWR)
    }

    /// Writes with these flags of the request's and, as they are when it is sent, of the open file's.
    pub fn write_with(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        how: u32,
        flags: i32,
    ) -> Result<u32, i32> {
        let mut body = longs(&[handle, offset]);
        body.extend(numbers(&[data.len() as u32, how, 0, 0, flags.cast_unsigned(), 0]));
        body.extend(data);
        self.ask(op::WRITE, node, &body).map(|out| u32_at(&out, 0))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let body = [longs(&[handle, offset]), numbers(&[size, 0, 0, 0, 0, 0])].concat();
        self.ask(op::READ, node, &body)
    }

    /// Entries of a directory: number of the file, name.
    pub fn list(&mut self, node: u64) -> Vec<(u64, String)> {
        let handle = u64_at(&self.ask(op::OPENDIR, node, &[0; 8]).unwrap(), 0);
        let (mut entries, mut offset) = (Vec::new(), 0);
        loop {
            let body = [longs(&[handle, offset]), numbers(&[4096, 0, 0, 0, 0, 0])].concat();
            let data = self.ask(op::READDIR, node, &body).unwrap();
            if data.is_empty() {
                self.ask(op::RELEASEDIR, node, &longs(&[handle, 0, 0])).unwrap();
                return entries;
            }
            let mut at = 0;
            while at < data.len() {
                let length = u32_at(&data, at + 16) as usize;
                offset = u64_at(&data, at + 8);
                let name = &data[at + 24..at + 24 + length];
                entries.push((u64_at(&data, at), String::from_utf8_lossy(name).into_owned()));
                at += (24 + length).next_multiple_of(8);
            }
        }
    }

    /// Whether the server ends by itself.
    pub fn ends(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Descriptors that the server has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Scratch {
    pub fn new() -> Self {
        Self::with(false)
    }

    pub fn with(read_only: bool) -> Self {
        let tree = TempDir::new().unwrap();
        let mut fs = Fs::start();
        fs.add_path(0, read_only, tree.path());
        fs.init();
        let volume = fs.lookup(ROOT, "0").unwrap();
        Self { fs, tree, volume }
    }

    /// Where a file of the volume is on the node.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.tree.path().join(name)
    }
}

/// Lets a socket carry messages longer than any.
pub fn widen(socket: &OwnedFd) {
    let bytes: libc::c_int = 4 << 20;
    // SAFETY: the option takes an int, which lives here.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    assert_eq!(result, 0);
}

pub fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

pub fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// `struct fuse_setattr_in`.
pub fn changes(valid: u32, handle: u64, size: u64, times: [u64; 2], mode: u32, ids: (u32, u32)) -> Vec<u8> {
    let mut body = numbers(&[valid, 0]);
    body.extend(longs(&[handle, size, 0, times[0], times[1], 0]));
    body.extend(numbers(&[7, 8, 0, mode, 0, ids.0, ids.1, 0]));
    body
}
