//! Enrolment tokens, enrolment, renewal.

use std::sync::Arc;

use farshore_api::identity::{
    Certificate, CreateToken, EnrolRequest, EnrolmentToken, RenewRequest, Token,
};
use serde_json::{Map, Value};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::context::{Body, Context, body, context};
use super::reply::{Response, answer};
use crate::app::App;
use crate::clock;
use crate::domain::validate;
use crate::error::ControlError;

pub(super) fn routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let enrolment = warp::path!("api" / "v1" / "enrol")
        .and(warp::post())
        .and(context(app))
        .and(body())
        .then(|context, body| answer(enrol(context, body)));
    let renewal = warp::path!("api" / "v1" / "renew")
        .and(warp::post())
        .and(context(app))
        .and(body())
        .then(|context, body| answer(renew(context, body)));
    let tokens = warp::path!("api" / "v1" / "tokens")
        .and(warp::post())
        .and(context(app))
        .and(body())
        .then(|context, body| answer(create_token(context, body)));
    let token = warp::path!("api" / "v1" / "tokens" / String)
        .and(warp::delete())
        .and(context(app))
        .then(|id, context| answer(take_back_token(context, id)));
    enrolment.or(renewal).unify().or(tokens).unify().or(token).unify().boxed()
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
    let now_s = clock::now_s();
    app.enrolments.check(now_s)?;
    let result = try_enrol(app, &body).await;
    if result.is_err() {
        app.enrolments.count(now_s);
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
    let certificate = app.ca.issue(token.role, id, &request.csr_pem)?;
    app.db.enrol(token.role, &hash, id, certificate.expires_at_unix_s).await?;
    Ok(certificate)
}

async fn renew(context: Context, body: Body) -> Result<Certificate, ControlError> {
    let peer = context.any_peer().await?;
    let request: RenewRequest = body.json()?;
    let certificate = context.app.ca.issue(peer.role, peer.id, &request.csr_pem)?;
    context.app.db.renew(peer.role, peer.id, certificate.expires_at_unix_s).await?;
    Ok(certificate)
}
