//! The agent's log: the kernel's own, which a debugging console shows.

use std::fs::OpenOptions;
use std::io::Write;

/// Writes one line to the kernel log; silently nothing where there is none.
pub fn line(text: &str) {
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record; the kernel cuts records at about 1 kB.
        let _ = kmsg.write_all(format!("<4>ravelin-agent: {text}\n").as_bytes());
    }
}

/// Logs a formatted line.
#[macro_export]
macro_rules! log {
    ($($arg:tt)*) => { $crate::log::line(&format!($($arg)*)) };
}
