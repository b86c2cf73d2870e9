//! From a reference to the bytes of a chunk: tables and frames, cached.
//!
//! A chunk is compared with what is known of its id before its bytes are used.

use crate::blocking;
use crate::blocks::{Source, check_of};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{
    CACHE_SHARDS, FRAME_CACHE_BYTES, FRAMES_OPENING_MAX, PAGE_CACHE_BYTES, TABLE_CACHE_BYTES,
};
use crate::log::{OpenSegment, read_segment};
use crate::map::{Layer, PageKey};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::segment::open_frame_at;
use farshore_codec::{ChunkHasher, CodecError};
use farshore_proto::Target;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::map::{CHECK_BYTES, FrameAt, Page};
use farshore_proto::segment::{ChunkPlace, SegmentChunk};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

type FrameKey = (Target, u32);

/// A page, and what it weighs in the cache.
type CachedPage = (Arc<Page>, u64);

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

/// Blocks of a chunk, and the frame that holds it: all that reading them takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    /// The frame.
    pub frame: FrameAt,
    /// Number of the chunk in the table of the segment.
    pub chunk: u32,
    /// Byte offset of the chunk in the opened frame.
    pub offset: u32,
    /// Length of the chunk in blocks.
    pub blocks: u32,
    /// First block inside the chunk.
    pub first: u32,
    /// The first bytes of the chunk's id.
    pub check: [u8; CHECK_BYTES],
}

impl Stored {
    /// Blocks from `first` on of the chunk of a page.
    pub(crate) fn of_page(page: &Page, chunk: u32, first: u32) -> Self {
        // In range: the page's decoder compared them.
        let held = page.chunks[chunk as usize];
        let frame = page.frames[held.frame as usize];
        let (chunk, offset, blocks, check) = (held.number, held.offset, held.blocks, held.check);
        Self { frame, chunk, offset, blocks, first, check }
    }

    /// What is left behind its first blocks.
    ///
    /// # Panics
    /// If a chunk never has so many: a bug in the caller.
    #[must_use]
    pub fn skip(self, blocks: u64) -> Self {
        let blocks = u32::try_from(blocks).expect("inside the run");
        Self { first: self.first + blocks, ..self }
    }

    /// Whether both are of one chunk, as it is known.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        Self { first: 0, ..*self } == Self { first: 0, ..*other }
    }

    /// Where the first of its blocks is in the opened frame.
    #[must_use]
    pub fn start(&self) -> usize {
        self.offset as usize + self.first as usize * BLOCK_BYTES
    }

    fn chunk_range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + self.blocks as usize * BLOCK_BYTES
    }

    /// Compares the whole chunk, in its opened frame, with what is known of its id.
    ///
    /// # Errors
    /// `Corrupt` if it is not that chunk.
    pub fn check(&self, frame: &[u8], hasher: &ChunkHasher) -> Result<(), CodecError> {
        let chunk = frame.get(self.chunk_range());
        match chunk.is_some_and(|bytes| check_of(&hasher.id(bytes)) == self.check) {
            true => Ok(()),
            false => Err(CodecError::OtherChunk { number: self.chunk }),
        }
    }
}

/// An opened frame, and which of its chunks were compared with what is known of them.
#[derive(Debug)]
struct OpenFrame {
    bytes: Bytes,
    /// Offset, length and check of those that have it.
    checked: Mutex<HashSet<(u32, u32, [u8; CHECK_BYTES])>>,
}

impl OpenFrame {
    fn check(&self, stored: &Stored, hasher: &ChunkHasher) -> Result<(), CodecError> {
        let chunk = (stored.offset, stored.blocks, stored.check);
        let checked = || self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if !checked().contains(&chunk) {
            stored.check(&self.bytes, hasher)?;
            checked().insert(chunk);
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct BySize;

impl Weighter<Target, Arc<OpenSegment>> for BySize {
    fn weight(&self, _: &Target, segment: &Arc<OpenSegment>) -> u64 {
        segment.memory_bytes()
    }
}

impl Weighter<FrameKey, Arc<OpenFrame>> for BySize {
    fn weight(&self, _: &FrameKey, frame: &Arc<OpenFrame>) -> u64 {
        frame.bytes.len() as u64 + 1024
    }
}

impl Weighter<PageKey, CachedPage> for BySize {
    fn weight(&self, _: &PageKey, page: &CachedPage) -> u64 {
        page.1
    }
}

type SizedCache<K, V> = Cache<K, V, BySize>;

/// Reads chunks by reference.
#[derive(Debug)]
pub(crate) struct ChunkReader {
    vault: Vault,
    user: ObjectName,
    tables: SizedCache<Target, Arc<OpenSegment>>,
    frames: SizedCache<FrameKey, Arc<OpenFrame>>,
    pages: SizedCache<PageKey, CachedPage>,
    opening: Semaphore,
}

fn cache<K, V>(bytes: u64, item: u64) -> SizedCache<K, V>
where
    K: Eq + std::hash::Hash,
    V: Clone,
    BySize: Weighter<K, V>,
{
    let items = usize::try_from(bytes / item).expect("the constants are small");
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
            pages: cache(PAGE_CACHE_BYTES, 256 << 10),
            opening: Semaphore::new(FRAMES_OPENING_MAX),
        }
    }

    /// A page of a layer.
    pub(crate) async fn page(
        &self,
        layer: &Arc<Layer>,
        key: PageKey,
    ) -> Result<Arc<Page>, VaultError> {
        let read = async {
            let page = layer.read(&self.vault, key, &self.user).await?;
            Ok((Arc::new(page), layer.page_bytes(key)))
        };
        self.pages.get_or_insert_async(&key, read).await.map(|(page, _)| page)
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
        let object = ObjectName::slot(log, slot);
        let read = async {
            let mut segment = read_segment(&self.vault, log, slot).await?;
            if segment.target() != target && !is_on(Bug::AttemptNotCompared) {
                // The one that was there is gone.
                let (url, user) = (self.vault.url().to_owned(), user.clone());
                return Err(VaultError::Replaced { url, object: object.clone(), user });
            }
            segment.table.spans = Vec::new();
            Ok(Arc::new(segment))
        };
        let segment = self.tables.get_or_insert_async(&target, read).await;
        match segment {
            Ok(segment) => Ok(segment),
            Err(error) => Err(self.vault.lost(error, object, user).await),
        }
    }

    /// Where `count` blocks of a chunk that a table names are stored, by the table of the segment that holds it.
    pub(crate) async fn stored(
        &self,
        target: Target,
        source: &Source,
        count: u64,
    ) -> Result<Stored, VaultError> {
        let segment = self.segment(target, &self.user).await?;
        let end = u64::from(source.first) + count;
        let is_it = |chunk: &&SegmentChunk| {
            check_of(&chunk.id) == source.check && end <= chunk.blocks.into()
        };
        match segment.table.chunks.get(source.chunk as usize).filter(is_it) {
            Some(SegmentChunk { place: ChunkPlace::Here { frame, offset }, blocks, .. }) => {
                let frame = segment.frame_at(*frame);
                let (chunk, first, check) = (source.chunk, source.first, source.check);
                Ok(Stored { frame, chunk, offset: *offset, blocks: *blocks, first, check })
            }
            _ => Err(VaultError::Reference {
                url: self.vault.url().to_owned(),
                object: self.user.clone(),
                chunk: source.chunk,
                target: ObjectName::slot(target.log, target.slot),
            }),
        }
    }

    /// `count` blocks of a chunk.
    ///
    /// What is returned keeps at most about twice its own length in memory: a frame holds many chunks, and a
    /// slice of it would keep all of them for as long as the answer is on its way.
    pub(crate) async fn blocks(&self, stored: &Stored, count: u64) -> Result<Bytes, VaultError> {
        let at = &stored.frame;
        let key = (at.target, at.number);
        let frame = self.frames.get_or_insert_async(&key, self.read_frame(at)).await?;
        let checked = frame.check(stored, self.vault.hasher());
        checked.map_err(|cause| self.vault.damaged_frame(at, cause, &self.user))?;
        let start = stored.start();
        let length = usize::try_from(count).expect("a run of a chunk is short") * BLOCK_BYTES;
        // In range: the chunk was just found in the frame, and the run lies in the chunk.
        let blocks = start..start + length;
        Ok(match 2 * length < frame.bytes.len() {
            true => Bytes::copy_from_slice(&frame.bytes[blocks]),
            false => frame.bytes.slice(blocks),
        })
    }

    async fn read_frame(&self, at: &FrameAt) -> Result<Arc<OpenFrame>, VaultError> {
        // Of all readers: each has a few under way, and there may be many.
        let _permit = self.opening.acquire().await;
        let name = ObjectName::slot(at.target.log, at.target.slot);
        let sealed = match self.vault.store().get_range(&name, at.range()).await {
            Ok(part) => part.bytes,
            Err(error) => return Err(self.vault.lost(error.into(), name, &self.user).await),
        };
        let (vault, at) = (self.vault.clone(), *at);
        let opening = blocking::run(move || {
            let mut raw = Vec::new();
            open_frame_at(vault.id(), &at, &sealed, vault.ring(), &mut raw).map(|()| raw)
        });
        match opening.await.map_err(|source| VaultError::Task { source })? {
            Ok(raw) => Ok(Arc::new(OpenFrame { bytes: raw.into(), checked: Mutex::default() })),
            Err(cause) => Err(self.vault.damaged_frame(&at, cause, &self.user)),
        }
    }
}
