//! Taking a volume from every writer, without being one: what a failover does before its export.
//!
//! The fence is an epoch of the volume like any other, in a log that nobody writes. Spans at or above
//! its first seq, under any epoch before it, do not count (see `chain`). So that nothing lies there
//! which a writer was acknowledged, no writer may commit any more when the end is read: either the
//! node that has the log of the newest epoch has said that it let the volume go, or that log is
//! sealed first. A seal ends the log for all volumes of its shard: if its node lives after all, it goes
//! on with a new log, and its other volumes under new epochs.

use crate::base::{VolumeBase, read_whole};
use crate::epoch::{Claim, claim_behind, newest_branch, place_of};
use crate::error::VaultError;
use crate::log::{find_whole_end, seal};
use crate::map;
use crate::vault::Vault;
use crate::view::{Point, PointSelector, VolumeView};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::epoch::{EndKind, Ended, EpochBody};
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::{Epoch, ErrorKind, LogId, Seq, Slot, Stamp, VolumeId};

/// How often somebody else may begin an epoch meanwhile.
const TRIES_MAX: usize = 4;

/// Where a volume ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEnd {
    /// The newest epoch.
    pub epoch: Epoch,
    /// The last seq that is committed.
    pub last_seq: Seq,
    /// Of the frame there: whose it is. Nothing if that is not known.
    pub stamp: Stamp,
    /// The newest point, if there is one.
    pub point: Option<Point>,
}

/// A volume that nobody writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// Where it ends, under the epoch of the fence.
    pub end: StreamEnd,
    /// The log of the writer before and the slot of its seal, unless the volume was let go.
    pub sealed: Option<(LogId, Slot)>,
}

/// Why a volume is not fenced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// The same or a newer epoch owns it: fence under a greater one.
    #[error("epoch {newest} owns volume {volume}; it must be fenced under a greater one")]
    Epoch {
        /// The volume.
        volume: VolumeId,
        /// The newest epoch.
        newest: Epoch,
    },
    /// The vault cannot be asked or written, or what it holds of the volume is damaged.
    #[error("the vault cannot be asked about volume {volume}")]
    Vault {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        #[source]
        source: Box<VaultError>,
    },
}

impl FenceError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Epoch { .. } => ErrorKind::Conflict,
            Self::Vault { source, .. } => source.kind(),
        }
    }

    /// Whether the store does not show what it must have of the stream: what it has is shown late, or lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Vault { source, .. } if source.is_lost())
    }
}

/// Finds where a volume ends and which is its newest point, by the newest map and what lies behind it.
///
/// # Errors
/// `NotFound` for a volume that the vault does not know; `Corrupt` if its stream cannot be read to
/// the end; `Unavailable`; `Limit`.
pub async fn end_of_stream(vault: &Vault, volume: VolumeId) -> Result<StreamEnd, VaultError> {
    let (epochs, under) = read_whole(vault, volume).await?;
    let of = Held { vault, volume, epochs: &epochs, under: under.as_ref() };
    let base = of.newest_map().await?;
    of.end(base, None).await
}

/// A log that is known to be filled below a slot: what a store says is missing there is not its end.
type Filled = Option<(LogId, Slot)>;

/// A volume as it was read.
struct Held<'a> {
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &'a [EpochBody],
    /// Its newest base.
    under: Option<&'a VolumeBase>,
}

impl Held<'_> {
    /// The newest map behind the base.
    async fn newest_map(&self) -> Result<Option<map::Base>, VaultError> {
        let Self { vault, volume, epochs, under } = *self;
        let (branch, latest) = (newest_branch(epochs), PointSelector::Latest);
        map::find(vault, volume, epochs, &branch, latest, &map::Avoided::new(), under).await
    }

    async fn end(&self, base: Option<map::Base>, filled: Filled) -> Result<StreamEnd, VaultError> {
        let Self { vault, volume, epochs, .. } = *self;
        let Some(newest) = epochs.last() else {
            return Err(VaultError::NoVolume { url: vault.url().to_owned(), volume });
        };
        let (last_seq, stamp, point) = match base {
            None => self.read_end(None, filled).await?,
            Some(base) => match self.read_end(Some(&base), filled).await {
                Err(error) if !error.is_unavailable() => {
                    tracing::warn!(
                        %volume, %error,
                        "cannot go on from a map; reading the logs from the start"
                    );
                    self.read_end(None, filled).await?
                }
                read => read?,
            },
        };
        Ok(StreamEnd { epoch: newest.epoch, last_seq, stamp, point })
    }

    async fn read_end(
        &self,
        base: Option<&map::Base>,
        filled: Filled,
    ) -> Result<(Seq, Stamp, Option<Point>), VaultError> {
        let Self { vault, volume, epochs, under } = *self;
        let branch = newest_branch(epochs);
        let mut chain = map::begin(vault, volume, epochs, &branch, base, under).await?;
        // Of the points that the base covers those are there that it lists.
        let is_above =
            |point: &Point| under.is_none_or(|under| !under.covers(place_of(epochs, point.seq)));
        let kept = under.and_then(|under| under.newest_on(&branch)).map(Point::from);
        let mut point = base.and_then(|base| base.point).filter(is_above).or(kept);
        if let Some((log, filled)) = filled {
            chain = chain.filled_to(log, filled);
        }
        while let Some(found) = chain.next().await? {
            point = Point::at_end(&chain.epochs()[found.epoch], &found.span).or(point);
        }
        chain.hole().await?;
        if point.is_none() && branch.base.is_some_and(|base| base.volume == volume) {
            point = self.point_of_branch().await?;
        }
        Ok((chain.last(), chain.stamp(), point))
    }

    /// The point that the newest branch goes on from, if it can be read.
    async fn point_of_branch(&self) -> Result<Option<Point>, VaultError> {
        let Self { vault, volume, .. } = *self;
        match VolumeView::open(vault, volume, PointSelector::Latest).await {
            Ok(view) => Ok(Some(*view.point())),
            Err(VaultError::NoPoint { .. }) => Ok(None),
            Err(error) if error.is_unavailable() => Err(error),
            // Where the stream ends is known all the same.
            Err(error) => {
                tracing::warn!(%volume, %error, "the point that a volume goes on from cannot be read");
                Ok(None)
            }
        }
    }

    /// A slot of the newest epoch's log before which all are filled: where its seal is looked for from.
    fn written_before(&self, base: Option<&map::Base>) -> Slot {
        let (index, last) = (self.epochs.len() - 1, &self.epochs[self.epochs.len() - 1]);
        let under = self.under.filter(|under| under.epoch() == index);
        match (base, under) {
            (Some(base), _) if base.start.epoch == index => base.start.slot.next(),
            (_, Some(under)) => under.body.slot.next(),
            // Slots in front of the epoch's first may have been on their way when it began.
            _ => Slot(last.first_slot.0.saturating_sub(PUTS_IN_FLIGHT_MAX as u64)),
        }
    }
}

/// Takes the volume from every writer, under an epoch greater than all that the vault has. Whatever a
/// writer was acknowledged lies before the fence, in every interleaving.
///
/// `let_go` is the log in which the volume gets no more by its node's own word. The log of the newest
/// epoch is sealed unless it is that one.
///
/// Calling again with the same epoch, after an error, a lost answer or a crash, gives the same answer
/// as long as no newer epoch was begun, but says a seal only once.
///
/// # Errors
/// See [`FenceError`]; `NotFound` for a volume that the vault does not know. The log may be sealed all the
/// same.
///
/// # Cancel safety
/// Dropped, it leaves open whether the volume is fenced, like an error.
pub async fn fence_volume(
    vault: &Vault,
    volume: VolumeId,
    epoch: Epoch,
    let_go: Option<LogId>,
) -> Result<Fenced, FenceError> {
    let failed = |source: VaultError| FenceError::Vault { volume, source: Box::new(source) };
    let log = log_of(volume, epoch);
    let mut newest = Epoch(0);
    let mut sealed = None;
    for _ in 0..TRIES_MAX {
        let (epochs, under) = read_whole(vault, volume).await.map_err(failed)?;
        let of = Held { vault, volume, epochs: &epochs, under: under.as_ref() };
        let Some(last) = epochs.last() else {
            return Err(failed(VaultError::NoVolume { url: vault.url().to_owned(), volume }));
        };
        newest = last.epoch;
        let is_held = last.epoch == epoch && last.log == log;
        if last.epoch >= epoch && !is_held {
            break;
        }
        let base = of.newest_map().await.map_err(failed)?;
        let from = of.written_before(base.as_ref());
        let early = if is_on(Bug::EndBeforeSeal) {
            Some(of.end(None, None).await.map_err(failed)?)
        } else {
            None
        };
        let ended = if last.log == log_of(volume, last.epoch) {
            // Nobody ever writes the log of a fence.
            Ended { kind: EndKind::Unwritten, slot: Slot(0) }
        } else if Some(last.log) == let_go {
            let end = find_whole_end(vault, last.log, from).await.map_err(failed)?;
            Ended { kind: EndKind::Word, slot: end.next }
        } else {
            let slot = seal(vault, last.log, from).await.map_err(failed)?.next;
            sealed = Some((last.log, slot));
            Ended { kind: EndKind::Seal, slot }
        };
        let filled = Some((last.log, ended.filled()));
        // Only now: what was read before the writer let go may not be the end.
        let end = match early {
            Some(early) => early,
            None => of.end(base, filled).await.map_err(failed)?,
        };
        if is_held {
            return Ok(Fenced { end, sealed });
        }
        let body = EpochBody {
            epoch,
            log,
            first_slot: Slot(0),
            first_seq: end.last_seq.next(),
            size_bytes: last.size_bytes,
            stamp: end.stamp,
            label: last.label.clone(),
            ended: Some(ended),
            base: None,
        };
        let claim = claim_behind(vault, volume, epochs.len() as u64, &body).await;
        if let Claim::Claimed { .. } = claim.map_err(failed)? {
            return Ok(Fenced { end: StreamEnd { epoch, ..end }, sealed });
        }
    }
    Err(FenceError::Epoch { volume, newest })
}

/// The log of a fence: the same for the same fence, and no other's, since logs of nodes have random
/// ids.
fn log_of(volume: VolumeId, epoch: Epoch) -> LogId {
    let mut bytes = volume.0;
    bytes[0] ^= 0xfe;
    for (byte, part) in bytes[8..].iter_mut().zip(epoch.0.to_le_bytes()) {
        *byte ^= part;
    }
    LogId(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ObjectName;
    use crate::testing::{OthersPut, World, counted};
    use crate::view::VolumeView;
    use farshore_proto::segment::SlotKind;

    /// Volume 0 with two points in log 0 under epoch 1.
    async fn written() -> World {
        let mut world = World::new(1, 2).await;
        for seed in [100, 200] {
            world.write(0, 0, 4, seed);
            world.end_span(0, true);
            world.commit(0).await;
        }
        world
    }

    /// Whatever its node still puts, and whenever: what it is acknowledged lies before the fence, what does
    /// not count it is not acknowledged.
    #[tokio::test]
    async fn what_is_acknowledged_lies_before_the_fence_in_every_interleaving() {
        let mut calls = 1;
        let mut call = 0;
        let (mut came_in, mut came_late) = (0, 0);
        while call < calls {
            // The second put of the node may arrive before the first.
            for order in [[0, 1], [1, 0]] {
                let mut world = written().await;
                let (volume, log) = (world.volumes[0].id, world.logs[0].id);
                let (store, hooks) = counted(&world.vault);
                let vault = Vault::open(&store, &world.recovery).await.unwrap();
                let mut puts = Vec::new();
                let mut points = vec![world.points[1].clone()];
                for late in order {
                    let slot = world.logs[0].next;
                    world.write(0, 9, 1, 300);
                    world.end_span(0, true);
                    let file = world.file(&ObjectName::slot(log, slot));
                    let bytes = world.build(0).to_vec();
                    puts.push(OthersPut { call: call + late, file, bytes, won: None });
                    points.push(world.points.last().unwrap().clone());
                }
                hooks.others_put(puts);
                let fenced = fence_volume(&vault, volume, Epoch(5), None).await.unwrap();
                let (made, puts) = hooks.what_others_put();
                calls = calls.max(made);
                let won = puts.iter().take_while(|put| put.won == Some(true)).count();
                let (acked, end) = (points[won].clone(), &fenced.end);
                assert!(end.last_seq >= acked.seq, "call {call}: {acked:?} was acked, {fenced:?}");
                assert_eq!(end_of_stream(&world.vault, volume).await.unwrap(), *end);
                let view = VolumeView::open(&world.vault, volume, PointSelector::Latest);
                assert_eq!(view.await.unwrap().point().id, end.point.unwrap().id);
                assert_eq!(fenced.sealed.map(|(sealed, _)| sealed), Some(log));
                came_in += usize::from(won > 0);
                came_late += usize::from(puts.iter().any(|put| put.won == Some(false)));
            }
            call += 1;
        }
        assert!(came_in > 0 && came_late > 0, "{came_in} {came_late}");
    }

    /// The seal of a log is for a node that does not say that it let the volume go.
    #[tokio::test]
    async fn what_was_let_go_is_fenced_without_a_seal() {
        let mut world = written().await;
        let (volume, log) = (world.volumes[0].id, world.logs[0].id);
        let fenced = fence_volume(&world.vault, volume, Epoch(5), Some(log)).await.unwrap();
        assert_eq!(fenced.sealed, None);
        assert_eq!(fenced.end.last_seq, Seq(4));
        // The other volumes of the log go on in it.
        let slot = world.commit(0).await;
        let put = crate::log::read_segment(&world.vault, log, slot).await.unwrap();
        assert_eq!(put.header().kind, SlotKind::Segment);
        let again = fence_volume(&world.vault, volume, Epoch(5), None).await.unwrap();
        assert_eq!(again, fenced, "as after a lost answer; the log of a fence needs no seal");
        // A word about another log than the vault's newest epoch is in says nothing.
        let mut world = written().await;
        world.claim(0, 1).await;
        let other = world.logs[0].id;
        let fenced = fence_volume(&world.vault, volume, Epoch(5), Some(other)).await.unwrap();
        assert_eq!(fenced.sealed, Some((world.logs[1].id, Slot(0))));
    }

    #[tokio::test]
    async fn an_epoch_that_is_not_the_newest_fences_nothing() {
        let mut world = written().await;
        world.claim(0, 0).await;
        let volume = world.volumes[0].id;
        for epoch in [1, 2] {
            let error = fence_volume(&world.vault, volume, Epoch(epoch), None).await.unwrap_err();
            assert!(matches!(error, FenceError::Epoch { newest: Epoch(2), .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Conflict);
        }
        let error = fence_volume(&world.vault, VolumeId([9; 16]), Epoch(1), None).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}
