//! The `export` command: one recovery point over NBD, read-write on a copy-on-write overlay.
//!
//! Nothing is hydrated first: blocks come out of the vault when they are read.

mod status;

use self::status::Health;
use crate::failure::Failure;
use anyhow::Context;
use farshore_api::exit::Exit;
use farshore_export::{Disk, Export};
use farshore_nbd::{Address, Server};
use farshore_program::StopSignals;
use farshore_proto::VolumeId;
use farshore_vault::{
    Access, Patience, PointSelector, Store, Vault, VolumeView, durable, key_file,
};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Settings of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// URL of the vault.
    #[arg(long)]
    vault: String,
    /// File with a key of the vault: a node key, or the recovery key.
    #[arg(long, env = key_file::KEY_FILE_ENV)]
    key_file: PathBuf,
    /// Id of the volume.
    #[arg(long)]
    volume: VolumeId,
    /// Id of the recovery point, or `latest`.
    #[arg(long, default_value = "latest", value_parser = parse_point)]
    point: PointSelector,
    /// Only open the point and say so; serve nothing.
    #[arg(long)]
    check: bool,
    /// File that takes what is written; kept, so that the export can be started again.
    #[arg(long, required_unless_present = "check")]
    overlay: Option<PathBuf>,
    /// Where NBD clients connect: `unix:PATH`, or `tcp:127.0.0.1:PORT` (0: any free port).
    #[arg(long, required_unless_present = "check")]
    listen: Option<Address>,
    /// File that is written when clients can connect: {"nbd_uri": "…", "point": "…", "size_bytes": N}.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// File that says how it serves whenever that changes: {"state": "serving" | "waiting" | "failing" |
    /// "overlay_full", "reason": "…", "since_unix_ms": N, "patience_seconds": N}.
    #[arg(long)]
    status_file: Option<PathBuf>,
    /// Seconds for which a read waits while the vault's store does not answer; then it fails.
    #[arg(long, value_name = "SECONDS", env = "FARSHORE_EXPORT_PATIENCE", default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(0..=604_800))]
    patience: u64,
}

fn parse_point(text: &str) -> Result<PointSelector, String> {
    if text == "latest" {
        return Ok(PointSelector::Latest);
    }
    if let Ok(seq) = text.parse() {
        return Ok(PointSelector::Seq(farshore_proto::Seq(seq)));
    }
    farshore_proto::PointId::from_str(text)
        .map(PointSelector::Point)
        .map_err(|_| "a recovery point is a UUID, a seq, or `latest`".to_owned())
}

/// Serves until SIGTERM.
pub(crate) async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let wrapping_key = key_file::read(&args.key_file)?;
    let store = Store::open(&args.vault, Access::Read)?;
    let vault = Vault::open(&store, &wrapping_key).await?;
    drop(wrapping_key);
    let patience = Patience::new(Duration::from_secs(args.patience));
    let view = VolumeView::open(&vault, args.volume, args.point).await?;
    let view = view.with_patience(patience.clone());
    let point = *view.point();
    let (Some(overlay), Some(listen)) = (&args.overlay, &args.listen) else {
        let (size, data) = (view.size_bytes(), view.data_bytes_max());
        farshore_program::print(&format!("opens: {size} bytes, at most {data} of them data\n"))?;
        return Ok(());
    };
    let export = Export::open(view, overlay)
        .await
        .with_context(|| format!("open the overlay {}", overlay.display()))?;
    let size_bytes = export.size_bytes();
    let name = point.id.to_string();
    let health = Arc::new(Health::default());
    let disk = Arc::new(Disk::new(Arc::new(export), Arc::clone(&health)));
    let server = Server::bind(listen, &name, disk).await.map_err(|error| {
        Failure::new(Exit::Unavailable, format!("cannot serve over NBD: {error}"))
    })?;
    let uri = server.uri();
    let ready = serde_json::json!({
        "nbd_uri": uri,
        "point": name,
        "seq": point.seq.0,
        "size_bytes": size_bytes,
    });
    // Before it is ready: who finds one file finds the other.
    tokio::spawn(status::tell(args.status_file, patience.clone(), health));
    if let Some(path) = &args.ready_file {
        durable::replace(path, ready.to_string().as_bytes())
            .with_context(|| format!("write {}", path.display()))?;
    }
    farshore_program::announce(format_args!("ready {uri}"));
    let mut stop = StopSignals::listen()?;
    let stopped = async move {
        stop.asked().await;
        patience.end();
    };
    server.serve(stopped).await;
    Ok(())
}
