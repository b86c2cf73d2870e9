//! `up` with children that are scripts: they say that they are ready, note what is done to them, and
//! do what a test tells them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::run::{Ran, command};

const CHILDREN: [&str; 3] = ["control", "node", "agent"];
/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What each child does: it goes through `DIR/NAME.sh` if there is one, which may end it.
const SCRIPT: &str = r#"#!/bin/sh
name=${0##*farshore-}
while [ $# -gt 0 ]; do
    if [ "$1" = --data ]; then own=$2; fi
    if [ "$1" = --key-file ]; then key=$2; fi
    shift
done
site=${own%/*}
trap 'echo "$name stopped" >> "$site/story"; exit 0' TERM
mkdir -p "$own"
echo "$name started" >> "$site/story"
echo "${key##*/}" > "$own/key"
[ -e "$site/$name.sh" ] && . "$site/$name.sh"
echo "ready for the test"
while :; do sleep 1 & wait $!; done
"#;

/// Programs in one directory, a data directory, two free ports.
struct Bench {
    root: TempDir,
    name: &'static str,
    ports: [String; 2],
}

impl Bench {
    fn new() -> Self {
        Self::in_directory("data")
    }

    /// With a data directory of that name.
    fn in_directory(name: &'static str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let own = env!("CARGO_BIN_EXE_farshore");
        let farshore = bin.join("farshore");
        fs::hard_link(own, &farshore).or_else(|_| fs::copy(own, &farshore).map(drop)).unwrap();
        for child in CHILDREN {
            let path = bin.join(format!("farshore-{child}"));
            fs::write(&path, SCRIPT).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = listeners.map(|port| port.local_addr().unwrap().port().to_string());
        let bench = Self { root, name, ports };
        // As after an earlier run: no control plane is there to enrol anybody.
        for child in ["node", "agent"] {
            fs::create_dir_all(bench.data().join(child)).unwrap();
            fs::write(bench.data().join(child).join("identity.json"), "{}").unwrap();
        }
        fs::set_permissions(bench.data(), fs::Permissions::from_mode(0o700)).unwrap();
        bench
    }

    fn data(&self) -> PathBuf {
        self.root.path().join(self.name)
    }

    fn command(&self) -> Command {
        // The environment of `command`, with the program among its siblings.
        let environment = command();
        let mut command = Command::new(self.root.path().join("bin/farshore"));
        for (name, value) in environment.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["up", "--control-port", &self.ports[0], "--node-port", &self.ports[1]]);
        command.arg("--data").arg(self.data()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Up<'_> {
        Up { bench: self, process: Some(self.command().spawn().unwrap()) }
    }

    fn run(&self) -> Ran {
        self.command().output().unwrap().into()
    }

    fn endpoints(&self) -> Option<Value> {
        let text = fs::read_to_string(self.data().join("endpoints.json")).ok()?;
        Some(serde_json::from_str(&text).expect("the file is whole whenever it is there"))
    }

    fn script(&self, child: &str, text: &str) {
        fs::create_dir_all(self.data()).unwrap();
        fs::write(self.data().join(format!("{child}.sh")), text).unwrap();
    }

    fn story(&self) -> Vec<String> {
        let text = fs::read_to_string(self.data().join("story")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// A running `up`; killed if a test ends early, and its children with it.
struct Up<'a> {
    bench: &'a Bench,
    process: Option<Child>,
}

impl Up<'_> {
    fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    fn ready(&self) -> Value {
        until("endpoints.json is there", || self.bench.endpoints())
    }

    fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    fn wait(mut self) -> Ran {
        let process = self.process.take().expect("it runs");
        process.wait_with_output().unwrap().into()
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().and_then(|()| process.wait()).expect("it ran");
        }
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

fn send(to: u32, signal: Signal) {
    kill_process(pid(to), signal).unwrap();
}

fn pid_of(endpoints: &Value, child: &str) -> u32 {
    endpoints["pids"][child].as_u64().unwrap().try_into().unwrap()
}

fn is_gone(process: u32) -> bool {
    test_kill_process(pid(process)).is_err() || is_zombie(process)
}

/// Dead, and only waiting for a parent that reaps it.
fn is_zombie(process: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z'))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn up_starts_everything_in_order_and_stops_it_in_reverse() {
    let bench = Bench::new();
    let up = bench.start();
    let endpoints = up.ready();
    assert_eq!(endpoints["control"], format!("https://127.0.0.1:{}", bench.ports[0]));
    assert_eq!(endpoints["node"], format!("127.0.0.1:{}", bench.ports[1]));
    assert_eq!(pid_of(&endpoints, "up"), up.pid());
    assert_eq!(mode(&bench.data().join("recovery.key")), 0o600);
    assert_eq!(mode(&bench.data().join("logs")), 0o700);
    up.signal(Signal::TERM);
    let ran = up.wait();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("Keep a copy of the recovery key"), "{}", ran.stdout);
    let story = [
        "control started",
        "node started",
        "agent started",
        "agent stopped",
        "node stopped",
        "control stopped",
    ];
    assert_eq!(bench.story(), story);
    assert_eq!(bench.endpoints(), None);
}

/// A node never has the recovery key, and what takes its place is made once.
#[test]
fn a_node_gets_a_key_of_its_own() {
    let bench = Bench::new();
    let node_key = bench.data().join("node.key");
    let start = || {
        let up = bench.start();
        up.ready();
        up.signal(Signal::TERM);
        assert_eq!(up.wait().code, 0);
        let given = |child| fs::read_to_string(bench.data().join(child).join("key")).unwrap();
        assert_eq!((given("node").trim(), given("control").trim()), ("node.key", "recovery.key"));
        assert_eq!(mode(&node_key), 0o600);
        let mut list = command();
        list.env("FARSHORE_DATA", bench.data()).env("FARSHORE_KEY_FILE", &node_key);
        list.args(["vault", "key", "list", "--output", "json"]);
        let list = Ran::from(list.output().unwrap()).json();
        let wrappers = list["keys"][0]["wrappers"].as_array().unwrap().clone();
        let in_hand = wrappers.iter().find(|wrapper| wrapper["in_hand"] == true).unwrap();
        assert_eq!(in_hand["kind"], "node");
        (in_hand["fingerprint"].clone(), wrappers.len())
    };
    let first = start();
    assert_eq!(first.1, 2, "the operator's and the node's");
    assert_eq!(start(), first, "the same again");
    // What was removed is added again for as long as its file is there; without it, there is a new one.
    let fingerprint = first.0.as_str().unwrap();
    fs::remove_file(bench.data().join(format!("vault/keys/1/{fingerprint}"))).unwrap();
    assert_eq!(start(), first);
    fs::remove_file(&node_key).unwrap();
    let (second, count) = start();
    assert_ne!(second, first.0);
    assert_eq!(count, 3, "the old one stays until it is removed");
}

/// Runs `up` by way of a script, which replaces itself with the program in `"$@"`.
fn by_way_of(bench: &Bench, script: &str) -> Command {
    let up = bench.command();
    let mut command = Command::new("/bin/bash");
    command.args(["-c", script, "bash"]).arg(up.get_program()).args(up.get_args());
    for (name, value) in up.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child is killed, is started again, and `up` ends in order when it is asked to.
fn goes_on_and_ends(up: Up<'_>) {
    let killed = pid_of(&up.ready(), "node");
    send(killed, Signal::KILL);
    until("the child is back", || {
        up.bench.endpoints().filter(|endpoints| pid_of(endpoints, "node") != killed)
    });
    up.signal(Signal::TERM);
    let bench = up.bench;
    assert_eq!(up.wait().code, 0);
    let story = bench.story();
    assert_eq!(story[story.len() - 3..], ["agent stopped", "node stopped", "control stopped"]);
}

#[test]
fn up_goes_on_when_nobody_hears_it() {
    for script in [
        "exec \"$@\" <&- >&- 2>&-",
        "exec \"$@\" >/dev/full 2>/dev/full",
        "exec \"$@\" > >(head -1 >/dev/null) 2>&1",
    ] {
        let bench = Bench::new();
        let process = by_way_of(&bench, script).spawn().unwrap();
        goes_on_and_ends(Up { bench: &bench, process: Some(process) });
    }
}

#[test]
fn a_data_directory_may_have_any_name() {
    for name in ["a b,c", "c#1", "q?x", "%41", "ü/it's", "x/../y"] {
        let bench = Bench::in_directory(name);
        if let Some((parent, _)) = name.split_once('/') {
            fs::create_dir_all(bench.root.path().join(parent)).unwrap();
        }
        let up = bench.start();
        let endpoints = up.ready();
        let data = bench.data().canonicalize().unwrap();
        assert!(data.join("vault/vault").is_file(), "{name}");
        // What the file says is what everybody else finds it by.
        let mut stats = command();
        stats.args(["vault", "stats", "--vault", endpoints["vault"].as_str().unwrap()]);
        stats.arg("--key-file").arg(data.join("recovery.key"));
        let ran: Ran = stats.output().unwrap().into();
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
        // The node was told the same, and another start takes another way to write it for the same.
        up.signal(Signal::TERM);
        let ran = up.wait();
        assert_eq!(ran.code, 0, "{name}");
        let mut again = bench.command();
        again.arg("--vault").arg(data.join("vault"));
        let up = Up { bench: &bench, process: Some(again.spawn().unwrap()) };
        up.ready();
        // The line that it prints can be copied into a shell.
        up.signal(Signal::TERM);
        let ran = up.wait();
        let line = ran.stdout.lines().find_map(|line| line.split_once("export ")).unwrap().1;
        let script = format!("{line}; printf %s \"$FARSHORE_DATA\"");
        let said = Command::new("/bin/sh").args(["-c", &script]).output().unwrap().stdout;
        assert_eq!(String::from_utf8(said).unwrap(), data.to_str().unwrap(), "{name}");
    }
}

#[test]
fn what_is_opened_is_no_standard_stream() {
    let bench = Bench::new();
    let process = by_way_of(&bench, "exec \"$@\" <&- >&- 2>&-").spawn().unwrap();
    let up = Up { bench: &bench, process: Some(process) };
    up.ready();
    for stream in 0..3 {
        let target = fs::read_link(format!("/proc/{}/fd/{stream}", up.pid())).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "{stream}");
    }
    up.signal(Signal::TERM);
    assert_eq!(up.wait().code, 0);
}

#[test]
fn up_hears_of_its_children_and_ends_whatever_its_parent_ignored() {
    let bench = Bench::new();
    let script = "trap '' TERM INT CHLD PIPE; exec env --block-signal=TERM,CHLD \"$@\"";
    let process = by_way_of(&bench, script).spawn().unwrap();
    goes_on_and_ends(Up { bench: &bench, process: Some(process) });
}

#[test]
fn the_end_of_the_terminal_is_a_stop_but_for_nohup() {
    let bench = Bench::new();
    let up = bench.start();
    up.ready();
    up.signal(Signal::HUP);
    assert_eq!(up.wait().code, 0);
    assert_eq!(bench.endpoints(), None);

    let bench = Bench::new();
    let process = by_way_of(&bench, "trap '' HUP; exec \"$@\"").spawn().unwrap();
    let up = Up { bench: &bench, process: Some(process) };
    up.ready();
    up.signal(Signal::HUP);
    goes_on_and_ends(up);
}

#[test]
fn up_goes_on_when_it_is_started_again() {
    let bench = Bench::new();
    let up = bench.start();
    up.ready();
    up.signal(Signal::INT);
    assert_eq!(up.wait().code, 0);
    let key = fs::read(bench.data().join("recovery.key")).unwrap();
    let up = bench.start();
    up.ready();
    up.signal(Signal::TERM);
    assert_eq!(up.wait().code, 0);
    assert_eq!(fs::read(bench.data().join("recovery.key")).unwrap(), key);
}

#[test]
fn every_killed_child_is_started_again() {
    let bench = Bench::new();
    let up = bench.start();
    let mut endpoints = up.ready();
    for child in CHILDREN {
        let killed = pid_of(&endpoints, child);
        send(killed, Signal::KILL);
        let healed = until("the child is back", || {
            bench.endpoints().filter(|endpoints| pid_of(endpoints, child) != killed)
        });
        assert!(!is_gone(pid_of(&healed, child)), "{child}");
        endpoints = healed;
    }
    up.signal(Signal::TERM);
    let ran = up.wait();
    assert_eq!(ran.code, 0);
    assert!(
        ran.stderr.contains("node died: farshore-node was ended by signal 9"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_killed_up_leaves_nothing_behind_and_can_be_started_again_at_once() {
    let bench = Bench::new();
    // A child that takes its time to stop.
    bench.script("node", "trap 'sleep 2; echo node stopped >> \"$site/story\"; exit 0' TERM");
    let up = bench.start();
    let endpoints = up.ready();
    up.signal(Signal::KILL);
    drop(up);
    fs::remove_file(bench.data().join("node.sh")).unwrap();
    let up = bench.start();
    until("the new one is up", || bench.endpoints().filter(|now| pid_of(now, "up") == up.pid()));
    for child in CHILDREN {
        assert!(is_gone(pid_of(&endpoints, child)), "{child}");
    }
    up.signal(Signal::TERM);
    let ran = up.wait();
    // Others may still be about to stop, too.
    let waits = |line: &str| line.contains("waiting for ") && line.contains("farshore-node (pid");
    assert!(ran.stderr.lines().any(waits), "{}", ran.stderr);
    assert_eq!(ran.code, 0);
}

#[test]
fn one_directory_has_one_up() {
    let bench = Bench::new();
    let up = bench.start();
    up.ready();
    let sentence = format!("another `farshore up` (pid {}) runs on", up.pid());
    bench.run().fails(79, &sentence, "use it with FARSHORE_DATA");
    // The refused one has not taken the file of the running one away.
    assert!(bench.endpoints().is_some());
    up.signal(Signal::TERM);
    assert_eq!(up.wait().code, 0);
}

#[test]
fn a_child_that_cannot_start_ends_up_with_its_own_words_and_code() {
    let bench = Bench::new();
    let script = "echo 'INFO here' >&2; echo 'error: the key is wrong' >&2; \
                  echo 'hint: bring the right one' >&2; exit 81";
    bench.script("node", script);
    let ran = bench.run();
    ran.fails(81, "error: the key is wrong", "bring the right one");
    assert_eq!(bench.story(), ["control started", "node started", "control stopped"]);
    assert_eq!(bench.endpoints(), None);
}

#[test]
fn a_child_that_fails_for_another_reason_is_tried_again() {
    let bench = Bench::new();
    bench.script("agent", "[ -e \"$site/tried\" ] || { touch \"$site/tried\"; exit 70; }");
    let up = bench.start();
    up.ready();
    up.signal(Signal::TERM);
    let ran = up.wait();
    assert_eq!(ran.code, 0);
    assert!(
        ran.stderr.contains("agent died: farshore-agent ended with status 70"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_second_signal_does_not_wait_for_a_child_that_does_not_stop() {
    let bench = Bench::new();
    bench.script("agent", "trap '' TERM");
    let up = bench.start();
    let agent = pid_of(&up.ready(), "agent");
    up.signal(Signal::TERM);
    until("the first signal was seen", || {
        let log = fs::read_to_string(bench.data().join("logs/up.log")).unwrap_or_default();
        log.contains("told to stop").then_some(())
    });
    up.signal(Signal::TERM);
    assert_eq!(up.wait().code, 0);
    assert!(is_gone(agent));
}

#[test]
fn a_vault_without_its_key_is_not_touched() {
    let bench = Bench::new();
    let up = bench.start();
    up.ready();
    up.signal(Signal::TERM);
    up.wait();
    let key = bench.data().join("recovery.key");
    fs::rename(&key, bench.data().join("copy.key")).unwrap();
    bench.run().fails(66, "its recovery key", "put your copy of the key back");
    assert!(!key.exists());
}

#[test]
fn a_vault_that_has_gone_is_not_replaced_by_an_empty_one() {
    let bench = Bench::new();
    let up = bench.start();
    up.ready();
    up.signal(Signal::TERM);
    up.wait();
    let vault = bench.data().join("vault");
    fs::rename(&vault, bench.data().join("elsewhere")).unwrap();
    let ran = bench.run();
    assert_eq!(ran.code, 66, "{}", ran.stderr);
    assert!(ran.stderr.contains("does not exist"), "{}", ran.stderr);
    assert!(!vault.exists());
}

#[test]
fn a_taken_port_is_named_before_anything_is_made() {
    let bench = Bench::new();
    let taken = TcpListener::bind(format!("127.0.0.1:{}", bench.ports[1])).unwrap();
    let sentence = format!("port {} of 127.0.0.1", bench.ports[1]);
    bench.run().fails(69, &sentence, "choose another with --node-port");
    drop(taken);
    assert!(!bench.data().join("vault").exists());
    assert!(!bench.data().join("recovery.key").exists());
    assert_eq!(bench.story(), [""; 0]);
}
