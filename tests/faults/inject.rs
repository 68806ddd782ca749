//! System calls of a shim, and of what it starts, that fail because a test wants it.
//!
//! By seccomp's user notifications: a launcher in the place of the shim's program loads a filter under which the kernel asks this
//! process about every call of the kinds that the test has named, in the order in which they come, whichever thread or process makes
//! them. strace(1) counts each thread's calls apart, so that there would be no n-th call of a pod's life; it stops its
//! tracees twice a call, which an emulated host does not do fast; and as the shim's parent it would keep containerd's pipes open.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::start_failures::Away;

const SHIM: &str = "/usr/local/bin/containerd-shim-ravelin-v2";
const LAUNCHER: &str = "/usr/local/libexec/ravelin/launcher";
const SOCKET: &[u8] = b"ravelin-faults";

// linux/seccomp.h
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const GO_ON: u32 = 1;

/// A kind of system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Open,
    Mmap,
    Clone,
    Mount,
    Netlink,
    Socket,
    Mkdir,
    Memfd,
    Pipe,
    Eventfd,
    Epoll,
    Unshare,
    Setns,
    Bpf,
    Inotify,
    Tap,
    Kvm,
}

impl Call {
    pub const ALL: [Self; 17] = [
        Self::Open,
        Self::Mmap,
        Self::Clone,
        Self::Mount,
        Self::Netlink,
        Self::Socket,
        Self::Mkdir,
        Self::Memfd,
        Self::Pipe,
        Self::Eventfd,
        Self::Epoll,
        Self::Unshare,
        Self::Setns,
        Self::Bpf,
        Self::Inotify,
        Self::Tap,
        Self::Kvm,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "openat",
            Self::Mmap => "mmap",
            Self::Clone => "clone, clone3, fork",
            Self::Mount => "mount, fsopen, open_tree, move_mount",
            Self::Netlink => "sendto, sendmsg on netlink",
            Self::Socket => "socket, socketpair",
            Self::Mkdir => "mkdir, mkdirat",
            Self::Memfd => "memfd_create",
            Self::Pipe => "pipe2",
            Self::Eventfd => "eventfd2",
            Self::Epoll => "epoll_create1",
            Self::Unshare => "unshare",
            Self::Setns => "setns",
            Self::Bpf => "bpf",
            Self::Inotify => "inotify_init1",
            Self::Tap => "ioctl TUNSETIFF",
            Self::Kvm => "ioctl of KVM",
        }
    }

    /// What the kernel may answer it with when there is no more, or it is not allowed.
    pub fn errors(self) -> &'static [i32] {
        match self {
            Self::Open => &[libc::EMFILE, libc::EACCES, libc::ENOSPC],
            Self::Mmap | Self::Kvm => &[libc::ENOMEM],
            Self::Clone => &[libc::EAGAIN, libc::ENOMEM],
            Self::Mount => &[libc::ENOMEM, libc::EPERM],
            Self::Netlink => &[libc::ENOBUFS],
            Self::Socket | Self::Pipe | Self::Eventfd | Self::Epoll | Self::Inotify => {
                &[libc::EMFILE, libc::ENFILE]
            }
            Self::Mkdir => &[libc::ENOSPC, libc::EACCES],
            Self::Memfd => &[libc::EMFILE],
            Self::Unshare => &[libc::ENOSPC, libc::EPERM],
            Self::Setns => &[libc::EPERM],
            Self::Bpf => &[libc::EPERM, libc::ENOMEM],
            Self::Tap => &[libc::EBUSY, libc::EPERM],
        }
    }

    fn numbers(self) -> &'static [libc::c_long] {
        match self {
            Self::Open => &[libc::SYS_openat],
            Self::Mmap => &[libc::SYS_mmap],
            Self::Clone => &[libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork, libc::SYS_vfork],
            Self::Mount => &[libc::SYS_mount, libc::SYS_fsopen, libc::SYS_open_tree, libc::SYS_move_mount],
            Self::Netlink => &[libc::SYS_sendto, libc::SYS_sendmsg],
            Self::Socket => &[libc::SYS_socket, libc::SYS_socketpair],
            Self::Mkdir => &[libc::SYS_mkdir, libc::SYS_mkdirat],
            Self::Memfd => &[libc::SYS_memfd_create],
            Self::Pipe => &[libc::SYS_pipe2],
            Self::Eventfd => &[libc::SYS_eventfd2],
            Self::Epoll => &[libc::SYS_epoll_create1],
            Self::Unshare => &[libc::SYS_unshare],
            Self::Setns => &[libc::SYS_setns],
            Self::Bpf => &[libc::SYS_bpf],
            Self::Inotify => &[libc::SYS_inotify_init1],
            Self::Tap | Self::Kvm => &[libc::SYS_ioctl],
        }
    }

    fn of(notification: &Notification) -> Option<Self> {
        let number = i64::from(notification.number);
        let request = notification.arguments[1];
        let is = |call: &Self| {
            call.numbers().contains(&number)
                && match call {
                    Self::Tap => request == 0x4004_54ca,
                    // KVMIO is the type of all its requests.
                    Self::Kvm => request >> 8 & 0xff == 0xae,
                    Self::Netlink => is_netlink(notification),
                    _ => true,
                }
        };
        Self::ALL.into_iter().find(is)
    }
}

/// Who makes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// The shim's daemon, `start` and `delete`, and what they start until it is another program.
    Shim,
    /// The machine's process.
    Machine,
    /// mkfs.ext4 and mkfs.erofs.
    Mkfs,
}

impl Caller {
    pub fn name(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Machine => "machine",
            Self::Mkfs => "mkfs",
        }
    }

    fn of(thread: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim();
        let comm = fs::read_to_string(format!("/proc/{group}/comm")).ok()?;
        match comm.trim_end() {
            "ravelin-vmm" => Some(Self::Machine),
            comm if comm.starts_with("mkfs.") => Some(Self::Mkfs),
            // The launcher, until it is the shim.
            _ if fs::read_link(format!("/proc/{thread}/exe")).is_ok_and(|exe| exe.as_os_str() == SHIM) => {
                None
            }
            _ => Some(Self::Shim),
        }
    }
}

/// Which call fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub caller: Caller,
    pub call: Call,
    /// From 1 on.
    pub count: usize,
    pub errno: i32,
}

/// How often each call was made.
pub type Counts = BTreeMap<(Caller, Call), usize>;

/// A shim's program under which calls fail, until this is dropped.
pub struct Injector {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    _away: Away,
}

#[derive(Debug)]
struct Shared {
    calls: Vec<Call>,
    order: Option<Order>,
    /// A cgroup that shims are put into.
    cgroup: Option<PathBuf>,
    counts: Mutex<Counts>,
    /// What has failed.
    failed: Mutex<Option<String>>,
    ends: AtomicBool,
}

impl Injector {
    /// Counts calls.
    #[track_caller]
    pub fn counting() -> Self {
        Self::start(Call::ALL.to_vec(), None, None)
    }

    /// Has one call fail.
    #[track_caller]
    pub fn failing(order: Order) -> Self {
        Self::start(vec![order.call], Some(order), None)
    }

    /// Has shims live in a cgroup.
    #[track_caller]
    pub fn confining(cgroup: PathBuf) -> Self {
        Self::start(Vec::new(), None, Some(cgroup))
    }

    #[track_caller]
    fn start(calls: Vec<Call>, order: Option<Order>, cgroup: Option<PathBuf>) -> Self {
        let address = SocketAddr::from_abstract_name(SOCKET).expect("an address");
        let listener = UnixListener::bind_addr(&address).expect("one injector at a time");
        let shared = Arc::new(Shared {
            calls,
            order,
            cgroup,
            counts: Mutex::default(),
            failed: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        let accepting = Some(std::thread::spawn(move || accept(&listener, &accepting)));
        let away = Away::take(SHIM);
        fs::copy(LAUNCHER, SHIM).expect("the launcher can be put in the shim's place");
        Self { shared, accepting, _away: away }
    }

    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has failed, if its turn has come.
    pub fn failed(&self) -> Option<String> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // Wakes who accepts.
        let address = SocketAddr::from_abstract_name(SOCKET).expect("an address");
        let _ = UnixStream::connect_addr(&address);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || serve(&stream, &shared));
    }
}

/// Takes a launcher's listener and answers the kernel until nobody is left of what came of it.
fn serve(mut stream: &UnixStream, shared: &Shared) -> Option<()> {
    let numbers: Vec<String> =
        shared.calls.iter().flat_map(|call| call.numbers()).map(ToString::to_string).collect();
    writeln!(stream, "{}", numbers.join(" ")).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let (process, listener) = line.trim().split_once(' ')?;
    if let Some(cgroup) = &shared.cgroup {
        fs::write(cgroup.join("cgroup.procs"), process).expect("the shim can be put into a cgroup");
    }
    let listener: i32 = listener.parse().ok()?;
    let listener = (listener >= 0).then(|| copy_of(process.parse().ok()?, listener)).flatten();
    writeln!(stream).ok()?;
    let listener = listener?;
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which outlives the call.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents & libc::POLLIN == 0 {
            // All are gone.
            return Some(());
        }
        let mut notification = Notification::default();
        // SAFETY: the structure is what the request takes, and all zeros as it wants.
        let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut notification) };
        // Who asked may have died.
        if received < 0 {
            continue;
        }
        let error = decide(&notification, shared).unwrap_or_default();
        let flags = if error == 0 { GO_ON } else { 0 };
        let mut answer = Answer { id: notification.id, value: 0, error: -error, flags };
        // SAFETY: as above. Who asked may have died.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut answer) };
    }
}

/// Counts a call; the error that it is to fail with.
fn decide(notification: &Notification, shared: &Shared) -> Option<i32> {
    let caller = Caller::of(notification.process)?;
    let call = Call::of(notification)?;
    let count = {
        let mut counts = shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((caller, call)).or_default();
        *count += 1;
        *count
    };
    let order =
        shared.order.filter(|order| (order.caller, order.call, order.count) == (caller, call, count))?;
    let comm = fs::read_to_string(format!("/proc/{}/comm", notification.process)).unwrap_or_default();
    let path = match call {
        Call::Open => text_at(notification.process, notification.arguments[1]),
        _ => String::new(),
    };
    *shared.failed.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(format!("{path} by {}", comm.trim()));
    Some(order.errno)
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Default)]
struct Notification {
    id: u64,
    process: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Debug)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// A copy of another process's descriptor.
fn copy_of(process: i32, descriptor: i32) -> Option<OwnedFd> {
    // SAFETY: plain system calls on numbers; each descriptor is new and has no other owner.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, process, 0);
        let process = OwnedFd::from_raw_fd(i32::try_from(process).ok().filter(|fd| *fd >= 0)?);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0);
        Some(OwnedFd::from_raw_fd(i32::try_from(copy).ok().filter(|fd| *fd >= 0)?))
    }
}

fn is_netlink(notification: &Notification) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", notification.process)).unwrap_or_default();
    let group =
        status.lines().find_map(|line| line.strip_prefix("Tgid:")).and_then(|id| id.trim().parse().ok());
    let descriptor = i32::try_from(notification.arguments[0]).ok();
    let Some(copy) = group.zip(descriptor).and_then(|(group, descriptor)| copy_of(group, descriptor)) else {
        return false;
    };
    let (mut domain, mut length) = (0_i32, 4);
    // SAFETY: the option is an int.
    let got = unsafe {
        libc::getsockopt(
            copy.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &raw mut length,
        )
    };
    got == 0 && domain == libc::AF_NETLINK
}

/// The text at an address of a thread's memory.
fn text_at(thread: u32, address: u64) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 256];
    let memory = fs::File::open(format!("/proc/{thread}/mem"));
    let read = memory.and_then(|memory| memory.read_at(&mut bytes, address)).unwrap_or_default();
    let text = bytes[..read].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
