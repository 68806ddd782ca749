//! containerd's events, as they come.

use ravelin_tests::{Run, Session, eventually, images};

/// A client that listens.
#[derive(Debug)]
pub struct Events(Session);

impl Events {
    /// Listens from now on: returns once an event was heard.
    #[track_caller]
    pub fn listen() -> Self {
        let events = Self(Session::pipes(&Run::ctr().arg("events")));
        eventually("containerd's events are heard", || {
            // A label's change is an event and nothing else.
            let label = format!("faults={}", std::process::id());
            Run::ctr().args(["images", "label", images::BUSYBOX, &label]).run();
            events.0.heard().contains("/images/update").then_some(())
        });
        events
    }

    /// Whether an event of this topic tells of the container, or the sandbox, `id`.
    pub fn heard(&self, topic: &str, id: &str) -> bool {
        let heard = self.0.heard();
        let mut lines = heard.lines().filter(|line| line.contains(topic));
        // An exec's exit names its container too; its own name is another then.
        lines.any(|line| line.contains(id) && (topic != "/tasks/exit" || line.matches(id).count() > 1))
    }
}
