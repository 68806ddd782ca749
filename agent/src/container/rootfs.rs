//! A container's root file system: its layers below, a writable directory of the scratch disk on top.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind,
    mount_change, move_mount, open_tree, unmount,
};

use crate::error::{AgentError, Attempt, Result};
use crate::mount_attributes::map_ids;
use crate::namespaces::Namespaces;
use crate::{opening, paths, removal};

/// Mounts an overlay of `layers` (topmost first) for a container and returns its path. With `namespaces` the owners that the
/// layers' files have are users of that user namespace.
///
/// # Errors
///
/// When there is no layer, or the kernel refuses.
pub fn mount(id: &str, layers: &[u32], namespaces: Option<&Namespaces>) -> Result<PathBuf> {
    if layers.is_empty() {
        return Err(AgentError::Invalid(format!("container {id} has no image layer")));
    }
    let directory = paths::container(id);
    fs::create_dir_all(&directory).attempt(|| format!("create {}", directory.display()))?;
    // One private mount holds all that is mounted for the container. What containers mount over a volume that they share
    // can cover the volume's mount below, but not this one, by which everything is taken away again.
    mount_bind(&directory, &directory)
        .and_then(|()| mount_change(&directory, MountPropagationFlags::PRIVATE))
        .attempt(|| format!("mount {}", directory.display()))?;
    let target = directory.join("rootfs");
    let scratch = paths::container_scratch(id);
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    for dir in [&target, &upper, &work] {
        fs::create_dir_all(dir).attempt(|| format!("create {}", dir.display()))?;
    }
    let layer = |(at, layer): (usize, &u32)| match namespaces {
        Some(namespaces) => {
            map_layer(&paths::layer(*layer), &directory.join("layers").join(at.to_string()), namespaces)
        }
        None => Ok(paths::layer(*layer)),
    };
    let lower: Vec<PathBuf> = layers.iter().enumerate().map(layer).collect::<Result<_>>()?;
    copy_root_attributes(lower.first().map(PathBuf::as_path), &upper)?;
    let mounted = match overlay(&lower, &upper, &work, &target) {
        // The scratch disk could not be written at some time since its errors were last looked at. The containers of that time
        // hear of it; one that begins has lost nothing.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {
            let scratch = fs::File::open(&upper).attempt(|| format!("open {}", upper.display()))?;
            let _ = rustix::fs::syncfs(&scratch);
            overlay(&lower, &upper, &work, &target)
        }
        done => done,
    };
    mounted.attempt(|| format!("mount the root file system of {id} from {} layers", layers.len()))?;
    Ok(target)
}

/// Mounts a layer once more, at `place`, with the mapping of the pod's user namespace. What a container writes needs none: the
/// directory on top is its own, and holds the ids that the guest's kernel knows.
fn map_layer(layer: &Path, place: &Path, namespaces: &Namespaces) -> Result<PathBuf> {
    fs::create_dir_all(place).attempt(|| format!("create {}", place.display()))?;
    open_tree(CWD, layer, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|tree| {
            map_ids(&tree, namespaces.user())?;
            Ok(move_mount(&tree, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        })
        .attempt(|| format!("mount the layer {} for the pod's users", layer.display()))?;
    Ok(place.to_owned())
}

/// The overlay's root directory takes mode and owner from the upper one: give it the image's.
fn copy_root_attributes(from: Option<&Path>, to: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let Some(from) = from else { return Ok(()) };
    let image = fs::metadata(from).attempt(|| format!("look at {}", from.display()))?;
    chown(to, Some(image.uid()), Some(image.gid()))
        .attempt(|| format!("change the owner of {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(image.mode() & 0o7777))
        .attempt(|| format!("change the mode of {}", to.display()))
}

fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lower {
        // One call a layer: no limit on how many fit in a page of options.
        fsconfig_set_string(&context, c"lowerdir+", layer)?;
    }
    fsconfig_set_string(&context, c"upperdir", upper)?;
    fsconfig_set_string(&context, c"workdir", work)?;
    // Each layer is a file system of its own; files must still look as if they were on one.
    fsconfig_set_string(&context, c"xino", c"on")?;
    // The upper directory lives no longer than the machine, so nothing is gained by writing it out in order.
    fsconfig_set_flag(&context, c"volatile")?;
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Unmounts what was mounted for a container and gives the scratch space back, the latter in the background.
///
/// # Errors
///
/// When it cannot be unmounted.
pub fn unmount_and_clear(id: &str) -> Result<()> {
    let directory = paths::container(id);
    // What containers mounted below a shared volume is not taken away from the others.
    let _ = mount_change(&directory, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
    match unmount(&directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not mounted: creating the container failed before that, or it was cleared before.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
            let _ = fs::remove_dir_all(&directory);
        }
        // Its files are not removed through mounts that are still there, into a volume.
        Err(error) => return Err(error).attempt(|| format!("unmount {}", directory.display())),
    }
    let scratch = paths::container_scratch(id);
    // Renamed at once, so that the id is free; removed when there is time.
    let home = Path::new(paths::SCRATCH).join("trash");
    let trash = format!("{id}-{}", unique());
    if fs::rename(&scratch, home.join(&trash)).is_ok() {
        let removing = std::thread::Builder::new().name("trash".to_owned());
        // Without a thread, or where it cannot be removed, it stays until the pod ends. Somebody may still have a descriptor of it.
        let remove =
            move || opening::directory(&home).and_then(|home| Ok(removal::remove(home, trash.as_ref())?));
        if let Err(error) = removing.spawn(remove) {
            crate::log!("cannot remove what the container {id} wrote: {error}");
        }
    }
    Ok(())
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
