//! A device's interrupt line with its status register, usable from every thread without a lock.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::event::EventFd;

/// Interrupt status: a queue has used buffers (virtio 1.3 §4.2.2).
const STATUS_QUEUE: u32 = 1;
/// Interrupt status: the configuration, or the device status, changed.
const STATUS_CONFIG: u32 = 2;

/// What a device tells its guest outside the queues, and what it counts.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
    needs_reset: AtomicBool,
    guest_errors: AtomicU64,
}

impl Interrupt {
    /// A quiet line.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            line: EventFd::new()?,
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            guest_errors: AtomicU64::new(0),
        })
    }

    /// The descriptor to be tied to an interrupt line of the machine.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Says that buffers of some queue were used.
    pub fn queue_used(&self) {
        self.raise(STATUS_QUEUE);
    }

    /// Says that the configuration has changed.
    pub fn config_changed(&self) {
        self.raise(STATUS_CONFIG);
    }

    /// Says that the device has stopped and waits for a reset.
    pub fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(STATUS_CONFIG);
    }

    /// Whether the device waits for a reset.
    #[must_use]
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The interrupt status register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The guest acknowledges some of the status bits.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Back to the beginning; the counter stays.
    pub fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Notes that the guest did something a correct driver does not do.
    pub fn count_guest_error(&self) {
        self.guest_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// How often [`Interrupt::count_guest_error`] was called.
    #[must_use]
    pub fn guest_errors(&self) -> u64 {
        self.guest_errors.load(Ordering::Relaxed)
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.signal();
    }
}
