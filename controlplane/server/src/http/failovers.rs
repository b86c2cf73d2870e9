//! Drills and failovers.

use std::path::Path;
use std::sync::Arc;

use farshore_api::failover::{CleanupFailover, CreateFailover, Failover, FailoverCheck, Failovers};
use farshore_api::limits::PAGE_DEFAULT;
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::context::{Body, Context, Door, WaitQuery, body, context, door};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::domain::failover::Event;
use crate::domain::validate;
use crate::error::ControlError;
use crate::providers::export::Files;
use crate::providers::qemu::firmware::may_be_named;
use crate::reconcile;

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let start = warp::path!("api" / "v1" / "machines" / String / "failovers")
        .and(warp::post())
        .and(door(app, Door::Operator))
        .and(body())
        .then(|name, context, body| answer(start(context, name, body)));
    let list = warp::path!("api" / "v1" / "failovers")
        .and(warp::get())
        .and(context(app))
        .then(|context| answer(list(context)));
    let show = warp::path!("api" / "v1" / "failovers" / Uuid)
        .and(warp::get())
        .and(context(app))
        .and(warp::query())
        .then(|id, context, query| answer(show(context, id, query)));
    let commit = warp::path!("api" / "v1" / "failovers" / Uuid / "commit")
        .and(warp::post())
        .and(context(app))
        .then(|id, context| answer(commit(context, id)));
    let check = warp::path!("api" / "v1" / "machines" / String / "failovers" / "check")
        .and(warp::post())
        .and(context(app))
        .and(body())
        .then(|name, context, body| answer(check(context, name, body)));
    let retry = warp::path!("api" / "v1" / "failovers" / Uuid / "retry")
        .and(warp::post())
        .and(context(app))
        .then(|id, context| answer(retry(context, id)));
    let cleanup = warp::path!("api" / "v1" / "failovers" / Uuid / "cleanup")
        .and(warp::post())
        .and(door(app, Door::Operator))
        .and(body())
        .then(|id, context, body| answer(clean_up(context, id, body)));
    let read = start.or(list).unify().or(show).unify().or(check).unify();
    read.or(commit).unify().or(retry).unify().or(cleanup).unify().boxed()
}

async fn start(context: Context, machine: String, body: Body) -> Result<Failover, ControlError> {
    let actor = context.operator()?;
    let request: CreateFailover = body.json()?;
    validate::failover(&request)?;
    let firmware_dir = context.app.settings.firmware_dir.as_deref();
    if let Some(firmware) = &request.firmware {
        may_be_named(Path::new(firmware), firmware_dir)
            .map_err(|why| ControlError::Invalid { field: "firmware", why })?;
    }
    let id = context.app.db.create_failover(actor, &machine, &request).await?;
    context.app.changes.wake(Topic::Failovers);
    shown(&context.app, id).await
}

/// A failover with what its files say.
async fn shown(app: &App, id: Uuid) -> Result<Failover, ControlError> {
    let mut failover = app.db.failover(id).await?.shown;
    failover.overlay_bytes = Files::new(&app.settings.failovers(), id).overlay_bytes();
    Ok(failover)
}

async fn check(context: Context, name: String, body: Body) -> Result<FailoverCheck, ControlError> {
    context.operator()?;
    let request: CreateFailover = body.json()?;
    validate::failover(&request)?;
    reconcile::failover::check(&context.app, &name, &request).await
}

async fn retry(context: Context, id: Uuid) -> Result<Failover, ControlError> {
    apply(context, id, Event::Retry).await
}

async fn list(context: Context) -> Result<Failovers, ControlError> {
    context.operator()?;
    Ok(Failovers { failovers: context.app.db.failovers(PAGE_DEFAULT).await? })
}

async fn show(context: Context, id: Uuid, query: WaitQuery) -> Result<Failover, ControlError> {
    context.operator()?;
    let look = || async {
        let failover = shown(&context.app, id).await?;
        let is_settled = failover.state.is_settled();
        Ok((failover, is_settled))
    };
    context.app.changes.wait(Topic::Failovers, query.wait(), look).await
}

async fn commit(context: Context, id: Uuid) -> Result<Failover, ControlError> {
    apply(context, id, Event::Commit).await
}

async fn clean_up(context: Context, id: Uuid, body: Body) -> Result<Failover, ControlError> {
    context.operator()?;
    let request: CleanupFailover = body.json_or_default()?;
    apply(context, id, Event::CleanUp { force: request.force }).await
}

async fn apply(context: Context, id: Uuid, event: Event) -> Result<Failover, ControlError> {
    let actor = context.operator()?;
    context.app.db.failover_event(actor, id, event, None).await?;
    context.app.changes.wake(Topic::Failovers);
    shown(&context.app, id).await
}
