//! `start`, with what each version of containerd writes to it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

use super::{NAMESPACE, SHIM};

/// What containerd writes to the standard input of `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootstrap {
    /// 1.6 to 2.2, for a runtime without options.
    Nothing,
    /// 1.6 to 2.2: the runtime's options.
    Options,
    /// 2.3 and newer.
    Params,
}

/// Runs `start` in a bundle; its answer.
#[track_caller]
pub(super) fn run_start(bundle: &Path, id: &str, events: &str, bootstrap: Bootstrap) -> String {
    let mut command = Command::new(SHIM);
    command
        .args(["-namespace", NAMESPACE, "-address", "/run/containerd/containerd.sock"])
        .args(["-publish-binary", "/usr/bin/containerd", "-id", id, "start"])
        .current_dir(bundle)
        .env_remove("TTRPC_ADDRESS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    match bootstrap {
        // All that it says is in what it writes.
        Bootstrap::Params => command.env("MAX_SHIM_VERSION", "3"),
        Bootstrap::Nothing | Bootstrap::Options => {
            command.env("TTRPC_ADDRESS", events).env("MAX_SHIM_VERSION", "2")
        }
    };
    let mut child = command.spawn().expect("the shim's binary can be run");
    let input = match bootstrap {
        Bootstrap::Nothing => Vec::new(),
        Bootstrap::Options => {
            let mut options = Any::new();
            options.type_url = "runtimeoptions.v1.Options".to_owned();
            // Options{1: type_url}
            options.value = b"\x0a\x04test".to_vec();
            options.write_to_bytes().expect("a message can be encoded")
        }
        Bootstrap::Params => {
            let mut params = BootstrapParams::new();
            params.instance_id = id.to_owned();
            params.namespace = NAMESPACE.to_owned();
            params.containerd_version = "2.3.4".to_owned();
            params.containerd_ttrpc_address = events.to_owned();
            params.socket_dir = Some("/run/containerd/s".to_owned());
            params.write_to_bytes().expect("a message can be encoded")
        }
    };
    child.stdin.take().expect("stdin is a pipe").write_all(&input).expect("start reads its input");
    let done = child.wait_with_output().expect("start can be waited for");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "start failed: {out}{err}");
    // containerd takes both outputs together for the answer.
    assert_eq!(err, "", "start wrote to its standard error output");
    if bootstrap != Bootstrap::Params {
        return out.trim().to_owned();
    }
    let result: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out}"));
    assert_eq!((&result["version"], &result["protocol"]), (&json!(2), &json!("ttrpc")), "{out}");
    result["address"].as_str().expect("an address").to_owned()
}
