use super::*;
use crate::config::{Allow, Mode};

fn pod(json: &str) -> Pod {
    serde_json::from_str(&format!("{{\"spec\": {json}}}")).unwrap()
}

fn claims(list: &[(&str, Claim)]) -> Claims {
    list.iter().map(|(name, claim)| ((*name).to_owned(), claim.clone())).collect()
}

fn bound(volume: &str, driver: &str) -> Claim {
    Claim::Bound { volume: volume.to_owned(), driver: Some(driver.to_owned()) }
}

fn message(spec: &str, claims: &Claims) -> String {
    match check_pod(&pod(spec), claims, &PolicyConfig::default()) {
        Ok(()) => "accepted".to_owned(),
        Err(refusal) => {
            refusal.to_string().strip_prefix("Pod not supported on Fargate: ").unwrap().to_owned()
        }
    }
}

const ROOT_SHELL: &str = r#"{
    "hostNetwork": true, "hostPID": true, "hostIPC": true,
    "volumes": [{"name": "hostroot", "hostPath": {"path": "/"}}],
    "containers": [{"name": "shell", "securityContext": {"privileged": true}}]
}"#;

#[test]
fn the_root_shell_pod_is_refused_word_for_word() {
    let refusal = check_pod(&pod(ROOT_SHELL), &Claims::new(), &PolicyConfig::default()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "Pod not supported on Fargate: fields not supported: HostNetwork, HostPID, HostIPC, \
         volumes not supported: hostroot is of an unsupported volume Type, \
         invalid SecurityContext fields: Privileged"
    );
    assert_eq!(Refusal::REASON, "POD_UNSUPPORTED_ON_FARGATE");
}

/// Messages that users of EKS Fargate have published, with pods that get them.
#[test]
fn published_messages_are_given_word_for_word() {
    let none = Claims::new();
    for (spec, expected) in [
        (
            r#"{"containers": [{"securityContext": {"allowPrivilegeEscalation": true}}]}"#,
            "invalid SecurityContext fields: AllowPrivilegeEscalation",
        ),
        (
            r#"{"containers": [{"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]}"#,
            "invalid SecurityContext fields: Capabilities added: NET_ADMIN",
        ),
        (
            r#"{"volumes": [{"name": "tls", "csi": {"driver": "csi.cert-manager.io"}}]}"#,
            "volumes not supported: tls is of an unsupported volume Type",
        ),
        (
            r#"{"hostNetwork": true, "containers": [{"ports": [{"containerPort": 1, "hostPort": 1}]}]}"#,
            "fields not supported: HostNetwork, port contains HostIP or HostPort",
        ),
        (
            r#"{"hostNetwork": true, "containers": [
                {"ports": [{"hostPort": 80}, {"hostIP": "127.0.0.1"}]},
                {"securityContext": {"privileged": true}}]}"#,
            "fields not supported: HostNetwork, invalid SecurityContext fields: Privileged, \
             port contains HostIP or HostPort",
        ),
        (
            r#"{"containers": [{"securityContext": {"privileged": true}}]}"#,
            "invalid SecurityContext fields: Privileged",
        ),
        (
            r#"{"containers": [{"securityContext": {"capabilities": {"add": ["CAP_CHOWN"]}}}]}"#,
            "invalid SecurityContext fields: Capabilities added: CAP_CHOWN",
        ),
        (
            r#"{"initContainers": [{"securityContext": {"privileged": true}}],
                "containers": [{}, {"securityContext": {"privileged": true}}]}"#,
            "invalid SecurityContext fields: Privileged,Privileged",
        ),
        (
            r#"{"containers": [
                {"securityContext": {"capabilities": {"add": ["DAC_OVERRIDE", "DAC_READ_SEARCH"]}}},
                {"securityContext": {"capabilities": {"add": ["DAC_READ_SEARCH"]}}}]}"#,
            "invalid SecurityContext fields: Capabilities added: DAC_READ_SEARCH,Capabilities added: DAC_READ_SEARCH",
        ),
        (r#"{"hostNetwork": true}"#, "fields not supported: HostNetwork"),
    ] {
        assert_eq!(message(spec, &none), expected, "{spec}");
    }
}

#[test]
fn published_messages_about_claims_are_given_word_for_word() {
    let known = claims(&[
        ("prometheus-server", bound("pvc-a996", "ebs.csi.aws.com")),
        ("efs-storage-efs-app-sts1-0", Claim::Pending),
        ("config", Claim::Pending),
        ("logs", Claim::Pending),
        ("data", Claim::Pending),
        ("good", bound("pv-1", "efs.csi.aws.com")),
        ("bare", Claim::Bound { volume: "pv-2".to_owned(), driver: None }),
    ]);
    let pvc = |name: &str, claim: &str| {
        format!(r#"{{"name": "{name}", "persistentVolumeClaim": {{"claimName": "{claim}"}}}}"#)
    };
    for (volumes, expected) in [
        (
            vec![("storage-volume", "prometheus-server")],
            "volumes not supported: storage-volume not supported because: PVC prometheus-server bound to invalid PV \
             pvc-a996 with CSI Driver: ebs.csi.aws.com",
        ),
        (
            vec![("persistence", "test-pvc")],
            "volumes not supported: persistence not supported because: persistentvolumeclaim \"test-pvc\" not found",
        ),
        (
            vec![("efs-storage", "efs-storage-efs-app-sts1-0")],
            "volumes not supported: efs-storage not supported because: PVC efs-storage-efs-app-sts1-0 not bound",
        ),
        (
            vec![("gitlab-config", "config"), ("gitlab-logs", "logs"), ("gitlab-data", "data")],
            "volumes not supported: gitlab-config not supported because: PVC config not bound, gitlab-logs not \
             supported because: PVC logs not bound, gitlab-data not supported because: PVC data not bound",
        ),
        (
            vec![("v", "bare")],
            "volumes not supported: v not supported because: PVC bare bound to invalid PV pv-2",
        ),
        (vec![("v", "good")], "accepted"),
    ] {
        let list: Vec<String> = volumes.iter().map(|(name, claim)| pvc(name, claim)).collect();
        let spec = format!(r#"{{"volumes": [{}]}}"#, list.join(","));
        assert_eq!(message(&spec, &known), expected, "{spec}");
    }
}

#[test]
fn fields_volumes_security_and_ports_come_in_this_order() {
    let spec = r#"{
        "hostIPC": true, "hostPID": true,
        "volumes": [{"name": "b", "hostPath": {}}, {"name": "a", "awsElasticBlockStore": {}}],
        "containers": [{"securityContext": {"privileged": true}}],
        "initContainers": [{"securityContext": {
            "privileged": true, "allowPrivilegeEscalation": true, "capabilities": {"add": ["ALL", "KILL", "BPF"]}}}],
        "ephemeralContainers": [{"securityContext": {"allowPrivilegeEscalation": true}, "ports": [{"hostPort": 1}]}]
    }"#;
    assert_eq!(
        message(spec, &Claims::new()),
        "fields not supported: HostPID, HostIPC, volumes not supported: b is of an unsupported volume Type, a is of an \
         unsupported volume Type, invalid SecurityContext fields: Capabilities added: ALL, BPF, \
         AllowPrivilegeEscalation, Privileged,Privileged,AllowPrivilegeEscalation, port contains HostIP or HostPort"
    );
}

#[test]
fn what_fargate_accepts_is_accepted() {
    for spec in [
        "{}",
        r#"{"volumes": [{"name": "a", "emptyDir": {"medium": "Memory"}}, {"name": "b", "secret": {}},
            {"name": "c", "configMap": {}}, {"name": "d", "projected": {"sources": []}},
            {"name": "e", "downwardAPI": {}}, {"name": "f", "nfs": {"server": "s", "path": "/"}}, {"name": "g"}]}"#,
        r#"{"volumes": [{"name": "a", "emptyDir": {}, "hostPath": null}]}"#,
        r#"{"containers": [{"securityContext": {"privileged": false, "allowPrivilegeEscalation": false,
            "runAsUser": 0, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}},
            "ports": [{"containerPort": 80, "hostPort": 0, "hostIP": ""}]}]}"#,
        r#"{"shareProcessNamespace": true, "hostNetwork": false, "securityContext": {"fsGroup": 1}}"#,
    ] {
        assert_eq!(message(spec, &Claims::new()), "accepted", "{spec}");
    }
}

#[test]
fn every_addable_capability_may_be_added() {
    for name in crate::DEFAULT_CAPABILITIES {
        let spec = format!(
            r#"{{"containers": [{{"securityContext": {{"capabilities": {{"add": ["{name}"]}}}}}}]}}"#
        );
        assert_eq!(message(&spec, &Claims::new()), "accepted", "{name}");
    }
    assert_eq!(crate::DEFAULT_CAPABILITIES.len(), 14);
}

#[test]
fn guest_mode_refuses_only_the_volume_of_the_root_shell_pod() {
    let guest = PolicyConfig { mode: Mode::Guest, ..PolicyConfig::default() };
    let refusal = check_pod(&pod(ROOT_SHELL), &Claims::new(), &guest).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "Pod not supported on Fargate: volumes not supported: hostroot is of an unsupported volume Type"
    );
}

#[test]
fn volumes_are_granted_by_driver_mode_and_path() {
    let claims = claims(&[("ebs", bound("pv-1", "ebs.csi.aws.com"))]);
    let granted = |volume: &str, config: &str| {
        let config: PolicyConfig = toml::from_str(config).unwrap();
        let spec = format!(r#"{{"volumes": [{{"name": "v", {volume}}}]}}"#);
        check_pod(&pod(&spec), &claims, &config).is_ok()
    };
    let (guest, any) = ("mode = \"guest\"", "csi_drivers = [\"*\"]");
    let claim = r#""persistentVolumeClaim": {"claimName": "ebs"}"#;
    assert_eq!((granted(claim, ""), granted(claim, any), granted(claim, guest)), (false, true, true));
    let inline = r#""csi": {"driver": "x"}"#;
    assert_eq!((granted(inline, any), granted(inline, guest)), (false, true));
    assert!(granted(inline, "csi_drivers = [\"x\"]\nallow.inline_csi = true"));
    let host = r#""hostPath": {"path": "/data/x"}"#;
    let listed = "host_paths = [\"/data\"]";
    assert!(!granted(host, guest) && !granted(host, listed));
    assert!(granted(host, &format!("{guest}\n{listed}")));
    assert_eq!((granted(r#""iscsi": {}"#, any), granted(r#""iscsi": {}"#, guest)), (false, true));
    let image = r#""image": {"reference": "x"}"#;
    assert_eq!((granted(image, any), granted(image, guest)), (false, true));
    assert!(granted(image, "allow.image_volumes = true"));
}

#[test]
fn a_switch_overrides_the_mode_both_ways() {
    let grant: PolicyConfig = toml::from_str("allow.host_pid = true\nallow.privileged = true").unwrap();
    let refusal = check_pod(&pod(ROOT_SHELL), &Claims::new(), &grant).unwrap_err();
    assert_eq!(refusal.fields, [HostField::Network, HostField::Ipc]);
    assert!(refusal.containers.is_empty());

    let refuse: PolicyConfig = toml::from_str("mode = \"guest\"\n[allow]\nhost_network = false").unwrap();
    let refusal = check_pod(&pod(ROOT_SHELL), &Claims::new(), &refuse).unwrap_err();
    assert_eq!(refusal.fields, [HostField::Network]);
}

#[test]
fn unknown_keys_and_modes_are_refused() {
    for text in [
        "mode = \"aws\"",
        "mod = \"guest\"",
        "[allow]\nhost_path = true",
        "allow.privileged = 1",
        // Of these a runtime learns nothing: a key would promise what nobody keeps.
        "allow.privilege_escalation = false",
        "allow.host_ports = false",
    ] {
        assert!(toml::from_str::<PolicyConfig>(text).is_err(), "{text}");
    }
}

#[test]
fn each_switch_moves_its_own_item_only() {
    let everything = r#"{
        "hostNetwork": true, "hostPID": true, "hostIPC": true,
        "containers": [{"ports": [{"hostPort": 1}], "securityContext": {
            "privileged": true, "allowPrivilegeEscalation": true, "capabilities": {"add": ["BPF"]}}}]
    }"#;
    let all =
        ["HostNetwork", "HostPID", "HostIPC", "Privileged", "AllowPrivilegeEscalation", "BPF", "HostPort"];
    type Switch = fn(&mut Allow);
    let switches: [(&str, Switch); 5] = [
        ("HostNetwork", |allow| allow.host_network = Some(true)),
        ("HostPID", |allow| allow.host_pid = Some(true)),
        ("HostIPC", |allow| allow.host_ipc = Some(true)),
        ("Privileged", |allow| allow.privileged = Some(true)),
        ("BPF", |allow| allow.capabilities = Some(true)),
    ];
    for (allowed, switch) in switches {
        let mut config = PolicyConfig::default();
        switch(&mut config.allow);
        let message = check_pod(&pod(everything), &Claims::new(), &config).unwrap_err().to_string();
        for item in all {
            assert_eq!(message.contains(item), item != allowed, "{item} with {allowed} allowed: {message}");
        }
    }
    let guest = PolicyConfig { mode: Mode::Guest, ..PolicyConfig::default() };
    assert_eq!(check_pod(&pod(everything), &Claims::new(), &guest), Ok(()));
}

#[test]
fn a_sandbox_is_refused_for_what_it_shows() {
    let config = PolicyConfig::default();
    assert_eq!(check_sandbox(&SandboxView::default(), &config), Ok(()));
    let view = SandboxView { host_network: true, host_pid: true, host_ipc: true, privileged: true };
    assert_eq!(
        check_sandbox(&view, &config).unwrap_err().to_string(),
        "Pod not supported on Fargate: fields not supported: HostNetwork, HostPID, HostIPC, \
         invalid SecurityContext fields: Privileged"
    );
    let guest = PolicyConfig { mode: Mode::Guest, ..PolicyConfig::default() };
    assert_eq!(check_sandbox(&view, &guest), Ok(()));
}

#[test]
fn a_debugging_container_is_told_the_way_around_beside_fargates_message() {
    let refusal = |capabilities: &[&str], privileged| {
        let added_capabilities = capabilities.iter().map(ToString::to_string).collect();
        let view = ContainerView { privileged, added_capabilities, unsupported_volumes: Vec::new() };
        check_container(&view, &PolicyConfig::default()).unwrap_err()
    };
    let debug = refusal(&["SYS_PTRACE"], false);
    assert_eq!(
        debug.to_string(),
        "Pod not supported on Fargate: invalid SecurityContext fields: Capabilities added: SYS_PTRACE"
    );
    assert!(debug.way_around().unwrap().contains("--profile=baseline"));
    assert_eq!(refusal(&["SYS_PTRACE", "NET_ADMIN"], false).way_around(), None);
    assert_eq!(refusal(&["NET_ADMIN"], false).way_around(), None);
    assert_eq!(refusal(&[], true).way_around(), None);
    // Of a volume the key that would grant it.
    let volume = |problem| Refusal {
        volumes: vec![VolumeViolation { volume: "/data".to_owned(), problem }],
        ..Refusal::default()
    };
    let driver = Some("x".to_owned());
    let invalid = VolumeProblem::InvalidVolume { claim: None, volume: "pv".to_owned(), driver };
    let nfs = VolumeProblem::Mode { plugin: "kubernetes.io/nfs".to_owned() };
    let guest = PolicyConfig { mode: Mode::Guest, ..PolicyConfig::default() };
    for (problem, key) in [
        (invalid, "csi_drivers in [policy]"),
        (nfs, "mode = \"guest\""),
        (guest.refused_host_path(), "host_paths in [policy]"),
        (PolicyConfig::default().image_volume().unwrap(), "image_volumes = true in [policy.allow]"),
    ] {
        assert!(volume(problem).way_around().unwrap().starts_with(key), "{key}");
    }
    assert_eq!(volume(PolicyConfig::default().refused_host_path()).way_around(), None);
}

#[test]
fn a_field_that_is_null_is_absent() {
    let null = r#"{
        "hostNetwork": null, "hostPID": null, "hostIPC": null, "volumes": null, "initContainers": null,
        "ephemeralContainers": null, "resources": null, "securityContext": null,
        "containers": [
            {"name": null, "restartPolicy": null, "securityContext": null, "ports": null, "resources": null},
            {"securityContext": {"privileged": null, "allowPrivilegeEscalation": null, "capabilities": null},
             "ports": [{"hostPort": null, "hostIP": null}], "resources": {"requests": null, "limits": null}},
            {"securityContext": {"capabilities": {"add": null, "drop": null}}, "resources": {"requests": {"cpu": null}}}
        ]}"#;
    let empty = r#"{"volumes": [], "initContainers": [], "ephemeralContainers": [], "resources": {},
        "containers": [{"securityContext": {"capabilities": {"add": []}}, "ports": [],
                        "resources": {"requests": {}, "limits": {}}}]}"#;
    for spec in [
        null,
        empty,
        "null",
        r#"{"containers": null}"#,
        r#"{"volumes": [{"name": null, "persistentVolumeClaim": null, "emptyDir": null, "csi": null}]}"#,
    ] {
        assert_eq!(message(spec, &Claims::new()), "accepted", "{spec}");
        assert_eq!(crate::pod_requests(&pod(spec)), crate::Requests::default(), "{spec}");
    }
    let claim = r#"{"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": null}}]}"#;
    assert!(message(claim, &Claims::new()).contains("persistentvolumeclaim \"\" not found"));
}

#[test]
fn a_container_is_refused_for_what_it_shows() {
    let config = PolicyConfig::default();
    let volume = VolumeViolation { volume: "/".to_owned(), problem: config.refused_host_path() };
    let mut view = ContainerView {
        privileged: true,
        added_capabilities: vec!["ALL".to_owned()],
        unsupported_volumes: vec![volume],
    };
    assert_eq!(
        check_container(&view, &config).unwrap_err().to_string(),
        "Pod not supported on Fargate: volumes not supported: / is of an unsupported volume Type, \
         invalid SecurityContext fields: Privileged"
    );
    view.privileged = false;
    view.unsupported_volumes.clear();
    assert_eq!(
        check_container(&view, &config).unwrap_err().to_string(),
        "Pod not supported on Fargate: invalid SecurityContext fields: Capabilities added: ALL"
    );
    assert_eq!(check_container(&ContainerView::default(), &config), Ok(()));
    let guest = PolicyConfig { mode: Mode::Guest, ..PolicyConfig::default() };
    assert_eq!(check_container(&view, &guest), Ok(()));
}
