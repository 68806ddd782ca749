//! The control protocol: how the shim starts and steers one machine.
//!
//! The two ends hold a connected `SOCK_SEQPACKET` Unix socket. Each packet is one JSON document of at most
//! [`MAX_PACKET_BYTES`], with file descriptors attached as `SCM_RIGHTS` where the message says so. The shim sends
//! [`Request`]s; the machine answers each with a [`Message::Reply`] of the same `id`, not always in order, and
//! sends [`Message::Exited`] once, as its last word. When the shim's end closes, the machine ends itself.
//!
//! The machine trusts the shim. The shim treats replies as untrusted: the machine's process may have been taken
//! over by its guest.

pub mod transport;

use serde::{Deserialize, Serialize};

/// Largest packet, in bytes, either side sends or accepts.
pub const MAX_PACKET_BYTES: usize = 64 << 10;

/// Most file descriptors attached to one packet.
pub const MAX_PACKET_FDS: usize = 40;

/// Descriptor number of the control socket in a freshly spawned `ravelin-vmm`.
pub const CONTROL_FD: i32 = 3;

/// A request from the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the shim, repeated in the reply.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// What the shim can ask of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Builds the machine and starts its vCPUs. Must be the first request, sent once.
    ///
    /// Descriptors, in this order: `/dev/kvm`; the kernel image (an uncompressed ELF `vmlinux`); the initramfs;
    /// the scratch disk (raw, read-write); one tap queue per [`MachineConfig::tap_queues`]; and, if
    /// [`MachineConfig::console`] is set, the write end of a pipe that takes the serial console's output.
    Boot(MachineConfig),
    /// Maps an image file into an extent disk. Descriptor: the file, opened read-only unless `writable`.
    AddExtent(Extent),
    /// Takes the extent that starts at `offset` off its disk. Answered when its file is closed, which is when the requests
    /// that were begun before have ended.
    RemoveExtent {
        /// Which disk.
        disk: ExtentDisk,
        /// First byte of the extent.
        offset: u64,
    },
    /// Opens a vsock connection to `port` of the guest. Descriptor: one end of a connected `SOCK_STREAM` socket
    /// pair, which becomes the host side of that connection. Answered when the guest has accepted or refused;
    /// an error if it refuses or stays silent for `within_ms`. Until the guest's agent has written [`GuestMark::Ready`], a
    /// refusal is not final: the connection is asked for again, so that one request sent right after [`Command::Boot`] is
    /// answered as soon as the agent listens.
    Connect {
        /// Guest port.
        port: u32,
        /// Milliseconds that the guest has for its answer.
        within_ms: u32,
    },
    /// Gives the file device its server, a process that answers FUSE requests. Descriptor: one end of a connected
    /// `SOCK_SEQPACKET` socket pair, each packet of which is a whole FUSE message; its send buffer (`SO_SNDBUF`) bounds their
    /// length, to at most 1 MiB of data. Answered when the device has taken it; an error if it has another one that is alive.
    ///
    /// The device hangs up when the guest resets it, and on a server that breaks the protocol. Without a server every request
    /// of the guest fails with `EIO`.
    AttachFileServer,
    /// Stops all vCPUs, then the devices' service, until [`Command::Resume`]. Answered when they stand still; what a disk
    /// is at work at may still end in the guest's memory. An error if they do not within ten seconds, or are resumed
    /// before: the machine then goes on.
    Pause,
    /// Lets a paused machine go on.
    Resume,
    /// Asks the guest to give up so many MiB of its memory in all, by the balloon; fewer than before gives it some back.
    /// Answered at once: [`Metrics::balloon_mib`] tells how far the guest is.
    SetBalloon {
        /// How many; the guest keeps at least 64 MiB.
        mib: u32,
    },
    /// Asks for [`Metrics`].
    Metrics,
    /// Ends the machine at once, as if power were cut.
    Stop,
}

/// A machine's shape; fixed at birth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual CPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB, 64 to 131072.
    pub memory_mib: u32,
    /// MiB of it that the guest is to give up when it boots, as by [`Command::SetBalloon`].
    #[serde(default)]
    pub balloon_mib: u32,
    /// The guest network device's MAC address.
    pub mac: [u8; 6],
    /// The MTU told to the guest.
    pub mtu: u16,
    /// Number of tap queue descriptors, 1 to 32; more than one makes the device multi-queue.
    pub tap_queues: u8,
    /// A serial console on the guest, for debugging; slow.
    pub console: bool,
    /// Appended to the kernel command line; printable ASCII.
    pub extra_cmdline: String,
}

/// One of the two extent disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtentDisk {
    /// Read-only images (EROFS layers); `/dev/vda` in the guest.
    Layers,
    /// Read-write block volumes; `/dev/vdc` in the guest. (`/dev/vdb` is the scratch disk.)
    Volumes,
}

/// Size in bytes of each extent disk's address space: 8 TiB.
pub const EXTENT_DISK_BYTES: u64 = 8 << 40;

/// A file mapped into an extent disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Which disk.
    pub disk: ExtentDisk,
    /// First byte on the disk, a multiple of 4096.
    pub offset: u64,
    /// Length in bytes, a positive multiple of 4096; what the file lacks reads as zeros.
    pub length: u64,
    /// Guest may write; only on [`ExtentDisk::Volumes`].
    pub writable: bool,
}

/// What a machine sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request's id.
        id: u64,
        /// Its result; the error is a sentence for people.
        result: Result<Answer, String>,
    },
    /// The machine ended.
    Exited(ExitReason),
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// To [`Command::Metrics`].
    Metrics(Metrics),
}

/// Counters since the machine's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// VM exits that reached user space, by kind: `mmio_read`, `mmio_write`, `io_in`, `io_out`, `hlt`, ...
    pub exits: std::collections::BTreeMap<String, u64>,
    /// Exits when the guest wrote the agent-ready mark (0 before that).
    pub exits_at_ready: std::collections::BTreeMap<String, u64>,
    /// Microseconds from the process's start: to the first instruction of the guest's kernel.
    pub kernel_entry_us: u64,
    /// Microseconds from the process's start to the agent's ready mark; 0 before it.
    pub agent_ready_us: u64,
    /// Bytes of guest memory that are resident.
    pub guest_resident_bytes: u64,
    /// MiB that the guest says it has given up by the balloon.
    #[serde(default)]
    pub balloon_mib: u32,
    /// What the guest's drivers did against the rules, by device; empty for a correct guest.
    #[serde(default)]
    pub guest_errors: std::collections::BTreeMap<String, u64>,
}

/// Why a machine ended. The process's exit status is [`ExitReason::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reboot, which a pod's machine does not do.
    Reboot,
    /// The guest kernel panicked.
    Panic,
    /// A processor of the guest triple-faulted: its kernel could not even panic, or the host's emulation went wrong.
    TripleFault,
    /// [`Command::Stop`], or the shim went away.
    Stopped,
    /// The machine could not go on: a device or KVM failed.
    Error,
    /// A thread of the machine's process made a system call that it may not make: the process was taken over, or is wrong.
    Forbidden,
}

impl ExitReason {
    /// Exit status of the `ravelin-vmm` process.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Stopped => 1,
            Self::Error => 2,
            Self::Reboot => 10,
            Self::Panic => 11,
            Self::TripleFault => 12,
            Self::Forbidden => 13,
        }
    }
}

/// I/O port through which the guest's agent tells the machine how it stands: one byte, a [`GuestMark`].
pub const MARK_PORT: u16 = 0x600;

/// Bytes the agent writes to [`MARK_PORT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GuestMark {
    /// The agent serves requests.
    Ready = 1,
    /// Power the machine off now.
    PowerOff = 2,
    /// The guest wants a reboot.
    Reboot = 3,
}
