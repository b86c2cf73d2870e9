//! `vault restore`, and `point export` with it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use farshore_api::Exit;
use farshore_api::point::PointSelector;
use farshore_export::restore::{self, RestoreError, RestoreOptions, RestoreReport, TargetKind};
use farshore_proto::VolumeId;
use farshore_vault::VolumeView;
use farshore_vault::layout::ObjectName;
use serde::Serialize;
use uuid::Uuid;

use crate::args::Global;
use crate::confirm::Consent;
use crate::failure::{Failure, Outcome};
use crate::job::Job;
use crate::output::{size, time};
use crate::table::Table;

use super::open::{Source, exit_of, told, vault_failure};
use super::select::select;

/// Where a restore goes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RestoreTo {
    /// File or block device to write
    #[arg(long, value_name = "FILE")]
    pub(super) to: PathBuf,
    /// Replace a file that has content; write over a device that has some, with --yes
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) consent: Consent,
}

/// Result of a restore.
#[derive(Debug, Serialize)]
pub(super) struct Restored {
    volume: Uuid,
    point: Uuid,
    seq: u64,
    kind: &'static str,
    unknown_blocks: u32,
    time_unix_ms: u64,
    pub(super) to: String,
    size_bytes: u64,
    written_bytes: u64,
    /// Bytes that an earlier, interrupted run had written.
    resumed_bytes: u64,
    fetched_bytes: u64,
    seconds: f64,
}

impl Restored {
    pub(super) fn new(
        view: &VolumeView,
        to: &Path,
        report: RestoreReport,
        started: Instant,
    ) -> Self {
        let point = view.point();
        Self {
            volume: view.volume().into(),
            point: point.id.into(),
            seq: point.seq.0,
            kind: point.kind.word(),
            unknown_blocks: point.unknown_blocks,
            time_unix_ms: point.time_unix_ms,
            to: to.display().to_string(),
            size_bytes: report.size_bytes,
            written_bytes: report.written_bytes,
            resumed_bytes: report.resumed_bytes,
            fetched_bytes: report.fetched_bytes,
            seconds: started.elapsed().as_secs_f64(),
        }
    }

    /// In a line, for a restore of several.
    pub(super) fn to_text(&self) -> String {
        let promise = crate::point::promise(self.kind, self.unknown_blocks);
        format!(
            "{} ({}, {} written, {promise})",
            self.to,
            size(self.size_bytes),
            size(self.written_bytes)
        )
    }

    fn table(&self) -> String {
        let mut table = Table::pairs();
        table
            .pair("restored", &self.to)
            .pair("volume", self.volume)
            .pair("point", format!("{} of {}", self.point, time(self.time_unix_ms)))
            .pair("kind", crate::point::promise(self.kind, self.unknown_blocks))
            .pair("size", size(self.size_bytes))
            .pair("data written", size(self.written_bytes))
            .pair("read from the vault", size(self.fetched_bytes))
            .pair("took", format!("{:.1} s", self.seconds));
        table.render()
    }
}

/// Writes a volume as it was at a point to a file or device.
pub(crate) async fn restore(
    global: &Global,
    source: &Source,
    volume: Uuid,
    point: PointSelector,
    to: RestoreTo,
) -> Outcome {
    let started = Instant::now();
    let vault = source.open(global).await?;
    let selector = select(&vault, volume, point).await?;
    let view = VolumeView::open(&vault, VolumeId::from(volume), selector).await;
    let view = view.map_err(|error| {
        let failure = vault_failure(&error);
        let failure = failure.hint_on(Exit::NotFound, || {
            format!("`farshore vault points --volume {volume}` shows what there is")
        });
        or_another_point(failure, volume)
    })?;
    if let Some(hole) = view.hole() {
        farshore_program::tell!(
            "warning: object {} is missing although slot {} exists: there may have been newer points",
            ObjectName::slot(hole.log, hole.slot),
            hole.later
        );
    }
    let options = RestoreOptions { may_replace: to.force, journal_directory: journal_directory() };
    if !may_write(&view, &to, &options)? {
        return Ok(());
    }
    let job = Job::of_bytes(global, "restoring");
    let told = |progress: restore::RestoreProgress| {
        job.bytes(progress.written_bytes, progress.data_bytes);
    };
    let report = restore::restore(&view, &to.to, options, told).await;
    let report = report.map_err(|error| or_another_point(restore_failure(&error), volume))?;
    job.finish(&Restored::new(&view, &to.to, report, started), Restored::table)
}

/// Looks at what is there, and asks where a device would lose something. False for a dry run.
fn may_write(view: &VolumeView, to: &RestoreTo, options: &RestoreOptions) -> Outcome<bool> {
    let found = restore::survey(&to.to).map_err(|error| restore_failure(&error))?;
    found.check(view.size_bytes(), options).map_err(|error| restore_failure(&error))?;
    let loses_disk = found.kind == TargetKind::Device && found.content.is_some();
    if !loses_disk && !to.consent.dry_run {
        return Ok(true);
    }
    let point = view.point();
    let over = match (&found.content, found.kind) {
        (Some(content), _) => format!(", over what is there: {content}"),
        (None, TargetKind::NewFile) => ", a new file".to_owned(),
        (None, _) => ", which holds nothing".to_owned(),
    };
    to.consent.ask(&format!(
        "write at most {} of data, a disk of {}, volume {} as it was at {}, to {}{over}",
        size(view.data_bytes_max()),
        size(view.size_bytes()),
        view.volume(),
        time(point.time_unix_ms),
        found.path.display()
    ))
}

/// Where it is noted how far a restore to a device is: what belongs to the system for root, else to
/// the user; nowhere if neither is known.
pub(super) fn journal_directory() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/farshore/restores"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
    state.or_else(home).map(|state| state.join("farshore/restores"))
}

/// What is damaged stays so; other points may do without it.
pub(super) fn or_another_point(failure: Failure, volume: Uuid) -> Failure {
    failure.hint_on(Exit::Corrupt, || {
        format!(
            "put the object back from a copy of the store, or restore another point: `farshore vault \
             points --volume {volume}` lists those in front of the damage, `farshore vault verify \
             --read-data` says what else is damaged"
        )
    })
}

pub(super) fn restore_failure(error: &RestoreError) -> Failure {
    let exit = match error {
        RestoreError::Vault(error) => return vault_failure(error),
        error if error.is_no_space() => Exit::NoSpace,
        RestoreError::NotEmpty { .. } => Exit::Conflict,
        RestoreError::NotATarget { .. } | RestoreError::TooSmall { .. } => Exit::DataInvalid,
        RestoreError::Io { path, verb, source } => {
            return Failure::io(verb, path, source, Exit::InputOutput);
        }
        error => exit_of(error.kind()),
    };
    let failure = Failure::new(exit, told(error));
    match error {
        RestoreError::NotEmpty { .. } => failure.hint("say --force to replace it"),
        RestoreError::InUse { .. } => {
            failure.hint("what uses it would not notice that it has become another disk")
        }
        RestoreError::NoRoom { .. } => failure.hint("free some space, or choose another place"),
        RestoreError::NotATarget { .. } => failure.hint(
            "name a file, which need not be there yet, or a block device; the disks of a machine go to a directory",
        ),
        RestoreError::TooSmall { .. } => failure.hint("choose a device that is large enough"),
        _ => failure,
    }
}
