//! `-info`: what the runtime can do.

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use super::CliError;

/// The runtime's features in the form of the OCI runtime-spec's `features.json`. Recursive read-only mounts are not among them.
const FEATURES: &str = r#"{
  "ociVersionMin": "1.0.0",
  "ociVersionMax": "1.2.0",
  "hooks": [],
  "mountOptions": ["bind", "rbind", "ro", "rw", "nosuid", "nodev", "noexec", "private", "rprivate", "slave", "rslave"],
  "linux": {
    "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
    "cgroup": { "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
    "seccomp": { "enabled": true },
    "apparmor": { "enabled": true },
    "selinux": { "enabled": false },
    "intelRdt": { "enabled": false },
    "mountExtensions": { "idmap": { "enabled": true } }
  }
}"#;

pub(super) fn reply() -> Result<Vec<u8>, CliError> {
    let mut version = RuntimeVersion::new();
    version.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut features = Any::new();
    features.type_url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned();
    features.value = FEATURES.into();
    let mut info = RuntimeInfo::new();
    info.name = "io.containerd.ravelin.v2".to_owned();
    info.version = MessageField::some(version);
    info.features = MessageField::some(features);
    info.write_to_bytes().map_err(CliError::Encode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_can_be_read_and_announces_user_namespaces() {
        let info = RuntimeInfo::parse_from_bytes(&reply().unwrap()).unwrap();
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        let namespaces = features["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.iter().any(|name| name == "user"));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    }
}
