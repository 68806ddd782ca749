use super::*;

/// Text, thousandths, units: what apimachinery v0.36 answers to `MilliValue` and `Value`. (Where its thousandths wrap around,
/// ours are the largest number.)
const READ: &[(&str, u64, u64)] = &[
    ("0", 0, 0),
    ("0n", 0, 0),
    ("0Ki", 0, 0),
    ("0e9", 0, 0),
    ("00", 0, 0),
    ("-0", 0, 0),
    ("1", 1000, 1),
    ("250m", 250, 1),
    ("1.5", 1500, 2),
    (".5", 500, 1),
    ("0.1", 100, 1),
    ("+1", 1000, 1),
    ("1.", 1000, 1),
    ("1.G", 1_000_000_000_000, 1_000_000_000),
    ("1n", 1, 1),
    ("100u", 1, 1),
    ("3m", 3, 1),
    ("1k", 1_000_000, 1000),
    ("1M", 1_000_000_000, 1_000_000),
    ("129M", 129_000_000_000, 129_000_000),
    ("6.987654321G", 6_987_654_321_000, 6_987_654_321),
    ("5T", 5_000_000_000_000_000, 5_000_000_000_000),
    ("2P", 2_000_000_000_000_000_000, 2_000_000_000_000_000),
    ("1E", u64::MAX, 1_000_000_000_000_000_000),
    ("1Ki", 1_024_000, 1024),
    ("512Mi", 536_870_912_000, 536_870_912),
    ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
    ("0.025Ti", 27_487_790_694_400, 27_487_790_695),
    ("100.035Ki", 102_435_840, 102_436),
    ("4Pi", 4_503_599_627_370_496_000, 4_503_599_627_370_496),
    ("3Ei", u64::MAX, 3_458_764_513_820_540_928),
    ("1E-3", 1, 1),
    ("2e3", 2_000_000, 2000),
    ("1.3E+6", 1_300_000_000, 1_300_000),
    ("0.5e-2", 5, 1),
    ("1.6e15", 1_600_000_000_000_000_000, 1_600_000_000_000_000),
    ("0.1m", 1, 1),
    ("3.001n", 1, 1),
    ("0.0000000001", 1, 1),
    ("0.00000012345", 1, 1),
    ("0.1234567890123456789", 124, 1),
    ("1.0000000000000000000000000000000000000001", 1001, 2),
    ("0.00000000000000000000000000000000000000001Ei", 1, 1),
    ("0.5e-9", 1, 1),
    ("1e-1000", 1, 1),
    ("0.000000000001Ki", 1, 1),
    ("000000000000000000000000000000000000000000001", 1000, 1),
    ("1000000000000000000000e-21", 1000, 1),
    ("9Ei", u64::MAX, 9_223_372_036_854_775_807),
    ("9223372036854775807Ki", u64::MAX, 9_223_372_036_854_775_807),
    ("9223372036854775807", u64::MAX, 9_223_372_036_854_775_807),
    (".", 0, 0),
    ("+", 0, 0),
    (".Ki", 0, 0),
    ("e3", 0, 0),
];

#[test]
fn quantities_are_read_as_kubernetes_reads_them() {
    for (text, millis, units) in READ {
        let quantity: Quantity = text.parse().unwrap();
        assert_eq!((quantity.millis(), quantity.units()), (*millis, *units), "{text}");
    }
}

#[test]
fn what_kubernetes_does_not_read_is_refused() {
    for text in [
        "", " 1", "1 ", "1 Gi", "1.1.M", "1.2.3", "1+1.0M", "0.1mi", "1mi", "0.1am", "aoeu", ".5i", "1i",
        "-3.01i", "-3.01e-", "1KiB", "1K", "1mm", "0x10", "1e", "1e+", "1e1.5", "1ee3", "+-1", "1_000",
        "1,5", "\u{663}", "NaN",
    ] {
        assert!(text.parse::<Quantity>().is_err(), "{text}");
    }
}

#[test]
fn a_resource_is_never_negative() {
    for text in ["-1", "-0.0000000001", "-1Ki"] {
        assert!(text.parse::<Quantity>().is_err(), "{text}");
    }
}

#[test]
fn more_than_the_largest_quantity_is_the_largest_and_takes_no_time() {
    for text in ["12E", "1e99", "1e2147483647", "99999999999999999999999999", &"9".repeat(100_000)] {
        assert_eq!(text.parse::<Quantity>().unwrap().units(), i64::MAX.unsigned_abs(), "{text:.30}");
    }
    for text in ["0e2147483647", "0.0e2147483647", &"0".repeat(100_000)] {
        assert_eq!(text.parse::<Quantity>().unwrap(), Quantity::default(), "{text:.30}");
    }
    assert_eq!("1e-2147483648".parse::<Quantity>().unwrap().millis(), 1);
    assert!("1e2147483648".parse::<Quantity>().is_err());
}

#[test]
fn numbers_and_null_in_json_are_quantities() {
    for (json, millis) in
        [("2", 2_000), ("0.25", 250), ("\"250m\"", 250), ("\" 1 \"", 1_000), ("1e3", 1_000_000), ("null", 0)]
    {
        assert_eq!(serde_json::from_str::<Quantity>(json).unwrap().millis(), millis, "{json}");
    }
    for json in ["-2", "-0.5", "true", "[]", "{}"] {
        assert!(serde_json::from_str::<Quantity>(json).is_err(), "{json}");
    }
}
