//! A whole machine's devices with the threads that own them, behind the bus that processors reach them by.
#![no_main]

use std::io::PipeReader;
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::event::{EventFd, Mailbox};
use ravelin_vmm::jail::seccomp::Thread;
use ravelin_vmm::machine::bus::Bus;
use ravelin_vmm::machine::console::Console;
use ravelin_vmm::machine::layout::{MMIO_START, MMIO_WINDOW};
use ravelin_vmm::virtio::Device;
use ravelin_vmm::virtio::balloon::Balloon;
use ravelin_vmm::virtio::block::Block;
use ravelin_vmm::virtio::block::extents::Extents;
use ravelin_vmm::virtio::block::scratch::Scratch;
use ravelin_vmm::virtio::fs::Fs;
use ravelin_vmm::virtio::owner::Reset;
use ravelin_vmm::virtio::rng::Rng;
use ravelin_vmm::virtio::thread::{DeviceThread, Handle};
use ravelin_vmm::virtio::vsock::Vsock;
use ravelin_vmm_fuzz::{Rings, SIZE, address, any_register, any_value, fresh_memory, memory_file, put};

const STATUS: u64 = 0x70;
const PATIENCE: Duration = Duration::from_secs(30);

/// One machine for all inputs: its threads never end.
struct Machine {
    bus: Bus,
    threads: Vec<Handle>,
    completed: Arc<(Mutex<()>, Condvar)>,
    _console: PipeReader,
}

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    let memory = fresh_memory();
    let completed = Arc::<(Mutex<()>, Condvar)>::default();
    let tell = Arc::clone(&completed);
    let tell: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        drop(tell.0.lock().unwrap());
        tell.1.notify_all();
    });
    let extents = Extents::new(true);
    extents.add(0, 8192, memory_file(8192, 1), false).unwrap();
    let scratch = Scratch::new(memory_file(1 << 20, 0)).unwrap();
    let devices: [(Thread, Vec<Box<dyn Device>>); 2] = [
        (
            Thread::Disks,
            vec![
                Box::new(Block::new("layers", Box::new(extents)).unwrap()),
                Box::new(Block::new("scratch", Box::new(scratch)).unwrap()),
            ],
        ),
        (
            Thread::Sockets,
            vec![
                Box::new(Vsock::new(Mailbox::new().unwrap(), Box::new(|_| {}))),
                Box::<Rng>::default(),
                Box::new(Balloon::new(4)),
                Box::new(Fs::new(Mailbox::new().unwrap())),
            ],
        ),
    ];
    let (mut windows, mut threads) = (Vec::new(), Vec::new());
    for (name, devices) in devices {
        let mut thread = DeviceThread::new(name).unwrap();
        for device in devices {
            windows.push(Arc::new(thread.add(device, &memory, &tell).unwrap()));
        }
        threads.push(thread.start(|error| panic!("{error}")).unwrap());
    }
    // A reader that never reads.
    let (reader, pipe) = std::io::pipe().unwrap();
    let pipe = std::fs::File::from(std::os::fd::OwnedFd::from(pipe));
    let console = Console::new(pipe, EventFd::new().unwrap()).unwrap();
    Machine { bus: Bus::new(windows, Some(Arc::new(console))), threads, completed, _console: reader }
});

impl Machine {
    fn write(&self, address: u64, data: &[u8]) {
        if let Some(reset) = self.bus.mmio_write(address, data) {
            self.wait(&reset);
        }
    }

    fn wait(&self, reset: &Reset) {
        let held = self.completed.0.lock().unwrap();
        let waited = self.completed.1.wait_timeout_while(held, PATIENCE, |()| !reset.is_done()).unwrap();
        assert!(!waited.1.timed_out(), "a reset does not end");
    }

    fn set(&self, window: u64, register: u64, value: u32) {
        self.write(window + register, &value.to_le_bytes());
    }

    fn start(&self, window: u64, queues: usize) {
        for (register, value) in [(STATUS, 0), (STATUS, 1), (STATUS, 3), (0x24, 1), (0x20, 1), (STATUS, 11)] {
            self.set(window, register, value);
        }
        for queue in 0..queues {
            let rings = Rings::of(queue);
            for (register, value) in [
                (0x30, queue as u32),
                (0x38, SIZE.into()),
                (0x80, rings.table() as u32),
                (0x90, rings.available_ring() as u32),
                (0xa0, rings.used_ring() as u32),
                (0x44, 1),
            ] {
                self.set(window, register, value);
            }
        }
        self.set(window, STATUS, 15);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let machine = &*MACHINE;
    let memory = fresh_memory();
    let devices = machine.bus.devices();
    let mut input = Input::new(bytes);
    let mut rings: Vec<_> = (0..3).map(Rings::of).collect();
    while !input.is_empty() {
        let number = input.below(devices.len());
        let (device, window) = (&devices[number], MMIO_START + MMIO_WINDOW * number as u64);
        match input.u8() % 12 {
            0 => machine.set(window, any_register(&mut input) % MMIO_WINDOW, any_value(&mut input)),
            1 => machine.start(window, device.notifications().len()),
            2 => {
                let size = input.below(9);
                machine.write(address(&mut input), input.bytes(size));
            }
            3 => {
                let mut data = [0; 8];
                let size = input.below(9);
                machine.bus.mmio_read(window + any_register(&mut input) % MMIO_WINDOW, &mut data[..size]);
            }
            4 => {
                let (port, size) = (input.u16(), input.below(5));
                let _ = machine.bus.io_out(port, input.bytes(size));
            }
            5 => {
                let mut data = [0; 4];
                machine.bus.io_in(0x3f8 + u16::from(input.u8() % 16), &mut data);
            }
            6 => {
                let _ = machine.bus.io_out(0x3f8 + u16::from(input.u8() % 8), &[input.u8()]);
            }
            7 => {
                let at = address(&mut input);
                let length = usize::from(input.u8());
                put(&memory, at, input.bytes(length));
            }
            8 => {
                let thread = &machine.threads[input.below(machine.threads.len())];
                thread.pause(|| {});
                thread.resume();
            }
            kind => {
                let queue = input.below(device.notifications().len());
                if kind > 9 {
                    rings[queue].play(&memory, &mut input);
                }
                device.notifications()[queue].signal();
            }
        }
    }
    for number in 0..devices.len() as u64 {
        machine.set(MMIO_START + MMIO_WINDOW * number, STATUS, 0);
    }
});
