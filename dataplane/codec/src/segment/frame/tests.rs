use super::*;
use crate::keys::DataKey;
use crate::segment::tests::{
    KEY, LOG, SLOT, VAULT, Whole, build, builder, builder_at, chunk, opener, ring, ring_of,
};
use farshore_proto::limits::{FRAME_TRAILER_BYTES, TAG_BYTES};
use farshore_proto::{ErrorKind, KeyNumber, LogId, Slot, Target};

const TAMPERED: CodecError = CodecError::Tampered { what: FRAME };
const OF_ANOTHER: CodecError = CodecError::Attempt { what: FRAME };

/// A segment of several frames.
fn whole() -> Whole {
    let chunks: Vec<_> = (0..40).map(|seed| chunk(seed, 32)).collect();
    build(builder(), &chunks)
}

/// Every frame as a page of a map knows it, and its bytes in the object.
fn frames(whole: &Whole) -> Vec<(FrameAt, Vec<u8>)> {
    let target = Target { log: LOG, slot: SLOT, attempt: whole.header.attempt() };
    let ranges = opener(&whole.bytes).unwrap().frame_ranges(&whole.table);
    let frame = |((number, range), frame): ((u32, std::ops::Range<u64>), &SegmentFrame)| {
        let offset = u32::try_from(range.start).unwrap();
        let at = FrameAt { target, number, offset, key: KEY, frame: *frame };
        assert_eq!(at.range(), range);
        let (start, end) =
            (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        (at, whole.bytes[start..end].to_vec())
    };
    (0..).zip(ranges).zip(&whole.table.frames).map(frame).collect()
}

fn open_at(at: &FrameAt, sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
    open_in(VAULT, at, sealed, &ring())
}

/// What was there stays there, and nothing comes behind it but what was sealed.
fn open_in(
    vault: VaultId,
    at: &FrameAt,
    sealed: &[u8],
    keys: &KeyRing,
) -> Result<Vec<u8>, CodecError> {
    let mut out = b"before".to_vec();
    let opened = open_frame_at(vault, at, sealed, keys, &mut out);
    let rest = out.strip_prefix(b"before").unwrap().to_vec();
    assert!(opened.is_ok() || rest.is_empty(), "nothing of it is returned");
    opened.map(|()| rest)
}

/// By the way that has header and table.
fn open_with(whole: &Whole, number: u32, sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    opener(&whole.bytes)?.open_frame(&whole.table, number, sealed, &mut out)?;
    Ok(out)
}

#[test]
fn a_frame_alone_opens_to_what_it_opens_to_in_its_segment() {
    let whole = whole();
    let frames = frames(&whole);
    assert!(frames.len() > 2);
    for (at, sealed) in &frames {
        let opened = open_at(at, sealed).unwrap();
        assert_eq!(opened.len(), at.frame.raw_bytes as usize);
        assert_eq!(Ok(opened), open_with(&whole, at.number, sealed));
        // Behind its bytes are the tag and the salt, and the length counts all.
        assert_eq!(sealed.len(), at.frame.stored_bytes as usize);
        assert_eq!(&sealed[sealed.len() - SALT_BYTES..], whole.header.object.salt);
    }
}

#[test]
fn a_frame_does_not_open_in_another_place() {
    let frames = frames(&whole());
    let (at, sealed) = &frames[1];
    let to = |target: Target| FrameAt { target, ..*at };
    let target = at.target;
    let compressed = SegmentFrame { compression: Compression::Raw, ..at.frame };
    let longer = SegmentFrame { raw_bytes: at.frame.raw_bytes + 1, ..at.frame };
    for other in [
        to(Target { log: LogId([9; 16]), ..target }),
        to(Target { slot: Slot(SLOT.0 + 1), ..target }),
        FrameAt { number: 0, ..*at },
        FrameAt { number: 2, ..*at },
        FrameAt { frame: compressed, ..*at },
        FrameAt { frame: longer, ..*at },
    ] {
        assert_eq!(open_at(&other, sealed), Err(TAMPERED), "{other:?}");
    }
    let attempt = Attempt([7; 8]);
    assert_eq!(open_at(&to(Target { attempt, ..target }), sealed), Err(OF_ANOTHER));
    assert_eq!(open_in(VaultId([9; 16]), at, sealed, &ring()), Err(TAMPERED));
    // Where it begins is for who fetches it.
    assert!(open_at(&FrameAt { offset: 0, ..*at }, sealed).is_ok());
    // The bytes of another frame of the segment, told by their length or by the seal.
    for (_, other) in frames.iter().filter(|(other, _)| other.number != at.number) {
        let error = open_at(at, other).unwrap_err();
        assert!(
            matches!(error, CodecError::Length { .. } | CodecError::Tampered { .. }),
            "{error}"
        );
        let frame = SegmentFrame { stored_bytes: u32::try_from(other.len()).unwrap(), ..at.frame };
        assert_eq!(open_at(&FrameAt { frame, ..*at }, other), Err(TAMPERED));
    }
}

#[test]
fn a_frame_of_another_attempt_at_the_slot_is_told() {
    let chunks = [chunk(1, 1)];
    let (one, two) = (build(builder(), &chunks), build(builder(), &chunks));
    let (first, second) = (frames(&one).remove(0), frames(&two).remove(0));
    let error = open_at(&first.0, &second.1).unwrap_err();
    assert_eq!((error.kind(), error), (ErrorKind::Corrupt, OF_ANOTHER));
    assert_eq!(open_with(&one, 0, &second.1), Err(TAMPERED));
    // With the salt of the one behind it, it is the one's as little.
    let (body, _) = second.1.split_at(second.1.len() - SALT_BYTES);
    let grafted = [body, &one.header.object.salt].concat();
    assert_eq!(open_at(&first.0, &grafted), Err(TAMPERED));
    assert_eq!(open_with(&one, 0, &grafted), Err(TAMPERED));
    // Of another slot.
    let other = build(builder_at(VAULT, LOG, Slot(8)), &chunks);
    let at = other.bytes.len() - first.1.len();
    assert_eq!(open_at(&first.0, &other.bytes[at..]), Err(OF_ANOTHER));
}

#[test]
fn every_flipped_bit_is_refused_both_ways() {
    let whole = build(builder(), &[chunk(1, 1)]);
    let (at, sealed) = frames(&whole).remove(0);
    let salt = sealed.len() - SALT_BYTES;
    for bit in 0..sealed.len() * 8 {
        let mut bad = sealed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // Of the salt a part says which attempt it is.
        let is_attempt = (salt..salt + 8).contains(&(bit / 8));
        let expected = if is_attempt { OF_ANOTHER } else { TAMPERED };
        assert_eq!(open_at(&at, &bad), Err(expected), "bit {bit}");
        assert_eq!(open_with(&whole, 0, &bad), Err(TAMPERED), "bit {bit}");
    }
}

#[test]
fn a_frame_cut_or_grown_is_refused_both_ways() {
    let whole = build(builder(), &[chunk(1, 1)]);
    let (at, sealed) = frames(&whole).remove(0);
    let expected = sealed.len() as u64;
    let refused = |bytes: &[u8]| {
        let length = CodecError::Length { what: FRAME, expected, found: bytes.len() as u64 };
        assert_eq!(open_at(&at, bytes), Err(length.clone()));
        assert_eq!(open_with(&whole, 0, bytes), Err(length));
    };
    (0..sealed.len()).for_each(|end| refused(&sealed[..end]));
    refused(&[&sealed[..], &[0]].concat());
    // Where the place says so too, there is no room for a salt, a tag, or what was sealed.
    for end in 0..=FRAME_TRAILER_BYTES {
        let cut = &sealed[sealed.len() - end..];
        let frame = SegmentFrame { stored_bytes: u32::try_from(end).unwrap(), ..at.frame };
        let error = open_at(&FrameAt { frame, ..at }, cut).unwrap_err();
        let bytes = end as u64;
        let length = CodecError::Length { what: FRAME, expected: bytes, found: bytes };
        assert_eq!(error, if end < SALT_BYTES { length } else { TAMPERED }, "{end} bytes");
    }
}

#[test]
fn a_missing_or_wrong_data_key_is_told() {
    let (at, sealed) = frames(&whole()).remove(0);
    let key = KeyNumber(2);
    let error = open_at(&FrameAt { key, ..at }, &sealed).unwrap_err();
    assert_eq!((error.kind(), error), (ErrorKind::NotFound, CodecError::NoKey { key }));
    assert_eq!(open_in(VAULT, &at, &sealed, &ring_of(6)), Err(TAMPERED));
    let mut both = ring();
    both.insert(key, DataKey::from_bytes([6; 32]));
    assert_eq!(open_in(VAULT, &FrameAt { key, ..at }, &sealed, &both), Err(TAMPERED));
    assert!(open_in(VAULT, &at, &sealed, &both).is_ok());
}

#[test]
fn the_other_implementation_opens_it() {
    for (at, sealed) in frames(&whole()) {
        let place = SegmentHeader::place(VAULT, LOG, SLOT);
        let (_, salt) = split(&sealed, &at.frame).unwrap();
        let ring = ring();
        let key = key_at(Implementation::RustCrypto, &place, ring.get(KEY).unwrap(), salt);
        let mut out = Vec::new();
        open_frame(&key, &place, salt, at.number, &at.frame, &sealed, &mut out).unwrap();
        assert_eq!(Ok(out), open_at(&at, &sealed));
        let mut bad = sealed.clone();
        let tag = bad.len() - SALT_BYTES - TAG_BYTES;
        bad[tag] ^= 1;
        let opened = open_frame(&key, &place, salt, at.number, &at.frame, &bad, &mut Vec::new());
        assert_eq!(opened, Err(TAMPERED));
    }
}
