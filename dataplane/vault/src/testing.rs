//! A small writer of vaults and a naive model of what they hold.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a panic is how a test fails")]

mod counted;
#[cfg(test)]
mod faulty;
pub mod history;
pub mod machines;

pub use counted::{Call, Counted, OthersPut, counted};
#[cfg(test)]
pub(crate) use faulty::{Fault, Faulty};

use crate::checkpoint::read_ledger;
use crate::epoch::{Claim, claim, read_epochs};
use crate::layout::ObjectName;
use crate::log::{self, PutOutcome};
use crate::store::{Access, Store};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::{SegmentBuilder, WrappingKey, seal_bytes};
use farshore_proto::epoch::{EndKind, Ended, EpochBase, EpochBody};
use farshore_proto::keys::WrapperKind;
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::object::ObjectPlace;
use farshore_proto::register::At;
use farshore_proto::segment::{ChunkPlace, Extent, ExtentSource, SlotWriter, Span};
use farshore_proto::{
    BlockRange, ChunkId, Epoch, Imprint, LogId, MarkKind, Place, PointId, Seq, Slot, Stamp, Target,
    VolumeId,
};
use futures::FutureExt;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// Ends a call that waits for nothing, in the same order each time: outside of a runtime a directory's reads are made where they are asked for.
///
/// # Panics
/// If it waits.
pub fn at_once<T>(work: impl Future<Output = T>) -> T {
    // Joined futures yield now and then although they wait for nothing.
    const POLLS_MAX: usize = 100_000;
    let mut work = std::pin::pin!(work);
    (0..POLLS_MAX).find_map(|_| work.as_mut().now_or_never()).expect("nothing here takes time")
}

/// Blocks of each volume.
pub const BLOCKS: u64 = 96;
const CHUNK_BLOCKS: usize = 6;

/// Content of a volume: one number a block, 0 for zeros.
pub type Image = Vec<u32>;

/// The bytes of a block.
#[must_use]
pub fn block_bytes(seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = vec![0; BLOCK_BYTES];
    if seed != 0 {
        // Half of it does not compress.
        for word in bytes[..BLOCK_BYTES / 2].chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        bytes[BLOCK_BYTES - 4..].copy_from_slice(&seed.to_le_bytes());
    }
    bytes
}

/// The bytes of an image.
#[must_use]
pub fn image_bytes(image: &[u32]) -> Vec<u8> {
    image.iter().flat_map(|seed| block_bytes(*seed)).collect()
}

/// A recovery point as the model knows it.
#[derive(Debug, Clone)]
pub struct ModelPoint {
    /// Number of its volume.
    pub volume: usize,
    /// Its id.
    pub id: PointId,
    /// Its place in the stream.
    pub seq: Seq,
    /// What the volume holds there.
    pub image: Image,
    /// Number of the log that has it.
    pub log: usize,
    /// The slot there; the last of all while it is not committed.
    pub slot: Slot,
}

/// A log that is being written.
#[derive(Debug)]
pub struct ModelLog {
    /// Its id.
    pub id: LogId,
    /// The slot of the next segment.
    pub next: Slot,
    /// The run of its writer.
    pub incarnation: u64,
    /// The checkpoint that its segments name.
    pub checkpoint: Option<Slot>,
    /// How far its writer has applied the register.
    pub register: At,
    /// What it does not refer to any more.
    pub refused: BTreeSet<Target>,
    /// The newest slot with a span of each volume, by number.
    newest: BTreeMap<usize, Slot>,
}

/// A span that waits for its segment: first and last seq, mark, content of the changed blocks.
type Ready = (Seq, Seq, Option<Mark>, BTreeMap<u64, u32>);

/// A volume that is being written.
#[derive(Debug)]
pub struct ModelVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its newest epoch.
    pub epoch: Epoch,
    /// Number of the log that it is written to.
    pub log: usize,
    /// Last seq of all.
    pub seq: Seq,
    /// What it holds now.
    pub image: Image,
    /// First seq of its newest branch, and the point that it goes on from, if that is its own.
    branch: (Seq, Option<PointId>),
    first_waiting: Seq,
    ready: Vec<Ready>,
    changed: BTreeMap<u64, u32>,
}

/// A vault being written.
#[derive(Debug)]
pub struct World {
    /// Holds the vault as `vault`; beside it a test may put what it likes.
    pub folder: TempDir,
    /// The vault.
    pub vault: Vault,
    /// Its recovery key.
    pub recovery: WrappingKey,
    /// Its logs, by number.
    pub logs: Vec<ModelLog>,
    /// Its volumes, by number.
    pub volumes: Vec<ModelVolume>,
    /// The recovery points that were marked, in order.
    pub points: Vec<ModelPoint>,
    known: BTreeMap<ChunkId, (Target, u32)>,
    /// Chunks that were only referred to.
    pub references: u64,
    /// Of each volume.
    size_bytes: u64,
}

impl World {
    /// A vault with so many volumes, which are all in log 0, and logs.
    pub async fn new(volumes: usize, logs: usize) -> Self {
        Self::sized(volumes, logs, BLOCKS * BLOCK_BYTES as u64).await
    }

    /// With volumes of so many bytes; what the model writes behind the end is nowhere to be seen.
    async fn sized(volumes: usize, logs: usize, size_bytes: u64) -> Self {
        assert_eq!(blocks_of(size_bytes), BLOCKS);
        let folder = tempfile::tempdir().unwrap();
        let recovery = WrappingKey::draw(WrapperKind::Recovery).unwrap();
        let path = folder.path().join("vault");
        let store = Store::open(path.to_str().unwrap(), Access::Make).unwrap();
        let vault = Vault::init(&store, &recovery).await.unwrap();
        let logs = (0..logs).map(|n| ModelLog {
            id: LogId([0x10 + u8::try_from(n).unwrap(); 16]),
            next: Slot(0),
            incarnation: 1,
            checkpoint: None,
            register: At::NONE,
            refused: BTreeSet::new(),
            newest: BTreeMap::new(),
        });
        let logs = logs.collect();
        let mut world = Self {
            folder,
            vault,
            recovery,
            logs,
            volumes: Vec::new(),
            points: Vec::new(),
            known: BTreeMap::new(),
            references: 0,
            size_bytes,
        };
        for number in 0..volumes {
            world.volumes.push(ModelVolume {
                id: VolumeId([0xa0 + u8::try_from(number).unwrap(); 16]),
                epoch: Epoch(0),
                log: 0,
                seq: Seq(0),
                image: vec![0; usize::try_from(BLOCKS).unwrap()],
                branch: (Seq(1), None),
                first_waiting: Seq(1),
                ready: Vec::new(),
                changed: BTreeMap::new(),
            });
            world.claim(number, 0).await;
        }
        world
    }

    /// The file of an object.
    #[must_use]
    pub fn file(&self, name: &ObjectName) -> PathBuf {
        self.folder.path().join("vault").join(name.to_string())
    }

    /// Opens the vault anew, as another process would.
    pub async fn reopen(&self) -> Vault {
        let path = self.folder.path().join("vault");
        let store = Store::open(path.to_str().unwrap(), Access::Read).unwrap();
        Vault::open(&store, &self.recovery).await.unwrap()
    }

    /// Puts an object in the place of one, as a later program would lay it out: with a section that this one may ignore.
    ///
    /// # Panics
    /// If it cannot be sealed or written.
    pub fn outgrow(&self, name: &ObjectName, place: ObjectPlace, mut body: Vec<u8>) {
        // Number 77, which need not be understood, one record of 4 bytes.
        body.extend([77, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        let keys = self.vault.seal_keys();
        let sealed = seal_bytes(place, keys, &body).unwrap();
        fs::write(self.file(name), sealed).unwrap();
    }

    /// Gives a volume to a log under its next epoch. What waits goes there.
    pub async fn claim(&mut self, number: usize, log: usize) {
        self.begin_epoch(number, log, None).await;
    }

    /// Gives a volume to a log under an epoch that goes on from a point. What waits is gone.
    ///
    /// # Panics
    /// If the point is not committed.
    pub async fn go_on_from(&mut self, number: usize, log: usize, point: &ModelPoint) {
        let of = self.volumes[point.volume].id;
        let epochs = read_epochs(&self.vault, of).await.unwrap();
        let owner = epochs.iter().rposition(|body| body.first_seq <= point.seq).unwrap();
        let at = Place { ordinal: owner as u64 + 1, seq: point.seq };
        let volume = &mut self.volumes[number];
        let first = volume.first_committable();
        volume.rewind(Seq(first.0 - 1), point.image.clone());
        volume.branch = (first, (point.volume == number).then_some(point.id));
        self.points.retain(|point| point.volume != number || point.seq < first);
        self.begin_epoch(number, log, Some(EpochBase { volume: of, at, point: point.id })).await;
    }

    /// The newest point of a volume that is committed, on its newest branch.
    #[must_use]
    pub fn latest(&self, number: usize) -> Option<ModelPoint> {
        let (first, base) = self.volumes[number].branch;
        let points = self.committed_points().into_iter().rev();
        let mut points = points.filter(|point| point.volume == number);
        points.find(|point| point.seq >= first || Some(point.id) == base)
    }

    async fn begin_epoch(&mut self, number: usize, log: usize, base: Option<EpochBase>) {
        let volume = &mut self.volumes[number];
        let before = (volume.epoch > Epoch(0)).then_some(self.logs[volume.log].next);
        volume.epoch = volume.epoch.next();
        volume.log = log;
        let body = EpochBody {
            stamp: stamp_of(number, Seq(volume.first_committable().0 - 1)),
            epoch: volume.epoch,
            log: self.logs[log].id,
            first_slot: self.logs[log].next,
            first_seq: volume.first_committable(),
            size_bytes: self.size_bytes,
            label: format!("machine {number}"),
            ended: before.map(|slot| Ended { kind: EndKind::Word, slot }),
            base,
        };
        let claimed = claim(&self.vault, volume.id, &body).await.unwrap();
        assert_eq!(claimed, Claim::Claimed { ordinal: volume.epoch.0 });
    }

    /// Writes blocks whose content follows from `seed`; 0 writes zeros.
    pub fn write(&mut self, number: usize, block: u64, count: u64, seed: u32) {
        let volume = &mut self.volumes[number];
        volume.seq = volume.seq.next();
        for (step, block) in (0_u32..).zip(block..(block + count).min(BLOCKS)) {
            let content = if seed == 0 { 0 } else { seed + step };
            volume.image[usize::try_from(block).unwrap()] = content;
            volume.changed.insert(block, content);
        }
    }

    /// Ends a span, with a mark or without.
    pub fn end_span(&mut self, number: usize, is_mark: bool) {
        self.end_span_with(number, is_mark.then_some(|seq| mark_at(number, seq)));
    }

    /// Ends a span with the mark that there is to be at its seq, or without.
    pub fn end_span_with(&mut self, number: usize, mark: Option<impl FnOnce(Seq) -> Mark>) {
        let volume = &mut self.volumes[number];
        let mark = mark.map(|mark| {
            volume.seq = volume.seq.next();
            mark(volume.seq)
        });
        if volume.seq < volume.first_waiting {
            return;
        }
        let changed = std::mem::take(&mut volume.changed);
        volume.ready.push((volume.first_waiting, volume.seq, mark, changed));
        volume.first_waiting = volume.seq.next();
        if let Some(mark) = mark {
            let (id, seq, image) = (mark.point, volume.seq, volume.image.clone());
            let (log, slot) = (volume.log, Slot(u64::MAX));
            self.points.push(ModelPoint { volume: number, id, seq, image, log, slot });
        }
    }

    /// Builds the next segment of a log out of all spans that are ready for it.
    pub fn build(&mut self, log: usize) -> Bytes {
        let (id, slot) = (self.logs[log].id, self.logs[log].next);
        let keys = self.vault.seal_keys();
        let ModelLog { incarnation, checkpoint, register, .. } = self.logs[log];
        let writer = SlotWriter { checkpoint, register, ..SlotWriter::of_run(incarnation) };
        let mut builder = SegmentBuilder::new(self.vault.id(), id, slot, writer, keys, 1).unwrap();
        builder.check_each_frame();
        let mut here: BTreeMap<ChunkId, u32> = BTreeMap::new();
        for at in 0..self.volumes.len() {
            if self.volumes[at].log != log {
                continue;
            }
            let ready = std::mem::take(&mut self.volumes[at].ready);
            let previous = match ready.is_empty() {
                true => None,
                false => self.logs[log].newest.insert(at, slot),
            };
            for (first_seq, last_seq, mark, changed) in ready {
                let extents = self.extents(&mut builder, log, &mut here, &changed);
                let ModelVolume { id: volume, epoch, .. } = self.volumes[at];
                builder.push_span(Span {
                    stamp: stamp_of(at, last_seq),
                    volume,
                    epoch,
                    first_seq,
                    last_seq,
                    previous,
                    mark,
                    imprint: Imprint::default(),
                    extents,
                });
                for point in &mut self.points {
                    if point.volume == at && point.seq == last_seq {
                        (point.log, point.slot) = (log, slot);
                    }
                }
            }
        }
        let built = builder.finish().unwrap();
        for (chunk, held) in (0..).zip(&built.table.chunks) {
            if matches!(held.place, ChunkPlace::Here { .. }) {
                let attempt = built.header.attempt();
                let target = Target { log: id, slot, attempt };
                self.known.entry(held.id).or_insert((target, chunk));
            }
        }
        self.logs[log].next = slot.next();
        Bytes::from(built.bytes())
    }

    /// Writes a checkpoint of a log at its next slot, which the segments from then on name.
    ///
    /// # Panics
    /// If the log has no end that can be found.
    pub async fn checkpoint(&mut self, log: usize) {
        let ModelLog { id, next, .. } = self.logs[log];
        let end = log::find_end(&self.vault, id, Slot(0)).await.unwrap();
        let ledger = read_ledger(&self.vault, id, &end, |_| {}).await.unwrap();
        let body = ledger.body().unwrap().clone();
        crate::checkpoint::write(&self.vault, id, next, body).await.unwrap();
        self.logs[log].checkpoint = Some(next);
    }

    fn extents(
        &mut self,
        builder: &mut SegmentBuilder,
        log: usize,
        here: &mut BTreeMap<ChunkId, u32>,
        changed: &BTreeMap<u64, u32>,
    ) -> Vec<Extent> {
        let blocks: Vec<(u64, u32)> = changed.iter().map(|(block, seed)| (*block, *seed)).collect();
        let runs = blocks.chunk_by(|a, b| b.0 == a.0 + 1 && (a.1 == 0) == (b.1 == 0));
        let mut extents = Vec::new();
        for piece in runs.flat_map(|run| run.chunks(CHUNK_BLOCKS)) {
            let range = BlockRange { block: piece[0].0, count: piece.len() as u64 };
            if piece[0].1 == 0 {
                extents.push(Extent { range, source: ExtentSource::Zero });
                continue;
            }
            let bytes: Vec<u8> = piece.iter().flat_map(|(_, seed)| block_bytes(*seed)).collect();
            let id = self.vault.hasher().id(&bytes);
            let refused = &self.logs[log].refused;
            if self.known.get(&id).is_some_and(|(target, _)| refused.contains(target)) {
                self.known.remove(&id);
            }
            let known = self.known.get(&id);
            let chunk = match (here.get(&id), known) {
                (Some(chunk), _) => *chunk,
                (None, Some((target, chunk))) => {
                    self.references += 1;
                    let place = ChunkPlace::There { target: *target, chunk: *chunk };
                    builder.push_reference(id, u32::try_from(piece.len()).unwrap(), place).unwrap()
                }
                (None, None) => builder.push_chunk(id, &bytes),
            };
            here.insert(id, chunk);
            extents.push(Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } });
        }
        extents
    }

    /// Takes a slot out of the vault. No later segment refers to what it held.
    pub fn remove(&mut self, log: usize, slot: Slot) {
        let id = self.logs[log].id;
        fs::remove_file(self.file(&ObjectName::slot(id, slot))).unwrap();
        self.known.retain(|_, (target, _)| (target.log, target.slot) != (id, slot));
    }

    /// Puts everything that is ready for a log.
    pub async fn commit(&mut self, log: usize) -> Slot {
        let slot = self.logs[log].next;
        let bytes = self.build(log);
        let outcome = log::put_segment(&self.vault, self.logs[log].id, slot, bytes).await.unwrap();
        assert_eq!(outcome, PutOutcome::Committed);
        slot
    }

    /// Seals a log.
    pub async fn seal(&mut self, log: usize) -> Slot {
        let ModelLog { id, next, .. } = self.logs[log];
        let slot = log::seal(&self.vault, id, Slot(0)).await.unwrap().next;
        assert_eq!(slot, next);
        slot
    }

    /// The points that can be restored.
    #[must_use]
    pub fn committed_points(&self) -> Vec<ModelPoint> {
        self.points.iter().filter(|point| point.slot != Slot(u64::MAX)).cloned().collect()
    }

    /// Three segments in log 0 for two volumes, two more in log 1 after a seal; marks, zeros,
    /// overwrites and references.
    pub async fn sample() -> Self {
        Self::sample_of(BLOCKS * BLOCK_BYTES as u64).await
    }

    /// The same with volumes that end somewhere in their last block.
    pub async fn sample_of(size_bytes: u64) -> Self {
        let mut world = Self::sized(2, 2, size_bytes).await;
        world.write(0, 0, 40, 1000);
        world.write(1, 10, 20, 2000);
        world.end_span(0, true);
        world.end_span(1, true);
        world.commit(0).await;
        world.write(0, 5, 10, 3000);
        world.write(0, 30, 6, 0);
        world.write(1, 50, 12, 1000);
        world.end_span(0, true);
        world.end_span(1, false);
        world.commit(0).await;
        world.write(0, 60, 12, 2000);
        world.end_span(0, true);
        world.end_span(1, true);
        world.commit(0).await;
        world.seal(0).await;
        world.claim(0, 1).await;
        world.claim(1, 1).await;
        world.write(0, 80, 12, 1000);
        world.write(0, 62, 2, 4000);
        world.end_span(0, true);
        world.commit(1).await;
        world.write(1, 0, 96, 5000);
        world.end_span(1, true);
        world.commit(1).await;
        assert!(world.references > 0);
        world
    }
}

impl ModelVolume {
    /// First seq that no segment holds: those of the spans that wait come first.
    fn first_committable(&self) -> Seq {
        self.ready.first().map_or(self.first_waiting, |(first, ..)| *first)
    }
}

impl ModelVolume {
    /// Goes back to `seq`, as a source does whose node never got what came after.
    pub fn rewind(&mut self, seq: Seq, image: Image) {
        self.image = image;
        self.seq = seq;
        self.first_waiting = seq.next();
        self.ready.clear();
        self.changed.clear();
    }
}

/// A volume of some size in a few segments, every chunk of its own.
#[derive(Debug)]
pub struct Large {
    /// Holds the vault as `vault`.
    pub folder: TempDir,
    /// The vault.
    pub vault: Vault,
    /// The volume.
    pub volume: VolumeId,
    /// Bytes of its frames.
    pub frames_bytes: u64,
    blocks: u64,
}

impl Large {
    /// The restored bytes.
    #[must_use]
    pub fn expected(&self) -> Vec<u8> {
        (0..self.blocks).flat_map(|block| block_bytes(content(block))).collect()
    }
}

/// Of a volume alone.
fn mark_at(number: usize, seq: Seq) -> Mark {
    let mut id = [0; 16];
    id[0] = u8::try_from(number).unwrap();
    id[8..].copy_from_slice(&seq.0.to_be_bytes());
    // All kinds, and some with blocks that nobody could read: each reader must say the same.
    let kinds = [MarkKind::Crash, MarkKind::Scan, MarkKind::App];
    Mark {
        point: PointId(id),
        kind: kinds[usize::from(id[15]) % 3],
        unknown_blocks: u32::try_from(seq.0 % 4).unwrap(),
        is_prompt: false,
        time_unix_ms: 1_700_000_000_000 + seq.0,
        group: MarkGroup::ALONE,
    }
}

/// Of a model's frame: tells the volume and the seq.
#[must_use]
pub fn stamp_of(number: usize, seq: Seq) -> Stamp {
    match (u32::try_from(number + 1), u32::try_from(seq.0)) {
        (Ok(life), Ok(generation)) if generation > 0 => Stamp { life, generation },
        _ => Stamp::default(),
    }
}

fn content(block: u64) -> u32 {
    u32::try_from(block).unwrap() + 1
}

/// A volume of `mib` MiB, written in segments of 16 MiB.
pub async fn large(mib: u64) -> Large {
    let World { folder, vault, mut logs, volumes, .. } = World::new(1, 1).await;
    let (volume, log) = (volumes[0].id, logs.remove(0).id);
    let blocks = mib * 256;
    let body = EpochBody {
        epoch: Epoch(2),
        log,
        first_slot: Slot(0),
        first_seq: Seq(1),
        size_bytes: blocks * BLOCK_BYTES as u64,
        stamp: Stamp::default(),
        label: String::new(),
        ended: Some(Ended { kind: EndKind::Word, slot: Slot(0) }),
        base: None,
    };
    assert!(matches!(claim(&vault, volume, &body).await, Ok(Claim::Claimed { .. })));
    let mut frames_bytes = 0;
    let keys = vault.seal_keys();
    for slot in 0..mib / 16 {
        let at = Slot(slot);
        let writer = SlotWriter::of_run(1);
        let mut builder = SegmentBuilder::new(vault.id(), log, at, writer, keys, 1).unwrap();
        let mut extents = Vec::new();
        for block in (slot * 4096..(slot + 1) * 4096).step_by(12) {
            let count = ((slot + 1) * 4096 - block).min(12);
            let bytes: Vec<u8> =
                (block..block + count).flat_map(|block| block_bytes(content(block))).collect();
            let chunk = builder.push_chunk(vault.hasher().id(&bytes), &bytes);
            let range = BlockRange { block, count };
            extents.push(Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } });
        }
        let seq = Seq(slot + 1);
        let point = PointId([u8::try_from(slot).unwrap(); 16]);
        let mark = Mark {
            point,
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            is_prompt: false,
            time_unix_ms: 0,
            group: MarkGroup::ALONE,
        };
        builder.push_span(Span {
            volume,
            epoch: Epoch(2),
            first_seq: seq,
            last_seq: seq,
            previous: None,
            mark: Some(mark),
            stamp: Stamp::default(),
            imprint: Imprint::default(),
            extents,
        });
        let built = builder.finish().unwrap();
        frames_bytes += built.header.frames_bytes;
        log::put_segment(&vault, log, at, Bytes::from(built.bytes())).await.unwrap();
    }
    Large { folder, vault, volume, frames_bytes, blocks }
}

/// Writes a map of a volume as one is whose layers do not fit one page or part: of few runs to a page, a page to a part.
///
/// # Panics
/// If there is nothing to map.
pub async fn write_map_in_parts(vault: &Vault, volume: VolumeId) -> crate::map::Written {
    let (page_runs, part_bytes) = (3, 1);
    let shape = crate::map::Shape { page_runs, part_bytes, ..crate::map::Shape::default() };
    let written = crate::map::write_shaped(vault, volume, shape).await;
    written.expect("the vault is whole").expect("there is something to map")
}
