//! How a machine's state reads, given what was last heard of it.
//!
//! | what is known, first match wins | state |
//! |---|---|
//! | fenced by an unplanned failover | failed_over |
//! | no node has its volume | pending |
//! | the agent was never heard about it | pending |
//! | the agent is late, or was not heard since the control plane's start | degraded |
//! | the agent says error | error |
//! | its disk is protected as an older machine too | error |
//! | its disk is protected as a younger machine too | degraded |
//! | the last report is of an older epoch | degraded |
//! | the agent says protected, the node is silent | degraded |
//! | the agent says protected, its node cannot work | degraded |
//! | otherwise | as the agent says |

use farshore_api::agent::{SampleReport, VolumeState};
use farshore_api::limits;
use farshore_api::machine::{Capture, Machine, MachineState, Volume, VolumeStats};
use farshore_api::point::Point;
use uuid::Uuid;

/// What the catalogue holds of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineFacts {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Name of its policy.
    pub policy: String,
    /// Its own mark interval, or else its policy's.
    pub mark_interval_ms: u64,
    /// How the agent learns of changes.
    pub capture: Capture,
    /// Its agent.
    pub agent: Uuid,
    /// Name of its agent's machine.
    pub agent_hostname: String,
    /// Whether an unplanned failover fenced it.
    pub failed_over: bool,
    /// When it was protected.
    pub created_at_ms: u64,
    /// Its disks; there is at least one.
    pub volumes: Vec<VolumeFacts>,
    /// Its newest committed point.
    pub last_point: Option<Point>,
}

/// What the catalogue holds of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeFacts {
    /// Its id.
    pub id: Uuid,
    /// Path of the disk.
    pub disk: String,
    /// Its current epoch.
    pub epoch: u64,
    /// Where it is placed.
    pub node: Option<Uuid>,
    /// How long that node has not reported, in time that passed.
    pub node_silent_ms: Option<u64>,
    /// What keeps that node from its work.
    pub node_trouble: Option<String>,
    /// What its agent said last; `None` if it was never heard.
    pub report: Option<VolumeHeard>,
    /// Other machines that have the same disk.
    pub twins: Vec<Twin>,
    /// Totals over all epochs.
    pub stats: VolumeStats,
}

/// Another machine with the same disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Twin {
    /// Its name.
    pub machine: String,
    /// Where its agent runs.
    pub agent_hostname: String,
    /// Whether it was there first.
    pub is_older: bool,
}

/// What an agent said of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeHeard {
    /// How long ago, in time that passed: no step of a clock makes it less.
    pub silent_ms: u64,
    /// Whether that was since the control plane started.
    pub is_of_this_run: bool,
    /// What the disk is, for people; empty if it is not known.
    pub identity: String,
    /// Under which epoch it sends.
    pub epoch: u64,
    /// State.
    pub state: VolumeState,
    /// One sentence, or empty.
    pub detail: String,
    /// Why it cannot go on.
    pub error: Option<String>,
    /// 0 to 1.
    pub progress: f64,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Watermarks.
    pub sent_seq: u64,
    /// Watermarks.
    pub journaled_seq: u64,
    /// Watermarks.
    pub committed_seq: u64,
    /// Age of the newest committed data then.
    pub rpo_seconds: Option<f64>,
    /// Where the splitter serves.
    pub nbd_uri: Option<String>,
    /// What comparing the disk with what was sent has brought.
    pub samples: Option<SampleReport>,
}

/// Of a node.
const SILENT_MS: u64 = limits::SILENT_AFTER_SECONDS * 1000;
/// Of an agent: what it said last is no word on how things are now.
const LATE_MS: u64 = limits::AGENT_LATE_AFTER_SECONDS * 1000;

#[expect(clippy::cast_precision_loss, reason = "ages are shown to people; 52 bits are plenty")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// Puts together what is shown of a machine at the time `now_ms`.
#[must_use]
pub fn view(facts: MachineFacts, now_ms: u64) -> Machine {
    let (state, state_detail) = state(&facts);
    let first = facts.volumes.first();
    Machine {
        state,
        state_detail,
        rpo_seconds: rpo_seconds(&facts.volumes, facts.last_point.as_ref(), now_ms),
        node: first.and_then(|volume| volume.node),
        epoch: first.map_or(0, |volume| volume.epoch),
        name: facts.name,
        id: facts.id,
        policy: facts.policy,
        mark_interval_ms: facts.mark_interval_ms,
        capture: facts.capture,
        agent: facts.agent,
        volumes: facts.volumes.into_iter().map(volume_view).collect(),
        last_point: facts.last_point,
        created_at_unix_ms: facts.created_at_ms,
    }
}

/// The worst of the volumes, grown by the age of what was said; nothing if one has no point yet.
///
/// An agent that has just started knows of no point; then it is the age of the newest one.
fn rpo_seconds(volumes: &[VolumeFacts], newest: Option<&Point>, now_ms: u64) -> Option<f64> {
    let set_at = |point: &Point| point.at_unix_ms.unwrap_or(point.time_unix_ms);
    let newest = newest.map(|point| seconds(now_ms.saturating_sub(set_at(point))));
    let ages = volumes.iter().map(|volume| {
        let heard = volume.report.as_ref()?;
        let silent = seconds(heard.silent_ms);
        let told = heard.rpo_seconds.map(|rpo| rpo + silent);
        told.or(newest.map(|age| age.max(silent)))
    });
    ages.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)
}

fn volume_view(facts: VolumeFacts) -> Volume {
    let heard = facts.report;
    let (progress, size_bytes) = heard.as_ref().map_or((0.0, 0), |h| (h.progress, h.size_bytes));
    let seqs = heard
        .as_ref()
        .map_or((0, 0, 0), |heard| (heard.sent_seq, heard.journaled_seq, heard.committed_seq));
    Volume {
        id: facts.id,
        disk: facts.disk,
        identity: heard
            .as_ref()
            .map(|heard| heard.identity.clone())
            .filter(|text| !text.is_empty()),
        size_bytes,
        progress,
        sent_seq: seqs.0,
        journaled_seq: seqs.1,
        committed_seq: seqs.2,
        samples: heard.as_ref().and_then(|heard| heard.samples),
        nbd_uri: heard.filter(|heard| heard.is_of_this_run).and_then(|heard| heard.nbd_uri),
        stats: facts.stats,
    }
}

fn state(facts: &MachineFacts) -> (MachineState, String) {
    if facts.failed_over {
        let detail = "fenced by an unplanned failover: the copy is what runs";
        return (MachineState::FailedOver, detail.into());
    }
    let states = facts.volumes.iter().map(|volume| volume_state(facts, volume));
    states
        .max_by_key(|(state, _)| severity(*state))
        .unwrap_or((MachineState::Pending, String::new()))
}

/// Which of several volumes' states stands for the machine.
fn severity(state: MachineState) -> u8 {
    match state {
        MachineState::Protected => 0,
        MachineState::Copying => 1,
        MachineState::Resyncing => 2,
        MachineState::Pending => 3,
        MachineState::Degraded => 4,
        _ => 5,
    }
}

fn volume_state(facts: &MachineFacts, volume: &VolumeFacts) -> (MachineState, String) {
    if volume.node.is_none() {
        return (
            MachineState::Pending,
            "waits for a node: none has reported in the last seconds".to_owned(),
        );
    }
    let Some(heard) = &volume.report else {
        let detail = format!("waits for the first report of the agent on {}", facts.agent_hostname);
        return (MachineState::Pending, detail);
    };
    let silent_ms = heard.silent_ms;
    if silent_ms > LATE_MS || !heard.is_of_this_run {
        let since = if heard.is_of_this_run {
            format!("for {} s", silent_ms / 1000)
        } else {
            format!("since the control plane started, and {} s in all", silent_ms / 1000)
        };
        let detail = format!(
            "the agent on {} was not heard {since}; check that farshore-agent runs there and reaches \
             this control plane",
            facts.agent_hostname,
        );
        return (MachineState::Degraded, detail);
    }
    if heard.state == VolumeState::Error {
        let error = heard.error.as_ref().unwrap_or(&heard.detail);
        return (MachineState::Error, error.clone());
    }
    if let Some(told) = twin_state(volume, heard) {
        return told;
    }
    if heard.epoch != volume.epoch {
        return (MachineState::Degraded, "moving to another node".into());
    }
    let node_silent_ms = volume.node_silent_ms.unwrap_or_default();
    if heard.state == VolumeState::Protected && node_silent_ms > SILENT_MS {
        let detail = format!("its node has not reported for {} s", node_silent_ms / 1000);
        return (MachineState::Degraded, detail);
    }
    if let (VolumeState::Protected, Some(trouble)) = (heard.state, &volume.node_trouble) {
        return (MachineState::Degraded, format!("its node: {trouble}"));
    }
    let state = match heard.state {
        VolumeState::Pending => MachineState::Pending,
        VolumeState::Copying => MachineState::Copying,
        VolumeState::Resyncing => MachineState::Resyncing,
        VolumeState::Protected => MachineState::Protected,
        VolumeState::Degraded => MachineState::Degraded,
        VolumeState::Error => MachineState::Error,
        VolumeState::Unknown => MachineState::Unknown,
    };
    (state, heard.detail.clone())
}

/// One disk of two machines: neither sees what the other writes.
fn twin_state(volume: &VolumeFacts, heard: &VolumeHeard) -> Option<(MachineState, String)> {
    let older = volume.twins.iter().find(|twin| twin.is_older);
    let twin = older.or(volume.twins.first())?;
    let state = if older.is_some() { MachineState::Error } else { MachineState::Degraded };
    let detail = format!(
        "its disk ({}) is protected as machine `{}` by the agent on {} as well: one disk is protected \
         once; unprotect one of the two",
        heard.identity, twin.machine, twin.agent_hostname
    );
    Some((state, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn heard(state: VolumeState) -> VolumeHeard {
        VolumeHeard {
            silent_ms: 2_000,
            is_of_this_run: true,
            identity: "wwid naa.1".into(),
            epoch: 3,
            state,
            detail: String::new(),
            error: None,
            progress: 1.0,
            size_bytes: 1 << 30,
            sent_seq: 9,
            journaled_seq: 8,
            committed_seq: 7,
            rpo_seconds: Some(1.5),
            nbd_uri: None,
            samples: None,
        }
    }

    fn facts(report: Option<VolumeHeard>) -> MachineFacts {
        MachineFacts {
            id: Uuid::from_u128(1),
            name: "web".into(),
            policy: "default".into(),
            mark_interval_ms: 5000,
            capture: Capture::Nbd,
            agent: Uuid::from_u128(2),
            agent_hostname: "alpha".into(),
            failed_over: false,
            created_at_ms: 5,
            volumes: vec![VolumeFacts {
                id: Uuid::from_u128(3),
                disk: "/dev/vda".into(),
                epoch: 3,
                node: Some(Uuid::from_u128(4)),
                node_silent_ms: Some(0),
                node_trouble: None,
                report,
                twins: Vec::new(),
                stats: VolumeStats::default(),
            }],
            last_point: None,
        }
    }

    #[test]
    fn a_fresh_report_is_shown_as_it_is_and_rpo_grows_with_its_age() {
        let machine = view(facts(Some(heard(VolumeState::Protected))), NOW);
        assert_eq!(machine.state, MachineState::Protected);
        assert_eq!(machine.rpo_seconds, Some(3.5));
        assert_eq!(machine.volumes[0].committed_seq, 7);
        assert_eq!(machine.epoch, 3);
    }

    #[test]
    fn a_silent_agent_degrades_and_rpo_goes_on_growing_whatever_the_clock_says() {
        let mut silent = heard(VolumeState::Protected);
        silent.silent_ms = 62_000;
        for now_ms in [NOW + 60_000, NOW - 900_000] {
            let machine = view(facts(Some(silent.clone())), now_ms);
            assert_eq!(machine.state, MachineState::Degraded);
            assert!(machine.state_detail.contains("alpha"), "{}", machine.state_detail);
            assert_eq!(machine.rpo_seconds, Some(63.5));
        }
    }

    /// P10: what was said before is no word on how things are: not after some seconds, and not after a start.
    #[test]
    fn nothing_is_protected_on_an_old_word() {
        let mut late = heard(VolumeState::Protected);
        late.silent_ms = LATE_MS + 1;
        let machine = view(facts(Some(late)), NOW);
        assert_eq!(machine.state, MachineState::Degraded);
        assert!(machine.state_detail.contains("was not heard for 8 s"), "{}", machine.state_detail);
        let mut before = heard(VolumeState::Protected);
        before.is_of_this_run = false;
        let machine = view(facts(Some(before)), NOW);
        assert_eq!(machine.state, MachineState::Degraded);
        assert!(machine.state_detail.contains("not heard since the control plane started"));
    }

    #[test]
    fn one_disk_of_two_machines_is_an_error_of_the_younger() {
        let twin =
            |is_older| Twin { machine: "other".into(), agent_hostname: "beta".into(), is_older };
        for (is_older, state) in [(true, MachineState::Error), (false, MachineState::Degraded)] {
            let mut facts = facts(Some(heard(VolumeState::Protected)));
            facts.volumes[0].twins = vec![twin(is_older)];
            let machine = view(facts, NOW);
            assert_eq!(machine.state, state);
            for word in ["wwid naa.1", "`other`", "beta"] {
                assert!(machine.state_detail.contains(word), "{}", machine.state_detail);
            }
        }
    }

    #[test]
    fn an_agent_that_has_just_started_does_not_hide_the_age_of_the_newest_point() {
        let mut report = heard(VolumeState::Resyncing);
        report.rpo_seconds = None;
        let mut restarted = facts(Some(report));
        assert_eq!(view(restarted.clone(), NOW).rpo_seconds, None, "no point yet");
        restarted.last_point = Some(Point {
            point: Uuid::from_u128(5),
            kind: farshore_api::point::PointKind::Crash,
            rank: Some(7),
            // Its agent's clock was ahead.
            time_unix_ms: NOW + 7_200_000,
            at_unix_ms: Some(NOW - 20_000),
            heard_unix_ms: Some(NOW - 19_000),
            clock_off_ms: Some(7_220_000),
            state: farshore_api::point::PointState::Committed,
            volumes: Vec::new(),
        });
        assert_eq!(view(restarted, NOW).rpo_seconds, Some(20.0));
    }

    #[test]
    fn errors_carry_their_sentence() {
        let mut report = heard(VolumeState::Error);
        report.error = Some("disk /dev/vda is missing".into());
        let machine = view(facts(Some(report)), NOW);
        assert_eq!(machine.state, MachineState::Error);
        assert_eq!(machine.state_detail, "disk /dev/vda is missing");
    }

    #[test]
    fn unplaced_unheard_moved_and_fenced_volumes_say_so() {
        assert_eq!(view(facts(None), NOW).state, MachineState::Pending);
        let mut unplaced = facts(Some(heard(VolumeState::Protected)));
        unplaced.volumes[0].node = None;
        assert_eq!(view(unplaced, NOW).state, MachineState::Pending);
        let mut moved = facts(Some(heard(VolumeState::Protected)));
        moved.volumes[0].epoch = 4;
        assert_eq!(view(moved, NOW).state, MachineState::Degraded);
        let mut fenced = facts(Some(heard(VolumeState::Protected)));
        fenced.failed_over = true;
        assert_eq!(view(fenced, NOW).state, MachineState::FailedOver);
    }

    #[test]
    fn a_silent_node_degrades_a_protected_machine() {
        let mut silent = facts(Some(heard(VolumeState::Protected)));
        let mut troubled = silent.clone();
        troubled.volumes[0].node_trouble = Some("the vault takes no segments".into());
        let shown = view(troubled, NOW);
        assert_eq!(shown.state, MachineState::Degraded);
        assert!(shown.state_detail.contains("takes no segments"), "{}", shown.state_detail);
        silent.volumes[0].node_silent_ms = Some(SILENT_MS + 1);
        assert_eq!(view(silent, NOW).state, MachineState::Degraded);
    }
}
