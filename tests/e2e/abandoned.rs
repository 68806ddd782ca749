//! Pods whose shim and machine have died together, and after which nobody cleans up.

use std::time::Duration;

use ravelin_tests::shim::{Bootstrap, Shim};
use ravelin_tests::{Host, until};

/// As after a containerd that was away while both died, and whose own state is gone: it will never ask for a clean-up.
#[test]
fn the_next_pods_start_takes_away_what_an_abandoned_pod_has_left() {
    // Alone: another pod that starts at that moment may be the one that looks, and may have looked before.
    let Some(host) = Host::alone_with_ravelin() else { return };
    let abandoned = Shim::start(&host, Bootstrap::Params);
    abandoned.run_sandbox();
    abandoned.abandon();
    let left = abandoned.remains();
    for kind in ["/run/ravelin/", "/shim-tests/", " filter "] {
        assert!(
            left.iter().any(|line| line.contains(kind)),
            "there is nothing like {kind} to take away: {left:?}"
        );
    }

    let next = Shim::start(&host, Bootstrap::Params);
    next.run_sandbox();
    let mut left = Vec::new();
    let clean = until(Duration::from_secs(120), || {
        left = abandoned.remains();
        left.is_empty().then_some(())
    });
    assert!(clean.is_some(), "still there after another pod's start:\n  {}", left.join("\n  "));
    assert_eq!(next.state(&next.id, "").as_deref(), Ok("RUNNING"));
    next.remove_sandbox();
}
