//! What a process of the host holds.

use std::collections::BTreeMap;
use std::fs;

/// What a process of the host holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory without files, in KiB: pages of files are shared or not as others come and go.
    pub anonymous_kib: usize,
}

/// What the process `pid` of the host holds now.
#[must_use]
pub fn holdings(pid: u32) -> Holdings {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let fields: BTreeMap<&str, usize> = rollup
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter_map(|(name, value)| Some((name, value.split_whitespace().next()?.parse().ok()?)))
        .collect();
    let anonymous_kib = fields.get("Anonymous").copied().unwrap_or_default();
    Holdings { descriptors: count("fd"), threads: count("task"), anonymous_kib }
}

/// What a process's descriptors are, for a test that has failed.
#[must_use]
pub fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}
