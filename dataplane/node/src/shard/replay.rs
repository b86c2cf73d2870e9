//! What an earlier run left in the journal, and how it gets back into the engine.

use super::core::Core;
use super::frames::Frame;
use crate::rt::Rt;
use farshore_codec::KeyRing;
use farshore_codec::journal::JournalOpener;
use farshore_engine::batch::{Change, Entry};
use farshore_engine::shard::Input;
use farshore_proto::frame::{Control, FrameKind};
use farshore_proto::journal::entries;
use farshore_proto::limits::{FRAME_HEADER_BYTES, JOURNAL_ALIGN_BYTES, JOURNAL_FILE_BYTES};
use farshore_proto::{Epoch, LogId, Seq, Slot, VaultId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A volume that the shard's log holds, and how far.
#[derive(Debug, Clone)]
pub(crate) struct RecoveredVolume {
    pub(crate) epoch: Epoch,
    pub(crate) size_blocks: u64,
    pub(crate) committed: Seq,
}

/// A frame found in the journal.
#[derive(Debug)]
pub(crate) struct Replayed {
    volume: VolumeId,
    epoch: Epoch,
    seq: Seq,
    change: Change,
    frame: Frame,
    file: u64,
}

/// Everything that a shard needs to go on.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pub(crate) next_slot: Slot,
    pub(crate) void: BTreeSet<Slot>,
    pub(crate) volumes: BTreeMap<VolumeId, RecoveredVolume>,
    pub(crate) replayed: Vec<Replayed>,
    pub(crate) files: Vec<u64>,
}

/// Reads all journal files of a shard: the frames that the vault does not hold, in order, and the
/// files' numbers.
///
/// A torn last group is what a crash leaves and is cut. A damaged group before good ones is reported
/// and ends that file's replay: what followed for a volume no longer joins its stream, and its agent
/// still has it.
///
/// # Errors
/// What the file system says. Damage is not an error of the start.
pub(crate) fn read_files(
    dir: &Path,
    vault: VaultId,
    log: LogId,
    keys: &KeyRing,
    volumes: &BTreeMap<VolumeId, RecoveredVolume>,
) -> io::Result<(Vec<Replayed>, Vec<u64>)> {
    let mut replayed = Vec::new();
    let files = list(dir)?;
    for (number, path) in &files {
        let bytes = read(path)?;
        match JournalOpener::open(first_block(&bytes), vault, log, keys) {
            Ok(opener) => {
                replay_file(*number, path, &opener, bytes, volumes, &mut replayed);
            }
            // The header is synced before the first group: without it there is no group.
            Err(error) if bytes.len() <= JOURNAL_ALIGN_BYTES => {
                tracing::info!(path = %path.display(), %error, "an empty journal file is dropped");
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a journal file cannot be opened");
            }
        }
    }
    Ok((replayed, files.into_keys().collect()))
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
            .and_then(|number| number.parse().ok());
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

fn first_block(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(JOURNAL_ALIGN_BYTES)]
}

fn replay_file(
    number: u64,
    path: &Path,
    opener: &JournalOpener,
    mut bytes: Vec<u8>,
    volumes: &BTreeMap<VolumeId, RecoveredVolume>,
    replayed: &mut Vec<Replayed>,
) {
    let mut at = JOURNAL_ALIGN_BYTES;
    let mut group = 0;
    while at < bytes.len() {
        let header = match opener.group_header(group, &bytes[at..]) {
            Ok(header) => header,
            Err(error) => return report_end(path, opener, &bytes, at, group, &error),
        };
        match opener.open_group(group, &mut bytes[at..]) {
            Ok(plain) => {
                if let Err(error) = take_group(plain, number, volumes, replayed) {
                    tracing::error!(path = %path.display(), at, %error, "a journal group is damaged");
                    return;
                }
            }
            Err(error) => {
                let next = at + header.disk_bytes();
                return report_end(path, opener, &bytes, next, group, &error);
            }
        }
        at += header.disk_bytes();
        group += 1;
    }
}

/// Tells a torn tail from damage: damage has a later group of this file behind it.
fn report_end(
    path: &Path,
    opener: &JournalOpener,
    bytes: &[u8],
    from: usize,
    group: u64,
    error: &dyn std::error::Error,
) {
    let file = opener.header().number;
    let is_followed = bytes[from.min(bytes.len())..].chunks(JOURNAL_ALIGN_BYTES).any(|block| {
        block
            .first_chunk()
            .and_then(|head| farshore_proto::journal::GroupHeader::decode(head).ok())
            .is_some_and(|header| header.file == file && header.group > group)
    });
    let path = path.display();
    if is_followed {
        tracing::error!(%path, group, %error, "a journal group is damaged; agents send the rest again");
    } else {
        tracing::info!(%path, group, "the journal ends here");
    }
}

fn take_group(
    plain: &[u8],
    file: u64,
    volumes: &BTreeMap<VolumeId, RecoveredVolume>,
    replayed: &mut Vec<Replayed>,
) -> Result<(), farshore_proto::DecodeError> {
    for entry in entries(plain) {
        let entry = entry?;
        let is_wanted = volumes.get(&entry.volume).is_some_and(|volume| {
            entry.epoch == volume.epoch && entry.header.seq > volume.committed
        });
        if !is_wanted {
            continue;
        }
        let change = match entry.header.kind {
            FrameKind::Write => Change::Write(entry.header.range),
            FrameKind::Zero => Change::Zero(entry.header.range),
            _ => match Control::decode(&entry.header, entry.body)? {
                Control::Mark(_, mark) => Change::Mark(mark),
                _ => continue,
            },
        };
        let header: [u8; FRAME_HEADER_BYTES] = entry.header.encode();
        replayed.push(Replayed {
            volume: entry.volume,
            epoch: entry.epoch,
            seq: entry.header.seq,
            change,
            frame: Frame { header, body: entry.body.to_vec() },
            file,
        });
    }
    Ok(())
}

/// Gives the engine what was recovered.
pub(super) fn apply<R: Rt>(core: &Core<R>, recovery: Recovery) {
    for (volume, known) in recovery.volumes {
        core.input(Input::Recovered {
            volume,
            epoch: known.epoch,
            size_blocks: known.size_blocks,
            committed: known.committed,
        });
    }
    let count = recovery.replayed.len();
    for Replayed { volume, epoch, seq, change, frame, file } in recovery.replayed {
        let bytes = frame.body.len();
        let handle = core.keep(frame);
        let entry = Entry { volume, epoch, seq, change, handle, bytes };
        core.input(Input::Replay { entry, file });
    }
    core.input(Input::Replayed { files: recovery.files });
    if count > 0 {
        tracing::info!(shard = core.id(), frames = count, "replayed the journal");
    }
}

#[cfg(test)]
mod tests;
