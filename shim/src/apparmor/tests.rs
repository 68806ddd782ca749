use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A kernel's directory of profiles.
struct Kernel(tempfile::TempDir);

impl Kernel {
    fn new() -> Self {
        let kernel = Self(tempfile::tempdir().unwrap());
        fs::create_dir(kernel.profiles()).unwrap();
        kernel
    }

    fn profiles(&self) -> PathBuf {
        self.0.path().join("profiles")
    }

    /// Adds a profile in a directory whose name is of no account.
    fn add(&self, directory: &str, name: &str, policy: Option<&[u8]>) {
        let path = self.profiles().join(directory);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("name"), format!("{name}\n")).unwrap();
        if let Some(policy) = policy {
            let raw = self.0.path().join(format!("raw-{}", directory.replace('/', "-")));
            fs::create_dir(&raw).unwrap();
            fs::write(raw.join("raw_data"), policy).unwrap();
            symlink(raw.join("raw_data"), path.join("raw_data")).unwrap();
        }
    }

    /// Its policies, one behind the other.
    async fn find(&self, sources: &Sources, name: &str) -> Result<Bytes, ProfileError> {
        find(&self.profiles(), sources, name).await.map(|policies| policies.concat().into())
    }
}

fn no_sources() -> Sources {
    Sources { directory: "/nowhere".into(), parser: None }
}

/// Files of profiles, and a parser that takes every line of one for a name and the file for the policy. It fails on the word
/// `broken`.
fn sources(folder: &Path, files: &[(&str, &str)]) -> Sources {
    let (directory, parser) = (folder.join("apparmor.d"), folder.join("parser"));
    fs::create_dir(&directory).unwrap();
    for (name, text) in files {
        fs::write(directory.join(name), text).unwrap();
    }
    let script = "#!/bin/sh\nfor file; do :; done\n\
        if grep -q broken \"$file\"; then echo \"syntax error in line 1\" >&2; exit 1; fi\n\
        case $1 in --names) cat \"$file\" ;; *) printf 'policy of ' && cat \"$file\" ;; esac\n";
    fs::write(&parser, script).unwrap();
    fs::set_permissions(&parser, fs::Permissions::from_mode(0o755)).unwrap();
    Sources { directory, parser: Some(parser) }
}

#[tokio::test]
async fn the_policy_is_the_one_that_the_kernel_was_given() {
    let kernel = Kernel::new();
    kernel.add("cri-containerd.apparmor.d.12", "cri-containerd.apparmor.d", Some(b"default"));
    kernel.add("usr.bin.man.3", "/usr/bin/man", Some(b"man"));
    kernel.add("usr.bin.man.3/profiles/filter.4", "filter", Some(b" and its filter"));
    // What the kernel has made itself.
    kernel.add("usr.bin.man.3/profiles/null-.usr.bin.tbl.5", "null-/usr/bin/tbl", None);
    for (name, policy) in [
        ("cri-containerd.apparmor.d", "default"),
        ("/usr/bin/man", "man and its filter"),
        ("/usr/bin/man//filter", "man and its filter"),
    ] {
        assert_eq!(kernel.find(&no_sources(), name).await.unwrap(), policy);
    }
    for name in ["filter", "/usr/bin/man//groff", "cri-containerd.apparmor.d.12", "a//&b", ""] {
        let refused = kernel.find(&no_sources(), name).await.unwrap_err();
        assert!(matches!(refused, ProfileError::Unavailable { .. }), "{name}: {refused}");
    }
}

#[tokio::test]
async fn policies_come_in_the_order_in_which_the_node_loaded_them_and_each_once() {
    let kernel = Kernel::new();
    kernel.add("outer.1", "outer", Some(b"third"));
    kernel.add("outer.1/profiles/a.2", "a", Some(b"second "));
    kernel.add("outer.1/profiles/b.3", "b", Some(b"first "));
    kernel.add("outer.1/profiles/c.4", "c", None);
    let raw = |name: &str| kernel.0.path().join(name);
    symlink(
        raw("raw-outer.1-profiles-b.3/raw_data"),
        kernel.profiles().join("outer.1/profiles/c.4/raw_data"),
    )
    .unwrap();
    for (name, revision) in
        [("raw-outer.1", "12\n"), ("raw-outer.1-profiles-a.2", "10\n"), ("raw-outer.1-profiles-b.3", "9\n")]
    {
        fs::write(raw(name).join("revision"), revision).unwrap();
    }
    assert_eq!(kernel.find(&no_sources(), "outer").await.unwrap(), "first second third");
    // Not all of it was kept.
    kernel.add("outer.1/profiles/d.5", "d", None);
    let refused = kernel.find(&no_sources(), "outer").await.unwrap_err();
    assert!(matches!(refused, ProfileError::Unavailable { .. }), "{refused}");
}

#[tokio::test]
async fn a_policy_that_is_strange_is_refused_by_the_profiles_name() {
    let kernel = Kernel::new();
    kernel.add("large.1", "large", Some(&vec![7; (1 << 20) + 1]));
    kernel.add("just.2", "just", Some(&vec![7; 1 << 20]));
    kernel.add("empty.3", "empty", Some(b""));
    kernel.add("folder.4", "folder", None);
    fs::create_dir(kernel.profiles().join("folder.4/raw_data")).unwrap();
    assert_eq!(kernel.find(&no_sources(), "just").await.unwrap().len(), 1 << 20);
    let words = |error: ProfileError| crate::error::chain(&error);
    let large = words(kernel.find(&no_sources(), "large").await.unwrap_err());
    assert_eq!(large, "the policy of the AppArmor profile \"large\" has more than 1024 KiB");
    let empty = words(kernel.find(&no_sources(), "empty").await.unwrap_err());
    assert!(empty.contains("\"empty\"") && empty.ends_with("raw_data: it is empty"), "{empty}");
    let folder = words(kernel.find(&no_sources(), "folder").await.unwrap_err());
    assert!(folder.contains("\"folder\"") && folder.contains("s a directory"), "{folder}");
}

#[tokio::test]
async fn a_policy_that_the_kernel_has_not_kept_is_compiled() {
    let (kernel, folder) = (Kernel::new(), tempfile::tempdir().unwrap());
    kernel.add("web.1", "web", None);
    let files = [
        ("a-broken", "web broken\n"),
        ("b", "webserver\n"),
        ("c", "other\nweb\n"),
        ("usr.bin.x", "/usr/bin/x\n"),
        ("z", "in/usr/bin/x\n"),
    ];
    let sources = sources(folder.path(), &files);
    assert_eq!(kernel.find(&sources, "web").await.unwrap(), "policy of other\nweb\n");
    assert_eq!(kernel.find(&sources, "/usr/bin/x").await.unwrap(), "policy of /usr/bin/x\n");
}

#[tokio::test]
async fn a_profile_that_cannot_be_had_is_refused_with_what_to_do() {
    let (kernel, folder) = (Kernel::new(), tempfile::tempdir().unwrap());
    kernel.add("web.1", "web", None);
    let refused = kernel.find(&no_sources(), "web").await.unwrap_err().to_string();
    assert!(refused.contains("\"web\"") && refused.contains("no apparmor_parser"), "{refused}");
    let sources = sources(folder.path(), &[("broken", "web broken\n"), ("other", "website\n")]);
    let refused = kernel.find(&sources, "web").await.unwrap_err().to_string();
    assert!(refused.contains("apparmor.d has it. Load it") && refused.contains("Unconfined"), "{refused}");
}

#[tokio::test]
async fn what_the_parser_says_of_a_file_that_does_not_compile_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path(), &[("web", "web\n")]);
    let script = "#!/bin/sh\n[ $1 = --names ] && exec cat \"$3\"\necho \"no such abstraction\" >&2; exit 7\n";
    fs::write(sources.parser.as_ref().unwrap(), script).unwrap();
    let reason = sources.compile("web").await.unwrap_err();
    assert!(
        reason.contains("apparmor.d/web does not compile") && reason.ends_with("no such abstraction"),
        "{reason}"
    );
}
