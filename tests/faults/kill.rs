//! kill -9 of every process at every step.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ravelin_tests::{Host, Session};

use super::kubelet::{Failed, Kubelet};
use super::report;
use super::steps::{Fresh, STEPS, Scene, Step};
use super::trial::{Fault, Trial};
use super::watch::{self, Process, Watch};

const TABLE: &str = "kill";
/// How long a step is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long after an answer a step may be heard of.
const LATE: Duration = Duration::from_secs(3);
/// How often a step is tried that was over before it was seen.
const TRIES: usize = 3;
/// In `make test`.
const SHORT: [(Process, &str); 3] = [
    (Process::Shim, "the machine boots"),
    (Process::Mkfs, "a layer's image is made"),
    (Process::Machine, "the container is created"),
];

#[test]
fn whatever_is_killed_at_whatever_step_is_told_and_leaves_nothing() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let mut trial = Trial::begin(&host);
    for step in &STEPS {
        let mut absent = Vec::new();
        for process in Process::ALL {
            if !Host::whole() && !SHORT.contains(&(process, step.name)) {
                continue;
            }
            let fault = Fault { table: TABLE, what: process.name(), when: step.name };
            if !fault.is_chosen() {
                continue;
            }
            if absent.contains(&process) {
                Trial::leave_out(fault, "not there");
                continue;
            }
            strike(&mut trial, fault, step, process, &mut absent);
        }
    }
    trial.end();
}

/// Kills the process at the step of one pod. Notes which processes are not there at it, so that they need not be looked for again.
fn strike(trial: &mut Trial<'_>, fault: Fault<'_>, step: &Step, process: Process, absent: &mut Vec<Process>) {
    for _ in 0..TRIES {
        let (mut kubelet, watch) = Trial::kubelet();
        let mut session = match lead_to(&mut kubelet, step) {
            Ok(session) => session,
            Err(error) => return trial.broken(fault, &mut kubelet, &error),
        };
        match kill_at(trial, &kubelet, &watch, step, process, &mut session) {
            Struck::Killed => {}
            // It was over before it was seen.
            Struck::Missed => {
                give_up(&mut kubelet, step, &mut session);
                continue;
            }
            Struck::Absent => {
                absent.push(process);
                give_up(&mut kubelet, step, &mut session);
                return Trial::leave_out(fault, "not there");
            }
        }
        if process == Process::Containerd {
            absent.extend(Process::ALL.into_iter().filter(|other| watch.find(*other).is_none()));
            return trial.answer_after_containerd(fault, &mut kubelet, &mut session);
        }
        if step.answered {
            return trial.judge_at_rest(fault, &mut kubelet);
        }
        return trial.answer(fault, &mut kubelet, step.op, &mut session);
    }
    trial.missed(fault);
}

/// Has a pod live up to what the step is a part of, and begins with that.
///
/// # Errors
/// What is refused before there is a fault.
pub fn lead_to(kubelet: &mut Kubelet, step: &Step) -> Result<Session, Failed> {
    step.op.before().iter().try_for_each(|op| kubelet.ask(*op))?;
    if let Some(fresh) = step.fresh {
        make_fresh(fresh);
    }
    let mut session = kubelet.begin(step.op);
    if step.answered {
        kubelet.answer(step.op, &mut session)?;
    }
    Ok(session)
}

/// What has come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Struck {
    Killed,
    /// The step was not seen.
    Missed,
    /// There is no such process at that step.
    Absent,
}

/// Waits for the step and kills the process.
pub fn kill_at(
    trial: &Trial<'_>,
    kubelet: &Kubelet,
    watch: &Watch,
    step: &Step,
    process: Process,
    session: &mut Session,
) -> Struck {
    let mut until = Instant::now() + PATIENCE;
    let mut ended = false;
    loop {
        let scene = Scene { kubelet, watch, events: &trial.events, said: session.heard() };
        if (step.has_come)(&scene) {
            let Some(victim) = watch.find(process) else {
                return if is_the_step(step, process) { Struck::Missed } else { Struck::Absent };
            };
            if process == Process::Containerd {
                trial.host.stop_containerd("KILL");
            } else {
                watch::kill(victim);
            }
            return Struck::Killed;
        }
        if !ended && session.ends_within(Duration::ZERO) {
            // What was told before the answer may be heard after it.
            (ended, until) = (true, Instant::now() + LATE);
        }
        if Instant::now() > until {
            return Struck::Missed;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets a pod go that was struck by nothing.
pub fn give_up(kubelet: &mut Kubelet, step: &Step, session: &mut Session) {
    if !step.answered {
        let _ = kubelet.answer(step.op, session);
    }
    // What stays is found after the next fault.
    let _ = kubelet.remove();
    kubelet.forget();
}

/// Whether the step is that this process is there.
fn is_the_step(step: &Step, process: Process) -> bool {
    match process {
        Process::Mkfs => step.fresh.is_some(),
        Process::Start => step.name == "the shim's start",
        Process::Shim => step.name == "the shim begins",
        Process::Machine => matches!(step.name, "the machine's process begins" | "the machine boots"),
        Process::Containerd => true,
    }
}

/// Takes away what was made before, so that it is made again.
pub fn make_fresh(what: Fresh) {
    let remove = |folder: &Path, extensions: &[&str]| {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|is| extensions.iter().any(|extension| is == *extension)) {
                let _ = fs::remove_file(path);
            }
        }
    };
    match what {
        Fresh::Scratch => {
            for folder in fs::read_dir("/var/lib/ravelin").into_iter().flatten().flatten() {
                remove(&folder.path(), &["ext4"]);
            }
        }
        Fresh::Layers => {
            let snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
            for snapshot in fs::read_dir(snapshots).into_iter().flatten().flatten() {
                remove(&snapshot.path(), &["erofs", "record"]);
            }
        }
    }
    report::line(&["note", &format!("{what:?} is to be made anew")]);
}
