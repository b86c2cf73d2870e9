//! The order of a restore: by where the bytes are stored, each frame once.

use super::sorter::{Sorted, Sorter};
use super::{RestoreError, io_error};
use crate::limits::FRAME_WRITE_BYTES;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::map::FrameAt;
use farshore_vault::VolumeView;
use farshore_vault::fetch::Fetch;
use farshore_vault::view::Stored;
use futures::TryStreamExt;
use std::ops::Range;
use std::path::Path;

/// A run of blocks and where its bytes are stored. Ordered by the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) stored: Stored,
    /// First block of the run in the volume.
    pub(super) block: u64,
    pub(super) count: u32,
}

impl Place {
    fn bytes(&self) -> u64 {
        u64::from(self.count) * BLOCK_BYTES as u64
    }
}

/// What is wanted of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) frame: FrameAt,
    /// Never empty; in order.
    pub(super) places: Vec<Place>,
}

/// Frames of one segment to be fetched at once.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) range: Range<u64>,
    pub(super) frames: Vec<Wanted>,
}

/// All that a restore writes, in the order of storage.
#[derive(Debug)]
pub(super) struct Plan {
    sorted: Sorted,
    /// Read one too far.
    next: Option<Place>,
    /// Bytes of data.
    pub(super) data_bytes: u64,
}

impl Plan {
    /// Finds where every run of the view is stored; what does not fit into memory is sorted in files in `directory`,
    /// which have no names.
    pub(super) async fn make(view: &VolumeView, directory: &Path) -> Result<Self, RestoreError> {
        let mut sorter = Sorter::new(directory);
        let mut data_bytes = 0;
        let mut windows = std::pin::pin!(view.windows());
        while let Some(window) = windows.try_next().await? {
            for (run, stored) in window {
                let count = u32::try_from(run.count).expect("a run of a chunk is short");
                data_bytes += run.bytes();
                sorter.push(Place { stored, block: run.block, count });
            }
            if sorter.is_full() {
                let spilling = move || sorter.spill().map(|()| sorter);
                sorter = sorting(spilling, directory).await?;
            }
        }
        let sorted = sorting(move || sorter.finish(), directory).await?;
        Ok(Self { sorted, next: None, data_bytes })
    }

    /// What is wanted of the next frames, at most `frames` of them; none at the end. What very many runs want of one
    /// frame comes in several pieces.
    pub(super) fn next_frames(&mut self, frames: usize) -> std::io::Result<Vec<Wanted>> {
        let mut found: Vec<Wanted> = Vec::new();
        // Of what is wanted of the last frame.
        let mut bytes = 0;
        loop {
            let next = match self.next.take() {
                Some(next) => Some(next),
                None => self.sorted.next()?,
            };
            let Some(place) = next else { return Ok(found) };
            let frame = place.stored.frame;
            let is_full = found.len() == frames;
            match found.last_mut() {
                Some(last) if last.frame == frame && bytes < FRAME_WRITE_BYTES => {
                    last.places.push(place);
                    bytes += place.bytes();
                }
                _ if is_full => {
                    self.next = Some(place);
                    return Ok(found);
                }
                _ => {
                    found.push(Wanted { frame, places: vec![place] });
                    bytes = place.bytes();
                }
            }
        }
    }
}

async fn sorting<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    directory: &Path,
) -> Result<T, RestoreError> {
    let failed = io_error(directory, "sort what is to be fetched, in a file there");
    super::blocking(move || work().map_err(failed)).await
}

/// The jobs for what is wanted of frames, which are in order.
pub(super) fn jobs(frames: Vec<Wanted>) -> Vec<Job> {
    let mut jobs: Vec<(Fetch, Vec<Wanted>)> = Vec::new();
    for wanted in frames {
        let range = wanted.frame.range();
        if let Some((fetch, frames)) = jobs.last_mut()
            && frames.last().is_some_and(|last| last.frame.target == wanted.frame.target)
            && fetch.join(&range)
        {
            frames.push(wanted);
        } else {
            jobs.push((Fetch::of(range), vec![wanted]));
        }
    }
    jobs.into_iter().map(|(fetch, frames)| Job { range: fetch.range, frames }).collect()
}

/// The writes of what is wanted of one frame: first block, and bytes of the frame. Runs that lie
/// side by side in both are one write.
pub(super) fn writes(places: &[Place]) -> Vec<(u64, Range<usize>)> {
    let mut writes: Vec<(u64, Range<usize>)> = Vec::new();
    for place in places {
        let start = place.stored.start();
        let end = start + place.count as usize * BLOCK_BYTES;
        match writes.last_mut() {
            Some((block, bytes))
                if bytes.end == start
                    && *block + (bytes.len() / BLOCK_BYTES) as u64 == place.block =>
            {
                bytes.end = end;
            }
            _ => writes.push((place.block, start..end)),
        }
    }
    writes
}
