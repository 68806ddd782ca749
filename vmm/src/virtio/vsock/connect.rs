//! Connecting: from the command to the guest's answer.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::stream::Stream;
use super::{Command, Connected, FIRST_PORT, MAX_STREAMS, Vsock};
use crate::virtio::QUEUE_TOKENS;

/// A booting guest that refused is asked again after this time, if it does not say that it is ready before.
const RETRY_TIME: Duration = Duration::from_millis(50);

/// An attempt to connect that the guest has not decided.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: u64,
    deadline: Instant,
    retry: Option<Instant>,
}

impl Attempt {
    /// When something has to be done about it.
    pub(super) fn next(&self) -> Instant {
        self.retry.map_or(self.deadline, |retry| retry.min(self.deadline))
    }
}

impl Vsock {
    /// Handles a message.
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Connect { id, port, within, socket } => {
                if let Err(error) = self.connect(id, port, within, socket) {
                    self.reply(id, Err(error));
                }
            }
            Command::WhenDrained(tell) => self.when_drained = Some(tell),
            Command::AgentReady => {
                self.agent_ready = true;
                let refused = |(port, attempt): (&u32, &mut Attempt)| attempt.retry.take().map(|_| *port);
                let ports: Vec<u32> = self.attempts.iter_mut().filter_map(refused).collect();
                for port in ports {
                    self.request(port);
                }
            }
        }
    }

    fn connect(&mut self, id: u64, port: u32, within: Duration, socket: OwnedFd) -> Result<(), String> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(format!("The guest already has {MAX_STREAMS} connections"));
        }
        crate::event::set_nonblocking(&socket)
            .map_err(|error| format!("Cannot use the socket for guest port {port}: {error}"))?;
        let host_port = self.free_port();
        let attempt = Attempt { id, deadline: Instant::now() + within, retry: None };
        self.streams.insert(host_port, Stream::new(socket, host_port, port));
        self.attempts.insert(host_port, attempt);
        self.request(host_port);
        Ok(())
    }

    /// A port that no stream uses, below those of the tokens of queues.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port + 1 < QUEUE_TOKENS { port + 1 } else { FIRST_PORT };
            if !self.streams.contains_key(&port) {
                return port;
            }
        }
    }

    /// Asks the guest for the connection of `port`.
    pub(super) fn request(&mut self, port: u32) {
        if let Some(stream) = self.streams.get_mut(&port) {
            stream.request();
        }
        self.queue_stream(port);
    }

    /// Answers an attempt.
    pub(super) fn reply(&self, id: u64, result: Result<(), String>) {
        (self.answer)(Connected { id, result });
    }

    /// The time of the attempt at `port` has come: to ask again, or to fail.
    pub(super) fn expire_attempt(&mut self, port: u32, now: Instant) {
        let Some(attempt) = self.attempts.get_mut(&port) else { return };
        if attempt.deadline > now {
            attempt.retry = None;
            self.request(port);
            return;
        }
        let id = attempt.id;
        self.attempts.remove(&port);
        if let Some(stream) = self.streams.get_mut(&port) {
            let guest_port = stream.guest_port();
            stream.reset();
            self.queue_stream(port);
            self.reply(id, Err(format!("The guest did not answer on port {guest_port} in time")));
        }
    }

    /// The guest accepted the connection of `port`.
    pub(super) fn accepted(&mut self, port: u32) {
        let (Some(stream), Some(attempt)) = (self.streams.get_mut(&port), self.attempts.remove(&port)) else {
            return;
        };
        let result = match &self.registrar {
            Some(registrar) => registrar.add_edges(&*stream, port),
            None => Ok(()),
        };
        match result {
            Ok(()) => {
                stream.accept();
                self.reply(attempt.id, Ok(()));
            }
            Err(error) => {
                stream.reset();
                self.reply(attempt.id, Err(format!("Cannot wait for a connection's socket: {error}")));
            }
        }
    }

    /// The guest refused the connection of `port`.
    pub(super) fn refused(&mut self, port: u32) {
        let (Some(stream), Some(attempt)) = (self.streams.get_mut(&port), self.attempts.get_mut(&port))
        else {
            return;
        };
        if !self.agent_ready {
            // Nobody listens yet. Once the agent does, or after a while, the guest is asked again.
            attempt.retry = Some(Instant::now() + RETRY_TIME);
            return;
        }
        let (id, guest_port) = (attempt.id, stream.guest_port());
        stream.guest_reset();
        self.attempts.remove(&port);
        self.reply(id, Err(format!("The guest refused the connection to port {guest_port}")));
    }
}
