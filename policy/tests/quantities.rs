//! Quantities beside exact fractions of integers without bounds, which know nothing of how they are read.

#![allow(clippy::unwrap_used, reason = "a test")]

use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::prelude::*;
use ravelin_policy::Quantity;

/// The suffixes of apimachinery's `resource.Quantity`, with what they stand for: a numerator and a denominator.
fn suffixes() -> Vec<(String, BigRational)> {
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    let decimal =
        decimal.into_iter().zip(-3..).map(|(name, thousands)| (name.to_owned(), power(10, 3 * thousands)));
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let binary = binary.into_iter().zip(1..).map(|(name, tens)| (name.to_owned(), power(2, 10 * tens)));
    let exponents = (-30..=30).flat_map(|exponent: i32| {
        let spellings = [format!("e{exponent}"), format!("E{exponent:+}")];
        spellings.map(|name| (name, power(10, exponent)))
    });
    decimal.chain(binary).chain(exponents).collect()
}

fn power(base: u32, exponent: i32) -> BigRational {
    BigRational::from_integer(BigInt::from(base)).pow(exponent)
}

/// A text with its value: digits before and behind the point, and a suffix.
fn quantities() -> impl Strategy<Value = (String, BigRational)> {
    let suffix = prop::sample::select(suffixes());
    let sign = prop::sample::select(vec!["", "+"]);
    (sign, "[0-9]{1,25}", prop::option::of("[0-9]{0,25}"), suffix).prop_map(
        |(sign, whole, fraction, (suffix, scale))| {
            let digits: BigInt =
                format!("{whole}{}", fraction.as_deref().unwrap_or_default()).parse().unwrap();
            let places = i32::try_from(fraction.as_ref().map_or(0, String::len)).unwrap();
            let point = if fraction.is_some() { "." } else { "" };
            let text = format!("{sign}{whole}{point}{}{suffix}", fraction.unwrap_or_default());
            (text, BigRational::from_integer(digits) * power(10, -places) * scale)
        },
    )
}

/// Kubernetes's largest quantity.
fn largest() -> BigRational {
    BigRational::from_integer(BigInt::from(i64::MAX))
}

fn thousandths(value: &BigRational) -> BigInt {
    (value.min(&largest()) * power(10, 3)).ceil().to_integer()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_quantity_is_its_value_rounded_up_and_no_more_than_the_largest((text, value) in quantities()) {
        let quantity: Quantity = text.parse().unwrap();
        let millis = thousandths(&value);
        prop_assert_eq!(BigInt::from(quantity.millis()), millis.clone().min(BigInt::from(u64::MAX)), "{}", text);
        let units = BigRational::new(millis, BigInt::from(1000)).ceil().to_integer();
        prop_assert_eq!(BigInt::from(quantity.units()), units, "{}", text);
    }

    #[test]
    fn quantities_are_ordered_as_their_values_are((one, first) in quantities(), (two, second) in quantities()) {
        let (left, right): (Quantity, Quantity) = (one.parse().unwrap(), two.parse().unwrap());
        prop_assert_eq!(left.cmp(&right), thousandths(&first).cmp(&thousandths(&second)), "{} and {}", one, two);
    }

    /// Numbers near the edges, where the random ones above seldom are.
    #[test]
    fn quantities_are_ordered_at_the_edges(at in 0..4_usize, below in 0..3_i64, above in 0..3_i64) {
        let edge = [0, 1000, i64::MAX / 1000, i64::MAX - 2][at];
        let [left, right] = [below, above].map(|distance| edge + distance);
        let read = |number: i64| number.to_string().parse::<Quantity>().unwrap();
        prop_assert_eq!(read(left).cmp(&read(right)), left.cmp(&right));
        prop_assert_eq!(read(left).units(), left.unsigned_abs());
    }

    #[test]
    fn json_says_the_same_as_the_text((text, _) in quantities()) {
        let read: Quantity = serde_json::from_value(serde_json::json!(text)).unwrap();
        prop_assert_eq!(read, text.parse().unwrap());
    }

    #[test]
    fn a_whole_number_in_json_is_that_number(number in any::<u64>()) {
        let read: Quantity = serde_json::from_value(serde_json::json!(number)).unwrap();
        prop_assert_eq!(read.units(), number.min(i64::MAX.unsigned_abs()));
    }

    #[test]
    fn what_is_negative_is_refused_unless_it_is_nothing((text, value) in quantities()) {
        let negative = format!("-{}", text.trim_start_matches('+'));
        prop_assert_eq!(negative.parse::<Quantity>().is_ok(), value == BigRational::default(), "{}", negative);
    }

    #[test]
    fn no_text_is_too_strange_to_be_judged(text in "\\PC{0,12}|[-+.0-9eEKMGTPinumk]{0,12}") {
        // It may be refused, but that is all.
        let _ = text.parse::<Quantity>();
    }
}
