//! Failovers with stand-ins for the export and QEMU.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::site::{DEADLINE, EXPORT, FAILING_EXPORT, SLOW_EXPORT, Site, point_report, script};
use farshore_api::failover::{Failover, FailoverCheck, FailoverState, Failovers};
use farshore_api::machine::{Machine, MachineState};
use farshore_api::{ErrorCode, paths};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use uuid::Uuid;

async fn start(site: &Site, body: serde_json::Value) -> Failover {
    site.post(&paths::machine_failovers("web"), body).await
}

async fn settled(site: &Site, id: Uuid) -> Failover {
    let failover: Failover = site.get(&format!("{}?wait_ms=30000", paths::failover(id))).await;
    assert!(failover.state.is_settled(), "{failover:?}");
    failover
}

pub(crate) async fn until(site: &Site, id: Uuid, is: impl Fn(&Failover) -> bool) -> Failover {
    until_within(DEADLINE, site, id, is).await
}

pub(crate) async fn until_within(
    limit: Duration,
    site: &Site,
    id: Uuid,
    is: impl Fn(&Failover) -> bool,
) -> Failover {
    let deadline = Instant::now() + limit;
    loop {
        let failover: Failover = site.get(&paths::failover(id)).await;
        if is(&failover) {
            return failover;
        }
        assert!(Instant::now() < deadline, "{failover:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn clean_up(site: &Site, id: Uuid) -> Failover {
    let _: Failover = site.post(&paths::failover_cleanup(id), json!({})).await;
    let failover = until(site, id, |failover| failover.state == FailoverState::CleanedUp).await;
    assert!(!site.data().join("failovers").join(id.to_string()).exists(), "files are gone");
    failover
}

fn is_running(pid: Option<u32>) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.unwrap()));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

/// Kills a process and waits until it is gone.
pub(crate) fn kill(pid: Option<u32>) {
    let raw = Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap();
    kill_process(raw, Signal::KILL).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while is_running(pid) {
        assert!(Instant::now() < deadline, "{pid:?} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_drill_serves_survives_a_restart_and_leaves_nothing() {
    let mut site = Site::start(EXPORT).await;
    let point = site.protect().await;
    let body = json!({ "kind": "drill", "point": point, "serve_only": true });
    let drill = settled(&site, start(&site, body).await.id).await;
    assert_eq!((drill.state, drill.point), (FailoverState::Running, Some(point)));
    assert!(drill.nbd_uri.as_deref().unwrap().starts_with("nbd+unix:"), "{drill:?}");
    let machine: Machine = site.get(&paths::machine("web")).await;
    assert_eq!((machine.state, machine.epoch), (MachineState::Protected, 1));
    let refused = site.refused(Method::POST, &paths::failover_commit(drill.id), None).await;
    assert_eq!(refused.error.code, ErrorCode::WrongState);

    site.restart().await;
    let again = settled(&site, drill.id).await;
    assert_eq!((again.state, again.export_pid), (FailoverState::Running, drill.export_pid));
    assert!(is_running(drill.export_pid));

    clean_up(&site, drill.id).await;
    assert!(!is_running(drill.export_pid));
    let refused = site.refused(Method::GET, &paths::failover(Uuid::from_u128(1)), None).await;
    assert_eq!(refused.error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_unplanned_failover_fences_boots_commits_and_notices_the_shutdown() {
    let mut site = Site::start(EXPORT).await;
    let point = site.protect().await;
    let firmware = site.dir.path().join("firmware");
    let body = json!({ "kind": "unplanned", "firmware": firmware, "memory_mib": 256 });
    let failover = settled(&site, start(&site, body).await.id).await;
    assert_eq!((failover.state, failover.point), (FailoverState::Running, Some(point)));
    let states: Vec<&str> = failover.steps.iter().map(|step| step.state.as_str()).collect();
    assert_eq!(states, ["requested", "fencing", "exporting", "booting", "running"]);
    let machine: Machine = site.get(&paths::machine("web")).await;
    assert_eq!((machine.state, machine.node, machine.epoch), (MachineState::FailedOver, None, 2));
    assert!(is_running(failover.machine_pid));
    let arguments = std::fs::read_to_string(site.dir.path().join("bin/qemu.arguments")).unwrap();
    assert!(arguments.contains("-m 256"), "{arguments}");
    assert!(arguments.contains("-sandbox on,obsolete=deny,elevateprivileges=deny"), "{arguments}");
    // It works in its own directory, and knows of no other.
    assert!(arguments.contains("file=nbd+unix:nbd.sock,"), "{arguments}");

    let committed: Failover = site.post(&paths::failover_commit(failover.id), json!({})).await;
    assert_eq!(committed.state, FailoverState::Committed);
    let cleanup = paths::failover_cleanup(failover.id);
    let refused = site.refused(Method::POST, &cleanup, Some(json!({}))).await;
    assert_eq!(refused.error.code, ErrorCode::WrongState);

    std::fs::write(site.dir.path().join("bin/status"), "shutdown").unwrap();
    let ended = until(&site, failover.id, |failover| failover.machine_is_down).await;
    assert_eq!(ended.state, FailoverState::Committed);
    assert!(ended.detail.contains("shut itself down"), "{}", ended.detail);
    until(&site, failover.id, |failover| failover.machine_pid.is_none()).await;
    std::fs::remove_file(site.dir.path().join("bin/status")).unwrap();
    site.restart().await;
    let down = settled(&site, failover.id).await;
    assert!(down.machine_is_down && down.machine_pid.is_none(), "it stays down: {down:?}");
    let _: Failover = site.post(&paths::failover_retry(failover.id), json!({})).await;
    let up = until(&site, failover.id, |failover| {
        failover.state == FailoverState::Committed && failover.machine_pid.is_some()
    })
    .await;
    assert!(is_running(up.machine_pid) && !up.machine_is_down, "{up:?}");
    let _: Failover = site.post(&cleanup, json!({ "force": true })).await;
    until(&site, failover.id, |failover| failover.state == FailoverState::CleanedUp).await;
    let machine: Machine = site.get(&paths::machine("web")).await;
    assert_eq!(machine.state, MachineState::FailedOver, "the source stays fenced");
}

#[tokio::test]
async fn the_fence_waits_for_the_nodes_last_word_and_leaves_the_source_no_way_on() {
    let site = Site::start(EXPORT).await;
    let web = site.protect_with_peers().await;
    let body = json!({ "kind": "unplanned", "serve_only": true });
    let id = start(&site, body).await.id;
    // The agent is dead; only the node knows of its last mark.
    let last = Uuid::now_v7();
    let report = json!({ "uptime_seconds": 1.0, "cpu_seconds": 1.0,
        "points": [point_report(last, &web.volume, 9)], "epochs_wanted": [web.volume] });
    let taken = site.send(&web.node, paths::NODE_REPORT, report.clone()).await;
    // On a machine so slow that the fence did not wait long enough, the earlier point is right.
    let was_late = taken["ignored_volumes"] == json!([web.volume]);
    let failover = settled(&site, id).await;
    let expected = if was_late { web.point } else { last };
    assert_eq!((failover.state, failover.point), (FailoverState::Running, Some(expected)));

    assert_eq!(site.volumes(&web.agent, paths::AGENT_ASSIGNMENTS).await, json!([]));
    assert_eq!(site.volumes(&web.node, paths::NODE_ASSIGNMENTS).await, json!([]));
    let taken = site.send(&web.node, paths::NODE_REPORT, report).await;
    assert_eq!(taken["ignored_volumes"], json!([web.volume]), "and it gets no other epoch");
    let report = json!({ "volumes": [{ "volume": web.volume, "epoch": 1, "state": "protected" }] });
    site.send(&web.agent, paths::AGENT_REPORT, report).await;
    let machine: Machine = site.get(&paths::machine("web")).await;
    assert_eq!((machine.state, machine.node, machine.epoch), (MachineState::FailedOver, None, 2));
}

#[tokio::test]
async fn a_drill_can_be_repeated_also_beside_another() {
    let site = Site::start(EXPORT).await;
    let point = site.protect().await;
    let body = json!({ "kind": "drill", "point": point, "serve_only": true });
    for _ in 0..2 {
        let first = settled(&site, start(&site, body.clone()).await.id).await;
        let second = settled(&site, start(&site, body.clone()).await.id).await;
        for drill in [&first, &second] {
            assert_eq!(drill.state, FailoverState::Running, "{drill:?}");
        }
        clean_up(&site, first.id).await;
        assert!(!is_running(first.export_pid) && is_running(second.export_pid));
        clean_up(&site, second.id).await;
        assert!(!is_running(second.export_pid));
    }
}

fn overlay(site: &Site, id: Uuid) -> std::path::PathBuf {
    site.data().join("failovers").join(id.to_string()).join("overlay")
}

/// Waits until all of it runs again, with another export than `before`.
async fn is_back(site: &Site, id: Uuid, before: Option<u32>) -> Failover {
    until(site, id, |now| {
        let is_up = matches!(now.state, FailoverState::Running | FailoverState::Committed);
        is_up && now.export_pid.is_some() && now.export_pid != before
    })
    .await
}

#[tokio::test]
async fn an_export_that_dies_comes_back_on_its_overlay_under_its_machine() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "unplanned", "firmware": site.dir.path().join("firmware") });
    let first = settled(&site, start(&site, body).await.id).await;
    assert!(is_running(first.machine_pid), "{first:?}");
    let _: Failover = site.post(&paths::failover_commit(first.id), json!({})).await;
    std::fs::write(overlay(&site, first.id), "written since").unwrap();
    kill(first.export_pid);
    let back = is_back(&site, first.id, first.export_pid).await;
    assert_eq!(back.state, FailoverState::Committed);
    assert_eq!((back.machine_pid, &back.nbd_uri), (first.machine_pid, &first.nbd_uri));
    assert!(is_running(back.export_pid) && is_running(back.machine_pid));
    let states: Vec<&str> = back.steps.iter().map(|step| step.state.as_str()).collect();
    assert!(states.ends_with(&["committed", "recovering", "committed"]), "{states:?}");
    assert_eq!(std::fs::read_to_string(overlay(&site, first.id)).unwrap(), "written since");
    assert_eq!(back.overlay_bytes, Some(4096));
}

#[tokio::test]
async fn everything_comes_back_after_a_reboot_of_the_host() {
    let mut site = Site::start(EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "unplanned", "listen": "tcp",
        "firmware": site.dir.path().join("firmware") });
    let first = settled(&site, start(&site, body).await.id).await;
    std::fs::write(overlay(&site, first.id), "written since").unwrap();
    site.control.take().unwrap().stop().await;
    kill(first.machine_pid);
    kill(first.export_pid);
    site.restart().await;
    let back = is_back(&site, first.id, first.export_pid).await;
    assert!(is_running(back.export_pid) && is_running(back.machine_pid), "{back:?}");
    assert_ne!(back.machine_pid, first.machine_pid);
    assert_eq!(std::fs::read_to_string(overlay(&site, first.id)).unwrap(), "written since");
}

#[tokio::test]
async fn a_machine_whose_process_dies_is_booted_again() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "drill", "firmware": site.dir.path().join("firmware") });
    let drill = settled(&site, start(&site, body).await.id).await;
    kill(drill.machine_pid);
    let back = until(&site, drill.id, |now| {
        now.state == FailoverState::Running
            && now.machine_pid.is_some()
            && now.machine_pid != drill.machine_pid
    })
    .await;
    assert_eq!(back.export_pid, drill.export_pid);
    assert!(!back.machine_is_down, "a kill is no shutdown");
}

#[tokio::test]
async fn a_machine_that_has_no_room_is_paused_and_goes_on_when_there_is_some() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "drill", "firmware": site.dir.path().join("firmware") });
    let drill = settled(&site, start(&site, body).await.id).await;
    let bin = site.dir.path().join("bin");
    std::fs::write(bin.join("full"), "").unwrap();
    std::fs::write(bin.join("status"), "io-error").unwrap();
    let paused = until(&site, drill.id, |now| {
        now.state == FailoverState::Recovering && now.detail.contains("tried again every")
    })
    .await;
    assert!(paused.detail.contains("no room") && paused.detail.contains("bytes are free"));
    assert_eq!(paused.machine_pid, drill.machine_pid, "{paused:?}");
    std::fs::remove_file(bin.join("full")).unwrap();
    let on = until(&site, drill.id, |now| now.state == FailoverState::Running).await;
    assert_eq!((on.machine_pid, on.detail.as_str()), (drill.machine_pid, ""));
}

#[tokio::test]
async fn what_the_export_waits_for_is_shown_for_as_long_as_it_waits() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "drill", "serve_only": true });
    let drill = settled(&site, start(&site, body).await.id).await;
    let status = overlay(&site, drill.id).with_file_name("status.json");
    let says = |state: &str| {
        let status = status.clone();
        let text = json!({ "state": state, "reason": "503 from the store", "since_unix_ms": 1 });
        std::fs::write(status, text.to_string()).unwrap();
    };
    says("waiting");
    let waits = until(&site, drill.id, |now| now.detail.contains("503 from the store")).await;
    assert_eq!(waits.state, FailoverState::Running, "{waits:?}");
    says("serving");
    until(&site, drill.id, |now| now.detail.is_empty()).await;
}

#[tokio::test]
async fn what_stands_in_the_way_is_shown_and_the_overlay_is_never_made_anew() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "unplanned", "serve_only": true });
    let first = settled(&site, start(&site, body).await.id).await;
    let program = site.dir.path().join("bin/farshore-node");
    script(&program, FAILING_EXPORT);
    kill(first.export_pid);
    let shown = |what: &'static str| {
        until(&site, first.id, move |now| {
            now.state == FailoverState::Recovering && now.detail.contains(what)
        })
    };
    shown("no such vault").await;
    let away = overlay(&site, first.id).with_extension("away");
    std::fs::rename(overlay(&site, first.id), &away).unwrap();
    script(&program, EXPORT);
    shown("overlay").await;
    assert!(!overlay(&site, first.id).exists());
    std::fs::rename(&away, overlay(&site, first.id)).unwrap();
    let _: Failover = site.post(&paths::failover_retry(first.id), json!({})).await;
    is_back(&site, first.id, first.export_pid).await;
}

#[tokio::test]
async fn what_did_not_come_up_is_tried_again_or_rolled_back() {
    let site = Site::start(FAILING_EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "unplanned", "serve_only": true });
    let failed = settled(&site, start(&site, body.clone()).await.id).await;
    assert_eq!(failed.state, FailoverState::Failed);
    assert!(failed.detail.contains("retry") && failed.detail.contains("rolls back"), "{failed:?}");
    script(&site.dir.path().join("bin/farshore-node"), EXPORT);
    let _: Failover = site.post(&paths::failover_retry(failed.id), json!({})).await;
    let running = settled(&site, failed.id).await;
    assert_eq!((running.state, running.error), (FailoverState::Running, None));
    let refused = site.refused(Method::POST, &paths::failover_retry(failed.id), None).await;
    assert_eq!(refused.error.code, ErrorCode::WrongState);
    clean_up(&site, failed.id).await;

    script(&site.dir.path().join("bin/farshore-node"), FAILING_EXPORT);
    let failed = settled(&site, start(&site, body).await.id).await;
    assert_eq!(failed.state, FailoverState::Failed);
    clean_up(&site, failed.id).await;
    let machine: Machine = site.get(&paths::machine("web")).await;
    assert_ne!(machine.state, MachineState::FailedOver, "it replicates again");
}

#[tokio::test]
async fn a_check_looks_and_changes_nothing() {
    let site = Site::start("#!/bin/sh\necho 'opens: 4096 bytes'\n").await;
    let path = paths::machine_failovers_check("web");
    let body = json!({ "kind": "unplanned", "firmware": site.dir.path().join("firmware") });
    let refused = site.refused(Method::POST, &path, Some(body.clone())).await;
    assert_eq!(refused.error.code, ErrorCode::NotFound);
    let point = site.protect().await;
    let found: FailoverCheck = site.post(&path, body.clone()).await;
    assert_eq!(found.point, point);
    assert!(found.checks.iter().all(|check| check.ok), "{found:?}");
    assert!(found.checks[0].found.contains("opens: 4096 bytes"), "{found:?}");
    // There is no vault: which point the failover would take is said by the catalogue, and that is told.
    let vault = found.checks.iter().find(|check| check.what == "vault").unwrap();
    assert!(vault.found.contains("the vault did not say where the volume ends"), "{found:?}");
    let named = json!({ "kind": "unplanned", "serve_only": true, "point": point.to_string() });
    let named: FailoverCheck = site.post(&path, named).await;
    assert!(named.checks.iter().all(|check| check.what != "vault"), "{named:?}");
    script(&site.dir.path().join("bin/farshore-node"), FAILING_EXPORT);
    std::fs::remove_file(site.dir.path().join("bin/qemu")).unwrap();
    let found: FailoverCheck = site.post(&path, body).await;
    let bad: Vec<_> = found.checks.iter().filter(|check| !check.ok).collect();
    assert!(bad[0].found.contains("no such vault") && bad[1].what == "QEMU", "{found:?}");
    let all: Failovers = site.get(paths::FAILOVERS).await;
    assert!(all.failovers.is_empty());
}

#[tokio::test]
async fn an_export_that_cannot_serve_fails_with_its_own_words() {
    let site = Site::start(FAILING_EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "drill", "serve_only": true });
    let failed = settled(&site, start(&site, body).await.id).await;
    assert_eq!(failed.state, FailoverState::Failed);
    let error = failed.error.unwrap();
    assert!(error.contains("no such vault") && error.contains("export.log"), "{error}");
    clean_up(&site, failed.id).await;
}

#[tokio::test]
async fn missing_programs_and_keys_are_named() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    let error = async |body| {
        let failed = settled(&site, start(&site, body).await.id).await;
        assert_eq!(failed.state, FailoverState::Failed);
        failed.error.unwrap()
    };
    let serve = json!({ "kind": "drill", "serve_only": true });
    let firmware = json!({ "kind": "drill", "firmware": site.dir.path().join("OVMF.fd") });
    assert!(error(firmware).await.contains("OVMF.fd is not installed"));
    let firmware = site.dir.path().join("firmware");
    std::fs::remove_file(site.dir.path().join("bin/qemu")).unwrap();
    let boot = json!({ "kind": "drill", "firmware": firmware });
    assert!(error(boot).await.contains("qemu is not installed; install the Debian package"));
    std::fs::remove_file(site.dir.path().join("key")).unwrap();
    assert!(error(serve.clone()).await.contains("recovery key"));
    std::fs::write(site.dir.path().join("key"), "k").unwrap();
    std::fs::remove_file(site.dir.path().join("bin/farshore-node")).unwrap();
    assert!(error(serve).await.contains("farshore-node is not installed"));
}

#[tokio::test]
async fn firmware_that_the_operator_did_not_provide_is_refused() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    let outside = site.dir.path().join("../shadow");
    for firmware in [Path::new("/etc/shadow"), Path::new("/no/such/file"), &outside] {
        let body = json!({ "kind": "drill", "firmware": firmware });
        let path = paths::machine_failovers("web");
        let refused = site.refused(Method::POST, &path, Some(body)).await;
        assert_eq!(refused.error.code, ErrorCode::InvalidRequest);
        assert!(refused.error.message.contains("does not lie in"), "{refused:?}");
    }
    // A link is found when it is followed, which is when the machine is to start.
    std::os::unix::fs::symlink("/etc/passwd", site.dir.path().join("link.fd")).unwrap();
    let body = json!({ "kind": "drill", "firmware": site.dir.path().join("link.fd") });
    let failed = settled(&site, start(&site, body).await.id).await;
    assert!(failed.error.unwrap().contains("is a link that leads out of"));
    let all: Failovers = site.get(paths::FAILOVERS).await;
    assert_eq!(all.failovers.len(), 1);
}

#[tokio::test]
async fn a_failed_boot_leaves_no_process_behind() {
    let site = Site::start(EXPORT).await;
    site.protect().await;
    script(&site.dir.path().join("bin/qemu"), "#!/bin/sh\necho 'bad disk' >&2\nexit 1\n");
    let body = json!({ "kind": "drill", "firmware": site.dir.path().join("firmware") });
    let failed = settled(&site, start(&site, body).await.id).await;
    assert!(failed.error.unwrap().contains("bad disk"));
    let failed = until(&site, failed.id, |failover| failover.export_pid.is_none()).await;
    assert_eq!(failed.state, FailoverState::Failed);
}

#[tokio::test]
async fn what_was_starting_when_the_control_plane_stopped_goes_on_after() {
    let mut site = Site::start(SLOW_EXPORT).await;
    site.protect().await;
    let body = json!({ "kind": "drill", "serve_only": true });
    let drill = start(&site, body.clone()).await;
    let slow = until(&site, drill.id, |failover| failover.export_pid.is_some()).await;
    assert_eq!(slow.state, FailoverState::Exporting);
    site.control.take().unwrap().stop().await;
    kill(slow.export_pid);
    script(&site.dir.path().join("bin/farshore-node"), EXPORT);
    site.restart().await;
    let resumed = settled(&site, drill.id).await;
    assert_eq!(resumed.state, FailoverState::Running, "started again");
    assert_ne!(resumed.export_pid, slow.export_pid);

    script(&site.dir.path().join("bin/farshore-node"), SLOW_EXPORT);
    let drill = start(&site, body).await;
    let slow = until(&site, drill.id, |failover| failover.export_pid.is_some()).await;
    clean_up(&site, drill.id).await;
    assert!(!is_running(slow.export_pid), "a clean-up interrupts what is starting");
}
