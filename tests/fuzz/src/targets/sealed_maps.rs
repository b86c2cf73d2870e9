//! Manifests and parts of maps, as found and as somebody with the data key seals them.

use super::maps;
use super::sealed::{
    Body, VAULT, VOLUME, in_each_way, must_be, must_be_of_the_body, part_aad, ring, seal_object,
    sealer,
};
use crate::{later, taken};
use farshore_codec::map::{MapPlace, PartOpener, open_manifest, peek_manifest};
use farshore_codec::seal::Domain;
use farshore_codec::{CodecError, KeyRing};
use farshore_proto::limits::{
    MAP_PART_BYTES_MAX, OBJECT_BODY_BYTES_MAX, PAGE_BYTES_MAX, TAG_BYTES,
};
use farshore_proto::map::{Directory, MapFields, MapHeader, Page, PageAt, PartFields, PartHeader};
use farshore_proto::{MapAttempt, Place, PointId, Seq};
use std::ops::Range;

const MAP: MapPlace = MapPlace {
    vault: VAULT,
    volume: VOLUME,
    at: Place { ordinal: 2, seq: Seq(1000) },
    attempt: MapAttempt([6; 16]),
};
const PART: u32 = 1;
/// Pages are filled from the input; more than this is not worth the time.
const PAGES_BYTES_MAX: u64 = 1 << 20;
/// Bit of a way that says that the input is a page, not a directory.
const IS_PAGE: u8 = 0x10;

pub(super) fn manifest(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let Some(body) = Body::of(*way, input, OBJECT_BODY_BYTES_MAX) else {
        let peeked = peek_manifest(input, &MAP, &ring);
        assert!(peeked.is_err() || input.starts_with(&MANIFEST[..200]), "a head of nobody");
        return must_be(open_manifest(input, &MAP, &ring).is_ok(), input, MANIFEST);
    };
    let place = MapHeader::place(MAP.vault, MAP.volume, MAP.at.seq);
    let point = Some(PointId([4; 16]));
    let fields = MapFields { attempt: MAP.attempt, point, ordinal: MAP.at.ordinal };
    let own = |out: &mut Vec<u8>| fields.put(out);
    let object = seal_object(&mut sealer(&ring, &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open_manifest(&object, &MAP, &ring) {
        Ok((found, opened)) => {
            assert_eq!((found.fields, found.object.place), (fields, place));
            body.must_hold_but_for_later(&opened.encode(), later::MANIFEST);
        }
        Err(error) => must_be_of_the_body(&error),
    }
    let other = MapPlace { attempt: MapAttempt([7; 16]), ..MAP };
    let error = peek_manifest(&object, &other, &ring).expect_err("it is of this attempt");
    assert_eq!(error, CodecError::Attempt { what: "map" });
}

const MANIFEST: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/map.bin");

pub(super) fn manifest_samples() -> Vec<Vec<u8>> {
    in_each_way(MANIFEST, maps::MANIFEST)
}

/// A part: as found, with the input as its directory and, again and again, its pages, or with it as its one page.
pub(super) fn pages(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let is_page = way & IS_PAGE != 0;
    let max = if is_page { PAGE_BYTES_MAX } else { OBJECT_BODY_BYTES_MAX };
    match Body::of(*way, input, max) {
        None => must_be(opens_whole(input, &ring), input, PAGES),
        Some(body) if is_page => with_page(&body, &ring),
        Some(body) => with_directory(&body, input, &ring),
    }
}

/// A part with this body, and what goes behind it sealed: front and pages.
fn sealed(
    body: &Body,
    pages: &[(PageAt, Vec<u8>)],
    ring: &KeyRing,
) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let place = PartHeader::place(MAP.vault, MAP.volume, MAP.at.seq, PART);
    let mut sealer = sealer(ring, &place, 0);
    let pages_bytes = pages.iter().map(|(at, _)| u64::from(at.stored_bytes)).sum();
    if pages_bytes > MAP_PART_BYTES_MAX {
        return None;
    }
    let fields = PartFields { attempt: MAP.attempt, ordinal: MAP.at.ordinal, pages_bytes };
    let own = |out: &mut Vec<u8>| fields.put(out);
    let front = seal_object(&mut sealer, place, 0, own, body)?;
    let seal = |(number, (at, stored)): (u32, &(PageAt, Vec<u8>))| {
        let mut stored = stored.clone();
        let aad = part_aad(&place, number, at.raw_bytes, at.compression);
        sealer.seal(Domain::Page, &aad, &mut stored).expect("inputs are small");
        stored
    };
    Some((front, (0..).zip(pages).map(seal).collect()))
}

fn with_directory(body: &Body, input: &[u8], ring: &KeyRing) {
    // What the opener has to make of it, found out in another way, to fill the pages.
    let plain = body.plain();
    let directory = plain.and_then(|plain| Directory::decode(&plain).ok()).unwrap_or_default();
    let bytes: u64 = directory.pages.iter().map(|page| u64::from(page.stored_bytes)).sum();
    if bytes > PAGES_BYTES_MAX {
        return;
    }
    let mut pages = Vec::new();
    for at in directory.pages {
        let Some(bytes) = (at.stored_bytes as usize).checked_sub(TAG_BYTES) else { return };
        pages.push((at, input.iter().copied().cycle().take(bytes).collect::<Vec<u8>>()));
    }
    let Some((front, sealed)) = sealed(body, &pages, ring) else { return };
    match PartOpener::open(&front, &MAP, PART, ring) {
        Ok(mut opener) => {
            for (number, page) in sealed.iter().enumerate().filter(|(_, page)| !page.is_empty()) {
                if let Ok(page) = opener.open_page(number, page) {
                    must_be_as_listed(&page, opener.pages()[number]);
                }
            }
            let (pages, covers) = (opener.pages().to_vec(), opener.take_covers());
            let again = Directory { pages, covers }.encode();
            body.must_hold_but_for_later(&again, later::DIRECTORY);
        }
        Err(error) => must_be_of_the_body(&error),
    }
}

fn must_be_as_listed(page: &Page, at: PageAt) {
    let span = page.span().expect("a page has runs");
    assert_eq!((span.block, span.end()), (at.first, at.end));
    assert_eq!(page.runs.len(), at.runs as usize);
}

fn with_page(body: &Body, ring: &KeyRing) {
    let narrow = |value: usize| u32::try_from(value).expect("inputs are small");
    if body.raw_bytes > PAGE_BYTES_MAX || body.stored.len() > PAGE_BYTES_MAX {
        return;
    }
    let found = body.plain().and_then(|plain| Page::decode(&plain).ok());
    let span = found.as_ref().and_then(Page::span);
    let at = PageAt {
        first: span.map_or(0, |span| span.block),
        end: span.map_or(1, |span| span.end()),
        runs: narrow(found.map_or(1, |page| page.runs.len()).max(1)),
        stored_bytes: narrow(body.stored.len() + TAG_BYTES),
        raw_bytes: narrow(body.raw_bytes),
        compression: body.compression,
    };
    let directory = Directory { pages: vec![at], covers: vec![] };
    let raw = directory.encode();
    let front = Body::of(1, &raw, OBJECT_BODY_BYTES_MAX).expect("a bare body");
    let Some((front, pages)) = sealed(&front, &[(at, body.stored.clone())], ring) else { return };
    let opener = PartOpener::open(&front, &MAP, PART, ring).expect("sealed as it should be");
    assert_eq!(opener.pages(), directory.pages);
    match opener.open_page(0, &pages[0]) {
        Ok(page) => {
            must_be_as_listed(&page, at);
            body.must_hold_but_for_later(&page.encode(), later::PAGE);
        }
        Err(error) => must_be_of_the_body(&error),
    }
}

/// Whether header, directory and every page open, and there is nothing else.
fn opens_whole(object: &[u8], ring: &KeyRing) -> bool {
    let Ok(header) = PartHeader::decode(object) else { return false };
    let Some(front) = object.get(..header.object.whole_bytes()) else { return false };
    let Ok(opener) = PartOpener::open(front, &MAP, PART, ring) else { return false };
    assert_eq!(front, &PAGES[..front.len()], "a part that nobody sealed");
    let opens = |number: usize| {
        let Range { start, end } = opener.page_range(number);
        let narrow = |at: u64| usize::try_from(at).expect("64-bit");
        object
            .get(narrow(start)..narrow(end))
            .is_some_and(|sealed| opener.open_page(number, sealed).is_ok())
    };
    taken();
    header.object_bytes() == object.len() as u64 && (0..opener.pages().len()).all(opens)
}

const PAGES: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/map-pages.bin");

pub(super) fn pages_samples() -> Vec<Vec<u8>> {
    let mut samples = in_each_way(PAGES, maps::DELTA);
    samples.push([&[1], maps::FULL].concat());
    for mut sample in in_each_way(&[], maps::PAGE).into_iter().skip(1) {
        sample[0] |= IS_PAGE;
        samples.push(sample);
    }
    samples
}
