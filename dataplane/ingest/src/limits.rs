//! Every limit of a shard's way from frames to segments, and how they relate.

use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, TARGETS_MAX};
use farshore_vault::limits::{REGISTER_MISSED_MAX, REGISTER_SWEPT_MAX};
use std::time::Duration;

/// Memory of frames that were let go which a shard keeps for the next ones.
pub const SPARE_BYTES_MAX: usize = 16 << 20;

/// Sealed logs whose streams a node remembers while it takes their volumes over.
pub const SEALED_LOGS_MAX: usize = 256;

/// Volumes whose epochs a start reads at the same time.
pub const EPOCHS_AHEAD_MAX: usize = 16;

/// Starts of a log's writer at the same moment before one gives up: copies of a node's directory.
pub const RUNS_AT_ONCE_MAX: usize = 8;

/// Segments that a node remembers to be there, or gone; one costs about 60 bytes.
pub const SIGHTS_MAX: usize = 1 << 18;

/// Segments that wait to be looked at.
pub const SIGHTS_QUEUED_MAX: usize = 1 << 12;

/// Slots behind a segment that are looked at with it.
pub const SIGHTS_AHEAD: u64 = 4;

/// Segments named by verdicts that are kept in mind before the chunk index is cleared of them …
pub const CLEARED_TARGETS_MAX: usize = 1 << 16;

/// … and entries of the register.
pub const CLEARED_BEHIND_MAX: u64 = 512;

/// Between two looks at the vault's register.
pub const REGISTER_READ_EVERY: Duration = Duration::from_secs(60);

const _: () = {
    assert!(SIGHTS_QUEUED_MAX <= SIGHTS_MAX / 2);
    // An index is cleared before a start knows too much that came since.
    assert!(CLEARED_TARGETS_MAX + TARGETS_MAX <= REGISTER_SWEPT_MAX / 2);
    assert!(CLEARED_BEHIND_MAX < REGISTER_MISSED_MAX);
    // Spare memory holds several frames of any size.
    assert!(SPARE_BYTES_MAX >= 8 * FRAME_BODY_BYTES_MAX);
};
