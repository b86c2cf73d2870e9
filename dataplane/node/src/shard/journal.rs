//! The shard's journal on its own disk: groups written past the page cache, one sync for each.
//!
//! An error here is fatal to the node (I8). The order of writes and syncs is
//! [`farshore_ingest::journal`]'s; the files are made here.

use super::core::{Core, Group};
use crate::fatal::Cause;
use crate::rt::Rt;
use crate::troubles::Work;
use farshore_engine::shard::Input;
use farshore_ingest::journal::{JournalDisk, JournalWriter, Owner, RoomError, lay_out, size_of};
use farshore_proto::limits::JOURNAL_FILE_BYTES;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Between two looks for room on a full disk.
const ROOM_RETRY: Duration = Duration::from_millis(500);

/// Where a shard keeps its journal, and under which key.
#[derive(Debug, Clone)]
pub(crate) struct JournalDir {
    pub(crate) path: PathBuf,
    pub(crate) owner: Owner,
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

/// The directory, through a runtime.
struct Files<R> {
    dir: JournalDir,
    runtime: PhantomData<R>,
}

impl<R: Rt> JournalDisk for Files<R> {
    type File = R::File;

    async fn create(&self, file: u64) -> io::Result<R::File> {
        R::create(&self.dir.file(file)).await
    }

    async fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir.path)?.sync_all()
    }

    async fn discard(&self, file: u64) -> io::Result<()> {
        self.dir.remove(file)
    }
}

/// Waits until there is room for a group: sources wait with it, and what they sent before goes on to the
/// vault, which frees files. False if the log was sealed meanwhile.
async fn make_room<R: Rt>(
    core: &Core<R>,
    journal: &mut JournalWriter<Files<R>>,
    plain_bytes: usize,
) -> io::Result<bool> {
    let (work, troubles) = (Work::Journal(core.id()), core.parts.metrics.troubles());
    let path = core.parts.journal.path.display();
    let mut is_waiting = false;
    loop {
        match journal.make_room(plain_bytes).await {
            Ok(()) => {
                if is_waiting {
                    troubles.clear(work);
                    tracing::info!(%path, "there is room for the journal again");
                }
                return Ok(true);
            }
            Err(RoomError::NoSpace { .. }) if core.is_retired() => {
                troubles.clear(work);
                return Ok(false);
            }
            Err(RoomError::NoSpace { source }) => {
                if !is_waiting {
                    tracing::warn!(%path, error = %source, "the journal's disk is full: sources wait until there is room");
                }
                is_waiting = true;
                let text = format!("the disk of the journal {path} is full: make room there");
                troubles.set(work, text);
                R::sleep(ROOM_RETRY).await;
            }
            Err(RoomError::Disk { source }) => return Err(source),
        }
    }
}

/// Writes groups as the engine asks, for as long as the shard has its log.
pub(crate) async fn run<R: Rt>(core: Rc<Core<R>>) {
    write_groups(&core).await;
    core.journal_is_over();
}

async fn write_groups<R: Rt>(core: &Core<R>) {
    let dir = core.parts.journal.clone();
    let (owner, first_file) = (dir.owner.clone(), dir.first_file);
    let files = Files { dir, runtime: PhantomData::<R> };
    let mut journal = JournalWriter::new(files, owner, first_file, JOURNAL_FILE_BYTES);
    while let Some(Group { number: group, entries }) = core.next_group().await {
        let fill = |plain: &mut [u8]| lay_out(&entries, |handle| core.frame(handle), plain);
        let size = size_of(&entries);
        let written = match make_room(core, &mut journal, size.bytes).await {
            Ok(true) => journal.write(size, fill).await,
            Ok(false) => return,
            Err(error) => Err(error),
        };
        match written {
            Ok(written) => {
                core.parts.metrics.journaled(written.disk_bytes, &entries);
                core.input(Input::GroupDone { group, file: written.file });
            }
            Err(error) => {
                let path = core.parts.journal.path.clone();
                return core.parts.fatal.raise(Cause::Journal { path, error });
            }
        }
    }
}
