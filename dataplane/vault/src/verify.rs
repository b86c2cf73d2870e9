//! Checking a vault: that every volume's stream joins, every reference resolves and, if asked to
//! read the data, every frame opens and every chunk has its id.
//!
//! A problem is named by object and offset and does not stop the run. Each log is read once, in slot
//! order; memory grows with volumes and epochs, not with segments. Maps are compared, if asked to read
//! the data, by reading the logs of their volume once more; that takes memory for its block map.

mod bases;
mod checkpoints;
mod data;
mod horizons;
mod kept;
mod keys;
mod machines;
mod maps;
mod references;
mod register;
mod revisions;
mod streams;

use crate::base::{Ground, read_ground, read_whole};
use crate::catalog::{log_ids, volume_ids};
use crate::chunks::ChunkReader;
use crate::epoch::{Known, read_epochs};
use crate::error::VaultError;
use crate::horizon;
use crate::layout::{Folder, ObjectName, ordinal_of, slot_of};
use crate::limits::PROBLEMS_MAX;
use crate::log::{Behind, LogScan, OpenSegment, ScanEnd, is_filled};
use crate::map;
use crate::runs;
use crate::store::StoreError;
use crate::vault::Vault;
use checkpoints::Checkpoints;
use farshore_proto::epoch::EpochBody;
use farshore_proto::group::GroupBody;
use farshore_proto::machine::MachineBody;
use farshore_proto::segment::ChunkPlace;
use farshore_proto::{LogId, Slot, VolumeId};
use futures::TryStreamExt;
use kept::Kept;
use register::Applied;
use std::collections::BTreeMap;
use std::sync::Arc;
use streams::{Strange, Streams};

pub use crate::chain::Hole;

/// Something that is wrong in a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: ObjectName,
    /// Where in the object, in bytes.
    pub offset: u64,
    /// What is wrong, in one sentence.
    pub what: String,
}

/// What a verification has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Volumes whose epochs open.
    pub volumes: u64,
    /// Recovery points whose stream joins up to them.
    pub points: u64,
    /// Those of them that are fuzzy: the disk was scanned while it was written.
    pub scan_points: u64,
    /// Those of them that lack blocks which the agent could not read.
    pub unknown_points: u64,
    /// Segments whose tables open; void ones are not counted.
    pub segments: u64,
    /// Frames: those that opened if the data was read, else those that the tables name.
    pub frames: u64,
    /// Chunks: those that have their id if the data was read, else those that the tables hold.
    pub chunks: u64,
    /// Maps that open.
    pub maps: u64,
    /// Those of them that could not be compared with the logs.
    pub maps_not_compared: u64,
    /// Bases of volumes that open.
    pub bases: u64,
    /// Checkpoints of logs that open.
    pub checkpoints: u64,
    /// Horizons of logs that open.
    pub horizons: u64,
    /// Entries of the register that open.
    pub register_entries: u64,
    /// Revisions of the vault that open.
    pub revisions: u64,
    /// Machines whose newest revision opens.
    pub machines: u64,
    /// Groups whose newest revision opens.
    pub groups: u64,
    /// Index runs that open.
    pub index_runs: u64,
    /// Bytes of objects that were read.
    pub read_bytes: u64,
    /// What is wrong; at most `PROBLEMS_MAX`.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub problems_left_out: u64,
    /// Missing slots that a crash of the writer explains; its next run fills them.
    pub holes: Vec<Hole>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }

    fn add(&mut self, object: ObjectName, offset: u64, what: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { object, offset, what: what.into() });
        } else {
            self.problems_left_out += 1;
        }
    }

    /// Adds an error as a problem of `object`, unless the store could not be asked.
    fn add_error(&mut self, object: ObjectName, error: VaultError) -> Result<(), VaultError> {
        if error.is_unavailable() {
            return Err(error);
        }
        match error {
            VaultError::Damaged { object, offset, cause, .. } => {
                self.add(object, offset, cause.to_string());
            }
            VaultError::Store(StoreError::TooLarge { object, bytes, max, .. }) => {
                let what = format!("has {bytes} bytes, at most {max} are legal");
                self.add(ObjectName::given(&object), 0, what);
            }
            VaultError::LostNumber { object, later, .. } => {
                self.add(object, 0, format!("is missing although {later} exists"));
            }
            VaultError::Version { object, cause, .. } => self.add(object, 0, cause.to_string()),
            VaultError::Key { object, cause, .. } => self.add(object, 0, cause.to_string()),
            VaultError::Lost { object, user, .. } => {
                self.add(object, 0, format!("is missing; {user} refers to it"));
            }
            VaultError::Map { object, .. } => {
                self.add(object, 0, "contradicts the rest of its map or the epochs of its volume");
            }
            VaultError::EpochOrder { object, .. } => {
                self.add(object, 0, "is not of a later epoch than the one before it");
            }
            error => self.add(object, 0, error.to_string()),
        }
        Ok(())
    }
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Segments read.
    pub segments: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Problems found.
    pub problems: u64,
}

/// Verifies a vault. `progress` is called now and then, from this task.
///
/// # Errors
/// Only if the store cannot be asked (`Unavailable`, `Invalid`) or a listing is over its limit;
/// what is wrong with objects is in the report.
pub async fn verify(
    vault: &Vault,
    read_data: bool,
    mut progress: impl FnMut(VerifyProgress) + Send,
) -> Result<Report, VaultError> {
    let mut run = Run {
        vault,
        read_data,
        reader: ChunkReader::new(vault, ObjectName::vault()),
        report: Report::default(),
        streams: Streams::default(),
        applied: Applied::default(),
        kept: Kept::default(),
        floors: crate::register::floors(vault).await?,
    };
    keys::check(vault, &mut run.report).await?;
    run.report.revisions = revisions::check(vault, &mut run.report).await?;
    run.read_volumes().await?;
    let mut logs = log_ids(vault).await?;
    // A log that is gone as a whole is not listed.
    logs.extend(run.streams.logs());
    logs.sort_unstable();
    logs.dedup();
    for log in logs {
        run.check_log(log, &mut progress).await?;
    }
    run.check_strange().await?;
    run.check_derived().await?;
    run.report.register_entries =
        register::check(vault, std::mem::take(&mut run.applied), &mut run.report).await?;
    run.report.machines = machines::check::<MachineBody>(vault, &mut run.report).await?;
    run.report.groups = machines::check::<GroupBody>(vault, &mut run.report).await?;
    let Run { mut report, streams, .. } = run;
    streams.finish(&mut report);
    Ok(report)
}

struct Run<'a> {
    vault: &'a Vault,
    read_data: bool,
    reader: ChunkReader,
    report: Report,
    streams: Streams,
    applied: Applied,
    kept: Kept,
    /// Of logs, read before their horizons.
    floors: BTreeMap<LogId, Slot>,
}

impl Run<'_> {
    async fn read_volumes(&mut self) -> Result<(), VaultError> {
        for volume in volume_ids(self.vault).await? {
            let last = self.last_listed_epoch(volume).await?;
            let Ground { known, base } = read_ground(self.vault, volume).await?;
            let Known { epochs, broken } = known;
            if let Some(error) = broken {
                self.streams.add_unreadable(volume);
                self.report.add_error(ObjectName::epoch(volume, 1), error)?;
                continue;
            }
            let held = epochs.len() as u64;
            if let Some(last) = last.filter(|last| *last > held) {
                let missing = ObjectName::epoch(volume, held + 1);
                let what = format!("is missing although epoch object {last} exists");
                self.report.add(missing, 0, what);
            }
            bases::check(self.vault, volume, base.as_ref(), &epochs, &mut self.report).await?;
            if !epochs.is_empty() {
                self.report.volumes += 1;
                self.streams.add(volume, epochs, base.as_ref());
            }
        }
        Ok(())
    }

    async fn last_listed_epoch(&self, volume: VolumeId) -> Result<Option<u64>, VaultError> {
        let mut last = None;
        let mut listing = self.vault.store().list(Folder::Epochs(volume));
        while let Some(object) = listing.try_next().await? {
            last = last.max(ordinal_of(&object.name));
        }
        Ok(last)
    }

    async fn check_log(
        &mut self,
        log: LogId,
        progress: &mut (impl FnMut(VerifyProgress) + Send),
    ) -> Result<(), VaultError> {
        let vault = self.vault;
        let horizon = match horizon::newest(vault, log, 0).await {
            Ok(horizon) => horizon,
            // Where to begin is not known then.
            Err(error) => return self.report.add_error(ObjectName::horizon(log, 1), error),
        };
        horizons::check(vault, log, (&horizon, &self.floors), &mut self.report).await?;
        self.kept.horizons.insert(log, horizon.slot());
        let mut checkpoints = Checkpoints::list(vault, log, &horizon).await?;
        let mut scan = LogScan::new(vault, log, Slot(0)).above(horizon).naming_all();
        loop {
            let (slot, mut segment) = match scan.next().await {
                Ok(Some(found)) => found,
                Ok(None) => break,
                // What was said of the log may not be so.
                Err(error @ VaultError::Passed { .. }) => return Err(error),
                // The error names the slot.
                Err(error) => {
                    checkpoints.miss();
                    self.report.add_error(ObjectName::slot(log, Slot(0)), error)?;
                    continue;
                }
            };
            checkpoints.take(slot, &segment, &mut self.report).await?;
            self.applied.take(segment.header().writer.register, &ObjectName::slot(log, slot));
            for span in std::mem::take(&mut segment.table.spans) {
                self.streams.take(log, slot, &span, &mut self.report);
            }
            let segment = Arc::new(segment);
            self.reader.keep(Arc::clone(&segment));
            self.check_segment(log, slot, &segment).await?;
            let Report { segments, read_bytes, problems, .. } = &self.report;
            progress(VerifyProgress {
                segments: *segments,
                read_bytes: *read_bytes,
                problems: problems.len() as u64,
            });
        }
        if let Some(end) = scan.end() {
            self.streams.log_ends(log, end, &mut self.report);
        }
        if let Some(ScanEnd::Missing(slot) | ScanEnd::Sealed(slot)) = scan.end() {
            checkpoints.finish(slot, &mut self.report).await?;
        }
        match scan.end() {
            Some(ScanEnd::Missing(slot)) => self.check_end(log, slot).await,
            _ => Ok(()),
        }
    }

    async fn check_segment(
        &mut self,
        log: LogId,
        slot: Slot,
        segment: &Arc<OpenSegment>,
    ) -> Result<(), VaultError> {
        self.report.segments += 1;
        references::check(&self.reader, log, slot, segment, &mut self.report).await?;
        if self.read_data {
            return data::check(self.vault, log, slot, segment, &mut self.report).await;
        }
        let is_here = |place: &ChunkPlace| matches!(place, ChunkPlace::Here { .. });
        let chunks = segment.table.chunks.iter().filter(|chunk| is_here(&chunk.place)).count();
        self.report.frames += segment.frames.len() as u64;
        self.report.chunks += chunks as u64;
        self.report.read_bytes += segment.header().frames_offset();
        Ok(())
    }

    /// Names spans without an epoch object, unless it was made since the epochs were read.
    async fn check_strange(&mut self) -> Result<(), VaultError> {
        for ((volume, epoch), Strange { log, slot }) in self.streams.take_strange() {
            let name = ObjectName::slot(log, slot);
            let epochs = match read_epochs(self.vault, volume).await {
                Ok(epochs) => epochs,
                Err(error) => {
                    self.report.add_error(name, error)?;
                    continue;
                }
            };
            let is_explained = |body: &EpochBody| {
                body.epoch == epoch && body.log == log && body.first_slot <= slot
            };
            if epochs.iter().any(is_explained) {
                continue;
            }
            // The list of epochs is read up to the first that is missing, so only the newest can be
            // missing without a trace in it.
            if epochs.last().is_none_or(|last| last.epoch < epoch) {
                let missing = ObjectName::epoch(volume, epochs.len() as u64 + 1);
                let what = format!("is missing: {name} holds epoch {epoch} of the volume");
                self.report.add(missing, 0, what);
            } else {
                let what = format!(
                    "holds epoch {epoch} of volume {volume}, which no epoch object puts there"
                );
                self.report.add(name, 0, what);
            }
        }
        Ok(())
    }

    /// Opens maps and index runs: nothing needs them, but they should be whole.
    async fn check_derived(&mut self) -> Result<(), VaultError> {
        for volume in volume_ids(self.vault).await? {
            // Maps first: one of an epoch that begins meanwhile would seem to contradict the epochs.
            let seqs = map::list(self.vault, volume).await?;
            // Epochs that do not open were named before.
            let (epochs, base) = match read_whole(self.vault, volume).await {
                Err(error) if error.is_unavailable() => return Err(error),
                read => read.unwrap_or_default(),
            };
            let of = (volume, &epochs[..], base.as_ref());
            maps::check(self.vault, of, seqs, self.read_data, &mut self.report).await?;
            if let Some(base) = base.filter(|_| self.read_data) {
                let of = (self.vault, &epochs[..], &base);
                self.kept.check(&self.reader, of, &mut self.report).await?;
            }
        }
        for run in runs::list(self.vault, None).await? {
            match runs::open(self.vault, run).await {
                Ok(said) => {
                    self.report.index_runs += 1;
                    self.applied.take(said.applied, &ObjectName::index_run(run));
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => self.report.add_error(ObjectName::index_run(run), error)?,
            }
        }
        Ok(())
    }

    /// Looks at what is listed behind the end of a log.
    async fn check_end(&mut self, log: LogId, slot: Slot) -> Result<(), VaultError> {
        let mut last = None;
        let mut listing = self.vault.store().list(Folder::Log(log));
        while let Some(object) = listing.try_next().await? {
            last = last.max(slot_of(&object.name));
        }
        drop(listing);
        let Some(last) = last.filter(|last| *last > slot) else { return Ok(()) };
        let is_lost = match Behind::look(self.vault, log, slot).await {
            // The log has grown since.
            Ok(Behind::Moved) => return Ok(()),
            Ok(Behind::Lost { .. }) => true,
            // What is listed and was not looked at is too far behind for any crash.
            Ok(Behind::End { filled }) if filled.keys().next_back() < Some(&last) => {
                if is_filled(self.vault, log, slot).await? {
                    return Ok(());
                }
                true
            }
            Ok(Behind::End { .. }) => false,
            Err(error) if error.is_unavailable() => return Err(error),
            Err(_) => true,
        };
        if is_lost {
            let what = format!("is missing although slot {last} exists: segments are lost");
            self.report.add(ObjectName::slot(log, slot), 0, what);
        } else {
            self.report.holes.push(Hole { log, slot, later: last });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
