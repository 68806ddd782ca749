//! Volumes that the host pushes: whatever their entries say, nothing changes beside them.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ravelin_agent::volumes::{find, push, read};
use ravelin_agent_fuzz::{NOBODY, as_nobody, fresh, names, path};
use ravelin_fuzz::{Input, Scratch};
use ravelin_proto::agent::volume_entry::Content;
use ravelin_proto::agent::{Empty, PushVolumeRequest, ReadVolumeRequest, VolumeEntry};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("volumes"));
const SECRET: &[u8] = b"what is not the volume's";

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (outside, root) = (SCRATCH.path().join("outside"), SCRATCH.path().join("outside/volumes"));
    fresh(&outside);
    fresh(&root);
    for place in ["trees", "files", "logs"] {
        fresh(&root.join(place));
    }
    for file in ["a", "b", "volumes/a", "volumes/trees/other"] {
        fs::write(outside.join(file), SECRET).unwrap();
        let _ = std::os::unix::fs::chown(outside.join(file), Some(NOBODY), Some(NOBODY));
    }
    let volumes = ["v", "w", "other", "..", "trees/v"];
    while !input.is_empty() {
        let volume = input.choose(&volumes).to_owned();
        if input.below(4) == 3 {
            let request = ReadVolumeRequest { volume, max_bytes: input.u32(), remove: input.below(2) == 1 };
            if let Ok(data) = as_nobody(|| read(&root, &request)) {
                assert!(data.len() <= request.max_bytes as usize);
            }
            continue;
        }
        let (single_file, writable) = (input.below(4) == 3, input.below(4) == 3);
        let count = if single_file && input.below(8) < 7 { 1 } else { input.u8() % 8 };
        let entries = (0..count).map(|_| entry(&mut input)).collect();
        let request = PushVolumeRequest { volume, entries, single_file, writable };
        let _ = as_nobody(|| push(&root, &request));
        if let Ok(found) = find(&root, &request.volume) {
            assert!(found.starts_with(&root));
        }
    }
    for file in ["a", "b", "volumes/a"] {
        assert_eq!(fs::read(outside.join(file)).unwrap(), SECRET, "{file} was changed");
    }
    let mine = |name: &std::path::Path| {
        [
            "trees/v",
            "trees/w",
            "trees/other",
            "files/v",
            "files/w",
            "files/other",
            "logs/v",
            "logs/w",
            "logs/other",
        ]
        .iter()
        .any(|volume| name.starts_with(root.join(volume)))
    };
    let expected = ["a", "b", "volumes", "volumes/a", "volumes/trees", "volumes/files", "volumes/logs"];
    for name in names(&outside) {
        let known = expected.iter().any(|known| name == outside.join(known));
        assert!(known || mine(&name), "{} was made", name.display());
    }
});

fn entry(input: &mut Input<'_>) -> VolumeEntry {
    let content = match input.u8() % 8 {
        0..=2 => {
            let length = usize::from(input.u8() % 16);
            Some(Content::File(input.bytes(length).to_vec().into()))
        }
        3 | 4 => Some(Content::Directory(Empty {})),
        5 | 6 => Some(Content::Symlink(path(input))),
        _ => None,
    };
    let mode = if input.below(4) == 3 { u32::from(input.u16()) } else { 0o755 };
    VolumeEntry { path: path(input), mode, uid: NOBODY, gid: NOBODY, content }
}
