//! What keeps the node from its work, by what it keeps it from: that one thing goes well again says nothing
//! about the others.

use farshore_proto::{LogId, Slot, VolumeId};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// The journal of a shard.
    Journal(usize),
    /// A put.
    Put(LogId, Slot),
    /// Taking a volume over.
    Claim(VolumeId),
    /// Beginning a new log for a shard.
    Log(usize),
}

/// A trouble that was not named again for so long is over: whoever wanted the work done has given up.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// So many are told at a time.
const TOLD_MAX: usize = 3;
/// So many are kept at a time: puts are few, claims as many as volumes.
const KEPT_MAX: usize = 1024;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<BTreeMap<Work, (String, Instant)>>);

impl Troubles {
    fn troubles(&self) -> MutexGuard<'_, BTreeMap<Work, (String, Instant)>> {
        // Texts for people.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It does not go on, because of this.
    pub(crate) fn set(&self, work: Work, text: String) {
        let mut troubles = self.troubles();
        if troubles.len() < KEPT_MAX || troubles.contains_key(&work) {
            troubles.insert(work, (text, Instant::now()));
        }
    }

    /// It goes on, or nobody wants it any more.
    pub(crate) fn clear(&self, work: Work) {
        self.troubles().remove(&work);
    }

    /// What to tell: each text once.
    pub(crate) fn told(&self) -> Option<String> {
        let mut troubles = self.troubles();
        troubles.retain(|_, (_, since)| since.elapsed() < LIFE);
        let mut texts: Vec<&str> = Vec::new();
        for (text, _) in troubles.values() {
            if !texts.contains(&text.as_str()) {
                texts.push(text);
            }
        }
        let more = texts.len().saturating_sub(TOLD_MAX);
        texts.truncate(TOLD_MAX);
        let told = texts.join("; ");
        match (told.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(told),
            (false, more) => Some(format!("{told}; and {more} more")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_one_trouble_is_not_the_end_of_another() {
        let troubles = Troubles::default();
        assert_eq!(troubles.told(), None);
        let (log, volume) = (LogId([1; 16]), VolumeId([2; 16]));
        let put = |slot| Work::Put(log, Slot(slot));
        troubles.set(put(7), "no segments".to_owned());
        troubles.set(put(8), "no segments".to_owned());
        troubles.set(Work::Claim(volume), "cannot be asked".to_owned());
        assert_eq!(troubles.told().unwrap(), "no segments; cannot be asked");
        troubles.clear(put(8));
        troubles.clear(put(9));
        assert_eq!(troubles.told().unwrap(), "no segments; cannot be asked");
        troubles.clear(put(7));
        assert_eq!(troubles.told().unwrap(), "cannot be asked");
        troubles.clear(Work::Claim(volume));
        assert_eq!(troubles.told(), None);
    }

    #[test]
    fn a_thousand_troubles_are_told_in_a_sentence() {
        let troubles = Troubles::default();
        for n in 0..2 * KEPT_MAX as u64 {
            troubles.set(Work::Put(LogId([1; 16]), Slot(n)), format!("slot {n}"));
        }
        let told = troubles.told().unwrap();
        assert_eq!(told, "slot 0; slot 1; slot 2; and 1021 more");
    }
}
