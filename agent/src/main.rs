//! `farshore-agent`: replicates the disks of the server that it runs on.

use anyhow::Context;
use clap::Parser;
use farshore_agent::capture::sample::{Pace, RATE_DEFAULT};
use farshore_agent::capture::{Steps, splitter};
use farshore_agent::control::{self, Kept, keep};
use farshore_agent::disk::Allowed;
use farshore_agent::files::OsFiles;
use farshore_agent::points::Points;
use farshore_agent::rt::Reads;
use farshore_agent::service::{Service, VOLUMES_MAX};
use farshore_agent::session::dial::TlsDial;
use farshore_agent::volume::Env;
use farshore_agent::{Clock, DataDir};
use farshore_api::Exit;
use farshore_api::agent::RegisterAgent;
use farshore_api::identity::Role;
use farshore_client::{
    ClientError, ControlClient, Identity, IdentityError, Peer, Tokens, client_config, go_on,
    renew_until_dropped,
};
use farshore_program::{StopSignals, tell};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tracing_subscriber::EnvFilter;

/// Worker threads, at least.
const WORKERS_MIN: usize = 4;
/// Threads that may wait: so many for each disk that hangs, and enough for everything else.
const THREADS_MAX: usize = VOLUMES_MAX * splitter::THREADS_MAX + 512;

/// Replicates the disks of this server to a node.
#[derive(Debug, Parser)]
#[command(name = "farshore-agent", version)]
struct Arguments {
    /// Directory for the agent's identity, logs and sockets; made if absent.
    #[arg(long)]
    data: PathBuf,
    /// URL of the control plane, such as https://127.0.0.1:9442.
    #[arg(long)]
    control: String,
    /// File with an enrolment token; needed once, and again if the certificate has expired: then a
    /// token may appear there at any time. `DATA/token` if it is not given.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Most bytes of changes kept per volume while no node takes them.
    #[arg(long, default_value_t = 4 << 30)]
    log_bytes_max: u64,
    /// Bytes a second that are read of all served disks together, to compare them with what was sent;
    /// 0 to leave that.
    #[arg(long, default_value_t = RATE_DEFAULT)]
    sample_rate: u64,
    /// Disks that may be captured, whatever the control plane says: a path in which * and ? stand for any
    /// characters, ** for directories; more than once for more. The file `allow` in the directory adds to
    /// them, a line each. All disks if neither is there.
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// Read disks with plain reads even where io_uring works.
    #[arg(long)]
    portable_reads: bool,
}

fn main() -> ExitCode {
    farshore_program::begin();
    let arguments = match farshore_program::parse::<Arguments>() {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    let filter = EnvFilter::try_from_env("FARSHORE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(farshore_program::errors)
        .init();
    farshore_program::abort_on_panic();
    let workers = std::thread::available_parallelism().map_or(WORKERS_MIN, Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.max(WORKERS_MIN))
        .max_blocking_threads(THREADS_MAX)
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run(arguments));
            // What hangs in a disk would hold it up.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error).context("cannot start the runtime"),
    };
    match ended {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            tell!("farshore-agent: {error:#}");
            exit_of(&error).into()
        }
    }
}

/// The exit code that tells most about an error.
fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<IdentityError>() {
            return of_identity(error);
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return of_io(error);
        }
    }
    Exit::Usage
}

fn of_identity(error: &IdentityError) -> Exit {
    match error {
        IdentityError::Control(ClientError::Refused { code, .. }) => (*code).into(),
        IdentityError::Control(ClientError::Address { .. }) => Exit::Usage,
        IdentityError::Control(ClientError::Untrusted { .. }) => Exit::Denied,
        IdentityError::Control(_) => Exit::Unavailable,
        IdentityError::Role { .. } | IdentityError::Answer { .. } => Exit::Denied,
        IdentityError::File { error, .. } => of_io(error),
        IdentityError::Key(_) => Exit::CannotCreate,
        _ => Exit::Usage,
    }
}

fn of_io(error: &std::io::Error) -> Exit {
    match error.kind() {
        std::io::ErrorKind::NotFound => Exit::NotFound,
        std::io::ErrorKind::WouldBlock => Exit::Conflict,
        _ => Exit::from_io(error, Exit::CannotCreate),
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen().context("cannot handle signals")?;
    let data = DataDir::lock(&arguments.data).with_context(|| {
        let path = arguments.data.display();
        format!("cannot use {path}: give the agent a directory that it can write and has alone")
    })?;
    let allowed = Allowed::find(&arguments.allow, &data.path().join("allow"))?;
    tracing::info!(%allowed, "disks that may be captured");
    let (identity, tokens) = tokio::select! {
        identity = identity(&data, &arguments) => identity?,
        _ = stop.asked() => return Ok(()),
    };
    let client = ControlClient::new(&arguments.control, &identity)?;
    let node_tls = client_config(&identity, Peer::Node).context("cannot set up tls")?;
    let reads = if arguments.portable_reads { Reads::portable() } else { Reads::start() };
    let points = Arc::new(Points::default());
    let kept = Arc::new(Kept::new(Arc::new(OsFiles), data.path()));
    let service = Service::new(Env {
        data: data.path().to_owned(),
        allowed,
        files: Arc::new(OsFiles),
        reads,
        dial: Arc::new(TlsDial::new(Arc::new(node_tls), Arc::clone(&identity))),
        points: Arc::clone(&points),
        clock: Clock::start(),
        log_bytes_max: arguments.log_bytes_max,
        pace: Pace::new(arguments.sample_rate),
        steps: Steps::default(),
    });
    let assigned = watch::Sender::new(kept.load());
    let (known, look_again) = (assigned.subscribe(), Arc::new(Notify::new()));
    let register = RegisterAgent {
        hostname: hostname(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        local: is_loopback(&arguments.control),
    };
    let (reporting, ending) = (Arc::clone(&service), Arc::clone(&service));
    let followed = tokio::spawn(Arc::clone(&service).follow(assigned.subscribe()));
    let tasks = [
        tokio::spawn(keep(Arc::clone(&kept), assigned.subscribe())),
        tokio::spawn(renew_until_dropped(identity, client.clone(), Some(tokens))),
        tokio::spawn(control::poll(client.clone(), register, assigned, Arc::clone(&look_again))),
        tokio::spawn(control::report(
            client,
            move || reporting.reports(kept.trouble().as_deref()),
            move |volumes| ending.ended(volumes),
            points,
            known,
            look_again,
        )),
    ];
    farshore_program::announce(format_args!("ready {}", data.path().display()));
    let signal = stop.asked().await;
    tracing::info!("{signal}: stopping");
    followed.abort();
    let _ = followed.await;
    service.stop().await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    tracing::info!("stopped");
    Ok(())
}

/// The agent's identity, by enrolment if it has none, and where it finds a token when its certificate
/// has expired. A certificate that is not valid now ends nothing: disks are served without.
async fn identity(
    data: &DataDir,
    arguments: &Arguments,
) -> anyhow::Result<(Arc<Identity>, Tokens)> {
    let given = arguments.token_file.as_deref();
    let path = given.map_or_else(|| data.path().join("token"), Path::to_owned);
    let (identity, first) =
        go_on(data.path(), &arguments.control, Some(&path), Role::Agent).await?;
    if let Some(trouble) = identity.trouble() {
        let token_file = path.display();
        tracing::error!(trouble, %token_file, "disks are served, but nothing is replicated");
    }
    Ok((Arc::new(identity), Tokens::new(&arguments.control, &path, first)))
}

/// Whether the control plane runs on this machine: then this agent is the default for new machines.
fn is_loopback(control: &str) -> bool {
    let host = control.split("://").last().unwrap_or_default();
    ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local))
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = farshore_api::text::cleaned(name.trim());
    if name.is_empty() { "unknown".to_owned() } else { name }
}
