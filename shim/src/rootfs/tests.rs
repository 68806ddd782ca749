use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::mounts::{Kind, sources};
use super::record::Record;
use super::{LayerStore, RootfsError, RootfsMount, collect, identity, maps_ids, scratch};
use crate::testing::skip;

const PATIENCE: Duration = Duration::from_secs(60);

fn mount(kind: &str, source: &str, options: &[&str]) -> RootfsMount {
    RootfsMount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn paths(mount: RootfsMount) -> Vec<(String, Kind)> {
    sources(&[mount]).unwrap().into_iter().map(|s| (s.path.to_str().unwrap().to_owned(), s.kind)).collect()
}

#[test]
fn overlay_directories_come_topmost_first() {
    let found = paths(mount(
        "overlay",
        "overlay",
        &[
            "index=off",
            "workdir=/s/9/work",
            "upperdir=/s/9/fs",
            r"lowerdir=/s/3/fs:/s/a\:b/fs:/s/c\\d",
            "volatile",
        ],
    ));
    let expected = [
        ("/s/9/fs", Kind::Private),
        ("/s/3/fs", Kind::Committed),
        ("/s/a:b/fs", Kind::Committed),
        (r"/s/c\d", Kind::Committed),
    ];
    assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn a_read_only_view_is_kept_and_a_writable_directory_is_not() {
    assert_eq!(paths(mount("bind", "/s/1/fs", &["ro", "rbind"])), [("/s/1/fs".to_owned(), Kind::Committed)]);
    assert_eq!(paths(mount("bind", "/s/2/fs", &["rbind", "rw"])), [("/s/2/fs".to_owned(), Kind::Private)]);
}

#[test]
fn layers_whose_ids_are_to_be_mapped_are_told_from_others() {
    let mapped = mount(
        "overlay",
        "overlay",
        &["upperdir=/s/9/fs", "lowerdir=/s/3/fs", "uidmap=0:65536:65536", "gidmap=0:65536:65536"],
    );
    assert!(maps_ids(std::slice::from_ref(&mapped)));
    assert_eq!(
        paths(mapped),
        [("/s/9/fs".to_owned(), Kind::Mapped), ("/s/3/fs".to_owned(), Kind::Committed)]
    );
    assert!(!maps_ids(&[mount("overlay", "overlay", &["upperdir=/s/9/fs", "lowerdir=/s/3/fs"])]));
}

#[tokio::test]
async fn a_layer_of_the_containers_own_with_mapped_ids_must_be_empty() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&lower).unwrap();
    let options = [format!("upperdir={}", upper.display()), format!("lowerdir={}", lower.display())];
    let options: Vec<&str> = options.iter().map(String::as_str).chain(["uidmap=0:65536:65536"]).collect();
    let mounts = [mount("overlay", "overlay", &options)];
    let store = LayerStore::new(dir.path().join("layers"), PATIENCE);
    assert_eq!(store.prepare(&mounts).await.unwrap().len(), 1);
    fs::write(upper.join("file"), "").unwrap();
    let error = store.prepare(&mounts).await.unwrap_err().to_string();
    assert!(error.contains("hostUsers") && error.contains(upper.to_str().unwrap()), "{error}");
}

#[test]
fn what_cannot_be_served_is_named() {
    let says = |mounts: &[RootfsMount], words: &str| {
        let error = sources(mounts).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(&[], "gave no mounts");
    says(
        &[mount("ext4", "/dev/mapper/x", &[])],
        r#"not supported yet: a root file system of mount type "ext4" (from the devmapper"#,
    );
    says(&[mount("ext4", "/s/1.img", &["loop"])], "blockfile");
    says(
        &[mount("erofs", "/a", &["ro"]), mount("format/mkdir/overlay", "overlay", &[])],
        "erofs snapshotter",
    );
    says(&[mount("overlay", "overlay", &["userxattr", "lowerdir=/a"])], "userxattr");
    says(&[mount("overlay", "overlay", &["metacopy=on", "lowerdir=/a"])], "metacopy");
    says(&[mount("overlay", "overlay", &["lowerdir=/a::/b"])], "data-only");
    says(&[mount("overlay", "overlay", &["lowerdir=a:b"])], "not an absolute path");
    says(&[mount("overlay", "overlay", &["lowerdir=/a\\"])], "backslash");
    says(&[mount("overlay", "overlay", &["rw"])], "without lowerdir");
}

fn tools() -> bool {
    let there =
        rustix::process::geteuid().is_root() && Command::new("mkfs.erofs").arg("--help").output().is_ok();
    if !there {
        skip("it needs mkfs.erofs (erofs-utils), and root to confine it");
    }
    there
}

fn xattr(path: &Path, name: &str, value: &str) -> bool {
    rustix::fs::setxattr(path, name, value.as_bytes(), rustix::fs::XattrFlags::empty()).is_ok()
}

#[tokio::test]
async fn layers_hold_all_that_overlayfs_needs() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lower = dir.path().join("lower");
    fs::create_dir_all(lower.join("opaque")).unwrap();
    fs::write(lower.join("big"), vec![7; 300_000]).unwrap();
    fs::hard_link(lower.join("big"), lower.join("link")).unwrap();
    symlink("big", lower.join("soft")).unwrap();
    fs::write(lower.join("suid"), "x").unwrap();
    fs::set_permissions(lower.join("suid"), PermissionsExt::from_mode(0o4755)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        let whiteout = CString::new(lower.join("gone").to_str().unwrap()).unwrap();
        // SAFETY: the path is a valid C string.
        assert_eq!(unsafe { libc::mknod(whiteout.as_ptr(), libc::S_IFCHR, 0) }, 0);
        assert!(xattr(&lower.join("opaque"), "trusted.overlay.opaque", "y"));
    }
    let store = LayerStore::new(dir.path().join("layers"), PATIENCE);
    let bind = mount("bind", lower.to_str().unwrap(), &["ro"]);
    let layers = store.prepare(std::slice::from_ref(&bind)).await.unwrap();
    assert_eq!(layers.len(), 1);
    assert_eq!(layers[0].length % 4096, 0);
    let mut magic = [0; 4];
    layers[0].file.read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!(u32::from_le_bytes(magic), 0xe0f5_e1e2);

    let image = dir.path().join("layers").join(format!("{}.erofs", layers[0].key));
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mounted = root
        && Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(&image)
            .arg(&at)
            .status()
            .unwrap()
            .success();
    if !mounted {
        skip("it needs to mount EROFS to look at the image's content");
        return;
    }
    let seen = std::panic::catch_unwind(|| {
        assert_eq!(fs::read(at.join("soft")).unwrap(), vec![7; 300_000]);
        assert_eq!(fs::metadata(at.join("link")).unwrap().ino(), fs::metadata(at.join("big")).unwrap().ino());
        assert_eq!(fs::metadata(at.join("suid")).unwrap().mode() & 0o7777, 0o4755);
        assert_eq!(
            fs::metadata(at.join("big")).unwrap().mtime_nsec(),
            fs::metadata(lower.join("big")).unwrap().mtime_nsec()
        );
        let gone = fs::symlink_metadata(at.join("gone")).unwrap();
        assert_eq!((gone.mode() & libc::S_IFMT, gone.rdev()), (libc::S_IFCHR, 0));
        let mut value = [0; 8];
        let length =
            rustix::fs::getxattr(at.join("opaque"), "trusted.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"y");
    });
    // Lazily: whoever looks at all mounts of the machine at this moment must not fail the test.
    assert!(Command::new("umount").arg("-l").arg(&at).status().unwrap().success());
    seen.unwrap();
}

#[tokio::test]
async fn a_layer_is_made_once_by_whoever_comes_first() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for lower in [&a, &b] {
        fs::create_dir(lower).unwrap();
        fs::write(lower.join("file"), "x").unwrap();
    }
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let options = format!("lowerdir={}:{}", a.display(), b.display());
    let top = format!("upperdir={}", upper.display());
    let overlay = [mount("overlay", "overlay", &[&options, &top, "workdir=/w"])];
    let layers = dir.path().join("layers");
    let stores: Vec<_> = (0..4).map(|_| LayerStore::new(&layers, PATIENCE)).collect();
    let (one, two, three, four) = tokio::join!(
        stores[0].prepare(&overlay),
        stores[1].prepare(&overlay),
        stores[2].prepare(&overlay),
        stores[3].prepare(&overlay),
    );
    let inodes =
        |layers: &[super::Layer]| layers.iter().map(|l| l.file.metadata().unwrap().ino()).collect::<Vec<_>>();
    let first = one.unwrap();
    // The empty upper directory is left out.
    assert_eq!(first.len(), 2);
    for other in [two, three, four] {
        assert_eq!(inodes(&first), inodes(&other.unwrap()));
    }

    // Content in the upper directory becomes a layer on top that nobody else sees.
    fs::write(upper.join("copied-up"), "y").unwrap();
    let again = stores[0].prepare(&overlay).await.unwrap();
    assert_eq!(again.len(), 3);
    assert_eq!(inodes(&again[1..]), inodes(&first));
    assert_eq!(again[0].file.metadata().unwrap().nlink(), 0);
    let names = || fs::read_dir(&layers).unwrap().flatten().map(|entry| entry.path());
    assert!(names().all(|path| path.extension().is_none_or(|kind| kind == "erofs" || kind == "record")));
}

#[tokio::test]
async fn an_empty_directory_alone_is_a_layer() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let store = LayerStore::new(dir.path().join("layers"), PATIENCE);
    let layers = store.prepare(&[mount("bind", empty.to_str().unwrap(), &["rw", "rbind"])]).await.unwrap();
    assert_eq!((layers.len(), layers[0].length), (1, 4096));
}

#[tokio::test]
async fn what_an_interrupted_build_left_is_not_taken_for_whole() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, layers) = (dir.path().join("s"), dir.path().join("layers"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&layers).unwrap();
    let key = identity::identify(&source).unwrap().key;
    let (image, record) = (layers.join(format!("{key}.erofs")), layers.join(format!("{key}.record")));
    fs::write(&image, vec![1; 4096]).unwrap();
    Record { boot: "another".to_owned(), synced: false, source: source.clone() }.write(&record).unwrap();
    let store = LayerStore::new(&layers, PATIENCE);
    let made = store.prepare(&[mount("bind", source.to_str().unwrap(), &["ro"])]).await.unwrap();
    let mut magic = [0; 4];
    made[0].file.read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!(u32::from_le_bytes(magic), 0xe0f5_e1e2);
}

#[tokio::test]
async fn a_name_that_the_tool_cannot_take_is_told() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, layers) = (dir.path().join("s"), dir.path().join("layers"));
    fs::create_dir_all(source.join("deep")).unwrap();
    fs::write(source.join("deep").join("n".repeat(255)), "x").unwrap();
    let store = LayerStore::new(&layers, PATIENCE);
    // Newer versions of the tool can.
    if let Err(error) = store.prepare(&[mount("bind", source.to_str().unwrap(), &["ro"])]).await {
        assert!(error.to_string().contains("not supported yet: a file name of 255 bytes"), "{error}");
    }
    assert!(fs::read_dir(&layers).unwrap().flatten().all(|entry| entry.file_name() == "lock"));
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::new(dir.path(), PATIENCE);
    let error = store.prepare(&[mount("bind", "/nonexistent/fs", &["ro"])]).await.unwrap_err();
    assert!(
        matches!(&error, RootfsError::Source { path, .. } if path == Path::new("/nonexistent/fs")),
        "{error}"
    );
}

#[test]
fn images_of_directories_that_are_gone_are_collected() {
    let dir = tempfile::tempdir().unwrap();
    let layers = dir.path().join("layers");
    fs::create_dir(&layers).unwrap();
    let source = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        let key = identity::identify(&path).unwrap().key;
        fs::write(layers.join(format!("{key}.erofs")), "image").unwrap();
        let record = Record { boot: "b".to_owned(), synced: true, source: path.clone() };
        record.write(&layers.join(format!("{key}.record"))).unwrap();
        assert_eq!(Record::read(&layers.join(format!("{key}.record"))).unwrap(), record);
        (path, layers.join(format!("{key}.erofs")))
    };
    let (_kept, kept_image) = source("kept");
    let (gone, gone_image) = source("gone");
    fs::remove_dir(&gone).unwrap();
    let (replaced, replaced_image) = source("replaced");
    fs::remove_dir(&replaced).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::create_dir(&replaced).unwrap();

    collect::sweep(&layers, Duration::from_secs(600)).unwrap();
    assert!(gone_image.exists(), "used a moment ago");
    collect::sweep(&layers, Duration::ZERO).unwrap();
    assert!(kept_image.exists());
    assert!(!gone_image.exists() && !replaced_image.exists());
}

#[tokio::test]
async fn an_image_of_an_overlayfs_snapshot_lies_in_it_and_goes_with_it() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("snapshots/7");
    fs::create_dir_all(snapshot.join("fs")).unwrap();
    fs::write(snapshot.join("fs/file"), "x").unwrap();
    let layers = dir.path().join("layers");
    let bind = [mount("bind", snapshot.join("fs").to_str().unwrap(), &["ro"])];
    let made = LayerStore::new(&layers, PATIENCE).prepare(&bind).await.unwrap();
    let again = LayerStore::new(&layers, PATIENCE).prepare(&bind).await.unwrap();
    let inode = |layer: &super::Layer| layer.file.metadata().unwrap().ino();
    assert_eq!(inode(&made[0]), inode(&again[0]));
    let image = snapshot.join(format!("ravelin-{}.erofs", made[0].key));
    assert_eq!(fs::metadata(image).unwrap().ino(), inode(&made[0]));
    let kept: Vec<_> = fs::read_dir(&layers).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(kept.iter().all(|path| path.ends_with("lock") || path.ends_with("collected")), "{kept:?}");
}

#[tokio::test]
async fn a_full_disk_is_named_when_an_image_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let layers = dir.path().join("layers");
    fs::create_dir(&layers).unwrap();
    let small = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
    if !tools() || !Command::new("mount").args(small).arg(&layers).status().is_ok_and(|s| s.success()) {
        skip("it needs to mount a tmpfs");
        return;
    }
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("big"), vec![7; 300_000]).unwrap();
    let bind = [mount("bind", source.to_str().unwrap(), &["ro"])];
    let error = LayerStore::new(&layers, PATIENCE).prepare(&bind).await.unwrap_err();
    assert!(Command::new("umount").arg("-l").arg(&layers).status().unwrap().success());
    let words = error.to_string();
    assert!(words.contains(layers.to_str().unwrap()) && words.ends_with("is full"), "{words}");
}

#[tokio::test]
async fn a_scratch_disk_is_a_sparse_file_without_a_name() {
    if Command::new("mkfs.ext4").arg("-V").output().is_err() {
        skip("it needs mkfs.ext4 (e2fsprogs)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (templates, scratch) = (dir.path().join("templates"), dir.path().join("scratch"));
    // Templates of an earlier boot go.
    fs::create_dir(&templates).unwrap();
    for name in ["scratch-1-earlier.ext4", "other.ext4"] {
        fs::write(templates.join(name), "").unwrap();
    }
    let mut disks = Vec::new();
    for _ in 0..2 {
        let disk: File = scratch::create(&templates, &scratch, (20 << 30) - 5, PATIENCE).await.unwrap();
        let metadata = disk.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.nlink()), (20 << 30, 0));
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        let mut magic = [0; 2];
        disk.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(u16::from_le_bytes(magic), 0xef53);
        disks.push(disk);
    }
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    let there = |name: &str| templates.join(name).exists();
    assert!(!there("scratch-1-earlier.ext4") && there("other.ext4"));
    let fsck = Command::new("e2fsck")
        .args([
            "-fn",
            &format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&disks[0])),
        ])
        .output();
    if let Ok(fsck) = fsck {
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    }
}
