//! What a run is to do, checked before anything is touched.

use crate::amount::Bytes;
use crate::content::Recipe;
use crate::limits::{
    INTERVAL_MIN, RUN_TIME_MAX, SOURCES_MAX, THREADS_MAX, VOLUME_BYTES_MIN, WRITE_BYTES_MAX,
};
use crate::mix::Mix;
use crate::report::Asked;
use crate::tally::Window;
use farshore_api::limits::{MARK_INTERVAL_MS_MAX, MARK_INTERVAL_MS_MIN};
use farshore_proto::limits::{BLOCK_BYTES, VOLUME_BYTES_MAX};
use std::str::FromStr;
use std::time::Duration;

/// A rate in bytes each second: an amount, perhaps with `/s` behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BytesPerSecond(pub u64);

impl FromStr for BytesPerSecond {
    type Err = crate::amount::NotAnAmount;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let amount: Bytes = text.trim().trim_end_matches("/s").parse()?;
        Ok(Self(amount.0))
    }
}

/// What a run is to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Number of sources: each is an agent of its own with one volume
    #[arg(long, value_name = "N")]
    pub sources: u32,
    /// Further sources that write once, at the start, and then nothing
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub idle: u32,
    /// Bytes each second of all sources together, such as 54MB or 2MiB
    #[arg(long, value_name = "BYTES")]
    pub rate: BytesPerSecond,
    /// Size of the writes, or several with their percent of all writes: 4KiB:70,64KiB:30
    #[arg(long, value_name = "SIZE[:PERCENT],...", default_value = "4KiB")]
    pub block_size: Mix,
    /// Time that counts
    #[arg(long, value_name = "DURATION", default_value = "2m",
        value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// Time before it that does not count
    #[arg(long, value_name = "DURATION", default_value = "10s",
        value_parser = humantime::parse_duration)]
    pub warmup: Duration,
    /// Percent of each new block that is made of phrases shared by all; zstd at level 1 saves this
    /// less up to six points
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    pub compressible: u32,
    /// Percent of the writes that repeat, whole, an earlier new one of any source
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    pub duplicates: u32,
    /// Percent of the writes that are zeros, sent as bytes; with the duplicates at most 100
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    pub zeros: u32,
    /// Size of each volume
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub volume_size: Bytes,
    /// Time between two marks of a source
    #[arg(long, value_name = "DURATION", default_value = "5s",
        value_parser = humantime::parse_duration)]
    pub mark_interval: Duration,
    /// From which content, places and times follow; the same seed sends the same bytes
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Threads that carry the sources
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub threads: usize,
}

/// Why a plan cannot be carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No sources, or too many.
    #[error(
        "--sources {sources} with --idle {idle} is not possible: say 1 to {SOURCES_MAX} together"
    )]
    Sources {
        /// What was asked for.
        sources: u32,
        /// And idle ones.
        idle: u32,
    },
    /// A share above 100.
    #[error("--{option} {percent} is no share: say 0 to 100")]
    Percent {
        /// The option.
        option: &'static str,
        /// What was asked for.
        percent: u32,
    },
    /// Zeros and duplicates are more than all.
    #[error("--zeros {zeros} and --duplicates {duplicates} are more than 100 percent together")]
    Shares {
        /// Percent of zeros.
        zeros: u32,
        /// Percent of duplicates.
        duplicates: u32,
    },
    /// A volume that the protocol does not carry.
    #[error(
        "--volume-size {size} is not possible: say a multiple of {BLOCK_BYTES} from {} to {}",
        Bytes(VOLUME_BYTES_MIN),
        Bytes(VOLUME_BYTES_MAX)
    )]
    Volume {
        /// What was asked for.
        size: Bytes,
    },
    /// A source would not write even once.
    #[error(
        "--rate {} is too small: each of {sources} sources would write once in {:.1} s, in a run of \
         {:.1} s; say at least {least} or fewer sources", Bytes(*rate), interval.as_secs_f64(),
        run.as_secs_f64()
    )]
    RateSmall {
        /// What was asked for.
        rate: u64,
        /// Number of sources.
        sources: u32,
        /// Time between two writes of one.
        interval: Duration,
        /// Time of the run.
        run: Duration,
        /// Bytes each second that would do.
        least: u64,
    },
    /// A source would write too often.
    #[error("--rate {} is too large for {sources} sources: say more sources or larger writes",
        Bytes(*rate))]
    RateLarge {
        /// What was asked for.
        rate: u64,
        /// Number of sources.
        sources: u32,
    },
    /// A run without time or without end.
    #[error("--duration and --warmup make a run of {:.1} s: --duration has to be above 0, both together \
        at most {} s", run.as_secs_f64(), RUN_TIME_MAX.as_secs())]
    Time {
        /// Time of the run.
        run: Duration,
    },
    /// A mark interval that the control plane does not take.
    #[error("--mark-interval of {:.3} s is not possible: say 1s to 1day", interval.as_secs_f64())]
    Marks {
        /// What was asked for.
        interval: Duration,
    },
    /// No threads, or too many.
    #[error("--threads {threads} is not possible: say 1 to {THREADS_MAX}")]
    Threads {
        /// What was asked for.
        threads: usize,
    },
}

impl Plan {
    /// Time between two writes of one source.
    #[must_use]
    pub fn interval(&self) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a rate is known to fewer digits")]
        let seconds =
            f64::from(self.sources) * self.block_size.mean_bytes() / self.rate.0.max(1) as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Sources of both kinds.
    #[must_use]
    pub fn members(&self) -> u32 {
        self.sources.saturating_add(self.idle)
    }

    /// Time from the first due write to the last.
    #[must_use]
    pub fn run_time(&self) -> Duration {
        self.warmup.saturating_add(self.duration)
    }

    /// The part that counts.
    #[must_use]
    pub fn window(&self) -> Window {
        Window { begin: self.warmup, end: self.run_time() }
    }

    /// Checks everything.
    ///
    /// # Errors
    /// [`PlanError`] by the first thing that is not possible.
    pub fn check(&self) -> Result<(), PlanError> {
        let Self { sources, idle, zeros, duplicates, threads, .. } = *self;
        if !(1..=SOURCES_MAX).contains(&self.members()) {
            return Err(PlanError::Sources { sources, idle });
        }
        for (option, percent) in
            [("compressible", self.compressible), ("duplicates", duplicates), ("zeros", zeros)]
        {
            if percent > 100 {
                return Err(PlanError::Percent { option, percent });
            }
        }
        if zeros + duplicates > 100 {
            return Err(PlanError::Shares { zeros, duplicates });
        }
        let size = self.volume_size;
        if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&size.0)
            || !size.0.is_multiple_of(BLOCK_BYTES as u64)
        {
            return Err(PlanError::Volume { size });
        }
        let run = self.run_time();
        if self.duration.is_zero() || run > RUN_TIME_MAX {
            return Err(PlanError::Time { run });
        }
        let mark_ms = u64::try_from(self.mark_interval.as_millis()).unwrap_or(u64::MAX);
        if !(MARK_INTERVAL_MS_MIN..=MARK_INTERVAL_MS_MAX).contains(&mark_ms) {
            return Err(PlanError::Marks { interval: self.mark_interval });
        }
        if !(1..=THREADS_MAX).contains(&threads) {
            return Err(PlanError::Threads { threads });
        }
        self.check_rate()
    }

    fn check_rate(&self) -> Result<(), PlanError> {
        let (rate, sources, interval) = (self.rate.0, self.sources, self.interval());
        if sources == 0 {
            return Ok(());
        }
        if interval > self.duration {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive number far below 2^64"
            )]
            let least = (f64::from(sources) * self.block_size.mean_bytes()
                / self.duration.as_secs_f64())
            .ceil() as u64;
            let run = self.duration;
            return Err(PlanError::RateSmall { rate, sources, interval, run, least });
        }
        if interval < INTERVAL_MIN {
            return Err(PlanError::RateLarge { rate, sources });
        }
        Ok(())
    }

    /// What the content is drawn from.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        debug_assert!(
            u64::from(self.block_size.blocks_max()) * BLOCK_BYTES as u64 <= WRITE_BYTES_MAX
        );
        Recipe {
            seed: self.seed,
            sources: self.sources,
            mix: self.block_size.clone(),
            zeros: self.zeros,
            duplicates: self.duplicates,
            compressible: self.compressible,
            volume_blocks: self.volume_size.0 / BLOCK_BYTES as u64,
        }
    }

    /// What the report repeats.
    #[must_use]
    pub fn asked(&self) -> Asked {
        Asked {
            sources: self.sources,
            idle: self.idle,
            rate_bytes_per_second: self.rate.0,
            block_size: self.block_size.to_string(),
            compressible: self.compressible,
            duplicates: self.duplicates,
            zeros: self.zeros,
            volume_bytes: self.volume_size.0,
            mark_interval_seconds: self.mark_interval.as_secs_f64(),
            warmup_seconds: self.warmup.as_secs_f64(),
            duration_seconds: self.duration.as_secs_f64(),
            seed: self.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    /// What is wrong with a command line, beside `--sources 10 --rate 1MB`.
    fn wrong(words: &str) -> Option<PlanError> {
        let given = "x --sources 10 --rate 1MB ".to_owned() + words;
        let args: Vec<_> = given.split_whitespace().collect();
        let (defaults, last) = args.split_at(5);
        let kept = defaults[1..].chunks(2).filter(|pair| !last.contains(&pair[0])).flatten();
        let all = ["x"].iter().chain(kept).chain(last);
        Line::try_parse_from(all).unwrap().plan.check().err()
    }

    #[test]
    fn a_plain_plan_is_fine_and_its_interval_makes_the_rate() {
        assert_eq!(wrong(""), None);
        let plan =
            Line::try_parse_from(["x", "--sources", "10", "--rate", "40960/s"]).unwrap().plan;
        assert_eq!(plan.interval(), Duration::from_secs(1));
    }

    #[test]
    fn what_is_not_possible_is_refused_with_its_name() {
        for (words, name) in [
            ("--sources 0", "--sources 0"),
            ("--idle 99999", "--idle 99999"),
            ("--sources 100000", "--sources 100000"),
            ("--compressible 101", "--compressible 101"),
            ("--zeros 60 --duplicates 41", "more than 100"),
            ("--volume-size 1000001", "--volume-size"),
            ("--volume-size 4KiB", "--volume-size 4KiB"),
            ("--rate 100", "--rate 100B is too small"),
            ("--rate 1TB", "too large for 10 sources"),
            ("--duration 0s", "--duration"),
            ("--duration 1day", "--duration"),
            ("--mark-interval 10ms", "--mark-interval"),
            ("--threads 0", "--threads 0"),
        ] {
            let told = wrong(words).map(|error| error.to_string()).unwrap_or_default();
            assert!(told.contains(name), "{words}: {told}");
        }
    }

    #[test]
    fn a_plan_of_idle_sources_alone_needs_no_rate() {
        assert_eq!(wrong("--sources 0 --idle 5 --rate 1"), None);
    }

    #[test]
    fn the_least_rate_that_is_named_is_accepted() {
        let Some(PlanError::RateSmall { least, .. }) = wrong("--rate 100") else {
            panic!("100 bytes a second are too few")
        };
        assert_eq!(wrong(&format!("--rate {least}")), None);
    }
}
