//! Every route of the control plane, in one place.

use uuid::Uuid;

/// Liveness: answers `ok` to anybody.
pub const LIVEZ: &str = "/livez";

/// Prefix of everything but [`LIVEZ`].
pub const API: &str = "/api/v1";

/// POST [`crate::identity::EnrolRequest`], without a client certificate.
pub const ENROL: &str = "/api/v1/enrol";
/// POST [`crate::identity::RenewRequest`], with a client certificate of any role.
pub const RENEW: &str = "/api/v1/renew";

/// POST [`crate::identity::CreateToken`]. Operator.
pub const TOKENS: &str = "/api/v1/tokens";
/// GET the list of [`crate::node::Node`]. Operator.
pub const NODES: &str = "/api/v1/nodes";
/// GET the list of [`crate::agent::Agent`]. Operator.
pub const AGENTS: &str = "/api/v1/agents";
/// GET [`crate::status::Status`]. Operator.
pub const STATUS: &str = "/api/v1/status";
/// POST, empty body: a person says that the control plane's clock is right. Answers
/// [`crate::status::RetentionStatus`]. Operator.
pub const BELIEVE_CLOCK: &str = "/api/v1/status/believe-clock";
/// GET `?after=&limit=` the list of [`crate::status::Event`]. Operator.
pub const EVENTS: &str = "/api/v1/events";
/// GET `?after=&limit=` the list of [`crate::audit::Entry`]. Operator.
pub const AUDIT: &str = "/api/v1/audit";
/// GET the list of, POST one [`crate::policy::CreatePolicy`]. Operator.
pub const POLICIES: &str = "/api/v1/policies";
/// GET the list of, POST one [`crate::machine::CreateMachine`]. Operator.
pub const MACHINES: &str = "/api/v1/machines";
/// GET the list of [`crate::failover::Failover`]. Operator.
pub const FAILOVERS: &str = "/api/v1/failovers";

/// POST [`crate::agent::RegisterAgent`]. Agent's certificate.
pub const AGENT_REGISTER: &str = "/api/v1/agent/register";
/// GET `?after=&wait_ms=` → [`crate::agent::Assignments`]. Agent's certificate.
pub const AGENT_ASSIGNMENTS: &str = "/api/v1/agent/assignments";
/// POST [`crate::agent::AgentReport`]. Agent's certificate.
pub const AGENT_REPORT: &str = "/api/v1/agent/report";

/// POST [`crate::node::RegisterNode`]. Node's certificate.
pub const NODE_REGISTER: &str = "/api/v1/node/register";
/// GET `?after=&wait_ms=` → [`crate::node::Assignments`]. Node's certificate.
pub const NODE_ASSIGNMENTS: &str = "/api/v1/node/assignments";
/// POST [`crate::node::NodeReport`]. Node's certificate.
pub const NODE_REPORT: &str = "/api/v1/node/report";

/// DELETE an enrolment token by its [`crate::identity::EnrolmentToken::id`]. Operator.
#[must_use]
pub fn token(id: &str) -> String {
    format!("{TOKENS}/{id}")
}

/// POST, empty body: ends an agent's identity → [`crate::identity::Revoked`].
#[must_use]
pub fn revoke_agent(id: Uuid) -> String {
    format!("{AGENTS}/{id}/revoke")
}

/// POST, empty body: ends a node's identity → [`crate::identity::Revoked`].
#[must_use]
pub fn revoke_node(id: Uuid) -> String {
    format!("{NODES}/{id}/revoke")
}

/// POST, empty body: a word that says no more than that the node lives. Node's certificate.
pub const NODE_ALIVE: &str = "/api/v1/node/alive";

/// POST, empty body: a person says that a silent node is gone. Answers the [`crate::node::Node`].
#[must_use]
pub fn node_lost(id: Uuid) -> String {
    format!("{NODES}/{id}/lost")
}

/// GET, PUT [`crate::policy::UpdatePolicy`].
#[must_use]
pub fn policy(name: &str) -> String {
    format!("{POLICIES}/{name}")
}

/// GET, DELETE one machine.
#[must_use]
pub fn machine(name: &str) -> String {
    format!("{MACHINES}/{name}")
}

/// DELETE one machine, unless another has its name by now.
#[must_use]
pub fn machine_of_id(name: &str, id: Uuid) -> String {
    format!("{MACHINES}/{name}?id={id}")
}

/// GET `?limit=&before=` the recovery points of a machine, POST [`crate::point::CreatePoint`].
#[must_use]
pub fn points(machine: &str) -> String {
    format!("{MACHINES}/{machine}/points")
}

/// GET `?wait_ms=` one recovery point; `latest` in place of the id is the newest committed one.
#[must_use]
pub fn point(machine: &str, point: crate::point::PointSelector) -> String {
    format!("{MACHINES}/{machine}/points/{point}")
}

/// POST [`crate::failover::CreateFailover`].
#[must_use]
pub fn machine_failovers(machine: &str) -> String {
    format!("{MACHINES}/{machine}/failovers")
}

/// GET `?wait_ms=` one failover; the wait ends when its state is settled.
#[must_use]
pub fn failover(id: Uuid) -> String {
    format!("{FAILOVERS}/{id}")
}

/// POST, empty body.
#[must_use]
pub fn failover_commit(id: Uuid) -> String {
    format!("{FAILOVERS}/{id}/commit")
}

/// POST [`crate::failover::CreateFailover`]; answers with [`crate::failover::FailoverCheck`] and
/// changes nothing.
#[must_use]
pub fn machine_failovers_check(machine: &str) -> String {
    format!("{MACHINES}/{machine}/failovers/check")
}

/// POST; tries again what did not come up, at once what is being brought back, and boots a machine
/// that has shut itself down.
#[must_use]
pub fn failover_retry(id: Uuid) -> String {
    format!("{FAILOVERS}/{id}/retry")
}

/// POST [`crate::failover::CleanupFailover`].
#[must_use]
pub fn failover_cleanup(id: Uuid) -> String {
    format!("{FAILOVERS}/{id}/cleanup")
}
