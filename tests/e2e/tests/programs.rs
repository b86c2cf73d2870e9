//! What each program is started with: a wrong command line, and streams that are gone (P8).

use std::process::{Command, Stdio};

use farshore_e2e::command::binary;

/// A program, and how to make it fail.
struct Program {
    name: &'static str,
    /// A command line that is wrong further in.
    wrong: &'static [&'static str],
    /// One that fails, whatever it says.
    failing: &'static [&'static str],
    /// What it then says.
    said: &'static str,
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: "farshore-agent",
        wrong: &["--control", "https://127.0.0.1:1"],
        failing: &["--data", "/proc/nowhere", "--control", "https://127.0.0.1:1"],
        said: "/proc/nowhere",
    },
    Program {
        name: "farshore-node",
        wrong: &["serve"],
        failing: &[
            "export",
            "--vault",
            "/nowhere/vault",
            "--key-file",
            "/nowhere/key",
            "--volume",
            "01890a5d-ac96-774b-bcce-b302099a8057",
            "--overlay",
            "/nowhere/overlay",
            "--listen",
            "tcp:127.0.0.1:0",
        ],
        said: "/nowhere",
    },
    Program {
        name: "farshore-loadgen",
        wrong: &["run", "--nonsense"],
        failing: &["clean", "--data", "/nowhere"],
        said: "error",
    },
];

/// Runs it by way of a shell that arranges its streams; returns its exit code and what it said.
fn run(program: &Program, streams: &str, arguments: &[&str]) -> (i32, String) {
    let path = binary(program.name).expect("it is built");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("exec \"$@\" {streams}"), "sh"]).arg(path.get_program());
    let ended = shell.args(arguments).stdin(Stdio::null()).output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    let code = ended.status.code();
    (code.unwrap_or_else(|| panic!("{}: {}: {said}", program.name, ended.status)), said)
}

#[test]
fn a_wrong_command_line_and_help_have_the_documented_codes_whoever_listens() {
    for program in &PROGRAMS {
        let name = program.name;
        for streams in ["", "2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"] {
            for arguments in [["--nonsense"].as_slice(), program.wrong, &[]] {
                let (code, said) = run(program, streams, arguments);
                assert_eq!(code, 64, "{name} {arguments:?} {streams}: {said}");
            }
            for arguments in [["--help"].as_slice(), &["--version"]] {
                assert_eq!(run(program, streams, arguments).0, 0, "{name} {arguments:?} {streams}");
            }
        }
        assert_eq!(run(program, ">/dev/full", &["--help"]).0, 80, "{name}");
    }
}

#[test]
fn a_failure_keeps_its_code_when_it_cannot_be_told() {
    for program in &PROGRAMS {
        let name = program.name;
        let (code, said) = run(program, "", program.failing);
        assert!(code > 1 && said.contains(program.said), "{name}: {code}: {said}");
        for streams in ["2>&-", "<&- >&- 2>&-", "2>/dev/full"] {
            assert_eq!(run(program, streams, program.failing).0, code, "{name} {streams}");
        }
    }
}
