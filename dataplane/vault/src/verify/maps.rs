//! That maps open and say what the logs say.

use super::Report;
use crate::chunks::{ChunkReader, Stored};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::map::{self, Base, Name, open_layers};
use crate::vault::Vault;
use crate::view::{Held, Image, LayerError};
use farshore_proto::epoch::EpochBody;
use farshore_proto::{BlockRange, VolumeId};
use std::collections::BTreeSet;

/// Opens the maps of a volume, listed before its epochs were read, with their directories; if `read_data`, reads all
/// pages, and compares each map with the one before it and what the logs hold between the two.
pub(super) async fn check(
    vault: &Vault,
    volume: VolumeId,
    names: BTreeSet<Name>,
    epochs: &[EpochBody],
    read_data: bool,
    report: &mut Report,
) -> Result<(), VaultError> {
    let mut before: Option<Base> = None;
    for name in names {
        let object = ObjectName::map(volume, name.0, name.1);
        let opened = open(vault, volume, epochs, name).await;
        let (base, image) = match opened {
            Ok(opened) => opened,
            // One that is deleted meanwhile is no problem: it is derived.
            Err(error) if error.is_not_found() => continue,
            Err(error) => {
                report.add_error(object, error)?;
                continue;
            }
        };
        report.maps += 1;
        if read_data {
            let comparison =
                Comparison { vault, volume, epochs, object: &object, base: &base, report };
            comparison.run(image, before.as_ref()).await?;
            before = Some(base);
        }
    }
    Ok(())
}

async fn open(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    name: Name,
) -> Result<(Base, Image), VaultError> {
    let base = map::load(vault, volume, epochs, name).await?;
    let layers = open_layers(vault, volume, &base.manifest.layers, &base.object(volume)).await?;
    Ok((base, Image { layers, ..Image::default() }))
}

/// A map, beside the one before it and the logs.
struct Comparison<'a> {
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &'a [EpochBody],
    object: &'a ObjectName,
    base: &'a Base,
    report: &'a mut Report,
}

impl Comparison<'_> {
    async fn run(mut self, image: Image, before: Option<&Base>) -> Result<(), VaultError> {
        let expected = match self.expected(before).await {
            Ok(Some(expected)) => expected,
            Ok(None) => return Ok(()),
            Err(error) if error.is_unavailable() => return Err(error),
            // What is wrong with the logs, or the map before, is named where those are read.
            Err(error) => {
                tracing::warn!(object = %self.object, %error, "a map was opened and not compared");
                return Ok(());
            }
        };
        let reader = ChunkReader::new(self.vault, self.object.clone());
        match difference(&reader, &image, &expected).await {
            Ok(None) => Ok(()),
            Ok(Some(block)) => {
                let what = format!("differs from what the logs say, first at block {block}");
                self.report.add(self.object.clone(), 0, what);
                Ok(())
            }
            Err(LayerError { error, .. }) => self.report.add_error(self.object.clone(), error),
        }
    }

    /// What the volume holds at the map's place by the map before, or none, and the logs; nothing if the logs have no
    /// such place: that is told.
    async fn expected(&mut self, before: Option<&Base>) -> Result<Option<Image>, VaultError> {
        let start = self.base.start;
        let (mut build, mut chain) = map::begin(self.vault, self.volume, self.epochs, before)?;
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
            self.report.add(self.object.clone(), 0, what);
            return Ok(None);
        }
        if point != self.base.point {
            let what = "does not say of its recovery point what the logs say";
            self.report.add(self.object.clone(), 0, what);
            return Ok(None);
        }
        build.apply(self.base.manifest.size_bytes);
        let layers = match before {
            Some(before) => {
                let user = before.object(self.volume);
                open_layers(self.vault, self.volume, &before.manifest.layers, &user).await?
            }
            None => Vec::new(),
        };
        let (tail, targets) = build.cut();
        Ok(Some(Image { tail, targets, layers, is_partial: false }))
    }
}

/// The first block that the two have differently.
async fn difference(
    reader: &ChunkReader,
    one: &Image,
    other: &Image,
) -> Result<Option<u64>, LayerError> {
    let mut block = 0;
    while let Some(next) = one.next_at(block).into_iter().chain(other.next_at(block)).min() {
        let range = BlockRange { block: next, count: crate::limits::WINDOW_BLOCKS };
        block = range.end();
        let ones = data_of(reader, one, range).await?;
        let others = data_of(reader, other, range).await?;
        if let Some(at) = first_difference(&ones, &others) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

type Data = Vec<(BlockRange, Address)>;

/// What names a chunk's blocks, whatever a page knows of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    target: farshore_proto::Target,
    chunk: u32,
    first: u32,
    check: [u8; farshore_proto::map::CHECK_BYTES],
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
        Held::Listed(source) => {
            let target = image.targets[source.target as usize];
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
