//! Pods as the API server has them: judged, added up and sized.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ravelin_policy::{
    Claim, Claims, FARGATE_TABLE, MAX_CPU_MILLIS, MAX_MEMORY_MIB, MIN_MEMORY_MIB, Mode, Pod, PolicyConfig,
    SizingConfig, SizingMode, check_pod, pod_requests, size,
};

const VALUES: [&str; 14] = [
    r#"{"add": ["SYS_ADMIN", "CAP_CHOWN"]}"#,
    r#"{"claimName": "bound"}"#,
    r#"{"claimName": "pending"}"#,
    r#"{"privileged": true, "allowPrivilegeEscalation": true}"#,
    r#"[{"hostPort": 80, "hostIP": "::"}]"#,
    r#"{"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}"#,
    r#"[{"name": "v", "hostPath": {"path": "/"}}]"#,
    "\"Always\"",
    "\"250m\"",
    "\"1e9\"",
    "\"9223372036854775807\"",
    "\"1Ei\"",
    "1e308",
    "-1",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(pod) = serde_json::from_slice::<Pod>(text) else { return };
    let bound = Claim::Bound { volume: "pv".to_owned(), driver: Some("efs.csi.aws.com".to_owned()) };
    let claims = Claims::from([("bound".to_owned(), bound), ("pending".to_owned(), Claim::Pending)]);
    let strict = PolicyConfig::default();
    let lax = PolicyConfig { mode: Mode::Guest, ..PolicyConfig::default() };
    if let Err(refusal) = check_pod(&pod, &claims, &strict) {
        assert!(!refusal.to_string().is_empty());
    } else {
        // Nothing is refused there that passes here.
        check_pod(&pod, &claims, &lax).unwrap();
    }
    let requests = pod_requests(&pod);
    let config = SizingConfig::default();
    if let Ok(size) = size(requests, &config) {
        let row = FARGATE_TABLE.iter().find(|row| row.cpu_millis == size.cpu_millis).unwrap();
        assert!(row.memory_mib.contains(&size.memory_mib));
        assert!(u64::from(size.cpu_millis) >= requests.cpu_millis);
        assert!(u64::from(size.memory_mib) << 20 >= requests.memory_bytes);
        assert!(!size.capacity_provisioned().is_empty());
    }
    let exact = SizingConfig { mode: SizingMode::Exact, ..config };
    if let Ok(size) = self::size(requests, &exact) {
        assert!(u64::from(size.cpu_millis) <= MAX_CPU_MILLIS && size.vcpus > 0);
        assert!((MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&size.memory_mib.into()));
        if let Some((quota, period)) = size.cpu_max() {
            assert!(quota >= 1000 && quota < u64::from(size.vcpus) * period);
        }
    }
});
