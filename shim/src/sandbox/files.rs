//! `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` and `/dev/shm` of a pod for which containerd makes none.
//!
//! With a pause container containerd makes them on the host and mounts them into every container. Without one it leaves
//! them to the runtime: they are made in the sandbox's bundle, which goes with the pod, and mounted in the same way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Root, Spec};

use crate::cri::DnsConfig;

const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const SHM: &str = "/dev/shm";

/// A pod's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFiles {
    directory: PathBuf,
}

impl PodFiles {
    /// Writes them into a sandbox's bundle. Without `dns` names are resolved as on the node.
    ///
    /// # Errors
    /// When the node's files cannot be read or the bundle cannot be written.
    pub fn write(bundle: &Path, hostname: &str, dns: Option<&DnsConfig>) -> io::Result<Self> {
        let write = |path: &str, content: &[u8]| fs::write(bundle.join(name(path)), content);
        write(HOSTS, &fs::read(HOSTS)?)?;
        write(HOSTNAME, format!("{hostname}\n").as_bytes())?;
        match dns {
            Some(dns) => write(RESOLV_CONF, resolv_conf(dns).as_bytes())?,
            None => write(RESOLV_CONF, &fs::read(RESOLV_CONF)?)?,
        }
        Ok(Self { directory: bundle.to_owned() })
    }

    /// Mounts them in a container where it mounts nothing itself; a shared memory of its own becomes the pod's.
    pub fn mount(&self, spec: &mut Spec) {
        let read_only = spec.root().as_ref().and_then(Root::readonly).unwrap_or_default();
        let mut mounts = spec.mounts_mut().take().unwrap_or_default();
        mounts
            .retain(|mount| mount.destination() != Path::new(SHM) || mount.typ().as_deref() == Some("bind"));
        for path in [HOSTS, HOSTNAME, RESOLV_CONF, SHM] {
            if mounts.iter().any(|mount| mount.destination() == Path::new(path)) {
                continue;
            }
            let access = if read_only && path != SHM { "ro" } else { "rw" };
            let mut mount = Mount::default();
            mount
                .set_destination(path.into())
                .set_typ(Some("bind".to_owned()))
                .set_source(Some(self.directory.join(name(path))))
                .set_options(Some(["rbind", "rprivate", access].map(str::to_owned).to_vec()));
            mounts.push(mount);
        }
        spec.set_mounts(Some(mounts));
    }
}

/// Its name in the bundle.
fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `resolv.conf(5)` of what CRI says.
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    let mut line = |key: &str, words: &[String]| {
        if !words.is_empty() {
            text += &format!("{key} {}\n", words.join(" "));
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mounted(spec: &Spec) -> Vec<(String, String, bool)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let own = |mount: &Mount| {
            let source = mount.source().as_deref().map(text).unwrap_or_default();
            let writable = mount.options().iter().flatten().any(|option| option == "rw");
            (text(mount.destination()), source, writable)
        };
        spec.mounts().iter().flatten().map(own).collect()
    }

    #[test]
    fn a_container_gets_what_it_does_not_mount_itself() {
        let bundle = tempfile::tempdir().unwrap();
        let dns = DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        let files = PodFiles::write(bundle.path(), "web", Some(&dns)).unwrap();
        let read = |name: &str| fs::read_to_string(bundle.path().join(name)).unwrap();
        assert_eq!(read("hostname"), "web\n");
        assert_eq!(
            read("resolv.conf"),
            "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
        );
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"] },
                { "destination": "/etc/hosts", "type": "bind", "source": "/pods/hosts", "options": ["rw"] }
            ]
        }))
        .unwrap();
        files.mount(&mut spec);
        let own = |name: &str| bundle.path().join(name).to_string_lossy().into_owned();
        let expected = [
            ("/etc/hosts", "/pods/hosts".to_owned(), true),
            ("/etc/hostname", own("hostname"), false),
            ("/etc/resolv.conf", own("resolv.conf"), false),
            ("/dev/shm", own("shm"), true),
        ];
        assert_eq!(
            mounted(&spec),
            expected.map(|(path, source, writable)| (path.to_owned(), source, writable))
        );
        let before = mounted(&spec);
        files.mount(&mut spec);
        assert_eq!(mounted(&spec), before);
    }
}
