//! Routes of nodes.

use std::sync::Arc;

use farshore_api::Role;
use farshore_api::node::{Assignments, NodeReport, RegisterNode, Registered, Reported};
use warp::Filter;
use warp::filters::BoxedFilter;

use super::agent::reported;
use super::context::{Body, Context, Door, PollQuery, body, context, door, report_body};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::db::Actor;
use crate::domain::validate;
use crate::error::ControlError;
use crate::limits::Asked;

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let register = warp::path!("api" / "v1" / "node" / "register")
        .and(warp::post())
        .and(door(app, Door::Peer(Role::Node)))
        .and(body())
        .then(|context, body| answer(register(context, body)));
    let assignments = warp::path!("api" / "v1" / "node" / "assignments")
        .and(warp::get())
        .and(context(app))
        .and(warp::query())
        .then(|context, query| answer(assignments(context, query)));
    let report = warp::path!("api" / "v1" / "node" / "report")
        .and(warp::post())
        .and(door(app, Door::Peer(Role::Node)))
        .and(report_body())
        .then(|context, body| answer(report(context, body)));
    let alive = warp::path!("api" / "v1" / "node" / "alive")
        .and(warp::post())
        .and(context(app))
        .then(|context| answer(alive(context)));
    register.or(assignments).unify().or(report).unify().or(alive).unify().boxed()
}

async fn register(context: Context, body: Body) -> Result<Registered, ControlError> {
    let id = context.peer(Role::Node).await?;
    let request: RegisterNode = body.json()?;
    context.app.buckets.take(id, Asked::Registration)?;
    let address = validate::node_registration(&request, context.remote())?;
    let app = &context.app;
    match app.db.register_node(id, address, &request).await {
        Err(failure @ ControlError::WrongState { .. }) => {
            // Somebody with the node's key may want its agents to come to another machine.
            let (what, node) = ("identity.address_refused", Actor::Peer(Role::Node, id));
            if app.holders.may_tell(id, what) {
                app.db.note(Actor::Control, what, node, &failure.to_string()).await?;
            }
            return Err(failure);
        }
        registered => registered?,
    }
    // Wakes the agents, in case the node moved, and placement, in case volumes wait for it.
    context.app.changes.wake(Topic::Assignments);
    Ok(Registered { id })
}

/// The word itself is taken in where the node is admitted.
async fn alive(context: Context) -> Result<Registered, ControlError> {
    let id = context.peer(Role::Node).await?;
    Ok(Registered { id })
}

async fn assignments(context: Context, query: PollQuery) -> Result<Assignments, ControlError> {
    let look = || async {
        // Asked at each look: whoever is revoked meanwhile waits no longer.
        let id = context.still_peer(Role::Node).await?;
        // The version is read first: if the volumes are newer, the next poll answers at once.
        let version = context.app.db.assignments_version().await?;
        let is_new = query.after != Some(version);
        let volumes = context.app.db.node_volumes(id).await?;
        let to_let_go = context.app.db.to_let_go(id).await?;
        Ok((Assignments { version, volumes, to_let_go }, is_new))
    };
    context.app.changes.wait(Topic::Assignments, query.wait(), look).await
}

async fn report(context: Context, body: Body) -> Result<Reported, ControlError> {
    let id = context.peer(Role::Node).await?;
    let report: NodeReport = body.json()?;
    validate::node_report(&report)?;
    let points = u32::try_from(report.points.len()).unwrap_or(u32::MAX);
    context.app.buckets.take(id, Asked::NodePoints(points))?;
    let taken = context.app.db.node_report(id, &report).await?;
    reported(&context.app, taken).await
}
