//! How long a caller waits for its answer: what its call waits for in the guest, it waits for no longer.
//!
//! A deadline is fixed when the call arrives and handed on as it is, so that several waits in a row have no more time
//! together than one has.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Request;

/// For something to be made, where the caller does not say how long it waits.
pub const TO_MAKE: Duration = Duration::from_secs(60);
/// For anything else, where the caller does not say: it is to be still there to hear what did not come.
pub const FOR_THE_REST: Duration = Duration::from_secs(30);

/// When the caller of a request that has just arrived gives up, as it says in the call's `grpc-timeout`; after `unsaid` if
/// it does not say.
#[must_use]
pub fn of<T>(request: &Request<T>, unsaid: Duration) -> Instant {
    let said = request.metadata().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    Instant::now() + said.unwrap_or(unsaid)
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_timeout_is_read_in_every_unit() {
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5)] {
            assert_eq!(parse_timeout(text), Some(Duration::from_millis(millis)));
        }
        for text in ["", "S", "5", "5x", "-1S", "123456789S", "\u{e9}"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_the_callers_and_a_default_where_it_says_none() {
        let mut request = Request::new(());
        assert_eq!(of(&request, TO_MAKE) - Instant::now(), TO_MAKE);
        request.set_timeout(Duration::from_secs(200));
        assert_eq!(of(&request, TO_MAKE) - Instant::now(), Duration::from_secs(200));
    }
}
