//! Policies.

use std::sync::Arc;

use farshore_api::policy::{CreatePolicy, Policies, Policy, UpdatePolicy};
use warp::Filter;
use warp::filters::BoxedFilter;

use super::context::{Body, Context, Door, body, context, door};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::domain::validate;
use crate::error::ControlError;

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let all = warp::path!("api" / "v1" / "policies");
    let one = warp::path!("api" / "v1" / "policies" / String);
    let list = all.and(warp::get()).and(context(app)).then(|context| answer(list(context)));
    let create = all
        .and(warp::post())
        .and(door(app, Door::Operator))
        .and(body())
        .then(|context, body| answer(create(context, body)));
    let show =
        one.and(warp::get()).and(context(app)).then(|name, context| answer(show(context, name)));
    let update = one
        .and(warp::put())
        .and(door(app, Door::Operator))
        .and(body())
        .then(|name, context, body| answer(update(context, name, body)));
    list.or(create).unify().or(show).unify().or(update).unify().boxed()
}

async fn list(context: Context) -> Result<Policies, ControlError> {
    context.operator()?;
    Ok(Policies { policies: context.app.db.policies().await? })
}

async fn create(context: Context, body: Body) -> Result<Policy, ControlError> {
    let actor = context.operator()?;
    let request: CreatePolicy = body.json()?;
    validate::policy(&request)?;
    context.app.db.create_policy(actor, &request).await
}

async fn show(context: Context, name: String) -> Result<Policy, ControlError> {
    context.operator()?;
    context.app.db.policy(&name).await
}

async fn update(context: Context, name: String, body: Body) -> Result<Policy, ControlError> {
    let actor = context.operator()?;
    let request: UpdatePolicy = body.json()?;
    validate::policy_update(&request)?;
    let policy = context.app.db.update_policy(actor, &name, &request).await?;
    context.app.changes.wake(Topic::Assignments);
    Ok(policy)
}
