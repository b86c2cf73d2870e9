use super::*;
use farshore_proto::ErrorKind;
use proptest::prelude::*;

const BOTH: [Implementation; 2] = [Implementation::AwsLc, Implementation::RustCrypto];

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

struct Vector {
    key: &'static str,
    nonce: &'static str,
    plain: &'static str,
    aad: &'static str,
    sealed: &'static str,
    tag: &'static str,
}

/// Test cases 13 to 16 of the GCM specification (McGrew and Viega, 2005), those of AES-256 with
/// nonces of 96 bits.
const VECTORS: [Vector; 4] = [
    Vector {
        key: "0000000000000000000000000000000000000000000000000000000000000000",
        nonce: "000000000000000000000000",
        plain: "",
        aad: "",
        sealed: "",
        tag: "530f8afbc74536b9a963b4f1c4cb738b",
    },
    Vector {
        key: "0000000000000000000000000000000000000000000000000000000000000000",
        nonce: "000000000000000000000000",
        plain: "00000000000000000000000000000000",
        aad: "",
        sealed: "cea7403d4d606b6e074ec5d3baf39d18",
        tag: "d0d1c8a799996bf0265b98b5d48ab919",
    },
    Vector {
        key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        nonce: "cafebabefacedbaddecaf888",
        plain: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
                1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
        aad: "",
        sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
                 8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
        tag: "b094dac5d93471bdec1a502270e3cc6c",
    },
    Vector {
        key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        nonce: "cafebabefacedbaddecaf888",
        plain: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
                1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        aad: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
                 8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
        tag: "76fc6ece0f4e1768cddf8853bb2d551b",
    },
];

#[test]
fn both_implementations_give_the_published_answers() {
    for (number, vector) in VECTORS.iter().enumerate() {
        let key: [u8; 32] = bytes(vector.key).try_into().unwrap();
        let nonce: [u8; 12] = bytes(vector.nonce).try_into().unwrap();
        for implementation in BOTH {
            let cipher = Cipher::new(implementation, &key);
            let mut buffer = bytes(vector.plain);
            let tag = cipher.seal(nonce, &bytes(vector.aad), &mut buffer).unwrap();
            assert_eq!(hex::encode(&buffer), vector.sealed, "{implementation:?} {number}");
            assert_eq!(hex::encode(tag), vector.tag, "{implementation:?} {number}");
            cipher.open(nonce, &bytes(vector.aad), &mut buffer, &tag).unwrap();
            assert_eq!(hex::encode(&buffer), vector.plain, "{implementation:?} {number}");
        }
    }
}

#[test]
fn derivation_is_part_of_the_format() {
    // Change a context string or the framing and objects sealed before cannot be opened: bump the
    // version of the strings, do not edit these bytes.
    let key = DataKey::from_bytes([0x11; 32]);
    let salt = [0x22; 32];
    let context: [&[u8]; 2] = [b"vault", b"log"];
    let first = |purpose| {
        let commit = CommitKey::derive(&key, purpose, &context, &salt).commit(&[b"head", b"er"]);
        let (key, commitment) =
            (OpenKey::derive(&key, purpose, &context, &salt), hex::encode(&commit[..8]));
        let tag = key.cipher.seal(Domain::Body.nonce(0), b"aad", &mut []).unwrap();
        (commitment, hex::encode(&tag[..8]))
    };
    let pinned = |commitment: &str, tag: &str| (commitment.to_owned(), tag.to_owned());
    assert_eq!(first(Purpose::Object), pinned("3fe1caa31d87001d", "50587f6311693327"));
    assert_eq!(first(Purpose::Journal), pinned("209c25f450f507b4", "9d2392c1c42e264a"));
}

#[test]
fn each_input_of_the_derivation_changes_the_key() {
    let key = DataKey::from_bytes([1; 32]);
    let both = |key: &DataKey, purpose, context: [&[u8]; 2], salt| {
        (
            OpenKey::derive(key, purpose, &context, salt),
            CommitKey::derive(key, purpose, &context, salt),
        )
    };
    let derived = || both(&key, Purpose::Object, [b"ab", b"c"], &[0; 32]);
    let others = [
        both(&DataKey::from_bytes([2; 32]), Purpose::Object, [b"ab", b"c"], &[0; 32]),
        both(&key, Purpose::Journal, [b"ab", b"c"], &[0; 32]),
        both(&key, Purpose::Object, [b"a", b"bc"], &[0; 32]),
        both(&key, Purpose::Object, [b"ab", b"c"], &[1; 32]),
    ];
    let (base, committing) = derived();
    let commitment = committing.commit(&[b"header"]);
    let check = |key: &CommitKey| key.check(&[b"header"], &commitment, "segment", KeyNumber(1));
    let sealed = base.cipher.seal(Domain::Body.nonce(0), b"", &mut []).unwrap();
    for (other, committing) in &others {
        assert_eq!(check(committing).unwrap_err().kind(), ErrorKind::Corrupt);
        other.open_in_place(Domain::Body, 0, b"", &mut sealed.clone()).unwrap_err();
    }
    let (again, committing) = derived();
    check(&committing).unwrap();
    again.open_in_place(Domain::Body, 0, b"", &mut sealed.clone()).unwrap();
}

#[test]
fn a_commitment_is_to_every_byte_and_not_to_how_it_is_handed_over() {
    let key = CommitKey::derive(&DataKey::from_bytes([1; 32]), Purpose::Object, &[], &[0; 32]);
    let header = [7_u8; 200];
    let commitment = key.commit(&[&header]);
    for at in 0..header.len() {
        let mut other = header;
        other[at] ^= 0x80;
        assert_ne!(key.commit(&[&other]), commitment, "byte {at}");
        assert_ne!(key.commit(&[&header[..at]]), commitment, "length {at}");
        assert_eq!(key.commit(&[&header[..at], &header[at..]]), commitment, "in parts {at}");
    }
}

#[test]
fn a_sealer_never_repeats_a_nonce_or_a_salt() {
    let key = DataKey::draw().unwrap();
    let mut one = Sealer::draw(&key, Purpose::Journal, &[]).unwrap();
    let two = Sealer::draw(&key, Purpose::Journal, &[]).unwrap();
    assert_ne!(one.salt(), two.salt());
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..3 {
        for domain in [Domain::Frame, Domain::Body, Domain::Group, Domain::Page, Domain::Label] {
            assert_eq!(one.next_counter(domain), round, "each counts for itself");
            assert!(seen.insert(domain.nonce(one.next_counter(domain))));
            one.seal_slice(domain, &[], &mut [0; 8]).unwrap();
        }
    }
    assert_eq!(seen.len(), 15);
}

#[test]
fn nothing_secret_is_printed() {
    let sealer = Sealer::draw(&DataKey::from_bytes([9; 32]), Purpose::Object, &[]).unwrap();
    assert_eq!(format!("{sealer:?}"), "Sealer { next: [0, 0, 0, 0, 0], .. }");
    assert_eq!(format!("{:?}", sealer.key()), "OpenKey(..)");
    let commit = CommitKey::derive(&DataKey::from_bytes([9; 32]), Purpose::Object, &[], &[0; 32]);
    assert_eq!(format!("{commit:?}"), "CommitKey(..)");
}

#[test]
fn bytes_shorter_than_a_tag_are_refused() {
    let sealer = Sealer::draw(&DataKey::from_bytes([9; 32]), Purpose::Object, &[]).unwrap();
    for len in 0..TAG_BYTES {
        let mut bytes = vec![0; len];
        let error = sealer.key().open_in_place(Domain::Body, 0, &[], &mut bytes).unwrap_err();
        assert_eq!(error, CodecError::Tampered { what: "body of an object" });
    }
}

proptest! {
    #[test]
    fn each_implementation_opens_what_the_other_sealed(
        plain in proptest::collection::vec(any::<u8>(), 0..9000),
        aad in proptest::collection::vec(any::<u8>(), 0..200),
        counter in 0_u64..4,
    ) {
        let key = DataKey::from_bytes([5; 32]);
        for sealing in BOTH {
            let mut sealer = Sealer::draw_for(sealing, &key, Purpose::Object, &[b"x"]).unwrap();
            let mut sealed = Vec::new();
            for _ in 0..=counter {
                sealed.clone_from(&plain);
                sealer.seal(Domain::Frame, &aad, &mut sealed).unwrap();
            }
            prop_assert_eq!(sealed.len(), plain.len() + TAG_BYTES);
            for opening in BOTH {
                let open =
                    OpenKey::derive_for(opening, &key, Purpose::Object, &[b"x"], sealer.salt());
                let mut copy = sealed.clone();
                let opened = open.open_in_place(Domain::Frame, counter, &aad, &mut copy).unwrap();
                prop_assert_eq!(&*opened, &plain[..]);
                let mut copy = sealed.clone();
                prop_assert!(open.open_in_place(Domain::Frame, counter + 1, &aad, &mut copy).is_err());
                let mut copy = sealed.clone();
                prop_assert!(open.open_in_place(Domain::Body, counter, &aad, &mut copy).is_err());
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_refused_by_both(
        plain in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<proptest::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let key = DataKey::from_bytes([5; 32]);
        let aad = b"where it belongs";
        for implementation in BOTH {
            let mut sealer = Sealer::draw_for(implementation, &key, Purpose::Object, &[]).unwrap();
            let mut sealed = plain.clone();
            sealer.seal(Domain::Frame, aad, &mut sealed).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(sealer.key().open_in_place(Domain::Frame, 0, aad, &mut sealed).is_err());
        }
    }
}
