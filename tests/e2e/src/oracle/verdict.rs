//! What an image holds, and whether the log of writes allows it.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Entry, HEAD_BYTES, Kind, MAGIC, Moment, Standing, WriteLog};
use crate::image;

/// Writes of a block that a message names.
const HISTORY_MAX: usize = 6;

/// A moment's state of the disk, found in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// What the image holds.
    pub standing: Standing,
    /// The image is the state at one of the moments from here …
    pub earliest: Moment,
    /// … to here.
    pub latest: Moment,
}

/// What one block of an image was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Version(usize),
    Zeroes,
    Base,
    /// Zeros, on a block that was zero before all writes.
    BaseZeroes,
    Other,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version}"),
            Self::Zeroes | Self::BaseZeroes => f.write_str("zeros"),
            Self::Base => f.write_str("what was there before all writes"),
            Self::Other => f.write_str("bytes that nobody wrote there"),
        }
    }
}

/// Moments from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    first: u64,
    last: u64,
}

/// A bound and the block that sets it.
#[derive(Clone, Copy, Debug)]
struct Bound {
    at: u64,
    block: usize,
}

impl WriteLog {
    /// Whether a block may hold this when every write that ended before `at` has been done.
    pub(super) fn stands(&self, number: usize, found: Found, at: u64) -> bool {
        self.windows(number, found).iter().any(|window| window.last >= at)
    }

    /// The moments at which a block may hold this; some that touch or overlap.
    ///
    /// A moment `t` has seen a write that ended before `t`, and not one that was issued at `t` or
    /// later.
    fn windows(&self, number: usize, found: Found) -> Vec<Window> {
        let versions = &self.blocks[number];
        let ends = self.first_ends(versions);
        // From when on a write that was issued after `ended` must show.
        let overwritten = |ended: u64| {
            let later = versions.partition_point(|version| self.of(*version).issued <= ended);
            ends[later]
        };
        let window = |version: u32| {
            let entry = self.of(version);
            Window { first: entry.issued + 1, last: overwritten(entry.ended) }
        };
        let base = || Window { first: 0, last: overwritten(0) };
        let zeroes = || {
            let is_zero = |version: &&u32| self.of(**version).kind == Kind::Zeroes;
            versions.iter().filter(is_zero).map(|version| window(*version))
        };
        match found {
            Found::Version(version) => {
                let version = u32::try_from(version).unwrap_or(0);
                let wrote =
                    versions.binary_search(&version).is_ok() && self.of(version).kind == Kind::Data;
                wrote.then(|| window(version)).into_iter().collect()
            }
            Found::Base => vec![base()],
            Found::Zeroes => zeroes().collect(),
            Found::BaseZeroes => std::iter::once(base()).chain(zeroes()).collect(),
            Found::Other => Vec::new(),
        }
    }

    /// For each place in a block's history, and one behind it: when the first acknowledged write
    /// from there on ended.
    fn first_ends(&self, versions: &[u32]) -> Vec<u64> {
        let mut ends = vec![u64::MAX; versions.len() + 1];
        for (at, version) in versions.iter().enumerate().rev() {
            let entry = self.of(*version);
            let own = if entry.is_acked { entry.ended } else { u64::MAX };
            ends[at] = ends[at + 1].min(own);
        }
        ends
    }

    fn of(&self, version: u32) -> &Entry {
        &self.entries[version as usize - 1]
    }

    /// The moments at which the disk held all this.
    pub(super) fn prefix(&self, found: &[Found], from: Moment, to: Moment) -> Result<Prefix> {
        let mut earliest = Bound { at: from.0, block: 0 };
        let mut latest = Bound { at: to.0, block: 0 };
        let mut choices = Vec::new();
        for (block, what) in found.iter().enumerate() {
            let windows = self.windows(block, *what);
            match windows.as_slice() {
                [] => bail!("block {block} holds {what}; {}", self.told(block, *what)),
                [window] => {
                    if window.first > earliest.at {
                        earliest = Bound { at: window.first, block };
                    }
                    if window.last < latest.at {
                        latest = Bound { at: window.last, block };
                    }
                }
                _ => choices.push(windows),
            }
        }
        ensure!(
            earliest.at <= latest.at,
            "no moment from {} to {} fits: block {} holds {} ({}), but block {} holds {} ({})",
            from.0,
            to.0,
            earliest.block,
            found[earliest.block],
            self.told(earliest.block, found[earliest.block]),
            latest.block,
            found[latest.block],
            self.told(latest.block, found[latest.block]),
        );
        let fitting = fit(Window { first: earliest.at, last: latest.at }, &choices);
        let (first, last) =
            fitting.context("the zeros of this image were not there at one time")?;
        self.check_whole(found)?;
        let standing = self.standing(found, first);
        Ok(Prefix { standing, earliest: Moment(first), latest: Moment(last) })
    }

    /// Checks that no acknowledged write is there in part: its other blocks hold it too, or
    /// something that did not end before it was issued.
    fn check_whole(&self, found: &[Found]) -> Result<()> {
        let versions = found.iter().filter_map(|found| match found {
            Found::Version(version) => Some(*version),
            _ => None,
        });
        for version in versions.collect::<BTreeSet<_>>() {
            let entry = self.entries[version - 1];
            if !entry.is_acked {
                continue;
            }
            let first = entry.first_block as usize;
            let blocks = entry.blocks as usize;
            for (block, held) in found.iter().enumerate().skip(first).take(blocks) {
                ensure!(
                    self.is_not_older(block, *held, entry.issued),
                    "write {version} of blocks {first}+{} is there in part: block {block} holds {} ({})",
                    entry.blocks,
                    held,
                    self.told(block, *held)
                );
            }
        }
        Ok(())
    }

    /// Whether a block's content did not end before a write was issued.
    fn is_not_older(&self, block: usize, found: Found, issued: u64) -> bool {
        match found {
            Found::Version(version) => self.entries[version - 1].ended >= issued,
            Found::Zeroes | Found::BaseZeroes => self.blocks[block].iter().rev().any(|version| {
                let entry = self.of(*version);
                entry.kind == Kind::Zeroes && entry.ended >= issued
            }),
            Found::Base | Found::Other => false,
        }
    }

    pub(super) fn standing(&self, found: &[Found], at: u64) -> Standing {
        let is_written = |found: &&Found| !matches!(found, Found::Base | Found::BaseZeroes);
        Standing {
            version: self.entries.partition_point(|entry| entry.issued < at),
            written_blocks: found.iter().filter(is_written).count(),
        }
    }

    fn told(&self, block: usize, found: Found) -> String {
        format!("its writes are {}", self.history(block, found))
    }

    /// The writes of a block that matter for what it holds, newest first.
    pub(super) fn history(&self, block: usize, found: Found) -> String {
        let versions = &self.blocks[block];
        let held = match found {
            Found::Version(version) => versions.partition_point(|v| (*v as usize) < version),
            _ => versions.len(),
        };
        let told = |version: &u32| {
            let entry = self.of(*version);
            let end = match (entry.is_acked, entry.ended) {
                (true, ended) => format!("acknowledged at {ended}"),
                (false, u64::MAX) => "under way".to_owned(),
                (false, ended) => format!("lost at {ended}"),
            };
            format!(
                "{version} ({:?} by {}, issued at {}, {end})",
                entry.kind, entry.lane, entry.issued
            )
        };
        let from = held.saturating_sub(HISTORY_MAX / 2).min(versions.len());
        let to = (from + HISTORY_MAX).min(versions.len());
        let mut texts: Vec<String> = versions[from..to].iter().rev().map(told).collect();
        if let Some(last) = versions.last().filter(|_| to < versions.len()) {
            texts.insert(0, format!("{} …", told(last)));
        }
        if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
    }

    pub(super) fn read_image(&self, image: &Path, base: &Path) -> Result<Vec<Found>> {
        let (mut image, mut base) = (image::blocks(image)?, image::blocks(base)?);
        let mut found = Vec::with_capacity(self.blocks.len());
        for number in 0..self.blocks.len() {
            let (bytes, before) = (image::next(&mut image)?, image::next(&mut base)?);
            found.push(self.classify(number as u64, &bytes, &before));
        }
        ensure!(image.read(&mut [0])? == 0, "the image is longer than the disk");
        Ok(found)
    }

    pub(super) fn classify(&self, number: u64, bytes: &[u8], before: &[u8]) -> Found {
        if let Some(version) = self.version_of(number, bytes) {
            return Found::Version(version);
        }
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        match (is_zero, bytes == before) {
            (true, true) => Found::BaseZeroes,
            (false, true) => Found::Base,
            (true, false) => Found::Zeroes,
            (false, false) => Found::Other,
        }
    }

    /// The version that a block comes from, or nothing when it is not of this log and place.
    fn version_of(&self, number: u64, bytes: &[u8]) -> Option<usize> {
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let version = usize::try_from(word(16)?).ok()?;
        let is_ours = bytes.starts_with(MAGIC)
            && word(8)? == number
            && word(HEAD_BYTES - 8)? == self.seed
            && (1..=self.entries.len()).contains(&version);
        (is_ours && bytes == self.content(number, version)).then_some(version)
    }
}

/// The first moment of `all` at which every block has one of its windows open, and the last of the
/// moments that follow it without a break.
fn fit(all: Window, choices: &[Vec<Window>]) -> Option<(u64, u64)> {
    let mut edges: Vec<(u64, i64)> = Vec::new();
    for windows in choices {
        let clip = |window: &Window| Window {
            first: window.first.max(all.first),
            last: window.last.min(all.last),
        };
        let mut sorted: Vec<Window> =
            windows.iter().map(clip).filter(|window| window.first <= window.last).collect();
        sorted.sort_by_key(|window| window.first);
        let mut open: Option<Window> = None;
        for window in sorted {
            match &mut open {
                Some(before) if window.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(window.last);
                }
                _ => push(open.replace(window), &mut edges),
            }
        }
        push(open, &mut edges);
    }
    // Of the edges at one moment, those that open come first.
    edges.sort_by_key(|(at, step)| (*at, -step));
    let wanted = i64::try_from(choices.len()).ok()?;
    let mut count = 0;
    let mut first = (wanted == 0).then_some(all.first);
    for (at, step) in edges {
        count += step;
        if count == wanted && step > 0 {
            first.get_or_insert(at);
        } else if let Some(first) = first {
            return Some((first, at - 1));
        }
    }
    first.map(|first| (first, all.last))
}

/// The edges of a window; one that ends with the last moment has no second one.
fn push(window: Option<Window>, edges: &mut Vec<(u64, i64)>) {
    if let Some(window) = window {
        edges.push((window.first, 1));
        edges.extend(window.last.checked_add(1).map(|behind| (behind, -1)));
    }
}
