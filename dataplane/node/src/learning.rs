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
/// In the folder of the index: the runs that are in it, an id in each line.
const LEARNT_FILE: &str = "learnt-runs";
/// Largest such file that is read: all runs that a vault may list.
const LEARNT_BYTES_MAX: u64 = 4 << 20;

/// The runs whose chunks are in the index.
#[derive(Debug)]
pub(crate) struct Learnt {
    path: PathBuf,
    runs: BTreeSet<RunId>,
}

impl Learnt {
    /// Of the index in `dir`. An index that knows nothing has learnt nothing, whatever the file says.
    pub(crate) fn open(dir: &Path, is_empty: bool) -> Self {
        let path = dir.join(LEARNT_FILE);
        let runs = if is_empty { Err(ErrorKind::NotFound.into()) } else { read(&path) };
        let runs = runs.unwrap_or_else(|error: io::Error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "runs will be learnt again");
            }
            BTreeSet::new()
        });
        if runs.is_empty() {
            // Or what it says would be added to.
            let _gone_already = std::fs::remove_file(&path);
        }
        Self { path, runs }
    }

    /// A run is in the index. What is not noted is learnt again by the next start.
    fn note(&mut self, run: RunId) -> io::Result<()> {
        self.runs.insert(run);
        let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        writeln!(file, "{run}")
    }
}

fn read(path: &Path) -> io::Result<BTreeSet<RunId>> {
    let mut text = String::new();
    File::open(path)?.take(LEARNT_BYTES_MAX).read_to_string(&mut text)?;
    // A line that was cut short is no id.
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
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
    let known = learnt.runs.clone();
    let mut unnoted = None;
    let each = |run, chunks: &[(ChunkId, Location)]| {
        chunks.chunks(SLICE).for_each(|slice| dedup.learn_run(slice));
        unnoted = learnt.note(run).err().or(unnoted.take());
    };
    match runs::load(vault, &known, each).await {
        Ok(runs::Loaded { runs: 0, skipped: 0, .. }) => {}
        Ok(runs::Loaded { runs, chunks, skipped }) => {
            tracing::info!(runs, chunks, skipped, "learnt from the index runs of the vault");
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
        let mut learnt = Learnt::open(dir.path(), true);
        assert!(learnt.runs.is_empty());
        learnt.note(run(1)).unwrap();
        learnt.note(run(2)).unwrap();
        let again = Learnt::open(dir.path(), false);
        assert_eq!(again.runs, BTreeSet::from([run(1), run(2)]));
        // A crash in the middle of a line, and then another run.
        let path = dir.path().join(LEARNT_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();
        assert_eq!(Learnt::open(dir.path(), false).runs, BTreeSet::from([run(1)]));
        let lost = Learnt::open(dir.path(), true);
        assert!(lost.runs.is_empty() && !path.exists(), "the index was made anew");
    }
}
