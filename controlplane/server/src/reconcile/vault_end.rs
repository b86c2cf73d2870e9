//! What a failover asks of the vault itself, before its export starts.
//!
//! The catalogue's points end where this control plane last heard of any; node and agent kept the
//! rest in memory, and a lost site took them along. So the volume's own end is read, and its newest
//! point is what `latest` means. And the fence is made there: an epoch that nobody writes, above all
//! that the vault has. The log of the old owner is not sealed for it (see `farshore_vault::fence`).

use std::time::Duration;

use farshore_api::agent::PointReport;
use farshore_api::point::PointKind;
use farshore_proto::{Epoch, MarkKind, VolumeId};
use farshore_vault::fence::{FenceError, StreamEnd, fence_volume};
use farshore_vault::{Access, Point, Store, Vault, key_file};
use tracing::{info, warn};
use uuid::Uuid;

use crate::app::{App, Topic};
use crate::db::FailoverRow;
use crate::error::ControlError;

/// How long the vault may take: a failover waits for it, and can do without.
const VAULT_TIME_MAX: Duration = Duration::from_secs(30);

/// How often the epoch is raised above one that the vault has.
const RAISES_MAX: usize = 4;

/// Fences the machine of an unplanned failover in the catalogue, then its volume in the vault, and
/// takes the vault's newest point if none was named.
///
/// To be called in state `fencing`, after the node had its time for a last word and before
/// `Event::Fenced` is applied; calling it again changes nothing. Returns a sentence for the failover's
/// detail where there is something to say: that the vault could not be asked, or that its newest point
/// is another than the catalogue's.
///
/// # Errors
/// `Database`, `NoSpace`. A vault that cannot be asked is no error.
///
/// # Cancel safety
/// Safe: the next call goes on.
pub async fn fence_in_vault(app: &App, row: &FailoverRow) -> Result<Option<String>, ControlError> {
    let volume = row.shown.volume;
    let mut epoch = app.db.fence_machine(row.machine).await?;
    // Its node, if it lives, lets go before the vault's end is read rather than after.
    app.changes.wake(Topic::Assignments);
    let vault = match tokio::time::timeout(VAULT_TIME_MAX, open(app)).await {
        Ok(Ok(vault)) => vault,
        Ok(Err(reason)) => return Ok(Some(unasked(row, &reason))),
        Err(_) => return Ok(Some(unasked(row, "it does not answer"))),
    };
    for _ in 0..RAISES_MAX {
        let fence = fence_volume(&vault, VolumeId::from(volume), Epoch(epoch));
        match tokio::time::timeout(VAULT_TIME_MAX, fence).await {
            Ok(Ok(end)) => {
                info!(%volume, epoch = end.epoch.0, last_seq = end.last_seq.0, "fenced in the vault");
                return take_point(app, row, &end).await;
            }
            Ok(Err(FenceError::Epoch { newest, .. })) => {
                epoch = app.db.raise_fence(volume, newest.0).await?;
            }
            Ok(Err(error)) => return Ok(Some(unasked(row, &told(&error)))),
            Err(_) => return Ok(Some(unasked(row, "it does not answer"))),
        }
    }
    Ok(Some(unasked(row, "others begin epochs of the volume all the time")))
}

async fn open(app: &App) -> Result<Vault, String> {
    let settings = &app.settings;
    let store = Store::open(&settings.vault, Access::Write).map_err(|error| told(&error))?;
    let key = key_file::read(&settings.key_file).map_err(|error| told(&error))?;
    Vault::open(&store, &key).await.map_err(|error| told(&error))
}

async fn take_point(
    app: &App,
    row: &FailoverRow,
    end: &StreamEnd,
) -> Result<Option<String>, ControlError> {
    let Some(point) = &end.point else {
        return Ok(Some(unasked(row, "it holds no recovery point of the volume")));
    };
    if row.shown.point.is_some() {
        return Ok(None);
    }
    let report = report_of(row.shown.volume, point);
    let (is_new, known) = app.db.take_point_of_vault(row.shown.id, row.machine, &report).await?;
    let taken = report.point;
    Ok(match known {
        Some(known) if known == taken => None,
        _ if is_new => Some(format!(
            "point {taken} is the newest in the vault; the control plane had not heard of it"
        )),
        Some(known) => Some(format!(
            "point {taken} is the newest in the vault; {known}, which the control plane was told \
             of, is not there"
        )),
        None => None,
    })
}

fn report_of(volume: Uuid, point: &Point) -> PointReport {
    PointReport {
        point: point.id.into(),
        volume,
        seq: point.seq.0,
        kind: match point.kind {
            MarkKind::Crash => PointKind::Crash,
            MarkKind::App => PointKind::App,
            MarkKind::Scan => PointKind::Scan,
        },
        unknown_blocks: point.unknown_blocks,
        time_unix_ms: point.time_unix_ms,
    }
}

fn unasked(row: &FailoverRow, reason: &str) -> String {
    warn!(failover = %row.shown.id, volume = %row.shown.volume, reason, "not fenced in the vault");
    let point = match row.shown.point {
        Some(_) => "",
        None => ", and the point is the newest that the control plane was told of",
    };
    format!(
        "the volume is fenced in the catalogue only{point}: the vault was not to be asked: {reason}"
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
