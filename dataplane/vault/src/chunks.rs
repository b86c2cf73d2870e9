//! From a reference in a table to the bytes of a chunk: tables and frames, cached.
//!
//! A frame is opened, and every chunk in it compared with its id, before it enters the cache.

use crate::blocking;
use crate::blocks::Source;
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{CACHE_SHARDS, FRAME_CACHE_BYTES, FRAMES_OPENING_MAX, TABLE_CACHE_BYTES};
use crate::log::{OpenSegment, read_segment};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::ChunkHasher;
use farshore_codec::CodecError;
use farshore_codec::segment::chunk_of;
use farshore_proto::Target;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::segment::{ChunkPlace, SegmentChunk};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use std::sync::Arc;
use tokio::sync::Semaphore;

type FrameKey = (Target, u32);

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The segment.
    pub target: Target,
    /// Number of the chunk in the segment's table.
    pub chunk: u32,
    /// Its length in blocks.
    pub blocks: u32,
}

/// A chunk where it is stored.
#[derive(Debug, Clone)]
pub struct Home {
    /// The segment.
    pub segment: Arc<OpenSegment>,
    /// Number of the chunk in that segment's table.
    pub number: u32,
    /// Frame that holds it.
    pub frame: u32,
    /// Byte offset in the frame.
    pub offset: u32,
}

#[derive(Debug, Clone)]
struct BySize;

impl Weighter<Target, Arc<OpenSegment>> for BySize {
    fn weight(&self, _: &Target, segment: &Arc<OpenSegment>) -> u64 {
        segment.memory_bytes()
    }
}

impl Weighter<FrameKey, Bytes> for BySize {
    fn weight(&self, _: &FrameKey, frame: &Bytes) -> u64 {
        frame.len() as u64 + 64
    }
}

/// Reads chunks. Shared by concurrent readers; each object is fetched once for all that want it.
pub(crate) struct ChunkReader {
    vault: Vault,
    /// Named in errors as what refers to the chunks.
    user: ObjectName,
    tables: Cache<Target, Arc<OpenSegment>, BySize>,
    frames: Cache<FrameKey, Bytes, BySize>,
    opening: Semaphore,
}

impl std::fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkReader")
            .field("tables", &self.tables.len())
            .field("frames", &self.frames.len())
            .finish_non_exhaustive()
    }
}

fn cache<K, V>(bytes: u64, item_bytes: u64) -> Cache<K, V, BySize>
where
    K: Eq + std::hash::Hash,
    V: Clone,
    BySize: Weighter<K, V>,
{
    let items = usize::try_from(bytes / item_bytes).expect("small constants");
    let options = OptionsBuilder::new()
        .shards(CACHE_SHARDS)
        .weight_capacity(bytes)
        .estimated_items_capacity(items)
        .build()
        .expect("the required options are set");
    let hasher = DefaultHashBuilder::default();
    Cache::with_options(options, BySize, hasher, DefaultLifecycle::default())
}

impl ChunkReader {
    /// A reader for `user`, which refers to the chunks.
    pub(crate) fn new(vault: &Vault, user: ObjectName) -> Self {
        Self {
            vault: vault.clone(),
            user,
            tables: cache(TABLE_CACHE_BYTES, 64 << 10),
            frames: cache(FRAME_CACHE_BYTES, 512 << 10),
            opening: Semaphore::new(FRAMES_OPENING_MAX),
        }
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Keeps a segment that was read anyway; its spans are of no use here.
    pub(crate) fn keep(&self, segment: Arc<OpenSegment>) {
        self.tables.insert(segment.target(), segment);
    }

    /// The segment that `user` refers to.
    pub(crate) async fn segment(
        &self,
        target: Target,
        user: &ObjectName,
    ) -> Result<Arc<OpenSegment>, VaultError> {
        let Target { log, slot, .. } = target;
        let (object, user) = (ObjectName::slot(log, slot), user.clone());
        let url = || self.vault.url().to_owned();
        let read = async {
            let mut segment = read_segment(&self.vault, log, slot).await?;
            if segment.target() != target {
                // The one that was there is gone.
                let (object, user) = (object.clone(), user.clone());
                return Err(VaultError::Replaced { url: url(), object, user });
            }
            segment.table.spans = Vec::new();
            Ok(Arc::new(segment))
        };
        let segment = self.tables.get_or_insert_async(&target, read).await;
        segment.map_err(|error: VaultError| match error.is_not_found() {
            true => VaultError::Lost { url: url(), object, user },
            false => error,
        })
    }

    /// Where the chunk of `source` is stored, of which `count` blocks are wanted.
    pub(crate) async fn home(
        &self,
        target: Target,
        source: &Source,
        count: u64,
    ) -> Result<Home, VaultError> {
        let number = source.chunk;
        let segment = self.segment(target, &self.user).await?;
        let end = u64::from(source.first) + count;
        let is_it = |chunk: &&SegmentChunk| source.is_of(&chunk.id) && end <= chunk.blocks.into();
        match segment.table.chunks.get(number as usize).filter(is_it).copied() {
            Some(SegmentChunk { place: ChunkPlace::Here { frame, offset }, .. }) => {
                Ok(Home { segment, number, frame, offset })
            }
            _ => Err(VaultError::Reference {
                url: self.vault.url().to_owned(),
                object: self.user.clone(),
                chunk: number,
                target: ObjectName::slot(target.log, target.slot),
            }),
        }
    }

    /// The `count` blocks of `source`.
    ///
    /// What is returned keeps at most about twice its own length in memory: a frame holds many chunks, and a
    /// slice of it would keep all of them for as long as the answer is on its way.
    pub(crate) async fn blocks(
        &self,
        target: Target,
        source: &Source,
        count: u64,
    ) -> Result<Bytes, VaultError> {
        let home = self.home(target, source, count).await?;
        let key = (target, home.frame);
        let frame = self.frames.get_or_insert_async(&key, self.read_frame(&home)).await?;
        let start = home.offset as usize + source.first as usize * BLOCK_BYTES;
        let length = usize::try_from(count).expect("a run of a chunk is short") * BLOCK_BYTES;
        // In range: `home` compared the blocks wanted with the length of the chunk, and the table's decoder
        // every chunk with the length of its frame.
        let blocks = start..start + length;
        Ok(match 2 * length < frame.len() {
            true => Bytes::copy_from_slice(&frame[blocks]),
            false => frame.slice(blocks),
        })
    }

    async fn read_frame(&self, home: &Home) -> Result<Bytes, VaultError> {
        // Of all readers: each has a few under way, and there may be many.
        let _permit = self.opening.acquire().await;
        let Target { log, slot, .. } = home.segment.target();
        let name = ObjectName::slot(log, slot);
        let range = home.segment.frames[home.frame as usize].clone();
        let sealed = self.vault.store().get_range(&name, range.clone()).await;
        let sealed = sealed.map_err(VaultError::from)?.bytes;
        let (segment, number) = (Arc::clone(&home.segment), home.frame);
        let hasher = self.vault.hasher().clone();
        let opening = blocking::run(move || open_frame(&segment, number, &sealed, &hasher));
        let opened = opening.await.map_err(|source| VaultError::Task { source })?;
        opened.map_err(|source| self.vault.damaged(name, range.start, source)).map(Bytes::from)
    }
}

/// The place of a chunk that `user` refers to as number `number` of `target`, if it is that chunk.
pub(crate) fn referred(
    target: &OpenSegment,
    number: u32,
    user: &SegmentChunk,
) -> Option<(u32, u32)> {
    let chunk = target.table.chunks.get(number as usize)?;
    match chunk.place {
        ChunkPlace::Here { frame, offset }
            if chunk.id == user.id && chunk.blocks == user.blocks =>
        {
            Some((frame, offset))
        }
        _ => None,
    }
}

/// Opens a frame and compares all its chunks with their ids.
pub(crate) fn open_frame(
    segment: &OpenSegment,
    number: u32,
    sealed: &[u8],
    hasher: &ChunkHasher,
) -> Result<Vec<u8>, CodecError> {
    let mut raw = Vec::new();
    segment.opener.open_frame(&segment.table, number, sealed, &mut raw)?;
    for (chunk, held) in (0..).zip(&segment.table.chunks) {
        if matches!(held.place, ChunkPlace::Here { frame, .. } if frame == number) {
            chunk_of(&segment.table, chunk, &raw, hasher)?;
        }
    }
    Ok(raw)
}
