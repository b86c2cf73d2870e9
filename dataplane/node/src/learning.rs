//! What other nodes know of chunks: learnt from the index runs that they leave in the vault, beside the work, for as long
//! as the node runs.
//!
//! A hint: what is not learnt yet is stored again.

use crate::dedup::Dedup;
use crate::services::chain;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::{ChunkId, RunId};
use farshore_vault::register::{At, Confirmed, Judged};
use farshore_vault::runs::Run;
use farshore_vault::{Location, Vault, VaultError, runs};
use futures::TryStreamExt;
use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks for new runs.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Looks that a run may be under way: a writer gives it a number above those it saw, and others look behind the number
/// that they saw so many looks ago.
const LOOKS_KEPT: usize = 8;
/// Looks until all runs are listed again, for one that took longer.
const ALL_EVERY: u32 = 240;
/// Chunks that are learnt in one go: shards look chunks up in between.
const SLICE: usize = 256;
/// In the folder of the index: the runs that are in it, each with how many entries the index took until then, in a line.
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
    /// The greatest numbers of runs that were seen at the last looks, the oldest first.
    looks: VecDeque<u64>,
    /// Looks until all runs are listed again.
    until_all: u32,
}

impl Learnt {
    /// Of the index in `dir`, which took so many entries: what was learnt when there were more is in doubt.
    pub(crate) fn open(dir: &Path, written: u64) -> Self {
        let path = dir.join(LEARNT_FILE);
        let runs = known(&path, written).unwrap_or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "runs will be learnt again");
            }
            BTreeSet::new()
        });
        Self { path, runs, refused: BTreeSet::new(), looks: VecDeque::new(), until_all: 0 }
    }

    /// The number from which on runs are to be listed; none if all are.
    fn from(&mut self) -> Option<u64> {
        if self.until_all == 0 || self.looks.len() < LOOKS_KEPT {
            return None;
        }
        self.until_all -= 1;
        self.looks.front().copied()
    }

    /// Runs up to this number were seen by a look for them.
    fn looked(&mut self, greatest: u64, is_all: bool) {
        if is_all {
            self.until_all = ALL_EVERY;
        }
        let before = self.looks.back().copied().unwrap_or(0);
        self.looks.push_back(greatest.max(before));
        if self.looks.len() > LOOKS_KEPT {
            self.looks.pop_front();
        }
    }

    /// A run is in the index, which took so many entries until now. What is not noted is learnt again by the next start.
    fn note(&mut self, run: RunId, chunks: u64) -> io::Result<()> {
        self.runs.insert(run);
        let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        writeln!(file, "{run} {chunks}")
    }
}

/// Forgets which runs were learnt: the index in a folder was begun anew.
pub(crate) fn forget(dir: &Path) {
    let path = dir.join(LEARNT_FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "cannot forget which runs were learnt; some chunks will be stored again");
        }
        _ => {}
    }
}

/// The runs that are in an index with so many entries; the file names no others any more.
fn known(path: &Path, written: u64) -> io::Result<BTreeSet<RunId>> {
    let mut text = String::new();
    File::open(path)?.take(LEARNT_BYTES_MAX).read_to_string(&mut text)?;
    let mut kept = String::new();
    let mut runs = BTreeSet::new();
    // A line that was cut short says nothing.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        if let Some((run, entries)) = line.trim_end().split_once(' ')
            && let (Ok(run), Ok(entries)) = (run.parse(), entries.parse::<u64>())
            && entries <= written
        {
            runs.insert(run);
            kept.push_str(line);
        }
    }
    if kept != text {
        // Else what is in doubt now would not be once there are as many entries again.
        std::fs::write(path, kept)?;
    }
    Ok(runs)
}

/// Learns the runs that there are and that come, as soon as the index in `dir` is loaded.
pub(crate) async fn run(vault: Vault, dedup: Dedup, dir: PathBuf) {
    let written = dedup.loaded().await;
    dedup.until_applied().await;
    let mut learnt = Learnt::open(&dir, written);
    loop {
        learn(&vault, &dedup, &mut learnt).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Learns the runs that are new, as far as they can be read.
pub(crate) async fn learn(vault: &Vault, dedup: &Dedup, learnt: &mut Learnt) {
    if let Err(error) = learn_new(vault, dedup, learnt).await {
        let error = chain(&error);
        tracing::warn!(%error, "cannot read the index runs; some chunks will be stored again");
    }
}

async fn learn_new(vault: &Vault, dedup: &Dedup, learnt: &mut Learnt) -> Result<(), VaultError> {
    let from = learnt.from();
    let runs = runs::list(vault, from).await?;
    // Only of runs that opened: anybody can make a name.
    let known = runs.intersection(&learnt.runs).filter_map(|run| runs::number_of(*run)).max();
    let mut greatest = known.unwrap_or(0);
    dedup.saw_run(greatest);
    let is_new = |run: &RunId| !learnt.runs.contains(run) && !learnt.refused.contains(run);
    // The newest first: they are of the most use, and say what numbers there are.
    let new: Vec<RunId> = runs.into_iter().rev().filter(is_new).collect();
    let mut reads = std::pin::pin!(runs::read(vault, new));
    let (mut count, mut chunks, mut skipped) = (0_u64, 0_u64, 0_u64);
    let mut entries = Entries::of(vault);
    while let Some(runs::Read { run, said }) = reads.try_next().await? {
        // Too far behind to say: these runs are listed again.
        let Some(behind) = dedup.known_behind().await else { return Ok(()) };
        if let Some(number) = runs::number_of(run).filter(|_| said.is_some()) {
            greatest = greatest.max(number);
            dedup.saw_run(greatest);
        }
        let said = match said {
            Some(said) => entries.without_swept(behind, said).await?,
            None => None,
        };
        let Some((up_to, said)) = said else {
            skipped += 1;
            learnt.refused.insert(run);
            continue;
        };
        count += 1;
        chunks += said.len() as u64;
        // All of them, whether the index takes them or not: what it took is of use.
        let (mut written, mut is_kept) = (0, true);
        for slice in said.chunks(SLICE) {
            match dedup.learn_run(up_to, slice.to_vec()).await {
                Some(now) => written = now,
                None => is_kept = false,
            }
        }
        if !is_kept {
            // If the index was cleared meanwhile, what verdicts name is to be read again.
            if dedup.known_behind().await == Some(behind) {
                learnt.refused.insert(run);
            }
        } else if let Err(error) = learnt.note(run, written) {
            let path = learnt.path.display();
            tracing::warn!(%error, %path, "cannot note which runs were learnt");
        }
    }
    learnt.looked(greatest, from.is_none());
    if count > 0 || skipped > 0 {
        tracing::info!(runs = count, chunks, skipped, "learnt from the index runs of the vault");
    }
    Ok(())
}

/// What the vault's register says of what runs name.
struct Entries<'v> {
    vault: &'v Vault,
    judged: Judged,
    confirmed: Confirmed,
}

impl<'v> Entries<'v> {
    fn of(vault: &'v Vault) -> Self {
        Self { vault, judged: Judged::default(), confirmed: Confirmed::default() }
    }

    /// What a run says, without what was swept since it was written, as far as the index does not know that, and up to which entry no verdict names
    /// any of it; none if that cannot be told.
    async fn without_swept(
        &mut self,
        behind: u64,
        mut said: Run,
    ) -> Result<Option<(u64, Vec<(ChunkId, Location)>)>, VaultError> {
        let applied = said.applied.number;
        match self.check(behind, said.applied).await {
            Ok(true) => {}
            Err(error) if error.is_unavailable() => return Err(error),
            Ok(false) => {
                tracing::debug!(
                    applied,
                    "an index run was written behind an entry of the register that is not there"
                );
                return Ok(None);
            }
            Err(error) => {
                let error = chain(&error);
                tracing::debug!(%error, "an index run is too old to tell what was deleted since");
                return Ok(None);
            }
        }
        if applied < behind {
            said.chunks.retain(|(_, location)| !self.judged.contains(&location.target));
        }
        Ok(Some((applied.max(behind), said.chunks)))
    }

    /// Whether its writer had applied what is there; verdicts from there on are read.
    async fn check(&mut self, behind: u64, applied: At) -> Result<bool, VaultError> {
        if is_on(Bug::SweptFoundAgain) {
            return Ok(true);
        }
        if !self.confirmed.has(self.vault, applied).await? {
            return Ok(false);
        }
        self.judged.reach(self.vault, applied.number, behind).await?;
        Ok(true)
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
        // A power cut took entries of the index, or it was made anew.
        assert_eq!(Learnt::open(dir.path(), 249).runs, BTreeSet::from([run(1)]));
        assert_eq!(Learnt::open(dir.path(), 900).runs, BTreeSet::from([run(1)]), "for good");
        // A crash in the middle of a line, and then another run.
        let path = dir.path().join(LEARNT_FILE);
        learnt.note(run(2), 260).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 2]).unwrap();
        let mut learnt = Learnt::open(dir.path(), 900);
        assert_eq!(learnt.runs, BTreeSet::from([run(1)]));
        learnt.note(run(3), 270).unwrap();
        assert_eq!(Learnt::open(dir.path(), 900).runs, BTreeSet::from([run(1), run(3)]));
        assert!(Learnt::open(dir.path(), 0).runs.is_empty());
    }

    #[test]
    fn all_runs_are_listed_at_first_and_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut learnt = Learnt::open(dir.path(), 0);
        let mut all = Vec::new();
        for look in 0..2 * ALL_EVERY {
            let from = learnt.from();
            if from.is_none() {
                all.push(look);
            } else {
                // A run that was begun two minutes ago is above what was there then.
                assert_eq!(from, Some(1000 + u64::from(look) - LOOKS_KEPT as u64));
            }
            learnt.looked(1000 + u64::from(look), from.is_none());
        }
        let first = u32::try_from(LOOKS_KEPT).unwrap();
        let again = first + ALL_EVERY;
        assert_eq!(all, (0..first).chain([again]).collect::<Vec<_>>());
    }
}
