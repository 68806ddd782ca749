//! Kubernetes quantities: `250m`, `1.5`, `512Mi`, `2e9`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use thiserror::Error;

/// A non-negative amount of a resource, kept in thousandths of its unit and rounded up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    millis: u128,
}

/// A text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a quantity of at least 0 such as 250m, 1.5 or 512Mi")]
pub struct ParseQuantityError(String);

impl Quantity {
    /// Thousandths of the unit: for `cpu`, thousandths of a CPU.
    #[must_use]
    pub fn millis(self) -> u64 {
        u64::try_from(self.millis).unwrap_or(u64::MAX)
    }

    /// Whole units, rounded up: for `memory`, bytes.
    #[must_use]
    pub fn units(self) -> u64 {
        u64::try_from(self.millis.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

/// What a suffix multiplies by, in thousandths, as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let scale = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-18..=18).contains(&exponent) {
                return None;
            }
            let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1_000, power) } else { (power.checked_mul(1_000)?, 1) }
        }
    };
    Some(scale)
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseQuantityError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // Eighteen digits on each side leave room for every suffix in 128 bits.
    if whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (times, by) = scale(suffix)?;
    Some(Quantity { millis: digits.checked_mul(times)?.div_ceil(divisor.checked_mul(by)?) })
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity { millis: u128::from(number) * 1000 })
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
                u64::try_from(number)
                    .map_err(|_| E::custom("a quantity is negative"))
                    .and_then(|n| self.visit_u64(n))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
                number.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, millis) in [
            ("0", 0),
            ("250m", 250),
            ("1", 1_000),
            ("1.5", 1_500),
            (".5", 500),
            ("0.1", 100),
            ("2e3", 2_000_000),
            ("1E-3", 1),
            ("100u", 1),
            ("1n", 1),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("512Mi", 512 * 1_048_576_000),
            ("1.5Gi", 1_610_612_736_000),
            ("129M", 129_000_000_000),
            ("+1", 1_000),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().millis(), millis, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in
            ["", ".", "-1", "1.2.3", "1mi", "Mi", "1 Gi", "1e99", "0x10", "1234567890123456789", "1KiB", "٣"]
        {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_in_json_are_quantities() {
        for (json, millis) in [("2", 2_000), ("0.25", 250), ("\"250m\"", 250)] {
            assert_eq!(serde_json::from_str::<Quantity>(json).unwrap().millis(), millis, "{json}");
        }
        assert!(serde_json::from_str::<Quantity>("-2").is_err());
        assert!(serde_json::from_str::<Quantity>("1e300").is_err());
    }
}
