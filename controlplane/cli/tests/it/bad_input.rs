//! Input that cannot work: one clear sentence, advice, and the documented exit code.

use crate::run::{farshore, farshore_in};

#[test]
fn a_wrong_command_line_ends_with_usage() {
    for args in [
        vec!["mashine"],
        vec!["machine", "show"],
        vec!["machine", "list", "--output", "yaml"],
        vec!["point", "mark", "web", "--timeout", "1s"],
        vec!["point", "export", "web", "yesterday", "--to", "/x"],
        vec!["machine", "protect", "web", "--disk", "/d", "--mark-interval", "often"],
        vec!["up", "--data", "/x", "--node-port", "0"],
        vec!["events", "--limit", "0"],
    ] {
        let ran = farshore(&args);
        assert_eq!(ran.code, 64, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("error: "), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn help_is_no_mistake_and_tells_the_exit_codes() {
    let ran = farshore(&["--help"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stdout.contains("farshore help exit-codes"), "{}", ran.stdout);
    for args in [["help", "exit-codes"].as_slice(), &["exit-codes"]] {
        let ran = farshore(args);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("81  the recovery key is not the one"), "{}", ran.stdout);
    }
    let json = farshore(&["exit-codes", "--output", "json"]).json();
    assert_eq!(json["exit_codes"][0]["code"], 0);
}

#[test]
fn without_a_place_to_look_it_says_how_to_name_one() {
    farshore(&["machine", "list"]).fails(64, "which control plane is meant", "set FARSHORE_DATA");
    let data = tempfile::tempdir().unwrap();
    let ran = farshore_in(data.path(), &["machine", "list"]);
    ran.fails(69, "no Farshore is up in", "start it with `farshore up");
    std::fs::write(data.path().join("endpoints.json"), "{}").unwrap();
    let ran = farshore_in(data.path(), &["machine", "list"]);
    ran.fails(65, "is not an endpoints file", "restart `farshore up`");
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let data = tempfile::tempdir().unwrap();
    let (ca, token) = (data.path().join("ca.pem"), data.path().join("token"));
    let run = || {
        farshore(&[
            "status",
            "--control",
            "https://127.0.0.1:1",
            "--ca-file",
            ca.to_str().unwrap(),
            "--token-file",
            token.to_str().unwrap(),
        ])
    };
    assert_eq!(run().code, 66);
    std::fs::write(&ca, "hello").unwrap();
    run().fails(65, "holds no certificate", "--ca-file takes");
    let files = ["--ca-file", "/x", "--token-file", "/y"];
    let mut args = vec!["status", "--control", "http://127.0.0.1:1"];
    args.extend(files);
    farshore(&args).fails(64, "is not an https:// URL", "the control plane only speaks TLS");
}
