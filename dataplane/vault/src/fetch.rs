//! Fetching many frames: neighbours in one GET.

use crate::limits::{BULK_GAP_BYTES, BULK_GET_BYTES};
use std::ops::Range;

/// Of what one GET brings, at most so much may be unwanted.
const UNWANTED_SHARE: u64 = 8;

/// What one GET brings of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The bytes of the object.
    pub range: Range<u64>,
    /// Bytes of it that nobody wants.
    unwanted: u64,
}

impl Fetch {
    /// A range alone.
    #[must_use]
    pub fn of(range: Range<u64>) -> Self {
        Self { range, unwanted: 0 }
    }

    /// Adds a range that lies behind, if one GET for all is better than another one.
    pub fn join(&mut self, next: &Range<u64>) -> bool {
        let Some(gap) = next.start.checked_sub(self.range.end) else { return false };
        let (bytes, unwanted) = (next.end - self.range.start, self.unwanted + gap);
        let is_better = gap <= BULK_GAP_BYTES
            && bytes <= BULK_GET_BYTES
            && unwanted * UNWANTED_SHARE <= bytes - unwanted;
        if is_better {
            (self.range.end, self.unwanted) = (next.end, unwanted);
        }
        is_better
    }
}

/// Plans the GETs for `wanted` frames of one object, which are in order; gives each with its frames.
///
/// # Panics
/// If one of them is not in `frames`.
pub fn plan(
    frames: &[Range<u64>],
    wanted: impl IntoIterator<Item = u32>,
) -> Vec<(Range<u64>, Vec<u32>)> {
    let mut plan: Vec<(Fetch, Vec<u32>)> = Vec::new();
    for number in wanted {
        let range = frames[number as usize].clone();
        if let Some((last, frames)) = plan.last_mut()
            && last.join(&range)
        {
            frames.push(number);
        } else {
            plan.push((Fetch::of(range), vec![number]));
        }
    }
    plan.into_iter().map(|(fetch, frames)| (fetch.range, frames)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_neighbours_up_to_the_limit() {
        let frame = BULK_GET_BYTES / 4;
        let frames: Vec<_> = (0..10).map(|n| 100 + n * frame..100 + (n + 1) * frame).collect();
        let found = plan(&frames, 0..10);
        let numbers: Vec<_> = found.iter().map(|(_, frames)| frames.clone()).collect();
        assert_eq!(numbers, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        assert_eq!(found[1].0, 100 + 4 * frame..100 + 8 * frame);
    }

    #[test]
    fn leaves_out_what_is_far_from_what_is_wanted() {
        let frames = [0..10, 10..20, 20..20 + 2 * BULK_GAP_BYTES, 1 << 20..(1 << 20) + 10];
        let found = plan(&frames, [0, 1, 3]);
        assert_eq!(found, [(0..20, vec![0, 1]), (1 << 20..(1 << 20) + 10, vec![3])]);
    }

    #[test]
    fn an_eighth_of_what_is_wanted_is_fetched_along_and_no_more() {
        let frames: Vec<_> = (0..100_u64).map(|n| n * 1000..(n + 1) * 1000).collect();
        let found = plan(&frames, (0..100).filter(|n| n % 2 == 0));
        assert_eq!(found.len(), 50, "half of it would be unwanted");
        let found = plan(&frames, (0..100).filter(|n| n % 10 != 9));
        let fetched: u64 = found.iter().map(|(range, _)| range.end - range.start).sum();
        assert!(found.len() < 5 && fetched * 100 <= 90_000 * 113, "{fetched} in {}", found.len());
    }
}
