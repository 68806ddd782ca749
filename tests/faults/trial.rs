//! A life with a fault in it, and what must be so afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use ravelin_tests::{Host, Session, until};

use super::events::Events;
use super::footprint::Footprint;
use super::kubelet::{Failed, Kubelet, Op};
use super::report;
use super::watch::Watch;

/// Longest that the removal of a pod may take.
const REMOVAL: Duration = Duration::from_secs(30);
/// By when containerd must have heard of an end.
const TOLD: Duration = Duration::from_secs(30);
/// By when the footprint must be what it was.
pub const CLEAN: Duration = Duration::from_secs(60);
/// The same where containerd may have lost a shim: one that has died forgets what it had begun, and one that cannot write down
/// that it has a shim leaves it. The shim, which has nothing to do then, ends by itself, in two minutes.
pub const CLEAN_AFTER_CONTAINERD: Duration = Duration::from_secs(240);

/// What a fault is, and when it comes.
#[derive(Debug, Clone, Copy)]
pub struct Fault<'a> {
    /// The table that it is in.
    pub table: &'a str,
    /// What it happens to.
    pub what: &'a str,
    /// At which step, or how.
    pub when: &'a str,
}

impl Fault<'_> {
    /// Whether it is to be tried: all are, unless `FAULTS_ONLY` has words, divided by `|`, of which some are in its name.
    pub fn is_chosen(&self) -> bool {
        let Ok(only) = std::env::var("FAULTS_ONLY") else { return true };
        let name = format!("{}, {}, {}", self.table, self.what, self.when);
        only.split('|').any(|words| name.contains(words))
    }
}

/// What one test's faults have in common.
#[derive(Debug)]
pub struct Trial<'h> {
    pub host: &'h Host,
    pub events: Events,
    clean: Footprint,
    /// What earlier faults have left is not to be counted against later ones.
    left: BTreeSet<String>,
    wrong: Vec<String>,
    count: usize,
}

impl<'h> Trial<'h> {
    /// The first trial runs one pod without a fault, so that what stays after the first stays before all others.
    #[track_caller]
    pub fn begin(host: &'h Host) -> Self {
        static FIRST: Once = Once::new();
        FIRST.call_once(Self::live_unharmed);
        host.assert_clean();
        Self {
            host,
            events: Events::listen(),
            clean: Footprint::of_host(),
            left: BTreeSet::new(),
            wrong: Vec::new(),
            count: 0,
        }
    }

    /// A whole life without a fault.
    #[track_caller]
    pub fn live_unharmed() {
        let (mut kubelet, _) = Self::kubelet();
        for op in [Op::RunPod, Op::Create, Op::Start, Op::Exec, Op::StopPod, Op::RemovePod] {
            kubelet.ask(op).unwrap_or_else(|error| panic!("without a fault, {op:?}: {error}"));
        }
        kubelet.forget();
    }

    /// What the host has now is what it must have after the next faults.
    pub fn begin_anew(&mut self) {
        (self.clean, self.left) = (Footprint::of_host(), BTreeSet::new());
    }

    /// Lets a pod live until it comes to its end or something is refused, with a fault that waits for it somewhere.
    pub fn live(&mut self, fault: Fault<'_>, ops: &[Op]) {
        let (mut kubelet, _) = Self::kubelet();
        self.go_on(fault, &mut kubelet, ops, CLEAN, || {});
    }

    /// The same for a pod that lives already. `mend` takes the fault away, after the pod's removal; the footprint is as it was
    /// within `clean`.
    pub fn go_on(
        &mut self,
        fault: Fault<'_>,
        kubelet: &mut Kubelet,
        ops: &[Op],
        clean: Duration,
        mend: impl FnOnce(),
    ) {
        let answer = ops.iter().try_for_each(|op| kubelet.ask(*op));
        self.judge(fault, kubelet, answer, clean, mend);
    }

    /// Begins a life for a fault that is to be watched for.
    pub fn kubelet() -> (Kubelet, Watch) {
        let kubelet = Kubelet::new();
        kubelet.prepare();
        (kubelet, Watch::begin())
    }

    /// Waits for the answer to what the fault came into, and judges it.
    pub fn answer(&mut self, fault: Fault<'_>, kubelet: &mut Kubelet, op: Op, session: &mut Session) {
        let answer = kubelet.answer(op, session);
        self.judge(fault, kubelet, answer, CLEAN, || {});
    }

    /// The same of a containerd that was killed: it comes back, and its client's error says nothing about the pod.
    pub fn answer_after_containerd(
        &mut self,
        fault: Fault<'_>,
        kubelet: &mut Kubelet,
        session: &mut Session,
    ) {
        session.kill();
        self.host.start_containerd();
        self.events = Events::listen();
        self.judge(fault, kubelet, Ok(()), CLEAN_AFTER_CONTAINERD, || {});
    }

    /// What must be so after every fault.
    fn judge(
        &mut self,
        fault: Fault<'_>,
        kubelet: &mut Kubelet,
        answer: Result<(), Failed>,
        clean: Duration,
        mend: impl FnOnce(),
    ) {
        let mut wrong = Vec::new();
        let told = match &answer {
            Err(Failed::Error(_)) => "error".to_owned(),
            Err(hang @ Failed::Hang(_)) => {
                wrong.push(hang.to_string());
                "hang".to_owned()
            }
            Ok(()) => after_all(kubelet).unwrap_or_else(|still| {
                wrong.push(still);
                "nothing".to_owned()
            }),
        };
        let removal = match kubelet.remove() {
            Ok(took) if took <= REMOVAL => format!("{:.1}", took.as_secs_f32()),
            Ok(took) => {
                wrong.push(format!("the removal took {took:?}"));
                format!("{:.1}", took.as_secs_f32())
            }
            Err(error) => {
                wrong.push(format!("the pod cannot be removed: {error}"));
                "-".to_owned()
            }
        };
        mend();
        kubelet.forget();
        let mut left = self.clean.differs_after(clean, &self.left);
        if clean == CLEAN_AFTER_CONTAINERD && !left.is_empty() {
            // A containerd that dies while it removes snapshots removes them with the next ones.
            Self::live_unharmed();
            left = self.clean.differs_after(CLEAN, &self.left);
        }
        if !left.is_empty() {
            wrong.push(format!("the footprint differs: {}", left.join("; ")));
        }
        self.left.extend(left);
        self.count += 1;
        let words = if wrong.is_empty() { "as it was".to_owned() } else { wrong.join("; ") };
        let answer = answer.err().map(|error| error.to_string()).unwrap_or_default();
        report::line(&["fault", fault.table, fault.what, fault.when, &told, &removal, &words, &answer]);
        let whole = format!("{}, {}, {}: {words}", fault.table, fault.what, fault.when);
        self.wrong.extend(wrong.first().map(|_| whole));
    }

    /// Judges a fault that came while nothing was being asked for.
    pub fn judge_at_rest(&mut self, fault: Fault<'_>, kubelet: &mut Kubelet) {
        self.judge(fault, kubelet, Ok(()), CLEAN, || {});
    }

    /// Says that a fault cannot be, and why.
    pub fn leave_out(fault: Fault<'_>, why: &str) {
        report::line(&["fault", fault.table, fault.what, fault.when, why, "", "", ""]);
    }

    /// Lets a pod live up to its fault; whether it came so far.
    pub fn lead(&mut self, fault: Fault<'_>, kubelet: &mut Kubelet, ops: &[Op]) -> bool {
        let led = ops.iter().try_for_each(|op| kubelet.ask(*op));
        led.map_err(|error| self.broken(fault, kubelet, &error)).is_ok()
    }

    /// Says that something was refused before there was a fault.
    pub fn broken(&mut self, fault: Fault<'_>, kubelet: &mut Kubelet, error: &Failed) {
        let words = format!("before the fault: {error}");
        report::line(&["fault", fault.table, fault.what, fault.when, "not tried", "", &words, ""]);
        self.wrong.push(format!("{}, {}, {}: {words}", fault.table, fault.what, fault.when));
        let _ = kubelet.remove();
        kubelet.forget();
    }

    /// Says that a fault could not be tried.
    pub fn missed(&mut self, fault: Fault<'_>) {
        report::line(&[
            "fault",
            fault.table,
            fault.what,
            fault.when,
            "not tried",
            "",
            "the step was not seen",
            "",
        ]);
        self.wrong.push(format!("{}, {}, {}: the step was not seen", fault.table, fault.what, fault.when));
    }

    /// Looks at the footprint without a fault.
    pub fn look(&mut self, when: &str) {
        let left = self.clean.differs_after(CLEAN, &self.left);
        report::line(&["look", when, if left.is_empty() { "as it was" } else { "differs" }]);
        if !left.is_empty() {
            self.wrong.push(format!("{when}: the footprint differs: {}", left.join("; ")));
        }
        self.left.extend(left);
    }

    /// Panics if after any fault something was not as it must be.
    #[track_caller]
    pub fn end(self) {
        assert!(
            self.wrong.is_empty(),
            "after {} of {} faults:\n  {}",
            self.wrong.len(),
            self.count,
            self.wrong.join("\n  ")
        );
    }
}

/// What has become of a pod for which nothing was refused: it has come to its end and containerd knows, or it works.
fn after_all(kubelet: &mut Kubelet) -> Result<String, String> {
    kubelet.look();
    if kubelet.sandbox.is_none() {
        // Who asked for it was told so.
        return Ok("error".to_owned());
    }
    if kubelet.is_gone() {
        return Ok("nothing is lost".to_owned());
    }
    let mut still = String::new();
    let told = until(TOLD, || {
        if kubelet.is_seen_to_have_ended() {
            return Some("exit");
        }
        match kubelet.works() {
            Ok(()) => Some("nothing is lost"),
            Err(error) => {
                still = error.to_string();
                None
            }
        }
    });
    told.map(str::to_owned)
        .ok_or_else(|| format!("containerd takes the pod for one that runs, and it does not: {still}"))
}

/// A file with another content until this is dropped.
#[derive(Debug)]
pub struct Replaced {
    path: &'static str,
    content: Vec<u8>,
}

impl Replaced {
    pub fn with(path: &'static str, content: &str) -> Self {
        let old = fs::read(path).expect("the file can be read");
        fs::write(path, content).expect("the file can be written");
        Self { path, content: old }
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        fs::write(Path::new(self.path), &self.content).expect("the file can be written");
    }
}
