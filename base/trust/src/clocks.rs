//! Certificates that are not valid by this machine's clock: either may be wrong, so both are told.

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time for people.
#[must_use]
pub fn shown_time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// How far two times are apart, for people: no more exactly than clocks are worth.
#[must_use]
pub fn shown_apart(one: SystemTime, other: SystemTime) -> String {
    let apart = one.duration_since(other).unwrap_or_else(|error| error.duration());
    let seconds = apart.as_secs();
    let (unit, count) = match seconds {
        0..120 => ("second", seconds),
        120..7_200 => ("minute", seconds / 60),
        7_200..172_800 => ("hour", seconds / 3_600),
        _ => ("day", seconds / 86_400),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// What to say of a TLS error that has to do with somebody's clock; none for any other.
///
/// `whose` names whom the other side is, as in "the node at 10.0.0.1:9443".
#[must_use]
pub fn clock_trouble(whose: &str, error: &Error) -> Option<String> {
    let unix = |time: &UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
    let now = SystemTime::now();
    let (now, validity) = match error {
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            let (now, until) = (unix(time), unix(not_after));
            let (until, apart) = (shown_time(until), shown_apart(now, until));
            (now, format!("was valid until {until}, {apart} before"))
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            let (now, from) = (unix(time), unix(not_before));
            let (from, apart) = (shown_time(from), shown_apart(now, from));
            (now, format!("is valid from {from} on, {apart} later"))
        }
        Error::InvalidCertificate(CertificateError::Expired) => (now, "has expired".to_owned()),
        Error::InvalidCertificate(CertificateError::NotValidYet) => {
            (now, "is not valid yet".to_owned())
        }
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            let here = shown_time(now);
            return Some(format!(
                "{whose} says that the certificate of this machine is not valid now, and this \
                 machine's clock says {here}: check the clocks of both"
            ));
        }
        _ => return None,
    };
    let now = shown_time(now);
    Some(format!(
        "this machine's clock says {now}, but the certificate of {whose} {validity}: check the clocks \
         of both"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_wrong_clock_are_told() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (time, not_after) = (at(1_800_000_000), at(1_700_000_000));
        let expired = CertificateError::ExpiredContext { time, not_after };
        let text = clock_trouble("the node", &Error::InvalidCertificate(expired)).unwrap();
        assert_eq!(
            text,
            "this machine's clock says 2027-01-15T08:00:00Z, but the certificate of the node was \
             valid until 2023-11-14T22:13:20Z, 1157 days before: check the clocks of both"
        );
        let (time, not_before) = (at(0), at(1_700_000_000));
        let early = CertificateError::NotValidYetContext { time, not_before };
        let text = clock_trouble("the node", &Error::InvalidCertificate(early)).unwrap();
        assert!(
            text.contains("1970-01-01T00:00:00Z") && text.contains("on, 19675 days later"),
            "{text}"
        );
        let alert = Error::AlertReceived(AlertDescription::CertificateExpired);
        assert!(clock_trouble("the node", &alert).unwrap().contains("check the clocks of both"));
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(clock_trouble("the node", &unknown), None);
    }

    #[test]
    fn times_apart_are_told_as_people_say_it() {
        let apart = |seconds| shown_apart(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(apart(1), "1 second");
        assert_eq!(apart(119), "119 seconds");
        assert_eq!(apart(3_600), "60 minutes");
        assert_eq!(apart(7_200), "2 hours");
        assert_eq!(apart(2 * 86_400), "2 days");
    }
}
