//! The vault object and the wrapped keys: what a later program may add, what it may not, and what a reader
//! says of a vault that it does not know how to use.

use crate::samples;
use farshore_proto::keys::{Fingerprint, KeyHeader, KeyKind, KeyObject, Wrapper, WrapperKind};
use farshore_proto::limits::DOMAINS_MAX;
use farshore_proto::vault::{DomainKeys, Parameters, VaultObject};
use farshore_proto::{DecodeError, Domain, ErrorKind, KeyNumber, VaultId};
use proptest::collection::vec;
use proptest::prelude::*;

/// The object with some of its bytes set, and a checksum that fits.
fn with(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes.truncate(bytes.len() - 4);
    bytes[at..at + value.len()].copy_from_slice(value);
    samples::with_checksum(bytes)
}

fn vault_with(at: usize, value: &[u8]) -> Result<VaultObject, DecodeError> {
    VaultObject::decode(&with(samples::vault().encode(), at, value))
}

fn key_with(at: usize, value: &[u8]) -> Result<KeyObject, DecodeError> {
    KeyObject::decode(&with(samples::key().encode(), at, value))
}

#[test]
fn what_may_be_passed_over_is_passed_over() {
    let more = samples::vault_of_a_later_program();
    assert_eq!(VaultObject::decode(&more).unwrap(), samples::vault());
    for bit in 0..32 {
        let may = (1_u32 << bit).to_le_bytes();
        assert_eq!(vault_with(12, &may).unwrap(), samples::vault());
        let (key, plain) = (key_with(12, &may).unwrap(), samples::key());
        assert_eq!(
            (key.header, key.nonce, key.wrapped),
            (plain.header, plain.nonce, plain.wrapped)
        );
        assert_ne!(key.aad(), plain.aad(), "it is authenticated");
    }
    let more = samples::key_of_a_later_program();
    let key = KeyObject::decode(&more).unwrap();
    assert_eq!((key.header, key.encode()), (samples::key().header, more.clone()));
    assert_eq!(key.aad(), more[..64]);
}

#[test]
fn what_must_be_understood_is_said_to_be_of_a_newer_version() {
    for bit in 0..32 {
        let must = (1_u32 << bit).to_le_bytes();
        let vault = DecodeError::Newer { what: "vault object", feature: "feature", bit };
        assert_eq!(vault_with(8, &must), Err(vault.clone()));
        assert_eq!(vault.kind(), ErrorKind::Invalid);
        let key = DecodeError::Newer { what: "key object", feature: "feature", bit };
        assert_eq!(key_with(8, &must), Err(key));
    }
    // The second section becomes another one that has the flag.
    let error = vault_with(96, &[7, 0]).unwrap_err();
    assert_eq!(error, DecodeError::Newer { what: "vault object", feature: "section", bit: 7 });
    // 3 is the kind of passphrases to come.
    for (at, feature, code) in [(44, "key kind", 4), (44, "key kind", 127), (45, "wrapper kind", 3)]
    {
        let newer = DecodeError::Newer { what: "key object", feature, bit: code.into() };
        assert_eq!(key_with(at, &[code]), Err(newer));
        let none = DecodeError::Range { what: feature, value: 0 };
        assert_eq!(key_with(at, &[0]), Err(none));
    }
}

/// A vault is for life what it was made with: a program that works otherwise says what is different.
#[test]
fn a_parameter_that_this_program_does_not_work_with_is_named() {
    for (at, bytes, name) in [
        (64, 4, "block bytes"),
        (68, 4, "shortest chunk"),
        (72, 4, "blocks for each cut"),
        (76, 4, "longest chunk"),
        (80, 4, "frame bytes"),
        (84, 1, "hash"),
        (85, 1, "cipher"),
        (86, 1, "compression"),
        (88, 2, "year of key contexts"),
        (90, 2, "version of key contexts"),
    ] {
        let good = samples::vault().encode()[at];
        let value = [good ^ 1, 0, 0, 0];
        let error = vault_with(at, &value[..1]).unwrap_err();
        let is_it = matches!(error, DecodeError::Parameter { name: said, .. } if said == name);
        assert!(is_it, "{name} of {bytes} bytes: {error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let error = vault_with(72, &[16]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vault object: blocks for each cut: 16 is recorded, this version of Farshore works with 8"
    );
    Parameters::THIS.check().unwrap();
}

#[test]
fn domains_ascend_from_the_first_and_have_two_keys() {
    let vault_of = |domains: &[(u32, u32, u32)]| {
        let keys = |(domain, root, data): &(u32, u32, u32)| DomainKeys {
            domain: Domain(*domain),
            root: KeyNumber(*root),
            data: KeyNumber(*data),
        };
        let domains = domains.iter().map(keys).collect();
        let object = VaultObject { domains, ..samples::vault() };
        VaultObject::decode(&object.encode()).map(|found| assert_eq!(found, object))
    };
    vault_of(&[(1, 1, 2)]).unwrap();
    vault_of(&[(1, 1, 2), (2, 6, 4), (9, 7, 5)]).unwrap();
    for bad in [
        &[][..],
        &[(2, 1, 2)],
        &[(0, 1, 2)],
        &[(1, 1, 2), (1, 5, 4)],
        &[(1, 1, 2), (3, 7, 4), (2, 5, 6)],
        &[(1, 1, 3)],
        &[(1, 3, 2)],
        &[(1, 1, 1)],
        &[(1, 0, 2)],
        &[(1, 1, 0)],
    ] {
        let error = vault_of(bad).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{bad:?}: {error}");
    }
    let all: Vec<_> = (1..=128).map(|domain| (domain, 2 * domain + 2, 2 * domain + 3)).collect();
    assert_eq!(all.len(), DOMAINS_MAX);
    vault_of(&all).unwrap();
    let own = |key| vault_with(36, &[key]).map(|vault| vault.own_key);
    assert_eq!(own(9), Ok(KeyNumber(9)));
    for taken in [0, 1, 2] {
        assert!(matches!(own(taken), Err(DecodeError::Range { .. })), "{taken}");
    }
}

/// A later program's keys are no concern of one that does not know them; a number may have no key for who asks.
#[test]
fn keys_of_kinds_from_128_on_are_passed_over() {
    let kind = |code| key_with(44, &[code]).map(|key| key.header.kind);
    assert_eq!(kind(3), Ok(KeyKind::Withheld));
    for code in [128, 255] {
        assert_eq!(kind(code), Ok(KeyKind::Other(code)));
        let bytes = with(samples::key().encode(), 44, &[code]);
        assert_eq!(KeyObject::decode(&bytes).map(|key| key.encode()), Ok(bytes));
    }
    // A data key may be the vault's own; chunk ids and cuts are always a domain's.
    assert_eq!(key_with(40, &[0]).map(|key| key.header.domain), Ok(Domain::OWN));
    let own_root = with(with(samples::key().encode(), 40, &[0]), 44, &[2]);
    assert!(matches!(KeyObject::decode(&own_root), Err(DecodeError::Range { .. })));
}

#[test]
fn headers_of_a_wrong_length_are_refused() {
    for (object, length) in [(samples::vault().encode(), 48_u16), (samples::key().encode(), 56)] {
        let decode = |bytes: &[u8]| match length {
            48 => VaultObject::decode(bytes).map(drop),
            _ => KeyObject::decode(bytes).map(drop),
        };
        // Shorter than what is known, and of a length that no header has; the body then begins elsewhere.
        for other in [0, 8, length - 8, length + 4, 512, 520, u16::MAX] {
            decode(&with(object.clone(), 6, &other.to_le_bytes())).unwrap_err();
        }
        let grown = |by: usize| {
            let mut bytes = object[..usize::from(length)].to_vec();
            bytes.extend(vec![0; by]);
            bytes.extend(&object[usize::from(length)..object.len() - 4]);
            let said = length + u16::try_from(by).unwrap();
            bytes[6..8].copy_from_slice(&said.to_le_bytes());
            decode(&samples::with_checksum(bytes))
        };
        grown(8).unwrap();
        grown(512 - usize::from(length)).unwrap();
        assert_eq!(grown(520 - usize::from(length)).unwrap_err().kind(), ErrorKind::Limit);
        grown(4).unwrap_err();
    }
}

#[test]
fn a_fingerprint_is_sixteen_digits() {
    let fingerprint = Fingerprint([0, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd]);
    assert_eq!(fingerprint.to_string(), "000123456789abcd");
    for text in ["000123456789abcd", "000123456789ABCD"] {
        assert_eq!(text.parse(), Ok(fingerprint));
    }
    for text in
        ["", "01", "+00123456789abcd", "0001 3456789abcd", "0001 23456789abcd", "é00123456789abc"]
    {
        text.parse::<Fingerprint>().unwrap_err();
    }
}

proptest! {
    #[test]
    fn whatever_is_laid_out_is_read_back(
        id: [u8; 16],
        key in 1_u32..,
        domain: u32,
        is_root: bool,
        kind in prop::sample::select(WrapperKind::ALL.to_vec()),
        fingerprint: [u8; 8],
        nonce: [u8; 12],
        wrapped in vec(any::<u8>(), 48),
        domains in prop::collection::btree_map(2..u32::MAX, 1..u32::MAX, 0..DOMAINS_MAX),
    ) {
        let vault = VaultId(id);
        let header = KeyHeader {
            vault,
            key: KeyNumber(key),
            domain: Domain(domain),
            kind: if is_root && domain > 0 { KeyKind::Root } else { KeyKind::Data },
            wrapper: Wrapper { kind, fingerprint: Fingerprint(fingerprint) },
        };
        let object = KeyObject::new(header, nonce, wrapped.try_into().unwrap());
        prop_assert_eq!(KeyObject::decode(&object.encode()), Ok(object));
        let mut object = VaultObject::new(vault);
        object.domains.extend(domains.into_iter().map(|(domain, key)| DomainKeys {
            domain: Domain(domain),
            root: KeyNumber(key.max(4)),
            data: KeyNumber(key.max(4) ^ 1),
        }));
        prop_assert_eq!(VaultObject::decode(&object.encode()), Ok(object));
    }
}
