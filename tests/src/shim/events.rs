//! The events that a shim publishes, a line each.

use std::sync::{Arc, Mutex, PoisonError};

use containerd_shim_protos::Events;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::protobuf::Message;

use super::NAMESPACE;

/// Notes events.
pub(super) struct Listener(pub(super) Arc<Mutex<Vec<String>>>);

impl Events for Listener {
    fn forward(
        &self,
        _: &ttrpc::TtrpcContext,
        request: ForwardRequest,
    ) -> ttrpc::Result<containerd_shim_protos::api::Empty> {
        let envelope = request.envelope.unwrap_or_default();
        assert_eq!(envelope.namespace, NAMESPACE);
        let line = describe(&envelope.topic, &envelope.event.unwrap_or_default().value);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(containerd_shim_protos::api::Empty::new())
    }
}

/// An event as a line.
fn describe(topic: &str, bytes: &[u8]) -> String {
    fn parse<M: Message>(bytes: &[u8]) -> M {
        M::parse_from_bytes(bytes).expect("an event of its topic's type")
    }
    match topic {
        "/tasks/create" => format!("create {}", parse::<TaskCreate>(bytes).container_id),
        "/tasks/start" => format!("start {}", parse::<TaskStart>(bytes).container_id),
        "/tasks/delete" => format!("delete {}", parse::<TaskDelete>(bytes).container_id),
        "/tasks/oom" => format!("oom {}", parse::<TaskOOM>(bytes).container_id),
        "/tasks/paused" => format!("paused {}", parse::<TaskPaused>(bytes).container_id),
        "/tasks/resumed" => format!("resumed {}", parse::<TaskResumed>(bytes).container_id),
        "/tasks/exit" => {
            let exit: TaskExit = parse(bytes);
            let exec = if exit.id == exit.container_id { String::new() } else { format!("/{}", exit.id) };
            format!("exit {}{exec} {}", exit.container_id, exit.exit_status)
        }
        "/tasks/exec-added" => {
            let added: TaskExecAdded = parse(bytes);
            format!("exec-added {}/{}", added.container_id, added.exec_id)
        }
        "/tasks/exec-started" => {
            let started: TaskExecStarted = parse(bytes);
            format!("exec-started {}/{}", started.container_id, started.exec_id)
        }
        other => format!("{other}?"),
    }
}
