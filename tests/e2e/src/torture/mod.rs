//! The torture loop: real processes, writers that never rest, one fault after another.
//!
//! Two machines are written to over several connections each. Faults come in an order that follows
//! from the seed, every kind once before any comes again. After each the system must recover by
//! itself; then the writers pause, and what lies on the disks and in the vault is held against the
//! log of all writes. The moments at which faults meet the work are the machine's, so a seed brings
//! back the order and the writes, not every interleaving.

mod clock;
mod copies;
mod faults;
mod jobs;
mod plan;
mod programs;
mod reads;
mod relay;
mod reverts;
mod rounds;
mod second;
mod site;
mod small;
mod summary;
mod watch;

use std::time::Duration;

pub use plan::Fault;
pub use rounds::run;
pub use summary::Summary;

/// Environment variable with the minutes of a run.
pub const MINUTES_ENV: &str = "FARSHORE_TORTURE_MINUTES";
/// Environment variable with the seed of a run.
pub const SEED_ENV: &str = "FARSHORE_TORTURE_SEED";
/// Environment variable with names of faults, separated by commas: only these come, in this order.
pub const FAULTS_ENV: &str = "FARSHORE_TORTURE_FAULTS";
/// A run of at least this many minutes holds its faults for long.
const LONG_MINUTES: u64 = 10;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long faults go on coming; a round that has begun is ended.
    pub minutes: u64,
    /// Decides the order of the faults and all writes.
    pub seed: u64,
    /// Only these faults, in this order again and again; all of them, shuffled, if it is empty.
    pub faults: Vec<Fault>,
}

impl Options {
    /// Reads the environment; a seed that is not given is drawn from the clock.
    ///
    /// # Errors
    /// If a value cannot be read.
    pub fn from_environment() -> anyhow::Result<Self> {
        let number = |name: &str| -> anyhow::Result<Option<u64>> {
            let Some(text) = std::env::var_os(name) else { return Ok(None) };
            let text = text.to_string_lossy().into_owned();
            let number = text.parse();
            number.map(Some).map_err(|_| anyhow::anyhow!("{name} is {text:?}, not a number"))
        };
        let names = std::env::var(FAULTS_ENV).unwrap_or_default();
        let faults = names.split(',').filter(|name| !name.is_empty()).map(Fault::parse);
        Ok(Self {
            minutes: number(MINUTES_ENV)?.unwrap_or(2),
            seed: number(SEED_ENV)?.unwrap_or_else(drawn),
            faults: faults.collect::<anyhow::Result<_>>()?,
        })
    }

    fn is_long(&self) -> bool {
        self.minutes >= LONG_MINUTES
    }

    /// How long a fault lasts that is to last: `short` in a short run.
    fn hold(&self, short: u64, long: u64) -> Duration {
        Duration::from_secs(if self.is_long() { long } else { short })
    }
}

fn drawn() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| u64::from(now.subsec_nanos()) % 1_000_000)
}
