//! Volumes as the kubelet lays them out on the node.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Pod, Run};

/// A volume in a pod's folder on the node.
#[derive(Debug)]
pub struct Volume {
    /// Its path on the host, to be mounted into containers.
    pub path: PathBuf,
    mounted: bool,
}

impl Volume {
    /// A configMap, secret, projected or downwardAPI volume, by the kubelet's plugin name, with these files.
    #[track_caller]
    pub fn atomic(pod: &Pod<'_>, plugin: &str, name: &str, files: &[(&str, &str)]) -> Self {
        let volume = Self { path: folder(pod, plugin, name), mounted: false };
        volume.replace(files);
        volume
    }

    /// An emptyDir on disk.
    #[track_caller]
    pub fn empty_dir(pod: &Pod<'_>, name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = folder(pod, "empty-dir", name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("the mode can be set");
        Self { path, mounted: false }
    }

    /// An emptyDir whose medium is memory, of this many bytes.
    #[track_caller]
    pub fn memory_dir(pod: &Pod<'_>, name: &str, bytes: u64) -> Self {
        let path = folder(pod, "empty-dir", name);
        Run::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("mode=777,size={bytes}"), "tmpfs"])
            .arg(&path)
            .ok();
        Self { path, mounted: true }
    }

    /// A CSI volume of this driver, as its plugin and the kubelet lay it out: the mount point, here a plain directory, and beside it
    /// the kubelet's record of it.
    #[track_caller]
    pub fn csi(pod: &Pod<'_>, name: &str, driver: &str) -> Self {
        let folder = folder(pod, "csi", name);
        let path = folder.join("mount");
        fs::create_dir_all(&path).expect("the volume's folder can be written");
        let record = format!(
            r#"{{"attachmentID":"csi-0","driverName":"{driver}","nodeName":"node","specVolID":"{name}","volumeHandle":"h","volumeLifecycleMode":"Persistent"}}"#
        );
        fs::write(folder.join("vol_data.json"), record).expect("the volume's folder can be written");
        Self { path, mounted: false }
    }

    /// A volume of another of the kubelet's plugins that it only mounts, such as `nfs`.
    #[track_caller]
    pub fn of_plugin(pod: &Pod<'_>, plugin: &str, name: &str) -> Self {
        Self { path: folder(pod, plugin, name), mounted: false }
    }

    /// A part of a volume, bound as the kubelet does for a `subPath`.
    #[track_caller]
    pub fn part(&self, pod: &Pod<'_>, volume: &str, sub_path: &str) -> Self {
        let path = pod.kubelet_folder().join(format!("volume-subpaths/{volume}/main/0"));
        // What is there is bound, and not the links that lead to it.
        let part = self.path.join(sub_path).canonicalize().expect("the part is there");
        let made = if part.is_dir() {
            fs::create_dir_all(&path)
        } else {
            fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| fs::write(&path, ""))
        };
        made.expect("the pod's folder can be made");
        Run::new("mount").arg("--bind").arg(part).arg(&path).ok();
        Self { path, mounted: true }
    }

    /// Replaces the files all at once, as the kubelet's atomic writer does: a new folder, and the link `..data`
    /// renamed over the old one.
    #[track_caller]
    pub fn replace(&self, files: &[(&str, &str)]) {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let stamp = format!("..2026_11_24_00_00_00.{:09}", COUNT.fetch_add(1, Ordering::Relaxed));
        let old = fs::read_link(self.path.join("..data")).ok();
        fs::create_dir(self.path.join(&stamp)).expect("the volume's folder can be written");
        for (name, text) in files {
            let file = self.path.join(&stamp).join(name);
            fs::create_dir_all(file.parent().unwrap_or(&self.path))
                .expect("the volume's folder can be written");
            fs::write(file, text).expect("the volume's folder can be written");
        }
        symlink(&stamp, self.path.join("..data_tmp")).expect("the link can be made");
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).expect("the link can be renamed");
        for (name, _) in files {
            let first = name.split('/').next().unwrap_or(name);
            let link = self.path.join(first);
            if !link.is_symlink() {
                symlink(Path::new("..data").join(first), link).expect("the link can be made");
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(self.path.join(old)).expect("the old files can be removed");
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: the pod that uses it may go later.
            Run::new("umount").arg("-l").arg(&self.path).run();
        }
    }
}

fn folder(pod: &Pod<'_>, plugin: &str, name: &str) -> PathBuf {
    let path = pod.kubelet_folder().join(format!("volumes/kubernetes.io~{plugin}/{name}"));
    fs::create_dir_all(&path).expect("the pod's folder can be made");
    path
}
