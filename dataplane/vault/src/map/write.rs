//! Writing a map: what the logs hold behind the newest one, as a layer of its own or merged with newer ones of that.

use super::pages::{LEVEL, LayerWriter, bytes_of};
use super::{Avoided, Base, Layer, begin, find, open_layers, place, put_drawn, tiers};
use crate::base::{VolumeBase, read_whole};
use crate::chain::Start;
use crate::chunks::ChunkReader;
use crate::epoch::{Branch, newest_branch};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{LAYER_RUNS_MAX, MAP_TRIES_MAX, PART_BYTES, UNMARKED_EXTENTS_MIN};
use crate::vault::Vault;
use crate::view::{Build, Held, Image, LayerError, Origin, Point, PointSelector, Stream, Tail};
use farshore_codec::map::{MapPlace, seal_manifest};
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::{MAP_PARTS_MAX, PAGE_RUNS_MAX};
use farshore_proto::map::{self, LayerKind, Manifest, MapFields, MapMark};
use farshore_proto::{MapAttempt, Place, VolumeId};
use futures::TryStreamExt;
use std::sync::Arc;
use uuid::Uuid;

/// Maps that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The place of the last one.
    pub at: Place,
    /// Runs in all its layers.
    pub runs: u64,
    /// Its layers.
    pub layers: usize,
    /// Runs that were written.
    pub new_runs: u64,
    /// Bytes that were put.
    pub bytes: u64,
}

/// How a map is divided.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Most runs of a page.
    pub page_runs: usize,
    /// Bytes of pages that end a part.
    pub part_bytes: usize,
    /// Runs that end a layer while more is read.
    pub layer_runs: usize,
    /// Extents without a mark that are worth a map.
    pub unmarked: usize,
    /// Layers of fewer runs than this are of one size.
    pub smallest: u64,
}

impl Default for Shape {
    fn default() -> Self {
        let (page_runs, layer_runs, unmarked) =
            (PAGE_RUNS_MAX, LAYER_RUNS_MAX, UNMARKED_EXTENTS_MIN);
        let (part_bytes, smallest) = (PART_BYTES, tiers::SMALLEST);
        Self { page_runs, part_bytes, layer_runs, unmarked, smallest }
    }
}

/// Writes a map of a volume at its newest recovery point, or, where much came without one, at its end. If far more came
/// than a layer holds, there are several, one over the other.
///
/// None if there is nothing to write: no point yet, or a map of the newest is there. Takes memory for one layer and a
/// part, about 200 MiB, whatever the volume has.
///
/// # Errors
/// `NotFound` for a volume that the vault does not know; `Corrupt` if its stream cannot be read to
/// the end; `Unavailable` (also when full: `is_no_space`); `Limit`.
///
/// # Cancel safety
/// Dropped, it leaves parts that belong to no map.
pub async fn write(vault: &Vault, volume: VolumeId) -> Result<Option<Written>, VaultError> {
    write_shaped(vault, volume, Shape::default()).await
}

/// Why an attempt ended.
enum Failure {
    Vault(VaultError),
    Layer(LayerError),
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        Self::Vault(error)
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// `write`, with the shape of the map chosen.
///
/// # Errors
/// As [`write`].
pub async fn write_shaped(
    vault: &Vault,
    volume: VolumeId,
    shape: Shape,
) -> Result<Option<Written>, VaultError> {
    let (epochs, under) = read_whole(vault, volume).await?;
    let under = under.as_ref();
    let (latest, mut avoided) = (PointSelector::Latest, Avoided::new());
    let branch = newest_branch(&epochs);
    for _ in 0..MAP_TRIES_MAX {
        let base = find(vault, volume, &epochs, &branch, latest, &avoided, under).await?;
        let is_grounded = under.is_some_and(|under| under.is_on(&branch));
        if base.is_none() && (branch.base.is_none() || is_grounded) {
            break;
        }
        let object = base.as_ref().map_or_else(
            || ObjectName::epoch(volume, branch.first as u64 + 1),
            |base| base.object(volume),
        );
        let name = base.as_ref().map(|base| base.name);
        let of = Writer::new(vault, volume, &epochs, shape, under);
        let failure = match write_from(of, &branch, base, &mut avoided).await {
            Ok(written) => return Ok(written),
            Err(failure) => failure,
        };
        let (attempt, error) = match (failure, name) {
            (Failure::Layer(LayerError { attempt, error }), _) => (attempt, error),
            (Failure::Vault(error), Some((_, attempt))) => (attempt, error),
            (Failure::Vault(error), None) => return Err(error),
        };
        if error.is_unavailable() {
            return Err(error);
        }
        tracing::warn!(%object, %error, "cannot go on from a map; an older one or the logs are read");
        avoided.insert(attempt);
    }
    let of = Writer::new(vault, volume, &epochs, shape, under);
    match write_from(of, &branch, None, &mut avoided).await {
        Ok(written) => Ok(written),
        Err(Failure::Layer(LayerError { error, .. }) | Failure::Vault(error)) => Err(error),
    }
}

async fn write_from(
    mut writer: Writer<'_>,
    branch: &Branch,
    base: Option<Base>,
    avoided: &mut Avoided,
) -> Result<Option<Written>, Failure> {
    let Writer { vault, volume, epochs, shape, under, .. } = writer;
    let mut base = base;
    if base.is_none() {
        let (reader, bounded) = (&writer.reader, epochs.len());
        let stream = Stream { reader, volume, epochs, bounded, base: under, depth: 0 };
        match stream.ground(branch, avoided).await? {
            Some((under, map)) => {
                writer.layers = Some(stream.layers_of(under, &map, &[]).await?);
                base = Some(map);
            }
            None => writer.origin = stream.origin(branch, avoided).await?,
        }
    }
    let mut build = Build::behind(base.as_ref(), &writer.origin);
    let mut chain = begin(vault, volume, epochs, branch, base.as_ref(), under).await?;
    writer.base = base;
    // Where the last span that was read ends.
    let mut end = None;
    while let Some(found) = chain.next().await? {
        writer.reader.keep(Arc::clone(&found.segment));
        build.take(&chain, &found)?;
        let at = Start { epoch: found.epoch, slot: found.slot, last: found.span.last_seq };
        if build.runs() >= shape.layer_runs {
            writer.put_point(&mut build).await?;
        }
        if build.pending() >= shape.layer_runs {
            writer.put_unmarked(&mut build, at).await?;
        }
        end = Some(at);
    }
    chain.hole().await?;
    writer.put_point(&mut build).await?;
    if build.pending() >= shape.unmarked
        && let Some(end) = end
    {
        writer.put_unmarked(&mut build, end).await?;
    }
    Ok(writer.written)
}

struct Writer<'a> {
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &'a [EpochBody],
    reader: ChunkReader,
    shape: Shape,
    /// The volume's base.
    under: Option<&'a VolumeBase>,
    /// What the branch begins with, where no map was found.
    origin: Origin,
    /// The map that the next one goes on from.
    base: Option<Base>,
    /// Its layers, once they are opened.
    layers: Option<Vec<Arc<Layer>>>,
    written: Option<Written>,
}

impl<'a> Writer<'a> {
    fn new(
        vault: &'a Vault,
        volume: VolumeId,
        epochs: &'a [EpochBody],
        shape: Shape,
        under: Option<&'a VolumeBase>,
    ) -> Self {
        let reader = ChunkReader::new(vault, ObjectName::volume(volume));
        let (origin, base, layers, written) = (Origin::default(), None, None, None);
        Self { vault, volume, epochs, reader, shape, under, origin, base, layers, written }
    }

    /// Puts a map at the newest point, if there is none yet.
    async fn put_point(&mut self, build: &mut Build) -> Result<(), Failure> {
        let (Some(end), Some(point)) = (build.end(), build.point()) else { return Ok(()) };
        if self.base.as_ref().is_some_and(|base| base.start.last >= end.last) {
            return Ok(());
        }
        let tail = build.cut();
        self.put(tail, end, Some(point), point.size_bytes).await
    }

    /// Puts a map where the stream was read to, with all that came without a mark.
    async fn put_unmarked(&mut self, build: &mut Build, end: Start) -> Result<(), Failure> {
        self.put_point(build).await?;
        let size_bytes = self.epochs[end.epoch].size_bytes;
        build.apply(size_bytes);
        let tail = build.cut();
        let before = self.base.as_ref().and_then(|base| base.point);
        self.put(tail, end, before, size_bytes).await
    }

    async fn put(
        &mut self,
        tail: Tail,
        end: Start,
        point: Option<Point>,
        size_bytes: u64,
    ) -> Result<(), Failure> {
        let attempt = MapAttempt(Uuid::new_v4().into_bytes());
        let at = Place { ordinal: end.epoch as u64 + 1, seq: end.last };
        let name = (at, attempt);
        let to = place(self.vault, self.volume, name);
        let (layers, new) = self.layers(tail, to).await?;
        let mark = point.map(|point| MapMark {
            at: self.place_of(&point),
            kind: point.kind,
            time_unix_ms: point.time_unix_ms,
            unknown_blocks: point.unknown_blocks,
        });
        let (log, slot) = (self.epochs[end.epoch].log, end.slot);
        let manifest = Manifest { log, slot, size_bytes, mark, layers };
        let fields = MapFields { attempt, point: point.map(|point| point.id), ordinal: at.ordinal };
        let object = ObjectName::map(self.volume, at, attempt);
        let sealing = {
            let manifest = manifest.clone();
            self.vault.seal_aside(&object, move |_, keys| {
                seal_manifest(&to, &fields, keys, &manifest, LEVEL)
            })
        };
        let sealed = sealing.await?;
        let bytes = sealed.len() as u64 + new.as_ref().map_or(0, |new| bytes_of(&new.parts));
        put_drawn(self.vault, object, sealed).await?;
        let before = self.written;
        self.written = Some(Written {
            at,
            runs: manifest.layers.iter().map(|layer| layer.runs).sum(),
            layers: manifest.layers.len(),
            new_runs: before.map_or(0, |w| w.new_runs) + new.map_or(0, |new| new.runs),
            bytes: before.map_or(0, |w| w.bytes) + bytes,
        });
        self.base = Some(Base { name, manifest, point, start: end });
        Ok(())
    }

    /// The place of a point that the volume has; epochs ascend with their ordinals.
    fn place_of(&self, point: &Point) -> Place {
        let index = self.epochs.partition_point(|body| body.epoch < point.epoch);
        Place { ordinal: index as u64 + 1, seq: point.seq }
    }

    /// The layers of the map that the next one goes on from: all of them, also those that it will only name again. Who
    /// builds on what is lost would tell nobody.
    async fn opened(&mut self) -> Result<Vec<Arc<Layer>>, Failure> {
        let Some(base) = &self.base else { return Ok(Vec::new()) };
        if let Some(layers) = &self.layers {
            return Ok(layers.clone());
        }
        let known = &base.manifest.layers;
        let layers =
            open_layers(self.vault, self.volume, known, &base.object(self.volume), &[]).await?;
        self.layers = Some(layers.clone());
        Ok(layers)
    }

    /// The layers of the next map, and the one among them that was written for it.
    async fn layers(
        &mut self,
        tail: Tail,
        to: MapPlace,
    ) -> Result<(Vec<map::Layer>, Option<map::Layer>), Failure> {
        let mut opened = self.opened().await?;
        let known = self.base.as_ref().map_or(&[][..], |base| &base.manifest.layers);
        if tail.map.len() == 0 && !known.is_empty() {
            return Ok((known.to_vec(), None));
        }
        let runs: Vec<u64> = known.iter().map(|layer| layer.runs).collect();
        let count = tiers::merged_by(&runs, tail.map.len() as u64, self.shape.smallest);
        let kept = &known[count..];
        let layers = opened[..count].to_vec();
        let kind = if kept.is_empty() { LayerKind::Full } else { LayerKind::Delta };
        let image = match (kind, &self.origin.image) {
            (LayerKind::Full, Some(under)) if layers.is_empty() => {
                Image::over(Arc::new(tail), under)
            }
            (LayerKind::Full, _) => Image::whole(Arc::new(tail), layers),
            (LayerKind::Delta, _) => Image::partial(Arc::new(tail), layers),
        };
        let new = self.merge(&image, to, kind).await?;
        let mut layers = vec![new.clone()];
        layers.extend_from_slice(kept);
        let parts: usize = layers.iter().map(|layer| layer.parts.len()).sum();
        if parts > MAP_PARTS_MAX {
            let (url, max) = (self.vault.url().to_owned(), MAP_PARTS_MAX as u64);
            return Err(VaultError::Limit { url, what: "parts of a map", max }.into());
        }
        // What was put is read back before a map names it.
        let user = ObjectName::map(self.volume, to.at, to.attempt);
        let put = open_layers(self.vault, self.volume, &layers[..1], &user, &[]).await?;
        opened.splice(..count, put);
        self.layers = Some(opened);
        Ok((layers, Some(new)))
    }

    /// Writes what an image says as one layer.
    async fn merge(
        &self,
        image: &Image,
        to: MapPlace,
        kind: LayerKind,
    ) -> Result<map::Layer, Failure> {
        let mut writer = LayerWriter::new(self.vault, to, kind, self.shape);
        let mut windows = std::pin::pin!(image.windows(&self.reader));
        while let Some(window) = windows.try_next().await? {
            for (run, held) in window {
                let content = match held {
                    Held::Zero => None,
                    Held::Stored(stored) => Some(stored),
                    Held::Listed(target, source) => {
                        Some(self.reader.stored(target, &source, run.count).await?)
                    }
                };
                writer.push(run, content).await?;
            }
        }
        Ok(writer.finish().await?)
    }
}
