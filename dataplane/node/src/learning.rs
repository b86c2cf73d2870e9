//! What other nodes know of chunks: learnt from the index runs that they leave in the vault, beside the work, for as long
//! as the node runs.
//!
//! A hint: what is not learnt yet is stored again.

use crate::dedup::Dedup;
use crate::services::chain;
use farshore_proto::{ChunkId, RunId};
use farshore_vault::{Location, Vault, runs};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks for new runs.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Chunks that are learnt in one go: shards look chunks up in between.
const SLICE: usize = 256;
/// In the folder of the index: the runs that are in it, each with how many chunks the index knew then, in a line.
const LEARNT_FILE: &str = "learnt-runs";
/// Largest such file that is read: all runs that a vault may list.
const LEARNT_BYTES_MAX: u64 = 4 << 20;

/// The runs whose chunks are in the index.
#[derive(Debug)]
pub(crate) struct Learnt {
    path: PathBuf,
    runs: BTreeSet<RunId>,
    /// Those that could not be used: they are not fetched again by this run of the node.
    refused: BTreeSet<RunId>,
}

impl Learnt {
    /// Of the index in `dir`, which knows so many chunks: fewer than it knew once, and what was learnt is in doubt.
    pub(crate) fn open(dir: &Path, chunks: usize) -> Self {
        let path = dir.join(LEARNT_FILE);
        let noted = read(&path).unwrap_or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "runs will be learnt again");
            }
            Noted::default()
        });
        let is_whole = noted.chunks <= chunks as u64;
        let runs = if is_whole { noted.runs } else { BTreeSet::new() };
        if runs.is_empty()
            && let Err(error) = std::fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "cannot forget which runs were learnt");
        }
        Self { path, runs, refused: BTreeSet::new() }
    }

    /// Those that need not be read.
    fn known(&self) -> BTreeSet<RunId> {
        self.runs.union(&self.refused).copied().collect()
    }

    /// A run is in the index, which knows so many chunks now. What is not noted is learnt again by the next start.
    fn note(&mut self, run: RunId, chunks: u64) -> io::Result<()> {
        self.runs.insert(run);
        let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        writeln!(file, "{run} {chunks}")
    }
}

/// What the file says.
#[derive(Debug, Default)]
struct Noted {
    runs: BTreeSet<RunId>,
    /// The most chunks that the index knew.
    chunks: u64,
}

fn read(path: &Path) -> io::Result<Noted> {
    let mut text = String::new();
    File::open(path)?.take(LEARNT_BYTES_MAX).read_to_string(&mut text)?;
    let mut noted = Noted::default();
    // A line that was cut short says nothing.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        if let Some((run, chunks)) = line.split_once(' ')
            && let (Ok(run), Ok(chunks)) = (run.parse(), chunks.parse())
        {
            noted.runs.insert(run);
            noted.chunks = noted.chunks.max(chunks);
        }
    }
    Ok(noted)
}

/// Learns the runs that there are and that come.
pub(crate) async fn run(vault: Vault, dedup: Dedup, mut learnt: Learnt) {
    loop {
        learn(&vault, &dedup, &mut learnt).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Learns the runs that are new, as far as they can be read.
pub(crate) async fn learn(vault: &Vault, dedup: &Dedup, learnt: &mut Learnt) {
    let known = learnt.known();
    let mut unnoted = None;
    let each = |run, chunks: &[(ChunkId, Location)]| {
        // All of them, whether the index takes them or not: what it took is of use.
        let lost = chunks.chunks(SLICE).filter(|slice| !dedup.learn_run(slice)).count();
        if lost == 0 {
            unnoted = learnt.note(run, dedup.len()).err().or(unnoted.take());
        } else {
            learnt.refused.insert(run);
        }
    };
    match runs::load(vault, &known, each).await {
        Ok(runs::Loaded { runs, chunks, skipped }) => {
            if runs > 0 || !skipped.is_empty() {
                let skipped = skipped.len();
                tracing::info!(runs, chunks, skipped, "learnt from the index runs of the vault");
            }
            learnt.refused.extend(skipped);
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%error, "cannot read the index runs; some chunks will be stored again");
        }
    }
    if let Some(error) = unnoted {
        tracing::warn!(%error, path = %learnt.path.display(), "cannot note which runs were learnt");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u8) -> RunId {
        RunId([n; 16])
    }

    #[test]
    fn what_was_learnt_is_known_after_a_restart_if_the_index_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut learnt = Learnt::open(dir.path(), 0);
        assert!(learnt.runs.is_empty());
        learnt.note(run(1), 100).unwrap();
        learnt.note(run(2), 250).unwrap();
        let both = BTreeSet::from([run(1), run(2)]);
        assert_eq!(Learnt::open(dir.path(), 250).runs, both);
        assert_eq!(Learnt::open(dir.path(), 900).runs, both);
        // A crash in the middle of a line, and then another run.
        let path = dir.path().join(LEARNT_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 2]).unwrap();
        assert_eq!(Learnt::open(dir.path(), 250).runs, BTreeSet::from([run(1)]));
        // A power cut took entries of the index, or it was made anew.
        let lost = Learnt::open(dir.path(), 99);
        assert!(lost.runs.is_empty() && !path.exists());
    }
}
