//! Fetching many frames: neighbours in one GET.

use crate::limits::{BULK_GAP_BYTES, BULK_GET_BYTES};
use std::ops::Range;

/// Frames of one segment that one GET brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The bytes of the object.
    pub range: Range<u64>,
    /// The wanted frames in it.
    pub frames: Vec<u32>,
}

/// Plans the GETs for `wanted` frames, which are in order.
///
/// # Panics
/// If one of them is not in `frames`.
pub fn plan(frames: &[Range<u64>], wanted: impl IntoIterator<Item = u32>) -> Vec<Fetch> {
    let mut plan: Vec<Fetch> = Vec::new();
    for number in wanted {
        let range = frames[number as usize].clone();
        match plan.last_mut() {
            Some(last)
                if range.start - last.range.end <= BULK_GAP_BYTES
                    && range.end - last.range.start <= BULK_GET_BYTES =>
            {
                last.range.end = range.end;
                last.frames.push(number);
            }
            _ => plan.push(Fetch { range, frames: vec![number] }),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_neighbours_up_to_the_limit() {
        let frame = BULK_GET_BYTES / 4;
        let frames: Vec<_> = (0..10).map(|n| 100 + n * frame..100 + (n + 1) * frame).collect();
        let found = plan(&frames, 0..10);
        let numbers: Vec<_> = found.iter().map(|fetch| fetch.frames.clone()).collect();
        assert_eq!(numbers, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        assert_eq!(found[1].range, 100 + 4 * frame..100 + 8 * frame);
    }

    #[test]
    fn leaves_out_what_is_far_from_what_is_wanted() {
        let frames = [0..10, 10..20, 20..20 + 2 * BULK_GAP_BYTES, 1 << 20..(1 << 20) + 10];
        let found = plan(&frames, [0, 1, 3]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Fetch { range: 0..20, frames: vec![0, 1] });
    }
}
