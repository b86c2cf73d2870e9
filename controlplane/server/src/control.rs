//! The control plane as one thing that starts and stops.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::admission::Holders;
use crate::app::{App, Changes};
use crate::ca::{self, Ca};
use crate::clock;
use crate::data_dir::{DataDir, read_secret, write_secret};
use crate::db::Db;
use crate::domain::liveness::Liveness;
use crate::fatal::Fatal;
use crate::limits::{Buckets, Failures};
use crate::providers::confine::Confinement;
use crate::settings::Settings;
use crate::{reconcile, serve, tls};

/// Shortest operator's token that is taken from a file, in characters.
const OPERATOR_TOKEN_CHARS_MIN: usize = 32;

/// A control plane that runs.
#[derive(Debug)]
pub struct Control {
    app: Arc<App>,
    address: SocketAddr,
    tasks: [JoinHandle<()>; 2],
    _data: DataDir,
}

impl Control {
    /// Opens the data directory, making what is missing, and begins to serve.
    ///
    /// # Errors
    /// [`Fatal`]: what happened, to which file or port, and what to do.
    pub async fn start(mut settings: Settings) -> Result<Self, Fatal> {
        settings.validate()?;
        let data = DataDir::open(&settings.data)?;
        settings.data = data.path().to_owned();
        // The port is taken before anything is written, so that a second start changes nothing.
        let listen = |source| Fatal::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        if !settings.key_file.exists() {
            warn!(key_file = %settings.key_file.display(), "no recovery key there: no failovers");
        }
        let app = Arc::new(open(settings).await?);
        let (sender, receiver) = watch::channel::<Arc<ServerConfig>>(tls::server_config(&app.ca)?);
        let tasks = [
            tokio::spawn(serve::serve(app.clone(), listener, receiver)),
            tokio::spawn(reconcile::run(app.clone(), sender)),
        ];
        info!(%address, vault = app.settings.vault, "control plane serves");
        Ok(Self { app, address, tasks, _data: data })
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its shared state.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Ends waits, lets requests finish, closes the catalogue. Failovers' processes go on.
    pub async fn stop(self) {
        self.app.changes.stop();
        for task in self.tasks {
            if let Err(error) = task.await {
                warn!(%error, "task ended badly");
            }
        }
        self.app.db.close().await;
        info!("control plane stopped");
    }
}

/// Opens the catalogue and everything else that lies in the data directory.
///
/// # Errors
/// [`Fatal`].
pub async fn open(settings: Settings) -> Result<App, Fatal> {
    let confinement = Confinement::find(settings.guest_user.as_deref())?;
    let ca = Ca::open(&settings.data)?;
    let path = settings.data.join("control.db");
    let catalogue = |source| Fatal::Catalogue { path: path.clone(), source };
    let db = Db::open(&path).await.map_err(catalogue)?;
    let operator_token = operator_token(&settings.data)?;
    db.set_operator_token(&operator_token).await.map_err(catalogue)?;
    db.begin_to_listen().await.map_err(catalogue)?;
    let limit = Duration::from_secs(settings.node_lost_after_seconds);
    Ok(App {
        db,
        ca,
        settings,
        operator_token,
        started_ms: clock::now_ms(),
        started: Instant::now(),
        liveness: Mutex::new(Liveness::new(limit)),
        lives_to_note: Mutex::default(),
        changes: Changes::default(),
        holders: Holders::default(),
        enrolments: Failures::default(),
        buckets: Buckets::default(),
        accelerator: OnceCell::new(),
        confinement,
    })
}

/// Hash of the operator's token, which is made if there is none. Removing the file and starting
/// again makes a new one.
fn operator_token(data: &Path) -> Result<blake3::Hash, Fatal> {
    let path = data.join("operator.token");
    if let Some(text) = read_secret(&path)? {
        let token = text.trim();
        if token.len() < OPERATOR_TOKEN_CHARS_MIN {
            let why = "it is too short to be an operator's token".into();
            return Err(Fatal::Damaged { path, why });
        }
        return Ok(blake3::hash(token.as_bytes()));
    }
    let token = hex::encode(ca::random::<32>());
    write_secret(&path, format!("{token}\n").as_bytes())?;
    Ok(blake3::hash(token.as_bytes()))
}
