//! Volumes that are an image's files (`image`), which containerd mounts for the pod.

use ravelin_tests::{ContainerSpec, Containerd, Host, Pod, images};
use serde_json::json;

use crate::start_failures::configured;
use crate::{assert_says, user_namespace};

const GRANTED: &str = "[policy]\nallow = { image_volumes = true }\n";

/// The host, if its containerd knows such volumes.
fn host() -> Option<Host> {
    if Host::containerd() == Containerd::V1_6 {
        println!("left out: containerd 1.6 does not know image volumes");
        return None;
    }
    Some(Host::alone())
}

/// A container with a part of an image at /image.
fn with_image<'p>(pod: &'p Pod<'p>, image: &str, sub_path: &str) -> ContainerSpec<'p> {
    let mount = json!({ "container_path": "/image", "readonly": true, "image": { "image": image }, "image_sub_path": sub_path });
    pod.container().idle().set("/mounts", json!([mount]))
}

#[test]
fn an_image_is_mounted_read_only_and_by_parts() {
    let Some(host) = host() else { return };
    let pod = configured(GRANTED, || host.pod().start());
    let whole = with_image(&pod, images::LAYERS30, "").start();
    // What 30 layers over one another are, one file of which is gone, with the image's owners.
    assert_eq!(
        whole.exec_sh("cat /image/top; ls /image/layers | wc -l; stat -c %u:%g /image/home/user"),
        "29\n28\n1000:1000"
    );
    let denied = whole.exec(&["touch", "/image/new"]);
    assert_says(&denied.stderr, "Read-only file system");
    let part = with_image(&pod, images::LAYERS30, "layers").start();
    assert_eq!(part.exec_sh("cat /image/7"), "7");
    let other = with_image(&pod, images::BUSYBOX, "var").start();
    assert_eq!(other.exec_sh("cat /image/www/index.html"), "hello from a pod");
    drop((whole, part, other));
    pod.remove();
    host.assert_clean();
}

#[test]
fn an_image_has_its_owners_in_a_pod_with_a_user_namespace() {
    let Some(host) = host().filter(|_| Host::handler().is_ravelin()) else { return };
    let pod = configured(GRANTED, || user_namespace::pod(&host).start());
    let mount = json!({
        "container_path": "/image", "readonly": true, "image": { "image": images::BUSYBOX },
        "uidMappings": user_namespace::mapping(), "gidMappings": user_namespace::mapping(),
    });
    let container = user_namespace::container(&pod).idle().set("/mounts", json!([mount])).start();
    assert_eq!(container.exec_sh("stat -c %u:%g /image/bin/busybox /image/home/user"), "0:0\n1000:1000");
    drop(container);
    pod.remove();
    host.assert_clean();
}

#[test]
fn an_image_is_refused_as_fargate_does_unless_it_is_granted() {
    let Some(host) = host().filter(|_| Host::handler().is_ravelin()) else { return };
    let pod = host.pod().start();
    let container = with_image(&pod, images::BUSYBOX, "").create();
    let error = container.try_start().expect_err("the container is refused");
    assert_says(&error, "Pod not supported on Fargate: volumes not supported: ");
    assert_says(&error, " is of an unsupported volume Type (image_volumes = true in [policy.allow]");
}
