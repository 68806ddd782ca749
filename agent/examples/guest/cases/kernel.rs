//! What the guest's kernel has for containers: `config/kernel` and docs/limits.md say why.

use std::collections::BTreeSet;

use serde_json::json;

use crate::container::{Container, sh};
use crate::host::{Client, spec};

/// What the program `kernel` says in a container.
async fn answers(client: &Client, question: &str) -> String {
    let mut asked = spec(&["kernel", question]);
    for set in ["bounding", "effective", "permitted"] {
        let all = asked["process"]["capabilities"][set].as_array_mut().unwrap();
        all.extend([json!("CAP_NET_ADMIN")]);
    }
    let (status, out, err) = Container::create(client, "kernel", asked).await.unwrap().finish().await;
    assert_eq!(status, 0, "{out} {err}");
    out
}

pub async fn sockets(client: Client) {
    assert_eq!(
        answers(&client, "sockets").await,
        "sctp: ok\nsctp6: ok\nmptcp: ok\nmptcp6: ok\nxdp: ok\nmd5: ok\n\
         alg: Address family not supported by protocol\nmempolicy: ok\n"
    );
}

pub async fn links(client: Client) {
    assert_eq!(
        answers(&client, "links").await,
        "dummy: ok\nbridge: ok\nwireguard: ok\nvxlan: ok\ngeneve: ok\nipip: ok\nxfrm: ok\n"
    );
    // None of them comes by itself.
    let (_, out, err) = sh(&client, "ifs", "ls /sys/class/net").await;
    assert_eq!(out, "lo\n", "{err}");
}

/// The calls in the kernel's table that no 64-bit kernel has.
const NOWHERE: &str = "break stty gtty ftime prof lock mpx ulimit profil idle create_module get_kernel_syms bdflush \
                       afs_syscall _sysctl query_module nfsservctl getpmsg putpmsg lookup_dcookie vserver vm86 vm86old";
/// Those that distributions' kernels have beyond ours: modules, kexec, process accounting, libc 4's libraries.
const NOT_HERE: &str = "init_module finit_module delete_module kexec_load acct uselib";
/// Those that are there and do not know what they are asked here: the operation 0, a file system without quotas.
const OF_ITSELF: &str = "ipc quotactl_fd";

pub async fn calls_of_32_bits(client: Client) {
    let out = answers(&client, "calls32").await;
    let missing: BTreeSet<&str> = out.split_whitespace().collect();
    let expected: BTreeSet<&str> =
        [NOWHERE, NOT_HERE, OF_ITSELF].into_iter().flat_map(str::split_whitespace).collect();
    let lost: Vec<_> = missing.difference(&expected).collect();
    let found: Vec<_> = expected.difference(&missing).collect();
    assert!(lost.is_empty() && found.is_empty(), "missing: {lost:?}, there after all: {found:?}");
}

/// The files of the layers and of the scratch disk have numbers that differ, and that fit into 32 bits.
pub async fn files_of_32_bits(client: Client) {
    assert_eq!(answers(&client, "files32").await, "asked\n");
}

/// What the checks of kubeadm, k3s and Docker want, and what the workloads behind docs/limits.md do.
const THERE: &str = "NAMESPACES NET_NS PID_NS IPC_NS UTS_NS USER_NS CGROUPS CGROUP_BPF CGROUP_CPUACCT CGROUP_DEVICE \
    CGROUP_FREEZER CGROUP_HUGETLB CGROUP_PERF CGROUP_PIDS CGROUP_SCHED CPUSETS MEMCG BLK_CGROUP BLK_DEV_THROTTLING \
    CFS_BANDWIDTH FAIR_GROUP_SCHED SECCOMP SECCOMP_FILTER KEYS POSIX_MQUEUE INET EXT4_FS EXT4_FS_POSIX_ACL \
    EXT4_FS_SECURITY QUOTA QFMT_V2 OVERLAY_FS PROC_FS VETH BRIDGE BRIDGE_NETFILTER BRIDGE_VLAN_FILTERING VXLAN GENEVE \
    NET_IPIP IPVLAN MACVLAN DUMMY NF_NAT IP_NF_FILTER IP_NF_MANGLE IP_NF_NAT IP_NF_RAW IP_NF_TARGET_MASQUERADE \
    IP_NF_TARGET_REDIRECT IP_NF_TARGET_REJECT IP_SET IP_VS IP_VS_NFCT IP_VS_PROTO_TCP IP_VS_PROTO_UDP IP_VS_RR \
    NETFILTER_XT_MARK NETFILTER_XT_MATCH_ADDRTYPE NETFILTER_XT_MATCH_BPF NETFILTER_XT_MATCH_COMMENT \
    NETFILTER_XT_MATCH_CONNTRACK NETFILTER_XT_MATCH_IPVS NETFILTER_XT_MATCH_MULTIPORT NETFILTER_XT_MATCH_STATISTIC \
    NETFILTER_XT_TARGET_REDIRECT CRYPTO CRYPTO_AEAD CRYPTO_GCM CRYPTO_SEQIV CRYPTO_GHASH XFRM XFRM_USER XFRM_ALGO \
    INET_ESP INET6_ESP PANIC_ON_OOPS INET_DIAG_DESTROY NFT_FLOW_OFFLOAD NFT_SYNPROXY NET_SCH_PRIO NET_SCH_SFQ \
    NET_CLS_FLOWER PTP_1588_CLOCK_KVM STATIC_USERMODEHELPER";
/// What is left out for its width.
const LEFT_OUT: &str = "MODULES KEXEC DEVMEM PROC_KCORE MD KSM VSOCKETS_DIAG CRYPTO_USER_API_HASH \
    EROFS_FS_ZIP CGROUP_NET_PRIO CGROUP_NET_CLASSID NETFILTER_XTABLES_COMPAT NET_9P KPROBES FTRACE XFS_FS BTRFS_FS";

pub async fn what_is_built_in(client: Client) {
    let script = "zcat /proc/config.gz; for kind in matches targets; do sed \"s/^/$kind /\" /proc/net/ip_tables_$kind; done; \
        head -n 1 /proc/net/ip_vs; echo nodes $(ls -d /sys/devices/system/node/node*); cat /proc/self/cpuset";
    let (status, out, err) = sh(&client, "built", script).await;
    assert_eq!(status, 0, "{err}");
    let lines: BTreeSet<&str> = out.lines().collect();
    let set = |option: &str| lines.contains(format!("CONFIG_{option}=y").as_str());
    let lost: Vec<_> = THERE.split_whitespace().filter(|option| !set(option)).collect();
    let found: Vec<_> = LEFT_OUT.split_whitespace().filter(|option| set(option)).collect();
    assert!(lost.is_empty() && found.is_empty(), "missing: {lost:?}, there after all: {found:?}");
    // The one program that the kernel may start has no name.
    assert!(lines.contains("CONFIG_STATIC_USERMODEHELPER_PATH=\"\""), "{err}");
    for line in [
        "matches ttl",
        "matches quota",
        "matches connlabel",
        "matches ipvs",
        "targets TTL",
        "targets TRACE",
        "targets CHECKSUM",
        "targets SYNPROXY",
        "nodes /sys/devices/system/node/node0",
    ] {
        assert!(lines.contains(line), "{line}: {err}");
    }
    assert!(out.contains("IP Virtual Server version"), "{err}");
}

/// The processor that QEMU emulates says of itself that it needs these two.
pub async fn mitigations(client: Client) {
    let script = "cd /sys/devices/system/cpu/vulnerabilities; grep -H . *";
    let (_, out, err) = sh(&client, "cpu", script).await;
    for flaw in ["spectre_v1", "spectre_v2"] {
        assert!(out.contains(&format!("{flaw}:Mitigation: ")), "{out} {err}");
    }
}
