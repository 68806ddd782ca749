//! A thread that owns devices: the only one that touches them and their queues once the machine runs.
//!
//! It waits for the queues' notifications and the devices' own descriptors, and for messages: the orders of the devices'
//! registers, and those to stand still and to go on.

use std::io;
use std::sync::Arc;
use std::thread::Builder;

use rustix::event::{PollFd, PollFlags};

use super::interrupt::Interrupt;
use super::mmio::MmioDevice;
use super::owner::{Order, Owner, Reset};

use super::{Device, QUEUE_TOKENS};
use crate::event::{Event, EventFd, Mailbox, Poller};
use crate::jail::seccomp::{self, Thread};
use crate::machine::memory::GuestMemory;

/// Owner of the inbox in the event loop; the devices count from 0.
const INBOX: u32 = u32::MAX;

enum Message {
    Order { device: usize, order: Order },
    Pause(Box<dyn FnOnce() + Send>),
    Resume,
}

/// A thread's devices, before it starts.
pub struct DeviceThread {
    thread: Thread,
    poller: Poller,
    inbox: Arc<Mailbox<Message>>,
    devices: Vec<Owned>,
}

impl std::fmt::Debug for DeviceThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceThread").field("thread", &self.thread).finish_non_exhaustive()
    }
}

/// A device and what its thread has to know of it.
struct Owned {
    device: Box<dyn Device>,
    interrupt: Arc<Interrupt>,
    notifications: Arc<[Arc<EventFd>]>,
    active: bool,
    /// To be completed when nobody works for the device any more.
    reset: Option<Arc<Reset>>,
}

impl DeviceThread {
    /// A thread without devices.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(thread: Thread) -> io::Result<Self> {
        let (poller, inbox) = (Poller::new()?, Mailbox::new()?);
        poller.registrar(INBOX).add_readable(&*inbox, 0)?;
        Ok(Self { thread, poller, inbox, devices: Vec::new() })
    }

    /// Gives the thread a device; returns the device's registers. `completed` is called when the device is reset.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn add(
        &mut self,
        mut device: Box<dyn Device>,
        memory: &GuestMemory,
        completed: &Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<MmioDevice> {
        let index = self.devices.len();
        let inbox = Arc::clone(&self.inbox);
        let order = Box::new(move |order| inbox.send(Message::Order { device: index, order }));
        let owner = Owner { order, completed: Arc::clone(completed) };
        let window = MmioDevice::new(device.describe(), memory.clone(), owner)?;
        let registrar = self.poller.registrar(u32::try_from(index).unwrap_or(INBOX));
        for (queue, notification) in (0u32..).zip(window.notifications().iter()) {
            registrar.add_readable(&**notification, QUEUE_TOKENS + queue)?;
        }
        device.attach(registrar)?;
        self.devices.push(Owned {
            device,
            interrupt: Arc::clone(window.interrupt()),
            notifications: Arc::clone(window.notifications()),
            active: false,
            reset: None,
        });
        Ok(window)
    }

    /// Lets it run. `failed` is called if it cannot go on.
    ///
    /// # Errors
    /// When the host has no more threads.
    pub fn start(mut self, failed: impl FnOnce(io::Error) + Send + 'static) -> io::Result<Handle> {
        let inbox = Arc::clone(&self.inbox);
        Builder::new().name(self.thread.name().into()).spawn(move || {
            seccomp::tighten(self.thread);
            if let Err(error) = self.run() {
                failed(error);
            }
        })?;
        Ok(Handle { inbox })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            for event in self.poller.wait(None)? {
                if event.owner == INBOX {
                    self.receive()?;
                } else if let Some(owned) = self.devices.get_mut(event.owner as usize) {
                    owned.handle(event);
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut paused = false;
        loop {
            for message in self.inbox.receive() {
                match message {
                    Message::Order { device, order } => {
                        if let Some(owned) = self.devices.get_mut(device) {
                            owned.obey(order);
                        }
                    }
                    Message::Pause(confirm) => {
                        paused = true;
                        confirm();
                    }
                    Message::Resume => {
                        paused = false;
                        self.devices.iter().for_each(Owned::serve_all_soon);
                    }
                }
            }
            if !paused {
                return Ok(());
            }
            // Nothing but messages is looked at meanwhile; what becomes ready stays so.
            match rustix::event::poll(&mut [PollFd::new(&*self.inbox, PollFlags::IN)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Owned {
    fn handle(&mut self, event: Event) {
        if event.token < QUEUE_TOKENS {
            self.device.event(event.token, event.readiness);
            self.finish_reset();
            return;
        }
        let queue = (event.token - QUEUE_TOKENS) as usize;
        if let Some(notification) = self.notifications.get(queue) {
            notification.clear();
            if self.active && !self.interrupt.is_reset_needed() {
                self.device.serve(queue);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Activate { features, queues } => {
                self.device.activate(features, queues);
                self.active = true;
                // Chains that were added before the driver was ready, and descriptors that became ready.
                self.serve_all_soon();
            }
            Order::Reset(reset) => {
                self.device.reset();
                self.active = false;
                self.reset = Some(reset);
                self.finish_reset();
            }
        }
    }

    fn finish_reset(&mut self) {
        if self.device.in_flight() == 0
            && let Some(reset) = self.reset.take()
        {
            self.interrupt.reset();
            reset.complete();
        }
    }

    fn serve_all_soon(&self) {
        self.notifications.iter().for_each(|notification| notification.signal());
    }
}

/// A running thread's inbox.
pub struct Handle {
    inbox: Arc<Mailbox<Message>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Asks the thread to stand still. `confirm` is called, on that thread, when no device takes a chain any more; what
    /// others have in flight for a device may still end in guest memory, but the guest is told after the pause only.
    pub fn pause(&self, confirm: impl FnOnce() + Send + 'static) {
        self.inbox.send(Message::Pause(Box::new(confirm)));
    }

    /// Lets the thread go on.
    pub fn resume(&self) {
        self.inbox.send(Message::Resume);
    }
}

#[cfg(test)]
mod tests;
