//! Asking for assignments, and reporting.

use super::known::Assigned;
use crate::clock::unix_ms;
use crate::points::Points;
use farshore_api::agent::{
    AgentReport, AgentVolumeReport, Assignments, RegisterAgent, Registered, ReportOrder, Reported,
};
use farshore_api::limits::{REPORT_INTERVAL_MS, REPORT_POINTS_MAX, REPORT_VOLUMES_MAX};
use farshore_api::paths;
use farshore_client::{Backoff, ControlClient};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

/// How long the control plane may hold back an answer in which nothing is new.
const WAIT: Duration = Duration::from_secs(30);

/// Registers the agent, then keeps `assigned` current, until dropped.
pub async fn poll(
    client: ControlClient,
    register: RegisterAgent,
    assigned: watch::Sender<Option<Assigned>>,
    look_again: Arc<Notify>,
) {
    let mut backoff = Backoff::default();
    loop {
        match client.post::<Registered>(paths::AGENT_REGISTER, &register).await {
            Ok(registered) => {
                tracing::info!(agent = %registered.id, "registered");
                break;
            }
            Err(error) => backoff.after("register", &error).await,
        }
    }
    let mut version = None;
    loop {
        let wait_ms = WAIT.as_millis();
        let query = match version {
            Some(version) => format!("?after={version}&wait_ms={wait_ms}"),
            None => String::new(),
        };
        let path_and_query = format!("{}{query}", paths::AGENT_ASSIGNMENTS);
        let answer = tokio::select! {
            answer = client.get::<Assignments>(&path_and_query, WAIT) => answer,
            () = look_again.notified() => {
                version = None;
                continue;
            }
        };
        match answer {
            Ok(assignments) => {
                backoff = Backoff::default();
                version = Some(assignments.version);
                take(assignments, &assigned);
            }
            Err(error) => backoff.after("assignments", &error).await,
        }
    }
}

fn take(assignments: Assignments, assigned: &watch::Sender<Option<Assigned>>) {
    let known = assigned.borrow().as_deref().cloned();
    let now = known.clone().unwrap_or_default().after(assignments);
    if known.as_ref() != Some(&now) {
        assigned.send_replace(Some(Arc::new(now)));
    }
}

/// Reports every second, until dropped.
pub async fn report(
    client: ControlClient,
    volumes: impl Fn() -> Vec<AgentVolumeReport> + Send,
    ended: impl Fn(&[Uuid]) -> Vec<Uuid> + Send,
    points: Arc<Points>,
    version: watch::Receiver<Option<Assigned>>,
    look_again: Arc<Notify>,
) {
    let mut ticks = tokio::time::interval(Duration::from_millis(REPORT_INTERVAL_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut backoff = Backoff::default();
    let mut looked_at = None;
    let (mut order, mut was_late) = (ReportOrder::default(), false);
    loop {
        ticks.tick().await;
        order = order.next(was_late);
        let mut reports = volumes();
        reports.truncate(REPORT_VOLUMES_MAX);
        let points_told = points.oldest(REPORT_POINTS_MAX);
        let mut detached = match &*version.borrow() {
            Some(known) => ended(&known.detached),
            None => Vec::new(),
        };
        detached.truncate(REPORT_VOLUMES_MAX);
        let report = AgentReport {
            order,
            clock_unix_ms: Some(unix_ms()),
            volumes: reports,
            points: points_told,
            detached,
        };
        match client.post::<Reported>(paths::AGENT_REPORT, &report).await {
            Ok(reported) => {
                backoff = Backoff::default();
                was_late = reported.late;
                points.forget(&report.points);
                let known = version.borrow().as_ref().map(|assigned| assigned.version);
                if known != Some(reported.version) && looked_at != Some(reported.version) {
                    // Asked for once: the poll that is waiting should have seen it.
                    looked_at = Some(reported.version);
                    look_again.notify_one();
                }
                if report.points.len() == REPORT_POINTS_MAX {
                    ticks.reset_immediately();
                }
            }
            Err(error) => backoff.after("report", &error).await,
        }
    }
}
