//! Counting what the guest's processors leave the kernel for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of VM exits that reach user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// A read from a device's window.
    MmioRead,
    /// A write to a device's window.
    MmioWrite,
    /// A read from a port.
    IoIn,
    /// A write to a port.
    IoOut,
    /// A halt that the kernel does not handle.
    Hlt,
    /// A triple fault.
    Shutdown,
    /// A power event.
    SystemEvent,
    /// No exit of the guest's: a signal.
    Interrupted,
    /// Anything else.
    Other,
}

const NAMES: [&str; 9] =
    ["mmio_read", "mmio_write", "io_in", "io_out", "hlt", "shutdown", "system_event", "interrupted", "other"];

/// Counters of all processors together.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; NAMES.len()]);

impl ExitCounters {
    /// Counts one.
    pub fn count(&self, exit: Exit) {
        if let Some(counter) = self.0.get(exit as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counters that are not zero, by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        NAMES
            .iter()
            .zip(&self.0)
            .map(|(name, counter)| ((*name).to_owned(), counter.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_by_name() {
        let counters = ExitCounters::default();
        counters.count(Exit::MmioRead);
        counters.count(Exit::Other);
        counters.count(Exit::Other);
        let expected = [("mmio_read".to_owned(), 1), ("other".to_owned(), 2)];
        assert_eq!(counters.snapshot(), BTreeMap::from(expected));
    }
}
