//! Time as the machine has it: a node that is overloaded lets its threads wait for a processor, and a guest that could not run
//! is not a silent one.
//!
//! What each thread ran and waited for is in `/proc/PID/task/TID/schedstat` (the kernel's `scheduler/sched-stats.rst`). A
//! kernel without it makes every machine look as if it had all the processors it wants.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Longest starvation that is taken for an excuse, in all.
const LONGEST: Duration = Duration::from_secs(60);
/// Threads that are looked at: more than a machine has, unless its guest has taken it over.
const THREADS: usize = 64;

/// Completes when the process has had so much time: it ran, or it had nothing to run. Time in which one of its threads wanted
/// a processor and got a tenth of one at most does not count, and neither does what we ourselves were kept waiting for.
pub(super) async fn had_time(pid: u32, mut patience: Duration) {
    let (mut before, mut at, mut excused) = (look(pid), Instant::now(), Duration::ZERO);
    while !patience.is_zero() {
        let pause = LOOK.min(patience);
        tokio::time::sleep(pause).await;
        let (after, passed) = (look(pid), at.elapsed());
        at = Instant::now();
        let counted = if after.iter().any(|(id, thread)| thread.starved_since(before.get(id), passed)) {
            Duration::ZERO
        } else {
            pause
        };
        before = after;
        excused += passed.saturating_sub(counted);
        patience = patience.saturating_sub(if excused > LONGEST { passed } else { counted });
    }
}

/// One thread's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Thread {
    /// It ran for so long.
    ran: Duration,
    /// It was ready to run and did not for so long, up to the last time that it ran.
    waited: Duration,
    /// It is ready to run, or runs.
    ready: bool,
}

impl Thread {
    fn starved_since(&self, before: Option<&Self>, passed: Duration) -> bool {
        let Some(before) = before else { return false };
        let (ran, waited) = (self.ran.saturating_sub(before.ran), self.waited.saturating_sub(before.waited));
        // What a thread waits for still has not been written down.
        let waits = self.ready && before.ready && ran <= passed.mul_f64(0.1);
        waits || waited >= passed.mul_f64(0.9)
    }
}

/// Every thread that can be read, by its id.
fn look(pid: u32) -> HashMap<PathBuf, Thread> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.take(THREADS).filter_map(|entry| Some((entry.path(), read(&entry.path())?))).collect()
}

fn read(thread: &Path) -> Option<Thread> {
    let times = fs::read_to_string(thread.join("schedstat")).ok()?;
    let mut times = times.split_whitespace().map(|nanos| nanos.parse().map(Duration::from_nanos));
    let (ran, waited) = (times.next()?.ok()?, times.next()?.ok()?);
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    // The state follows the name, which may hold anything.
    let ready = stat.rsplit_once(") ")?.1.starts_with('R');
    Some(Thread { ran, waited, ready })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Process(Child);

    impl Process {
        fn start(command: &[&str]) -> Self {
            let (program, arguments) = command.split_first().unwrap();
            Self(Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap())
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    const BUSY: &str = "while :; do :; done";

    #[tokio::test]
    async fn a_process_that_does_nothing_or_is_stopped_has_had_its_time() {
        let idle = Process::start(&["sleep", "1000"]);
        let stopped = Process::start(&["sh", "-c", "kill -STOP $$"]);
        for process in [&idle, &stopped] {
            let began = Instant::now();
            had_time(process.0.id(), Duration::from_secs(1)).await;
            assert!(began.elapsed() >= Duration::from_secs(1));
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn a_process_that_gets_no_processor_has_had_no_time() {
        // On the one processor that this thread may use first, the other process leaves next to nothing to it.
        let allowed = fs::read_to_string("/proc/self/status").unwrap();
        let allowed =
            allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let processor = allowed.split([',', '-']).next().unwrap();
        let starved = Process::start(&["chrt", "-i", "0", "taskset", "-c", processor, "sh", "-c", BUSY]);
        let busy = Process::start(&["taskset", "-c", processor, "sh", "-c", BUSY]);
        let patience = tokio::spawn(had_time(starved.0.id(), Duration::from_millis(750)));
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(!patience.is_finished(), "a starved process was given no more time than another");
        drop(busy);
        tokio::time::timeout(LONGEST, patience).await.expect("it gets its time").unwrap();
    }

    #[test]
    fn who_waits_for_all_or_nearly_all_of_the_time_starves() {
        let thread = |ran, waited, ready| Thread {
            ran: Duration::from_millis(ran),
            waited: Duration::from_millis(waited),
            ready,
        };
        let passed = Duration::from_millis(250);
        let starved = |before: Thread, after: Thread| after.starved_since(Some(&before), passed);
        // Waits still; ran a little and waits again; waited, and ran at last.
        assert!(starved(thread(10, 20, true), thread(10, 20, true)));
        assert!(starved(thread(10, 20, true), thread(14, 60, true)));
        assert!(starved(thread(10, 20, true), thread(12, 260, false)));
        // Idle; runs alone; is throttled to a quarter of a processor; is new.
        assert!(!starved(thread(10, 20, false), thread(10, 20, false)));
        assert!(!starved(thread(10, 20, true), thread(260, 20, true)));
        assert!(!starved(thread(10, 20, true), thread(72, 207, true)));
        assert!(!thread(0, 0, true).starved_since(None, passed));
    }
}
