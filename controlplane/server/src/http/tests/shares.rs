//! What callers may have of each other's share.

use farshore_api::node::Nodes;
use farshore_api::status::Events;

use super::*;

const HERE: [u8; 4] = [127, 0, 0, 1];
const FAR: [u8; 4] = [192, 0, 2, 7];
const FARTHER: [u8; 4] = [198, 51, 100, 9];

async fn status_of(site: &Site, from: [u8; 4], who: As, path: &str, body: &Value) -> u16 {
    site.reply(from, who, "POST", path, Some(body.clone())).await.status().as_u16()
}

#[tokio::test]
async fn nothing_is_read_of_whoever_may_not_call() {
    let site = site().await;
    let agent = site.agent().await;
    let large = "x".repeat(usize::try_from(limits::REPORT_BYTES_MAX).unwrap() + 1);
    for (path, who) in [
        (paths::MACHINES, As::Nobody),
        (paths::TOKENS, As::WrongToken),
        (paths::NODE_REPORT, As::Nobody),
        (paths::AGENT_REPORT, As::Operator),
        (paths::RENEW, As::Nobody),
    ] {
        let status = status_of(&site, FAR, who, path, &json!(large)).await;
        assert_eq!(status, 401, "{path}: who it is comes first");
    }
    assert_eq!(status_of(&site, FAR, agent, paths::NODE_REPORT, &json!(large)).await, 403);
    assert_eq!(status_of(&site, FAR, agent, paths::AGENT_REPORT, &json!(large)).await, 413);
    let more = "x".repeat(usize::try_from(limits::BODY_BYTES_MAX).unwrap());
    assert_eq!(status_of(&site, FAR, agent, paths::AGENT_REGISTER, &json!(more)).await, 413);
    assert_eq!(status_of(&site, FAR, As::Nobody, paths::ENROL, &json!(more)).await, 413);
    assert_eq!(status_of(&site, FAR, agent, paths::AGENT_REPORT, &json!(more)).await, 400);
}

#[tokio::test]
async fn failed_enrolments_of_one_address_stop_nobody_else() {
    let site = site().await;
    let bad = json!({ "token": "fse1.00", "csr_pem": csr() });
    let mut last = 0;
    for _ in 0..40 {
        last = status_of(&site, FAR, As::Nobody, paths::ENROL, &bad).await;
    }
    assert_eq!(last, 429);
    let good = json!({ "token": site.token("agent").await, "csr_pem": csr() });
    let refused = site.reply(FAR, As::Nobody, "POST", paths::ENROL, Some(good.clone())).await;
    assert_eq!(refused.status(), 429);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=11).contains(&seconds), "{seconds}");
    assert_eq!(status_of(&site, FARTHER, As::Nobody, paths::ENROL, &good).await, 200);
}

#[tokio::test]
async fn a_greedy_agent_is_told_when_to_come_back_and_others_are_not() {
    let site = site().await;
    let key = KeyPair::generate().unwrap();
    let (greedy, other) = (site.enrol_with("agent", &key).await, site.agent().await);
    let body = json!({ "csr_pem": csr_of(&key) });
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(status_of(&site, FAR, greedy, paths::RENEW, &body).await);
    }
    assert_eq!((statuses[0], *statuses.last().unwrap()), (200, 429), "{statuses:?}");
    let refused = site.reply(FAR, greedy, "POST", paths::RENEW, Some(body)).await;
    assert!(refused.headers().contains_key("retry-after"));
    let _: agent::Assignments = site.ok(other, "GET", paths::AGENT_ASSIGNMENTS, None).await;
    let calls = async |who| {
        let mut last = 0;
        for _ in 0..400 {
            last = site.call(who, "GET", paths::AGENT_ASSIGNMENTS, None).await.0;
        }
        last
    };
    assert_eq!(calls(greedy).await, 429);
    let _: agent::Assignments = site.ok(other, "GET", paths::AGENT_ASSIGNMENTS, None).await;
}

#[tokio::test]
async fn a_node_does_not_move_to_another_machine_by_its_own_word() {
    let site = site().await;
    let key = KeyPair::generate().unwrap();
    let node = site.enrol_with("node", &key).await;
    let at = |address: &str| json!({ "address": address, "shards": 1, "version": "0" });
    let path = paths::NODE_REGISTER;
    assert_eq!(status_of(&site, FAR, node, path, &at("127.0.0.1:9443")).await, 400);
    assert_eq!(status_of(&site, FAR, node, path, &at("0.0.0.0:9443")).await, 400);
    assert_eq!(status_of(&site, FAR, node, path, &at("192.0.2.7:9443")).await, 200);
    assert_eq!(status_of(&site, FAR, node, path, &at("192.0.2.7:9444")).await, 200, "its port");
    assert_eq!(status_of(&site, FARTHER, node, path, &at("198.51.100.9:9443")).await, 409);
    assert_eq!(status_of(&site, FARTHER, node, path, &at("198.51.100.9:9443")).await, 409);
    let nodes: Nodes = site.ok(As::Operator, "GET", paths::NODES, None).await;
    assert_eq!(nodes.nodes[0].address, "192.0.2.7:9444");
    let events: Events = site.ok(As::Operator, "GET", paths::EVENTS, None).await;
    let refused = |event: &&farshore_api::status::Event| event.action.ends_with("address_refused");
    assert_eq!(events.events.iter().filter(refused).count(), 1, "told once");

    let As::Peer(peer) = node else { unreachable!() };
    let body = Some(json!({ "role": "node", "identity": peer.id }));
    let token: Token = site.ok(As::Operator, "POST", paths::TOKENS, body).await;
    let body = json!({ "token": token.token, "csr_pem": csr() });
    let again = holder(&site.ok(As::Nobody, "POST", paths::ENROL, Some(body)).await);
    assert_eq!(status_of(&site, FARTHER, again, path, &at("198.51.100.9:9443")).await, 200);
    assert_eq!(status_of(&site, FAR, again, path, &at("192.0.2.7:9443")).await, 409, "once");
}

#[tokio::test]
async fn an_agent_is_beside_the_control_plane_only_if_it_comes_from_there() {
    let site = site().await;
    let body = json!({ "hostname": "far", "version": "0", "local": true });
    let (near, far) = (site.enrol("agent").await, site.enrol("agent").await);
    assert_eq!(status_of(&site, FAR, far, paths::AGENT_REGISTER, &body).await, 200);
    assert_eq!(status_of(&site, HERE, near, paths::AGENT_REGISTER, &body).await, 200);
    let agents: agent::Agents = site.ok(As::Operator, "GET", paths::AGENTS, None).await;
    let is_local = |who: As| {
        let As::Peer(peer) = who else { unreachable!() };
        let agent = agents.agents.iter().find(|agent| agent.id == peer.id);
        agent.expect("it is listed").local
    };
    // Two that were enrolled in one millisecond come in any order.
    assert_eq!((is_local(far), is_local(near)), (false, true));
}

#[tokio::test]
async fn names_that_steer_a_terminal_are_refused_and_sentences_cleaned() {
    let site = site().await;
    let agent = site.enrol("agent").await;
    for hostname in ["ok\u{1b}[2K\u{1b}[1A", "a\nb", "\u{202e}x"] {
        let body = json!({ "hostname": hostname, "version": "0" });
        assert_eq!(status_of(&site, FAR, agent, paths::AGENT_REGISTER, &body).await, 400);
    }
    let hostile = paths::machine("x%1B%5B2K");
    let told = site.refused(As::Operator, "GET", &hostile, None, ErrorCode::NotFound).await;
    assert!(farshore_api::text::is_printable(&told), "{told:?}");
}

#[tokio::test]
async fn the_audit_log_keeps_what_operators_did_whatever_agents_do() {
    use farshore_api::audit::{Entries, Head};
    let site = site().await;
    let (agent, _) = (site.agent().await, site.node().await);
    let _: Machine = site.ok(As::Operator, "POST", paths::MACHINES, machine("web")).await;
    for n in 0..20 {
        let body = json!({ "hostname": format!("alpha-{n}"), "version": "0" });
        status_of(&site, HERE, agent, paths::AGENT_REGISTER, &body).await;
    }
    let listed: Entries = site.ok(As::Operator, "GET", paths::AUDIT, None).await;
    let actions: Vec<&str> = listed.entries.iter().map(|entry| entry.action.as_str()).collect();
    assert!(actions.contains(&"machine.protect") && actions.contains(&"identity.enrol"));
    assert!(!actions.contains(&"agent.register"), "{actions:?}");
    let mut head = Head::default();
    listed.entries.iter().for_each(|entry| head.follow(entry).unwrap());
    let path = format!("{}?after=1&limit=1", paths::AUDIT);
    let paged: Entries = site.ok(As::Operator, "GET", &path, None).await;
    assert_eq!(paged.entries, listed.entries[1..2]);
    site.refused(agent, "GET", paths::AUDIT, None, ErrorCode::Forbidden).await;
}

/// N8: whoever has a certificate that is over, a copy of it say, does not use up its holder's calls.
#[tokio::test]
async fn an_old_certificate_has_a_share_of_its_own() {
    let site = site().await;
    let key = KeyPair::generate().unwrap();
    let old = site.enrol_with("agent", &key).await;
    let body = json!({ "csr_pem": csr_of(&key) });
    let renewed: Certificate = site.ok(old, "POST", paths::RENEW, Some(body)).await;
    let new = holder(&renewed);
    let _: agent::Assignments = site.ok(new, "GET", paths::AGENT_ASSIGNMENTS, None).await;
    let mut last = 0;
    // Its share grows while a slow machine asks.
    for _ in 0..4_000 {
        last = site.call(old, "GET", paths::AGENT_ASSIGNMENTS, None).await.0;
        if last == 429 {
            break;
        }
    }
    assert_eq!(last, 429);
    let _: agent::Assignments = site.ok(new, "GET", paths::AGENT_ASSIGNMENTS, None).await;
}
