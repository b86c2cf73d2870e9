//! The program itself: its first line, its exit codes, and what it remembers when it is killed.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::site::trusting;
use farshore_api::machine::Machines;
use farshore_api::policy::Policies;
use farshore_api::{Exit, paths};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

fn command(data: &Path, listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farshore-control"));
    command.args(["--vault", "file:///vault", "--key-file", "/nowhere/key", "--listen", listen]);
    command.arg("--data").arg(data).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts it and waits for its first line; returns where it serves.
fn start(data: &Path) -> (Child, String) {
    let mut child = command(data, "127.0.0.1:0").stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("ready ").unwrap().to_owned();
    (child, url)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Runs it to its end; returns its exit code and what it said.
fn fail(mut command: Command) -> (i32, String) {
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code().unwrap(), said)
}

fn assert_exit((code, said): (i32, String), exit: Exit, sentence: &str) {
    assert_eq!(code, i32::from(exit.code()), "{said}");
    assert!(said.contains(sentence), "{said}");
}

#[test]
fn bad_surroundings_end_it_with_a_sentence_and_a_code() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    assert_exit(fail(command(&data, &port)), Exit::Unavailable, "choose another --listen");
    assert_exit(fail(command(&data, "nonsense")), Exit::Usage, "--listen");
    let mut hasty = command(&data, "127.0.0.1:0");
    hasty.args(["--node-lost-after", "2"]);
    assert_exit(fail(hasty), Exit::Usage, "--node-lost-after");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below_a_file = command(&file.join("data"), "127.0.0.1:0");
    assert_exit(fail(below_a_file), Exit::CannotCreate, "choose a --data directory");

    let (mut first, _) = start(&data);
    let second = fail(command(&data, "127.0.0.1:0"));
    assert_exit(second, Exit::Conflict, "in use by another farshore-control");
    signal(&first, Signal::TERM);
    assert_eq!(first.wait().unwrap().code(), Some(0), "SIGTERM is a clean stop");

    std::fs::write(data.join("ca.pem"), "nonsense").unwrap();
    assert_exit(fail(command(&data, "127.0.0.1:0")), Exit::DataInvalid, "ca.pem is damaged");
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(data.join("ca.key"), open).unwrap();
    assert_exit(fail(command(&data, "127.0.0.1:0")), Exit::Denied, "chmod 600");
}

#[test]
fn nobody_needs_to_listen() {
    let dir = tempfile::tempdir().unwrap();
    let program = command(&dir.path().join("data"), "127.0.0.1:0");
    let run = |script: &str, arguments: &[&str]| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script, "sh"]).arg(program.get_program()).args(arguments);
        shell.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
    };
    for streams in ["2>&-", "<&- >&- 2>&-", "2>/dev/full"] {
        let script = format!("exec \"$@\" {streams}");
        assert_eq!(run(&script, &["--nonsense"]), Some(64), "{streams}");
        assert_eq!(run(&script, &["--help"]), Some(0), "{streams}");
    }
    // It serves without anybody who hears its first line or its log, and ends when it is asked to, even
    // if its parent had that ignored.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "trap '' TERM; exec \"$@\" >/dev/full 2>/dev/full", "sh"]);
    let mut child = shell.arg(program.get_program()).args(program.get_args()).spawn().unwrap();
    let ready = dir.path().join("data/operator.token");
    let begin = std::time::Instant::now();
    while !ready.exists() {
        assert!(begin.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_full_disk_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (mut child, _) = start(&data);
    signal(&child, Signal::TERM);
    child.wait().unwrap();
    // The file size limit stands for a full disk: writing beyond it fails in the same places.
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -f 0; trap '' XFSZ; exec \"$@\"", "sh"]);
    let program = command(&data, "127.0.0.1:0");
    limited.arg(program.get_program()).args(program.get_args());
    limited.stdout(Stdio::null()).stderr(Stdio::piped());
    let (code, said) = fail(limited);
    assert!([74, 80].contains(&code), "{code}: {said}");
    assert!(said.contains("control.db"), "{said}");
}

#[tokio::test]
async fn nothing_answered_is_lost_when_it_is_killed() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for round in 0..20 {
        let (mut child, url) = start(&data);
        let client = trusting(dir.path()).build().unwrap();
        let token = std::fs::read_to_string(data.join("operator.token")).unwrap();
        let body = json!({ "name": format!("p{round}"), "mark_interval_ms": 1000 });
        let post = |body: &serde_json::Value| {
            client.post(format!("{url}{}", paths::POLICIES)).bearer_auth(token.trim()).json(body)
        };
        assert_eq!(post(&body).send().await.unwrap().status(), 200);
        // A second one is on its way when the process is killed: it is there whole or not at all.
        let late = post(&json!({ "name": format!("late{round}"), "mark_interval_ms": 1000 }));
        let late = tokio::spawn(late.send());
        signal(&child, Signal::KILL);
        child.wait().unwrap();
        drop(late.await);
    }
    let (mut child, url) = start(&data);
    let client = trusting(dir.path()).build().unwrap();
    let token = std::fs::read_to_string(data.join("operator.token")).unwrap();
    let get = |path| client.get(format!("{url}{path}")).bearer_auth(token.trim()).send();
    let policies: Policies = get(paths::POLICIES).await.unwrap().json().await.unwrap();
    for round in 0..20 {
        let name = format!("p{round}");
        assert!(policies.policies.iter().any(|policy| policy.name == name), "{name} is lost");
    }
    for policy in &policies.policies {
        let failback = &policy.failback_policy;
        let is_whole = failback
            .as_ref()
            .is_none_or(|name| policies.policies.iter().any(|other| other.name == *name));
        assert!(is_whole, "{} lacks its failback policy", policy.name);
    }
    let machines: Machines = get(paths::MACHINES).await.unwrap().json().await.unwrap();
    assert!(machines.machines.is_empty());
    signal(&child, Signal::TERM);
    child.wait().unwrap();
}

/// The document's tables are the tables in the code.
#[test]
fn the_document_has_every_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/control-api.md");
    let document = std::fs::read_to_string(path).unwrap();
    for exit in Exit::ALL {
        let line = format!("| {} | {} |", exit.code(), exit.meaning());
        assert!(document.contains(&line), "docs/control-api.md lacks: {line}");
    }
    for code in farshore_api::ErrorCode::ALL {
        let name = format!("`{}`", code.as_str());
        let line = document.lines().find(|line| line.starts_with('|') && line.contains(&name));
        let line = line.unwrap_or_else(|| panic!("docs/control-api.md lacks {name}"));
        assert!(line.contains(&format!("| {} |", code.status())), "{line}");
    }
}
