//! What is known of a volume, and the report made of it.

use crate::capture::splitter::Splitter;
use crate::clock::Clock;
use crate::control::Word;
use crate::session::Standing;
use crate::stream::Stream;
use farshore_api::agent::{
    AgentVolume, AgentVolumeReport, Difference, DiskIdentity, SampleReport, VolumeState,
};
use farshore_api::machine::Capture;
use farshore_engine::doubt::REGION_BYTES;
use farshore_engine::source::Phase;
use farshore_proto::frame::RefusalReason;
use farshore_proto::{Seq, Timestamp};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A session that is away for longer than this is worth telling.
const AWAY_MS: u64 = 10_000;

/// Without a mark for so long at least, something is in the way.
const MARKLESS_MS_MIN: u64 = if cfg!(test) { 5_000 } else { 60_000 };

#[derive(Debug, Default)]
struct Inner {
    stream: Option<Arc<Stream>>,
    error: Option<String>,
    /// What does not stop the capture, and must be told.
    warning: Option<String>,
    /// What somebody else was seen to do to the disk, until all of it is in the vault again.
    disturbed: Option<Disturbed>,
    /// The size that the disk has grown to, while the volume has not.
    grown_to: Option<u64>,
    /// Whether the disk is served, or was read whole, since this run of the agent began.
    is_captured: bool,
    /// When marks were set last, or when the disk began to be captured; none while it is not.
    marked_at: Option<Timestamp>,
    /// How long the look at the disk took that the last marks follow from.
    look_ms: u64,
    /// What the disk is that is open, or was open last.
    identity: Option<DiskIdentity>,
    nbd_uri: Option<String>,
    streamed_at: Option<Timestamp>,
    /// What the control plane said of the volume last.
    word: Word,
}

#[derive(Debug)]
struct Disturbed {
    seen: String,
    /// Whether the disk is being read again since.
    is_settled: bool,
}

/// What is known of a volume.
#[derive(Debug)]
pub struct Facts {
    inner: Mutex<Inner>,
    standing: watch::Sender<Option<Standing>>,
}

impl Default for Facts {
    fn default() -> Self {
        Self { inner: Mutex::default(), standing: watch::Sender::new(None) }
    }
}

/// State, its sentence and the share done.
struct Judgement {
    state: VolumeState,
    detail: String,
    progress: f64,
}

impl Judgement {
    /// The judgement in the light of what the control plane said last: nobody may take a volume for
    /// protected that no node is meant to have.
    fn under(self, word: Word) -> Self {
        let detail = match word {
            Word::Assigned => return self,
            Word::Silent => {
                "no node is named for this volume at present: its disk is served on, and what is \
                written is sent where it was sent last, or kept"
            }
            Word::Fenced => {
                "the machine was failed over: its disk is served on, but what is written here is \
                not replicated; unprotect it, or clean up the failover"
            }
            Word::Detached => "unprotected: the disk is served until its last client has left",
        };
        if self.state == VolumeState::Error && word != Word::Fenced {
            return self;
        }
        let state = if word == Word::Fenced { VolumeState::Error } else { VolumeState::Degraded };
        Self { state, detail: detail.to_owned(), progress: self.progress }
    }
}

impl Facts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream is open.
    pub fn opened(&self, stream: Arc<Stream>) {
        let mut inner = self.lock();
        inner.stream = Some(stream);
        inner.error = None;
    }

    /// The volume cannot go on.
    pub fn fail(&self, error: String) {
        let mut inner = self.lock();
        if inner.error.as_ref() != Some(&error) {
            tracing::error!(error, "a volume cannot go on");
            inner.error = Some(error);
        }
    }

    /// What the control plane said of the volume last.
    pub fn hear(&self, word: Word) {
        self.lock().word = word;
    }

    /// Whether the volume is to end once nobody uses it.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.lock().word == Word::Detached
    }

    /// The splitter, while the disk is served.
    #[must_use]
    pub fn splitter(&self) -> Option<Arc<Splitter>> {
        self.lock().stream.as_ref()?.splitter()
    }

    /// What was wrong is over.
    pub fn recover(&self) {
        self.lock().error = None;
    }

    /// Something that does not stop the capture; none when it is over.
    pub fn warn(&self, warning: Option<String>) {
        let mut inner = self.lock();
        if inner.warning != warning {
            if let Some(warning) = &warning {
                tracing::warn!(warning, "a volume goes on, but");
            }
            inner.warning = warning;
        }
    }

    /// The size that the disk has grown to, while the volume has not.
    pub fn grow(&self, size_bytes: Option<u64>) {
        self.lock().grown_to = size_bytes;
    }

    /// Somebody else was seen to write the disk.
    pub fn disturb(&self, seen: &str) {
        let mut inner = self.lock();
        if inner.disturbed.as_ref().is_none_or(|known| known.is_settled || known.seen != seen) {
            tracing::warn!(seen, "no point is set until the whole disk is read again");
            inner.disturbed = Some(Disturbed { seen: seen.to_owned(), is_settled: false });
        }
    }

    /// The disk is being read again since it was seen.
    pub fn settle(&self) {
        if let Some(disturbed) = &mut self.lock().disturbed {
            disturbed.is_settled = true;
        }
    }

    /// Whether the disk is served, or was read whole, in this run of the agent.
    pub fn captured(&self, is_captured: bool) {
        let mut inner = self.lock();
        inner.is_captured = is_captured;
        if !is_captured {
            inner.marked_at = None;
        }
    }

    /// Marks were set, or none was needed, after a look at the disk that began at `looked_at`.
    pub fn marked(&self, now: Timestamp, looked_at: Timestamp) {
        let mut inner = self.lock();
        inner.marked_at = Some(now);
        inner.look_ms = now.since_ms(looked_at);
    }

    /// What the open disk is.
    pub fn identify(&self, identity: DiskIdentity) {
        self.lock().identity = Some(identity);
    }

    /// Where the disk is served, if it is.
    pub fn serve(&self, nbd_uri: Option<String>) {
        self.lock().nbd_uri = nbd_uri;
    }

    /// Where the session tells how it stands.
    #[must_use]
    pub fn standing_sender(&self) -> watch::Sender<Option<Standing>> {
        self.standing.clone()
    }

    /// How the session stands.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Option<Standing>> {
        self.standing.subscribe()
    }

    /// The report to the control plane.
    #[must_use]
    pub fn report(&self, assigned: &AgentVolume, clock: Clock) -> AgentVolumeReport {
        let standing = self.standing.borrow().clone();
        let now = clock.now();
        let mut inner = self.lock();
        let is_up = standing.as_ref().is_some_and(|standing| standing.phase == Phase::Streaming);
        let streamed_at = *inner.streamed_at.get_or_insert(now);
        if is_up {
            inner.streamed_at = Some(now);
        }
        let away_ms = if is_up { 0 } else { now.since_ms(streamed_at) };
        let judgement = judge(&inner, standing.as_ref(), away_ms);
        let judgement = temper(&mut inner, judgement, assigned, now).under(inner.word);
        let seq = |pick: fn(&Standing) -> Seq| standing.as_ref().map_or(0, |told| pick(told).0);
        let point_at = standing.as_ref().and_then(|standing| standing.point_at);
        let is_error = judgement.state == VolumeState::Error;
        AgentVolumeReport {
            volume: assigned.volume,
            epoch: assigned.epoch,
            state: judgement.state,
            error: is_error.then(|| judgement.detail.clone()),
            detail: judgement.detail,
            progress: judgement.progress,
            size_bytes: inner.stream.as_ref().map_or(0, |stream| stream.state.get().size_bytes),
            sent_seq: seq(|standing| standing.sent),
            journaled_seq: seq(|standing| standing.journaled),
            committed_seq: seq(|standing| standing.committed),
            rpo_seconds: point_at.map(|at| seconds(now.since_ms(at))),
            nbd_uri: inner.nbd_uri.clone(),
            identity: inner.identity.clone(),
            grown_to_bytes: inner.grown_to,
            samples: inner.stream.as_ref().and_then(|stream| samples(stream)),
        }
    }
}

/// What the sampler has done; of a disk that is not served for the moment, what it found.
fn samples(stream: &Stream) -> Option<SampleReport> {
    let state = stream.state.get();
    let last = state.difference.map(|found| Difference {
        offset: found.offset,
        length: found.length,
        time_unix_ms: found.time_unix_ms,
    });
    let differences = state.differences;
    let splitter = stream.splitter();
    match splitter.as_ref().and_then(|splitter| splitter.samples()) {
        Some(samples) => {
            let (bytes, rounds) = (&samples.bytes, &samples.rounds);
            let (bytes, rounds) = (bytes.load(Ordering::Relaxed), rounds.load(Ordering::Relaxed));
            Some(SampleReport { bytes, rounds, differences, last })
        }
        None => {
            (differences > 0).then_some(SampleReport { bytes: 0, rounds: 0, differences, last })
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to people, with three digits")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a share, shown to people")]
fn share(done: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { (done as f64 / all as f64).min(1.0) }
}

fn judge(inner: &Inner, standing: Option<&Standing>, away_ms: u64) -> Judgement {
    let told = |state, detail: String, progress| Judgement { state, detail, progress };
    let trouble = standing.and_then(|standing| standing.trouble.clone()).unwrap_or_default();
    let Some(stream) = &inner.stream else {
        let error = inner.error.clone();
        let state = if error.is_some() { VolumeState::Error } else { VolumeState::Pending };
        return told(state, error.unwrap_or_default(), 0.0);
    };
    let (progress, size) = (&stream.progress, stream.state.get().size_bytes);
    let copied = if progress.end().is_some() { 1.0 } else { share(progress.cursor(), size) };
    if let Some(error) = &inner.error {
        return told(VolumeState::Error, error.clone(), copied);
    }
    if let Some(reason) = standing.and_then(|standing| standing.halted) {
        return told(VolumeState::Error, halted(reason, &trouble), copied);
    }
    if standing.is_some_and(|standing| standing.is_contested) {
        return told(VolumeState::Error, trouble, copied);
    }
    let committed = standing.map_or(Seq(0), |standing| standing.committed);
    let copying = if progress.is_resync() { VolumeState::Resyncing } else { VolumeState::Copying };
    let Some(end) = progress.end() else {
        let is_waiting = away_ms > 0 && !trouble.is_empty();
        let detail = match copying {
            _ if is_waiting => trouble,
            VolumeState::Resyncing => "re-reading the whole disk".to_owned(),
            _ => unknown_text(stream).unwrap_or_default(),
        };
        let is_pending = is_waiting && copied == 0.0 && copying == VolumeState::Copying;
        let state = if is_pending { VolumeState::Pending } else { copying };
        return told(state, detail, copied);
    };
    if let Some(doubt) = in_doubt(stream, size) {
        return doubt;
    }
    let settling = "waiting until the vault has what was read".to_owned();
    if end > committed {
        // Before the node has said what it holds, nobody here knows whether the copy is in the vault.
        let is_up = standing.is_some_and(|standing| standing.phase == Phase::Streaming);
        let detail = match (is_up, trouble.is_empty()) {
            (true, _) => settling,
            (false, true) => "waiting for its node to say what the vault holds".to_owned(),
            (false, false) => trouble,
        };
        return told(copying, detail, 1.0);
    }
    if let Some(splitter) = stream.splitter() {
        if splitter.reread_end() > committed {
            let regions = regions_text(splitter.reread_regions());
            let detail = format!("re-read {regions}: {settling}");
            return told(VolumeState::Resyncing, detail, 1.0);
        }
        splitter.reread_settled();
    }
    if away_ms > AWAY_MS {
        return told(VolumeState::Degraded, trouble, 1.0);
    }
    let lacks = standing.map_or(0, |standing| standing.point_lacks_blocks);
    match unknown_text(stream) {
        Some(text) => told(VolumeState::Degraded, text, 1.0),
        None if lacks > 0 => {
            let text = format!(
                "the newest point lacks {lacks} of the disk's blocks: they could not be read then, and are \
                 in the next"
            );
            told(VolumeState::Degraded, text, 1.0)
        }
        None => told(VolumeState::Protected, String::new(), 1.0),
    }
}

/// What cannot be read of the disk: no point has it.
fn unknown_text(stream: &Stream) -> Option<String> {
    let at = stream.unknown.first_byte()?;
    let count = stream.unknown.count();
    let noun = if count == 1 { "block" } else { "blocks" };
    Some(format!(
        "{count} {noun} of the disk cannot be read, the first at byte {at}: the rest is protected; \
         replace the disk, or write those blocks anew"
    ))
}

/// What is known of the disk itself: nothing is protected while its disk is not captured, is written by
/// others or has lost its name, however well the stream is.
fn temper(
    inner: &mut Inner,
    judgement: Judgement,
    assigned: &AgentVolume,
    now: Timestamp,
) -> Judgement {
    let is_good = judgement.state == VolumeState::Protected;
    if judgement.state == VolumeState::Error {
        return judgement;
    }
    if is_good && !inner.is_captured {
        let (state, detail) = match assigned.capture {
            Capture::Nbd => (VolumeState::Pending, "the disk is not served yet"),
            Capture::Scan => (VolumeState::Resyncing, "reading the disk since the agent started"),
            Capture::Unknown => (VolumeState::Pending, "the disk is not captured"),
        };
        return Judgement { state, detail: detail.to_owned(), ..judgement };
    }
    if let Some(disturbed) = &inner.disturbed {
        if is_good && disturbed.is_settled {
            inner.disturbed = None;
        } else {
            let detail = format!("{}; no point is set until all of it is re-read", disturbed.seen);
            return Judgement { state: VolumeState::Degraded, detail, ..judgement };
        }
    }
    if let Some(trouble) = inner.stream.as_ref().and_then(|stream| stream.trouble()) {
        let state = if is_good { VolumeState::Degraded } else { judgement.state };
        let detail = match judgement.detail.as_str() {
            "" => trouble,
            other => format!("{trouble}; {other}"),
        };
        return Judgement { state, detail, ..judgement };
    }
    if let (Some(size_bytes), true) = (inner.grown_to, is_good) {
        let detail = format!(
            "the disk has grown to {size_bytes} bytes: what is new is replicated once the volume has a \
             new epoch of that size"
        );
        return Judgement { state: VolumeState::Degraded, detail, ..judgement };
    }
    if is_good && let Some(detail) = without_marks(inner, assigned.mark_interval_ms, now) {
        return Judgement { state: VolumeState::Degraded, detail, ..judgement };
    }
    match (&inner.warning, is_good) {
        (Some(warning), true) => {
            Judgement { state: VolumeState::Degraded, detail: warning.clone(), ..judgement }
        }
        _ => judgement,
    }
}

/// That no mark was set for longer than it takes: whatever is in the way, no newer point comes.
fn without_marks(inner: &mut Inner, interval_ms: u64, now: Timestamp) -> Option<String> {
    let marked_at = *inner.marked_at.get_or_insert(now);
    let since_ms = now.since_ms(marked_at);
    let patience_ms = MARKLESS_MS_MIN.max(interval_ms.max(inner.look_ms).saturating_mul(3));
    (since_ms > patience_ms).then(|| {
        format!(
            "no point could be set for {} s: the disk or the agent's directory hangs, or takes nothing",
            since_ms / 1000
        )
    })
}

fn in_doubt(stream: &Stream, size: u64) -> Option<Judgement> {
    let splitter = stream.splitter()?;
    if splitter.differs() {
        let detail = "the disk is not what was sent: that is about to be re-read".to_owned();
        return Some(Judgement { state: VolumeState::Resyncing, detail, progress: 1.0 });
    }
    let regions = splitter.gate().in_doubt();
    if regions == 0 {
        return None;
    }
    let text = regions_text(regions);
    let detail = match splitter.log_trouble() {
        Some(trouble) => format!("{trouble}: {text} will be re-read when there is room again"),
        None => format!("re-reading {text}"),
    };
    let progress = 1.0 - share(regions * REGION_BYTES, size);
    Some(Judgement { state: VolumeState::Resyncing, detail, progress })
}

fn regions_text(regions: u64) -> String {
    let noun = if regions == 1 { "region" } else { "regions" };
    format!("{regions} {noun} ({} KiB)", regions * REGION_BYTES / 1024)
}

fn halted(reason: RefusalReason, trouble: &str) -> String {
    match reason {
        RefusalReason::Fenced => {
            "a newer epoch owns this volume: the machine was failed over or moved; unprotect it here \
             or protect it again"
                .to_owned()
        }
        _ => trouble.to_owned(),
    }
}
