//! What containerd writes to the standard input of `start`.
//!
//! containerd 2.3 and newer send `BootstrapParams`; older ones the runtime's options as an `Any`, or nothing.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest input, in bytes.
const MAX_BYTES: usize = 4 << 20;
/// How long to wait for an input that does not end.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `start` learns from its input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// containerd's ttrpc address, for events.
    pub ttrpc_address: Option<String>,
    /// Directory for our socket.
    pub socket_dir: Option<String>,
    /// containerd wants debug messages.
    pub debug: bool,
    /// It was `BootstrapParams`: the answer may be a `BootstrapResult`.
    pub is_params: bool,
    /// The configuration that the runtime's options in containerd's own configuration name.
    pub config: Option<PathBuf>,
}

/// The options of a runtime of which containerd knows nothing (`runtimeoptions.v1.Options`), as far as they mean something
/// here.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RuntimeOptions {
    /// `ConfigPath`.
    #[prost(string, tag = "2")]
    config_path: String,
}

/// The name of the type that containerd writes beside [`RuntimeOptions`].
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";

/// Reads the standard input to its end, without waiting long for one that stays open.
#[must_use]
pub fn read_stdin() -> Vec<u8> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Vec::new();
    }
    read_within(stdin, PATIENCE).0
}

/// What `fd` has to say within `patience`, and whether it came to its end.
pub(super) fn read_within(fd: impl AsFd, patience: Duration) -> (Vec<u8>, bool) {
    let until = Instant::now() + patience;
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    while bytes.len() < MAX_BYTES {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(1..) => {}
            _ => break,
        }
        match rustix::io::read(&fd, &mut buffer) {
            Ok(count) if count > 0 => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return (bytes, true),
            Err(_) => break,
        }
    }
    (bytes, false)
}

/// Understands the input of a `start` for the instance `id` of `namespace`.
#[must_use]
pub fn parse(bytes: &[u8], id: &str, namespace: &str) -> Bootstrap {
    // Options of older versions may happen to parse as the new message; the names tell.
    let params = BootstrapParams::parse_from_bytes(bytes);
    let Some(params) = params.ok().filter(|params| params.instance_id == id && params.namespace == namespace)
    else {
        let config = Any::parse_from_bytes(bytes).ok().and_then(|options| config_path(&options));
        return Bootstrap { config, ..Bootstrap::default() };
    };
    let nonempty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Bootstrap {
        ttrpc_address: nonempty(&params.containerd_ttrpc_address),
        socket_dir: params.socket_dir.as_deref().and_then(nonempty).filter(|dir| dir.starts_with('/')),
        debug: params.log_level.value() < 0,
        is_params: true,
        config: params
            .extensions
            .iter()
            .filter_map(|extension| extension.value.as_ref())
            .find_map(config_path),
    }
}

fn config_path(options: &Any) -> Option<PathBuf> {
    if options.type_url.rsplit('/').next() != Some(RUNTIME_OPTIONS) {
        return None;
    }
    let options = <RuntimeOptions as prost::Message>::decode(&*options.value).ok()?;
    Some(options.config_path).filter(|path| !path.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_are_told_from_options_and_from_nothing() {
        let mut params = BootstrapParams::new();
        params.instance_id = "abc".into();
        params.namespace = "k8s.io".into();
        params.containerd_ttrpc_address = "/run/c.ttrpc".into();
        params.socket_dir = Some("/run/s".into());
        params.log_level = protobuf::EnumOrUnknown::from_i32(-4);
        let bytes = params.write_to_bytes().unwrap();
        let parsed = parse(&bytes, "abc", "k8s.io");
        assert_eq!(parsed.socket_dir.as_deref(), Some("/run/s"));
        assert!(parsed.debug && parsed.is_params);
        assert_eq!(parse(&bytes, "other", "k8s.io"), Bootstrap::default());
        assert_eq!(parse(b"", "abc", "k8s.io"), Bootstrap::default());
        assert_eq!(parse(b"\xff\xff\xff", "abc", "k8s.io"), Bootstrap::default());
    }

    #[test]
    fn the_configuration_that_the_runtimes_options_name_is_found_in_both() {
        let mut options = Any::new();
        options.type_url = RUNTIME_OPTIONS.to_owned();
        // type_url and config_path.
        options.value = b"\x0a\x01x\x12\x0f/etc/other.toml".to_vec();
        let found = |bytes: &[u8]| parse(bytes, "abc", "k8s.io").config;
        let expected = Some(PathBuf::from("/etc/other.toml"));
        assert_eq!(found(&options.write_to_bytes().unwrap()), expected);
        let mut params = BootstrapParams::new();
        params.instance_id = "abc".into();
        params.namespace = "k8s.io".into();
        let mut extension = containerd_shim_protos::bootstrap_api::Extension::new();
        extension.value = protobuf::MessageField::some(options.clone());
        params.extensions.push(extension);
        assert_eq!(found(&params.write_to_bytes().unwrap()), expected);
        // Of another type, or without a path.
        options.type_url = "containerd.runc.v1.Options".to_owned();
        assert_eq!(found(&options.write_to_bytes().unwrap()), None);
        options.type_url = RUNTIME_OPTIONS.to_owned();
        options.value.clear();
        assert_eq!(found(&options.write_to_bytes().unwrap()), None);
    }

    #[test]
    fn an_input_that_stays_open_does_not_block() {
        let (reader, writer) = std::io::pipe().unwrap();
        let started = Instant::now();
        let (bytes, ended) = read_within(reader.as_fd(), Duration::from_millis(50));
        assert!(bytes.is_empty() && !ended && started.elapsed() < Duration::from_secs(2));
        drop(writer);
    }
}
