//! The end of a volume for who only asks: nothing is fenced, and nobody waits for it long.
//!
//! What is said holds for the moment at which it was read: marks come meanwhile, and the failover itself reads
//! again, behind its fence.

use std::time::Duration;

use farshore_api::agent::PointReport;
use farshore_api::failover::{CreateFailover, FailoverKind};
use farshore_api::point::PointSelector;
use farshore_vault::Access;
use farshore_vault::fence::end_of_stream;
use uuid::Uuid;

use super::{
    NO_POINT, SILENT, nearer_told, newest_told, open, report_of, told, unread, while_it_answers,
};
use crate::app::App;
use crate::clock;
use crate::db::takes_newest;
use crate::error::ControlError;

/// How long the vault may take: somebody waits for the answer.
const LOOK_TIME_MAX: Duration = Duration::from_secs(10);

/// What a failover would find in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The vault's newest point, if the failover would take that one.
    pub takes: Option<PointReport>,
    /// What was found, one sentence.
    pub told: String,
}

/// Looks at what the vault would say to a failover that takes `chosen` by the catalogue. None if such a failover
/// does not ask it.
///
/// # Errors
/// `Database`. A vault that cannot be read is no error: that is told.
///
/// # Cancel safety
/// Safe: it only looks.
pub async fn look(
    app: &App,
    spec: &CreateFailover,
    volume: Uuid,
    chosen: Uuid,
) -> Result<Option<Look>, ControlError> {
    let (now_ms, is_latest) = (clock::now_ms(), spec.point == PointSelector::Latest);
    let not_after = spec.point.not_after(now_ms);
    if spec.kind != FailoverKind::Unplanned || !is_latest && not_after.is_none() {
        return Ok(None);
    }
    let (_, known_before) = app.db.compare_newest(volume, chosen).await?;
    let newest = tokio::time::timeout(LOOK_TIME_MAX, newest_in_vault(app, volume)).await;
    let newest = match newest.unwrap_or_else(|_| Err(SILENT.to_owned())) {
        Ok(newest) => newest,
        Err(why) => return Ok(Some(Look { takes: None, told: unread(is_latest, &why) })),
    };
    let point = newest.point;
    let (is_new, known) = app.db.compare_newest(volume, point).await?;
    if takes_newest((spec.kind, spec.point), now_ms, newest.time_unix_ms) {
        // What was heard of meanwhile may be newer than what was read.
        let known = known.filter(|_| known == known_before);
        let told = newest_told(point, is_new, known);
        let told = told.unwrap_or_else(|| format!("its newest point is {point}, which is known"));
        return Ok(Some(Look { takes: Some(newest), told }));
    }
    let told = match not_after {
        None => None,
        Some(limit_ms) => {
            nearer_told(app, volume, (limit_ms, chosen), is_new.then_some(point)).await?
        }
    };
    let told = told.unwrap_or_else(|| format!("its newest point, {point}, is a later one"));
    Ok(Some(Look { takes: None, told }))
}

async fn newest_in_vault(app: &App, volume: Uuid) -> Result<PointReport, String> {
    let vault = open(app, Access::Read).await.map_err(|(_, why)| why)?;
    let read = while_it_answers(vault.store(), end_of_stream(&vault, volume.into())).await;
    let end = read.ok_or(SILENT)?.map_err(|error| told(&error))?;
    report_of(volume, &end).ok_or_else(|| NO_POINT.to_owned())
}
