//! The routes as one service, for the accept loop.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::Request;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use tower::ServiceExt;
use warp::filters::BoxedFilter;

use super::context::Remote;
use super::reply::{Response, timed_out};
use super::{REQUEST_TIMEOUT, routes};
use crate::app::App;
use crate::tls::Peer;

/// Answers requests. Clones share the routes.
#[derive(Clone)]
pub struct Service {
    app: Arc<App>,
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
        Self { app: app.clone(), routes: routes(app) }
    }

    /// Answers one request from `remote` of `peer`, the identity that the connection's certificate
    /// proved.
    ///
    /// The answer is the connection's last if a newer certificate was issued since it was made, so
    /// that its holder comes back with that one, and if it was refused for who it is.
    pub async fn answer(
        &self,
        peer: Option<Peer>,
        remote: IpAddr,
        mut request: Request<Incoming>,
    ) -> Response {
        request.extensions_mut().insert(Remote(remote));
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let answering = warp::service(self.routes.clone()).oneshot(request);
        let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, answering).await {
            Ok(Ok(response)) => response,
            Err(_) => timed_out(),
        };
        let is_over = |peer: &Peer| {
            response.status() == StatusCode::UNAUTHORIZED
                || self.app.holders.has_newer(peer.id, peer.serial.generation())
        };
        if peer.as_ref().is_some_and(is_over) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
