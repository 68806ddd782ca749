//! The last step of a container's first process, which libcontainer has brought this far.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::fs::{FileType, Mode, OFlags, fstat, makedev, open};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::program::Program;
use super::user;
use crate::opening::{self, Proc};

/// Executes the program of the spec's process, under its AppArmor profile and with the seccomp filter loaded as the last
/// thing before.
///
/// libcontainer's own place for the filter is earlier: a profile that allows only what the program itself calls
/// would then refuse libcontainer's remaining calls.
#[derive(Debug, Clone)]
pub(super) struct GuestExecutor {
    filter: Option<Vec<u8>>,
    profile: Option<String>,
    gate: Option<Rc<OwnedFd>>,
    program: RefCell<Option<Program>>,
}

impl GuestExecutor {
    /// `filter`: as [`crate::container::seccomp::compile`] made it. `gate`: readable, or closed, when the process
    /// may go on.
    pub(super) fn new(filter: Option<Vec<u8>>, profile: Option<String>, gate: Option<OwnedFd>) -> Self {
        Self { filter, profile, gate: gate.map(Rc::new), program: RefCell::new(None) }
    }
}

impl Executor for GuestExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if let Some(gate) = &self.gate {
            let _ = rustix::io::read(&**gate, &mut [0_u8; 1]);
        }
        let refuse = ExecutorValidationError::ArgValidationError;
        let process = spec.process().clone();
        let mut process = process.ok_or_else(|| refuse("the spec has no process".to_owned()))?;
        // It is not in libcontainer's spec, for that would apply it too, through a file of the container's.
        process.set_apparmor_profile(self.profile.clone());
        reopen_null().map_err(|error| refuse(format!("open /dev/null: {error}")))?;
        self.program.replace(Some(Program::find(&process, &|| home(&process)).map_err(refuse)?));
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is handed to execve, in the spec's order; this process's own does not matter.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let program = self.program.borrow();
        let Some(program) = program.as_ref() else {
            return Err(ExecutorError::InvalidArg);
        };
        let text = program.execute(self.filter.as_deref());
        // Too late for an answer to the create call: as with runc, the container's own stderr shows why. libcontainer ends the
        // process with 255, as runc does since 1.2 (before: 1).
        let _ = writeln!(io::stderr(), "{text}");
        Err(ExecutorError::Other(text))
    }
}

/// The home directory of the process's user; nothing is known where the container has no `/proc`, by which files are opened.
fn home(process: &Process) -> String {
    let places = Proc::open().and_then(|proc| Ok((proc, opening::directory(Path::new("/"))?)));
    places.map_or_else(|_| "/".to_owned(), |(proc, root)| user::home(&proc, root, process.user().uid()))
}

/// libcontainer opens the container's `/dev/null` for reading only; as with runc, it is open for both wherever it stands in for a
/// stream: where output goes there, it must go without an error.
fn reopen_null() -> io::Result<()> {
    let is_null = |fd: BorrowedFd<'_>| -> io::Result<bool> {
        let file = fstat(fd)?;
        let device = FileType::from_raw_mode(file.st_mode).is_char_device();
        Ok(device && file.st_rdev == makedev(1, 3))
    };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let [in_is_null, out_is_null, err_is_null] =
        [is_null(stdin.as_fd())?, is_null(stdout.as_fd())?, is_null(stderr.as_fd())?];
    if !in_is_null && !out_is_null && !err_is_null {
        return Ok(());
    }
    // A device does things when it is opened: none is that is not this one.
    let null = opening::find(opening::directory(Path::new("/"))?, Path::new("dev/null"))?;
    if !is_null(null.as_fd())? {
        return Err(io::Error::other("it is something else"));
    }
    let null = match Proc::open() {
        Ok(proc) => proc.reopen(&null, OFlags::RDWR)?,
        // Without a `/proc`. Nobody else is in the container yet.
        Err(_) => open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
    };
    if in_is_null {
        dup2_stdin(&null)?;
    }
    if out_is_null {
        dup2_stdout(&null)?;
    }
    if err_is_null {
        dup2_stderr(&null)?;
    }
    Ok(())
}
