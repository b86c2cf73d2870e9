//! Verbs against a control plane that answers what is told here.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fake::{Fake, Reply, refusal};
use crate::run::{command, farshore_in};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn machine(state: &str, progress: f64) -> Reply {
    let machine = json!({
        "name": "web", "id": ID, "state": state, "state_detail": "the disk is gone",
        "rpo_seconds": 0.5, "policy": "default", "mark_interval_ms": 1000, "capture": "nbd",
        "agent": ID, "node": ID, "epoch": 1,
        "volumes": [{
            "id": ID, "disk": "/d", "identity": "wwid naa.5000", "size_bytes": 4096, "progress": progress,
            "sent_seq": 3, "journaled_seq": 2, "committed_seq": 1,
            "nbd_uri": "nbd+unix:///?socket=/s", "stats": {},
        }],
        "last_point": null, "created_at_unix_ms": 1,
    });
    (200, machine)
}

/// A machine of which the agent has not said anything yet.
fn unheard() -> Reply {
    let (status, mut machine) = machine("pending", 0.0);
    machine["volumes"][0]["nbd_uri"] = Value::Null;
    machine["volumes"][0]["identity"] = Value::Null;
    (status, machine)
}

fn point(state: &str) -> Reply {
    let point =
        json!({ "point": ID, "kind": "crash", "time_unix_ms": 1, "state": state, "volumes": [] });
    (200, point)
}

fn failover(state: &str, error: Value) -> Reply {
    let failover = json!({
        "id": ID, "machine": "web", "kind": "drill", "point": ID, "volume": ID,
        "serve_only": true, "state": state, "detail": "", "nbd_uri": "nbd+unix:///?socket=/s",
        "export_pid": 7, "machine_pid": null, "console_path": null, "error": error, "steps": [],
    });
    (200, failover)
}

#[test]
fn a_control_planes_certificate_of_another_time_is_told_as_a_wrong_clock() {
    for (from, to, told) in [
        (2090, 2100, "is valid from 2090-01-01T00:00:00Z on, "),
        (2000, 2001, "was valid until 2001-01-01T00:00:00Z, "),
    ] {
        let fake = Fake::start_in_years(&[], from, to);
        let ran = farshore_in(fake.data.path(), &["machine", "list"]);
        ran.fails(77, "this machine's clock says 20", "set the clock that is wrong");
        let whose = format!("the certificate of the control plane at https://{}", fake.address);
        for part in [&whose, told, "check the clocks of both"] {
            assert!(ran.stderr.contains(part), "`{part}` is not in {}", ran.stderr);
        }
        assert!(!ran.stderr.contains("UNIX") && !ran.stderr.contains("ca.pem"), "{}", ran.stderr);
        assert_eq!(fake.asked(), []);
    }
}

#[test]
fn machine_show_prints_the_document_of_the_control_plane() {
    let fake = Fake::start(&[("GET /api/v1/machines/web", &[machine("protected", 1.0)])]);
    let ran = farshore_in(fake.data.path(), &["machine", "show", "web", "--output", "json"]);
    let json = ran.json();
    assert_eq!(json["state"], "protected");
    assert_eq!(json["rpo_seconds"], 0.5);
    assert_eq!(json["volumes"][0]["nbd_uri"], "nbd+unix:///?socket=/s");
    assert_eq!(json["volumes"][0]["committed_seq"], 1);
    let asked = fake.asked();
    assert_eq!(asked[0].line, "GET /api/v1/machines/web");
    assert_eq!(asked[0].authorization, "Bearer secret");
    let ran = farshore_in(fake.data.path(), &["machine", "show", "web"]);
    assert!(ran.stdout.contains("3 sent, 2 journaled, 1 committed"), "{}", ran.stdout);
}

#[test]
fn protect_sends_what_was_asked_for_and_waits_for_the_copy() {
    let fake = Fake::start(&[
        ("POST /api/v1/machines", &[machine("pending", 0.0)]),
        (
            "GET /api/v1/machines/web",
            &[
                machine("copying", 0.5),
                refusal(503, "unavailable", "stops"),
                machine("protected", 1.0),
            ],
        ),
    ]);
    // The name is kept as it is given: where a link leads may change.
    let target = fake.data.path().join("disk.img");
    std::fs::write(&target, [0; 4096]).unwrap();
    let disk = fake.data.path().join("by-id");
    std::os::unix::fs::symlink(&target, &disk).unwrap();
    let args = ["--capture", "scan", "--mark-interval", "1500ms", "--wait", "--output", "json"];
    let mut all = vec!["machine", "protect", "web", "--disk", disk.to_str().unwrap()];
    all.extend(args);
    let json = farshore_in(fake.data.path(), &all).json();
    assert_eq!(json["state"], "protected");
    let body = &fake.asked()[0].body;
    let expected = json!({
        "name": "web", "disk": disk, "capture": "scan", "mark_interval_ms": 1500,
    });
    assert_eq!(*body, expected);
}

#[test]
fn a_piped_wait_prints_lines_that_say_what_they_are() {
    let fake = Fake::start(&[
        ("POST /api/v1/machines", &[machine("pending", 0.0)]),
        ("GET /api/v1/machines/web", &[machine("copying", 0.5), machine("protected", 1.0)]),
    ]);
    let disk = fake.data.path().join("ca.pem");
    let args = ["machine", "protect", "web", "--disk", disk.to_str().unwrap(), "--wait"];
    let ran = farshore_in(fake.data.path(), &args);
    let lines: Vec<Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{}", ran.stdout);
    assert_eq!(lines[0]["message_type"], "status");
    assert_eq!(lines[0]["state"], "copying");
    assert_eq!(lines[1]["message_type"], "summary");
    assert_eq!(lines[1]["state"], "protected");
}

#[test]
fn protect_that_the_agent_refuses_fails_and_leaves_nothing_behind() {
    for wait in [&["--wait"][..], &[]] {
        let fake = Fake::start(&[
            ("POST /api/v1/machines", &[unheard()]),
            ("GET /api/v1/machines/web", &[unheard(), machine("error", 0.0)]),
            ("DELETE /api/v1/machines/web", &[(200, json!({}))]),
        ]);
        let disk = fake.data.path().join("ca.pem");
        let mut args = vec!["machine", "protect", "web", "--disk", disk.to_str().unwrap()];
        args.extend(wait);
        farshore_in(fake.data.path(), &args).fails(1, "the disk is gone", "nothing is registered");
        // By its id too: another machine of that name may have come meanwhile.
        let line = format!("DELETE /api/v1/machines/web?id={ID}");
        assert_eq!(fake.asked().last().unwrap().line, line);
    }
}

#[test]
fn a_copy_that_cannot_go_on_says_why() {
    let fake = Fake::start(&[
        ("POST /api/v1/machines", &[machine("copying", 0.0)]),
        ("GET /api/v1/machines/web", &[machine("error", 0.5)]),
    ]);
    let disk = fake.data.path().join("ca.pem");
    let args = ["machine", "protect", "web", "--disk", disk.to_str().unwrap(), "--wait"];
    farshore_in(fake.data.path(), &args).fails(1, "the disk is gone", "once that is mended");
}

#[test]
fn an_empty_disk_is_refused_before_anything_is_registered() {
    let fake = Fake::start(&[]);
    let disk = fake.data.path().join("empty.img");
    std::fs::write(&disk, []).unwrap();
    let args = ["machine", "protect", "web", "--disk", disk.to_str().unwrap()];
    farshore_in(fake.data.path(), &args).fails(65, "is empty", "give it its size");
    assert_eq!(fake.asked(), []);
}

#[test]
fn mark_waits_until_the_point_is_committed() {
    let path = format!("GET /api/v1/machines/web/points/{ID}");
    let fake = Fake::start(&[
        ("POST /api/v1/machines/web/points", &[point("requested")]),
        (&path, &[point("requested"), point("committed")]),
    ]);
    let args = ["point", "mark", "web", "--wait", "--output", "json"];
    let json = farshore_in(fake.data.path(), &args).json();
    assert_eq!(json["point"], ID);
    assert_eq!(json["state"], "committed");
    let body = &fake.asked()[0].body;
    let id = body["point"].as_str().unwrap();
    assert!(id.len() == 36 && id != ID, "an id of its own, to ask again under: {id}");
    assert_eq!(*body, json!({ "kind": "crash", "point": id }));
    assert!(fake.asked()[1].line.contains("?wait_ms="), "{:?}", fake.asked()[1]);
}

#[test]
fn a_mark_that_no_agent_can_keep_is_refused_before_anything_is_asked() {
    let fake = Fake::start(&[]);
    let args = ["point", "mark", "web", "--app"];
    let ran = farshore_in(fake.data.path(), &args);
    ran.fails(64, "cannot be `app`: no agent can quiet applications yet", "leave --app out");
    assert!(fake.asked().is_empty());
}

#[test]
fn a_mark_that_does_not_come_times_out_with_its_own_code() {
    let path = format!("GET /api/v1/machines/web/points/{ID}");
    let fake = Fake::start(&[
        ("POST /api/v1/machines/web/points", &[point("requested")]),
        (&path, &[point("requested")]),
    ]);
    let args = ["point", "mark", "web", "--wait", "--timeout", "300ms"];
    farshore_in(fake.data.path(), &args).fails(84, "is not committed yet", "it may still come");
}

#[test]
fn a_drill_prints_where_it_serves() {
    let path = format!("GET /api/v1/failovers/{ID}");
    let fake = Fake::start(&[
        ("POST /api/v1/machines/web/failovers", &[failover("requested", Value::Null)]),
        (&path, &[failover("exporting", Value::Null), failover("running", Value::Null)]),
    ]);
    let args = ["failover", "drill", "web", "--point", ID, "--serve-only", "--output", "json"];
    let json = farshore_in(fake.data.path(), &args).json();
    assert_eq!(json["nbd_uri"], "nbd+unix:///?socket=/s");
    let body = &fake.asked()[0].body;
    let id = body["id"].as_str().unwrap();
    assert!(id.len() == 36 && id != ID, "an id of its own, to ask again under: {id}");
    let expected = json!({
        "id": id, "kind": "drill", "point": ID, "serve_only": true, "listen": "unix"
    });
    assert_eq!(*body, expected);
}

#[test]
fn a_failover_that_fails_says_why() {
    let fake = Fake::start(&[(
        "POST /api/v1/machines/web/failovers",
        &[failover("failed", json!("the vault is gone"))],
    )]);
    let ran = farshore_in(fake.data.path(), &["failover", "drill", "web"]);
    ran.fails(1, "failed: the vault is gone", "`farshore failover retry");
}

#[test]
fn what_destroys_asks_first_and_a_dry_run_does_nothing() {
    let fake = Fake::start(&[
        ("GET /api/v1/machines/web", &[machine("protected", 1.0)]),
        ("DELETE /api/v1/machines/web", &[(200, json!({}))]),
    ]);
    let data = fake.data.path();
    farshore_in(data, &["machine", "unprotect", "web"]).fails(64, "this would end", "say --yes");
    let ran = farshore_in(data, &["machine", "unprotect", "web", "--dry-run"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("would end the protection of web"), "{}", ran.stderr);
    farshore_in(data, &["failover", "start", "web"]).fails(64, "this would end", "say --yes");
    assert!(fake.asked().iter().all(|asked| asked.line.starts_with("GET ")));
    let ran = farshore_in(data, &["machine", "unprotect", "web", "--yes"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(fake.asked().iter().any(|asked| asked.line.starts_with("DELETE ")));
}

/// I15: a dry run looks at what it is about.
#[test]
fn a_node_is_not_given_up_by_mistake() {
    let (id, seen) = (uuid::Uuid::from_u128(7), 1_700_000_000_000_u64);
    let path = format!("POST /api/v1/nodes/{id}/lost");
    let args = ["node", "lost", &id.to_string()].map(str::to_owned);
    let lost = |more: &[&str], node: &Value| {
        let fake = Fake::start(&[
            ("GET /api/v1/nodes", &[(200, json!({ "nodes": [node] }))]),
            (path.as_str(), &[(200, node.clone())]),
        ]);
        let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let ran = farshore_in(fake.data.path(), &args);
        (ran, fake.asked().iter().any(|asked| asked.line.starts_with("POST ")))
    };
    let mut node = json!({
        "id": id, "address": "10.0.0.7:9443", "shards": 1, "version": "1", "healthy": false,
        "last_seen_unix_ms": seen, "life": "asked", "trouble": null, "volumes": 3,
        "uptime_seconds": 1.0, "cpu_seconds": 1.0, "counters": {},
    });
    let (ran, is_told) = lost(&["--dry-run"], &node);
    assert!(ran.code == 0 && !is_told, "{}", ran.stderr);
    for part in ["10.0.0.7:9443", "its volumes (3) move", "nothing was done"] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    let (ran, is_told) = lost(&[], &node);
    ran.fails(64, "its volumes (3) move", "say --yes");
    assert!(!is_told);
    let (ran, is_told) = lost(&["--yes"], &node);
    assert!(ran.code == 0 && is_told, "{}", ran.stderr);
    node["healthy"] = json!(true);
    let (ran, is_told) = lost(&["--dry-run"], &node);
    ran.fails(79, "is not gone: it spoke", "stop it first");
    assert!(!is_told);
    node["id"] = json!(uuid::Uuid::from_u128(8));
    lost(&["--dry-run"], &node).0.fails(66, "there is no node", "`farshore node list`");
}

/// I15: how many points go is said before they go.
#[test]
fn what_believing_the_clock_drops_is_said_first() {
    let retention = |doubt: u64, points: u64| json!({ "time_unix_ms": 1, "doubt_ms": doubt, "points_in_doubt": points });
    let status = json!({
        "version": "1", "vault": "file:///v", "ca_fingerprint": "00", "started_at_unix_ms": 1,
        "retention": retention(7_200_000, 41),
        "counts": { "agents": 0, "nodes": 0, "nodes_healthy": 0, "machines": 0, "policies": 0,
            "points": 0, "failovers_active": 0 },
    });
    let fake = Fake::start(&[
        ("GET /api/v1/status", &[(200, status)]),
        ("POST /api/v1/status/believe-clock", &[(200, retention(0, 0))]),
    ]);
    let data = fake.data.path();
    let args = ["policy", "believe-clock"];
    farshore_in(data, &args).fails(64, "41 recovery points that are too old by it", "say --yes");
    let ran = farshore_in(data, &[args[0], args[1], "--dry-run"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("not in 2h: 41 recovery points"), "{}", ran.stderr);
    assert!(fake.asked().iter().all(|asked| asked.line.starts_with("GET ")));
    let ran = farshore_in(data, &[args[0], args[1], "--yes"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(fake.asked().iter().any(|asked| asked.line.starts_with("POST ")));
}

#[test]
fn a_failover_is_not_ended_by_mistake() {
    let id = failover("failed", json!("gone")).1["id"].as_str().unwrap().to_owned();
    let path = format!("GET /api/v1/failovers/{id}");
    let post = format!("POST /api/v1/failovers/{id}/cleanup");
    for (state, committed) in [("failed", false), ("failed", true), ("committed", true)] {
        let (status, mut shown) = failover(state, json!("gone"));
        shown["kind"] = json!("unplanned");
        shown["committed"] = json!(committed);
        shown["overlay_bytes"] = json!(3 << 20);
        let fake = Fake::start(&[
            (path.as_str(), &[(status, shown.clone())]),
            (post.as_str(), &[(status, shown)]),
        ]);
        let data = fake.data.path();
        let args = ["failover", "cleanup", &id];
        if committed {
            farshore_in(data, &args).fails(79, "3.00 MiB in its overlay", "--force");
        }
        let forced = [&args[..], &["--force"]].concat();
        farshore_in(data, &forced).fails(64, "3.00 MiB in its overlay", "say --yes");
        let ran = farshore_in(data, &[&forced[..], &["--dry-run"]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains("no other copy of that exists"), "{}", ran.stderr);
        assert!(fake.asked().iter().all(|asked| asked.line.starts_with("GET ")), "{state}");
    }
}

#[test]
fn what_the_control_plane_refuses_is_told_with_its_code() {
    let fake = Fake::start(&[
        ("GET /api/v1/machines/web", &[refusal(404, "not_found", "there is no machine web")]),
        ("GET /api/v1/status", &[refusal(401, "unauthenticated", "that token is not accepted")]),
        ("GET /api/v1/agents", &[(502, json!("bad gateway"))]),
    ]);
    let data = fake.data.path();
    let ran = farshore_in(data, &["machine", "show", "web"]);
    ran.fails(66, "there is no machine web", "`farshore machine list`");
    farshore_in(data, &["status"]).fails(77, "that token is not accepted", "point --token-file");
    farshore_in(data, &["agent", "list"]).fails(76, "status 502", "check that this");
}

#[test]
fn lists_are_tables_for_people_and_documents_for_programs() {
    let fake = Fake::start(&[
        ("GET /api/v1/machines", &[(200, json!({ "machines": [machine("protected", 1.0).1] }))]),
        ("GET /api/v1/nodes", &[(200, json!({ "nodes": [] }))]),
        ("GET /api/v1/events", &[(200, json!({ "events": [] }))]),
    ]);
    let data = fake.data.path();
    let ran = farshore_in(data, &["machine", "list"]);
    assert!(ran.stdout.starts_with("NAME  STATE      RPO"), "{}", ran.stdout);
    let json = farshore_in(data, &["machine", "list", "-o", "json"]).json();
    assert_eq!(json["machines"][0]["name"], "web");
    assert_eq!(farshore_in(data, &["node", "list"]).stdout, "no nodes\n");
    let ran = farshore_in(data, &["node", "show", ID]);
    ran.fails(66, "there is no node", "`farshore node list`");
    farshore_in(data, &["events", "--limit", "5", "--after", "7"]);
    assert_eq!(fake.asked().last().unwrap().line, "GET /api/v1/events?limit=5&after=7");
}

#[test]
fn a_control_plane_of_another_ca_is_not_trusted() {
    let fake = Fake::start(&[]);
    let other = Fake::start(&[]);
    let ca_file = other.data.path().join("ca.pem");
    let ran = farshore_in(fake.data.path(), &["status", "--ca-file", ca_file.to_str().unwrap()]);
    ran.fails(77, "is not trusted", "check that");
    assert_eq!(fake.asked(), []);
}

#[test]
fn a_control_plane_that_is_gone_is_named() {
    let fake = Fake::start(&[]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    let ran = farshore_in(fake.data.path(), &["status", "--control", &url]);
    ran.fails(69, &format!("cannot reach the control plane at {url}"), "check that");
}

#[test]
fn everything_can_be_named_without_a_data_directory() {
    let status = json!({
        "version": "1", "vault": "file:///v", "ca_fingerprint": "00", "started_at_unix_ms": 1,
        "counts": {
            "agents": 1, "nodes": 1, "nodes_healthy": 1, "machines": 2, "policies": 2, "points": 3,
            "failovers_active": 0,
        },
    });
    let fake = Fake::start(&[("GET /api/v1/status", &[(200, status)])]);
    let data = fake.data.path();
    let output = command()
        .env("FARSHORE_CONTROL", format!("https://{}", fake.address))
        .env("FARSHORE_CA_FILE", data.join("ca.pem"))
        .env("FARSHORE_TOKEN_FILE", data.join("operator.token"))
        .arg("status")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("recovery points:   3"), "{stdout}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let fake = Fake::start(&[("GET /api/v1/nodes", &[(200, json!({ "nodes": [] }))])]);
    let mut child = command()
        .env("FARSHORE_DATA", fake.data.path())
        .args(["node", "list"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "the program does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
