//! Device nodes of a container beyond those that each has: the guest's own, with the guest's numbers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::error::{AgentError, Attempt, Result};

/// What lies in `/dev` and is not for containers: each has a console and terminals of its own.
const NOT_PASSED: [&str; 4] = ["console", "ptmx", "pts", "shm"];

/// The nodes that a container gets. A container that may use every device, as a privileged one, gets all the guest's, whatever
/// the node has; another gets what it lists, if the guest has a device of that name.
///
/// # Errors
///
/// [`AgentError::Invalid`] for a listed device that the guest does not have.
pub fn choose(
    listed: &[LinuxDevice],
    rules: &[LinuxDeviceCgroup],
    guests: &dyn Fn() -> Result<Vec<LinuxDevice>>,
) -> Result<Vec<LinuxDevice>> {
    if rules.iter().rev().find(|rule| names_everything(rule)).is_some_and(LinuxDeviceCgroup::allow) {
        return guests();
    }
    if listed.is_empty() {
        return Ok(Vec::new());
    }
    let guests = guests()?;
    listed
        .iter()
        .map(|device| {
            let mut found = guests
                .iter()
                .find(|guests| guests.path() == device.path() && guests.typ() == device.typ())
                .cloned()
                .ok_or_else(|| {
                    let path = device.path().display();
                    AgentError::Invalid(format!(
                        "the device {path} is the node's, and the guest has none like it"
                    ))
                })?;
            let (mode, uid, gid) = (found.file_mode(), found.uid(), found.gid());
            found.set_file_mode(device.file_mode().or(mode));
            found.set_uid(device.uid().or(uid)).set_gid(device.gid().or(gid));
            Ok(found)
        })
        .collect()
}

/// Takes out the nodes that would be made in a volume: they would stay there, and others who have it could put a link in
/// their place.
pub fn leave_out_below_mounts(spec: &mut Spec) {
    let mounts: Vec<PathBuf> =
        spec.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect();
    let in_a_volume = |device: &LinuxDevice| {
        mounts.iter().any(|mount| mount != Path::new("/dev") && device.path().starts_with(mount))
    };
    if let Some(devices) = spec.linux_mut().as_mut().and_then(|linux| linux.devices_mut().as_mut()) {
        devices.retain(|device| !in_a_volume(device));
    }
}

fn names_everything(rule: &LinuxDeviceCgroup) -> bool {
    let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
        && any(rule.major())
        && any(rule.minor())
        && rule.access().as_deref().is_none_or(|access| "rwm".chars().all(|letter| access.contains(letter)))
}

/// The device nodes below a directory, but for the disks, which are block devices of these major numbers.
///
/// # Errors
///
/// When the directory cannot be listed.
pub fn of(directory: &Path, disks: &[i32]) -> Result<Vec<LinuxDevice>> {
    let mut nodes = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).attempt(|| format!("list {}", directory.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            // One that has just gone is not passed.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if NOT_PASSED.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if metadata.is_dir() {
                directories.push(path);
            } else if let Some(node) = node(&path, &metadata, disks)? {
                nodes.push(node);
            }
        }
    }
    Ok(nodes)
}

fn node(path: &Path, metadata: &fs::Metadata, disks: &[i32]) -> Result<Option<LinuxDevice>> {
    let kind = metadata.file_type();
    let major = i64::from(rustix::fs::major(metadata.rdev()));
    let kind = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() && !disks.iter().any(|disk| i64::from(*disk) == major) {
        LinuxDeviceType::B
    } else {
        return Ok(None);
    };
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(major)
        .minor(i64::from(rustix::fs::minor(metadata.rdev())))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .map(Some)
        .map_err(|error| AgentError::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn device(path: &str, major: i64) -> LinuxDevice {
        let device = json!({ "path": path, "type": "c", "major": major, "minor": 0, "fileMode": 0o600 });
        serde_json::from_value(device).unwrap()
    }

    fn rules(rule: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        vec![serde_json::from_value(rule).unwrap()]
    }

    #[test]
    fn a_privileged_container_gets_the_guests_nodes_and_not_the_nodes() {
        let listed = [device("/dev/kvm", 10), device("/dev/nvme0", 240)];
        let guests = || Ok(vec![device("/dev/fuse", 10), device("/dev/kvm", 11)]);
        let all = rules(json!({ "allow": true, "access": "rwm" }));
        assert_eq!(choose(&listed, &all, &guests).unwrap(), guests().unwrap());
        let few = rules(json!({ "allow": true, "type": "c", "major": 10, "minor": -1, "access": "rwm" }));
        let text = choose(&listed, &few, &guests).unwrap_err().to_string();
        assert!(text.contains("/dev/nvme0"), "{text}");
        assert_eq!(choose(&listed[..1], &few, &guests).unwrap(), [device("/dev/kvm", 11)]);
        assert_eq!(choose(&[], &few, &|| panic!("nobody asked")).unwrap(), []);
    }

    #[test]
    fn the_nodes_of_a_system_are_found() {
        let nodes = of(Path::new("/dev"), &[]).unwrap();
        let null = nodes.iter().find(|node| node.path() == Path::new("/dev/null")).unwrap();
        let mode = fs::metadata("/dev/null").unwrap().mode() & 0o7777;
        assert_eq!((null.major(), null.minor(), null.file_mode()), (1, 3, Some(mode)));
        assert!(nodes.iter().all(|node| !node.path().starts_with("/dev/pts")));
    }
}
