//! Which frames the tap may leave unfinished: without checksums, and larger than the network takes.

use super::{F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, tap};

/// The offloads that drivers accept, and those of the tap.
///
/// Changing a tap's takes the lock that all of the node's network configuration shares, and a guest may start and reset
/// its device as often as it likes. So they are changed only where they must be: a tap begins without any, gets those of
/// the first driver, and loses those that a later one does not accept. Nothing brings them back; the host does the work.
#[derive(Debug)]
pub struct Offloads {
    /// What all drivers so far accepted.
    features: u64,
    /// What the tap was told last.
    told: u32,
}

impl Default for Offloads {
    fn default() -> Self {
        Self { features: u64::MAX, told: 0 }
    }
}

impl Offloads {
    /// A driver accepted `features`; returns what the tap has to be told, if anything.
    pub fn agree(&mut self, features: u64) -> Option<u32> {
        self.features &= features;
        let wanted = offloads(self.features);
        (std::mem::replace(&mut self.told, wanted) != wanted).then_some(wanted)
    }

    /// Whether there may be frames larger than the network takes.
    pub fn segments(&self) -> bool {
        self.told & (tap::OFFLOAD_TSO4 | tap::OFFLOAD_TSO6) != 0
    }
}

/// What the tap has to do for a guest that accepted `features`.
fn offloads(features: u64) -> u32 {
    let pairs = [
        (F_GUEST_CSUM, tap::OFFLOAD_CSUM),
        (F_GUEST_TSO4, tap::OFFLOAD_TSO4),
        (F_GUEST_TSO6, tap::OFFLOAD_TSO6),
        (F_GUEST_ECN, tap::OFFLOAD_TSO_ECN),
    ];
    let wanted =
        pairs.iter().filter(|(feature, _)| features & feature != 0).fold(0, |all, (_, flag)| all | flag);
    // The kernel refuses segmentation offload without checksum offload, and ECN without segmentation.
    if wanted & tap::OFFLOAD_CSUM == 0 {
        0
    } else if wanted & (tap::OFFLOAD_TSO4 | tap::OFFLOAD_TSO6) == 0 {
        tap::OFFLOAD_CSUM
    } else {
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;

    #[test]
    fn offloads_depend_on_each_other() {
        assert_eq!(offloads(ALL), 15);
        assert_eq!(offloads(ALL & !F_GUEST_CSUM), 0);
        assert_eq!(offloads(F_GUEST_CSUM | F_GUEST_ECN), tap::OFFLOAD_CSUM);
        assert_eq!(offloads(0), 0);
    }

    #[test]
    fn the_tap_is_told_only_what_is_new_to_it() {
        let mut plain = Offloads::default();
        assert_eq!(plain.agree(0), None, "a tap begins without any");
        let mut offloads = Offloads::default();
        assert_eq!(offloads.agree(ALL), Some(15));
        assert!(offloads.segments());
        assert_eq!(offloads.agree(ALL), None);
    }

    #[test]
    fn a_guest_that_changes_its_mind_for_ever_is_heard_a_few_times() {
        let mut offloads = Offloads::default();
        let heard = (0..1000u64).filter_map(|turn| offloads.agree(ALL & !((turn % 16) << 7))).count();
        assert!(heard <= 5, "{heard}");
        assert_eq!(offloads.agree(F_GUEST_CSUM), None);
        assert!(!offloads.segments());
    }
}
