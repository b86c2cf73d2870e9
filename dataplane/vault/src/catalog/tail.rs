//! The marks of a volume from the end of its stream backwards, by its maps: what it costs is what is asked for, not the
//! volume's history. A map names the newest mark at or before its place, so that it is known what was not read.

use super::{Marked, kept_marks, read_marks};
use crate::base::{Ground, VolumeBase, read_ground};
use crate::chain::{Chain, Hole};
use crate::epoch::{Branch, Known, first_branch, place_of};
use crate::error::VaultError;
use crate::limits::MAP_TRIES_MAX;
use crate::map::{self, Avoided, Base};
use crate::vault::Vault;
use crate::view::PointSelector;
use farshore_proto::epoch::EpochBody;
use farshore_proto::{Epoch, ErrorKind, PointId, Seq, VolumeId};

/// The newest marks of a volume, as far back as they were read.
#[derive(Debug)]
pub(crate) struct MarkTail {
    volume: VolumeId,
    epochs: Vec<EpochBody>,
    /// Epochs that are known to the end.
    bounded: usize,
    /// The volume's newest base, while what it lists is not among the marks.
    under: Option<VolumeBase>,
    /// Maps in front of what was read, in order.
    maps: Vec<map::Name>,
    /// The map that reading began behind; none if nothing lies in front of what was read, or that cannot be read.
    base: Option<Base>,
    marks: Vec<Marked>,
    broken: Option<VaultError>,
    hole: Option<Hole>,
}

impl MarkTail {
    /// Reads what lies behind the newest map; nothing of a volume that the vault does not know.
    ///
    /// # Errors
    /// `Unavailable`; `Limit`.
    pub(crate) async fn open(vault: &Vault, volume: VolumeId) -> Result<Self, VaultError> {
        let Ground { known, base: under } = read_ground(vault, volume).await?;
        let bounded = known.bounded();
        let Known { epochs, broken } = known;
        let (maps, base, marks, hole) = (Vec::new(), None, Vec::new(), None);
        let mut tail = Self { volume, epochs, bounded, under, maps, base, marks, broken, hole };
        if tail.bounded == 0 {
            return Ok(tail);
        }
        tail.maps = match map::list(vault, volume).await {
            Ok(names) => {
                let is_above = |name: &map::Name| map::is_above(tail.under.as_ref(), *name);
                names.into_iter().filter(is_above).collect()
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                tracing::warn!(%volume, %error, "maps cannot be listed; the logs are read instead");
                Vec::new()
            }
        };
        tail.base = tail.map_below(vault, Seq(u64::MAX)).await?;
        let end = match tail.chain(vault).await {
            Ok(mut chain) => read_marks(&mut chain, bounded, Seq(u64::MAX), &mut tail.marks).await,
            Err(error) => Err(error),
        };
        tail.reach_base();
        match end {
            Ok(hole) => tail.hole = hole,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tail.broken.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
        Ok(tail)
    }

    /// The marks that were read, in order.
    pub(crate) fn marks(&self) -> &[Marked] {
        &self.marks
    }

    /// The place of the newest mark in front of them; none if there is none, or what lies there cannot be read.
    pub(crate) fn before(&self) -> Option<(Epoch, Seq)> {
        let point = self.base.as_ref()?.point?;
        Some((point.epoch, point.seq))
    }

    /// Why there may be more marks than were read, behind them or in front.
    pub(crate) fn into_broken(self) -> Option<VaultError> {
        self.broken
    }

    /// A missing slot at the end of the stream, if later ones exist.
    pub(crate) fn hole(&self) -> Option<Hole> {
        self.hole
    }

    /// Reads further back: the mark right in front of those that were read is among them then, if there is one.
    ///
    /// # Errors
    /// `Unavailable`; `Limit`.
    pub(crate) async fn extend(&mut self, vault: &Vault) -> Result<(), VaultError> {
        let Some((_, to)) = self.before() else { return Ok(()) };
        let newer = self.base.take().map(|base| base.object(self.volume));
        self.base = self.map_below(vault, to).await?;
        let mut marks = Vec::new();
        let end = match self.chain(vault).await {
            Ok(mut chain) => read_marks(&mut chain, self.bounded, to, &mut marks).await,
            Err(error) => Err(error),
        };
        let end = end.and_then(|_| match (newer, marks.last()) {
            (Some(object), last) if last.is_none_or(|last| last.point.seq < to) => {
                Err(VaultError::Map { url: vault.url().to_owned(), object })
            }
            _ => Ok(()),
        });
        match end {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                // What lies further back does not join what was read.
                self.base = None;
                self.broken.get_or_insert(error);
                self.reach_base();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        marks.append(&mut self.marks);
        self.marks = marks;
        self.reach_base();
        Ok(())
    }

    /// Takes the points that the volume's base lists, once no mark lies between it and what was read.
    fn reach_base(&mut self) {
        if self.before().is_none()
            && let Some(under) = self.under.take()
        {
            let mut marks = kept_marks(&under, self.bounded);
            marks.append(&mut self.marks);
            self.marks = marks;
        }
    }

    /// Reads on from the map that reading begins behind, or from the first epoch.
    async fn chain<'a>(&self, vault: &'a Vault) -> Result<Chain<'a>, VaultError> {
        let (base, under) = (self.base.as_ref(), self.under.as_ref());
        chain_from(vault, self.volume, &self.epochs, base, under).await
    }

    /// The newest map below a seq that can be used.
    async fn map_below(&mut self, vault: &Vault, below: Seq) -> Result<Option<Base>, VaultError> {
        let (mut tries, first) = (MAP_TRIES_MAX, first_branch(&self.epochs));
        while let Some(name) = self.maps.pop() {
            if name.0.seq >= below {
                continue;
            }
            let found = map::load(vault, self.volume, &self.epochs, name).await;
            match found.map(|base| above(base, &self.epochs, self.under.as_ref())) {
                // Where its epoch ends is not known.
                Ok(base) if base.start.epoch >= self.bounded => {}
                // It is of no mark of its branch; older ones may have some.
                Ok(base) if base.point.is_none() && !first.has(base.start.epoch) => {}
                Ok(base) => return Ok(Some(base)),
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => {
                    map::warn_of(self.volume, name, &error);
                    tries -= 1;
                    if tries == 0 {
                        self.maps.clear();
                    }
                }
            }
        }
        Ok(None)
    }
}

/// A map, without the point that it names if that is not above the volume's base: whether it is there the base says.
fn above(map: Base, epochs: &[EpochBody], under: Option<&VolumeBase>) -> Base {
    let is_covered = |seq: Seq| under.is_some_and(|under| under.covers(place_of(epochs, seq)));
    Base { point: map.point.filter(|point| !is_covered(point.seq)), ..map }
}

async fn chain_from<'a>(
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    base: Option<&Base>,
    under: Option<&VolumeBase>,
) -> Result<Chain<'a>, VaultError> {
    map::begin(vault, volume, epochs, &Branch::ALL, base, under).await
}

/// The mark with an id, where the maps say that it must be: ids are ordered by time. None if it is not there, or
/// something on the way is damaged: only who reads the whole stream knows more.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub(crate) async fn find_mark(
    vault: &Vault,
    volume: VolumeId,
    id: PointId,
) -> Result<Option<Marked>, VaultError> {
    match look_for(vault, volume, id).await {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        found => found,
    }
}

async fn look_for(
    vault: &Vault,
    volume: VolumeId,
    id: PointId,
) -> Result<Option<Marked>, VaultError> {
    let Ground { known, base: under } = read_ground(vault, volume).await?;
    let (under, bounded) = (under.as_ref(), known.bounded());
    let Known { epochs, .. } = known;
    if bounded == 0 {
        return Ok(None);
    }
    if let Some(kept) = under.and_then(|under| under.kept(id)) {
        return Ok(Some(Marked::from(kept)));
    }
    let avoided = Avoided::new();
    let selector = PointSelector::Point(id);
    let all = &Branch::ALL;
    let base = map::find(vault, volume, &epochs, all, selector, &avoided, under).await?;
    let mut base = base.map(|base| above(base, &epochs, under));
    if let Some(point) = base.as_ref().and_then(|base| base.point).filter(|point| point.id == id) {
        // The map is at it, or behind it.
        let below = PointSelector::Seq(Seq(point.seq.0.saturating_sub(1)));
        base = map::find(vault, volume, &epochs, all, below, &avoided, under).await?;
    }
    if base.as_ref().is_some_and(|base| base.start.epoch >= bounded) {
        return Ok(None);
    }
    let mut chain = chain_from(vault, volume, &epochs, base.as_ref(), under).await?;
    while let Some(found) = chain.next().await?.filter(|found| found.epoch < bounded) {
        let Some(marked) = Marked::of(&chain, &found) else { continue };
        if marked.point.id >= id {
            return Ok(Some(marked).filter(|marked| marked.point.id == id));
        }
    }
    Ok(None)
}
