//! How each fault is done, and what must be seen meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::Options;
use super::plan::Fault;
use super::site::{Site, Which, is_gone};
use super::watch::{Seen, unix_ms};
use crate::system::Part;
use crate::wait;

/// How long what a fault must bring about may take.
pub(super) const EVIDENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long volumes may take to replicate elsewhere; what the design promises is measured.
const MOVE_LIMIT: Duration = Duration::from_secs(60);
/// Twice what a node may be silent, and more.
const CONTROL_PAUSE: Duration = Duration::from_secs(14);
/// How long after that, or after wrong clocks, a machine must still be where it was.
const SETTLED_MS: u64 = 5000;
/// How long it may take until nothing of a pause or of wrong clocks is left: who was refused for a while
/// comes again after a pause of its own.
const SETTLED_LIMIT: Duration = Duration::from_secs(120);
/// A node that stops for so long keeps its volumes.
const PAUSE: Duration = Duration::from_secs(2);

/// What a fault did.
#[derive(Clone, Debug)]
pub(super) struct Struck {
    /// When it began.
    pub(super) begun_ms: u64,
    /// When it was over and recovery could begin.
    pub(super) over: Instant,
    /// The same, as marks are stamped.
    pub(super) over_ms: u64,
    /// Volumes that had to move, and the time from the fault until all replicated elsewhere.
    pub(super) moved: Option<(usize, Duration)>,
    /// Objects that a node put into its sealed logs after it had lost its volumes.
    pub(super) late_puts: usize,
    /// Whether disks may have to be read as a whole again.
    pub(super) is_read_again: bool,
    /// The control plane may not know of points that were set since then.
    pub(super) forgets_since_ms: Option<u64>,
    /// Why nothing was done at all.
    pub(super) not_tried: Option<&'static str>,
}

impl Struck {
    pub(super) fn since(begun_ms: u64) -> Self {
        Self {
            begun_ms,
            over: Instant::now(),
            over_ms: unix_ms(),
            moved: None,
            late_puts: 0,
            is_read_again: false,
            forgets_since_ms: None,
            not_tried: None,
        }
    }
}

impl Site {
    /// Does a fault and takes it back; recovery begins when this returns, or has begun before.
    pub(super) fn strike(&mut self, fault: Fault, options: &Options) -> Result<Struck> {
        match fault {
            Fault::AgentKilled => self.kill_part(Part::Agent),
            Fault::FirstNodeKilled => self.kill_node_at_once(Which::First),
            Fault::SecondNodeKilled => self.kill_node_at_once(Which::Second),
            Fault::ControlKilled => self.kill_part(Part::Control),
            Fault::ControlAway => self.control_away(options.hold(5, 20)),
            Fault::ControlPaused => self.control_paused(),
            Fault::AllKilled => self.all_killed(),
            Fault::SupervisorKilled => self.supervisor_killed(),
            Fault::NodePaused => self.node_paused(),
            Fault::NodeFrozen => self.node_frozen(),
            Fault::NodeLost => self.node_lost(),
            Fault::NodeFull => self.node_full(options.hold(3, 20)),
            Fault::AgentFull => self.agent_full(options.hold(3, 20), false),
            Fault::AgentFullKilled => self.agent_full(options.hold(3, 10), true),
            Fault::VaultAway => self.vault_away(options.hold(10, 60), || Ok(())),
            Fault::VaultAwayNodeKilled => {
                self.vault_away(options.hold(6, 30), || self.kill_node(self.busy()))
            }
            Fault::CatalogueOld => self.catalogue_old(),
            Fault::AgentReverted => self.agent_reverted(options.hold(2, 20)),
            Fault::ClockStepped => self.clock_stepped(options.hold(4, 20)),
            Fault::StoreAwayWhileRead => self.store_away_while_read(options.hold(8, 20)),
            Fault::AgentPaused => self.agent_paused(options.hold(4, 15)),
            Fault::AgentCloned => self.agent_cloned(options.hold(1, 10)),
            Fault::NodeCloned => self.node_cloned(options.hold(4, 15)),
            Fault::AgentClockStepped => self.agent_clock_stepped(options.hold(3, 10)),
            Fault::NodeClockStepped => self.node_clock_stepped(options.hold(3, 10)),
            Fault::ReportHung => self.report_hung(options.hold(8, 30)),
        }
    }

    fn kill_part(&self, part: Part) -> Result<Struck> {
        let before = self.system.pid(part)?;
        self.system.kill(part)?;
        let struck = Struck::since(unix_ms());
        self.system.wait_for_another(part, before)?;
        Ok(struck)
    }

    fn kill_node_at_once(&self, which: Which) -> Result<Struck> {
        let before = self.run_of(which);
        self.kill_node(which)?;
        let struck = Struck::since(unix_ms());
        self.wait_for_node(which, before)?;
        Ok(struck)
    }

    /// The control plane away for `hold`: replication goes on, and the points of that time are told
    /// of when it is back (I10).
    fn control_away(&self, hold: Duration) -> Result<Struck> {
        let before = self.system.pid(Part::Control)?;
        // Or it would be back at once.
        self.system.signal_supervisor(Signal::STOP)?;
        let begun_ms = unix_ms();
        let killed = self.system.kill(Part::Control);
        thread::sleep(hold);
        let back_ms = unix_ms();
        self.system.signal_supervisor(Signal::CONT)?;
        killed?;
        self.system.wait_for_another(Part::Control, before)?;
        let struck = Struck::since(begun_ms);
        for guest in &self.guests {
            let name = &guest.machine.name;
            wait::until("the points of that time", EVIDENCE_LIMIT, || {
                let Ok(points) = guest.points(&self.system) else { return Ok(None) };
                let is_of_then = |point: &super::rounds::Point| {
                    (begun_ms + 1000..back_ms).contains(&point.set_ms)
                };
                Ok(points.iter().any(is_of_then).then_some(()))
            })
            .with_context(|| format!("{name} had no point while the control plane was away"))?;
        }
        Ok(struck)
    }

    /// The control plane stops for longer than a node may be silent, and goes on as if nothing had
    /// been: that it heard nobody meanwhile says nothing of the nodes, and no volume moves.
    fn control_paused(&self) -> Result<Struck> {
        let before = self.watch.machines();
        let begun_ms = unix_ms();
        self.system.signal(Part::Control, Signal::STOP)?;
        thread::sleep(CONTROL_PAUSE);
        self.system.signal(Part::Control, Signal::CONT)?;
        let struck = Struck::since(begun_ms);
        self.check_unmoved(&before, "a pause of the control plane")?;
        Ok(struck)
    }

    /// Checks that no machine is moved by what has just ended.
    pub(super) fn check_unmoved(&self, before: &BTreeMap<String, Seen>, what: &str) -> Result<()> {
        // Nodes' reports come each second: after as many, any move would have been decided.
        let seen_ms = unix_ms() + SETTLED_MS;
        self.watch.until("points of after all had settled", SETTLED_LIMIT, |machines| {
            machines.values().all(|seen| seen.is_good_since(seen_ms))
        })?;
        for (name, now) in self.watch.machines() {
            let before = &before[&name];
            ensure!(
                (&before.node, before.epoch) == (&now.node, now.epoch),
                "{name} was moved by {what}: {before:?}, then {now:?}"
            );
        }
        Ok(())
    }

    fn all_killed(&mut self) -> Result<Struck> {
        let run = self.run_of(Which::Second);
        self.system.kill_all()?;
        self.second.kill();
        let struck = Struck::since(unix_ms());
        self.system.up()?;
        self.wait_for_node(Which::Second, run)?;
        Ok(struck)
    }

    fn supervisor_killed(&mut self) -> Result<Struck> {
        self.system.kill_supervisor()?;
        let struck = Struck::since(unix_ms());
        self.system.up()?;
        Ok(struck)
    }

    /// The agent stops, and its machines' state says that nobody hears it. Guests wait, without an
    /// error; what they had been told is on the disk, and all goes on where it was.
    fn agent_paused(&self, hold: Duration) -> Result<Struck> {
        let begun_ms = unix_ms();
        self.system.signal(Part::Agent, Signal::STOP)?;
        let noticed = self.watch.until("the agent to be missed", EVIDENCE_LIMIT, |seen| {
            seen.values().all(|machine| machine.state != "protected")
        });
        let answers = || self.guests.iter().map(|guest| guest.jobs.answers()).sum::<u64>();
        let before = answers();
        thread::sleep(hold);
        let after = answers();
        self.system.signal(Part::Agent, Signal::CONT)?;
        noticed?;
        ensure!(before == after, "an agent that stands still answered {} times", after - before);
        Ok(Struck::since(begun_ms))
    }

    fn node_paused(&self) -> Result<Struck> {
        let which = self.busy();
        let begun_ms = unix_ms();
        self.signal_node(which, Signal::STOP)?;
        thread::sleep(PAUSE);
        self.signal_node(which, Signal::CONT)?;
        Ok(Struck::since(begun_ms))
    }

    /// A node stops, loses its volumes, and goes on as if nothing had been: it must not commit
    /// anything (I3), must notice, and go on with new logs.
    fn node_frozen(&self) -> Result<Struck> {
        let which = self.busy();
        let logs = self.node_logs(which)?;
        let begun_ms = unix_ms();
        let begun = Instant::now();
        self.signal_node(which, Signal::STOP)?;
        let moved = self.wait_until_moved(which, begun, begun_ms);
        let slots = self.slots(&logs);
        self.signal_node(which, Signal::CONT)?;
        let mut struck = Struck { moved: Some(moved?), ..Struck::since(begun_ms) };
        self.wait_for_new_logs(which, &logs)
            .context("the node that had stopped goes on as it was")?;
        let now = self.node_logs(which)?;
        let sealed: Vec<String> = logs.into_iter().filter(|log| !now.contains(log)).collect();
        struck.late_puts = self.slots(&sealed)?.difference(&slots?).count();
        Ok(struck)
    }

    /// A node is killed and stays away until others have its volumes.
    fn node_lost(&self) -> Result<Struck> {
        let which = self.busy();
        let (run, logs) = (self.run_of(which), self.node_logs(which)?);
        match which {
            // It would be started again at once.
            Which::First => self.system.signal_supervisor(Signal::STOP)?,
            Which::Second => {}
        }
        let begun_ms = unix_ms();
        let begun = Instant::now();
        match which {
            Which::First => self.system.kill(Part::Node)?,
            Which::Second => self.second.keep_away(),
        }
        let moved = self.wait_until_moved(which, begun, begun_ms);
        match which {
            Which::First => self.system.signal_supervisor(Signal::CONT)?,
            Which::Second => self.second.come_back(),
        }
        let struck = Struck { moved: Some(moved?), ..Struck::since(begun_ms) };
        self.wait_for_node(which, run)?;
        ensure!(self.node_logs(which)? != logs, "a node without its volumes has its old logs");
        Ok(struck)
    }

    /// Waits until what a node had replicates elsewhere: a point set since then is in the vault.
    fn wait_until_moved(
        &self,
        which: Which,
        begun: Instant,
        begun_ms: u64,
    ) -> Result<(usize, Duration)> {
        let from = self.node_id(which).to_owned();
        let before = self.watch.machines();
        let theirs: Vec<String> =
            before.iter().filter(|(_, seen)| seen.node == from).map(|(n, _)| n.clone()).collect();
        ensure!(!theirs.is_empty(), "the busiest node has no volume: {before:?}");
        let mut is_given_up = false;
        wait::until("the volumes to replicate elsewhere", MOVE_LIMIT, || {
            self.violations.check()?;
            // Faults come faster here than nodes may be lost without a person.
            if !is_given_up && self.is_asked_for(&from)? {
                self.system.farshore().ok(&format!("node lost {from} --yes"))?;
                is_given_up = true;
            }
            let machines = self.watch.machines();
            let is_moved = theirs.iter().all(|name| {
                let seen = &machines[name];
                seen.node != from && seen.is_good_since(begun_ms)
            });
            Ok(is_moved.then_some(()))
        })
        .with_context(|| format!("last seen: {:?}", self.watch.machines()))?;
        let took = begun.elapsed();
        self.check_copies().context("after the move")?;
        Ok((theirs.len(), took))
    }

    /// Whether the control plane waits for a person's word that a node is gone.
    fn is_asked_for(&self, node: &str) -> Result<bool> {
        let listed = self.system.farshore().json("node list")?;
        let nodes = listed["nodes"].as_array().context("a list of nodes")?;
        Ok(nodes.iter().any(|shown| shown["id"] == node && shown["life"] == "asked"))
    }

    /// Names of the objects in some logs.
    fn slots(&self, logs: &[String]) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for log in logs {
            let folder = self.vault().join("logs").join(log);
            // A shard that never had a volume has put nothing.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries {
                let name = entry.with_context(|| format!("list {}", folder.display()))?.file_name();
                names.insert(format!("{log}/{}", name.to_string_lossy()));
            }
        }
        Ok(names)
    }

    /// The node's disk is full: it takes no more, nothing that was acked is lost, and it goes on
    /// when there is room, unless the other node has taken its volumes over.
    fn node_full(&self, hold: Duration) -> Result<Struck> {
        let which = self.busy();
        let run = self.run_of(which);
        let begun_ms = unix_ms();
        self.node_disk(which).fill()?;
        let noticed = wait::until("the node to find its disk full", EVIDENCE_LIMIT, || {
            self.violations.check()?;
            let is_down = match which {
                Which::First => self.system.pid(Part::Node).map_or(true, is_gone),
                Which::Second => self.second.pid().is_none_or(is_gone),
            };
            // A node that has a full journal waits for room, and its machines say so.
            let is_told = self.watch.machines().values().any(|seen| seen.state != "protected");
            Ok((is_told || is_down || self.run_of(which) != run).then_some(()))
        });
        thread::sleep(hold);
        self.node_disk(which).free()?;
        noticed?;
        let struck = Struck::since(begun_ms);
        if self.run_of(which) != run {
            self.wait_for_node(which, run)?;
        }
        Ok(struck)
    }

    /// The agent's disk is full: guests go on, marks wait.
    fn agent_full(&self, hold: Duration, is_killed: bool) -> Result<Struck> {
        let begun_ms = unix_ms();
        self.agent_disk().fill()?;
        let noticed = self.watch.until("the agent to find its disk full", EVIDENCE_LIMIT, |seen| {
            seen.values().all(|machine| machine.state != "protected")
        });
        let went_on = self.guests.iter().try_for_each(|guest| {
            guest.jobs.progress(5, EVIDENCE_LIMIT).context("a guest waits for a full log")
        });
        let killed = if is_killed { self.kill_part(Part::Agent).map(|_| ()) } else { Ok(()) };
        thread::sleep(hold);
        self.agent_disk().free()?;
        noticed.and(went_on).and(killed)?;
        Ok(Struck::since(begun_ms))
    }

    /// The vault's folder is somewhere else for a while, in which something more is done.
    pub(super) fn vault_away(
        &self,
        hold: Duration,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Struck> {
        let (vault, away) = (self.vault(), self.system.path("vault.away"));
        let begun_ms = unix_ms();
        let begun = Instant::now();
        fs::rename(&vault, &away).context("take the vault away")?;
        let done = meanwhile();
        let is_noticed = self.watch.until("the vault to be missed", EVIDENCE_LIMIT, |seen| {
            seen.values().all(|machine| machine.state != "protected")
        });
        thread::sleep(hold.saturating_sub(begun.elapsed()));
        if vault.exists() {
            // Made by a put that had found the vault a moment before; it must not have counted.
            fs::remove_dir_all(&vault).context("remove what was made in place of the vault")?;
        }
        fs::rename(&away, &vault).context("bring the vault back")?;
        done.and(is_noticed)?;
        Ok(Struck::since(begun_ms))
    }
}
