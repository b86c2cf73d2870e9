//! Bounds that both sides of the API keep.

/// Largest request body in bytes, reports apart.
pub const BODY_BYTES_MAX: u64 = 64 << 10;

/// Largest body of a report in bytes.
pub const REPORT_BYTES_MAX: u64 = 1 << 20;

/// Longest wait that a long poll grants, in milliseconds; a larger `wait_ms` is cut to it.
pub const WAIT_MS_MAX: u64 = 60_000;

/// Most committed marks that one report may carry; send the rest in the next one.
pub const REPORT_POINTS_MAX: usize = 1024;

/// Most volumes that one report may carry.
pub const REPORT_VOLUMES_MAX: usize = 1024;

/// Most counters that one node report may carry.
pub const REPORT_COUNTERS_MAX: usize = 256;

/// Longest free text (details, error sentences, host names) in bytes; the server cuts longer ones.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Longest disk path in bytes (Linux `PATH_MAX`).
pub const DISK_PATH_BYTES_MAX: usize = 4096;

/// Longest machine or policy name in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Most entries that one listing answers with.
pub const PAGE_MAX: u32 = 10_000;

/// Entries that a listing answers with when the caller names no limit.
pub const PAGE_DEFAULT: u32 = 1_000;

/// Largest size that a volume may grow to (6 TiB): no larger one that grew was ever tried.
pub const GROWN_BYTES_MAX: u64 = 6 << 40;

/// Shortest mark interval in milliseconds.
pub const MARK_INTERVAL_MS_MIN: u64 = 1_000;

/// Longest mark interval in milliseconds (one day).
pub const MARK_INTERVAL_MS_MAX: u64 = 86_400_000;

/// Seconds without a report after which an agent or a node counts as silent.
pub const SILENT_AFTER_SECONDS: u64 = 15;

/// Seconds without a word of its agent after which a machine is not called protected.
pub const AGENT_LATE_AFTER_SECONDS: u64 = 8;

/// Seconds without a report after which a node's volumes go to another node, if the operator says
/// nothing else: with the move itself they replicate elsewhere within 10 s.
pub const NODE_LOST_AFTER_SECONDS_DEFAULT: u64 = 6;

/// Least seconds of silence that lose a node its volumes: one late report is no loss.
pub const NODE_LOST_AFTER_SECONDS_MIN: u64 = 3;

/// Most seconds of silence that an operator may allow a node (one day).
pub const NODE_LOST_AFTER_SECONDS_MAX: u64 = 86_400;

/// Longest wait of a node for the answer to one word that it lives, in milliseconds: three are said
/// before the shortest silence that loses it its volumes is over.
pub const NODE_WORD_MS_MAX: u64 = 1_000;

const _: () = assert!(3 * NODE_WORD_MS_MAX <= NODE_LOST_AFTER_SECONDS_MIN * 1_000);

/// How long a failover waits for a node that speaks to let a volume go, in milliseconds: its store may be slow.
/// Behind that the log is sealed.
pub const LET_GO_MS_MAX: u64 = 30_000;

/// How often agents and nodes should report, in milliseconds.
pub const REPORT_INTERVAL_MS: u64 = 1_000;

/// Shortest time between two epochs of a volume that its node asks for, in milliseconds.
pub const EPOCH_INTERVAL_MS_MIN: u64 = 5_000;

/// How long after its end a certificate may still be renewed with its own key (30 days): as long as a
/// server may be off, or the control plane away, without anybody having to enrol again.
pub const EXPIRED_SECONDS_MAX: u64 = 30 * 86_400;

/// Failovers that may be under way or wait for a commit at one time, on one control plane: more than
/// the machines of a site. Those that are committed or failed are kept and do not count.
pub const FAILOVERS_ACTIVE_MAX: u64 = 4_096;

/// Greatest epoch that a node may say it has seen: above it there is room for as many again.
pub const EPOCH_SEEN_MAX: u64 = 1 << 62;

/// Longest life of an enrolment token in seconds (one week).
pub const TOKEN_TTL_SECONDS_MAX: u64 = 7 * 86_400;

/// Life of an enrolment token in seconds when the caller names none.
pub const TOKEN_TTL_SECONDS_DEFAULT: u64 = 3_600;

/// Whether `name` may name a machine or a policy: `[a-z0-9][a-z0-9._-]{0,62}`.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.len() <= NAME_BYTES_MAX
        && bytes.first().is_some_and(is_plain)
        && bytes.iter().all(|byte| is_plain(byte) || b"._-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_pattern() {
        for good in ["a", "web-1", "0", "db.example_com", &"x".repeat(63)] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
