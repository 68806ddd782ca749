//! Replies of the agent, as a guest may send them, and what the shim makes of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use protobuf::Message as _;
use ravelin_proto::agent as api;
use ravelin_shim::error::bounded;
use ravelin_shim::fuzzing::Metrics;
use ravelin_shim::stats;

/// Longest text of the agent's that is passed on.
const MOST: usize = 1024;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, message)) = bytes.split_first() else { return };
    match kind % 10 {
        0 => {
            if let Some(counters) = reply::<api::StatsResponse>(message) {
                let metrics = stats::metrics(&counters);
                assert!(metrics.io.usage.len() <= 64);
                let any = stats::any(&metrics).unwrap();
                assert_eq!(Metrics::parse_from_bytes(&any.value).unwrap(), metrics);
            }
        }
        1 => {
            if let Some(setup) = reply::<api::SetupSandboxResponse>(message) {
                shown(&setup.kernel_release);
            }
        }
        2 => drop(reply::<api::CreateResponse>(message)),
        3 => drop(reply::<api::StartResponse>(message)),
        4 => drop(reply::<api::WaitResponse>(message)),
        5 => drop(reply::<api::DeleteResponse>(message)),
        6 => drop(reply::<api::ListPidsResponse>(message)),
        7 => drop(reply::<api::ReadVolumeResponse>(message)),
        8 => {
            if let Some(event) = reply::<api::Event>(message)
                && let Some(api::event::Kind::Exit(exit)) = event.kind
            {
                shown(&exit.container_id);
            }
        }
        _ => shown(&String::from_utf8_lossy(message)),
    }
});

/// A reply that says the same when it is written and read again.
fn reply<T: Message + Default + PartialEq>(bytes: &[u8]) -> Option<T> {
    let message = T::decode(bytes).ok()?;
    assert!(T::decode(&*message.encode_to_vec()).unwrap() == message);
    Some(message)
}

/// Words of the guest's in a log or an error.
fn shown(text: &str) {
    let words = bounded(text, MOST);
    assert!(words.len() <= MOST + '…'.len_utf8() && !words.contains(char::is_control));
}
