//! Sizes and times of one shard.

use crate::batch::Limits;
use farshore_proto::limits::{
    JOURNAL_GROUP_BYTES_MAX, SHARD_CACHE_BYTES, VOLUME_BLOCKS_MAX, WINDOW_BYTES,
};

/// A batch without a mark waits at most this long for more, unless a volume in it sets marks: then for the next one.
pub const BATCH_AGE_MS_MAX: u64 = 2000;
/// A mark waits at most this long for the marks of other volumes.
pub const LINGER_MS_MAX: u64 = 1000;
/// A segment that is not full waits at most this long after the one before it.
pub const SPACING_MS_MAX: u64 = 10_000;
/// Slots that a start may have to read behind the newest checkpoint of its log.
pub const CHECKPOINT_SLOTS: u64 = 256;

/// Sizes and times of one shard. The defaults are those of `limits.rs`, which are also the most
/// that is legal; only the cache may be larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Memory for frames not yet committed; at it the shard stops reading.
    pub cache_bytes: usize,
    /// Bytes an agent may have sent beyond journaled; at most [`WINDOW_BYTES`].
    pub window_bytes: usize,
    /// Bytes of the frames in one journal group, unless the first alone is larger; at most
    /// [`JOURNAL_GROUP_BYTES_MAX`].
    pub group_bytes: usize,
    /// What one batch holds.
    pub batch: Limits,
    /// A batch without a mark waits at most this long for more, unless a volume in it sets marks: then for the next
    /// one; at most [`BATCH_AGE_MS_MAX`].
    pub batch_age_ms: u64,
    /// A mark waits at most this long for the marks of other volumes; at most [`LINGER_MS_MAX`].
    pub linger_ms: u64,
    /// Segments that are not full are half a mark interval of a volume in them apart, and at most this
    /// long; at most [`SPACING_MS_MAX`].
    pub spacing_ms: u64,
    /// Blocks of the largest volume that can be restored; larger ones are refused.
    pub volume_blocks_max: u64,
    /// When so many slots lie behind the newest checkpoint of the log, another is written.
    pub checkpoint_slots: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cache_bytes: SHARD_CACHE_BYTES,
            window_bytes: WINDOW_BYTES,
            group_bytes: JOURNAL_GROUP_BYTES_MAX,
            batch: Limits::default(),
            batch_age_ms: BATCH_AGE_MS_MAX,
            linger_ms: LINGER_MS_MAX,
            spacing_ms: SPACING_MS_MAX,
            volume_blocks_max: VOLUME_BLOCKS_MAX,
            checkpoint_slots: CHECKPOINT_SLOTS,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) {
        assert!(self.cache_bytes > 0, "a shard holds at least one frame");
        assert!((1..=WINDOW_BYTES).contains(&self.window_bytes), "the window has a limit");
        assert!((1..=JOURNAL_GROUP_BYTES_MAX).contains(&self.group_bytes), "a group has a limit");
        assert!(self.batch.are_legal(), "a segment holds a batch");
        assert!(self.batch_age_ms <= BATCH_AGE_MS_MAX && self.linger_ms <= LINGER_MS_MAX);
        assert!(self.spacing_ms <= SPACING_MS_MAX);
        assert!(self.checkpoint_slots > 0, "a checkpoint stands for some slots");
    }
}
