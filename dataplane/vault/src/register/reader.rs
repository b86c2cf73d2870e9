//! Who reads the register again and again, and keeps in mind what nobody may refer to.
//!
//! What was swept stays refused: a put that was sent twice may bring it back, and a delete that was, take it again. So whoever has what
//! was learnt once (an index, a run) is told up to which entry nothing in it is named by a verdict, and reads what verdicts behind that name.

use super::{Confirmed, Entry, another, bear, named, newest, read};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{REGISTER_AT_ONCE, REGISTER_MISSED_MAX, REGISTER_SWEPT_MAX};
use crate::vault::Vault;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::register::{At, State, Statement};
use farshore_proto::{ErrorKind, LogId, Target};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// By the entry that names them.
type Named = BTreeMap<u64, Arc<BTreeSet<Target>>>;

/// What nobody may refer to who has applied the register up to an entry.
#[derive(Debug, Clone, Default)]
pub struct Condemned {
    /// The entry.
    pub at: At,
    /// Verdicts behind this entry are known, and those of open condemnations: what was learnt must name nothing of those up to it.
    pub behind: u64,
    /// What these verdicts name: it is deleted, now or later.
    pub judged: HashSet<Target>,
    /// What condemnations without a verdict name.
    pub open: HashSet<Target>,
}

impl Condemned {
    /// Whether a segment is in it.
    #[must_use]
    pub fn contains(&self, target: &Target) -> bool {
        self.judged.contains(target) || self.open.contains(target)
    }

    /// All that is in it.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.judged.iter().chain(&self.open)
    }
}

/// Reads the register again and again, and what it condemns only once.
#[derive(Debug, Default)]
pub struct Reader {
    is_begun: bool,
    /// The newest that was read, or up to which there is nothing to be read …
    at: At,
    /// … and what it says.
    newest: Entry,
    named: Named,
    /// What was swept, by verdict.
    swept: Named,
    /// Verdicts up to this entry need not be kept in mind, but while what they name is not swept. Of a reader of who has nothing, the first that was read.
    cleared: u64,
    /// What is stated to have been applied, and was not met yet.
    required: Vec<At>,
}

impl Reader {
    /// One for what was learnt by somebody who had applied the register up to entry `cleared`, and has nothing that a verdict up to
    /// there names: it knows what verdicts behind that name.
    ///
    /// # Errors
    /// As [`newest`]; `Corrupt` also if an entry that is named is missing or not what it is said to be, or that one is another one now; `Limit` if so much came since that it
    /// cannot be kept in mind. Then what was learnt is of no use, and [`Reader::default`] is for who has nothing.
    pub async fn behind(vault: &Vault, cleared: At) -> Result<Self, VaultError> {
        let newest = newest(vault, cleared.number).await?;
        if newest.number == cleared.number && newest.at() != cleared {
            return Err(another(vault, cleared.number));
        }
        let mut reader = Self { cleared: cleared.number, ..Self::default() };
        if !is_on(Bug::SweptFoundAgain) {
            (reader.at, reader.is_begun) = (cleared, true);
        }
        reader.go_on(vault, newest).await?;
        Ok(reader)
    }

    /// The newest entry that was read, and all whose targets nobody may refer to, as it says.
    #[must_use]
    pub fn newest(&self) -> &Entry {
        &self.newest
    }

    /// What nobody may refer to, as the entries say that were read: what was swept stays in it.
    #[must_use]
    pub fn condemned(&self) -> Condemned {
        let (at, behind) = (self.at, self.cleared);
        let mut condemned = Condemned { at, behind, ..Condemned::default() };
        condemned.judged.extend(self.swept.values().flat_map(|targets| targets.iter().copied()));
        for (of, verdict) in &self.newest.state.open {
            let (number, into) = match verdict {
                Some(verdict) => (verdict, &mut condemned.judged),
                None => (of, &mut condemned.open),
            };
            into.extend(self.named.get(number).into_iter().flat_map(|targets| targets.iter()));
        }
        condemned
    }

    /// What was swept by verdicts up to entry `cleared` need not be kept in mind any more: nothing that was learnt names it.
    pub fn cleared(&mut self, cleared: u64) {
        self.cleared = self.cleared.max(cleared);
        self.swept.retain(|verdict, _| *verdict > cleared);
    }

    /// Logs state that this was applied: what is read has to have it. Without it nothing that is read counts.
    pub fn require(&mut self, stated: At) {
        if stated != At::NONE && !self.required.contains(&stated) {
            self.required.push(stated);
        }
    }

    /// The newest entry that has to be there and is not yet, if one is.
    #[must_use]
    pub fn lacks(&self) -> Option<u64> {
        self.required.iter().map(|at| at.number).max()
    }

    /// Reads what is new; false if that is nothing. After an error what was read before stands.
    ///
    /// # Errors
    /// As [`newest`]; `Corrupt` also if an entry that is named is missing or not what it is said to be; `Limit` if more was swept than
    /// can be kept in mind.
    pub async fn refresh(&mut self, vault: &Vault) -> Result<bool, VaultError> {
        let newest = newest(vault, self.at.number).await?;
        self.take(vault, newest).await
    }

    /// Makes sure that a log is in the register, and reads what is new.
    ///
    /// # Errors
    /// As [`bear`] and [`Self::refresh`].
    pub async fn bear(&mut self, vault: &Vault, log: LogId) -> Result<u64, VaultError> {
        let (entry, born) = bear(vault, self.at.number, log).await?;
        self.take(vault, entry).await?;
        Ok(born)
    }

    async fn take(&mut self, vault: &Vault, newest: Entry) -> Result<bool, VaultError> {
        self.meet(vault, &newest).await?;
        if self.is_begun && newest.number <= self.at.number {
            if newest.number == self.at.number && newest.at() != self.at {
                return Err(another(vault, newest.number));
            }
            return Ok(false);
        }
        self.go_on(vault, newest).await?;
        Ok(true)
    }

    /// Whether what has to be there is, as far as the newest entry is not in front of it.
    async fn meet(&mut self, vault: &Vault, newest: &Entry) -> Result<(), VaultError> {
        let mut confirmed = Confirmed::default();
        while let Some(next) = self.required.iter().position(|at| at.number <= newest.number) {
            let at = self.required[next];
            if !confirmed.has(vault, at).await? {
                return Err(another(vault, at.number));
            }
            self.required.swap_remove(next);
        }
        Ok(())
    }

    /// Goes on to an entry that is not in front of the newest that was read.
    async fn go_on(&mut self, vault: &Vault, newest: Entry) -> Result<(), VaultError> {
        let mut swept: Named = self.ended(&newest.state).collect();
        if self.is_begun && newest.number > self.at.number {
            swept.extend(self.judged_between(vault, &newest).await?);
        }
        let named = self.named(vault, &newest.state).await?;
        if !self.is_begun {
            self.cleared = self.cleared.max(newest.number);
        }
        let count = |named: &Named| named.values().map(|targets| targets.len()).sum::<usize>();
        if count(&self.swept) + count(&swept) > REGISTER_SWEPT_MAX {
            return Err(too_much(vault));
        }
        self.swept.extend(swept);
        (self.named, self.at, self.newest, self.is_begun) = (named, newest.at(), newest, true);
        Ok(())
    }

    /// What verdicts between the newest entry that was read and `newest` name of what is swept since.
    async fn judged_between(&self, vault: &Vault, newest: &Entry) -> Result<Named, VaultError> {
        let between = self.at.number + 1..=newest.number - 1;
        let mut entries = std::pin::pin!(entries(vault, between)?);
        let (mut judged, mut count, mut before) = (Named::new(), 0, self.at);
        while let Some(entry) = entries.try_next().await? {
            if At::of(before.number, &entry.before) != before {
                return Err(another(vault, before.number));
            }
            before = entry.at();
            if let Some(Statement::Verdict { of, targets }) = entry.statement
                && !newest.state.open.contains_key(&of)
            {
                count += targets.len();
                judged.insert(entry.number, Arc::new(targets));
            }
            if count > REGISTER_SWEPT_MAX {
                return Err(too_much(vault));
            }
        }
        if At::of(before.number, &newest.before) != before {
            return Err(another(vault, before.number));
        }
        Ok(judged)
    }

    /// What was named by verdicts whose condemnations are not open any more. A verdict that was not read lies between what was read and
    /// what is.
    fn ended<'s>(
        &'s self,
        state: &'s State,
    ) -> impl Iterator<Item = (u64, Arc<BTreeSet<Target>>)> + 's {
        let ended = self.newest.state.open.iter().filter(|(of, _)| !state.open.contains_key(of));
        let verdicts = ended.filter_map(|(_, verdict)| *verdict);
        let kept = verdicts.filter(|verdict| *verdict > self.cleared);
        kept.filter_map(|verdict| Some((verdict, Arc::clone(self.named.get(&verdict)?))))
    }

    /// What is named by the entries that a state says, those of them read that are not known.
    async fn named(&self, vault: &Vault, state: &State) -> Result<Named, VaultError> {
        let reads = state.open.iter().map(|(of, verdict)| {
            let (number, of) = (verdict.unwrap_or(*of), *of);
            let known = self.named.get(&number).cloned();
            async move {
                let targets = match known {
                    Some(targets) => targets,
                    None => named(vault, number, of).await?,
                };
                Ok((number, targets))
            }
        });
        let reads: Vec<_> = reads.collect();
        stream::iter(reads).buffered(REGISTER_AT_ONCE).try_collect().await
    }
}

/// What verdicts name, of any stretch of the register that was asked for: for those who have what was learnt long ago.
#[derive(Debug, Default)]
pub struct Judged {
    /// The entries that were read; none if there is none.
    read: Option<RangeInclusive<u64>>,
    targets: BTreeSet<Target>,
    /// What is behind this entry, or one in front of it, is too much.
    too_far: Option<u64>,
}

impl Judged {
    /// Makes sure that all verdicts behind entry `behind` are in it, up to entry `to`.
    ///
    /// # Errors
    /// `Limit` if that is more than can be kept in mind; `Corrupt` if an entry is lost or does not open; `Unavailable`.
    pub async fn reach(&mut self, vault: &Vault, behind: u64, to: u64) -> Result<(), VaultError> {
        if behind >= to {
            return Ok(());
        }
        if self.too_far.is_some_and(|too_far| behind <= too_far) {
            return Err(too_much(vault));
        }
        let read = self.extend(vault, behind, to).await;
        if read.as_ref().is_err_and(|error| error.kind() == ErrorKind::Limit) {
            self.too_far = Some(behind);
        }
        read
    }

    async fn extend(&mut self, vault: &Vault, behind: u64, to: u64) -> Result<(), VaultError> {
        let (first, last) = self.read.clone().unwrap_or(to + 1..=to).into_inner();
        let whole = first.min(behind + 1)..=last.max(to);
        check_length(vault, &whole)?;
        // Without a gap to what was read.
        for stretch in [behind + 1..=first - 1, last + 1..=to] {
            self.read(vault, stretch).await?;
        }
        self.read = Some(whole);
        Ok(())
    }

    async fn read(
        &mut self,
        vault: &Vault,
        stretch: RangeInclusive<u64>,
    ) -> Result<(), VaultError> {
        let mut entries = std::pin::pin!(entries(vault, stretch)?);
        while let Some(entry) = entries.try_next().await? {
            if let Some(Statement::Verdict { targets, .. }) = entry.statement {
                self.targets.extend(targets);
            }
            if self.targets.len() > REGISTER_SWEPT_MAX {
                return Err(too_much(vault));
            }
        }
        Ok(())
    }

    /// Whether one of the verdicts names a segment.
    #[must_use]
    pub fn contains(&self, target: &Target) -> bool {
        self.targets.contains(target)
    }
}

/// Entries that must be there, a few at a time and in order.
fn entries(
    vault: &Vault,
    stretch: RangeInclusive<u64>,
) -> Result<impl Stream<Item = Result<Entry, VaultError>>, VaultError> {
    check_length(vault, &stretch)?;
    let reads = stretch.map(move |number| async move {
        match read(vault, number).await {
            Err(error) if error.is_not_found() => {
                let (url, object) = (vault.url().to_owned(), ObjectName::register(number));
                Err(VaultError::Register {
                    url,
                    object,
                    what: "it is missing, and others are behind it",
                })
            }
            entry => entry,
        }
    });
    Ok(stream::iter(reads).buffered(REGISTER_AT_ONCE))
}

fn check_length(vault: &Vault, stretch: &RangeInclusive<u64>) -> Result<(), VaultError> {
    if stretch.end().saturating_sub(*stretch.start()) > REGISTER_MISSED_MAX {
        let (url, max) = (vault.url().to_owned(), REGISTER_MISSED_MAX);
        return Err(VaultError::Limit { url, what: "entries of the register missed", max });
    }
    Ok(())
}

fn too_much(vault: &Vault) -> VaultError {
    let (url, max) = (vault.url().to_owned(), REGISTER_SWEPT_MAX as u64);
    VaultError::Limit { url, what: "swept segments to be kept in mind", max }
}
