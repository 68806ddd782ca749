//! The kernel's command line.

use std::fmt::Write;

use super::last_words;
use super::layout::MMIO_WINDOW;

/// What every guest gets: end on panic, no probing for hardware that is not there, no waiting that buys nothing in a
/// fresh machine. The jitter entropy source alone would take a third of the boot to test itself; the processor and the
/// entropy device feed the kernel's generator. No interface is there but the pod's own: tunnels and dummies come when they
/// are asked for. The initramfs is kept: its pages are the host's own, and giving them back would overwrite and so copy
/// each of them.
const BASE: &str = "panic=-1 reboot=k random.trust_cpu=on cryptomgr.notests no_timer_check \
                    rcupdate.rcu_expedited=1 dummy.numdummies=0 fb_tunnels=none \
                    initcall_blacklist=jent_mod_init retain_initrd";
/// Without the debug console nothing is printed and the serial port is not probed for.
const SILENT: &str = "quiet loglevel=0 8250.nr_uarts=0";
/// With it, from the first moment on.
const CONSOLE: &str = "console=ttyS0 earlycon=uart8250,io,0x3f8";

/// Builds the command line of a machine with `devices` (address and interrupt line of each).
#[must_use]
pub fn build(devices: &[(u64, u32)], console: bool, extra: &str) -> String {
    let mut line = format!("{BASE} {} {}", last_words::cmdline(), if console { CONSOLE } else { SILENT });
    for (address, irq) in devices {
        // Writing to a String cannot fail.
        let _ = write!(line, " virtio_mmio.device={MMIO_WINDOW:#x}@{address:#x}:{irq}");
    }
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_extra_arguments_follow_the_base() {
        let line = build(&[(0xd000_0000, 5), (0xd000_1000, 6)], false, "a=b");
        assert!(line.starts_with("panic=-1 reboot=k"));
        assert!(
            line.ends_with(
                " virtio_mmio.device=0x1000@0xd0000000:5 virtio_mmio.device=0x1000@0xd0001000:6 a=b"
            )
        );
        assert!(line.contains("8250.nr_uarts=0") && !line.contains("console="));
    }

    #[test]
    fn a_console_is_not_silenced() {
        let line = build(&[], true, "");
        assert!(line.contains("console=ttyS0") && !line.contains("quiet"));
    }
}
