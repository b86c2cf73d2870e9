use super::*;
use crate::keys::{DataKey, RootKey};
use farshore_proto::keys::KeyKind;

const VAULT: VaultId = VaultId([1; 16]);
const NUMBER: KeyNumber = KeyNumber(2);

fn key_of(kind: WrapperKind) -> WrappingKey {
    WrappingKey { kind, key: Zeroizing::new([0x42; KEY_BYTES]) }
}

fn key() -> WrappingKey {
    key_of(WrapperKind::Recovery)
}

fn data() -> VaultKey {
    VaultKey::Data(DataKey::from_bytes([3; 32]))
}

fn object_of(key: &WrappingKey) -> KeyObject {
    key.wrap(VAULT, NUMBER, Domain::FIRST, &data()).unwrap()
}

fn damaged() -> KekError {
    KekError::Damaged { vault: VAULT, key: NUMBER, wrapper: key().wrapper() }
}

#[test]
fn the_text_is_part_of_the_format() {
    for (kind, prefix, check, fingerprint) in [
        (WrapperKind::Recovery, "FSRK2", "fad428ec", "7dde0ed979b93b0d"),
        (WrapperKind::Node, "FSNK2", "2ad84239", "e706b6c540713c97"),
    ] {
        let key = key_of(kind);
        let text = key.to_text();
        assert_eq!(text.as_str(), format!("{prefix}-{}-{check}", "42".repeat(32)));
        assert_eq!(key.wrapper().fingerprint.to_string(), fingerprint);
        assert_eq!(text.len(), TEXT_BYTES);
    }
}

#[test]
fn text_is_read_back_with_any_space_and_case() {
    for kind in WrapperKind::ALL {
        let key = WrappingKey::draw(kind).unwrap();
        let text = key.to_text();
        let (prefix, digits) = text.split_at(PREFIX_BYTES);
        for variant in [
            text.to_string(),
            format!("\n  {}\r\n", *text),
            format!("{prefix}{}", digits.to_uppercase()),
        ] {
            assert_eq!(WrappingKey::parse(&variant).unwrap().wrapper(), key.wrapper());
        }
    }
}

#[test]
fn other_text_is_no_key() {
    let text = key().to_text().to_string();
    for bad in [
        "",
        "hunter2",
        &text[1..],
        &text[..text.len() - 1],
        &format!("{text}0"),
        &text.replace("FSRK2", "FSRK1"),
        &text.replace("FSRK2", "FSRK3"),
        &text.replacen("42", "4g", 1),
        &text.replacen("42", "é", 1),
        &text.replace('-', "_"),
    ] {
        let error = WrappingKey::parse(bad).unwrap_err();
        assert_eq!(error, KekError::NotAKey, "{bad:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

/// A node key with the front of a recovery key, and the other way round, is a mistyped one.
#[test]
fn any_mistyped_digit_and_the_other_front_is_noticed() {
    for kind in WrapperKind::ALL {
        let text = key_of(kind).to_text().to_string();
        for at in (PREFIX_BYTES..text.len()).filter(|at| text.as_bytes()[*at] != b'-') {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let error = WrappingKey::parse(std::str::from_utf8(&bytes).unwrap()).unwrap_err();
            assert_eq!(error, KekError::Mistyped { kind }, "digit {at}");
        }
        for other in WrapperKind::ALL.into_iter().filter(|other| *other != kind) {
            let text = format!("{}{}", terms(other).prefix, &text[PREFIX_BYTES..]);
            let error = WrappingKey::parse(&text).unwrap_err();
            assert_eq!(error, KekError::Mistyped { kind: other });
        }
    }
}

#[test]
fn a_key_of_the_other_kind_is_refused_by_both_names() {
    let node = key_of(WrapperKind::Node);
    assert_eq!(node.clone().of_kind(WrapperKind::Node).unwrap().wrapper(), node.wrapper());
    let error = node.of_kind(WrapperKind::Recovery).unwrap_err();
    assert_eq!(error.to_string(), "this is a node key; a recovery key is needed here");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_wrapped_key_unwraps_to_itself_and_to_its_kind() {
    let (data, root) = (data(), VaultKey::Root(RootKey::from_bytes([4; 32])));
    for kind in WrapperKind::ALL {
        for (plain, domain) in [(&data, Domain::FIRST), (&root, Domain(7))] {
            let key = WrappingKey::draw(kind).unwrap();
            let object = key.wrap(VAULT, NUMBER, domain, plain).unwrap();
            let object = KeyObject::decode(&object.encode()).unwrap();
            assert!(key.unwrap(VAULT, NUMBER, &object).unwrap().is(plain));
            assert_eq!((object.header.domain, object.header.kind), (domain, plain.kind()));
            let again = key.wrap(VAULT, NUMBER, domain, plain).unwrap();
            assert_ne!((object.nonce, object.wrapped), (again.nonce, again.wrapped));
        }
    }
    assert!(!data.is(&root) && !data.is(&VaultKey::Root(RootKey::from_bytes([3; 32]))));
}

#[test]
fn an_object_of_another_wrapper_is_told_from_a_damaged_one() {
    let object = object_of(&key());
    let node = key_of(WrapperKind::Node);
    for other in [WrappingKey::draw(WrapperKind::Recovery).unwrap(), node.clone()] {
        let error = other.unwrap(VAULT, NUMBER, &object).unwrap_err();
        assert!(matches!(error, KekError::Misplaced { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        for wrapper in [key().wrapper(), other.wrapper()] {
            assert!(error.to_string().contains(&wrapper.to_string()), "{error}");
        }
        // Renamed, it is still not its own.
        let mut renamed = object.clone();
        renamed.header.wrapper = other.wrapper();
        let error = other.unwrap(VAULT, NUMBER, &renamed).unwrap_err();
        assert!(matches!(error, KekError::Damaged { .. }), "{error}");
    }
    for at in 0..object.wrapped.len() {
        let mut bad = object.clone();
        bad.wrapped[at] ^= 1;
        assert_eq!(key().unwrap(VAULT, NUMBER, &bad).unwrap_err(), damaged(), "byte {at}");
    }
    let mut bad = object;
    bad.nonce[0] ^= 1;
    assert_eq!(key().unwrap(VAULT, NUMBER, &bad).unwrap_err(), damaged());
}

/// All that the header says is authenticated: the domain and the kind of the key too.
#[test]
fn a_key_of_another_vault_number_domain_or_kind_is_refused_even_if_relabelled() {
    let object = object_of(&key());
    let other = VaultId([2; 16]);
    let error = key().unwrap(other, NUMBER, &object).unwrap_err();
    assert!(matches!(error, KekError::Misplaced { .. }), "{error}");
    let error = key().unwrap(VAULT, KeyNumber(1), &object).unwrap_err();
    assert!(matches!(error, KekError::Misplaced { .. }), "{error}");
    let relabelled = |change: fn(&mut KeyHeader)| {
        let mut object = object.clone();
        change(&mut object.header);
        let (vault, number) = (object.header.vault, object.header.key);
        let error = key().unwrap(vault, number, &object).unwrap_err();
        assert!(matches!(error, KekError::Damaged { .. }), "{error}");
    };
    relabelled(|header| header.vault = VaultId([2; 16]));
    relabelled(|header| header.key = KeyNumber(1));
    relabelled(|header| header.domain = Domain(2));
    relabelled(|header| header.kind = KeyKind::Root);
}

/// With the checksum put right, as whoever may write the store does it.
fn mended(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn opens(bytes: &[u8]) -> bool {
    KeyObject::decode(bytes).is_ok_and(|object| key().unwrap(VAULT, NUMBER, &object).is_ok())
}

#[test]
fn every_flipped_bit_of_the_object_is_refused_with_a_good_checksum_too() {
    let object = object_of(&key()).encode();
    assert!(opens(&object));
    for at in 0..object.len() {
        for bit in 0..8 {
            let mut bad = object.clone();
            bad[at] ^= 1 << bit;
            assert!(!opens(&bad), "byte {at} bit {bit}");
            // In the checksum itself there is nothing to be put right.
            let is_checksum = at >= object.len() - 4;
            assert!(is_checksum || !opens(&mended(bad)), "byte {at} bit {bit}");
        }
        assert!(!opens(&object[..at]), "length {at}");
    }
}

/// What a later program adds is passed over, but it is authenticated: nobody adds or removes it.
#[test]
fn what_a_later_program_says_besides_is_authenticated() {
    let key = key();
    let plain = object_of(&key).encode();
    let grown = |more: &[u8]| {
        let mut bytes = [&plain[..56], more, &plain[56..]].concat();
        bytes[6] += u8::try_from(more.len()).unwrap();
        mended(bytes)
    };
    let marked = |mut bytes: Vec<u8>| {
        bytes[12] |= 4;
        mended(bytes)
    };
    for bytes in [grown(&[9; 8]), grown(&[0; 8]), marked(plain.clone())] {
        let found = KeyObject::decode(&bytes).unwrap();
        assert_eq!(found.encode(), bytes, "nothing of it is lost");
        let error = key.unwrap(VAULT, NUMBER, &found).unwrap_err();
        assert_eq!(error, damaged());
    }
    // As a later program seals it.
    let mut object = KeyObject::decode(&marked(grown(&[9; 8]))).unwrap();
    let mut sealed = Zeroizing::new(*data().bytes());
    let tag = key
        .cipher()
        .encrypt_inout_detached(&object.nonce.into(), &object.aad(), sealed.as_mut_slice().into())
        .unwrap();
    object.wrapped[..32].copy_from_slice(&*sealed);
    object.wrapped[32..].copy_from_slice(&tag);
    let found = KeyObject::decode(&object.encode()).unwrap();
    assert!(key.unwrap(VAULT, NUMBER, &found).unwrap().is(&data()));
}

#[test]
fn nothing_secret_is_printed() {
    assert_eq!(format!("{:?}", key()), "WrappingKey(recovery key, ..)");
}
