//! The agent in the guest, as a client sees it: every call has a deadline and ends when the machine does.

#[cfg(test)]
pub(crate) mod testing;

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use ravelin_proto::agent::agent_client::AgentClient;
use ravelin_proto::agent::{ProcessRequest, SetClockRequest, WaitResponse};
use ravelin_proto::{CONTROL_PORT, MAX_MESSAGE_BYTES, MAX_REPLY_BYTES};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::error::{TaskError, bounded};
use crate::machine::{Exit, Machine, MachineError};
use crate::sync::lock;

/// Longest message of the agent's that is passed on, in bytes.
const MAX_MESSAGE: usize = 1024;
/// Pause before a wait whose connection broke is tried again.
const WAIT_PAUSE: Duration = Duration::from_millis(100);
/// How often a wait is tried again while the machine runs.
const WAIT_ATTEMPTS: u32 = 20;
/// Time between the break of a connection and the end of the machine's process, when that is why it broke.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent's answer.
    #[error("cannot {what} in the pod's machine: {message}")]
    Refused {
        /// What was attempted.
        what: &'static str,
        /// gRPC's code.
        code: Code,
        /// The agent's words, bounded.
        message: String,
    },
    /// No answer.
    #[error("cannot {what}: the pod's machine did not answer within {} s", .after.as_secs())]
    Timeout {
        /// What was attempted.
        what: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// The machine is gone.
    #[error("cannot {what}: the pod's machine has ended ({exit})")]
    Ended {
        /// What was attempted.
        what: &'static str,
        /// How it ended.
        exit: Exit,
    },
}

impl AgentError {
    /// The agent's code, if it answered.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl From<AgentError> for TaskError {
    fn from(error: AgentError) -> Self {
        let message = error.to_string();
        match error.code() {
            Some(Code::NotFound) => Self::NotFound(message),
            Some(Code::AlreadyExists) => Self::AlreadyExists(message),
            Some(Code::FailedPrecondition) => Self::FailedPrecondition(message),
            Some(Code::InvalidArgument) => Self::InvalidArgument(message),
            _ => Self::Failed(message),
        }
    }
}

/// A connection to the agent; clones share it.
#[derive(Debug, Clone)]
pub struct Agent {
    machine: Machine,
    calls: AgentClient<Channel>,
    /// Waits last as long as processes do; they have a connection of their own, so that no number of them can use up
    /// the streams that calls need.
    waits: AgentClient<Channel>,
    deadline: Duration,
}

impl Agent {
    /// Connects to the agent of a machine that was just booted: tries for `patience`.
    ///
    /// # Errors
    /// When the machine ends or the agent does not come up.
    pub async fn connect(
        machine: &Machine,
        patience: Duration,
        deadline: Duration,
    ) -> Result<Self, MachineError> {
        let first = machine.connect_when_ready(CONTROL_PORT, patience).await?;
        Ok(Self {
            machine: machine.clone(),
            calls: client(machine, Some(first)),
            waits: client(machine, None),
            deadline,
        })
    }

    /// The machine it runs in.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The generated client, for [`Agent::call`].
    #[must_use]
    pub fn client(&self) -> AgentClient<Channel> {
        self.calls.clone()
    }

    /// The generated client on the connection for long calls.
    #[must_use]
    pub fn long_client(&self) -> AgentClient<Channel> {
        self.waits.clone()
    }

    /// A message with the usual deadline beside it (`grpc-timeout`): for calls whose work the agent gives up by then.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    /// Makes a call within the usual deadline: `agent.call("kill a process", client.kill(request))`.
    ///
    /// # Errors
    /// The agent's refusal, its silence, or the machine's end.
    pub async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AgentError> {
        self.call_within(what, self.deadline, call).await
    }

    /// [`Agent::call`] with another deadline.
    ///
    /// # Errors
    /// As [`Agent::call`].
    pub async fn call_within<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AgentError> {
        self.call_until(what, deadline, tokio::time::sleep(deadline), call).await
    }

    /// `patience` is over `after` so much time.
    async fn call_until<T>(
        &self,
        what: &'static str,
        after: Duration,
        patience: impl Future<Output = ()>,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AgentError> {
        tokio::select! {
            biased;
            answer = call => match answer {
                Ok(response) => Ok(response.into_inner()),
                Err(status) => Err(self.refused(what, &status).await),
            },
            exit = self.machine.wait() => Err(AgentError::Ended { what, exit }),
            () = patience => Err(AgentError::Timeout { what, after }),
        }
    }

    async fn refused(&self, what: &'static str, status: &Status) -> AgentError {
        // A broken connection, which no guest's answer tells of, is how the machine's end shows first.
        let broken = std::error::Error::source(status).is_some();
        let grace = if broken { HANG_UP_GRACE } else { Duration::ZERO };
        match tokio::time::timeout(grace, self.machine.wait()).await {
            Ok(exit) => AgentError::Ended { what, exit },
            Err(_) => AgentError::Refused {
                what,
                code: status.code(),
                message: bounded(status.message(), MAX_MESSAGE),
            },
        }
    }

    /// Tells the guest the time, which is also the question whether it lives.
    ///
    /// # Errors
    /// As [`Agent::call`], with the deadline `patience` as [`Machine::had_time`] counts it.
    pub async fn tell_time(&self, patience: Duration) -> Result<(), AgentError> {
        let request = SetClockRequest { unix_nanos: unix_nanos() };
        let mut client = self.client();
        let asked = client.set_clock(request);
        self.call_until("set the clock", patience, self.machine.had_time(patience), asked).await.map(drop)
    }

    /// Time that a call has, unless its caller says otherwise.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Waits for a process's end, however long it takes.
    ///
    /// # Errors
    /// When the agent does not know the process, or the machine ends.
    pub async fn wait(&self, container_id: &str, exec_id: &str) -> Result<WaitResponse, AgentError> {
        const WHAT: &str = "wait for a process";
        let mut attempts = 0;
        loop {
            let request =
                ProcessRequest { container_id: container_id.to_owned(), exec_id: exec_id.to_owned() };
            let mut client = self.waits.clone();
            let status = tokio::select! {
                biased;
                answer = client.wait(request) => match answer {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) => status,
                },
                exit = self.machine.wait() => return Err(AgentError::Ended { what: WHAT, exit }),
            };
            attempts += 1;
            let known =
                !matches!(status.code(), Code::NotFound | Code::InvalidArgument | Code::Unimplemented);
            if !known || attempts >= WAIT_ATTEMPTS {
                return Err(self.refused(WHAT, &status).await);
            }
            tokio::time::sleep(WAIT_PAUSE).await;
        }
    }
}

/// The host's wall clock, in nanoseconds since 1970.
#[must_use]
pub fn unix_nanos() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or_default()
}

fn client(machine: &Machine, first: Option<UnixStream>) -> AgentClient<Channel> {
    let machine = machine.clone();
    let first = Arc::new(Mutex::new(first));
    let connector = tower::service_fn(move |_: Uri| {
        let machine = machine.clone();
        let first = lock(&first).take();
        async move {
            match first {
                Some(stream) => Ok(stream),
                None => machine.connect(CONTROL_PORT).await.map_err(io::Error::other),
            }
            .map(TokioIo::new)
        }
    });
    // The name goes nowhere: the connector has one place to connect to.
    let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(connector);
    AgentClient::new(channel)
        .max_decoding_message_size(MAX_REPLY_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use ravelin_proto::agent::{ContainerRequest, Empty};

    use super::testing::Fake;
    use super::*;
    use crate::machine::testing;

    #[tokio::test]
    async fn a_message_carries_the_time_that_its_call_has() {
        let (machine, control) = testing::machine();
        testing::connect_to_nobody(control);
        let soon = Duration::from_secs(10);
        let agent = Agent::connect(&machine, soon, Duration::from_millis(70_500)).await.unwrap();
        let request = agent.request(());
        assert_eq!(request.metadata().get("grpc-timeout").unwrap(), "70500000u");
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_an_error_and_the_next_is_heard() {
        let (machine, control) = testing::machine();
        let fake = Fake::default();
        fake.serve(control);
        let soon = Duration::from_secs(20);
        let agent = Agent::connect(&machine, soon, soon).await.unwrap();
        let ask = async || {
            let stats = agent.client().stats(agent.request(ContainerRequest::default())).await;
            stats.map(|stats| stats.into_inner().io.len())
        };
        // Two bytes each: the message is as long as it may be, and a little longer.
        for (count, heard) in [(MAX_REPLY_BYTES / 2, true), (MAX_REPLY_BYTES / 2 + 1, false), (1, true)] {
            fake.count_disks(count);
            match ask().await {
                Ok(found) => assert!(heard && found == count, "{count}: {found}"),
                Err(status) => assert!(!heard && status.code() == Code::OutOfRange, "{count}: {status}"),
            }
        }
    }

    /// The machine's process closes its sockets a moment before it has ended.
    #[tokio::test]
    async fn a_connection_that_breaks_because_the_machine_ends_says_so() {
        let (machine, control) = testing::machine();
        let mut connections = testing::connections(control);
        let soon = Duration::from_secs(20);
        let agent = Agent::connect(&machine, soon, soon).await.unwrap();
        let mut client = agent.client();
        let ending = async {
            drop(connections.recv().await);
            tokio::time::sleep(HANG_UP_GRACE / 4).await;
            machine.kill();
        };
        let (called, ()) = tokio::join!(agent.call("end the guest", client.shutdown(Empty {})), ending);
        assert!(matches!(called, Err(AgentError::Ended { exit: Exit::Signal(9), .. })), "{called:?}");
    }
}
