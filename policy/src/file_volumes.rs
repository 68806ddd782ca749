//! File volumes: directories of the node that a file server serves to the guest. Which of them a pod may have.
//!
//! Their paths tell the kubelet's volume plugin, and no more: a CSI volume's driver is told by the kubelet's record of it, which
//! whoever asks has read. No path tells the pod's claim, nor a volume that was made for a generic ephemeral one from a claimed one.

use serde::Deserialize;

use crate::config::{Mode, PolicyConfig};
use crate::refusal::{VolumeProblem, VolumeViolation};
use crate::volumes::{below, is_normal};

/// The volume plugin of CSI volumes.
pub const CSI_PLUGIN: &str = "kubernetes.io/csi";

// What would have volumes mounted that are of no type of Fargate's.
pub(crate) const ALLOW_HOST_PATHS: &str =
    "host_paths in [policy] of ravelin.toml lists the directories of the node that pods may mount";
pub(crate) const ALLOW_INLINE_CSI: &str =
    "inline_csi = true in [policy.allow] of ravelin.toml has such volumes mounted";
pub(crate) const ALLOW_IMAGE_VOLUMES: &str =
    "image_volumes = true in [policy.allow] of ravelin.toml has such volumes mounted";

/// The kubelet's record of a CSI volume, `vol_data.json` beside its mount point; what it does not say is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CsiRecord {
    /// The driver.
    #[serde(rename = "driverName")]
    pub driver: String,
    /// The persistent volume's name, or that of an inline volume.
    #[serde(rename = "specVolID")]
    pub volume: String,
    /// `Persistent`, or `Ephemeral` for one that the pod's own spec describes (an inline volume).
    #[serde(rename = "volumeLifecycleMode")]
    pub lifecycle: String,
}

/// A directory of the node, with all below it, that pods may mount: written `/path`, or `/path:rw` if they may write there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostPath {
    /// The directory.
    pub path: String,
    /// Whether pods may write there.
    pub writable: bool,
}

impl TryFrom<String> for HostPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (path, writable) = match text.strip_suffix(":rw") {
            Some(path) => (path, true),
            None => (text.as_str(), false),
        };
        // Paths are judged by their text: a prefix that is written in another way would match none.
        if !is_normal(path) {
            return Err(format!(
                "{text:?} is no directory that pods can be given: it must be an absolute path other than /, without `.`, `..`, `//` and a slash at the end, and `:rw` behind it if they may write there"
            ));
        }
        Ok(Self { path: path.to_owned(), writable })
    }
}

impl PolicyConfig {
    /// Which of the directories that pods may mount a path of the host is in: of several the longest. `None` if it is in none, or no
    /// pod may mount one.
    #[must_use]
    pub fn host_path(&self, path: &str) -> Option<&HostPath> {
        let within =
            |host: &&HostPath| is_normal(path) && (path == host.path || below(path, &host.path).is_some());
        let granted = (self.mode == Mode::Guest).then_some(&self.host_paths)?;
        granted.iter().filter(within).max_by_key(|host| host.path.len())
    }

    /// What is said of a path of the host that pods may not mount.
    pub(crate) fn refused_host_path(&self) -> VolumeProblem {
        VolumeProblem::Type { way_around: (self.mode == Mode::Guest).then_some(ALLOW_HOST_PATHS) }
    }

    /// What is wrong with a volume that is an image's files, if anything is.
    pub(crate) fn image_volume(&self) -> Option<VolumeProblem> {
        let refused = VolumeProblem::Type { way_around: Some(ALLOW_IMAGE_VOLUMES) };
        (!self.resolve().image_volumes).then_some(refused)
    }

    /// Whether volumes of a CSI driver are mounted.
    pub(crate) fn mounts_driver(&self, driver: &str) -> bool {
        self.mode == Mode::Guest || self.csi_drivers.iter().any(|listed| listed == driver || listed == "*")
    }

    /// What is wrong with a file volume called `name` of `plugin`, if anything is. `csi` is the kubelet's record of it, as far as there
    /// is one.
    pub(crate) fn file_volume(
        &self,
        plugin: &str,
        name: &str,
        csi: Option<&CsiRecord>,
    ) -> Option<VolumeViolation> {
        let violation = |problem| Some(VolumeViolation { volume: name.to_owned(), problem });
        if plugin != CSI_PLUGIN {
            let granted = self.mode == Mode::Guest;
            return if granted { None } else { violation(VolumeProblem::Mode { plugin: plugin.to_owned() }) };
        }
        let unknown = CsiRecord::default();
        let record = csi.unwrap_or(&unknown);
        if record.lifecycle == "Ephemeral" && !self.resolve().inline_csi {
            return violation(VolumeProblem::Type { way_around: Some(ALLOW_INLINE_CSI) });
        }
        // Without a record nobody knows that it is a claim's.
        let perhaps_inline = record.lifecycle != "Persistent" && !self.resolve().inline_csi;
        if self.mounts_driver(&record.driver) && !perhaps_inline {
            return None;
        }
        let known = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        violation(VolumeProblem::InvalidVolume {
            claim: None,
            volume: known(&record.volume).unwrap_or_else(|| name.to_owned()),
            driver: known(&record.driver),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> PolicyConfig {
        toml::from_str(text).unwrap()
    }

    fn record(driver: &str, lifecycle: &str) -> CsiRecord {
        let json = format!(
            r#"{{"attachmentID":"csi-1","driverName":"{driver}","nodeName":"n","specVolID":"pvc-1","volumeHandle":"h","volumeLifecycleMode":"{lifecycle}"}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn verdict(config: &PolicyConfig, plugin: &str, csi: Option<&CsiRecord>) -> String {
        config
            .file_volume(plugin, "vol", csi)
            .map_or_else(|| "granted".to_owned(), |refused| refused.to_string())
    }

    #[test]
    fn fargate_mounts_volumes_of_the_listed_drivers_and_refuses_others_in_its_words() {
        let fargate = PolicyConfig::default();
        let (efs, ebs) = (record("efs.csi.aws.com", "Persistent"), record("ebs.csi.aws.com", "Persistent"));
        assert_eq!(verdict(&fargate, CSI_PLUGIN, Some(&efs)), "granted");
        assert_eq!(
            verdict(&fargate, CSI_PLUGIN, Some(&ebs)),
            "vol not supported because: PVC bound to invalid PV pvc-1 with CSI Driver: ebs.csi.aws.com"
        );
        assert_eq!(
            verdict(&fargate, CSI_PLUGIN, None),
            "vol not supported because: PVC bound to invalid PV vol"
        );
        assert_eq!(
            verdict(&fargate, "kubernetes.io/nfs", None),
            "vol not supported because: volumes of kubernetes.io/nfs are not supported in mode fargate"
        );
        let listed = config("csi_drivers = [\"ebs.csi.aws.com\"]");
        assert_eq!(verdict(&listed, CSI_PLUGIN, Some(&ebs)), "granted");
        assert_ne!(verdict(&listed, CSI_PLUGIN, Some(&efs)), "granted");
        let any = config("csi_drivers = [\"*\"]");
        assert_eq!(verdict(&any, CSI_PLUGIN, Some(&ebs)), "granted");
        assert_ne!(verdict(&any, "kubernetes.io/nfs", None), "granted");
        assert_ne!(verdict(&config("csi_drivers = []"), CSI_PLUGIN, Some(&efs)), "granted");
    }

    #[test]
    fn an_inline_volume_is_a_type_that_fargate_does_not_know() {
        let inline = record("efs.csi.aws.com", "Ephemeral");
        let of = |text: &str| verdict(&config(text), CSI_PLUGIN, Some(&inline));
        assert_eq!(of(""), "vol is of an unsupported volume Type");
        assert_eq!(of("allow = { inline_csi = true }"), "granted");
        assert_ne!(of("allow = { inline_csi = true }\ncsi_drivers = []"), "granted");
        assert_eq!(of("mode = \"guest\""), "granted");
        // One of which nothing is known may be one.
        let unknown = |text: &str| verdict(&config(text), CSI_PLUGIN, None);
        assert_eq!(unknown("mode = \"guest\""), "granted");
        for text in ["mode = \"guest\"\nallow.inline_csi = false", "csi_drivers = [\"*\"]"] {
            assert_eq!(unknown(text), "vol not supported because: PVC bound to invalid PV vol", "{text}");
        }
        assert_eq!(
            of("mode = \"guest\"\nallow = { inline_csi = false }"),
            "vol is of an unsupported volume Type"
        );
    }

    #[test]
    fn the_guests_mode_mounts_what_the_kubelet_has_mounted() {
        let guest = config("mode = \"guest\"");
        for (plugin, csi) in [
            ("kubernetes.io/nfs", None),
            ("kubernetes.io/local-volume", None),
            (CSI_PLUGIN, None),
            (CSI_PLUGIN, Some(&record("x", "Persistent"))),
        ] {
            assert_eq!(verdict(&guest, plugin, csi), "granted", "{plugin}");
        }
    }

    #[test]
    fn paths_of_the_host_are_granted_below_what_is_listed_only() {
        let guest = config("mode = \"guest\"\nhost_paths = [\"/data\", \"/data/rw:rw\", \"/var/log\"]");
        let writable = |path: &str| guest.host_path(path).map(|host| host.writable);
        for (path, expected) in [
            ("/data", Some(false)),
            ("/data/x/y", Some(false)),
            ("/data/rw", Some(true)),
            ("/data/rw/x", Some(true)),
            ("/data/rwx", Some(false)),
            ("/var/log/pods", Some(false)),
            ("/database", None),
            ("/var", None),
            ("/", None),
            ("/data/../etc", None),
            ("/data/", None),
            ("/data//x", None),
            ("data", None),
        ] {
            assert_eq!(writable(path), expected, "{path}");
        }
        assert_eq!(config("host_paths = [\"/data\"]").host_path("/data"), None, "in mode fargate");
        for wrong in ["/", "", "data", "/data/", "/a/../b", ":rw", "/:rw"] {
            let text = format!("host_paths = [{wrong:?}]");
            assert!(toml::from_str::<PolicyConfig>(&text).is_err(), "{wrong}");
        }
    }
}
