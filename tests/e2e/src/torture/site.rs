//! What is tortured: a `farshore up`, a second node, two machines with their guests, small disks.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::Options;
use super::clock::{Clocks, Whose};
use super::jobs::Jobs;
use super::programs::Programs;
use super::relay::Relays;
use super::reverts::{CatalogueCopy, PastLife};
use super::second::{SecondNode, logs_of};
use super::small::{self, SmallDisk};
use super::watch::{Violations, Watch, unix_ms};
use crate::image::{Content, MIB};
use crate::protect::Machine;
use crate::system::{Part, Setting, System, free_ports};
use crate::wait;

/// Bytes of each protected disk.
const DISK_BYTES: u64 = 32 * MIB;
/// Bytes of a node's disk. A shard's journal takes up to twice 256 MiB.
const NODE_BYTES: u64 = 2048 * MIB;
/// Bytes of the agent's disk: so few that the logs are trimmed every few seconds, and full in a
/// longer outage.
const AGENT_BYTES: u64 = 64 * MIB;
/// Begins the name of a run's folder.
const PREFIX: &str = "farshore-torture-";
const MACHINES: [&str; 2] = ["web1", "db1"];
const START_LIMIT: Duration = Duration::from_secs(60);

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// That of `farshore up`.
    First,
    /// The torture's own.
    Second,
}

/// A machine and the jobs that write to it.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) machine: Machine,
    pub(super) jobs: Jobs,
    /// What was before its server was rolled back, oldest first.
    pub(super) past: Vec<PastLife>,
    pub(super) volume: String,
    /// How often its disk has been copied as a whole, as far as that was to be.
    copies: u64,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) watch: Watch,
    pub(super) guests: Vec<Guest>,
    pub(super) second: SecondNode,
    pub(super) system: System,
    /// Of the first node, the second node and the agent.
    disks: Vec<SmallDisk>,
    pub(super) violations: Arc<Violations>,
    /// Made while all was well.
    pub(super) catalogue: CatalogueCopy,
    /// None if clocks cannot be set here.
    pub(super) clocks: Option<Clocks>,
    /// On which agent and nodes reach the control plane.
    pub(super) relays: Relays,
    /// Ids of the first and the second node.
    nodes: [String; 2],
}

impl Site {
    /// Starts it all and waits until both machines are protected.
    pub(super) fn start(options: &Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let path = folder.path().to_path_buf();
        small::claim(&path, PREFIX)?;
        let disk = |name: &str, at: &str, bytes| {
            SmallDisk::mount(&path.join(format!("{name}.img")), &path.join(at), bytes)
        };
        // Small disks are mounted in it before `up` comes: it would refuse one that others may look into.
        DirBuilder::new()
            .mode(0o700)
            .create(path.join("data"))
            .context("create the data folder")?;
        let disks = vec![
            disk("node-a", "data/node", NODE_BYTES)?,
            disk("node-b", "node-b", NODE_BYTES)?,
            disk("agent", "data/agent", AGENT_BYTES)?,
        ];
        println!("torture: seed {}, {} min, in {}", options.seed, options.minutes, path.display());
        let clocks = Clocks::prepare(&path);
        let ports = free_ports()?;
        let relays = Relays::to(ports.0)?;
        let programs = Programs::make(&path, clocks.as_ref(), &relays)?;
        let setting = Setting {
            programs: Some(programs.folder.clone()),
            ports: Some(ports),
            ..Setting::default()
        };
        let system = System::start_in(folder, setting)?;
        let violations = Arc::new(Violations::default());
        let second = SecondNode::start(
            &system,
            &path.join("node-b"),
            programs.of(Whose::Node(Which::Second)),
        )?;
        let nodes = find_nodes(&system)?;
        let machines = MACHINES.into_iter().zip([Content::Zeros, Content::Mixed(options.seed)]);
        let machines: Vec<Machine> = machines
            .map(|(name, content)| Machine::protect(&system, name, "nbd", (DISK_BYTES, content)))
            .collect::<Result<_>>()?;
        let slowness = if options.is_long() { 2 } else { 1 };
        let mut guests = Vec::new();
        for (number, machine) in machines.into_iter().enumerate() {
            let seed = options.seed.wrapping_mul(8).wrapping_add(number as u64 + 1);
            let uri = machine.nbd_uri()?;
            let jobs = Jobs::start(seed, &uri, &machine.base, &violations, slowness)?;
            let volume = machine.volume()?;
            guests.push(Guest { machine, jobs, past: Vec::new(), volume, copies: 0 });
        }
        let watch = Watch::start(system.farshore(), &violations)?;
        for guest in &mut guests {
            guest.machine.wait_until_protected()?;
        }
        let catalogue = CatalogueCopy::make(&system)?;
        let mut site = Self {
            watch,
            guests,
            second,
            system,
            disks,
            violations,
            catalogue,
            clocks,
            relays,
            nodes,
        };
        site.note_copies()?;
        Ok(site)
    }

    /// Notes how often disks have been copied as a whole: from now on they need not be.
    pub(super) fn note_copies(&mut self) -> Result<()> {
        for number in 0..self.guests.len() {
            self.guests[number].copies = self.copies(&self.guests[number])?;
        }
        Ok(())
    }

    /// The small disk of a node.
    pub(super) fn node_disk(&self, which: Which) -> &SmallDisk {
        &self.disks[usize::from(which == Which::Second)]
    }

    /// The small disk of the agent.
    pub(super) fn agent_disk(&self) -> &SmallDisk {
        &self.disks[2]
    }

    /// The folder of a node.
    pub(super) fn node_data(&self, which: Which) -> PathBuf {
        match which {
            Which::First => self.system.data().join("node"),
            Which::Second => self.second.data.clone(),
        }
    }

    /// The logs that a node writes by its own word.
    pub(super) fn node_logs(&self, which: Which) -> Result<Vec<String>> {
        logs_of(&self.node_data(which))
    }

    /// The vault's folder.
    pub(super) fn vault(&self) -> PathBuf {
        self.system.data().join("vault")
    }

    pub(super) fn node_id(&self, which: Which) -> &str {
        &self.nodes[usize::from(which == Which::Second)]
    }

    /// The node that has most of the volumes.
    pub(super) fn busy(&self) -> Which {
        let machines = self.watch.machines();
        let count = |which| machines.values().filter(|m| m.node == self.node_id(which)).count();
        if count(Which::First) >= count(Which::Second) { Which::First } else { Which::Second }
    }

    /// Something that changes when a node's process does.
    pub(super) fn run_of(&self, which: Which) -> Option<u64> {
        match which {
            Which::First => {
                let pid = self.system.pid(Part::Node).ok()?;
                u64::try_from(pid.as_raw_nonzero().get()).ok()
            }
            Which::Second => Some(self.second.starts()),
        }
    }

    /// Waits until both nodes run: one that finds its volumes taken over ends itself, and is started again
    /// only after a pause.
    pub(super) fn wait_for_both_nodes(&self) -> Result<()> {
        wait::until("both nodes to run", START_LIMIT, || {
            let first = self.system.pid(Part::Node).ok();
            let is_running = |pid: Option<Pid>| pid.is_some_and(|pid| !is_gone(pid));
            Ok((is_running(first) && is_running(self.second.pid())).then_some(()))
        })
    }

    /// Kills a node, which is started again.
    pub(super) fn kill_node(&self, which: Which) -> Result<()> {
        match which {
            Which::First => self.system.kill(Part::Node),
            Which::Second => {
                self.second.kill();
                Ok(())
            }
        }
    }

    /// The process of a node, if it runs.
    pub(super) fn node_pid(&self, which: Which) -> Option<Pid> {
        match which {
            Which::First => self.system.pid(Part::Node).ok(),
            Which::Second => self.second.pid(),
        }
    }

    pub(super) fn signal_node(&self, which: Which, signal: Signal) -> Result<()> {
        match which {
            Which::First => self.system.signal(Part::Node, signal),
            Which::Second => self.second.signal(signal),
        }
    }

    /// Waits until a node runs as another process than `before`, and that one has reported.
    pub(super) fn wait_for_node(&self, which: Which, before: Option<u64>) -> Result<()> {
        let mut another_ms = None;
        wait::until("the node to be back", START_LIMIT, || {
            self.violations.check()?;
            if self.run_of(which) == before {
                return Ok(None);
            }
            // The last report of the process before may be from just now.
            let since_ms = *another_ms.get_or_insert_with(unix_ms);
            Ok(self.is_heard_since(which, since_ms)?.then_some(()))
        })
    }

    /// Waits until a node that lives on writes other logs than these, and has said something since.
    pub(super) fn wait_for_new_logs(&self, which: Which, before: &[String]) -> Result<()> {
        let since_ms = unix_ms();
        wait::until("the node to go on with a new log", START_LIMIT, || {
            self.violations.check()?;
            let is_new = self.node_logs(which).is_ok_and(|now| now != before);
            Ok((is_new && self.is_heard_since(which, since_ms)?).then_some(()))
        })
    }

    fn is_heard_since(&self, which: Which, since_ms: u64) -> Result<bool> {
        let Ok(listed) = self.system.farshore().json("node list") else { return Ok(false) };
        let nodes = listed["nodes"].as_array().context("no list of nodes")?;
        Ok(nodes.iter().any(|node| {
            let seen_ms = node["last_seen_unix_ms"].as_u64().unwrap_or_default();
            node["id"] == self.node_id(which) && seen_ms > since_ms
        }))
    }

    /// How often an agent has begun to copy the whole disk of a guest again.
    fn copies(&self, guest: &Guest) -> Result<u64> {
        let path = self.system.data().join("agent/volumes").join(&guest.volume).join("state.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let state: Value = serde_json::from_slice(&text)?;
        Ok(state["copy"]["generation"].as_u64().unwrap_or_default())
    }

    /// Checks that no disk has been sent as a whole again.
    pub(super) fn check_copies(&self) -> Result<()> {
        for guest in &self.guests {
            let copies = self.copies(guest)?;
            let name = &guest.machine.name;
            ensure!(copies == guest.copies, "{name} was copied as a whole again");
        }
        Ok(())
    }

    /// Keeps the folder, for whoever looks into what was violated; returns where it is.
    pub(super) fn keep(&mut self) -> PathBuf {
        self.system.keep().to_path_buf()
    }

    /// Ends every process, in order where they let it.
    pub(super) fn stop(&mut self) -> Result<()> {
        for guest in &mut self.guests {
            guest.jobs.stop();
        }
        self.watch.stop();
        self.second.end();
        self.system.stop()
    }
}

impl Drop for Site {
    /// Leaves neither processes nor mounts behind, however it ended.
    fn drop(&mut self) {
        for guest in &mut self.guests {
            guest.jobs.stop();
        }
        self.watch.stop();
        // What was stopped cannot be ended in order.
        let _ = self.system.signal_supervisor(Signal::CONT);
        for part in [Part::Control, Part::Node, Part::Agent] {
            let _ = self.system.signal(part, Signal::CONT);
        }
        self.second.end();
        self.system.end();
        self.disks.clear();
    }
}

/// Ids of the node of `farshore up` and of the other one, once both are registered.
fn find_nodes(system: &System) -> Result<[String; 2]> {
    let own = identity(&system.data().join("node"))?;
    wait::until("the second node to be registered", START_LIMIT, || {
        let listed = system.farshore().json("node list")?;
        let nodes = listed["nodes"].as_array().context("no list of nodes")?;
        let ids: Vec<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
        let other = ids.iter().find(|id| **id != own);
        Ok(other.map(|other| [own.clone(), (*other).to_owned()]))
    })
}

fn identity(data: &Path) -> Result<String> {
    let path = data.join("identity.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let identity: Value = serde_json::from_slice(&text)?;
    identity["id"].as_str().map(str::to_owned).context("an identity without an id")
}

/// Whether a process has ended, waited for or not.
pub(super) fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let state = stat.ok().and_then(|stat| {
        let (_, rest) = stat.rsplit_once(')')?;
        rest.trim_start().chars().next()
    });
    matches!(state, None | Some('Z' | 'X'))
}
