//! The network device (virtio 1.3 §5.1) on a tap.
//!
//! Frames move between the tap and guest memory without a copy, with the virtio-net header that both sides share, so
//! that checksums and segmentation are left to whoever does them best.

mod control;
mod offloads;
mod receive;
pub mod tap;
mod transmit;

use std::io;

use super::queue::{Budget, Malformed, QueueSpec, Virtqueue};
use super::{Description, Device};
use crate::event::{Readiness, Registrar};
use offloads::Offloads;
use receive::Receiver;
use tap::Tap;
use transmit::transmit;

const ID: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 16;
/// Most bytes of a chain. Receive buffers may be as large as the driver likes; a frame never is.
const MAX_CHAIN_BYTES: usize = 1 << 20;
/// Frames after which the guest hears of them, even while there are more.
const SIGNAL_EVERY: u16 = 64;
/// Most frames, and chains of the guest's for them, in one call, so that a flood at one queue does not starve the others.
const BUDGET: u16 = 256;
/// `struct virtio_net_hdr_v1`, in front of each frame.
pub const HEADER_BYTES: usize = 12;
/// The largest frame, header included, that segmentation offload makes: 64 KiB of IP packet in Ethernet with a VLAN tag.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + 18 + 65535;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;

/// A network device that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The descriptor is no tap, or one without virtio-net headers.
    #[error("Cannot use tap queue {queue} for the guest's network")]
    Tap {
        /// Which of the queues.
        queue: usize,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// The network device.
#[derive(Debug)]
pub struct Net {
    taps: Vec<Tap>,
    features: u64,
    config: [u8; 12],
    offloads: Offloads,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    receivers: Vec<Option<Receiver>>,
    transmitters: Vec<Option<Virtqueue>>,
    control: Option<Virtqueue>,
    /// Pairs that the driver uses; the tap's other queues are received by these in turn.
    pairs: usize,
}

impl Net {
    /// A device with the given address on `taps`, one per queue pair.
    ///
    /// # Errors
    /// When a descriptor is not a tap queue in the mode that is needed.
    pub fn new(taps: Vec<std::fs::File>, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        let taps = taps
            .into_iter()
            .enumerate()
            .map(|(queue, tap)| Tap::new(tap).map_err(|source| NetError::Tap { queue, source }))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::on(taps, mac, mtu))
    }

    /// A device on sockets in the place of taps: they keep frames apart as taps do.
    #[cfg(fuzzing)]
    #[must_use]
    pub fn on_sockets(sockets: Vec<std::os::unix::net::UnixDatagram>, mac: [u8; 6], mtu: u16) -> Self {
        Self::on(sockets.into_iter().map(Tap::stand_in).collect(), mac, mtu)
    }

    fn on(taps: Vec<Tap>, mac: [u8; 6], mtu: u16) -> Self {
        let pairs = u16::try_from(taps.len()).unwrap_or(u16::MAX);
        let mut features = F_CSUM
            | F_GUEST_CSUM
            | F_MTU
            | F_MAC
            | F_GUEST_TSO4
            | F_GUEST_TSO6
            | F_GUEST_ECN
            | F_HOST_TSO4
            | F_HOST_TSO6
            | F_HOST_ECN
            | F_MRG_RXBUF
            | F_STATUS;
        if taps.len() > 1 {
            features |= F_MQ | F_CTRL_VQ;
        }
        let [m0, m1, m2, m3, m4, m5] = mac;
        let ([p0, p1], [t0, t1]) = (pairs.to_le_bytes(), mtu.to_le_bytes());
        // Address, status (link up), most queue pairs, MTU.
        let config = [m0, m1, m2, m3, m4, m5, 1, 0, p0, p1, t0, t1];
        Self { taps, features, config, offloads: Offloads::default(), active: None }
    }

    /// Delivers what arrived at `tap`.
    fn receive(&mut self, tap: usize, budget: &mut Budget) {
        let Some(active) = &mut self.active else { return };
        let receiver = tap.checked_rem(active.pairs).and_then(|pair| active.receivers.get_mut(pair));
        if let (Some(Some(receiver)), Some(tap)) = (receiver, self.taps.get(tap)) {
            receiver.receive(tap, budget);
        }
    }

    /// Delivers what arrived at the `first` tap and every `step`th after it. Each gets the same part of one budget, so
    /// that a flood at one holds up neither the others nor whoever else waits for this thread.
    fn receive_all(&mut self, first: usize, step: usize) {
        let taps = (first..self.taps.len()).step_by(step.max(1));
        let share = u16::try_from(usize::from(BUDGET) / taps.len().max(1)).unwrap_or(BUDGET).max(1);
        for tap in taps {
            self.receive(tap, &mut Budget::new(share));
        }
    }

    fn transmit(&mut self, pair: usize, budget: &mut Budget) {
        let Some(active) = &mut self.active else { return };
        if let (Some(Some(queue)), Some(tap)) = (active.transmitters.get_mut(pair), self.taps.get(pair)) {
            transmit(queue, tap, budget);
        }
    }

    fn control(&mut self) {
        let Some(active) = &mut self.active else { return };
        let most = active.receivers.len();
        let Some(queue) = &mut active.control else { return };
        if let Some(pairs) = control::serve(queue, most) {
            active.pairs = pairs;
            // What waits in a tap queue may belong to another receiver now.
            self.receive_all(0, 1);
        }
    }
}

impl Device for Net {
    fn describe(&self) -> Description {
        let queue = |size| QueueSpec {
            size,
            max_chain_bytes: MAX_CHAIN_BYTES,
            signal_every: SIGNAL_EVERY,
            malformed: Malformed::GiveBack,
        };
        let mut queues = vec![queue(QUEUE_SIZE); self.taps.len() * 2];
        if self.features & F_CTRL_VQ != 0 {
            queues.push(queue(CONTROL_QUEUE_SIZE));
        }
        Description {
            name: "net",
            id: ID,
            features: self.features,
            queues,
            config: self.config.into(),
            ..Description::default()
        }
    }

    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        (0u32..).zip(&self.taps).try_for_each(|(index, tap)| registrar.add_edges(tap, index))
    }

    fn activate(&mut self, features: u64, queues: Vec<Option<Virtqueue>>) {
        // All queues of a tap share its offloads.
        if let (Some(offloads), Some(tap)) = (self.offloads.agree(features), self.taps.first()) {
            tap.set_offloads(offloads);
        }
        let mergeable = features & F_MRG_RXBUF != 0;
        let [.., t0, t1] = self.config;
        let plain = HEADER_BYTES + 18 + usize::from(u16::from_le_bytes([t0, t1]));
        let least = if self.offloads.segments() { MAX_FRAME_BYTES } else { plain };
        // The control queue follows the pairs that were negotiated (virtio 1.3 §5.1.2).
        let most = if features & F_MQ != 0 { self.taps.len() } else { 1 };
        let mut receivers = Vec::new();
        let mut transmitters = Vec::new();
        let mut queues = queues.into_iter();
        for _ in 0..most {
            receivers.push(queues.next().flatten().map(|queue| Receiver::new(queue, mergeable, least)));
            transmitters.push(queues.next().flatten());
        }
        let control = queues.next().flatten().filter(|_| features & F_CTRL_VQ != 0);
        self.active = Some(Active { receivers, transmitters, control, pairs: 1 });
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn serve(&mut self, queue: usize) {
        let Some(active) = &self.active else { return };
        let pairs = active.pairs;
        if queue == active.receivers.len() * 2 {
            self.control();
        } else if queue.is_multiple_of(2) {
            // New buffers for a receiver: serve every tap queue that is its.
            self.receive_all(queue / 2, pairs);
        } else {
            self.transmit(queue / 2, &mut Budget::new(BUDGET));
        }
    }

    fn event(&mut self, tap: u32, readiness: Readiness) {
        let mut budget = Budget::new(BUDGET);
        if readiness.readable {
            self.receive(tap as usize, &mut budget);
        }
        if readiness.writable {
            self.transmit(tap as usize, &mut budget);
        }
    }
}

#[cfg(test)]
mod tests;
