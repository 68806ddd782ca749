//! The OCI specs that containerd writes into bundles: what the shim reads in them, and what the guest gets of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxIdMapping, LinuxNamespaceType, Mount, Process, Root, Spec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cri::IdMapping;

/// The OCI spec's name in a bundle.
const CONFIG: &str = "config.json";

/// Largest `config.json`, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Annotation that tells sandboxes from containers.
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// Annotation with the id of the sandbox a container belongs to.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// Annotation with Kubernetes's UID of the pod.
pub const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";

/// A bundle's spec that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It cannot be read.
    #[error("cannot read the OCI spec {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no OCI spec.
    #[error("the OCI spec {path} is invalid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It cannot be written for the guest.
    #[error("cannot encode an OCI spec for the guest")]
    Encode(#[source] serde_json::Error),
    /// It does not come from CRI.
    #[error(
        "Ravelin runs pods: it takes containers from Kubernetes or crictl, not single ones (the OCI spec has no annotation {CONTAINER_TYPE})"
    )]
    NotCri,
}

/// What a task is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A pod.
    Sandbox,
    /// A container of the sandbox with this id.
    Container {
        /// The sandbox.
        sandbox_id: String,
    },
}

/// Reads `config.json` of a bundle.
///
/// # Errors
/// Names the file.
pub fn load(bundle: &Path) -> Result<Spec, SpecError> {
    read(bundle)
}

/// Reads `config.json` of a container's bundle, and its capabilities' bounding set as it is written there: the policy judges
/// its names and their order, which a [`Spec`] does not keep. Names that no kernel knows are left out of the spec, as
/// runc ignores them.
///
/// # Errors
/// Names the file.
pub fn load_container(bundle: &Path) -> Result<(Spec, Vec<String>), SpecError> {
    let mut json: Value = read(bundle)?;
    let bounding = json["process"]["capabilities"]["bounding"].as_array();
    let names = bounding.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if let Some(process) = json.get_mut("process") {
        drop_unknown_capabilities(process);
    }
    let spec = serde_json::from_value(json)
        .map_err(|source| SpecError::Parse { path: bundle.join(CONFIG), source })?;
    Ok((spec, names))
}

/// An exec's process, JSON, without capabilities that no kernel knows.
///
/// # Errors
/// When it is no process of the OCI spec.
pub fn exec_process(text: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut json: Value = serde_json::from_slice(text)?;
    drop_unknown_capabilities(&mut json);
    Process::deserialize(&json)?;
    serde_json::to_vec(&json)
}

fn drop_unknown_capabilities(process: &mut Value) {
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else { return };
    for names in sets.values_mut().filter_map(Value::as_array_mut) {
        names.retain(|name| {
            name.as_str()
                .and_then(|name| name.strip_prefix("CAP_"))
                .is_some_and(|name| name.parse::<Capability>().is_ok())
        });
    }
}

fn read<T: DeserializeOwned>(bundle: &Path) -> Result<T, SpecError> {
    let path = bundle.join(CONFIG);
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
    if let Err(source) = read {
        return Err(SpecError::Read { path, source });
    }
    serde_json::from_slice(&text).map_err(|source| SpecError::Parse { path, source })
}

/// One annotation; empty ones count as absent.
#[must_use]
pub fn annotation<'a>(spec: &'a Spec, key: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

/// What the spec describes.
///
/// # Errors
/// When it does not come from CRI.
pub fn kind(spec: &Spec) -> Result<Kind, SpecError> {
    let sandbox_id = annotation(spec, SANDBOX_ID);
    match (annotation(spec, CONTAINER_TYPE), sandbox_id) {
        (Some("sandbox"), _) => Ok(Kind::Sandbox),
        (Some("container"), Some(id)) => Ok(Kind::Container { sandbox_id: id.to_owned() }),
        _ => Err(SpecError::NotCri),
    }
}

/// The path of the spec's network namespace; none if it has none of its own.
#[must_use]
pub fn network_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let network = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
    network.path().clone().filter(|path| !path.as_os_str().is_empty())
}

/// The users and groups of the spec's user namespace; none if it has none of its own.
#[must_use]
pub fn id_mappings(spec: &Spec) -> Option<(Vec<IdMapping>, Vec<IdMapping>)> {
    let linux = spec.linux().as_ref()?;
    let namespaces = linux.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User)?;
    let ranges = |mappings: &Option<Vec<LinuxIdMapping>>| {
        let range = |mapping: &LinuxIdMapping| IdMapping {
            host_id: mapping.host_id(),
            container_id: mapping.container_id(),
            length: mapping.size(),
        };
        mappings.iter().flatten().map(range).collect()
    };
    Some((ranges(linux.uid_mappings()), ranges(linux.gid_mappings())))
}

/// The spec's cgroup.
#[must_use]
pub fn cgroups_path(spec: &Spec) -> Option<String> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?;
    Some(path.to_string_lossy().into_owned()).filter(|path| !path.is_empty())
}

/// The spec's sysctls.
#[must_use]
pub fn sysctls(spec: &Spec) -> HashMap<String, String> {
    spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default()
}

/// The PID namespace that a spec asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// One of the container's own.
    Own,
    /// That of this process of the host; 0 if its path names none.
    Of(u32),
    /// The host's, which policy lets pass only as the pod's.
    Host,
}

/// Which PID namespace the container is to have.
#[must_use]
pub fn pid_namespace(spec: &Spec) -> PidNamespace {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let pid = namespaces.and_then(|all| all.iter().find(|one| one.typ() == LinuxNamespaceType::Pid));
    match pid.map(|namespace| namespace.path().as_ref().and_then(|path| path.to_str())) {
        None => PidNamespace::Host,
        Some(None | Some("")) => PidNamespace::Own,
        Some(Some(path)) => {
            let pid = path.strip_prefix("/proc/").and_then(|rest| rest.strip_suffix("/ns/pid"));
            PidNamespace::Of(pid.and_then(|pid| pid.parse().ok()).unwrap_or(0))
        }
    }
}

/// Whether the mount binds a path.
#[must_use]
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| matches!(option.as_str(), "bind" | "rbind"))
}

/// The mounts that bind a path of the host.
pub fn host_mounts(spec: &Spec) -> impl Iterator<Item = (&Mount, &str)> {
    spec.mounts().iter().flatten().filter_map(|mount| {
        let source = mount.source().as_ref()?.to_str()?;
        (is_bind(mount) && !source.is_empty()).then_some((mount, source))
    })
}

/// Where the spec's devices would be in the container. containerd lists none but those that were asked for: the usual ones
/// are the runtime's to make.
#[must_use]
pub fn devices(spec: &Spec) -> Vec<String> {
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    devices.into_iter().flatten().map(|device| device.path().display().to_string()).collect()
}

/// The AppArmor profile that the spec's process names; `None` if it is to run without one.
#[must_use]
pub fn apparmor_profile(spec: &Spec) -> Option<&str> {
    let name = spec.process().as_ref()?.apparmor_profile().as_deref()?;
    Some(name).filter(|name| !name.is_empty() && *name != "unconfined")
}

/// Takes out of a container's spec what belongs to the host. The mounts are left to the volumes; an AppArmor profile's name stays,
/// for its policy goes with it.
pub fn strip_host(spec: &mut Spec) {
    let readonly = spec.root().as_ref().and_then(Root::readonly);
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(readonly);
    spec.set_root(Some(root));
    spec.set_hooks(None);
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(None);
        linux.set_devices(None);
        linux.set_intel_rdt(None);
        linux.set_mount_label(None);
        for namespace in linux.namespaces_mut().iter_mut().flatten() {
            namespace.set_path(None);
        }
    }
    if let Some(process) = spec.process_mut() {
        process.set_selinux_label(None);
    }
}

/// The spec as the guest gets it.
///
/// # Errors
/// When it cannot be encoded.
pub fn encode(spec: &Spec) -> Result<Vec<u8>, SpecError> {
    serde_json::to_vec(spec).map_err(SpecError::Encode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "root": { "path": "/run/containerd/x/rootfs", "readonly": true },
            "process": {
                "cwd": "/", "args": ["sh"], "user": { "uid": 0, "gid": 0 },
                "apparmorProfile": "cri-containerd.apparmor.d", "selinuxLabel": "x"
            },
            "hooks": { "prestart": [{ "path": "/bin/evil" }] },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/etc/hosts", "type": "bind", "source": "/h/hosts", "options": ["rbind"] },
                { "destination": "/x", "source": "/h/x", "options": ["rbind", "rw"] }
            ],
            "linux": {
                "cgroupsPath": "/k8s.io/abc",
                "sysctl": { "net.ipv4.ip_forward": "1" },
                "devices": [{ "path": "/dev/block-claim", "type": "b", "major": 259, "minor": 3 }],
                "namespaces": [
                    { "type": "pid" },
                    { "type": "network", "path": "/var/run/netns/cni-1" },
                    { "type": "ipc", "path": "/proc/7/ns/ipc" }
                ]
            },
            "annotations": { CONTAINER_TYPE: "container", SANDBOX_ID: "abc" }
        }))
        .unwrap()
    }

    #[test]
    fn the_spec_tells_what_it_is() {
        let mut spec = spec();
        assert_eq!(kind(&spec).unwrap(), Kind::Container { sandbox_id: "abc".into() });
        assert_eq!(network_namespace(&spec), Some("/var/run/netns/cni-1".into()));
        assert_eq!(cgroups_path(&spec).as_deref(), Some("/k8s.io/abc"));
        assert_eq!(devices(&spec), ["/dev/block-claim"]);
        assert_eq!(apparmor_profile(&spec), Some("cri-containerd.apparmor.d"));
        assert_eq!(pid_namespace(&spec), PidNamespace::Own);
        assert_eq!(host_mounts(&spec).map(|(_, source)| source).collect::<Vec<_>>(), ["/h/hosts", "/h/x"]);
        for none in ["", "unconfined"] {
            spec.process_mut().as_mut().unwrap().set_apparmor_profile(Some(none.to_owned()));
            assert_eq!(apparmor_profile(&spec), None, "{none}");
        }
        spec.set_annotations(None);
        assert!(matches!(kind(&spec), Err(SpecError::NotCri)));
    }

    #[test]
    fn capabilities_keep_their_names_for_the_policy_and_lose_the_unknown_ones() {
        let bundle = tempfile::tempdir().unwrap();
        let names = ["CAP_KILL", "CAP_CHOWN", "CAP_CAP_NET_ADMIN", "CAP_FROM_TOMORROW"];
        let process = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 },
                              "capabilities": { "bounding": names, "effective": names, "permitted": null } });
        let text = json!({ "ociVersion": "1.1.0", "process": process }).to_string();
        std::fs::write(bundle.path().join(CONFIG), text).unwrap();
        let (spec, bounding) = load_container(bundle.path()).unwrap();
        assert_eq!(bounding, names);
        let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        let known = [Capability::Kill, Capability::Chown].into();
        assert_eq!(
            (capabilities.bounding().as_ref(), capabilities.effective().as_ref()),
            (Some(&known), Some(&known))
        );
        let exec = exec_process(process.to_string().as_bytes()).unwrap();
        let exec: Value = serde_json::from_slice(&exec).unwrap();
        assert_eq!(exec["capabilities"]["effective"], json!(["CAP_KILL", "CAP_CHOWN"]));
        for nonsense in ["", "nonsense", "{", "[]", "7", r#"{ "args": "sh" }"#] {
            exec_process(nonsense.as_bytes()).expect_err(nonsense);
        }
        std::fs::write(bundle.path().join(CONFIG), "{").unwrap();
        assert!(load_container(bundle.path()).is_err());
    }

    #[test]
    fn a_pid_namespace_is_ones_own_a_processs_or_the_hosts() {
        let of = |namespaces: serde_json::Value| {
            let spec = json!({ "ociVersion": "1.1.0", "linux": { "namespaces": namespaces } });
            pid_namespace(&serde_json::from_value(spec).unwrap())
        };
        assert_eq!(of(json!([{ "type": "pid" }])), PidNamespace::Own);
        assert_eq!(
            of(json!([{ "type": "pid", "path": "/proc/4194305/ns/pid" }])),
            PidNamespace::Of(4_194_305)
        );
        assert_eq!(of(json!([{ "type": "pid", "path": "/elsewhere" }])), PidNamespace::Of(0));
        assert_eq!(of(json!([{ "type": "ipc" }])), PidNamespace::Host);
    }

    #[test]
    fn nothing_of_the_host_reaches_the_guest() {
        let mut spec = spec();
        strip_host(&mut spec);
        let text = String::from_utf8(encode(&spec).unwrap()).unwrap();
        for word in ["/run/containerd", "k8s.io/abc", "netns", "/proc/7", "evil", "selinux", "claim"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        assert_eq!(spec.root().as_ref().and_then(Root::readonly), Some(true));
        assert_eq!(spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 3);
    }
}
