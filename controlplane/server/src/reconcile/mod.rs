//! What the control plane does of its own accord: placing volumes, driving failovers, dropping what
//! is too old, renewing its own certificate.
//!
//! Each loop reads what is intended and what is the case from the catalogue, does what is missing,
//! and may be stopped and started anywhere: nothing is remembered outside the catalogue.

pub mod failover;
pub mod vault_end;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tracing::{error, info};
use uuid::Uuid;

use crate::app::{App, Topic};
use crate::clock;
use crate::domain::liveness::Input;
use crate::domain::placement::{self, NodeSite};
use crate::domain::retention::Look;
use crate::error::ControlError;
use crate::tls;

/// How often nodes that fell silent are looked for.
const PLACEMENT_INTERVAL: Duration = Duration::from_secs(1);

/// How often failovers are looked for that no wake-up told of.
const FAILOVER_INTERVAL: Duration = Duration::from_secs(5);

/// Pause after a driver ended by a bug.
const DRIVER_PAUSE: Duration = Duration::from_secs(1);

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

/// Looks who lives, and places what needs placing. Returns whether something was.
///
/// What is read takes its time, and so may the process; the look at who lives comes after it, and
/// itself notices a gap since the last one.
pub(crate) async fn place_once(app: &App) -> Result<bool, ControlError> {
    let volumes = app.db.volume_sites().await?;
    let troubles = app.db.node_troubles().await?;
    let nodes: Vec<Uuid> = troubles.iter().map(|(node, _)| *node).collect();
    let owners: BTreeSet<Uuid> =
        volumes.iter().filter_map(|volume| volume.node.or(volume.last_node)).collect();
    let owners: Vec<Uuid> = owners.into_iter().collect();
    let tick = Input::Tick { nodes: &nodes, owners: &owners };
    let mut lives = app.take_lives_to_note();
    // A tick is nobody's word, and only a word is refused.
    lives.extend(app.tell_liveness(&tick).unwrap_or_default());
    let sites: Vec<NodeSite> = troubles
        .into_iter()
        .map(|(node, has_trouble)| NodeSite { node, life: app.life(node), has_trouble })
        .collect();
    let moves = placement::place(&volumes, &sites);
    app.note_liveness(&lives).await?;
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
        if let Err(failure) = prune_once(app).await {
            error!(error = %failure, "drop old rows");
        }
    }
}

/// What the clocks show now.
pub(crate) fn clocks<'a>(boot: &'a str, host: &'a str, retention_ms: u64) -> Look<'a> {
    Look { wall_ms: clock::now_ms(), boot, host, up_ms: clock::up_ms(), retention_ms }
}

async fn prune_once(app: &App) -> Result<(), ControlError> {
    let (boot, host) = (clock::boot(), clock::host());
    let look = clocks(&boot, &host, app.db.longest_retention_ms().await?);
    let time_ms = app.db.look_at_clocks(&look).await?;
    app.db.prune(time_ms).await
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
    let mut drivers = Drivers::default();
    loop {
        match app.db.failovers_to_drive().await {
            Ok(ids) => {
                for id in ids {
                    let app = app.clone();
                    drivers.begin(id, async move { failover::drive(&app, id).await });
                }
            }
            Err(failure) => error!(error = %failure, "look for failovers"),
        }
        tokio::select! {
            _ = changes.changed() => {}
            Some((id, ended)) = drivers.ended() => {
                if let Err(failure) = ended {
                    error!(failover = %id, error = %failure, "a driver ended badly; another follows");
                    tokio::time::sleep(DRIVER_PAUSE).await;
                }
            }
            () = tokio::time::sleep(FAILOVER_INTERVAL) => {}
        }
    }
}

/// The drivers of failovers: one each. A task that panics ends with its own id and nothing else, so
/// that is what they are known by.
#[derive(Debug, Default)]
struct Drivers {
    tasks: JoinSet<()>,
    driven: HashMap<tokio::task::Id, Uuid>,
}

impl Drivers {
    /// Begins to drive, unless somebody does already.
    fn begin(&mut self, id: Uuid, driver: impl Future<Output = ()> + Send + 'static) {
        if self.driven.values().all(|driven| *driven != id) {
            let task = self.tasks.spawn(driver);
            self.driven.insert(task.id(), id);
        }
    }

    /// The next driver to end; never resolves to `None` but when there is none.
    async fn ended(&mut self) -> Option<(Uuid, Result<(), JoinError>)> {
        let ended = self.tasks.join_next_with_id().await?;
        let (task, ended) = match ended {
            Ok((task, ())) => (task, Ok(())),
            Err(failure) => (failure.id(), Err(failure)),
        };
        self.driven.remove(&task).map(|id| (id, ended))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P7: a driver that ends by a bug leaves its failover to another.
    #[tokio::test]
    async fn a_failover_whose_driver_panics_is_driven_again() {
        let (mut drivers, id) = (Drivers::default(), Uuid::from_u128(1));
        drivers.begin(id, async { panic!("a bug of the driver") });
        let (ended, result) = drivers.ended().await.unwrap();
        assert!(ended == id && result.is_err());
        drivers.begin(id, std::future::pending());
        drivers.begin(id, async { panic!("two drive at once") });
        assert_eq!(drivers.driven.len(), 1);
        drivers.begin(Uuid::from_u128(2), async {});
        let (ended, result) = drivers.ended().await.unwrap();
        assert!(ended == Uuid::from_u128(2) && result.is_ok());
    }
}
