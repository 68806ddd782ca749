//! Pods that Fargate does not take, refused in its words.

use ravelin_tests::{Containerd, Host, PodSpec, Volume};
use serde_json::json;

use crate::assert_says;

#[test]
fn the_root_shell_pod_is_refused_word_for_word() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let options = json!({ "network": 2, "pid": 2, "ipc": 2 });
    refused(
        host.pod()
            .set("/linux/security_context", json!({ "namespace_options": options, "privileged": true }))
            .set("/hostname", ""),
        // containerd 1.6 does not tell a runtime that a sandbox is privileged: its containers are refused for it.
        match Host::containerd() {
            Containerd::V1_6 => {
                "Pod not supported on Fargate: fields not supported: HostNetwork, HostPID, HostIPC"
            }
            Containerd::V2_3 => {
                "Pod not supported on Fargate: fields not supported: HostNetwork, HostPID, HostIPC, invalid SecurityContext fields: Privileged"
            }
        },
    );
}

#[test]
fn each_host_namespace_is_refused_by_its_name() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    for (field, name) in [("network", "HostNetwork"), ("pid", "HostPID"), ("ipc", "HostIPC")] {
        let pod = host.pod().set(&format!("/linux/security_context/namespace_options/{field}"), 2);
        let pod = if field == "network" { pod.set("/hostname", "") } else { pod };
        refused(pod, &format!("Pod not supported on Fargate: fields not supported: {name}"));
    }
    if Host::containerd() == Containerd::V1_6 {
        return;
    }
    let privileged = host.pod().set("/linux/security_context/privileged", true);
    refused(privileged, "Pod not supported on Fargate: invalid SecurityContext fields: Privileged");
}

#[test]
fn a_container_with_a_host_path_or_too_many_capabilities_is_refused_and_the_pod_lives() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.pod().start();
    let cases = [
        (
            pod.container().mount("/etc", "/host", true),
            "volumes not supported: /etc is of an unsupported volume Type",
        ),
        (
            pod.container().mount("/", "/a", true).mount("/var/run", "/b", false),
            "volumes not supported: / is of an unsupported volume Type, /run is of an unsupported volume Type",
        ),
        (
            pod.container()
                .security("capabilities", json!({ "add_capabilities": ["NET_ADMIN", "SYS_PTRACE"] })),
            "invalid SecurityContext fields: Capabilities added: NET_ADMIN, SYS_PTRACE",
        ),
        (
            pod.container()
                .security("capabilities", json!({ "add_capabilities": ["SYS_PTRACE", "CAP_CHOWN", "BPF"] })),
            "invalid SecurityContext fields: Capabilities added: SYS_PTRACE, CAP_CHOWN, BPF",
        ),
        (
            pod.container().security(
                "capabilities",
                json!({ "add_capabilities": ["ALL"], "drop_capabilities": ["CHOWN"] }),
            ),
            "invalid SecurityContext fields: Capabilities added: ALL",
        ),
        (
            pod.container().security("capabilities", json!({ "add_capabilities": ["SYS_PTRACE"] })),
            "invalid SecurityContext fields: Capabilities added: SYS_PTRACE \
             (kubectl debug adds no capability with --profile=baseline)",
        ),
    ];
    for (container, words) in cases {
        let error = match container.idle().try_create() {
            Ok(container) => container.try_start().expect_err("the container is refused"),
            Err(error) => error,
        };
        assert_says(&error, &format!("Pod not supported on Fargate: {words}"));
    }
    let allowed = json!({ "add_capabilities": ["SETFCAP", "MKNOD"], "drop_capabilities": ["KILL"] });
    let config = Volume::atomic(&pod, "configmap", "config", &[("key", "value")]);
    let fine = pod
        .container()
        .sh("cat /config/key")
        .mount(&config.path, "/config", true)
        .security("capabilities", allowed);
    assert_eq!(fine.start().output(), "value");
}

/// The pod is refused with exactly these words at the end of the error.
#[track_caller]
fn refused(pod: PodSpec<'_>, words: &str) {
    let name = pod.name();
    let error = pod.try_start().expect_err("the pod is refused");
    assert!(says_last(&error, words), "{name}: expected {words:?} at the end of {error}");
}

/// containerd and crictl put words of their own before the runtime's, and quotes and a line break after them;
/// containerd 1.6 also the name of the status code.
fn says_last(error: &str, words: &str) -> bool {
    let rest = error.rsplit_once(words).map(|(_, rest)| rest.replace("\\n", "").replace(": unknown", ""));
    rest.is_some_and(|rest| !rest.chars().any(char::is_alphanumeric))
}
