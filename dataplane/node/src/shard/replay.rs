//! What an earlier run left in the journal, and how it gets back into the engine.

use super::core::Core;
use crate::rt::Rt;
use farshore_engine::batch::Entry;
use farshore_engine::tenure::{JournaledEntry, Opening, RecoveredVolume, Tenure};
use farshore_ingest::journal::{
    FileEnd, Gap, GroupsEnd, Replayed, join_streams, replay_file, volumes_in,
};
use farshore_proto::frame::imprint;
use farshore_proto::limits::JOURNAL_FILE_BYTES;
use farshore_proto::{LogId, VolumeId};
use farshore_vault::Vault;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Everything that a shard needs to go on.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) tenure: Tenure,
    pub(crate) opening: Opening,
    pub(crate) replayed: Vec<Replayed>,
    /// Damages of the journal, each of which was reported.
    pub(crate) damages: u64,
}

/// What the journal files of a shard hold.
#[derive(Debug, Default)]
pub(crate) struct Journaled {
    /// The frames that the vault does not hold, an exact prefix of each stream behind it.
    pub(crate) replayed: Vec<Replayed>,
    /// The numbers of all files.
    pub(crate) files: Vec<u64>,
    /// Places at which something acknowledged is damaged or missing.
    pub(crate) damages: u64,
}

/// The volumes of which the journal of `log` holds frames, and makes sure that those are durable: the
/// run that wrote the last of them may have been killed before its sync.
///
/// # Errors
/// What the file system says.
pub(crate) fn journaled_volumes(
    dir: &Path,
    vault: &Vault,
    log: LogId,
) -> io::Result<BTreeSet<VolumeId>> {
    let mut volumes = BTreeSet::new();
    for (number, path) in list(dir)? {
        File::open(&path)?.sync_all()?;
        let mut bytes = read(&path)?;
        volumes.extend(volumes_in((vault.id(), log), vault.ring(), (number, &mut bytes)));
    }
    File::open(dir)?.sync_all()?;
    Ok(volumes)
}

/// Reads all journal files of a shard.
///
/// # Errors
/// What the file system says. Damage is not an error of the start: it is reported, and agents still
/// have what was lost.
pub(crate) fn read_files(
    dir: &Path,
    vault: &Vault,
    log: LogId,
    volumes: &BTreeMap<VolumeId, RecoveredVolume>,
) -> io::Result<Journaled> {
    let files = list(dir)?;
    let mut found = Journaled { files: files.keys().copied().collect(), ..Journaled::default() };
    for (number, path) in &files {
        let mut bytes = read(path)?;
        let file = (*number, bytes.as_mut_slice());
        let end = replay_file((vault.id(), log), vault.ring(), file, volumes, &mut found.replayed);
        found.damages += u64::from(report(path, &end));
    }
    for Gap { volume, expected, found: next, file } in join_streams(volumes, &mut found.replayed) {
        tracing::error!(
            dir = %dir.display(), %volume, %expected, found = %next, file,
            "journaled frames are missing in front of later ones; the agent sends them and the rest again"
        );
        found.damages += 1;
    }
    Ok(found)
}

/// Reports how the reading of a file ended; whether that is damage.
fn report(path: &Path, end: &FileEnd) -> bool {
    let path = path.display();
    match end {
        FileEnd::Empty { cause } => {
            tracing::info!(%path, error = %cause, "an empty journal file is dropped");
        }
        FileEnd::Unopened { cause } => {
            tracing::error!(%path, error = %cause, "a journal file cannot be opened; agents send again what it held");
        }
        FileEnd::Read(GroupsEnd::Whole) => {}
        FileEnd::Read(GroupsEnd::Torn { group, .. }) => {
            tracing::info!(%path, group, "the journal ends here");
        }
        FileEnd::Read(GroupsEnd::Damaged { group, offset, cause }) => {
            tracing::error!(%path, group, offset, error = %cause, "a journal group is damaged; agents send the rest again");
        }
    }
    matches!(end, FileEnd::Unopened { .. } | FileEnd::Read(GroupsEnd::Damaged { .. }))
}

/// The numbers of all journal files in a directory.
///
/// # Errors
/// What the file system says.
pub(crate) fn journal_files(dir: &Path) -> io::Result<Vec<u64>> {
    Ok(list(dir)?.into_keys().collect())
}

fn list(dir: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".journal"))
            .and_then(|number| number.parse().ok())
            // One name a number: a copy beside a file is not read twice.
            .filter(|number| path.ends_with(format!("{number:020}.journal")));
        if let Some(number) = number {
            files.insert(number, path);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(2 * JOURNAL_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Tells the engine what was recovered.
pub(super) fn apply<R: Rt>(core: &Core<R>, opening: Opening, replayed: Vec<Replayed>) {
    let count = replayed.len();
    let frames = replayed.into_iter().map(|replayed| {
        let Replayed { volume, epoch, seq, stamp, change, frame, file } = replayed;
        let bytes = frame.body.len();
        let imprint = imprint(&frame.header);
        let handle = core.keep(frame);
        let entry = Entry { volume, epoch, seq, stamp, imprint, change, handle, bytes };
        core.parts.metrics.replayed(&[entry]);
        JournaledEntry { entry, file }
    });
    opening.inputs(frames).for_each(|input| core.input(input));
    if count > 0 {
        tracing::info!(shard = core.id(), frames = count, "replayed the journal");
    }
}

#[cfg(test)]
mod tests;
