//! A system under attack: real processes, and agents of which this test holds the keys.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_api::agent::{AgentReport, Assignments, RegisterAgent, Registered};
use farshore_api::node::{NodeReport, Nodes, Reported};
use farshore_api::{Role, paths};
use farshore_client::{ControlClient, Identity, establish};
use farshore_e2e::{Part, System, wait};
use serde_json::json;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::frame::{Mark, Said};
use crate::peer::{self, Peer, Who};
use crate::stream::Stream;

const LIMIT: Duration = Duration::from_secs(30);

/// The system and what is needed to talk to it.
#[derive(Debug)]
pub struct Site<'a> {
    /// The processes.
    pub system: &'a System,
    runtime: Runtime,
    control: String,
    node: Arc<Identity>,
    node_control: ControlClient,
}

/// An agent that was enrolled properly. What it says then is another matter.
#[derive(Debug)]
pub struct Agent {
    name: String,
    /// Its key and certificate.
    pub identity: Arc<Identity>,
    control: ControlClient,
}

/// A volume that the control plane gave to an agent and the node.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Name of its machine.
    pub machine: String,
    /// Its id.
    pub id: Uuid,
    /// Its epoch.
    pub epoch: u64,
    /// Port of its node.
    pub port: u16,
    /// Name in the node's certificate.
    pub server_name: String,
}

impl<'a> Site<'a> {
    /// Over a running system.
    ///
    /// # Errors
    /// If its node has no identity.
    pub fn over(system: &'a System) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let control = system.endpoint("control")?;
        let node = Identity::load(&system.data().join("node"))?.context("the node's identity")?;
        let node = Arc::new(node);
        let node_control = ControlClient::new(&control, &node)?;
        Ok(Self { system, runtime, control, node, node_control })
    }

    /// Enrols an agent.
    ///
    /// # Errors
    /// If the control plane refuses.
    pub fn enrol(&self, name: &str) -> Result<Agent> {
        let token = self.system.farshore().ok("agent token")?.stdout;
        let token_file = self.system.path(&format!("{name}.token"));
        fs::write(&token_file, token).context("write the token")?;
        let dir = self.system.path(&format!("{name}.identity"));
        let enrolment = establish(&dir, &self.control, Some(&token_file), Role::Agent);
        let identity = Arc::new(self.runtime.block_on(enrolment)?);
        let control = ControlClient::new(&self.control, &identity)?;
        let register =
            RegisterAgent { hostname: name.to_owned(), version: "0.0.0".to_owned(), local: false };
        let posting = control.post::<Registered>(paths::AGENT_REGISTER, &register);
        self.runtime.block_on(posting)?;
        Ok(Agent { name: name.to_owned(), identity, control })
    }

    /// Protects a disk that only exists in this test, and waits until the node may take it.
    ///
    /// # Errors
    /// If the control plane refuses or nothing is assigned in time.
    ///
    /// # Panics
    /// If the thread that asks for it does.
    pub fn protect(&self, agent: &Agent, disk: &str) -> Result<Volume> {
        let machine = format!("{}-{disk}", agent.name);
        let line = format!(
            "machine protect {machine} --disk /nowhere/{machine} --capture scan --agent {} \
             --mark-interval 1s",
            agent.identity.id()
        );
        std::thread::scope(|scope| {
            // It waits for the agent's word.
            let protecting = scope.spawn(|| self.system.farshore().ok(&line));
            let assigned = self.assigned(agent, &machine, 1).and_then(|volume| {
                self.copies(agent, &volume)?;
                Ok(volume)
            });
            protecting.join().expect("no panic")?;
            assigned
        })
    }

    /// Says, as the agent would, that it copies the disk.
    fn copies(&self, agent: &Agent, volume: &Volume) -> Result<()> {
        let copying = json!({ "volume": volume.id, "epoch": volume.epoch, "state": "copying" });
        let report: AgentReport = serde_json::from_value(json!({ "volumes": [copying] }))?;
        let posting = agent.control.post::<Reported>(paths::AGENT_REPORT, &report);
        self.runtime.block_on(posting)?;
        Ok(())
    }

    /// Waits until a machine's volume is assigned under an epoch of at least `epoch`.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn assigned(&self, agent: &Agent, machine: &str, epoch: u64) -> Result<Volume> {
        // An agent has few connections; with one more its oldest is ended, whatever it waits for.
        static ASKING: Mutex<()> = Mutex::new(());
        wait::until(&format!("{machine} to be assigned"), LIMIT, || {
            let turn = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
            let asking = agent.control.get::<Assignments>(paths::AGENT_ASSIGNMENTS, LIMIT);
            let told = self.runtime.block_on(asking)?;
            drop(turn);
            let mine = told.volumes.into_iter().find(|volume| volume.machine == machine);
            mine.filter(|volume| volume.epoch >= epoch)
                .map(|volume| {
                    let address: SocketAddr = volume.node.address.parse()?;
                    Ok(Volume {
                        machine: volume.machine,
                        id: volume.volume,
                        epoch: volume.epoch,
                        port: address.port(),
                        server_name: volume.node.server_name,
                    })
                })
                .transpose()
        })
    }

    /// Has the control plane issue the next epoch of a volume, as its node would ask for it.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn next_epoch(&self, agent: &Agent, volume: &Volume) -> Result<Volume> {
        let report = NodeReport { epochs_wanted: vec![volume.id], ..NodeReport::default() };
        wait::until("the next epoch", LIMIT, || {
            // It takes no second one within seconds of the first.
            let posting = self.node_control.post::<Reported>(paths::NODE_REPORT, &report);
            self.runtime.block_on(posting)?;
            let asking = agent.control.get::<Assignments>(paths::AGENT_ASSIGNMENTS, LIMIT);
            let told = self.runtime.block_on(asking)?;
            let mine = told.volumes.iter().find(|assigned| assigned.volume == volume.id);
            Ok(mine.is_some_and(|assigned| assigned.epoch > volume.epoch).then_some(()))
        })?;
        self.assigned(agent, &volume.machine, volume.epoch + 1)
    }

    /// The node's counters, from a report that is younger than this call.
    ///
    /// # Errors
    /// If the node does not report.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let look = || -> Result<farshore_api::node::Node> {
            let listed = self.system.farshore().json("node list")?;
            let listed: Nodes = serde_json::from_value(listed)?;
            listed.nodes.into_iter().next().context("no node")
        };
        let before = look()?;
        wait::until("two reports of the node", LIMIT, || {
            let now = look()?;
            // The first report may have been on its way already.
            let is_new = now.uptime_seconds > before.uptime_seconds + 1.5;
            Ok(is_new.then_some(now.counters))
        })
    }

    /// Connects to a volume's node and shakes hands as `who`.
    ///
    /// # Errors
    /// If the node hangs up.
    pub fn shake(&self, agent: &Agent, volume: &Volume, who: Who) -> Result<Peer> {
        let config = peer::settings(who, &agent.identity, &self.node)?;
        let tcp = peer::connect(Ipv4Addr::LOCALHOST, volume.port)?;
        Peer::shake(tcp, config, &volume.server_name)
    }

    /// An upgraded connection, before the hello.
    ///
    /// # Errors
    /// If the node refuses the request.
    pub fn upgraded(&self, agent: &Agent, volume: &Volume) -> Result<Peer> {
        let mut peer = self.shake(agent, volume, Who::Agent)?;
        peer.send(peer::request(&volume.id.to_string()).as_bytes());
        let status = peer.status()?;
        ensure!(status == 101, "the node answered {status}");
        Ok(peer)
    }

    /// A session; the node must have received what the stream says was taken. While the node has
    /// not heard of the assignment or finishes an older epoch, it is asked again.
    ///
    /// # Errors
    /// If the node refuses, or has another part of the stream.
    pub fn session(&self, agent: &Agent, volume: &Volume, stream: &Stream) -> Result<Peer> {
        wait::until("a session", LIMIT, || {
            let mut peer = self.upgraded(agent, volume)?;
            peer.send(&stream.hello().frame().bytes());
            match peer.said()? {
                Some(Said::Welcome { received, imprint, .. }) => {
                    let sent = stream.next - 1;
                    ensure!(received == sent, "the node has {received}, {sent} were taken");
                    let is_known = imprint != [0; 3] && stream.newest != [0; 3];
                    let is_it = !is_known || imprint == stream.newest;
                    ensure!(is_it, "{imprint:?} is said of the newest frame, {:?}", stream.newest);
                    Ok(Some(peer))
                }
                Some(Said::Refusal { reason: 2 | 6, .. }) => Ok(None),
                other => anyhow::bail!("no welcome but {other:?}"),
            }
        })
    }

    /// Sets a mark, waits until it is in the vault, restores it with nothing but the vault and the
    /// key, and compares.
    ///
    /// # Errors
    /// If it is not committed in time or differs.
    pub fn restores(&self, agent: &Agent, volume: &Volume, stream: &mut Stream) -> Result<()> {
        let mark = Mark::prompt();
        let mut peer = self.session(agent, volume, stream)?;
        peer.send(&stream.mark(&mark));
        let last = stream.next - 1;
        loop {
            match peer.said()? {
                Some(Said::Ack { committed, .. }) if committed >= last => break,
                Some(Said::Ack { .. }) => {}
                other => anyhow::bail!("waited for the commit of {last}, got {other:?}"),
            }
        }
        let (id, vault) = (volume.id, self.system.endpoint("vault")?);
        let file = self.system.path(&format!("{}.restored", volume.machine));
        let point = Uuid::from_bytes(mark.point);
        self.system.bare()?.ok(&format!(
            "vault restore --vault {vault} --volume {id} --point {point} --to {} --force",
            file.display()
        ))?;
        stream.equals(&file).with_context(|| format!("volume of {}", volume.machine))
    }

    /// Fails if the node is another process than `before`.
    ///
    /// # Errors
    /// If it was started anew.
    pub fn same_node(&self, before: rustix::process::Pid) -> Result<()> {
        let now = self.system.pid(Part::Node)?;
        ensure!(now == before, "the node was started anew");
        Ok(())
    }
}
