//! Which layers a new one is merged with.
//!
//! Layers of about one size are merged when there are eight of them, so that a run is written once for each factor of
//! eight between what came at once and all that came since the last full layer. That one is written anew when the
//! deltas have a third of its runs.

use crate::limits::COVERED_RANGES_MAX;
use farshore_proto::limits::{MAP_LAYERS_MAX, PAGE_RUNS_MAX};

/// Layers of a size that are merged into one, as a power of two.
const TIER_LOG2: u32 = 3;
/// Layers of fewer runs than this are of one size.
pub(super) const SMALLEST: u64 = PAGE_RUNS_MAX as u64;
/// Deltas of so many times that need no new full layer, however small that is.
const SMALL_DELTAS: u64 = 4;

/// How many of the newest layers are merged with a new one of `new` runs, as [`write`](super::write) does it; `layers`
/// are the runs of those that there are, newest first, the last of them full.
#[must_use]
pub fn merged(layers: &[u64], new: u64) -> usize {
    merged_by(layers, new, SMALLEST)
}

/// How many of the newest layers are merged with a new one of `new` runs; `layers` are the runs of those that there are,
/// newest first, the last of them full. Layers smaller than `smallest` are of one size.
pub(super) fn merged_by(layers: &[u64], new: u64, smallest: u64) -> usize {
    let Some((full, deltas)) = layers.split_last() else { return 0 };
    let all = deltas.iter().sum::<u64>() + new;
    let is_full_due = all > (SMALL_DELTAS * smallest).max(full / 3)
        || all > COVERED_RANGES_MAX
        || layers.len() + 1 >= MAP_LAYERS_MAX;
    if is_full_due {
        return layers.len();
    }
    let (mut taken, mut runs) = (0, new);
    let size_of =
        |runs: u64| (runs / smallest).checked_ilog2().map_or(0, |log2| 1 + log2 / TIER_LOG2);
    loop {
        let size = size_of(runs);
        let alike = deltas[taken..].iter().take_while(|runs| size_of(**runs) <= size);
        let (count, sum) = alike.fold((0, 0), |(count, sum), runs| (count + 1, sum + runs));
        if count + 1 < 1 << TIER_LOG2 {
            return taken;
        }
        (taken, runs) = (taken + count, runs + sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Applies layers of `news` runs, one after the other; gives what was written and the most layers at a time.
    fn apply(full: u64, news: impl IntoIterator<Item = u64>) -> (u64, usize, Vec<u64>) {
        let (mut layers, mut written, mut most) = (vec![full], 0, 1);
        for new in news {
            let count = merged(&layers, new);
            let runs = new + layers.drain(..count).sum::<u64>();
            layers.insert(0, runs);
            written += runs;
            most = most.max(layers.len());
        }
        (written, most, layers)
    }

    #[test]
    fn a_run_is_written_a_few_times() {
        // A day of 2 % of 1 TiB in writes of 4 KiB, mapped every 16,384 runs.
        let (written, most, _) = apply(22 << 20, std::iter::repeat_n(16 << 10, 320));
        let per_run = written as f64 / f64::from(320 * (16 << 10));
        assert!(per_run < 4.0, "{per_run} without a new full layer");
        assert!(most <= 22, "{most} layers");
        let (written, _, layers) = apply(22 << 20, std::iter::repeat_n(16 << 10, 3200));
        let per_run = written as f64 / f64::from(3200 * (16 << 10));
        assert!(per_run < 9.0, "{per_run} with full layers");
        assert_eq!(layers.iter().sum::<u64>(), (22 << 20) + 3200 * (16 << 10));
    }

    proptest! {
        #[test]
        fn layers_are_few_and_deltas_stay_below_a_third(
            full in 0_u64..1 << 28,
            news in prop::collection::vec(1_u64..1 << 20, 1..400),
        ) {
            let mut layers = vec![full];
            for new in news {
                let count = merged(&layers, new);
                let runs = new + layers.drain(..count).sum::<u64>();
                layers.insert(0, runs);
                prop_assert!(layers.len() < MAP_LAYERS_MAX);
                let (full, deltas) = layers.split_last().unwrap();
                let deltas: u64 = deltas.iter().sum();
                prop_assert!(deltas <= (SMALL_DELTAS * SMALLEST).max(full / 3) && deltas <= COVERED_RANGES_MAX);
            }
        }
    }
}
