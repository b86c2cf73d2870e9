//! What the agent knows of its volumes: what it was told last, and what nobody said any more.
//!
//! A volume leaves only by a word that ends it. One that is missing from what the control plane says
//! (a database restored from yesterday, no node for it, a mistake) goes on as it was told last, through
//! restarts of the agent too: its server must not lose its disk.

use farshore_api::agent::{AgentVolume, Assignments};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the control plane said of a volume last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Everything that the agent knows of its volumes; kept in `assignments.json`.
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
