//! What a hostile guest may do. Kernels that attack the machine, here: a few instructions in the place of one do to the
//! devices what no driver would; the machine's process is the one that is installed, jailed and filtered as for a pod.
//! Agents that lie to the shim: [`agent`]; machines that do: [`vmm`]; containers with every right in a whole guest: [`container`].
//!
//! Whatever a guest does, the machine answers its shim, does not grow, and ends for no reason but its own; and the shim does
//! what containerd asks it for.

mod agent;
mod container;
mod guest;
mod machine;
mod programs;
mod vmm;

use ravelin_tests::Host;

use guest::Op;
use machine::Machine;

/// Runs a guest until it has come out to the machine so often, looking after the machine all the while.
fn survives(name: &str, ops: &[Op], exits: u64) {
    let mut machine = Machine::start(ops);
    machine.endure(name, exits);
    machine.stop(name);
}

/// How many exits a guest gets.
fn patience() -> u64 {
    if Host::whole() { 100_000 } else { 8_000 }
}

#[test]
fn registers_written_at_random_harm_nobody() {
    let Some(_host) = Host::shared_with_ravelin() else { return };
    survives("registers", &programs::registers(), patience());
}

#[test]
fn queues_full_of_nonsense_harm_nobody() {
    let Some(_host) = Host::shared_with_ravelin() else { return };
    for device in programs::DEVICES {
        survives(device.name, &programs::nonsense(device), patience() / 4);
    }
}

#[test]
fn resets_in_the_middle_of_requests_harm_nobody() {
    let Some(_host) = Host::shared_with_ravelin() else { return };
    for device in programs::DEVICES {
        survives(device.name, &programs::resets(device), patience() / 4);
    }
}

#[test]
fn notifications_and_marks_without_end_keep_nobody_from_being_heard() {
    let Some(_host) = Host::shared_with_ravelin() else { return };
    survives("notifications", &programs::notifications(), patience() * 2);
    survives("marks", &programs::marks(), patience() * 2);
}

#[test]
fn receive_buffers_that_hold_a_header_and_nothing_else_spin_nobody() {
    let Some(_host) = Host::shared_with_ravelin() else { return };
    survives("vsock", &programs::headers_only(), patience() / 4);
}
