//! Our view of a process as containerd's messages have it.

use containerd_shim_protos::api::{StateRequest, StateResponse};
use protobuf::{EnumOrUnknown, MessageField};

use super::Target;
use crate::events::timestamp;
use crate::process::Phase;
use crate::stdio::Paths;

/// The answer to State.
pub(super) fn state(target: &Target, request: StateRequest) -> StateResponse {
    let none = Paths::default();
    let (phase, bundle, paths) = match target {
        Target::Sandbox(sandbox) => (sandbox.life().phase(), sandbox.bundle.as_str(), &none),
        Target::Container(container) => {
            (container.life().phase(), container.bundle.as_str(), &container.paths)
        }
        Target::Exec(container, exec) => {
            let phase = match (container.life().phase(), exec.life().phase()) {
                (_, ended @ Phase::Stopped(_)) => ended,
                // All of a container's processes stand still together.
                (Phase::Paused, _) => Phase::Paused,
                (_, phase) => phase,
            };
            (phase, container.bundle.as_str(), &exec.paths)
        }
    };
    let mut response = StateResponse::new();
    response.id = request.id;
    response.exec_id = request.exec_id;
    response.bundle = bundle.to_owned();
    response.pid = target.pid();
    response.status = EnumOrUnknown::new(phase.status());
    response.stdin.clone_from(&paths.stdin);
    response.stdout.clone_from(&paths.stdout);
    response.stderr.clone_from(&paths.stderr);
    response.terminal = paths.terminal;
    if let Phase::Stopped(exit) = phase {
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(timestamp(exit.at));
    }
    response
}
