//! The threads that wait for a disk: a few for each, made when they are first needed. They touch the file and the
//! buffers of one request, and nothing else of the device.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use crate::jail::seccomp::{self, Thread};
use crate::sync::lock;

/// Most threads a disk: requests that wait for it at the same time.
pub const MOST: usize = 4;

/// A disk's threads, which do to each item what they were made for.
pub struct Workers<T> {
    name: &'static str,
    shared: Arc<Shared<T>>,
    threads: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    work: Box<dyn Fn(T) + Send + Sync>,
}

struct State<T> {
    queue: VecDeque<T>,
    idle: usize,
    closed: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }
}

impl<T: Send + 'static> Workers<T> {
    /// Threads, none yet, that call `work`.
    pub fn new(name: &'static str, work: impl Fn(T) + Send + Sync + 'static) -> Self {
        let state = Mutex::new(State { queue: VecDeque::new(), idle: 0, closed: false });
        Self {
            name,
            shared: Arc::new(Shared { state, changed: Condvar::new(), work: Box::new(work) }),
            threads: 0,
        }
    }

    /// Leaves an item to the next free thread. If there is no thread at all, because the host has none left, it is
    /// worked at here.
    pub fn submit(&mut self, item: T) {
        let mut state = self.shared.lock();
        state.queue.push_back(item);
        let enough = state.queue.len() <= state.idle || self.threads == MOST;
        drop(state);
        self.shared.changed.notify_one();
        if enough {
            return;
        }
        let shared = Arc::clone(&self.shared);
        match Builder::new().name(self.name.into()).spawn(move || {
            seccomp::inherit(Thread::Disks);
            run(&shared);
        }) {
            Ok(_) => self.threads += 1,
            Err(_) if self.threads > 0 => {}
            Err(_) => {
                let item = self.shared.lock().queue.pop_front();
                item.map(&self.shared.work);
            }
        }
    }
}

impl<T> Workers<T> {
    /// Drops the items that no thread has begun to work at; returns how many they were.
    pub fn forget(&self) -> usize {
        std::mem::take(&mut self.shared.lock().queue).len()
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

fn run<T>(shared: &Shared<T>) {
    let mut state = shared.lock();
    loop {
        if let Some(item) = state.queue.pop_front() {
            drop(state);
            (shared.work)(item);
            state = shared.lock();
        } else if state.closed {
            return;
        } else {
            state.idle += 1;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
