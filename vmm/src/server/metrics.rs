//! What the machine counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::Origin;
use crate::control::Metrics;
use crate::machine::Machine;

const PAGE_BYTES: u64 = 4096;

/// What is known once and told with every counter.
#[derive(Debug)]
pub(super) struct Facts {
    origin: Origin,
    resident_before: u64,
    kernel_entry_us: u64,
    agent_ready_us: u64,
    exits_at_ready: BTreeMap<String, u64>,
}

impl Facts {
    /// Facts about a machine whose kernel is about to be entered; `resident_before` is what the process weighed before it
    /// was built.
    pub fn new(origin: Origin, resident_before: u64) -> Self {
        let kernel_entry_us = micros(origin.started);
        Self { origin, resident_before, kernel_entry_us, agent_ready_us: 0, exits_at_ready: BTreeMap::new() }
    }

    /// The agent has just said that it serves requests.
    pub fn agent_is_ready(&mut self, machine: &Machine) {
        self.agent_ready_us = micros(self.origin.started).max(1);
        self.exits_at_ready = machine.exits().snapshot();
    }

    pub fn metrics(&self, machine: &Machine) -> Metrics {
        let resident = anonymous_bytes(self.origin.statm.as_ref());
        Metrics {
            exits: machine.exits().snapshot(),
            exits_at_ready: self.exits_at_ready.clone(),
            kernel_entry_us: self.kernel_entry_us,
            agent_ready_us: self.agent_ready_us,
            guest_resident_bytes: resident.saturating_sub(self.resident_before),
            balloon_mib: machine.balloon_mib(),
            guest_errors: machine
                .devices()
                .iter()
                .map(|device| (device.name().to_owned(), device.interrupt().guest_errors()))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Private memory of this process that is resident: nearly all of it the guest's.
pub(super) fn anonymous_bytes(statm: Option<&File>) -> u64 {
    let mut text = [0; 128];
    let length = statm.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
    // Pages: size, resident, shared, ...
    let mut fields = text.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    resident.saturating_sub(shared).saturating_mul(PAGE_BYTES)
}
