//! A node whose kubelet or containerd keeps its files elsewhere than usual: nobody has to say so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ravelin_tests::{Containerd, Host, Run, eventually, images};
use serde_json::{Value, json};

use crate::assert_says;

/// A directory of a kubelet's, which goes with this.
struct Kubelet(PathBuf);

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_kubelets_directory_is_found_from_what_it_mounts() {
    let host = Host::shared();
    let pod = host.common_pod();
    let kubelet = Kubelet(PathBuf::from("/var/snap-e2e/kubelet"));
    let folder = kubelet.0.join("pods").join(&pod.uid);
    let config = folder.join("volumes/kubernetes.io~configmap/config");
    fs::create_dir_all(config.join("..1")).unwrap();
    fs::write(config.join("..1/key"), "value").unwrap();
    std::os::unix::fs::symlink("..1", config.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/key", config.join("key")).unwrap();
    fs::write(folder.join("etc-hosts"), "127.0.0.1 localhost\n10.0.0.7 elsewhere\n").unwrap();
    let log = folder.join("containers/main/0a1b2c3d");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, "").unwrap();
    if Host::handler().is_ravelin() {
        // Without a word of the kubelet's it is a path that the pod chose.
        let strange = pod.container().idle().mount(&config, "/config", true).create();
        assert_says(
            &strange.try_start().expect_err("the container is refused"),
            "is of an unsupported volume Type",
        );
    }
    let container = pod
        .container()
        .sh("cat /config/key; grep elsewhere /etc/hosts; echo last > /dev/termination-log")
        .mount(folder.join("etc-hosts"), "/etc/hosts", false)
        .mount(&log, "/dev/termination-log", false)
        .mount(&config, "/config", true)
        .start();
    assert_eq!(container.output(), "value10.0.0.7 elsewhere\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "last\n");
}

/// A second containerd with directories of its own, as k3s has one.
struct Second {
    process: Child,
    folder: &'static str,
}

impl Second {
    fn start(folder: &'static str) -> Self {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).unwrap();
        let config = fs::read_to_string("/etc/containerd/config.toml").unwrap();
        // Two would take its socket from one another.
        let config =
            config.replace("disabled_plugins = [", "disabled_plugins = [\"io.containerd.nri.v1.nri\", ");
        fs::write(format!("{folder}/config.toml"), config).unwrap();
        let program = fs::read_to_string("/run/containerd.command").unwrap();
        let process = Command::new(program.trim())
            .args([
                "--config",
                &format!("{folder}/config.toml"),
                "--address",
                &format!("{folder}/containerd.sock"),
            ])
            .args(["--root", &format!("{folder}/root"), "--state", &format!("{folder}/state")])
            .stdin(Stdio::null())
            .stdout(fs::File::create(format!("{folder}/log")).unwrap())
            .stderr(fs::OpenOptions::new().append(true).create(true).open(format!("{folder}/log")).unwrap())
            .spawn()
            .unwrap();
        let second = Self { process, folder };
        eventually("the second containerd answers", || {
            (second.crictl().arg("info").run().code == 0).then_some(())
        });
        for image in ["pause", "busybox"] {
            second.ctr().args(["images", "import", &format!("/images/{image}.tar")]).ok();
        }
        second
    }

    fn crictl(&self) -> Run {
        Run::crictl().args(["-r", &format!("unix://{}/containerd.sock", self.folder)])
    }

    fn ctr(&self) -> Run {
        Run::new("ctr").args(["-a", &format!("{}/containerd.sock", self.folder), "-n", "k8s.io"])
    }

    /// Makes what crictl makes from these configurations, and tells its id.
    fn make(&self, what: &str, before: &[&str], configs: &[(&str, &Value)]) -> String {
        let mut run = self.crictl().arg(what).args(before);
        for (name, config) in configs {
            let file = Path::new(self.folder).join(name);
            fs::write(&file, config.to_string()).unwrap();
            run = run.arg(&file);
        }
        run.ok().trim().to_owned()
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.crictl().args(["rmp", "-a", "-f"]).run();
        let _ = self.process.kill();
        let _ = self.process.wait();
        Run::new("sh")
            .args(["-c", "grep -o \"$0[^ ]*\" /proc/self/mounts | sort -r | xargs -r umount -l", self.folder])
            .run();
        let _ = fs::remove_dir_all(self.folder);
    }
}

#[test]
fn containerds_directories_are_found_from_what_it_hands_over() {
    if Host::containerd() == Containerd::V1_6 {
        println!("left out: what is handed over is the same");
        return;
    }
    let host = Host::alone();
    {
        let second = Second::start("/var/lib/e2e-containerd");
        for handler in ["ravelin", "ravelin-sandbox"].into_iter().filter(|_| Host::handler().is_ravelin()) {
            let pod = json!({
                "metadata": { "name": "elsewhere", "namespace": "e2e", "uid": format!("e2e-elsewhere-{handler}"), "attempt": 0 },
                "hostname": "elsewhere",
                "log_directory": format!("{}/logs", second.folder),
                "linux": { "security_context": { "namespace_options": { "network": 0, "pid": 1, "ipc": 0 } } },
            });
            let container = json!({
                "metadata": { "name": "main", "attempt": 0 },
                "image": { "image": images::BUSYBOX },
                "command": ["sleep", "9999"],
                "log_path": "main.log",
            });
            fs::create_dir_all(format!("{}/logs", second.folder)).unwrap();
            let id = second.make("runp", &["--runtime", handler], &[("pod.json", &pod)]);
            let made = second.make(
                "create",
                &["--no-pull", &id],
                &[("container.json", &container), ("pod.json", &pod)],
            );
            second.crictl().args(["start", &made]).ok();
            // containerd's files of the pod, and /dev/shm.
            let said = second
                .crictl()
                .args(["exec", "--sync", &made, "sh", "-c"])
                .arg("cat /etc/hostname; grep -c localhost /etc/hosts; echo x > /dev/shm/x && cat /dev/shm/x")
                .ok();
            assert!(said.starts_with("elsewhere\n") && said.trim_end().ends_with('x'), "{handler}: {said}");
            second.crictl().args(["rmp", "-f", &id]).ok();
        }
    }
    host.assert_clean();
}
