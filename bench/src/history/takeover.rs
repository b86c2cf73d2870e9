//! What a node does to take over all volumes of a log whose writer is gone.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore_engine::claims::{CLAIMS_AT_ONCE, Wanted};
use farshore_ingest::claim::{Claimed, SealedLogs, claim_with};
use farshore_proto::{Epoch, LogId, Slot, VolumeId};
use farshore_vault::Vault;
use farshore_vault::layout::ObjectName;
use futures::{StreamExt, TryStreamExt};

use super::Options;
use super::delayed::Delayed;
use super::report::{Clock, Figure, Took};
use super::write::{EPOCHS, History, Log, SIZE_BYTES, log_of};

/// From a store that takes [`super::TARGET_DELAY_MS`] for each request.
const TARGET_SECONDS: f64 = 10.0;
/// What the shard that takes over has in its own log.
const OWN_SLOTS: Slot = Slot(4);

/// A takeover, from a directory and from a slow store.
///
/// # Errors
/// If the history cannot be written, or what is claimed is not what was written.
pub(super) async fn measure(options: &Options, folder: &Path) -> Result<(Vec<Figure>, History)> {
    let (slots, volumes) = (options.takeover_slots, options.volumes);
    let history = History::write(folder.join("takeover"), 1, slots, volumes).await?;
    let name = format!(
        "takeover of {volumes} volumes ({EPOCHS} epochs each) of a log with {slots} slots, {{}}: \
         first claim to last volume claimed"
    );
    let (took, _) = take_over(&history, &history.vault).await?;
    let local = Figure::timed(name.replace("{}", "directory"), took);

    let (vault, store) =
        Delayed::over(&history.directory, options.delay())?.open(&history.key).await?;
    let (took, first) = take_over(&history, &vault).await?;
    let delayed = Figure::timed(name.replace("{}", &options.delay_text()), took)
        .held_to(TARGET_SECONDS)
        .with_requests(store.take_requests())
        .with_remark(format!(
            "first volume claimed after {:.2} s, when the log was sealed and read; {CLAIMS_AT_ONCE} claims at once. \
             Not in it: until the death is noticed, sessions, and the first ack of each volume",
            first.as_secs_f64()
        ));
    Ok((vec![local, delayed], history))
}

/// Claims all volumes of the history's log for another one, as a node does, and takes that back; says when the
/// first was claimed.
async fn take_over(history: &History, vault: &Vault) -> Result<(Took, Duration)> {
    let log = history.logs.first().context("a history has a log")?;
    let sealed = Arc::new(SealedLogs::default());
    let claims = log.volumes.keys().map(|volume| {
        let (vault, sealed, wanted) = (vault.clone(), Arc::clone(&sealed), wanted(*volume));
        // As the node does: a task for each, on whatever thread is free.
        let claim = async move { claim_with(&vault, &wanted, &sealed).await };
        async move { Ok::<_, anyhow::Error>((*volume, tokio::spawn(claim).await??)) }
    });
    let (clock, begun) = (Clock::start()?, Instant::now());
    let mut first = None;
    let claimed: Vec<(VolumeId, Claimed)> = futures::stream::iter(claims)
        .buffer_unordered(CLAIMS_AT_ONCE)
        .inspect_ok(|_| _ = first.get_or_insert_with(|| begun.elapsed()))
        .try_collect()
        .await?;
    let took = clock.stop()?;
    check(log, &claimed)?;
    for volume in log.volumes.keys() {
        history.remove(&ObjectName::epoch(*volume, EPOCHS + 1))?;
    }
    history.remove(&ObjectName::slot(log.id, Slot(log.slots)))?;
    Ok((took, first.unwrap_or_default()))
}

pub(super) fn wanted(volume: VolumeId) -> Wanted {
    Wanted {
        volume,
        epoch: Epoch(EPOCHS + 1),
        log: successor(),
        first_slot: OWN_SLOTS,
        size_bytes: SIZE_BYTES,
        label: "taken over".to_owned(),
    }
}

/// The log of the shard that takes over.
fn successor() -> LogId {
    log_of(1)
}

/// Refuses a figure for something else than what was written.
pub(super) fn check(log: &Log, claimed: &[(VolumeId, Claimed)]) -> Result<()> {
    let (count, wrote) = (claimed.len(), log.volumes.len());
    ensure!(count == wrote, "{count} volumes are claimed, {wrote} were written");
    for (volume, claimed) in claimed {
        let place = log.volumes.get(volume).with_context(|| format!("no volume {volume}"))?;
        let expected = Claimed {
            committed: place.committed,
            stamp: place.stamp,
            sealed: Some((log.id, Slot(log.slots))),
            ordinal: Some(EPOCHS + 1),
        };
        ensure!(*claimed == expected, "volume {volume}: {claimed:?} instead of {expected:?}");
    }
    Ok(())
}
