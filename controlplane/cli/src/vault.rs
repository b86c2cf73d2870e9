//! `vault`: the vault itself, from its store and the recovery key alone.

mod boot;
mod find;
mod key;
mod machines;
mod open;
mod restore;
mod restore_machine;
mod select;
mod validate;
mod verify;

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use farshore_api::Exit;
use farshore_api::point::PointSelector;
use farshore_proto::VolumeId;
use farshore_vault::VaultError;
use farshore_vault::catalog::{self, FoundVolume, PointList as Found, VolumeInfo};
use serde::Serialize;
use uuid::Uuid;

use crate::args::Global;
use crate::failure::Outcome;
use crate::output::{size, time};
use crate::point::POINT_HELP;
use crate::table::Table;

pub(crate) use key::give_node_key;
use open::vault_failure;
pub(crate) use open::{Source, make, reopen, store_failure};
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
    /// Try whether a store keeps what a vault rests on; what is written for that is removed again
    ValidateStore {
        /// URL of the store: s3://BUCKET/FOLDER, az://CONTAINER/FOLDER, file:///absolute/path, or a
        /// path [default: the vault of --data]
        #[arg(value_name = "URL", env = "FARSHORE_VAULT")]
        url: Option<String>,
    },
    /// Write a volume, or all disks of a machine, as at a recovery point
    #[command(mut_arg("to", |to| to.help("File or block device to write; with --machine, the directory that \
        gets a file for each disk").value_name("PATH")))]
    Restore {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        which: Which,
        #[arg(long, value_name = "POINT", default_value = "latest", help = POINT_HELP)]
        point: PointSelector,
        /// Also write a point that lacks disks: those that it has
        #[arg(long, conflicts_with = "volume")]
        incomplete: bool,
        #[command(flatten)]
        to: RestoreTo,
    },
    /// Serve all disks of a machine over NBD, with overlays, and say how to start it
    Boot(boot::BootArgs),
    /// List the machines of a vault: disks, firmware
    Machines {
        #[command(flatten)]
        source: Source,
        /// Also count their points, and show the newest complete one: reads all of their streams
        #[arg(long)]
        points: bool,
    },
    /// List, add and remove the keys that open a vault
    #[command(subcommand)]
    Key(key::Verb),
    /// List the volumes of a vault
    Volumes {
        #[command(flatten)]
        source: Source,
    },
    /// List the recovery points of a volume or a machine, oldest first
    Points {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        which: Which,
    },
}

/// One volume, or a machine with all of its disks.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Id of the volume
    #[arg(long, value_name = "ID", value_parser = volume_id)]
    volume: Option<Uuid>,
    /// Name or id of the machine
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    machine: Option<String>,
}

fn volume_id(text: &str) -> Result<Uuid, &'static str> {
    text.parse().map_err(|_| {
        "this is not the id of a volume: `farshore vault volumes` lists those; name a machine with --machine"
    })
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::Init { source } => init(global, &source).await,
        Verb::Stats { source } => verify::stats(global, &source).await,
        Verb::Verify { source, read_data } => verify::verify(global, &source, read_data).await,
        Verb::ValidateStore { url } => validate::validate(global, url).await,
        Verb::Restore { source, which, point, incomplete, to } => match which {
            Which { volume: Some(volume), .. } => restore(global, &source, volume, point, to).await,
            Which { machine, .. } => {
                let wanted = machine.unwrap_or_default();
                restore_machine::restore(global, &source, &wanted, point, incomplete, to).await
            }
        },
        Verb::Boot(args) => boot::boot(global, args).await,
        Verb::Machines { source, points } => machines::machines(global, &source, points).await,
        Verb::Key(verb) => key::run(global, verb).await,
        Verb::Volumes { source } => volumes(global, &source).await,
        Verb::Points { source, which } => match which {
            Which { volume: Some(volume), .. } => points(global, &source, volume).await,
            Which { machine, .. } => {
                machines::points(global, &source, &machine.unwrap_or_default()).await
            }
        },
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
    /// What of it cannot be read.
    damage: Option<String>,
}

impl From<&FoundVolume> for VolumeRow {
    fn from(found: &FoundVolume) -> Self {
        let FoundVolume { info: VolumeInfo { volume, epochs }, broken } = found;
        let newest = epochs.last();
        Self {
            volume: (*volume).into(),
            label: newest.map(|epoch| epoch.label.clone()).unwrap_or_default(),
            size_bytes: newest.map_or(0, |epoch| epoch.size_bytes),
            epoch: newest.map_or(0, |epoch| epoch.epoch.0),
            damage: broken.as_ref().map(ToString::to_string),
        }
    }
}

/// The failure of a listing that ends before what is damaged; what it could list was printed.
fn ended_by(broken: Option<VaultError>, hint: impl FnOnce() -> String) -> Outcome {
    match broken {
        Some(error) => Err(vault_failure(&error).hint_on(Exit::Corrupt, hint)),
        None => Ok(()),
    }
}

async fn volumes(global: &Global, source: &Source) -> Outcome {
    let vault = source.open(global).await?;
    let found = catalog::find_volumes(&vault).await.map_err(|error| vault_failure(&error))?;
    let list = VolumeList { volumes: found.iter().map(VolumeRow::from).collect() };
    global.output.unwrap_or_default().print(&list, |list| {
        let mut table = Table::new(&["VOLUME", "LABEL", "SIZE", "EPOCH"], "no volumes");
        for row in &list.volumes {
            let is_known = row.damage.is_none();
            table.row([
                row.volume.to_string(),
                row.label.clone(),
                size(row.size_bytes),
                if is_known { row.epoch.to_string() } else { "damaged".to_owned() },
            ]);
        }
        table.render()
    })?;
    let broken = found.into_iter().find_map(|volume| volume.broken);
    ended_by(broken, || {
        "the other volumes are whole as far as their lists of epochs tell; `farshore vault verify \
         --read-data` says more"
            .to_owned()
    })
}

/// Result of `vault points`.
#[derive(Debug, Serialize)]
struct PointList {
    volume: Uuid,
    points: Vec<PointRow>,
    /// What is damaged or missing behind these points.
    damage: Option<String>,
}

#[derive(Debug, Serialize)]
struct PointRow {
    point: Uuid,
    kind: &'static str,
    unknown_blocks: u32,
    time_unix_ms: u64,
    seq: u64,
    epoch: u64,
    size_bytes: u64,
}

async fn points(global: &Global, source: &Source, volume: Uuid) -> Outcome {
    let vault = source.open(global).await?;
    let found = catalog::list_points_to_damage(&vault, VolumeId::from(volume)).await;
    let Found { points: found, broken } = found.map_err(|error| vault_failure(&error))?;
    let row = |point: farshore_vault::Point| PointRow {
        point: point.id.into(),
        kind: point.kind.word(),
        unknown_blocks: point.unknown_blocks,
        time_unix_ms: point.time_unix_ms,
        seq: point.seq.0,
        epoch: point.epoch.0,
        size_bytes: point.size_bytes,
    };
    let damage = broken.as_ref().map(ToString::to_string);
    let list = PointList { volume, points: found.into_iter().map(row).collect(), damage };
    let is_any = !list.points.is_empty();
    global.output.unwrap_or_default().print(&list, |list| {
        let mut table = Table::new(&["POINT", "TIME", "KIND", "SEQ", "EPOCH"], "no points yet");
        for row in &list.points {
            table.row([
                row.point.to_string(),
                time(row.time_unix_ms),
                crate::point::promise(row.kind, row.unknown_blocks),
                row.seq.to_string(),
                row.epoch.to_string(),
            ]);
        }
        table.render()
    })?;
    ended_by(broken, || match is_any {
        true => format!(
            "the points above are in front of the damage: restore one by its id with `farshore vault \
             restore --volume {volume} --point ID`"
        ),
        false => "`farshore vault verify --read-data` says what else is damaged".to_owned(),
    })
}
