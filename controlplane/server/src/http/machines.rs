//! Machines.

use std::sync::Arc;

use farshore_api::machine::{CreateMachine, Machine, Machines};
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::context::{Body, Context, Door, body, context, door};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::clock;
use crate::domain::{machine, validate};
use crate::error::ControlError;

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let all = warp::path!("api" / "v1" / "machines");
    let one = warp::path!("api" / "v1" / "machines" / String);
    let list = all.and(warp::get()).and(context(app)).then(|context| answer(list(context)));
    let protect = all
        .and(warp::post())
        .and(door(app, Door::Operator))
        .and(body())
        .then(|context, body| answer(protect(context, body)));
    let show =
        one.and(warp::get()).and(context(app)).then(|name, context| answer(show(context, name)));
    let unprotect = one
        .and(warp::delete())
        .and(context(app))
        .and(warp::query())
        .then(|name, context, query| answer(unprotect(context, name, query)));
    list.or(protect).unify().or(show).unify().or(unprotect).unify().boxed()
}

async fn list(context: Context) -> Result<Machines, ControlError> {
    context.operator()?;
    let facts = context.app.db.machines().await?;
    let now_ms = clock::now_ms();
    let machines = facts.into_iter().map(|facts| machine::view(facts, now_ms)).collect();
    Ok(Machines { machines })
}

async fn show(context: Context, name: String) -> Result<Machine, ControlError> {
    context.operator()?;
    let facts = context.app.db.machine(&name).await?;
    Ok(machine::view(facts, clock::now_ms()))
}

async fn protect(context: Context, body: Body) -> Result<Machine, ControlError> {
    let actor = context.operator()?;
    let request: CreateMachine = body.json()?;
    validate::machine(&request)?;
    context.app.db.create_machine(actor, &request).await?;
    // The placement follows at once; the answer may still say that the machine waits for a node.
    context.app.changes.wake(Topic::Assignments);
    let facts = context.app.db.machine(&request.name).await?;
    Ok(machine::view(facts, clock::now_ms()))
}

/// Names come again: whoever knows the machine by its id says so.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnprotectQuery {
    #[serde(default)]
    id: Option<Uuid>,
}

async fn unprotect(
    context: Context,
    name: String,
    query: UnprotectQuery,
) -> Result<Map<String, Value>, ControlError> {
    let actor = context.operator()?;
    context.app.db.delete_machine(actor, &name, query.id).await?;
    context.app.changes.wake(Topic::Assignments);
    context.app.changes.wake(Topic::Points);
    Ok(Map::new())
}
