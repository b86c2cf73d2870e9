//! Certificates that are not valid by this machine's clock: either may be wrong, so both are told.

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time for people.
pub(crate) fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// What to say of a TLS error that has to do with somebody's clock; none for any other.
///
/// `whose` names whom the other side is, as in "the node at 10.0.0.1:9443".
#[must_use]
pub fn clock_trouble(whose: &str, error: &Error) -> Option<String> {
    let unix = |time: &UnixTime| shown(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    let here = || shown(SystemTime::now());
    let (now, validity) = match error {
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            (unix(time), format!("was valid until {}", unix(not_after)))
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            (unix(time), format!("is valid from {} on", unix(not_before)))
        }
        Error::InvalidCertificate(CertificateError::Expired) => (here(), "has expired".to_owned()),
        Error::InvalidCertificate(CertificateError::NotValidYet) => {
            (here(), "is not valid yet".to_owned())
        }
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            let here = here();
            return Some(format!(
                "{whose} says that the certificate of this machine is not valid now, and this \
                 machine's clock says {here}: check the clocks of both"
            ));
        }
        _ => return None,
    };
    Some(format!(
        "this machine's clock says {now}, but the certificate of {whose} {validity}: check the clock"
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
             valid until 2023-11-14T22:13:20Z: check the clock"
        );
        let (time, not_before) = (at(0), at(1_700_000_000));
        let early = CertificateError::NotValidYetContext { time, not_before };
        let text = clock_trouble("the node", &Error::InvalidCertificate(early)).unwrap();
        assert!(
            text.contains("1970-01-01T00:00:00Z") && text.contains("from 2023-11-14"),
            "{text}"
        );
        let alert = Error::AlertReceived(AlertDescription::CertificateExpired);
        assert!(clock_trouble("the node", &alert).unwrap().contains("check the clocks of both"));
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(clock_trouble("the node", &unknown), None);
    }
}
