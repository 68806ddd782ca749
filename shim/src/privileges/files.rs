//! Where the shim may write: Landlock takes all other files of the node from it, and every change of mounts. What it may
//! read is not restricted.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, make_bitflags,
};

use super::unrestricted;
use crate::config::Config;
use crate::state;

/// The newest of Landlock's interfaces that rights are taken from; an older kernel denies what it knows.
const NEWEST: ABI = ABI::V6;
/// Files and directories that come and go.
const TREE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{WriteFile | Truncate | MakeReg | RemoveFile | MakeDir | RemoveDir | Refer});
/// Devices that are driven.
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{WriteFile | IoctlDev});

/// A path at or below which the shim may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writable {
    path: PathBuf,
    rights: BitFlags<AccessFs>,
}

impl Writable {
    /// All of a shim that serves on `socket` with its bundle as the working directory.
    #[must_use]
    pub fn of(config: &Config, socket: &Path) -> Vec<Self> {
        let mut all = vec![
            // The states of this pod and of abandoned ones, and locks among shims.
            (PathBuf::from(state::ROOT), TREE),
            // Scratch disks, their templates, and locks.
            (config.storage.directory.clone(), TREE),
            // The pod's cgroup.
            ("/sys/fs/cgroup".into(), TREE),
            // The bundle: the log, which is a fifo, and with containerd's sandbox API the files that every container is given.
            (".".into(), TREE),
            ("/dev/null".into(), DEVICE),
            ("/dev/kvm".into(), DEVICE),
            ("/dev/net/tun".into(), DEVICE),
        ];
        // Its own socket goes at the end, and those of abandoned pods.
        all.extend(socket.parent().map(|directory| (directory.to_owned(), AccessFs::RemoveFile.into())));
        all.into_iter().map(|(path, rights)| Self { path, rights }).collect()
    }
}

/// Denies this thread, and those that it makes, to write anywhere else; only [`unrestricted`](super::unrestricted()) work may.
/// Gives whether the kernel does: one without Landlock denies nothing.
///
/// To be called while the process has one thread.
///
/// # Errors
/// When the kernel refuses, or a path that is there cannot be opened.
pub fn restrict(writable: &[Writable]) -> io::Result<bool> {
    unrestricted::keep()?;
    let open = |one: &Writable| match PathFd::new(&one.path) {
        Ok(path) => Some(Ok(PathBeneath::new(path, one.rights))),
        // A kernel without KVM, for example: who needs it says so.
        Err(PathFdError::OpenCall { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(io::Error::other(error))),
    };
    let rules: Vec<_> = writable.iter().filter_map(open).collect::<io::Result<_>>()?;
    Ok(deny_others(rules).map_err(io::Error::other)? != RulesetStatus::NotEnforced)
}

fn deny_others(rules: Vec<PathBeneath<PathFd>>) -> Result<RulesetStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_write(NEWEST))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    for rule in rules {
        ruleset = ruleset.add_rule(rule)?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::process::Command;

    use super::*;
    use crate::privileges::unrestricted;

    /// The test below that runs in a process of its own.
    const ALONE: &str = "privileges::files::tests::in_a_process_of_its_own";
    /// Tells it its directory.
    const DIRECTORY: &str = "RAVELIN_TEST_DIRECTORY";

    #[test]
    fn what_is_not_the_shims_is_written_by_unrestricted_work_only() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["tree", "others"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("file"), "old").unwrap();
        }
        let alone = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", ALONE, "--ignored", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory.path())
            .output()
            .unwrap();
        assert!(
            alone.status.success(),
            "{}{}",
            String::from_utf8_lossy(&alone.stdout),
            String::from_utf8_lossy(&alone.stderr)
        );
        assert!(String::from_utf8_lossy(&alone.stdout).contains("1 passed"));
    }

    #[test]
    #[ignore = "another test runs it in a process of its own"]
    fn in_a_process_of_its_own() {
        let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
        let at = |path: &str| directory.join(path);
        let writable = ["tree", "nowhere"].map(|name| Writable { path: at(name), rights: TREE });
        rustix::thread::set_no_new_privs(true).unwrap();
        if !restrict(&writable).unwrap() {
            eprintln!("skipped: the kernel has no Landlock");
            return;
        }
        let overwrite = |path: &str| OpenOptions::new().write(true).truncate(true).open(at(path)).map(drop);
        let denied = |result: io::Result<()>| {
            let kind = result.map_err(|error| error.kind());
            // A rename from one directory to another is denied as one from one file system to another.
            matches!(kind, Err(io::ErrorKind::PermissionDenied | io::ErrorKind::CrossesDevices))
        };
        fs::create_dir_all(at("tree/a/b")).unwrap();
        fs::rename(at("tree/file"), at("tree/a/file")).unwrap();
        fs::remove_dir_all(at("tree/a")).unwrap();
        fs::write(at("tree/file"), "new").unwrap();
        overwrite("tree/file").unwrap();
        assert!(denied(fs::write(at("others/new"), "")));
        assert!(denied(fs::remove_file(at("others/file"))));
        assert!(denied(overwrite("others/file")));
        assert!(denied(fs::create_dir(at("others/directory"))));
        assert!(denied(fs::rename(at("others/file"), at("tree/file"))));
        assert_eq!(fs::read_to_string(at("others/file")).unwrap(), "old");
        // Programs that it begins neither.
        let script = format!("echo new > {}", at("others/file").display());
        let program = || Command::new("sh").args(["-c", &script]).output().unwrap().status;
        assert!(!program().success());
        assert_eq!(fs::read_to_string(at("others/file")).unwrap(), "old");

        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let other = at("others/file");
        let written = runtime.block_on(unrestricted("test", move || fs::write(other, "new")));
        written.unwrap();
        assert_eq!(fs::read_to_string(at("others/file")).unwrap(), "new");
        let panicked: io::Result<()> = runtime.block_on(unrestricted("test", || panic!("on purpose")));
        assert!(panicked.is_err());
        assert!(restrict(&writable).is_err(), "whoever comes second would have no unrestricted threads");
    }
}
