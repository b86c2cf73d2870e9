//! A client that reconnects reads and writes on over restarts of the agent: QEMU's, with the settings of
//! `docs/runbooks/serve-a-disk.md`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Address;
use farshore_e2e::{Machine, Part, System, run, wait};
use rustix::process::Signal;

const DISK: (u64, Content) = (64 * MIB, Content::Mixed(70));
/// Seconds that QEMU's requests wait for a connection that broke.
const RECONNECT_SECONDS: u64 = 60;
/// An answer that takes longer is a fault of the test.
const ANSWER_LIMIT: Duration = Duration::from_secs(RECONNECT_SECONDS + 30);
const END_LIMIT: Duration = Duration::from_secs(40);
/// Each of them begins with a request that meets no agent.
const RESTARTS: u64 = 3;
const LENGTH: u64 = 64 << 10;
/// Writes of many under way at once: each block of the disk is written some times.
const WRITES: u64 = 6 * DISK.0 / LENGTH;
const UNDER_WAY: u64 = 16;
const FILL: u8 = 0x5a;

/// A disk as QEMU has it, driven by `qemu-io`.
struct Qemu {
    child: Child,
    input: Option<ChildStdin>,
    said: Receiver<String>,
}

/// A request, and what its pattern is.
#[derive(Clone, Copy)]
enum Ask {
    Write { at: u64, pattern: u64 },
    Read { at: u64, pattern: u64 },
}

/// The disk for QEMU's programs.
fn options(uri: &str) -> Result<String> {
    let Address::Unix { export, socket } = Address::parse(uri)? else {
        bail!("{uri} is no Unix socket")
    };
    Ok(format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={socket},\
         file.export={export},file.reconnect-delay={RECONNECT_SECONDS},file.open-timeout=60"
    ))
}

impl Qemu {
    fn open(uri: &str) -> Result<Self> {
        let disk = options(uri)?;
        let mut child = Command::new("qemu-io")
            .args(["--image-opts", &disk])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start qemu-io (package qemu-utils)")?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("what qemu-io says")?;
        let (sender, said) = mpsc::sync_channel(1_024);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, said })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("qemu-io was ended")?;
        input.write_all(format!("{line}\n").as_bytes()).context("ask qemu-io")
    }

    /// The next line that it says, which tells of no failure.
    fn hear(&self) -> Result<String> {
        let line = self.said.recv_timeout(ANSWER_LIMIT).context("qemu-io says nothing")?;
        ensure!(!line.contains("failed"), "qemu-io says {line:?}");
        Ok(line)
    }

    fn ask(&mut self, ask: Ask) -> Result<()> {
        self.say(&match ask {
            // Durable at its answer.
            Ask::Write { at, pattern } => format!("write -f -P {pattern} {at} {LENGTH}"),
            Ask::Read { at, pattern } => format!("read -P {pattern} {at} {LENGTH}"),
        })
    }

    fn answer(&self, ask: Ask) -> Result<()> {
        let expected = match ask {
            Ask::Write { at, .. } => format!("wrote {LENGTH}/{LENGTH} bytes at offset {at}"),
            Ask::Read { at, .. } => format!("read {LENGTH}/{LENGTH} bytes at offset {at}"),
        };
        while !self.hear().with_context(|| format!("waited for {expected:?}"))?.ends_with(&expected)
        {
        }
        Ok(())
    }

    fn does(&mut self, ask: Ask) -> Result<()> {
        self.ask(ask)?;
        self.answer(ask)
    }

    /// Ends it in order.
    fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let status = wait::until("qemu-io to end", END_LIMIT, || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "qemu-io ended with {status}");
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // One that has ended is dead enough.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pattern of the `number`th write, never 0.
fn pattern(number: u64) -> u64 {
    number % 251 + 1
}

/// Asks while there is no agent: nobody starts it again before the question was put.
fn asks_nobody(system: &System, qemu: &mut Qemu, ask: Ask, signal: Signal) -> Result<()> {
    let before = system.pid(Part::Agent)?;
    system.signal_supervisor(Signal::STOP)?;
    let asked = system.signal(Part::Agent, signal).and_then(|()| {
        wait::until("the agent to be gone", END_LIMIT, || {
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", before.as_raw_nonzero()));
            // Nobody has asked yet how it ended.
            let is_gone = status.map_or(true, |status| status.contains("State:\tZ"));
            Ok(is_gone.then_some(()))
        })?;
        qemu.ask(ask)
    });
    system.signal_supervisor(Signal::CONT)?;
    asked?;
    qemu.answer(ask)?;
    system.wait_for_another(Part::Agent, before)
}

/// Ends the agent again and again while many writes are under way.
fn writes_many(system: &System, machine: &Machine, signal: Signal) -> Result<()> {
    let mut writing = Command::new("qemu-img")
        .args(["bench", "-w", "-t", "none", "--pattern", &FILL.to_string()])
        .args(["-c", &WRITES.to_string(), "-s", &LENGTH.to_string()])
        .args(["-d", &UNDER_WAY.to_string(), "--image-opts", &options(&machine.nbd_uri()?)?])
        .stdout(Stdio::null())
        .spawn()
        .context("start qemu-img (package qemu-utils)")?;
    let first = || -> Result<u8> {
        let mut byte = [0];
        std::fs::File::open(&machine.disk)?.read_exact(&mut byte)?;
        Ok(byte[0])
    };
    let struck = (|| {
        wait::until("the first write", ANSWER_LIMIT, || Ok((first()? == FILL).then_some(())))?;
        for _restart in 0..2 {
            ensure!(writing.try_wait()?.is_none(), "it has written all before the agent ended");
            let before = system.pid(Part::Agent)?;
            system.signal(Part::Agent, signal)?;
            system.wait_for_another(Part::Agent, before)?;
        }
        wait::until("qemu-img to end", ANSWER_LIMIT, || Ok(writing.try_wait()?))
    })();
    if struck.is_err() {
        // One that has ended is dead enough.
        let _ = writing.kill();
        let _ = writing.wait();
    }
    let status = struck?;
    ensure!(status.success(), "qemu-img ended with {status}");
    let disk = std::fs::read(&machine.disk)?;
    let lacking = disk.iter().position(|byte| *byte != FILL);
    ensure!(lacking.is_none(), "a write is not on the disk: {lacking:?}");
    Ok(())
}

fn goes_on(system: &System, signal: Signal) -> Result<()> {
    let machine = Machine::protect(system, "web1", "nbd", DISK)?;
    machine.wait_until_protected()?;
    let uri = machine.nbd_uri()?;
    let mut qemu = Qemu::open(&uri)?;
    for number in 0..RESTARTS {
        let (at, first) = (number * MIB, pattern(number));
        qemu.does(Ask::Write { at, pattern: first })?;
        let ask = match number % 2 {
            0 => Ask::Write { at: at + LENGTH, pattern: first },
            _ => Ask::Read { at, pattern: first },
        };
        asks_nobody(system, &mut qemu, ask, signal)
            .with_context(|| format!("restart {number} of {RESTARTS}"))?;
        if let Ask::Write { at, pattern } = ask {
            qemu.does(Ask::Read { at, pattern })?;
        }
        for earlier in 0..=number {
            qemu.does(Ask::Read { at: earlier * MIB, pattern: pattern(earlier) })?;
        }
    }
    qemu.end()?;
    let disk = std::fs::read(&machine.disk)?;
    for number in 0..RESTARTS {
        let (at, byte) = (usize::try_from(number * MIB)?, u8::try_from(pattern(number))?);
        let written = &disk[at..at + usize::try_from(LENGTH)?];
        ensure!(written.iter().all(|found| *found == byte), "write {number} is not on the disk");
    }
    writes_many(system, &machine, signal).context("many at once")?;
    ensure!(machine.nbd_uri()? == uri, "the disk is served elsewhere now");
    machine.wait_until_protected()?;
    let point = machine.mark()?;
    let file = system.path("point.raw");
    machine.export(&point, &file)?;
    image::compare(&machine.disk, &file)?;
    Ok(())
}

#[test]
fn qemu_reads_and_writes_on_over_kills_of_the_agent() {
    run(|system| goes_on(system, Signal::KILL));
}

#[test]
fn qemu_reads_and_writes_on_over_orderly_restarts_of_the_agent() {
    run(|system| goes_on(system, Signal::TERM));
}
