//! Quantities of Kubernetes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_policy::Quantity;

fuzz_target!(|text: &str| {
    let Ok(quantity) = text.parse::<Quantity>() else { return };
    let (millis, units) = (quantity.millis(), quantity.units());
    // Both are rounded up, and end at their largest number.
    assert!(units <= i64::MAX as u64);
    assert!(millis == u64::MAX || millis.div_ceil(1000) == units, "{text:?}: {millis} and {units}");
    // What is more than nothing is never nothing.
    let digits = text.trim_start_matches(['+', '-']);
    let number = &digits[..digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len())];
    let nothing = number.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    assert_eq!(units == 0, nothing, "{text:?}: {units}");
    // In JSON it is the same, but for the spaces around it.
    let json: Quantity = serde_json::from_value(serde_json::json!(text)).unwrap();
    assert_eq!(json, quantity);
    // With a nought before it too.
    if !text.starts_with(['+', '-']) {
        assert_eq!(format!("0{text}").parse::<Quantity>().unwrap(), quantity);
    }
});
