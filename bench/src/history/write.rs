//! A vault with a long history, written as files: what years of a shard would leave of slots, in minutes.
//!
//! A log begins with segments in which each of its volumes has its first span, and ends with segments in which four
//! of five go on; the slots between are fills. So reading all of it and reading its newest checkpoint with the tail
//! must come to the same, and for every fifth volume the checkpoint alone knows where it is.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use farshore_codec::epoch::seal_epoch;
use farshore_codec::segment::slot_without_data;
use farshore_codec::{SegmentBuilder, WrappingKey};
use farshore_engine::ledger::{Ledger, SpanEnd};
use farshore_engine::shard::CHECKPOINT_SLOTS;
use farshore_proto::epoch::{EndKind, Ended, EpochBody};
use farshore_proto::keys::WrapperKind;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::segment::{Extent, ExtentSource, SlotKind, SlotWriter, Span};
use farshore_proto::{
    BlockRange, Epoch, Imprint, LogId, MarkKind, PointId, Seq, Slot, Stamp, VolumeId,
};
use farshore_vault::Vault;
use farshore_vault::checkpoint;
use farshore_vault::layout::ObjectName;
use farshore_vault::store::{Access, Store};

use crate::tell;

/// Slots at the end of a log that hold segments: two checkpoints lie among them.
const TAIL_SLOTS: u64 = 2 * CHECKPOINT_SLOTS;
/// Spans of one segment.
const SPANS: usize = 8;
/// Every so many volumes there is one that is still: only the checkpoint knows of it.
const STILL_EVERY: usize = 5;
/// Frames of a span.
const SPAN_SEQS: u64 = 4;
/// Epochs of each volume; the last one is in the log.
pub(super) const EPOCHS: u64 = 3;
/// First seq of the last epoch.
const FIRST_SEQ: u64 = 11;
const INCARNATION: u64 = 1;
/// Of every volume.
pub(super) const SIZE_BYTES: u64 = 1 << 30;
/// Where the older epochs of all volumes were.
const EARLIER_LOG: LogId = LogId([0x0e; 16]);
/// Threads that write slots.
const WRITERS: u64 = 2;
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Where a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Last seq in the vault.
    pub(super) committed: Seq,
    /// Of the frame there.
    pub(super) stamp: Stamp,
    /// The newest slot with a span of it.
    newest: Option<Slot>,
}

/// A log that was written, and what is true of it.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) id: LogId,
    /// All are filled, none behind them.
    pub(super) slots: u64,
    /// Slots with segments behind the newest checkpoint.
    pub(super) tail: u64,
    /// Its volumes.
    pub(super) volumes: BTreeMap<VolumeId, Place>,
}

impl Log {
    /// Slots of its checkpoints.
    pub(super) fn checkpoints(&self) -> [Slot; 2] {
        [TAIL_SLOTS, CHECKPOINT_SLOTS].map(|behind| Slot(self.slots - behind))
    }
}

/// Slots that a log with so many volumes has at least.
pub(super) fn slots_min(volumes: u64) -> u64 {
    volumes.div_ceil(SPANS as u64) + 2 * TAIL_SLOTS
}

/// A vault in a directory, with histories in it.
#[derive(Debug)]
pub(super) struct History {
    pub(super) directory: PathBuf,
    pub(super) key: WrappingKey,
    pub(super) vault: Vault,
    pub(super) logs: Vec<Log>,
}

impl History {
    /// A vault in a new directory, with a log of `slots` for each of `logs` and `volumes` shared out among them.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) async fn write(
        directory: PathBuf,
        logs: usize,
        slots: u64,
        volumes: usize,
    ) -> Result<Self> {
        let key = WrappingKey::draw(WrapperKind::Recovery).context("draw a key")?;
        let path = directory.to_str().context("the directory's name is no text")?;
        let vault = Vault::init(&Store::open(path, Access::Make)?, &key).await?;
        let mut history = Self { directory, key, vault, logs: Vec::new() };
        for number in 0..logs {
            let mine = (number..volumes).step_by(logs).map(volume_of).collect();
            let log = history.log(log_of(number), slots, mine).await?;
            history.logs.push(log);
        }
        // What is still to be written out would be paid for by whoever syncs next.
        rustix::fs::syncfs(fs::File::open(&history.directory)?).context("sync the directory")?;
        Ok(history)
    }

    /// Takes an object away again.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn remove(&self, name: &ObjectName) -> Result<()> {
        let path = self.directory.join(name.to_string());
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Takes all slots away, in the order in which they were written and lie on the disk. In the order of a listing
    /// that takes longer than all the rest.
    ///
    /// # Errors
    /// If a slot is not there.
    pub(super) fn clear(self) -> Result<()> {
        tell("removing the history");
        let history = &self;
        in_threads(self.logs.iter().map(|log| {
            let mut slots = (0..log.slots).map(|slot| ObjectName::slot(log.id, Slot(slot)));
            move || slots.try_for_each(|name| history.remove(&name))
        }))
    }

    async fn log(&self, id: LogId, slots: u64, volumes: Vec<VolumeId>) -> Result<Log> {
        let opening = volumes.len().div_ceil(SPANS) as u64;
        let folder = self.directory.join(ObjectName::slot(id, Slot(0)).to_string());
        fs::create_dir_all(folder.parent().context("a slot lies in a folder")?)?;
        for (number, volume) in volumes.iter().enumerate() {
            self.epochs(id, number, *volume)?;
        }
        let first = |(number, volume): (usize, &VolumeId)| {
            let committed = Seq(FIRST_SEQ - 1);
            (*volume, Place { committed, stamp: stamp_of(number, committed), newest: None })
        };
        let places = volumes.iter().enumerate().map(first).collect();
        let mut log = Log { id, slots, tail: CHECKPOINT_SLOTS, volumes: places };
        self.fills(&log, opening..slots - TAIL_SLOTS)?;

        let mut ledger = Ledger::default();
        let numbered: Vec<(usize, VolumeId)> = volumes.into_iter().enumerate().collect();
        for (slot, spans) in (0..).zip(numbered.chunks(SPANS)) {
            self.segment(&mut log, &mut ledger, Slot(slot), spans)?;
        }
        let is_still = |(number, _): &&(usize, VolumeId)| number % STILL_EVERY == 0;
        let moving: Vec<_> = numbered.iter().filter(|volume| !is_still(volume)).copied().collect();
        let mut turns = moving.iter().copied().cycle();
        for slot in slots - TAIL_SLOTS..slots {
            let slot = Slot(slot);
            if log.checkpoints().contains(&slot) {
                ledger.reached(slot);
                let body = ledger.body().context("fewer volumes than a checkpoint holds")?;
                checkpoint::write(&self.vault, id, slot, body.clone()).await?;
                ledger.checkpointed(slot);
            }
            let spans: Vec<_> = turns.by_ref().take(SPANS.min(moving.len())).collect();
            self.segment(&mut log, &mut ledger, slot, &spans)?;
        }
        Ok(log)
    }

    fn epochs(&self, log: LogId, number: usize, volume: VolumeId) -> Result<()> {
        let keys = self.vault.seal_keys();
        for ordinal in 1..=EPOCHS {
            let first_seq = Seq(FIRST_SEQ - (EPOCHS - ordinal) * 5);
            let body = EpochBody {
                epoch: Epoch(ordinal),
                log: if ordinal < EPOCHS { EARLIER_LOG } else { log },
                first_slot: Slot(0),
                first_seq,
                size_bytes: SIZE_BYTES,
                stamp: stamp_of(number, Seq(first_seq.0 - 1)),
                label: format!("machine {number}"),
                ended: (ordinal > 1).then_some(Ended { kind: EndKind::Word, slot: Slot(0) }),
                base: None,
            };
            let object = seal_epoch(self.vault.id(), volume, ordinal, keys, &body)?;
            let path = self.directory.join(ObjectName::epoch(volume, ordinal).to_string());
            fs::create_dir_all(path.parent().context("an epoch lies in a folder")?)?;
            put(&path, &object)?;
        }
        Ok(())
    }

    fn fills(&self, log: &Log, slots: Range<u64>) -> Result<()> {
        let begun = Instant::now();
        let part = (slots.end - slots.start).div_ceil(WRITERS);
        in_threads((0..WRITERS).map(|writer| {
            let start = slots.start + writer * part;
            let mine = start.min(slots.end)..(start + part).min(slots.end);
            move || self.fills_of(log, mine)
        }))?;
        tell(&format!("{}: {} slots in {:.0?}", log.id, log.slots, begun.elapsed()));
        Ok(())
    }

    fn fills_of(&self, log: &Log, slots: Range<u64>) -> Result<()> {
        let keys = self.vault.seal_keys();
        let writer = SlotWriter::of_run(INCARNATION);
        let mut told = Instant::now();
        for slot in slots.clone() {
            let at = (self.vault.id(), log.id, Slot(slot));
            let object = slot_without_data(SlotKind::Fill, at, writer, keys)?;
            put(&self.slot_path(log, Slot(slot)), &object)?;
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                let (written, all) = (slot - slots.start, slots.end - slots.start);
                tell(&format!("{}: {written} of {all} fills of a thread", log.id));
            }
        }
        Ok(())
    }

    /// Writes the segment of a slot with a span for each of some volumes.
    fn segment(
        &self,
        log: &mut Log,
        ledger: &mut Ledger,
        slot: Slot,
        volumes: &[(usize, VolumeId)],
    ) -> Result<()> {
        let keys = self.vault.seal_keys();
        let checkpoint = ledger.checkpoint();
        let writer = SlotWriter { checkpoint, ..SlotWriter::of_run(INCARNATION) };
        let mut builder = SegmentBuilder::new(self.vault.id(), log.id, slot, writer, keys, 1)?;
        let mut ends = Vec::new();
        for (number, volume) in volumes {
            let place = log.volumes.get_mut(volume).context("a volume of the log")?;
            let span = self.span(&mut builder, (*number, *volume), place);
            place.committed = span.last_seq;
            place.stamp = span.stamp;
            place.newest = Some(slot);
            ends.push(SpanEnd::from(&span));
            builder.push_span(span);
        }
        let built = builder.finish()?;
        ledger.take(slot, &writer, ends);
        put(&self.slot_path(log, slot), &built.bytes())
    }

    fn span(
        &self,
        builder: &mut SegmentBuilder,
        (number, volume): (usize, VolumeId),
        place: &Place,
    ) -> Span {
        let first_seq = place.committed.next();
        let last_seq = Seq(place.committed.0 + SPAN_SEQS);
        let mut bytes = vec![0; BLOCK_BYTES];
        bytes[..16].copy_from_slice(volume.as_bytes());
        bytes[16..24].copy_from_slice(&last_seq.0.to_le_bytes());
        let chunk = builder.push_chunk(self.vault.hasher().id(&bytes), &bytes);
        let range = BlockRange { block: last_seq.0, count: 1 };
        let mut point = *volume.as_bytes();
        point[..8].copy_from_slice(&last_seq.0.to_be_bytes());
        let mark = Mark {
            point: PointId(point),
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            is_prompt: false,
            time_unix_ms: 1_700_000_000_000 + last_seq.0,
            group: MarkGroup::ALONE,
        };
        Span {
            volume,
            epoch: Epoch(EPOCHS),
            first_seq,
            last_seq,
            previous: place.newest,
            mark: (last_seq.0 / SPAN_SEQS).is_multiple_of(2).then_some(mark),
            stamp: stamp_of(number, last_seq),
            imprint: Imprint::default(),
            extents: vec![Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } }],
        }
    }

    fn slot_path(&self, log: &Log, slot: Slot) -> PathBuf {
        self.directory.join(ObjectName::slot(log.id, slot).to_string())
    }
}

/// Does each work in a thread of its own.
pub(super) fn in_threads<W: FnOnce() -> Result<()> + Send>(
    works: impl Iterator<Item = W>,
) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = works.map(|work| scope.spawn(work)).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread has died"))));
        ended.collect()
    })
}

/// The log of a shard.
pub(super) fn log_of(shard: usize) -> LogId {
    let mut id = [0x10; 16];
    id[8..].copy_from_slice(&(shard as u64).to_be_bytes());
    LogId(id)
}

fn volume_of(number: usize) -> VolumeId {
    let mut id = [0xa0; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    VolumeId(id)
}

/// Of a frame: tells the volume and the seq.
fn stamp_of(number: usize, seq: Seq) -> Stamp {
    match (u32::try_from(number + 1), u32::try_from(seq.0)) {
        (Ok(life), Ok(generation)) if generation > 0 => Stamp { life, generation },
        _ => Stamp::default(),
    }
}

pub(super) fn put(path: &Path, object: &[u8]) -> Result<()> {
    fs::write(path, object).with_context(|| format!("write {}", path.display()))
}
