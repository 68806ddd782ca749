//! The one owner of the end of a pod's machine: who may order it, how it is brought about, why, and by when.
//!
//! Everybody else sends an [`Order`]. A guest that is merely slow or silent is reported and left alone, as a node that
//! is slow would be: only after somebody has asked for an end do deadlines count. Then a guest that does not answer
//! loses its machine, because containerd's stop ends containers first and gives up on the first that does not obey.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ravelin_proto::agent::Empty;
use tokio::sync::watch;

use crate::agent::{Agent, AgentError};
use crate::error::chain;
use crate::machine::{Exit, Machine};

/// Every deadline on the way to an end. Those that cost a machine its life are counted in the time that it had processors
/// ([`Machine::had_time`]): a node under load is no dead guest.
pub mod deadline {
    use std::time::Duration;

    /// A guest that is asked to end: for its answer, and again for its end.
    pub const ASK: Duration = Duration::from_secs(2);
    /// A machine's process that is told to stop: for its answer, and again for its end. Then SIGKILL.
    pub const STOP: Duration = Duration::from_secs(1);
    /// The removal of one thing from the host.
    pub const REMOVAL: Duration = Duration::from_secs(10);
    /// The guest's answer to a signal. A SIGKILL that has none by then ends the machine; another signal counts as sent.
    pub const SIGNAL: Duration = Duration::from_secs(4);
    /// Pause between the questions whether the guest is alive, while the end of a killed process is awaited.
    pub const PROBE_PAUSE: Duration = Duration::from_secs(2);
    /// The guest's answer to such a question.
    pub const PROBE: Duration = Duration::from_secs(8);
    /// The end of a process whose SIGKILL a living guest has acknowledged: it may have to wait for a disk.
    pub const KILLED: Duration = Duration::from_secs(20);
    /// The guest's answer to a question for counters; then the last ones are given.
    pub const COUNTERS: Duration = Duration::from_millis(800);
    /// A guest's silence until it is reported.
    pub const SILENCE: Duration = Duration::from_secs(10);
    /// A creation that was given up: for the guest to come to its end with it, which it does by its own deadline soon after
    /// ours.
    pub const GIVEN_UP: Duration = Duration::from_secs(60);
    /// Pause between the looks at whether it has.
    pub const GIVEN_UP_PAUSE: Duration = Duration::from_millis(500);
    /// A node that goes down: for the pod's containers to end after SIGTERM.
    pub const NODE_DOWN: Duration = Duration::from_secs(10);
    /// A guest that is to give memory up, or to take it back: without any coming or going, and in all.
    pub const BALLOON_STALL: Duration = Duration::from_secs(5);
    /// See [`BALLOON_STALL`].
    pub const BALLOON: Duration = Duration::from_secs(60);
    /// What is being made and is to go: containerd waits five seconds for that.
    pub const UNDO: Duration = Duration::from_secs(4);
}

/// A guest that can be asked to end.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub agent: Agent,
    /// How long it may take to write out its volumes, if it has any that outlive it. They are written out before power is cut.
    pub volumes: Option<Duration>,
}

/// Why a machine is ended that no longer takes part in the conversation.
pub(super) const HUNG_UP: &str = "its process does not keep to the control protocol";

/// How a machine is ended, from the gentlest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// The guest is asked to end; then as [`How::Stop`].
    Ask,
    /// The machine's process is told to stop, as if power were cut, after a guest that has volumes was asked to end; then as
    /// [`How::Cut`].
    Stop,
    /// The machine's process is killed.
    Cut,
}

/// An order to end the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// How.
    pub how: How,
    /// The sandbox's exit status; [`super::LOST`] if the end was not wanted by who owns the pod.
    pub status: u32,
    /// Why, for the log: "the guest did not ...".
    pub why: &'static str,
}

/// The hand that ends a machine; clones are the same hand.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sandbox_id: String,
    orders: watch::Sender<Option<Order>>,
    /// The whole machine stands still because somebody wants it to.
    frozen: AtomicBool,
    /// The guest left a question unanswered, and nothing has been heard since.
    silent: AtomicBool,
}

impl Supervisor {
    /// For the sandbox of this id.
    #[must_use]
    pub fn new(sandbox_id: &str) -> Self {
        Self(Arc::new(Inner {
            sandbox_id: sandbox_id.to_owned(),
            orders: watch::Sender::new(None),
            frozen: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        }))
    }

    /// Orders the machine's end; returns at once. A gentler order than the one given before changes nothing.
    pub fn order(&self, order: Order) {
        let changed = self.0.orders.send_if_modified(|current| {
            let old = *current;
            match old {
                Some(old) if old.how > order.how => return false,
                // What was asked for stays the reason of what has to be forced.
                Some(old) if order.status == super::LOST => *current = Some(Order { how: order.how, ..old }),
                _ => *current = Some(order),
            }
            *current != old
        });
        if changed && order.status == super::LOST {
            tracing::error!(sandbox = self.0.sandbox_id, "the pod's machine is ended: {}", order.why);
        }
    }

    /// Orders the end of a machine whose guest did not do what it had to: it is killed.
    pub fn cut(&self, why: &'static str) {
        self.order(Order { how: How::Cut, status: super::LOST, why });
    }

    /// The order in force.
    #[must_use]
    pub fn ordered(&self) -> Option<Order> {
        *self.0.orders.borrow()
    }

    /// Says that the whole machine stands still on purpose, or goes on.
    pub(super) fn set_frozen(&self, frozen: bool) {
        self.0.frozen.store(frozen, Ordering::Release);
    }

    /// Whether an answer of the guest can be expected soon.
    #[must_use]
    pub fn expects_answers(&self) -> bool {
        !self.0.frozen.load(Ordering::Acquire) && !self.0.silent.load(Ordering::Acquire)
    }

    /// Says that the guest left a question unanswered. From then on it is asked whether it lives, one question at a time,
    /// until it answers or its machine ends; a long silence is reported.
    pub fn missed(&self, agent: &Agent) {
        if self.0.frozen.load(Ordering::Acquire) || self.0.silent.swap(true, Ordering::AcqRel) {
            return;
        }
        let (supervisor, agent) = (self.clone(), agent.clone());
        tokio::spawn(async move { supervisor.listen(&agent).await });
    }

    async fn listen(&self, agent: &Agent) {
        let sandbox = &self.0.sandbox_id;
        let mut reported = false;
        let mut patience = deadline::SILENCE;
        while let Err(error @ AgentError::Timeout { .. }) = agent.tell_time(patience).await {
            if !reported && !self.0.frozen.load(Ordering::Acquire) {
                tracing::error!(
                    sandbox,
                    "the pod's guest is silent; it is left alone until its end is asked for: {error}"
                );
                reported = true;
            }
            patience = Duration::from_secs(60);
        }
        self.0.silent.store(false, Ordering::Release);
        if reported && agent.machine().exited().is_none() {
            tracing::info!(sandbox, "the pod's guest answers again");
        }
    }

    /// Sees to it that a process that a living guest was told to kill ends, or that its machine does.
    pub async fn see_to_the_end_of<T>(&self, agent: &Agent, ended: impl Future<Output = T>) {
        let silence = async {
            loop {
                tokio::time::sleep(deadline::PROBE_PAUSE).await;
                if let Err(AgentError::Timeout { .. }) = agent.tell_time(deadline::PROBE).await {
                    return "the guest is silent since a process was killed";
                }
            }
        };
        let why = tokio::select! {
            _ = ended => return,
            _ = agent.machine().wait() => return,
            why = silence => why,
            () = agent.machine().had_time(deadline::KILLED) => "a process does not end after SIGKILL",
        };
        self.cut(why);
    }

    /// Asks the guest to end, which kills its containers and writes its volumes out.
    async fn ask(&self, machine: &Machine, guest: &Guest) {
        let mut client = guest.agent.client();
        let patience = guest.volumes.unwrap_or(deadline::ASK);
        // The guest may be gone before its answer is here.
        let answer = guest.agent.call_within("end the guest", patience, client.shutdown(Empty {})).await;
        if tokio::time::timeout(deadline::ASK, machine.wait()).await.is_ok() {
            return;
        }
        let why = answer.map_or_else(|error| chain(&error), |_| "the guest goes on".to_owned());
        self.not_written_out(guest, &why);
    }

    /// Says that a guest's volumes may lack what its programs had not synced.
    fn not_written_out(&self, guest: &Guest, why: &str) {
        if guest.volumes.is_some() {
            tracing::warn!(
                sandbox = self.0.sandbox_id,
                "the pod's volumes were not written out, and may lack what its programs had not synced (sync_seconds in [timeouts] of ravelin.toml is how long a guest may take): {why}"
            );
        }
    }

    /// Carries out the orders until the machine has ended. `guest` gives the guest, once there is one.
    pub(super) async fn oversee(&self, machine: &Machine, guest: impl Fn() -> Option<Guest>) -> Exit {
        let mut orders = self.0.orders.subscribe();
        let mut how = tokio::select! {
            biased;
            exit = machine.wait() => return exit,
            how = stronger(&mut orders, None) => how,
            () = machine.hung_up() => {
                self.cut(HUNG_UP);
                How::Cut
            }
        };
        let mut asked = false;
        loop {
            let ask = guest().filter(|guest| !asked && (how == How::Ask || guest.volumes.is_some()));
            asked = true;
            let step = async {
                match how {
                    How::Ask | How::Stop => {
                        if let Some(guest) = &ask {
                            self.ask(machine, guest).await;
                        }
                        if machine.stop(deadline::STOP).await.is_ok() {
                            let _ = tokio::time::timeout(deadline::STOP, machine.wait()).await;
                        }
                        How::Cut
                    }
                    How::Cut => {
                        machine.kill();
                        tokio::time::sleep(deadline::REMOVAL).await;
                        let sandbox = &self.0.sandbox_id;
                        tracing::error!(
                            sandbox,
                            "the machine's process {} does not end after SIGKILL",
                            machine.pid()
                        );
                        How::Cut
                    }
                }
            };
            how = tokio::select! {
                biased;
                exit = machine.wait() => return exit,
                stronger = stronger(&mut orders, Some(how)) => {
                    if let Some(guest) = &ask {
                        self.not_written_out(guest, "it was ended before");
                    }
                    stronger
                }
                how = step => how,
            };
        }
    }
}

/// Waits for an order that goes further than `than`.
async fn stronger(orders: &mut watch::Receiver<Option<Order>>, than: Option<How>) -> How {
    loop {
        match *orders.borrow_and_update() {
            Some(order) if than.is_none_or(|than| order.how > than) => return order.how,
            _ => {}
        }
        if orders.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
