//! Enrolment tokens, enrolment, renewal.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use farshore_api::Role;
use farshore_api::identity::{
    Certificate, CreateToken, EnrolRequest, EnrolmentToken, RenewRequest, Revoked, Token,
};
use serde_json::{Map, Value};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::context::{Body, Context, Door, body, context, door};
use super::reply::{Response, answer};
use crate::app::{App, Topic};
use crate::clock;
use crate::db::Enrolled;
use crate::domain::validate;
use crate::error::ControlError;
use crate::limits::{Asked, Host};

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let enrolment = warp::path!("api" / "v1" / "enrol")
        .and(warp::post())
        .and(context(app))
        .and(body())
        .then(|context, body| answer(enrol(context, body)));
    let renewal = warp::path!("api" / "v1" / "renew")
        .and(warp::post())
        .and(door(app, Door::Renewal))
        .and(body())
        .then(|context, body| answer(renew(context, body)));
    let tokens = warp::path!("api" / "v1" / "tokens")
        .and(warp::post())
        .and(door(app, Door::Operator))
        .and(body())
        .then(|context, body| answer(create_token(context, body)));
    let token = warp::path!("api" / "v1" / "tokens" / String)
        .and(warp::delete())
        .and(context(app))
        .then(|id, context| answer(take_back_token(context, id)));
    let revoke_agent = warp::path!("api" / "v1" / "agents" / Uuid / "revoke")
        .and(warp::post())
        .and(door(app, Door::Operator))
        .then(|id, context| answer(revoke(context, Role::Agent, id)));
    let revoke_node = warp::path!("api" / "v1" / "nodes" / Uuid / "revoke")
        .and(warp::post())
        .and(door(app, Door::Operator))
        .then(|id, context| answer(revoke(context, Role::Node, id)));
    let revocations = revoke_agent.or(revoke_node).unify();
    enrolment
        .or(renewal)
        .unify()
        .or(tokens)
        .unify()
        .or(token)
        .unify()
        .or(revocations)
        .unify()
        .boxed()
}

async fn revoke(context: Context, role: Role, id: Uuid) -> Result<Revoked, ControlError> {
    let actor = context.operator()?;
    let app = &context.app;
    let machines = app.db.revoke(actor, role, id).await?;
    // Nodes hear which sessions to end, and those who wait here are looked at again.
    app.changes.wake(Topic::Assignments);
    Ok(Revoked { id, machines })
}

async fn create_token(context: Context, body: Body) -> Result<Token, ControlError> {
    let actor = context.operator()?;
    let request: CreateToken = body.json()?;
    let expires_at_unix_s = clock::now_s() + validate::token_ttl(request.ttl_seconds)?;
    let token = context.app.ca.token(request.role);
    let hash = blake3::hash(&token.secret);
    let (role, identity) = (request.role, request.identity);
    context.app.db.create_token(actor, role, &hash, expires_at_unix_s, identity).await?;
    Ok(Token { token: token.to_string(), expires_at_unix_s })
}

async fn take_back_token(context: Context, id: String) -> Result<Map<String, Value>, ControlError> {
    let actor = context.operator()?;
    let hash = blake3::Hash::from_hex(&id)
        .map_err(|_| ControlError::NotFound { what: "enrolment token", name: id })?;
    context.app.db.delete_token(actor, &hash).await?;
    Ok(Map::new())
}

async fn enrol(context: Context, body: Body) -> Result<Certificate, ControlError> {
    let app = &context.app;
    let host = Host::from(context.remote().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    app.enrolments.check(host)?;
    let result = try_enrol(app, &body).await;
    if let Err(error) = &result {
        app.enrolments.count(host, error);
    }
    result
}

/// The certificate is made before the token is used up, so that a bad request costs no token; it
/// leaves this function only if the token was good.
async fn try_enrol(app: &App, body: &Body) -> Result<Certificate, ControlError> {
    let request: EnrolRequest = body.json()?;
    let token: EnrolmentToken = request.token.parse().map_err(|_| ControlError::TokenRefused)?;
    if !token.pins(app.ca.certificate()) {
        return Err(ControlError::TokenRefused);
    }
    let hash = blake3::hash(&token.secret);
    let id = app.db.token_identity(&hash).await?.unwrap_or_else(Uuid::new_v4);
    let generation = app.db.next_generation(id).await?;
    let (certificate, issued) = app.ca.issue(token.role, id, generation, &request.csr_pem)?;
    let answer = serde_json::to_string(&certificate).unwrap_or_default();
    match app.db.enrol(token.role, &hash, id, &issued, &answer).await? {
        Enrolled::New => {}
        Enrolled::Again => app.changes.wake(Topic::Assignments),
        Enrolled::Before(answer) => {
            return serde_json::from_str(&answer)
                .map_err(|_| ControlError::Unreadable { column: "answer" });
        }
    }
    app.holders.issued(id, generation);
    Ok(certificate)
}

async fn renew(context: Context, body: Body) -> Result<Certificate, ControlError> {
    let peer = context.renewing_peer().await?;
    let app = &context.app;
    app.buckets.take(peer.id, Asked::Renewal)?;
    let request: RenewRequest = body.json()?;
    let generation = app.db.next_generation(peer.id).await?;
    let (certificate, issued) = app.ca.issue(peer.role, peer.id, generation, &request.csr_pem)?;
    // A certificate that was copied must not become one for the copier's own key.
    if issued.key != peer.key {
        return Err(ControlError::Forbidden {
            why: "a certificate is renewed for its own key only; another key takes a new token",
        });
    }
    app.db.renew(peer.role, peer.id, &issued).await?;
    app.holders.issued(peer.id, generation);
    Ok(certificate)
}
