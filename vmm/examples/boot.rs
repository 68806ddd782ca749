//! Boots a machine by hand, playing the shim: for trying a kernel or an initramfs and for looking into failed boots.
//!
//! Run as root on a host with KVM:
//!
//! ```text
//! boot --kernel vmlinux --initramfs initramfs.cpio --console [--vcpus 2] [--memory 512] [--tap-queues 2]
//!      [--layer image.erofs]... [--scratch disk.img] [--connect PORT] [--append "more=arguments"] [--seconds 30]
//!      [--vmm path/to/ravelin-vmm] [--ready] [--metrics-after MS [--pause]]
//!      [--echoes N [--port PORT]]
//! ```
//!
//! It makes a tap (`--tap NAME` names it, default `boot0`), starts `ravelin-vmm`, shows the guest's console on standard
//! output and, at the end, how the machine ended on standard error.
//!
//! * `--layer`: an image mapped into /dev/vda, 1 GiB behind the one before.
//! * `--scratch`: the disk behind /dev/vdb; without it an empty one of 1 GiB.
//! * `--connect`: ties standard input and output to that vsock port of the guest, then shows the metrics and stops.
//! * `--echoes`: opens N connections at once to a port that sends everything back, and checks that it does.
//! * `--ready`: waits for the agent's ready mark and shows the metrics.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use ravelin_vmm::control::transport::{pair, recv, send};
use ravelin_vmm::control::{
    Answer, CONTROL_FD, Command, Extent, ExtentDisk, MachineConfig, Message, Metrics, Request,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Distance between layers on their disk.
const LAYER_STEP: u64 = 1 << 30;

#[derive(Debug)]
struct Options {
    vmm: String,
    kernel: String,
    initramfs: String,
    scratch: Option<String>,
    layers: Vec<String>,
    vcpus: u8,
    memory_mib: u32,
    tap: String,
    tap_queues: u8,
    console: bool,
    append: String,
    connect: Option<u32>,
    seconds: u64,
    metrics_after: Option<u64>,
    pause: bool,
    ready: bool,
    echoes: usize,
    connect_port: u32,
}

impl Options {
    fn parse() -> Result<Self> {
        let beside = std::env::current_exe()?;
        let vmm = beside.parent().and_then(|parent| parent.parent()).map(|parent| parent.join("ravelin-vmm"));
        let mut options = Self {
            vmm: vmm.map(|path| path.display().to_string()).unwrap_or_default(),
            kernel: String::new(),
            initramfs: String::new(),
            scratch: None,
            layers: Vec::new(),
            vcpus: 1,
            memory_mib: 256,
            tap: "boot0".into(),
            tap_queues: 1,
            console: false,
            append: String::new(),
            connect: None,
            seconds: 60,
            metrics_after: None,
            pause: false,
            ready: false,
            echoes: 0,
            connect_port: 1024,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--vmm" => options.vmm = value()?,
                "--kernel" => options.kernel = value()?,
                "--initramfs" => options.initramfs = value()?,
                "--scratch" => options.scratch = Some(value()?),
                "--layer" => options.layers.push(value()?),
                "--vcpus" => options.vcpus = value()?.parse()?,
                "--memory" => options.memory_mib = value()?.parse()?,
                "--tap" => options.tap = value()?,
                "--tap-queues" => options.tap_queues = value()?.parse()?,
                "--console" => options.console = true,
                "--append" => options.append = value()?,
                "--connect" => options.connect = Some(value()?.parse()?),
                "--seconds" => options.seconds = value()?.parse()?,
                "--metrics-after" => options.metrics_after = Some(value()?.parse()?),
                "--ready" => options.ready = true,
                "--echoes" => options.echoes = value()?.parse()?,
                "--port" => options.connect_port = value()?.parse()?,
                "--pause" => options.pause = true,
                other => return Err(format!("Unknown argument {other}; see the top of boot.rs").into()),
            }
        }
        Ok(options)
    }
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    let (ours, theirs) = pair()?;
    let mut child = spawn(&options, &theirs)?;
    drop(theirs);
    let shim =
        Shim { control: ours, next_id: 0, deadline: Instant::now() + Duration::from_secs(options.seconds) };
    let result = drive(shim, &options);
    // If the machine is not gone by itself, the closed socket ends it.
    let status = child.wait()?;
    eprintln!("ravelin-vmm ended with {status}");
    result
}

/// Starts `ravelin-vmm` with `control` at the agreed descriptor.
fn spawn(options: &Options, control: &OwnedFd) -> Result<Child> {
    let control = control.as_raw_fd();
    let mut process = Process::new(&options.vmm);
    process.args(["--uid", "65534", "--gid", "65534"]).stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: dup2 and fcntl are async-signal-safe.
    unsafe {
        process.pre_exec(move || {
            let result = if control == CONTROL_FD {
                libc::fcntl(control, libc::F_SETFD, 0)
            } else {
                libc::dup2(control, CONTROL_FD)
            };
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    Ok(process.spawn().map_err(|error| format!("Cannot start {}: {error}", options.vmm))?)
}

struct Shim {
    control: OwnedFd,
    next_id: u64,
    deadline: Instant,
}

impl Shim {
    fn request(&mut self, command: Command, fds: &[&dyn AsFd]) -> Result<u64> {
        self.next_id += 1;
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        send(&self.control, &Request { id: self.next_id, command }, &fds)?;
        Ok(self.next_id)
    }

    /// The next message, or `None` when the time is over or the machine is gone.
    fn message(&self) -> Result<Option<Message>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let time =
            rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut poll = [rustix::event::PollFd::new(&self.control, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut poll, Some(&time))? == 0 {
            eprintln!("Time is over");
            return Ok(None);
        }
        Ok(recv(&self.control)?.map(|packet| packet.message))
    }

    fn answer(&mut self, command: Command, fds: &[&dyn AsFd]) -> Result<Answer> {
        let name = format!("{command:?}");
        let id = self.request(command, fds)?;
        loop {
            match self.message()? {
                Some(Message::Reply { id: of, result }) if of == id => {
                    return result.map_err(|error| format!("{name}: {error}").into());
                }
                Some(Message::Reply { .. }) => {}
                Some(Message::Exited(reason)) => return Err(format!("The machine ended: {reason:?}").into()),
                None => return Err("The machine is gone".into()),
            }
        }
    }
}

fn drive(mut shim: Shim, options: &Options) -> Result<()> {
    let started = Instant::now();
    boot(&mut shim, options)?;
    eprintln!("booting after {:?}", started.elapsed());
    for (index, path) in (0u64..).zip(&options.layers) {
        let file = File::open(path)?;
        let length = file.metadata()?.len().next_multiple_of(4096);
        let extent = Extent { disk: ExtentDisk::Layers, offset: index * LAYER_STEP, length, writable: false };
        shim.answer(Command::AddExtent(extent), &[&file])?;
    }
    if let Some(port) = options.connect {
        let (ours, theirs) = UnixStream::pair()?;
        shim.answer(Command::Connect { port, within_ms: 120_000 }, &[&theirs])?;
        drop(theirs);
        eprintln!("connected to port {port} after {:?}", started.elapsed());
        relay(ours)?;
        eprintln!("the guest ended the connection after {:?}", started.elapsed());
        metrics(&mut shim)?;
        shim.answer(Command::Stop, &[])?;
    }
    if options.echoes > 0 {
        echoes(&mut shim, options)?;
        eprintln!("{} echoes after {:?}", options.echoes, started.elapsed());
        metrics(&mut shim)?;
        shim.answer(Command::Stop, &[])?;
    }
    if options.ready {
        loop {
            if let Answer::Metrics(metrics) = shim.answer(Command::Metrics, &[])?
                && metrics.agent_ready_us > 0
            {
                print_metrics(&metrics);
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    if let Some(after) = options.metrics_after {
        std::thread::sleep(Duration::from_millis(after));
        if options.pause {
            shim.answer(Command::Pause, &[])?;
            eprintln!("paused");
            std::thread::sleep(Duration::from_secs(1));
            shim.answer(Command::Resume, &[])?;
            eprintln!("resumed");
        }
        metrics(&mut shim)?;
    }
    loop {
        match shim.message()? {
            Some(Message::Exited(reason)) => {
                eprintln!("The machine ended after {:?}: {reason:?}", started.elapsed());
                return Ok(());
            }
            Some(Message::Reply { .. }) => {}
            None => return Ok(()),
        }
    }
}

fn metrics(shim: &mut Shim) -> Result<()> {
    if let Answer::Metrics(metrics) = shim.answer(Command::Metrics, &[])? {
        print_metrics(&metrics);
    }
    Ok(())
}

fn print_metrics(metrics: &Metrics) {
    eprintln!(
        "kernel entered {} us, agent ready {} us after start",
        metrics.kernel_entry_us, metrics.agent_ready_us
    );
    eprintln!("exits {:?}", metrics.exits);
    eprintln!("exits until ready {:?}", metrics.exits_at_ready);
    eprintln!("guest errors {:?}", metrics.guest_errors);
    eprintln!("guest memory resident {} KiB", metrics.guest_resident_bytes / 1024);
}

fn boot(shim: &mut Shim, options: &Options) -> Result<()> {
    let open = |path: &str| File::open(path).map_err(|error| format!("Cannot open {path}: {error}"));
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let (kernel, initramfs) = (open(&options.kernel)?, open(&options.initramfs)?);
    let scratch = match &options.scratch {
        Some(path) => OpenOptions::new().read(true).write(true).open(path)?,
        None => {
            let file = File::from(rustix::fs::memfd_create("scratch", rustix::fs::MemfdFlags::CLOEXEC)?);
            file.set_len(1 << 30)?;
            file
        }
    };
    let taps: Vec<File> = (0..options.tap_queues)
        .map(|_| open_tap(&options.tap, options.tap_queues > 1))
        .collect::<Result<_>>()?;
    let config = MachineConfig {
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        balloon_mib: 0,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        tap_queues: options.tap_queues,
        console: options.console,
        extra_cmdline: options.append.clone(),
    };
    let mut fds: Vec<&dyn AsFd> = vec![&kvm, &kernel, &initramfs, &scratch];
    fds.extend(taps.iter().map(|tap| tap as &dyn AsFd));
    let (mut reader, writer) = std::io::pipe()?;
    if options.console {
        fds.push(&writer);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                let _ = std::io::stdout().write_all(&bytes[..count]);
                let _ = std::io::stdout().flush();
            }
        });
    }
    shim.answer(Command::Boot(config), &fds)?;
    Ok(())
}

/// Opens one queue of a tap, making the tap if need be, in the mode that the machine wants.
fn open_tap(name: &str, multi_queue: bool) -> Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const IFF_TAP: i16 = 0x0002;
    const IFF_NO_PI: i16 = 0x1000;
    const IFF_VNET_HDR: i16 = 0x4000;
    const IFF_MULTI_QUEUE: i16 = 0x0100;
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *target = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    // SAFETY: TUNSETIFF reads and writes the ifreq.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(format!("Cannot make tap {name}: {}", std::io::Error::last_os_error()).into());
    }
    Ok(tap)
}

/// Opens many connections at once to a guest that sends back what it gets, and checks what comes back.
fn echoes(shim: &mut Shim, options: &Options) -> Result<()> {
    let port = options.connect_port;
    let mut waiting = std::collections::HashMap::new();
    for _ in 0..options.echoes {
        let (ours, theirs) = UnixStream::pair()?;
        waiting.insert(shim.request(Command::Connect { port, within_ms: 120_000 }, &[&theirs])?, ours);
    }
    let mut threads = Vec::new();
    while !waiting.is_empty() {
        match shim.message()? {
            Some(Message::Reply { id, result }) => {
                result?;
                if let Some(stream) = waiting.remove(&id) {
                    threads.push(std::thread::spawn(move || echo(stream, id)));
                }
            }
            other => return Err(format!("Instead of a connection: {other:?}").into()),
        }
    }
    for thread in threads {
        thread.join().map_err(|_| "An echo thread died")??;
    }
    Ok(())
}

fn echo(stream: UnixStream, seed: u64) -> std::io::Result<()> {
    let sent: Vec<u8> = (0..300_000u64).map(|at| (at.wrapping_mul(seed) >> 3) as u8).collect();
    let mut to_guest = stream.try_clone()?;
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            to_guest.write_all(&sent)?;
            to_guest.shutdown(std::net::Shutdown::Write)
        }
    });
    let mut received = Vec::new();
    { stream }.read_to_end(&mut received)?;
    let _ = writer.join();
    if received == sent { Ok(()) } else { Err(std::io::Error::other("An echo differs from what was sent")) }
}

/// Ties standard input and output to a connection until the guest ends it.
fn relay(stream: UnixStream) -> Result<()> {
    let mut to_guest = stream.try_clone()?;
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut to_guest);
        let _ = to_guest.shutdown(std::net::Shutdown::Write);
    });
    let mut from_guest = stream;
    std::io::copy(&mut from_guest, &mut std::io::stdout())?;
    Ok(())
}
