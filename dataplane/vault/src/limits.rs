//! Every limit of reading and writing a vault, and how they relate.

use std::time::Duration;

use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_TRAILER_BYTES, MAP_PART_BYTES_MAX, OBJECT_BODY_BYTES_MAX,
    OBJECT_HEADER_BYTES_MAX, PAGE_BYTES_MAX, PUTS_IN_FLIGHT_MAX, SEGMENT_BYTES_MAX,
    SEGMENT_CHUNKS_MAX, SEGMENT_FRAME_BYTES_MAX, SMALL_BODY_BYTES_MAX, SMALL_OBJECT_BYTES_MAX,
    TAG_BYTES, VOLUME_BLOCKS_MAX,
};

/// Largest object that is header and body, nothing else.
pub const SEALED_OBJECT_BYTES_MAX: u64 =
    (OBJECT_HEADER_BYTES_MAX + OBJECT_BODY_BYTES_MAX + TAG_BYTES) as u64;
/// First ranged GET of a segment: the header and, nearly always, the whole table.
pub const TABLE_READ_BYTES: usize = 256 << 10;
/// Slots of a log that a scan reads ahead.
pub const SLOTS_AHEAD_MAX: usize = 8;
/// Slots that a search for the end of a log asks for at the same time.
pub const END_PROBES: u32 = 7;
/// Each probe of the first part of a search is so many times further than the one before.
pub const END_GROWTH: u64 = 8;
/// Requests of a deletion that are under way at the same time.
pub const GC_AT_ONCE: usize = 8;
/// Most segments that a deletion finds to be needed: 32 bytes of memory each.
pub const GC_NEEDED_MAX: usize = 1 << 23;
/// Numbers of a list behind the first missing one that are looked at, to tell its end from a loss.
pub const NUMBERS_BEHIND: u64 = 3;
/// Times that a log is read anew because its horizon moved meanwhile: that happens once in hours.
pub const HORIZON_TRIES_MAX: usize = 8;
/// Slots next behind a missing one that are looked at, to tell a crash of the writer from a loss: a crash leaves
/// `PUTS_IN_FLIGHT_MAX - 1` at most, and none further behind.
pub const HOLE_SLOTS_MAX: usize = 8;
/// Slots of a log that a reader of one volume reads before it looks whether that has something in few of them only: in
/// fewer than one of a fourth of these. Spans are then followed one after the other, slots are read some ahead.
pub const QUIET_SLOTS: u64 = 64;
/// Steps of a walk back after which it is given up where it meets the volume in too many slots.
pub const WALK_TRIED: usize = 32;
/// Slots of a trail that a reader holds.
pub const TRAIL_SLOTS_MAX: u64 = 1 << 20;
/// Checkpoints of a log that a reader tries, each older than the one before, until it reads all slots.
pub const CHECKPOINT_TRIES_MAX: usize = 8;
/// How far in front of the first slot of an epoch a void slot's filler is looked for.
pub const VOID_REACH_SLOTS: u64 = 16;
/// Epochs of one volume that a reader accepts.
pub const EPOCHS_MAX: u64 = 1 << 20;
/// Epochs of a volume that are asked for at the same time.
pub const EPOCHS_AT_ONCE: u64 = 6;
/// Entries of the register that are read at the same time; one names some MiB of targets at most.
pub const REGISTER_AT_ONCE: usize = 4;
/// Entries of the register that came between two looks of one reader.
pub const REGISTER_MISSED_MAX: u64 = 1 << 14;
/// Swept segments that a reader of the register keeps in mind: 32 bytes of memory each.
pub const REGISTER_SWEPT_MAX: usize = 1 << 22;
/// Times that who makes an entry of the register decides anew because others made it first.
pub const REGISTER_TRIES_MAX: u64 = 1 << 10;
/// Points that go on from one another, by the bases of epochs, that a reader follows.
pub const BASES_MAX: usize = 64;
/// Ordinals behind the last epoch that are looked at, to tell the end from a loss.
pub const EPOCHS_BEHIND: u64 = 3;
/// Bases of a volume that a reader accepts.
pub const VOLUME_BASES_MAX: u64 = 1 << 20;
/// Revisions of one machine or group that a reader accepts.
pub const REVISIONS_MAX: u64 = 1 << 20;
/// Revisions behind the last that are looked at, to tell the end from a loss.
pub const REVISIONS_BEHIND: u64 = 3;
/// Revisions that a reader tries, each older than the one before, when the newest does not open.
pub const REVISION_TRIES_MAX: u64 = 8;
/// Machines and groups that are read at the same time.
pub const MACHINES_AT_ONCE: usize = 8;
/// Volumes whose streams are read at the same time, each some slots ahead.
pub const VOLUMES_AT_ONCE: usize = 4;
/// Largest object with a small body: a machine or a group.
pub const SMALL_SEALED_OBJECT_BYTES_MAX: u64 =
    (OBJECT_HEADER_BYTES_MAX + SMALL_BODY_BYTES_MAX + TAG_BYTES) as u64;
/// Keys of one vault that a reader accepts.
pub const KEYS_MAX: u32 = 1 << 12;
/// Keys that are read at the same time.
pub const KEYS_AT_ONCE: usize = 16;
/// Revisions of a vault that a reader accepts.
pub const VAULT_REVISIONS_MAX: u64 = 1 << 16;
/// Objects below `keys/` that a listing holds: each key, once for each key that wraps it. Some 40 MB.
pub const KEY_OBJECTS_MAX: usize = 1 << 20;
/// Times that a seal moves on to the next slot because a late segment was there first.
pub const SEAL_STEPS_MAX: u64 = 1 << 16;

/// Runs that a view holds of what came behind the newest map; one costs about 60 bytes. Far more than nodes leave there:
/// a volume whose maps are all lost is read by its logs alone.
pub const TAIL_RUNS_MAX: usize = 1 << 27;
/// Runs behind the newest map that make whoever writes one end it there, and go on with the next.
pub const LAYER_RUNS_MAX: usize = 1 << 20;
/// Extents without a mark that are worth a map without one.
pub const UNMARKED_EXTENTS_MIN: usize = 1 << 14;
/// Ranges that the deltas of a map may cover, all together; one costs 4 bytes in a view.
pub const COVERED_RANGES_MAX: u64 = 1 << 24;
/// A part of a layer is ended when its pages have so many bytes.
pub const PART_BYTES: usize = 16 << 20;
/// Decoded pages that a view keeps.
pub const PAGE_CACHE_BYTES: u64 = 48 << 20;
/// Bytes that a decoded page takes in memory, about: its records are somewhat larger than laid out.
pub(crate) const fn page_bytes(raw_bytes: u64) -> u64 {
    2 * raw_bytes + 256
}
/// Pages that one read fetches at the same time.
pub const READ_PAGES_IN_FLIGHT_MAX: usize = 16;
/// Parts of a map whose directories are read at the same time.
pub const PARTS_AT_ONCE: usize = 16;
/// Layers of a map that are opened at the same time.
pub const LAYERS_AT_ONCE: usize = 4;
/// Blocks that whoever reads a whole volume resolves at once: 64 MiB.
pub const WINDOW_BLOCKS: u64 = 1 << 14;
/// Such windows that are resolved ahead.
pub const WINDOWS_AHEAD: usize = 4;

/// Recovery points of one volume that a listing holds.
pub const POINTS_MAX: usize = 1 << 24;
/// Largest single read from a view.
pub const READ_BYTES_MAX: usize = 64 << 20;
/// Opened frames that a view keeps.
pub const FRAME_CACHE_BYTES: u64 = 96 << 20;
/// Decoded tables that a reader keeps.
pub const TABLE_CACHE_BYTES: u64 = 64 << 20;
/// Independent parts of each cache.
pub const CACHE_SHARDS: usize = 4;
/// Frames that one read fetches at the same time.
pub const READ_FRAMES_IN_FLIGHT_MAX: usize = 16;

/// Frames of a view that are fetched and opened at the same time, whoever reads: each is in memory sealed
/// and opened.
pub const FRAMES_OPENING_MAX: usize = 64;
/// First wait of a read whose store is away.
pub const PATIENCE_BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest wait between two attempts of it.
pub const PATIENCE_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Maps of one volume that a reader knows of; of more, every second one, or fourth, and the newest.
pub const MAPS_LISTED_MAX: usize = 1 << 16;
/// Maps that a reader tries before it reads the logs alone.
pub const MAP_TRIES_MAX: usize = 8;
/// Index runs that are read.
pub const RUNS_LISTED_MAX: usize = 1 << 16;
/// Index runs that are read ahead.
pub const RUNS_AHEAD_MAX: usize = 2;

/// Ranged GETs that a restore or a verification has under way.
pub const BULK_GETS_IN_FLIGHT_MAX: usize = 8;
/// Neighbouring frames are fetched by one GET of up to so many bytes.
pub const BULK_GET_BYTES: u64 = 4 << 20;
/// Unwanted bytes between two wanted frames that are fetched along with them.
pub const BULK_GAP_BYTES: u64 = 256 << 10;

/// Problems that a report names; more are only counted.
pub const PROBLEMS_MAX: usize = 10_000;
/// Objects that one listing returns, volumes or logs.
pub const LISTED_MAX: usize = 1 << 20;

/// Largest recovery key file.
pub const KEY_FILE_BYTES_MAX: usize = 4096;

/// A store on the network must take a connection within this.
pub const STORE_CONNECT_TIME: Duration = Duration::from_secs(10);
/// A request and its answer, the largest segment included, may take so long: 64 MiB at 560 kB/s.
pub const STORE_REQUEST_TIME: Duration = Duration::from_secs(120);
/// Longest such time that a person may ask for.
pub const STORE_REQUEST_SECONDS_MAX: u64 = 3600;
/// A request is sent again so often after a short trouble (5xx, a connection that broke), with waits
/// between these two; the caller decides about longer troubles.
pub const STORE_RETRIES_MAX: usize = 3;
/// First wait.
pub const STORE_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait.
pub const STORE_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Nothing is sent again when so much time has gone by.
pub const STORE_RETRY_TIME: Duration = Duration::from_secs(10);

const _: () = {
    assert!(STORE_RETRIES_MAX as u64 * STORE_BACKOFF_MAX.as_secs() <= STORE_RETRY_TIME.as_secs());
    assert!(SEGMENT_BYTES_MAX / STORE_REQUEST_TIME.as_secs() <= 600_000);
    // The first GET always holds the header, and small tables with it.
    assert!(TABLE_READ_BYTES > OBJECT_HEADER_BYTES_MAX);
    // What a scan reads ahead is bounded: tables, before and after opening.
    assert!(SLOTS_AHEAD_MAX * OBJECT_BODY_BYTES_MAX <= 128 << 20);
    assert!(VOLUMES_AT_ONCE * SLOTS_AHEAD_MAX * OBJECT_BODY_BYTES_MAX <= 512 << 20);
    assert!(VOID_REACH_SLOTS >= 4 * PUTS_IN_FLIGHT_MAX as u64);
    assert!(HOLE_SLOTS_MAX >= PUTS_IN_FLIGHT_MAX);
    assert!(QUIET_SLOTS / 4 > SLOTS_AHEAD_MAX as u64);
    // Each shard of a cache takes any one item: a cache refuses what is larger than its shard.
    assert!(FRAME_CACHE_BYTES / CACHE_SHARDS as u64 >= 4 * SEGMENT_FRAME_BYTES_MAX as u64);
    assert!(
        TABLE_CACHE_BYTES / CACHE_SHARDS as u64 >= (SEGMENT_CHUNKS_MAX * 80 + (1 << 20)) as u64
    );
    assert!(PAGE_CACHE_BYTES / CACHE_SHARDS as u64 >= 4 * page_bytes(PAGE_BYTES_MAX as u64));
    // A part is ended before it is too large.
    assert!((PART_BYTES + PAGE_BYTES_MAX + TAG_BYTES) as u64 <= MAP_PART_BYTES_MAX);
    // What makes a map is far below what a view holds without one.
    assert!(UNMARKED_EXTENTS_MIN < LAYER_RUNS_MAX && 8 * LAYER_RUNS_MAX <= TAIL_RUNS_MAX);
    assert!(WINDOW_BLOCKS * BLOCK_BYTES as u64 <= READ_BYTES_MAX as u64);
    // One GET holds at least two frames, and stays far below an object.
    assert!(BULK_GET_BYTES >= 2 * (SEGMENT_FRAME_BYTES_MAX + FRAME_TRAILER_BYTES) as u64);
    assert!(BULK_GET_BYTES * 4 <= SEGMENT_BYTES_MAX);
    assert!(READ_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    assert!(FRAMES_OPENING_MAX * 2 * SEGMENT_FRAME_BYTES_MAX <= 128 << 20);
    assert!(FRAMES_OPENING_MAX >= 2 * READ_FRAMES_IN_FLIGHT_MAX);
    assert!(VOLUME_BLOCKS_MAX < 1 << 40);
    assert!(SMALL_OBJECT_BYTES_MAX >= 4096);
};
