//! `/etc/ravelin/ravelin.toml`.

mod check;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ravelin_policy::{HostPath, PolicyConfig, Roots, SizingConfig};
use serde::Deserialize;

use check::Problem;

/// Where the configuration is looked for if nobody says where it is.
const DEFAULT_PATH: &str = "/etc/ravelin/ravelin.toml";

/// The configuration; every field has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The machine's process.
    pub vmm: Vmm,
    /// The file server's process.
    pub fs: Fs,
    /// What runs in the machine.
    pub guest: Guest,
    /// Disks and caches.
    pub storage: Storage,
    /// What pods may ask for.
    pub policy: PolicyConfig,
    /// How big machines are.
    pub sizing: SizingConfig,
    /// Directories in which the kubelet and containerd keep what they make for pods.
    pub roots: RootsConfig,
    /// How long things may take.
    pub timeouts: Timeouts,
}

/// `[roots]`: what is not said is found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RootsConfig {
    /// The kubelet's root directories (`--root-dir`).
    pub kubelet: Option<Vec<String>>,
    /// containerd's `root` and `state` directories.
    pub containerd: Option<Vec<String>>,
}

impl RootsConfig {
    /// Those that are known before containerd has handed anything over.
    #[must_use]
    pub fn known_beforehand(&self) -> Roots {
        let usual = Roots::default();
        Roots {
            kubelet: self.kubelet.clone().unwrap_or(usual.kubelet),
            containerd: self.containerd.clone().unwrap_or(usual.containerd),
        }
    }
}

/// `[vmm]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vmm {
    /// The `ravelin-vmm` program.
    pub path: PathBuf,
    /// First of the user (and group) ids that machines run as.
    pub uid_base: u32,
    /// How many ids there are from `uid_base` on. Each pod gets one of them, drawn from its id.
    pub uid_count: u32,
    /// MiB that a pod's cgroup may use beyond the guest's memory, for the machine's own needs.
    pub overhead_mib: u32,
    /// How many machines start at the same time on this node; 0 stands for one more than it has CPUs.
    pub starts: u32,
}

impl Default for Vmm {
    fn default() -> Self {
        Self {
            path: "/usr/local/libexec/ravelin/ravelin-vmm".into(),
            uid_base: 0x7000_0000,
            uid_count: 0x1_0000,
            overhead_mib: 64,
            starts: 0,
        }
    }
}

/// `[fs]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fs {
    /// The `ravelin-fs` program.
    pub path: PathBuf,
}

impl Default for Fs {
    fn default() -> Self {
        Self { path: "/usr/local/libexec/ravelin/ravelin-fs".into() }
    }
}

/// `[guest]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guest {
    /// The kernel: an uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The initramfs, which holds the agent.
    pub initramfs: PathBuf,
    /// Gives every machine a serial console, whose lines go to the shim's log. Slow: for debugging.
    pub console: bool,
    /// Appended to the kernel's command line.
    pub cmdline: String,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            kernel: "/usr/local/share/ravelin/vmlinux".into(),
            initramfs: "/usr/local/share/ravelin/initramfs.cpio".into(),
            console: false,
            cmdline: String::new(),
        }
    }
}

/// `[storage]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Directory of the layer images, scratch disks and their templates.
    pub directory: PathBuf,
    /// Size in GiB of a pod's scratch disk: writable layers and emptyDirs. It takes only what is written.
    pub scratch_gib: u32,
}

impl Default for Storage {
    fn default() -> Self {
        Self { directory: "/var/lib/ravelin".into(), scratch_gib: 20 }
    }
}

/// `[timeouts]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Seconds that a pod waits for its turn to start a machine.
    pub queue_seconds: u64,
    /// Seconds from a machine's start until its agent must answer.
    pub boot_seconds: u64,
    /// Seconds that an image of a layer may take to be made, and that pods wait for one that another makes.
    pub layer_seconds: u64,
    /// Seconds the agent has for one call.
    pub call_seconds: u64,
    /// Seconds that a guest has at its end to write out the volumes that outlive it.
    pub sync_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { queue_seconds: 180, boot_seconds: 120, layer_seconds: 900, call_seconds: 60, sync_seconds: 10 }
    }
}

/// The path without symbolic links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|there| Some((there, there.canonicalize().ok()?)));
    let Some((there, real)) = there else { return path.to_owned() };
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    if rest.as_os_str().is_empty() { real } else { real.join(rest) }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("the configuration {path} is wrong: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A value makes no sense.
    #[error("the configuration {path} is wrong: {key} is {value} and must be {rule}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key with its section.
        key: &'static str,
        /// The value, as it would be written.
        value: String,
        /// What it must be.
        rule: String,
    },
}

impl Config {
    /// Reads the configuration at `named`, where the runtime's options in containerd's configuration name one; else the
    /// usual file, which may be absent.
    ///
    /// # Errors
    /// Names the file and the key.
    pub fn of_runtime(named: Option<&Path>) -> Result<Self, ConfigError> {
        match named {
            Some(path) => Self::load(path),
            None => Self::load_if_there(Path::new(DEFAULT_PATH)),
        }
    }

    /// A file that is not there stands for the defaults.
    fn load_if_there(path: &Path) -> Result<Self, ConfigError> {
        match Self::load(path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let message = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            ConfigError::Parse { path: path.to_owned(), message }
        })?;
        match check::check(&config, path) {
            Ok(()) => Ok(config.with_real_host_paths()),
            Err(Problem { key, value, rule }) => {
                Err(ConfigError::Value { path: path.to_owned(), key, value, rule })
            }
        }
    }

    /// Has directories that pods may mount, and that lie behind symbolic links, also by the path that they really have: containerd
    /// follows a link in the last place of what a pod mounts, and none before it.
    fn with_real_host_paths(mut self) -> Self {
        let real = |host: &HostPath| {
            let path = real(Path::new(&host.path)).to_str()?.to_owned();
            (path != host.path).then_some(HostPath { path, ..host.clone() })
        };
        let real: Vec<_> = self.policy.host_paths.iter().filter_map(real).collect();
        self.policy.host_paths.extend(real);
        self
    }

    /// Where layer images are kept.
    #[must_use]
    pub fn layers_dir(&self) -> PathBuf {
        self.storage.directory.join("layers")
    }

    /// Where scratch disks' templates are kept.
    #[must_use]
    pub fn templates_dir(&self) -> PathBuf {
        self.storage.directory.join("templates")
    }

    /// How many machines start at the same time on this node.
    #[must_use]
    pub fn starts(&self) -> usize {
        match self.vmm.starts {
            // One that waits for the disk or the network leaves its CPU to another.
            0 => std::thread::available_parallelism().map_or(1, usize::from) + 1,
            starts => usize::try_from(starts).unwrap_or(usize::MAX),
        }
    }

    /// Time that a pod waits for its turn to start a machine.
    #[must_use]
    pub fn queue_deadline(&self) -> Duration {
        Duration::from_secs(self.timeouts.queue_seconds)
    }

    /// Time that the image of a layer may take.
    #[must_use]
    pub fn layer_deadline(&self) -> Duration {
        Duration::from_secs(self.timeouts.layer_seconds)
    }

    /// Time until a machine's agent must answer.
    #[must_use]
    pub fn boot_deadline(&self) -> Duration {
        Duration::from_secs(self.timeouts.boot_seconds)
    }

    /// Time the agent has for one call.
    #[must_use]
    pub fn call_deadline(&self) -> Duration {
        Duration::from_secs(self.timeouts.call_seconds)
    }

    /// Time that a guest has at its end to write out the volumes that outlive it.
    #[must_use]
    pub fn sync_deadline(&self) -> Duration {
        Duration::from_secs(self.timeouts.sync_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/ravelin/ravelin.toml"))
    }

    #[test]
    fn an_absent_file_is_the_defaults_unless_it_was_named() {
        let path = Path::new("/nonexistent/ravelin.toml");
        assert_eq!(Config::load_if_there(path).unwrap(), Config::default());
        let error = Config::of_runtime(Some(path)).unwrap_err().to_string();
        assert_eq!(error, "cannot read the configuration /nonexistent/ravelin.toml");
    }

    #[test]
    fn the_shipped_file_is_the_defaults_and_names_every_key() {
        let shipped = include_str!("../../config/ravelin.toml");
        assert_eq!(parse(shipped).unwrap(), Config::default());
        let uncommented: String = shipped
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') && (rest.contains(" = ") || rest.starts_with('[')) => {
                    rest
                }
                _ => "",
            })
            .fold(String::new(), |text, line| text + line + "\n");
        assert_eq!(parse(&uncommented).unwrap(), Config::default(), "{uncommented}");
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        for (text, words) in [
            ("[vmm]\npath = 3", "path"),
            ("[wmm]\n", "wmm"),
            ("[guest]\nkernal = \"/x\"", "kernal"),
            ("[guest]\nkernel = \"x\"", "guest.kernel is \"x\" and must be an absolute path"),
            ("[policy]\nmode = \"lax\"", "lax"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("/etc/ravelin/ravelin.toml") && error.contains(words), "{error}");
        }
    }
}
