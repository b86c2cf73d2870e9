//! `vault`: the vault itself, from its store and the recovery key alone.

mod open;
mod restore;
mod verify;

use clap::Subcommand;
use farshore_api::point::PointSelector;
use farshore_proto::{MarkKind, VolumeId};
use farshore_vault::catalog::{self, VolumeInfo};
use serde::Serialize;
use uuid::Uuid;

use crate::args::Global;
use crate::failure::Outcome;
use crate::output::{size, time};
use crate::table::Table;

use open::vault_failure;
pub(crate) use open::{Source, make, reopen};
pub(crate) use restore::{RestoreTo, restore};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a vault and its recovery key, as far as they are not there
    Init {
        #[command(flatten)]
        source: Source,
    },
    /// Say how much a vault holds
    Stats {
        #[command(flatten)]
        source: Source,
    },
    /// Check that everything in a vault joins and resolves
    Verify {
        #[command(flatten)]
        source: Source,
        /// Also read all data: every frame must open, every chunk must have its id
        #[arg(long)]
        read_data: bool,
    },
    /// Write a volume as it was at a recovery point to a file or device
    Restore {
        #[command(flatten)]
        source: Source,
        /// Id of the volume
        #[arg(long, value_name = "ID")]
        volume: Uuid,
        /// Recovery point: an id, or latest
        #[arg(long, value_name = "POINT", default_value = "latest")]
        point: PointSelector,
        #[command(flatten)]
        to: RestoreTo,
    },
    /// List the volumes of a vault
    Volumes {
        #[command(flatten)]
        source: Source,
    },
    /// List the recovery points of a volume, oldest first
    Points {
        #[command(flatten)]
        source: Source,
        /// Id of the volume
        #[arg(long, value_name = "ID")]
        volume: Uuid,
    },
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::Init { source } => init(global, &source).await,
        Verb::Stats { source } => verify::stats(global, &source).await,
        Verb::Verify { source, read_data } => verify::verify(global, &source, read_data).await,
        Verb::Restore { source, volume, point, to } => {
            restore(global, &source, volume, point, to).await
        }
        Verb::Volumes { source } => volumes(global, &source).await,
        Verb::Points { source, volume } => points(global, &source, volume).await,
    }
}

/// Result of `vault init`.
#[derive(Debug, Serialize)]
struct Initialised {
    vault: String,
    vault_id: Uuid,
    vault_created: bool,
    key_file: String,
    key_created: bool,
}

async fn init(global: &Global, source: &Source) -> Outcome {
    let (url, key_file) = source.locate(global)?;
    let (vault, made) = make(&url, &key_file).await?;
    let result = Initialised {
        vault: url,
        vault_id: vault.id().into(),
        vault_created: made.is_vault_new,
        key_file: key_file.display().to_string(),
        key_created: made.is_key_new,
    };
    global.output.unwrap_or_default().print(&result, |result| {
        let was = |created: bool| if created { "made" } else { "was there" };
        let mut table = Table::pairs();
        table
            .pair("vault", format!("{} ({})", result.vault, was(result.vault_created)))
            .pair("vault id", result.vault_id)
            .pair("recovery key", format!("{} ({})", result.key_file, was(result.key_created)));
        let advice = "Keep a copy of the recovery key somewhere else: nothing opens without it.\n";
        table.render() + if result.key_created { advice } else { "" }
    })
}

/// Result of `vault volumes`.
#[derive(Debug, Serialize)]
struct VolumeList {
    volumes: Vec<VolumeRow>,
}

#[derive(Debug, Serialize)]
struct VolumeRow {
    volume: Uuid,
    label: String,
    size_bytes: u64,
    epoch: u64,
}

impl From<VolumeInfo> for VolumeRow {
    fn from(info: VolumeInfo) -> Self {
        let newest = info.epochs.last();
        Self {
            volume: info.volume.into(),
            label: newest.map(|epoch| epoch.label.clone()).unwrap_or_default(),
            size_bytes: newest.map_or(0, |epoch| epoch.size_bytes),
            epoch: newest.map_or(0, |epoch| epoch.epoch.0),
        }
    }
}

async fn volumes(global: &Global, source: &Source) -> Outcome {
    let vault = source.open(global).await?;
    let found = catalog::list_volumes(&vault).await.map_err(|error| vault_failure(&error))?;
    let list = VolumeList { volumes: found.into_iter().map(VolumeRow::from).collect() };
    global.output.unwrap_or_default().print(&list, |list| {
        let mut table = Table::new(&["VOLUME", "LABEL", "SIZE", "EPOCH"], "no volumes");
        for row in &list.volumes {
            table.row([
                row.volume.to_string(),
                row.label.clone(),
                size(row.size_bytes),
                row.epoch.to_string(),
            ]);
        }
        table.render()
    })
}

/// Result of `vault points`.
#[derive(Debug, Serialize)]
struct PointList {
    volume: Uuid,
    points: Vec<PointRow>,
}

#[derive(Debug, Serialize)]
struct PointRow {
    point: Uuid,
    kind: &'static str,
    time_unix_ms: u64,
    seq: u64,
    epoch: u64,
    size_bytes: u64,
}

fn kind(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Crash => "crash",
        MarkKind::App => "app",
    }
}

async fn points(global: &Global, source: &Source, volume: Uuid) -> Outcome {
    let vault = source.open(global).await?;
    let found = catalog::list_points(&vault, VolumeId::from(volume)).await;
    let found = found.map_err(|error| vault_failure(&error))?;
    let row = |point: farshore_vault::Point| PointRow {
        point: point.id.into(),
        kind: kind(point.kind),
        time_unix_ms: point.time_unix_ms,
        seq: point.seq.0,
        epoch: point.epoch.0,
        size_bytes: point.size_bytes,
    };
    let list = PointList { volume, points: found.into_iter().map(row).collect() };
    global.output.unwrap_or_default().print(&list, |list| {
        let mut table = Table::new(&["POINT", "TIME", "KIND", "SEQ", "EPOCH"], "no points yet");
        for row in &list.points {
            table.row([
                row.point.to_string(),
                time(row.time_unix_ms),
                row.kind.to_owned(),
                row.seq.to_string(),
                row.epoch.to_string(),
            ]);
        }
        table.render()
    })
}
