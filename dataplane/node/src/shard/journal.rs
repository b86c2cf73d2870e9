//! The shard's journal on its own disk: groups written past the page cache, one sync for each.
//!
//! An error here is fatal to the node (I8): the kernel may have dropped the pages, so neither an
//! acknowledgement nor a retry would be honest. A new start reads what really is there.

use super::core::{Core, Group};
use crate::fatal::Cause;
use crate::rt::{JournalFile, Rt};
use farshore_codec::DataKey;
use farshore_codec::journal::JournalSealer;
use farshore_engine::shard::Input;
use farshore_proto::limits::{
    FRAME_HEADER_BYTES, JOURNAL_ALIGN_BYTES, JOURNAL_ENTRY_PREFIX_BYTES, JOURNAL_FILE_BYTES,
    JOURNAL_GROUP_HEADER_BYTES,
};
use farshore_proto::{KeyNumber, LogId, VaultId};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Where a shard keeps its journal, and under which key.
#[derive(Debug, Clone)]
pub(crate) struct JournalDir {
    pub(crate) path: PathBuf,
    pub(crate) vault: VaultId,
    pub(crate) log: LogId,
    pub(crate) number: KeyNumber,
    pub(crate) key: Arc<DataKey>,
    /// Number of the first file that this run writes: files of earlier runs are only read.
    pub(crate) first_file: u64,
}

impl JournalDir {
    /// Path of a journal file.
    pub(crate) fn file(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:020}.journal"))
    }

    /// Deletes a file that holds nothing uncommitted.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn remove(&self, number: u64) -> io::Result<()> {
        std::fs::remove_file(self.file(number))
    }
}

struct Open<F> {
    file: F,
    sealer: JournalSealer,
    offset: u64,
}

/// Writes groups as the engine asks, for as long as the shard lives.
pub(crate) async fn run<R: Rt>(core: Rc<Core<R>>) {
    let next_file = Cell::new(core.parts.journal.first_file);
    let mut open: Option<Open<R::File>> = None;
    loop {
        let group = core.next_group().await;
        match write::<R>(&core, &next_file, &mut open, &group).await {
            Ok(file) => core.input(Input::GroupDone { group: group.number, file }),
            Err(error) => {
                let path = core.parts.journal.path.clone();
                return core.parts.fatal.raise(Cause::Journal { path, error });
            }
        }
    }
}

async fn write<R: Rt>(
    core: &Core<R>,
    next_file: &Cell<u64>,
    open: &mut Option<Open<R::File>>,
    group: &Group,
) -> io::Result<u64> {
    let plain_bytes = group
        .entries
        .iter()
        .map(|entry| JOURNAL_ENTRY_PREFIX_BYTES + FRAME_HEADER_BYTES + entry.bytes)
        .sum();
    let disk_bytes = JournalSealer::disk_bytes(plain_bytes);
    let is_full =
        open.as_ref().is_none_or(|open| open.offset + disk_bytes as u64 > JOURNAL_FILE_BYTES);
    if is_full {
        // The old file closes here; every group in it was synced.
        *open = Some(create::<R>(core, next_file).await?);
    }
    let open = open.as_mut().expect("made above");
    let mut buffer = open.file.buffer(disk_bytes);
    lay_out(core, group, plain_bytes, buffer.as_mut());
    let header = open.sealer.seal_group(plain_bytes, buffer.as_mut()).map_err(io::Error::other)?;
    open.file.write_at(buffer, open.offset).await?;
    open.file.sync().await?;
    open.offset += disk_bytes as u64;
    core.parts.metrics.journaled(disk_bytes);
    Ok(header.file)
}

fn lay_out<R: Rt>(core: &Core<R>, group: &Group, plain_bytes: usize, buffer: &mut [u8]) {
    let mut at = JOURNAL_GROUP_HEADER_BYTES;
    let mut put = |bytes: &[u8]| {
        buffer[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    for entry in &group.entries {
        let frame = core.frame(entry.handle);
        put(&entry.volume.0);
        put(&entry.epoch.0.to_le_bytes());
        put(&frame.header);
        put(&frame.body);
    }
    let end = JOURNAL_GROUP_HEADER_BYTES + plain_bytes;
    assert_eq!(at, end, "the engine's sizes are those of the frames");
}

async fn create<R: Rt>(core: &Core<R>, next_file: &Cell<u64>) -> io::Result<Open<R::File>> {
    let dir = &core.parts.journal;
    let number = next_file.get();
    next_file.set(number + 1);
    let sealer = JournalSealer::create(dir.vault, dir.log, number, &dir.key, dir.number)
        .map_err(io::Error::other)?;
    let file = R::create(&dir.file(number)).await?;
    let mut buffer = file.buffer(JOURNAL_ALIGN_BYTES);
    buffer.as_mut().copy_from_slice(&sealer.header().encode());
    file.write_at(buffer, 0).await?;
    file.sync().await?;
    // The name must survive too, or a crash would lose the whole file.
    sync_dir(&dir.path)?;
    Ok(Open { file, sealer, offset: JOURNAL_ALIGN_BYTES as u64 })
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
