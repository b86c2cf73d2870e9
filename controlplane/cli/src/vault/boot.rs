//! `vault boot`: all disks of a point of a machine over NBD, each with an overlay, from store and key alone.

mod qemu;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use farshore_api::Exit;
use farshore_api::point::PointSelector;
use farshore_export::overlay::OverlayError;
use farshore_export::{Disk as NbdDisk, Export, ExportError};
use farshore_nbd::{Address, Server};
use farshore_program::StopSignals;
use farshore_proto::machine::Disk;
use farshore_vault::machine::DiskPoint;
use farshore_vault::{Patience, Vault};
use futures::future::join_all;
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use crate::args::Global;
use crate::failure::{Failure, Outcome};
use crate::output::size;
use crate::point::POINT_HELP;
use crate::table::Table;

use super::find::{Chosen, ChosenRow, find_point};
use super::open::{Source, exit_of, told, vault_failure};
use super::restore_machine::{file_stem, open_view};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BootArgs {
    #[command(flatten)]
    source: Source,
    /// Name or id of the machine
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    machine: String,
    #[arg(long, value_name = "POINT", default_value = "latest", help = POINT_HELP)]
    point: PointSelector,
    /// Also serve a point that lacks disks: those that it has
    #[arg(long)]
    incomplete: bool,
    /// Directory that takes what is written, kept so that it can go on later
    /// [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    overlay: Option<PathBuf>,
    /// Serve at loopback TCP ports rather than at Unix sockets
    #[arg(long)]
    tcp: bool,
    /// Seconds for which a read waits while the vault's store does not answer; then it fails
    #[arg(long, value_name = "SECONDS", env = "FARSHORE_EXPORT_PATIENCE", default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(0..=604_800))]
    patience: u64,
}

/// What is printed when clients can connect.
#[derive(Debug, Serialize)]
struct Ready {
    #[serde(flatten)]
    chosen: ChosenRow,
    secure_boot: bool,
    overlay_directory: String,
    /// Whether the overlays are kept.
    kept: bool,
    disks: Vec<ServedDisk>,
    /// A command that starts the machine, word by word.
    qemu: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ServedDisk {
    index: u16,
    volume: Uuid,
    name: String,
    role: &'static str,
    size_bytes: u64,
    nbd_uri: String,
    overlay: String,
}

/// Where the overlays and the sockets are.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    is_kept: bool,
    /// Whether it was not there before.
    is_new: bool,
}

impl Place {
    /// The named directory, or a new one that goes away with this.
    fn make(named: Option<&Path>) -> Outcome<Self> {
        let is_kept = named.is_some();
        let dir = named.map_or_else(
            || std::env::temp_dir().join(format!("farshore-boot-{}", Uuid::new_v4().simple())),
            Path::to_owned,
        );
        let absolute = std::path::absolute(&dir);
        let dir = absolute.map_err(|error| Failure::io("use", &dir, &error, Exit::Usage))?;
        let is_new = !dir.exists();
        let made = DirBuilder::new().mode(0o700).recursive(is_kept).create(&dir);
        made.map_err(|error| {
            Failure::io("make the directory", &dir, &error, Exit::CannotCreate)
                .or_hint(|| "name another directory with --overlay".to_owned())
        })?;
        Ok(Self { dir, is_kept, is_new })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_kept {
            if self.is_new {
                // Goes only if nothing was put there.
                let _ = std::fs::remove_dir(&self.dir);
            }
            return;
        }
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => farshore_program::tell!(
                "warning: cannot remove the directory {}: {error}",
                self.dir.display()
            ),
            _ => {}
        }
    }
}

/// A disk that is served.
struct Serving {
    export: Arc<Export>,
    server: Server<NbdDisk<()>>,
}

/// Serves a machine until it is told to stop.
pub(super) async fn boot(global: &Global, args: BootArgs) -> Outcome {
    let mut signals = StopSignals::listen().map_err(|error| {
        Failure::new(Exit::Internal, format!("cannot listen for signals: {error}"))
    })?;
    let patience = Patience::new(Duration::from_secs(args.patience));
    let prepared = tokio::select! {
        prepared = prepare(global, &args, &patience) => Some(prepared?),
        _ = signals.asked() => None,
    };
    let Some((place, ready, disks)) = prepared else { return Ok(()) };
    global.output.unwrap_or_default().print(&ready, Ready::text)?;
    let (stop, stopped) = watch::channel(false);
    let exports: Vec<Arc<Export>> = disks.iter().map(|disk| Arc::clone(&disk.export)).collect();
    let servers = disks.into_iter().map(|Serving { server, .. }| {
        let mut stopped = stopped.clone();
        server.serve(async move {
            // An error means that nobody can say it any more.
            let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
        })
    });
    let told = async {
        let signal = signals.asked().await;
        farshore_program::tell!("told to stop by {signal}");
        patience.end();
        let _ = stop.send(true);
    };
    tokio::join!(join_all(servers), told);
    match place.is_kept {
        true => all_of(exports.iter().map(|export| export.flush())).await,
        false => Ok(()),
    }
}

/// Waits for each flush, whatever becomes of the others; fails as the first that failed, and tells of the rest.
async fn all_of(
    flushes: impl IntoIterator<Item = impl Future<Output = Result<(), ExportError>>>,
) -> Outcome {
    let mut ended = Ok(());
    for flush in flushes {
        let Err(error) = flush.await else { continue };
        let failure = export_failure(&error);
        match &ended {
            Ok(()) => ended = Err(failure),
            Err(_) => farshore_program::tell!("{failure}"),
        }
    }
    ended
}

async fn prepare(
    global: &Global,
    args: &BootArgs,
    patience: &Patience,
) -> Outcome<(Place, Ready, Vec<Serving>)> {
    let vault = args.source.open(global).await?;
    let chosen = find_point(&vault, &args.machine, args.point, args.incomplete).await?;
    let place = Place::make(args.overlay.as_deref())?;
    let (mut rows, mut disks) = (Vec::new(), Vec::new());
    for (disk, at) in chosen.disks() {
        let (row, serving) = serve(&vault, args, &place, patience, disk, at).await?;
        rows.push(row);
        disks.push(serving);
    }
    let ready = Ready::new(&chosen, &place, rows)?;
    Ok((place, ready, disks))
}

/// Opens a disk at its point, and listens.
async fn serve(
    vault: &Vault,
    args: &BootArgs,
    place: &Place,
    patience: &Patience,
    disk: &Disk,
    at: &DiskPoint,
) -> Outcome<(ServedDisk, Serving)> {
    let view = open_view(vault, at).await?.with_patience(patience.clone());
    let stem = file_stem(disk);
    // By its index: its name may change, and may be too long for a socket.
    let overlay = place.dir.join(format!("disk-{}.overlay", disk.index));
    let export = Export::open(view, &overlay).await;
    let export = Arc::new(export.map_err(|error| export_failure(&error))?);
    let address = match args.tcp {
        true => Address::Tcp(([127, 0, 0, 1], 0).into()),
        false => Address::Unix(place.dir.join(format!("{}.sock", disk.index))),
    };
    let backend = Arc::new(NbdDisk::new(Arc::clone(&export), Arc::new(())));
    let server = Server::bind(&address, &stem, backend).await.map_err(|error| {
        Failure::new(Exit::Unavailable, told(&error))
            .hint("say --tcp, or name a short directory with --overlay")
    })?;
    let served = ServedDisk {
        index: disk.index,
        volume: at.volume.into(),
        name: disk.name.clone(),
        role: disk.role.word(),
        size_bytes: export.size_bytes(),
        nbd_uri: server.uri(),
        overlay: overlay.display().to_string(),
    };
    Ok((served, Serving { export, server }))
}

fn export_failure(error: &ExportError) -> Failure {
    let error = match error {
        ExportError::Vault(error) => return vault_failure(error),
        ExportError::Overlay(error) => error,
        error => return Failure::new(exit_of(error.kind()), told(error)),
    };
    let exit = match error {
        OverlayError::Io { source, .. } => Exit::from_io(source, Exit::InputOutput),
        error => exit_of(error.kind()),
    };
    let failure = Failure::new(exit, told(error));
    match error {
        error if error.is_no_space() => failure.hint(
            "free some space on its file system, or name a directory on another one with --overlay",
        ),
        OverlayError::InUse { .. } | OverlayError::OtherPoint { .. } => failure.hint(
            "an overlay belongs to one point of one disk, and to one boot at a time: name that point by its id with \
             --point, or another directory with --overlay",
        ),
        _ => failure.hint("--overlay names the directory of the overlays: another one begins anew"),
    }
}

impl Ready {
    fn new(chosen: &Chosen, place: &Place, disks: Vec<ServedDisk>) -> Outcome<Self> {
        let body = &chosen.machine.revision.body;
        let uris = chosen.disks().zip(&disks).map(|((disk, _), row)| (disk, row.nbd_uri.as_str()));
        let qemu = qemu::command(body, uris, &place.dir)?;
        Ok(Self {
            chosen: chosen.into(),
            secure_boot: body.is_secure_boot,
            overlay_directory: place.dir.display().to_string(),
            kept: place.is_kept,
            disks,
            qemu,
        })
    }

    fn text(&self) -> String {
        let mut table = Table::pairs();
        let overlays = match self.kept {
            true => format!("{} (kept)", self.overlay_directory),
            false => {
                format!("{} (removed at the end: --overlay DIR keeps it)", self.overlay_directory)
            }
        };
        self.chosen.add_to(&mut table, "machine");
        table.pair("overlays", overlays);
        let mut disks = Table::new(&["DISK", "ROLE", "SIZE", "NBD"], "no disks");
        for disk in &self.disks {
            disks.row([
                format!("{} {}", disk.index, disk.name),
                disk.role.to_owned(),
                size(disk.size_bytes),
                disk.nbd_uri.clone(),
            ]);
        }
        let mut text = format!("{}\n{}\nTo start it:\n", table.render(), disks.render());
        text.push_str(&format!("{}\n", qemu::line(&self.qemu)));
        if self.secure_boot {
            text.push_str("\nSecure boot was on; this starts without it.\n");
        }
        if !matches!(self.chosen.firmware, "bios" | "uefi") {
            text.push_str(
                "\nIts firmware is not known: if it does not start so, add -bios /usr/share/ovmf/OVMF.fd for UEFI.\n",
            );
        }
        text.push_str("\nServing until SIGTERM or Ctrl-C.\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_that_fails_keeps_no_other_from_its_end() {
        let full = |disk: u8| OverlayError::Io {
            path: PathBuf::from(format!("/over/disk-{disk}.overlay")),
            verb: "write",
            source: io::ErrorKind::StorageFull.into(),
        };
        let mut flushed = Vec::new();
        let flushes = (0..3_u8).map(|disk| {
            flushed.push(disk);
            std::future::ready(if disk < 2 { Err(full(disk).into()) } else { Ok(()) })
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let failure = runtime.block_on(all_of(flushes)).unwrap_err();
        assert!(failure.message.contains("/over/disk-0.overlay"), "{failure}");
        assert_eq!(flushed, [0, 1, 2]);
    }

    #[test]
    fn what_is_wrong_with_an_overlay_has_its_own_advice() {
        let path = || PathBuf::from("/over/disk-0.overlay");
        let full = OverlayError::Io {
            path: path(),
            verb: "write",
            source: io::ErrorKind::StorageFull.into(),
        };
        let version = OverlayError::Version { path: path() };
        for (error, exit, hint) in [
            (full, Exit::NoSpace, "free some space"),
            (OverlayError::InUse { path: path() }, Exit::Conflict, "an overlay belongs to one"),
            (version, Exit::Usage, "--overlay names the directory"),
        ] {
            let failure = export_failure(&error.into());
            assert_eq!(failure.code, exit.code(), "{failure}");
            assert!(failure.hint.as_ref().is_some_and(|told| told.starts_with(hint)), "{failure}");
            assert!(failure.message.contains("/over/disk-0.overlay"), "{failure}");
        }
    }
}
