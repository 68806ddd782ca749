use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A root file system with these links, of which the parents are made.
fn image(links: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (link, target) in links {
        let link = root.path().join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, link).unwrap();
    }
    root
}

fn make(root: &tempfile::TempDir, path: &str, kind: Kind) -> Result<PathBuf, TreeError> {
    Tree::new(root.path()).unwrap().make(Path::new(path), kind).map(|found| found.path)
}

#[test]
fn a_link_to_a_directory_that_is_missing_is_followed_and_the_directory_made() {
    let root = image(&[("var/run", "/run")]);
    let path = "/var/run/secrets/kubernetes.io/serviceaccount";
    let made = make(&root, path, Kind::Directory).unwrap();
    assert_eq!(made, Path::new("/run/secrets/kubernetes.io/serviceaccount"));
    assert!(root.path().join("run/secrets/kubernetes.io/serviceaccount").is_dir());
    assert!(root.path().join("var/run").is_symlink());
}

#[test]
fn a_dangling_link_to_a_file_gets_its_file() {
    let root = image(&[("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")]);
    let made = make(&root, "/etc/resolv.conf", Kind::File).unwrap();
    assert_eq!(made, Path::new("/run/systemd/resolve/stub-resolv.conf"));
    assert!(root.path().join("run/systemd/resolve/stub-resolv.conf").is_file());
}

#[test]
fn links_lead_nowhere_outside_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().to_str().unwrap();
    let root = image(&[
        ("absolute", absolute),
        ("up", "../../../../../../../../../tmp"),
        ("a/b/chain", "../../second"),
        ("second", "/third/x"),
        ("third", ".."),
    ]);
    for (asked, expected) in [
        ("/absolute/made", format!("{absolute}/made")),
        ("/up/made", "/tmp/made".to_owned()),
        ("/a/b/chain/made", "/x/made".to_owned()),
        ("/../../../../etc/made", "/etc/made".to_owned()),
        ("/a/../../made", "/made".to_owned()),
        // What does not exist is undone by its letters, and not made.
        ("/nowhere/../made/here", "/made/here".to_owned()),
    ] {
        assert_eq!(make(&root, asked, Kind::Directory).unwrap(), Path::new(&expected), "{asked}");
        assert!(root.path().join(expected.trim_start_matches('/')).is_dir(), "{asked}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(!root.path().join("nowhere").exists());
}

#[test]
fn links_in_a_circle_end() {
    let root = image(&[("a", "b"), ("b", "/a"), ("self", "self/x")]);
    for path in ["/a/x", "/self"] {
        assert_eq!(make(&root, path, Kind::Directory).unwrap_err(), TreeError::Loop, "{path}");
    }
    // Forty are allowed.
    let names: Vec<String> = (0..40).map(|at| format!("l{at}")).collect();
    let links: Vec<(&str, &str)> = names
        .iter()
        .map(String::as_str)
        .zip(names.iter().skip(1).map(String::as_str).chain(["end"]))
        .collect();
    assert_eq!(make(&image(&links), "/l0", Kind::Directory).unwrap(), Path::new("/end"));
}

#[test]
fn what_is_of_the_wrong_kind_is_named() {
    let root = image(&[("link", "file")]);
    fs::write(root.path().join("file"), "").unwrap();
    fs::create_dir(root.path().join("directory")).unwrap();
    let error = |path, kind| make(&root, path, kind).unwrap_err().to_string();
    assert_eq!(error("/link", Kind::Directory), "/file is not a directory");
    assert_eq!(error("/link/below", Kind::File), "/file is not a directory");
    assert!(error("/directory", Kind::File).starts_with("/directory is a directory"));
    assert_eq!(make(&root, "/link", Kind::File).unwrap(), Path::new("/file"));
}

#[test]
fn what_is_mounted_covers_what_was_there() {
    let (root, volume) = (image(&[("data/link", "/etc")]), image(&[("link", "/inside")]));
    let mut tree = Tree::new(root.path()).unwrap();
    tree.mount("/data".into(), open(volume.path(), false).unwrap());
    // The volume's own link, and the container's root.
    assert_eq!(tree.make(Path::new("/data/link/x"), Kind::Directory).unwrap().path, Path::new("/inside/x"));
    assert!(root.path().join("inside/x").is_dir());
    tree.make(Path::new("/data/sub/folder"), Kind::Directory).unwrap();
    assert!(volume.path().join("sub/folder").is_dir());
    assert!(!root.path().join("data/sub").exists());
    // Up from a mount is its destination's parent.
    assert_eq!(tree.resolve(Path::new("/data/../x")).unwrap(), Path::new("/x"));
}

#[test]
fn nothing_is_made_in_a_read_only_mount_or_before_a_file_system_is_there() {
    let (root, volume) = (image(&[]), image(&[]));
    fs::create_dir(volume.path().join("there")).unwrap();
    let mut tree = Tree::new(root.path()).unwrap();
    tree.mount("/config".into(), open(volume.path(), true).unwrap());
    tree.mount("/dev".into(), Content::New);
    assert!(tree.make(Path::new("/config/there"), Kind::Directory).is_ok());
    let error = tree.make(Path::new("/config/there/not"), Kind::File).unwrap_err();
    assert_eq!(error, TreeError::ReadOnly("/config/there/not".into()));
    let found = tree.make(Path::new("/dev/shm"), Kind::Directory).unwrap();
    assert_eq!(found, Found { path: "/dev/shm".into(), mode: None });
    assert!(!root.path().join("dev").exists());
}

#[test]
fn the_mode_of_what_was_there_is_told() {
    let root = image(&[]);
    let folder = root.path().join("tmp");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
    let tree = Tree::new(root.path()).unwrap();
    assert_eq!(tree.make(Path::new("/tmp"), Kind::Directory).unwrap().mode, Some(0o1777));
}

#[test]
fn links_that_make_a_path_without_end_are_refused_at_once() {
    let targets: Vec<(String, String)> =
        (1..40).map(|at| (format!("l{at}"), format!("l{}{}", at + 1, "/x".repeat(2000)))).collect();
    let links: Vec<(&str, &str)> =
        targets.iter().map(|(link, target)| (link.as_str(), target.as_str())).collect();
    let root = image(&links);
    let error = make(&root, "/l1", Kind::Directory).unwrap_err().to_string();
    assert!(error.contains("more than 2048 parts"), "{error}");
}
