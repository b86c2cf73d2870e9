//! Sealing and opening maps: manifests, and parts with their pages. Layout: `farshore_proto::map`.

use crate::compress::{Compressor, decompress};
use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{ObjectSealer, OpenObject, seal};
use crate::seal::{Domain, Implementation, OpenKey};
use crate::segment::frame::aad;
use farshore_proto::limits::{MAP_PART_BYTES_MAX, PAGE_BYTES_MAX, TAG_BYTES};
use farshore_proto::map::{
    Directory, Manifest, MapFields, MapHeader, Page, PageAt, PartFields, PartHeader, PartShape,
};
use farshore_proto::object::ObjectPlace;
use farshore_proto::{BlockRange, MapAttempt, Place, VaultId, VolumeId};
use std::fmt;
use std::ops::Range;

const PAGE: &str = "page of a map";
/// One page in this many is opened again with the other implementation of the cipher.
const CROSS_CHECK_PAGES: usize = 64;

/// A map's place in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapPlace {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// The place in the volume's stream.
    pub at: Place,
    /// The attempt.
    pub attempt: MapAttempt,
}

impl MapPlace {
    fn manifest(&self) -> ObjectPlace {
        MapHeader::place(self.vault, self.volume, self.at.seq)
    }

    fn part(&self, part: u32) -> ObjectPlace {
        PartHeader::place(self.vault, self.volume, self.at.seq, part)
    }

    /// Another ordinal or attempt than the name's: what was found belongs elsewhere.
    fn check(&self, at: Place, attempt: MapAttempt, what: &'static str) -> Result<(), CodecError> {
        match (at, attempt) == (self.at, self.attempt) {
            true => Ok(()),
            false => Err(CodecError::Attempt { what }),
        }
    }
}

/// Builds a manifest, compressed with zstd at `level`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If something is over its limit: a bug in the caller.
pub fn seal_manifest(
    at: &MapPlace,
    fields: &MapFields,
    keys: SealKeys<'_>,
    manifest: &Manifest,
    level: i32,
) -> Result<Vec<u8>, CodecError> {
    seal(at.manifest(), keys, |out| fields.put(out), &manifest.encode(), level)
}

/// Opens the object found as the manifest `at`.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it claims more than a manifest may be.
pub fn open_manifest(
    object: &[u8],
    at: &MapPlace,
    keys: &KeyRing,
) -> Result<(MapHeader, Manifest), CodecError> {
    let (opened, header) = open_head(object, at, keys)?;
    let body = opened.open_body(&object[opened.header.header_bytes..])?;
    Ok((header, Manifest::decode(&body)?))
}

/// Reads the head of the manifest `at`, of which `front` holds at least the header: it serves to choose what to open.
///
/// # Errors
/// As [`open_manifest`].
pub fn peek_manifest(front: &[u8], at: &MapPlace, keys: &KeyRing) -> Result<MapHeader, CodecError> {
    open_head(front, at, keys).map(|(_, header)| header)
}

fn open_head(
    front: &[u8],
    at: &MapPlace,
    keys: &KeyRing,
) -> Result<(OpenObject, MapHeader), CodecError> {
    let opened = OpenObject::read(Implementation::AwsLc, &at.manifest(), front, keys)?;
    let header = MapHeader::of(opened.header, opened.own_fields())?;
    at.check(header.at(), header.fields.attempt, "map")?;
    Ok((opened, header))
}

/// Builds one part of a layer: pages as they come, the directory at the end.
///
/// A failed attempt is dropped, never resumed: the next one is a new builder with a new salt.
pub struct PartBuilder {
    at: MapPlace,
    object: ObjectSealer,
    compressor: Compressor,
    pages: Vec<u8>,
    directory: Directory,
}

impl fmt::Debug for PartBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartBuilder")
            .field("place", &self.object.place)
            .field("pages", &self.directory.pages.len())
            .field("bytes", &self.pages.len())
            .finish_non_exhaustive()
    }
}

impl PartBuilder {
    /// A builder of part `part` of the layer that is written for the map `at`, compressed with zstd at `level`.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn new(
        at: MapPlace,
        part: u32,
        keys: SealKeys<'_>,
        level: i32,
    ) -> Result<Self, CodecError> {
        let object = ObjectSealer::draw(at.part(part), 0, keys)?;
        let (pages, directory) = (Vec::new(), Directory::default());
        Ok(Self { at, object, compressor: Compressor::new(level), pages, directory })
    }

    /// Bytes of the sealed pages so far.
    #[must_use]
    pub fn pages_bytes(&self) -> usize {
        self.pages.len()
    }

    /// Pages so far.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.directory.pages.len()
    }

    /// Ranges that the part says it covers, so far.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.directory.covers.len()
    }

    /// Adds a page; `is_delta` if the directory is to say which blocks its runs cover.
    ///
    /// # Errors
    /// `Internal` if compressing or sealing fails.
    ///
    /// # Panics
    /// If it has no runs, or begins in front of the last one's end: bugs in the caller.
    pub fn push(&mut self, page: &Page, is_delta: bool) -> Result<(), CodecError> {
        let span = page.span().expect("a page has runs");
        let floor = self.directory.pages.last().map_or(0, |last| last.end);
        assert!(span.block >= floor, "pages are in block order");
        let raw = page.encode();
        let start = self.pages.len();
        let compression = self.compressor.compress(&raw, &mut self.pages)?;
        let narrow = |value: usize| u32::try_from(value).expect("the limits of a page fit 32 bits");
        let number = self.directory.pages.len();
        let held = PageAt {
            first: span.block,
            end: span.end(),
            runs: narrow(page.runs.len()),
            stored_bytes: narrow(self.pages.len() - start + TAG_BYTES),
            raw_bytes: narrow(raw.len()),
            compression,
        };
        let aad = aad(&self.object.place, narrow(number), held.raw_bytes, compression);
        let tag = self.object.sealer.seal_slice(Domain::Page, &aad, &mut self.pages[start..])?;
        self.pages.extend_from_slice(&tag);
        let cross = (&self.object.cross, self.object.sealer.key());
        let key = if number.is_multiple_of(CROSS_CHECK_PAGES) { cross.0 } else { cross.1 };
        let opened =
            open_page(key, &self.object.place, narrow(number), &held, &self.pages[start..]);
        if !opened.is_ok_and(|opened| opened == raw) {
            return Err(CodecError::Unverified { what: PAGE });
        }
        self.directory.pages.push(held);
        if is_delta {
            for run in &page.runs {
                Directory::cover(&mut self.directory.covers, run.range);
            }
        }
        Ok(())
    }

    /// Ends the part; gives the object, its shape, and its directory.
    ///
    /// # Errors
    /// `Internal` if compressing or sealing fails.
    ///
    /// # Panics
    /// If it is over a limit: a bug in the caller.
    pub fn finish(mut self) -> Result<(Vec<u8>, PartShape, Directory), CodecError> {
        let pages_bytes = self.pages.len() as u64;
        assert!(pages_bytes <= MAP_PART_BYTES_MAX, "a part has a limit");
        let MapPlace { at, attempt, .. } = self.at;
        let fields = PartFields { attempt, ordinal: at.ordinal, pages_bytes };
        let own = |out: &mut Vec<u8>| fields.put(out);
        let raw = self.directory.encode();
        let (header, mut object) = self.object.seal_body(&mut self.compressor, own, &raw)?;
        let front_bytes = u32::try_from(header.whole_bytes()).expect("a body has a limit");
        object.extend_from_slice(&self.pages);
        let shape = PartShape { front_bytes, bytes: object.len() as u64 };
        Ok((object, shape, self.directory))
    }
}

fn open_page(
    key: &OpenKey,
    place: &ObjectPlace,
    number: u32,
    page: &PageAt,
    sealed: &[u8],
) -> Result<Vec<u8>, CodecError> {
    let (expected, found) = (u64::from(page.stored_bytes), sealed.len() as u64);
    if expected != found {
        return Err(CodecError::Length { what: PAGE, expected, found });
    }
    let aad = aad(place, number, page.raw_bytes, page.compression);
    let mut copy = sealed.to_vec();
    let stored = key.open_in_place(Domain::Page, number.into(), &aad, &mut copy)?;
    let mut raw = Vec::new();
    let raw_bytes = page.raw_bytes as usize;
    decompress(PAGE, page.compression, stored, raw_bytes, PAGE_BYTES_MAX, &mut raw)?;
    Ok(raw)
}

/// Opens the pages of one part.
#[derive(Debug)]
pub struct PartOpener {
    place: ObjectPlace,
    key: OpenKey,
    directory: Directory,
    /// Where each page begins in the object, and where the last one ends.
    starts: Vec<u64>,
}

impl PartOpener {
    /// Opens header and directory of the object found as part `part` of the layer that was written for the map `at`;
    /// `front` holds both.
    ///
    /// # Errors
    /// As [`open_manifest`].
    pub fn open(
        front: &[u8],
        at: &MapPlace,
        part: u32,
        keys: &KeyRing,
    ) -> Result<Self, CodecError> {
        let place = at.part(part);
        let opened = OpenObject::read(Implementation::AwsLc, &place, front, keys)?;
        let header = PartHeader::of(opened.header, opened.own_fields())?;
        at.check(header.at(), header.fields.attempt, "map part")?;
        let directory =
            Directory::decode(&opened.open_body(&front[header.object.header_bytes..])?)?;
        let mut next = header.object.whole_bytes() as u64;
        let mut starts = vec![next];
        for page in &directory.pages {
            next += u64::from(page.stored_bytes);
            starts.push(next);
        }
        if next != header.object_bytes() {
            let (expected, found) = (header.object_bytes(), next);
            return Err(CodecError::Length { what: "pages of a map part", expected, found });
        }
        Ok(Self { place, key: opened.into_key()?, directory, starts })
    }

    /// Its pages, in block order.
    #[must_use]
    pub fn pages(&self) -> &[PageAt] {
        &self.directory.pages
    }

    /// Takes out which blocks its runs cover, if it is of a delta.
    pub fn take_covers(&mut self) -> Vec<BlockRange> {
        std::mem::take(&mut self.directory.covers)
    }

    /// Where a page lies in the object.
    ///
    /// # Panics
    /// If there is no such page: a bug in the caller.
    #[must_use]
    pub fn page_range(&self, number: usize) -> Range<u64> {
        self.starts[number]..self.starts[number + 1]
    }

    /// Opens a page out of its bytes.
    ///
    /// # Errors
    /// `Corrupt` if they are not what was sealed there, or the page is not what the directory says.
    ///
    /// # Panics
    /// If there is no such page: a bug in the caller.
    pub fn open_page(&self, number: usize, sealed: &[u8]) -> Result<Page, CodecError> {
        let at = self.directory.pages[number];
        let counter = u32::try_from(number).expect("a part has so many pages");
        let page = Page::decode(&open_page(&self.key, &self.place, counter, &at, sealed)?)?;
        let span = page.span().map(|span| (span.block, span.end()));
        if span != Some((at.first, at.end)) || page.runs.len() != at.runs as usize {
            let (expected, found) = (at.runs.into(), page.runs.len() as u64);
            return Err(CodecError::Length { what: PAGE, expected, found });
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests;
