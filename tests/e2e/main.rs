//! The end-to-end tests, one module per theme. They run as root on a host with containerd and Ravelin installed;
//! `RAVELIN_HANDLER=runc` runs all that is not about the microVM against runc, which proves the tests themselves;
//! `RAVELIN_HANDLER=ravelin-sandbox` runs all through containerd's sandbox API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod abandoned;
mod apparmor;
mod attach;
mod clock;
mod confinement;
mod cri;
mod density;
mod dns;
mod exec;
mod failures;
#[path = "../faults/mod.rs"]
mod faults;
mod file_volumes;
#[path = "../hostile/mod.rs"]
mod hostile;
mod image_volumes;
mod images;
mod kvm;
mod lifecycle;
mod namespaces;
mod network;
mod policy;
mod process_attributes;
mod programs;
mod resources;
mod roots;
mod sandbox_api;
mod security;
mod shim_protocol;
mod start_failures;
mod stats;
mod stdio;
mod survival;
mod terminal;
mod user_namespace;
mod volumes;

use std::collections::BTreeMap;

/// The `key=value` lines of what a container printed.
fn report(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Panics with both sides when `said` does not hold `expected`.
#[track_caller]
fn assert_says(said: &str, expected: &str) {
    assert!(said.contains(expected), "expected {expected:?} in {said:?}");
}
