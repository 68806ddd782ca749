use super::*;

const MI: u64 = 1 << 20;
const GI: u64 = 1 << 30;

fn fargate(cpu_millis: u64, memory_bytes: u64) -> String {
    match size(Requests { cpu_millis, memory_bytes }, &SizingConfig::default()) {
        Ok(size) => size.capacity_provisioned(),
        Err(error) => error.to_string(),
    }
}

const EXCEEDS: &str = "Your pod's cpu/memory requirements exceed the max Fargate configuration";

#[test]
fn published_sizes_are_given() {
    for (cpu, memory, expected) in [
        (0, 0, "0.25vCPU 0.5GB"),
        (250, 1000 * MI, "0.25vCPU 2GB"),
        (255, 1000 * MI, "0.5vCPU 2GB"),
        (260, 1750 * MI, "0.5vCPU 2GB"),
        (255, 1800 * MI, "0.5vCPU 3GB"),
        (255, 10 * GI, "2vCPU 11GB"),
        (1000, 8 * GI, "2vCPU 9GB"),
        (150, 150 * MI, "0.25vCPU 0.5GB"),
        // Sizes since the 8 and 16 vCPU rows exist.
        (9000, 10 * GI, "16vCPU 32GB"),
        (255, 31 * GI, "8vCPU 32GB"),
        // Boundaries.
        (250, 256 * MI, "0.25vCPU 0.5GB"),
        (250, 257 * MI, "0.25vCPU 1GB"),
        (250, 256 * MI + 1, "0.25vCPU 1GB"),
        (251, 0, "0.5vCPU 1GB"),
        (250, 2 * GI - 256 * MI, "0.25vCPU 2GB"),
        (250, 2 * GI, "0.5vCPU 3GB"),
        (4000, 30 * GI - 256 * MI, "4vCPU 30GB"),
        (4000, 30 * GI, "8vCPU 32GB"),
        (8000, 57 * GI, "8vCPU 60GB"),
        (8000, 60 * GI, "16vCPU 64GB"),
        (16000, 120 * GI - 256 * MI, "16vCPU 120GB"),
        (16000, 120 * GI - 256 * MI + 1, EXCEEDS),
        (16001, 0, EXCEEDS),
        (u64::MAX, 0, EXCEEDS),
        (0, u64::MAX, EXCEEDS),
    ] {
        assert_eq!(fargate(cpu, memory), expected, "{cpu}m and {} MiB", memory / MI);
    }
}

#[test]
fn the_table_has_the_published_shape() {
    let shape: Vec<_> = FARGATE_TABLE
        .iter()
        .map(|row| {
            let first = row.memory_mib.first().copied().unwrap();
            let last = row.memory_mib.last().copied().unwrap();
            (row.cpu_millis, first, last, row.memory_mib.len())
        })
        .collect();
    assert_eq!(
        shape,
        [
            (250, 512, 2048, 3),
            (500, 1024, 4096, 4),
            (1000, 2048, 8192, 7),
            (2000, 4096, 16384, 13),
            (4000, 8192, 30720, 23),
            (8000, 16384, 61440, 12),
            (16000, 32768, 122_880, 12),
        ]
    );
    for row in FARGATE_TABLE {
        assert!(row.memory_mib.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

/// All sizes of the table, by CPU first.
fn sizes() -> Vec<(u64, u64)> {
    FARGATE_TABLE
        .iter()
        .flat_map(|row| row.memory_mib.iter().map(|memory| (u64::from(row.cpu_millis), u64::from(*memory))))
        .collect()
}

#[test]
fn a_pod_that_fills_a_size_gets_that_size_or_one_with_less_cpu_to_spare() {
    let config = SizingConfig::default();
    for (cpu, memory) in sizes() {
        let filled = Requests { cpu_millis: cpu, memory_bytes: (memory - 256) * MI };
        let size = size(filled, &config).unwrap();
        assert_eq!((u64::from(size.cpu_millis), u64::from(size.memory_mib)), (cpu, memory));
        assert_eq!(u64::from(size.vcpus), cpu.div_ceil(1000));
    }
}

#[test]
fn the_size_is_the_first_of_the_table_that_holds_the_pod() {
    let config = SizingConfig::default();
    for cpu in (0..=16_500).step_by(83) {
        for memory in (0..=121 * 1024).step_by(499) {
            let got = size(Requests { cpu_millis: cpu, memory_bytes: memory * MI }, &config)
                .map(|size| (u64::from(size.cpu_millis), u64::from(size.memory_mib)));
            let holds = |size: &(u64, u64)| size.0 >= cpu && size.1 >= memory + 256;
            assert_eq!(got.ok(), sizes().into_iter().find(holds), "{cpu}m and {memory} MiB");
        }
    }
}

#[test]
fn more_requests_never_give_a_smaller_machine() {
    let config = SizingConfig::default();
    let of = |cpu, memory| size(Requests { cpu_millis: cpu, memory_bytes: memory * MI }, &config);
    for cpu in (0..16_000).step_by(125) {
        for memory in (0..110 * 1024).step_by(1024) {
            let (Ok(small), Ok(large)) = (of(cpu, memory), of(cpu + 125, memory + 512)) else { continue };
            assert!(small.cpu_millis <= large.cpu_millis && small.vcpus <= large.vcpus);
        }
    }
}

#[test]
fn fractions_of_a_vcpu_are_limited_and_whole_ones_are_not() {
    for (cpu, expected) in [
        (100, Some((25_000, 100_000))),
        (500, Some((50_000, 100_000))),
        (501, None),
        (1000, None),
        (16_000, None),
    ] {
        let size = size(Requests { cpu_millis: cpu, memory_bytes: 0 }, &SizingConfig::default()).unwrap();
        assert_eq!(size.cpu_max(), expected, "{cpu}m");
    }
}

fn exact(cpu_millis: u64, memory_bytes: u64) -> Result<Size, SizeError> {
    let config = SizingConfig { mode: SizingMode::Exact, ..SizingConfig::default() };
    size(Requests { cpu_millis, memory_bytes }, &config)
}

#[test]
fn exact_sizes_are_as_asked_for() {
    let of = |vcpus, cpu_millis, memory_mib| Ok(Size { vcpus, cpu_millis, memory_mib });
    assert_eq!(exact(0, 0), of(1, 250, 512));
    assert_eq!(exact(1500, 1000 * MI), of(2, 1500, 1256));
    assert_eq!(exact(10, 1), of(1, 10, 257));
    // Linux refuses a quota of less than a millisecond.
    assert_eq!(exact(1, 1), of(1, 10, 257));
    assert_eq!(exact(1, 1).unwrap().cpu_max(), Some((1000, 100_000)));
    assert_eq!(exact(32_000, 128 * GI - 256 * MI), of(32, 32_000, 128 << 10));
    assert_eq!(exact(32_001, 0), Err(SizeError));
    assert_eq!(exact(0, 128 * GI), Err(SizeError));
    assert_eq!(exact(1500, 0).unwrap().cpu_max(), Some((150_000, 100_000)));
    assert_eq!(exact(1500, 1000 * MI).unwrap().capacity_provisioned(), "1.5vCPU 1.226GB");
}

#[test]
fn the_configuration_is_read_and_checked() {
    let config: SizingConfig = toml::from_str("mode = \"exact\"\noverhead_mib = 64").unwrap();
    assert_eq!(config, SizingConfig { mode: SizingMode::Exact, overhead_mib: 64, ..SizingConfig::default() });
    assert_eq!(toml::from_str::<SizingConfig>("").unwrap(), SizingConfig::default());
    for text in ["mode = \"big\"", "overhead = 1", "overhead_mib = -1"] {
        assert!(toml::from_str::<SizingConfig>(text).is_err(), "{text}");
    }
}

fn requests_of(spec: &str) -> (u64, u64) {
    let requests = pod_requests(&serde_json::from_str(&format!("{{\"spec\": {spec}}}")).unwrap());
    (requests.cpu_millis, requests.memory_bytes)
}

#[test]
fn a_pods_requests_are_the_larger_of_init_and_running_containers() {
    for (spec, expected) in [
        ("{}", (0, 0)),
        (
            r#"{"containers": [
                {"resources": {"requests": {"cpu": "250m", "memory": "100Mi"}}},
                {"resources": {"requests": {"cpu": "0.5"}}}, {}]}"#,
            (750, 100 * MI),
        ),
        (
            r#"{"initContainers": [
                {"resources": {"requests": {"cpu": 2, "memory": "10Mi"}}},
                {"resources": {"requests": {"cpu": "1", "memory": "20Mi"}}}],
                "containers": [{"resources": {"requests": {"cpu": "1500m", "memory": "1Gi"}}}]}"#,
            (2000, GI),
        ),
        // A limit without a request is one; with a request it does not count.
        (r#"{"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}"#, (1000, GI)),
        (r#"{"containers": [{"resources": {"limits": {"cpu": "4"}, "requests": {"cpu": "1"}}}]}"#, (1000, 0)),
        // A sidecar runs beside what follows it.
        (
            r#"{"initContainers": [
                {"resources": {"requests": {"cpu": "700m"}}},
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "200m"}}},
                {"resources": {"requests": {"cpu": "600m"}}}],
                "containers": [{"resources": {"requests": {"cpu": "300m"}}}]}"#,
            (800, 0),
        ),
        (
            r#"{"initContainers": [{"restartPolicy": "Always", "resources": {"requests": {"cpu": "200m"}}}],
                "containers": [{"resources": {"requests": {"cpu": "300m"}}}]}"#,
            (500, 0),
        ),
        // Ephemeral containers have no requests of their own.
        (r#"{"ephemeralContainers": [{"resources": {"requests": {"cpu": "1"}}}]}"#, (0, 0)),
        // A request of the whole pod.
        (
            r#"{"resources": {"requests": {"cpu": "3"}},
                "containers": [{"resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}]}"#,
            (3000, MI),
        ),
    ] {
        assert_eq!(requests_of(spec), expected, "{spec}");
    }
}

/// What the kubelet writes for these requests and limits, in thousandths of a CPU and bytes; 0 is none.
fn kubelet(request: i64, limit: i64, memory_limit: i64) -> SandboxResources {
    SandboxResources {
        cpu_period: 100_000,
        cpu_quota: limit * 100,
        cpu_shares: (request * 1024 / 1000).max(2),
        memory_limit,
    }
}

#[test]
fn the_kubelets_numbers_give_the_requests_back() {
    for millis in 3..64_000 {
        let requests = kubelet(millis, 0, 0).requests();
        assert_eq!(requests.cpu_millis, u64::try_from(millis).unwrap(), "{millis}m");
    }
}

#[test]
fn what_cri_says_of_a_sandbox_becomes_its_requests() {
    for (resources, expected) in [
        (SandboxResources::default(), (0, 0)),
        (kubelet(0, 0, 0), (0, 0)),
        (kubelet(250, 250, 1 << 28), (250, 256 * MI)),
        (kubelet(250, 2000, 0), (2000, 0)),
        (
            SandboxResources { cpu_quota: -1, cpu_period: 100_000, cpu_shares: 1024, memory_limit: -1 },
            (1000, 0),
        ),
        (SandboxResources { cpu_quota: 150_000, ..SandboxResources::default() }, (0, 0)),
        (
            SandboxResources { cpu_quota: i64::MAX, cpu_period: 1, cpu_shares: 0, memory_limit: 0 },
            (u64::MAX, 0),
        ),
        (
            SandboxResources { cpu_quota: 10, cpu_period: i64::MIN, cpu_shares: i64::MIN, memory_limit: 5 },
            (0, 5),
        ),
    ] {
        let requests = resources.requests();
        assert_eq!((requests.cpu_millis, requests.memory_bytes), expected, "{resources:?}");
    }
}

#[test]
fn annotations_are_read_and_nonsense_counts_as_nothing() {
    let annotations = [
        ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
        ("io.kubernetes.cri.sandbox-cpu-quota", "50000"),
        ("io.kubernetes.cri.sandbox-cpu-shares", "many"),
        ("io.kubernetes.cri.sandbox-memory", "1048576"),
    ];
    let get = |key: &str| annotations.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    assert_eq!(
        SandboxResources::from_annotations(get),
        SandboxResources { cpu_period: 100_000, cpu_quota: 50_000, cpu_shares: 0, memory_limit: 1_048_576 }
    );
    assert_eq!(SandboxResources::from_annotations(|_| None), SandboxResources::default());
}
