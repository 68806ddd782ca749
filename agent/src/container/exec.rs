//! Further processes in a container that is created or runs.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use oci_spec::runtime::Process as SpecProcess;
use ravelin_proto::agent as api;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::time::Instant;

use super::{Container, Exec, create, spec};
use crate::error::{AgentError, Attempt, Result};
use crate::process::{Ended, Phase, Process};
use crate::reaper::Exit;
use crate::services::Services;
use crate::spawner::{Console, Request};
use crate::stdio::Endpoints;
use crate::sync::{blocking, lock};

/// What an exec will run.
#[derive(Debug)]
pub(super) struct Plan {
    process: SpecProcess,
    stdio: api::Stdio,
    endpoints: Endpoints,
}

/// Notes an exec; its process is made when it is started. Its streams are waited for until `deadline`.
///
/// # Errors
///
/// [`AgentError::WrongState`] unless the container is created and has not ended, [`AgentError::AlreadyExists`] if the id is taken.
pub async fn exec(
    services: &Arc<Services>,
    container: &Container,
    request: api::ExecRequest,
    deadline: Instant,
) -> Result<()> {
    let id = request.exec_id;
    super::check_id(&id)?;
    container.check_alive()?;
    let name = format!("exec {id} of container {}", container.id);
    let process: SpecProcess = serde_json::from_slice(&request.process)
        .map_err(|error| AgentError::Invalid(format!("read the process of {name}: {error}")))?;
    let stdio = request.stdio.unwrap_or_default();
    let facts = container.facts();
    let process = spec::inherit(process, &facts.defaults);
    let score = Some(facts.oom_score_adj);
    let process = spec::complete_process(process, facts.filtered, stdio.terminal, score)
        .map_err(|text| AgentError::Invalid(format!("{name}: {text}")))?;
    if let Some(ids) = &facts.ids {
        ids.check(process.user())?;
    }
    if container.execs().contains_key(&id) {
        return Err(AgentError::AlreadyExists(format!("{name} exists")));
    }
    let endpoints = Endpoints::take(&services.streams, &stdio, deadline).await?;
    let exec = Exec {
        process: Process::new(name.clone(), Phase::Created),
        plan: Mutex::new(Some(Plan { process, stdio, endpoints })),
    };
    let mut execs = container.execs();
    if execs.contains_key(&id) {
        return Err(AgentError::AlreadyExists(format!("{name} exists")));
    }
    execs.insert(id, Arc::new(exec));
    Ok(())
}

/// Makes and starts an exec's process, by `deadline` or not at all.
///
/// # Errors
///
/// The builder's words; the exec counts as ended with status 255 then.
pub async fn start_exec(
    services: &Arc<Services>,
    container: &Arc<Container>,
    id: &str,
    deadline: Instant,
) -> Result<()> {
    let exec = container.exec(id)?;
    exec.process.advance(&[Phase::Created], Phase::Starting)?;
    let plan = lock(&exec.plan).take();
    let started = match plan {
        Some(plan) => {
            let (services, container, process) =
                (Arc::clone(services), Arc::clone(container), Arc::clone(&exec.process));
            let id = id.to_owned();
            let runtime = tokio::runtime::Handle::current();
            async {
                let makers = Arc::clone(&services);
                let _leave = makers.leave_to_make(deadline).await?;
                blocking(move || {
                    let _guard = runtime.enter();
                    build(&services, &container, &process, &id, plan, deadline)
                })
                .await
            }
            .await
        }
        None => Err(AgentError::WrongState(format!("{} was started before", exec.process.name()))),
    };
    match &started {
        Ok(()) => {
            // It may have ended already.
            let _ = exec.process.advance(&[Phase::Starting], Phase::Running);
        }
        Err(_) => exec.process.end(Ended { exit: Exit::now(255), oom_killed: false }),
    }
    started
}

fn build(
    services: &Arc<Services>,
    container: &Arc<Container>,
    process: &Arc<Process>,
    id: &str,
    plan: Plan,
    deadline: Instant,
) -> Result<()> {
    container.check_alive()?;
    container.check_not_paused()?;
    let (Some(init), Some(pidfd)) = (container.init.pid(), container.init.pidfd()) else {
        return Err(AgentError::WrongState(format!("container {} has no process", container.id)));
    };
    let facts = container.facts();
    let file =
        process_file(&plan.process).attempt(|| format!("hand over the process of {}", process.name()))?;
    let uid = create::of_the_guest(facts.ids.as_ref(), plan.process.user().uid())?;
    let size = create::console_size(Some(&plan.process));
    let request = Request::Exec {
        id: container.id.clone(),
        bundle: facts.bundle,
        init: init.as_raw_nonzero().get(),
        user_namespace: facts.ids.is_some(),
        personality: facts.personality,
        console: plan.stdio.terminal.then_some(Console { size, uid }),
    };
    let fds = [pidfd, file.as_fd()];
    let launch = create::Launch { request, fds: &fds, uid, endpoints: plan.endpoints, deadline };
    create::run(services, container, process, id, launch)
        .map_err(|error| AgentError::Failed(format!("start {}: {error}", process.name())))
}

/// The process as a file in memory: it may be longer than a packet.
fn process_file(process: &SpecProcess) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"process", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(process)?)?;
    file.rewind()?;
    Ok(file)
}

/// Deletes an exec that has ended, or was never started.
///
/// # Errors
///
/// [`AgentError::WrongState`] while it runs.
pub fn delete_exec(container: &Container, id: &str) -> Result<Exit> {
    let exec = container.exec(id)?;
    exec.process.advance(&[Phase::Created, Phase::Stopped], Phase::Deleting)?;
    exec.process.finish_streams();
    container.execs().remove(id);
    Ok(exec.process.ended().map_or_else(|| Exit::now(0), |ended| ended.exit))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::getpid;

    use super::*;
    use crate::reaper::Reaper;
    use crate::spawner::Spawner;

    /// A running container with an exec `e` that is to be started.
    fn container() -> Arc<Container> {
        let container = Container::new("c", vec![]);
        // This process stands for the first one; nothing is done to it.
        container.init.born(getpid()).unwrap();
        container.init.advance(&[Phase::Creating], Phase::Running).unwrap();
        let process = serde_json::json!({ "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        let plan = Plan {
            process: serde_json::from_value(process).unwrap(),
            stdio: api::Stdio::default(),
            endpoints: Endpoints { stdin: None, stdout: None, stderr: None },
        };
        let process = Process::new("exec e".into(), Phase::Created);
        container.execs().insert("e".into(), Arc::new(Exec { process, plan: Mutex::new(Some(plan)) }));
        container
    }

    /// The runtime's clock jumps to what is waited for next; what blocks a thread takes its real time.
    #[tokio::test(start_paused = true)]
    async fn waiting_for_leave_and_making_the_process_have_one_deadline_together() {
        let (spawner, _silent) = Spawner::silent().unwrap();
        let services = Arc::new(Services::new(spawner, Reaper::default()).unwrap());
        let container = container();
        let mut others = Vec::new();
        while let Ok(leave) = services.leave_to_make(Instant::now()).await {
            others.push(leave);
        }
        let begin = std::time::Instant::now();
        let deadline = Instant::now() + Duration::from_secs(60);
        let others_end = async {
            tokio::time::sleep_until(deadline - Duration::from_millis(100)).await;
            drop(others);
        };
        let (started, ()) = tokio::join!(start_exec(&services, &container, "e", deadline), others_end);
        assert_eq!(started.unwrap_err().to_string(), "start exec e: not made within 0 s");
        assert_eq!(container.exec("e").unwrap().process.phase(), Phase::Stopped);
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn a_process_that_is_being_made_keeps_nothing_else_waiting() {
        use rustix::event::{PollFd, PollFlags, poll};
        let (spawner, asked) = Spawner::silent().unwrap();
        let services = Arc::new(Services::new(spawner, Reaper::default()).unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let starting = tokio::spawn(async move { start_exec(&services, &container(), "e", deadline).await });
        let asked = blocking(move || {
            poll(&mut [PollFd::new(&asked, PollFlags::IN)], None).attempt(String::new).map(|_| asked)
        });
        let asked = asked.await.unwrap();
        assert!(!starting.is_finished(), "the runtime's thread waited for the spawner");
        // With it goes the request, and there is nobody to wait for.
        drop(asked);
        starting.await.unwrap().unwrap_err();
    }
}
