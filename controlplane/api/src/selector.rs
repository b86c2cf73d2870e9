//! How a recovery point is named: the one parser of the REST API, the command line and the vault's
//! verbs.
//!
//! | text | point |
//! |---|---|
//! | `latest` | the newest committed one, by rank |
//! | `01890a5d-ac96-774b-bcce-b302099a8057` | the one with this id |
//! | `01890a5d-ac9` | the one whose id begins so: 4 digits at least, with dashes or without |
//! | `2026-01-31T12:00:00Z`, `2026-01-31T13:00:00+01:00` | the newest not after that time (RFC 3339) |
//! | `2026-01-31 12:00`, `2026-01-31 12:00:30` | the same; without a zone it is UTC, as all times that are shown |
//! | `10 minutes ago`, `1h30m ago` | the newest not after that time |

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Fewest digits of an id that name a point.
pub const PREFIX_DIGITS_MIN: usize = 4;

/// Digits of a whole id.
const ID_DIGITS: usize = 32;

/// The last millisecond of the year 9999.
const TIME_MS_MAX: u64 = 253_402_300_799_999;

/// Longest `… ago`: a hundred years.
const AGO_MS_MAX: u64 = 100 * 366 * 86_400_000;

/// Names a recovery point of a machine or volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PointSelector {
    /// The newest committed one.
    #[default]
    Latest,
    /// This one.
    Id(Uuid),
    /// The only one whose id begins so.
    Prefix(IdPrefix),
    /// The newest that is not after this Unix time in milliseconds.
    NotAfter(u64),
    /// The newest that is at least so many milliseconds old.
    Ago(u64),
}

impl PointSelector {
    /// The time, in Unix milliseconds, after which the point must not be, if it is chosen by time.
    #[must_use]
    pub fn not_after(self, now_unix_ms: u64) -> Option<u64> {
        match self {
            Self::NotAfter(unix_ms) => Some(unix_ms),
            Self::Ago(ms) => Some(now_unix_ms.saturating_sub(ms)),
            Self::Latest | Self::Id(_) | Self::Prefix(_) => None,
        }
    }
}

/// The first digits of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdPrefix {
    /// The digits from the left, zeros behind them.
    bits: u128,
    digits: u8,
}

impl IdPrefix {
    /// Whether an id begins so.
    #[must_use]
    pub fn is_of(self, id: Uuid) -> bool {
        let rest = 4 * (ID_DIGITS - usize::from(self.digits));
        id.as_u128() >> rest == self.bits >> rest
    }

    /// Reads digits that stand as in an id: without any dash, or with all dashes so far.
    fn read(text: &str) -> Option<Self> {
        let digits = text.bytes().filter(|byte| byte.is_ascii_hexdigit()).count();
        let is_plain = digits == text.len();
        let is_dashed = text
            .bytes()
            .enumerate()
            .all(|(at, byte)| matches!(at, 8 | 13 | 18 | 23) == (byte == b'-'));
        if !(PREFIX_DIGITS_MIN..ID_DIGITS).contains(&digits) || !(is_plain || is_dashed) {
            return None;
        }
        let mut whole: String = text.chars().filter(|digit| *digit != '-').collect();
        whole.extend(std::iter::repeat_n('0', ID_DIGITS - digits));
        let bits = u128::from_str_radix(&whole, 16).ok()?;
        Some(Self { bits, digits: u8::try_from(digits).ok()? })
    }
}

impl fmt::Display for IdPrefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = Uuid::from_u128(self.bits).to_string();
        let digits = usize::from(self.digits);
        let dashes = [8, 12, 16, 20].iter().filter(|place| digits > **place).count();
        formatter.write_str(&whole[..digits + dashes])
    }
}

impl fmt::Display for PointSelector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => formatter.write_str("latest"),
            Self::Id(id) => id.fmt(formatter),
            Self::Prefix(prefix) => prefix.fmt(formatter),
            Self::NotAfter(unix_ms) => {
                let at = UNIX_EPOCH + Duration::from_millis((*unix_ms).min(TIME_MS_MAX));
                humantime::format_rfc3339_millis(at).fmt(formatter)
            }
            // No spaces: it is part of a URL's path.
            Self::Ago(ms) => {
                let ago = humantime::format_duration(Duration::from_millis(*ms)).to_string();
                write!(formatter, "{}-ago", ago.replace(' ', ""))
            }
        }
    }
}

/// The text names no recovery point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` names no recovery point; say latest, an id or its first digits (at least 4), a time \
     such as 2026-01-31T12:00:00Z or '2026-01-31 12:00' (UTC), or '10 minutes ago'"
)]
pub struct MalformedPoint {
    /// What was given, cut to 64 characters.
    pub text: String,
}

impl FromStr for PointSelector {
    type Err = MalformedPoint;

    fn from_str(text: &str) -> Result<Self, MalformedPoint> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let id = || Uuid::parse_str(text).ok().map(Self::Id);
        let prefix = || IdPrefix::read(text).map(Self::Prefix);
        id().or_else(prefix)
            .or_else(|| ago(text).map(Self::Ago))
            .or_else(|| unix_ms(text).map(Self::NotAfter))
            .ok_or_else(|| MalformedPoint { text: text.chars().take(64).collect() })
    }
}

/// `10 minutes ago` in milliseconds.
fn ago(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let length = text.strip_suffix("ago")?;
    if !length.ends_with([' ', '-']) {
        return None;
    }
    let length = humantime::parse_duration(length.trim_end_matches([' ', '-'])).ok()?;
    u64::try_from(length.as_millis()).ok().filter(|ms| *ms <= AGO_MS_MAX)
}

/// RFC 3339, also with a space in its middle, without seconds, and without a zone: that is UTC.
fn unix_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    // `2026-01-31T12:00`: nothing in front of the seconds is of more than one byte.
    let (head, tail) = text.split_at_checked(16)?;
    if !matches!(head.as_bytes()[10], b'T' | b't' | b' ') {
        return None;
    }
    let zone_at = tail.find(['Z', 'z', '+', '-']).unwrap_or(tail.len());
    let (seconds, zone) = tail.split_at(zone_at);
    let seconds = if seconds.is_empty() { ":00" } else { seconds };
    let (date, time) = (&head[..10], &head[11..]);
    let utc = humantime::parse_rfc3339(&format!("{date}T{time}{seconds}Z")).ok()?;
    let utc = utc.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let ms = u64::try_from(utc.as_millis()).ok()?;
    let shifted = match zone.as_bytes() {
        [] | [b'Z' | b'z'] => ms,
        [sign, hours @ .., b':', m1, m2] if hours.len() == 2 => {
            let number = |bytes: &[u8]| {
                let is_number = bytes.iter().all(u8::is_ascii_digit);
                is_number.then(|| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok()).flatten()
            };
            let (hours, minutes) = (number(hours)?, number(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let shift = (hours * 60 + minutes) * 60_000;
            if *sign == b'+' { ms.checked_sub(shift)? } else { ms.checked_add(shift)? }
        }
        _ => return None,
    };
    Some(shifted).filter(|ms| *ms <= TIME_MS_MAX)
}

impl Serialize for PointSelector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PointSelector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_769_860_800_000;

    fn read(text: &str) -> Option<PointSelector> {
        text.parse().ok()
    }

    #[test]
    fn selectors_survive_json() {
        let texts =
            ["latest", "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac9", "10 minutes ago"];
        for text in texts.into_iter().chain(["2026-01-31T12:00:00Z", "1970-01-01T01:30:00+01:00"]) {
            let selector = read(text).expect(text);
            let json = serde_json::to_string(&selector).unwrap();
            assert_eq!(serde_json::from_str::<PointSelector>(&json).unwrap(), selector, "{json}");
            assert!(!selector.to_string().contains(' '), "it is part of a path: {selector}");
        }
        assert!(serde_json::from_str::<PointSelector>("\"newest\"").is_err());
    }

    #[test]
    fn the_first_digits_of_an_id_name_it() {
        let id: Uuid = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let whole = id.to_string();
        for text in
            [&whole[..4], &whole[..8], &whole[..9], &whole[..17], &whole[..35], "01890A5Dac9"]
        {
            let Some(PointSelector::Prefix(prefix)) = read(text) else { panic!("{text}") };
            assert!(prefix.is_of(id), "{text}");
            assert!(!prefix.is_of(Uuid::from_u128(id.as_u128() ^ (1 << 112))), "{text}");
            let plain = |text: &str| text.to_ascii_lowercase().replace('-', "");
            assert_eq!(plain(&prefix.to_string()), plain(text));
        }
        for text in ["018", "0189-0a5d", "01890a5d-ac967", "01890a5dac96-774b", "0189x"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_utc_unless_they_say_otherwise() {
        for text in [
            "2026-01-31T12:00:00Z",
            "2026-01-31t12:00:00z",
            "2026-01-31 12:00",
            "2026-01-31 12:00:00",
            "2026-01-31T12:00Z",
            "2026-01-31T12:00:00.000Z",
            "2026-01-31T13:30:00+01:30",
            "2026-01-31 11:00:00-01:00",
        ] {
            assert_eq!(read(text), Some(PointSelector::NotAfter(NOON)), "{text}");
        }
        for text in [
            "2026-01-31",
            "2026-02-30 12:00",
            "2026-01-31 25:00",
            "2026-01-31 12:00:00+1",
            "2026-01-31 12:00:00+24:00",
            "2026-01-31 12:00:00 Z",
            "1970-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "2026-01-31é12:00",
            "2026-01-3é 12:00",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn ages_count_back_from_now() {
        let minutes = 60_000;
        for (text, ms) in [
            ("10 minutes ago", 10 * minutes),
            ("10m ago", 10 * minutes),
            ("1h30m ago", 90 * minutes),
            ("1 Hour 30 min ago", 90 * minutes),
            ("10m-ago", 10 * minutes),
        ] {
            assert_eq!(read(text), Some(PointSelector::Ago(ms)), "{text}");
        }
        assert_eq!(PointSelector::Ago(NOON).not_after(NOON + 5), Some(5));
        assert_eq!(PointSelector::Ago(NOON).not_after(0), Some(0), "not before all time");
        for text in ["ago", " ago", "10 ago", "minutes ago", "10 minutes", "99999999 years ago"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
