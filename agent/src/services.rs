//! What the agent does for every container: making processes, carrying their streams, seeing them end, telling the host.

use std::io;
use std::sync::{Arc, OnceLock};

use ravelin_proto::agent as api;
use tokio::sync::{Semaphore, SemaphorePermit, broadcast};
use tokio::time::Instant;

use crate::apparmor::Profiles;
use crate::error::{AgentError, Result};
use crate::namespaces::Namespaces;
use crate::oom::OomWatch;
use crate::reaper::{Exit, Reaper};
use crate::spawner::Spawner;
use crate::stdio::Registry;

/// Events kept for a listener that lags.
const EVENT_BACKLOG: usize = 1024;

/// Most processes that are made at a time. A maker may hang, in a file system for one, and holds a thread meanwhile: others are
/// left for what must go on, signals above all.
const MAKERS: usize = 64;

/// The services.
#[derive(Debug)]
pub struct Services {
    /// Makes processes.
    pub spawner: Spawner,
    makers: Semaphore,
    /// Connections waiting to become standard streams.
    pub streams: Arc<Registry>,
    /// Sees processes end.
    pub reaper: Reaper,
    /// Sees the OOM killer.
    pub oom: OomWatch,
    /// AppArmor's profiles in the guest's kernel.
    pub profiles: Profiles,
    namespaces: OnceLock<Arc<Namespaces>>,
    events: broadcast::Sender<api::Event>,
}

impl Services {
    /// Services over a running spawner and reaper. Must be called inside the runtime.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a notification descriptor.
    pub fn new(spawner: Spawner, reaper: Reaper) -> io::Result<Self> {
        let events = broadcast::Sender::new(EVENT_BACKLOG);
        let oom = OomWatch::start(events.clone())?;
        Ok(Self {
            spawner,
            makers: Semaphore::new(MAKERS),
            streams: Arc::default(),
            reaper,
            oom,
            profiles: Profiles::default(),
            namespaces: OnceLock::new(),
            events,
        })
    }

    /// The namespaces of a pod that has a user namespace of its own.
    #[must_use]
    pub fn namespaces(&self) -> Option<&Arc<Namespaces>> {
        self.namespaces.get()
    }

    /// Notes the pod's namespaces, before there is anything in them.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`] the second time.
    pub fn set_namespaces(&self, namespaces: Namespaces) -> Result<()> {
        let set = self.namespaces.set(Arc::new(namespaces));
        set.map_err(|_| AgentError::WrongState("the pod has its namespaces already".to_owned()))
    }

    /// Leave to make a process, held until it is made.
    ///
    /// # Errors
    ///
    /// When there is none by `deadline`: nobody would hear of the process any more.
    pub async fn leave_to_make(&self, deadline: Instant) -> Result<SemaphorePermit<'_>> {
        let begin = Instant::now();
        match tokio::time::timeout_at(deadline, self.makers.acquire()).await {
            Ok(Ok(leave)) => Ok(leave),
            _ => Err(AgentError::Failed(format!(
                "{MAKERS} processes are being made and none of them is done after {} s",
                begin.elapsed().as_secs()
            ))),
        }
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<api::Event> {
        self.events.subscribe()
    }

    /// Tells listeners that a process ended.
    pub fn tell_exit(&self, container: &str, exec: &str, exit: Exit) {
        let exit = api::ExitEvent {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            exit_status: exit.status,
            exited_at_unix_nanos: exit.at_unix_nanos,
        };
        // Nobody may be listening.
        let _ = self.events.send(api::Event { kind: Some(api::event::Kind::Exit(exit)) });
    }
}
