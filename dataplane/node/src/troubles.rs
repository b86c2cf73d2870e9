//! What keeps the node from its work, by what it keeps it from: that one thing goes well again says nothing
//! about the others.

use farshore_proto::{LogId, Slot, VolumeId};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What does not go on; what more depends on first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// The journal of a shard.
    Journal(usize),
    /// Beginning a new log for a shard.
    Log(usize),
    /// Knowing what was deleted in the vault.
    Register,
    /// A put.
    Put(LogId, Slot),
    /// Keeping what is restored of a volume in bounds.
    Map(VolumeId),
    /// Taking a volume over.
    Claim(VolumeId),
}

impl Work {
    /// Of fewer works first: of many, some stand for all.
    fn rank(self) -> u8 {
        match self {
            Self::Journal(_) | Self::Log(_) | Self::Register => 0,
            Self::Put(..) => 1,
            Self::Map(_) => 2,
            Self::Claim(_) => 3,
        }
    }

    /// Whether it is over without a word. A map says so itself, and may be days away.
    fn is_over(self, age: Duration) -> bool {
        age >= LIFE && !matches!(self, Self::Map(_))
    }
}

/// A trouble that was not named again for so long is over: whoever wanted the work done has given up.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// So many are told at a time.
const TOLD_MAX: usize = 3;
/// So many are kept at a time: puts are few, claims as many as volumes. Those give way.
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
        if troubles.len() >= KEPT_MAX && !troubles.contains_key(&work) {
            troubles.retain(|work, (_, since)| !work.is_over(since.elapsed()));
            let less = troubles.iter().filter(|(other, _)| other.rank() > work.rank());
            let oldest = less.min_by_key(|(other, (_, since))| (Reverse(other.rank()), *since));
            if let Some(oldest) = oldest.map(|(work, _)| *work) {
                troubles.remove(&oldest);
            }
        }
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
        troubles.retain(|work, (_, since)| !work.is_over(since.elapsed()));
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

    /// P11: a journal's disk that is full stops every volume of its shard.
    #[test]
    fn a_thousand_claims_hide_no_trouble_that_is_not_one() {
        let troubles = Troubles::default();
        for n in 0..KEPT_MAX as u128 {
            troubles.set(Work::Claim(VolumeId(n.to_be_bytes())), format!("volume {n}"));
        }
        troubles.set(Work::Put(LogId([1; 16]), Slot(1)), "no segments".to_owned());
        troubles.set(Work::Log(0), "no new log".to_owned());
        troubles.set(Work::Journal(0), "no space".to_owned());
        let told = troubles.told().unwrap();
        assert_eq!(told, "no space; no new log; no segments; and 1021 more");
        troubles.set(Work::Claim(VolumeId([0xff; 16])), "one more claim".to_owned());
        assert_eq!(troubles.told().unwrap(), told, "it has no place");
        // Claims give way before puts do.
        for n in 2..2 * KEPT_MAX as u64 {
            troubles.set(Work::Put(LogId([1; 16]), Slot(n)), "no segments".to_owned());
        }
        troubles.set(Work::Journal(1), "no space either".to_owned());
        assert_eq!(troubles.told().unwrap(), "no space; no space either; no new log; and 1 more");
    }

    #[test]
    fn a_trouble_that_nobody_names_again_is_over_unless_its_end_is_said() {
        let volume = VolumeId([1; 16]);
        assert!(Work::Claim(volume).is_over(LIFE) && !Work::Claim(volume).is_over(LIFE / 2));
        assert!(!Work::Map(volume).is_over(100 * LIFE));
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
