//! The size of a pod's machine beside a search through everything that AWS publishes.

#![allow(clippy::unwrap_used, reason = "a test")]

use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::prelude::*;
use ravelin_policy::{Pod, Requests, Size, SizingConfig, SizingMode, pod_requests, size};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Every combination of the table in "Fargate Pod configuration" of the EKS user guide: thousandths of a vCPU and MiB.
fn published() -> Vec<(u64, u64)> {
    let gigabytes =
        |from: u64, to: u64, step: usize| (from..=to).step_by(step).map(|gigabytes| gigabytes * 1024);
    let mut all: Vec<(u64, u64)> = [512, 1024, 2048].map(|memory| (250, memory)).to_vec();
    for (cpu, from, to, step) in [
        (500, 1, 4, 1),
        (1000, 2, 8, 1),
        (2000, 4, 16, 1),
        (4000, 8, 30, 1),
        (8000, 16, 60, 4),
        (16_000, 32, 120, 8),
    ] {
        all.extend(gigabytes(from, to, step).map(|memory| (cpu, memory)));
    }
    all
}

/// The smallest published combination that holds a request, by vCPU first.
fn searched(cpu_millis: u64, memory_bytes: u64, overhead_mib: u64) -> Option<(u64, u64)> {
    let needed = u128::from(memory_bytes) + u128::from(overhead_mib) * u128::from(MIB);
    published()
        .into_iter()
        .filter(|(cpu, memory)| *cpu >= cpu_millis && u128::from(*memory) * u128::from(MIB) >= needed)
        .min()
}

fn sized(cpu_millis: u64, memory_bytes: u64, config: &SizingConfig) -> Option<Size> {
    size(Requests { cpu_millis, memory_bytes }, config).ok()
}

/// Amounts of every order, and those right beside a published one.
fn amounts(published: Vec<u64>, most: u64) -> impl Strategy<Value = u64> {
    let beside = (prop::sample::select(published), -2..=2_i64)
        .prop_map(|(amount, distance)| amount.saturating_add_signed(distance));
    prop_oneof![4 => 0..=most, 4 => beside, 1 => any::<u64>()]
}

fn cpu() -> impl Strategy<Value = u64> {
    amounts(published().iter().map(|(cpu, _)| *cpu).collect(), 20_000)
}

fn memory() -> impl Strategy<Value = u64> {
    let rows = published().into_iter();
    let edges = rows.flat_map(|(_, memory)| [memory * MIB, memory * MIB - 256 * MIB]).collect();
    amounts(edges, 130 << 30)
}

/// One container of a random pod: what it asks for, and whether it is a sidecar.
#[derive(Debug, Clone)]
struct Asked {
    cpu_request: Option<u64>,
    cpu_limit: Option<u64>,
    memory_request: Option<u64>,
    memory_limit: Option<u64>,
    sidecar: bool,
}

impl Asked {
    /// The API server makes a limit without a request one.
    fn cpu(&self) -> u64 {
        self.cpu_request.or(self.cpu_limit).unwrap_or(0)
    }

    fn memory(&self) -> u64 {
        self.memory_request.or(self.memory_limit).unwrap_or(0)
    }

    fn json(&self) -> Value {
        let list = |cpu: Option<u64>, memory: Option<u64>| {
            let cpu = cpu.map(|millis| ("cpu".to_owned(), json!(format!("{millis}m"))));
            let memory = memory.map(|bytes| ("memory".to_owned(), json!(bytes.to_string())));
            Value::Object(cpu.into_iter().chain(memory).collect())
        };
        let mut container = json!({ "resources": {
            "requests": list(self.cpu_request, self.memory_request),
            "limits": list(self.cpu_limit, self.memory_limit),
        }});
        if self.sidecar {
            container["restartPolicy"] = json!("Always");
        }
        container
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    // Up to the largest quantity, of which a few have no sum in 64 bits.
    let amount = || prop::option::of(prop_oneof![3 => 0..=10_000_u64, 1 => 0..=i64::MAX.unsigned_abs()]);
    let cpu = || prop::option::of(0..=20_000_u64);
    (cpu(), cpu(), amount(), amount(), any::<bool>()).prop_map(
        |(cpu_request, cpu_limit, memory_request, memory_limit, sidecar)| Asked {
            cpu_request,
            cpu_limit,
            memory_request,
            memory_limit,
            sidecar,
        },
    )
}

/// The most that runs at a time in the life of a pod, moment by moment: the init containers one after another, each sidecar from
/// its turn on, and all containers at the end.
fn most_at_a_time(init: &[Asked], containers: &[Asked], amount: fn(&Asked) -> u64) -> u64 {
    let moments = 0..=init.len();
    let most = moments.map(|moment| {
        let begun = init.iter().enumerate();
        let running = begun.filter(|(turn, each)| *turn == moment || (each.sidecar && *turn < moment));
        let main = containers.iter().filter(|_| moment == init.len());
        running.map(|(_, each)| each).chain(main).map(|each| BigInt::from(amount(each))).sum::<BigInt>()
    });
    u64::try_from(most.max().unwrap()).unwrap_or(u64::MAX)
}

/// `0.25vCPU 0.5GB` as numbers.
fn read(text: &str) -> (BigRational, BigRational) {
    let (cpu, memory) = text.split_once("vCPU ").unwrap();
    let number = |text: &str| {
        assert!(!text.contains('.') || !text.ends_with(['0', '.']), "{text}");
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits: BigInt = format!("{whole}{decimals}").parse().unwrap();
        BigRational::new(digits, BigInt::from(10).pow(u32::try_from(decimals.len()).unwrap()))
    };
    (number(cpu), number(memory.strip_suffix("GB").unwrap()))
}

fn fraction(number: u32, of: u32) -> BigRational {
    BigRational::new(number.into(), of.into())
}

#[test]
fn the_table_is_the_published_one() {
    let rows = ravelin_policy::FARGATE_TABLE.iter();
    let all =
        rows.flat_map(|row| row.memory_mib.iter().map(|memory| (row.cpu_millis.into(), (*memory).into())));
    assert_eq!(all.collect::<Vec<(u64, u64)>>(), published());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_pod_gets_the_smallest_published_size_that_holds_it(
        cpu in cpu(), memory in memory(), overhead in prop_oneof![Just(256_u32), 0..=4096_u32],
    ) {
        let config = SizingConfig { overhead_mib: overhead, ..SizingConfig::default() };
        let found = sized(cpu, memory, &config);
        let numbers = found.map(|size| (u64::from(size.cpu_millis), u64::from(size.memory_mib)));
        prop_assert_eq!(numbers, searched(cpu, memory, overhead.into()));
        if let Some(size) = found {
            // As the annotation has it, without a loss.
            let exactly = (fraction(size.cpu_millis, 1000), fraction(size.memory_mib, 1024));
            prop_assert_eq!(read(&size.capacity_provisioned()), exactly);
            // Whole processors, of which no more time may be used than was provided.
            let least = (1..=64_u32).find(|vcpus| vcpus * 1000 >= size.cpu_millis);
            prop_assert_eq!(Some(u32::from(size.vcpus)), least);
            let (quota, period) = size.cpu_max().unwrap_or((u64::from(size.vcpus), 1));
            prop_assert_eq!(BigRational::new(quota.into(), period.into()), fraction(size.cpu_millis, 1000));
        }
    }

    #[test]
    fn an_exact_size_holds_what_is_asked_for_and_no_mib_more(cpu in cpu(), memory in memory(), overhead in 0..=4096_u32) {
        let config =
            SizingConfig { mode: SizingMode::Exact, overhead_mib: overhead, ..SizingConfig::default() };
        let asked_cpu = if cpu == 0 { 250 } else { cpu.max(10) };
        // Every size that there is, by the MiB, would be too many to try: what is one MiB less holds too little.
        let bytes = u128::from(memory) + u128::from(overhead) * u128::from(MIB);
        let fits = asked_cpu <= 32_000 && (memory == 0 || bytes <= 128 << 30);
        let found = sized(cpu, memory, &config);
        prop_assert_eq!(found.is_some(), fits);
        if let Some(size) = found {
            prop_assert_eq!(u64::from(size.cpu_millis), asked_cpu);
            let given = u128::from(size.memory_mib) * u128::from(MIB);
            let needed = if memory == 0 { 512 * u128::from(MIB) } else { bytes.max(128 * u128::from(MIB)) };
            prop_assert!(given >= needed && given < needed + u128::from(MIB), "{} for {}", given, needed);
            // Rounded down to three decimals.
            let (told_cpu, told_memory) = read(&size.capacity_provisioned());
            let lost = fraction(size.memory_mib, 1024) - told_memory;
            prop_assert_eq!(told_cpu, fraction(size.cpu_millis, 1000));
            prop_assert!(lost >= BigRational::default() && lost < fraction(1, 1000));
        }
    }

    #[test]
    fn a_pod_asks_for_the_most_that_runs_at_a_time(
        init in prop::collection::vec(asked(), 0..6),
        containers in prop::collection::vec(asked(), 0..6),
        whole in prop::option::of((0..=20_000_u64, 0..=i64::MAX.unsigned_abs())),
    ) {
        let containers: Vec<Asked> = containers.into_iter().map(|each| Asked { sidecar: false, ..each }).collect();
        let all = |list: &[Asked]| list.iter().map(Asked::json).collect::<Vec<_>>();
        let mut spec = json!({ "initContainers": all(&init), "containers": all(&containers) });
        if let Some((cpu, memory)) = whole {
            spec["resources"] = json!({ "requests": { "cpu": format!("{cpu}m"), "memory": memory.to_string() } });
        }
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
        let expected = whole.unwrap_or_else(|| {
            (most_at_a_time(&init, &containers, Asked::cpu), most_at_a_time(&init, &containers, Asked::memory))
        });
        let requests = pod_requests(&pod);
        prop_assert_eq!((requests.cpu_millis, requests.memory_bytes), expected);
    }
}
