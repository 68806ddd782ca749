//! The shim's side of a running machine: its requests, and the replies that wait until it reads them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use super::CONTROL;
use crate::control::transport::{self, Packet, TransportError};
use crate::control::{Answer, Message, Request};
use crate::event::Registrar;
use crate::log::{describe, log};

/// The shim gets its turn for reading so many replies before it may ask for more.
const MAX_OUTGOING: usize = 256;

/// The control socket, which does not block, and what is to be sent through it.
pub(super) struct Shim<'a> {
    socket: &'a OwnedFd,
    outgoing: VecDeque<Message>,
    /// What the socket is waited for: reading, writing.
    interest: (bool, bool),
}

impl<'a> Shim<'a> {
    /// The shim at the other end of `socket`, which is waited for as [`CONTROL`] until it is readable.
    pub fn new(socket: &'a OwnedFd) -> Self {
        Self { socket, outgoing: VecDeque::new(), interest: (true, false) }
    }

    /// Has the socket waited for: for requests if `listens`, unless the shim does not read its replies; and for room if
    /// there are replies that did not go.
    pub fn watch(&mut self, registrar: &Registrar, listens: bool) -> io::Result<()> {
        let interest = (listens && !self.is_behind(), !self.outgoing.is_empty());
        if interest != self.interest {
            self.interest = interest;
            registrar.change(self.socket, CONTROL, interest.0, interest.1)?;
        }
        Ok(())
    }

    /// The next request; `None` when the shim is gone. There is none (it would block) for a shim that does not read its
    /// replies.
    pub fn receive(&self) -> Result<Option<Packet<Request>>, TransportError> {
        if self.is_behind() {
            return Err(TransportError::Socket(io::ErrorKind::WouldBlock.into()));
        }
        transport::recv(self.socket)
    }

    pub fn reply(&mut self, id: u64, result: Result<Answer, String>) {
        self.outgoing.push_back(Message::Reply { id, result });
    }

    /// Sends what the socket takes; whether the shim is still there.
    pub fn flush(&mut self) -> bool {
        while let Some(message) = self.outgoing.front() {
            match transport::send(self.socket, message, &[]) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(error) if error.would_block() => break,
                Err(TransportError::Socket(_)) => {
                    self.outgoing.clear();
                    return false;
                }
                Err(error) => {
                    log(&describe(&error));
                    self.outgoing.pop_front();
                }
            }
        }
        true
    }

    fn is_behind(&self) -> bool {
        self.outgoing.len() >= MAX_OUTGOING
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Command;
    use crate::event::{Poller, set_nonblocking};

    /// What the machine's loop does with its shim; whether there was nothing to do.
    fn turn(shim: &mut Shim<'_>, poller: &mut Poller) -> bool {
        assert!(shim.flush());
        shim.watch(&poller.registrar(0), true).unwrap();
        let events = poller.wait(Some(0)).unwrap();
        for _ in &events {
            while let Ok(Some(packet)) = shim.receive() {
                shim.reply(packet.message.id, Ok(Answer::Done));
            }
        }
        events.is_empty()
    }

    #[test]
    fn a_shim_that_does_not_read_its_replies_is_not_listened_to_until_it_does() {
        const TURNS: usize = 1000;
        let (ours, theirs) = transport::pair().unwrap();
        set_nonblocking(&ours).unwrap();
        set_nonblocking(&theirs).unwrap();
        let mut poller = Poller::new().unwrap();
        poller.registrar(0).add_readable(&ours, CONTROL).unwrap();
        let mut shim = Shim::new(&ours);
        let (mut asked, mut answered) = (0, 0);
        let rests = (0..TURNS).any(|_| {
            while transport::send(&theirs, &Request { id: asked, command: Command::Resume }, &[]).is_ok() {
                asked += 1;
            }
            turn(&mut shim, &mut poller)
        });
        assert!(rests, "the loop spins while the shim does not read");
        assert_eq!(shim.outgoing.len(), MAX_OUTGOING);
        for round in 0..TURNS {
            while let Ok(Some(packet)) = transport::recv::<Message>(&theirs) {
                assert_eq!(packet.message, Message::Reply { id: answered, result: Ok(Answer::Done) });
                answered += 1;
            }
            if answered == asked {
                break;
            }
            assert!(
                round > 0 || !poller.wait(Some(0)).unwrap().is_empty(),
                "room for replies wakes the loop"
            );
            turn(&mut shim, &mut poller);
        }
        assert_eq!(answered, asked);
        assert!(turn(&mut shim, &mut poller), "the loop spins when all is said");
    }
}
