//! What the control plane does of its own accord: placing volumes, driving failovers, dropping what
//! is too old, renewing its own certificate.
//!
//! Each loop reads what is intended and what is the case from the catalogue, does what is missing,
//! and may be stopped and started anywhere: nothing is remembered outside the catalogue.

pub mod failover;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info};
use uuid::Uuid;

use crate::app::{App, Topic};
use crate::clock;
use crate::domain::placement;
use crate::error::ControlError;
use crate::tls;

/// How often nodes that fell silent are looked for.
const PLACEMENT_INTERVAL: Duration = Duration::from_secs(1);

/// How often failovers are looked for that no wake-up told of.
const FAILOVER_INTERVAL: Duration = Duration::from_secs(5);

/// How often old rows are dropped.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// How often the server's certificate is renewed.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(86_400);

/// Runs every loop until the application stops.
pub async fn run(app: Arc<App>, config: watch::Sender<Arc<ServerConfig>>) {
    let mut stop = app.changes.stopping();
    let loops = async {
        // Found out before a failover waits for it.
        let accelerator = app.accelerator();
        let renewal = renew_certificate(&app, &config);
        tokio::join!(place(&app), prune(&app), renewal, failovers(&app), accelerator)
    };
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        _ = loops => {}
    }
}

async fn place(app: &App) {
    let mut changes = app.changes.listen(Topic::Assignments);
    loop {
        match place_once(app).await {
            Ok(true) => app.changes.wake(Topic::Assignments),
            Ok(false) => {}
            Err(failure) => error!(error = %failure, "place volumes"),
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(PLACEMENT_INTERVAL) => {}
        }
    }
}

/// Places what needs placing. Returns whether something was.
async fn place_once(app: &App) -> Result<bool, ControlError> {
    let now_ms = clock::now_ms();
    let volumes = app.db.volume_sites().await?;
    let nodes = app.db.node_sites(now_ms).await?;
    let listening_ms = now_ms.saturating_sub(app.started_ms);
    let silent_after_ms = app.settings.node_lost_after_seconds * 1000;
    let moves = placement::place(&volumes, &nodes, silent_after_ms, listening_ms);
    if moves.is_empty() {
        return Ok(false);
    }
    let placements = app.db.place(&moves).await?;
    for placed in &placements {
        info!(volume = %placed.volume, node = %placed.node, epoch = placed.epoch, "volume placed");
    }
    Ok(!placements.is_empty())
}

async fn prune(app: &App) {
    loop {
        tokio::time::sleep(PRUNE_INTERVAL).await;
        if let Err(failure) = app.db.prune(clock::now_ms()).await {
            error!(error = %failure, "drop old rows");
        }
    }
}

async fn renew_certificate(app: &App, config: &watch::Sender<Arc<ServerConfig>>) {
    loop {
        tokio::time::sleep(CERTIFICATE_INTERVAL).await;
        match tls::server_config(&app.ca) {
            Ok(renewed) => {
                config.send_replace(renewed);
            }
            Err(failure) => error!(error = %failure, "renew the server's certificate"),
        }
    }
}

/// Gives every failover that something is left to do for a driver of its own.
async fn failovers(app: &Arc<App>) {
    let mut changes = app.changes.listen(Topic::Failovers);
    let mut drivers: JoinSet<Uuid> = JoinSet::new();
    let mut driven = HashSet::new();
    loop {
        match app.db.failovers_to_drive().await {
            Ok(ids) => {
                for id in ids {
                    if driven.insert(id) {
                        let app = app.clone();
                        drivers.spawn(async move {
                            failover::drive(&app, id).await;
                            id
                        });
                    }
                }
            }
            Err(failure) => error!(error = %failure, "look for failovers"),
        }
        tokio::select! {
            _ = changes.changed() => {}
            Some(Ok(id)) = drivers.join_next() => {
                driven.remove(&id);
            }
            () = tokio::time::sleep(FAILOVER_INTERVAL) => {}
        }
    }
}
