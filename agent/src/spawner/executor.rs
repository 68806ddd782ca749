//! The last step in a container's process: find the program, confine, execute.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::fs::{Access, AtFlags, CWD, accessat};

/// Executes the program of the spec's process, the seccomp filter loaded as the last thing before.
///
/// libcontainer's own place for the filter is earlier: a profile that allows only what the program itself calls
/// would then refuse libcontainer's remaining calls.
#[derive(Clone)]
pub(super) struct GuestExecutor {
    filter: Option<Vec<u8>>,
    gate: Option<Rc<OwnedFd>>,
    program: RefCell<Option<PathBuf>>,
}

impl GuestExecutor {
    /// `filter`: as [`crate::container::seccomp::compile`] made it. `gate`: readable, or closed, when the process
    /// may go on.
    pub(super) fn new(filter: Option<Vec<u8>>, gate: Option<OwnedFd>) -> Self {
        Self { filter, gate: gate.map(Rc::new), program: RefCell::new(None) }
    }
}

impl Executor for GuestExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if let Some(gate) = &self.gate {
            let _ = rustix::io::read(&**gate, &mut [0_u8; 1]);
        }
        let refuse = ExecutorValidationError::ArgValidationError;
        let process = spec.process().as_ref().ok_or_else(|| refuse("the spec has no process".to_owned()))?;
        let name = process.args().as_ref().and_then(|args| args.first());
        let name = name.ok_or_else(|| refuse("the process has no arguments".to_owned()))?;
        let env = process.env().as_deref().unwrap_or_default();
        let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let program = look_up(name, path).map_err(refuse)?;
        self.program.replace(Some(program));
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is handed to execve, in the spec's order; this process's own does not matter.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let error = self.execute(spec);
        let program = self.program.borrow();
        let program = program.as_deref().unwrap_or(Path::new("")).display();
        let text = format!("exec {program}: {}", plain(&error));
        // Too late for an answer to the create call: as with runc, the container's own stderr shows why.
        let _ = writeln!(io::stderr(), "{text}");
        Err(ExecutorError::Other(text))
    }
}

impl GuestExecutor {
    /// Returns only when it failed.
    fn execute(&self, spec: &Spec) -> io::Error {
        let program = self.program.borrow();
        let (Some(program), Some(process)) = (program.as_ref(), spec.process()) else {
            return io::ErrorKind::InvalidInput.into();
        };
        let strings = |list: &[String]| -> Result<Vec<CString>, io::Error> {
            list.iter().map(|text| Ok(CString::new(text.as_str())?)).collect()
        };
        let prepared = (|| {
            let program = CString::new(program.as_os_str().as_bytes())?;
            let args = strings(process.args().as_deref().unwrap_or_default())?;
            let env = strings(&last_of_each(process.env().as_deref().unwrap_or_default()))?;
            Ok::<_, io::Error>((program, args, env))
        })();
        let (program, args, env) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return error,
        };
        let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
            list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args_pointers, env_pointers) = (pointers(&args), pointers(&env));
        reset_signals();
        if let Some(filter) = &self.filter
            && let Err(error) = load_filter(filter)
        {
            return error;
        }
        // SAFETY: all three are NUL-terminated strings or null-terminated arrays of such, alive until the call
        // returns, if it does.
        unsafe { libc::execve(program.as_ptr(), args_pointers.as_ptr(), env_pointers.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// Programs start with default actions and nothing blocked, whatever the agent does for itself.
fn reset_signals() {
    // SAFETY: default actions and an empty mask install no handlers; `none` is filled before it is read.
    unsafe {
        for signal in 1..=64 {
            // Fails, harmlessly, for the two that cannot be changed.
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Loads a filter: four bytes of flags, then the BPF instructions.
fn load_filter(filter: &[u8]) -> io::Result<()> {
    let (flags, program) = filter.split_first_chunk::<4>().ok_or(io::ErrorKind::InvalidData)?;
    // Copied, because a slice of bytes need not be aligned for instructions.
    let mut instructions: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .filter_map(|bytes| {
            let bytes: [u8; 8] = bytes.try_into().ok()?;
            let [c0, c1, jt, jf, k0, k1, k2, k3] = bytes;
            Some(libc::sock_filter {
                code: u16::from_ne_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_ne_bytes([k0, k1, k2, k3]),
            })
        })
        .collect();
    let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    // SAFETY: `program` names `len` instructions that live through the call, which copies them.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            u32::from_le_bytes(*flags),
            &raw const program,
        )
    };
    if loaded == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Of several settings of one variable the last counts.
fn last_of_each(env: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let last: HashMap<String, usize> = env.iter().enumerate().map(|(at, entry)| (name(entry), at)).collect();
    env.iter()
        .enumerate()
        .filter(|(at, entry)| last.get(&name(entry)) == Some(at))
        .map(|(_, entry)| entry.clone())
        .collect()
}

/// Finds a program as runc does (Go's `exec.LookPath`), with its words when there is none.
fn look_up(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("exec: \"{name}\": stat {name}: {}", plain(&error)))
            }
            Err(error) => Err(format!("exec: \"{name}\": {}", plain(&error))),
        };
    }
    for dir in path.split(':') {
        let dir = if dir.is_empty() { OsStr::new(".") } else { OsStr::new(dir) };
        let candidate = Path::new(dir).join(name);
        if executable(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(format!("exec: \"{name}\": executable file not found in $PATH"))
}

fn executable(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    Ok(accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

/// The kernel's words for an error as Go and C print them, without Rust's number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

impl std::fmt::Debug for GuestExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestExecutor")
            .field("filter", &self.filter.as_ref().map(Vec::len))
            .field("gate", &self.gate.as_ref().map(|gate| gate.as_raw_fd()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_are_reported_in_runcs_words() {
        assert_eq!(
            look_up("nope-nope", "/usr/bin:/bin").unwrap_err(),
            "exec: \"nope-nope\": executable file not found in $PATH"
        );
        assert_eq!(
            look_up("/nope", "/bin").unwrap_err(),
            "exec: \"/nope\": stat /nope: no such file or directory"
        );
        assert_eq!(look_up("/tmp", "").unwrap_err(), "exec: \"/tmp\": is a directory");
        let plain = tempfile::NamedTempFile::new().unwrap();
        let name = plain.path().to_str().unwrap();
        assert_eq!(look_up(name, "").unwrap_err(), format!("exec: \"{name}\": permission denied"));
    }

    #[test]
    fn programs_are_found_in_path_order() {
        assert_eq!(look_up("sh", "/nope:/bin").unwrap(), Path::new("/bin/sh"));
        assert_eq!(look_up("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn the_last_setting_of_a_variable_counts() {
        let env = ["A=1", "B=2", "A=3"].map(str::to_owned);
        assert_eq!(last_of_each(&env), ["B=2", "A=3"]);
    }
}
