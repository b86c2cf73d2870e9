//! Every limit of the data plane, and how they relate.
//!
//! A peer or a damaged file can ask for no more than this. The assertions below are the proof that
//! the limits fit each other; change one and the build says which relation broke.

use crate::ids::Slot;
use crate::map::REGION_BLOCKS;

/// Unit of all addressing: one block.
pub const BLOCK_BYTES: usize = 4096;

/// Largest volume: 64 TiB. Keeps block numbers below 2^34, so that sums cannot overflow.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Largest volume in blocks.
pub const VOLUME_BLOCKS_MAX: u64 = VOLUME_BYTES_MAX / BLOCK_BYTES as u64;

/// How many blocks hold so many bytes. The last one may be held in part: a disk has any size in bytes, and
/// what its last block has behind the disk's end is zero.
#[must_use]
pub const fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// Header of a wire frame, an `.hrl` record and a journal entry.
pub const FRAME_HEADER_BYTES: usize = 48;
/// Largest body of a frame: one write.
pub const FRAME_BODY_BYTES_MAX: usize = 1 << 20;
/// Largest run of one zero frame, in blocks: 16 GiB.
pub const ZERO_BLOCKS_MAX: u64 = 1 << 22;
/// Largest body of a hello or a welcome, with what later programs add to it.
pub const GREETING_BYTES_MAX: usize = 512;
/// Longest text of a refusal.
pub const REFUSAL_TEXT_BYTES_MAX: usize = 512;

/// Highest seq that a peer may say it has. No stream comes near it, and one can go on behind it.
pub const SEQ_CLAIMED_MAX: u64 = 1 << 63;

/// Highest slot that an object may say it has, or that it begins at. No log comes near it, and one can go
/// on behind it.
pub const SLOT_MAX: Slot = Slot(1 << 62);

/// Bytes an agent may have sent beyond the journaled watermark.
pub const WINDOW_BYTES: usize = 8 << 20;

/// Header of an `.hrl` file.
pub const HRL_HEADER_BYTES: usize = 64;
/// An `.hrl` file is closed and a new one begun at this size.
pub const HRL_FILE_BYTES: u64 = 64 << 20;

/// What an agent keeps of each block of a served disk to compare the disk with what was sent: a checksum, in
/// a file of its own (1 MiB for each GiB of disk).
pub const PRINT_BYTES: usize = 4;
/// Of these, those that wait in memory to be written: some 1 MiB for each served disk that is written at
/// random. Beyond that the blocks' prints are unknown until they are sent again or looked at.
pub const PRINTS_PENDING_MAX: usize = 16 << 10;
/// Bytes of a disk that the sampler looks at in one go: writes there wait for as long as that is read.
pub const SAMPLE_BYTES: usize = 64 << 10;

/// First block of a journal file, O_DIRECT alignment of everything in it.
pub const JOURNAL_ALIGN_BYTES: usize = 4096;
/// Header of one group in a journal file.
pub const JOURNAL_GROUP_HEADER_BYTES: usize = 64;
/// Volume id and epoch in front of each frame in a group.
pub const JOURNAL_ENTRY_PREFIX_BYTES: usize = 24;
/// Largest group before sealing.
pub const JOURNAL_GROUP_BYTES_MAX: usize = 4 << 20;
/// Most entries of a group: each has at least its prefix and the header of its frame.
pub const JOURNAL_GROUP_ENTRIES_MAX: usize =
    JOURNAL_GROUP_BYTES_MAX / (JOURNAL_ENTRY_PREFIX_BYTES + FRAME_HEADER_BYTES);
/// A journal file is closed and a new one begun at this size.
pub const JOURNAL_FILE_BYTES: u64 = 256 << 20;

/// Tag of AES-256-GCM.
pub const TAG_BYTES: usize = 16;
/// Bytes of the salt that the key of an object is derived with.
pub const SALT_BYTES: usize = 32;
/// What a sealed frame of a segment has behind its bytes: tag and salt.
pub const FRAME_TRAILER_BYTES: usize = TAG_BYTES + SALT_BYTES;

/// Longest header of an object, with what later programs add to it.
pub const OBJECT_HEADER_BYTES_MAX: usize = 512;
/// Largest body of an object before compression.
pub const OBJECT_BODY_BYTES_MAX: usize = 16 << 20;
/// Largest body of a small object (epoch, machine, group) before compression.
pub const SMALL_BODY_BYTES_MAX: usize = 64 << 10;
/// Most sections in a body.
pub const SECTIONS_MAX: usize = 64;

/// Most segments that a table, a part of a map or an index run refers to, or an entry of the register names. A segment refers to fewer
/// ([`SEGMENT_TARGETS_MAX`]): a chunk that would need one more is stored again.
pub const TARGETS_MAX: usize = 1 << 17;

/// Shortest chunk that a content-defined cut makes, in blocks (16 KiB).
pub const CHUNK_BLOCKS_MIN: usize = 4;
/// Longest chunk in blocks (128 KiB).
pub const CHUNK_BLOCKS_MAX: usize = 32;
/// Longest chunk in bytes.
pub const CHUNK_BYTES_MAX: usize = CHUNK_BLOCKS_MAX * BLOCK_BYTES;
/// One block in this many ends a chunk: the average is min + this = 48 KiB.
pub const CHUNK_CUT_BLOCKS: u64 = 8;

/// A frame of a segment is closed when its chunks reach this size before compression.
pub const SEGMENT_FRAME_BYTES: usize = 512 << 10;
/// Largest frame of a segment before compression.
pub const SEGMENT_FRAME_BYTES_MAX: usize = 1 << 20;
/// A batch is closed when this many payload bytes wait in it.
pub const BATCH_BYTES: usize = 32 << 20;
/// Largest segment object.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Most spans in a segment.
pub const SEGMENT_SPANS_MAX: usize = 1 << 14;
/// Most chunks in a segment's table.
pub const SEGMENT_CHUNKS_MAX: usize = 1 << 17;
/// Most extents in a segment's table.
pub const SEGMENT_EXTENTS_MAX: usize = 1 << 18;
/// Most segments that a segment refers to.
pub const SEGMENT_TARGETS_MAX: usize = 1 << 14;
/// Most frames in a segment.
pub const SEGMENT_FRAMES_MAX: usize = 1 << 12;

/// Most runs of a page of a map.
pub const PAGE_RUNS_MAX: usize = 1 << 12;
/// Largest page before compression: each run of a chunk, frame and segment of its own.
pub const PAGE_BYTES_MAX: usize = 1024 + PAGE_RUNS_MAX * (20 + 16 + 8 + 28 + 32);
/// Most pages of a part of a map.
pub const PART_PAGES_MAX: usize = 1 << 12;
/// Most ranges of blocks that a part of a delta says it covers.
pub const PART_RANGES_MAX: usize = 1 << 21;
/// Most bytes of the sealed pages of a part.
pub const MAP_PART_BYTES_MAX: u64 = 64 << 20;
/// Most parts of a map, all layers together.
pub const MAP_PARTS_MAX: usize = 1 << 16;
/// Most layers of a map.
pub const MAP_LAYERS_MAX: usize = 64;

/// Most horizons of a log: one for each pass that lets history go.
pub const HORIZON_MAX: u64 = 1 << 32;
/// Most volumes in a checkpoint of a log; a log that had more is read without.
pub const CHECKPOINT_VOLUMES_MAX: usize = 1 << 17;

/// Most recovery points that a base of a volume keeps.
pub const BASE_POINTS_MAX: usize = 1 << 16;
/// Highest number of an entry of a vault's register: its name has ten digits.
pub const REGISTER_MAX: u64 = 9_999_999_999;
/// Most logs that an entry of the register lists: those of a vault that are not sealed.
pub const REGISTER_LOGS_MAX: usize = 1 << 14;
/// Most condemnations that are not swept: a year of two a day, for who may delete only what is old enough.
pub const REGISTER_OPEN_MAX: usize = 1 << 12;
/// As many as this program lets become: each look at the register reads all of them.
pub const REGISTER_OPEN_WRITTEN_MAX: usize = 64;

/// Most chunks in an index run.
pub const INDEX_RUN_CHUNKS_MAX: usize = TARGETS_MAX;

/// Longest label of a volume, in bytes of UTF-8.
pub const LABEL_BYTES_MAX: usize = 128;
/// Longest name of a machine or a group, in bytes of UTF-8; of an operating system too.
pub const NAME_BYTES_MAX: usize = 255;
/// Most disks of a machine, those that are gone included.
pub const MACHINE_DISKS_MAX: usize = 128;
/// Longest name, label or serial of a disk, in bytes of UTF-8.
pub const DISK_TEXT_BYTES_MAX: usize = 128;
/// All of them of a machine together.
pub const MACHINE_TEXTS_BYTES_MAX: usize = 32 << 10;
/// Most members of a group, those that left included.
pub const GROUP_MEMBERS_MAX: usize = 1024;
/// Most dedup domains of a vault.
pub const DOMAINS_MAX: usize = 128;
/// Highest number of a key: of 128 domains, one a day for twenty years.
pub const KEY_NUMBER_MAX: u32 = 1 << 20;
/// Most ranges of numbers of keys that were erased.
pub const ERASED_KEYS_MAX: usize = 2048;
/// Largest small object (vault, key, epoch).
pub const SMALL_OBJECT_BYTES_MAX: usize = 4096;

/// Segments of one log being put at the same time.
pub const PUTS_IN_FLIGHT_MAX: usize = 4;
/// Payload a shard holds in memory (journaled or waiting for it, not yet committed).
pub const SHARD_CACHE_BYTES: usize = 256 << 20;
/// Volumes one shard accepts.
pub const SHARD_VOLUMES_MAX: usize = SEGMENT_SPANS_MAX / 2;

const _: () = {
    assert!(BLOCK_BYTES.is_power_of_two());
    assert!(FRAME_BODY_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    // A group holds at least one largest write with its prefix and header.
    assert!(
        JOURNAL_GROUP_BYTES_MAX
            > JOURNAL_ENTRY_PREFIX_BYTES + FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX
    );
    // A file holds at least one largest group besides its header block.
    assert!(JOURNAL_FILE_BYTES > 4 * JOURNAL_GROUP_BYTES_MAX as u64);
    assert!(CHUNK_BLOCKS_MIN < CHUNK_BLOCKS_MAX);
    // The last chunk may take a frame past its target, never past its limit.
    assert!(SEGMENT_FRAME_BYTES + CHUNK_BYTES_MAX <= SEGMENT_FRAME_BYTES_MAX);
    // A whole batch of single-block chunks fits the table: chunks, extents, and their bytes.
    assert!(BATCH_BYTES / BLOCK_BYTES < SEGMENT_CHUNKS_MAX);
    assert!(BATCH_BYTES / BLOCK_BYTES < SEGMENT_EXTENTS_MAX);
    assert!((BATCH_BYTES / BLOCK_BYTES) * (48 + 20 + 32) < OBJECT_BODY_BYTES_MAX / 4);
    // A batch that does not compress fits one segment.
    assert!((BATCH_BYTES + OBJECT_BODY_BYTES_MAX + (1 << 20)) as u64 <= SEGMENT_BYTES_MAX);
    // The largest manifest, directory and index run fit a body, and that an object.
    assert!(1024 + MAP_LAYERS_MAX * 56 + MAP_PARTS_MAX * 16 <= OBJECT_BODY_BYTES_MAX);
    assert!(1024 + PART_PAGES_MAX * 32 + PART_RANGES_MAX * (4 + 1) <= OBJECT_BODY_BYTES_MAX);
    // A part of a delta can cover eight ranges in each region of the largest volume.
    assert!(8 * (VOLUME_BLOCKS_MAX / REGION_BLOCKS) as usize <= PART_RANGES_MAX);
    assert!(PAGE_BYTES_MAX <= SEGMENT_FRAME_BYTES_MAX);
    assert!(1024 + TARGETS_MAX * 32 + INDEX_RUN_CHUNKS_MAX * 44 <= OBJECT_BODY_BYTES_MAX);
    // The largest machine and the largest group fit a small body; a mark counts its members in two bytes.
    assert!(
        1024 + MACHINE_DISKS_MAX * 64 + MACHINE_TEXTS_BYTES_MAX <= SMALL_BODY_BYTES_MAX
            && 1024 + GROUP_MEMBERS_MAX * 56 <= SMALL_BODY_BYTES_MAX
    );
    assert!(GROUP_MEMBERS_MAX < 1 << 16 && DISK_TEXT_BYTES_MAX < 1 << 16);
    // The largest checkpoint fits a body, and a shard's volumes fit a checkpoint.
    assert!(1024 + CHECKPOINT_VOLUMES_MAX * 88 <= OBJECT_BODY_BYTES_MAX);
    assert!(SHARD_VOLUMES_MAX <= CHECKPOINT_VOLUMES_MAX);
    assert!(1024 + BASE_POINTS_MAX * 112 <= OBJECT_BODY_BYTES_MAX);
    assert!(REGISTER_OPEN_WRITTEN_MAX <= REGISTER_OPEN_MAX);
    // The largest entry of the register fits a body.
    assert!(
        1024 + REGISTER_LOGS_MAX * 32 + REGISTER_OPEN_MAX * 24 + TARGETS_MAX * 32
            <= OBJECT_BODY_BYTES_MAX
    );
    assert!(SEGMENT_TARGETS_MAX <= TARGETS_MAX && PAGE_RUNS_MAX <= TARGETS_MAX);
    assert!(OBJECT_HEADER_BYTES_MAX < BLOCK_BYTES && OBJECT_HEADER_BYTES_MAX <= u16::MAX as usize);
    // The cache holds the batches in flight, the one being filled and the window of a source.
    assert!((PUTS_IN_FLIGHT_MAX + 2) * BATCH_BYTES + WINDOW_BYTES <= SHARD_CACHE_BYTES);
    assert!(WINDOW_BYTES >= 4 * FRAME_BODY_BYTES_MAX);
    assert!(HRL_FILE_BYTES > 2 * (FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX) as u64);
    // Lengths and counts of a frame have three bytes.
    assert!(ZERO_BLOCKS_MAX < 1 << 24 && FRAME_BODY_BYTES_MAX < 1 << 24);
    assert!(REFUSAL_TEXT_BYTES_MAX < BLOCK_BYTES);
    // The largest revision is a small object too, with sections of later programs.
    assert!(3 * 16 + 24 + DOMAINS_MAX * 16 + ERASED_KEYS_MAX * 8 <= SMALL_BODY_BYTES_MAX / 2);
    // The largest vault object is a small one.
    assert!(
        OBJECT_HEADER_BYTES_MAX + (16 + 32) + (16 + DOMAINS_MAX * 16) + 4 <= SMALL_OBJECT_BYTES_MAX
    );
};
