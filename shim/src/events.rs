//! Events to containerd, in order, over its ttrpc socket.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{MessageDyn, MessageField};
use tokio::sync::Notify;
use ttrpc::Code;

use crate::sync::lock;

/// Most events kept for a containerd that is away; then the oldest are dropped.
const MAX_QUEUED: usize = 2048;
/// Time containerd has to take one event.
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two attempts, also to reach a containerd that is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often an event that containerd has not taken is sent again. A containerd that cannot be reached is waited for.
const RETRIES: u32 = 5;

/// Takes events and sends them in the background.
#[derive(Debug, Clone)]
pub struct Publisher {
    queue: Arc<Queue>,
    namespace: Arc<str>,
}

#[derive(Debug, Default)]
struct Queue {
    events: Mutex<VecDeque<Envelope>>,
    filled: Notify,
    emptied: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Envelope>> {
        lock(&self.events)
    }
}

impl Publisher {
    /// Starts publishing to the ttrpc socket at `address`, with or without `unix://`. Without an address events are
    /// dropped. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(address: Option<String>, namespace: &str) -> Self {
        let queue = Arc::<Queue>::default();
        if let Some(address) = address.filter(|address| !address.is_empty()) {
            let address = if address.contains("://") { address } else { format!("unix://{address}") };
            tokio::spawn(forward(Arc::clone(&queue), address));
        } else {
            tracing::warn!("containerd gave no address for events (TTRPC_ADDRESS): none are published");
        }
        Self { queue, namespace: namespace.into() }
    }

    /// Queues an event; never waits.
    pub fn publish(&self, event: &dyn MessageDyn) {
        let name = event.descriptor_dyn().full_name().to_owned();
        let mut any = Any::new();
        // containerd's own form has no `type.googleapis.com/` in front.
        any.type_url.clone_from(&name);
        match event.write_to_bytes_dyn() {
            Ok(bytes) => any.value = bytes,
            Err(error) => {
                tracing::warn!("cannot encode an event of type {name}: {error}");
                return;
            }
        }
        let mut envelope = Envelope::new();
        envelope.timestamp = MessageField::some(timestamp(SystemTime::now()));
        envelope.namespace = self.namespace.to_string();
        envelope.topic = topic(&name).to_owned();
        envelope.event = MessageField::some(any);
        let mut events = self.queue.lock();
        if events.len() >= MAX_QUEUED {
            events.pop_front();
        }
        events.push_back(envelope);
        self.queue.filled.notify_one();
    }

    /// The topics of the events that containerd has not taken yet.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> Vec<String> {
        self.queue.lock().iter().map(|event| event.topic.clone()).collect()
    }

    /// The processes of whose ends containerd has not been told yet, by their ids.
    #[cfg(test)]
    pub(crate) fn exits(&self) -> Vec<String> {
        use containerd_shim_protos::events::task::TaskExit;
        let exits = self
            .queue
            .lock()
            .iter()
            .filter(|event| event.topic == topics::TASK_EXIT_EVENT_TOPIC)
            .cloned()
            .collect::<Vec<_>>();
        let id = |event: Envelope| -> String {
            <TaskExit as protobuf::Message>::parse_from_bytes(&event.event.value).unwrap_or_default().id
        };
        exits.into_iter().map(id).collect()
    }

    /// Waits until every event is sent, or `patience` is over.
    pub async fn flush(&self, patience: Duration) {
        let empty = async {
            loop {
                let emptied = self.queue.emptied.notified();
                if self.queue.lock().is_empty() {
                    return;
                }
                emptied.await;
            }
        };
        let _ = tokio::time::timeout(patience, empty).await;
    }
}

async fn forward(queue: Arc<Queue>, address: String) {
    let mut client: Option<EventsClient> = None;
    let mut attempts = 0;
    loop {
        let Some(envelope) = queue.lock().front().cloned() else {
            queue.emptied.notify_waiters();
            queue.filled.notified().await;
            continue;
        };
        let Some(connected) = connect(&mut client, &address).await else {
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        };
        if let Err(failed) = send(connected, envelope.clone()).await {
            attempts += 1;
            if failed.may_pass && attempts <= RETRIES {
                tracing::debug!("containerd has not taken an event {}: {}", envelope.topic, failed.why);
                if failed.is_broken {
                    client = None;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            tracing::warn!(
                "containerd does not take an event {}, which is dropped: {}",
                envelope.topic,
                failed.why
            );
        }
        attempts = 0;
        let mut events = queue.lock();
        // The queue may have overflowed meanwhile.
        if events.front().is_some_and(|front| front.timestamp == envelope.timestamp) {
            events.pop_front();
        }
    }
}

/// An event that was sent and not taken.
struct NotTaken {
    why: String,
    /// Another attempt may do better.
    may_pass: bool,
    /// The connection is of no use any more.
    is_broken: bool,
}

/// The connection to containerd, made anew if there is none.
async fn connect<'a>(client: &'a mut Option<EventsClient>, address: &str) -> Option<&'a EventsClient> {
    if client.is_none() {
        match Client::connect(address).await {
            Ok(connected) => *client = Some(EventsClient::new(connected)),
            Err(error) => tracing::debug!("containerd is not there to take an event: {error}"),
        }
    }
    client.as_ref()
}

/// Sends one event.
async fn send(client: &EventsClient, envelope: Envelope) -> Result<(), NotTaken> {
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    let timeout = i64::try_from(FORWARD_DEADLINE.as_nanos()).unwrap_or(i64::MAX);
    let sent = client.forward(ttrpc::context::with_timeout(timeout), &request);
    let broken = |why| NotTaken { why, may_pass: true, is_broken: true };
    match tokio::time::timeout(FORWARD_DEADLINE, sent).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(ttrpc::Error::RpcStatus(status))) => {
            // The same event would get the same answer.
            let final_word = matches!(status.code(), Code::INVALID_ARGUMENT | Code::UNIMPLEMENTED);
            Err(NotTaken { why: status.message, may_pass: !final_word, is_broken: false })
        }
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(_) => Err(broken(format!("no answer within {} s", FORWARD_DEADLINE.as_secs()))),
    }
}

fn topic(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "TaskCreate" => topics::TASK_CREATE_EVENT_TOPIC,
        "TaskStart" => topics::TASK_START_EVENT_TOPIC,
        "TaskOOM" => topics::TASK_OOM_EVENT_TOPIC,
        "TaskExit" => topics::TASK_EXIT_EVENT_TOPIC,
        "TaskDelete" => topics::TASK_DELETE_EVENT_TOPIC,
        "TaskExecAdded" => topics::TASK_EXEC_ADDED_EVENT_TOPIC,
        "TaskExecStarted" => topics::TASK_EXEC_STARTED_EVENT_TOPIC,
        "TaskPaused" => topics::TASK_PAUSED_EVENT_TOPIC,
        "TaskResumed" => topics::TASK_RESUMED_EVENT_TOPIC,
        _ => topics::TASK_UNKNOWN_TOPIC,
    }
}

/// A point in time as protobuf has it.
#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    timestamp.nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    timestamp
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
    use containerd_shim_protos::shim_async::{Events, create_events};
    use tokio::sync::mpsc;

    /// Takes every event, and gives the next of the answers that are left.
    struct Sink(mpsc::UnboundedSender<Envelope>, Mutex<VecDeque<Code>>);

    fn serve(
        socket: &std::path::Path,
        answers: &[Code],
    ) -> (ttrpc::r#async::Server, mpsc::UnboundedReceiver<Envelope>) {
        let (sender, received) = mpsc::unbounded_channel();
        let sink = Sink(sender, Mutex::new(answers.iter().copied().collect()));
        let server = ttrpc::r#async::Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .unwrap()
            .register_service(create_events(Arc::new(sink)));
        (server, received)
    }

    #[async_trait::async_trait]
    impl Events for Sink {
        async fn forward(
            &self,
            _context: &ttrpc::r#async::TtrpcContext,
            request: ForwardRequest,
        ) -> ttrpc::Result<protobuf::well_known_types::empty::Empty> {
            let _ = self.0.send(request.envelope.unwrap_or_default());
            if let Some(code) = lock(&self.1).pop_front().filter(|code| *code != Code::OK) {
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "no")));
            }
            Ok(protobuf::well_known_types::empty::Empty::new())
        }
    }

    #[tokio::test]
    async fn events_wait_for_a_containerd_that_is_away_and_arrive_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let publisher = Publisher::start(Some(socket.display().to_string()), "k8s.io");
        for status in 0..5 {
            let mut exit = TaskExit::new();
            exit.exit_status = status;
            publisher.publish(&exit);
        }
        publisher.publish(&TaskOOM::new());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (mut server, mut received) = serve(&socket, &[]);
        server.start().await.unwrap();
        publisher.flush(Duration::from_secs(10)).await;
        for status in 0..5 {
            let envelope = received.recv().await.unwrap();
            assert_eq!((envelope.topic.as_str(), envelope.namespace.as_str()), ("/tasks/exit", "k8s.io"));
            assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
            let exit: TaskExit = protobuf::Message::parse_from_bytes(&envelope.event.value).unwrap();
            assert_eq!(exit.exit_status, status);
        }
        assert_eq!(received.recv().await.unwrap().topic, "/tasks/oom");
    }

    #[tokio::test]
    async fn an_event_that_is_not_taken_is_sent_again_a_few_times_and_a_wrong_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        // Two that pass at last, the first at the last attempt; two that never would; one that gets no good answer.
        let mut answers = [Code::UNAVAILABLE; RETRIES as usize].to_vec();
        answers.extend([Code::OK, Code::UNKNOWN, Code::OK, Code::INVALID_ARGUMENT, Code::UNIMPLEMENTED]);
        answers.extend([Code::INTERNAL; 1 + RETRIES as usize]);
        let (mut server, mut received) = serve(&socket, &answers);
        server.start().await.unwrap();
        let publisher = Publisher::start(Some(socket.display().to_string()), "k8s.io");
        for status in 0..6 {
            let mut exit = TaskExit::new();
            exit.exit_status = status;
            publisher.publish(&exit);
        }
        publisher.flush(Duration::from_secs(30)).await;
        let mut sent = Vec::new();
        while let Ok(envelope) = received.try_recv() {
            let exit: TaskExit = protobuf::Message::parse_from_bytes(&envelope.event.value).unwrap();
            sent.push(exit.exit_status);
        }
        assert_eq!(sent, [0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4, 4, 4, 5]);
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let publisher = Publisher::start(None, "k8s.io");
        for _ in 0..MAX_QUEUED + 10 {
            publisher.publish(&TaskOOM::new());
        }
        assert_eq!(publisher.queue.lock().len(), MAX_QUEUED);
    }
}
