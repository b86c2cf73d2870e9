//! Who is let in: what is done with the certificate that a caller shows.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use farshore_api::Role;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use crate::app::{App, Topic};
use crate::clock;
use crate::db::Issued;
use crate::domain::generation::{FirstUse, LIVING, Verdict, judge};
use crate::error::ControlError;
use crate::limits::Asked;
use crate::tls::Peer;

/// An event about one identity's certificates is told once in this time.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// When the holders of the newest certificates were heard last. One entry for each identity.
#[derive(Debug)]
pub struct Holders {
    since: Instant,
    known: Mutex<HashMap<Uuid, Holder>>,
}

#[derive(Debug, Clone)]
struct Holder {
    /// The newest generation that was issued.
    issued: u64,
    /// The newest generation that was heard, and when.
    generation: u64,
    heard: Instant,
    /// The newest generation that this process saw used first, and when.
    first: Option<(u64, Instant)>,
    /// What copy was found last.
    copied: Option<Copied>,
    /// When which event was told last.
    told: BTreeMap<&'static str, Instant>,
}

/// A holder of an older certificate, found to be another than that of the newest.
#[derive(Debug, Clone, Copy)]
struct Copied {
    /// The newest generation then.
    newest: u64,
    /// Since when it has come again and again, and when it came last.
    since: Instant,
    last: Instant,
}

impl Default for Holders {
    fn default() -> Self {
        Self { since: Instant::now(), known: Mutex::default() }
    }
}

impl Holders {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Holder>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The holder of `generation` was heard now.
    fn heard(&self, id: Uuid, generation: u64) {
        let heard = Instant::now();
        let mut known = self.lock();
        let holder = known.entry(id).or_insert_with(|| self.unheard());
        if generation >= holder.generation {
            (holder.generation, holder.heard) = (generation, heard);
        }
    }

    fn unheard(&self) -> Holder {
        let (heard, first, copied) = (self.since, None, None);
        Holder { issued: 0, generation: 0, heard, first, copied, told: BTreeMap::new() }
    }

    /// A certificate of `generation` was issued.
    pub fn issued(&self, id: Uuid, generation: u64) {
        let mut known = self.lock();
        let holder = known.entry(id).or_insert_with(|| self.unheard());
        holder.issued = holder.issued.max(generation);
    }

    /// Whether one that is newer than `generation` was issued or heard.
    #[must_use]
    pub fn has_newer(&self, id: Uuid, generation: u64) -> bool {
        let known = self.lock();
        known.get(&id).is_some_and(|holder| holder.issued.max(holder.generation) > generation)
    }

    /// The holder of `generation` used it for the first time now.
    fn used_first(&self, id: Uuid, generation: u64) {
        let first = Some((generation, Instant::now()));
        let mut known = self.lock();
        let holder = known.entry(id).or_insert_with(|| self.unheard());
        holder.first = holder.first.max(first);
    }

    /// When `generation` was used first.
    fn first_use(&self, id: Uuid, generation: u64) -> FirstUse {
        let known = self.lock();
        let first = known.get(&id).and_then(|holder| holder.first);
        match first.filter(|(seen, _)| *seen == generation) {
            Some((_, at)) => FirstUse::Seen(at.elapsed()),
            None => FirstUse::Before(self.since.elapsed()),
        }
    }

    /// As if all that was seen had been seen long ago.
    #[cfg(test)]
    pub(crate) fn let_first_uses_age(&self) {
        for holder in self.lock().values_mut() {
            holder.first = None;
        }
    }

    /// The holder of a certificate older than `newest` was found to be another than that one's.
    fn found_copy(&self, id: Uuid, newest: u64) {
        let now = Instant::now();
        let mut known = self.lock();
        let holder = known.entry(id).or_insert_with(|| self.unheard());
        // One that was away may be another: the same machine set back once more.
        let goes_on = |copied: &Copied| copied.newest >= newest && copied.last + LIVING > now;
        let since = holder.copied.filter(goes_on).map_or(now, |copied| copied.since);
        holder.copied = Some(Copied { newest, since, last: now });
    }

    /// Whether the holder of a newer certificate was heard since that of `generation` was found to be another:
    /// two live, and neither is an older state of the other.
    fn are_two(&self, id: Uuid, generation: u64) -> bool {
        let known = self.lock();
        known.get(&id).is_some_and(|holder| {
            let found = holder.copied.filter(|copied| copied.newest > generation);
            // As long as that is new, the other may still be heard.
            let is_new = |since: Instant| since + LIVING > Instant::now();
            let is_heard = |since| holder.generation > generation && holder.heard > since;
            found.is_some_and(|copied| is_new(copied.since) || is_heard(copied.since))
        })
    }

    /// As if all that was heard had been heard long ago.
    #[cfg(test)]
    pub(crate) fn let_all_be_silent(&self) {
        for holder in self.lock().values_mut() {
            holder.heard -= 2 * LIVING;
            if let Some(copied) = &mut holder.copied {
                (copied.since, copied.last) = (copied.since - 2 * LIVING, copied.last - 2 * LIVING);
            }
        }
    }

    /// How long ago the holder of `generation` was heard; since the start if not at all.
    fn silent(&self, id: Uuid, generation: u64) -> Duration {
        let known = self.lock();
        let heard = known.get(&id).filter(|holder| holder.generation >= generation);
        heard.map_or(self.since, |holder| holder.heard).elapsed()
    }

    /// Whether an event `what` about this identity is due: one of each kind in ten minutes is.
    #[must_use]
    pub fn may_tell(&self, id: Uuid, what: &'static str) -> bool {
        let now = Instant::now();
        let mut known = self.lock();
        let holder = known.entry(id).or_insert_with(|| self.unheard());
        let is_due = holder.told.get(what).is_none_or(|told| *told + TELL_EVERY <= now);
        if is_due {
            holder.told.insert(what, now);
        }
        is_due
    }
}

/// How a caller was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// With its newest certificate, or one that is as good.
    Fully,
    /// With one that a newer one has followed a moment ago.
    Late,
}

/// Lets the holder of a certificate in, or says why not. Its validity in time is the caller's to check.
///
/// # Errors
/// `Unauthenticated` if it is not to be let in, `TooManyRequests` if it has called more often than it
/// may, otherwise those of the catalogue.
pub async fn admit(app: &App, peer: &Peer, from: Option<IpAddr>) -> Result<Admitted, ControlError> {
    let (role, id, serial) = (peer.role, peer.id, &peer.serial);
    let generation = serial.generation();
    // By certificate: whoever has one that is over must not use up the calls of its holder.
    app.buckets.take(serial.as_key(), Asked::Call)?;
    let known = app.db.known(role, id, serial).await?;
    let used = known.used.map_or(0, |(used, _)| used);
    let silent = app.holders.silent(id, used);
    let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.to_string());
    let first_use = app.holders.first_use(id, used);
    // Nodes hear of agents' newest generation, agents of a node's only if there is a copy of it.
    let is_watched = role == Role::Agent || known.is_cloned;
    let verdict = match judge(&known, generation, clock::now_ms(), first_use, silent) {
        Verdict::SetBack if app.holders.are_two(id, generation) => Verdict::Cloned,
        verdict => verdict,
    };
    match verdict {
        Verdict::Good => {}
        Verdict::First => {
            let is_told = app.db.first_use(id, serial, &from, is_watched).await?;
            app.holders.used_first(id, generation);
            gather_if(app, is_told);
        }
        Verdict::Newer => {
            let not_after_s = peer.expires_at_unix_s;
            let issued = Issued { serial: *serial, key: peer.key, not_after_s };
            let is_told = app.db.adopt(role, id, &issued, &from, is_watched).await?;
            app.holders.used_first(id, generation);
            gather_if(app, is_told);
        }
        Verdict::Late => return Ok(Admitted::Late),
        Verdict::SetBack => {
            tell(app, peer, "identity.set_back", &from, false).await?;
            return Ok(Admitted::Fully);
        }
        Verdict::Cloned => {
            app.holders.found_copy(id, used);
            tell(app, peer, "identity.cloned", &from, !known.is_cloned).await?;
        }
        Verdict::Over => tell(app, peer, "identity.over", &from, false).await?,
        Verdict::Revoked | Verdict::Unknown => {}
    }
    if let Some(why) = refusal(verdict) {
        return Err(ControlError::Unauthenticated { why });
    }
    app.holders.heard(id, generation);
    if role == Role::Node {
        app.hear(id);
    }
    Ok(Admitted::Fully)
}

const fn refusal(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Cloned => Some(
            "a newer certificate of this identity is in use elsewhere: this directory is a copy, or \
             was set back to an older state; end one of the two and enrol the other again",
        ),
        Verdict::Over => Some(
            "the identity was enrolled again since this certificate was made; enrol again if this \
             is the one to go on with",
        ),
        Verdict::Revoked => Some("the identity was revoked; only a new token lets it in again"),
        Verdict::Unknown => {
            Some("the certificate was not issued by this control plane; enrol again")
        }
        Verdict::Good | Verdict::First | Verdict::Newer | Verdict::Late | Verdict::SetBack => None,
    }
}

/// What older certificates have open ends as soon as it is heard of. Many may be renewed at once.
fn gather_if(app: &App, is_told: bool) {
    if is_told {
        app.changes.wake_soon();
    }
}

async fn tell(
    app: &App,
    peer: &Peer,
    what: &'static str,
    from: &str,
    is_new_clone: bool,
) -> Result<(), ControlError> {
    // That there is a copy is never held back: it may be the next one, after the identity was enrolled again.
    if !app.holders.may_tell(peer.id, what) && !is_new_clone {
        return Ok(());
    }
    let Peer { role, id, serial, .. } = *peer;
    warn!(%role, %id, generation = serial.generation(), from, what, "a certificate was shown");
    app.db.note_holder(role, id, what, &serial, from, is_new_clone).await?;
    if is_new_clone {
        app.changes.wake(Topic::Assignments);
    }
    Ok(())
}
