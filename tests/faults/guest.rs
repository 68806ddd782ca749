//! The agent and the spawner die inside the guest. Nobody can kill them from the host; the agent of these pods is the real one,
//! which kills itself or its spawner when the shim asks it for something, before it has done it or when it has
//! (`agent/examples/hostile-agent/mortal.rs`).

use ravelin_tests::Host;

use super::kubelet::Op;
use super::trial::{Fault, Replaced, Trial};

const TABLE: &str = "guest";
const CONFIG: &str = "/etc/ravelin/ravelin.toml";
const INITRAMFS: &str = "/usr/local/libexec/ravelin/hostile.cpio";
const VICTIMS: [&str; 2] = ["agent", "spawner"];

/// The calls, each with what a kubelet asks for until it comes. The second start of a process is an exec's.
const CALLS: [(&str, &[Op]); 11] = [
    ("Boot:1", &[Op::RunPod]),
    ("SetupSandbox:1", &[Op::RunPod]),
    ("AddExtent:1", &[Op::RunPod, Op::Create, Op::Start]),
    ("CreateContainer:1", &[Op::RunPod, Op::Create, Op::Start]),
    ("Start:1", &[Op::RunPod, Op::Create, Op::Start]),
    ("Exec:1", &[Op::RunPod, Op::Create, Op::Start, Op::Exec]),
    ("Start:2", &[Op::RunPod, Op::Create, Op::Start, Op::Exec]),
    ("Kill:1", &[Op::RunPod, Op::Create, Op::Start, Op::Stop]),
    ("Wait:1", &[Op::RunPod, Op::Create, Op::Start, Op::Stop]),
    ("Delete:1", &[Op::RunPod, Op::Create, Op::Start, Op::Remove]),
    ("Shutdown:1", &[Op::RunPod, Op::Create, Op::Start, Op::StopPod]),
];

#[test]
fn an_agent_or_a_spawner_that_dies_is_told_and_leaves_nothing() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let mut trial = Trial::begin(&host);
    for (call, ops) in CALLS {
        for victim in VICTIMS {
            for moment in ["before", "after"] {
                let chosen = ("CreateContainer:1", "spawner", "before");
                if call == "Boot:1" && moment == "after" || !Host::whole() && (call, victim, moment) != chosen
                {
                    continue;
                }
                let when = format!("{moment} {}", call.trim_end_matches(":1").replace(":2", " of an exec"));
                let fault = Fault { table: TABLE, what: victim, when: &when };
                if !fault.is_chosen() {
                    continue;
                }
                let order = format!("{victim}:{moment}:{call}");
                let _config = Replaced::with(
                    CONFIG,
                    &format!(
                        "[guest]\ninitramfs = \"{INITRAMFS}\"\ncmdline = \"dies={order}\"\n[timeouts]\nboot_seconds = 60\ncall_seconds = 30\n"
                    ),
                );
                trial.live(fault, ops);
            }
        }
    }
    trial.end();
}
