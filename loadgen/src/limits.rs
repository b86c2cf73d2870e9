//! Every limit of the load generator, and how they relate.

use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, VOLUME_BYTES_MAX, WINDOW_BYTES,
};
use std::time::Duration;

/// Most sources of one run: as many as the names `load-00001` to `load-99999` go round.
pub const SOURCES_MAX: u32 = 99_999;
/// Largest write.
pub const WRITE_BYTES_MAX: u64 = FRAME_BODY_BYTES_MAX as u64;
/// Smallest volume.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// Most sizes in a mix.
pub const MIX_SIZES_MAX: usize = 16;
/// Shortest time between two writes of one source.
pub const INTERVAL_MIN: Duration = Duration::from_micros(1);
/// Longest run, warm-up included: certificates live for a day and are renewed before a run only.
pub const RUN_TIME_MAX: Duration = Duration::from_secs(10 * 3600);
/// Most threads that carry sources.
pub const THREADS_MAX: usize = 64;

/// Threads that enrol: each waits for the disk now and then.
pub const ENROL_THREADS: usize = 4;
/// Sources that enrol at the same time.
pub const ENROLLING_MAX: usize = 16;
/// Time to get a volume placed on a node.
pub const PLACE_TIME_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether a volume is placed.
pub const PLACE_LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a call to the control plane that failed for the moment is tried.
pub const CONTROL_TRIES_MAX: u32 = 8;
/// Longest answer of the control plane that is read.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Sources that open a connection at the same time. A shard of a node has 1024 places for
/// connections that have not said their hello yet.
pub const CONNECTING_MAX: usize = 128;
/// From the first packet to the upgraded connection.
pub const DIAL_TIME_MAX: Duration = Duration::from_secs(10);
/// From the hello to the welcome: a volume that is new to the vault is claimed there first.
pub const WELCOME_TIME_MAX: Duration = Duration::from_secs(30);
/// Time in which every source has to be welcomed before the first write is due.
pub const START_TIME_MAX: Duration = Duration::from_secs(120);
/// Between the last welcome and the first due time.
pub const START_MARGIN: Duration = Duration::from_millis(100);
/// Longest head of the answer to the upgrade.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Time without an ack while something is in flight, after which a node counts as lost.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(120);
/// Wait after the first failure in a row, as agents do.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Wait after many failures in a row.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Time after the last due write in which everything has to be committed, beside one mark interval.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(60);

/// A source fills its buffer up to here, and by one frame beyond, before it gives it to TLS.
pub const OUT_BYTES: usize = 32 << 10;
/// An empty buffer that is larger is given back: thousands of sources hold one each.
pub const OUT_BYTES_KEPT: usize = 80 << 10;
/// Bytes from the node that a source reads at once; an ack has 64.
pub const IN_BYTES: usize = 4 << 10;
/// Writes given to the node and not committed yet that a source remembers. They cost no memory
/// (they are made again from the seed), but an answer to a reconnect walks over them.
pub const UNCOMMITTED_MAX: u64 = 1 << 22;
/// Marks given to the node and not committed yet; a source with so many sends nothing.
pub const MARKS_MAX: usize = 4096;

/// Longest latency that is told apart; longer ones count as this.
pub const LATENCY_MAX: Duration = Duration::from_secs(3600);
/// Most kinds of errors that a report tells apart; further ones are counted as `other`.
pub const REASONS_MAX: usize = 64;
/// Longest text of a source's failure in a report.
pub const FAILURE_BYTES_MAX: usize = 300;
/// Failures that are told in words; the others are counted.
pub const FAILURES_TOLD: usize = 5;

const _: () = {
    // A window holds the largest frame, or nothing could ever be sent.
    assert!(WINDOW_BYTES >= FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX);
    assert!(VOLUME_BYTES_MIN >= WRITE_BYTES_MAX && VOLUME_BYTES_MIN <= VOLUME_BYTES_MAX);
    assert!(WRITE_BYTES_MAX.is_multiple_of(BLOCK_BYTES as u64));
    // A buffer that holds the smaller writes is not given back after each of them.
    assert!(OUT_BYTES + FRAME_HEADER_BYTES < OUT_BYTES_KEPT);
    assert!(CONNECTING_MAX < 1024);
    assert!(RUN_TIME_MAX.as_secs() < 12 * 3600);
};
