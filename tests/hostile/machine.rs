//! A machine without a shim: the installed `ravelin-vmm`, its control socket in the test's hands.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use ravelin_tests::{PATIENCE, eventually};
use ravelin_vmm::control::transport;
use ravelin_vmm::control::{
    Answer, CONTROL_FD, Command, ExitReason, MachineConfig, Message, Metrics, Request,
};

use super::guest::{self, MEMORY_END, Op};

const PROGRAM: &str = "/usr/local/libexec/ravelin/ravelin-vmm";
/// A user that no pod's machine is.
const USER: &str = "3999999999";
const SCRATCH_BYTES: u64 = 64 << 20;
/// Most that a machine may grow by, beside its guest's memory.
const MAX_GROWTH_KIB: u64 = 64 << 10;
/// How long an answer may take, and how many in a row may take longer: the host is emulated, and not always at once.
const ANSWER_TIME: Duration = Duration::from_secs(1);
const MOST_LATE: u32 = 5;

/// A running machine.
pub struct Machine {
    process: Child,
    control: OwnedFd,
    last_id: u64,
}

impl Machine {
    /// Starts a machine whose guest does `ops` again and again.
    pub fn start(ops: &[Op]) -> Self {
        let (ours, theirs) = transport::pair().unwrap();
        let number = theirs.as_raw_fd();
        let mut command = Process::new(PROGRAM);
        command.args([
            "--uid",
            USER,
            "--gid",
            USER,
            "--vcpus",
            "1",
            "--scratch-bytes",
            &SCRATCH_BYTES.to_string(),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: dup2 takes numbers only and may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::dup2(number, CONTROL_FD) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let process = command.spawn().unwrap();
        drop(theirs);
        let mut machine = Self { process, control: ours, last_id: 0 };

        let files = [file(&guest::elf(ops)), file(&[0; 4096]), scratch()];
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let tap = tap();
        let [kernel, initramfs, scratch] = &files;
        let fds = [kvm.as_fd(), kernel.as_fd(), initramfs.as_fd(), scratch.as_fd(), tap.as_fd()];
        let config = MachineConfig {
            vcpus: 1,
            memory_mib: MEMORY_END >> 20,
            balloon_mib: 0,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            tap_queues: 1,
            console: false,
            extra_cmdline: String::new(),
        };
        let booted = machine.ask(Command::Boot(config), &fds);
        assert_eq!(booted, Ok(Answer::Done));
        machine
    }

    /// Looks after the machine until its guest has come out to it so often.
    pub fn endure(&mut self, name: &str, exits: u64) {
        let before = self.metrics(name);
        let before = self.anonymous_kib(&before);
        let (deadline, mut late) = (Instant::now() + PATIENCE, 0);
        loop {
            let began = Instant::now();
            let metrics = self.metrics(name);
            late = if began.elapsed() > ANSWER_TIME { late + 1 } else { 0 };
            assert!(late <= MOST_LATE, "{name}: the machine answers late, {late} times in a row");
            let grown = self.anonymous_kib(&metrics).saturating_sub(before);
            assert!(grown <= MAX_GROWTH_KIB, "{name}: the machine has grown by {grown} KiB");
            if metrics.exits.values().sum::<u64>() >= exits {
                println!("{name}: {:?}, the guest's errors {:?}", metrics.exits, metrics.guest_errors);
                return;
            }
            assert!(Instant::now() < deadline, "{name}: the guest gets no further: {metrics:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends the machine, which must be at its shim's orders as any other.
    pub fn stop(mut self, name: &str) {
        assert_eq!(self.ask(Command::Pause, &[]), Ok(Answer::Done), "{name}");
        assert_eq!(self.ask(Command::Resume, &[]), Ok(Answer::Done), "{name}");
        assert_eq!(self.ask(Command::Stop, &[]), Ok(Answer::Done), "{name}");
        let status = eventually("the machine has ended", || self.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(ExitReason::Stopped.code().into()), "{name}: {status:?}");
    }

    fn metrics(&mut self, name: &str) -> Metrics {
        match self.ask(Command::Metrics, &[]) {
            Ok(Answer::Metrics(metrics)) => metrics,
            other => panic!("{name}: {other:?}, and the machine is {:?}", self.process.try_wait()),
        }
    }

    /// Asks the machine something. A machine that has ended says so instead of answering.
    fn ask(&mut self, command: Command, fds: &[BorrowedFd<'_>]) -> Result<Answer, String> {
        self.last_id += 1;
        let request = Request { id: self.last_id, command };
        transport::send(&self.control, &request, fds).map_err(|error| error.to_string())?;
        loop {
            match transport::recv::<Message>(&self.control) {
                Ok(Some(packet)) => match packet.message {
                    Message::Reply { id, result } if id == self.last_id => return result,
                    Message::Reply { .. } => {}
                    Message::Exited(reason) => return Err(format!("the machine ended: {reason:?}")),
                },
                Ok(None) => return Err("the machine has closed its socket".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Memory of the process that is nobody's else, without its guest's, in KiB.
    fn anonymous_kib(&self, metrics: &Metrics) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib.saturating_sub(metrics.guest_resident_bytes >> 10)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file without a name that holds `bytes`.
fn file(bytes: &[u8]) -> File {
    let mut file = nameless();
    file.write_all(bytes).unwrap();
    file
}

fn scratch() -> File {
    let file = nameless();
    file.set_len(SCRATCH_BYTES).unwrap();
    file
}

fn nameless() -> File {
    File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open("/var/tmp").unwrap()
}

/// The queue of a tap that is up, in a network of its own where nobody is.
fn tap() -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let make = || {
        let check = |result: i32| assert!(result >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the calls take numbers, or an ifreq that lives as long as they do.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNET));
            let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
            let mut request: libc::ifreq = std::mem::zeroed();
            for (target, source) in request.ifr_name.iter_mut().zip(b"hostile") {
                *target = source.cast_signed();
            }
            request.ifr_ifru.ifru_flags = FLAGS as i16;
            check(libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request));
            let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0));
            request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
            check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request));
            tap
        }
    };
    // A network namespace of this thread alone; the tap keeps it.
    std::thread::spawn(make).join().unwrap()
}
