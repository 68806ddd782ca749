//! The kernel refuses what the shim, the machine's process and mkfs ask it for: the n-th call of each kind that takes
//! something, for n from the first to the last of a life.

use ravelin_tests::Host;

use super::inject::{Call, Caller, Counts, Injector, Order};
use super::kill::make_fresh;
use super::kubelet::Op;
use super::report;
use super::steps::Fresh;
use super::trial::{Fault, Replaced, Trial};

const TABLE: &str = "error";
const CONFIG: &str = "/etc/ravelin/ravelin.toml";
/// Deadlines short enough to be waited for.
const DEADLINES: &str = "[timeouts]\nboot_seconds = 60\ncall_seconds = 30\n";
const LIFE: [Op; 6] = [Op::RunPod, Op::Create, Op::Start, Op::Exec, Op::StopPod, Op::RemovePod];
/// How many calls of a kind are failed, from the first to the last.
const EACH: usize = 8;
/// In `make test`: how far into a life of so many calls of the kind, in eighths.
const SHORT: [(Caller, Call, usize); 3] =
    [(Caller::Shim, Call::Netlink, 4), (Caller::Shim, Call::Open, 6), (Caller::Shim, Call::Clone, 5)];

#[test]
fn whatever_the_kernel_refuses_is_told_and_leaves_nothing() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let mut trial = Trial::begin(&host);
    let _config = Replaced::with(CONFIG, DEADLINES);
    let counts = count(&mut trial);
    for (&(caller, call), &count) in &counts {
        report::line(&["calls", caller.name(), call.name(), &count.to_string()]);
        for (index, number) in numbers(count).into_iter().enumerate() {
            let chosen = |short: &(Caller, Call, usize)| {
                (short.0, short.1) == (caller, call) && number == 1 + (count - 1) * short.2 / EACH
            };
            if !Host::whole() && !SHORT.iter().any(chosen) {
                continue;
            }
            let errno = call.errors()[index % call.errors().len()];
            fail(&mut trial, Order { caller, call, count: number, errno }, count);
        }
    }
    trial.end();
}

/// Counts the calls of a life without a fault.
fn count(trial: &mut Trial<'_>) -> Counts {
    let injector = Injector::counting();
    make_all_fresh();
    trial.live(Fault { table: TABLE, what: "none", when: "all calls are counted" }, &LIFE);
    injector.counts()
}

/// Which of so many calls are failed.
fn numbers(count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..=EACH).map(|part| 1 + (count - 1) * part / EACH).collect();
    numbers.dedup();
    numbers
}

fn fail(trial: &mut Trial<'_>, order: Order, of: usize) {
    let what = format!("{}: {}", order.caller.name(), order.call.name());
    let errno = std::io::Error::from_raw_os_error(order.errno);
    let when = format!("call {} of about {of}: {errno}", order.count);
    let fault = Fault { table: TABLE, what: &what, when: &when };
    if !fault.is_chosen() {
        return;
    }
    let injector = Injector::failing(order);
    make_all_fresh();
    trial.live(fault, &LIFE);
    match injector.failed() {
        Some(failed) => report::line(&["note", "refused was", &failed]),
        // A life has a few calls more or less.
        None => report::line(&["note", "nothing was refused", &what, &when]),
    }
}

fn make_all_fresh() {
    make_fresh(Fresh::Scratch);
    make_fresh(Fresh::Layers);
}
