use std::sync::Mutex;

use super::*;
use crate::machine::memory;
use crate::virtio::queue::{Malformed, QueueSpec};

const QUEUE: QueueSpec =
    QueueSpec { size: 64, max_chain_bytes: 4096, signal_every: 1, malformed: Malformed::GiveBack };

/// What the device's thread was told.
#[derive(Debug, Default)]
struct Told {
    activated: Vec<(u64, Vec<bool>)>,
    resets: Vec<Arc<Reset>>,
    completed: usize,
}

struct Bench {
    transport: Transport,
    told: Arc<Mutex<Told>>,
    interrupt: Arc<Interrupt>,
}

impl Bench {
    fn new() -> Self {
        Self::with(memory::allocate(64).unwrap())
    }

    fn with(memory: GuestMemory) -> Self {
        let told: Arc<Mutex<Told>> = Arc::default();
        let device = Description {
            name: "probe",
            id: 42,
            features: 1 << 3,
            queues: vec![QUEUE, QueueSpec { size: 16, ..QUEUE }],
            config: vec![1, 2, 3, 4, 5],
            writable_config: 3..5,
        };
        let (ordered, completed) = (Arc::clone(&told), Arc::clone(&told));
        let owner = Owner {
            order: Box::new(move |order| match order {
                Order::Activate { features, queues } => {
                    let ready = queues.iter().map(Option::is_some).collect();
                    ordered.lock().unwrap().activated.push((features, ready));
                }
                Order::Reset(reset) => ordered.lock().unwrap().resets.push(reset),
            }),
            completed: Arc::new(move || completed.lock().unwrap().completed += 1),
        };
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let notifications = device.queues.iter().map(|_| Arc::new(EventFd::new().unwrap())).collect();
        let transport = Transport::new(device, memory, Arc::clone(&interrupt), notifications, owner);
        Self { transport, told, interrupt }
    }

    fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes what nobody has to wait for.
    fn put(&mut self, offset: u64, value: u32) {
        assert!(self.transport.write(offset, &value.to_le_bytes()).is_none());
    }

    fn reset(&mut self) -> Option<Arc<Reset>> {
        self.transport.write(STATUS, &[0; 4])
    }

    fn activations(&self) -> usize {
        self.told.lock().unwrap().activated.len()
    }

    fn features(&mut self, features: u64) {
        self.put(DRIVER_FEATURES_SEL, 0);
        self.put(DRIVER_FEATURES, low(features));
        self.put(DRIVER_FEATURES_SEL, 1);
        self.put(DRIVER_FEATURES, high(features));
    }

    /// As far as a driver goes before it sets queues up.
    fn negotiate(&mut self) {
        self.put(STATUS, ACKNOWLEDGE);
        self.put(STATUS, ACKNOWLEDGE | DRIVER);
        self.features(F_VERSION_1 | F_EVENT_IDX);
        self.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.get(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn queue(&mut self, queue: u32, size: u32) {
        self.put(QUEUE_SEL, queue);
        self.put(QUEUE_NUM, size);
        self.put(QUEUE_DESC_LOW, 0x1000 + queue * 0x4000);
        self.put(QUEUE_DRIVER_LOW, 0x2000 + queue * 0x4000);
        self.put(QUEUE_DEVICE_LOW, 0x3000 + queue * 0x4000);
        self.put(QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }
}

#[test]
fn a_correct_driver_gets_its_device() {
    let mut bench = Bench::new();
    assert_eq!((bench.get(MAGIC_VALUE), bench.get(VERSION), bench.get(DEVICE_ID)), (MAGIC, 2, 42));
    bench.put(DEVICE_FEATURES_SEL, 1);
    assert_eq!(bench.get(DEVICE_FEATURES), 1);
    bench.negotiate();
    bench.queue(0, 32);
    assert_eq!((bench.get(QUEUE_NUM_MAX), bench.get(QUEUE_READY)), (64, 1));
    bench.start();
    assert_eq!(bench.told.lock().unwrap().activated, [(F_VERSION_1 | F_EVENT_IDX, vec![true, false])]);
    assert_eq!(bench.interrupt.guest_errors(), 0);
    assert_eq!(bench.get(QUEUE_READY), 1);
}

#[test]
fn status_bits_are_set_in_order_and_never_taken_back() {
    let all = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
    for first in &all[1..] {
        let mut bench = Bench::new();
        bench.put(STATUS, *first);
        assert_eq!(bench.get(STATUS), 0, "{first}");
    }
    let mut bench = Bench::new();
    bench.negotiate();
    bench.put(STATUS, ACKNOWLEDGE);
    assert_eq!(bench.get(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    bench.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    bench.start();
    assert_eq!(bench.activations(), 0, "a driver that failed has to reset first");
    bench.put(STATUS, 0);
    assert_eq!(bench.get(STATUS), 0);
    assert!(bench.told.lock().unwrap().resets.is_empty(), "the device was never started");
}

#[test]
fn features_that_are_not_offered_or_lack_version_1_are_refused() {
    for features in [F_VERSION_1 | 1, F_VERSION_1 | 1 << 63, 0, F_EVENT_IDX] {
        let mut bench = Bench::new();
        bench.put(STATUS, ACKNOWLEDGE);
        bench.put(STATUS, ACKNOWLEDGE | DRIVER);
        bench.features(features);
        bench.put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(bench.get(STATUS), ACKNOWLEDGE | DRIVER, "{features:#x}");
    }
}

#[test]
fn features_cannot_change_after_they_are_agreed_on() {
    let mut bench = Bench::new();
    bench.negotiate();
    bench.features(F_VERSION_1 | 1 << 3);
    bench.start();
    assert_eq!(bench.told.lock().unwrap().activated[0].0, F_VERSION_1 | F_EVENT_IDX);
}

#[test]
fn impossible_queue_sizes_are_ignored() {
    for size in [0, 3, 65, 128, 0x1_0000, 0x1_0040, u32::MAX] {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.put(QUEUE_NUM, size);
        assert_eq!(bench.transport.queues[0].size(), 64, "{size}");
        assert_eq!(bench.interrupt.guest_errors(), 1, "{size}");
    }
}

#[test]
fn a_queue_outside_memory_or_misaligned_does_not_become_ready() {
    for (register, value) in [
        (QUEUE_DESC_LOW, 0x1001),
        (QUEUE_DRIVER_LOW, 0x2001),
        (QUEUE_DEVICE_LOW, 0x3002),
        (QUEUE_DESC_LOW, 64 << 20),
        (QUEUE_DRIVER_LOW, (64 << 20) - 2),
        (QUEUE_DEVICE_LOW, (64 << 20) - 4),
        (QUEUE_DESC_HIGH, 1),
        (QUEUE_DRIVER_HIGH, u32::MAX),
        (QUEUE_DEVICE_HIGH, 0x8000_0000),
    ] {
        let mut bench = Bench::new();
        bench.negotiate();
        bench.put(QUEUE_DESC_LOW, 0x1000);
        bench.put(QUEUE_DRIVER_LOW, 0x2000);
        bench.put(QUEUE_DEVICE_LOW, 0x3000);
        bench.put(register, value);
        bench.put(QUEUE_READY, 1);
        // A misaligned address is not taken at all; the one before it stays.
        let misaligned = matches!(value, 0x1001 | 0x2001 | 0x3002);
        assert_eq!(bench.get(QUEUE_READY), u32::from(misaligned), "{register:#x} = {value:#x}");
        assert!(bench.interrupt.guest_errors() > 0, "{register:#x} = {value:#x}");
    }
}

#[test]
fn queues_are_closed_to_change_except_between_features_and_start() {
    let registers = [QUEUE_NUM, QUEUE_READY, QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_HIGH];
    let mut early = Bench::new();
    for register in registers {
        early.put(register, 1);
    }
    assert_eq!(early.interrupt.guest_errors(), registers.len() as u64);

    let mut ready = Bench::new();
    ready.negotiate();
    ready.queue(0, 16);
    ready.put(QUEUE_NUM, 64);
    ready.put(QUEUE_DESC_LOW, 0x8000);
    assert_eq!((ready.transport.queues[0].size(), ready.transport.queues[0].desc_table()), (16, 0x1000));
    assert_eq!(ready.interrupt.guest_errors(), 2);

    let mut started = Bench::new();
    started.negotiate();
    started.queue(0, 16);
    started.start();
    for queue in [0, 1, 2, u32::MAX] {
        started.put(QUEUE_SEL, queue);
        for register in registers {
            started.put(register, 16);
        }
    }
    started.put(QUEUE_SEL, 0);
    started.put(QUEUE_READY, 0);
    assert_eq!(started.get(QUEUE_READY), 1);
    started.start();
    assert_eq!(started.activations(), 1, "a device starts once");
}

#[test]
fn a_reset_gives_everything_back_and_the_device_starts_again() {
    let mut bench = Bench::new();
    for round in 1..=3 {
        bench.negotiate();
        bench.queue(1, 16);
        bench.start();
        assert_eq!(bench.activations(), round);
        bench.interrupt.queue_used();
        bench.interrupt.needs_reset();
        assert_ne!(bench.get(STATUS) & NEEDS_RESET, 0);
        let reset = bench.reset().unwrap();
        // What the device's thread does.
        bench.interrupt.reset();
        reset.complete();
        assert_eq!((bench.get(STATUS), bench.get(INTERRUPT_STATUS)), (0, 0));
        bench.put(QUEUE_SEL, 1);
        assert_eq!(bench.get(QUEUE_READY), 0);
        let told = bench.told.lock().unwrap();
        assert_eq!((told.resets.len(), told.completed), (round, round));
    }
}

#[test]
fn a_device_that_is_being_reset_shows_so_and_takes_nothing_else() {
    let mut bench = Bench::new();
    bench.negotiate();
    bench.queue(0, 16);
    bench.start();
    let before = bench.get(STATUS);
    let reset = bench.reset().unwrap();
    assert_eq!(bench.get(STATUS), before);
    bench.put(QUEUE_SEL, 1);
    bench.put(STATUS, ACKNOWLEDGE);
    assert_eq!(bench.interrupt.guest_errors(), 2);
    // A driver that asks again waits for the same reset.
    assert!(Arc::ptr_eq(&bench.reset().unwrap(), &reset));
    assert_eq!(bench.told.lock().unwrap().resets.len(), 1);
    reset.complete();
    assert_eq!(bench.get(STATUS), 0);
    bench.put(STATUS, ACKNOWLEDGE);
    assert_eq!(bench.get(STATUS), ACKNOWLEDGE);
}

#[test]
fn the_driver_may_write_one_field_of_the_configuration_until_a_reset() {
    let mut bench = Bench::new();
    let mut write = |offset, data: &[u8]| {
        assert!(bench.transport.write(CONFIG + offset, data).is_none());
        let mut config = [0; 5];
        bench.transport.read(CONFIG, &mut config);
        config
    };
    for (offset, data) in
        [(0, &[9, 9][..]), (3, &[9]), (3, &[9, 9, 9]), (4, &[9, 9]), (u64::MAX - CONFIG, &[9])]
    {
        assert_eq!(write(offset, data), [1, 2, 3, 4, 5], "{offset}");
    }
    assert_eq!(write(3, &[9, 8]), [1, 2, 3, 9, 8]);
    bench.put(STATUS, 0);
    let mut config = [0; 5];
    bench.transport.read(CONFIG, &mut config);
    assert_eq!(config, [1, 2, 3, 0, 0]);
}

#[test]
fn a_driver_is_told_when_the_host_changes_the_configuration() {
    let mut bench = Bench::new();
    // Nobody drives the device yet: what it is read from is what it says by then.
    bench.transport.set_config(0, 7);
    assert_eq!((bench.get(INTERRUPT_STATUS), bench.get(CONFIG)), (0, 7));
    let before = bench.get(CONFIG_GENERATION);
    bench.negotiate();
    bench.start();
    bench.transport.set_config(0, 0x0102_0304);
    assert_eq!((bench.get(INTERRUPT_STATUS), bench.get(CONFIG)), (2, 0x0102_0304));
    assert_ne!(bench.get(CONFIG_GENERATION), before);
    // Beyond the end there is nothing.
    bench.transport.set_config(2, u32::MAX);
    bench.transport.set_config(usize::MAX, u32::MAX);
    assert_eq!((bench.get(CONFIG), bench.transport.config(2)), (0x0102_0304, 0));
}

#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let mut bench = Bench::new();
    bench.interrupt.queue_used();
    bench.interrupt.needs_reset();
    assert_eq!(bench.get(INTERRUPT_STATUS), 3);
    bench.put(INTERRUPT_ACK, 1);
    assert_eq!(bench.get(INTERRUPT_STATUS), 2);
    bench.put(INTERRUPT_ACK, u32::MAX);
    assert_eq!(bench.get(INTERRUPT_STATUS), 0);
}

#[test]
fn the_configuration_is_read_in_every_size_and_ends_in_zeros() {
    let mut bench = Bench::new();
    for size in 0..=9 {
        for offset in 0..=8 {
            let mut data = vec![0xee; size];
            bench.transport.read(CONFIG + offset, &mut data);
            let expected: Vec<u8> =
                (offset..offset + size as u64).map(|at| if at < 5 { at as u8 + 1 } else { 0 }).collect();
            assert_eq!(data, expected);
        }
    }
}

/// Every register, every access size, in every state: nothing panics, and a device starts only by the rules.
#[test]
fn every_access_in_every_state_is_safe() {
    let states: [fn(&mut Bench); 4] = [
        |_| {},
        |bench| {
            bench.put(STATUS, ACKNOWLEDGE);
        },
        |bench| bench.negotiate(),
        |bench| {
            bench.negotiate();
            bench.queue(0, 16);
            bench.start();
        },
    ];
    let memory = memory::allocate(64).unwrap();
    for prepare in states {
        for value in [0, 1, 2, 15, 64, 128, 255, u32::MAX] {
            for offset in 0..CONFIG + 16 {
                for size in 0..=8usize {
                    let mut bench = Bench::with(memory.clone());
                    prepare(&mut bench);
                    let before = bench.activations();
                    let mut data = vec![0; size];
                    for (target, byte) in data.iter_mut().zip(value.to_le_bytes()) {
                        *target = byte;
                    }
                    let reset = bench.transport.write(offset, &data);
                    bench.transport.read(offset, &mut data);
                    // Only the reset of a started device is waited for.
                    assert!(reset.is_none() || (before > 0 && offset == STATUS && value == 0 && size == 4));
                    let after = bench.activations();
                    // Status bits are added one by one, so only a negotiated device can start, and 15 does it.
                    assert!(after == before || (offset == STATUS && value == 15 && size == 4));
                }
            }
        }
    }
}
