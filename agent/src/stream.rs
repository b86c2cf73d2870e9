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
use crate::hrl::{self, Held, Home, Log, LogError, Loss};
use crate::stamps::sending_number;
use crate::state::{State, StateFile};
use farshore_engine::doubt::Regions;
use farshore_engine::lineage::Lineage;
use farshore_engine::source::{Breach, Opened};
use farshore_proto::limits::blocks_of;
use farshore_proto::mark::Mark;
use farshore_proto::{ErrorKind, Seq, Stamp, VolumeId};
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
    /// Whether the volume is opened although its directory cannot be read or written: then nothing is
    /// logged until it can, and the whole disk is in doubt as far as that is not known.
    pub is_forced: bool,
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
    files: Arc<dyn Files>,
    dir: PathBuf,
    /// Held while the log is restarted.
    restarting: Mutex<()>,
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
        let state = match open_state(place, &path) {
            Err(error) if place.is_forced => {
                let path = path.display();
                tracing::error!(%path, %error, "the state cannot be read: the whole disk is sent again");
                StateFile::unknown(Arc::clone(&place.files), &place.dir.join(STATE_FILE))
            }
            opened => opened.map_err(failed("read"))?,
        };
        let is_new = state.was_absent();
        let state = Arc::new(state);
        let progress = Arc::new(Progress::new(Arc::clone(&state)));
        // What cannot be noted holds in memory: nothing is appended to the log before it is.
        let begin_again = || match progress.begin_again() {
            Err(error) if !place.is_forced => Err(error),
            _ => {
                progress.resume();
                Ok(())
            }
        };
        let unknown = match Unknown::open(Arc::clone(&place.files), &place.dir) {
            Err(error) if place.is_forced || error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(%volume, %error, "unknown blocks are damaged: the whole disk is sent again");
                begin_again().map_err(failed("write"))?;
                Unknown::none(Arc::clone(&place.files), &place.dir)
            }
            other => other.map_err(failed("read the unknown blocks beside"))?,
        };
        let mut damage = None;
        let (log, recovered) = open_log(place, volume, (&state, &progress), &mut damage)?;
        // Until a session joins, the node has at most what the log held at the first start since
        // the last one did: a power cut may have taken what came behind. Durable before anything is
        // appended, or the next start would take those frames for what the node has.
        let last = recovered.last;
        let floor = Seq(state.get().floor.unwrap_or(last.0)).min(last);
        // With it goes what the intents descend from, as the node can know it: what this run and those
        // after it add to them before one joins is not what the node's frames were made under.
        let found = match lineage_at(&*place.files, &place.dir.join(INTENT_FILE)) {
            Err(_) if place.is_forced => Lineage::default(),
            // What only a log had that cannot be opened is nobody's.
            _ if log.is_closed() => Lineage::default(),
            found => found.map_err(failed("read"))?,
        };
        let has_floor = state.get().floor.is_some() && !log.is_closed();
        let kept = state.get().lineage.filter(|_| has_floor);
        let lineage = kept.map_or(found, Lineage::from_kept);
        let noted = |state: &mut State| {
            state.floor = Some(floor.0);
            state.lineage = Some(lineage.to_kept());
        };
        match state.update(noted) {
            Err(error) if place.is_forced => log.hold(error.to_string()),
            noted => noted.map_err(failed("write"))?,
        }
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
            files: Arc::clone(&place.files),
            dir: place.dir.clone(),
            restarting: Mutex::default(),
        };
        stream.log.stamps().sends(stream.state.get().copy.generation);
        let opened = stream.opened(last, floor, lineage);
        Ok((stream, Found { opened, marks: recovered.marks, is_new, damage }))
    }

    /// What its source begins with.
    fn opened(&self, last: Seq, floor: Seq, lineage: Lineage) -> Opened {
        let State { is_shared, copy, .. } = self.state.get();
        let sending = sending_number(copy.generation);
        let floor_stamp = self.held(floor).map_or_else(Stamp::default, |held| held.stamp);
        Opened { last, floor, floor_stamp, lineage, life: self.life, is_shared, sending }
    }

    /// Tries again what could not be noted when the stream was opened: then the log takes what is written
    /// from now on. Blocks.
    ///
    /// # Errors
    /// [`RestartError`]; then it is to be tried again later.
    pub fn settle(&self) -> Result<(), RestartError> {
        let lane = self.restarting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.log.is_closed() {
            self.restart_in(&lane, self.log.last().next(), Breach::Gap, || ())?;
        }
        self.state.update(|_| ())?;
        self.log.release();
        Ok(())
    }

    /// What the agent's directory does not take, in words; none if it takes everything.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let dir = self.dir.display();
        if let Some(why) = self.log.held() {
            return Some(format!(
                "the agent's directory {dir} takes nothing ({why}): the disk is served, writes go on \
                 unlogged and are read again when there is room; give it space and permissions there"
            ));
        }
        if let Some(why) = self.unknown.trouble() {
            return Some(format!(
                "the agent's directory {dir} does not take which blocks cannot be read ({why}): a start \
                 reads the whole disk again; give it space and permissions there"
            ));
        }
        if self.progress.is_unnoted() {
            return Some(format!(
                "the agent's directory {dir} does not take that all of the disk is read again: no point is \
                 set before it does; give it space and permissions there"
            ));
        }
        let why = self.splitter()?.gate().trouble()?;
        Some(format!(
            "the agent's directory {dir} does not take which regions are written ({why}): the disk is \
             served; should the agent stop now, the whole disk is read again; see to that directory"
        ))
    }

    /// Opens the intents of a disk and notes it in the state, before it is captured; blocks. If the
    /// intents are not this disk's, all of it is sent again, as [`Stream::judge`] says.
    ///
    /// If it `is_forced`, the disk is captured although that cannot be noted or the intents cannot be used:
    /// they are void then, and all of the disk is in doubt.
    ///
    /// `sync_disk` makes durable what the disk holds: what was written before the capture, by whom ever,
    /// may have no intent. Were it copied as it is and then lost in a power cut, nothing would say
    /// that log and disk differ.
    ///
    /// # Errors
    /// What the system said; then the disk must not be captured.
    pub fn open_intents(
        &self,
        (disk, is_new): (DiskFacts, bool),
        is_forced: bool,
        sync_disk: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<(IntentMap, Recovered)> {
        sync_disk()?;
        let regions = Regions::in_blocks(blocks_of(disk.size_bytes));
        let path = self.dir.join(INTENT_FILE);
        let note = || match self.note_disk(&disk) {
            // Without it a start knows less, and reads more again.
            Err(error) if is_forced => {
                tracing::warn!(volume = %self.volume, %error, "the disk is not noted yet");
                Ok(())
            }
            noted => noted,
        };
        let mut unknown = || self.judge(&disk, is_new, true).and_then(|()| note());
        let life = Life { number: self.life, stamps: self.log.stamps() };
        let (files, volume) = (&self.files, self.volume);
        let opened = IntentMap::open(files, &path, volume, regions, life.clone(), &mut unknown);
        let adopted = opened.and_then(|opened| {
            self.judge(&disk, is_new, false)?;
            note().map(|()| opened)
        });
        match adopted {
            Err(error) if is_forced => {
                // What it says, or is found in doubt and cannot be noted, counts for nothing from here on.
                let (mut map, found) = IntentMap::unusable(files, &path, volume, regions, life);
                let voiding = map.void();
                let noted = voiding.write().or_else(|_| voiding.note());
                let path = path.display();
                tracing::error!(%path, %error, ?noted, "the disk is served without intents, all in doubt");
                note().map(|()| (map, found))
            }
            adopted => adopted,
        }
    }

    /// Whatever happened to the disk unseen, or `is_doubtful` for another reason, means that all of it is sent
    /// again; before it is captured, and before [`Stream::note_disk`]. Blocks.
    ///
    /// # Errors
    /// What the system said; then it is not noted.
    fn judge(&self, disk: &DiskFacts, is_new: bool, is_doubtful: bool) -> io::Result<()> {
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
        let is_disturbed = state.is_disturbed || state.differs;
        if has_begun && (is_doubtful || is_other || is_changed || is_disturbed) {
            let volume = self.volume;
            tracing::warn!(
                %volume, is_doubtful, is_other, is_changed, is_disturbed,
                "what the disk holds is not known: all of it is sent again"
            );
            self.progress.begin_again()?;
            self.progress.resume();
        }
        Ok(())
    }

    /// Notes the disk in the state.
    fn note_disk(&self, disk: &DiskFacts) -> io::Result<()> {
        self.state.update(|state| {
            state.size_bytes = disk.size_bytes;
            state.identity = Some(disk.identity.clone());
            state.is_disturbed = false;
            state.differs = false;
            state.stopped_ns = None;
        })
    }

    /// Notes that somebody else was seen to write the disk: a start reads all of it again. Marks under way
    /// are refused. Blocks.
    ///
    /// # Errors
    /// What the system said: then it is noted with the intents at most, which are made void.
    pub fn disturb(&self) -> io::Result<()> {
        self.log.breach();
        let noted = self.state.update(|state| state.is_disturbed = true);
        noted.inspect_err(|error| self.void_intents(error))
    }

    /// Begins to send the whole disk again, because it was disturbed; no mark is set before its end, nor before
    /// that is noted. Blocks.
    ///
    /// Once for each disturbance: what cannot be noted now has begun all the same, and is noted when that is
    /// possible ([`Progress::note`]).
    pub fn reread(&self) {
        self.log.breach();
        let begun = self.progress.begin_again();
        // What is read now has no intents, whether it could be noted or not.
        self.forget_intents();
        let noted = self.state.update(|state| {
            state.is_disturbed = false;
            state.differs = false;
        });
        match (begun, noted) {
            (Ok(()), noted) => {
                self.progress.resume();
                if let Err(error) = noted {
                    // A start reads the whole disk anyway.
                    tracing::debug!(volume = %self.volume, %error, "the disturbance is noted still");
                }
            }
            (Err(_), Ok(())) => {}
            (Err(_), Err(error)) => {
                let volume = self.volume;
                tracing::error!(%volume, %error, "that the disk is read again cannot be noted: no marks");
                self.void_intents(&error);
            }
        }
    }

    /// Another sending of the whole disk has begun, and its frames say nothing of intents.
    fn forget_intents(&self) {
        let stamps = self.log.stamps();
        stamps.sends(self.state.get().copy.generation);
        stamps.forget();
    }

    /// What a start must know cannot be noted: without intents it reads the whole disk, too.
    fn void_intents(&self, why: &io::Error) {
        if let Some(splitter) = self.splitter() {
            splitter.gate().give_up(why);
        }
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

    /// Notes that another agent took the volume over, or that the stream joins behind it; blocks.
    ///
    /// # Errors
    /// What the system said. It holds in memory all the same, and the next note of anything writes it.
    pub fn share(&self, is_shared: bool) -> io::Result<()> {
        self.state.update(|state| state.is_shared = is_shared)
    }

    /// Whose and which the log's frame `seq` is, and a cursor behind it; none if the log does not hold it, or it
    /// cannot be read: nobody sends it again, so that keeps no stream from going on. Blocks.
    #[must_use]
    pub fn held(&self, seq: Seq) -> Option<Held> {
        self.log.find(seq).unwrap_or_else(|error| {
            tracing::warn!(volume = %self.volume, %error, "whose frame it is cannot be read");
            None
        })
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
        let lane = self.restarting.lock().unwrap_or_else(PoisonError::into_inner);
        self.restart_in(&lane, next, breach, doubt_all)
    }

    fn restart_in(
        &self,
        _lane: &MutexGuard<'_, ()>,
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
            self.forget_intents();
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

/// Opens the log; what of it is lost is told in `damage`, and means that the whole disk is sent again.
fn open_log(
    place: &Place,
    volume: VolumeId,
    (state, progress): (&StateFile, &Progress),
    damage: &mut Option<String>,
) -> Result<(Log, hrl::Recovered), StreamError> {
    let is_new = state.was_absent();
    let home = Home {
        files: Arc::clone(&place.files),
        time: Arc::clone(&place.time),
        dir: place.dir.join(LOG_DIR),
        limit_bytes: place.log_bytes_max,
    };
    let mut lost = |loss: Loss<'_>| {
        let what = match loss {
            Loss::Gone if is_new => return Ok(()),
            Loss::Gone => "the log is gone",
            Loss::Damage(what) => what,
        };
        tracing::error!(%volume, what, "the log is damaged: the whole disk is sent again");
        *damage = Some(what.to_owned());
        progress.begin_again()?;
        progress.resume();
        Ok(())
    };
    match Log::open_in(home.clone(), volume, Seq(state.get().logged), &mut lost) {
        Err(error) if place.is_forced => {
            let why = cause(&error);
            tracing::error!(%volume, why, "the log cannot be opened: the whole disk is sent again");
            *damage = Some(why.clone());
            // What is there is left alone until that is noted: it holds in memory.
            if progress.begin_again().is_ok() {
                progress.resume();
            }
            Ok(Log::closed(home, volume, why))
        }
        opened => Ok(opened?),
    }
}

/// An error with what is behind it.
fn cause(error: &LogError) -> String {
    match error {
        LogError::Io { source, .. } => format!("{error}: {source}"),
        other => other.to_string(),
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
