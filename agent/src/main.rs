//! The guest's `/init`.
#![no_main]

use std::ffi::{c_char, c_int};

use ravelin_agent::{init, log, server, spawner};

/// The C library's entry. Rust's own would first look for open standard descriptors and end the process, and with it
/// the machine, when there are none and no `/dev/null` either: the state the kernel starts init in.
#[unsafe(no_mangle)]
extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    spawner::serve_if_called();
    if std::process::id() != 1 {
        // Not on a machine of its own: do nothing to it.
        return 2;
    }
    if let Err(error) = init::prepare() {
        log!("cannot prepare the guest: {error}");
        return 1;
    }
    // When init returns the kernel panics, and the machine reports that.
    match server::run() {
        Ok(()) => log!("the server ended"),
        Err(error) => log!("cannot serve: {error}"),
    }
    1
}
