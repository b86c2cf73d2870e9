//! Liveness, status, lists of agents, nodes and events.

use std::sync::Arc;

use farshore_api::agent::Agents;
use farshore_api::audit::Entries;
use farshore_api::node::{Node, Nodes};
use farshore_api::status::{Events, RetentionStatus, Status};
use serde::Deserialize;
use uuid::Uuid;
use warp::filters::BoxedFilter;
use warp::{Filter, Reply};

use super::context::{Context, context, page};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::clock;
use crate::domain::liveness::Input;
use crate::error::ControlError;
use crate::reconcile;

/// Answers a constant to anybody.
pub(super) fn livez() -> BoxedFilter<(Response,)> {
    warp::path!("livez").and(warp::get()).map(|| "ok\n".into_response()).boxed()
}

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let agents = warp::path!("api" / "v1" / "agents")
        .and(warp::get())
        .and(context(app))
        .then(|context| answer(agents(context)));
    let nodes = warp::path!("api" / "v1" / "nodes")
        .and(warp::get())
        .and(context(app))
        .then(|context| answer(nodes(context)));
    let lost = warp::path!("api" / "v1" / "nodes" / Uuid / "lost")
        .and(warp::post())
        .and(context(app))
        .then(|id, context| answer(node_lost(context, id)));
    let status = warp::path!("api" / "v1" / "status")
        .and(warp::get())
        .and(context(app))
        .then(|context| answer(status(context)));
    let believe = warp::path!("api" / "v1" / "status" / "believe-clock")
        .and(warp::post())
        .and(context(app))
        .then(|context| answer(believe_clock(context)));
    let events = warp::path!("api" / "v1" / "events")
        .and(warp::get())
        .and(context(app))
        .and(warp::query())
        .then(|context, query| answer(events(context, query)));
    let audit = warp::path!("api" / "v1" / "audit")
        .and(warp::get())
        .and(context(app))
        .and(warp::query())
        .then(|context, query| answer(audit(context, query)));
    let lists = agents.or(nodes).unify().or(lost).unify().or(status).unify();
    lists.or(believe).unify().or(events).unify().or(audit).unify().boxed()
}

async fn agents(context: Context) -> Result<Agents, ControlError> {
    context.operator()?;
    let agents = context.app.db.agents().await?;
    Ok(Agents { agents })
}

async fn nodes(context: Context) -> Result<Nodes, ControlError> {
    context.operator()?;
    let app = &context.app;
    let nodes = app.db.nodes(|node| app.life(node)).await?;
    Ok(Nodes { nodes })
}

async fn node_lost(context: Context, id: Uuid) -> Result<Node, ControlError> {
    let actor = context.operator()?;
    let app = &context.app;
    let show = async || {
        let nodes = app.db.nodes(|node| app.life(node)).await?;
        nodes
            .into_iter()
            .find(|node| node.id == id)
            .ok_or_else(|| ControlError::NotFound { what: "node", name: id.to_string() })
    };
    show().await?;
    app.tell_liveness(&Input::Confirmed(id)).map_err(|still| ControlError::WrongState {
        what: "node",
        name: id.to_string(),
        why: format!("spoke {} s ago: it is not gone; stop it first", still.ago.as_secs()),
    })?;
    let detail = "said to be gone: its volumes move";
    app.db.note(actor, "node.lost", format!("node/{id}"), detail).await?;
    app.changes.wake(Topic::Assignments);
    show().await
}

async fn status(context: Context) -> Result<Status, ControlError> {
    context.operator()?;
    let app = &context.app;
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        vault: app.settings.vault.clone(),
        ca_fingerprint: hex::encode(app.ca.fingerprint()),
        started_at_unix_ms: app.started_ms,
        retention: retention(app).await?,
        counts: app.db.counts().await?,
    })
}

async fn retention(app: &App) -> Result<RetentionStatus, ControlError> {
    let clock = app.db.retention_clock().await?;
    let doubt_ms = clock.as_ref().map_or(0, |clock| clock.doubt_ms);
    let points_in_doubt =
        if doubt_ms == 0 { 0 } else { app.db.points_to_prune(clock::now_ms()).await? };
    Ok(RetentionStatus {
        time_unix_ms: clock.map(|clock| clock.time_ms),
        doubt_ms,
        points_in_doubt,
    })
}

async fn believe_clock(context: Context) -> Result<RetentionStatus, ControlError> {
    let actor = context.operator()?;
    let (app, boot, host) = (&context.app, clock::boot(), clock::host());
    let look = reconcile::clocks(&boot, &host, app.db.longest_retention_ms().await?);
    app.db.believe_clock(actor, &look).await?;
    retention(app).await
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    after: Option<u64>,
    limit: Option<u32>,
}

async fn events(context: Context, query: EventsQuery) -> Result<Events, ControlError> {
    context.operator()?;
    let events = context.app.db.events(query.after, page(query.limit)).await?;
    Ok(Events { events })
}

async fn audit(context: Context, query: EventsQuery) -> Result<Entries, ControlError> {
    context.operator()?;
    let entries = context.app.db.audit(query.after, page(query.limit)).await?;
    Ok(Entries { entries })
}
