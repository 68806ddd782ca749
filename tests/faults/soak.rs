//! Many pods on one node, one after the other, some of them killed: the node is as it was, and nobody has grown.
//!
//! `make soak` runs it with 1,000 pods (`SOAK_PODS=n` for others), of which every hundredth is killed in a random way.

use std::time::Instant;

use ravelin_tests::Host;
use ravelin_tests::shim::holdings;

use super::kill::{Struck, give_up, kill_at, lead_to};
use super::kubelet::Op;
use super::random::Random;
use super::report;
use super::steps::{STEPS, Step};
use super::trial::{Fault, Trial};
use super::watch::Process;

const TABLE: &str = "soak";
const LIFE: [Op; 6] = [Op::RunPod, Op::Create, Op::Start, Op::Exec, Op::StopPod, Op::RemovePod];
/// How many pods there are to one that is killed.
const ONE_IN: usize = 100;
/// How many a run has in `make test-all`.
const FEW: usize = 20;
/// Memory of the last pods' shims beyond that of the first ones', at the same step, in KiB.
const SHIM_KIB: usize = 512;
/// Memory of containerd's at the end beyond that when a tenth of the pods had been, in KiB: what its garbage collector may leave
/// for later. A KiB that each pod left would be more, with a thousand pods.
const CONTAINERD_KIB: usize = 8 << 10;

#[test]
fn many_pods_one_after_the_other_leave_the_node_and_its_processes_as_they_were() {
    let pods = match std::env::var("SOAK_PODS").ok().map(|pods| pods.parse::<usize>()) {
        Some(pods) => pods.expect("SOAK_PODS is a number"),
        None if Host::whole() => FEW,
        None => {
            println!("left out: it is what `make soak` runs");
            return;
        }
    };
    let host = Host::alone();
    let seed = Random::seed();
    let mut random = Random::new(seed);
    report::line(&["soak", "pods", &pods.to_string(), "seed", &seed.to_string()]);
    let mut trial = Trial::begin(&host);
    let (mut containerd, mut shims) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for number in 1..=pods {
        if Host::handler().is_ravelin() && number % ONE_IN.min(pods.div_ceil(2)) == 0 {
            strike(&mut trial, &mut random, number);
            continue;
        }
        let (mut kubelet, watch) = Trial::kubelet();
        for op in LIFE {
            kubelet.ask(op).unwrap_or_else(|error| panic!("pod {number}, {op:?}: {error}"));
            if op == Op::Exec {
                let memory = |process| watch.find(process).map_or(0, |pid| holdings(pid).anonymous_kib);
                shims.push(memory(Process::Shim));
                containerd.push(memory(Process::Containerd));
            }
        }
        kubelet.forget();
        if number % 10 == 0 {
            let pace = began.elapsed().as_secs_f32() / number as f32;
            let last = |kib: &[usize]| kib.last().copied().unwrap_or_default().to_string();
            let line = [
                "soak",
                &number.to_string(),
                &format!("{pace:.1} s a pod"),
                "containerd KiB",
                &last(&containerd),
                "shim KiB",
                &last(&shims),
            ];
            report::line(&line);
        }
        if number % 50 == 0 || number == pods {
            trial.look(&format!("after {number} pods"));
        }
    }
    let grown = |what: &str, kib: &[usize], limit: usize| {
        // Of a tenth each: what has been used for the first time is in both.
        let part = kib.len().div_ceil(10);
        let (early, late) = (kib.iter().skip(part).take(part), kib.iter().rev().take(part));
        let (early, late) = (median(early), median(late));
        report::line(&[
            "soak",
            what,
            &format!("{early} KiB"),
            &format!("{late} KiB"),
            &format!("at most {limit} KiB more"),
        ]);
        assert!(late <= early + limit, "{what}: {early} KiB, and {late} KiB at the end");
    };
    trial.end();
    grown("shims", &shims, SHIM_KIB);
    grown("containerd", &containerd, CONTAINERD_KIB);
}

/// Kills one process of one pod at one step, whichever.
fn strike(trial: &mut Trial<'_>, random: &mut Random, number: usize) {
    loop {
        let step: &Step = random.one_of(&STEPS);
        let process = *random.one_of(&Process::ALL);
        let (mut kubelet, watch) = Trial::kubelet();
        let led = lead_to(&mut kubelet, step);
        let mut session = led.unwrap_or_else(|error| panic!("pod {number}, before its fault: {error}"));
        if kill_at(trial, &kubelet, &watch, step, process, &mut session) != Struck::Killed {
            give_up(&mut kubelet, step, &mut session);
            continue;
        }
        let when = format!("{}, pod {number}", step.name);
        let fault = Fault { table: TABLE, what: process.name(), when: &when };
        return match (process, step.answered) {
            (Process::Containerd, _) => trial.answer_after_containerd(fault, &mut kubelet, &mut session),
            (_, true) => trial.judge_at_rest(fault, &mut kubelet),
            (_, false) => trial.answer(fault, &mut kubelet, step.op, &mut session),
        };
    }
}

fn median<'a>(kib: impl Iterator<Item = &'a usize>) -> usize {
    let mut sorted: Vec<_> = kib.copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
