//! Recovery points.

use std::sync::Arc;

use farshore_api::point::{CreatePoint, Point, PointSelector, PointState, Points};
use serde::Deserialize;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::context::{Body, Context, Door, WaitQuery, body, context, door, page};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::error::ControlError;

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let all = warp::path!("api" / "v1" / "machines" / String / "points");
    let list = all
        .and(warp::get())
        .and(context(app))
        .and(warp::query())
        .then(|name, context, query| answer(list(context, name, query)));
    let create = all
        .and(warp::post())
        .and(door(app, Door::Operator))
        .and(body())
        .then(|name, context, body| answer(create(context, name, body)));
    let show = warp::path!("api" / "v1" / "machines" / String / "points" / String)
        .and(warp::get())
        .and(context(app))
        .and(warp::query())
        .then(|name, point, context, query| answer(show(context, name, point, query)));
    list.or(create).unify().or(show).unify().boxed()
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    before: Option<PointSelector>,
    limit: Option<u32>,
}

async fn list(context: Context, machine: String, query: ListQuery) -> Result<Points, ControlError> {
    context.operator()?;
    let points = context.app.db.points(&machine, query.before, page(query.limit)).await?;
    Ok(Points { points })
}

async fn create(context: Context, machine: String, body: Body) -> Result<Point, ControlError> {
    let actor = context.operator()?;
    let request: CreatePoint = body.json_or_default()?;
    let point = context.app.db.create_point(actor, &machine, request.kind, request.point).await?;
    context.app.changes.wake(Topic::Assignments);
    Ok(point)
}

async fn show(
    context: Context,
    machine: String,
    point: String,
    query: WaitQuery,
) -> Result<Point, ControlError> {
    context.operator()?;
    let selector: PointSelector =
        point.parse().map_err(|error: farshore_api::point::MalformedPoint| {
            ControlError::Invalid { field: "point", why: format!("is malformed: {error}") }
        })?;
    let look = || async {
        let point = context.app.db.point(&machine, selector).await?;
        let is_committed = point.state == PointState::Committed;
        Ok((point, is_committed))
    };
    context.app.changes.wait(Topic::Points, query.wait(), look).await
}
