//! Amounts of bytes as people write them.

use std::fmt;
use std::str::FromStr;

/// Units, the longest name first where one ends another.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// A number of bytes: `4096`, `4KiB`, `54MB`, `1.5GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// The text is not an amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not an amount of bytes: write a number and perhaps one of KiB, MiB, GiB, TiB, kB, MB, GB, TB, as in 54MB"
)]
pub struct NotAnAmount {
    text: String,
}

impl FromStr for Bytes {
    type Err = NotAnAmount;

    fn from_str(text: &str) -> Result<Self, NotAnAmount> {
        let wrong = || NotAnAmount { text: text.to_owned() };
        let plain = text.trim();
        let unit = UNITS.iter().find_map(|(name, bytes)| Some((plain.strip_suffix(name)?, *bytes)));
        let (number, bytes) = unit.unwrap_or((plain.strip_suffix('B').unwrap_or(plain), 1));
        let number = number.trim();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || fraction.len() > 9 || !is_digits(whole) || !is_digits(fraction) {
            return Err(wrong());
        }
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        // Padded to nine digits, so that the fraction is in units of 10^-9.
        let nanos: u128 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
        let scaled = whole.checked_mul(1_000_000_000).and_then(|units| units.checked_add(nanos));
        let total = scaled.and_then(|units| units.checked_mul(bytes.into())).ok_or_else(wrong)?;
        u64::try_from(total / 1_000_000_000).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for Bytes {
    /// In the largest binary unit of which there is at least one, exact where it is whole.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let found = units.iter().find(|(_, shift)| self.0 >> shift > 0);
        match found {
            Some((name, shift)) if self.0.is_multiple_of(1 << shift) => {
                write!(formatter, "{}{name}", self.0 >> shift)
            }
            Some((name, shift)) => {
                // To a tenth, rounded down: only for people.
                let tenths = (u128::from(self.0) * 10) >> shift;
                write!(formatter, "{}.{}{name}", tenths / 10, tenths % 10)
            }
            None => write!(formatter, "{}B", self.0),
        }
    }
}

/// A rate in decimal megabytes, as the documents state rates.
#[must_use]
pub fn megabytes(bytes_per_second: f64) -> String {
    format!("{:.2} MB/s", bytes_per_second / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("4KiB", 4096),
            ("54MB", 54_000_000),
            ("2 MiB", 2 << 20),
            ("1.5GiB", 3 << 29),
            ("0.5kB", 500),
            ("1TiB", 1 << 40),
            ("3TB", 3_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for bad in ["", "B", "MB", "-1", "1e3", "4kib", "1.2.3", "0x10", ".5MB", "99999999999TiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shows_the_largest_unit() {
        let shown: Vec<_> =
            [512, 4096, 65_536, 1 << 30, 1_500_000].map(|n| Bytes(n).to_string()).into();
        assert_eq!(shown, ["512B", "4KiB", "64KiB", "1GiB", "1.4MiB"]);
    }
}
