//! A process's program: found as runc finds it, then executed under its AppArmor profile, with the seccomp filter loaded as the
//! last thing before.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::profile;

/// What `execve` is given, and the AppArmor profile that the program is put under.
#[derive(Debug, Clone)]
pub(super) struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    profile: Option<String>,
}

impl Program {
    /// Finds the program of a process. Root, user and working directory of the caller are those of the process; `home` is its
    /// user's home directory.
    ///
    /// # Errors
    ///
    /// runc's words.
    pub(super) fn find(process: &Process, home: &dyn Fn() -> String) -> Result<Self, String> {
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().ok_or_else(|| "the process has no arguments".to_owned())?;
        let env = environment(process.env().as_deref().unwrap_or_default(), home);
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let program = look_up(name, path)?;
        let string = |bytes: &[u8]| {
            CString::new(bytes).map_err(|_| format!("exec: \"{name}\": a string of the process contains NUL"))
        };
        Ok(Self {
            path: string(program.as_os_str().as_bytes())?,
            args: args.iter().map(|text| string(text.as_bytes())).collect::<Result<_, _>>()?,
            env: env.iter().map(|text| string(text.as_bytes())).collect::<Result<_, _>>()?,
            profile: process.apparmor_profile().clone(),
        })
    }

    /// Executes it, under `filter` as [`crate::container::seccomp::compile`] made it. Returns why that failed, if it did.
    pub(super) fn execute(&self, filter: Option<&[u8]>) -> String {
        let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
            list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        reset_signals();
        if let Some(name) = &self.profile
            && let Err(error) = profile::for_the_next_program(name)
        {
            return format!(
                "exec {}: AppArmor profile {name:?}: {}",
                self.path.to_string_lossy(),
                plain(&error)
            );
        }
        let error = match filter.map_or(Ok(()), load_filter) {
            Ok(()) => {
                // SAFETY: all three are NUL-terminated strings or null-terminated arrays of such, alive until the call
                // returns, if it does.
                unsafe { libc::execve(self.path.as_ptr(), args.as_ptr(), env.as_ptr()) };
                io::Error::last_os_error()
            }
            Err(error) => error,
        };
        format!("exec {}: {}", self.path.to_string_lossy(), plain(&error))
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

/// The environment as runc makes it: of several settings of one variable the last counts, and `HOME` comes from the
/// container's user list unless it is set to something.
fn environment(env: &[String], home: &dyn Fn() -> String) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut made: Vec<String> = env
        .iter()
        .rev()
        .filter(|entry| seen.insert(entry.split('=').next().unwrap_or_default()) && *entry != "HOME=")
        .cloned()
        .collect();
    made.reverse();
    if !made.iter().any(|entry| entry.starts_with("HOME=")) {
        made.push(format!("HOME={}", home()));
    }
    made
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
    // No directory at all is not the current one.
    for dir in path.split(':').filter(|_| !path.is_empty()) {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        if executable(&candidate).is_ok() {
            if candidate.is_relative() {
                return Err(format!(
                    "exec: \"{name}\": cannot run executable found relative to current directory"
                ));
            }
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
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
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
    fn an_empty_path_finds_nothing() {
        assert_eq!(look_up("sh", "").unwrap_err(), "exec: \"sh\": executable file not found in $PATH");
    }

    #[test]
    fn the_last_setting_of_a_variable_counts() {
        let env = ["A=1", "HOME=/h", "B=2", "A=3"].map(str::to_owned);
        assert_eq!(environment(&env, &|| "/never".to_owned()), ["HOME=/h", "B=2", "A=3"]);
    }

    #[test]
    fn a_home_that_is_empty_or_missing_is_the_users() {
        let home = || "/home/web".to_owned();
        assert_eq!(environment(&["HOME=".to_owned(), "A=1".to_owned()], &home), ["A=1", "HOME=/home/web"]);
        assert_eq!(environment(&[], &home), ["HOME=/home/web"]);
    }
}
