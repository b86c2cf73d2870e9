//! What the agent knows of its volumes: what it was told last, and what nobody said any more.
//!
//! A volume leaves only by a word that ends it. One that is missing from what the control plane says
//! (a database restored from yesterday, no node for it, a mistake) goes on as it was told last, through
//! restarts of the agent too: its server must not lose its disk.

use farshore_api::agent::{AgentVolume, Assignments};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the control plane said of a volume last; the strongest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It is assigned.
    #[default]
    Assigned,
    /// Nothing.
    Silent,
    /// Its machine runs elsewhere since a failover.
    Fenced,
    /// It is to end once its last client has left.
    Detached,
}

/// A volume with the last word on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownVolume {
    /// As it was assigned last.
    #[serde(flatten)]
    pub volume: AgentVolume,
    /// The last word.
    #[serde(default)]
    pub word: Word,
}

/// Everything that the agent knows of its volumes; kept by [`super::Kept`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Number of the assignments that this follows from.
    pub version: u64,
    /// The volumes.
    pub volumes: Vec<KnownVolume>,
    /// Volumes that the control plane wants to hear the end of.
    #[serde(default)]
    pub detached: Vec<uuid::Uuid>,
}

/// What the agent knows, shared.
pub type Assigned = Arc<Known>;

impl Known {
    /// What is known once `told` was heard.
    #[must_use]
    pub fn after(&self, told: Assignments) -> Self {
        let is_listed = |old: &KnownVolume| {
            told.volumes.iter().any(|volume| volume.volume == old.volume.volume)
        };
        let unlisted = self.volumes.iter().filter(|old| !is_listed(old)).filter_map(|old| {
            let id = &old.volume.volume;
            let word = match old.word {
                _ if told.detached.contains(id) => Word::Detached,
                // Its end was told to the control plane, which forgot it.
                Word::Detached => return None,
                _ if told.fenced.contains(id) => Word::Fenced,
                _ => Word::Silent,
            };
            Some(KnownVolume { volume: old.volume.clone(), word })
        });
        let unlisted: Vec<KnownVolume> = unlisted.collect();
        let listed =
            told.volumes.into_iter().map(|volume| KnownVolume { volume, word: Word::Assigned });
        let volumes = listed.chain(unlisted).collect();
        Self { version: told.version, volumes, detached: told.detached }
    }
}

/// Which other volume has the port that this one is to be served on, if another has it: one that runs; else the
/// one of the stronger word, or the first. A client that comes back finds its own disk there, or none.
pub fn port_holder<'a>(
    all: &'a [KnownVolume],
    wanted: &KnownVolume,
    is_running: impl Fn(&uuid::Uuid) -> bool,
) -> Option<&'a AgentVolume> {
    let port = wanted.volume.nbd_port?;
    let strength = |known: &KnownVolume| {
        let place = all.iter().position(|other| other.volume.volume == known.volume.volume);
        (!is_running(&known.volume.volume), known.word, place)
    };
    let same = all.iter().filter(|other| other.volume.nbd_port == Some(port));
    let first = same.min_by_key(|known| strength(known))?;
    (first.volume.volume != wanted.volume.volume).then_some(&first.volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_api::agent::NodeAddress;
    use farshore_api::machine::Capture;
    use uuid::Uuid;

    fn volume(id: u128) -> AgentVolume {
        AgentVolume {
            volume: Uuid::from_u128(id),
            machine: "web".to_owned(),
            disk: "/disk".to_owned(),
            capture: Capture::Nbd,
            nbd_port: None,
            mark_interval_ms: 1,
            epoch: 1,
            size_bytes: None,
            node: NodeAddress {
                id: Uuid::from_u128(7),
                address: "127.0.0.1:1".to_owned(),
                server_name: "node".to_owned(),
                generation_min: 0,
            },
            marks_requested: Vec::new(),
        }
    }

    fn told(listed: &[u128], detached: &[u128], fenced: &[u128]) -> Assignments {
        let ids = |ids: &[u128]| ids.iter().map(|id| Uuid::from_u128(*id)).collect();
        Assignments {
            version: 1,
            volumes: listed.iter().map(|id| volume(*id)).collect(),
            detached: ids(detached),
            fenced: ids(fenced),
        }
    }

    fn words(known: &Known) -> Vec<(u128, Word)> {
        known.volumes.iter().map(|known| (known.volume.volume.as_u128(), known.word)).collect()
    }

    /// P37: a port is one volume's, whatever was begun first; a client never finds another disk there.
    #[test]
    fn a_port_is_of_one_volume() {
        let known = |id, word, nbd_port| {
            let volume = AgentVolume { nbd_port, ..volume(id) };
            KnownVolume { volume, word }
        };
        let all = [
            known(1, Word::Detached, Some(57_777)),
            known(2, Word::Assigned, Some(57_777)),
            known(3, Word::Assigned, Some(57_777)),
            known(4, Word::Silent, Some(57_778)),
            known(5, Word::Assigned, None),
        ];
        let holder = |at: usize, running: &[u128]| {
            let is_running = |id: &Uuid| running.contains(&id.as_u128());
            port_holder(&all, &all[at], is_running).map(|volume| volume.volume.as_u128())
        };
        let holders = |running: &[u128]| [0, 1, 2, 3, 4].map(|at| holder(at, running));
        assert_eq!(holders(&[]), [Some(2), None, Some(2), None, None]);
        assert_eq!(holders(&[1]), [None, Some(1), Some(1), None, None], "its clients are there");
        assert_eq!(holders(&[3, 5]), [Some(3), Some(3), None, None, None]);
    }

    /// P11: what is missing goes on; what is detached ends; nothing else does.
    #[test]
    fn only_a_word_ends_a_volume() {
        let known = Known::default().after(told(&[1, 2, 3], &[], &[]));
        let known = known.after(told(&[1], &[2], &[3]));
        let all = [(1, Word::Assigned), (2, Word::Detached), (3, Word::Fenced)];
        assert_eq!(words(&known), all);
        // An older database knows nothing: nobody loses a disk that was not to lose it before.
        let older = known.after(told(&[], &[], &[]));
        assert_eq!(words(&older), [(1, Word::Silent), (3, Word::Silent)]);
        let back = older.after(told(&[3], &[], &[]));
        assert_eq!(words(&back), [(3, Word::Assigned), (1, Word::Silent)]);
    }

    #[test]
    fn it_is_kept_as_it_is_known() {
        let known = Known::default().after(told(&[1, 2], &[], &[])).after(told(&[1], &[2], &[]));
        let kept = serde_json::to_vec(&known).unwrap();
        assert_eq!(serde_json::from_slice::<Known>(&kept).unwrap(), known);
    }
}
