//! The audit log: what operators did, who was let in and who was not.
//!
//! Entries are only ever added. Each holds the hash of the one before it, so that none can be changed
//! or taken out of the middle without all after it telling; keep the newest hash somewhere else, and
//! none can be taken off the end either.

use serde::{Deserialize, Serialize};

/// What the hash of the first entry goes on from.
pub const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What is hashed before everything else.
const CONTEXT: &[u8] = b"farshore audit 1\0";

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Position, from 1, without gaps.
    pub id: u64,
    /// When, by the control plane's clock.
    pub at_unix_ms: u64,
    /// Who: `operator`, `agent/<uuid>`, `node/<uuid>`, `enrol` or `control`.
    pub actor: String,
    /// What was done, such as `machine.protect`.
    pub action: String,
    /// To which object: a name or an id.
    pub object: String,
    /// One sentence, or empty.
    pub detail: String,
    /// Hash of the entry before it; [`FIRST`] for the first.
    pub prev_hash: String,
    /// Its own hash.
    pub hash: String,
}

impl Entry {
    /// The hash that it should have: BLAKE3-256, in hex, of a context, the hash before, position and
    /// time (big-endian), and each text behind its length (32 bits, big-endian).
    #[must_use]
    pub fn expected_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(CONTEXT);
        hasher.update(self.prev_hash.as_bytes());
        hasher.update(&self.id.to_be_bytes());
        hasher.update(&self.at_unix_ms.to_be_bytes());
        for text in [&self.actor, &self.action, &self.object, &self.detail] {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            hasher.update(&length.to_be_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Entries, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Those after `?after=`, at most `?limit=`; without `after` the newest ones.
    pub entries: Vec<Entry>,
}

/// Where a chain stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Position of the newest entry; 0 if there is none.
    pub id: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { id: 0, hash: FIRST.to_owned() }
    }
}

/// A chain that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Entries are missing.
    #[error("entry {expected} of the audit log is missing: the next one is {found}")]
    Missing {
        /// The position that should come.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// An entry does not go on from the one before.
    #[error(
        "entry {id} of the audit log does not go on from the one before it: one of them was changed"
    )]
    Link {
        /// Its position.
        id: u64,
    },
    /// An entry is not what was hashed.
    #[error("entry {id} of the audit log was changed: it is not what its hash says")]
    Changed {
        /// Its position.
        id: u64,
    },
}

impl Head {
    /// Goes on to `entry`.
    ///
    /// # Errors
    /// [`Broken`] if it is not the one that follows.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Broken> {
        if entry.id != self.id + 1 {
            return Err(Broken::Missing { expected: self.id + 1, found: entry.id });
        }
        if entry.prev_hash != self.hash {
            return Err(Broken::Link { id: entry.id });
        }
        if entry.hash != entry.expected_hash() {
            return Err(Broken::Changed { id: entry.id });
        }
        *self = Self { id: entry.id, hash: entry.hash.clone() };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: u64) -> Vec<Entry> {
        let mut head = Head::default();
        let next = |id| {
            let mut entry = Entry {
                id,
                at_unix_ms: 1_000 + id,
                actor: "operator".into(),
                action: "machine.protect".into(),
                object: format!("web-{id}"),
                detail: String::new(),
                prev_hash: head.hash.clone(),
                hash: String::new(),
            };
            entry.hash = entry.expected_hash();
            head.follow(&entry).unwrap();
            entry
        };
        (1..=length).map(next).collect()
    }

    fn check(entries: &[Entry]) -> Result<Head, Broken> {
        let mut head = Head::default();
        entries.iter().try_for_each(|entry| head.follow(entry)).map(|()| head)
    }

    #[test]
    fn a_chain_tells_what_was_done_to_it() {
        let whole = chain(5);
        assert_eq!(check(&whole).unwrap().id, 5);
        let mut missing = whole.clone();
        missing.remove(2);
        assert_eq!(check(&missing), Err(Broken::Missing { expected: 3, found: 4 }));
        let edits: [fn(&mut Entry); 5] = [
            |entry| entry.actor = "control".into(),
            |entry| entry.action = "machine.unprotect".into(),
            |entry| entry.object.push('x'),
            |entry| entry.at_unix_ms += 1,
            |entry| entry.detail = "x".into(),
        ];
        for edit in edits {
            let mut changed = whole.clone();
            edit(&mut changed[2]);
            assert_eq!(check(&changed), Err(Broken::Changed { id: 3 }));
            // Whoever changes it makes the hash anew, and then the next one tells.
            changed[2].hash = changed[2].expected_hash();
            assert_eq!(check(&changed), Err(Broken::Link { id: 4 }));
        }
    }

    #[test]
    fn texts_do_not_run_into_each_other() {
        let mut one = chain(1).remove(0);
        let before = one.expected_hash();
        (one.actor, one.action) = ("operatorm".into(), "achine.protect".into());
        assert_ne!(one.expected_hash(), before);
    }
}
