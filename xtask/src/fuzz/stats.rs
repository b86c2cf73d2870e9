//! What libFuzzer says of its work.

use std::fmt;

/// Numbers of one run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// Inputs tried.
    inputs: u64,
    /// Seconds it took.
    seconds: u64,
    /// Edges reached by the corpus that it began with, and in the end.
    edges: (u64, u64),
    /// Inputs that reached something new.
    fresh: u64,
}

impl Stats {
    /// Reads the log of a run.
    pub(super) fn of(log: &str) -> Self {
        let mut stats = Self::default();
        for line in log.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                words.get(at + 1)?.parse().ok()
            };
            if let Some(edges) = after("cov:") {
                if words.contains(&"INITED") {
                    stats.edges.0 = edges;
                }
                stats.edges.1 = edges;
            }
            stats.inputs = after("stat::number_of_executed_units:").unwrap_or(stats.inputs);
            stats.fresh = after("stat::new_units_added:").unwrap_or(stats.fresh);
            // "Done 1234 runs in 60 second(s)"
            if words.first() == Some(&"Done") {
                stats.seconds = after("in").unwrap_or(stats.seconds);
            }
        }
        stats
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, seconds, edges, fresh } = self;
        write!(f, "{inputs} inputs in {seconds} s, {fresh} reached something new, ")?;
        write!(f, "edges {} -> {}", edges.0, edges.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_libfuzzer_prints() {
        let log = "#3\tINITED cov: 50 ft: 60 corp: 2/9b exec/s: 0 rss: 30Mb\n\
                   #9\tNEW    cov: 52 ft: 63 corp: 3/9b lim: 4 exec/s: 0 rss: 30Mb L: 4/4 MS: 1 CrossOver-\n\
                   Done 4711 runs in 61 second(s)\n\
                   stat::number_of_executed_units: 4711\n\
                   stat::new_units_added:          12\n";
        let stats = Stats { inputs: 4711, seconds: 61, edges: (50, 52), fresh: 12 };
        assert_eq!(Stats::of(log), stats);
        assert_eq!(Stats::of(""), Stats::default());
    }
}
