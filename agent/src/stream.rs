//! What capture and session of one volume have in common: the log, what is kept beside it, and what
//! happens when the log does not join the node's stream.
//!
//! What is decided here is decided for every driver: the agent's tasks and the simulator.

use crate::capture::intent::{IntentMap, Life, Recovered, lineage_at};
use crate::capture::progress::Progress;
use crate::capture::splitter::Splitter;
use crate::capture::unknown::Unknown;
use crate::clock::Now;
use crate::disk::{Identity, Likeness};
use crate::files::Files;
use crate::hrl::{Home, Log, LogError, Loss};
use crate::state::{State, StateFile};
use farshore_engine::doubt::Regions;
use farshore_engine::lineage::Lineage;
use farshore_engine::source::{Breach, Opened};
use farshore_proto::frame::Mark;
use farshore_proto::limits::blocks_of;
use farshore_proto::{ErrorKind, Seq, VolumeId};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Directory of the log, in the volume's directory.
pub const LOG_DIR: &str = "hrl";
/// File of the intents, in the volume's directory.
pub const INTENT_FILE: &str = "intent";
/// File of a scanned disk's hashes, in the volume's directory.
pub const HASHES_FILE: &str = "hashes";
/// File of the state, in the volume's directory.
pub const STATE_FILE: &str = "state.json";

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A file beside the log cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The log cannot be opened.
    #[error("the log of the volume cannot be opened")]
    Log(#[from] LogError),
}

impl StreamError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

/// Why the log could not be restarted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestartError {
    /// That the disk must be sent again could not be noted.
    #[error("the volume's state cannot be written")]
    State(#[from] io::Error),
    /// The log's files could not be replaced.
    #[error("the log cannot be restarted")]
    Log(#[from] LogError),
}

impl RestartError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

/// Where a volume keeps what, and how much.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file system.
    pub files: Arc<dyn Files>,
    /// Bounds pauses; never decides about data.
    pub time: Arc<dyn Now>,
    /// Directory of the volume.
    pub dir: PathBuf,
    /// Bytes that the log may have.
    pub log_bytes_max: u64,
    /// Drawn for this run; not 0.
    pub life: u32,
}

/// What was found when a stream was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What the log held.
    pub opened: Opened,
    /// The marks in it.
    pub marks: Vec<(Seq, Mark)>,
    /// Whether nothing was there: a volume that the agent meets for the first time.
    pub is_new: bool,
    /// Why the whole disk is sent again, if it is.
    pub damage: Option<String>,
}

/// What a disk looks like when its capture begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// Its size.
    pub size_bytes: u64,
    /// What it is.
    pub identity: Identity,
    /// When it was changed last, in nanoseconds; 0 if it does not tell.
    pub changed_ns: i64,
    /// When a run that was killed can have changed it at the latest; none if no run came before.
    pub ran_until_ns: Option<i64>,
}

/// One volume's stream on this machine.
#[derive(Debug)]
pub struct Stream {
    /// The volume.
    pub volume: VolumeId,
    /// Its log.
    pub log: Arc<Log>,
    /// Its state.
    pub state: Arc<StateFile>,
    /// The copy of its disk.
    pub progress: Arc<Progress>,
    /// The blocks of its disk that cannot be read.
    pub unknown: Arc<Unknown>,
    is_joined: watch::Sender<bool>,
    /// The splitter, while the disk is served; a scanned disk has none.
    splitter: Mutex<Option<Arc<Splitter>>>,
    /// Whether intents say what is in doubt. A scan has none: then it is always the whole disk.
    has_intents: bool,
    /// The life of this run.
    pub life: u32,
}

impl Stream {
    /// Opens the log and the state of a volume; blocks. The stream has not joined yet.
    ///
    /// A log that is absent or damaged although the volume had begun means that the whole disk is
    /// sent again.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn open(
        place: &Place,
        volume: VolumeId,
        has_intents: bool,
    ) -> Result<(Self, Found), StreamError> {
        let path = place.dir.join(STATE_FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| StreamError::Io { action, path, source }
        };
        let state = open_state(place, &path).map_err(failed("read"))?;
        let is_new = state.was_absent();
        let state = Arc::new(state);
        let home = Home {
            files: Arc::clone(&place.files),
            time: Arc::clone(&place.time),
            dir: place.dir.join(LOG_DIR),
            limit_bytes: place.log_bytes_max,
        };
        let progress = Arc::new(Progress::new(Arc::clone(&state)));
        let mut damage = None;
        let unknown = match Unknown::open(Arc::clone(&place.files), &place.dir) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(%volume, "unknown blocks are damaged: the whole disk is sent again");
                progress.begin_again().map_err(failed("write"))?;
                progress.resume();
                Unknown::none(Arc::clone(&place.files), &place.dir)
            }
            other => other.map_err(failed("read the unknown blocks beside"))?,
        };
        let mut lost = |loss: Loss<'_>| {
            let what = match loss {
                Loss::Gone if is_new => return Ok(()),
                Loss::Gone => "the log is gone",
                Loss::Damage(what) => what,
            };
            tracing::error!(%volume, what, "the log is damaged: the whole disk is sent again");
            damage = Some(what.to_owned());
            progress.begin_again()?;
            progress.resume();
            Ok(())
        };
        let logged = Seq(state.get().logged);
        let (log, recovered) = Log::open_in(home, volume, logged, &mut lost)?;
        // Until a session joins, the node has at most what the log held at the first start since
        // the last one did: a power cut may have taken what came behind. Durable before anything is
        // appended, or the next start would take those frames for what the node has.
        let last = recovered.last;
        let floor = Seq(state.get().floor.unwrap_or(last.0)).min(last);
        // With it goes what the intents descend from, as the node can know it: what this run and those
        // after it add to them before one joins is not what the node's frames were made under.
        let found =
            lineage_at(&*place.files, &place.dir.join(INTENT_FILE)).map_err(failed("read"))?;
        let kept = state.get().lineage.filter(|_| state.get().floor.is_some());
        let lineage = kept.map_or(found, Lineage::from_kept);
        let noted = |state: &mut State| {
            state.floor = Some(floor.0);
            state.lineage = Some(lineage.to_kept());
        };
        state.update(noted).map_err(failed("write"))?;
        let stream = Self {
            volume,
            log: Arc::new(log),
            state,
            progress,
            unknown: Arc::new(unknown),
            is_joined: watch::Sender::new(false),
            splitter: Mutex::default(),
            has_intents,
            life: place.life,
        };
        let opened = Opened { last, floor, lineage, life: place.life };
        Ok((stream, Found { opened, marks: recovered.marks, is_new, damage }))
    }

    /// Opens the intents of a disk and notes it in the state, before it is captured; blocks. If the
    /// intents are not this disk's, all of it is sent again, as [`Stream::adopt`] says.
    ///
    /// `sync_disk` makes durable what the disk holds: what was written before the capture, by whom ever,
    /// may have no intent. Were it copied as it is and then lost in a power cut, nothing would say
    /// that log and disk differ.
    ///
    /// # Errors
    /// What the system said; then the disk must not be captured.
    pub fn open_intents(
        &self,
        files: &dyn Files,
        dir: &Path,
        (disk, is_new): (DiskFacts, bool),
        sync_disk: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<(IntentMap, Recovered)> {
        sync_disk()?;
        let regions = Regions::in_blocks(blocks_of(disk.size_bytes));
        let path = dir.join(INTENT_FILE);
        let mut unknown = || self.adopt(&disk, is_new, true);
        let life = Life { number: self.life, stamps: self.log.stamps() };
        let intents = IntentMap::open(files, &path, self.volume, regions, life, &mut unknown)?;
        self.adopt(&disk, is_new, false)?;
        Ok(intents)
    }

    /// Notes the disk in the state, before it is captured. Whatever happened to it unseen, or
    /// `is_doubtful` for another reason, means that all of it is sent again. Blocks.
    ///
    /// # Errors
    /// What the system said; then the disk must not be captured.
    fn adopt(&self, disk: &DiskFacts, is_new: bool, is_doubtful: bool) -> io::Result<()> {
        let state = self.state.get();
        let likeness = |known: &Identity| known.likeness(&disk.identity);
        let is_other =
            state.identity.as_ref().is_some_and(|known| likeness(known) != Likeness::Same);
        // After an orderly stop the time is known; after a kill a later one is somebody else's.
        let is_changed = match state.stopped_ns {
            Some(stopped) => stopped != disk.changed_ns,
            None => disk.ran_until_ns.is_some_and(|end| disk.changed_ns > end),
        };
        let has_begun = !is_new || state.size_bytes > 0;
        let is_disturbed = state.is_disturbed;
        if has_begun && (is_doubtful || is_other || is_changed || is_disturbed) {
            let volume = self.volume;
            tracing::warn!(
                %volume, is_doubtful, is_other, is_changed, is_disturbed,
                "what the disk holds is not known: all of it is sent again"
            );
            self.progress.begin_again()?;
            self.progress.resume();
        }
        self.state.update(|state| {
            state.size_bytes = disk.size_bytes;
            state.identity = Some(disk.identity.clone());
            state.is_disturbed = false;
            state.stopped_ns = None;
        })
    }

    /// Notes that somebody else was seen to write the disk: a start reads all of it again. Marks under way
    /// are refused. Blocks.
    ///
    /// # Errors
    /// What the system said: then it is not noted.
    pub fn disturb(&self) -> io::Result<()> {
        self.log.breach();
        self.state.update(|state| state.is_disturbed = true)
    }

    /// Begins to send the whole disk again, because it was disturbed; no mark is set before its end.
    /// Blocks.
    ///
    /// # Errors
    /// What the system said: then no mark may be set.
    pub fn reread(&self) -> io::Result<()> {
        self.log.breach();
        self.progress.begin_again()?;
        // What is read now has no intents.
        self.log.stamps().forget();
        self.progress.resume();
        self.state.update(|state| state.is_disturbed = false)
    }

    /// The splitter, while the disk is served.
    #[must_use]
    pub fn splitter(&self) -> Option<Arc<Splitter>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Splitter>>> {
        self.splitter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets or takes away the splitter.
    pub fn set_splitter(&self, splitter: Option<Arc<Splitter>>) {
        *self.lock() = splitter;
    }

    /// Turns true when the log joins the node's stream.
    #[must_use]
    pub fn joined(&self) -> watch::Receiver<bool> {
        self.is_joined.subscribe()
    }

    /// Whether it is noted that the log joins the node's stream.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        *self.is_joined.borrow()
    }

    /// Notes that the log joins the node's stream; blocks.
    ///
    /// Until that is durable no intent may be cleared: the next start would take what is sent from
    /// now on for frames that the log lost, and drop with them what only the log has.
    ///
    /// # Errors
    /// What the system said; then it is not noted and the caller tries again later.
    pub fn join(&self) -> io::Result<()> {
        self.state.update(|state| {
            state.floor = None;
            state.lineage = None;
        })?;
        self.is_joined.send_replace(true);
        Ok(())
    }

    /// Empties the log and goes on at `next`, with the disk in doubt as far as `breach` says. Blocks.
    ///
    /// That the whole disk is to be sent again is durable before the log is emptied; what is in
    /// doubt otherwise has its intents, and `doubt_all` puts it in doubt before any mark can come.
    ///
    /// # Errors
    /// [`RestartError`]; then the log is as it was, or a restart of the agent finds it gone.
    pub fn restart_with(
        &self,
        next: Seq,
        breach: Breach,
        doubt_all: impl FnOnce(),
    ) -> Result<(), RestartError> {
        let is_partial = breach == Breach::TailLost && self.has_intents;
        tracing::warn!(volume = %self.volume, %next, ?breach, is_partial, "the log starts again");
        if is_partial {
            self.progress.hold();
        } else {
            self.progress.begin_again()?;
            self.log.stamps().forget();
        }
        let restarted = self.log.restart(next);
        if restarted.is_ok() && is_partial {
            doubt_all();
        }
        self.progress.resume();
        Ok(restarted?)
    }

    /// As [`Stream::restart_with`], with the doubt at the gate of the splitter, if there is one. A
    /// gate that is made later is in doubt about every intent anyway.
    ///
    /// # Errors
    /// As [`Stream::restart_with`].
    pub fn restart(&self, next: Seq, breach: Breach) -> Result<(), RestartError> {
        self.restart_with(next, breach, || {
            if let Some(splitter) = self.splitter() {
                splitter.gate().doubt_all();
            }
        })
    }
}

fn open_state(place: &Place, path: &Path) -> io::Result<StateFile> {
    match StateFile::open(Arc::clone(&place.files), path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let path_text = path.display();
            tracing::error!(path = %path_text, %error, "the state is damaged: the whole disk is sent again");
            Ok(StateFile::unknown(Arc::clone(&place.files), path))
        }
        Ok(state) if state.was_absent() && has_begun(place)? => {
            let path_text = path.display();
            tracing::error!(path = %path_text, "the state is gone: the whole disk is sent again");
            Ok(StateFile::unknown(Arc::clone(&place.files), path))
        }
        other => other,
    }
}

/// Whether something of the volume is there beside its state.
fn has_begun(place: &Place) -> io::Result<bool> {
    let is_there = |name: &str| place.files.exists(&place.dir.join(name));
    if is_there(INTENT_FILE) || is_there(HASHES_FILE) {
        return Ok(true);
    }
    let log = place.dir.join(LOG_DIR);
    Ok(place.files.exists(&log) && !place.files.list(&log)?.is_empty())
}

#[cfg(test)]
mod tests;
