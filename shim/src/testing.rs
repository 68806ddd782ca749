//! What tests of several modules share.

/// Says why a test does nothing here.
///
/// # Panics
/// When root runs the tests: as root everything can be tried that they try, so something is missing on this machine, and
/// a test that was not run would pass for one that succeeded.
#[track_caller]
pub fn skip(why: &str) {
    assert!(!rustix::process::geteuid().is_root(), "this test cannot be left out when root runs it: {why}");
    println!("skipped: {why}");
}
