//! What the vault really holds, read past every fault.

use super::Oracle;
use crate::control::volume_of;
use crate::disk::{Tag, tag_of};
use crate::store::at_once;
use crate::world::World;
use bytes::Bytes;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::{BlockRange, Epoch, ErrorKind, Seq, Slot, VolumeId};
use farshore_vault::catalog::{end_of_volume, list_points};
use farshore_vault::epoch::read_epochs;
use farshore_vault::log::LogScan;
use farshore_vault::verify::verify;
use farshore_vault::view::{Point, PointSelector, VolumeView, flatten};
use farshore_vault::{Vault, VaultError, horizon};

/// Purpose and salt of an object, if it is of a kind that carries one in its head.
pub(super) fn salt_of(bytes: &Bytes) -> Option<(&'static str, [u8; 32])> {
    let header = |kind| ObjectHeader::decode(kind, bytes).ok();
    let (header, _) = ObjectKind::ALL.into_iter().find_map(header)?;
    Some((header.place.kind.what(), header.salt))
}

/// A volume at a point, as it is read from the vault.
fn read_point(vault: &Vault, volume: VolumeId, at: Seq) -> Result<Vec<u8>, VaultError> {
    at_once(async {
        let view = VolumeView::open(vault, volume, PointSelector::Seq(at)).await?;
        let count = view.size_bytes() / BLOCK_BYTES as u64;
        Ok(flatten(&view.read(BlockRange { block: 0, count }).await?))
    })
}

/// The first block that is not as it should be.
pub(super) fn difference(bytes: &[u8], image: &[Tag]) -> Option<String> {
    if bytes.len() != image.len() * BLOCK_BYTES {
        return Some(format!("{} bytes instead of {} blocks", bytes.len(), image.len()));
    }
    let mut blocks = (0..).zip(bytes.chunks_exact(BLOCK_BYTES)).zip(image);
    blocks.find_map(|((block, bytes), tag): ((u64, _), _)| {
        (tag_of(bytes) != Some(*tag)).then(|| match tag_of(bytes) {
            Some(found) => format!("block {block} holds {found:#x} instead of {tag:#x}"),
            None => format!("block {block} holds no block's bytes instead of {tag:#x}"),
        })
    })
}

impl World {
    /// A node acked `committed`: the vault must hold it, under an epoch that counts.
    pub(super) fn judge_committed(&mut self, machine: usize, epoch: Epoch, committed: Seq) {
        let vault = self.store.direct();
        let volume = volume_of(machine);
        let end = match at_once(end_of_volume(&vault, volume)) {
            Ok(end) => end,
            Err(error) => {
                let what = format!("volume {machine}: acked committed, not readable: {error}");
                return self.oracle.violate("I1", what);
            }
        };
        if end.last_seq < committed {
            let what = format!(
                "volume {machine}: {committed} was acked committed, the vault holds {}",
                end.last_seq
            );
            self.oracle.violate("I1", what);
        }
        // An older epoch may still hear of what it put before its end, and of no more than that.
        let newer = end.epochs.iter().find(|body| body.epoch > epoch);
        if let Some(newer) = newer.filter(|newer| newer.first_seq <= committed) {
            let what = format!(
                "volume {machine}: epoch {epoch} acked {committed} committed, epoch {} begins at {}",
                newer.epoch, newer.first_seq
            );
            self.oracle.violate("I3", what);
        }
    }

    /// Compares every point of the vault with what its mark promised, newest first, at most
    /// `points_max` of each volume. With `is_damaged` an error is as good as the right bytes.
    pub fn judge_points(&mut self, points_max: usize, is_damaged: bool) {
        let vault = self.store.direct();
        for machine in 0..self.size.machines {
            let volume = volume_of(machine);
            let points = match at_once(list_points(&vault, volume)) {
                Ok(points) => points,
                Err(_) if is_damaged => {
                    self.oracle.counts.damage_found += 1;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    let what = format!("volume {machine}: its points cannot be listed: {error}");
                    return self.oracle.violate("I1", what);
                }
            };
            for point in points.iter().rev().take(points_max) {
                let read = read_point(&vault, volume, point.seq);
                self.oracle.judge_point(machine, point, read, is_damaged);
            }
        }
    }

    /// The newest point of each volume is its disk.
    pub fn judge_newest(&mut self, machine: usize, disk: &[Tag]) {
        let vault = self.store.direct();
        let newest = at_once(list_points(&vault, volume_of(machine)));
        let Some(point) = newest.ok().and_then(|points| points.last().cloned()) else {
            return self.oracle.violate("I1", format!("volume {machine} has no point"));
        };
        let is_disk = match read_point(&vault, volume_of(machine), point.seq) {
            Ok(bytes) => difference(&bytes, disk),
            Err(error) => Some(error.to_string()),
        };
        if let Some(what) = is_disk {
            let what = format!("volume {machine}: the newest point is not the disk: {what}");
            self.oracle.violate("I2", what);
        }
    }

    /// Each seq of each volume lies in one epoch's log, and nothing is missing.
    pub fn judge_epochs(&mut self) {
        let vault = self.store.direct();
        for machine in 0..self.size.machines {
            if let Err(what) = at_once(judge_volume(&vault, machine)) {
                self.oracle.violate("I3", format!("volume {machine}: {what}"));
            }
        }
    }

    /// The vault's own verification finds nothing wrong.
    pub fn judge_verify(&mut self) {
        let vault = self.store.direct();
        match at_once(verify(&vault, true, |_| ())) {
            Ok(report) => {
                if let Some(problem) = report.problems.first() {
                    let what = format!("verify finds {problem:?}");
                    self.oracle.violate("I5", what);
                }
            }
            Err(error) => self.oracle.violate("I5", format!("verify fails: {error}")),
        }
    }
}

impl Oracle {
    fn judge_point(
        &mut self,
        machine: usize,
        point: &Point,
        read: Result<Vec<u8>, VaultError>,
        is_damaged: bool,
    ) {
        self.counts.points_read += 1;
        let at = format!("volume {machine}: the point at seq {}", point.seq);
        let Some(promise) = self.streams[machine].promise(point.id).cloned() else {
            return self.violate("I5", format!("{at} was never set"));
        };
        if promise.seq != point.seq {
            let what = format!("{at} was set at seq {}", promise.seq);
            return self.violate("I2", what);
        }
        match read {
            Ok(bytes) => {
                if let Some(what) = difference(&bytes, &promise.image) {
                    let rule = if is_damaged { "I5" } else { "I2" };
                    self.violate(rule, format!("{at}: {what}"));
                }
            }
            Err(_) if is_damaged => self.counts.damage_found += 1,
            Err(error) => self.violate("I1", format!("{at} cannot be read: {error}")),
        }
    }
}

/// Reads every log of a volume on its own, without the vault's way of joining them.
async fn judge_volume(vault: &Vault, machine: usize) -> Result<(), String> {
    let volume = volume_of(machine);
    let told = |error: VaultError| error.to_string();
    let epochs = read_epochs(vault, volume).await.map_err(told)?;
    for (number, epoch) in epochs.iter().enumerate() {
        let next = epochs.get(number + 1);
        let mut expected = epoch.first_seq;
        let gone = horizon::newest(vault, epoch.log, 0).await.map_err(told)?;
        match gone.tail(volume) {
            Some(tail) if tail.epoch == epoch.epoch => expected = tail.last_seq.next(),
            // How far it came was said by slots that are gone.
            Some(tail) if tail.epoch > epoch.epoch => continue,
            _ => {}
        }
        let mut scan = LogScan::new(vault, epoch.log, Slot(0));
        while let Some((slot, segment)) = scan.next().await.map_err(told)? {
            let spans = segment.table.spans.iter();
            for span in spans.filter(|span| span.volume == volume && span.epoch == epoch.epoch) {
                if span.first_seq != expected {
                    return Err(format!(
                        "epoch {}: slot {slot} of log {} goes on at {}, {expected} is next",
                        epoch.epoch, epoch.log, span.first_seq
                    ));
                }
                expected = span.last_seq.next();
            }
        }
        if let Some(next) = next.filter(|next| next.first_seq != expected) {
            return Err(format!(
                "epoch {} ends before {expected}, epoch {} begins at {}",
                epoch.epoch, next.epoch, next.first_seq
            ));
        }
    }
    Ok(())
}
