//! Revisions of a vault: what they may say, and what is refused.

use crate::samples;
use farshore_proto::limits::{DOMAINS_MAX, ERASED_KEYS_MAX};
use farshore_proto::revision::RevisionBody;
use farshore_proto::vault::DomainKeys;
use farshore_proto::{DecodeError, Domain, ErrorKind, KeyNumber};
use proptest::prelude::*;

fn again(body: &RevisionBody) -> Result<(), DecodeError> {
    RevisionBody::decode(&body.encode()).map(|found| assert_eq!(found, *body))
}

fn is_out_of_range(body: &RevisionBody) -> bool {
    matches!(again(body), Err(DecodeError::Range { .. }))
}

#[test]
fn a_revision_names_keys_that_are_there() {
    let good = samples::revision();
    again(&good).unwrap();
    let own = |key, last| RevisionBody {
        own_key: KeyNumber(key),
        last_key: KeyNumber(last),
        erased: Vec::new(),
        ..good.clone()
    };
    again(&own(7, 7)).unwrap();
    for (key, last) in [(0, 9), (8, 7), (1, 9), (2, 9), (3, 1)] {
        assert!(is_out_of_range(&own(key, last)), "own key {key} of {last}");
    }
    let added = DomainKeys { domain: Domain(7), root: KeyNumber(8), data: KeyNumber(9) };
    let domains = |last| RevisionBody {
        domains: vec![DomainKeys::FIRST, added],
        last_key: KeyNumber(last),
        ..good.clone()
    };
    again(&domains(9)).unwrap();
    assert!(is_out_of_range(&domains(8)), "a domain's key that is not there");
    assert!(is_out_of_range(&RevisionBody { domains: Vec::new(), ..good.clone() }));
    assert_eq!(good.keys().map(|key| key.0).collect::<Vec<_>>(), [1, 3, 4, 7, 8, 9]);
}

/// There is one way to say which keys are gone, and the vault's own is not among them.
#[test]
fn ranges_of_erased_keys_ascend_and_do_not_meet() {
    let of = |erased: &[(u32, u32)]| RevisionBody {
        erased: erased.iter().map(|(first, last)| *first..=*last).collect(),
        last_key: KeyNumber(20),
        ..samples::revision()
    };
    for good in [&[][..], &[(1, 2)], &[(1, 1), (4, 20)], &[(20, 20)]] {
        again(&of(good)).unwrap();
    }
    for bad in [
        &[(0, 1)][..],
        &[(5, 4)],
        &[(4, 21)],
        &[(4, 6), (7, 8)],
        &[(4, 6), (5, 8)],
        &[(8, 9), (4, 5)],
        &[(3, 3)],
        &[(1, 6)],
        &[(4, u32::MAX)],
    ] {
        assert!(is_out_of_range(&of(bad)), "{bad:?}");
    }
}

#[test]
fn the_largest_revision_is_read() {
    let count = u32::try_from(ERASED_KEYS_MAX).unwrap();
    let domains = (1..=u32::try_from(DOMAINS_MAX).unwrap()).map(|number| DomainKeys {
        domain: Domain(number),
        root: KeyNumber(2 * number + 2),
        data: KeyNumber(2 * number + 3),
    });
    let mut body = RevisionBody {
        last_key: KeyNumber(3 * count),
        domains: domains.collect(),
        erased: (2..count + 2).map(|number| 2 * number..=2 * number).collect(),
        ..samples::revision()
    };
    again(&body).unwrap();
    body.erased.push(3 * count..=3 * count);
    let laid_out = std::panic::catch_unwind(|| body.encode());
    assert!(laid_out.is_err(), "nothing is laid out that no reader takes");
}

#[test]
fn more_ranges_than_there_may_be_are_refused_by_their_number() {
    let mut bytes = samples::revision().encode();
    // The number of records of the third section.
    let at = 16 + 24 + 16 + 16 + 8;
    bytes.resize(bytes.len() + 8 * ERASED_KEYS_MAX, 0);
    bytes.truncate(at + 8 + 8 * (ERASED_KEYS_MAX + 1));
    bytes[at..at + 4].copy_from_slice(&(u32::try_from(ERASED_KEYS_MAX).unwrap() + 1).to_le_bytes());
    assert_eq!(RevisionBody::decode(&bytes).unwrap_err().kind(), ErrorKind::Limit);
}

proptest! {
    #[test]
    fn whatever_is_laid_out_is_read_back(
        time_unix_ms: u64,
        own in 3_u32..1000,
        more in 0_u32..1000,
        gaps in prop::collection::vec((2_u32..9, 0_u32..9), 0..40),
    ) {
        let last = own.max(4) + more;
        let mut erased = Vec::new();
        let mut next = own.max(2) + 1;
        for (gap, length) in gaps {
            let (first, end) = (next + gap, next + gap + length);
            if end > last {
                break;
            }
            erased.push(first..=end);
            next = end;
        }
        let body = RevisionBody {
            time_unix_ms,
            own_key: KeyNumber(own),
            last_key: KeyNumber(last),
            erased,
            ..samples::revision()
        };
        prop_assert_eq!(RevisionBody::decode(&body.encode()), Ok(body));
    }
}
