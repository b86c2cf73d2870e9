//! `failover`: drills and failovers.

use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};
use farshore_api::failover::{
    CleanupFailover, CreateFailover, ExportListen, Failover, FailoverCheck, FailoverKind,
    FailoverState, FailoverStep, Failovers,
};
use farshore_api::point::PointSelector;
use farshore_api::{Exit, limits, paths};
use serde_json::json;
use uuid::Uuid;

use crate::args::Global;
use crate::client::Client;
use crate::confirm::Consent;
use crate::failure::{Failure, Outcome};
use crate::job::Job;
use crate::machine::{check_name, unknown_machine};
use crate::output::{or_dash, size, time};
use crate::point::POINT_HELP;
use crate::table::Table;

/// Longest time between two reports of how far it is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Try a failover: bring a point up beside the running machine, which goes on untouched
    Drill(BringUp),
    /// Fail over: the source is lost, its replication ends, a point takes its place
    Start {
        #[command(flatten)]
        bring_up: BringUp,
        #[command(flatten)]
        consent: Consent,
    },
    /// List drills and failovers
    List,
    /// Show one of them
    Show {
        /// Its id
        id: Uuid,
    },
    /// Keep a failover for good
    Commit {
        /// Its id
        id: Uuid,
        #[command(flatten)]
        consent: Consent,
    },
    /// Try again at once: what did not come up, what is being brought back, a machine that has shut
    /// itself down
    Retry {
        /// Its id
        id: Uuid,
    },
    /// End a drill or failover: stop its processes and remove what was written to its overlay
    Cleanup {
        /// Its id
        id: Uuid,
        /// Also when it is committed
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        consent: Consent,
    },
}

/// What to bring up, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BringUp {
    /// Name of the machine
    name: String,
    #[arg(long, value_name = "POINT", default_value = "latest", help = POINT_HELP)]
    point: PointSelector,
    /// Serve the disk over NBD and start no machine
    #[arg(long)]
    serve_only: bool,
    /// How to serve the disk
    #[arg(long, value_enum, default_value = "unix")]
    listen: ListenArg,
    /// Memory of the machine in MiB [default: 1024]
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Virtual CPUs of the machine [default: 2]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Firmware image in the control plane's --firmware-dir [default: OVMF]
    #[arg(long, value_name = "PATH")]
    firmware: Option<String>,
    /// Longest wait until it runs
    #[arg(long, value_name = "DURATION", default_value = "2m",
        value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// How the export listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListenArg {
    /// On a Unix socket that only the control plane's user can open
    Unix,
    /// On a loopback TCP port; any local user can connect
    Tcp,
}

impl From<ListenArg> for ExportListen {
    fn from(listen: ListenArg) -> Self {
        match listen {
            ListenArg::Unix => Self::Unix,
            ListenArg::Tcp => Self::Tcp,
        }
    }
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    let format = global.output.unwrap_or_default();
    let client = Client::of(global)?;
    match verb {
        Verb::Drill(args) => bring_up(global, &client, args, FailoverKind::Drill).await,
        Verb::Start { bring_up: args, consent } => {
            check_name("machine", &args.name)?;
            let what = format!(
                "end the replication of {} and put its point `{}` in its place",
                args.name, args.point
            );
            if consent.dry_run {
                check(&client, global, &args).await?;
            }
            if consent.ask(&what)? {
                bring_up(global, &client, args, FailoverKind::Unplanned).await?;
            }
            Ok(())
        }
        Verb::List => format.print(&client.get::<Failovers>(paths::FAILOVERS).await?, list),
        Verb::Show { id } => format.print(&get(&client, id, Duration::ZERO).await?, show),
        Verb::Commit { id, consent } => {
            if consent.dry_run && !may_commit(&get(&client, id, Duration::ZERO).await?, consent)? {
                return Ok(());
            }
            let committed: Failover = client
                .post(&paths::failover_commit(id), &json!({}))
                .await
                .map_err(unknown_failover)?;
            format.print(&committed, show)
        }
        Verb::Retry { id } => {
            let retried: Failover = client
                .post(&paths::failover_retry(id), &json!({}))
                .await
                .map_err(unknown_failover)?;
            format.print(&retried, show)
        }
        Verb::Cleanup { id, force, consent } => cleanup(global, &client, id, force, consent).await,
    }
}

/// How long the control plane may look: at the vault's end, and until the point opens.
const CHECK_TIME_MAX: Duration = Duration::from_secs(90);

/// Prints what a failover would find.
async fn check(client: &Client, global: &Global, args: &BringUp) -> Outcome {
    let path = paths::machine_failovers_check(&args.name);
    let request = request(args, FailoverKind::Unplanned);
    let found: FailoverCheck =
        client.post_waiting(&path, &request, CHECK_TIME_MAX).await.map_err(unknown_machine)?;
    global.output.unwrap_or_default().print(&found, |found| {
        let mut table = Table::pairs();
        table
            .pair("machine", &found.machine)
            .pair("point", format!("{} of {}", found.point, time(found.point_time_unix_ms)))
            .pair("volume", found.volume);
        for check in &found.checks {
            let found = if check.ok { check.found.clone() } else { format!("NO: {}", check.found) };
            table.pair(&format!("  {}", check.what), found);
        }
        table.render()
    })?;
    match found.checks.iter().find(|check| !check.ok) {
        None => Ok(()),
        Some(check) => Err(Failure::new(
            Exit::Failure,
            format!("{} could not be failed over: {}: {}", args.name, check.what, check.found),
        )
        .hint("nothing was done")),
    }
}

fn may_commit(failover: &Failover, consent: Consent) -> Outcome<bool> {
    let id = failover.id;
    if failover.kind == FailoverKind::Drill || failover.state != FailoverState::Running {
        let state = failover.state.as_str();
        let kind = kind(failover.kind);
        let message = format!("failover {id} is a {kind} one and {state}; it cannot be committed");
        return Err(Failure::new(Exit::Conflict, message)
            .hint("only an unplanned failover that runs can be committed"));
    }
    consent.ask(&format!(
        "keep failover {id} of {} for good: its source stays fenced, and going back to it is no \
         clean-up any more",
        failover.machine
    ))
}

fn request(args: &BringUp, kind: FailoverKind) -> CreateFailover {
    CreateFailover {
        id: Some(Uuid::now_v7()),
        kind,
        point: args.point,
        serve_only: args.serve_only,
        listen: args.listen.into(),
        memory_mib: args.memory,
        cpus: args.cpus,
        firmware: args.firmware.clone(),
    }
}

async fn bring_up(global: &Global, client: &Client, args: BringUp, kind: FailoverKind) -> Outcome {
    check_name("machine", &args.name)?;
    let started = Instant::now();
    let request = request(&args, kind);
    let mut failover: Failover = client
        .post_again(&paths::machine_failovers(&args.name), &request)
        .await
        .map_err(unknown_machine)?;
    let job = Job::of_share(global, "failover");
    loop {
        let id = failover.id;
        match failover.state {
            FailoverState::Running | FailoverState::Committed => {
                return job.finish(&failover, show);
            }
            state if state.is_settled() => return Err(did_not_come_up(&failover)),
            state => job.share(share(state), || json!({ "id": id, "state": state })),
        }
        let left = args.timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            let why = if failover.detail.is_empty() { "" } else { "; " };
            let message = format!(
                "failover {id} does not run yet: it is {}{why}{}",
                failover.state.as_str(),
                failover.detail
            );
            return Err(Failure::new(Exit::TimedOut, message)
                .hint(format!("it goes on; `farshore failover show {id}` tells how it stands")));
        }
        let path = paths::failover(id);
        failover = client.get_patiently(&path, left.min(LOOK_EVERY), left).await?;
    }
}

fn did_not_come_up(failover: &Failover) -> Failure {
    let id = failover.id;
    let reason = failover.error.as_deref().unwrap_or("the control plane gives no reason");
    Failure::new(Exit::Failure, format!("failover {id} of {} failed: {reason}", failover.machine))
        .hint(match failover.kind {
            FailoverKind::Drill => format!(
                "`farshore failover retry {id}` tries again, `farshore failover cleanup {id}` removes \
                 what is left of it"
            ),
            FailoverKind::Unknown => {
                "a newer version started it: use that one to go on with it".to_owned()
            }
            FailoverKind::Unplanned => format!(
                "`farshore failover retry {id}` tries again; `farshore failover cleanup {id}` rolls back: \
                 {} then replicates again where it was",
                failover.machine
            ),
        })
}

/// About how much of the way to running lies behind.
fn share(state: FailoverState) -> f64 {
    match state {
        FailoverState::Requested => 0.1,
        FailoverState::Fencing => 0.3,
        FailoverState::Exporting => 0.5,
        FailoverState::Booting | FailoverState::Recovering => 0.8,
        _ => 1.0,
    }
}

async fn cleanup(
    global: &Global,
    client: &Client,
    id: Uuid,
    force: bool,
    consent: Consent,
) -> Outcome {
    let failover = get(client, id, Duration::ZERO).await?;
    let is_ended = matches!(failover.state, FailoverState::CleaningUp | FailoverState::CleanedUp);
    if failover.committed && !force && !is_ended {
        let message = format!("failover {id} is committed; {}", loss(&failover));
        return Err(Failure::new(Exit::Conflict, message)
            .hint("--force ends a committed failover too, and asks before"));
    }
    // What a drill wrote is meant to go; what replaced a lost machine is not, in whatever state it is.
    let may_be_only_copy = failover.kind == FailoverKind::Unplanned && !is_ended;
    if may_be_only_copy || consent.dry_run {
        let what = format!("end failover {id} of {}; {}", failover.machine, loss(&failover));
        if !consent.ask(&what)? {
            return Ok(());
        }
    }
    let mut failover: Failover = client
        .post(&paths::failover_cleanup(id), &CleanupFailover { force })
        .await
        .map_err(|failure| {
            unknown_failover(failure)
                .hint_on(Exit::Conflict, || "--force ends a committed failover too".to_owned())
        })?;
    let started = Instant::now();
    let longest = Duration::from_millis(limits::WAIT_MS_MAX);
    while failover.state == FailoverState::CleaningUp && started.elapsed() < longest {
        failover = get(client, id, Duration::from_secs(1)).await?;
    }
    if failover.state != FailoverState::CleanedUp {
        let message = format!("failover {id} is not cleaned up yet: {}", failover.state.as_str());
        return Err(Failure::new(Exit::TimedOut, message)
            .hint(format!("`farshore failover show {id}` tells how it stands")));
    }
    global.output.unwrap_or_default().print(&failover, show)
}

/// What goes with a failover that is ended, one clause.
fn loss(failover: &Failover) -> String {
    let state = failover.state.as_str();
    let served = |step: &&FailoverStep| step.state == FailoverState::Exporting;
    let since = failover.steps.iter().find(served).map(|step| time(step.at_unix_ms));
    let written = match (failover.overlay_bytes, since) {
        (Some(bytes), Some(since)) => format!(
            "it is {state}, and all that was written over the point since {since} is deleted for good: \
             {} in its overlay",
            size(bytes)
        ),
        (Some(bytes), None) => {
            format!("it is {state}, and {} in its overlay is deleted", size(bytes))
        }
        (None, _) => format!("it is {state} and has no overlay: nothing written is deleted"),
    };
    let then = match (failover.kind, failover.committed) {
        (FailoverKind::Drill, _) => "; the machine itself is not touched".to_owned(),
        (FailoverKind::Unknown, _) => "; a newer version knows what that means".to_owned(),
        (FailoverKind::Unplanned, true) => {
            "; no other copy of that exists, and the source stays fenced".to_owned()
        }
        (FailoverKind::Unplanned, false) => {
            format!("; no other copy of that exists, and {} replicates again", failover.machine)
        }
    };
    written + &then
}

async fn get(client: &Client, id: Uuid, wait: Duration) -> Outcome<Failover> {
    client.get_waiting(&paths::failover(id), wait).await.map_err(unknown_failover)
}

fn unknown_failover(failure: Failure) -> Failure {
    failure.hint_on(Exit::NotFound, || "`farshore failover list` shows them".to_owned())
}

fn kind(kind: FailoverKind) -> &'static str {
    match kind {
        FailoverKind::Drill => "drill",
        FailoverKind::Unplanned => "unplanned",
        FailoverKind::Unknown => "unknown",
    }
}

fn list(failovers: &Failovers) -> String {
    let mut table = Table::new(
        &["ID", "MACHINE", "KIND", "STATE", "REQUESTED", "POINT", "DETAIL"],
        "no drills or failovers",
    );
    for failover in &failovers.failovers {
        let detail = failover.error.as_deref().unwrap_or(&failover.detail);
        table.row([
            failover.id.to_string(),
            failover.machine.clone(),
            kind(failover.kind).to_owned(),
            failover.state.as_str().to_owned(),
            or_dash(failover.steps.first().map(|step| time(step.at_unix_ms))),
            or_dash(failover.point),
            detail.to_owned(),
        ]);
    }
    table.render()
}

fn show(failover: &Failover) -> String {
    let mut table = Table::pairs();
    table
        .pair("id", failover.id)
        .pair("machine", &failover.machine)
        .pair("kind", kind(failover.kind))
        .pair("state", failover.state.as_str())
        .pair("committed", if failover.committed { "yes" } else { "no" })
        .pair("point", or_dash(failover.point));
    let mut optional = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            table.pair(name, value);
        }
    };
    optional("detail", Some(failover.detail.clone()));
    optional("error", failover.error.clone());
    optional("overlay", failover.overlay_bytes.map(size));
    optional("NBD", failover.nbd_uri.clone());
    optional("console", failover.console_path.clone());
    optional("export pid", failover.export_pid.map(|pid| pid.to_string()));
    optional("machine pid", failover.machine_pid.map(|pid| pid.to_string()));
    let first = failover.steps.first().map_or(0, |step| step.at_unix_ms);
    for step in &failover.steps {
        let after = step.at_unix_ms.saturating_sub(first);
        table.pair(&format!("  {}", step.state.as_str()), format!("after {after} ms"));
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failover(state: FailoverState) -> Failover {
        Failover {
            id: Uuid::from_u128(1),
            machine: "web".to_owned(),
            kind: FailoverKind::Drill,
            point: Some(Uuid::from_u128(2)),
            volume: Uuid::from_u128(3),
            serve_only: true,
            state,
            committed: false,
            machine_is_down: false,
            overlay_bytes: Some(8192),
            detail: String::new(),
            nbd_uri: Some("nbd+unix:///?socket=/s".to_owned()),
            export_pid: Some(42),
            machine_pid: None,
            console_path: None,
            error: None,
            steps: vec![
                FailoverStep { state: FailoverState::Requested, at_unix_ms: 1_000 },
                FailoverStep { state: FailoverState::Running, at_unix_ms: 1_250 },
            ],
        }
    }

    #[test]
    fn a_drill_in_json_has_its_uri() {
        let json = serde_json::to_value(failover(FailoverState::Running)).unwrap();
        assert_eq!(json["nbd_uri"], "nbd+unix:///?socket=/s");
        assert_eq!(json["state"], "running");
    }

    #[test]
    fn people_see_where_it_serves_and_how_long_it_took() {
        let text = show(&failover(FailoverState::Running));
        assert!(text.contains("nbd+unix"), "{text}");
        assert!(text.contains("after 250 ms"), "{text}");
        assert!(!text.contains("error"), "{text}");
        assert!(list(&Failovers { failovers: vec![] }).contains("no drills"));
    }

    #[test]
    fn a_failed_one_says_why_and_how_to_get_rid_of_it() {
        let mut failed = failover(FailoverState::Failed);
        failed.error = Some("the vault is gone".to_owned());
        let failure = did_not_come_up(&failed);
        assert!(failure.message.ends_with("failed: the vault is gone"), "{failure}");
        assert!(failure.hint.unwrap().contains("failover cleanup"));
        failed.kind = FailoverKind::Unplanned;
        let hint = did_not_come_up(&failed).hint.unwrap();
        assert!(hint.contains("failover retry") && hint.contains("rolls back"), "{hint}");
    }

    #[test]
    fn what_would_be_lost_is_named() {
        let mut lost = failover(FailoverState::Failed);
        lost.kind = FailoverKind::Unplanned;
        lost.committed = true;
        lost.steps[0].state = FailoverState::Exporting;
        let text = loss(&lost);
        assert!(text.contains("8.00 KiB in its overlay"), "{text}");
        assert!(
            text.contains("since 1970-01-01T00:00:01Z") && text.contains("no other copy"),
            "{text}"
        );
        lost.overlay_bytes = None;
        assert!(loss(&lost).contains("nothing written is deleted"), "{}", loss(&lost));
    }
}
