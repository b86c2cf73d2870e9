//! `point`: recovery points of a machine.

use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};
use farshore_api::point::{CreatePoint, Point, PointKind, PointSelector, PointState, Points};
use farshore_api::{Exit, limits, paths};
use uuid::Uuid;

use crate::args::Global;
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::machine::{self, check_name, unknown_machine};
use crate::output::{clock_off, time};
use crate::table::Table;
use crate::vault::{self, RestoreTo, Source};

/// What may stand where a recovery point is named.
pub(crate) const POINT_HELP: &str = "Recovery point: latest, an id or its first digits, or the newest \
    not after a time: 2026-01-31T12:00:00Z, '2026-01-31 12:00' (UTC), '10 minutes ago'";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the recovery points of a machine, newest last
    List {
        /// Name of the machine
        name: String,
        /// At most so many, the newest ones
        #[arg(long, value_name = "N", default_value_t = limits::PAGE_DEFAULT,
            value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::PAGE_MAX)))]
        limit: u32,
        /// Only those before this point: an id or its first digits, a time, or '10 minutes ago'
        #[arg(long, value_name = "POINT")]
        before: Option<PointSelector>,
    },
    /// Show one recovery point
    Show {
        /// Name of the machine
        name: String,
        #[arg(default_value = "latest", help = POINT_HELP)]
        point: PointSelector,
    },
    /// Ask for a recovery point now
    Mark(MarkArgs),
    /// Write a recovery point to a file, read from the vault
    Export(ExportArgs),
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MarkArgs {
    /// Name of the machine
    name: String,
    /// Ask applications to be quiet first: not yet, refused
    #[arg(long)]
    app: bool,
    /// Wait until the point is in the vault
    #[arg(long)]
    wait: bool,
    /// Longest wait
    #[arg(long, value_name = "DURATION", default_value = "60s", requires = "wait",
        value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ExportArgs {
    /// Name of the machine
    name: String,
    #[arg(help = POINT_HELP)]
    point: PointSelector,
    /// Format of the file
    #[arg(long, value_enum, default_value = "raw")]
    format: ExportFormat,
    #[command(flatten)]
    to: RestoreTo,
    #[command(flatten)]
    source: Source,
}

/// Format of an exported disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// The disk's bytes, sparse
    Raw,
    /// Not yet
    #[value(hide = true)]
    Qcow2,
    /// Not yet
    #[value(hide = true)]
    Vhd,
    /// Not yet
    #[value(hide = true)]
    Vmdk,
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::List { name, limit, before } => list_points(global, &name, limit, before).await,
        Verb::Show { name, point } => {
            let point = get(&Client::of(global)?, &name, point).await?;
            global.output.unwrap_or_default().print(&point, show)
        }
        Verb::Mark(args) => mark(global, &args).await,
        Verb::Export(args) => export(global, args).await,
    }
}

/// One point of a machine.
async fn get(client: &Client, name: &str, point: PointSelector) -> Outcome<Point> {
    check_name("machine", name)?;
    client.get(&paths::point(name, point)).await.map_err(|failure| {
        failure.hint_on(Exit::NotFound, || format!("`farshore point list {name}` shows its points"))
    })
}

async fn list_points(
    global: &Global,
    name: &str,
    limit: u32,
    before: Option<PointSelector>,
) -> Outcome {
    check_name("machine", name)?;
    let mut path = format!("{}?limit={limit}", paths::points(name));
    if let Some(before) = before {
        path.push_str(&format!("&before={before}"));
    }
    let points: Points = Client::of(global)?.get(&path).await.map_err(unknown_machine)?;
    global.output.unwrap_or_default().print(&points, list)
}

async fn mark(global: &Global, args: &MarkArgs) -> Outcome {
    check_name("machine", &args.name)?;
    let kind = if args.app { PointKind::App } else { PointKind::Crash };
    if let Some(why) = kind.refusal() {
        let failure = Failure::new(Exit::Usage, format!("the point's kind {why}"));
        return Err(failure.hint("leave --app out for a crash-consistent point"));
    }
    let client = Client::of(global)?;
    let started = Instant::now();
    let request = CreatePoint { kind, point: Some(Uuid::now_v7()) };
    let mut point: Point =
        client.post_again(&paths::points(&args.name), &request).await.map_err(unknown_machine)?;
    let path = paths::point(&args.name, PointSelector::Id(point.point));
    while args.wait && point.state != PointState::Committed {
        let left = args.timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            let message = format!("point {} of {} is not committed yet", point.point, args.name);
            return Err(Failure::new(Exit::TimedOut, message).hint(format!(
                "it may still come; `farshore machine show {}` tells how replication stands",
                args.name
            )));
        }
        point = client.get_patiently(&path, left, left).await?;
    }
    global.output.unwrap_or_default().print(&point, show)
}

/// The id of the point, and the volume that `point export` reads, come from the control plane; the
/// bytes come from the vault.
async fn export(global: &Global, args: ExportArgs) -> Outcome {
    if args.format != ExportFormat::Raw {
        let format = args.format.to_possible_value();
        let format = format.as_ref().map_or("that format", |value| value.get_name());
        return Err(Failure::new(
            Exit::Usage,
            format!("cannot export as {format}: not yet: raw only"),
        )
        .hint("say --format raw; `qemu-img convert` makes other formats of it"));
    }
    check_name("machine", &args.name)?;
    let client = Client::of(global)?;
    let machine = machine::get(&client, &args.name).await?;
    let point = get(&client, &args.name, args.point).await?;
    let [volume] = machine.volumes.as_slice() else {
        let message = format!("{} has {} disks", args.name, machine.volumes.len());
        return Err(Failure::new(Exit::Usage, message)
            .hint("restore each with `farshore vault restore --volume ID`"));
    };
    let (volume, point) = (volume.id, PointSelector::Id(point.point));
    vault::restore(global, &args.source, volume, point, args.to).await
}

fn state(state: PointState) -> &'static str {
    match state {
        PointState::Requested => "requested",
        PointState::Committed => "committed",
        PointState::Unknown => "unknown",
    }
}

fn kind_text(kind: PointKind) -> &'static str {
    match kind {
        PointKind::Crash => "crash",
        PointKind::App => "app",
        PointKind::Scan => "scan: fuzzy, the disk was read while it was written",
        PointKind::FileSystem => "file system: frozen, needs no repair",
        PointKind::Final => "final: what wrote the disk was stopped before",
        PointKind::Unknown => "unknown: a newer version set it",
    }
}

/// Blocks of all its volumes that could not be read.
fn unknown(point: &Point) -> u32 {
    let blocks = point.volumes.iter().map(|volume| volume.unknown_blocks);
    blocks.fold(0, u32::saturating_add)
}

/// What a point promises, in a cell of a table.
pub(crate) fn promise(kind: &str, unknown_blocks: u32) -> String {
    match unknown_blocks {
        0 => kind.to_owned(),
        _ => format!("{kind}, {}", unknown_text(unknown_blocks)),
    }
}

/// How much of a disk could not be read.
pub(crate) fn unknown_text(blocks: u32) -> String {
    match blocks {
        1 => "1 block unknown".to_owned(),
        u32::MAX => format!("{blocks} or more blocks unknown"),
        _ => format!("{blocks} blocks unknown"),
    }
}

fn list(points: &Points) -> String {
    let mut table =
        Table::new(&["POINT", "TIME", "KIND", "STATE", "SEQ", "NOTE"], "no recovery points yet");
    for point in &points.points {
        let seqs: Vec<String> = point.volumes.iter().map(|volume| volume.seq.to_string()).collect();
        table.row([
            point.point.to_string(),
            time(point.time_unix_ms),
            promise(point.kind.as_str(), unknown(point)),
            state(point.state).to_owned(),
            seqs.join(","),
            point.clock_off_ms.map(clock_note).unwrap_or_default(),
        ]);
    }
    table.render()
}

/// What is to be known of a time that an agent's clock told wrong.
fn clock_note(off_ms: i64) -> String {
    format!("agent's clock was {}", clock_off(off_ms))
}

fn show(point: &Point) -> String {
    let mut table = Table::pairs();
    table
        .pair("point", point.point)
        .pair("state", state(point.state))
        .pair("kind", kind_text(point.kind))
        .pair("time", time(point.time_unix_ms));
    if let (Some(off_ms), Some(at)) = (point.clock_off_ms, point.at_unix_ms) {
        let note = clock_note(off_ms);
        table.pair("note", format!("{note}: by the control plane's it was {}", time(at)));
    }
    if let Some(heard) = point.heard_unix_ms {
        table.pair("heard of", time(heard));
    }
    for volume in &point.volumes {
        table.pair("volume", format!("{} at seq {}", volume.volume, volume.seq));
        if volume.unknown_blocks > 0 {
            table.pair("not read", unknown_text(volume.unknown_blocks));
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_api::point::PointVolume;

    fn point() -> Point {
        Point {
            point: Uuid::from_u128(7),
            kind: PointKind::Crash,
            rank: Some(42),
            time_unix_ms: 1_000,
            at_unix_ms: Some(1_000),
            heard_unix_ms: Some(2_000),
            clock_off_ms: None,
            state: PointState::Committed,
            volumes: vec![PointVolume { volume: Uuid::from_u128(8), seq: 42, unknown_blocks: 0 }],
        }
    }

    #[test]
    fn a_point_in_json_has_the_promised_fields() {
        let json = serde_json::to_value(point()).unwrap();
        assert_eq!(json["point"], Uuid::from_u128(7).to_string());
        assert_eq!(json["state"], "committed");
    }

    #[test]
    fn people_see_when_and_where() {
        let text = show(&point());
        assert!(text.contains("1970-01-01T00:00:01Z"), "{text}");
        assert!(text.contains("at seq 42"), "{text}");
        let text = list(&Points { points: vec![point()] });
        assert!(text.lines().nth(1).unwrap().ends_with("committed  42"), "{text}");
        let ahead = Point { time_unix_ms: 7_201_000, clock_off_ms: Some(7_200_000), ..point() };
        let text = list(&Points { points: vec![ahead.clone()] });
        assert!(text.contains("42   agent's clock was 2h ahead"), "{text}");
        let text = show(&ahead);
        assert!(text.contains("by the control plane's it was 1970-01-01T00:00:01Z"), "{text}");
    }

    #[test]
    fn people_see_what_a_point_does_not_promise() {
        let mut point = point();
        point.kind = PointKind::Scan;
        point.volumes[0].unknown_blocks = 12;
        let text = show(&point);
        assert!(text.contains("scan: fuzzy") && text.contains("12 blocks unknown"), "{text}");
        let text = list(&Points { points: vec![point] });
        assert!(text.contains("scan, 12 blocks unknown"), "{text}");
    }
}
