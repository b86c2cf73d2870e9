//! Machines, their volumes and placement.

use std::collections::HashMap;

use farshore_api::agent::{AgentVolume, MarkRequest, NodeAddress, VolumeState};
use farshore_api::identity::node_server_name;
use farshore_api::machine::{CreateMachine, VolumeStats};
use farshore_api::node::NodeVolume;
use farshore_api::policy::DEFAULT_POLICY;
use uuid::Uuid;

use super::certificates::{ENROLLED_MIN, GENERATION_MIN, generation_min};
use super::record::{Record, name_of, number, own};
use super::{Actor, Db, Tx, events, policies, raise_version};
use crate::clock;
use crate::domain::machine::{MachineFacts, Twin, VolumeFacts, VolumeHeard};
use crate::domain::placement::{Move, VolumeSite};
use crate::error::ControlError;

const MACHINES: &str = "SELECT machines.*, agents.hostname,
    coalesce(machines.mark_interval_ms, policies.mark_interval_ms) AS interval_ms
    FROM machines JOIN agents ON agents.id = machines.agent
    JOIN policies ON policies.name = machines.policy";

const VOLUMES: &str = "SELECT volumes.*, nodes.last_seen_ms AS node_seen_ms,
     nodes.trouble AS node_trouble
    FROM volumes LEFT JOIN nodes ON nodes.id = volumes.node";

/// A move that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The volume.
    pub volume: Uuid,
    /// Its new node.
    pub node: Uuid,
    /// Its new epoch.
    pub epoch: u64,
}

impl Db {
    /// Protects a machine: it waits for a node from here on.
    ///
    /// # Errors
    /// `AlreadyExists` if the name or the agent's disk is taken, `NotFound` for an unknown policy
    /// or agent, `WrongState` if no agent was named and none can be chosen.
    pub async fn create_machine(
        &self,
        actor: Actor,
        request: &CreateMachine,
    ) -> Result<Uuid, ControlError> {
        let interval =
            request.mark_interval_ms.map(|value| number("mark_interval_ms", value)).transpose()?;
        let policy = request.policy.as_deref().unwrap_or(DEFAULT_POLICY);
        let (machine, volume) = (Uuid::now_v7(), Uuid::new_v4());
        let mut tx = self.begin().await?;
        policies::check(&mut tx, policy).await?;
        let agent = choose_agent(&mut tx, request.agent_id).await?;
        check_disk(&mut tx, agent, &request.disk).await?;
        check_port(&mut tx, agent, request.nbd_port).await?;
        sqlx::query(
            "INSERT INTO machines (id, name, policy, mark_interval_ms, capture, nbd_port, agent,
                created_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(machine.to_string())
        .bind(&request.name)
        .bind(policy)
        .bind(interval)
        .bind(name_of(&request.capture))
        .bind(request.nbd_port)
        .bind(agent.to_string())
        .bind(own(clock::now_ms()))
        .execute(&mut *tx)
        .await
        .map_err(|error| name_taken(error, &request.name))?;
        sqlx::query("INSERT INTO volumes (id, machine, disk) VALUES (?, ?, ?)")
            .bind(volume.to_string())
            .bind(machine.to_string())
            .bind(&request.disk)
            .execute(&mut *tx)
            .await?;
        raise_version(&mut tx).await?;
        let detail = format!("volume {volume}, agent {agent}, disk {}", request.disk);
        events::append(&mut tx, actor, "machine.protect", &request.name, &detail).await?;
        tx.commit().await?;
        Ok(machine)
    }

    /// Stops protecting a machine and forgets it. What the vault holds stays. With `only` nothing is done to
    /// another one that has the name by now.
    ///
    /// # Errors
    /// `NotFound`; `WrongState` while a failover of it has processes or files, or if it is another.
    pub async fn delete_machine(
        &self,
        actor: Actor,
        name: &str,
        only: Option<Uuid>,
    ) -> Result<(), ControlError> {
        let mut tx = self.begin().await?;
        let machine = machine_id(&mut tx, name).await?;
        if only.is_some_and(|only| only != machine) {
            return Err(ControlError::WrongState {
                what: "machine",
                name: name.into(),
                why: format!("is another one now, {machine}; the one that was meant is gone"),
            });
        }
        let busy = sqlx::query(
            "SELECT id FROM failovers WHERE machine = ? AND state <> 'cleaned_up' LIMIT 1",
        )
        .bind(machine.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(row) = busy {
            let why = format!("has failover {}; clean that up first", Record(row).id("id")?);
            return Err(ControlError::WrongState { what: "machine", name: name.into(), why });
        }
        let volumes = sqlx::query("SELECT id FROM volumes WHERE machine = ?")
            .bind(machine.to_string())
            .fetch_all(&mut *tx)
            .await?;
        let volumes: Result<Vec<String>, ControlError> =
            volumes.into_iter().map(|row| Record(row).text("id")).collect();
        // The agent ends a disk on this word only, so it is kept until the agent has heard it.
        sqlx::query(
            "INSERT INTO detached (volume, agent, at_ms)
             SELECT volumes.id, machines.agent, ? FROM volumes
             JOIN machines ON machines.id = volumes.machine WHERE machines.id = ?",
        )
        .bind(own(clock::now_ms()))
        .bind(machine.to_string())
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM machines WHERE id = ?")
            .bind(machine.to_string())
            .execute(&mut *tx)
            .await?;
        raise_version(&mut tx).await?;
        let detail = format!("volumes kept in the vault: {}", volumes?.join(", "));
        events::append(&mut tx, actor, "machine.unprotect", name, &detail).await?;
        tx.commit().await?;
        Ok(())
    }

    /// All machines in the order of their names.
    ///
    /// # Errors
    /// `Database`.
    pub async fn machines(&self) -> Result<Vec<MachineFacts>, ControlError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{MACHINES} ORDER BY machines.name")))
            .fetch_all(&self.readers)
            .await?;
        let mut machines = Vec::with_capacity(rows.len());
        for row in rows {
            machines.push(self.with_volumes(Record(row)).await?);
        }
        Ok(machines)
    }

    /// One machine.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn machine(&self, name: &str) -> Result<MachineFacts, ControlError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{MACHINES} WHERE machines.name = ?")))
            .bind(name)
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| missing(name))?;
        self.with_volumes(Record(row)).await
    }

    async fn with_volumes(&self, record: Record) -> Result<MachineFacts, ControlError> {
        let id = record.id("id")?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{VOLUMES} WHERE volumes.machine = ?")))
            .bind(id.to_string())
            .fetch_all(&self.readers)
            .await?;
        let mut volumes = Vec::with_capacity(rows.len());
        for row in rows {
            let record = Record(row);
            let id = record.id("id")?;
            let (stats, twins) = (self.volume_stats(id).await?, self.twins(id).await?);
            volumes.push(volume_facts(&record, stats, twins)?);
        }
        Ok(MachineFacts {
            id,
            name: record.text("name")?,
            policy: record.text("policy")?,
            mark_interval_ms: record.number("interval_ms")?,
            capture: record.name("capture")?,
            agent: record.id("agent")?,
            agent_hostname: record.text("hostname")?,
            failed_over: record.flag("failed_over")?,
            created_at_ms: record.number("created_at_ms")?,
            volumes,
            last_point: self.newest_point(id).await?,
        })
    }

    /// Other machines whose agents said last that they have the same disk, or one that this one is part
    /// of, or a part of it.
    async fn twins(&self, volume: Uuid) -> Result<Vec<Twin>, ControlError> {
        let rows = sqlx::query(
            "SELECT machines.name, agents.hostname,
                (machines.created_at_ms, machines.id) < (mine.created_at_ms, mine.id) AS is_older
             FROM volumes AS own JOIN machines AS mine ON mine.id = own.machine
             JOIN volumes AS other ON other.disk_base = own.disk_base AND other.id <> own.id
             JOIN machines ON machines.id = other.machine AND machines.failed_over = 0
             JOIN agents ON agents.id = machines.agent
             WHERE own.id = ? AND own.disk_base <> ''
                AND (own.disk_part = other.disk_part OR own.disk_part = '' OR other.disk_part = '')
             ORDER BY machines.created_at_ms, machines.id",
        )
        .bind(volume.to_string())
        .fetch_all(&self.readers)
        .await?;
        let twin = |row| {
            let record = Record(row);
            Ok(Twin {
                machine: record.text("name")?,
                agent_hostname: record.text("hostname")?,
                is_older: record.flag("is_older")?,
            })
        };
        rows.into_iter().map(twin).collect()
    }

    /// Forgets that agents were heard: at the start, what they said before is old.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn begin_to_listen(&self) -> Result<(), ControlError> {
        sqlx::query("UPDATE volumes SET is_heard = 0 WHERE is_heard = 1")
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn volume_stats(&self, volume: Uuid) -> Result<VolumeStats, ControlError> {
        let row = sqlx::query(
            "SELECT coalesce(sum(bytes_in), 0) AS bytes_in,
                coalesce(sum(zero_bytes), 0) AS zero_bytes,
                coalesce(sum(duplicate_bytes), 0) AS duplicate_bytes,
                coalesce(sum(unique_bytes), 0) AS unique_bytes,
                coalesce(sum(stored_bytes), 0) AS stored_bytes
             FROM volume_stats WHERE volume = ?",
        )
        .bind(volume.to_string())
        .fetch_one(&self.readers)
        .await?;
        let record = Record(row);
        Ok(VolumeStats {
            bytes_in: record.number("bytes_in")?,
            zero_bytes: record.number("zero_bytes")?,
            duplicate_bytes: record.number("duplicate_bytes")?,
            unique_bytes: record.number("unique_bytes")?,
            stored_bytes: record.number("stored_bytes")?,
        })
    }

    /// The volumes that may be placed, fenced ones left out.
    ///
    /// # Errors
    /// `Database`.
    pub async fn volume_sites(&self) -> Result<Vec<VolumeSite>, ControlError> {
        let rows = sqlx::query(
            "SELECT volumes.id, volumes.node, volumes.last_node FROM volumes
             JOIN machines ON machines.id = volumes.machine
             WHERE machines.failed_over = 0 ORDER BY machines.created_at_ms, volumes.id",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                let record = Record(row);
                Ok(VolumeSite {
                    volume: record.id("id")?,
                    node: record.optional_id("node")?,
                    last_node: record.optional_id("last_node")?,
                })
            })
            .collect()
    }

    /// Carries out moves, each under a new epoch. A volume that has changed since the decision is
    /// left as it is.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn place(&self, moves: &[Move]) -> Result<Vec<Placement>, ControlError> {
        let now = own(clock::now_ms());
        let mut tx = self.begin().await?;
        let mut placements = Vec::with_capacity(moves.len());
        for Move { volume, to, from } in moves.iter().copied() {
            let row = sqlx::query(
                "UPDATE volumes SET node = ?, last_node = NULL, epoch = epoch + 1, parent_epoch = writer_epoch,
                    writer_epoch = epoch + 1, epoch_at_ms = ?
                 WHERE id = ? AND node IS ? AND EXISTS (SELECT 1 FROM machines
                    WHERE machines.id = volumes.machine AND machines.failed_over = 0)
                 RETURNING epoch",
            )
            .bind(to.to_string())
            .bind(now)
            .bind(volume.to_string())
            .bind(from.map(|node| node.to_string()))
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = row else { continue };
            let epoch = Record(row).number("epoch")?;
            let detail = format!("node {to}, epoch {epoch}");
            events::append(&mut tx, Actor::Control, "volume.place", volume, &detail).await?;
            placements.push(Placement { volume, node: to, epoch });
        }
        if !placements.is_empty() {
            raise_version(&mut tx).await?;
        }
        tx.commit().await?;
        Ok(placements)
    }

    /// What an agent is to replicate.
    ///
    /// # Errors
    /// `Database`.
    pub async fn agent_volumes(&self, agent: Uuid) -> Result<Vec<AgentVolume>, ControlError> {
        let mut marks = self.marks_asked(agent).await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT volumes.id, volumes.disk, volumes.epoch, volumes.granted_bytes, volumes.machine, machines.name,
                machines.capture, machines.nbd_port, nodes.id AS node, nodes.address,
                {ENROLLED_MIN},
                coalesce(machines.mark_interval_ms, policies.mark_interval_ms) AS interval_ms
             FROM volumes JOIN machines ON machines.id = volumes.machine
             JOIN policies ON policies.name = machines.policy
             JOIN nodes ON nodes.id = volumes.node
             JOIN identities ON identities.id = nodes.id
             WHERE machines.agent = ? AND machines.failed_over = 0
             ORDER BY machines.created_at_ms, volumes.id",
        )))
        .bind(agent.to_string())
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                let record = Record(row);
                let node = record.id("node")?;
                Ok(AgentVolume {
                    volume: record.id("id")?,
                    machine: record.text("name")?,
                    disk: record.text("disk")?,
                    capture: record.name("capture")?,
                    nbd_port: record.optional_number("nbd_port")?.and_then(|n| n.try_into().ok()),
                    mark_interval_ms: record.number("interval_ms")?,
                    epoch: record.number("epoch")?,
                    size_bytes: record.optional_number("granted_bytes")?,
                    node: NodeAddress {
                        id: node,
                        address: record.text("address")?,
                        server_name: node_server_name(node),
                        generation_min: generation_min(&record)?,
                    },
                    marks_requested: marks.remove(&record.id("machine")?).unwrap_or_default(),
                })
            })
            .collect()
    }

    async fn marks_asked(
        &self,
        agent: Uuid,
    ) -> Result<HashMap<Uuid, Vec<MarkRequest>>, ControlError> {
        let rows = sqlx::query(
            "SELECT points.id, points.kind, points.machine FROM points
             JOIN machines ON machines.id = points.machine
             WHERE machines.agent = ? AND points.state = 'requested' AND points.asked = 1
             ORDER BY points.rowid",
        )
        .bind(agent.to_string())
        .fetch_all(&self.readers)
        .await?;
        let mut marks: HashMap<Uuid, Vec<MarkRequest>> = HashMap::new();
        for row in rows {
            let record = Record(row);
            let mark = MarkRequest { point: record.id("id")?, kind: record.name("kind")? };
            marks.entry(record.id("machine")?).or_default().push(mark);
        }
        Ok(marks)
    }

    /// The volumes that a node owns.
    ///
    /// # Errors
    /// `Database`.
    pub async fn node_volumes(&self, node: Uuid) -> Result<Vec<NodeVolume>, ControlError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT volumes.id, volumes.epoch, volumes.parent_epoch, machines.agent, machines.name,
                machines.id AS machine_id, volumes.disk,
                coalesce(machines.mark_interval_ms, policies.mark_interval_ms) AS interval_ms,
                {GENERATION_MIN}
             FROM volumes JOIN machines ON machines.id = volumes.machine
             JOIN policies ON policies.name = machines.policy
             JOIN identities ON identities.id = machines.agent
             WHERE volumes.node = ? AND machines.failed_over = 0
             ORDER BY machines.created_at_ms, volumes.id",
        )))
        .bind(node.to_string())
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                let record = Record(row);
                Ok(NodeVolume {
                    volume: record.id("id")?,
                    epoch: record.number("epoch")?,
                    parent_epoch: record.optional_number("parent_epoch")?,
                    agent: record.id("agent")?,
                    agent_generation_min: generation_min(&record)?,
                    machine: record.text("name")?,
                    machine_id: Some(record.id("machine_id")?),
                    disk: record.text("disk")?,
                    mark_interval_ms: record.number("interval_ms")?,
                })
            })
            .collect()
    }
}

fn volume_facts(
    record: &Record,
    stats: VolumeStats,
    twins: Vec<Twin>,
) -> Result<VolumeFacts, ControlError> {
    let report = match record.optional_number("reported_at_ms")? {
        None => None,
        Some(at_ms) => Some(VolumeHeard {
            silent_ms: clock::silence_ms(at_ms),
            is_of_this_run: record.flag("is_heard")?,
            identity: record.text("disk_text")?,
            epoch: record.number("reported_epoch")?,
            state: record.name::<VolumeState>("state")?,
            detail: record.text("detail")?,
            error: record.optional_text("error")?,
            progress: record.real("progress")?,
            size_bytes: record.number("size_bytes")?,
            sent_seq: record.number("sent_seq")?,
            journaled_seq: record.number("journaled_seq")?,
            committed_seq: record.number("committed_seq")?,
            rpo_seconds: record.optional_real("rpo_seconds")?,
            nbd_uri: record.optional_text("nbd_uri")?,
            samples: record.optional_json("samples")?,
        }),
    };
    Ok(VolumeFacts {
        id: record.id("id")?,
        disk: record.text("disk")?,
        epoch: record.number("epoch")?,
        node: record.optional_id("node")?,
        node_silent_ms: record.optional_number("node_seen_ms")?.map(clock::silence_ms),
        node_trouble: record.optional_text("node_trouble")?.filter(|text| !text.is_empty()),
        report,
        twins,
        stats,
    })
}

/// The named agent, or the only one, or else the first local one.
async fn choose_agent(tx: &mut Tx, named: Option<Uuid>) -> Result<Uuid, ControlError> {
    let rows = sqlx::query(
        "SELECT agents.id, local FROM agents
             JOIN identities ON identities.id = agents.id AND identities.revoked_at_ms IS NULL
             ORDER BY local DESC, registered_at_ms, agents.id",
    )
    .fetch_all(&mut **tx)
    .await?;
    let agents: Vec<(Uuid, bool)> = rows
        .into_iter()
        .map(|row| {
            let record = Record(row);
            Ok((record.id("id")?, record.flag("local")?))
        })
        .collect::<Result<_, ControlError>>()?;
    if let Some(named) = named {
        let is_known = agents.iter().any(|(id, _)| *id == named);
        return if is_known {
            Ok(named)
        } else {
            Err(ControlError::NotFound { what: "agent", name: named.to_string() })
        };
    }
    match agents.as_slice() {
        [] => Err(ControlError::WrongState {
            what: "agent",
            name: "any".into(),
            why: "is missing: none has registered yet; start farshore-agent on the machine".into(),
        }),
        [(only, _)] => Ok(*only),
        [(first, true), ..] => Ok(*first),
        _ => Err(ControlError::Invalid {
            field: "agent_id",
            why: "must name the agent that has the disk: there are several".into(),
        }),
    }
}

async fn check_disk(tx: &mut Tx, agent: Uuid, disk: &str) -> Result<(), ControlError> {
    let taken = sqlx::query(
        "SELECT machines.name FROM volumes JOIN machines ON machines.id = volumes.machine
         WHERE machines.agent = ? AND volumes.disk = ?",
    )
    .bind(agent.to_string())
    .bind(disk)
    .fetch_optional(&mut **tx)
    .await?;
    match taken {
        None => Ok(()),
        Some(row) => Err(ControlError::WrongState {
            what: "disk",
            name: disk.into(),
            why: format!("is protected already, as machine `{}`", Record(row).text("name")?),
        }),
    }
}

/// A port is one machine's: whoever comes back to it must find its own disk.
async fn check_port(tx: &mut Tx, agent: Uuid, port: Option<u16>) -> Result<(), ControlError> {
    let Some(port) = port else { return Ok(()) };
    let taken = sqlx::query("SELECT name FROM machines WHERE agent = ? AND nbd_port = ?")
        .bind(agent.to_string())
        .bind(port)
        .fetch_optional(&mut **tx)
        .await?;
    match taken {
        None => Ok(()),
        Some(row) => Err(ControlError::WrongState {
            what: "port",
            name: port.to_string(),
            why: format!(
                "is where that agent serves machine `{}`; choose another one",
                Record(row).text("name")?
            ),
        }),
    }
}

/// Id of the machine called `name`.
pub(super) async fn machine_id(tx: &mut Tx, name: &str) -> Result<Uuid, ControlError> {
    sqlx::query("SELECT id FROM machines WHERE name = ?")
        .bind(name)
        .fetch_optional(&mut **tx)
        .await?
        .map(|row| Record(row).id("id"))
        .ok_or_else(|| missing(name))?
}

pub(super) fn missing(name: &str) -> ControlError {
    ControlError::NotFound { what: "machine", name: name.into() }
}

fn name_taken(error: sqlx::Error, name: &str) -> ControlError {
    if error.as_database_error().is_some_and(|e| e.is_unique_violation()) {
        let hint = "choose another name, or unprotect that machine first";
        return ControlError::AlreadyExists { what: "machine", name: name.into(), hint };
    }
    error.into()
}
