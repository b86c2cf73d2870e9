//! The `serve` command: puts the parts together, starts the shards, and stops them in order.

use crate::acceptor::{self, TlsSettings};
use crate::assignments::Assignments;
use crate::claims::Claimant;
use crate::control::Control;
use crate::dedup::Dedup;
use crate::derived::{self, Maps};
use crate::descriptors::Descriptors;
use crate::failure::Failure;
use crate::fatal::{Cause, Fatal};
use crate::learning;
use crate::metrics::Metrics;
use crate::recover::{Place, recover};
use crate::register::{Register, open_index};
use crate::rt::{Mailbox, Post, Prepared, Ring, RtKind, Threads, mailbox, prepare};
use crate::services::{self, Services};
use crate::shard::{self, JournalDir, Message, Recovery, ShardParts, patience};
use crate::state::{Logs, State};
use anyhow::Context;
use farshore_api::exit::Exit;
use farshore_api::identity::Role;
use farshore_client::{
    ControlClient, Identity, IdentityError, establish, renew_until_dropped, server_config,
};
use farshore_engine::shard::Settings;
use farshore_engine::tenure::Opening;
use farshore_ingest::journal::Owner;
use farshore_program::{StopSignals, private_dir};
use farshore_vault::register::Reader;
use farshore_vault::{Access, Store, Vault, key_file};
use std::fs::{DirBuilder, File, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;

/// Messages that wait for one shard.
const MAILBOX_MAX: usize = 4096;
/// After SIGTERM a shard has this long to ship what it holds; the rest stays in its journal.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const SHARDS_MAX: usize = 64;

// What the control plane lets a volume grow to is taken.
const _: () =
    assert!(farshore_api::limits::GROWN_BYTES_MAX <= farshore_proto::limits::VOLUME_BYTES_MAX);

/// Settings of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Directory of the node: identity, journal, index.
    #[arg(long)]
    data: PathBuf,
    /// Where agents connect.
    #[arg(long, default_value = "0.0.0.0:9443")]
    listen: SocketAddr,
    /// Address that agents are told, if it differs from --listen.
    #[arg(long)]
    advertise: Option<SocketAddr>,
    /// URL of the vault.
    #[arg(long)]
    vault: String,
    /// File with a key of the vault: a node key, or the recovery key.
    #[arg(long, env = key_file::KEY_FILE_ENV)]
    key_file: PathBuf,
    /// URL of the control plane.
    #[arg(long)]
    control: String,
    /// File with an enrolment token, for the first start.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Number of shards at the first start; default one per core.
    #[arg(long)]
    shards: Option<usize>,
    /// What drives the shards.
    #[arg(long, value_enum, default_value = "auto")]
    runtime: RtKind,
    /// Memory of one shard for frames that are not in the vault yet, in MiB.
    #[arg(long, env = "FARSHORE_NODE_CACHE_MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(16..=65_536))]
    cache_mib: u64,
    /// zstd level of new chunks.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=19))]
    zstd_level: i32,
    /// Seconds without a whole frame, and for three marks, after which a session is ended.
    #[arg(long, value_name = "SECONDS", env = "FARSHORE_NODE_IDLE", default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle: u64,
}

/// Runs the node until SIGTERM or a fatal error; what no put may wait for runs `aside`.
pub(crate) async fn run(args: ServeArgs, aside: &Handle) -> anyhow::Result<()> {
    let descriptors = Descriptors::raise();
    let wrapping_key = key_file::read(&args.key_file)?;
    let store = Store::open(&args.vault, Access::Write)?;
    let vault = Vault::open(&store, &wrapping_key).await?;
    drop(wrapping_key);
    // With connections of its own: one moves on the threads of whoever made it.
    let store = Store::open(&args.vault, Access::Write)?;
    let aside = Aside { vault: vault.through(store), threads: aside.clone() };
    vault.check_write_once().await?;
    private_dir(&args.data, LOCK_FILE).map_err(|error| {
        let text = format!("cannot use {}: {error}", args.data.display());
        Failure::new(Exit::from_io(&error, Exit::CannotCreate), text)
    })?;
    let _lock = lock(&args.data)?;
    let listener = acceptor::listen(args.listen).map_err(|error| {
        let text = format!(
            "cannot listen on {}: {error}; end the program that has the port, or choose another \
             with --listen",
            args.listen
        );
        Failure::new(Exit::Unavailable, text)
    })?;
    let address = args.advertise.unwrap_or(listener.local_addr()?);
    let token_file = args.token_file.as_deref();
    let identity = Arc::new(establish(&args.data, &args.control, token_file, Role::Node).await?);
    if identity.is_expired() {
        tracing::warn!(
            "the node's certificate has expired: it is renewed as soon as the control plane \
             answers; if that refuses, enrol the node again with --token-file"
        );
    }
    let tls = server_config(&identity).map_err(IdentityError::from)?;
    let tls = Arc::new(TlsSettings::new(tls));
    let client = ControlClient::new(&args.control, &identity)?;
    let node = Node::start(&args, &vault, tls, &identity, (descriptors, &aside)).await?;
    let control = Control {
        client: client.clone(),
        dir: args.data.clone(),
        address,
        incarnation: node.incarnation,
        assignments: Arc::clone(&node.assignments),
        shards: node.posts.clone(),
        metrics: Arc::clone(&node.metrics),
        maps: Arc::clone(&node.maps),
        report_now: Arc::default(),
    };
    control.load_cached();
    let (posts, metrics) = (node.posts.clone(), Arc::clone(&node.metrics));
    std::thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || acceptor::run(&listener, &posts, &metrics, descriptors))?;
    tokio::spawn(control.clone().follow());
    tokio::spawn(control.clone().live());
    tokio::spawn(control.report());
    tokio::spawn(renew_until_dropped(identity, client, None));
    farshore_program::announce(format_args!("ready {address}"));
    node.until_stopped().await
}

/// What no put may wait for.
struct Aside {
    vault: Vault,
    threads: Handle,
}

/// The running shards.
struct Node {
    incarnation: u64,
    assignments: Arc<Assignments>,
    metrics: Arc<Metrics>,
    maps: Arc<Maps>,
    posts: Vec<Post<Message>>,
    threads: Vec<JoinHandle<()>>,
    fatal: Fatal,
    vault: Vault,
    dedup: Dedup,
}

impl Node {
    async fn start(
        args: &ServeArgs,
        vault: &Vault,
        tls: Arc<TlsSettings>,
        identity: &Arc<Identity>,
        (descriptors, aside): (Descriptors, &Aside),
    ) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let wanted = args.shards.unwrap_or(cores).clamp(1, SHARDS_MAX);
        let state = State::open(&args.data, vault.id().into(), wanted)?;
        let incarnation = state.incarnation;
        // Before the long part: what this machine does not allow is said at once.
        let (runtime, executors) = prepare(args.runtime, state.logs.len()).map_err(|error| {
            let text =
                format!("{error}; raise the limit, or start the node with --runtime threads");
            Failure::new(Exit::SystemMissing, text)
        })?;
        let Aside { vault: reading, threads: aside } = aside;
        let known = open_dedup(args, reading).await?;
        let (dedup, index) = (known.dedup, known.folder);
        aside.spawn(learning::run(reading.clone(), dedup.clone(), index));
        let shards = state.logs.len();
        let logs = Logs::new(state, &args.data);
        let register = Register::new(reading.clone(), aside.clone(), dedup.clone(), known.reader);
        let recoveries = recover_all(args, vault, (&logs, shards, incarnation), &register).await?;

        let assignments = Arc::new(Assignments::new(recoveries.len()));
        let metrics = Arc::new(Metrics::default());
        metrics.journal_damaged(recoveries.iter().map(|recovery| recovery.damages).sum());
        let fatal = Fatal::default();
        let (services, queue) = Services::new();
        let (posts, boxes): (Vec<Post<Message>>, Vec<Mailbox<Message>>) =
            recoveries.iter().map(|_| mailbox(MAILBOX_MAX)).unzip();
        let maps = Maps::new(reading.clone(), Arc::clone(&metrics), aside.clone());
        let claimant = Claimant::new(reading, &posts, &metrics, &assignments, aside);
        let reached = (posts.clone(), Arc::clone(&metrics), Arc::clone(&maps));
        tokio::spawn(services::run(vault.clone(), queue, reached, claimant));
        aside.spawn(derived::write_runs(reading.clone(), dedup.clone()));
        aside.spawn(dedup.clone().look_at_segments(reading.clone()));
        aside.spawn(register.clone().follow(logs.clone(), posts.clone(), Arc::clone(&metrics)));

        let mut threads = Vec::new();
        let shards = recoveries.into_iter().zip(boxes).zip(executors);
        for (id, ((recovery, inbox), executor)) in shards.enumerate() {
            let parts = ShardParts {
                id,
                logs: logs.clone(),
                log: recovery.opening.log,
                incarnation: recovery.opening.incarnation,
                settings: settings(args)?,
                journal: journal_dir(args, vault, id, &recovery.opening),
                keys: Arc::new(vault.ring().clone()),
                services: services.clone(),
                shards: posts.clone(),
                assignments: Arc::clone(&assignments),
                tls: Arc::clone(&tls),
                identity: Arc::clone(identity),
                dedup: dedup.clone(),
                register: register.clone(),
                metrics: Arc::clone(&metrics),
                fatal: fatal.clone(),
                descriptors,
                patience: patience(Duration::from_secs(args.idle)),
            };
            threads.push(start_shard(runtime, executor, parts, recovery, inbox)?);
        }
        tracing::info!(?runtime, shards = threads.len(), "started");
        Ok(Self {
            incarnation,
            assignments,
            metrics,
            maps,
            posts,
            threads,
            fatal,
            vault: vault.clone(),
            dedup,
        })
    }

    async fn until_stopped(self) -> anyhow::Result<()> {
        let mut stop = StopSignals::listen()?;
        tokio::select! {
            _ = stop.asked() => {}
            cause = self.fatal.raised() => return Err(fail(cause)),
        }
        tracing::info!("stopping");
        self.fatal.stopping();
        self.posts.iter().for_each(Post::finish);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().filter(|thread| !thread.is_finished()).for_each(|thread| {
                if thread.join().is_err() {
                    tracing::error!("a shard panicked");
                }
            });
        });
        tokio::select! {
            ended = joined => ended.context("wait for the shards")?,
            cause = self.fatal.raised() => return Err(fail(cause)),
        }
        derived::write_last_run(&self.vault, &self.dedup).await;
        Ok(())
    }
}

/// What is known of chunks.
struct KnownChunks {
    dedup: Dedup,
    /// The folder that it is kept in.
    folder: PathBuf,
    /// What was deleted in the vault since it was learnt; or why nobody can tell.
    reader: anyhow::Result<Reader>,
}

async fn open_dedup(args: &ServeArgs, vault: &Vault) -> anyhow::Result<KnownChunks> {
    let folder = args.data.join("index");
    make_dir(&folder)?;
    let (index, reader) = open_index(&folder, vault).await?;
    let dedup = Dedup::new(vault.vault_keys(), index, args.zstd_level);
    let dedup = dedup.context("start the thread of the chunk index")?;
    Ok(KnownChunks { dedup, folder, reader })
}

fn fail(cause: &Cause) -> anyhow::Error {
    Failure::new(cause.exit(), cause.to_string()).into()
}

async fn recover_all(
    args: &ServeArgs,
    vault: &Vault,
    (logs, shards, incarnation): (&Logs, usize, u64),
    register: &Register,
) -> anyhow::Result<Vec<Recovery>> {
    // All at the same time: most of it is waiting for the store.
    let recoveries = (0..shards).map(|shard| async move {
        let journal = journal_path(args, shard);
        make_dir(&journal)?;
        let place = Place { vault, logs, register, shard, journal: &journal };
        recover(&place, incarnation).await
    });
    let recoveries = futures::future::try_join_all(recoveries).await?;
    let stated = recoveries.iter().map(|recovery| recovery.opening.ledger.register());
    register.begin(stated).await?;
    tracing::info!(shards, "recovered");
    Ok(recoveries)
}

fn journal_path(args: &ServeArgs, id: usize) -> PathBuf {
    args.data.join("journal").join(id.to_string())
}

fn settings(args: &ServeArgs) -> anyhow::Result<Settings> {
    Ok(Settings { cache_bytes: usize::try_from(args.cache_mib << 20)?, ..Settings::default() })
}

fn journal_dir(args: &ServeArgs, vault: &Vault, id: usize, opening: &Opening) -> JournalDir {
    let (number, key) = vault.newest_key();
    let log = opening.log;
    JournalDir {
        path: journal_path(args, id),
        owner: Owner { vault: vault.id(), log, number, key: Arc::new(key.clone()) },
        first_file: opening.first_file,
    }
}

fn start_shard(
    runtime: RtKind,
    executor: Prepared,
    parts: ShardParts,
    recovery: Recovery,
    inbox: Mailbox<Message>,
) -> anyhow::Result<JoinHandle<()>> {
    let (fatal, id) = (parts.fatal.clone(), parts.id);
    let thread = match runtime {
        RtKind::Ring | RtKind::Auto => executor.run(move || async move {
            shard::run::<Ring>(parts, recovery, inbox, DRAIN_MAX).await;
            fatal.shard_ended(id);
        }),
        RtKind::Threads => executor.run(move || async move {
            shard::run::<Threads>(parts, recovery, inbox, DRAIN_MAX).await;
            fatal.shard_ended(id);
        }),
    };
    thread.with_context(|| format!("start shard {id}"))
}

/// Held for as long as the directory is used.
const LOCK_FILE: &str = "lock";

fn make_dir(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        let text = format!("cannot create {}: {error}", path.display());
        Failure::new(Exit::CannotCreate, text).into()
    })
}

/// One node per directory: two would write one journal.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK_FILE);
    let file = File::create(&path).map_err(|error| {
        Failure::new(Exit::CannotCreate, format!("cannot create {}: {error}", path.display()))
    })?;
    file.try_lock().map_err(|error| unlocked(dir, &path, error))?;
    Ok(file)
}

/// Why a directory is not ours alone: what the file system cannot do is no other node.
fn unlocked(dir: &Path, path: &Path, error: TryLockError) -> Failure {
    match error {
        TryLockError::WouldBlock => {
            let text = format!("another node runs on {}; end it first", dir.display());
            Failure::new(Exit::Conflict, text)
        }
        TryLockError::Error(error) => {
            let text = format!("cannot lock {}: {error}", path.display());
            Failure::new(Exit::from_io(&error, Exit::CannotCreate), text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// P5: two nodes are one thing, a file system without locks is another.
    #[test]
    fn a_directory_that_cannot_be_locked_is_told_from_one_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another node runs on"), "{error}");
        drop(held);
        let path = dir.path().join(LOCK_FILE);
        let error = io::Error::from_raw_os_error(rustix::io::Errno::NOLCK.raw_os_error());
        let text = error.to_string();
        let failure = unlocked(dir.path(), &path, TryLockError::Error(error));
        assert_eq!(failure.text, format!("cannot lock {}: {text}", path.display()));
        assert_ne!(failure.exit, Exit::Conflict);
    }
}
