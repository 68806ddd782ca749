//! A container's counters in the form containerd reads: `io.containerd.cgroups.v2.Metrics`.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use ravelin_proto::agent::StatsResponse;

/// Most disks whose counters are passed on.
const MAX_DISKS: usize = 64;

/// Turns the agent's counters into containerd's.
#[must_use]
pub fn metrics(stats: &StatsResponse) -> Metrics {
    let mut metrics = Metrics::new();
    let mut pids = PidsStat::new();
    pids.current = stats.pids_current;
    pids.limit = stats.pids_limit;
    metrics.pids = MessageField::some(pids);
    if let Some(cpu) = &stats.cpu {
        let mut out = CPUStat::new();
        out.usage_usec = cpu.usage_usec;
        out.user_usec = cpu.user_usec;
        out.system_usec = cpu.system_usec;
        out.nr_periods = cpu.nr_periods;
        out.nr_throttled = cpu.nr_throttled;
        out.throttled_usec = cpu.throttled_usec;
        metrics.cpu = MessageField::some(out);
    }
    if let Some(memory) = &stats.memory {
        let mut out = MemoryStat::new();
        for (name, value) in &memory.stat {
            if let Some(field) = memory_field(&mut out, name) {
                *field = *value;
            }
        }
        out.usage = memory.usage;
        out.usage_limit = memory.usage_limit;
        out.swap_usage = memory.swap_usage;
        out.swap_limit = memory.swap_limit;
        metrics.memory = MessageField::some(out);
        let mut events = MemoryEvents::new();
        events.low = memory.events_low;
        events.high = memory.events_high;
        events.max = memory.events_max;
        events.oom = memory.events_oom;
        events.oom_kill = memory.events_oom_kill;
        metrics.memory_events = MessageField::some(events);
    }
    let mut io = IOStat::new();
    io.usage = stats.io.iter().take(MAX_DISKS).map(disk).collect();
    metrics.io = MessageField::some(io);
    metrics
}

fn disk(disk: &ravelin_proto::agent::IoStats) -> IOEntry {
    let mut out = IOEntry::new();
    out.major = disk.major;
    out.minor = disk.minor;
    out.rbytes = disk.rbytes;
    out.wbytes = disk.wbytes;
    out.rios = disk.rios;
    out.wios = disk.wios;
    out
}

/// The field for a line of `memory.stat`.
fn memory_field<'a>(memory: &'a mut MemoryStat, name: &str) -> Option<&'a mut u64> {
    Some(match name {
        "anon" => &mut memory.anon,
        "file" => &mut memory.file,
        "kernel_stack" => &mut memory.kernel_stack,
        "slab" => &mut memory.slab,
        "sock" => &mut memory.sock,
        "shmem" => &mut memory.shmem,
        "file_mapped" => &mut memory.file_mapped,
        "file_dirty" => &mut memory.file_dirty,
        "file_writeback" => &mut memory.file_writeback,
        "anon_thp" => &mut memory.anon_thp,
        "inactive_anon" => &mut memory.inactive_anon,
        "active_anon" => &mut memory.active_anon,
        "inactive_file" => &mut memory.inactive_file,
        "active_file" => &mut memory.active_file,
        "unevictable" => &mut memory.unevictable,
        "slab_reclaimable" => &mut memory.slab_reclaimable,
        "slab_unreclaimable" => &mut memory.slab_unreclaimable,
        "pgfault" => &mut memory.pgfault,
        "pgmajfault" => &mut memory.pgmajfault,
        "workingset_refault" => &mut memory.workingset_refault,
        "workingset_activate" => &mut memory.workingset_activate,
        "workingset_nodereclaim" => &mut memory.workingset_nodereclaim,
        "pgrefill" => &mut memory.pgrefill,
        "pgscan" => &mut memory.pgscan,
        "pgsteal" => &mut memory.pgsteal,
        "pgactivate" => &mut memory.pgactivate,
        "pgdeactivate" => &mut memory.pgdeactivate,
        "pglazyfree" => &mut memory.pglazyfree,
        "pglazyfreed" => &mut memory.pglazyfreed,
        "thp_fault_alloc" => &mut memory.thp_fault_alloc,
        "thp_collapse_alloc" => &mut memory.thp_collapse_alloc,
        _ => return None,
    })
}

/// What is known of a container without counters: whether it was killed for memory.
#[must_use]
pub fn of_the_unknown(oom_killed: bool) -> Metrics {
    let mut metrics = metrics(&StatsResponse::default());
    let mut events = MemoryEvents::new();
    events.oom_kill = oom_killed.into();
    metrics.memory_events = MessageField::some(events);
    metrics.memory = MessageField::some(MemoryStat::new());
    metrics.cpu = MessageField::some(CPUStat::new());
    metrics
}

/// The metrics as the `Any` of a stats response.
///
/// # Errors
/// Never for these messages; the encoder's type has one.
pub fn any(metrics: &Metrics) -> protobuf::Result<Any> {
    let mut any = Any::new();
    any.type_url = "io.containerd.cgroups.v2.Metrics".to_owned();
    any.value = metrics.write_to_bytes()?;
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ravelin_proto::agent::{CpuStats, MemoryStats};

    #[test]
    fn counters_keep_their_names() {
        let stats = StatsResponse {
            cpu: Some(CpuStats { usage_usec: 7, ..CpuStats::default() }),
            memory: Some(MemoryStats {
                usage: 9,
                stat: [("anon".to_owned(), 3), ("made_up".to_owned(), 4)].into(),
                events_oom_kill: 1,
                ..MemoryStats::default()
            }),
            ..StatsResponse::default()
        };
        let any = any(&metrics(&stats)).unwrap();
        let back = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((back.cpu.usage_usec, back.memory.usage, back.memory.anon), (7, 9, 3));
        assert_eq!(back.memory_events.oom_kill, 1);
    }
}
