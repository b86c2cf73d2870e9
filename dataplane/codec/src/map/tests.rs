use super::*;
use crate::keys::DataKey;
use crate::object::key_at;
use farshore_proto::KeyNumber;
use farshore_proto::map::{FrameAt, Layer, LayerKind, MapMark, PageChunk};
use farshore_proto::object::{Compression, ObjectHeader};
use farshore_proto::segment::{Extent, ExtentSource, SegmentFrame};
use farshore_proto::{
    Attempt, DecodeError, ErrorKind, LogId, MarkKind, PointId, Seq, Slot, Target,
};
use proptest::prelude::*;

const AT: MapPlace = MapPlace {
    vault: VaultId([1; 16]),
    volume: VolumeId([3; 16]),
    at: Place { ordinal: 2, seq: Seq(9) },
    attempt: MapAttempt([8; 16]),
};
const KEY: KeyNumber = KeyNumber(1);
const OWN: KeyNumber = KeyNumber(3);
const PART: u32 = 1;
const TAMPERED: CodecError = CodecError::Tampered { what: PAGE };

fn key() -> DataKey {
    DataKey::from_bytes([5; 32])
}

fn ring() -> KeyRing {
    let mut ring = KeyRing::new(AT.vault);
    ring.insert(KEY, key());
    ring.insert_own(OWN, DataKey::from_bytes([7; 32]));
    ring
}

fn fields() -> MapFields {
    let point = Some(PointId([7; 16]));
    MapFields { attempt: AT.attempt, point, ordinal: AT.at.ordinal }
}

fn manifest() -> Manifest {
    let shape = |front_bytes, bytes| PartShape { front_bytes, bytes };
    let full = Layer {
        at: AT.at,
        attempt: AT.attempt,
        kind: LayerKind::Full,
        runs: 9,
        data_blocks: 30,
        parts: vec![shape(200, 900), shape(210, 910)],
    };
    let at = Place { ordinal: 3, seq: Seq(1) };
    let delta = Layer { at, kind: LayerKind::Delta, ..full.clone() };
    let (kind, time_unix_ms, unknown_blocks) = (MarkKind::Crash, 77, 0);
    let mark = Some(MapMark { at: AT.at, kind, time_unix_ms, unknown_blocks });
    Manifest {
        log: LogId([3; 16]),
        slot: Slot(6),
        size_bytes: 1 << 20,
        mark,
        layers: vec![delta, full],
    }
}

fn sealed_manifest() -> Vec<u8> {
    seal_manifest(&AT, &fields(), ring().sealing().unwrap(), &manifest(), 1).unwrap()
}

/// Another place than `AT` that only the head of an object tells from it, and others that its name does.
fn others() -> ([MapPlace; 2], [MapPlace; 3]) {
    let at = |ordinal, seq| MapPlace { at: Place { ordinal, seq: Seq(seq) }, ..AT };
    let attempt = MapPlace { attempt: MapAttempt([9; 16]), ..AT };
    let (vault, volume) = (VaultId([9; 16]), VolumeId([9; 16]));
    ([at(3, 9), attempt], [at(2, 10), MapPlace { vault, ..AT }, MapPlace { volume, ..AT }])
}

#[test]
fn manifests_open_to_what_was_sealed_and_their_heads_alone() {
    let object = sealed_manifest();
    let (header, found) = open_manifest(&object, &AT, &ring()).unwrap();
    assert_eq!((header.fields, header.at(), found), (fields(), AT.at, manifest()));
    let front = &object[..header.object.header_bytes];
    assert_eq!(peek_manifest(front, &AT, &ring()).unwrap(), header);
    assert_eq!(peek_manifest(&object, &AT, &ring()).unwrap(), header);
    let error = peek_manifest(&front[..front.len() - 1], &AT, &ring()).unwrap_err();
    assert!(matches!(error, CodecError::Decode(DecodeError::Truncated { .. })), "{error}");
    for bad in [&object[..object.len() - 1], &[&object[..], &[0]].concat()] {
        let error = open_manifest(bad, &AT, &ring()).unwrap_err();
        assert!(matches!(error, CodecError::Length { what: "map", .. }), "{error}");
    }
}

#[test]
fn a_manifest_of_another_place_is_refused_by_its_head() {
    let object = sealed_manifest();
    let both = |at: &MapPlace| {
        let peeked = peek_manifest(&object, at, &ring()).unwrap_err();
        assert_eq!(open_manifest(&object, at, &ring()).unwrap_err(), peeked);
        assert_eq!(peeked.kind(), ErrorKind::Corrupt);
        peeked
    };
    let (by_head, by_name) = others();
    for at in by_head {
        assert_eq!(both(&at), CodecError::Attempt { what: "map" }, "{at:?}");
    }
    for at in by_name {
        let error = both(&at);
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        let expected = format!("map of volume {} at seq {} in", at.volume, at.at.seq);
        assert!(error.to_string().contains(&expected), "{error}");
    }
    let part = sealed_part(PART, &pages(), true).0;
    let error = open_manifest(&part, &AT, &ring()).unwrap_err();
    assert_eq!(error, CodecError::Decode(DecodeError::Magic { what: "map" }));
}

/// Puts the checksum of the header at the front right.
fn resealed(mut object: Vec<u8>, header_bytes: usize) -> Vec<u8> {
    let crc = crc32c::crc32c(&object[..header_bytes - 4]);
    object[header_bytes - 4..header_bytes].copy_from_slice(&crc.to_le_bytes());
    object
}

#[test]
fn a_head_is_believed_only_if_it_is_the_one_that_was_sealed() {
    let (manifest, part) = (sealed_manifest(), sealed_part(PART, &pages(), true));
    // Attempt, point and ordinal of the one; attempt, ordinal and length of the other.
    for at in [152, 168, 184, 191] {
        let mut forged = manifest.clone();
        forged[at] ^= 2;
        let error = peek_manifest(&resealed(forged, 200), &AT, &ring()).unwrap_err();
        assert_eq!(error, CodecError::KeyMismatch { what: "map", key: OWN }, "byte {at}");
    }
    for at in [152, 168, 176, 183] {
        let mut forged = part.0[..part.1.front_bytes as usize].to_vec();
        forged[at] ^= 2;
        let error = PartOpener::open(&resealed(forged, 192), &AT, PART, &ring()).unwrap_err();
        assert_eq!(error, CodecError::KeyMismatch { what: "map part", key: OWN }, "byte {at}");
    }
}

/// What was sealed is refused all the same if it is no manifest.
#[test]
fn a_body_that_is_no_manifest_is_refused() {
    let sealed = |body: &[u8]| {
        seal(AT.manifest(), ring().sealing().unwrap(), |out| fields().put(out), body, 1).unwrap()
    };
    let mut descending = manifest();
    descending.layers[0].at = AT.at;
    for body in [&[][..], &descending.encode()] {
        let error = open_manifest(&sealed(body), &AT, &ring()).unwrap_err();
        assert!(matches!(error, CodecError::Decode(DecodeError::Range { .. })), "{error}");
        peek_manifest(&sealed(body), &AT, &ring()).unwrap();
    }
    let nowhere = MapFields { ordinal: 0, ..fields() };
    let object = seal_manifest(&AT, &nowhere, ring().sealing().unwrap(), &manifest(), 1).unwrap();
    let error = peek_manifest(&object, &AT, &ring()).unwrap_err();
    assert!(matches!(error, CodecError::Decode(DecodeError::Range { .. })), "{error}");
}

/// A page of so many runs from a block on, each of another chunk, and one of zeros.
fn page(block: u64, runs: u32) -> Page {
    let mut page = Page::default();
    for n in 0..runs {
        let id = blake3::hash(&[&block.to_le_bytes()[..], &n.to_le_bytes()].concat());
        let target = Target { log: LogId([2; 16]), slot: Slot(n.into()), attempt: Attempt([6; 8]) };
        let frame =
            SegmentFrame { stored_bytes: 9000, raw_bytes: 16_384, compression: Compression::Zstd };
        page.frames.push(FrameAt { target, number: n, offset: 500, key: KEY, frame });
        let check = *id.as_bytes().first_chunk().unwrap();
        page.chunks.push(PageChunk { frame: n, number: n, offset: 0, blocks: 4, check });
        let range = BlockRange { block: block + u64::from(n) * 4, count: 4 };
        page.runs.push(Extent { range, source: ExtentSource::Chunk { chunk: n, first: 0 } });
    }
    zeros(block + u64::from(runs) * 4 + 1, 50).runs.into_iter().for_each(|run| page.runs.push(run));
    page
}

/// A page of one run of zeros; all of them have one length.
fn zeros(block: u64, count: u64) -> Page {
    let range = BlockRange { block, count };
    Page { runs: vec![Extent { range, source: ExtentSource::Zero }], ..Page::default() }
}

fn pages() -> Vec<Page> {
    vec![page(10, 60), zeros(1000, 5), zeros(1005, 7), page(0xfff0, 3)]
}

fn builder(part: u32) -> PartBuilder {
    PartBuilder::new(AT, part, ring().sealing().unwrap(), 1).unwrap()
}

fn sealed_part(part: u32, pages: &[Page], is_delta: bool) -> (Vec<u8>, PartShape, Directory) {
    let mut builder = builder(part);
    pages.iter().for_each(|page| builder.push(page, is_delta).unwrap());
    builder.finish().unwrap()
}

/// The part's opener, and the sealed bytes of each of its pages.
fn opened((object, shape, _): &(Vec<u8>, PartShape, Directory)) -> (PartOpener, Vec<Vec<u8>>) {
    let front = &object[..shape.front_bytes as usize];
    let opener = PartOpener::open(front, &AT, PART, &ring()).unwrap();
    let bytes = |number: usize| {
        let range = opener.page_range(number);
        let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
        object[start.unwrap()..end.unwrap()].to_vec()
    };
    let pages = (0..opener.pages().len()).map(bytes).collect();
    (opener, pages)
}

#[test]
fn the_pages_of_a_part_open_one_by_one() {
    for is_delta in [false, true] {
        let part = sealed_part(PART, &pages(), is_delta);
        let (mut opener, sealed) = opened(&part);
        let (object, shape, directory) = &part;
        assert_eq!((opener.pages(), object.len() as u64), (&directory.pages[..], shape.bytes));
        assert_eq!(opener.page_range(0).start, u64::from(shape.front_bytes));
        assert_eq!(opener.page_range(sealed.len() - 1).end, shape.bytes);
        // In any order, and each alone.
        for (number, page) in pages().iter().enumerate().rev() {
            assert_eq!(opener.open_page(number, &sealed[number]).as_ref(), Ok(page));
            let at = opener.pages()[number];
            assert_eq!(Some((at.first, at.end)), page.span().map(|span| (span.block, span.end())));
            assert_eq!(
                (at.runs as usize, at.stored_bytes as usize),
                (page.runs.len(), sealed[number].len())
            );
        }
        assert!(opener.pages()[0].stored_bytes < opener.pages()[0].raw_bytes, "it compresses");
        let range = |block, count| BlockRange { block, count };
        let covers = [
            range(10, 240),
            range(251, 50),
            range(1000, 12),
            range(0xfff0, 12),
            range(0xfffd, 3),
            range(0x1_0000, 47),
        ];
        let expected: &[BlockRange] = if is_delta { &covers } else { &[] };
        assert_eq!(opener.take_covers(), expected);
        assert_eq!(opener.take_covers(), [], "they are taken out");
        assert_eq!(directory.covers, expected);
    }
}

#[test]
fn a_builder_tells_what_it_holds() {
    let mut builder = builder(PART);
    assert_eq!((builder.pages(), builder.pages_bytes(), builder.ranges()), (0, 0, 0));
    builder.push(&zeros(5, 2), false).unwrap();
    let one = builder.pages_bytes();
    assert_eq!((builder.pages(), builder.ranges()), (1, 0));
    builder.push(&zeros(7, 2), true).unwrap();
    assert_eq!((builder.pages(), builder.pages_bytes(), builder.ranges()), (2, 2 * one, 1));
    let text = format!("{builder:?}");
    assert!(text.contains("pages: 2") && text.contains(&format!("bytes: {}", 2 * one)), "{text}");
    let (object, shape, directory) = builder.finish().unwrap();
    let header = PartHeader::decode(&object).unwrap();
    assert_eq!((header.fields.pages_bytes, header.fields.attempt), (2 * one as u64, AT.attempt));
    assert_eq!((header.at(), directory.pages.len()), (AT.at, 2));
    assert_eq!(u64::from(shape.front_bytes) + header.fields.pages_bytes, shape.bytes);
    // Of no page there is a part too, and it has no say in anything.
    let (object, shape, _) = sealed_part(PART, &[], true);
    assert_eq!(shape.bytes, u64::from(shape.front_bytes));
    assert!(PartOpener::open(&object, &AT, PART, &ring()).unwrap().pages().is_empty());
}

#[test]
fn a_part_of_another_place_is_refused() {
    let (object, shape, _) = sealed_part(PART, &pages(), true);
    let front = &object[..shape.front_bytes as usize];
    let open = |at: &MapPlace, part| PartOpener::open(front, at, part, &ring()).map(drop);
    open(&AT, PART).unwrap();
    let (by_head, by_name) = others();
    for at in by_head {
        assert_eq!(open(&at, PART), Err(CodecError::Attempt { what: "map part" }), "{at:?}");
    }
    for (at, part) in by_name.map(|at| (at, PART)).into_iter().chain([(AT, 0), (AT, 2)]) {
        let error = open(&at, part).unwrap_err();
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        let expected = format!("part {part} of a map of volume {} at seq {}", at.volume, at.at.seq);
        assert!(error.to_string().contains(&expected), "{error}");
    }
    let manifest = sealed_manifest();
    let error = PartOpener::open(&manifest, &AT, PART, &ring()).unwrap_err();
    assert_eq!(error, CodecError::Decode(DecodeError::Magic { what: "map part" }));
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_front_is_refused() {
    let (object, shape, _) = sealed_part(PART, &pages(), true);
    let front = &object[..shape.front_bytes as usize];
    for at in 0..front.len() {
        let mut bad = front.to_vec();
        bad[at] ^= 1 << (at % 8);
        assert!(PartOpener::open(&bad, &AT, PART, &ring()).is_err(), "byte {at}");
        assert!(PartOpener::open(&front[..at], &AT, PART, &ring()).is_err(), "length {at}");
    }
}

#[test]
fn a_damaged_or_cut_page_is_refused() {
    let part = sealed_part(PART, &pages(), false);
    let (opener, sealed) = opened(&part);
    for (number, good) in sealed.iter().enumerate() {
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opener.open_page(number, &bad), Err(TAMPERED), "page {number} bit {bit}");
        }
        let expected = good.len() as u64;
        for bad in
            (0..good.len()).map(|end| good[..end].to_vec()).chain([[&good[..], &[0]].concat()])
        {
            let length = CodecError::Length { what: PAGE, expected, found: bad.len() as u64 };
            assert_eq!(opener.open_page(number, &bad), Err(length));
        }
    }
}

#[test]
fn pages_do_not_move_in_a_part_or_between_parts_or_attempts() {
    let all = [zeros(5, 2), zeros(10, 2), zeros(20, 2)];
    let part = sealed_part(PART, &all, true);
    let (opener, sealed) = opened(&part);
    let moved =
        |number: usize, bytes: &[u8]| assert_eq!(opener.open_page(number, bytes), Err(TAMPERED));
    for (number, from) in [(0, 1), (1, 0), (1, 2), (2, 0)] {
        moved(number, &sealed[from]);
    }
    // The same page of another part, another try at this part, another map.
    let (other, shape, _) = sealed_part(0, &all, true);
    moved(0, &other[shape.front_bytes as usize..][..sealed[0].len()]);
    moved(0, &opened(&sealed_part(PART, &all, true)).1[0]);
    let to = MapPlace { attempt: MapAttempt([9; 16]), ..AT };
    let mut builder = PartBuilder::new(to, PART, ring().sealing().unwrap(), 1).unwrap();
    builder.push(&all[0], true).unwrap();
    let (other, shape, _) = builder.finish().unwrap();
    moved(0, &other[shape.front_bytes as usize..]);
    // In its own place it opens.
    assert_eq!(opener.open_page(0, &sealed[0]).as_ref(), Ok(&all[0]));
}

/// A part as only somebody with the data key could make it: these pages, sealed as they are, behind this directory.
fn made_up(pages: &[&[u8]], directory: &Directory, pages_bytes: u64) -> (Vec<u8>, usize) {
    let mut object = ObjectSealer::draw(AT.part(PART), 0, ring().sealing().unwrap()).unwrap();
    let mut sealed = Vec::new();
    for ((number, raw), at) in (0..).zip(pages).zip(&directory.pages) {
        let aad = aad(&object.place, number, at.raw_bytes, at.compression);
        let mut page = raw.to_vec();
        object.sealer.seal(Domain::Page, &aad, &mut page).unwrap();
        sealed.extend(page);
    }
    let fields = PartFields { attempt: AT.attempt, ordinal: AT.at.ordinal, pages_bytes };
    let own = |out: &mut Vec<u8>| fields.put(out);
    let (header, front) =
        object.seal_body(&mut Compressor::new(1), own, &directory.encode()).unwrap();
    ([front, sealed].concat(), header.whole_bytes())
}

fn page_at(raw: &[u8], block: u64, count: u64, runs: u32) -> PageAt {
    let raw_bytes = u32::try_from(raw.len()).unwrap();
    let stored_bytes = raw_bytes + 16;
    let compression = Compression::Raw;
    PageAt { first: block, end: block + count, runs, stored_bytes, raw_bytes, compression }
}

#[test]
fn a_directory_whose_lengths_do_not_add_up_is_refused() {
    let raw = zeros(5, 2).encode();
    let directory = Directory { pages: vec![page_at(&raw, 5, 2, 1)], covers: vec![] };
    let right = raw.len() as u64 + 16;
    let open = |pages_bytes: u64| {
        let (object, front) = made_up(&[&raw], &directory, pages_bytes);
        (front as u64, PartOpener::open(&object[..front], &AT, PART, &ring()))
    };
    assert_eq!(open(right).1.unwrap().page_range(0).count() as u64, right);
    for wrong in [0, right - 1, right + 1, MAP_PART_BYTES_MAX] {
        let (front, opened) = open(wrong);
        let (what, expected, found) = ("pages of a map part", front + wrong, front + right);
        assert_eq!(opened.unwrap_err(), CodecError::Length { what, expected, found });
    }
    let (_, opened) = open(MAP_PART_BYTES_MAX + 1);
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn a_page_that_is_not_what_the_directory_says_is_refused() {
    let open = |raw: &[u8], at: PageAt| {
        let directory = Directory { pages: vec![at], covers: vec![] };
        let (object, front) = made_up(&[raw], &directory, at.stored_bytes.into());
        let opener = PartOpener::open(&object[..front], &AT, PART, &ring()).unwrap();
        opener.open_page(0, &object[front..])
    };
    let raw = page(10, 2).encode();
    let right = page_at(&raw, 10, 59, 3);
    assert_eq!(open(&raw, right).as_ref(), Ok(&page(10, 2)));
    for at in [
        PageAt { first: 9, ..right },
        PageAt { first: 11, ..right },
        PageAt { end: right.end + 1, ..right },
        PageAt { end: right.end - 1, ..right },
        PageAt { runs: 2, ..right },
        PageAt { runs: 4, ..right },
    ] {
        let (expected, found) = (at.runs.into(), 3);
        assert_eq!(
            open(&raw, at),
            Err(CodecError::Length { what: PAGE, expected, found }),
            "{at:?}"
        );
    }
    let length = |expected, found| CodecError::Length { what: PAGE, expected, found };
    let empty = Page::default().encode();
    assert_eq!(open(&empty, page_at(&empty, 10, 59, 3)), Err(length(3, 0)), "no runs");
    let bytes = raw.len() as u64;
    let longer = PageAt { raw_bytes: right.raw_bytes + 1, ..right };
    assert_eq!(open(&raw, longer), Err(length(bytes + 1, bytes)), "another length");
    let zstd = PageAt { compression: Compression::Zstd, ..right };
    assert_eq!(open(&raw, zstd), Err(CodecError::Compressed { what: PAGE }), "not compressed");
    let noise = [0x5a; 40];
    let error = open(&noise, page_at(&noise, 10, 59, 3)).unwrap_err();
    assert!(matches!(error, CodecError::Decode(_)), "{error}");
    // The directory has no room for what the tag needs.
    let short = PageAt { stored_bytes: 15, ..right };
    let directory = Directory { pages: vec![short], covers: vec![] };
    let (object, front) = made_up(&[&raw], &directory, 15);
    let opener = PartOpener::open(&object[..front], &AT, PART, &ring()).unwrap();
    assert_eq!(opener.open_page(0, &object[front..][..15]), Err(TAMPERED));
}

#[test]
fn a_wrong_or_missing_data_key_is_named() {
    let (manifest, (part, shape, _)) = (sealed_manifest(), sealed_part(PART, &pages(), true));
    let front = &part[..shape.front_bytes as usize];
    let both = |keys: &KeyRing| {
        let opened = open_manifest(&manifest, &AT, keys).map(drop);
        (opened.unwrap_err(), PartOpener::open(front, &AT, PART, keys).unwrap_err())
    };
    let none = CodecError::NoOwnKey { key: OWN };
    assert_eq!(both(&KeyRing::new(AT.vault)), (none.clone(), none));
    let mut wrong = KeyRing::new(AT.vault);
    wrong.insert_own(OWN, DataKey::from_bytes([6; 32]));
    let mismatch = |what| CodecError::KeyMismatch { what, key: OWN };
    assert_eq!(both(&wrong), (mismatch("map"), mismatch("map part")));
}

#[test]
fn the_other_implementation_opens_it_all() {
    let other = Implementation::RustCrypto;
    let object = sealed_manifest();
    let found = OpenObject::read(other, &AT.manifest(), &object, &ring()).unwrap();
    let body = found.open_body(&object[found.header.header_bytes..]).unwrap();
    assert_eq!(Manifest::decode(&body), Ok(manifest()));
    let part = sealed_part(PART, &pages(), true);
    let (opener, sealed) = opened(&part);
    let front = &part.0[..part.1.front_bytes as usize];
    let found = OpenObject::read(other, &AT.part(PART), front, &ring()).unwrap();
    let body = found.open_body(&front[found.header.header_bytes..]).unwrap();
    assert_eq!(Directory::decode(&body).as_ref(), Ok(&part.2));
    for (number, page) in (0..).zip(pages()) {
        let (at, bytes) = (&opener.pages()[number as usize], &sealed[number as usize]);
        let raw = open_page(found.key().unwrap(), &AT.part(PART), number, at, bytes).unwrap();
        assert_eq!(Page::decode(&raw), Ok(page));
        let swapped = open_page(found.key().unwrap(), &AT.part(PART), number + 1, at, bytes);
        assert_eq!(swapped, Err(TAMPERED));
    }
}

#[test]
fn a_page_that_does_not_open_again_is_noticed() {
    // A key of another salt stands for a cipher that does not do what it should.
    let broken = || {
        let mut builder = builder(PART);
        builder.object.cross = key_at(
            Implementation::RustCrypto,
            &AT.part(PART),
            &key(),
            &[0; crate::seal::SALT_BYTES],
        );
        builder
    };
    let error = broken().push(&zeros(5, 2), true).unwrap_err();
    assert_eq!((error.kind(), error), (ErrorKind::Internal, CodecError::Unverified { what: PAGE }));
    // Of the pages one in so many is opened with the other implementation, and every directory is.
    let mut builder = builder(PART);
    (0..3).for_each(|n| builder.push(&zeros(10 * n, 2), true).unwrap());
    builder.object.cross = broken().object.cross;
    (3..64).for_each(|n| builder.push(&zeros(10 * n, 2), true).unwrap());
    let error = builder.push(&zeros(1000, 2), true).unwrap_err();
    assert_eq!(error, CodecError::Unverified { what: PAGE });
    let mut builder = self::builder(PART);
    builder.push(&zeros(5, 2), true).unwrap();
    builder.object.cross = broken().object.cross;
    assert_eq!(builder.finish().unwrap_err(), CodecError::Unverified { what: "map part" });
}

#[test]
#[should_panic(expected = "a page has runs")]
fn a_page_without_runs_is_not_sealed() {
    let _ = builder(PART).push(&Page::default(), true);
}

#[test]
#[should_panic(expected = "pages are in block order")]
fn a_page_in_front_of_the_last_one_is_not_sealed() {
    let mut builder = builder(PART);
    builder.push(&zeros(5, 2), true).unwrap();
    let _ = builder.push(&zeros(6, 2), true);
}

#[test]
#[should_panic(expected = "a part has a limit")]
fn a_part_over_its_limit_is_not_sealed() {
    let mut builder = builder(PART);
    builder.pages.resize(usize::try_from(MAP_PART_BYTES_MAX).unwrap() + 1, 0);
    let _ = builder.finish();
}

#[test]
fn two_parts_of_the_same_pages_share_nothing_but_the_place() {
    let (one, two) = (sealed_part(PART, &pages(), true), sealed_part(PART, &pages(), true));
    let head = |object: &[u8]| -> ObjectHeader { PartHeader::decode(object).unwrap().object };
    let (first, second) = (head(&one.0), head(&two.0));
    assert!(first.salt != second.salt && first.commitment != second.commitment);
    assert_eq!((first.place, one.1, &one.2), (second.place, two.1, &two.2));
    let front = one.1.front_bytes as usize;
    assert_ne!(one.0[front..], two.0[front..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_pages_come_back(
        shapes in proptest::collection::vec((0..70_000_u64, 0..80_u32), 0..12), is_delta: bool,
    ) {
        let mut block = 0;
        let mut pages = Vec::new();
        for (gap, runs) in shapes {
            let page = page(block + gap, runs);
            block = page.span().unwrap().end();
            pages.push(page);
        }
        let part = sealed_part(PART, &pages, is_delta);
        let (mut opener, sealed) = opened(&part);
        for (number, page) in pages.iter().enumerate() {
            prop_assert_eq!(&opener.open_page(number, &sealed[number]).unwrap(), page);
        }
        let covered: u64 = opener.take_covers().iter().map(|range| range.count).sum();
        let blocks: u64 = pages.iter().flat_map(|page| &page.runs).map(|run| run.range.count).sum();
        prop_assert_eq!(covered, if is_delta { blocks } else { 0 });
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let (mut object, shape, _) = sealed_part(PART, &pages(), true);
        let at = at.index(object.len());
        object[at] ^= 1 << bit;
        let front = shape.front_bytes as usize;
        let opener = PartOpener::open(&object[..front], &AT, PART, &ring());
        let is_noticed = opener.is_err() || opener.is_ok_and(|opener| {
            (0..pages().len()).any(|number| {
                let range = opener.page_range(number);
                let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
                opener.open_page(number, &object[start..end]).is_err()
            })
        });
        prop_assert!(is_noticed, "byte {at}");
    }
}
