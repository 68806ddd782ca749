//! Where a container's mounts go. libcontainer makes what is missing only where no link is in the way; here it is made where
//! a user of runc would find it, and whatever cannot be is said with the mount's name.

use std::path::Path;

use oci_spec::runtime::Mount;

use super::mount_options::{has, is_bind};
use super::tree::{Content, Kind, Tree, TreeError, open};
use crate::error::{AgentError, Attempt, Result};

/// What may be covered below `/proc`, as runc has it: files that LXCFS makes up.
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Devices that are made below `/dev` after the mounts (runtime-spec, "Default Devices").
const DEVICES: [&str; 7] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx"];

/// Resolves the destinations of `mounts` in their order, in the container's tree, and makes what is missing. Each mount has
/// its true destination afterwards, and `tree` has the mounts.
///
/// # Errors
///
/// Names the mount.
pub fn prepare(tree: &mut Tree, mounts: &mut [Mount]) -> Result<()> {
    for mount in mounts.iter_mut() {
        let asked = mount.destination().clone();
        let refused = |why: &str| AgentError::Failed(format!("mount at {}: {why}", asked.display()));
        let content = content(mount)?;
        let kind = if matches!(content, Content::File) { Kind::File } else { Kind::Directory };
        check(tree, mount, &kind).map_err(|why| refused(&why))?;
        let found = tree.make(&asked, kind).map_err(|error| refused(&error.to_string()))?;
        if let (Some("tmpfs"), Some(mode), false) = (mount.typ().as_deref(), found.mode, is_bind(mount))
            && !mount.options().iter().flatten().any(|option| option.starts_with("mode="))
        {
            // It takes the place of a directory, whose mode programs rely on: /tmp.
            let options = mount.options().iter().flatten().cloned().chain([format!("mode={mode:o}")]);
            let options = options.collect();
            mount.set_options(Some(options));
        }
        mount.set_destination(found.path.clone());
        tree.mount(found.path, content);
    }
    // Devices and their links are made there by path.
    match tree.resolve(Path::new("/dev")) {
        Ok(path) if path == Path::new("/dev") => Ok(()),
        Ok(path) => Err(AgentError::Failed(format!("the image's /dev is a link to {}", path.display()))),
        Err(error) => Err(AgentError::Failed(format!("look at the image's /dev: {error}"))),
    }
}

fn content(mount: &Mount) -> Result<Content> {
    if !is_bind(mount) {
        return Ok(Content::New);
    }
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    open(source, has(mount, "ro") || has(mount, "rro"))
        .attempt(|| format!("open the source of the mount at {}", mount.destination().display()))
}

/// Refuses what would cover what the container's confinement rests on.
fn check(tree: &Tree, mount: &Mount, made: &Kind) -> std::result::Result<(), String> {
    let path = tree.resolve(mount.destination()).map_err(|error: TreeError| error.to_string())?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    if path == Path::new("/") {
        return Err("it would hide the container's whole root".to_owned());
    }
    if matches!(kind, "proc" | "sysfs") && path != *mount.destination() {
        return Err(format!("{kind} can only be mounted on a directory, and the image has a link there"));
    }
    let device = path.strip_prefix("/dev").ok().and_then(Path::to_str);
    if matches!(made, Kind::Directory) && device.is_some_and(|name| DEVICES.contains(&name)) {
        return Err("it is a directory, and a device is to be there".to_owned());
    }
    if path == Path::new("/proc") && kind != "proc" {
        return Err("only proc can be mounted at /proc".to_owned());
    }
    let inside = path.starts_with("/proc") && path != Path::new("/proc");
    if inside && !PROC_FILES.iter().any(|file| path == Path::new(file)) {
        return Err("nothing can be mounted inside /proc".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use serde_json::json;

    use super::*;

    fn prepared(root: &Path, mounts: serde_json::Value) -> Result<Vec<Mount>> {
        let mut mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
        prepare(&mut Tree::new(root).unwrap(), &mut mounts)?;
        Ok(mounts)
    }

    #[test]
    fn a_service_account_is_mounted_through_the_images_links() {
        let (root, token) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("var")).unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink("/run/systemd/resolve/stub-resolv.conf", root.path().join("etc/resolv.conf")).unwrap();
        let file = token.path().join("resolv.conf");
        fs::write(&file, "").unwrap();
        let mounts = prepared(
            root.path(),
            json!([
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/etc/resolv.conf", "type": "bind", "source": file, "options": ["rbind"] },
                { "destination": "/var/run/secrets/x", "type": "bind", "source": token.path(), "options": ["ro"] },
                { "destination": "/var/run/secrets/x/y/../resolv.conf", "type": "bind", "source": file }
            ]),
        );
        let mounts = mounts.unwrap();
        let paths: Vec<_> = mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/proc",
                "/run/systemd/resolve/stub-resolv.conf",
                "/run/secrets/x",
                "/run/secrets/x/resolv.conf"
            ]
        );
    }

    #[test]
    fn the_mount_that_cannot_be_is_named() {
        let (root, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(root.path().join("file"), "").unwrap();
        symlink("/proc", root.path().join("link")).unwrap();
        symlink("/loop", root.path().join("loop")).unwrap();
        for (at, kind, why) in [
            ("/file", "bind", "not a directory"),
            ("/file/below", "tmpfs", "not a directory"),
            ("/loop/x", "bind", "too many"),
            ("/proc", "bind", "only proc"),
            ("/proc/sys", "bind", "inside /proc"),
            ("/link/1/root", "bind", "inside /proc"),
            ("/link", "proc", "a link there"),
            ("/a/..", "tmpfs", "whole root"),
            ("/dev/null", "bind", "a device is to be there"),
        ] {
            let mount = json!([{ "destination": at, "type": kind, "source": source.path() }]);
            let text = prepared(root.path(), mount).unwrap_err().to_string();
            assert!(text.contains(at) && text.contains(why), "{text}");
        }
    }

    #[test]
    fn an_image_whose_devices_would_be_made_elsewhere_is_refused() {
        let root = tempfile::tempdir().unwrap();
        symlink("/etc", root.path().join("dev")).unwrap();
        for mounts in [json!([]), json!([{ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }])] {
            assert!(prepared(root.path(), mounts).unwrap_err().to_string().contains("link to /etc"));
        }
    }

    #[test]
    fn a_tmpfs_has_the_mode_of_the_directory_that_it_covers() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        fs::set_permissions(root.path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let mounts = prepared(
            root.path(),
            json!([
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] },
                { "destination": "/new", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"] }
            ]),
        );
        let options: Vec<_> =
            mounts.unwrap().iter().map(|mount| mount.options().clone().unwrap_or_default()).collect();
        assert_eq!(options, [vec!["size=1m", "mode=1777"], vec![], vec!["mode=700"]]);
    }
}
