//! What a pod uses on the node: the counters of its cgroup.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use ravelin_proto::agent::{CpuStats, MemoryStats, StatsResponse};

/// Reads a cgroup's counters (cgroup v2). Files that are not there count as zero.
pub(super) fn read(directory: &Path) -> StatsResponse {
    let text = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let number = |file: &str| number(&text(file));
    let cpu = table(&text("cpu.stat"));
    let events = table(&text("memory.events"));
    let cpu = |name: &str| cpu.get(name).copied().unwrap_or_default();
    let event = |name: &str| events.get(name).copied().unwrap_or_default();
    StatsResponse {
        cpu: Some(CpuStats {
            usage_usec: cpu("usage_usec"),
            user_usec: cpu("user_usec"),
            system_usec: cpu("system_usec"),
            nr_periods: cpu("nr_periods"),
            nr_throttled: cpu("nr_throttled"),
            throttled_usec: cpu("throttled_usec"),
        }),
        memory: Some(MemoryStats {
            usage: number("memory.current"),
            usage_limit: number("memory.max"),
            swap_usage: number("memory.swap.current"),
            swap_limit: number("memory.swap.max"),
            stat: table(&text("memory.stat")),
            events_low: event("low"),
            events_high: event("high"),
            events_max: event("max"),
            events_oom: event("oom"),
            events_oom_kill: event("oom_kill"),
        }),
        pids_current: number("pids.current"),
        // 0 stands for no limit here.
        pids_limit: Some(number("pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or_default(),
        io: Vec::new(),
    }
}

/// A number; `max` is the largest one.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => u64::from_str(digits).unwrap_or_default(),
    }
}

/// The lines of a name and a number each.
fn table(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_owned(), number(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_what_is_missing_is_zero() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 7\nuser_usec 5\nsystem_usec 2\n");
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 12\nfile 3\n");
        let stats = read(directory.path());
        let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
        assert_eq!((cpu.usage_usec, cpu.system_usec, cpu.nr_periods), (7, 2, 0));
        assert_eq!((memory.usage, memory.usage_limit, memory.stat["anon"]), (4096, u64::MAX, 12));
    }
}
