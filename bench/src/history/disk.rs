//! A vault with one volume, written as files: segments with real tables and frames, and maps whose pages are drawn.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use farshore_codec::epoch::seal_epoch;
use farshore_codec::map::{MapPlace, PartBuilder, seal_manifest};
use farshore_codec::segment::Built;
use farshore_codec::{SegmentBuilder, WrappingKey};
use farshore_proto::epoch::EpochBody;
use farshore_proto::keys::WrapperKind;
use farshore_proto::limits::PART_PAGES_MAX;
use farshore_proto::map::{
    FrameAt, Layer, LayerKind, Manifest, MapFields, MapMark, Page, PartShape,
};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::segment::{Extent, SlotWriter, Span};
use farshore_proto::{
    Epoch, Imprint, LogId, MapAttempt, MarkKind, Place, PointId, Seq, Slot, Stamp, Target, VolumeId,
};
use farshore_vault::layout::ObjectName;
use farshore_vault::limits::PART_BYTES;
use farshore_vault::map::LEVEL;
use farshore_vault::store::{Access, Store};
use farshore_vault::{Vault, key_file};

use super::write::{in_threads, put};

pub(super) const LOG: LogId = LogId([0x21; 16]);
const VOLUME: VolumeId = VolumeId([0xb0; 16]);
/// The only run of the log's writer.
pub(super) const INCARNATION: u64 = 1;
/// Ordinal of its only epoch.
const ORDINAL: u64 = 1;
/// Threads that write parts.
const WRITERS: u64 = 2;
/// Name of the file with the vault's key, beside the vault.
const KEY: &str = "key";

/// Numbers that look random and are the same each time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw(pub(super) u64);

impl Draw {
    /// Of a few numbers.
    pub(super) fn of(seeds: [u64; 3]) -> Self {
        seeds.into_iter().fold(Self(0), |mut draw, seed| Self(draw.next() ^ seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is far below 2^64.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Below `end`.
    pub(super) fn narrow(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).expect("below 2^32")
    }

    /// Fills with bytes that do not compress.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// A vault with one volume.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) directory: PathBuf,
    pub(super) vault: Vault,
    pub(super) volume: VolumeId,
    pub(super) size_bytes: u64,
    /// Where the next segment goes.
    pub(super) next: Slot,
    /// Last seq of the newest segment; one for each.
    pub(super) last: Seq,
    /// Where that is.
    newest: Option<Slot>,
}

impl Disk {
    /// A vault in the new folder `directory`, with its key in a file there, and a volume that was never written.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) async fn make(directory: PathBuf, size_bytes: u64) -> Result<Self> {
        let key = WrappingKey::draw(WrapperKind::Recovery).context("draw a key")?;
        fs::create_dir_all(&directory)?;
        key_file::create(&directory.join(KEY), &key)?;
        let path = vault_in(&directory);
        let text = path.to_str().context("the directory's name is no text")?;
        let vault = Vault::init(&Store::open(text, Access::Make)?, &key).await?;
        let (next, last) = (Slot(0), Seq(0));
        let newest = None;
        let disk = Self { directory, vault, volume: VOLUME, size_bytes, next, last, newest };
        let body = EpochBody {
            epoch: Epoch(1),
            log: LOG,
            first_slot: next,
            first_seq: last.next(),
            size_bytes,
            stamp: Stamp::default(),
            label: "one disk".to_owned(),
            ended: None,
            base: None,
        };
        let keys = disk.vault.seal_keys();
        let object = seal_epoch(disk.vault.id(), VOLUME, ORDINAL, keys, &body)?;
        disk.put(&ObjectName::epoch(VOLUME, ORDINAL), &object)?;
        Ok(disk)
    }

    /// Writes an object that is not there.
    pub(super) fn put(&self, name: &ObjectName, object: &[u8]) -> Result<()> {
        let path = vault_in(&self.directory).join(name.to_string());
        fs::create_dir_all(path.parent().context("an object lies in a folder")?)?;
        put(&path, object)
    }

    /// The place of the newest segment's end.
    pub(super) fn end(&self) -> Place {
        Place { ordinal: ORDINAL, seq: self.last }
    }

    /// Writes the next segment, which ends with a mark; `fill` adds its chunks and says what its span holds.
    ///
    /// # Errors
    /// If it cannot be built or written.
    pub(super) fn segment(
        &mut self,
        fill: impl FnOnce(&mut SegmentBuilder) -> Vec<Extent>,
    ) -> Result<Built> {
        let keys = self.vault.seal_keys();
        let (slot, writer) = (self.next, SlotWriter::of_run(INCARNATION));
        let mut builder = SegmentBuilder::new(self.vault.id(), LOG, slot, writer, keys, 1)?;
        let extents = fill(&mut builder);
        let seq = self.last.next();
        builder.push_span(Span {
            volume: self.volume,
            epoch: Epoch(1),
            first_seq: seq,
            last_seq: seq,
            previous: self.newest,
            mark: Some(mark(seq)),
            stamp: Stamp { life: 1, generation: u32::try_from(seq.0)? },
            imprint: Imprint::default(),
            extents,
        });
        let built = builder.finish()?;
        self.put(&ObjectName::slot(LOG, slot), &built.bytes())?;
        (self.next, self.last, self.newest) = (Slot(slot.0 + 1), seq, Some(slot));
        Ok(built)
    }

    /// Writes a layer for a map at the newest segment's end: so many pages, each made by `page`.
    ///
    /// # Errors
    /// If it cannot be sealed or written.
    pub(super) fn layer(
        &self,
        kind: LayerKind,
        attempt: MapAttempt,
        pages: u64,
        page: &(dyn Fn(u64) -> Page + Sync),
    ) -> Result<Layer> {
        let at = MapPlace { vault: self.vault.id(), volume: self.volume, at: self.end(), attempt };
        let first = self.part(&at, kind, 0, 0..pages, page)?;
        let in_part = first.pages;
        let parts = pages.div_ceil(in_part);
        let made = Mutex::new(vec![first]);
        let next = AtomicU64::new(1);
        in_threads((0..WRITERS).map(|_| {
            || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= parts {
                        return Ok(());
                    }
                    let start = number * in_part;
                    let mine = start..(start + in_part).min(pages);
                    let wanted = mine.end - mine.start;
                    let part = self.part(&at, kind, number, mine, page)?;
                    ensure!(part.pages == wanted, "a part holds as many pages as the first");
                    made.lock().expect("no thread died").push(part);
                }
            }
        }))?;
        let mut made = made.into_inner().expect("no thread died");
        made.sort_unstable_by_key(|part| part.number);
        Ok(Layer {
            at: at.at,
            attempt,
            kind,
            runs: made.iter().map(|part| part.runs).sum(),
            data_blocks: made.iter().map(|part| part.data_blocks).sum(),
            parts: made.iter().map(|part| part.shape).collect(),
        })
    }

    /// Writes part `number` of a layer, of `pages` or, of the first part, as many of them as it takes.
    fn part(
        &self,
        at: &MapPlace,
        kind: LayerKind,
        number: u64,
        pages: std::ops::Range<u64>,
        page: &(dyn Fn(u64) -> Page + Sync),
    ) -> Result<Part> {
        let keys = self.vault.seal_keys();
        let part_number = u32::try_from(number)?;
        let mut builder = PartBuilder::new(*at, part_number, keys, LEVEL)?;
        let (mut runs, mut data_blocks) = (0, 0);
        for page_number in pages {
            let is_full = builder.pages_bytes() >= PART_BYTES || builder.pages() == PART_PAGES_MAX;
            if number == 0 && is_full {
                break;
            }
            let page = page(page_number);
            runs += page.runs.len() as u64;
            data_blocks += page.data_blocks();
            builder.push(&page, kind == LayerKind::Delta)?;
        }
        let pages = builder.pages() as u64;
        let (object, shape, _) = builder.finish()?;
        self.put(&ObjectName::pages(self.volume, at.at, at.attempt, part_number), &object)?;
        Ok(Part { number, pages, runs, data_blocks, shape })
    }

    /// Writes the manifest of a map at the newest segment's end.
    ///
    /// # Errors
    /// If it cannot be sealed or written.
    pub(super) fn manifest(&self, attempt: MapAttempt, layers: Vec<Layer>) -> Result<()> {
        let at = MapPlace { vault: self.vault.id(), volume: self.volume, at: self.end(), attempt };
        let mark = mark(self.last);
        let fields = MapFields { attempt, point: Some(mark.point), ordinal: ORDINAL };
        let manifest = Manifest {
            log: LOG,
            slot: Slot(self.next.0 - 1),
            size_bytes: self.size_bytes,
            mark: Some(MapMark {
                at: at.at,
                kind: mark.kind,
                time_unix_ms: mark.time_unix_ms,
                unknown_blocks: mark.unknown_blocks,
            }),
            layers,
        };
        let keys = self.vault.seal_keys();
        let object = seal_manifest(&at, &fields, keys, &manifest, LEVEL)?;
        self.put(&ObjectName::map(self.volume, at.at, attempt), &object)
    }

    /// Has the system write out what was written: else whoever syncs next pays for it.
    ///
    /// # Errors
    /// If it cannot.
    pub(super) fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(fs::File::open(&self.directory)?).context("sync the directory")
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// If something is left.
    pub(super) fn clear(self) -> Result<()> {
        fs::remove_dir_all(&self.directory).context("remove a history")
    }
}

/// A part that was written.
struct Part {
    number: u64,
    pages: u64,
    runs: u64,
    data_blocks: u64,
    shape: PartShape,
}

/// The mark at a seq.
fn mark(seq: Seq) -> Mark {
    let mut point = [0x77; 16];
    point[..8].copy_from_slice(&seq.0.to_be_bytes());
    Mark {
        point: PointId(point),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 1_700_000_000_000 + seq.0,
        group: MarkGroup::ALONE,
    }
}

/// The frames of a segment, and where they lie.
pub(super) fn frames_of(built: &Built) -> Vec<FrameAt> {
    let header = &built.header;
    let target = Target { log: header.log(), slot: header.slot(), attempt: header.attempt() };
    let mut start = u32::try_from(header.object.whole_bytes()).expect("a body has a limit");
    let frames = (0..).zip(&built.table.frames);
    let frames = frames.map(|(number, frame)| {
        let offset = start;
        start += frame.stored_bytes;
        FrameAt { target, number, offset, key: header.object.key, frame: *frame }
    });
    frames.collect()
}

/// The vault below the folder of a disk.
pub(super) fn vault_in(directory: &Path) -> PathBuf {
    directory.join("vault")
}

/// The key of that vault.
///
/// # Errors
/// If it cannot be read.
pub(super) fn key_in(directory: &Path) -> Result<WrappingKey> {
    Ok(key_file::read(&directory.join(KEY))?)
}
