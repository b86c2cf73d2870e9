//! `machine`: protected machines.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};
use farshore_api::agent::SampleReport;
use farshore_api::machine::{Capture, CreateMachine, Machine, MachineState, Machines, Volume};
use farshore_api::{Exit, limits, paths};
use serde_json::json;
use uuid::Uuid;

use crate::args::Global;
use crate::client::Client;
use crate::confirm::Consent;
use crate::failure::{Failure, Outcome};
use crate::job::Job;
use crate::output::{interval, or_dash, percent, seconds, size, time};
use crate::table::Table;

/// Time between two looks at a machine that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long `protect` waits for the agent to say that it has the disk.
const WORD_TIME_MAX: Duration = Duration::from_secs(15);
/// What a client of a served disk needs so that it waits while the agent is started again.
const CLIENT_SETTINGS: &str = "set reconnect-delay=300 and open-timeout=60 in QEMU, or -persist for nbd-client: it waits \
     while the agent is started again";
/// Time that the control plane may be away meanwhile.
const AWAY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Protect a machine: copy its disk to the vault, then keep up with its changes
    Protect(ProtectArgs),
    /// List all protected machines
    List,
    /// Show one machine
    Show {
        /// Name of the machine
        name: String,
    },
    /// End the protection of a machine; what is in the vault stays there
    Unprotect {
        /// Name of the machine
        name: String,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProtectArgs {
    /// Name for the machine: lower-case letters, digits, `.`, `_`, `-`
    name: String,
    /// Its disk: a file or a block device on the agent's machine
    #[arg(long, value_name = "PATH")]
    disk: PathBuf,
    /// How to learn of changes
    #[arg(long, value_enum, default_value = "nbd")]
    capture: CaptureArg,
    /// Policy to follow [default: default]
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Time between two marks, such as 1s, in place of the policy's; for scan also between scans
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    mark_interval: Option<Duration>,
    /// With --capture nbd: serve the disk on this loopback port in place of a Unix socket
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    nbd_port: Option<u16>,
    /// Agent that has the disk [default: the only one, or the local one]
    #[arg(long, value_name = "ID")]
    agent: Option<Uuid>,
    /// Wait until the initial copy is in the vault
    #[arg(long)]
    wait: bool,
    /// Longest wait [default: none]
    #[arg(long, value_name = "DURATION", requires = "wait",
        value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// How the agent learns of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaptureArg {
    /// Read the disk again at every mark, send what differs
    Scan,
    /// Serve the disk over NBD and see every write
    Nbd,
}

impl From<CaptureArg> for Capture {
    fn from(capture: CaptureArg) -> Self {
        match capture {
            CaptureArg::Scan => Self::Scan,
            CaptureArg::Nbd => Self::Nbd,
        }
    }
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    let format = global.output.unwrap_or_default();
    let client = Client::of(global)?;
    match verb {
        Verb::Protect(args) => protect(global, &client, args).await,
        Verb::List => format.print(&client.get::<Machines>(paths::MACHINES).await?, list),
        Verb::Show { name } => format.print(&get(&client, &name).await?, show),
        Verb::Unprotect { name, consent } => {
            let machine = get(&client, &name).await?;
            let volumes: Vec<String> =
                machine.volumes.iter().map(|volume| volume.id.to_string()).collect();
            let what = format!(
                "end the protection of {name}: nothing newer comes, and the control plane forgets its \
                 points; what is in the vault stays there, as volume {}",
                volumes.join(", ")
            );
            if consent.ask(&what)? {
                client.delete(&paths::machine_of_id(&name, machine.id)).await?;
                format.print(&machine, |_| format!("{name} is not protected any more\n"))?;
            }
            Ok(())
        }
    }
}

async fn protect(global: &Global, client: &Client, args: ProtectArgs) -> Outcome {
    check_name("machine", &args.name)?;
    // Only on this machine does the path mean the same to the agent as to us.
    let is_here = args.agent.is_none() && client.is_local();
    let disk = if is_here { existing(&args.disk)? } else { args.disk.clone() };
    let request = CreateMachine {
        name: args.name.clone(),
        disk: utf8(&disk)?,
        capture: args.capture.into(),
        policy: args.policy,
        mark_interval_ms: args.mark_interval.map(mark_interval_ms).transpose()?,
        nbd_port: args.nbd_port,
        agent_id: args.agent,
    };
    let machine: Machine = client.post(paths::MACHINES, &request).await?;
    let machine = agents_word(client, machine).await?;
    if args.wait {
        let machine = wait(global, client, &args.name, args.timeout).await?;
        machine.0.finish(&machine.1, show)
    } else {
        global.output.unwrap_or_default().print(&machine, show)
    }
}

/// Waits until the agent has said what it makes of a new machine. If it cannot protect it, the machine
/// is taken back: it would only be an error that nobody asked for.
async fn agents_word(client: &Client, new: Machine) -> Outcome<Machine> {
    let started = Instant::now();
    let new_id = new.id;
    let mut machine = new;
    while !has_word(&machine) {
        if started.elapsed() >= WORD_TIME_MAX {
            let (name, detail) = (&machine.name, &machine.state_detail);
            let why = if detail.is_empty() { "no reason is known" } else { detail };
            farshore_program::tell!(
                "note: {name} is registered, but its agent has not said yet whether it can protect the \
                 disk: {why}; `farshore machine show {name}` tells when it has"
            );
            return Ok(machine);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let path = paths::machine(&machine.name);
        machine = client.get_patiently(&path, Duration::ZERO, AWAY_MAX).await?;
        if machine.id != new_id {
            let name = &machine.name;
            let what = format!("{name} was taken back meanwhile, and another has its name");
            return Err(Failure::new(Exit::Failure, what));
        }
    }
    if machine.state != MachineState::Error {
        return Ok(machine);
    }
    let name = &machine.name;
    let failure = Failure::new(
        Exit::Failure,
        format!("{name} cannot be protected: {}", machine.state_detail),
    );
    // By its id: the name may be another's by now.
    Err(match client.delete(&paths::machine_of_id(name, new_id)).await {
        Ok(()) => failure.hint("nothing is registered; protect it again once that is mended"),
        Err(error) => failure.hint(format!(
            "it is still registered ({}); `farshore machine unprotect {name}` takes it back",
            error.message
        )),
    })
}

/// Whether the agent has said whether it has the disk.
fn has_word(machine: &Machine) -> bool {
    let is_open = |volume: &Volume| volume.nbd_uri.is_some() || volume.identity.is_some();
    machine.state != MachineState::Pending || machine.volumes.iter().all(is_open)
}

/// Waits until the machine is protected.
async fn wait(
    global: &Global,
    client: &Client,
    name: &str,
    timeout: Option<Duration>,
) -> Outcome<(Job, Machine)> {
    let started = Instant::now();
    let job = Job::of_share(global, "initial copy");
    loop {
        let machine: Machine =
            client.get_patiently(&paths::machine(name), Duration::ZERO, AWAY_MAX).await?;
        let progress = machine.volumes.first().map_or(0.0, |volume| volume.progress);
        match machine.state {
            MachineState::Protected => return Ok((job, machine)),
            MachineState::Error => {
                let message = format!("{name} cannot be protected: {}", machine.state_detail);
                return Err(Failure::new(Exit::Failure, message).hint(format!(
                    "once that is mended it goes on by itself; `farshore machine show {name}` tells"
                )));
            }
            state => job.share(
                progress,
                || json!({ "state": state, "progress": progress, "detail": machine.state_detail }),
            ),
        }
        if timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            let message = format!("{name} is not protected yet: {} copied", percent(progress));
            return Err(Failure::new(Exit::TimedOut, message).hint(format!(
                "the copy goes on; `farshore machine show {name}` tells how far it is"
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The machine of that name.
pub(crate) async fn get(client: &Client, name: &str) -> Outcome<Machine> {
    check_name("machine", name)?;
    client.get(&paths::machine(name)).await.map_err(unknown_machine)
}

/// Says where to look for the right name.
pub(crate) fn unknown_machine(failure: Failure) -> Failure {
    failure.hint_on(Exit::NotFound, || "`farshore machine list` shows the machines".to_owned())
}

/// Refuses what cannot be a name before it becomes part of a URL.
pub(crate) fn check_name(noun: &str, name: &str) -> Outcome {
    if limits::is_valid_name(name) {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, format!("`{name}` cannot be the name of a {noun}")).hint(format!(
        "a name has lower-case letters, digits, `.`, `_` and `-`, begins with a letter or digit, \
         and is at most {} long",
        limits::NAME_BYTES_MAX
    )))
}

/// A mark interval as the API takes it.
pub(crate) fn mark_interval_ms(interval: Duration) -> Outcome<u64> {
    let range = limits::MARK_INTERVAL_MS_MIN..=limits::MARK_INTERVAL_MS_MAX;
    u64::try_from(interval.as_millis()).ok().filter(|ms| range.contains(ms)).ok_or_else(|| {
        let interval = humantime::format_duration(interval);
        Failure::new(Exit::Usage, format!("{interval} is no possible time between two marks"))
            .hint("choose between 1s and 1day")
    })
}

/// The absolute path of a disk that exists here and is not empty. Links stay: the agent follows them
/// anew whenever it opens the disk, and they may be the only name that stays with it.
fn existing(disk: &Path) -> Outcome<PathBuf> {
    let failed = |error: &io::Error| {
        let failure = Failure::io("open the disk", disk, error, Exit::InputOutput);
        match error.kind() {
            io::ErrorKind::NotFound => Failure {
                message: format!("the disk {} does not exist", disk.display()),
                ..failure
            }
            .hint("--disk takes a file or a block device; say --agent ID if it is elsewhere"),
            _ => failure,
        }
    };
    let found = std::fs::metadata(disk).map_err(|error| failed(&error))?;
    if found.is_file() && found.len() == 0 {
        let message = format!("the disk {} is empty: there is nothing to protect", disk.display());
        return Err(Failure::new(Exit::DataInvalid, message).hint("give it its size first"));
    }
    std::path::absolute(disk).map_err(|error| failed(&error))
}

fn utf8(path: &Path) -> Outcome<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!("the path {} is not valid UTF-8", path.display());
        Failure::new(Exit::Usage, message).hint("give the disk another name, or a link to it")
    })
}

fn state(state: MachineState) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn list(machines: &Machines) -> String {
    let mut table = Table::new(
        &["NAME", "STATE", "RPO", "COPIED", "SIZE", "CAPTURE", "LAST POINT"],
        "no machines are protected",
    );
    for machine in &machines.machines {
        let volumes = &machine.volumes;
        table.row([
            machine.name.clone(),
            state(machine.state),
            seconds(machine.rpo_seconds),
            percent(volumes.first().map_or(0.0, |volume| volume.progress)),
            size(volumes.iter().map(|volume| volume.size_bytes).sum()),
            machine.capture.as_str().to_owned(),
            or_dash(machine.last_point.as_ref().map(|point| time(point.time_unix_ms))),
        ]);
    }
    table.render()
}

fn show(machine: &Machine) -> String {
    let mut table = Table::pairs();
    table.pair("name", &machine.name).pair("state", state(machine.state));
    if !machine.state_detail.is_empty() {
        table.pair("detail", &machine.state_detail);
    }
    table
        .pair("RPO", seconds(machine.rpo_seconds))
        .pair("policy", &machine.policy)
        .pair("marks every", interval(machine.mark_interval_ms))
        .pair("capture", machine.capture.as_str())
        .pair("agent", machine.agent)
        .pair("node", or_dash(machine.node))
        .pair("epoch", machine.epoch);
    if let Some(point) = &machine.last_point {
        table.pair("last point", format!("{} of {}", point.point, time(point.time_unix_ms)));
    }
    for volume in &machine.volumes {
        table
            .pair("volume", volume.id)
            .pair("  disk", &volume.disk)
            .pair("  which is", or_dash(volume.identity.as_ref()))
            .pair("  size", size(volume.size_bytes))
            .pair("  copied", percent(volume.progress))
            .pair(
                "  seq",
                format!(
                    "{} sent, {} journaled, {} committed",
                    volume.sent_seq, volume.journaled_seq, volume.committed_seq
                ),
            );
        if let Some(uri) = &volume.nbd_uri {
            table.pair("  NBD", uri).pair("  its client", CLIENT_SETTINGS);
        }
        if let Some(samples) = &volume.samples {
            let SampleReport { bytes, rounds, differences, .. } = *samples;
            let compared = format!("{}, all of it {rounds} times", size(bytes));
            table.pair("  compared", compared).pair(
                "  differences",
                samples.last.map_or("none".to_owned(), |last| {
                    let (at, seen) = (last.offset, time(last.time_unix_ms));
                    let length = size(last.length);
                    format!("{differences}, the last of {length} at byte {at}, seen {seen}")
                }),
            );
        }
        let stats = &volume.stats;
        table
            .pair("  bytes in", size(stats.bytes_in))
            .pair("  zeros", size(stats.zero_bytes))
            .pair("  duplicates", size(stats.duplicate_bytes))
            .pair("  unique", size(stats.unique_bytes))
            .pair("  stored", size(stats.stored_bytes));
    }
    table.render()
}

#[cfg(test)]
mod tests;
