//! What containerd's own integration tests of CRI ask of every runtime, asked here of a containerd that runs as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ravelin_tests::{Host, Logs, Run, eventually};
use serde_json::{Value, json};

use crate::assert_says;

#[test]
fn a_name_is_taken_as_long_as_its_pod_or_container_is_there() {
    let host = Host::shared();
    let pod = host.pod().start();
    let config = format!("/var/tmp/ravelin-tests/{}/pod.json", pod.uid);
    let again = Run::crictl().args(["runp", "--runtime", Host::handler().name(), &config]).run();
    assert!(again.code != 0, "{}", again.text());
    assert_says(&again.stderr, "is reserved for");
    let container = pod.container().set("/metadata/name", "same").idle().start();
    let second = pod.container().set("/metadata/name", "same").idle().try_create();
    assert_says(&second.expect_err("the name is taken"), "is reserved for");
    // Both are free again with what had them.
    container.remove();
    let container = pod.container().set("/metadata/name", "same").idle().start();
    assert_eq!(container.exec_sh("echo alive"), "alive");
    container.remove();
    pod.remove();
}

#[test]
fn statistics_are_listed_by_container_pod_and_label() {
    let host = Host::shared();
    let (one, two) = (host.pod().start(), host.pod().start());
    let label = format!("e2e-{}", one.uid);
    let first = one.container().set("/labels", json!({ label.as_str(): "first" })).idle().start();
    let second = one.container().set("/labels", json!({ label.as_str(): "second" })).idle().start();
    let other = two.container().set("/labels", json!({ label.as_str(): "first" })).idle().start();
    let listed = |filter: &[&str]| {
        eventually("containerd has statistics of all", || {
            let all = Run::crictl().args(["stats", "-o", "json"]).args(filter).json();
            let all = all["stats"].as_array().cloned().unwrap_or_default();
            let complete = all.iter().all(|one| !one["cpu"].is_null() && !one["memory"].is_null());
            complete.then(|| {
                let mut ids: Vec<_> = all
                    .iter()
                    .filter_map(|one| one["attributes"]["id"].as_str())
                    .map(str::to_owned)
                    .collect();
                ids.sort();
                ids
            })
        })
    };
    assert_eq!(listed(&["--id", &first.id]), [first.id.as_str()]);
    assert_eq!(listed(&["--pod", &one.id]), sorted([&first.id, &second.id]));
    assert_eq!(listed(&["--label", &format!("{label}=first")]), sorted([&first.id, &other.id]));
    assert_eq!(listed(&["--pod", &two.id, "--label", &format!("{label}=second")]), [""; 0]);
    for container in [first, second, other] {
        container.stop(Duration::ZERO);
    }
}

fn sorted(mut ids: [&str; 2]) -> [&str; 2] {
    ids.sort_unstable();
    ids
}

#[test]
fn an_image_that_is_imported_is_there_to_be_run_and_can_be_removed() {
    let host = Host::shared();
    let name = "localhost/ravelin/cri-import:latest";
    let folder = Path::new("/var/tmp/cri-import");
    fs::create_dir_all(folder.join("bin")).unwrap();
    let shell =
        |script: &str| Run::new("sh").args(["-c", &format!("cd {} && {script}", folder.display())]).ok();
    shell("cp $(command -v busybox) bin/sh && touch bin/cri-import && tar -cf layer.tar bin");
    let digest = shell("sha256sum layer.tar | cut -d ' ' -f 1");
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest.trim())] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    shell("tar -cf image.tar manifest.json config.json layer.tar");
    Run::ctr().arg("images").arg("import").arg(folder.join("image.tar")).ok();
    fs::remove_dir_all(folder).unwrap();
    let images = || {
        let list = Run::crictl().args(["images", "-o", "json"]).json();
        let tags = list["images"].as_array().cloned().unwrap_or_default();
        tags.iter()
            .any(|image| image["repoTags"].as_array().is_some_and(|tags| tags.contains(&Value::from(name))))
    };
    eventually("CRI knows the image", || images().then_some(()));
    let pod = host.pod().start();
    let container = pod.container().image(name).command(&["/bin/sh", "-c", "echo imported"]).start();
    assert_eq!(container.output(), "imported\n");
    let made = layer_image("bin/cri-import");
    container.remove();
    pod.remove();
    Run::crictl().args(["rmi", name]).ok();
    eventually("CRI forgets the image", || (!images()).then_some(()));
    // And with it goes what was made of its layer for the guest: the node's disk has its room back.
    if Host::handler().is_ravelin() {
        assert!(made.is_some(), "the layer's image is not beside the layer");
    }
    eventually("the layer's image is gone", || made.iter().all(|made| !made.exists()).then_some(()));
}

/// The layer image beside the snapshot in which there is `marker`.
fn layer_image(marker: &str) -> Option<PathBuf> {
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let roots = folders(Path::new("/var/lib")).filter(|path| path.to_string_lossy().contains("/containerd"));
    let mut snapshots =
        roots.flat_map(|root| folders(&root.join("io.containerd.snapshotter.v1.overlayfs/snapshots")));
    let layer = snapshots.find(|snapshot| snapshot.join("fs").join(marker).exists())?;
    folders(&layer).find(|path| path.extension().is_some_and(|extension| extension == "erofs"))
}

#[test]
fn a_pod_whose_machine_and_network_namespace_are_gone_is_removed_and_gives_its_address_back() {
    let host = Host::alone();
    let pod = host.pod().start();
    let _container = pod.container().idle().start();
    let address =
        pod.addresses().into_iter().find(std::net::IpAddr::is_ipv4).expect("an IPv4 address").to_string();
    let lease = Path::new("/var/lib/cni/networks/pods").join(&address);
    assert!(lease.exists(), "{}", lease.display());
    let netns = pod.netns();
    // As a node that lost its power: nothing of the pod runs, and /run is empty.
    let machine = pod.inspect()["info"]["pid"].as_u64().expect("the sandbox has a process").to_string();
    Run::new("kill").args(["-KILL", &machine]).ok();
    eventually("the pod is seen to be dead", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    let netns = netns.to_string_lossy().into_owned();
    Run::new("umount").args(["-l", &netns]).ok();
    fs::remove_file(&netns).unwrap();
    pod.remove();
    assert!(!lease.exists(), "{address} is still taken");
    host.assert_clean();
}

#[test]
fn a_containerd_that_dies_while_a_pod_starts_leaves_nothing_that_cannot_be_removed() {
    let host = Host::alone();
    // One that is there already has nothing to do with it.
    let bystander = host.pod().start();
    let working = bystander.container().idle().start();
    // Not before its shim starts: what containerd has made by itself and not yet written down, it forgets with any runtime.
    let machine = if Host::handler().is_ravelin() { "ravelin-vmm" } else { "/pause" };
    for (moment, program) in [("its shim starts", "containerd-shim-"), ("its machine starts", machine)] {
        let spec = host.pod();
        let name = spec.name();
        let before = host.processes(program);
        let mut starting = spec.begin();
        eventually(moment, || host.processes(program).iter().any(|pid| !before.contains(pid)).then_some(()));
        host.stop_containerd("KILL");
        starting.kill();
        host.start_containerd();
        let listed = Run::crictl().args(["pods", "-q", "--name", &format!("^{name}$")]).ok();
        for id in listed.split_whitespace() {
            Run::crictl().args(["rmp", "-f", id]).ok();
        }
        assert_eq!(working.exec_sh("echo alive"), "alive", "when {moment}");
        // The name is free, and a pod of that name starts.
        spec.start().remove();
    }
    working.remove();
    bystander.remove();
    // containerd 1.6 keeps a shim whose creation was called off and asks nothing of it any more: it ends by itself, in two minutes.
    eventually("every shim has ended", || host.processes("containerd-shim-").is_empty().then_some(()));
    host.assert_clean();
}

#[test]
fn a_log_that_is_rotated_goes_on_in_a_new_file() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.sh("i=0; while :; do i=$((i + 1)); echo line $i; usleep 20000; done");
    container.says("line 3\n");
    let log = PathBuf::from(container.inspect()["status"]["logPath"].as_str().expect("a log has a path"));
    let mut said = String::new();
    for turn in 1..=2 {
        // As the kubelet rotates: away with the old file first, then CRI's ReopenContainerLog.
        let old = log.with_extension(turn.to_string());
        fs::rename(&log, &old).expect("the log can be renamed");
        Run::crictl().args(["logs", "--reopen", "--tail", "1", &container.id]).ok();
        container.says("line ");
        said += &Logs::read(&old).out();
    }
    container.stop(Duration::ZERO);
    said += &container.logs().out();
    assert!(said.lines().count() > 3, "{said}");
    for (number, line) in (1..).zip(said.lines()) {
        assert_eq!(line, format!("line {number}"), "of {}", said.lines().count());
    }
}

#[test]
fn a_request_without_metadata_is_refused_and_harms_nobody() {
    let host = Host::shared();
    let pod = host.common_pod();
    let handler = Host::handler().name();
    // runtime.v1.RunPodSandboxRequest: an empty config, a handler. crictl itself would not send it.
    let mut sandbox = vec![0x0a, 0, 0x12, u8::try_from(handler.len()).unwrap()];
    sandbox.extend(handler.bytes());
    // runtime.v1.CreateContainerRequest: a sandbox's id, an empty config, an empty sandbox's config.
    let mut container = vec![0x0a, u8::try_from(pod.id.len()).unwrap()];
    container.extend(pod.id.bytes());
    container.extend([0x12, 0, 0x1a, 0]);
    for (method, request) in [("RunPodSandbox", sandbox), ("CreateContainer", container)] {
        let status = call_cri(method, &request);
        assert!(!matches!(status.as_str(), "" | "0"), "{method}: status {status:?}");
    }
    assert_eq!(pod.sh("echo alive").output(), "alive\n");
}

/// Sends `request` over gRPC; the status that containerd answers with.
#[track_caller]
fn call_cri(method: &str, request: &[u8]) -> String {
    let mut body = vec![0];
    body.extend(u32::try_from(request.len()).unwrap().to_be_bytes());
    body.extend(request);
    let answer = Run::new("curl")
        .args(["--silent", "--show-error", "--max-time", "480", "--http2-prior-knowledge"])
        .args([
            "--unix-socket",
            "/run/containerd/containerd.sock",
            "--output",
            "/dev/null",
            "--dump-header",
            "-",
        ])
        .args([
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
            "--data-binary",
            "@-",
        ])
        .arg(format!("http://containerd/runtime.v1.RuntimeService/{method}"))
        .input(body)
        .ok();
    let status = answer.lines().find_map(|line| line.trim().strip_prefix("grpc-status:"));
    status.unwrap_or_else(|| panic!("no answer to {method} but {answer}")).trim().to_owned()
}
