//! That maps open and say what the logs say.

use super::Report;
use crate::base::VolumeBase;
use crate::chunks::{ChunkReader, Stored};
use crate::epoch::{Branch, branches};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::WINDOW_BLOCKS;
use crate::map::{self, Avoided, Base, Layer, Name, open_layers};
use crate::vault::Vault;
use crate::view::{Build, Held, Image, LayerError, Origin, Stream, Tail};
use farshore_proto::epoch::EpochBody;
use farshore_proto::map::CHECK_BYTES;
use farshore_proto::{BlockRange, Target, VolumeId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Opens the maps of a volume, listed before its epochs were read, with their directories; if `read_data`, reads all
/// pages, and compares each map with the one before it and what the logs hold between the two. Maps below the volume's base serve the
/// points that they are of: the slots that they could be compared with may be gone.
pub(super) async fn check(
    vault: &Vault,
    (volume, epochs, under): (VolumeId, &[EpochBody], Option<&VolumeBase>),
    names: BTreeSet<Name>,
    read_data: bool,
    report: &mut Report,
) -> Result<(), VaultError> {
    let branch = Branch { first: 0, end: Some(0), base: None };
    let origin = Ok(Origin::default());
    let mut check = Check { vault, volume, epochs, under, branch, origin, report, before: None };
    for name in names {
        let object = ObjectName::map(volume, name.0, name.1);
        match check.open(name).await {
            Ok(found) => {
                check.report.maps += 1;
                if under.is_some_and(|under| under.covers(name.0)) {
                    check.stand_on(name);
                } else if read_data {
                    check.enter_branch(&object, &found).await?;
                    check.compare(&object, &found).await?;
                }
                if check.is_ground(&found.base) {
                    check.before = Some(found);
                }
            }
            // One that is deleted meanwhile is no problem: it is derived.
            Err(error) if error.is_not_found() => {}
            Err(error) => check.report.add_error(object, error)?,
        }
    }
    Ok(())
}

/// A map that was opened.
struct Found {
    base: Base,
    layers: Vec<Arc<Layer>>,
}

/// The check of a volume's maps. Layers that maps have in common are opened, read and compared once.
struct Check<'a> {
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &'a [EpochBody],
    /// The volume's newest base.
    under: Option<&'a VolumeBase>,
    /// The branch of the map before, or one that has none.
    branch: Branch,
    /// What it begins with; the error was told.
    origin: Result<Origin, ()>,
    report: &'a mut Report,
    /// The map before, if it is of the same branch.
    before: Option<Found>,
}

impl Check<'_> {
    async fn open(&self, name: Name) -> Result<Found, VaultError> {
        let base = map::load(self.vault, self.volume, self.epochs, name).await?;
        let (known, user) = (&base.manifest.layers, base.object(self.volume));
        let layers = open_layers(self.vault, self.volume, known, &user, self.earlier()).await;
        let layers = layers.map_err(|failed| failed.error)?;
        Ok(Found { base, layers })
    }

    /// The layers of the map before.
    fn earlier(&self) -> &[Arc<Layer>] {
        self.before.as_ref().map_or(&[], |before| &before.layers)
    }

    /// Forgets the map before if this one is of another branch, and looks what that begins with.
    async fn enter_branch(&mut self, object: &ObjectName, found: &Found) -> Result<(), VaultError> {
        let epoch = found.base.start.epoch;
        if self.branch.has(epoch) {
            return Ok(());
        }
        self.before = None;
        let branches = branches(self.epochs);
        self.branch = branches.into_iter().find(|branch| branch.has(epoch)).unwrap_or(self.branch);
        let reader = &ChunkReader::new(self.vault, object.clone());
        let (volume, epochs, bounded) = (self.volume, self.epochs, self.epochs.len());
        let stream = Stream { reader, volume, epochs, bounded, base: self.under, depth: 0 };
        self.origin = match stream.origin(&self.branch, &mut Avoided::new()).await {
            Ok(origin) => Ok(origin),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                tracing::warn!(%object, %error, "maps behind it were opened and not compared");
                Err(())
            }
        };
        Ok(())
    }

    /// Whether a map can be compared with what comes behind it: the base's, or one above.
    fn is_ground(&self, base: &Base) -> bool {
        let name = base.name;
        self.under.is_none_or(|under| !under.covers(name.0) || name == under.map())
    }

    /// Whether there is nothing that a map could be compared with: the base of its branch has a map that does not open.
    fn is_groundless(&self) -> bool {
        self.before.is_none() && self.under.is_some_and(|under| under.is_on(&self.branch))
    }

    /// Goes on behind a map that the volume's base covers.
    fn stand_on(&mut self, (at, _): Name) {
        let epoch = usize::try_from(at.ordinal - 1).unwrap_or(usize::MAX);
        let branches = branches(self.epochs);
        self.branch = branches.into_iter().find(|branch| branch.has(epoch)).unwrap_or(self.branch);
        self.origin = Ok(Origin::default());
    }

    /// Compares a map with the one before it and the logs between the two.
    async fn compare(&mut self, object: &ObjectName, found: &Found) -> Result<(), VaultError> {
        if self.is_groundless() {
            self.report.maps_not_compared += 1;
            return Ok(());
        }
        let Ok(origin) = self.origin.clone() else {
            self.report.maps_not_compared += 1;
            return Ok(());
        };
        let tail = match self.tail(object, &found.base, &origin).await {
            Ok(Some(tail)) => tail,
            Ok(None) => return Ok(()),
            Err(error) if error.is_unavailable() => return Err(error),
            // What is wrong with the logs is named where those are read.
            Err(error) => {
                tracing::warn!(%object, %error, "a map was opened and not compared");
                self.report.maps_not_compared += 1;
                return Ok(());
            }
        };
        let earlier = self.earlier();
        let kept = common_end(&found.layers, earlier);
        let own = &found.layers[..found.layers.len() - kept];
        let merged = &earlier[..earlier.len() - kept];
        // Below what only one of the two has both are the same layers.
        let one = Image::whole(Arc::default(), found.layers.clone());
        let mut over = merged.to_vec();
        over.extend_from_slice(own);
        let (touched, other) = match (&self.before, &origin.image) {
            (None, Some(under)) => {
                let other = Image::over(tail, under);
                (Image::mentioned(&[&one, &other]), other)
            }
            _ => (Image::partial(Arc::clone(&tail), over), Image::whole(tail, earlier.to_vec())),
        };
        let reader = ChunkReader::new(self.vault, object.clone());
        match difference(&reader, &one, &other, &touched).await {
            Ok(None) => Ok(()),
            Ok(Some(block)) => {
                let what = format!("differs from what the logs say, first at block {block}");
                self.report.add(object.clone(), 0, what);
                Ok(())
            }
            Err(LayerError { error, .. }) => self.report.add_error(object.clone(), error),
        }
    }

    /// What the logs hold between the map before, or the start, and this map's place; nothing if they have no such
    /// place, or say something else of its point: that is told.
    async fn tail(
        &mut self,
        object: &ObjectName,
        base: &Base,
        origin: &Origin,
    ) -> Result<Option<Arc<Tail>>, VaultError> {
        let start = base.start;
        let before = self.before.as_ref().map(|before| &before.base);
        let mut build = Build::behind(before, origin);
        let (vault, volume, under) = (self.vault, self.volume, self.under);
        let mut chain = map::begin(vault, volume, self.epochs, &self.branch, before, under).await?;
        let mut point = before.and_then(|before| before.point);
        let mut is_there = before.is_some_and(|before| before.start == start);
        while !is_there {
            let Some(found) = chain.next().await? else { break };
            point = build.take(&chain, &found)?.or(point);
            let at = found.span.last_seq;
            is_there = (found.epoch, found.slot, at) == (start.epoch, start.slot, start.last);
            if at >= start.last {
                break;
            }
        }
        if !is_there {
            let what = format!("is at seq {}, at which the logs do not end a span", start.last);
            self.report.add(object.clone(), 0, what);
            return Ok(None);
        }
        if point != base.point {
            let what = "does not say of its recovery point what the logs say";
            self.report.add(object.clone(), 0, what);
            return Ok(None);
        }
        build.apply(base.manifest.size_bytes);
        Ok(Some(Arc::new(build.cut())))
    }
}

/// How many of the lowest layers two maps have in common, and say the same of.
fn common_end(ones: &[Arc<Layer>], others: &[Arc<Layer>]) -> usize {
    let pairs = ones.iter().rev().zip(others.iter().rev());
    pairs.take_while(|(one, other)| Arc::ptr_eq(one, other)).count()
}

/// The first block that the two have differently, of those of which `touched` says something.
async fn difference(
    reader: &ChunkReader,
    one: &Image,
    other: &Image,
    touched: &Image,
) -> Result<Option<u64>, LayerError> {
    let mut block = 0;
    while let Some(next) = touched.next_at(block) {
        let range = BlockRange { block: next, count: WINDOW_BLOCKS };
        block = range.end();
        // Only that: pages of layers below are not loaded for it.
        for part in joined(touched.held(reader, range).await?) {
            let ones = data_of(reader, one, part).await?;
            let others = data_of(reader, other, part).await?;
            if let Some(at) = first_difference(&ones, &others) {
                return Ok(Some(at));
            }
        }
    }
    Ok(None)
}

/// The ranges of runs, joined where they touch.
fn joined(runs: Vec<(BlockRange, Held)>) -> Vec<BlockRange> {
    let mut ranges: Vec<BlockRange> = Vec::new();
    for (run, _) in runs {
        match ranges.last_mut() {
            Some(last) if last.end() == run.block => last.count += run.count,
            _ => ranges.push(run),
        }
    }
    ranges
}

type Data = Vec<(BlockRange, Address)>;

/// What names a chunk's blocks, whatever a page knows of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    target: Target,
    chunk: u32,
    first: u32,
    check: [u8; CHECK_BYTES],
}

async fn data_of(
    reader: &ChunkReader,
    image: &Image,
    range: BlockRange,
) -> Result<Data, LayerError> {
    let held = image.held(reader, range).await?;
    let address = |held| match held {
        Held::Zero => None,
        Held::Stored(Stored { frame, chunk, first, check, .. }) => {
            Some(Address { target: frame.target, chunk, first, check })
        }
        Held::Listed(target, source) => {
            let (chunk, first, check) = (source.chunk, source.first, source.check);
            Some(Address { target, chunk, first, check })
        }
    };
    Ok(held.into_iter().filter_map(|(run, held)| Some((run, address(held)?))).collect())
}

fn first_difference(ones: &Data, others: &Data) -> Option<u64> {
    let (mut ones, mut others) = (ones.iter().copied(), others.iter().copied());
    let (mut left, mut right) = (ones.next(), others.next());
    loop {
        let ((a, one), (b, other)) = match (left, right) {
            (None, None) => return None,
            (Some((run, _)), None) | (None, Some((run, _))) => return Some(run.block),
            (Some(left), Some(right)) => (left, right),
        };
        if a.block != b.block || one != other {
            return Some(a.block.min(b.block));
        }
        // The same blocks may be cut differently.
        let count = a.count.min(b.count);
        left = behind(a, one, count).or_else(|| ones.next());
        right = behind(b, other, count).or_else(|| others.next());
    }
}

/// What is left of a run behind its first blocks.
fn behind(run: BlockRange, address: Address, count: u64) -> Option<(BlockRange, Address)> {
    let left = BlockRange { block: run.block + count, count: run.count - count };
    let skipped = u32::try_from(count).expect("a run of a chunk is short");
    (left.count > 0).then_some((left, Address { first: address.first + skipped, ..address }))
}
