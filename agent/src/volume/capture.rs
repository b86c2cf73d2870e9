//! Running the capture of a volume: begun when its disk is there, begun again when it comes back.

use super::others::mind_others;
use super::{RETRY_PAUSE, Running, TRIES, Tasks};
use crate::capture::Call;
use crate::capture::gate::Gate;
use crate::capture::hashes::Hashes;
use crate::capture::intent::{IntentMap, Recovered};
use crate::capture::prints::{PRINTS_FILE, Prints};
use crate::capture::scan::{ScanError, Scanner};
use crate::capture::splitter::{Served, Splitter};
use crate::disk::{Access, Disk, DiskError, Identity, Recorded};
use crate::mark::{Promise, Requests, mark_served};
use crate::stream::{DiskFacts, HASHES_FILE};
use farshore_api::agent::DiskIdentity;
use farshore_api::machine::Capture;
use farshore_engine::doubt::{Regions, Settings};
use farshore_nbd::{Address, BindError, Counters, Server};
use farshore_proto::limits::blocks_of;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Between two looks at the disk's path and size.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// How long clients have to come back after the agent was started again.
const RECONNECT_TIME: Duration = Duration::from_secs(60);
/// Longest path of a socket, without the terminating zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Name of the NBD export.
const EXPORT_NAME: &str = "disk";

/// Why a capture ended. The text is for the operator.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the agent cannot use {}: {source}; give it space and permissions there", path.display())]
    Data { path: PathBuf, source: io::Error },
    #[error(
        "disk {} cannot be flushed: {source}; what it holds may not be durable, so it is not captured",
        path.display()
    )]
    Flush { path: PathBuf, source: io::Error },
    #[error(
        "disk {} could not be flushed: {told}; what was written to it last may be lost: check the disk, \
         then end what uses it, and all of it is read again when it is used anew", path.display()
    )]
    NotFlushed { path: PathBuf, told: String },
    #[error(
        "the disk is to be captured in a way that this agent does not know: update farshore-agent here"
    )]
    Unknown,
    #[error("the disk cannot be served: {source}")]
    Bind { source: BindError },
    #[error("disk {} cannot be scanned: {source}", path.display())]
    Scan { path: PathBuf, source: io::Error },
    #[error("the server of the disk ended: {source}")]
    Ended { source: oneshot::error::RecvError },
    #[error("the disk has grown: it is opened anew")]
    Grown,
}

impl Running {
    /// Captures until an orderly stop; whatever is wrong with the disk is told and tried again.
    pub(super) async fn capture_until_stopped(&mut self) {
        loop {
            let ended = self.capture().await;
            self.opening.stream.set_splitter(None);
            self.facts.serve(None);
            self.facts.captured(false);
            match ended {
                Ok(()) => return,
                Err(CaptureError::Grown) => continue,
                Err(_) if self.facts.is_detached() => return,
                Err(error) => self.facts.fail(error.to_string()),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_PAUSE) => {}
                _ = self.stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn capture(&mut self) -> Result<(), CaptureError> {
        let assigned = self.assigned.borrow().clone();
        let access = match assigned.capture {
            Capture::Nbd => Access::Write,
            Capture::Scan => Access::Read,
            Capture::Unknown => return Err(CaptureError::Unknown),
        };
        let state = self.opening.stream.state.get();
        let size_bytes = (state.size_bytes > 0).then_some(state.size_bytes);
        let recorded = Recorded { size_bytes, identity: state.identity };
        let path = PathBuf::from(&assigned.disk);
        let env = Arc::clone(&self.env);
        let open = move || {
            env.allowed.check(&path)?;
            Disk::open(&path, access, &recorded)
        };
        let disk = blocking(move || Ok(open()));
        let disk = Arc::new(disk.await.map_err(|source| self.data_error(source))??);
        self.facts.identify(told_identity(disk.identity()));
        match assigned.capture {
            Capture::Nbd => self.serve(disk).await,
            Capture::Scan => self.scan(disk).await,
            Capture::Unknown => Err(CaptureError::Unknown),
        }
    }

    pub(super) fn data_error(&self, source: io::Error) -> CaptureError {
        CaptureError::Data { path: self.opening.dir.clone(), source }
    }

    fn requests(&self) -> Requests {
        let log = Arc::clone(&self.opening.stream.log);
        let told = (Arc::clone(&self.facts), self.env.clock);
        Requests::new(self.assigned.clone(), log, Arc::clone(&self.marks_set), told)
    }

    async fn serve(&mut self, disk: Arc<Disk>) -> Result<(), CaptureError> {
        let regions = Regions::in_blocks(blocks_of(disk.size_bytes()));
        let intents = self.open_intents(&disk).await?;
        let prints = self.open_prints(&disk, &intents.1).await?;
        let stream = Arc::clone(&self.opening.stream);
        let steps = self.env.steps.clone();
        let (log, progress) = (Arc::clone(&stream.log), Arc::clone(&stream.progress));
        let (settings, clock) = (Settings::default(), self.env.clock);
        let kept = (Arc::clone(&progress), prints.clone());
        let gate = Gate::new(settings, regions, intents, kept, clock, steps.clone());
        let splitter = Splitter::new(
            Arc::clone(&disk),
            log,
            gate,
            (progress, Arc::clone(&stream.unknown), prints.clone()),
            steps,
        );
        let reads = self.open_reads(&disk).await?;
        let sampling = self.sampling(&disk, &splitter, prints).await?;
        let server = self.bind(Arc::new(Served(Arc::clone(&splitter)))).await;
        let server = server.map_err(|source| CaptureError::Bind { source })?;
        stream.set_splitter(Some(Arc::clone(&splitter)));
        self.facts.serve(Some(server.uri()));
        self.facts.captured(true);
        // What was noticed before this start has put the whole disk in doubt.
        self.facts.settle();
        self.facts.recover();
        self.start_session();
        tracing::info!(volume = %stream.volume, disk = %disk.path().display(), uri = server.uri(),
            size_bytes = disk.size_bytes(), reads = ?reads.backend(), "the disk is served");
        let clients = server.counters();
        let (shut, is_shut) = oneshot::channel::<()>();
        let (gone, is_gone) = oneshot::channel();
        let mut tasks = Tasks(vec![
            tokio::spawn(Arc::clone(&splitter).copy_what_is_due(reads, stream.joined())),
            tokio::spawn(Arc::clone(&splitter).flush_when_asked()),
            tokio::spawn(mark_served(Arc::clone(&splitter), self.requests())),
            tokio::spawn(mind_others(Arc::clone(&disk), stream, Arc::clone(&self.facts))),
        ]);
        tasks.0.extend(sampling.map(|sampling| tokio::spawn(sampling.run())));
        let serving = tokio::spawn(async move {
            server.serve(async { drop(is_shut.await) }).await;
            let _ = gone.send(());
        });
        let ended = self.watch(&disk, Some((&splitter, &clients))).await;
        // From here on no new request begins, and those under way end.
        let _ = shut.send(());
        let served = is_gone.await.map_err(|source| CaptureError::Ended { source });
        drop((serving, tasks));
        self.opening.stream.set_splitter(None);
        let served = ended.and(served);
        if served.is_ok() {
            self.stop_served(&splitter, &disk).await;
        }
        splitter.settled().await;
        if splitter.flush_failure().is_some() {
            // What the system keeps in memory may not be what the disk has.
            let steps = self.env.steps.clone();
            let forgotten = blocking(move || {
                steps.call(Call::Forget)?;
                disk.forget_cached()
            })
            .await;
            forgotten.map_err(|source| self.data_error(source))?;
        }
        served
    }

    async fn bind(&self, backend: Arc<Served>) -> Result<Server<Served>, BindError> {
        let dir = &self.opening.dir;
        let address = match self.opening.nbd_port {
            Some(port) => Address::Tcp((Ipv4Addr::LOCALHOST, port).into()),
            None => Address::Unix(socket_path(dir)),
        };
        let bound = Server::bind(&address, EXPORT_NAME, Arc::clone(&backend)).await;
        match (bound, &address, short_socket_path(dir)) {
            // The directory takes no socket.
            (Err(BindError::Io { .. }), Address::Unix(path), Some(short)) if *path != short => {
                Server::bind(&Address::Unix(short), EXPORT_NAME, backend).await
            }
            (bound, ..) => bound,
        }
    }

    /// Flushes the disk, opens its intents and notes it.
    async fn open_intents(
        &mut self,
        disk: &Arc<Disk>,
    ) -> Result<(IntentMap, Recovered), CaptureError> {
        let (dir, is_new) = (self.opening.dir.clone(), self.opening.is_new);
        let (stream, disk) = (Arc::clone(&self.opening.stream), Arc::clone(disk));
        // Only the first capture of a run follows one that may have been killed. Power cuts leave times
        // that fit nothing.
        let ran_until_ns = self.opening.ran_until_ns.take();
        let (boot, steps) = (boot(), self.env.steps.clone());
        self.tries += 1;
        let is_forced = self.tries >= TRIES;
        let ran_until_ns =
            ran_until_ns.filter(|_| boot.is_some() && stream.state.get().boot == boot);
        let opened = blocking(move || {
            let facts = DiskFacts {
                size_bytes: disk.size_bytes(),
                identity: disk.identity().clone(),
                changed_ns: disk.changed_ns()?,
                ran_until_ns,
            };
            let mut is_of_disk = false;
            // What the system keeps in memory behind a failed flush is not what the disk has, and it tells of
            // the failure once.
            let mut sync_disk = || {
                let synced = disk.sync().inspect_err(|_| is_of_disk = true);
                if synced.is_err() {
                    stream.reread();
                }
                steps.call(Call::Forget)?;
                disk.forget_cached()?;
                synced
            };
            let opened = stream.open_intents((facts, is_new), is_forced, &mut sync_disk);
            let opened = opened.and_then(|opened| {
                match stream.state.update(|state| state.boot.clone_from(&boot)) {
                    Err(error) if !is_forced => Err(error),
                    _ => Ok(opened),
                }
            });
            Ok(opened.map_err(|source| match is_of_disk {
                true => CaptureError::Flush { path: disk.path().to_owned(), source },
                false => CaptureError::Data { path: dir, source },
            }))
        });
        let opened = opened.await.map_err(|source| self.data_error(source))?;
        if opened.is_ok() {
            self.tries = 0;
        }
        opened
    }

    /// Looks after the disk until an orderly stop or a detach (`Ok`), or until it must be opened anew.
    async fn watch(
        &mut self,
        disk: &Arc<Disk>,
        served: Option<(&Arc<Splitter>, &Counters)>,
    ) -> Result<(), CaptureError> {
        // Clients of a disk that was to end before the agent was started again get time to come back.
        let is_late = self.facts.is_detached();
        let mut was_cut = false;
        let wait_until = Instant::now() + if is_late { RECONNECT_TIME } else { Duration::ZERO };
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_PAUSE) => {}
                _ = self.stop.wait_for(|stop| *stop) => return Ok(()),
            }
            let has_clients = served
                .is_some_and(|(_, clients)| clients.connections_open.load(Ordering::Relaxed) > 0);
            if self.facts.is_detached() && !has_clients && Instant::now() >= wait_until {
                return Ok(());
            }
            if let Some((splitter, _)) = served
                && let Some(told) = splitter.flush_failure()
            {
                let (path, told) = (disk.path().to_owned(), told.to_owned());
                let error = CaptureError::NotFlushed { path, told };
                // Who is connected was told that a flush failed, and must not be told otherwise.
                if !has_clients {
                    return Err(error);
                }
                self.facts.fail(error.to_string());
                continue;
            }
            let checked = Arc::clone(disk);
            let checked = blocking(move || Ok(checked.check())).await;
            match checked.map_err(|source| self.data_error(source))? {
                Ok(()) => {
                    was_cut = false;
                    self.facts.warn(None);
                    self.settle_size(disk, served.map(|(splitter, _)| splitter));
                }
                Err(DiskError::Grown { size_bytes, .. }) => {
                    was_cut = false;
                    self.facts.recover();
                    let splitter = served.map(|(splitter, _)| splitter);
                    if self.grow(disk, size_bytes, splitter).await? {
                        return Err(CaptureError::Grown);
                    }
                }
                // As below; but its name is somebody else's, and that will be in the way later.
                Err(error @ DiskError::Renamed { .. }) if served.is_some() => {
                    self.facts.warn(Some(error.to_string()));
                }
                // The open file is still the disk: what runs on it goes on, and so does its copy.
                // So is one that is smaller by now, as far as it goes.
                Err(error @ DiskError::Resized { .. }) if served.is_some() => {
                    // What was cut off is gone, even if the disk grows again.
                    if !was_cut {
                        self.doubt_whole_disk().await?;
                        was_cut = true;
                    }
                    self.facts.fail(error.to_string());
                }
                Err(error @ DiskError::Missing { .. }) => self.facts.fail(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// All of the disk is read again, whatever was read of it.
    async fn doubt_whole_disk(&self) -> Result<(), CaptureError> {
        let stream = Arc::clone(&self.opening.stream);
        let begun = blocking(move || {
            stream.reread();
            Ok(())
        });
        begun.await.map_err(|source| self.data_error(source))
    }

    /// The orderly end: a last mark, everything durable, no intent left, and a note of that.
    async fn stop_served(&self, splitter: &Arc<Splitter>, disk: &Arc<Disk>) {
        let stream = Arc::clone(&self.opening.stream);
        let mut requests = self.requests();
        let before = requests.before();
        if splitter.is_consistent() {
            let promise = Promise::served(splitter.unknown_blocks());
            let set = splitter.elsewhere(move || requests.set_last(&before, promise)).await;
            if let Err(error) = set {
                tracing::warn!(volume = %stream.volume, %error, "no last mark");
            }
        }
        let stopped = async {
            splitter.flush_last().await?;
            splitter.gate().stop().await?;
            let (disk, stream) = (Arc::clone(disk), Arc::clone(&stream));
            let splitter = Arc::clone(splitter);
            blocking(move || {
                stream.log.sync()?;
                disk.sync_all()?;
                let changed_ns = disk.changed_ns()?;
                // Nobody minds others any more: that time may be theirs. And what was found to differ is
                // not read again any more.
                if disk.is_disturbed() || splitter.differs() {
                    return stream.disturb();
                }
                stream.state.update(|state| state.stopped_ns = Some(changed_ns))
            })
            .await
        };
        if let Err(error) = stopped.await {
            tracing::warn!(volume = %stream.volume, %error, "not stopped in order");
        }
    }

    async fn scan(&mut self, disk: Arc<Disk>) -> Result<(), CaptureError> {
        self.adopt_scanned(&disk).await?;
        self.facts.recover();
        self.start_session();
        let stream = Arc::clone(&self.opening.stream);
        let mut is_joined = stream.joined();
        tokio::select! {
            _ = is_joined.wait_for(|joined| *joined) => {}
            ended = self.watch(&disk, None) => return ended,
        }
        let mut requests = self.requests();
        loop {
            let scanner = self.scanner(&disk).await?;
            let mut due = Instant::now();
            while !scanner.is_void() {
                let interval = requests.interval();
                let mut stop = self.stop.clone();
                // A pass does not come by again where somebody writes behind it.
                let before = requests.before();
                let pass = tokio::select! {
                    pass = scanner.pass() => pass,
                    _ = stop.wait_for(|stop| *stop) => return Ok(()),
                };
                match pass {
                    Ok(true) => {
                        self.facts.recover();
                        self.facts.captured(true);
                        let promise = Promise::scanned(stream.unknown.count());
                        let is_growing = self.is_ahead_of(&disk);
                        let set = blocking(move || {
                            let is_set = is_growing || requests.set_marks(true, &before, promise);
                            Ok((requests, is_set))
                        });
                        let is_set;
                        (requests, is_set) = set.await.map_err(|source| self.data_error(source))?;
                        // The log takes none now: the disk need not be read again and again meanwhile.
                        if !is_set && stops_within(RETRY_PAUSE, &mut stop).await {
                            return Ok(());
                        }
                    }
                    Ok(false) => {}
                    Err(ScanError::Disk(error)) => return Err(error.into()),
                    Err(ScanError::Io(source)) => {
                        return Err(CaptureError::Scan { path: disk.path().to_owned(), source });
                    }
                }
                let looked_at = Arc::clone(&disk);
                let checked = blocking(move || Ok(looked_at.check())).await;
                match checked.map_err(|source| self.data_error(source))? {
                    Err(DiskError::Grown { size_bytes, .. }) => {
                        if self.grow(&disk, size_bytes, None).await? {
                            return Err(CaptureError::Grown);
                        }
                    }
                    Ok(()) => self.settle_size(&disk, None),
                    // The next pass says so.
                    Err(_) => {}
                }
                due = (due + interval).max(Instant::now());
                // Marks that somebody waits for come with what is new, and not sooner for being looked for.
                while (requests.open().is_empty() || self.is_ahead_of(&disk))
                    && due > Instant::now()
                {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = requests.changed() => {}
                        _ = stop.wait_for(|stop| *stop) => return Ok(()),
                    }
                }
            }
        }
    }

    /// A scan finds out for itself what changed, even if another file took the disk's place.
    async fn adopt_scanned(&self, disk: &Arc<Disk>) -> Result<(), CaptureError> {
        let (disk, stream) = (Arc::clone(disk), Arc::clone(&self.opening.stream));
        let prints = self.opening.dir.join(PRINTS_FILE);
        let adopted = blocking(move || {
            // Nobody keeps them up, and the disk may be served again later.
            Prints::remove(&prints)?;
            stream.state.update(|state| {
                state.size_bytes = disk.size_bytes();
                state.identity = Some(disk.identity().clone());
            })
        });
        adopted.await.map_err(|source| self.data_error(source))
    }

    async fn scanner(&self, disk: &Arc<Disk>) -> Result<Scanner, CaptureError> {
        let stream = Arc::clone(&self.opening.stream);
        let progress = Arc::clone(&stream.progress);
        // In this order: hashes of after a restart of the log are never noted before it is over.
        let restarts = loop {
            let restarts = progress.restarts();
            if !progress.is_held() {
                break restarts;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let (path, size) = (self.opening.dir.join(HASHES_FILE), disk.size_bytes());
        let (reads, opened, volume) = (self.env.reads.clone(), Arc::clone(disk), stream.volume);
        let open = blocking(move || {
            let hashes = Hashes::open(&path, volume, size, restarts)?;
            Ok((hashes, reads.open(opened.file(), opened.size())?))
        });
        let (hashes, reads) = open.await.map_err(|source| self.data_error(source))?;
        let log = Arc::clone(&stream.log);
        let (unknown, steps) = (Arc::clone(&stream.unknown), self.env.steps.clone());
        Ok(Scanner::new(Arc::clone(disk), log, hashes, (progress, unknown), reads, steps))
    }
}

/// Waits so long; whether a stop was asked for meanwhile.
async fn stops_within(pause: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok()
}

/// What a disk is, as the control plane is told: names that hold only here carry what names this run of
/// this server, whichever agent asks.
fn told_identity(identity: &Identity) -> DiskIdentity {
    let (key, is_world_wide) = identity.key();
    let text = identity.to_string();
    if is_world_wide || key.is_empty() {
        return DiskIdentity { key, text };
    }
    let key = boot().map(|boot| format!("{boot}/{key}")).unwrap_or_default();
    DiskIdentity { key, text }
}

/// Names this run of the server.
fn boot() -> Option<String> {
    let told = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let boot = told.trim().to_owned();
    (!boot.is_empty()).then_some(boot)
}

/// The socket of a volume: in its directory, or, if that path is too long for one, in a directory
/// of the system's that belongs to this user.
fn socket_path(dir: &Path) -> PathBuf {
    let path = dir.join("nbd.sock");
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return path;
    }
    // Otherwise binding says that the path is too long.
    short_socket_path(dir).unwrap_or(path)
}

fn short_socket_path(dir: &Path) -> Option<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let user = rustix::process::getuid().as_raw();
    let short = PathBuf::from(format!("/tmp/farshore-{user}"));
    let is_made = crate::durable::private_dir(&short).is_ok();
    let is_ours = std::fs::symlink_metadata(&short)
        .is_ok_and(|found| found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0);
    (is_made && is_ours).then(|| short.join(format!("{name}.sock")))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
