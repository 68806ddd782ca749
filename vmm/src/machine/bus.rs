//! What the guest's processors reach outside memory: device windows and ports.

use std::sync::Arc;

use super::console::Console;
use super::layout::{KEYBOARD_PORT, KEYBOARD_RESET, MMIO_START, MMIO_WINDOW, SERIAL_PORT};
use crate::control::{ExitReason, GuestMark, MARK_PORT};
use crate::virtio::mmio::MmioDevice;
use crate::virtio::owner::Reset;

/// What an access means to the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consequence {
    /// Nothing.
    None,
    /// The guest's agent is ready.
    AgentReady,
    /// The machine is over.
    End(ExitReason),
}

/// The bus. Addresses without a device read as ones, like on a PC, and take writes without effect.
#[derive(Debug)]
pub struct Bus {
    devices: Vec<Arc<MmioDevice>>,
    console: Option<Arc<Console>>,
}

impl Bus {
    /// A bus with `devices` side by side from [`MMIO_START`] on.
    #[must_use]
    pub fn new(devices: Vec<Arc<MmioDevice>>, console: Option<Arc<Console>>) -> Self {
        Self { devices, console }
    }

    /// The devices, in the order of their addresses.
    #[must_use]
    pub fn devices(&self) -> &[Arc<MmioDevice>] {
        &self.devices
    }

    /// A read from an address that is not memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.device(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write to an address that is not memory. The processor may not go on before the reset that is returned, if any,
    /// is done.
    #[must_use]
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Arc<Reset>> {
        let (device, offset) = self.device(address)?;
        device.write(offset, data)
    }

    /// A read from a port.
    pub fn io_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let value = match (port, self.serial_register(port)) {
            (_, Some((console, register))) => console.read(register),
            // The keyboard controller is ready for commands and has no key.
            (KEYBOARD_PORT, _) => 0,
            _ => return,
        };
        if let Some(first) = data.first_mut() {
            *first = value;
        }
    }

    /// A write to a port.
    #[must_use]
    pub fn io_out(&self, port: u16, data: &[u8]) -> Consequence {
        let Some(value) = data.first().copied() else { return Consequence::None };
        if let Some((console, register)) = self.serial_register(port) {
            console.write(register, value);
            return Consequence::None;
        }
        match port {
            MARK_PORT => mark(value),
            KEYBOARD_PORT if value == KEYBOARD_RESET => Consequence::End(ExitReason::Panic),
            _ => Consequence::None,
        }
    }

    fn device(&self, address: u64) -> Option<(&MmioDevice, u64)> {
        let offset = address.checked_sub(MMIO_START)?;
        let device = self.devices.get(usize::try_from(offset / MMIO_WINDOW).ok()?)?;
        Some((device, offset % MMIO_WINDOW))
    }

    fn serial_register(&self, port: u16) -> Option<(&Console, u8)> {
        let register = u8::try_from(port.checked_sub(SERIAL_PORT)?).ok().filter(|register| *register < 8)?;
        Some((self.console.as_deref()?, register))
    }
}

fn mark(value: u8) -> Consequence {
    const READY: u8 = GuestMark::Ready as u8;
    const POWER_OFF: u8 = GuestMark::PowerOff as u8;
    const REBOOT: u8 = GuestMark::Reboot as u8;
    match value {
        READY => Consequence::AgentReady,
        POWER_OFF => Consequence::End(ExitReason::PowerOff),
        REBOOT => Consequence::End(ExitReason::Reboot),
        _ => Consequence::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory;
    use crate::virtio::rng::Rng;
    use crate::virtio::thread::DeviceThread;

    fn bus() -> Bus {
        let mut thread = DeviceThread::new(crate::jail::seccomp::Thread::Sockets).unwrap();
        let memory = memory::allocate(64).unwrap();
        let rng = thread.add(Box::new(Rng::default()), &memory, &(Arc::new(|| {}) as _)).unwrap();
        Bus::new(vec![Arc::new(rng)], None)
    }

    #[test]
    fn marks_and_resets_have_their_consequences() {
        let bus = bus();
        assert_eq!(bus.io_out(MARK_PORT, &[1]), Consequence::AgentReady);
        assert_eq!(bus.io_out(MARK_PORT, &[2]), Consequence::End(ExitReason::PowerOff));
        assert_eq!(bus.io_out(MARK_PORT, &[3]), Consequence::End(ExitReason::Reboot));
        assert_eq!(bus.io_out(MARK_PORT, &[0]), Consequence::None);
        assert_eq!(bus.io_out(KEYBOARD_PORT, &[0xfe]), Consequence::End(ExitReason::Panic));
        assert_eq!(bus.io_out(KEYBOARD_PORT, &[0xd1]), Consequence::None);
        assert_eq!(bus.io_out(0xcf9, &[6]), Consequence::None);
        assert_eq!(bus.io_out(0x80, &[]), Consequence::None);
    }

    #[test]
    fn every_address_and_size_is_safe() {
        let bus = bus();
        for address in [0, MMIO_START - 1, MMIO_START, MMIO_START + 0xfff, MMIO_START + 0x1000, u64::MAX] {
            for size in 0..=16 {
                let mut data = vec![0xaa; size];
                bus.mmio_read(address, &mut data);
                assert!(bus.mmio_write(address, &data).is_none());
            }
        }
        for port in 0..=u16::MAX {
            let mut data = [0; 4];
            bus.io_in(port, &mut data);
        }
        let mut magic = [0; 4];
        bus.mmio_read(MMIO_START, &mut magic);
        assert_eq!(&magic, b"virt");
        bus.mmio_read(MMIO_START + 0x1000, &mut magic);
        assert_eq!(magic, [0xff; 4]);
    }
}
