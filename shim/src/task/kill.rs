//! Signals to processes of the guest, and what becomes of a guest that does not obey.

use ravelin_proto::agent::{KillRequest, ProcessRequest};
use tokio::time::Instant;

use super::finished;
use crate::agent::{Agent, AgentError};
use crate::error::{TaskError, chain};
use crate::sandbox::Pod;
use crate::sandbox::supervisor::deadline;

/// SIGKILL.
pub(super) const KILL: u32 = 9;
const UNANSWERED: &str = "its guest did not answer a SIGKILL";

/// Sends a signal to a process of the pod, or to `all` of a container, and returns when the guest has taken it.
///
/// A guest that does not answer in time loses its machine if the signal was SIGKILL. Another signal counts as sent, as
/// it does to a process that stands still: the guest has it when it goes on.
pub(crate) async fn kill(
    pod: &Pod,
    id: &str,
    exec_id: &str,
    signal: u32,
    all: bool,
) -> Result<(), TaskError> {
    match signal {
        // Whether the process exists is known here.
        0 => return Ok(()),
        1..=64 => {}
        _ => return Err(TaskError::InvalidArgument(format!("there is no signal {signal}"))),
    }
    let request = KillRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), signal, all };
    let agent = pod.agent.clone();
    // In a task of its own: a guest that is slow gets the signal even after we have stopped waiting.
    let sending = tokio::spawn(async move {
        let mut client = agent.client();
        agent.call("signal a process", client.kill(request)).await
    });
    let patience = async {
        if signal == KILL {
            pod.agent.machine().had_time(deadline::SIGNAL).await;
        } else {
            tokio::time::sleep(deadline::SIGNAL).await;
        }
    };
    let sent = tokio::select! {
        biased;
        sent = sending => sent.map_err(|_| TaskError::Failed("the signal was cut short".to_owned()))?,
        () = patience => {
            if signal == KILL {
                pod.supervisor.cut(UNANSWERED);
            } else {
                pod.supervisor.missed(&pod.agent);
                tracing::warn!(
                    container = id,
                    exec = exec_id,
                    "the guest has not acknowledged signal {signal} yet"
                );
            }
            return Ok(());
        }
    };
    match sent {
        Ok(_) => Ok(()),
        // It ended before the signal came.
        Err(AgentError::Ended { .. }) => Err(finished()),
        Err(error) => Err(error.into()),
    }
}

/// Removes whatever there may be of a process in the guest after a creation that failed.
pub(super) async fn remove_from_guest(pod: &Pod, id: &str, exec_id: &str) {
    let agent: &Agent = &pod.agent;
    let request = ProcessRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
    let began = Instant::now();
    loop {
        // All would be all of the container, which goes on when an exec fails.
        match kill(pod, id, exec_id, KILL, exec_id.is_empty()).await {
            Ok(()) => break,
            Err(TaskError::NotFound(_)) => return,
            // It is still being made, and there is nothing to be killed yet; or it was noted and will never be started.
            Err(TaskError::FailedPrecondition(_)) if began.elapsed() < deadline::GIVEN_UP => {
                let mut client = agent.client();
                if agent.call("delete a process", client.delete(agent.request(request.clone()))).await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(deadline::GIVEN_UP_PAUSE).await;
            }
            Err(error) => {
                tracing::debug!(container = id, "cannot kill what was not made: {error}");
                break;
            }
        }
    }
    pod.supervisor.see_to_the_end_of(agent, agent.wait(id, exec_id)).await;
    if let Err(error) = agent.call("delete a process", agent.client().delete(agent.request(request))).await
        && error.code() != Some(tonic::Code::NotFound)
        && agent.machine().exited().is_none()
    {
        tracing::warn!(container = id, exec = exec_id, "something stays in the guest: {}", chain(&error));
    }
}
