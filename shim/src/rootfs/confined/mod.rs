//! Confines `mkfs.erofs`, which reads trees that strangers made.
//!
//! The shim runs its own binary once more ([`ACTION`]). That confines itself, step by step, and then becomes the program: a
//! process that is alone in its namespaces, sees the layer, the image and its own libraries ([`view`]), and makes few system
//! calls ([`calls`]). Landlock says once more what the mounts say.

mod calls;
#[cfg(test)]
mod tests;
mod view;

use std::convert::Infallible;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, unshare_unsafe};

use view::View;

/// The action for which the shim's binary confines itself and becomes another program; only the shim asks for it.
pub const ACTION: &str = "confined";
/// Where the program sees the layer.
pub(super) const LAYER: &str = "/layer";
/// Where the program sees the image.
pub(super) const IMAGE: &str = "/image";
/// User and group that the program runs as, of which there are no other processes. The usual ids of machines begin behind it.
pub const USER: u32 = 0x6fff_ffff;
/// Bytes of memory that the program may have. mkfs.erofs 1.5 needs about 6 KiB a file.
const MEMORY: u64 = 4 << 30;
/// The newest of Landlock's interfaces that rights are taken from; an older kernel denies what it knows.
const NEWEST: ABI = ABI::V6;

/// A step of the confinement that failed. The program does not run then.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct ConfineError {
    step: String,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

fn failed<E: Into<Box<dyn Error + Send + Sync>>>(step: impl Into<String>) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError { step: step.into(), source: error.into() }
}

/// A program and all that it may see and use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Confined {
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The directory that it reads, as [`LAYER`].
    pub layer: PathBuf,
    /// The file that it writes, as [`IMAGE`], which it must inherit open. It must be [`USER`]'s.
    pub image: RawFd,
    /// Bytes to which a file may grow.
    pub file_bytes: u64,
    /// Seconds of processor time that it may take.
    pub seconds: u64,
}

impl Confined {
    /// Runs the program confined. The process must be the first of a process namespace.
    pub fn command(&self) -> Command {
        let mut command = this_program();
        command.args([&self.program, &self.layer]).arg(self.image.to_string());
        command.args([self.file_bytes.to_string(), self.seconds.to_string()]).args(&self.arguments);
        command
    }

    /// What [`Confined::command`] was told.
    fn read(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        fn number<T: FromStr>(text: Option<OsString>) -> Option<T> {
            text?.to_str()?.parse().ok()
        }
        Some(Self {
            program: arguments.next()?.into(),
            layer: arguments.next()?.into(),
            image: number(arguments.next())?,
            file_bytes: number(arguments.next())?,
            seconds: number(arguments.next())?,
            arguments: arguments.collect(),
        })
    }
}

#[cfg(not(test))]
fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(ACTION);
    command
}

/// The tests' program, at the test that does what [`ACTION`] does.
#[cfg(test)]
fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", "--ignored", "--nocapture", "--test-threads=1", "--", tests::ALONE]);
    command
}

/// Confines this process, which has one thread, and becomes the program that `arguments`, those behind [`ACTION`], name.
///
/// # Errors
/// The step that failed.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<Infallible, ConfineError> {
    let order = Confined::read(arguments).ok_or("a program, a layer, an image and two limits are needed");
    let order = order.map_err(failed("read the command line"))?;
    let libraries = view::libraries(&order.program).map_err(failed("find the program's libraries"))?;
    let threads = works_in_threads(&order.program, &libraries).map_err(failed("read the program"))?;
    let filter = calls::filter(threads).map_err(failed("make the seccomp filter"))?;
    leave_namespaces()?;
    let view = View { code: &libraries, program: &order.program, layer: &order.layer, image: order.image };
    view.enter()?;
    set_limits(&order)?;
    drop_privileges()?;
    restrict_paths().map_err(failed("restrict it by Landlock"))?;
    // Who changes the user forgets whose end is its own.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("bind its life to the shim's"))?;
    seccompiler::apply_filter(&filter).map_err(failed("load the seccomp filter"))?;
    let error = Command::new(&order.program).args(&order.arguments).env_clear().exec();
    Err(failed("run it")(error))
}

/// Whether a program makes threads. mkfs.erofs does from 1.8 on; an older one may make none. For a process that holds
/// `CAP_SYS_ADMIN` nothing else limits their number.
fn works_in_threads(program: &Path, libraries: &[PathBuf]) -> io::Result<bool> {
    const MAKES_THREADS: &[u8] = b"pthread_create";
    let named = |path: &Path, beginning: &str| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(beginning))
    };
    // Newer versions may have most of themselves in a library.
    let own = libraries.iter().map(PathBuf::as_path).filter(|path| named(path, "liberofs"));
    for file in own.chain([program]) {
        if std::fs::read(file)?.windows(MAKES_THREADS.len()).any(|bytes| bytes == MAKES_THREADS) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Leaves the node's namespaces. That of processes was left at birth.
fn leave_namespaces() -> Result<(), ConfineError> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: none of the flags parts descriptors.
    unsafe { unshare_unsafe(flags) }.map_err(failed("leave the node's namespaces"))
}

/// Sets the limits for good. The number of processes is the filter's: a limit does not hold for `CAP_SYS_ADMIN`.
fn set_limits(order: &Confined) -> Result<(), ConfineError> {
    let all = [
        (Resource::Core, 0),
        (Resource::As, MEMORY),
        (Resource::Fsize, order.file_bytes),
        (Resource::Cpu, order.seconds),
    ];
    for (resource, value) in all {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        rustix::process::setrlimit(resource, limit).map_err(failed("set resource limits"))?;
    }
    Ok(())
}

/// Becomes [`USER`], with what it takes to read a layer: files that only their owners may read, and attributes `trusted.*`,
/// in which overlayfs keeps that a directory is opaque and which the kernel shows to `CAP_SYS_ADMIN` only. What else that
/// allows are system calls that the filter refuses.
fn drop_privileges() -> Result<(), ConfineError> {
    let kept = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_ADMIN;
    let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
    rustix::thread::set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    // The raw calls change this thread only, and it is the only one.
    rustix::thread::set_thread_groups(&[]).map_err(failed("give up supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    rustix::thread::set_capabilities(None, sets).map_err(failed("give up capabilities"))?;
    for capability in kept {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .map_err(failed("keep capabilities for the program"))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(failed("refuse new privileges"))
}

/// A second wall behind the mounts: reads what is seen and writes the image, no more. It also takes all calls that change
/// mounts from a process that has `CAP_SYS_ADMIN`. A kernel without Landlock denies nothing.
fn restrict_paths() -> Result<(), Box<dyn Error + Send + Sync>> {
    let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, read))?
        .add_rule(PathBeneath::new(PathFd::new(IMAGE)?, write))?
        .restrict_self()?;
    Ok(())
}
