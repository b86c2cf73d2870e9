//! HTTP: requests into calls, errors into statuses. Only this module knows warp.
//!
//! Authorisation is the first line of every handler: [`Context::operator`] or [`Context::peer`].
//! A handler without either is open to anybody; there are two, liveness and enrolment.

mod agent;
mod context;
mod enrolment;
mod failovers;
mod machines;
mod node;
mod overview;
mod points;
mod policies;
mod reply;
mod service;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use warp::Filter;
use warp::filters::BoxedFilter;

use crate::app::App;
use reply::Response;

pub use service::Service;

/// A request that takes longer is given up: the longest long poll and then some.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(75);

/// All routes.
pub fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let open = overview::livez().or(enrolment::routes(app)).unify();
    let operator = overview::routes(app)
        .or(machines::routes(app))
        .unify()
        .or(points::routes(app))
        .unify()
        .or(policies::routes(app))
        .unify()
        .or(failovers::routes(app))
        .unify();
    let peers = agent::routes(app).or(node::routes(app)).unify();
    open.or(peers).unify().or(operator).unify().recover(reply::recover).unify().boxed()
}
