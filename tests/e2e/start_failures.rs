//! A pod that cannot start: the error says what is missing, and nothing of the attempt stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use ravelin_tests::{Host, Run, eventually};

use crate::assert_says;

#[test]
fn a_pod_without_kvm_says_so() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let _away = Away::take("/dev/kvm");
    fails(&host, &["/dev/kvm"]);
}

#[test]
fn a_pod_without_its_kernel_or_initramfs_or_machine_names_the_file() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    for file in [
        "/usr/local/share/ravelin/vmlinux",
        "/usr/local/share/ravelin/initramfs.cpio",
        "/usr/local/libexec/ravelin/ravelin-vmm",
    ] {
        let _away = Away::take(file);
        fails(&host, &[file]);
    }
}

#[test]
fn a_pod_whose_kernel_is_no_kernel_says_so() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let kernel = "/usr/local/share/ravelin/vmlinux";
    let _away = Away::take(kernel);
    fs::write(kernel, "this is not a kernel").unwrap();
    fails(&host, &["kernel"]);
}

#[test]
fn a_pod_with_a_wrong_configuration_names_the_mistake() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    for (content, words) in [
        ("[guest]\nkernel = \"/no/such/kernel\"\n", ["/no/such/kernel", "No such file"]),
        ("[guest]\ncolour = \"blue\"\n", ["/etc/ravelin/ravelin.toml", "colour"]),
    ] {
        let file = "/etc/ravelin/ravelin.toml";
        let _away = Away::take(file);
        fs::write(file, content).unwrap();
        fails(&host, &words);
    }
}

#[test]
fn a_pod_on_a_full_disk_says_so() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let _full = Full::make("/var/lib/ravelin", "64k");
    fails(&host, &["/var/lib/ravelin", "is full"]);
}

/// What goes wrong before a shim can be asked anything is told by the shim all the same.
#[test]
fn a_pod_whose_shim_has_no_room_for_its_state_says_so() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    {
        let _full = Full::make("/run/ravelin", "4k");
        fs::write("/run/ravelin/filler", [0; 4096]).unwrap();
        let error = host.pod().try_start().expect_err("there is no room for the pod's state");
        assert_says(&error, "/run/ravelin");
        assert_says(&error, "No space left");
        let left: Vec<_> =
            fs::read_dir("/run/ravelin").unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["filler"]);
    }
    host.assert_clean();
}

#[test]
fn a_pod_whose_network_namespace_is_gone_says_so() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let pod = host.pod();
    // The last plugin of the chain does its work and then takes the namespace away.
    let plugin = ["/opt/cni/bin/portmap", "/usr/lib/cni/portmap"].map(PathBuf::from);
    let _thieves: Vec<Away> = plugin
        .iter()
        .filter(|plugin| plugin.exists())
        .map(|plugin| {
            let away = Away::take(plugin.to_str().unwrap());
            let script = format!(
                "#!/bin/sh\n{} \"$@\"; code=$?\n[ \"$CNI_COMMAND\" = ADD ] && umount \"$CNI_NETNS\" && rm -f \"$CNI_NETNS\"\nexit $code\n",
                away.other.display()
            );
            fs::write(plugin, script).unwrap();
            Run::new("chmod").args(["755", plugin.to_str().unwrap()]).ok();
            away
        })
        .collect();
    let error = pod.try_start().expect_err("there is no network namespace");
    assert_says(&error, "netns");
    host.assert_clean();
}

/// In the time that the configuration says; and whatever was made of it is taken back.
#[test]
fn a_pod_whose_machine_hangs_while_it_boots_fails_in_its_time() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let file = "/etc/ravelin/ravelin.toml";
    let _away = Away::take(file);
    fs::write(file, "[timeouts]\nboot_seconds = 6\n").unwrap();
    let error = thread::scope(|scope| {
        let starting = scope.spawn(|| host.pod().try_start().err());
        let machine = eventually("a machine boots", || {
            let found = Run::new("pgrep").args(["-x", "ravelin-vmm"]).run();
            found.text().split_whitespace().next().map(str::to_owned)
        });
        Run::new("kill").args(["-STOP", &machine]).ok();
        starting.join().unwrap()
    });
    assert_says(&error.expect("the machine hangs"), "within 6 s");
    host.assert_clean();
}

/// Starting a pod fails with an error that holds all of `words`; then nothing is left, and once the cause is gone a pod
/// starts as ever.
#[track_caller]
fn fails(host: &Host, words: &[&str]) {
    let error = host.pod().try_start().expect_err("something essential is missing");
    for words in words {
        assert_says(&error, words);
    }
    host.assert_clean();
}

/// A file that is away until this is dropped.
pub struct Away {
    file: PathBuf,
    pub other: PathBuf,
}

impl Away {
    pub fn take(file: &str) -> Self {
        let other = PathBuf::from(format!("{file}.away"));
        fs::rename(file, &other).unwrap_or_else(|error| panic!("cannot move {file}: {error}"));
        Self { file: PathBuf::from(file), other }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        fs::rename(&self.other, &self.file).expect("the file can be moved back");
    }
}

/// Does `work`, starting pods for example, while Ravelin's configuration has `text` as well.
pub fn configured<T>(text: &str, work: impl FnOnce() -> T) -> T {
    let file = "/etc/ravelin/ravelin.toml";
    let old = fs::read_to_string(file).expect("the host has a configuration");
    let _away = Away::take(file);
    fs::write(file, format!("{old}\n{text}")).expect("the configuration can be written");
    work()
}

/// A folder on a file system of its own that has almost no room, until this is dropped.
pub struct Full {
    folder: PathBuf,
}

impl Full {
    pub fn make(folder: &str, size: &str) -> Self {
        fs::create_dir_all(folder).unwrap();
        Run::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", folder]).ok();
        Self { folder: Path::new(folder).to_owned() }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        Run::new("umount").arg("-l").arg(&self.folder).run();
    }
}
