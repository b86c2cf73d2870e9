//! From nothing to sources that may connect: identities, machines, places on nodes.

use crate::dial::Route;
use crate::limits::{ENROLLING_MAX, PLACE_LOOK_EVERY, PLACE_TIME_MAX};
use crate::operator::{Operator, OperatorError};
use farshore_api::agent::{Assignments, RegisterAgent, Registered};
use farshore_api::identity::certificate_fingerprint;
use farshore_api::machine::Machine;
use farshore_api::{Role, paths};
use farshore_client::{ClientError, ControlClient, Identity, IdentityError, establish};
use farshore_proto::Epoch;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// The disks of load machines: `clean` touches no machine with another disk.
const DISK_PREFIX: &str = "/nowhere/farshore-loadgen/";

/// Name of a source's machine.
#[must_use]
pub fn machine_name(source: u32) -> String {
    format!("load-{:05}", source + 1)
}

/// Whether a machine is one that a load generator made.
#[must_use]
pub fn is_ours(machine: &Machine) -> bool {
    let disk = format!("{DISK_PREFIX}{}", machine.name);
    machine.name.starts_with("load-") && machine.volumes.iter().all(|volume| volume.disk == disk)
}

/// A source that may connect.
#[derive(Clone)]
pub struct Member {
    /// Its key and certificate.
    pub identity: Arc<Identity>,
    /// Where its volume was placed.
    pub route: Route,
    /// Name of its machine.
    pub machine: String,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Member").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// Why a source cannot connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// The control plane did not do its part for the operator.
    #[error("{machine}: {error}")]
    Operator {
        /// The machine.
        machine: String,
        /// Why.
        error: OperatorError,
    },
    /// There is no identity.
    #[error("{machine}: {error}")]
    Identity {
        /// The machine.
        machine: String,
        /// Why.
        error: IdentityError,
    },
    /// The control plane did not do its part for the agent.
    #[error("{machine}: {error}")]
    Client {
        /// The machine.
        machine: String,
        /// Why.
        error: ClientError,
    },
    /// A file of an identity cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The machine is somebody else's.
    #[error(
        "{machine} is protected already, for another agent than the one in {}: remove the machines of \
         earlier runs with `farshore-loadgen clean`, or say the --identities DIR that they were made \
         with", dir.display()
    )]
    Taken {
        /// The machine.
        machine: String,
        /// Where the identity is.
        dir: PathBuf,
    },
    /// No node took the volume.
    #[error(
        "{machine} was not placed on a node within {} s: `farshore node list` tells whether one is \
         healthy", PLACE_TIME_MAX.as_secs()
    )]
    Unplaced {
        /// The machine.
        machine: String,
    },
}

/// Enrols sources.
#[derive(Debug)]
pub struct Enrolment {
    operator: Operator,
    /// Where identities are kept, one folder each.
    identities: PathBuf,
    mark_interval: Duration,
    /// The agent of each machine that exists.
    existing: HashMap<String, Uuid>,
}

impl Enrolment {
    /// Asks what is there already.
    ///
    /// # Errors
    /// [`OperatorError`] if the control plane does not tell.
    pub async fn new(
        operator: Operator,
        identities: PathBuf,
        mark_interval: Duration,
    ) -> Result<Self, OperatorError> {
        let machines = operator.machines().await?;
        let existing = machines.into_iter().map(|machine| (machine.name, machine.agent)).collect();
        Ok(Self { operator, identities, mark_interval, existing })
    }

    /// Whether a machine was there before.
    #[must_use]
    pub fn exists(&self, machine: &str) -> bool {
        self.existing.contains_key(machine)
    }

    /// Enrols so many sources, a bounded number at a time; `done` is told of each.
    ///
    /// # Errors
    /// The first [`EnrolError`].
    pub async fn all(&self, sources: u32, done: impl Fn()) -> Result<Vec<Member>, EnrolError> {
        let done = &done;
        stream::iter(0..sources)
            .map(|source| async move {
                let member = self.one(source).await?;
                done();
                Ok(member)
            })
            .buffered(ENROLLING_MAX)
            .try_collect()
            .await
    }

    async fn one(&self, source: u32) -> Result<Member, EnrolError> {
        let machine = machine_name(source);
        let dir = self.identities.join(&machine);
        let failed = |error| EnrolError::Identity { machine: machine.clone(), error };
        let identity = Arc::new(self.identity(&machine, &dir).await?);
        let control = ControlClient::new(self.operator.url(), &identity).map_err(failed)?;
        if identity.until_renewal().is_zero() {
            control.renew(&identity).await.map_err(failed)?;
        }
        let version = concat!("loadgen ", env!("CARGO_PKG_VERSION")).to_owned();
        let register = RegisterAgent { hostname: machine.clone(), version, local: false };
        let registering = control.post::<Registered>(paths::AGENT_REGISTER, &register);
        let unasked = |error| EnrolError::Client { machine: machine.clone(), error };
        registering.await.map_err(unasked)?;
        match self.existing.get(&machine) {
            Some(agent) if *agent == identity.id() => {}
            Some(_) => return Err(EnrolError::Taken { machine, dir }),
            None => {
                let disk = format!("{DISK_PREFIX}{machine}");
                let protecting =
                    self.operator.protect(&machine, &disk, identity.id(), self.mark_interval);
                let refused = |error| EnrolError::Operator { machine: machine.clone(), error };
                protecting.await.map_err(refused)?;
            }
        }
        let deadline = Instant::now() + PLACE_TIME_MAX;
        loop {
            match route_of(&control, &machine).await.map_err(unasked)? {
                Some(route) => return Ok(Member { identity, route, machine }),
                None if Instant::now() >= deadline => {
                    return Err(EnrolError::Unplaced { machine });
                }
                None => tokio::time::sleep(PLACE_LOOK_EVERY).await,
            }
        }
    }

    /// The identity in a folder, or a new one. A token is made only if one is needed.
    async fn identity(&self, machine: &str, dir: &Path) -> Result<Identity, EnrolError> {
        let failed = |error| EnrolError::Identity { machine: machine.to_owned(), error };
        let held = Identity::load(dir).map_err(failed)?;
        let ours = certificate_fingerprint(self.operator.ca());
        let of_site = held.filter(|held| certificate_fingerprint(held.ca()) == ours);
        let again = match of_site {
            Some(held) if !held.is_expired() => return Ok(held),
            Some(expired) => Some(expired.id()),
            None => None,
        };
        let refused = |error| EnrolError::Operator { machine: machine.to_owned(), error };
        let token = self.operator.token(again).await.map_err(refused)?;
        let path = dir.join("token");
        write_private(dir, &path, &token)
            .map_err(|error| EnrolError::File { path: path.clone(), error })?;
        let url = self.operator.url();
        let identity = establish(dir, url, Some(&path), Role::Agent).await.map_err(failed)?;
        // It was used up; one that stays behind is of no use to anybody.
        let _ = std::fs::remove_file(&path);
        Ok(identity)
    }
}

/// Where the volume of a source's machine is, if it is placed.
///
/// # Errors
/// [`ClientError`] if the control plane does not tell.
pub async fn route_of(
    control: &ControlClient,
    machine: &str,
) -> Result<Option<Route>, ClientError> {
    let asking = control.get::<Assignments>(paths::AGENT_ASSIGNMENTS, Duration::ZERO);
    let told = asking.await?;
    let mine = told.volumes.into_iter().find(|volume| volume.machine == machine);
    Ok(mine.map(|volume| Route {
        address: volume.node.address,
        server_name: volume.node.server_name,
        volume: volume.volume.into(),
        epoch: Epoch(volume.epoch),
    }))
}

fn write_private(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// Ends the protection of every machine that a load generator made; `done` is told of each with the
/// number of all. Returns their number.
///
/// # Errors
/// The first [`OperatorError`].
pub async fn clean(operator: &Operator, done: impl Fn(usize)) -> Result<usize, OperatorError> {
    let machines = operator.machines().await?;
    let ours: Vec<_> = machines.into_iter().filter(is_ours).map(|machine| machine.name).collect();
    remove(operator, &ours, &done).await?;
    Ok(ours.len())
}

/// Ends the protection of machines.
///
/// # Errors
/// The first [`OperatorError`].
pub async fn remove(
    operator: &Operator,
    machines: &[String],
    done: &impl Fn(usize),
) -> Result<(), OperatorError> {
    stream::iter(machines)
        .map(|machine| async {
            operator.unprotect(machine).await?;
            done(machines.len());
            Ok(())
        })
        .buffer_unordered(ENROLLING_MAX)
        .try_collect()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str, disk: &str) -> Machine {
        serde_json::from_value(serde_json::json!({
            "name": name, "id": Uuid::nil(), "state": "pending", "state_detail": "",
            "rpo_seconds": null, "policy": "default", "mark_interval_ms": 5000,
            "capture": "scan", "agent": Uuid::nil(), "node": null, "epoch": 0,
            "volumes": [{
                "id": Uuid::nil(), "disk": disk, "size_bytes": 0, "progress": 0.0, "sent_seq": 0,
                "journaled_seq": 0, "committed_seq": 0, "stats": {}
            }],
            "last_point": null, "created_at_unix_ms": 0
        }))
        .unwrap()
    }

    #[test]
    fn only_machines_with_our_name_and_our_disk_are_ours() {
        assert_eq!(machine_name(0), "load-00001");
        assert!(is_ours(&machine("load-00001", "/nowhere/farshore-loadgen/load-00001")));
        assert!(!is_ours(&machine("load-00001", "/dev/vda")));
        assert!(!is_ours(&machine("load-00001", "/nowhere/farshore-loadgen/load-00002")));
        assert!(!is_ours(&machine("web", "/nowhere/farshore-loadgen/web")));
    }
}
