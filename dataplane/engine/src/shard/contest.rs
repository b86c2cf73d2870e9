//! Two living holders of one volume: told from one that comes again, and kept out until one is left.
//!
//! A session that is taken over is told so. The agent that opened the new one never reads that: it
//! gave the old transport up before. Whoever reads it and comes back saying so is a second holder that
//! lives: a copy of the agent runs. Which of the two is meant nobody here can know, so both stay out.
//! It ends when, for [`CONTEST_MS`], only one of them has come.

use super::{Bug, Output, RefusalReason, SessionId, Shard, Timestamp, VolumeId, is_on};
use farshore_proto::frame::Hello;
use std::collections::BTreeMap;

/// So long must one of the holders stay away before the other goes on.
pub const CONTEST_MS: u64 = 60_000;

/// Holders that are told apart; of more, those that came last.
const HOLDERS_MAX: usize = 4;

/// Who holds or held the volume's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// The life of its run.
    pub(super) life: u32,
    /// Who and where it is, for people.
    pub(super) from: String,
}

/// A volume that several holders claim.
#[derive(Debug)]
pub(super) struct Contest {
    began: Timestamp,
    /// By life: where it is, and when it came last.
    holders: BTreeMap<u32, (String, Timestamp)>,
}

impl Contest {
    fn new(now: Timestamp) -> Self {
        Self { began: now, holders: BTreeMap::new() }
    }

    fn came(&mut self, now: Timestamp, holder: &Holder) {
        self.holders.insert(holder.life, (holder.from.clone(), now));
        while self.holders.len() > HOLDERS_MAX {
            let oldest = self.holders.iter().min_by_key(|(_, (_, at))| *at);
            let Some(oldest) = oldest.map(|(life, _)| *life) else { return };
            self.holders.remove(&oldest);
        }
    }

    /// Whether only this life has come for long enough.
    fn is_over_for(&self, now: Timestamp, life: u32) -> bool {
        let is_away = |(other, (_, at)): (&u32, &(String, Timestamp))| {
            *other == life || now.since_ms(*at) >= CONTEST_MS
        };
        now.since_ms(self.began) >= CONTEST_MS && self.holders.iter().all(is_away)
    }

    fn text(&self, volume: VolumeId) -> String {
        let holders: Vec<&str> = self.holders.values().map(|(from, _)| from.as_str()).collect();
        format!(
            "two agents claim volume {volume} ({}): stop the copy, or revoke the agent; the one that is \
             left goes on after {} s",
            holders.join("; "),
            CONTEST_MS / 1000
        )
    }
}

impl Shard {
    /// Judges a hello for a known volume under its epoch; false if it was refused.
    pub(super) fn is_uncontested(
        &mut self,
        now: Timestamp,
        session: SessionId,
        hello: &Hello,
        from: &str,
        out: &mut Vec<Output>,
    ) -> bool {
        let id = hello.volume;
        let Some(volume) = self.volumes.get_mut(&id) else { return true };
        let holder = Holder { life: hello.life, from: from.to_owned() };
        if hello.is_overtaken && volume.contest.is_none() {
            let mut contest = Contest::new(now);
            if let Some(other) = &volume.holder {
                contest.came(now, other);
            }
            volume.contest = Some(contest);
        }
        let Some(contest) = volume.contest.as_mut().filter(|_| !is_on(Bug::ContestIgnored)) else {
            return true;
        };
        contest.came(now, &holder);
        if contest.is_over_for(now, hello.life) {
            volume.contest = None;
            out.push(Output::Contested { volume: id, text: None });
            return true;
        }
        let text = contest.text(id);
        let standing = volume.session;
        out.push(Output::Contested { volume: id, text: Some(text.clone()) });
        for session in standing.into_iter().chain([session]) {
            self.refuse(session, RefusalReason::Contested, text.clone(), out);
        }
        false
    }
}
