use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;
use crate::event::{Readiness, Registrar};
use crate::machine::memory;
use crate::virtio::Description;
use crate::virtio::queue::{Malformed, QueueSpec, Virtqueue};

const PATIENCE: Duration = Duration::from_secs(20);
const STATUS: u64 = 0x70;
const QUEUE_READY: u64 = 0x44;

/// A device that tells each call and, while it serves a queue, waits to be let go.
struct Probe {
    calls: Sender<&'static str>,
    go: Receiver<()>,
    in_flight: Arc<AtomicUsize>,
    landed: Arc<EventFd>,
}

impl Device for Probe {
    fn describe(&self) -> Description {
        let queue =
            QueueSpec { size: 16, max_chain_bytes: 4096, signal_every: 1, malformed: Malformed::GiveBack };
        Description { name: "probe", id: 42, queues: vec![queue], ..Description::default() }
    }

    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add_readable(&*self.landed, 0)
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        assert!(queues.iter().all(Option::is_some));
        self.calls.send("activate").unwrap();
    }

    fn reset(&mut self) {
        self.calls.send("reset").unwrap();
    }

    fn serve(&mut self, _queue: usize) {
        self.calls.send("serve").unwrap();
        self.go.recv_timeout(PATIENCE).unwrap();
    }

    fn event(&mut self, _token: u32, _readiness: Readiness) {
        self.landed.clear();
        self.calls.send("event").unwrap();
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }
}

struct Bench {
    window: MmioDevice,
    handle: Handle,
    calls: Receiver<&'static str>,
    go: Sender<()>,
    in_flight: Arc<AtomicUsize>,
    landed: Arc<EventFd>,
    completed: Receiver<()>,
}

impl Bench {
    fn new() -> Self {
        let (calls_in, calls) = channel();
        let (go, go_out) = channel();
        let (completed_in, completed) = channel();
        let in_flight = Arc::new(AtomicUsize::new(0));
        let landed = Arc::new(EventFd::new().unwrap());
        let probe = Probe {
            calls: calls_in,
            go: go_out,
            in_flight: Arc::clone(&in_flight),
            landed: Arc::clone(&landed),
        };
        let mut thread = DeviceThread::new(crate::jail::seccomp::Thread::Sockets).unwrap();
        let completed_in = std::sync::Mutex::new(completed_in);
        let tell: Arc<dyn Fn() + Send + Sync> =
            Arc::new(move || completed_in.lock().unwrap().send(()).unwrap());
        let window = thread.add(Box::new(probe), &memory::allocate(64).unwrap(), &tell).unwrap();
        let handle = thread.start(|error| panic!("{error}")).unwrap();
        Self { window, handle, calls, go, in_flight, landed, completed }
    }

    fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.window.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, register: u64, value: u32) -> Option<Arc<Reset>> {
        self.window.write(register, &value.to_le_bytes())
    }

    /// What a driver does until its device is active.
    fn start(&self) {
        let steps = [
            (STATUS, 1),
            (STATUS, 3),
            (0x24, 1),
            (0x20, 1),
            (STATUS, 11),
            (0x38, 16),
            (0x80, 0x1000),
            (0x90, 0x2000),
            (0xa0, 0x3000),
            (QUEUE_READY, 1),
            (STATUS, 15),
        ];
        for (register, value) in steps {
            assert!(self.put(register, value).is_none());
        }
        assert_eq!(self.call(), "activate");
    }

    fn call(&self) -> &'static str {
        self.calls.recv_timeout(PATIENCE).unwrap()
    }
}

#[test]
fn a_busy_device_keeps_nobody_from_its_registers() {
    let bench = Bench::new();
    bench.start();
    assert_eq!(bench.call(), "serve");
    // The device's thread stands in the middle of a request.
    assert_eq!(
        (bench.get(STATUS), bench.get(QUEUE_READY), bench.get(0)),
        (15, 1, u32::from_le_bytes(*b"virt"))
    );
    assert!(bench.put(0x30, 0).is_none());
    let reset = bench.put(STATUS, 0).unwrap();
    assert!(!reset.is_done());
    assert_eq!(bench.get(STATUS), 15);
    bench.go.send(()).unwrap();
    assert_eq!(bench.call(), "reset");
    bench.completed.recv_timeout(PATIENCE).unwrap();
    assert!(reset.is_done());
    assert_eq!(bench.get(STATUS), 0);
}

#[test]
fn a_reset_is_complete_when_nobody_works_for_the_device_any_more() {
    let bench = Bench::new();
    bench.start();
    assert_eq!(bench.call(), "serve");
    bench.in_flight.store(2, Ordering::SeqCst);
    let reset = bench.put(STATUS, 0).unwrap();
    bench.go.send(()).unwrap();
    assert_eq!(bench.call(), "reset");
    for left in [1, 0] {
        assert!(!reset.is_done());
        bench.in_flight.store(left, Ordering::SeqCst);
        bench.landed.signal();
        assert_eq!(bench.call(), "event");
    }
    bench.completed.recv_timeout(PATIENCE).unwrap();
    assert!(reset.is_done());
    // And all over again.
    bench.start();
    assert_eq!(bench.call(), "serve");
    bench.go.send(()).unwrap();
}

#[test]
fn a_paused_thread_serves_nothing_until_it_goes_on_and_then_everything() {
    let bench = Bench::new();
    bench.start();
    assert_eq!(bench.call(), "serve");
    bench.go.send(()).unwrap();
    let (paused_in, paused) = channel();
    bench.handle.pause(move || paused_in.send(()).unwrap());
    paused.recv_timeout(PATIENCE).unwrap();
    bench.window.notifications()[0].signal();
    bench.landed.signal();
    let quiet_until = Instant::now() + Duration::from_millis(50);
    while Instant::now() < quiet_until {
        assert_eq!(
            bench.calls.recv_timeout(Duration::from_millis(10)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        );
    }
    bench.go.send(()).unwrap();
    bench.handle.resume();
    let mut calls = [bench.call(), bench.call()];
    calls.sort_unstable();
    assert_eq!(calls, ["event", "serve"]);
}
