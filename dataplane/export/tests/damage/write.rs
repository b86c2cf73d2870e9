//! Writes a vault as nodes do, and keeps a model of what it holds.

use bytes::Bytes;
use farshore_codec::{Built, SegmentBuilder};
use farshore_proto::epoch::{EndKind, Ended, EpochBody};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::segment::{ChunkPlace, Extent, ExtentSource, SlotWriter, Span, Table};
use farshore_proto::{
    BlockRange, ChunkId, Epoch, LogId, MarkKind, PointId, Seq, Slot, Target, VolumeId,
};
use farshore_vault::Location;
use farshore_vault::Vault;
use farshore_vault::epoch::{Claim, claim};
use farshore_vault::log::{PutOutcome, put_segment};
use farshore_vault::runs::Run;
use std::collections::{BTreeMap, BTreeSet};

/// Blocks of one chunk; those of volume 2 have the most.
const CHUNK_BLOCKS: usize = 4;

/// The bytes of a block: 0 is zeros, an even number compresses, an odd one does not.
pub(crate) fn block_bytes(seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let filled = match seed {
        0 => 0,
        even if even % 2 == 0 => 16,
        _ => BLOCK_BYTES,
    };
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes[..filled].chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes
}

/// Where a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Home {
    pub(crate) log: usize,
    pub(crate) slot: Slot,
    pub(crate) frame: u32,
}

/// A span that was put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Put {
    /// Index of the epoch.
    pub(crate) epoch: usize,
    pub(crate) slot: Slot,
    pub(crate) last: Seq,
}

/// A recovery point as the model knows it.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) volume: usize,
    pub(crate) id: PointId,
    pub(crate) seq: Seq,
    /// Index of its epoch.
    pub(crate) epoch: usize,
    pub(crate) image: Vec<u32>,
    /// Where its blocks are stored.
    pub(crate) homes: BTreeSet<Home>,
}

/// An epoch of a volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claimed {
    pub(crate) log: usize,
    pub(crate) first_slot: Slot,
}

#[derive(Debug, Clone)]
struct Ready {
    first: Seq,
    last: Seq,
    mark: Option<Mark>,
    changed: BTreeMap<usize, u32>,
    image: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) epochs: Vec<Claimed>,
    pub(crate) puts: Vec<Put>,
    seq: Seq,
    first_waiting: Seq,
    image: Vec<u32>,
    homes: Vec<Option<Home>>,
    changed: BTreeMap<usize, u32>,
    ready: Vec<Ready>,
}

/// A log and its writer.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) next: Slot,
    pub(crate) incarnation: u64,
    /// The run that put each slot; seals too.
    pub(crate) runs: BTreeMap<Slot, u64>,
}

/// A vault that is being written.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub(crate) vault: Vault,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) logs: Vec<Log>,
    pub(crate) points: Vec<Point>,
    known: BTreeMap<ChunkId, (Home, Location)>,
    pub(crate) references: usize,
}

impl Writer {
    pub(crate) fn new(vault: Vault, blocks: &[usize], logs: u8) -> Self {
        let volume = |(number, blocks): (u8, &usize)| Volume {
            id: VolumeId([0xa0 + number; 16]),
            epochs: Vec::new(),
            puts: Vec::new(),
            seq: Seq(0),
            first_waiting: Seq(1),
            image: vec![0; *blocks],
            homes: vec![None; *blocks],
            changed: BTreeMap::new(),
            ready: Vec::new(),
        };
        let log = |number: u8| Log {
            id: LogId([0x10 + number; 16]),
            next: Slot(0),
            incarnation: 1,
            runs: BTreeMap::new(),
        };
        Self {
            vault,
            volumes: (0..).zip(blocks).map(volume).collect(),
            logs: (0..logs).map(log).collect(),
            points: Vec::new(),
            known: BTreeMap::new(),
            references: 0,
        }
    }

    /// Gives a volume to a log under its next epoch.
    pub(crate) async fn claim(&mut self, number: usize, log: usize) {
        let first_slot = self.logs[log].next;
        let volume = &mut self.volumes[number];
        assert!(volume.ready.is_empty(), "an epoch begins where all before is committed");
        let first_seq = volume.first_waiting;
        let before = volume.epochs.last().map(|claimed| claimed.log);
        volume.epochs.push(Claimed { log, first_slot });
        let ordinal = volume.epochs.len() as u64;
        let body = EpochBody {
            epoch: Epoch(ordinal),
            log: self.logs[log].id,
            first_slot,
            first_seq,
            size_bytes: (volume.image.len() * BLOCK_BYTES) as u64,
            stamp: farshore_proto::Stamp::default(),
            label: format!("machine {number}"),
            ended: before.map(|log| Ended { kind: EndKind::Word, slot: self.logs[log].next }),
            base: None,
        };
        let claimed = claim(&self.vault, volume.id, &body).await.unwrap();
        assert_eq!(claimed, Claim::Claimed { ordinal });
    }

    /// Writes blocks, one for each number.
    pub(crate) fn write(&mut self, number: usize, block: usize, seeds: &[u32]) {
        let volume = &mut self.volumes[number];
        volume.seq = volume.seq.next();
        for (block, seed) in (block..).zip(seeds) {
            volume.image[block] = *seed;
            volume.changed.insert(block, *seed);
        }
    }

    /// Ends a span, with a mark or without.
    pub(crate) fn end(&mut self, number: usize, is_mark: bool) {
        let volume = &mut self.volumes[number];
        let mark = is_mark.then(|| {
            volume.seq = volume.seq.next();
            let mut id = [0; 16];
            // Ids are ordered by time, over all volumes.
            id[..8].copy_from_slice(&volume.seq.0.to_be_bytes());
            id[15] = u8::try_from(number).unwrap();
            let time_unix_ms = 1_700_000_000_000 + volume.seq.0;
            Mark {
                point: PointId(id),
                kind: MarkKind::Crash,
                unknown_blocks: 0,
                is_prompt: false,
                time_unix_ms,
                group: MarkGroup::ALONE,
            }
        });
        volume.ready.push(Ready {
            first: volume.first_waiting,
            last: volume.seq,
            mark,
            changed: std::mem::take(&mut volume.changed),
            image: volume.image.clone(),
        });
        volume.first_waiting = volume.seq.next();
    }

    /// Writes and ends a span with a mark.
    pub(crate) fn mark(&mut self, number: usize, block: usize, seeds: &[u32]) {
        self.write(number, block, seeds);
        self.end(number, true);
    }

    /// Builds the next segment of a log out of all spans that are ready for it.
    pub(crate) fn build(&mut self, log: usize) -> Bytes {
        let Log { id, next: slot, incarnation, .. } = self.logs[log];
        let keys = self.vault.seal_keys();
        let vault = self.vault.id();
        let writer = SlotWriter::of_run(incarnation);
        let mut builder = SegmentBuilder::new(vault, id, slot, writer, keys, 1).unwrap();
        let mut here = BTreeMap::new();
        // Which chunk of the table each span's blocks hold.
        let mut spans = Vec::new();
        for number in 0..self.volumes.len() {
            if self.volumes[number].epochs.last().is_none_or(|epoch| epoch.log != log) {
                continue;
            }
            for ready in std::mem::take(&mut self.volumes[number].ready) {
                let extents = self.extents(&mut builder, &mut here, number, &ready.changed);
                let volume = &self.volumes[number];
                builder.push_span(Span {
                    volume: volume.id,
                    epoch: Epoch(volume.epochs.len() as u64),
                    first_seq: ready.first,
                    last_seq: ready.last,
                    previous: None,
                    mark: ready.mark,
                    stamp: farshore_proto::Stamp::default(),
                    imprint: farshore_proto::Imprint::default(),
                    extents: extents.clone(),
                });
                spans.push((number, ready, extents));
            }
        }
        let built = builder.finish().unwrap();
        self.learn(log, &built);
        for (number, ready, extents) in spans {
            self.note(number, slot, ready, &extents, &built.table);
        }
        self.logs[log].runs.insert(slot, incarnation);
        self.logs[log].next = slot.next();
        Bytes::from(built.bytes())
    }

    fn extents(
        &mut self,
        builder: &mut SegmentBuilder,
        here: &mut BTreeMap<ChunkId, u32>,
        number: usize,
        changed: &BTreeMap<usize, u32>,
    ) -> Vec<Extent> {
        let blocks: Vec<(usize, u32)> =
            changed.iter().map(|(block, seed)| (*block, *seed)).collect();
        let runs = blocks.chunk_by(|a, b| b.0 == a.0 + 1 && (a.1 == 0) == (b.1 == 0));
        let cut = if number == 2 { 32 } else { CHUNK_BLOCKS };
        let mut extents = Vec::new();
        for piece in runs.flat_map(|run| run.chunks(cut)) {
            let range = BlockRange { block: piece[0].0 as u64, count: piece.len() as u64 };
            if piece[0].1 == 0 {
                extents.push(Extent { range, source: ExtentSource::Zero });
                continue;
            }
            let bytes: Vec<u8> = piece.iter().flat_map(|(_, seed)| block_bytes(*seed)).collect();
            let id = self.vault.hasher().id(&bytes);
            let chunk = match (here.get(&id), self.known.get(&id)) {
                (Some(chunk), _) => *chunk,
                (None, Some((_, Location { target, chunk, blocks }))) => {
                    self.references += 1;
                    let place = ChunkPlace::There { target: *target, chunk: *chunk };
                    builder.push_reference(id, *blocks, place).unwrap()
                }
                (None, None) => builder.push_chunk(id, &bytes),
            };
            here.insert(id, chunk);
            extents.push(Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } });
        }
        extents
    }

    /// Learns where the chunks of a segment are.
    fn learn(&mut self, log: usize, built: &Built) {
        let (slot, attempt) = (built.header.slot(), built.header.attempt());
        let target = Target { log: self.logs[log].id, slot, attempt };
        for (chunk, held) in (0..).zip(&built.table.chunks) {
            if let ChunkPlace::Here { frame, .. } = held.place {
                let at = Location { target, chunk, blocks: held.blocks };
                self.known.insert(held.id, (Home { log, slot, frame }, at));
            }
        }
    }

    /// Notes what a span that was put did to its volume.
    fn note(&mut self, number: usize, slot: Slot, ready: Ready, extents: &[Extent], table: &Table) {
        let volume = &mut self.volumes[number];
        for Extent { range, source } in extents {
            let home = match source {
                ExtentSource::Zero => None,
                ExtentSource::Chunk { chunk, .. } => {
                    Some(self.known[&table.chunks[*chunk as usize].id].0)
                }
            };
            let block = usize::try_from(range.block).unwrap();
            let end = usize::try_from(range.end()).unwrap();
            volume.homes[block..end].fill(home);
        }
        let epoch = volume.epochs.len() - 1;
        volume.puts.push(Put { epoch, slot, last: ready.last });
        if let Some(mark) = ready.mark {
            self.points.push(Point {
                volume: number,
                id: mark.point,
                seq: ready.last,
                epoch,
                image: ready.image,
                homes: volume.homes.iter().flatten().copied().collect(),
            });
        }
    }

    /// Puts everything that is ready for a log.
    pub(crate) async fn commit(&mut self, log: usize) -> Slot {
        let (id, slot) = (self.logs[log].id, self.logs[log].next);
        let bytes = self.build(log);
        let outcome = put_segment(&self.vault, id, slot, bytes).await.unwrap();
        assert_eq!(outcome, PutOutcome::Committed);
        slot
    }

    /// Seals a log.
    pub(crate) async fn seal(&mut self, log: usize) -> Slot {
        let Log { id, next, incarnation, .. } = self.logs[log];
        let slot = farshore_vault::log::seal(&self.vault, id, Slot(0)).await.unwrap().next;
        assert_eq!(slot, next);
        self.logs[log].runs.insert(slot, incarnation);
        slot
    }

    /// Every chunk that was put, for index runs.
    pub(crate) fn known(&self) -> Run {
        let chunks = self.known.iter().map(|(id, (_, at))| (*id, *at)).collect();
        Run { chunks, ..Run::default() }
    }
}

/// The bytes of an image.
pub(crate) fn image_bytes(image: &[u32]) -> Vec<u8> {
    image.iter().flat_map(|seed| block_bytes(*seed)).collect()
}
