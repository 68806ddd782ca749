//! Waiting for descriptors: a thin epoll, registrars that devices use, and mailboxes between threads.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use crate::sync::lock;

/// An eventfd(2): a descriptor that is readable from when it is signalled until it is cleared. Non-blocking.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Makes one.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes whoever waits for it. Signals add up, so that a full counter (which cannot take more) still wakes.
    pub fn signal(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes all signals so far.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Another handle of the same counter in the type that kvm-ioctls takes.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn for_kvm(&self) -> io::Result<vmm_sys_util::eventfd::EventFd> {
        use std::os::fd::{FromRawFd, IntoRawFd};
        let copy = self.0.try_clone()?;
        // SAFETY: the descriptor is an eventfd that nothing else owns.
        Ok(unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(copy.into_raw_fd()) })
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Messages for the owner of something, with a descriptor that tells that there are some.
#[derive(Debug)]
pub struct Mailbox<T> {
    messages: Mutex<VecDeque<T>>,
    event: EventFd,
}

impl<T> Mailbox<T> {
    /// An empty mailbox.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { messages: Mutex::new(VecDeque::new()), event: EventFd::new()? }))
    }

    /// Leaves a message.
    pub fn send(&self, message: T) {
        lock(&self.messages).push_back(message);
        self.event.signal();
    }

    /// Takes all messages.
    pub fn receive(&self) -> VecDeque<T> {
        self.event.clear();
        std::mem::take(&mut *lock(&self.messages))
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// Reading yields data, the end, or an error.
    pub readable: bool,
    /// Writing makes progress, or yields an error.
    pub writable: bool,
    /// The other end is gone altogether.
    pub closed: bool,
}

/// One ready descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Who registered it.
    pub owner: u32,
    /// What the owner calls it.
    pub token: u32,
    /// How it stands.
    pub readiness: Readiness,
}

/// A set of descriptors that one thread waits for.
#[derive(Debug)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?) })
    }

    /// A handle through which `owner` adds its descriptors.
    #[must_use]
    pub fn registrar(&self, owner: u32) -> Registrar {
        Registrar { epoll: Arc::clone(&self.epoll), owner }
    }

    /// Waits until something is ready, at most `timeout_ms` milliseconds if given, and returns what is.
    ///
    /// # Errors
    /// When epoll fails, which it does not unless the process is broken.
    pub fn wait(&mut self, timeout_ms: Option<u32>) -> io::Result<Vec<Event>> {
        const AT_ONCE: usize = 32;
        let timeout = timeout_ms
            .map(|ms| Timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 });
        let mut buffer = [const { MaybeUninit::<epoll::Event>::uninit() }; AT_ONCE];
        match epoll::wait(&self.epoll, &mut buffer[..], timeout.as_ref()) {
            Ok((events, _)) => Ok(events.iter().map(translate).collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn translate(event: &epoll::Event) -> Event {
    let (flags, data) = ({ event.flags }, { event.data }.u64());
    let over = EventFlags::HUP | EventFlags::ERR;
    Event {
        owner: (data >> 32) as u32,
        token: (data & 0xffff_ffff) as u32,
        readiness: Readiness {
            readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | over),
            writable: flags.intersects(EventFlags::OUT | over),
            closed: flags.intersects(over),
        },
    }
}

/// Adds one owner's descriptors to a [`Poller`]. A descriptor leaves the set when it is closed.
#[derive(Debug, Clone)]
pub struct Registrar {
    epoll: Arc<OwnedFd>,
    owner: u32,
}

impl Registrar {
    /// Reports `fd` as long as it is readable.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn add_readable(&self, fd: impl AsFd, token: u32) -> io::Result<()> {
        self.add(fd, token, EventFlags::IN)
    }

    /// Reports `fd` each time it becomes readable or writable (edge-triggered).
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn add_edges(&self, fd: impl AsFd, token: u32) -> io::Result<()> {
        self.add(fd, token, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET)
    }

    /// Changes what `fd`, which is reported as long as it is ready, is waited for. That its other end is gone is reported
    /// in any case.
    ///
    /// # Errors
    /// When epoll does not have the descriptor.
    pub fn change(&self, fd: impl AsFd, token: u32, readable: bool, writable: bool) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, readable);
        flags.set(EventFlags::OUT, writable);
        Ok(epoll::modify(&self.epoll, fd, self.data(token), flags)?)
    }

    /// Takes `fd` off the set.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn add(&self, fd: impl AsFd, token: u32, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, self.data(token), flags)?)
    }

    fn data(&self, token: u32) -> EventData {
        EventData::new_u64(u64::from(self.owner) << 32 | u64::from(token))
    }
}

/// Makes a descriptor non-blocking, for every process that shares it.
///
/// # Errors
/// When the descriptor does not take it.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// The raw number of a descriptor, for system calls that rustix does not cover.
pub(crate) fn raw(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_wakes_its_owner_once() {
        let mut poller = Poller::new().unwrap();
        let mailbox = Mailbox::new().unwrap();
        poller.registrar(3).add_readable(&*mailbox, 9).unwrap();
        mailbox.send("a");
        mailbox.send("b");
        let events: Vec<_> = poller.wait(Some(1000)).unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].owner, events[0].token), (3, 9));
        assert_eq!(mailbox.receive(), ["a", "b"]);
        assert_eq!(poller.wait(Some(0)).unwrap().len(), 0);
    }

    #[test]
    fn a_closed_peer_is_readable_and_closed() {
        let mut poller = Poller::new().unwrap();
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        poller.registrar(0).add_edges(&left, 1).unwrap();
        drop(right);
        let events: Vec<_> = poller.wait(Some(1000)).unwrap();
        assert!(events[0].readiness.readable && events[0].readiness.closed);
    }
}
