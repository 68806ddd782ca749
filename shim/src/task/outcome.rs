//! What calls about processes come to: exit statuses, events and errors.

use containerd_shim_protos::events::task::TaskExit;
use protobuf::MessageField;
use ravelin_proto::agent::WaitResponse;

use crate::agent::AgentError;
use crate::error::{TaskError, chain};
use crate::events::timestamp;
use crate::process::Exit;
use crate::sandbox::Sandbox;

/// The exit status to tell for what a wait gave. Of a machine that is gone, the sandbox knows whether that was wanted.
pub(super) fn status(waited: &Result<WaitResponse, AgentError>, sandbox: &Sandbox, killed: bool) -> u32 {
    match waited {
        Ok(answer) => answer.exit_status & 0xff,
        Err(AgentError::Ended { .. }) if killed => crate::sandbox::KILLED,
        Err(AgentError::Ended { .. }) => sandbox.status_of_the_lost(),
        Err(error) => {
            tracing::error!("a process is lost: {}", chain(error));
            crate::sandbox::LOST
        }
    }
}

/// Whether a container ended for want of memory: in the guest, or with a machine that the node killed for it.
pub(super) fn is_oom_killed(waited: &Result<WaitResponse, AgentError>, sandbox: &Sandbox) -> bool {
    match waited {
        Ok(answer) => answer.oom_killed,
        Err(AgentError::Ended { .. }) => sandbox.is_oom_killed(),
        Err(_) => false,
    }
}

/// A deletion in the guest is done when the guest says so, does not know the process, or is gone.
pub(super) fn deleted_or_gone<T>(deleted: Result<T, AgentError>) -> Result<(), TaskError> {
    match deleted {
        Ok(_) | Err(AgentError::Ended { .. }) => Ok(()),
        Err(error) if error.code() == Some(tonic::Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn exit_event(container_id: &str, id: &str, pid: u32, exit: Exit) -> TaskExit {
    let mut event = TaskExit::new();
    event.container_id = container_id.to_owned();
    event.id = id.to_owned();
    event.pid = pid;
    event.exit_status = exit.status;
    event.exited_at = MessageField::some(timestamp(exit.at));
    event
}

pub(super) fn precondition(text: &str) -> TaskError {
    TaskError::FailedPrecondition(text.to_owned())
}

pub(super) fn finished() -> TaskError {
    TaskError::NotFound("process already finished".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;
    use crate::machine;

    #[test]
    fn a_deletion_without_an_answer_is_none() {
        let what = "delete a container";
        let refused = |code| Err(AgentError::Refused { what, code, message: String::new() });
        let gone = Err(AgentError::Ended { what, exit: machine::Exit::Signal(9) });
        for done in [Ok(()), refused(Code::NotFound), gone] {
            deleted_or_gone(done).unwrap();
        }
        let silence = Err(AgentError::Timeout { what, after: Duration::from_secs(60) });
        for failed in [silence, refused(Code::FailedPrecondition), refused(Code::Unknown)] {
            deleted_or_gone::<()>(failed).unwrap_err();
        }
    }
}
