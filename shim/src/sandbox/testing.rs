//! Pods for tests, whose machine is a process that sleeps.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use ravelin_policy::Size;

use super::plan::{self, Plan};
use super::supervisor::Supervisor;
use super::{Api, Pod, Sandbox};
use crate::agent::{Agent, testing::Fake};
use crate::config::Config;
use crate::machine::testing;
use crate::process::{Life, Phase};

/// A pod whose machine runs and whose agent takes connections and never says a word.
pub async fn silent_pod() -> Pod {
    pod(testing::connect_to_nobody).await
}

/// A pod whose agent is `fake`.
pub async fn pod_of(fake: &Fake) -> Pod {
    pod(|control| fake.serve(control)).await
}

async fn pod(serve: impl FnOnce(OwnedFd)) -> Pod {
    let (machine, control) = testing::machine();
    serve(control);
    let agent = Agent::connect(&machine, Duration::from_secs(10), Duration::from_secs(60)).await.unwrap();
    let config = Config::default();
    Pod::new(&plan::tests::plan(&config), &config, agent, Supervisor::new("s"))
}

/// A running sandbox of this size around a pod. It has nothing on the host but the machine: no cgroup, for one.
pub fn sandbox(pod: &Arc<Pod>, size: Size) -> Arc<Sandbox> {
    let plan = Plan { size, ..plan::tests::plan(&Config::default()) };
    let life = Life::default();
    life.set(Phase::Running);
    Arc::new(Sandbox {
        id: plan.sandbox_id.clone(),
        bundle: String::new(),
        api: Api::Task,
        created_at: SystemTime::now(),
        life,
        machine: pod.agent.machine().clone(),
        pod: OnceLock::from(Arc::clone(pod)),
        booting: Mutex::default(),
        supervisor: pod.supervisor.clone(),
        oom_killed: OnceLock::new(),
        resources: Mutex::default(),
        memory_mib: plan.size.memory_mib.into(),
        turn: tokio::sync::Mutex::default(),
        plan,
    })
}

/// Ends a sandbox's machine as the node's kernel does when it is short of memory.
pub async fn kill_for_memory(sandbox: &Sandbox) {
    sandbox.oom_killed.set(true).unwrap();
    sandbox.machine.kill();
    sandbox.machine.wait().await;
}
