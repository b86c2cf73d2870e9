//! Liveness, status, lists of agents, nodes and events.

use std::sync::Arc;

use farshore_api::agent::Agents;
use farshore_api::audit::Entries;
use farshore_api::node::Nodes;
use farshore_api::status::{Events, Status};
use serde::Deserialize;
use warp::filters::BoxedFilter;
use warp::{Filter, Reply};

use super::context::{Context, context, page};
use super::reply::{Response, answer};
use crate::app::App;
use crate::error::ControlError;

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
    let status = warp::path!("api" / "v1" / "status")
        .and(warp::get())
        .and(context(app))
        .then(|context| answer(status(context)));
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
    let lists = agents.or(nodes).unify().or(status).unify();
    lists.or(events).unify().or(audit).unify().boxed()
}

async fn agents(context: Context) -> Result<Agents, ControlError> {
    context.operator()?;
    let agents = context.app.db.agents(context.app.healthy_since_ms()).await?;
    Ok(Agents { agents })
}

async fn nodes(context: Context) -> Result<Nodes, ControlError> {
    context.operator()?;
    let nodes = context.app.db.nodes(context.app.healthy_since_ms()).await?;
    Ok(Nodes { nodes })
}

async fn status(context: Context) -> Result<Status, ControlError> {
    context.operator()?;
    let app = &context.app;
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        vault: app.settings.vault.clone(),
        ca_fingerprint: hex::encode(app.ca.fingerprint()),
        started_at_unix_ms: app.started_ms,
        counts: app.db.counts(app.healthy_since_ms()).await?,
    })
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
