//! A place on the machine's bus: a device with its transport, shared by the processors and one event loop.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::interrupt::Interrupt;
use super::transport::{self, Transport};
use super::{Device, QUEUE_TOKENS};
use crate::event::{Event, Registrar, Wake};
use crate::machine::memory::GuestMemory;

/// A device on the bus.
pub struct Slot {
    name: &'static str,
    interrupt: Arc<Interrupt>,
    notifications: Vec<Wake>,
    transport: Mutex<Transport>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Slot {
    /// Puts `device` behind a transport.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(device: Box<dyn Device>, memory: GuestMemory) -> io::Result<Self> {
        let interrupt = Arc::new(Interrupt::new()?);
        let notifications = device.queue_sizes().iter().map(|_| Wake::new()).collect::<io::Result<_>>()?;
        Ok(Self {
            name: device.name(),
            interrupt: Arc::clone(&interrupt),
            notifications,
            transport: Mutex::new(Transport::new(device, memory, interrupt)),
        })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// One descriptor per queue, through which the guest's notifications arrive.
    #[must_use]
    pub fn notifications(&self) -> &[Wake] {
        &self.notifications
    }

    /// Joins an event loop.
    ///
    /// # Errors
    /// When a descriptor cannot be waited for.
    pub fn attach(&self, registrar: &Registrar) -> io::Result<()> {
        for (queue, wake) in (0u32..).zip(&self.notifications) {
            registrar.add_readable(wake, QUEUE_TOKENS + queue)?;
        }
        self.lock().device_mut().attach(registrar.clone())
    }

    /// Handles an event of the loop that the device is attached to.
    pub fn handle(&self, event: Event) {
        if event.token < QUEUE_TOKENS {
            self.lock().device_mut().ready(event.token, event.readiness);
            return;
        }
        let queue = (event.token - QUEUE_TOKENS) as usize;
        if let Some(wake) = self.notifications.get(queue) {
            wake.clear();
            self.lock().notified(queue);
        }
    }

    /// A processor reads from the device's window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        // Read in every interrupt: not worth a lock that the event loop may hold during a disk's system call.
        if offset == transport::INTERRUPT_STATUS && data.len() == 4 {
            data.copy_from_slice(&self.interrupt.status().to_le_bytes());
            return;
        }
        self.lock().read(offset, data);
    }

    /// A processor writes to the device's window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if offset == transport::INTERRUPT_ACK {
            if let Ok(bits) = data.try_into() {
                self.interrupt.acknowledge(u32::from_le_bytes(bits));
            }
            return;
        }
        if self.lock().write(offset, data) == transport::Outcome::Activated {
            // Buffers that were added before the driver was ready, and descriptors that became ready.
            self.notifications.iter().for_each(Wake::wake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Transport> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
