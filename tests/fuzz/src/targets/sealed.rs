//! What is compressed and sealed. No fuzzer guesses a tag of AES-GCM, so each target takes its input
//! in one of several ways, by its first byte: as an object found in the vault, which must be refused
//! unless it is one of ours, or as what somebody with the data key has sealed, which must be
//! refused or be exactly what it says.

use super::derived::{BASE_NUMBER, CHECKPOINT_SLOT};
use crate::{later, taken};
use farshore_codec::base::open_base;
use farshore_codec::checkpoint::open_checkpoint;
use farshore_codec::compress::{Compressor, decompress as expand};
use farshore_codec::epoch::open_epoch;
use farshore_codec::horizon::open_horizon;
use farshore_codec::index_run::open_index_run;
use farshore_codec::journal::{JournalOpener, JournalSealer};
use farshore_codec::revision::open_revision_wholly;
use farshore_codec::seal::{CommitKey, Domain, Purpose, Sealer};
use farshore_codec::{CodecError, DataKey, KeyRing, RootKey};
use farshore_proto::epoch::EpochBody;
use farshore_proto::journal::{GroupSize, entries};
use farshore_proto::limits::{
    JOURNAL_ALIGN_BYTES, JOURNAL_GROUP_HEADER_BYTES, OBJECT_BODY_BYTES_MAX,
    SEGMENT_FRAME_BYTES_MAX, SMALL_BODY_BYTES_MAX, TAG_BYTES,
};
use farshore_proto::object::{ObjectHeader, ObjectKind, ObjectPlace, commit, committed};
use farshore_proto::segment::Compression;
use farshore_proto::vault::OWN_KEY;
use farshore_proto::wire::Put;
use farshore_proto::{
    Domain as DedupDomain, KeyNumber, LogId, RunId, VaultId, VolumeId, base as bases,
    checkpoint as checkpoints, epoch as epochs, horizon as horizons, index_run as runs,
    revision as revisions,
};

pub(super) const VAULT: VaultId = VaultId([1; 16]);
pub(super) const LOG: LogId = LogId([2; 16]);
pub(super) const VOLUME: VolumeId = VolumeId([3; 16]);
pub(super) const KEY: KeyNumber = KeyNumber(1);
const ORDINAL: u64 = 2;
/// The kinds whose bodies go by a key of their domain, whatever their variant.
const DOMAIN_KINDS: [ObjectKind; 5] = [
    ObjectKind::Map,
    ObjectKind::Pages,
    ObjectKind::IndexRun,
    ObjectKind::Machine,
    ObjectKind::Group,
];
const RUN: RunId = RunId([5; 16]);

/// The keys that the golden objects are sealed under.
pub(super) fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KEY, DataKey::from_bytes([0x11; 32]));
    ring.insert_own(OWN_KEY, DataKey::from_bytes([0x13; 32]));
    ring.insert_root(KeyNumber(2), RootKey::from_bytes([0x12; 32]));
    ring
}

/// What the body of an object goes by, as the documents of the kinds say.
fn under(place: &ObjectPlace, variant: u8) -> (DedupDomain, KeyNumber) {
    let is_of_domain = match place.kind {
        ObjectKind::Slot => variant == 1,
        kind => DOMAIN_KINDS.contains(&kind),
    };
    match is_of_domain {
        true => (DedupDomain::FIRST, KEY),
        false => (DedupDomain::OWN, OWN_KEY),
    }
}

/// Calls `with` with what keys of an object at `place` are derived in, as `docs/formats/object.md` says.
fn with_context<T>(place: &ObjectPlace, with: impl FnOnce(&[&[u8]]) -> T) -> T {
    let ObjectPlace { kind, vault, subject, number, part } = place;
    with(&[&kind.magic(), &vault.0, subject, &number.to_le_bytes(), &part.to_le_bytes()])
}

/// A sealer for an object at `place`.
pub(super) fn sealer(ring: &KeyRing, place: &ObjectPlace, variant: u8) -> Sealer {
    let key = ring.get(under(place, variant).1).expect("the ring has it");
    let drawn = with_context(place, |context| Sealer::draw(key, Purpose::Object, context));
    drawn.expect("the system gives random bytes")
}

/// What is bound to a frame of a segment and to a page of a map, as `docs/formats/segment.md` says, apart from the
/// code under test.
pub(super) fn part_aad(
    place: &ObjectPlace,
    number: u32,
    raw_bytes: u32,
    compression: Compression,
) -> Vec<u8> {
    let mut aad = Vec::new();
    aad.put_bytes(&place.vault.0);
    aad.put_bytes(&place.subject);
    aad.put_u64(place.number);
    aad.put_u32(number);
    aad.put_u32(raw_bytes);
    aad.put_u8(u8::from(compression == Compression::Zstd));
    aad.put_zeros(7);
    aad
}

/// Header and body as somebody with the key seals them; nothing if no header can say such lengths.
pub(super) fn seal_object(
    sealer: &mut Sealer,
    place: ObjectPlace,
    variant: u8,
    own: impl FnOnce(&mut Vec<u8>),
    body: &Body,
) -> Option<Vec<u8>> {
    if body.raw_bytes > place.kind.body_bytes_max() || body.stored.len() > body.raw_bytes {
        return None;
    }
    let header = ObjectHeader {
        place,
        domain: under(&place, variant).0,
        key: under(&place, variant).1,
        own_key: OWN_KEY,
        variant,
        compression: body.compression,
        body_bytes: body.stored.len() + TAG_BYTES,
        body_raw_bytes: body.raw_bytes,
        salt: *sealer.salt(),
        commitment: [0; 32],
        header_bytes: place.kind.header_bytes(),
    };
    let mut object = header.encode(own);
    let (ring, salt) = (ring(), sealer.salt());
    let own = ring.own(OWN_KEY).expect("the ring has it");
    let committing =
        with_context(&place, |context| CommitKey::derive(own, Purpose::Object, context, salt));
    let commitment = committing.commit(&committed(&object));
    commit(&mut object, &commitment);
    let mut stored = body.stored.clone();
    sealer.seal(Domain::Body, &object, &mut stored).expect("inputs are small");
    object.extend_from_slice(&stored);
    Some(object)
}

/// A body as somebody with the key sealed it.
pub(super) struct Body {
    pub(super) compression: Compression,
    /// What it says its length before compression is.
    pub(super) raw_bytes: usize,
    pub(super) stored: Vec<u8>,
}

impl Body {
    /// The body that an input of a way from 1 on stands for: 1 bare; 2 compressed in good order;
    /// 3 what it says of its length, then any bytes for zstd.
    pub(super) fn of(way: u8, input: &[u8], max: usize) -> Option<Self> {
        match way % 4 {
            0 => None,
            1 => Some(Self {
                compression: Compression::Raw,
                raw_bytes: input.len(),
                stored: input.to_vec(),
            }),
            2 => {
                let mut stored = Vec::new();
                let compression = Compressor::new(1).compress(input, &mut stored).ok()?;
                Some(Self { compression, raw_bytes: input.len(), stored })
            }
            _ => {
                let (says, stored) = input.split_first_chunk::<4>()?;
                let raw_bytes = (u32::from_le_bytes(*says) as usize).min(max);
                Some(Self { compression: Compression::Zstd, raw_bytes, stored: stored.to_vec() })
            }
        }
    }

    /// What it holds, by another decompressor than ours.
    pub(super) fn plain(&self) -> Option<Vec<u8>> {
        match self.compression {
            Compression::Raw => Some(self.stored.clone()),
            Compression::Zstd => zstd::bulk::decompress(&self.stored, self.raw_bytes).ok(),
        }
    }

    /// Checks that `again`, what was opened and laid out again, is what the body holds, but for what later
    /// programs may add.
    pub(super) fn must_hold_but_for_later(&self, again: &[u8], strides: later::Strides) {
        let plain = self.plain().expect("it was decompressed before");
        if later::in_body(&plain, strides) {
            return taken();
        }
        self.must_hold(again);
    }

    /// Checks that `opened` is what the body holds, by another decompressor than ours.
    pub(super) fn must_hold(&self, opened: &[u8]) {
        taken();
        assert_eq!(opened.len(), self.raw_bytes, "no more and no less than it said");
        match self.compression {
            Compression::Raw => assert_eq!(opened, self.stored),
            Compression::Zstd => {
                let frame = zstd::zstd_safe::find_frame_compressed_size(&self.stored);
                assert_eq!(frame, Ok(self.stored.len()), "one frame and nothing behind it");
                let again = zstd::bulk::decompress(&self.stored, self.raw_bytes + 1);
                assert_eq!(again.expect("it was decompressed before"), opened);
            }
        }
    }
}

/// The samples of an object: itself as found, and its body, opened elsewhere, in each way.
pub(super) fn in_each_way(object: &[u8], body: &[u8]) -> Vec<Vec<u8>> {
    let mut samples = vec![[&[0], object].concat(), [&[1], body].concat(), [&[2], body].concat()];
    if let Ok(compressed) = zstd::bulk::compress(body, 1) {
        let says = u32::try_from(body.len()).unwrap_or(0).to_le_bytes();
        samples.push([&[3], &says[..], &compressed].concat());
    }
    samples
}

/// What was found and opened must be the one object that was sealed.
pub(super) fn must_be(is_open: bool, found: &[u8], sealed: &[u8]) {
    if is_open {
        assert_eq!(found, sealed, "an object that nobody sealed");
        taken();
    }
}

/// `out` holds something already; an error leaves it alone.
pub(super) fn decompress(bytes: &[u8]) {
    let Some((head, stored)) = bytes.split_first_chunk::<5>() else { return };
    let raw_bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let compression = if head[4] & 1 == 0 { Compression::Zstd } else { Compression::Raw };
    let mut out = b"before".to_vec();
    let max = SEGMENT_FRAME_BYTES_MAX;
    match expand("test", compression, stored, raw_bytes, max, &mut out) {
        Err(_) => assert_eq!(out, b"before"),
        Ok(()) => {
            assert!(out.starts_with(b"before") && raw_bytes <= max);
            Body { compression, raw_bytes, stored: stored.to_vec() }.must_hold(&out[6..]);
        }
    }
}

pub(super) fn decompress_samples() -> Vec<Vec<u8>> {
    let text = b"server disk journal vault point\n".repeat(100);
    let bomb = vec![0; SEGMENT_FRAME_BYTES_MAX];
    let input = |says: usize, way: u8, stored: &[u8]| {
        let says = u32::try_from(says).unwrap_or_default().to_le_bytes();
        [&says[..], &[way], stored].concat()
    };
    let compressed = |raw: &[u8]| zstd::bulk::compress(raw, 1).unwrap_or_default();
    vec![
        input(text.len(), 0, &compressed(&text)),
        input(bomb.len(), 0, &compressed(&bomb)),
        input(5, 0, &compressed(b"short")),
        input(0, 0, &compressed(b"")),
        input(text.len(), 1, &text),
        input(0, 1, b""),
    ]
}

/// Whoever has the key may seal any body: then it is the body that is refused, not the seal.
pub(super) fn must_be_of_the_body(error: &CodecError) {
    let is_of_seal = matches!(
        error,
        CodecError::Misplaced { .. }
            | CodecError::NoKey { .. }
            | CodecError::NoOwnKey { .. }
            | CodecError::KeyMismatch { .. }
            | CodecError::Tampered { .. }
    );
    assert!(!is_of_seal, "sealed as it should be: {error}");
}

pub(super) fn epoch(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let open = |object: &[u8]| open_epoch(object, VAULT, VOLUME, ORDINAL, &ring);
    let Some(body) = Body::of(*way, input, SMALL_BODY_BYTES_MAX) else {
        return must_be(open(input).is_ok(), input, EPOCH);
    };
    let place = epochs::place(VAULT, VOLUME, ORDINAL);
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open(&object) {
        Ok(opened) => {
            let plain = body.plain().expect("it was decompressed before");
            let (said, label) = EpochBody::decode(&plain).expect("it was decoded before");
            body.must_hold_but_for_later(&said.encode(label.as_ref()), later::EPOCH);
            assert_eq!(EpochBody { label: String::new(), ..opened }, said);
        }
        // Nobody guesses the tag of a label either.
        Err(CodecError::Tampered { what: "label of a volume" }) => taken(),
        Err(error) => must_be_of_the_body(&error),
    }
}

const EPOCH: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/epoch.bin");

pub(super) fn epoch_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/epoch-body.bin");
    let mut samples: Vec<_> = in_each_way(EPOCH, body).into_iter().take(3).collect();
    // With a label under a key that is not there.
    let mut unknown = [&[1], &body[..]].concat();
    unknown[1 + 16 + 64 + 16] = 9;
    samples.push(unknown);
    samples
}

pub(super) fn index_run(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let Some(body) = Body::of(*way, input, OBJECT_BODY_BYTES_MAX) else {
        return must_be(open_index_run(input, VAULT, RUN, &ring).is_ok(), input, INDEX_RUN);
    };
    let place = runs::place(VAULT, RUN);
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open_index_run(&object, VAULT, RUN, &ring) {
        Ok(run) => body.must_hold_but_for_later(&run.encode(), later::INDEX_RUN),
        Err(error) => must_be_of_the_body(&error),
    }
}

const INDEX_RUN: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/index-run.bin");

pub(super) fn index_run_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/index-run-body.bin");
    in_each_way(INDEX_RUN, body)
}

pub(super) fn checkpoint(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let open = |object: &[u8]| open_checkpoint(object, VAULT, LOG, CHECKPOINT_SLOT, &ring);
    let Some(body) = Body::of(*way, input, OBJECT_BODY_BYTES_MAX) else {
        return must_be(open(input).is_ok(), input, CHECKPOINT);
    };
    let place = checkpoints::place(VAULT, LOG, CHECKPOINT_SLOT);
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open(&object) {
        Ok(opened) => body.must_hold_but_for_later(&opened.encode(), later::CHECKPOINT),
        Err(error) => must_be_of_the_body(&error),
    }
}

const CHECKPOINT: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/checkpoint.bin");

pub(super) fn checkpoint_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/checkpoint-body.bin");
    in_each_way(CHECKPOINT, body)
}

pub(super) fn revision(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let open = |object: &[u8]| open_revision_wholly(object, VAULT, REVISION_NUMBER, &ring);
    let Some(body) = Body::of(*way, input, SMALL_BODY_BYTES_MAX) else {
        return must_be(open(input).is_ok(), input, REVISION);
    };
    let place = revisions::place(VAULT, REVISION_NUMBER);
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open(&object) {
        Ok((opened, _)) => body.must_hold_but_for_later(&opened.encode(), later::REVISION),
        Err(error) => must_be_of_the_body(&error),
    }
}

const REVISION: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/revision.bin");
const REVISION_NUMBER: u64 = 3;

pub(super) fn revision_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/revision-body.bin");
    in_each_way(REVISION, body)
}

pub(super) fn horizon(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let open = |object: &[u8]| open_horizon(object, VAULT, LOG, HORIZON_NUMBER, &ring);
    let Some(body) = Body::of(*way, input, OBJECT_BODY_BYTES_MAX) else {
        return must_be(open(input).is_ok(), input, HORIZON);
    };
    let place = horizons::place(VAULT, LOG, HORIZON_NUMBER);
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open(&object) {
        Ok(opened) => body.must_hold_but_for_later(&opened.encode(), later::HORIZON),
        Err(error) => must_be_of_the_body(&error),
    }
}

const HORIZON: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/horizon.bin");
const HORIZON_NUMBER: u64 = 4;

pub(super) fn horizon_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/horizon-body.bin");
    in_each_way(HORIZON, body)
}

pub(super) fn base(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let open = |object: &[u8]| open_base(object, VAULT, VOLUME, BASE_NUMBER, &ring);
    let Some(body) = Body::of(*way, input, OBJECT_BODY_BYTES_MAX) else {
        return must_be(open(input).is_ok(), input, BASE);
    };
    let place = bases::place(VAULT, VOLUME, BASE_NUMBER);
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open(&object) {
        Ok(opened) => body.must_hold_but_for_later(&opened.encode(), later::BASE),
        Err(error) => must_be_of_the_body(&error),
    }
}

const BASE: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/base.bin");

pub(super) fn base_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/base-body.bin");
    in_each_way(BASE, body)
}

/// A journal file: as found on the disk, or with the input as the entries of its second group.
pub(super) fn journal(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    if way % 2 == 0 {
        return found_journal(input, &ring);
    }
    let key = ring.get(KEY).expect("the ring has it");
    let mut sealer = JournalSealer::create(VAULT, LOG, 3, key, KEY).expect("random bytes");
    let mut groups = Vec::new();
    for plain in [&b"first"[..], input] {
        let mut disk = vec![0xee; JournalSealer::disk_bytes(plain.len())];
        disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(plain);
        sealer
            .seal_group(GroupSize { entries: 1, bytes: plain.len() }, &mut disk)
            .expect("inputs are small");
        groups.push(disk);
    }
    let block = sealer.header().encode();
    let opener = JournalOpener::open(&block, VAULT, LOG, &ring).expect("just made");
    let plain = opener.open_group(1, &mut groups[1]).expect("just sealed");
    assert_eq!(plain, input);
    taken();
    assert!(entries(plain).count() <= input.len() / 72 + 1, "each entry has its bytes");
    assert!(opener.open_group(1, &mut groups[0]).is_err(), "another group's place");
}

fn found_journal(file: &[u8], ring: &KeyRing) {
    let Some((block, groups)) = file.split_at_checked(JOURNAL_ALIGN_BYTES) else { return };
    let Ok(opener) = JournalOpener::open(block, VAULT, LOG, ring) else { return };
    assert_eq!(block, &JOURNAL[..JOURNAL_ALIGN_BYTES], "a file that nobody began");
    let mut rest = groups;
    for number in 0.. {
        let Ok(header) = opener.group_header(number, rest) else { break };
        let mut group = rest[..header.disk_bytes().min(rest.len())].to_vec();
        let Ok(plain) = opener.open_group(number, &mut group) else { break };
        let expected: &[u8] = if number == 0 { b"first group" } else { b"second group" };
        assert_eq!(plain, expected, "a group that nobody sealed");
        taken();
        rest = &rest[header.disk_bytes().min(rest.len())..];
    }
}

const JOURNAL: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/journal.bin");

pub(super) fn journal_samples() -> Vec<Vec<u8>> {
    let entries = include_bytes!("../../../../dataplane/proto/testdata/v2/journal-entries.bin");
    in_each_way(JOURNAL, entries).into_iter().take(2).collect()
}
