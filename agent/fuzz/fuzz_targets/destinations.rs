//! Where a container's mounts go, in an image full of links and with volumes full of them: nothing is made beside the two.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Mount;
use ravelin_agent::container::fuzzing::{Tree, prepare};
use ravelin_agent_fuzz::{as_nobody, fresh, names, path};
use ravelin_fuzz::{Input, Scratch};
use serde_json::json;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("destinations"));

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let outside = SCRATCH.path().join("outside");
    let (image, volume) = (outside.join("image"), outside.join("volume"));
    for directory in [&outside, &image, &volume, &outside.join("a"), &outside.join("etc")] {
        fresh(directory);
    }
    as_nobody(|| {
        for _ in 0..input.u8() % 16 {
            let directory = if input.below(4) == 3 { &volume } else { &image };
            plant(directory, &mut input);
        }
    });
    let mounts: Vec<Mount> = (0..input.u8() % 6).filter_map(|_| mount(&volume, &mut input)).collect();
    let mut completed = mounts.clone();
    let done = as_nobody(|| {
        let mut tree = Tree::new(&image).unwrap();
        prepare(&mut tree, &mut completed).is_ok()
    });
    if done {
        for mount in &completed {
            // Resolved once and for all: no link is left for whoever mounts it.
            let destination = mount.destination();
            assert!(destination.is_absolute() && destination != Path::new("/"));
            assert!(!destination.components().any(|part| part.as_os_str() == ".."));
        }
    }
    for name in names(&outside) {
        let inside = name.starts_with(&image) || name.starts_with(&volume);
        let there = ["a", "etc"].iter().any(|known| name == outside.join(known));
        assert!(inside || there, "{} was made", name.display());
    }
});

/// Puts a directory, a file or a link there, if what is above it is no link itself.
fn plant(directory: &Path, input: &mut Input<'_>) {
    let kind = input.u8() % 4;
    let path = path(input);
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
    let Some((name, above)) = parts.split_last() else { return };
    let mut here = directory.to_owned();
    for part in above {
        here.push(part);
        if fs::create_dir(&here).is_err() && !fs::symlink_metadata(&here).is_ok_and(|found| found.is_dir()) {
            return;
        }
    }
    here.push(name);
    match kind {
        0 => drop(fs::create_dir(&here)),
        1 => drop(fs::File::create_new(&here)),
        _ => {
            let target = ravelin_agent_fuzz::path(input);
            let target = if target.is_empty() { "..".to_owned() } else { target };
            let _ = symlink(target, &here);
        }
    }
}

fn mount(volume: &Path, input: &mut Input<'_>) -> Option<Mount> {
    let destination = format!("/{}", path(input));
    let mount = match input.u8() % 4 {
        0 => json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"] }),
        1 => json!({ "destination": destination, "type": "proc", "source": "proc" }),
        kind => {
            // What stands behind a mount is the agent's: no link of a container's.
            let part = volume.join("a");
            let is_directory = fs::symlink_metadata(&part).is_ok_and(|found| found.is_dir());
            let source = if input.below(4) == 3 && is_directory { part } else { volume.to_owned() };
            let access = if kind == 2 { "ro" } else { "rw" };
            json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", access] })
        }
    };
    serde_json::from_value(mount).ok()
}
