use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, setxattr};

use super::super::{RootfsError, build, unnamed};
use super::*;
use crate::testing::skip;

/// The test that is the confined action of the tests' program.
pub(super) const ALONE: &str = "rootfs::confined::tests::in_a_process_of_its_own";
const PATIENCE: Duration = Duration::from_secs(60);
const UUID: &str = "00000000-0000-4000-8000-000000000001";

#[test]
#[ignore = "it confines the process that runs it, which others start for that"]
fn in_a_process_of_its_own() {
    let mut arguments = std::env::args_os().skip_while(|argument| argument != ALONE);
    if arguments.next().is_none() {
        return;
    }
    let Err(error) = run(arguments);
    eprintln!("{}", crate::error::chain(&error));
    std::process::exit(1);
}

/// A layer with a neighbour.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// `None` where nothing can be confined.
    fn set() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || Command::new("mkfs.erofs").arg("--help").output().is_err()
        {
            skip("it needs root and mkfs.erofs (erofs-utils)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        fs::create_dir(dir.path().join("neighbour")).unwrap();
        fs::write(dir.path().join("neighbour/secret"), "secret").unwrap();
        Some(Self { dir })
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.dir.path().join("layer").join(name)
    }

    fn confine(&self, program: &str, arguments: &[&str], patience: Duration) -> Result<File, RootfsError> {
        build::confine(Path::new(program), arguments, &self.layer(""), self.dir.path(), patience)
    }

    /// Runs a Perl program, which is in the layer, in mkfs.erofs's place: perl alone needs no files but its libraries.
    fn run_perl(&self, program: &str, patience: Duration) -> Result<File, RootfsError> {
        fs::write(self.layer("program"), program).unwrap();
        self.confine("/usr/bin/perl", &["/layer/program", self.dir.path().to_str().unwrap()], patience)
    }

    /// What a Perl program writes into the image, which it has open as `IMAGE`.
    fn perl(&self, program: &str) -> String {
        let program =
            format!("open(IMAGE, '+<', '/image') or die 'image'; syswrite(IMAGE, do {{ {program} }});");
        let written = content(&self.run_perl(&program, PATIENCE).unwrap());
        String::from_utf8(written.into_iter().take_while(|byte| *byte != 0).collect()).unwrap()
    }

    /// Why a Perl expression is refused.
    fn refusal(&self, expression: &str) -> String {
        self.perl(&format!("defined({expression}) ? 'done' : \"$!\""))
    }
}

/// All that is in an image.
fn content(image: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    unnamed::reopen(image).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn node(path: &Path, kind: libc::mode_t, device: libc::dev_t) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is a valid C string.
    assert_eq!(unsafe { libc::mknod(path.as_ptr(), kind | 0o644, device) }, 0);
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn an_image_is_the_same_confined_and_not() {
    let Some(scene) = Scene::set() else { return };
    for name in ["opaque", "closed", "closed/deep", "a"] {
        fs::create_dir(scene.layer(name)).unwrap();
    }
    fs::write(scene.layer("closed/deep/big"), vec![7; 300_001]).unwrap();
    fs::hard_link(scene.layer("closed/deep/big"), scene.layer("a/link")).unwrap();
    fs::write(scene.layer("capable"), "capable").unwrap();
    fs::write(scene.layer("setuid"), "setuid").unwrap();
    fs::write(scene.layer("nobody's"), "nobody's").unwrap();
    File::create(scene.layer("sparse")).unwrap().set_len(5_000_000).unwrap();
    fs::write(scene.layer(&"n".repeat(254)), "long").unwrap();
    symlink("/etc/shadow", scene.layer("soft")).unwrap();
    let _socket = UnixListener::bind(scene.layer("socket")).unwrap();
    node(&scene.layer("gone"), libc::S_IFCHR, 0);
    node(&scene.layer("null"), libc::S_IFCHR, libc::makedev(1, 3));
    node(&scene.layer("disk"), libc::S_IFBLK, libc::makedev(8, 0));
    node(&scene.layer("pipe"), libc::S_IFIFO, 0);
    attribute(&scene.layer("opaque"), "trusted.overlay.opaque", b"y");
    attribute(&scene.layer("nobody's"), "trusted.strange", b"value");
    attribute(&scene.layer("nobody's"), "user.ours", b"value");
    // Version 2, with the effective bit and CAP_NET_RAW.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    attribute(&scene.layer("capable"), "security.capability", &capability);
    let modes = [
        ("setuid", 0o4755),
        ("nobody's", 0),
        ("closed/deep/big", 0o600),
        ("closed/deep", 0o700),
        ("closed", 0),
    ];
    for (name, mode) in modes {
        fs::set_permissions(scene.layer(name), Permissions::from_mode(mode)).unwrap();
    }
    for (name, id) in
        [("nobody's", 65534), ("closed", 4711), ("closed/deep", 4712), ("closed/deep/big", 4713)]
    {
        chown(scene.layer(name), Some(id), Some(id + 1)).unwrap();
    }

    let plain = scene.dir.path().join("plain");
    let arguments = ["--quiet", "--preserve-mtime", "-U", UUID];
    let made = Command::new("mkfs.erofs").args(arguments).arg(&plain).arg(scene.layer("")).status().unwrap();
    assert!(made.success());
    let image = build::erofs(&scene.layer(""), scene.dir.path(), UUID, PATIENCE).unwrap();
    let comparable = |mut bytes: Vec<u8>| {
        // The superblock's checksum, and the time at which it was made.
        bytes[1028..1032].fill(0);
        bytes[1048..1060].fill(0);
        bytes
    };
    let (plain, confined) = (comparable(fs::read(plain).unwrap()), comparable(content(&image)));
    for attribute in ["overlay.opaque", "strange", "capability", "ours"] {
        assert!(confined.windows(attribute.len()).any(|name| name == attribute.as_bytes()), "{attribute}");
    }
    assert!(plain == confined, "{} and {} bytes", plain.len(), confined.len());
    let image = image.metadata().unwrap();
    assert_eq!((image.uid(), image.gid(), image.mode() & 0o7777, image.nlink()), (0, 0, 0o600, 0));
}

#[test]
fn a_program_that_fails_is_quoted() {
    let Some(scene) = Scene::set() else { return };
    let error = scene.run_perl("print STDERR \"no more\\n\"; exit 3", PATIENCE).unwrap_err();
    let words = error.to_string();
    assert!(
        words.starts_with("mkfs.erofs cannot make ") && words.ends_with("no more (exit status: 3)"),
        "{words}"
    );
    let error = scene.confine("/usr/bin/no-such-program", &[], PATIENCE).unwrap_err().to_string();
    let words = "cannot find the program's libraries: No such file";
    assert!(error.contains(words), "{error}");
}

#[test]
fn nothing_of_the_node_is_seen_but_the_layer_the_image_and_the_program() {
    let Some(scene) = Scene::set() else { return };
    let seen = scene.perl("opendir(D, '/'); join ' ', sort grep { !/^\\./ } readdir D");
    assert_eq!(seen, "etc image layer lib lib64 open usr");
    assert_eq!(scene.perl("opendir(D, '/etc'); join ' ', sort grep { !/^\\./ } readdir D"), "ld.so.cache");
    assert_eq!(scene.perl("opendir(D, '/usr/bin'); join ' ', sort grep { !/^\\./ } readdir D"), "perl");
    assert_eq!(scene.perl("opendir(D, '/layer'); join ' ', sort grep { !/^\\./ } readdir D"), "program");
    symlink("/etc/shadow", scene.layer("soft")).unwrap();
    symlink("../neighbour/secret", scene.layer("near")).unwrap();
    let secret = scene.dir.path().join("neighbour/secret");
    let paths =
        ["/etc/shadow", "/layer/soft", "/layer/near", "/layer/../neighbour/secret", secret.to_str().unwrap()];
    for path in paths {
        assert_eq!(
            scene.refusal(&format!("sysopen(F, '{path}', 0) || undef")),
            "No such file or directory",
            "{path}"
        );
    }
}

#[test]
fn nothing_but_the_image_can_be_written() {
    let Some(scene) = Scene::set() else { return };
    fs::write(scene.layer("file"), "old").unwrap();
    fs::set_permissions(scene.layer("file"), Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(scene.layer(""), Permissions::from_mode(0o777)).unwrap();
    for path in ["/new", "/tmp/new", "/layer/new", "/layer/file", "/usr/bin/perl", "/etc/new"] {
        // O_RDWR | O_CREAT
        let refusal = scene.refusal(&format!("sysopen(F, '{path}', 2 | 64) || undef"));
        let refusals = ["Read-only file system", "Permission denied", "No such file or directory"];
        assert!(refusals.contains(&refusal.as_str()), "{path}: {refusal}");
    }
    assert_eq!(fs::read(scene.layer("file")).unwrap(), b"old");
    assert_eq!(scene.perl("'new'"), "new");
}

#[test]
fn a_device_in_the_layer_cannot_be_opened() {
    let Some(scene) = Scene::set() else { return };
    node(&scene.layer("zero"), libc::S_IFCHR, libc::makedev(1, 5));
    fs::set_permissions(scene.layer("zero"), Permissions::from_mode(0o666)).unwrap();
    assert_eq!(scene.refusal("sysopen(F, '/layer/zero', 0) || undef"), "Permission denied");
}

#[test]
fn there_is_no_network() {
    let Some(scene) = Scene::set() else { return };
    // Unix, IPv4 and netlink sockets.
    for (family, kind) in [(1, 1), (2, 1), (16, 3)] {
        assert_eq!(
            scene.refusal(&format!("socket(S, {family}, {kind}, 0) || undef")),
            "Function not implemented"
        );
    }
}

#[test]
fn no_other_process_is_made_or_seen() {
    let Some(scene) = Scene::set() else { return };
    assert_eq!(scene.refusal("fork()"), "Function not implemented");
    assert_eq!(scene.refusal("kill(9, 2) || undef"), "Function not implemented");
    assert_eq!(scene.perl("$$ . ' ' . getppid()"), "1 0");
    assert_eq!(scene.refusal("opendir(D, '/proc') || undef"), "No such file or directory");
    // Nor does it become another one: what the node's administrators run is not there.
    assert_eq!(scene.refusal("exec('/usr/bin/id') || undef"), "No such file or directory");
}

#[test]
fn what_an_administrator_could_do_is_refused() {
    let Some(scene) = Scene::set() else { return };
    let calls = [
        libc::SYS_mount,
        libc::SYS_open_by_handle_at,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_ptrace,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_clone3,
        libc::SYS_fchown,
        libc::SYS_lsetxattr,
    ];
    for call in calls {
        let refused = scene.refusal(&format!("syscall({call}, 0, 0, 0, 0, 0) != -1 || undef"));
        assert_eq!(refused, "Function not implemented", "{call}");
    }
}

#[test]
fn memory_and_files_have_bounds() {
    let Some(scene) = Scene::set() else { return };
    let error = scene.run_perl("my $times = 5 << 30; my $x = 'x' x $times", PATIENCE).unwrap_err();
    assert!(error.to_string().contains("Out of memory"), "{error}");
    let write = "open(F, '+<', '/image') && sysseek(F, 1 << 43, 0) && syswrite(F, 'x') || undef";
    assert_eq!(scene.refusal(write), "File too large");
}

/// What the node sees of a running program.
struct Seen {
    status: String,
    /// Its namespaces that are not ours.
    own: Vec<String>,
    descriptors: Vec<PathBuf>,
}

/// The Perl program that has these words in its arguments.
fn look(words: &str) -> Option<Seen> {
    let read = |process: &Path| {
        let status = fs::read_to_string(process.join("status")).ok()?;
        // Before it has become Perl it is another program with the same arguments.
        let running = status.starts_with("Name:\tperl\n") && status.contains("Seccomp:\t2");
        let named = String::from_utf8_lossy(&fs::read(process.join("cmdline")).ok()?).contains(words);
        let link = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
        let all =
            |directory: &str| Some(fs::read_dir(process.join(directory)).ok()?.flatten().filter_map(link));
        let ours = |space: &PathBuf| {
            fs::read_dir("/proc/self/ns").unwrap().flatten().filter_map(link).any(|other| other == *space)
        };
        let kind = |space: PathBuf| Some(space.to_str()?.split_once(':')?.0.to_owned());
        let mut own: Vec<_> = all("ns")?.filter(|space| !ours(space)).filter_map(kind).collect();
        own.sort();
        own.dedup();
        (running && named).then_some(Seen { status, own, descriptors: all("fd")?.collect() })
    };
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| read(&entry.path()))
}

#[test]
fn the_deadline_ends_a_program_that_is_alone_and_has_few_rights() {
    let Some(scene) = Scene::set() else { return };
    let started = Instant::now();
    let words = scene.dir.path().to_str().unwrap();
    let seen = std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            loop {
                let seen = look(words);
                if seen.is_some() || started.elapsed() > PATIENCE {
                    return seen;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let error = scene.run_perl("while (1) {}", Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("took more than 5 s"), "{error}");
        looker.join().unwrap().expect("the program runs")
    });
    for line in [
        "Uid:\t1879048191\t1879048191\t1879048191\t1879048191",
        "Gid:\t1879048191\t1879048191\t1879048191\t1879048191",
        "Groups:\t ",
        // CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN.
        "CapPrm:\t0000000000200004",
        "CapEff:\t0000000000200004",
        "NoNewPrivs:\t1",
        "Threads:\t1",
    ] {
        assert!(seen.status.lines().any(|other| other == line), "{line} is not in {}", seen.status);
    }
    assert_eq!(seen.own, ["ipc", "mnt", "net", "pid", "uts"]);
    // Beside the three that every program has.
    let image = scene.dir.path().join("#");
    let ours = |file: &&PathBuf| file.as_os_str().as_bytes().starts_with(image.as_os_str().as_bytes());
    let others: Vec<_> = seen.descriptors.iter().filter(|file| !ours(file)).collect();
    assert!(others.len() == 3 && others.iter().all(|file| !file.starts_with(scene.dir.path())), "{others:?}");
    assert!(look(words).is_none());
}

#[test]
fn threads_are_for_programs_that_are_made_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let (old, new) = (file("old", "main read"), file("new", "main pthread_create read"));
    let (library, libc) = (file("liberofs.so.1", "pthread_create"), file("libc.so.6", "pthread_create"));
    assert!(!works_in_threads(&old, std::slice::from_ref(&libc)).unwrap());
    assert!(works_in_threads(&new, std::slice::from_ref(&libc)).unwrap());
    assert!(works_in_threads(&old, &[libc, library]).unwrap());
}
