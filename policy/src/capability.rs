//! Linux capabilities by the names Kubernetes uses (no `CAP_` prefix).

/// The capabilities a container has unless it drops them: containerd's default set, and the ones Fargate lets a
/// container add.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Whether Fargate accepts `name` under `capabilities.add`. The match is exact: `CAP_CHOWN` and `chown` are refused.
#[must_use]
pub fn addable(name: &str) -> bool {
    DEFAULT_CAPABILITIES.contains(&name)
}

/// The capabilities every kernel since Linux 3.16 has beyond the default ones; a bounding set that holds all of
/// them stands for `ALL`.
pub(crate) const BEYOND_DEFAULT: [&str; 24] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
