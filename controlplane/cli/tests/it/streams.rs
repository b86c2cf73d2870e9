//! Standard streams that are closed, full, or without a reader: documented exit codes, and nothing done
//! of which nobody hears.

use std::fs::File;
use std::io::pipe;
use std::process::{Command, Stdio};

use farshore_api::Exit;
use farshore_api::Role;
use farshore_api::identity::EnrolmentToken;
use serde_json::{Value, json};

use crate::fake::{Fake, Reply};
use crate::run::{Ran, command};

/// Runs the program by way of a shell that arranges the streams.
fn with_streams(streams: &str, args: &[&str]) -> Ran {
    let program = command();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("exec \"$@\" {streams}"), "sh"]).arg(program.get_program());
    shell.args(args).env_remove("FARSHORE_DATA").stdin(Stdio::null());
    shell.output().unwrap().into()
}

fn is_documented(code: i32) -> bool {
    Exit::ALL.iter().any(|exit| i32::from(exit.code()) == code)
}

#[test]
fn streams_that_are_gone_or_full_never_take_the_program_down() {
    // With the code where standard output is closed: a result is then not written.
    let verbs: [(&[&str], i32, i32); 5] = [
        (&["--help"], 0, 0),
        (&["exit-codes"], 0, 74),
        (&["mashine"], 64, 64),
        (&["status"], 64, 64),
        (&["vault", "restore", "--vault", "/nowhere", "--volume", "x", "--to", "/x"], 64, 64),
    ];
    for (streams, is_closed) in [
        ("2>&-", false),
        (">&-", true),
        ("<&-", false),
        ("<&- >&- 2>&-", true),
        ("2>/dev/full", false),
        ("</dev/null", false),
    ] {
        for (args, code, code_closed) in verbs {
            let ran = with_streams(streams, args);
            let code = if is_closed { code_closed } else { code };
            assert_eq!(ran.code, code, "{args:?} {streams}: {}", ran.stderr);
        }
    }
    for args in [["--help"].as_slice(), &["exit-codes"], &["exit-codes", "--output", "json"]] {
        let ran = with_streams(">/dev/full", args);
        assert_eq!(ran.code, 80, "{args:?}: {}", ran.stderr);
        let ran = with_streams(">/dev/full 2>&1", args);
        assert!(is_documented(ran.code) && ran.code != 0, "{args:?}: {}", ran.code);
    }
}

#[test]
fn a_result_that_goes_nowhere_is_a_failure_and_one_that_is_thrown_away_is_none() {
    let fake = Fake::start(&[("GET /api/v1/machines", &[(200, json!({ "machines": [] }))])]);
    let data = fake.data.path().to_str().unwrap();
    for format in ["table", "json"] {
        let args = ["machine", "list", "--data", data, "--output", format];
        let ran = with_streams(">&-", &args);
        ran.fails(74, "cannot write to standard output: it is closed", "what was asked was done");
        // Whoever says so wants none, however the null device was opened.
        for streams in [">/dev/null", "1<>/dev/null"] {
            let ran = with_streams(streams, &args);
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{streams}");
        }
    }
}

#[test]
fn a_reader_that_is_gone_is_no_failure_for_what_can_be_asked_again() {
    for args in [["--help"].as_slice(), &["exit-codes"], &["exit-codes", "--output", "json"]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let ran = command().args(args).stdout(writer).status().unwrap();
        assert_eq!(ran.code(), Some(0), "{args:?}");
    }
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let ran = command().arg("mashine").stderr(writer).status().unwrap();
    assert_eq!(ran.code(), Some(64));
}

fn token() -> EnrolmentToken {
    EnrolmentToken { ca_fingerprint: [1; 32], role: Role::Agent, secret: [2; 32] }
}

fn site() -> Fake {
    let made: Reply = (200, json!({ "token": token().to_string(), "expires_at_unix_s": 1 }));
    let line = format!("DELETE /api/v1/tokens/{}", token().id());
    Fake::start(&[("POST /api/v1/tokens", &[made]), (&line, &[(200, json!({}))])])
}

fn ask(fake: &Fake, verb: [&str; 2], stdout: impl Into<Stdio>) -> Ran {
    let mut command = command();
    command.env("FARSHORE_DATA", fake.data.path()).args(verb).stdout(stdout);
    command.stderr(Stdio::piped()).output().unwrap().into()
}

#[test]
fn no_token_is_made_that_nobody_could_see() {
    for verb in [["agent", "token"], ["node", "token"]] {
        let fake = site();
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let ran = ask(&fake, verb, writer);
        ran.fails(74, "its reader has gone away", "nothing was done");
        let ran = ask(&fake, verb, Stdio::null());
        ran.fails(74, "it goes to /dev/null", "nothing was done");
        let data = fake.data.path().to_str().unwrap();
        let ran = with_streams(">&-", &[verb[0], verb[1], "--data", data]);
        ran.fails(74, "standard output, but it is closed", "nothing was done");
        assert_eq!(fake.asked(), [], "{verb:?}");
    }
}

#[test]
fn a_token_that_could_not_be_written_is_taken_back() {
    let fake = site();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let ran = ask(&fake, ["agent", "token"], full());
    ran.fails(80, "cannot write to standard output: no space left", "no token was made");
    let lines: Vec<String> = fake.asked().into_iter().map(|asked| asked.line).collect();
    let taken_back = format!("DELETE /api/v1/tokens/{}", token().id());
    assert_eq!(lines, ["POST /api/v1/tokens", &taken_back]);

    // It cannot be taken back: that is said, with the time at which it ends.
    let made: Reply = (200, json!({ "token": token().to_string(), "expires_at_unix_s": 60 }));
    let fake = Fake::start(&[("POST /api/v1/tokens", &[made])]);
    let ran = ask(&fake, ["agent", "token"], full());
    ran.fails(80, "cannot write to standard output", "a token was made and could not be");
    assert!(ran.stderr.contains("1970-01-01T00:01:00Z"), "{}", ran.stderr);
}

#[test]
fn a_token_is_printed_even_if_the_advice_cannot_be() {
    let fake = site();
    let program = command();
    let ran: Ran = Command::new("/bin/sh")
        .args(["-c", "exec \"$@\" 2>&-", "sh"])
        .arg(program.get_program())
        .args(["agent", "token", "--output", "json"])
        .env("FARSHORE_DATA", fake.data.path())
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 0);
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed["token"], token().to_string());
    let asked = fake.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
}
