//! The routes as one service, for the accept loop.

use std::fmt;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use tower::ServiceExt;
use warp::filters::BoxedFilter;

use super::reply::{Response, timed_out};
use super::{REQUEST_TIMEOUT, routes};
use crate::app::App;
use crate::tls::Peer;

/// Answers requests. Clones share the routes.
#[derive(Clone)]
pub struct Service {
    routes: BoxedFilter<(Response,)>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    /// A service with all routes.
    #[must_use]
    pub fn new(app: &Arc<App>) -> Self {
        Self { routes: routes(app) }
    }

    /// Answers one request of `peer`, the identity that the connection's certificate proved.
    pub async fn answer(&self, peer: Option<Peer>, mut request: Request<Incoming>) -> Response {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let answering = warp::service(self.routes.clone()).oneshot(request);
        match tokio::time::timeout(REQUEST_TIMEOUT, answering).await {
            Ok(Ok(response)) => response,
            Err(_) => timed_out(),
        }
    }
}
