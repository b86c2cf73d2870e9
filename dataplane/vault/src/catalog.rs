//! What a vault holds: volumes and their points, read from the store alone.

mod tail;

use crate::base::{Ground, VolumeBase, read_ground};
use crate::chain::{Chain, Found, Hole};
use crate::epoch::{Known, read_known};
use crate::error::VaultError;
use crate::layout::Folder;
use crate::limits::POINTS_MAX;
use crate::vault::Vault;
use crate::view::Point;
use farshore_proto::base::KeptPoint;
use farshore_proto::epoch::EpochBody;
use farshore_proto::mark::MarkGroup;
use farshore_proto::{ErrorKind, LogId, Seq, Slot, Stamp, VolumeId};

pub(crate) use tail::{MarkTail, find_mark};

/// A volume of the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The volume.
    pub volume: VolumeId,
    /// Its epochs, in order.
    pub epochs: Vec<EpochBody>,
}

/// A volume as far as its epochs can be read.
#[derive(Debug)]
pub struct FoundVolume {
    /// The volume, with the epochs in front of the damage; perhaps none.
    pub info: VolumeInfo,
    /// What is damaged or missing behind them.
    pub broken: Option<VaultError>,
}

/// How far the vault holds a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEnd {
    /// Its epochs, in order; never empty.
    pub epochs: Vec<EpochBody>,
    /// Last seq that is committed; 0 if none is.
    pub last_seq: Seq,
    /// Of the frame there: whose it is. Nothing if that is not known.
    pub stamp: Stamp,
    /// A missing slot behind the end, if later ones exist.
    pub hole: Option<Hole>,
}

impl VolumeEnd {
    /// The last seq, and the stamp of the frame there.
    #[must_use]
    pub fn last(&self) -> (Seq, Stamp) {
        (self.last_seq, self.stamp)
    }
}

/// Finds the end of a volume's stream: a new epoch goes on with the seq behind it.
///
/// # Errors
/// `NotFound` for a volume that the vault does not know; `Corrupt` if its stream cannot be read to
/// the end; `Unavailable`.
pub async fn end_of_volume(vault: &Vault, volume: VolumeId) -> Result<VolumeEnd, VaultError> {
    end_of(Chain::open(vault, volume).await?).await
}

/// The same for who knows that the slots of `log` below `filled` are filled, because it sealed the log
/// there or writes it: what was missing when it was asked for is no end then.
///
/// # Errors
/// As [`end_of_volume`]; `Corrupt` too if a slot below is missing.
pub async fn end_behind(
    vault: &Vault,
    volume: VolumeId,
    log: LogId,
    filled: Slot,
) -> Result<VolumeEnd, VaultError> {
    end_of(Chain::open(vault, volume).await?.filled_to(log, filled)).await
}

async fn end_of(mut chain: Chain<'_>) -> Result<VolumeEnd, VaultError> {
    while chain.next().await?.is_some() {}
    let (last_seq, stamp, hole) = (chain.last(), chain.stamp(), chain.hole().await?);
    Ok(VolumeEnd { epochs: chain.epochs().to_vec(), last_seq, stamp, hole })
}

/// The recovery points of a volume as far as its stream can be read.
#[derive(Debug)]
pub struct PointList {
    /// In order.
    pub points: Vec<Point>,
    /// What is damaged or missing behind them: there may have been more.
    pub broken: Option<VaultError>,
}

/// A recovery point of a volume, and which other volumes have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// The point.
    pub point: Point,
    /// The volumes that its mark is of.
    pub group: MarkGroup,
}

impl Marked {
    /// What a span of a chain ends with, if it has a mark.
    fn of(chain: &Chain<'_>, found: &Found) -> Option<Self> {
        let point = Point::at_end(&chain.epochs()[found.epoch], &found.span)?;
        Some(Self { point, group: found.span.mark?.group })
    }
}

impl From<&KeptPoint> for Marked {
    fn from(kept: &KeptPoint) -> Self {
        Self { point: Point::from(kept), group: kept.mark.group }
    }
}

/// The marks of a volume as far as its stream can be read.
#[derive(Debug, Default)]
pub struct MarkList {
    /// In order.
    pub marks: Vec<Marked>,
    /// What is damaged or missing behind them: there may have been more.
    pub broken: Option<VaultError>,
    /// A missing slot behind them, if later ones exist: there may have been more.
    pub hole: Option<Hole>,
}

/// Lists all recovery points of a volume, in order.
///
/// # Errors
/// As `end_of_volume`; `Limit` above `POINTS_MAX`.
pub async fn list_points(vault: &Vault, volume: VolumeId) -> Result<Vec<Point>, VaultError> {
    match list_points_to_damage(vault, volume).await? {
        PointList { broken: Some(error), .. } => Err(error),
        PointList { points, broken: None } => Ok(points),
    }
}

/// Lists the recovery points of a volume, in order, up to the first damage: those that restore.
///
/// # Errors
/// `NotFound` for a volume that the vault does not know; `Unavailable`; `Limit` above `POINTS_MAX`.
pub async fn list_points_to_damage(
    vault: &Vault,
    volume: VolumeId,
) -> Result<PointList, VaultError> {
    let MarkList { marks, broken, .. } = list_marks_to_damage(vault, volume).await?;
    Ok(PointList { points: marks.into_iter().map(|marked| marked.point).collect(), broken })
}

/// Lists the marks of a volume, in order, up to the first damage: those that restore.
///
/// # Errors
/// As [`list_points_to_damage`].
pub async fn list_marks_to_damage(vault: &Vault, volume: VolumeId) -> Result<MarkList, VaultError> {
    let Ground { known, base } = read_ground(vault, volume).await?;
    let bounded = known.bounded();
    let mut list = MarkList::default();
    if bounded > 0 || known.broken.is_none() {
        if let Some(base) = &base {
            list.marks = kept_marks(base, bounded);
        }
        let read = async {
            let mut chain = Chain::whole(vault, volume, known.epochs, base.as_ref()).await?;
            read_marks(&mut chain, bounded, Seq(u64::MAX), &mut list.marks).await
        };
        match read.await {
            Ok(hole) => list.hole = hole,
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            Err(error) => list.broken = Some(error),
        }
    }
    list.broken = list.broken.or(known.broken);
    Ok(list)
}

/// The points that a base lists, of the first `bounded` epochs.
fn kept_marks(base: &VolumeBase, bounded: usize) -> Vec<Marked> {
    let kept = base.body.points.iter().filter(|kept| kept.at.ordinal <= bounded as u64);
    kept.map(Marked::from).collect()
}

/// Reads the marks up to a seq, of the first `bounded` epochs; gives the hole at the end, if it is reached and there is
/// one.
async fn read_marks(
    chain: &mut Chain<'_>,
    bounded: usize,
    to: Seq,
    marks: &mut Vec<Marked>,
) -> Result<Option<Hole>, VaultError> {
    while chain.last() < to {
        let Some(found) = chain.next().await? else { return chain.hole().await };
        if found.epoch >= bounded || found.span.last_seq > to {
            break;
        }
        let Some(marked) = Marked::of(chain, &found) else { continue };
        if marks.len() == POINTS_MAX {
            let (url, max) = (chain.vault().url().to_owned(), POINTS_MAX as u64);
            return Err(VaultError::Limit { url, what: "recovery points of a volume", max });
        }
        marks.push(marked);
    }
    Ok(None)
}

/// Lists the volumes of a vault. Names that are not ids are passed over.
///
/// # Errors
/// `Corrupt` if an epoch does not open; `Unavailable`; `Limit`.
pub async fn list_volumes(vault: &Vault) -> Result<Vec<VolumeInfo>, VaultError> {
    let found = find_volumes(vault).await?;
    let whole = |found: FoundVolume| match found.broken {
        Some(error) => Err(error),
        None => Ok(found.info),
    };
    found.into_iter().map(whole).collect()
}

/// Lists the volumes of a vault, whatever is damaged. Names that are not ids are passed over.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub async fn find_volumes(vault: &Vault) -> Result<Vec<FoundVolume>, VaultError> {
    let mut volumes = Vec::new();
    for volume in volume_ids(vault).await? {
        let Known { epochs, broken } = read_known(vault, volume).await?;
        if !epochs.is_empty() || broken.is_some() {
            volumes.push(FoundVolume { info: VolumeInfo { volume, epochs }, broken });
        }
    }
    Ok(volumes)
}

pub(crate) async fn volume_ids(vault: &Vault) -> Result<Vec<VolumeId>, VaultError> {
    let names = vault.store().children(Folder::Volumes).await?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

pub(crate) async fn log_ids(vault: &Vault) -> Result<Vec<LogId>, VaultError> {
    let names = vault.store().children(Folder::Logs).await?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}
