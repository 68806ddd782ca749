//! What a container's process is born with.

use std::collections::BTreeSet;
use std::fs;

use ravelin_tests::{Host, images};
use serde_json::json;

use crate::report;

#[test]
fn environment_folder_user_groups_and_hostname_are_as_asked() {
    let host = Host::shared();
    let pod = host.pod().set("/hostname", "a-name-of-its-own").start();
    let asked = pod
        .container()
        .sh("echo colour=$COLOUR; echo odd=\"$ODD\"; echo folder=$(pwd); echo user=$(id -u); echo group=$(id -g)
             echo groups=$(id -G); echo hostname=$(hostname); echo node=$(uname -n); echo args=$*; echo zero=$0")
        .set("/args", json!(["zero", "one", "two words"]))
        .env("COLOUR", "blue")
        .env("ODD", "a=b \"c\" $d ü")
        .set("/working_dir", "/made/for/the/purpose")
        .security("run_as_user", json!({ "value": 1234 }))
        .security("run_as_group", json!({ "value": 2345 }))
        .security("supplemental_groups", json!([3000, 4000]))
        .start();
    let said = report(&asked.output());
    assert_eq!(said["colour"], "blue");
    assert_eq!(said["odd"], "a=b \"c\" $d ü");
    assert_eq!(said["folder"], "/made/for/the/purpose");
    assert_eq!((said["user"].as_str(), said["group"].as_str()), ("1234", "2345"));
    let groups: BTreeSet<&str> = said["groups"].split(' ').collect();
    assert!(groups.contains("3000") && groups.contains("4000"), "{groups:?}");
    assert_eq!(
        (said["hostname"].as_str(), said["node"].as_str()),
        ("a-name-of-its-own", "a-name-of-its-own")
    );
    assert_eq!((said["zero"].as_str(), said["args"].as_str()), ("zero", "one two words"));

    // Without a word from the pod, the image's user, folder and environment hold.
    let default = pod.container().image(images::USER);
    let script = "echo user=$(id -un); echo folder=$PWD; echo home=$HOME; echo greeting=$GREETING; echo groups=$(id -G)";
    let default = default.sh(script).start();
    let said = report(&default.output());
    assert_eq!((said["user"].as_str(), said["folder"].as_str()), ("user", "/home/user"));
    assert_eq!((said["home"].as_str(), said["greeting"].as_str()), ("/home/user", "hello"));
    // Which of the image's groups the user has is containerd's to find out, and its versions differ in that.
    let user = default.inspect()["info"]["runtimeSpec"]["process"]["user"].take();
    let specified = user["additionalGids"].as_array().into_iter().flatten().chain([&user["gid"]]);
    let specified: BTreeSet<String> = specified.map(ToString::to_string).collect();
    let groups: BTreeSet<String> = said["groups"].split(' ').map(ToOwned::to_owned).collect();
    assert_eq!(groups, specified);
}

#[test]
fn a_read_only_root_refuses_writes_and_a_writable_one_takes_them() {
    let host = Host::shared();
    let pod = host.common_pod();
    let readonly = pod.container().security("readonly_rootfs", true);
    let readonly = readonly.sh(
        "touch /file || echo refused; echo x > /dev/shm/file && echo shm; echo x > /dev/null && echo null",
    );
    let readonly = readonly.start();
    assert_eq!(readonly.output(), "refused\nshm\nnull\n");
    assert!(readonly.logs().err().contains("Read-only file system"), "{}", readonly.logs().err());
    assert_eq!(
        pod.sh("echo text > /file; cat /file; rm /bin/cat; ls /bin/cat || echo gone").output(),
        "text\ngone\n"
    );
}

#[test]
fn resource_limits_of_the_specification_hold() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().idle().start();
    // CRI has no field for them: they come from containerd's own specification, where it has any.
    let specified = container.inspect()["info"]["runtimeSpec"]["process"]["rlimits"].as_array().cloned();
    let limits = container.exec_sh("cat /proc/1/limits");
    for limit in specified.unwrap_or_default() {
        let name = match limit["type"].as_str().unwrap_or_default() {
            "RLIMIT_NOFILE" => "Max open files",
            "RLIMIT_NPROC" => "Max processes",
            other => panic!("the test does not know {other}"),
        };
        let line = limits.lines().find(|line| line.starts_with(name)).expect("every limit has a line");
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(numbers, [limit["soft"].as_u64().unwrap(), limit["hard"].as_u64().unwrap()], "{name}");
    }
    assert!(limits.contains("Max open files"), "{limits}");
}

#[test]
fn sysctls_of_the_pod_are_set_and_the_rest_is_the_nodes() {
    let host = Host::shared();
    // What a kubelet sets, and what systemd and administrators do: none of these is what the guest's kernel begins with.
    let settings = [
        ("vm/overcommit_memory", "1"),
        ("fs/file-max", "1000000001"),
        ("fs/nr_open", "1048584"),
        ("fs/protected_fifos", "1"),
        ("fs/protected_hardlinks", "1"),
        ("fs/protected_regular", "1"),
        ("fs/protected_symlinks", "1"),
        ("vm/max_map_count", "262145"),
        ("fs/aio-max-nr", "65537"),
        ("fs/inotify/max_queued_events", "16385"),
        ("fs/inotify/max_user_instances", "777"),
        ("fs/inotify/max_user_watches", "54321"),
        ("net/core/rmem_default", "212996"),
        ("net/core/rmem_max", "4194304"),
        ("net/core/wmem_default", "212998"),
        ("net/core/wmem_max", "4194306"),
        ("net/ipv4/tcp_rmem", "4096\t131072\t6291464"),
        ("net/ipv4/tcp_wmem", "4096\t16384\t4194312"),
        ("vm/overcommit_ratio", "51"),
    ];
    for (name, value) in settings {
        fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let sysctls = json!({
        "net.ipv4.ip_local_port_range": "20000\t30000",
        "net.core.somaxconn": "1234",
        "net.ipv4.tcp_keepalive_time": "77",
        "kernel.shm_rmid_forced": "1",
        "kernel.msgmax": "12345",
    });
    let pod = host.pod().set("/linux/sysctls", sysctls).start();
    let container = pod.sh(
        "cd /proc/sys; cat net/ipv4/ip_local_port_range net/core/somaxconn net/ipv4/tcp_keepalive_time kernel/shm_rmid_forced kernel/msgmax",
    );
    assert_eq!(container.output(), "20000\t30000\n1234\n77\n1\n12345\n");
    let names = settings.map(|(name, _)| name).join(" ");
    let values = settings.map(|(_, value)| format!("{value}\n")).concat();
    assert_eq!(pod.sh(&format!("cd /proc/sys; cat {names}")).output(), values);
    assert_eq!(pod.sh("cat /proc/sys/kernel/panic_on_oops").output(), "1\n");
}

#[test]
fn real_programs_of_a_distribution_run() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().image(images::DEBIAN).command(&[
        "/bin/bash",
        "-c",
        "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
    ]);
    let container = container.start();
    assert_eq!(container.exec(&["python3", "-c", "print(sum(range(1000)))"]).text(), "499500");
    assert!(container.exec(&["ps", "-e"]).text().contains("bash"));
    let pipeline = "seq 1 100000 | sort -rn | head -1";
    assert_eq!(container.exec(&["bash", "-c", pipeline]).text().trim(), "100000");
    let nginx = "nginx -t 2>&1 | tail -1; nginx && curl -sf http://127.0.0.1/ | head -c 15; nginx -s stop";
    let said = container.exec(&["bash", "-c", nginx]).text();
    assert!(said.contains("successful") && said.contains("<!DOCTYPE html>"), "{said}");
}
