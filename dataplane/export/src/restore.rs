//! Writing a view to a file or a block device.
//!
//! Frames are read in the order in which they are stored, each once, neighbours together; blocks are
//! written as they come. A file is made under another name, synced and then renamed, so a file of the
//! wanted name is always whole. What was done is noted in a journal, so that a restore that was
//! interrupted goes on where it was.

mod journal;
mod ours;
mod plan;
mod signatures;
mod sorter;
mod survey;
mod target;

pub use survey::{Survey, TargetKind, survey};

use farshore_codec::segment::open_frame_at;
use farshore_codec::{ChunkHasher, CodecError};
use farshore_proto::limits::blocks_of;
use farshore_proto::map::FrameAt;
use farshore_proto::{BlockRange, ErrorKind};
use farshore_vault::layout::ObjectName;
use farshore_vault::limits::BULK_GETS_IN_FLIGHT_MAX;
use farshore_vault::{Vault, VaultError, VolumeView};
use futures::StreamExt;
use plan::{Job, Plan, Wanted};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use target::Target;

/// Frames whose GETs are planned at once.
const FRAMES_AT_ONCE: usize = 64;
/// Blocks of a device whose gaps are looked for at once: 1 GiB.
const ZERO_STEP_BLOCKS: usize = 1 << 18;

/// Why a restore failed. A target file of the wanted name is then as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// There is something on the target.
    #[error("restore to {}: it is not empty: it holds {content}: name another place, or allow it to be replaced", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
        /// What it holds.
        content: String,
    },
    /// The target is something that Farshore itself lives on.
    #[error("restore to {}: {what}: nothing is ever written there; name another place", path.display())]
    Ours {
        /// The target.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// The target would be a new file among the devices.
    #[error("restore to {}: there is no such device, and no file is made there", path.display())]
    NoDevice {
        /// The target.
        path: PathBuf,
    },
    /// The target is neither a file nor a block device.
    #[error("restore to {}: it is neither a file nor a block device", path.display())]
    NotATarget {
        /// The target.
        path: PathBuf,
    },
    /// The device is smaller than the volume.
    #[error("restore to {}: the device has {found} bytes, the volume needs {needed}", path.display())]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Size of the device.
        found: u64,
        /// Size of the volume.
        needed: u64,
    },
    /// The file system has not enough room.
    #[error("restore to {}: {available} bytes are free there, the volume's data needs {needed}", path.display())]
    NoRoom {
        /// The target.
        path: PathBuf,
        /// Free bytes.
        available: u64,
        /// Bytes to be written.
        needed: u64,
    },
    /// Another process restores to the same place, or something uses it.
    #[error("restore to {}: it is in use: {holder}: end that first, or name another place", path.display())]
    InUse {
        /// The target.
        path: PathBuf,
        /// Who uses it.
        holder: String,
    },
    /// The target cannot be written.
    #[error("restore to {}: cannot {verb}", path.display())]
    Io {
        /// The target.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Vault(error) => error.kind(),
            Self::NoDevice { .. }
            | Self::NotEmpty { .. }
            | Self::NotATarget { .. }
            | Self::TooSmall { .. } => ErrorKind::Invalid,
            Self::InUse { .. } | Self::Ours { .. } => ErrorKind::Conflict,
            Self::NoRoom { .. } | Self::Io { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the target's file system is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// How to restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreOptions {
    /// Whether a target that has content may be replaced.
    pub may_replace: bool,
    /// Where it is noted how far a restore to a device is; without, one that was interrupted begins
    /// anew. One to a file is noted beside it.
    pub journal_directory: Option<PathBuf>,
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Bytes of data written.
    pub written_bytes: u64,
    /// Bytes of data that the volume has.
    pub data_bytes: u64,
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreReport {
    /// Size of the volume.
    pub size_bytes: u64,
    /// Bytes of data that are there now; the rest is zero.
    pub written_bytes: u64,
    /// Bytes of it that an earlier run had written, read again and found to be right.
    pub resumed_bytes: u64,
    /// Bytes fetched from the vault for frames.
    pub fetched_bytes: u64,
}

/// Writes all of a view to `to`, durably. `progress` is called now and then, from this task.
///
/// # Errors
/// As [`RestoreError`]. What was written of a file is kept for the next attempt if the vault did not
/// answer or somebody took the file's name meanwhile, and removed otherwise, and always where the file
/// system has no locks; a partly written device stays so.
///
/// # Cancel safety
/// Dropped, it leaves a partly written file and its journal beside `to`, with names of their own; the
/// next restore of the same point goes on from there. Writes under way end in the background, and the
/// file is in use until then.
pub async fn restore(
    view: &VolumeView,
    to: &Path,
    options: RestoreOptions,
    mut progress: impl FnMut(RestoreProgress) + Send,
) -> Result<RestoreReport, RestoreError> {
    let directory = {
        let (to, options) = (to.to_owned(), options.clone());
        let size_bytes = view.size_bytes();
        blocking(move || sort_directory(&to, size_bytes, &options)).await?
    };
    let plan = Plan::make(view, &directory).await?;
    let wanted = wanted(view, plan.data_bytes);
    let target = {
        let to = to.to_owned();
        blocking(move || Target::open(&to, &wanted, &options)).await?
    };
    let target = Arc::new(target);
    match write_all(view, plan, &target, &mut progress).await {
        Ok(report) => blocking(move || target.finish()).await.map(|()| report),
        Err(error) => {
            // A store that is away, or a credential that ended meanwhile: the rest can be asked for later.
            // Damage stays.
            let may_go_on =
                matches!(&error, RestoreError::Vault(e) if e.kind() != ErrorKind::Corrupt);
            if !(may_go_on && target.journal().is_worth_keeping()) {
                target.abandon();
            }
            Err(error)
        }
    }
}

fn wanted(view: &VolumeView, data_bytes: u64) -> target::Wanted {
    let (size_bytes, point) = (view.size_bytes(), view.point());
    let what = format!("{} {} {} {size_bytes}", view.volume(), point.id, point.seq.0);
    target::Wanted { what, size_bytes, data_bytes }
}

/// Where what is to be fetched is sorted, if there is very much of it; what must not be written over is refused before
/// anything is read.
fn sort_directory(
    to: &Path,
    size_bytes: u64,
    options: &RestoreOptions,
) -> Result<PathBuf, RestoreError> {
    let found = survey(to)?;
    found.check(size_bytes, options)?;
    if found.kind != TargetKind::Device {
        return Ok(found.path.parent().unwrap_or(Path::new("/")).to_owned());
    }
    let Some(directory) = options.journal_directory.clone() else {
        return Ok(std::env::temp_dir());
    };
    target::make_private(&directory).map_err(io_error(&directory, "make it"))?;
    Ok(directory)
}

async fn write_all(
    view: &VolumeView,
    plan: Plan,
    target: &Arc<Target>,
    progress: &mut (impl FnMut(RestoreProgress) + Send),
) -> Result<RestoreReport, RestoreError> {
    let data_bytes = plan.data_bytes;
    let mut report = RestoreReport { size_bytes: view.size_bytes(), ..RestoreReport::default() };
    progress(RestoreProgress { written_bytes: 0, data_bytes });
    zero_gaps(view, target).await?;
    let hasher = view.vault().hasher().clone();
    let source = Source { plan, target: Arc::clone(target), hasher };
    let batches = futures::stream::unfold(Some(source), next_batch);
    let running = batches.flat_map(|batch| match batch {
        Ok(Batch { jobs, resumed_bytes }) => {
            let resumed = Ok(Step::Resumed(resumed_bytes));
            let jobs = jobs.into_iter().map(|job| Ok(Step::Job(job)));
            futures::stream::iter(std::iter::once(resumed).chain(jobs).collect::<Vec<_>>())
        }
        Err(error) => futures::stream::iter(vec![Err(error)]),
    });
    let running = running.map(|step| async {
        match step? {
            Step::Resumed(bytes) => Ok((bytes, bytes, 0)),
            Step::Job(job) => run(view, job, target).await.map(|(wrote, got)| (wrote, 0, got)),
        }
    });
    let mut done = std::pin::pin!(running.buffer_unordered(BULK_GETS_IN_FLIGHT_MAX));
    while let Some(part) = done.next().await {
        let (written, resumed, fetched): (u64, u64, u64) = part?;
        report.written_bytes += written;
        report.resumed_bytes += resumed;
        report.fetched_bytes += fetched;
        progress(RestoreProgress { written_bytes: report.written_bytes, data_bytes });
    }
    Ok(report)
}

/// What is done next: something that an earlier run did, or a job.
enum Step {
    Resumed(u64),
    Job(Job),
}

/// Jobs, and how many bytes an earlier run had written that are right.
struct Batch {
    jobs: Vec<Job>,
    resumed_bytes: u64,
}

/// Where batches come from.
struct Source {
    plan: Plan,
    target: Arc<Target>,
    hasher: ChunkHasher,
}

/// The jobs for the next frames; nothing at the end, and after an error.
async fn next_batch(
    source: Option<Source>,
) -> Option<(Result<Batch, RestoreError>, Option<Source>)> {
    let mut source = source?;
    let work = move || {
        let Source { plan, target, hasher } = &mut source;
        let failed = io_error(target.path(), "read back what is to be fetched");
        let frames = plan.next_frames(FRAMES_AT_ONCE).map_err(failed)?;
        if frames.is_empty() {
            return Ok(None);
        }
        let (left, resumed_bytes) = match target.journal().has_any() {
            true => without_done(frames, target, hasher)?,
            false => (frames, 0),
        };
        Ok(Some((Batch { jobs: plan::jobs(left), resumed_bytes }, source)))
    };
    match blocking(work).await {
        Ok(Some((batch, source))) => Some((Ok(batch), Some(source))),
        Ok(None) => None,
        Err(error) => Some((Err(error), None)),
    }
}

/// Leaves out the frames that an earlier run wrote, as far as they are still there: returns the rest,
/// and how many bytes those have.
fn without_done(
    frames: Vec<Wanted>,
    target: &Target,
    hasher: &ChunkHasher,
) -> Result<(Vec<Wanted>, u64), RestoreError> {
    let (mut left, mut done) = (Vec::new(), 0);
    for wanted in frames {
        let places = &wanted.places;
        let Some(expected) = target.journal().hash_of(places) else {
            left.push(wanted);
            continue;
        };
        let mut length = 0;
        let found = journal::hash(hasher, places, |block, range, bytes| {
            let at = bytes.len();
            bytes.resize(at + target.inside(block, range.len()), 0);
            length += range.len() as u64;
            target.read(block, &mut bytes[at..])
        })?;
        if found == expected {
            done += length;
        } else {
            left.push(wanted);
        }
    }
    Ok((left, done))
}

/// Makes zero, on a device, what is not data.
async fn zero_gaps(view: &VolumeView, target: &Arc<Target>) -> Result<(), RestoreError> {
    if !target.is_device() {
        return Ok(());
    }
    let blocks = blocks_of(view.size_bytes());
    for block in (0..blocks).step_by(ZERO_STEP_BLOCKS) {
        let count = (blocks - block).min(ZERO_STEP_BLOCKS as u64);
        for (gap, is_data) in view.extents(BlockRange { block, count }).await? {
            if !is_data {
                let target = Arc::clone(target);
                blocking(move || target.zero(gap)).await?;
            }
        }
    }
    Ok(())
}

/// What can go wrong in the middle of a job.
enum Failure {
    Frame { at: Box<FrameAt>, source: CodecError },
    Other(RestoreError),
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        Self::Other(error)
    }
}

/// Fetches the frames of a job and writes what is wanted of them: bytes written, bytes fetched.
async fn run(
    view: &VolumeView,
    job: Job,
    target: &Arc<Target>,
) -> Result<(u64, u64), RestoreError> {
    let vault = view.vault().clone();
    let user = ObjectName::volume(view.volume());
    let sealed = view.fetch(job.frames[0].frame.target, job.range.clone()).await?;
    let fetched = sealed.len() as u64;
    let target = Arc::clone(target);
    let write = {
        let vault = vault.clone();
        move || write_job(&job, &sealed, &vault, &target)
    };
    match blocking(write).await {
        Ok(written) => Ok((written, fetched)),
        Err(Failure::Frame { at, source }) => Err(vault.damaged_frame(&at, source, &user).into()),
        Err(Failure::Other(error)) => Err(error),
    }
}

fn write_job(job: &Job, sealed: &[u8], vault: &Vault, target: &Target) -> Result<u64, Failure> {
    let mut written = 0;
    let mut raw = Vec::new();
    let hasher = vault.hasher();
    for Wanted { frame, places } in &job.frames {
        let failure = |source| Failure::Frame { at: Box::new(*frame), source };
        let range = frame.range();
        let at = |offset: u64| {
            let offset = usize::try_from(offset - job.range.start);
            offset.unwrap_or(usize::MAX).min(sealed.len())
        };
        raw.clear();
        let bytes = &sealed[at(range.start)..at(range.end)];
        open_frame_at(vault.id(), frame, bytes, vault.ring(), &mut raw).map_err(failure)?;
        for places in places.chunk_by(|a, b| a.stored.is_of(&b.stored)) {
            places[0].stored.check(&raw, hasher).map_err(failure)?;
        }
        let hash = journal::hash(hasher, places, |block, range, bytes| {
            let run = &raw[range];
            bytes.extend_from_slice(&run[..target.inside(block, run.len())]);
            written += run.len() as u64;
            target.write(block, run)
        })?;
        target.journal().note(places, &hash);
    }
    Ok(written)
}

fn io_error(path: &Path, verb: &'static str) -> impl Fn(io::Error) -> RestoreError + use<> {
    let path = path.to_owned();
    move |source| RestoreError::Io { path: path.clone(), verb, source }
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static, E: From<RestoreError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match farshore_vault::blocking::run(work).await {
        Ok(result) => result,
        Err(source) => Err(RestoreError::Vault(VaultError::Task { source }).into()),
    }
}

#[cfg(test)]
mod tests;
