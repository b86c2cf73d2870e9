//! `vault boot`: all disks of a machine over NBD, from a store and its key alone.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use farshore_vault::testing::image_bytes;
use farshore_vault::testing::machines::{DB, KnownPoint, WEB};
use serde_json::{Value, json};

use crate::machines::Bench;
use crate::run::Ran;

/// A machine that is served.
struct Boot {
    child: Child,
    /// What it printed.
    ready: Value,
}

impl Boot {
    fn start(bench: &Bench, args: &[&str]) -> Self {
        let args = [&["boot", "--output", "json"], args].concat();
        let mut command = bench.command(&args);
        // Sockets have short names.
        command.env("TMPDIR", bench.path(".")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut text = String::new();
        for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
            text.push_str(&line.unwrap());
            text.push('\n');
            if let Ok(ready) = serde_json::from_str(&text) {
                return Self { child, ready };
            }
        }
        let ended = child.wait_with_output().unwrap();
        panic!("{text}{}", String::from_utf8_lossy(&ended.stderr));
    }

    fn uri(&self, at: usize) -> &str {
        self.ready["disks"][at]["nbd_uri"].as_str().unwrap()
    }

    fn dir(&self) -> &Path {
        Path::new(self.ready["overlay_directory"].as_str().unwrap())
    }

    /// All bytes of a disk, read by another client.
    fn read(&self, bench: &Bench, at: usize) -> Vec<u8> {
        let to = bench.path("read.raw");
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", self.uri(at), to.to_str().unwrap()]);
        fs::read(to).unwrap()
    }

    fn write(&self, at: usize, pattern: u8) {
        let command = format!("write -P {pattern} 4096 8192");
        run("qemu-io", &["-f", "raw", "-c", &command, "-c", "flush", self.uri(at)]);
    }

    /// Tells it to stop, and checks that it did so in order.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        run("kill", &["-TERM", &pid]);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        // Where a test failed; else it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {told}");
}

fn holds(boot: &Boot, bench: &Bench, point: &KnownPoint) {
    assert_eq!(boot.ready["disks"].as_array().unwrap().len(), point.disks.len());
    for (at, (index, _, image)) in point.disks.iter().enumerate() {
        assert_eq!(boot.ready["disks"][at]["index"], json!(index));
        assert!(boot.read(bench, at) == image_bytes(image), "disk {index}");
    }
}

#[test]
fn all_disks_of_a_point_are_served_and_take_writes_that_the_vault_does_not_get() {
    let bench = Bench::new();
    let boot = Boot::start(&bench, &["--machine", "db-1"]);
    let six = bench.point(DB, 6);
    assert_eq!(
        (&boot.ready["point"], &boot.ready["kept"]),
        (&json!(six.id.to_string()), &json!(false))
    );
    holds(&boot, &bench, &six);
    boot.write(1, 0x5a);
    let mut written = image_bytes(&six.disks[1].2);
    written[4096..3 * 4096].fill(0x5a);
    assert!(boot.read(&bench, 1) == written);
    assert!(boot.read(&bench, 0) == image_bytes(&six.disks[0].2), "the other disk is as it was");
    let words: Vec<&str> =
        boot.ready["qemu"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(words[0], "qemu-system-x86_64");
    for at in 0..2 {
        assert!(words.iter().any(|word| word.contains(boot.uri(at))), "{words:?}");
    }
    let dir = boot.dir().to_owned();
    assert!(dir.join("0.sock").exists());
    boot.stop();
    assert!(!dir.exists(), "a temporary directory goes away");
    let again = Boot::start(&bench, &["--machine", "db-1"]);
    holds(&again, &bench, &six);
    again.stop();
}

/// QEMU takes the command and opens the disks; the guest does not run.
#[test]
fn the_command_that_is_printed_starts_the_machine() {
    let bench = Bench::new();
    for (machine, disks) in [("db-1", 2), ("web-1", 3)] {
        let boot = Boot::start(&bench, &["--machine", machine]);
        let words = boot.ready["qemu"].as_array().unwrap().iter().filter_map(Value::as_str);
        // Whether this host's KVM works is not what is tested.
        let words: Vec<&str> = words.map(|word| if word == "kvm" { "tcg" } else { word }).collect();
        let mut qemu = Command::new(words[0]);
        qemu.args(&words[1..]).args(["-display", "none", "-S", "-monitor", "stdio", "-m", "256"]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut qemu = qemu.spawn().unwrap();
        qemu.stdin.take().unwrap().write_all(b"info block\nquit\n").unwrap();
        let output = qemu.wait_with_output().unwrap();
        let (said, told) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{words:?}: {told}");
        for at in 0..disks {
            assert!(said.contains(boot.uri(at)), "{said}");
        }
        boot.stop();
    }
}

#[test]
fn overlays_that_are_kept_go_on_and_belong_to_their_point() {
    let bench = Bench::new();
    let dir = bench.path("over");
    let args =
        ["--machine", "web-1", "--point", "0303", "--overlay", dir.to_str().unwrap(), "--tcp"];
    let boot = Boot::start(&bench, &args);
    assert!(boot.uri(0).starts_with("nbd://127.0.0.1:"), "{}", boot.uri(0));
    holds(&boot, &bench, &bench.point(WEB, 3));
    boot.write(2, 0x77);
    let written = boot.read(&bench, 2);
    assert_eq!(written[4096..3 * 4096], [0x77; 8192]);
    // Another boot on the same overlays, while this one has them.
    let overlay = dir.join("disk-0.overlay").display().to_string();
    refused(&bench, &args, 79, &format!("overlay {overlay}: another process is using it"));
    boot.stop();
    let again = Boot::start(&bench, &args);
    assert!(again.read(&bench, 2) == written);
    again.stop();
    let mut other = args;
    other[3] = "0606";
    refused(&bench, &other, 64, &format!("overlay {overlay}: it belongs to volume"));
}

fn refused(bench: &Bench, args: &[&str], code: i32, sentence: &str) {
    let ran: Ran = bench.command(&[&["boot"], args].concat()).output().unwrap().into();
    ran.fails(code, sentence, "an overlay belongs to one point of one disk, and to one boot");
}

#[test]
fn a_point_that_lacks_disks_is_served_only_when_that_is_asked_for() {
    let bench = Bench::new();
    let args = ["boot", "--machine", "db-1", "--point", "0505"];
    let ran: Ran = bench.command(&args).output().unwrap().into();
    ran.fails(65, "is not complete", "choose another point, or say --incomplete");
    let boot = Boot::start(&bench, &["--machine", "db-1", "--point", "0505", "--incomplete"]);
    assert_eq!(boot.ready["complete"], false);
    holds(&boot, &bench, &bench.point(DB, 5));
    boot.stop();
}
