use super::*;

fn entry(path: &str, content: Content) -> api::VolumeEntry {
    let root = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    api::VolumeEntry { path: path.into(), mode: 0o644, uid: root, gid: group, content: Some(content) }
}

fn file(path: &str, text: &'static str) -> api::VolumeEntry {
    entry(path, Content::File(text.as_bytes().into()))
}

fn link(path: &str, target: &str) -> api::VolumeEntry {
    entry(path, Content::Symlink(target.into()))
}

fn dir(path: &str) -> api::VolumeEntry {
    api::VolumeEntry { mode: 0o755, ..entry(path, Content::Directory(api::Empty {})) }
}

/// Room for volumes.
fn volumes() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for place in [Place::Trees, Place::Files, Place::Logs] {
        fs::create_dir(root.path().join(place.name())).unwrap();
    }
    root
}

fn request(entries: Vec<api::VolumeEntry>) -> api::PushVolumeRequest {
    api::PushVolumeRequest { volume: "v".into(), entries, single_file: false, writable: false }
}

#[test]
fn a_kubelet_directory_is_swapped_through_its_data_link() {
    let root = volumes();
    let first = vec![
        dir("..1"),
        file("..1/key", "one"),
        file("..1/old", "x"),
        link("..data", "..1"),
        link("key", "..data/key"),
        link("old", "..data/old"),
    ];
    push(root.path(), &request(first)).unwrap();
    let volume = root.path().join("trees/v");
    assert_eq!(fs::read_to_string(volume.join("key")).unwrap(), "one");
    let open = File::open(volume.join("..1")).unwrap();

    let second = vec![dir("..2"), file("..2/key", "two"), link("..data", "..2"), link("key", "..data/key")];
    push(root.path(), &request(second.clone())).unwrap();
    assert_eq!(fs::read_to_string(volume.join("key")).unwrap(), "two");
    assert_eq!(fs::read_link(volume.join("..data")).unwrap(), Path::new("..2"));
    assert!(!volume.join("old").is_symlink());
    assert!(!volume.join("..1").exists());
    drop(open);

    push(root.path(), &request(second)).unwrap();
    assert_eq!(fs::read_to_string(volume.join("key")).unwrap(), "two");
}

#[test]
fn the_volumes_own_directory_has_the_hosts_mode() {
    use std::os::unix::fs::PermissionsExt;
    let root = volumes();
    let own = api::VolumeEntry { mode: 0o2750, ..dir("") };
    for data in ["..1", "..2"] {
        push(root.path(), &request(vec![own.clone(), dir(data), link("..data", data)])).unwrap();
        assert_eq!(fs::metadata(root.path().join("trees/v")).unwrap().permissions().mode() & 0o7777, 0o2750);
    }
    let file = file("", "text");
    assert!(matches!(push(root.path(), &request(vec![file])), Err(AgentError::Invalid(_))));
}

#[test]
fn a_plain_directory_follows_the_host() {
    let root = volumes();
    push(root.path(), &request(vec![file("a", "1"), dir("d"), file("d/b", "2"), file("gone", "3")])).unwrap();
    push(root.path(), &request(vec![file("a", "4"), dir("d"), file("d/b", "2")])).unwrap();
    let volume = root.path().join("trees/v");
    assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "4");
    assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");
    assert!(!volume.join("gone").exists());
}

#[test]
fn a_single_file_keeps_its_inode() {
    use std::os::unix::fs::MetadataExt;
    let root = volumes();
    let mut request = request(vec![file("", "long content")]);
    request.single_file = true;
    push(root.path(), &request).unwrap();
    let inode = fs::metadata(root.path().join("files/v")).unwrap().ino();
    request.entries = vec![file("", "short")];
    push(root.path(), &request).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("files/v")).unwrap(), "short");
    assert_eq!(fs::metadata(root.path().join("files/v")).unwrap().ino(), inode);
}

#[test]
fn what_a_container_wrote_is_kept_and_read_back() {
    let root = volumes();
    let mut request = request(vec![file("", "")]);
    request.single_file = true;
    request.writable = true;
    push(root.path(), &request).unwrap();
    fs::write(root.path().join("logs/v"), "last words").unwrap();
    push(root.path(), &request).unwrap();
    let read_back =
        read(root.path(), &api::ReadVolumeRequest { volume: "v".into(), max_bytes: 4, remove: false })
            .unwrap();
    assert_eq!(read_back, b"ords");
    // Once more, and it is gone: a container that is restarted for ever leaves no file each time.
    let last = api::ReadVolumeRequest { volume: "v".into(), max_bytes: 4, remove: true };
    assert_eq!(read(root.path(), &last).unwrap(), b"ords");
    assert!(!root.path().join("logs/v").exists());
    assert!(matches!(read(root.path(), &last), Err(AgentError::NotFound(_))));
    let missing = api::ReadVolumeRequest { volume: "w".into(), max_bytes: 4, remove: true };
    assert!(matches!(read(root.path(), &missing), Err(AgentError::NotFound(_))));
}

#[test]
fn paths_and_links_out_of_the_volume_are_refused() {
    let root = volumes();
    for bad in [
        file("/abs", ""),
        file("a/../../b", ""),
        file("", ""),
        link("l", "/etc/passwd"),
        link("l", "../x"),
        link("d/l", "../../x"),
        link("l", "a/../../x"),
    ] {
        let refused = push(root.path(), &request(vec![bad.clone()]));
        assert!(matches!(refused, Err(AgentError::Invalid(_))), "{bad:?}");
    }
    push(root.path(), &request(vec![dir("d"), link("d/l", "../x")])).unwrap();
    for name in ["", "..", ".x", "a/b", "a b"] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
}

#[test]
fn what_a_container_put_into_a_volume_is_not_followed_and_gone_with_the_next_push() {
    let root = volumes();
    let kept = tempfile::tempdir().unwrap();
    fs::write(kept.path().join("file"), "kept").unwrap();
    let entries = vec![
        dir("d"),
        dir("d/deep"),
        file("d/deep/a", "1"),
        file("unsaid/a", "1"),
        file("b", "2"),
        link("l", "b"),
    ];
    push(root.path(), &request(entries.clone())).unwrap();
    let volume = root.path().join("trees/v");
    // As one that may mount can, in a volume that it has made writable.
    for taken in ["d", "unsaid", "b", "l", "..writing", "..data_tmp"] {
        let path = volume.join(taken);
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        symlink(kept.path(), &path).unwrap();
    }
    push(root.path(), &request(entries.clone())).unwrap();
    for file in ["d/deep/a", "unsaid/a"] {
        assert_eq!(fs::read_to_string(volume.join(file)).unwrap(), "1");
    }
    assert_eq!(fs::read_to_string(volume.join("l")).unwrap(), "2");
    // What the host no longer has is pruned, by whatever name it can be reached.
    fs::remove_dir_all(volume.join("d/deep")).unwrap();
    symlink(kept.path(), volume.join("d/deep")).unwrap();
    fs::create_dir_all(volume.join("more/and/more")).unwrap();
    symlink(kept.path(), volume.join("more/and/link")).unwrap();
    push(root.path(), &request(vec![dir("d"), dir("d/deep"), file("b", "3")])).unwrap();
    assert_eq!(fs::read_to_string(volume.join("b")).unwrap(), "3");
    assert!(!volume.join("d/deep").is_symlink() && !volume.join("more").exists());
    assert_eq!(fs::read_dir(kept.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(kept.path().join("file")).unwrap(), "kept");
}

#[test]
fn a_link_in_the_place_of_the_kubelets_directories_is_replaced() {
    let root = volumes();
    let kept = tempfile::tempdir().unwrap();
    fs::write(kept.path().join("key"), "kept").unwrap();
    let version = |name: &str, text| {
        vec![dir(name), file(&format!("{name}/key"), text), link("..data", name), link("key", "..data/key")]
    };
    push(root.path(), &request(version("..1", "one"))).unwrap();
    let volume = root.path().join("trees/v");
    for taken in ["..2", "..gone"] {
        symlink(kept.path(), volume.join(taken)).unwrap();
    }
    push(root.path(), &request(version("..2", "two"))).unwrap();
    assert_eq!(fs::read_to_string(volume.join("key")).unwrap(), "two");
    assert!(!volume.join("..2").is_symlink() && !volume.join("..gone").is_symlink());
    assert_eq!(fs::read_to_string(kept.path().join("key")).unwrap(), "kept");
}

#[test]
fn a_single_file_is_only_written_and_read_as_a_regular_file() {
    let root = volumes();
    let fifo = |path: &Path| {
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::RWXU, 0).unwrap();
    };
    fifo(&root.path().join("files/v"));
    let mut single = request(vec![file("", "text")]);
    single.single_file = true;
    let refused = push(root.path(), &single).unwrap_err().to_string();
    assert!(refused.ends_with("it is not a regular file"), "{refused}");
    fifo(&root.path().join("logs/w"));
    let read_back = api::ReadVolumeRequest { volume: "w".into(), max_bytes: 4, remove: false };
    assert!(matches!(read(root.path(), &read_back), Err(AgentError::Invalid(_))));
}
