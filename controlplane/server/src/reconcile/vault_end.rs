//! What a failover asks of the vault itself, before its export starts.
//!
//! The catalogue's points end where this control plane last heard of any; node and agent kept the
//! rest in memory, and a lost site took them along. So the volume's own end is read, and its newest
//! point is what `latest` means. And the fence is made there: an epoch that nobody writes, above all
//! that the vault has. Before it is, the node that has the volume lets it go; where that does not say so,
//! its log is sealed (see `farshore_vault::fence`).

mod look;

use std::pin::pin;
use std::time::Duration;

use farshore_api::agent::PointReport;
use farshore_api::limits::LET_GO_MS_MAX;
use farshore_api::point::PointKind;
use farshore_proto::{Epoch, ErrorKind, LogId, VolumeId};
use farshore_vault::fence::{FenceError, Fenced, StreamEnd, end_of_stream, fence_volume};
use farshore_vault::{Access, Store, Vault, key_file};
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use crate::app::App;
use crate::db::{Cut, FailoverRow};
use crate::error::ControlError;

pub use look::{Look, look};

/// A node says something of its own about twice a second; one that is silent for so long is not waited
/// for.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long a node that speaks may take to let a volume go.
const LET_GO_TIME_MAX: Duration = Duration::from_millis(LET_GO_MS_MAX);

/// How often its word is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// How long the vault may say nothing. As long as it answers it is read, however long the stream is.
const VAULT_SILENCE_MAX: Duration = Duration::from_secs(30);

/// How often the epoch is raised above one that the vault has.
const RAISES_MAX: usize = 4;

/// How long a stream that the store shows with a hole is asked for again: a store, or a cache in front of it, may not
/// show at once what it has, and whoever goes on with less loses what is there.
const LOST_TIME_MAX: Duration = Duration::from_secs(10);

/// Between two such questions.
const LOST_PAUSE: Duration = Duration::from_millis(500);

/// What became of a fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fence {
    /// The failover goes on: what there is to say, such as that the fence could not be made.
    Passed {
        /// A sentence for the failover's detail.
        detail: Option<String>,
    },
    /// The vault does not answer: without it there is neither a fence nor an export.
    Away {
        /// Why not.
        why: String,
    },
}

/// Waits until the node that had a fenced volume says that it has let it go. Returns the log that it says
/// it of; none if it does not say so: the log of the volume's newest epoch is to be sealed then.
///
/// # Errors
/// `Database`.
///
/// # Cancel safety
/// Safe: it only looks.
pub async fn let_go(app: &App, volume: Uuid) -> Result<Option<LogId>, ControlError> {
    let begun = Instant::now();
    loop {
        let writer = app.db.writer_of(volume).await?;
        if let Some(log) = writer.let_go_log {
            return Ok(Some(log.into()));
        }
        let Some(node) = writer.node else { return Ok(None) };
        let silence = app.own_silence(node);
        if silence >= SILENCE_MAX || begun.elapsed() >= LET_GO_TIME_MAX {
            let silent_s = silence.as_secs_f64();
            warn!(%volume, %node, silent_s, "the node does not say that it let the volume go");
            return Ok(None);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Fences the volume of an unplanned failover in the vault, and takes the vault's newest point if none
/// was named.
///
/// To be called in state `fencing`, once the machine is fenced in the catalogue under `epoch` and its
/// node had its time to let it go, and before `Event::Fenced` is applied; calling it again changes nothing.
///
/// # Errors
/// `Database`, `NoSpace`. A vault that cannot be asked is no error.
///
/// # Cancel safety
/// Safe: the next call goes on.
pub async fn fence_in_vault(
    app: &App,
    row: &FailoverRow,
    epoch: u64,
    let_go: Option<LogId>,
) -> Result<Fence, ControlError> {
    let away = |why: String| Fence::Away { why };
    let vault = match tokio::time::timeout(VAULT_SILENCE_MAX, open(app, Access::Write)).await {
        Ok(Ok(vault)) => vault,
        Ok(Err((true, why))) => return Ok(away(why)),
        Ok(Err((false, why))) => return Ok(passed(unfenced(row, &why))),
        Err(_) => return Ok(away(SILENT.to_owned())),
    };
    let volume = VolumeId::from(row.shown.volume);
    let mut epoch = epoch;
    for _ in 0..RAISES_MAX {
        let fence = || fence_volume(&vault, volume, Epoch(epoch), let_go);
        let fence = while_it_is_lost((LOST_TIME_MAX, LOST_PAUSE), fence);
        match while_it_answers(vault.store(), fence).await {
            Some(Ok(fenced)) => return take_cut(app, row, &fenced).await.map(passed_with),
            Some(Err(FenceError::Epoch { newest, .. })) => {
                epoch = app.db.raise_fence(row.shown.volume, newest.0).await?;
            }
            Some(Err(error)) => return without_fence(app, row, &vault, &error).await,
            None => return Ok(away(SILENT.to_owned())),
        }
    }
    Ok(passed(unfenced(row, "others begin epochs of the volume all the time")))
}

const SILENT: &str = "it does not answer";

fn passed(detail: String) -> Fence {
    Fence::Passed { detail: Some(detail) }
}

fn passed_with(detail: Option<String>) -> Fence {
    Fence::Passed { detail }
}

/// Makes the fence again and again while the store shows a hole in the stream, for so long and with such pauses.
async fn while_it_is_lost<T, F: Future<Output = Result<T, FenceError>>>(
    (time_max, pause): (Duration, Duration),
    fence: impl Fn() -> F,
) -> Result<T, FenceError> {
    let begun = Instant::now();
    loop {
        match fence().await {
            Err(error) if error.is_lost() && begun.elapsed() < time_max => {
                warn!(%error, "the vault shows a hole in the volume's stream; it is asked again");
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
}

/// Does the work for as long as the store says something to it now and then; none once it says nothing.
async fn while_it_answers<T>(store: &Store, work: impl Future<Output = T>) -> Option<T> {
    while_it_gets_on(|| store.answers(), VAULT_SILENCE_MAX, work).await
}

async fn while_it_gets_on<T>(
    answers: impl Fn() -> u64,
    silence_max: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    loop {
        let heard = answers();
        match tokio::time::timeout(silence_max, &mut work).await {
            Ok(done) => return Some(done),
            Err(_) if answers() == heard => return None,
            Err(_) => info!("the end of a volume is still being read"),
        }
    }
}

/// The vault, or whether it is away and why.
async fn open(app: &App, access: Access) -> Result<Vault, (bool, String)> {
    let settings = &app.settings;
    let is_away = |kind: ErrorKind| kind == ErrorKind::Unavailable;
    // A directory on a file server that is gone blocks, and must block nobody else.
    let url = settings.vault.clone();
    let opening = tokio::task::spawn_blocking(move || Store::open(&url, access));
    let store = opening
        .await
        .map_err(|error| (true, told(&error)))?
        .map_err(|error| (is_away(error.kind()), told(&error)))?;
    let key = key_file::read(&settings.key_file).map_err(|error| (false, told(&error)))?;
    Vault::open(&store, &key).await.map_err(|error| (is_away(error.kind()), told(&error)))
}

/// The fence cannot be made, by a store that takes no writes or a stream that is damaged: a failover may
/// not fail for that. What can still be read of the volume's end is.
async fn without_fence(
    app: &App,
    row: &FailoverRow,
    vault: &Vault,
    error: &FenceError,
) -> Result<Fence, ControlError> {
    let has_no_room = matches!(error, FenceError::Vault { source, .. } if source.is_no_space());
    if error.kind() == ErrorKind::Unavailable && !has_no_room {
        return Ok(Fence::Away { why: told(error) });
    }
    let read = end_of_stream(vault, row.shown.volume.into());
    match while_it_answers(vault.store(), read).await {
        Some(Ok(end)) => {
            let mut detail = vec![unfenced(row, &told(error))];
            detail.extend(note_end(app, row, &end, None).await?);
            Ok(passed(detail.join("; ")))
        }
        Some(Err(read)) if read.kind() == ErrorKind::Unavailable => {
            Ok(Fence::Away { why: told(&read) })
        }
        Some(Err(_)) => Ok(passed(unfenced(row, &told(error)))),
        None => Ok(Fence::Away { why: SILENT.to_owned() }),
    }
}

async fn take_cut(
    app: &App,
    row: &FailoverRow,
    fenced: &Fenced,
) -> Result<Option<String>, ControlError> {
    let (volume, end) = (row.shown.volume, &fenced.end);
    info!(%volume, epoch = end.epoch.0, last_seq = end.last_seq.0, "fenced in the vault");
    let mut detail = Vec::new();
    if let Some((log, slot)) = fenced.sealed {
        warn!(%volume, %log, %slot, "sealed the log of a node that did not let the volume go");
        detail.push(
            "its node did not say that it let the volume go, so the log of its shard was sealed: the \
             other volumes there go on under new epochs as soon as that node is heard"
                .to_owned(),
        );
    }
    let fence = Some((end.epoch.0, end.last_seq.next().0));
    detail.extend(note_end(app, row, end, fence).await?);
    Ok((!detail.is_empty()).then(|| detail.join("; ")))
}

/// Notes where the vault ends; returns what of it is to be told.
async fn note_end(
    app: &App,
    row: &FailoverRow,
    end: &StreamEnd,
    fence: Option<(u64, u64)>,
) -> Result<Option<String>, ControlError> {
    let volume = row.shown.volume;
    let report = report_of(volume, end);
    let cut = Cut { volume, fence, point: report };
    let is_taken = report.is_some_and(|report| row.takes(report.time_unix_ms));
    let (is_new, known) = app.db.note_cut(row.shown.id, row.machine, &cut, is_taken).await?;
    Ok(match report.map(|report| report.point) {
        None => Some(unread(row.is_latest(), NO_POINT)),
        Some(taken) if is_taken => newest_told(taken, is_new, known),
        Some(newest) => {
            let not_after = row.spec.point.not_after(row.begun_unix_ms);
            let (Some(limit_ms), Some(chosen)) = (not_after, row.shown.point) else {
                return Ok(None);
            };
            let unheard = is_new.then_some(newest);
            nearer_told(app, volume, (limit_ms, chosen), unheard).await?
        }
    })
}

const NO_POINT: &str = "it holds no recovery point of the volume";

/// What there is to say of a point that was chosen by a time, where the vault's newest is later than that: one in
/// between may be nearer, and nobody looks at all of them.
async fn nearer_told(
    app: &App,
    volume: Uuid,
    (limit_ms, chosen): (u64, Uuid),
    unheard: Option<Uuid>,
) -> Result<Option<String>, ControlError> {
    if let Some(newest) = unheard {
        return Ok(Some(format!(
            "the vault has points that the control plane had not heard of, up to {newest}; whether one of \
             them is nearer to the time asked for, `farshore vault points --volume {volume}` says"
        )));
    }
    let pace = app.db.pace_at(chosen).await?;
    Ok(pace.and_then(|(at_ms, interval_ms)| {
        gap_told(volume, limit_ms.saturating_sub(at_ms), interval_ms)
    }))
}

/// Marks come once in an interval, give or take: where the catalogue has none for longer, it was not told of some, they
/// were too old for it, or nothing was written.
fn gap_told(volume: Uuid, gap_ms: u64, interval_ms: u64) -> Option<String> {
    (gap_ms > interval_ms.saturating_mul(2)).then(|| {
        format!(
            "the point was set {} s before the time asked for, and of the vault's points only the newest \
             was compared; whether one is nearer, `farshore vault points --volume {volume}` says",
            gap_ms / 1000
        )
    })
}

fn newest_told(taken: Uuid, is_new: bool, known: Option<Uuid>) -> Option<String> {
    match known {
        Some(known) if known == taken => None,
        _ if is_new => Some(format!(
            "point {taken} is the newest in the vault; the control plane had not heard of it"
        )),
        Some(known) => Some(format!(
            "point {taken} is the newest in the vault; {known}, which the control plane was told \
             of, is not there"
        )),
        None => None,
    }
}

/// A point of the vault, which has said that it counts.
fn report_of(volume: Uuid, end: &StreamEnd) -> Option<PointReport> {
    let (point, epoch) = (end.point.as_ref()?, end.epoch.0);
    Some(PointReport {
        point: point.id.into(),
        volume,
        epoch,
        seq: point.seq.0,
        kind: PointKind::of_word(point.kind.word()),
        unknown_blocks: point.unknown_blocks,
        time_unix_ms: point.time_unix_ms,
    })
}

fn unread(is_latest: bool, reason: &str) -> String {
    let point = match is_latest {
        false => "",
        true => ", and the point is the newest that the control plane was told of",
    };
    format!("the vault did not say where the volume ends{point}: {reason}")
}

fn unfenced(row: &FailoverRow, reason: &str) -> String {
    warn!(failover = %row.shown.id, volume = %row.shown.volume, reason, "not fenced in the vault");
    let point = match row.is_latest() {
        false => "",
        true => ", and the point is the newest that could be found",
    };
    format!(
        "the volume is fenced in the catalogue only{point}: a node that does not hear of it may go on to \
         commit what does not count here; the vault did not take the fence: {reason}"
    )
}

/// An error with its causes, on one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use farshore_proto::Slot;
    use farshore_vault::VaultError;

    /// S19: what the store shows late is not taken for the end of a stream.
    #[tokio::test]
    async fn a_hole_in_the_stream_is_asked_for_again_for_some_time() {
        let asked = AtomicU64::new(0);
        let fence_after = |misses: u64| {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            let (volume, log, slot) = (VolumeId([1; 16]), LogId([2; 16]), Slot(3));
            let source = VaultError::LostSlot { url: "x".into(), log, slot, later: Slot(4) };
            let lost = FenceError::Vault { volume, source: Box::new(source) };
            std::future::ready(if number < misses { Err(lost) } else { Ok(()) })
        };
        let times = |time_ms| (Duration::from_millis(time_ms), Duration::from_millis(1));
        assert!(while_it_is_lost(times(60_000), || fence_after(2)).await.is_ok());
        assert_eq!(asked.swap(0, Ordering::Relaxed), 3);
        let error = while_it_is_lost(times(5), || fence_after(u64::MAX)).await.unwrap_err();
        assert!(error.is_lost() && asked.swap(0, Ordering::Relaxed) > 1);
        // What is damaged otherwise stays so.
        let damaged = || {
            asked.fetch_add(1, Ordering::Relaxed);
            let (volume, newest) = (VolumeId([1; 16]), Epoch(2));
            std::future::ready(Err::<(), _>(FenceError::Epoch { volume, newest }))
        };
        assert!(while_it_is_lost(times(60_000), damaged).await.is_err());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    /// C9: whoever asked for a time is told where a nearer point may lie that nobody looked for.
    #[test]
    fn a_gap_before_the_time_asked_for_is_told() {
        let volume = Uuid::from_u128(3);
        assert_eq!(gap_told(volume, 10_000, 5_000), None, "marks come late now and then");
        let told = gap_told(volume, 61_000, 5_000).unwrap();
        assert!(told.contains("61 s before the time") && told.contains(&volume.to_string()));
    }

    /// C9: a stream that is long is read to its end; a store that says nothing is not waited for.
    #[tokio::test]
    async fn what_gets_on_is_waited_for_however_long_it_takes() {
        let silence = Duration::from_millis(20);
        let (answers, is_over) = (AtomicU64::new(0), tokio::sync::Notify::new());
        let answers = || {
            let before = answers.fetch_add(1, Ordering::Relaxed);
            if before == 20 {
                is_over.notify_one();
            }
            before
        };
        assert_eq!(while_it_gets_on(answers, silence, is_over.notified()).await, Some(()));
        let work = std::future::pending::<()>();
        assert_eq!(while_it_gets_on(|| 7, silence, work).await, None);
    }
}
