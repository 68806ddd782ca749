//! Kubernetes quantities: `250m`, `1.5`, `512Mi`, `2e9`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use thiserror::Error;

/// A non-negative amount of a resource, kept in thousandths of its unit and rounded up; at most 2^63 - 1 units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    millis: u128,
}

/// No quantity is larger than 2^63 - 1.
const MAX_MILLIS: u128 = i64::MAX as u128 * 1000;

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

/// What a suffix multiplies by: a factor and a power of ten.
fn suffix(text: &str) -> Option<(u64, i64)> {
    let scale = match text {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        exponent => (1, i64::from(exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?)),
    };
    Some(scale)
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    /// Reads a quantity as Kubernetes does (apimachinery's `resource.Quantity`): what is more precise than can be kept is
    /// rounded up, so that a resource that is asked for is never none; what is larger than can be kept is the largest.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseQuantityError(text.to_owned());
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if text.is_empty() {
            return Err(refused());
        }
        let quantity = parse(unsigned).ok_or_else(refused)?;
        if negative && quantity != Self::default() { Err(refused()) } else { Ok(quantity) }
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') {
        return None;
    }
    let (factor, exponent) = suffix(unit)?;
    // The digits of the whole, least significant first, times the factor: exact, however many there are.
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).rev().map(|digit| digit - b'0').collect();
    multiply(&mut digits, factor);
    // How many of them are less than a thousandth.
    let fine = i64::try_from(fraction.len()).ok()?.checked_sub(exponent)?.checked_sub(3)?;
    Some(Quantity { millis: round_up(&digits, fine) })
}

/// Multiplies a decimal number, its least significant digit first.
fn multiply(digits: &mut Vec<u8>, factor: u64) {
    if factor == 1 {
        return;
    }
    let mut carry: u128 = 0;
    for digit in digits.iter_mut() {
        carry += u128::from(*digit) * u128::from(factor);
        *digit = (carry % 10) as u8;
        carry /= 10;
    }
    while carry > 0 {
        digits.push((carry % 10) as u8);
        carry /= 10;
    }
}

/// A decimal number, its least significant digit first, divided by ten to the power of `fine` and rounded up;
/// [`MAX_MILLIS`] if it is larger than that.
fn round_up(digits: &[u8], fine: i64) -> u128 {
    let fine_digits = usize::try_from(fine).unwrap_or(0).min(digits.len());
    let (below, above) = digits.split_at(fine_digits);
    let mut value = above.iter().rev().try_fold(0, |value, digit| append(value, *digit));
    let mut zeros = fine.saturating_neg().max(0);
    while let Some(1..) = value
        && zeros > 0
    {
        value = value.and_then(|value| append(value, 0));
        zeros -= 1;
    }
    let up = u128::from(below.iter().any(|digit| *digit != 0));
    value.map_or(MAX_MILLIS, |value| (value + up).min(MAX_MILLIS))
}

/// `value` with one more digit behind it; none if that is larger than a quantity can be.
fn append(value: u128, digit: u8) -> Option<u128> {
    let longer = value.checked_mul(10)?.checked_add(u128::from(digit))?;
    (longer <= MAX_MILLIS).then_some(longer)
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
                text.trim().parse().map_err(E::custom)
            }

            // As Kubernetes reads it.
            fn visit_unit<E: serde::de::Error>(self) -> Result<Quantity, E> {
                Ok(Quantity::default())
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity { millis: (u128::from(number) * 1000).min(MAX_MILLIS) })
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
mod tests;
