//! The steps of a pod's life, each an event that can be waited for, from `start` to removed.

use super::events::Events;
use super::kubelet::{Kubelet, Op};
use super::watch::{Process, Watch};

/// What is taken away beforehand, so that it has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// The template of scratch disks.
    Scratch,
    /// The images of layers.
    Layers,
}

/// A step.
#[derive(Debug)]
pub struct Step {
    pub name: &'static str,
    /// What the kubelet is asking containerd for meanwhile, or has asked for last.
    pub op: Op,
    /// Whether the step comes when containerd has answered.
    pub answered: bool,
    pub fresh: Option<Fresh>,
    /// Whether it is there.
    pub has_come: fn(&Scene<'_>) -> bool,
}

/// Where one looks for events.
#[derive(Debug)]
pub struct Scene<'a> {
    pub kubelet: &'a Kubelet,
    pub watch: &'a Watch,
    pub events: &'a Events,
    /// What the client that asks has said so far.
    pub said: String,
}

impl Scene<'_> {
    fn is_there(&self, process: Process) -> bool {
        self.watch.find(process).is_some()
    }

    fn told_of_container(&self, topic: &str) -> bool {
        self.kubelet.container.as_ref().is_some_and(|id| self.events.heard(topic, id))
    }

    fn told_of_sandbox(&self, topic: &str) -> bool {
        self.kubelet.sandbox.as_ref().is_some_and(|id| self.events.heard(topic, id))
    }
}

/// All of them, in their order.
pub const STEPS: [Step; 19] = [
    during("the shim's start", Op::RunPod, |scene| scene.is_there(Process::Start)),
    during("the shim begins", Op::RunPod, |scene| scene.is_there(Process::Shim)),
    Step {
        fresh: Some(Fresh::Scratch),
        ..during("the scratch disk's template is made", Op::RunPod, |scene| scene.is_there(Process::Mkfs))
    },
    during("the machine's process begins", Op::RunPod, |scene| scene.is_there(Process::Machine)),
    during("the machine boots", Op::RunPod, |scene| scene.watch.boots()),
    after("the pod runs", Op::RunPod, |_| true),
    after("the container is known to containerd", Op::Create, |_| true),
    Step {
        fresh: Some(Fresh::Layers),
        ..during("a layer's image is made", Op::Start, |scene| scene.is_there(Process::Mkfs))
    },
    during("the machine has the layers", Op::Start, |scene| scene.watch.has_layers()),
    during("the container is created", Op::Start, |scene| scene.told_of_container("/tasks/create")),
    after("the container runs", Op::Start, |scene| scene.kubelet.says("ready")),
    during("an exec is made", Op::Exec, |scene| scene.told_of_container("/tasks/exec-added")),
    during("an exec runs", Op::Exec, |scene| scene.said.contains("in the exec")),
    during("the container is asked to end", Op::Stop, |scene| scene.kubelet.says("asked")),
    during("the container's end is told", Op::Remove, |scene| scene.told_of_container("/tasks/exit")),
    during("the pod is stopped", Op::StopPod, |scene| scene.told_of_container("/tasks/exit")),
    during("the pod's end is told", Op::StopPod, |scene| scene.told_of_sandbox("/tasks/exit")),
    during("the pod is removed", Op::RemovePod, |scene| scene.told_of_sandbox("/containers/delete")),
    after("the pod is gone", Op::RemovePod, |_| true),
];

const fn during(name: &'static str, op: Op, has_come: fn(&Scene<'_>) -> bool) -> Step {
    Step { name, op, answered: false, fresh: None, has_come }
}

const fn after(name: &'static str, op: Op, has_come: fn(&Scene<'_>) -> bool) -> Step {
    Step { name, op, answered: true, fresh: None, has_come }
}
