//! AppArmor profiles, which `run` compiles from the texts in `profiles`.

use ravelin_agent::paths;
use ravelin_proto::agent as api;
use serde_json::{Value, json};
use tonic::Code;

use crate::container::{Container, sh};
use crate::host::{Client, process, spec};

const PROFILE: &str = "ravelin-test";
const COMPLAINING: &str = "ravelin-test-complaining";
/// What the profile is, and what it lets through.
const TRIES: &str =
    "cat /proc/self/attr/current; (echo > /etc/x) && echo etc; (echo > /tmp/x) && echo tmp; exit 0";
/// No more than `cat` needs.
const CALLS: [&str; 24] = [
    "execve",
    "brk",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
    "rseq",
    "prlimit64",
    "readlink",
    "readlinkat",
    "getrandom",
    "mprotect",
    "write",
    "exit_group",
    "getuid",
    "uname",
    "fstat",
    "newfstatat",
    "mmap",
    "munmap",
    "open",
    "openat",
    "read",
    "sendfile",
    "close",
];

fn policy(name: &str) -> Vec<u8> {
    std::fs::read(paths::layer(1).join("etc/apparmor").join(name)).unwrap()
}

fn confined(profile: &str, args: &[&str]) -> Value {
    let mut confined = spec(args);
    confined["process"]["apparmorProfile"] = json!(profile);
    confined
}

async fn create(client: &Client, id: &str, spec: Value, policy: Vec<u8>) -> Result<Container, tonic::Status> {
    let push = |request: &mut api::CreateContainerRequest| {
        request.apparmor_policies = if policy.is_empty() { Vec::new() } else { vec![policy.into()] };
    };
    Container::create_with(client, id, spec, false, push).await
}

pub async fn profiles(client: Client) {
    let (_, out, err) = sh(&client, "none", TRIES).await;
    assert_eq!(out, "unconfined\netc\ntmp\n", "{err}");
    let seccomp = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": CALLS}]});
    for uid in [0, 1000] {
        for no_new_privileges in [false, true] {
            let of_the_user = |args: &[&str]| {
                let mut confined = confined(PROFILE, args);
                confined["process"]["noNewPrivileges"] = json!(no_new_privileges);
                confined["process"]["user"] = json!({"uid": uid, "gid": uid});
                confined
            };
            let plain = of_the_user(&["sh", "-c", TRIES]);
            let container = create(&client, "confined", plain, policy("first")).await.unwrap();
            let (_, out, err) = container.finish().await;
            // The directories are root's.
            let tmp = if uid == 0 { "tmp\n" } else { "" };
            assert_eq!(out, format!("ravelin-test (enforce)\n{tmp}"), "{uid} {no_new_privileges}: {err}");
            assert!(err.contains("/etc/x: Permission denied"), "{err}");
            // A filter does not have to let the profile through.
            let mut filtered = of_the_user(&["cat", "/proc/self/attr/current"]);
            filtered["linux"]["seccomp"] = seccomp.clone();
            let container = create(&client, "filtered", filtered, policy("first")).await.unwrap();
            let (_, out, err) = container.finish().await;
            assert_eq!(out, "ravelin-test (enforce)\n", "{uid} {no_new_privileges}: {err}");
        }
    }
    // The other profile of the same policy.
    let other = confined(COMPLAINING, &["sh", "-c", TRIES]);
    let (_, out, err) = create(&client, "other", other, policy("first")).await.unwrap().finish().await;
    assert_eq!(out, "ravelin-test-complaining (complain)\netc\ntmp\n", "{err}");
    // Where they are loaded nobody can look.
    let mounts = std::fs::read_to_string("/proc/1/mountinfo").unwrap();
    assert!(!mounts.contains("securityfs"), "{mounts}");
    let (_, out, _) = sh(&client, "none", "ls /sys/kernel/security; grep securityfs /proc/mounts").await;
    assert_eq!(out, "");
}

pub async fn profiles_of_execs(client: Client) {
    let sleeping = confined(PROFILE, &["sleep", "1000"]);
    let mut container = create(&client, "execs", sleeping, policy("first")).await.unwrap();
    container.start().await;
    let (_, out, err) = container.exec("inherits", &["sh", "-c", TRIES]).await;
    assert_eq!(out, "ravelin-test (enforce)\ntmp\n", "{err}");
    for (profile, said) in [(COMPLAINING, "(complain)"), ("unconfined", "unconfined")] {
        let mut own = process(&["cat", "/proc/self/attr/current"]);
        own["apparmorProfile"] = json!(profile);
        let out = container.exec_with("own", own, false).await.unwrap().out().await;
        assert!(out.ends_with(&format!("{said}\n")), "{out}");
        container.wait("own").await;
        container.client.delete(container.name("own")).await.unwrap();
    }
    let mut unknown = process(&["true"]);
    unknown["apparmorProfile"] = json!("nowhere");
    let refused = container.exec_with("unknown", unknown, false).await.err().expect("it is refused");
    assert!(
        refused.message().contains("AppArmor profile \"nowhere\": no such file or directory"),
        "{refused}"
    );

    // The node's profile has changed meanwhile: what runs from now on has the new one, in the older container too.
    let later = confined(PROFILE, &["sh", "-c", TRIES]);
    let (_, out, err) = create(&client, "later", later, policy("second")).await.unwrap().finish().await;
    assert_eq!(out, "ravelin-test (enforce)\netc\n", "{err}");
    let (_, out, err) = container.exec("later", &["sh", "-c", TRIES]).await;
    assert_eq!(out, "ravelin-test (enforce)\netc\n", "{err}");
    container.end().await;
}

pub async fn refused_profiles(client: Client) {
    for (profile, policy, code, words) in [
        (PROFILE, Vec::new(), Code::InvalidArgument, "\"ravelin-test\" comes without its policy"),
        (PROFILE, b"nonsense".to_vec(), Code::Internal, "load the AppArmor profile \"ravelin-test\""),
        ("elsewhere", policy("first"), Code::InvalidArgument, "\"elsewhere\" does not hold it"),
        (&"x".repeat(3000), policy("first"), Code::InvalidArgument, "more than 2048 bytes"),
    ] {
        let refused = create(&client, "refused", confined(profile, &["true"]), policy).await;
        let refused = refused.err().expect("it is refused");
        assert!(refused.code() == code && refused.message().contains(words), "{refused:?}");
    }
}
