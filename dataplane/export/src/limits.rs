//! Every limit of restoring and serving a view, and how they relate.

use farshore_proto::limits::BLOCK_BYTES;
use farshore_vault::limits::READ_BYTES_MAX;

/// Bytes of the journal of an interrupted restore that are read: a line of it has about 150 bytes.
pub const RESTORE_JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// Runs that a restore sorts in memory, at about 100 bytes each; more go through files.
pub const SORT_PLACES_MAX: usize = 1 << 20;
/// Bytes that are read ahead of each such file.
pub const SORT_BUFFER_BYTES: usize = 64 << 10;
/// Files that are read side by side; more are merged first.
pub const SORT_FILES_MAX: usize = 128;
/// Bytes that are written at once of what runs want of one frame.
pub const FRAME_WRITE_BYTES: u64 = 16 << 20;
/// Names beside a restored file that are tried until one is free.
pub const RESTORE_PARTIALS_MAX: u32 = 64;
/// Largest run of zeros written at once where no hole can be made.
pub const ZERO_WRITE_BYTES: usize = 1 << 20;

/// Stripes of locks of an overlay.
pub const OVERLAY_STRIPES: usize = 64;
/// Blocks that share a stripe before the next one follows.
pub const OVERLAY_STRIPE_BLOCKS: u64 = 256;
/// Largest single read or write of an overlay.
pub const OVERLAY_IO_BYTES_MAX: usize = 64 << 20;

const _: () = {
    assert!(ZERO_WRITE_BYTES.is_multiple_of(BLOCK_BYTES));
    assert!(OVERLAY_IO_BYTES_MAX <= READ_BYTES_MAX);
    // Stripes are taken in order; a request of the largest size takes each at most once a round.
    assert!(OVERLAY_STRIPES.is_power_of_two() && OVERLAY_STRIPE_BLOCKS.is_power_of_two());
};
