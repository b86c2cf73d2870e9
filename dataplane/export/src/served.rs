//! A recovery point that can be written: a view below, an overlay on top.
//!
//! For an NBD server or a boot: nothing is copied first. Offsets and lengths are in bytes, of any number.
//! Calls may overlap.

use crate::limits::{OVERLAY_IO_BYTES_MAX, OVERLAY_STRIPE_BLOCKS, OVERLAY_STRIPES};
use crate::overlay::{Overlay, OverlayBase, OverlayError};
use bytes::{Bytes, BytesMut};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{BlockRange, ErrorKind};
use farshore_vault::view::flatten;
use farshore_vault::{Piece, VaultError, VolumeView};
use futures::TryStreamExt;
use futures::{StreamExt, stream};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Parts of one read that are fetched at the same time.
const PARTS_IN_FLIGHT_MAX: usize = 4;
/// Blocks whose content is asked for at once where it is told what holds data: 256 MiB.
const EXTENTS_STEP_BLOCKS: u64 = 1 << 16;

/// Why an export could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The recovery point could not be read.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The overlay could not be read or written.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// Not whole sectors inside the disk, or too much at once.
    #[error(
        "{length} bytes at {offset} do not lie inside a disk of {size_bytes} bytes, or are too many"
    )]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Size of the disk.
        size_bytes: u64,
    },
    /// A background task was cancelled or panicked.
    #[error("a task of the export ended early")]
    Task {
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

impl ExportError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Vault(error) => error.kind(),
            Self::Overlay(error) => error.kind(),
            Self::Range { .. } => ErrorKind::Invalid,
            Self::Task { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the overlay's file system is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Overlay(error) if error.is_no_space())
    }
}

/// What a run of an export holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Data.
    Data,
    /// Nothing: it reads as zeroes.
    Hole,
}

/// A recovery point with an overlay.
#[derive(Debug)]
pub struct Export {
    view: VolumeView,
    overlay: Arc<Overlay>,
    /// A write of whole blocks shares its stripes; one that must read before it writes has them alone.
    stripes: Vec<RwLock<()>>,
}

enum Guard<'a> {
    Shared { _guard: RwLockReadGuard<'a, ()> },
    Alone { _guard: RwLockWriteGuard<'a, ()> },
}

impl Export {
    /// Opens, or makes, the overlay at `path` over the view.
    ///
    /// # Errors
    /// As [`Overlay::open`].
    pub async fn open(view: VolumeView, path: &Path) -> Result<Self, ExportError> {
        let base = OverlayBase {
            volume: view.volume(),
            seq: view.point().seq,
            size_bytes: view.size_bytes(),
        };
        let path = path.to_owned();
        let overlay = blocking(move || Overlay::open(&path, base)).await?;
        let stripes = (0..OVERLAY_STRIPES).map(|_| RwLock::new(())).collect();
        Ok(Self { view, overlay: Arc::new(overlay), stripes })
    }

    /// The recovery point below.
    #[must_use]
    pub fn view(&self) -> &VolumeView {
        &self.view
    }

    /// The overlay on top.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.view.size_bytes()
    }

    /// Reads: pieces in order that add up to exactly `length` bytes, at most
    /// `OVERLAY_IO_BYTES_MAX`.
    ///
    /// # Errors
    /// As [`ExportError`].
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, ExportError> {
        self.check(offset, length, OVERLAY_IO_BYTES_MAX as u64)?;
        let mut pieces = self.read_blocks(blocks_around(offset, length)).await?;
        cut(&mut pieces, offset % BLOCK_BYTES as u64, length);
        Ok(pieces)
    }

    async fn read_blocks(&self, range: BlockRange) -> Result<Vec<Piece>, ExportError> {
        let runs: Vec<_> = self.overlay.runs(range).collect();
        let parts = stream::iter(runs).map(|(run, is_held)| async move {
            if !is_held {
                return self.view.read(run).await.map_err(ExportError::from);
            }
            let overlay = Arc::clone(&self.overlay);
            let read = blocking(move || {
                let length = usize::try_from(run.bytes()).expect("a read has a limit");
                let mut bytes = BytesMut::zeroed(length);
                overlay.read(run.block, &mut bytes).map(|()| bytes.freeze())
            });
            Ok(vec![Piece::Data(read.await?)])
        });
        let parts: Vec<Vec<Piece>> = parts.buffered(PARTS_IN_FLIGHT_MAX).try_collect().await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Writes; durable after the next `flush`.
    ///
    /// # Errors
    /// As [`ExportError`].
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let length = data.len() as u64;
        self.check(offset, length, OVERLAY_IO_BYTES_MAX as u64)?;
        let range = blocks_around(offset, length);
        let below = self.below(range, offset, length).await?;
        let is_whole = below.is_empty();
        let _guards = self.lock(range, !is_whole).await;
        let data = if is_whole { data } else { self.merge(range, offset, &data, below).await? };
        let overlay = Arc::clone(&self.overlay);
        blocking(move || overlay.write(range.block, &data)).await
    }

    /// The blocks of `range` that a write covers in part, each with what the point below holds there, unless
    /// it is in the overlay.
    ///
    /// The point never changes, and what is in the overlay stays there: so nobody has to be kept waiting
    /// while a store that is away is asked.
    async fn below(
        &self,
        range: BlockRange,
        offset: u64,
        length: u64,
    ) -> Result<Vec<(u64, Option<Vec<u8>>)>, ExportError> {
        let (first, last) = (range.block, range.end() - 1);
        let is_front_cut = range.offset() != offset;
        let is_back_cut = range.offset() + range.bytes() != offset + length;
        let mut below = Vec::new();
        for (block, is_cut) in [(first, is_front_cut), (last, is_back_cut)] {
            if !is_cut || below.last().is_some_and(|(known, _)| *known == block) {
                continue;
            }
            let one = BlockRange { block, count: 1 };
            let held = if self.overlay.holds(block) {
                None
            } else {
                Some(flatten(&self.view.read(one).await?))
            };
            below.push((block, held));
        }
        Ok(below)
    }

    /// The blocks of `range` as they will be once `data` is at `offset`.
    async fn merge(
        &self,
        range: BlockRange,
        offset: u64,
        data: &[u8],
        below: Vec<(u64, Option<Vec<u8>>)>,
    ) -> Result<Bytes, ExportError> {
        let mut bytes = BytesMut::zeroed(usize::try_from(range.bytes()).expect("checked before"));
        for (block, held) in below {
            let at = usize::try_from(block - range.block).expect("a write has a limit");
            let at = at * BLOCK_BYTES;
            let block = match held.filter(|_| !self.overlay.holds(block)) {
                Some(held) => held,
                // It was there, or somebody wrote it since.
                None => flatten(&self.read_blocks(BlockRange { block, count: 1 }).await?),
            };
            bytes[at..at + BLOCK_BYTES].copy_from_slice(&block);
        }
        let at = usize::try_from(offset - range.offset()).expect("inside a block");
        bytes[at..at + data.len()].copy_from_slice(data);
        Ok(bytes.freeze())
    }

    /// Makes a range zero; durable after the next `flush`. Whole blocks take no space.
    ///
    /// # Errors
    /// As [`ExportError`].
    pub async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.check(offset, length, self.size_bytes())?;
        let block_bytes = BLOCK_BYTES as u64;
        let end = offset + length;
        let (from, to) = (offset.next_multiple_of(block_bytes), end - end % block_bytes);
        if from >= to {
            return self.write_small_zeroes(offset, length).await;
        }
        self.write_small_zeroes(offset, from - offset).await?;
        self.write_small_zeroes(to, end - to).await?;
        let mut block = from / block_bytes;
        let end = to / block_bytes;
        while block < end {
            // In steps, so that a request for the whole disk does not hold up everything else.
            let count = (end - block).min(OVERLAY_STRIPE_BLOCKS * OVERLAY_STRIPES as u64);
            let range = BlockRange { block, count };
            let _guards = self.lock(range, false).await;
            let overlay = Arc::clone(&self.overlay);
            blocking(move || overlay.zero(range)).await?;
            block += count;
        }
        Ok(())
    }

    async fn write_small_zeroes(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        if length == 0 {
            return Ok(());
        }
        let length = usize::try_from(length).expect("less than two blocks");
        self.write(offset, BytesMut::zeroed(length).freeze()).await
    }

    /// Gives up the content of a range: whole blocks in it read as zeroes from now on.
    ///
    /// # Errors
    /// As [`ExportError`].
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.check(offset, length, self.size_bytes())?;
        let block_bytes = BLOCK_BYTES as u64;
        let from = offset.next_multiple_of(block_bytes);
        let to = (offset + length) - (offset + length) % block_bytes;
        if from < to {
            self.write_zeroes(from, to - from).await?;
        }
        Ok(())
    }

    /// Makes everything that was answered before durable.
    ///
    /// # Errors
    /// As [`ExportError`].
    pub async fn flush(&self) -> Result<(), ExportError> {
        let overlay = Arc::clone(&self.overlay);
        blocking(move || overlay.flush()).await
    }

    /// What a range holds: runs in order from `offset`, lengths in bytes; at most `count_max` of
    /// them, so they may cover less than the range.
    ///
    /// # Errors
    /// `Invalid` for a range that is not whole sectors inside the disk; as [`ExportError`] where the map of the point
    /// has to be read.
    pub async fn extents(
        &self,
        offset: u64,
        length: u64,
        count_max: usize,
    ) -> Result<Vec<(u64, Holds)>, ExportError> {
        self.check(offset, length, self.size_bytes())?;
        let mut extents: Vec<(u64, Holds)> = Vec::new();
        let range = blocks_around(offset, length);
        let mut block = range.block;
        // In steps: the answer may be full long before the end.
        while block < range.end() {
            let count = EXTENTS_STEP_BLOCKS.min(range.end() - block);
            for (run, is_data) in self.runs(BlockRange { block, count }).await? {
                let from = run.offset().max(offset);
                let bytes = (run.offset() + run.bytes()).min(offset + length) - from;
                let holds = if is_data { Holds::Data } else { Holds::Hole };
                let is_full = extents.len() == count_max;
                match extents.last_mut() {
                    Some((last, kind)) if *kind == holds => *last += bytes,
                    _ if is_full => return Ok(extents),
                    _ => extents.push((bytes, holds)),
                }
            }
            block += count;
        }
        Ok(extents)
    }

    /// What a range holds, in block order: data or not.
    async fn runs(&self, range: BlockRange) -> Result<Vec<(BlockRange, bool)>, ExportError> {
        let overlaid: Vec<_> = self.overlay.runs(range).collect();
        let mut runs = Vec::with_capacity(overlaid.len());
        for (run, is_held) in overlaid {
            match is_held {
                true => runs.push((run, true)),
                false => runs.extend(self.view.extents(run).await?),
            }
        }
        Ok(runs)
    }

    fn check(&self, offset: u64, length: u64, max: u64) -> Result<(), ExportError> {
        let size_bytes = self.size_bytes();
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= size_bytes);
        if !is_inside || length == 0 || length > max {
            return Err(ExportError::Range { offset, length, size_bytes });
        }
        Ok(())
    }

    /// Locks the stripes of a range, in their order, so that two requests never wait for each other.
    async fn lock(&self, range: BlockRange, is_alone: bool) -> Vec<Guard<'_>> {
        let first = range.block / OVERLAY_STRIPE_BLOCKS;
        let last = (range.end() - 1) / OVERLAY_STRIPE_BLOCKS;
        let stripes = OVERLAY_STRIPES as u64;
        let count = (last - first + 1).min(stripes);
        let wanted: BTreeSet<u64> = (first..first + count).map(|at| at % stripes).collect();
        let mut guards = Vec::with_capacity(wanted.len());
        for stripe in wanted {
            let lock = &self.stripes[usize::try_from(stripe).expect("a small number")];
            guards.push(if is_alone {
                Guard::Alone { _guard: lock.write().await }
            } else {
                Guard::Shared { _guard: lock.read().await }
            });
        }
        guards
    }
}

fn blocks_around(offset: u64, length: u64) -> BlockRange {
    let block = offset / BLOCK_BYTES as u64;
    let end = (offset + length).div_ceil(BLOCK_BYTES as u64);
    BlockRange { block, count: end - block }
}

/// Cuts pieces down to the `length` bytes behind the first `skip`.
fn cut(pieces: &mut Vec<Piece>, skip: u64, length: u64) {
    let (mut skip, mut left) = (skip, length);
    for piece in pieces.iter_mut() {
        let from = skip.min(piece.bytes());
        let kept = (piece.bytes() - from).min(left);
        skip -= from;
        left -= kept;
        match piece {
            Piece::Zeroes(bytes) => *bytes = kept,
            Piece::Data(data) => {
                let narrow = |bytes: u64| usize::try_from(bytes).expect("inside the piece");
                *data = data.slice(narrow(from)..narrow(from + kept));
            }
        }
    }
    pieces.retain(|piece| piece.bytes() > 0);
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OverlayError> + Send + 'static,
) -> Result<T, ExportError> {
    match farshore_vault::blocking::run(work).await {
        Ok(result) => result.map_err(ExportError::from),
        Err(source) => Err(ExportError::Task { source }),
    }
}

#[cfg(test)]
mod tests;
