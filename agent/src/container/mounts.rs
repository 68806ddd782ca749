//! What stands behind a container's mounts: pushed volumes, emptyDirs, file volumes, the pod's shared memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use oci_spec::runtime::Mount;
use ravelin_proto::agent as api;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat, openat2,
};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_change, move_mount, open_tree, unmount,
};

use super::file_volumes;
use super::mount_options::{self, Propagation};
use crate::error::{AgentError, Attempt, Result};
use crate::mount_attributes::map_ids;
use crate::namespaces::Namespaces;
use crate::sync::lock;
use crate::volumes::check_name;
use crate::{paths, volumes};

/// A mount's source in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it lies.
    pub path: PathBuf,
    /// The container must not write it, whatever its spec says: the agent itself keeps its content.
    pub readonly: bool,
    /// Device files in it are not the guest's, whatever the spec says.
    pub nodev: bool,
}

/// Finds or makes what each source names, for the spec's `mounts`; answers by index in them.
///
/// # Errors
///
/// [`AgentError::Invalid`] for names and paths that are not what the protocol allows, [`AgentError::NotFound`] for
/// a volume that was not pushed.
pub fn resolve(
    id: &str,
    mounts: &[Mount],
    rootfs: &Path,
    sources: &[api::MountSource],
    namespaces: Option<&Namespaces>,
) -> Result<BTreeMap<usize, Source>> {
    let mut resolved = BTreeMap::new();
    for source in sources {
        let index = usize::try_from(source.spec_index).unwrap_or(usize::MAX);
        let mut nodev = false;
        let (mut path, readonly) = match &source.source {
            Some(api::mount_source::Source::Pushed(pushed)) => {
                let volume = volumes::find(Path::new(paths::VOLUMES), &pushed.volume)?;
                let readonly = volume.is_dir();
                (sub_path(id, index, volume, &pushed.sub_path, false)?, readonly)
            }
            Some(api::mount_source::Source::EmptyDir(dir)) => {
                let wanted = mounts.get(index).map(mount_options::propagation).unwrap_or_default();
                (use_empty_dir(id, index, dir, wanted)?, false)
            }
            Some(api::mount_source::Source::FileVolume(volume)) => {
                nodev = true;
                let whole = file_volumes::find(volume.number)?;
                (sub_path(id, index, whole, &volume.sub_path, false)?, false)
            }
            Some(api::mount_source::Source::Shm(_)) => (PathBuf::from(paths::SHM), false),
            Some(api::mount_source::Source::OwnDirectory(_)) => {
                (own_directory(id, index, mounts, rootfs, namespaces)?, false)
            }
            None => {
                return Err(AgentError::Invalid(format!(
                    "mount {index} of container {id} has no kind of source"
                )));
            }
        };
        let mapped = match &source.source {
            // A container's own directories have the pod's users already.
            Some(api::mount_source::Source::OwnDirectory(_)) => true,
            Some(api::mount_source::Source::FileVolume(volume)) => volume.mapped,
            _ => false,
        };
        if let Some(namespaces) = namespaces
            && !mapped
        {
            path = with_the_pods_users(id, index, &path, namespaces)?;
        }
        if resolved.insert(index, Source { path, readonly, nodev }).is_some() {
            return Err(AgentError::Invalid(format!("mount {index} of container {id} has two sources")));
        }
    }
    Ok(resolved)
}

/// The directory of the container's own root file system where mount `index` goes.
///
/// A mount of its own keeps it writable when the root is made read-only.
fn own_directory(
    id: &str,
    index: usize,
    mounts: &[Mount],
    rootfs: &Path,
    namespaces: Option<&Namespaces>,
) -> Result<PathBuf> {
    let root = namespaces.map_or((0, 0), |namespaces| namespaces.ids.root());
    bind(id, index, &open_own_directory(id, index, mounts, rootfs, root)?, false)
}

/// Opens that directory; makes it if the image has none.
fn open_own_directory(
    id: &str,
    index: usize,
    mounts: &[Mount],
    rootfs: &Path,
    root: (u32, u32),
) -> Result<OwnedFd> {
    let mount = mounts
        .get(index)
        .ok_or_else(|| AgentError::Invalid(format!("the spec of container {id} has no mount {index}")))?;
    let inside = mount.destination().strip_prefix("/").unwrap_or(mount.destination());
    let inside: PathBuf = inside.components().filter(|part| !matches!(part, Component::CurDir)).collect();
    if inside.as_os_str().is_empty() {
        return Err(AgentError::Invalid(format!("mount {index} of container {id} would cover its root")));
    }
    walk(rootfs, &inside, Missing::MakeFor(root))
}

/// What a container mounts of an emptyDir.
///
/// Mounts that a container makes in one reach others only if both ask for that. Between those the volume is a mount of its
/// own, of which each container has a peer or a slave (`mount(8)`, shared subtrees); without any, it is a plain directory.
fn use_empty_dir(id: &str, index: usize, dir: &api::EmptyDir, wanted: Propagation) -> Result<PathBuf> {
    check_name(&dir.name)?;
    let parent = if dir.memory {
        PathBuf::from(paths::MEMORY_DIRS)
    } else {
        Path::new(paths::SCRATCH).join("emptydir")
    };
    let plain = parent.join(&dir.name);
    let shared = Path::new(paths::SHARED_DIRS).join(&dir.name);
    let prepare = |path: &Path| prepare_empty_dir(dir, path);
    let Some(volume) = make_empty_dir(&plain, &shared, wanted, prepare)? else {
        return sub_path(id, index, plain, &dir.sub_path, true);
    };
    let part = Path::new(&dir.sub_path);
    let found = if dir.sub_path.is_empty() {
        rustix::fs::open(&volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .attempt(|| format!("open {}", volume.display()))?
    } else {
        walk(&volume, part, Missing::MakeLikeVolume)?
    };
    let target = bind(id, index, &found, true)?;
    let change = match wanted {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    };
    mount_change(&target, change | MountPropagationFlags::REC)
        .attempt(|| format!("change the propagation of {}", target.display()))?;
    Ok(target)
}

/// Makes a directory a shared mount at `shared`.
fn share(directory: &Path, shared: &Path) -> Result<PathBuf> {
    let attempt = || format!("share {} at {}", directory.display(), shared.display());
    fs::create_dir_all(shared).attempt(attempt)?;
    let done = mount_bind(directory, shared)
        .and_then(|()| mount_change(shared, MountPropagationFlags::SHARED))
        .attempt(attempt);
    if done.is_err() {
        // The next one must not take it for shared.
        let _ = unmount(shared, UnmountFlags::DETACH);
        let _ = fs::remove_dir(shared);
    }
    done.map(|()| shared.to_owned())
}

/// Makes what an emptyDir lacks: its directory, and the mount at `shared` if mounts in it are to reach others. Answers with
/// that mount, if there is one now.
fn make_empty_dir(
    plain: &Path,
    shared: &Path,
    wanted: Propagation,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<Option<PathBuf>> {
    // Two containers may be created at once: the first to come makes it for both, and the other waits until it is ready.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = lock(&MAKING);
    match fs::create_dir(plain) {
        Ok(()) => prepare(plain).inspect_err(|_| {
            let _ = unmount(plain, UnmountFlags::DETACH);
            let _ = fs::remove_dir(plain);
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).attempt(|| format!("create {}", plain.display())),
    }
    match (wanted, shared.exists()) {
        (Propagation::Private, false) => Ok(None),
        (_, true) => Ok(Some(shared.to_owned())),
        (_, false) => share(plain, shared).map(Some),
    }
}

fn prepare_empty_dir(dir: &api::EmptyDir, path: &Path) -> Result<()> {
    if dir.memory {
        let size = if dir.size_bytes == 0 { "50%".to_owned() } else { dir.size_bytes.to_string() };
        let options = std::ffi::CString::new(format!("size={size}")).unwrap_or_default();
        mount("tmpfs", path, c"tmpfs", MountFlags::empty(), Some(options.as_c_str()))
            .attempt(|| format!("mount a tmpfs on {}", path.display()))?;
    }
    chown(path, Some(dir.uid), Some(dir.gid))
        .attempt(|| format!("change the owner of {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(dir.mode & 0o7777))
        .attempt(|| format!("change the mode of {}", path.display()))
}

/// A path inside a volume. Containers write there, so the path is walked without leaving the volume and pinned by
/// a bind mount of what was found; no one can replace it between here and the container's own mount.
fn sub_path(id: &str, index: usize, volume: PathBuf, sub_path: &str, create: bool) -> Result<PathBuf> {
    if sub_path.is_empty() {
        return Ok(volume);
    }
    let missing = if create { Missing::MakeLikeVolume } else { Missing::Refuse };
    let found = walk(&volume, Path::new(sub_path), missing)?;
    bind(id, index, &found, false)
}

/// Binds what was found to a place of the container's own.
fn bind(id: &str, index: usize, found: &OwnedFd, with_mounts_below: bool) -> Result<PathBuf> {
    bind_at(&paths::container(id).join("mounts").join(index.to_string()), found, with_mounts_below, None)
}

/// Binds what was found to `target`, which is made; with the mapping of a user namespace, if there is one.
fn bind_at(
    target: &Path,
    found: &OwnedFd,
    with_mounts_below: bool,
    namespaces: Option<&Namespaces>,
) -> Result<PathBuf> {
    let attempt = || format!("bind the source of a mount to {}", target.display());
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(found).attempt(attempt)?.st_mode).is_dir();
    let made = if is_dir {
        fs::create_dir_all(target)
    } else {
        fs::create_dir_all(target.parent().unwrap_or(Path::new(paths::RUN)))
            .and_then(|()| fs::File::create(target).map(drop))
    };
    made.attempt(|| format!("create {}", target.display()))?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags |= OpenTreeFlags::AT_EMPTY_PATH;
    if with_mounts_below {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(found, c"", flags).attempt(attempt)?;
    if let Some(namespaces) = namespaces {
        map_ids(&tree, namespaces.user())
            .attempt(|| format!("give the pod's users what is mounted at {}", target.display()))?;
    }
    move_mount(&tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).attempt(attempt)?;
    Ok(target.to_owned())
}

/// Binds a source once more, to a mount with the mapping of the pod's user namespace.
fn with_the_pods_users(id: &str, index: usize, source: &Path, namespaces: &Namespaces) -> Result<PathBuf> {
    let found = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| format!("open {}", source.display()))?;
    bind_at(&paths::container(id).join("mapped").join(index.to_string()), &found, true, Some(namespaces))
}

/// What [`walk`] does about directories that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It fails.
    Refuse,
    /// It makes them as the kubelet does: the last with the volume's permissions, those above it with 0755.
    MakeLikeVolume,
    /// It makes them as containerd does for an image's volume: the last is root's with 0755, whatever the directory that
    /// it is in says. The image's `/` may be one that nobody can write without capabilities. This is root's user and group.
    MakeFor((u32, u32)),
}

/// Opens a path inside a volume, links resolved as if the volume were the root.
pub(super) fn walk(volume: &Path, sub_path: &Path, missing: Missing) -> Result<OwnedFd> {
    if !sub_path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(AgentError::Invalid(format!("the subPath {} leaves its volume", sub_path.display())));
    }
    let attempt = || format!("open {} in {}", sub_path.display(), volume.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = rustix::fs::open(volume, flags, Mode::empty()).attempt(attempt)?;
    match openat2(&root, sub_path, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOENT) if missing != Missing::Refuse => {}
        found => return found.attempt(attempt),
    }
    let own = flags | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let like_volume = rustix::fs::fstat(&root).attempt(attempt)?.st_mode & 0o7777;
    let mut done = PathBuf::new();
    let mut here = root.as_fd().try_clone_to_owned().attempt(attempt)?;
    for part in sub_path.components() {
        done.push(part);
        let name = Path::new(part.as_os_str());
        here = match openat2(&root, &done, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::NOENT) => match mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
                // Another container's creation was faster.
                Err(rustix::io::Errno::EXIST) => {
                    openat2(&root, &done, flags, Mode::empty(), resolve).attempt(attempt)?
                }
                made => {
                    made.attempt(attempt)?;
                    // The directory itself: whoever shares the volume may have put a link in its place.
                    let made = openat(&here, name, own, Mode::empty()).attempt(attempt)?;
                    let mode = if let Missing::MakeFor((user, group)) = missing {
                        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
                        chownat(&made, c"", Some(user), Some(group), AtFlags::EMPTY_PATH).attempt(attempt)?;
                        0o755
                    } else {
                        like_volume
                    };
                    // A path descriptor has no permissions to change but by its name.
                    let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                    fs::set_permissions(path, fs::Permissions::from_mode(mode)).attempt(attempt)?;
                    made
                }
            },
            found => found.attempt(attempt)?,
        };
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_inside_its_volume() {
        let volume = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", volume.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../../etc", volume.path().join("up")).unwrap();
        fs::create_dir(volume.path().join("etc")).unwrap();
        fs::write(volume.path().join("etc/hostname"), "inside").unwrap();
        for path in ["out/hostname", "up/hostname"] {
            let fd = walk(volume.path(), Path::new(path), Missing::Refuse).unwrap();
            let text = fs::read_to_string(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            assert_eq!(text.unwrap(), "inside", "{path}");
        }
        for path in ["../x", "/etc"] {
            let refused = walk(volume.path(), Path::new(path), Missing::MakeLikeVolume);
            assert!(matches!(refused, Err(AgentError::Invalid(_))), "{path}");
        }
    }

    #[test]
    fn an_empty_dir_that_another_container_makes_is_waited_for() {
        use std::sync::mpsc;
        let parent = tempfile::tempdir().unwrap();
        let (plain, shared) = (&parent.path().join("d"), &parent.path().join("shared"));
        let make = |prepare: &dyn Fn(&Path) -> Result<()>| {
            make_empty_dir(plain, shared, Propagation::Private, prepare).unwrap();
        };
        let (begun, is_begun) = mpsc::channel();
        let (returned, is_returned) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                make(&|path| {
                    begun.send(()).unwrap();
                    // One that did not wait for this would be back by then.
                    let _ = is_returned.recv_timeout(std::time::Duration::from_millis(300));
                    fs::write(path.join("ready"), "").attempt(String::new)
                });
            });
            is_begun.recv().unwrap();
            make(&|_| panic!("it is made twice"));
            let ready = plain.join("ready").exists();
            let _ = returned.send(());
            assert!(ready, "the directory is used before it is ready");
        });
    }

    #[test]
    fn missing_directories_are_made_only_on_request_and_as_the_kubelet_makes_them() {
        let volume = tempfile::tempdir().unwrap();
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o2777)).unwrap();
        assert!(walk(volume.path(), Path::new("a/b"), Missing::Refuse).is_err());
        walk(volume.path(), Path::new("a/b"), Missing::MakeLikeVolume).unwrap();
        let mode = |path: &str| fs::metadata(volume.path().join(path)).unwrap().permissions().mode() & 0o7777;
        // With the set-group-id bit, by which an fsGroup's volume hands its group on.
        assert_eq!((mode("a"), mode("a/b")), (0o2777, 0o2777));
        // What is there keeps its mode.
        fs::set_permissions(volume.path().join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
        walk(volume.path(), Path::new("a/b"), Missing::MakeLikeVolume).unwrap();
        assert_eq!(mode("a/b"), 0o700);
    }

    #[test]
    fn a_missing_image_volume_is_made_for_root_whatever_the_images_root_is() {
        use std::os::unix::fs::MetadataExt;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let image = tempfile::tempdir().unwrap();
        chown(image.path(), Some(1000), Some(2000)).unwrap();
        // The set-group-id bit would go to what is made, and the group with it.
        fs::set_permissions(image.path(), fs::Permissions::from_mode(0o2555)).unwrap();
        let open = |path: &str| {
            let mut mount = Mount::default();
            mount.set_destination(Path::new("/").join(path));
            open_own_directory("c", 0, &[mount], image.path(), (0, 0)).unwrap();
        };
        for path in ["data", "var/lib/data"] {
            open(path);
            let made = fs::metadata(image.path().join(path)).unwrap();
            assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o755, 0, 0), "{path}");
        }
        // What the image has is left as it is.
        fs::set_permissions(image.path().join("data"), fs::Permissions::from_mode(0o700)).unwrap();
        open("data");
        assert_eq!(fs::metadata(image.path().join("data")).unwrap().mode() & 0o7777, 0o700);
    }
}
