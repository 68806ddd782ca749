//! AppArmor profiles of the node, obeyed in the guest.

use std::fs;
use std::path::{Path, PathBuf};

use ravelin_tests::{Host, Run};
use serde_json::{Value, json};

use crate::{assert_says, report};

/// What the process is confined by, and whether it can write below two directories.
const TRIES: &str = "echo profile=$(cat /proc/self/attr/current)
    mkdir -p /free /closed; (echo > /closed/file) && echo closed=yes; (echo > /free/file) && echo free=yes; true";

#[test]
fn a_localhost_profile_is_obeyed_by_the_container_and_its_execs() {
    let Some(host) = with_apparmor(Host::shared) else { return };
    let profile = Profile::new("ravelin-e2e-closed", "deny /closed/* w,");
    profile.load(Path::new("/etc/apparmor.d"));
    let pod = host.common_pod();
    let deprecated = pod.container().security("apparmor_profile", format!("localhost/{}", profile.name));
    for spec in [pod.container().security("apparmor", profile.localhost()), deprecated] {
        let container = spec.sh(&format!("{TRIES}; exec sleep 9999")).start();
        container.says("free=yes");
        let exec = report(&container.exec_sh(TRIES));
        let logs = container.logs();
        for said in [report(&logs.out()), exec] {
            assert_eq!(said["profile"], "ravelin-e2e-closed (enforce)");
            assert!(said.contains_key("free") && !said.contains_key("closed"), "{said:?}");
        }
    }
    let unconfined = pod.container().security("apparmor", json!({ "profile_type": 1 })).sh(TRIES).start();
    let said = report(&unconfined.output());
    assert_eq!(said["profile"], "unconfined");
    assert!(said.contains_key("closed"), "{said:?}");
}

#[test]
fn a_profile_that_is_loaded_anew_confines_what_starts_then() {
    let Some(host) = with_apparmor(Host::shared) else { return };
    let pod = host.common_pod();
    let run = |rules: &str| {
        let profile = Profile::new("ravelin-e2e-changing", rules);
        profile.load(Path::new("/var/tmp"));
        report(&pod.container().security("apparmor", profile.localhost()).sh(TRIES).start().output())
    };
    let (before, after) = (run("deny /closed/* w,"), run("deny /free/* w,"));
    assert!(before.contains_key("free") && !before.contains_key("closed"), "{before:?}");
    assert!(!after.contains_key("free") && after.contains_key("closed"), "{after:?}");
}

#[test]
fn without_a_word_a_container_is_under_containerds_own_profile() {
    let Some(host) = with_apparmor(Host::shared) else { return };
    let pod = host.common_pod();
    // That one denies writing the files that lie in /proc itself, which root may open otherwise.
    let script = "echo profile=$(cat /proc/self/attr/current)
                  (: > /proc/version) 2> /dev/null && echo written=yes
                  (: > /tmp/file) && echo tmp=yes";
    let silent = report(&pod.sh(script).output());
    let asked = pod.container().security("apparmor", json!({ "profile_type": 0 })).sh(script).start();
    for said in [silent, report(&asked.output())] {
        assert_eq!(said["profile"], "cri-containerd.apparmor.d (enforce)");
        assert!(!said.contains_key("written") && said.contains_key("tmp"), "{said:?}");
    }
    let unconfined = pod.container().security("apparmor", json!({ "profile_type": 1 })).sh(script).start();
    assert!(report(&unconfined.output()).contains_key("written"));
}

#[test]
fn a_profile_that_the_node_has_not_loaded_is_refused() {
    let Some(host) = with_apparmor(Host::shared) else { return };
    let pod = host.common_pod();
    let nowhere = json!({ "profile_type": 2, "localhost_ref": "ravelin-e2e-nowhere" });
    let refused = pod.container().security("apparmor", nowhere).try_create().unwrap_err();
    assert_says(&refused, "apparmor profile not found ravelin-e2e-nowhere");
}

#[test]
fn a_profile_that_the_nodes_kernel_has_not_kept_is_compiled_or_refused_by_its_name() {
    let Some(host) = with_apparmor(Host::alone_with_ravelin).flatten() else { return };
    let _keeping = Keeping::stop();
    let pod = host.common_pod();
    let profile = Profile::new("ravelin-e2e-not-kept", "deny /closed/* w,");
    profile.load(Path::new("/var/tmp"));
    let container = pod.container().security("apparmor", profile.localhost()).create();
    let refused = container.try_start().unwrap_err();
    for words in ["ravelin-e2e-not-kept", "cannot be brought into the pod's machine"] {
        assert_says(&refused, words);
    }
    assert_says(&refused, "no file in /etc/apparmor.d has it");
    profile.load(Path::new("/etc/apparmor.d"));
    let container = pod.container().security("apparmor", profile.localhost()).sh(TRIES).start();
    let said = report(&container.output());
    assert_eq!(said["profile"], "ravelin-e2e-not-kept (enforce)");
    assert!(said.contains_key("free") && !said.contains_key("closed"), "{said:?}");
}

/// The host, if its kernel has AppArmor; else says that the test is left out.
fn with_apparmor<T>(host: impl FnOnce() -> T) -> Option<T> {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let has_it = enabled.is_ok_and(|text| text.starts_with('Y'));
    if !has_it {
        println!("left out: the host's kernel has no AppArmor");
    }
    has_it.then(host)
}

/// A profile on the node, gone when it is dropped.
struct Profile {
    name: &'static str,
    text: String,
}

impl Profile {
    /// One that allows everything but what `rules` deny.
    fn new(name: &'static str, rules: &str) -> Self {
        let all = "file, capability, network, signal, ptrace, unix, mount, umount, pivot_root, dbus,";
        let text =
            format!("profile {name} flags=(attach_disconnected, mediate_deleted) {{\n{all}\n{rules}\n}}\n");
        Self { name, text }
    }

    /// Loads it from a file in `folder`.
    fn load(&self, folder: &Path) {
        let file = folder.join(self.name);
        fs::write(&file, &self.text).unwrap();
        Run::new("apparmor_parser").args(["--replace", "--skip-cache"]).arg(&file).ok();
    }

    fn files(&self) -> [PathBuf; 2] {
        ["/etc/apparmor.d", "/var/tmp"].map(|folder| Path::new(folder).join(self.name))
    }

    /// CRI's name for it.
    fn localhost(&self) -> Value {
        json!({ "profile_type": 2, "localhost_ref": self.name })
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        for file in self.files().iter().filter(|file| file.exists()) {
            Run::new("apparmor_parser").arg("--remove").arg(file).run();
            let _ = fs::remove_file(file);
        }
    }
}

/// The node's kernel keeps no policies, until this is dropped.
struct Keeping;

impl Keeping {
    const SWITCH: &str = "/sys/module/apparmor/parameters/export_binary";

    fn stop() -> Self {
        fs::write(Self::SWITCH, "N").unwrap();
        Self
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let _ = fs::write(Self::SWITCH, "Y");
    }
}
