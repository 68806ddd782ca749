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

/// Every capability, in the order of the kernel's numbers, in which container runtimes write them for `ALL`.
pub(crate) const KERNEL_ORDER: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Whether a runtime wrote this list for `ALL`: most capabilities in the kernel's order. It need not be every one: the pod
/// may drop some beside `ALL`, and the runtime gives only those that it has itself. What a pod adds by name is appended
/// to the default set, which is in another order.
pub(crate) fn stands_for_all(names: &[&str]) -> bool {
    let number = |name: &&str| KERNEL_ORDER.iter().position(|known| known == name).unwrap_or(usize::MAX);
    names.len() > KERNEL_ORDER.len() / 2 && names.is_sorted_by_key(number)
}
