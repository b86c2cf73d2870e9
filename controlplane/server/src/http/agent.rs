//! Routes of agents.

use std::sync::Arc;

use farshore_api::Role;
use farshore_api::agent::{AgentReport, Assignments, RegisterAgent, Registered, Reported};
use warp::Filter;
use warp::filters::BoxedFilter;

use super::context::{Body, Context, Door, PollQuery, body, context, door, report_body};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::db::Taken;
use crate::domain::validate;
use crate::error::ControlError;
use crate::limits::Asked;

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let register = warp::path!("api" / "v1" / "agent" / "register")
        .and(warp::post())
        .and(door(app, Door::Peer(Role::Agent)))
        .and(body())
        .then(|context, body| answer(register(context, body)));
    let assignments = warp::path!("api" / "v1" / "agent" / "assignments")
        .and(warp::get())
        .and(context(app))
        .and(warp::query())
        .then(|context, query| answer(assignments(context, query)));
    let report = warp::path!("api" / "v1" / "agent" / "report")
        .and(warp::post())
        .and(door(app, Door::Peer(Role::Agent)))
        .and(report_body())
        .then(|context, body| answer(report(context, body)));
    register.or(assignments).unify().or(report).unify().boxed()
}

async fn register(context: Context, body: Body) -> Result<Registered, ControlError> {
    let id = context.peer(Role::Agent).await?;
    context.app.buckets.take(id, Asked::Registration)?;
    let mut request: RegisterAgent = body.json()?;
    validate::agent_registration(&request)?;
    // Whoever is beside the control plane comes from this machine: an agent's word alone would make
    // it the default for new machines from anywhere.
    request.local &= context.remote().is_some_and(|from| from.to_canonical().is_loopback());
    context.app.db.register_agent(id, &request).await?;
    Ok(Registered { id })
}

async fn assignments(context: Context, query: PollQuery) -> Result<Assignments, ControlError> {
    let look = || async {
        // Asked at each look: whoever is revoked meanwhile waits no longer.
        let id = context.still_peer(Role::Agent).await?;
        // The version is read first: if the volumes are newer, the next poll answers at once.
        let version = context.app.db.assignments_version().await?;
        let is_new = query.after != Some(version);
        let volumes = context.app.db.agent_volumes(id).await?;
        let (detached, fenced) = context.app.db.agent_ended(id).await?;
        Ok((Assignments { version, volumes, detached, fenced }, is_new))
    };
    context.app.changes.wait(Topic::Assignments, query.wait(), look).await
}

async fn report(context: Context, body: Body) -> Result<Reported, ControlError> {
    let id = context.peer(Role::Agent).await?;
    let report: AgentReport = body.json()?;
    validate::report_size(report.volumes.len(), report.points.len())?;
    let points = u32::try_from(report.points.len()).unwrap_or(u32::MAX);
    context.app.buckets.take(id, Asked::AgentPoints(points))?;
    let taken = context.app.db.agent_report(id, &report).await?;
    context.app.vouch(&taken.told);
    reported(&context.app, taken).await
}

/// Wakes those who wait for what a report brought, and answers it.
pub(super) async fn reported(app: &App, taken: Taken) -> Result<Reported, ControlError> {
    if taken.points_changed {
        app.changes.wake(Topic::Points);
    }
    if taken.assignments_changed {
        app.changes.wake(Topic::Assignments);
    }
    let version = app.db.assignments_version().await?;
    Ok(Reported { version, ignored_volumes: taken.ignored_volumes, late: taken.is_late })
}
