//! Opening a volume at a point: which of its branches the point is on, the newest map there that can be used, and the
//! stream behind that.

use super::{Build, Image, LayerError, Point, PointSelector};
use crate::base::{Ground, VolumeBase, read_ground};
use crate::chain::Hole;
use crate::chunks::ChunkReader;
use crate::epoch::{Branch, branches, place_of};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{BASES_MAX, MAP_TRIES_MAX};
use crate::map::{self, Avoided, Base, Layer, open_layers};
use crate::vault::Vault;
use farshore_proto::base::KeptPoint;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::epoch::{EpochBase, EpochBody};
use farshore_proto::{PointId, Seq, VolumeId};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;

/// What a branch of a volume begins with: nothing, or the image of a point.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    /// What it holds.
    pub(crate) image: Option<Arc<Image>>,
    /// The size of that.
    pub(crate) size_bytes: u64,
}

/// What opening a view found.
pub(super) struct Opened {
    pub(super) image: Image,
    pub(super) point: Point,
    pub(super) hole: Option<Hole>,
}

/// A volume's stream, to be read to a point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub(crate) reader: &'a ChunkReader,
    pub(crate) volume: VolumeId,
    pub(crate) epochs: &'a [EpochBody],
    /// Epochs that are known to the end.
    pub(crate) bounded: usize,
    /// The volume's newest base.
    pub(crate) base: Option<&'a VolumeBase>,
    /// Bases of epochs that led here.
    pub(crate) depth: usize,
}

impl Stream<'_> {
    /// Opens by the newest map that can be used; what cannot is added to `avoided`.
    pub(super) async fn open(
        &self,
        selector: PointSelector,
        avoided: &mut Avoided,
    ) -> Result<Opened, VaultError> {
        if let Some(found) = self.open_covered(selector, avoided).await {
            return found;
        }
        let branches = branches(self.epochs);
        let on = match selector {
            PointSelector::Seq(seq) => {
                let at = place_of(self.epochs, seq);
                branches.iter().rposition(|branch| (branch.first as u64) < at.ordinal)
            }
            PointSelector::Latest | PointSelector::Point(_) => branches.len().checked_sub(1),
        };
        let mut on = on.unwrap_or(0);
        let mut newer = None;
        loop {
            let error = match self.open_on(&branches[on], selector, avoided).await {
                Ok(opened) => return Ok(opened),
                Err(error) if error.is_passing() => return Err(error),
                Err(error) => error,
            };
            match (error, selector) {
                // Ids do not say on which branch a point is; what is wrong with one is nothing to the older ones.
                (error, PointSelector::Point(_)) => {
                    let is_absent = matches!(error, VaultError::PointNotFound { .. });
                    newer = newer.or((!is_absent).then_some(error));
                    // Of branches in front of the base's only points are there that it lists.
                    if on == 0 || self.base.is_some_and(|base| base.is_on(&branches[on])) {
                        return Err(newer.unwrap_or_else(|| self.absent(selector)));
                    }
                    on -= 1;
                }
                (error @ VaultError::NoPoint { .. }, PointSelector::Latest) => {
                    let base = self.base.filter(|base| base.is_on(&branches[on]));
                    let kept = base.and_then(|base| Some((base, base.newest_on(&branches[on])?)));
                    return match kept {
                        Some((base, kept)) => self.open_kept(base, kept, avoided).await,
                        None => self.open_base(&branches[on], avoided, error).await,
                    };
                }
                (error, _) => return Err(error),
            }
        }
    }

    /// The newest point of a branch that has none: the one that it goes on from, if that is of this volume.
    async fn open_base(
        &self,
        branch: &Branch,
        avoided: &mut Avoided,
        error: VaultError,
    ) -> Result<Opened, VaultError> {
        match branch.base.filter(|base| base.volume == self.volume) {
            Some(base) => self.at_base(branch, base, avoided).await,
            None => Err(error),
        }
    }

    /// Opens the point that a branch goes on from.
    fn at_base<'a>(
        &'a self,
        branch: &'a Branch,
        base: EpochBase,
        avoided: &'a mut Avoided,
    ) -> BoxFuture<'a, Result<Opened, VaultError>> {
        async move {
            let vault = self.reader.vault();
            let broken = |cause: Option<VaultError>| VaultError::EpochBase {
                url: vault.url().to_owned(),
                object: ObjectName::epoch(self.volume, branch.first as u64 + 1),
                base,
                cause: cause.map(Box::new),
            };
            let is_own = base.volume == self.volume;
            if self.depth >= BASES_MAX || is_own && base.at.ordinal > branch.first as u64 {
                return Err(broken(None));
            }
            let other = match is_own {
                true => None,
                false => Some(read_ground(vault, base.volume).await?),
            };
            let (epochs, bounded, under) = match &other {
                None => (self.epochs, self.bounded, self.base),
                Some(Ground { known, base }) => (&known.epochs[..], known.bounded(), base.as_ref()),
            };
            let (volume, depth) = (base.volume, self.depth + 1);
            let stream =
                Stream { reader: self.reader, volume, epochs, bounded, base: under, depth };
            if epochs.is_empty() {
                return Err(broken(other.and_then(|ground| ground.known.broken)));
            }
            match stream.open(PointSelector::Seq(base.at.seq), avoided).await {
                Ok(opened) => {
                    let ordinal = epochs.partition_point(|body| body.epoch < opened.point.epoch);
                    let fits = opened.point.size_bytes <= self.epochs[branch.first].size_bytes;
                    // Others may have taken its place in the stream after a loss.
                    let is_that = opened.point.id == base.point;
                    let is_there = is_that && ordinal as u64 + 1 == base.at.ordinal;
                    if is_there && fits { Ok(opened) } else { Err(broken(None)) }
                }
                Err(error) if error.is_passing() => Err(error),
                Err(error) => Err(broken(Some(error))),
            }
        }
        .boxed()
    }

    /// What a branch begins with.
    pub(crate) async fn origin(
        &self,
        branch: &Branch,
        avoided: &mut Avoided,
    ) -> Result<Origin, VaultError> {
        let Some(base) = branch.base else { return Ok(Origin::default()) };
        let Opened { image, point, .. } = self.at_base(branch, base, avoided).await?;
        Ok(Origin { image: Some(Arc::new(image)), size_bytes: point.size_bytes })
    }

    /// Opens a point at or below the volume's base, which is kept or is not there any more; nothing where the base does not say.
    async fn open_covered(
        &self,
        selector: PointSelector,
        avoided: &Avoided,
    ) -> Option<Result<Opened, VaultError>> {
        let base = self.base?;
        let kept = match selector {
            PointSelector::Latest => None,
            PointSelector::Point(id) => base.kept(id),
            PointSelector::Seq(seq) => {
                let at = place_of(self.epochs, seq);
                if base.covers(at) && base.body.kept_at(at).is_none() {
                    return Some(Err(self.absent(selector)));
                }
                base.body.kept_at(at)
            }
        };
        Some(self.open_kept(base, kept?, avoided).await)
    }

    /// Opens a point that a base lists, by its own map alone.
    async fn open_kept(
        &self,
        base: &VolumeBase,
        kept: &KeptPoint,
        avoided: &Avoided,
    ) -> Result<Opened, VaultError> {
        let (vault, name, point) = (self.reader.vault(), (kept.at, kept.map), Point::from(kept));
        let unreadable = |cause| map::unreadable(vault, base, name, cause);
        let map = if name == base.map() {
            map::of_base(vault, self.epochs, base).await?
        } else {
            let map = map::load(vault, self.volume, self.epochs, name).await;
            map.map_err(|error| unreadable(Some(error)))?
        };
        if map.own_point() != Some(point) || map.is_of(avoided) {
            return Err(unreadable(None));
        }
        let layers = self.layers_of(base, &map, &[]).await?;
        Ok(Opened { image: Image::whole(Arc::default(), layers), point, hole: None })
    }

    /// The layers of a map that a base names.
    pub(crate) async fn layers_of(
        &self,
        base: &VolumeBase,
        map: &Base,
        opened: &[Arc<Layer>],
    ) -> Result<Vec<Arc<Layer>>, VaultError> {
        let (vault, known, user) =
            (self.reader.vault(), &map.manifest.layers, map.object(self.volume));
        let layers = open_layers(vault, self.volume, known, &user, opened).await;
        layers.map_err(|failed| map::unreadable(vault, base, map.name, Some(failed.error)))
    }

    /// The map of the volume's base, where that is on a branch: what reading a branch begins with if no newer one can be used.
    pub(crate) async fn ground(
        &self,
        branch: &Branch,
        avoided: &Avoided,
    ) -> Result<Option<(&VolumeBase, Base)>, VaultError> {
        let Some(base) = self.base.filter(|base| base.is_on(branch)) else { return Ok(None) };
        let vault = self.reader.vault();
        let map = map::of_base(vault, self.epochs, base).await?;
        if map.is_of(avoided) {
            return Err(map::unreadable(vault, base, base.map(), None));
        }
        Ok(Some((base, map)))
    }

    /// The same, with its layers, and without a point that the base covers.
    async fn opened_ground(
        &self,
        branch: &Branch,
        opened: &[Arc<Layer>],
        avoided: &Avoided,
    ) -> Result<Option<(Base, Vec<Arc<Layer>>)>, VaultError> {
        let Some((base, map)) = self.ground(branch, avoided).await? else { return Ok(None) };
        let layers = self.layers_of(base, &map, opened).await?;
        Ok(Some((self.above(map), layers)))
    }

    /// That a point is not there: never was, or, where there is a base, perhaps is not any more.
    fn absent(&self, selector: PointSelector) -> VaultError {
        let (vault, volume) = (self.reader.vault(), self.volume);
        let may_be_gone = |base: &&VolumeBase| match selector {
            PointSelector::Latest => false,
            PointSelector::Point(_) => true,
            PointSelector::Seq(seq) => base.covers(place_of(self.epochs, seq)),
        };
        match self.base.filter(may_be_gone) {
            Some(base) => VaultError::PointGone {
                url: vault.url().to_owned(),
                volume,
                point: selector,
                object: base.object(),
            },
            None => not_found(vault, volume, selector, None),
        }
    }

    /// Epochs up to the end of a branch that are known to the end.
    fn bounded_in(&self, branch: &Branch) -> usize {
        branch.end.map_or(self.bounded, |end| end.min(self.bounded))
    }

    /// Opens a point of a branch.
    async fn open_on(
        &self,
        branch: &Branch,
        selector: PointSelector,
        avoided: &mut Avoided,
    ) -> Result<Opened, VaultError> {
        let (vault, volume) = (self.reader.vault(), self.volume);
        let bounded = self.bounded_in(branch);
        let mut failed: Option<(Seq, VaultError)> = None;
        let (mut wanted, mut layers) = (selector, Vec::new());
        for _ in 0..MAP_TRIES_MAX {
            let (under, epochs) = (self.base, self.epochs);
            let base = map::find(vault, volume, epochs, branch, wanted, avoided, under).await?;
            let Some(base) = base.map(|base| self.above(base)) else { break };
            if base.start.epoch >= bounded {
                // Where its epoch ends is not known.
                avoided.insert(base.name.1);
                continue;
            }
            if let (PointSelector::Point(id), None, Some(point)) =
                (wanted, base.own_point(), base.point)
                && point.id == id
            {
                // The map is behind the point and says where it is.
                wanted = PointSelector::Seq(point.seq);
                continue;
            }
            let (known, object) = (&base.manifest.layers, base.object(volume));
            layers = match open_layers(vault, volume, known, &object, &layers).await {
                Ok(layers) => layers,
                Err(LayerError { error, .. }) if error.is_passing() => return Err(error),
                Err(LayerError { attempt, error }) => {
                    tracing::warn!(%object, %error, "a layer of a map cannot be used; an older map or the logs are");
                    avoided.insert(attempt);
                    continue;
                }
            };
            let read = self.read_to(branch, wanted, Some((&base, layers.clone())), avoided).await;
            match (read, base.point) {
                (Ok(opened), _) => return still_latest(selector, opened, failed),
                // No mark came behind it: the newest is the one that it names.
                (Err(VaultError::NoPoint { .. }), Some(point)) => {
                    wanted = PointSelector::Seq(point.seq);
                }
                (Err(error @ (VaultError::NoPoint { .. } | VaultError::SeqNotFound { .. })), _) => {
                    return Err(or_failed(error, failed));
                }
                // A clock that went back makes ids tell nothing of the order.
                (
                    Err(
                        error @ (VaultError::PointNotFound { point, .. }
                        | VaultError::PointBehindHole { point, .. }),
                    ),
                    _,
                ) => {
                    let seq = self.seq_of(branch, point).await?;
                    wanted = PointSelector::Seq(seq.ok_or(error)?);
                }
                (Err(error), _) if error.is_passing() => return Err(error),
                (Err(error), _) => {
                    tracing::warn!(%object, %error, "cannot go on from a map; an older one or the logs are read");
                    avoided.insert(base.name.1);
                    let seq = base.point.map_or(Seq(0), |point| point.seq);
                    failed = failed.filter(|(before, _)| *before >= seq).or(Some((seq, error)));
                }
            }
        }
        let ground = self.opened_ground(branch, &layers, avoided).await?;
        let ground = ground.as_ref().map(|(map, layers)| (map, layers.clone()));
        match self.read_to(branch, wanted, ground, avoided).await {
            Ok(opened) => still_latest(selector, opened, failed),
            Err(error) => Err(or_failed(error, failed)),
        }
    }

    /// A map, without the point that it names if that is not above the volume's base: whether it is there the base says.
    fn above(&self, map: Base) -> Base {
        let is_covered = |point: &Point| {
            self.base.is_some_and(|base| base.covers(place_of(self.epochs, point.seq)))
        };
        Base { point: map.point.filter(|point| !is_covered(point)), ..map }
    }

    /// Where in a branch a point is, looked for from the start, or from the volume's base.
    async fn seq_of(&self, branch: &Branch, point: PointId) -> Result<Option<Seq>, VaultError> {
        let vault = self.reader.vault();
        let mut chain =
            map::begin(vault, self.volume, self.epochs, branch, None, self.base).await?;
        while let Some(found) = chain.next().await? {
            if branch.end.is_some_and(|end| found.epoch >= end) {
                break;
            }
            if found.span.mark.is_some_and(|mark| mark.point == point) {
                return Ok(Some(found.span.last_seq));
            }
        }
        Ok(None)
    }

    /// Opens by the logs, from a map on or from the start.
    async fn read_to(
        &self,
        branch: &Branch,
        selector: PointSelector,
        map: Option<(&Base, Vec<Arc<Layer>>)>,
        avoided: &mut Avoided,
    ) -> Result<Opened, VaultError> {
        let (vault, volume) = (self.reader.vault(), self.volume);
        let bounded = self.bounded_in(branch);
        let base = map.as_ref().map(|(base, _)| *base);
        let origin = match base {
            None => self.origin(branch, avoided).await?,
            Some(_) => Origin::default(),
        };
        let mut build = Build::behind(base, &origin);
        let mut chain = map::begin(vault, volume, self.epochs, branch, base, self.base).await?;
        let mut is_found = build.point().is_some_and(|point| selector.is(&point));
        if is_found {
            chain.check_resumed().await?;
        }
        while !is_found {
            let next = match chain.next().await {
                Err(error) if error.is_passing() && is_on(Bug::AwayTakenForEnd) => None,
                next => next?,
            };
            let Some(found) = next.filter(|found| found.epoch < bounded) else { break };
            self.reader.keep(Arc::clone(&found.segment));
            is_found = build.take(&chain, &found)?.is_some_and(|point| selector.is(&point));
        }
        let hole = if is_found { None } else { chain.hole().await? };
        if !is_found && selector != PointSelector::Latest {
            return Err(not_found(vault, volume, selector, hole));
        }
        let Some(point) = build.point() else {
            return Err(VaultError::NoPoint { url: vault.url().to_owned(), volume });
        };
        let tail = Arc::new(build.finish());
        let image = match (map, &origin.image) {
            (Some((_, layers)), _) => Image::whole(tail, layers),
            (None, Some(under)) => Image::over(tail, under),
            (None, None) => Image::whole(tail, Vec::new()),
        };
        Ok(Opened { image, point, hole })
    }
}

/// A map that could not be gone on from shows that there was a later point: an older one is not the latest.
fn still_latest(
    selector: PointSelector,
    opened: Opened,
    failed: Option<(Seq, VaultError)>,
) -> Result<Opened, VaultError> {
    match failed {
        Some((seq, error)) if selector == PointSelector::Latest && opened.point.seq < seq => {
            Err(error)
        }
        _ => Ok(opened),
    }
}

/// That there is no point is not so where a map was at one that could not be gone on from.
fn or_failed(error: VaultError, failed: Option<(Seq, VaultError)>) -> VaultError {
    match (error, failed) {
        (VaultError::NoPoint { .. }, Some((seq, failed))) if seq > Seq(0) => failed,
        (error, _) => error,
    }
}

fn not_found(
    vault: &Vault,
    volume: VolumeId,
    selector: PointSelector,
    hole: Option<Hole>,
) -> VaultError {
    let url = vault.url().to_owned();
    match (selector, hole) {
        (PointSelector::Point(point), Some(Hole { log, slot, later })) => {
            VaultError::PointBehindHole { url, volume, point, log, slot, later }
        }
        (PointSelector::Point(point), None) => VaultError::PointNotFound { url, volume, point },
        (PointSelector::Seq(seq), _) => VaultError::SeqNotFound { url, volume, seq },
        (PointSelector::Latest, _) => VaultError::NoPoint { url, volume },
    }
}
