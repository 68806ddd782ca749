//! A virtio-mmio device as the processors see it: a window of registers.

use std::io;
use std::sync::{Arc, Mutex};

use super::Description;
use super::interrupt::Interrupt;
use super::owner::{Owner, Reset};
use super::transport::{self, Transport};
use crate::event::EventFd;
use crate::machine::memory::GuestMemory;
use crate::sync::lock;

/// The registers of a device, with its interrupt and the descriptors that its queues are notified through.
pub struct MmioDevice {
    name: &'static str,
    interrupt: Arc<Interrupt>,
    notifications: Arc<[Arc<EventFd>]>,
    /// Held to look at registers or change them, never while anything waits.
    transport: Mutex<Transport>,
}

impl std::fmt::Debug for MmioDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioDevice").field("name", &self.name).finish_non_exhaustive()
    }
}

impl MmioDevice {
    /// The window of a device that `owner` owns.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(device: Description, memory: GuestMemory, owner: Owner) -> io::Result<Self> {
        let interrupt = Arc::new(Interrupt::new()?);
        let notifications: Arc<[_]> =
            device.queues.iter().map(|_| EventFd::new().map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self {
            name: device.name,
            interrupt: Arc::clone(&interrupt),
            notifications: Arc::clone(&notifications),
            transport: Mutex::new(Transport::new(device, memory, interrupt, notifications, owner)),
        })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// One descriptor per queue, through which the guest's notifications arrive.
    #[must_use]
    pub fn notifications(&self) -> &Arc<[Arc<EventFd>]> {
        &self.notifications
    }

    /// A number of 32 bits in the configuration space; 0 beyond its end.
    #[must_use]
    pub fn config(&self, offset: usize) -> u32 {
        lock(&self.transport).config(offset)
    }

    /// Changes a number of 32 bits in the configuration space, of which the driver is told.
    pub fn set_config(&self, offset: usize, value: u32) {
        lock(&self.transport).set_config(offset, value);
    }

    /// A processor reads from the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        // Read in every interrupt: not worth a lock.
        if offset == transport::INTERRUPT_STATUS && data.len() == 4 {
            data.copy_from_slice(&self.interrupt.status().to_le_bytes());
            return;
        }
        lock(&self.transport).read(offset, data);
    }

    /// A processor writes to the window. It may not go on before the reset that is returned, if any, is done.
    #[must_use]
    pub fn write(&self, offset: u64, data: &[u8]) -> Option<Arc<Reset>> {
        if offset == transport::INTERRUPT_ACK {
            if let Ok(bits) = data.try_into() {
                self.interrupt.acknowledge(u32::from_le_bytes(bits));
            }
            return None;
        }
        lock(&self.transport).write(offset, data)
    }
}
