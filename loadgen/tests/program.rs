//! The program and what it is started with: a wrong command line, and streams that are gone.

use std::process::{Command, Stdio};

/// Runs it by way of a shell that arranges its streams; returns its exit code and what it said.
fn run(streams: &str, args: &[&str]) -> (i32, String) {
    let mut shell = Command::new("/bin/sh");
    shell.args([
        "-c",
        &format!("exec \"$@\" {streams}"),
        "sh",
        env!("CARGO_BIN_EXE_farshore-loadgen"),
    ]);
    let ended = shell.args(args).stdin(Stdio::null()).output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    (ended.status.code().unwrap_or_else(|| panic!("{}: {said}", ended.status)), said)
}

#[test]
fn a_wrong_command_line_and_help_have_the_documented_codes_whoever_listens() {
    for streams in ["", "2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"] {
        for args in [["--nonsense"].as_slice(), &["run", "--nonsense"], &[]] {
            let (code, said) = run(streams, args);
            assert_eq!(code, 64, "{args:?} {streams}: {said}");
        }
        for args in [["--help"].as_slice(), &["--version"]] {
            assert_eq!(run(streams, args).0, 0, "{args:?} {streams}");
        }
    }
    assert_eq!(run(">/dev/full", &["--help"]).0, 80);
}

#[test]
fn a_failure_keeps_its_code_when_it_cannot_be_told() {
    let args: &[&str] = &["clean", "--data", "/nowhere"];
    let (code, said) = run("", args);
    assert!(code > 1 && said.contains("error"), "{code}: {said}");
    for streams in ["2>&-", "<&- >&- 2>&-", "2>/dev/full"] {
        assert_eq!(run(streams, args).0, code, "{streams}");
    }
}
