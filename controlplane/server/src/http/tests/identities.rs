//! Certificates from one generation to the next, and how they end.

use farshore_api::agent::Agents;
use farshore_api::identity::{Revoked, SERIAL_BYTES, Serial, Standing};
use farshore_api::node::Nodes;
use farshore_api::status::Events;

use super::*;
use crate::app::Topic;

/// An agent and the key that its certificates are for.
async fn keyed(site: &Site) -> (As, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let agent = site.enrol_with("agent", &key).await;
    let body = json!({ "hostname": "alpha", "version": "0.1.0" });
    site.ok::<Registered>(agent, "POST", paths::AGENT_REGISTER, Some(body)).await;
    (agent, key)
}

fn peer(who: As) -> Peer {
    let As::Peer(peer) = who else { unreachable!() };
    peer
}

/// A machine of the agent, and a node for it.
async fn placed(site: &Site) {
    let _: Machine = site.ok(As::Operator, "POST", paths::MACHINES, machine("web")).await;
    site.place().await;
}

async fn renew(site: &Site, who: As, key: &KeyPair) -> As {
    let body = json!({ "csr_pem": csr_of(key) });
    holder(&site.ok(who, "POST", paths::RENEW, Some(body)).await)
}

/// As if the newest certificates had been in use for long.
async fn let_grace_pass(site: &Site) {
    site.app.db.let_certificates_age().await;
    site.app.holders.let_first_uses_age();
}

/// An agent's two newest certificates; both were used, the newer one for long.
async fn renewed(site: &Site) -> (As, As, KeyPair) {
    let (first, key) = keyed(site).await;
    works(site, first).await;
    let second = renew(site, first, &key).await;
    works(site, second).await;
    let_grace_pass(site).await;
    (first, second, key)
}

async fn works(site: &Site, who: As) {
    let _: agent::Assignments = site.ok(who, "GET", paths::AGENT_ASSIGNMENTS, None).await;
}

async fn is_refused(site: &Site, who: As) -> String {
    let path = paths::AGENT_ASSIGNMENTS;
    site.refused(who, "GET", path, None, ErrorCode::Unauthenticated).await
}

async fn certified(site: &Site) -> farshore_api::identity::Certified {
    let agents: Agents = site.ok(As::Operator, "GET", paths::AGENTS, None).await;
    agents.agents[0].certified.clone()
}

async fn actions(site: &Site) -> Vec<String> {
    let events: Events = site.ok(As::Operator, "GET", paths::EVENTS, None).await;
    events.events.into_iter().map(|event| event.action).collect()
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_own_key_only() {
    let site = site().await;
    let (agent, key) = keyed(&site).await;
    let thiefs = Some(json!({ "csr_pem": csr() }));
    site.refused(agent, "POST", paths::RENEW, thiefs, ErrorCode::Forbidden).await;
    let renewed = peer(renew(&site, agent, &key).await);
    assert_eq!((renewed.id, renewed.role, renewed.key), {
        let Peer { id, role, key, .. } = peer(agent);
        (id, role, key)
    });
    assert_eq!(renewed.serial.generation(), peer(agent).serial.generation() + 1);
}

#[tokio::test]
async fn an_answer_that_is_lost_locks_nobody_out() {
    let site = site().await;
    let (first, key) = keyed(&site).await;
    let _lost = renew(&site, first, &key).await;
    let_grace_pass(&site).await;
    works(&site, first).await;
    let third = renew(&site, first, &key).await;
    works(&site, third).await;
    // What was on its way when the newer one was used first.
    works(&site, first).await;
    assert_eq!(certified(&site).await.standing, Standing::Valid);
    assert!(!actions(&site).await.contains(&"identity.cloned".into()));
}

#[tokio::test]
async fn a_newer_generation_ends_the_older_and_two_holders_are_told() {
    let site = site().await;
    let (first, key) = keyed(&site).await;
    let second = renew(&site, first, &key).await;
    works(&site, second).await;
    let_grace_pass(&site).await;
    let told = is_refused(&site, first).await;
    assert!(told.contains("in use elsewhere"), "{told}");
    works(&site, second).await;
    let again = Some(json!({ "csr_pem": csr_of(&key) }));
    site.refused(first, "POST", paths::RENEW, again, ErrorCode::Unauthenticated).await;
    let shown = certified(&site).await;
    assert_eq!(shown.standing, Standing::Cloned);
    let holders = shown.cloned.unwrap();
    assert!(holders.contains("generation 2") && holders.contains("generation 1"), "{holders}");
    let told = actions(&site).await;
    let clones = told.iter().filter(|action| *action == "identity.cloned").count();
    assert_eq!(clones, 1, "once, not for each call: {told:?}");

    // The operator decides who goes on: whoever gets the token.
    let id = peer(first).id;
    let body = Some(json!({ "role": "agent", "identity": id }));
    let token: Token = site.ok(As::Operator, "POST", paths::TOKENS, body).await;
    let body = json!({ "token": token.token, "csr_pem": csr() });
    let third = holder(&site.ok(As::Nobody, "POST", paths::ENROL, Some(body)).await);
    assert_eq!(peer(third).id, id);
    works(&site, third).await;
    for old in [first, second] {
        is_refused(&site, old).await;
    }
    assert_eq!(certified(&site).await.standing, Standing::Valid);
}

/// What nodes are told of an agent's certificates.
async fn told(site: &Site, node: As) -> u64 {
    let told: node::Assignments = site.ok(node, "GET", paths::NODE_ASSIGNMENTS, None).await;
    told.volumes[0].agent_generation_min
}

/// Does `what` and returns when those who wait for assignments were woken since it began.
async fn wakes<T>(site: &Site, what: impl Future<Output = T>) -> T {
    let before = site.app.db.assignments_version().await.unwrap();
    let mut wait = site.app.changes.listen(Topic::Assignments);
    let done = what.await;
    let woken = tokio::time::timeout(std::time::Duration::from_secs(10), wait.changed()).await;
    woken.expect("nobody was woken").unwrap();
    assert_ne!(site.app.db.assignments_version().await.unwrap(), before, "woken for nothing");
    done
}

/// A node ends what an older certificate has open: it is told at once, not with the next other change.
#[tokio::test]
async fn nodes_hear_of_a_newer_generation_and_of_a_copy_at_once() {
    let site = site().await;
    let (first, key) = keyed(&site).await;
    let node = site.node().await;
    placed(&site).await;
    works(&site, first).await;
    assert!(told(&site, node).await <= 1);
    let second = renew(&site, first, &key).await;
    wakes(&site, works(&site, second)).await;
    let third = renew(&site, second, &key).await;
    wakes(&site, works(&site, third)).await;
    let min = told(&site, node).await;
    assert_eq!(min, 2, "the one before the newest may still have something on its way");

    // Someone has a copy of the directory, from when the second was the newest.
    let_grace_pass(&site).await;
    let refused = wakes(&site, is_refused(&site, second)).await;
    assert!(refused.contains("in use elsewhere"), "{refused}");
    assert_eq!(told(&site, node).await, 3, "what the copy has open ends");
    // Other events of the same identity are not hidden by that.
    assert!(!site.app.holders.may_tell(peer(first).id, "identity.cloned"));
    assert!(site.app.holders.may_tell(peer(first).id, "identity.over"));

    // The next copy is found within the ten minutes in which no other event is told of the first.
    let body = Some(json!({ "role": "agent", "identity": peer(first).id }));
    let token: Token = site.ok(As::Operator, "POST", paths::TOKENS, body).await;
    let key = KeyPair::generate().unwrap();
    let body = json!({ "token": token.token, "csr_pem": csr_of(&key) });
    let fourth = holder(&site.ok(As::Nobody, "POST", paths::ENROL, Some(body)).await);
    works(&site, fourth).await;
    let fifth = renew(&site, fourth, &key).await;
    wakes(&site, works(&site, fifth)).await;
    assert_eq!(told(&site, node).await, 4);
    let_grace_pass(&site).await;
    wakes(&site, is_refused(&site, fourth)).await;
    assert_eq!(told(&site, node).await, 5);
    assert_eq!(certified(&site).await.standing, Standing::Cloned);
}

/// The machine is set back within a minute of its last report: a copy as far as anybody can tell, until the
/// newer certificate stays silent. Nodes go on asking for that one, so it gets one that is newer still.
#[tokio::test]
async fn one_that_was_set_back_at_once_is_let_in_and_renews() {
    let site = site().await;
    let (first, key) = keyed(&site).await;
    let node = site.node().await;
    placed(&site).await;
    works(&site, first).await;
    let second = renew(&site, first, &key).await;
    works(&site, second).await;
    let_grace_pass(&site).await;
    is_refused(&site, first).await;
    assert_eq!(told(&site, node).await, 2);
    site.app.holders.let_all_be_silent();
    works(&site, first).await;
    assert_eq!(told(&site, node).await, 2, "the copy may be the one that was off");
    let third = renew(&site, first, &key).await;
    wakes(&site, works(&site, third)).await;
    assert_eq!(told(&site, node).await, peer(third).serial.generation());
    let_grace_pass(&site).await;
    is_refused(&site, second).await;
}

/// Both were heard since the copy was found: neither is an older state of the other, and the copy does not get
/// the identity because its holder does not reach the control plane for a minute.
#[tokio::test]
async fn a_copy_is_not_let_in_when_the_one_that_it_was_made_of_is_silent() {
    let site = site().await;
    let (first, second, key) = renewed(&site).await;
    is_refused(&site, first).await;
    works(&site, second).await;
    site.app.holders.let_all_be_silent();
    let refused = is_refused(&site, first).await;
    assert!(refused.contains("in use elsewhere"), "{refused}");
    let again = Some(json!({ "csr_pem": csr_of(&key) }));
    site.refused(first, "POST", paths::RENEW, again, ErrorCode::Unauthenticated).await;
    works(&site, second).await;

    // It ends for some time, and then the machine itself is set back, to where the copy was made.
    site.app.holders.let_all_be_silent();
    let refused = is_refused(&site, first).await;
    assert!(refused.contains("in use elsewhere"), "{refused}");
    site.app.holders.let_all_be_silent();
    works(&site, first).await;
}

#[tokio::test]
async fn agents_refuse_the_older_of_two_nodes_of_one_identity() {
    let site = site().await;
    let (agent, _) = keyed(&site).await;
    let key = KeyPair::generate().unwrap();
    let first = site.enrol_with("node", &key).await;
    let body = json!({ "address": "127.0.0.1:9443", "shards": 2, "version": "0.1.0" });
    site.ok::<Registered>(first, "POST", paths::NODE_REGISTER, Some(body)).await;
    placed(&site).await;
    let min = async || {
        let told: agent::Assignments = site.ok(agent, "GET", paths::AGENT_ASSIGNMENTS, None).await;
        told.volumes[0].node.generation_min
    };
    let before = min().await;
    let version = site.app.db.assignments_version().await.unwrap();
    let second = renew(&site, first, &key).await;
    let path = paths::NODE_ASSIGNMENTS;
    let _: node::Assignments = site.ok(second, "GET", path, None).await;
    assert_eq!(min().await, before, "a renewal alone ends no session of a node");
    let after = site.app.db.assignments_version().await.unwrap();
    assert_eq!(after, version, "and nobody is woken for nothing");
    let_grace_pass(&site).await;
    site.refused(first, "GET", path, None, ErrorCode::Unauthenticated).await;
    assert_eq!(min().await, peer(second).serial.generation());
}

#[tokio::test]
async fn a_revoked_identity_ends_at_once_and_comes_back_by_a_token_only() {
    let site = site().await;
    let (agent, key) = keyed(&site).await;
    let node = site.node().await;
    placed(&site).await;
    let assigned: node::Assignments = site.ok(node, "GET", paths::NODE_ASSIGNMENTS, None).await;
    assert!(assigned.volumes[0].agent_generation_min <= 1);
    let id = peer(agent).id;
    // A poll that waits must not wait on.
    let path = format!("{}?after={}&wait_ms=60000", paths::AGENT_ASSIGNMENTS, assigned.version);
    let began = std::time::Instant::now();
    let revoke = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let path = paths::revoke_agent(id);
        let revoked: Revoked = site.ok(As::Operator, "POST", &path, None).await;
        assert_eq!(revoked.machines, ["web"]);
        let again: Revoked = site.ok(As::Operator, "POST", &path, None).await;
        assert_eq!(again, revoked, "again changes nothing");
    };
    let (polled, ()) = tokio::join!(site.call(agent, "GET", &path, None), revoke);
    assert_eq!(polled.0, 401, "{}", polled.1);
    assert!(began.elapsed() < std::time::Duration::from_secs(10));
    is_refused(&site, agent).await;
    let body = Some(json!({ "csr_pem": csr_of(&key) }));
    site.refused(agent, "POST", paths::RENEW, body, ErrorCode::Unauthenticated).await;
    assert_eq!(certified(&site).await.standing, Standing::Revoked);
    let told: node::Assignments = site.ok(node, "GET", paths::NODE_ASSIGNMENTS, None).await;
    assert_eq!(told.volumes[0].agent_generation_min, u64::MAX, "nodes refuse it");
    let count = actions(&site).await.iter().filter(|a| *a == "identity.revoke").count();
    assert_eq!(count, 1);

    let body = Some(json!({ "role": "agent", "identity": id }));
    let token: Token = site.ok(As::Operator, "POST", paths::TOKENS, body).await;
    let body = json!({ "token": token.token, "csr_pem": csr() });
    let back = holder(&site.ok(As::Nobody, "POST", paths::ENROL, Some(body)).await);
    works(&site, back).await;
    is_refused(&site, agent).await;
    let told: node::Assignments = site.ok(node, "GET", paths::NODE_ASSIGNMENTS, None).await;
    assert_eq!(told.volumes[0].agent_generation_min, 2);
}

#[tokio::test]
async fn a_revoked_node_gets_no_volumes_and_agents_refuse_it() {
    let site = site().await;
    let (agent, _) = keyed(&site).await;
    let node = site.node().await;
    placed(&site).await;
    let path = paths::revoke_node(peer(node).id);
    let revoked: Revoked = site.ok(As::Operator, "POST", &path, None).await;
    assert_eq!(revoked.machines, ["web"]);
    let told: agent::Assignments = site.ok(agent, "GET", paths::AGENT_ASSIGNMENTS, None).await;
    assert_eq!(told.volumes[0].node.generation_min, u64::MAX);
    assert!(site.app.db.node_troubles().await.unwrap().is_empty());
    let nodes: Nodes = site.ok(As::Operator, "GET", paths::NODES, None).await;
    assert_eq!(nodes.nodes[0].certified.standing, Standing::Revoked);
    let unknown = paths::revoke_agent(peer(node).id);
    site.refused(As::Operator, "POST", &unknown, None, ErrorCode::NotFound).await;
}

#[tokio::test]
async fn a_certificate_that_ended_is_renewed_and_does_nothing_else() {
    let site = site().await;
    let (agent, key) = keyed(&site).await;
    let expired =
        |ago_s: u64| As::Peer(Peer { expires_at_unix_s: clock::now_s() - ago_s, ..peer(agent) });
    is_refused(&site, expired(1)).await;
    let long_ago = expired(limits::EXPIRED_SECONDS_MAX + 1);
    let body = Some(json!({ "csr_pem": csr_of(&key) }));
    site.refused(long_ago, "POST", paths::RENEW, body, ErrorCode::Unauthenticated).await;
    let renewed = renew(&site, expired(limits::EXPIRED_SECONDS_MAX / 2), &key).await;
    works(&site, renewed).await;
}

#[tokio::test]
async fn certificates_newer_than_the_catalogue_are_taken_and_others_unknown_to_it_are_not() {
    let site = site().await;
    let (agent, key) = keyed(&site).await;
    let generation = peer(agent).serial.generation();
    let forgotten = |generation| {
        let serial = Serial::new(generation, [7; SERIAL_BYTES - 9]);
        As::Peer(Peer { serial, ..peer(agent) })
    };
    is_refused(&site, forgotten(generation)).await;
    // The catalogue is an older backup: this one was issued after it.
    let newer = forgotten(generation + 3);
    works(&site, newer).await;
    assert!(actions(&site).await.contains(&"identity.adopt".into()));
    let next = renew(&site, newer, &key).await;
    assert_eq!(peer(next).serial.generation(), generation + 4);
    works(&site, next).await;
}
