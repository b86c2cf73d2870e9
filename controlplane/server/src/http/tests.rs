//! Every route, without a network: who may call it and what it answers.

use std::sync::Arc;

use farshore_api::agent::{self, Registered};
use farshore_api::identity::{Certificate, Token};
use farshore_api::machine::Machine;
use farshore_api::point::{Point, PointKind, PointSelector, Points};
use farshore_api::policy::Policies;
use farshore_api::status::Status;
use farshore_api::{ErrorBody, ErrorCode, Role, limits, node, paths};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::context::Remote;
use super::routes;
use crate::app::App;
use crate::clock;
use crate::control;
use crate::settings::{QemuAccel, Settings};
use crate::tls::Peer;

mod identities;
mod shares;

struct Site {
    dir: tempfile::TempDir,
    app: Arc<App>,
    routes: BoxedFilter<(Response,)>,
    token: String,
}

/// Who a test speaks as.
#[derive(Clone, Copy)]
enum As {
    Nobody,
    Operator,
    WrongToken,
    Peer(Peer),
}

async fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        data: dir.path().to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        vault: "file:///vault".into(),
        key_file: "/key".into(),
        node_program: "/nothing/farshore-node".into(),
        qemu_program: "/nothing/qemu".into(),
        qemu_accel: QemuAccel::Tcg,
        guest_user: None,
        firmware_dir: None,
        node_lost_after_seconds: limits::NODE_LOST_AFTER_SECONDS_DEFAULT,
    };
    let app = Arc::new(control::open(settings).await.unwrap());
    let token = std::fs::read_to_string(dir.path().join("operator.token")).unwrap();
    Site { dir, routes: routes(&app), app, token: token.trim().into() }
}

impl Site {
    async fn call(&self, who: As, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let reply = self.reply([127, 0, 0, 1], who, method, path, body).await;
        let body = serde_json::from_slice(reply.body()).unwrap_or(Value::Null);
        (reply.status().as_u16(), body)
    }

    async fn reply(
        &self,
        from: [u8; 4],
        who: As,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> warp::http::Response<bytes::Bytes> {
        let mut request = warp::test::request().method(method).path(path);
        request = request.extension(Remote(from.into()));
        match who {
            As::Nobody => {}
            As::Operator => {
                request = request.header("authorization", format!("Bearer {}", self.token));
            }
            As::WrongToken => {
                request = request.header("authorization", format!("Bearer {}", "0".repeat(64)));
            }
            As::Peer(peer) => request = request.extension(peer),
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.reply(&self.routes).await
    }

    async fn ok<T: DeserializeOwned>(
        &self,
        who: As,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> T {
        let (status, value) = self.call(who, method, path, body).await;
        assert_eq!(status, 200, "{method} {path}: {value}");
        serde_json::from_value(value).unwrap()
    }

    async fn refused(
        &self,
        who: As,
        method: &str,
        path: &str,
        body: Option<Value>,
        code: ErrorCode,
    ) -> String {
        let (status, value) = self.call(who, method, path, body).await;
        let body: ErrorBody = serde_json::from_value(value).unwrap();
        assert_eq!(body.error.code, code, "{method} {path}: {}", body.error.message);
        assert_eq!(status, code.status());
        assert_eq!(body.error.kind, code.kind());
        body.error.message
    }

    async fn token(&self, role: &str) -> String {
        let body = Some(json!({ "role": role }));
        self.ok::<Token>(As::Operator, "POST", paths::TOKENS, body).await.token
    }

    async fn enrol(&self, role: &str) -> As {
        self.enrol_with(role, &KeyPair::generate().unwrap()).await
    }

    async fn enrol_with(&self, role: &str, key: &KeyPair) -> As {
        let body = json!({ "token": self.token(role).await, "csr_pem": csr_of(key) });
        holder(&self.ok(As::Nobody, "POST", paths::ENROL, Some(body)).await)
    }

    async fn agent(&self) -> As {
        let agent = self.enrol("agent").await;
        let body = json!({ "hostname": "alpha", "version": "0.1.0", "local": true });
        self.ok::<Registered>(agent, "POST", paths::AGENT_REGISTER, Some(body)).await;
        agent
    }

    async fn node(&self) -> As {
        let node = self.enrol("node").await;
        let body = json!({ "address": "127.0.0.1:9443", "shards": 2, "version": "0.1.0" });
        self.ok::<Registered>(node, "POST", paths::NODE_REGISTER, Some(body)).await;
        node
    }

    async fn place(&self) {
        crate::reconcile::place_once(&self.app).await.unwrap();
    }
}

fn csr() -> String {
    csr_of(&KeyPair::generate().unwrap())
}

fn csr_of(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

/// Whoever shows a certificate.
fn holder(issued: &Certificate) -> As {
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    As::Peer(crate::tls::peer(&der).unwrap())
}

fn machine(name: &str) -> Option<Value> {
    Some(json!({ "name": name, "disk": format!("/disks/{name}"), "capture": "nbd" }))
}

fn operator_routes() -> Vec<(&'static str, String, Option<Value>)> {
    let id = Uuid::from_u128(1);
    vec![
        ("POST", paths::TOKENS.into(), Some(json!({ "role": "agent" }))),
        ("GET", paths::NODES.into(), None),
        ("POST", paths::node_lost(id), None),
        ("GET", paths::AGENTS.into(), None),
        ("POST", paths::revoke_agent(id), None),
        ("POST", paths::revoke_node(id), None),
        ("GET", paths::STATUS.into(), None),
        ("POST", paths::BELIEVE_CLOCK.into(), None),
        ("GET", paths::EVENTS.into(), None),
        ("GET", paths::AUDIT.into(), None),
        ("GET", paths::POLICIES.into(), None),
        ("POST", paths::POLICIES.into(), Some(json!({}))),
        ("GET", paths::policy("default"), None),
        ("PUT", paths::policy("default"), Some(json!({}))),
        ("GET", paths::MACHINES.into(), None),
        ("POST", paths::MACHINES.into(), machine("web")),
        ("GET", paths::machine("web"), None),
        ("DELETE", paths::machine("web"), None),
        ("GET", paths::points("web"), None),
        ("POST", paths::points("web"), Some(json!({}))),
        ("GET", paths::point("web", PointSelector::Latest), None),
        ("POST", paths::machine_failovers("web"), Some(json!({ "kind": "drill" }))),
        ("GET", paths::FAILOVERS.into(), None),
        ("GET", paths::failover(id), None),
        ("POST", paths::failover_commit(id), None),
        ("POST", paths::failover_cleanup(id), Some(json!({}))),
    ]
}

fn peer_routes(role: Role) -> Vec<(&'static str, String, Option<Value>)> {
    let (register, assignments, report) = match role {
        Role::Agent => (paths::AGENT_REGISTER, paths::AGENT_ASSIGNMENTS, paths::AGENT_REPORT),
        Role::Node => (paths::NODE_REGISTER, paths::NODE_ASSIGNMENTS, paths::NODE_REPORT),
    };
    let mut routes = vec![
        ("POST", register.into(), Some(json!({}))),
        ("GET", assignments.into(), None),
        ("POST", report.into(), Some(json!({}))),
    ];
    if role == Role::Node {
        routes.push(("POST", paths::NODE_ALIVE.into(), None));
    }
    routes
}

#[tokio::test]
async fn liveness_answers_anybody_with_a_constant() {
    let site = site().await;
    let reply = warp::test::request().path(paths::LIVEZ).reply(&site.routes).await;
    assert_eq!((reply.status().as_u16(), reply.body().as_ref()), (200, b"ok\n".as_slice()));
}

#[tokio::test]
async fn operator_routes_take_the_operators_token_only() {
    let site = site().await;
    let (agent, node) = (site.agent().await, site.node().await);
    for (method, path, body) in operator_routes() {
        let refused = async |who, code| site.refused(who, method, &path, body.clone(), code).await;
        refused(As::Nobody, ErrorCode::Unauthenticated).await;
        refused(As::WrongToken, ErrorCode::Unauthenticated).await;
        refused(agent, ErrorCode::Forbidden).await;
        refused(node, ErrorCode::Forbidden).await;
        let (status, value) = site.call(As::Operator, method, &path, body.clone()).await;
        assert!(status != 401 && status != 403, "{method} {path}: {value}");
    }
}

#[tokio::test]
async fn peer_routes_take_their_own_role_only() {
    let site = site().await;
    let (agent, node) = (site.agent().await, site.node().await);
    for (role, other) in [(Role::Agent, node), (Role::Node, agent)] {
        for (method, path, body) in peer_routes(role) {
            let refused =
                async |who, code| site.refused(who, method, &path, body.clone(), code).await;
            refused(As::Nobody, ErrorCode::Unauthenticated).await;
            refused(As::Operator, ErrorCode::Unauthenticated).await;
            refused(other, ErrorCode::Forbidden).await;
        }
    }
    let renewal = Some(json!({ "csr_pem": csr() }));
    site.refused(As::Nobody, "POST", paths::RENEW, renewal, ErrorCode::Unauthenticated).await;
}

#[tokio::test]
async fn expired_and_unknown_identities_are_refused() {
    let site = site().await;
    let As::Peer(peer) = site.agent().await else { unreachable!() };
    let expired = As::Peer(Peer { expires_at_unix_s: clock::now_s(), ..peer });
    let unknown = As::Peer(Peer { id: Uuid::from_u128(9), ..peer });
    let imposter = As::Peer(Peer { role: Role::Node, ..peer });
    for who in [expired, unknown] {
        let path = paths::AGENT_ASSIGNMENTS;
        site.refused(who, "GET", path, None, ErrorCode::Unauthenticated).await;
    }
    let path = paths::NODE_ASSIGNMENTS;
    site.refused(imposter, "GET", path, None, ErrorCode::Unauthenticated).await;
}

#[tokio::test]
async fn a_token_works_once_and_a_bad_request_does_not_use_it_up() {
    let site = site().await;
    let token = site.token("node").await;
    let bad = json!({ "token": token, "csr_pem": "nonsense" });
    site.refused(As::Nobody, "POST", paths::ENROL, Some(bad), ErrorCode::InvalidRequest).await;
    let good = json!({ "token": token, "csr_pem": csr() });
    let issued: Certificate = site.ok(As::Nobody, "POST", paths::ENROL, Some(good.clone())).await;
    assert_eq!(issued.role, Role::Node);
    assert_eq!(issued.ca_pem, std::fs::read_to_string(site.dir.path().join("ca.pem")).unwrap());
    // The answer was lost: the same key asks again.
    let again: Certificate = site.ok(As::Nobody, "POST", paths::ENROL, Some(good)).await;
    assert_eq!(again, issued);
    let other = json!({ "token": token, "csr_pem": csr() });
    site.refused(As::Nobody, "POST", paths::ENROL, Some(other), ErrorCode::TokenRefused).await;
}

#[tokio::test]
async fn failed_enrolments_are_limited() {
    let site = site().await;
    let bad = json!({ "token": "fse1.00", "csr_pem": csr() });
    let mut seen = Vec::new();
    for _ in 0..40 {
        let (status, _) = site.call(As::Nobody, "POST", paths::ENROL, Some(bad.clone())).await;
        seen.push(status);
    }
    assert_eq!(seen[0], 401);
    assert!(seen.contains(&429), "{seen:?}");
}

#[tokio::test]
async fn requests_are_bounded_and_strict() {
    let site = site().await;
    let path = paths::MACHINES;
    let code = ErrorCode::InvalidRequest;
    for body in [
        json!({ "name": "web" }),
        json!({ "name": "web", "disk": "/d", "capture": "nbd", "surprise": 1 }),
        json!({ "name": "Web", "disk": "/d", "capture": "nbd" }),
        json!({ "name": "web", "disk": "d", "capture": "nbd" }),
        json!({ "name": "web", "disk": "/d", "capture": "magic" }),
        json!({ "name": "web", "disk": "/d", "capture": "nbd", "mark_interval_ms": 10 }),
    ] {
        site.refused(As::Operator, "POST", path, Some(body), code).await;
    }
    let request = || {
        let bearer = format!("Bearer {}", site.token);
        warp::test::request().method("POST").path(path).header("authorization", bearer)
    };
    let large = vec![b' '; usize::try_from(limits::BODY_BYTES_MAX).unwrap() + 1];
    assert_eq!(request().body(large).reply(&site.routes).await.status(), 413);
    let chunked = request().header("transfer-encoding", "chunked").reply(&site.routes).await;
    assert_eq!(chunked.status(), 411);
    let text = request().header("content-type", "text/plain").body("x").reply(&site.routes).await;
    assert_eq!(text.status(), 415);
    site.refused(As::Operator, "PATCH", path, None, ErrorCode::MethodNotAllowed).await;
    site.refused(As::Operator, "GET", "/api/v1/nothing", None, ErrorCode::NotFound).await;
    site.refused(As::Operator, "GET", "/api/v1/events?limit=x", None, code).await;
    site.refused(As::Operator, "GET", "/api/v1/events?surprise=1", None, code).await;
    site.refused(As::Operator, "GET", &paths::machine("nobody"), None, ErrorCode::NotFound).await;
}

#[tokio::test]
async fn protecting_marking_and_listing() {
    let site = site().await;
    let (agent, node) = (site.agent().await, site.node().await);
    let created: Machine = site.ok(As::Operator, "POST", paths::MACHINES, machine("web")).await;
    assert_eq!(created.epoch, 0);
    let code = ErrorCode::AlreadyExists;
    let other_disk = Some(json!({ "name": "web", "disk": "/other", "capture": "scan" }));
    site.refused(As::Operator, "POST", paths::MACHINES, other_disk, code).await;
    site.place().await;
    let mine: agent::Assignments = site.ok(agent, "GET", paths::AGENT_ASSIGNMENTS, None).await;
    let theirs: node::Assignments = site.ok(node, "GET", paths::NODE_ASSIGNMENTS, None).await;
    assert_eq!(mine.volumes[0].volume, theirs.volumes[0].volume);
    assert_eq!(mine.volumes[0].mark_interval_ms, 5000);

    let asked: Point = site.ok(As::Operator, "POST", &paths::points("web"), None).await;
    let report = json!({
        "volumes": [{ "volume": mine.volumes[0].volume, "epoch": 1, "state": "protected",
            "progress": 1.0, "rpo_seconds": 0.25, "committed_seq": 12 }],
        "points": [{ "point": asked.point, "volume": mine.volumes[0].volume, "seq": 12,
            "kind": "crash", "time_unix_ms": clock::now_ms() }],
    });
    let reported: agent::Reported = site.ok(agent, "POST", paths::AGENT_REPORT, Some(report)).await;
    assert!(reported.version > mine.version && reported.ignored_volumes.is_empty());

    let shown: Machine = site.ok(As::Operator, "GET", &paths::machine("web"), None).await;
    assert_eq!(serde_json::to_value(shown.state).unwrap(), "protected");
    assert!(shown.rpo_seconds.unwrap() >= 0.25);
    assert_eq!(shown.last_point.unwrap().point, asked.point);
    let points: Points = site.ok(As::Operator, "GET", &paths::points("web"), None).await;
    assert_eq!(points.points.len(), 1);
    let status: Status = site.ok(As::Operator, "GET", paths::STATUS, None).await;
    assert_eq!((status.counts.machines, status.counts.points), (1, 1));
    let policies: Policies = site.ok(As::Operator, "GET", paths::POLICIES, None).await;
    assert_eq!(policies.policies[0].machines, 1);
    let _: Value = site.ok(As::Operator, "DELETE", &paths::machine("web"), None).await;
}

#[tokio::test]
async fn long_polls_end_with_what_they_wait_for() {
    let site = site().await;
    let agent = site.agent().await;
    site.node().await;
    let _: Machine = site.ok(As::Operator, "POST", paths::MACHINES, machine("web")).await;
    site.place().await;
    let first: agent::Assignments = site.ok(agent, "GET", paths::AGENT_ASSIGNMENTS, None).await;
    let volume = first.volumes[0].volume;
    let path = format!("{}?after={}&wait_ms=60000", paths::AGENT_ASSIGNMENTS, first.version);
    let points = paths::points("web");
    let (polled, asked) = tokio::join!(
        site.ok::<agent::Assignments>(agent, "GET", &path, None),
        site.ok::<Point>(As::Operator, "POST", &points, Some(json!({ "kind": "crash" }))),
    );
    assert_eq!(polled.volumes[0].marks_requested[0].point, asked.point);

    let path = format!("{}?wait_ms=60000", paths::point("web", PointSelector::Id(asked.point)));
    let report = json!({ "volumes": [], "points": [{ "point": asked.point, "volume": volume,
        "seq": 3, "kind": "scan", "unknown_blocks": 7, "time_unix_ms": 5 }] });
    let (waited, _) = tokio::join!(
        site.ok::<Point>(As::Operator, "GET", &path, None),
        site.ok::<agent::Reported>(agent, "POST", paths::AGENT_REPORT, Some(report)),
    );
    assert_eq!(serde_json::to_value(waited.state).unwrap(), "committed");
    // What the agent says of it is what is shown, not what was asked for.
    assert_eq!((waited.kind, waited.volumes[0].unknown_blocks), (PointKind::Scan, 7));
}

#[tokio::test]
async fn a_point_that_no_agent_can_keep_its_promise_of_is_refused() {
    let site = site().await;
    site.agent().await;
    let _: Machine = site.ok(As::Operator, "POST", paths::MACHINES, machine("web")).await;
    for kind in ["app", "scan"] {
        let body = Some(json!({ "kind": kind }));
        let (who, path, code) = (As::Operator, paths::points("web"), ErrorCode::InvalidRequest);
        let told = site.refused(who, "POST", &path, body, code).await;
        assert!(told.starts_with(&format!("`kind` cannot be `{kind}`")), "{told}");
    }
}

#[tokio::test]
async fn reports_over_the_limits_are_refused() {
    let site = site().await;
    let (agent, node) = (site.agent().await, site.node().await);
    let id = Uuid::from_u128(1);
    let point = json!({ "point": id, "volume": id, "seq": 1, "kind": "crash", "time_unix_ms": 1 });
    let report = json!({ "volumes": [], "points": vec![point; limits::REPORT_POINTS_MAX + 1] });
    let code = ErrorCode::InvalidRequest;
    site.refused(agent, "POST", paths::AGENT_REPORT, Some(report), code).await;
    let report = json!({ "uptime_seconds": 1, "cpu_seconds": 1, "counters": { "Bad Name": 1 } });
    site.refused(node, "POST", paths::NODE_REPORT, Some(report), code).await;
    let address = json!({ "address": "somewhere", "shards": 1, "version": "0" });
    site.refused(node, "POST", paths::NODE_REGISTER, Some(address), code).await;
}

/// C5: a person may give up a node that is silent, and none that speaks.
#[tokio::test]
async fn a_node_is_given_up_only_while_it_is_silent() {
    let site = site().await;
    let As::Peer(peer) = site.node().await else { unreachable!() };
    site.place().await;
    let nodes: node::Nodes = site.ok(As::Operator, "GET", paths::NODES, None).await;
    assert_eq!(nodes.nodes[0].life, node::NodeLife::Heard);
    let path = paths::node_lost(peer.id);
    let why = site.refused(As::Operator, "POST", &path, None, ErrorCode::WrongState).await;
    assert!(why.contains("stop it first"), "{why}");
    let path = paths::node_lost(Uuid::from_u128(9));
    site.refused(As::Operator, "POST", &path, None, ErrorCode::NotFound).await;
    let word: Registered = site.ok(As::Peer(peer), "POST", paths::NODE_ALIVE, None).await;
    assert_eq!(word.id, peer.id);
}
