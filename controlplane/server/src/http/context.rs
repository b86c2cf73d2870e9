//! Who calls, and what with.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use farshore_api::{ErrorCode, Role, limits};
use farshore_trust::{shown_apart, shown_time};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;
use warp::filters::BoxedFilter;
use warp::reject::Rejection;
use warp::{Filter, header};

use super::reply::{refuse, refuse_with};
use crate::admission::{self, Admitted};
use crate::app::App;
use crate::clock;
use crate::db::Actor;
use crate::error::ControlError;
use crate::tls::Peer;

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remote(pub(super) IpAddr);

/// Shared state and the caller's credentials.
#[derive(Clone)]
pub(crate) struct Context {
    /// Shared state.
    pub(super) app: Arc<App>,
    authorization: Option<String>,
    peer: Option<Peer>,
    remote: Option<Remote>,
    /// Whoever was let in before the body was read.
    admitted: Option<Peer>,
}

/// Who may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Whoever holds the operator's token.
    Operator,
    /// Agents, or nodes.
    Peer(Role),
    /// Whoever wants another certificate for the same key.
    Renewal,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Context").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Context {
    /// Demands the operator's token.
    pub(super) fn operator(&self) -> Result<Actor, ControlError> {
        let given = self.authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
        let Some(given) = given else {
            return Err(match self.peer {
                Some(_) => ControlError::Forbidden {
                    why: "this is for operators; agents and nodes may not call it",
                },
                None => ControlError::Unauthenticated {
                    why: "this needs the operator's token; it is in operator.token in the control \
                          plane's data directory",
                },
            });
        };
        // `blake3::Hash` compares in constant time.
        if blake3::hash(given.trim().as_bytes()) != self.app.operator_token {
            return Err(ControlError::Unauthenticated {
                why: "the operator's token is wrong; the right one is in operator.token in the \
                      control plane's data directory",
            });
        }
        Ok(Actor::Operator)
    }

    /// Where the caller is.
    pub(super) fn remote(&self) -> Option<IpAddr> {
        self.remote.map(|remote| remote.0)
    }

    /// Lets through whom `door` is for. What the caller proved is kept.
    async fn through(mut self, door: Door) -> Result<Self, ControlError> {
        match door {
            Door::Operator => {
                self.operator()?;
            }
            Door::Peer(role) => {
                self.peer(role).await?;
                self.admitted = self.peer;
            }
            Door::Renewal => {
                self.renewing_peer().await?;
                self.admitted = self.peer;
            }
        }
        Ok(self)
    }

    /// Demands a valid certificate of `role`.
    pub(super) async fn peer(&self, role: Role) -> Result<Uuid, ControlError> {
        if let Some(admitted) = self.admitted.filter(|admitted| admitted.role == role) {
            return Ok(admitted.id);
        }
        self.still_peer(role).await
    }

    /// As [`Context::peer`], asked anew: for those who wait long.
    pub(super) async fn still_peer(&self, role: Role) -> Result<Uuid, ControlError> {
        let peer = self.any_peer().await?;
        if peer.role != role {
            return Err(ControlError::Forbidden {
                why: match role {
                    Role::Agent => "this is for agents only",
                    Role::Node => "this is for nodes only",
                },
            });
        }
        Ok(peer.id)
    }

    fn shown(&self) -> Result<Peer, ControlError> {
        self.peer.ok_or(ControlError::Unauthenticated {
            why: "this needs a client certificate; enrol to get one",
        })
    }

    /// Demands a valid certificate of any role.
    async fn any_peer(&self) -> Result<Peer, ControlError> {
        let peer = self.shown()?;
        // The handshake may be long ago on a connection that is kept open.
        if peer.expires_at_unix_s <= clock::now_s() {
            let what = "connect with a renewed one, and check the clocks of both";
            return Err(ended(peer.expires_at_unix_s, what));
        }
        admission::admit(&self.app, &peer, self.remote()).await?;
        Ok(peer)
    }

    /// Demands a certificate that may be renewed: one that has ended may, for a while, because its
    /// holder may have been off, or the control plane away.
    pub(super) async fn renewing_peer(&self) -> Result<Peer, ControlError> {
        if let Some(admitted) = self.admitted {
            return Ok(admitted);
        }
        let peer = self.shown()?;
        let last = peer.expires_at_unix_s.saturating_add(limits::EXPIRED_SECONDS_MAX);
        if last <= clock::now_s() {
            let what = "that is too long ago to renew it: check the clocks of both, or enrol again \
                        with a new token";
            return Err(ended(peer.expires_at_unix_s, what));
        }
        match admission::admit(&self.app, &peer, self.remote()).await? {
            Admitted::Fully => Ok(peer),
            Admitted::Late => Err(ControlError::Unauthenticated {
                why: "a newer certificate of this identity is in use; renew that one",
            }),
        }
    }
}

/// What is said of a certificate that ended by this machine's clock.
fn ended(ends_s: u64, what: &str) -> ControlError {
    let (until, now) = (UNIX_EPOCH + Duration::from_secs(ends_s), SystemTime::now());
    let why = format!(
        "the client certificate was valid until {}, and the control plane's clock says {}, {} later; \
         {what}",
        shown_time(until),
        shown_time(now),
        shown_apart(until, now)
    );
    ControlError::Ended { why }
}

/// Gathers a [`Context`]; never rejects.
pub(super) fn context(app: &Arc<App>) -> BoxedFilter<(Context,)> {
    let app = app.clone();
    warp::any()
        .map(move || app.clone())
        .and(
            header::optional::<String>("authorization")
                .or_else(|_| async { Ok::<_, Rejection>((None,)) }),
        )
        .and(warp::ext::optional::<Peer>())
        .and(warp::ext::optional::<Remote>())
        .map(|app, authorization, peer, remote| Context {
            app,
            authorization,
            peer,
            remote,
            admitted: None,
        })
        .boxed()
}

/// As [`context`], for those alone whom `door` is for. It stands before the body: of whoever is not
/// let in, nothing is read.
pub(super) fn door(app: &Arc<App>, door: Door) -> BoxedFilter<(Context,)> {
    context(app)
        .and_then(move |context: Context| async move {
            context.through(door).await.map_err(|error| refuse_with(&error))
        })
        .boxed()
}

/// A request's body, not read yet as anything.
#[derive(Debug)]
pub(super) struct Body(Bytes);

impl Body {
    /// Reads it as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ControlError> {
        serde_json::from_slice(&self.0).map_err(|error| ControlError::Invalid {
            field: "body",
            why: format!("is malformed: {error}"),
        })
    }

    /// Reads it as JSON; no body at all is the default.
    pub(super) fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ControlError> {
        if self.0.is_empty() { Ok(T::default()) } else { self.json() }
    }
}

/// Takes a body of at most [`limits::BODY_BYTES_MAX`] whose length is stated beforehand.
pub(super) fn body() -> BoxedFilter<(Body,)> {
    body_of(limits::BODY_BYTES_MAX)
}

/// Takes a report's body, of at most [`limits::REPORT_BYTES_MAX`].
pub(super) fn report_body() -> BoxedFilter<(Body,)> {
    body_of(limits::REPORT_BYTES_MAX)
}

fn body_of(bytes_max: u64) -> BoxedFilter<(Body,)> {
    header::optional::<u64>("content-length")
        .and(header::optional::<String>("transfer-encoding"))
        .and(header::optional::<String>("content-type"))
        .and_then(move |length, encoding, content_type| {
            check_head(bytes_max, length, encoding, content_type)
        })
        .untuple_one()
        .and(warp::body::bytes())
        .map(Body)
        .boxed()
}

async fn check_head(
    bytes_max: u64,
    length: Option<u64>,
    encoding: Option<String>,
    content_type: Option<String>,
) -> Result<(), Rejection> {
    if length.is_some_and(|length| length > bytes_max) {
        let message = format!("the body is larger than {bytes_max} bytes");
        return Err(refuse(ErrorCode::BodyTooLarge, message));
    }
    if encoding.is_some() {
        let message = "state the body's length with Content-Length; chunks are not taken";
        return Err(refuse(ErrorCode::LengthRequired, message));
    }
    let is_json = content_type
        .as_deref()
        .is_none_or(|value| value.split(';').next().map(str::trim) == Some("application/json"));
    if !is_json {
        return Err(refuse(ErrorCode::UnsupportedMediaType, "the body must be application/json"));
    }
    Ok(())
}

/// `?wait_ms=` of a long poll.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    #[serde(default)]
    wait_ms: u64,
}

impl WaitQuery {
    /// How long to wait at most.
    pub(super) fn wait(self) -> Duration {
        Duration::from_millis(self.wait_ms.min(limits::WAIT_MS_MAX))
    }
}

/// `?after=&wait_ms=` of an assignments poll.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PollQuery {
    /// The version that the caller has.
    pub(super) after: Option<u64>,
    #[serde(default)]
    wait_ms: u64,
}

impl PollQuery {
    /// How long to wait at most.
    pub(super) fn wait(self) -> Duration {
        WaitQuery { wait_ms: self.wait_ms }.wait()
    }
}

/// Cuts an asked-for page size to what is granted.
pub(super) fn page(limit: Option<u32>) -> u32 {
    limit.unwrap_or(limits::PAGE_DEFAULT).clamp(1, limits::PAGE_MAX)
}
