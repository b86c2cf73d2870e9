//! Whether a store keeps what a vault rests on: above all, that an object that is there is never
//! overwritten. A store that breaks that loses data on the first node that fails over.
//!
//! Everything is tried for real, on objects of its own (`validate/<run>/…`), which are removed again.

use crate::layout::{Folder, ObjectName};
use crate::store::{Put, Store, StoreError};
use bytes::Bytes;
use farshore_proto::RunId;
use farshore_proto::limits::SEGMENT_BYTES_MAX;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Rounds of writers that want the same name, and writers in each.
const RACES: usize = 8;
const RACERS: usize = 8;
/// More than a page of any store's listing.
const LISTED: u32 = 1050;
/// Requests under way at once.
const REQUESTS_MAX: usize = 32;
const SMALL: usize = 4096;
const RANGED: usize = 1 << 20;
const LARGEST: usize = 64 << 20;
const _: () = assert!(LARGEST as u64 == SEGMENT_BYTES_MAX);

/// What is asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// An object that is there is not overwritten.
    WriteOnce,
    /// Of writers that come at once, exactly one wins, and its bytes are kept.
    Races,
    /// What was written is there for the next reader, also after somebody looked too early.
    ReadAfterWrite,
    /// A part of an object is that part, and the end is where it is.
    Ranges,
    /// A listing has everything that was written, over more than one page.
    Listing,
    /// The largest segment is taken, and given back as it was.
    LargestSegment,
}

impl Check {
    /// All, in the order in which they are tried.
    pub const ALL: [Self; 6] = [
        Self::WriteOnce,
        Self::Races,
        Self::ReadAfterWrite,
        Self::Ranges,
        Self::Listing,
        Self::LargestSegment,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteOnce => "write-once",
            Self::Races => "races",
            Self::ReadAfterWrite => "read-after-write",
            Self::Ranges => "ranges",
            Self::Listing => "listing",
            Self::LargestSegment => "largest-segment",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// The store does something that a vault cannot live with.
    #[error("{0}")]
    Rule(String),
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How one check ended.
#[derive(Debug)]
pub struct Tried {
    /// Which.
    pub check: Check,
    /// What was seen, or why the store will not do.
    pub end: Result<String, Broken>,
    /// How long it took.
    pub took: Duration,
}

/// Everything that was tried.
#[derive(Debug)]
pub struct Report {
    /// The checks, in order; after a request that failed there are no more.
    pub tried: Vec<Tried>,
    /// Why objects of this run are still there, if so, and in which folder.
    pub left: Option<(String, StoreError)>,
}

impl Report {
    /// Whether a vault may be kept in this store.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.tried.len() == Check::ALL.len() && self.tried.iter().all(|tried| tried.end.is_ok())
    }
}

/// Tries all checks; `told` hears of each as it ends.
///
/// # Cancel safety
/// Dropped, it leaves small objects below `validate/`, which nothing refers to.
pub async fn validate(store: &Store, mut told: impl FnMut(&Tried)) -> Report {
    let run = Run { store, id: RunId::from(Uuid::new_v4()), next: AtomicU32::new(0) };
    let mut tried = Vec::new();
    for check in Check::ALL {
        let begin = Instant::now();
        let end = run.check(check).await;
        let is_over = matches!(end, Err(Broken::Store(_)));
        let one = Tried { check, end, took: begin.elapsed() };
        told(&one);
        tried.push(one);
        if is_over {
            break;
        }
    }
    let left = run.clean_up().await.err();
    let left = left.map(|error| (Folder::Probes(run.id).to_string(), error));
    Report { tried, left }
}

/// One validation and its objects.
struct Run<'a> {
    store: &'a Store,
    id: RunId,
    /// Number of the next object.
    next: AtomicU32,
}

impl Run<'_> {
    async fn check(&self, check: Check) -> Result<String, Broken> {
        match check {
            Check::WriteOnce => self.write_once().await,
            Check::Races => self.races().await,
            Check::ReadAfterWrite => self.read_after_write().await,
            Check::Ranges => self.ranges().await,
            Check::Listing => self.listing().await,
            Check::LargestSegment => self.largest_segment().await,
        }
    }

    fn name(&self) -> ObjectName {
        ObjectName::probe(self.id, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Creates an object that is not there.
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<(), Broken> {
        match self.store.create(name, bytes).await? {
            Put::Created => Ok(()),
            Put::Exists => broken(format!("{name} is new, and the store says that it exists")),
        }
    }

    async fn holds(&self, name: &ObjectName, expected: &Bytes) -> Result<(), Broken> {
        let found = self.store.get(name, expected.len() as u64).await?;
        match found == *expected {
            true => Ok(()),
            false => broken(format!("{name} does not hold what was written")),
        }
    }

    async fn write_once(&self) -> Result<String, Broken> {
        let name = self.name();
        let (first, second) = (content(1, SMALL), content(2, SMALL));
        self.create(&name, first.clone()).await?;
        if self.store.create(&name, second).await? == Put::Created {
            return broken(
                "the store overwrites objects that must be created only once: it ignores \
                 If-None-Match, so two nodes could both believe that they own a volume"
                    .to_owned(),
            );
        }
        self.holds(&name, &first).await?;
        // The same bytes again are a second write all the same.
        if self.store.create(&name, first.clone()).await? == Put::Created {
            return broken("the store takes the same object twice".to_owned());
        }
        Ok("an object that is there is refused".to_owned())
    }

    async fn races(&self) -> Result<String, Broken> {
        for _ in 0..RACES {
            let name = self.name();
            let writers =
                (0..RACERS as u64).map(|number| {
                    let (name, bytes) = (name.clone(), content(number, SMALL));
                    async move {
                        Ok::<_, Broken>((self.store.create(&name, bytes.clone()).await?, bytes))
                    }
                });
            let ends: Vec<_> = stream::iter(writers).buffer_unordered(RACERS).try_collect().await?;
            let mut won = ends.into_iter().filter(|(put, _)| *put == Put::Created);
            let Some((_, winner)) = won.next() else {
                return broken(format!("of {RACERS} writers of {name} at once nobody won"));
            };
            if won.next().is_some() {
                return broken(format!("of {RACERS} writers of {name} at once more than one won"));
            }
            self.holds(&name, &winner).await?;
        }
        Ok(format!("{RACES} times {RACERS} writers at once, one winner each"))
    }

    async fn read_after_write(&self) -> Result<String, Broken> {
        for number in 0..RACES as u64 {
            let (name, bytes) = (self.name(), content(number, SMALL));
            // A store that remembers that the object was not there would keep it from us.
            if self.store.exists(&name).await? {
                return broken(format!("{name} exists before it was written"));
            }
            self.create(&name, bytes.clone()).await?;
            self.holds(&name, &bytes).await?;
            let size = self.store.size(&name).await?;
            if size != SMALL as u64 {
                return broken(format!("{name} has {SMALL} bytes, the store says {size}"));
            }
        }
        Ok(format!("{RACES} objects read at once, each after a look that was too early"))
    }

    async fn ranges(&self) -> Result<String, Broken> {
        let (name, bytes) = (self.name(), content(7, RANGED));
        self.create(&name, bytes.clone()).await?;
        let end = RANGED as u64;
        let asked =
            [0..1, 0..end, 1..SMALL as u64, end - 1..end, end - 100..end + 100, end..end + 1];
        for range in asked {
            let part = self.store.get_range(&name, range.clone()).await?;
            let at = |place: u64| usize::try_from(place).map_or(RANGED, |place| place.min(RANGED));
            let expected = &bytes[at(range.start)..at(range.end)];
            if part.bytes != expected || part.object_bytes != end {
                return broken(format!(
                    "asked for bytes {range:?} of {end}, the store gave {} bytes of {}",
                    part.bytes.len(),
                    part.object_bytes
                ));
            }
        }
        Ok("parts at both ends and across them are right".to_owned())
    }

    async fn listing(&self) -> Result<String, Broken> {
        let names: Vec<ObjectName> = (0..LISTED).map(|_| self.name()).collect();
        let writing = names.iter().map(|name| self.create(name, Bytes::from_static(b"x")));
        stream::iter(writing).buffer_unordered(REQUESTS_MAX).try_collect::<()>().await?;
        let mut listed = BTreeSet::new();
        let mut listing = self.store.list(Folder::Probes(self.id));
        while let Some(found) = listing.next().await {
            listed.insert(found?.name);
        }
        let missing: Vec<_> =
            names.iter().map(ToString::to_string).filter(|name| !listed.contains(name)).collect();
        let Some(first) = missing.first() else {
            return Ok(format!("{LISTED} new objects are all listed"));
        };
        let count = missing.len();
        broken(format!("{count} of {LISTED} new objects are not listed, {first} is one of them"))
    }

    async fn largest_segment(&self) -> Result<String, Broken> {
        let (name, bytes) = (self.name(), content(9, LARGEST));
        self.create(&name, bytes.clone()).await?;
        self.holds(&name, &bytes).await?;
        Ok(format!("{} MiB in one put", LARGEST >> 20))
    }

    async fn clean_up(&self) -> Result<(), StoreError> {
        let names = (0..self.next.load(Ordering::Relaxed)).map(|n| ObjectName::probe(self.id, n));
        let deleting = names.map(|name| async move { self.store.delete(&name).await });
        stream::iter(deleting).buffer_unordered(REQUESTS_MAX).try_collect().await
    }
}

fn broken<T>(rule: String) -> Result<T, Broken> {
    Err(Broken::Rule(rule))
}

/// Bytes that tell which they are, and that no store can shrink away.
fn content(number: u64, bytes: usize) -> Bytes {
    let mut content = Vec::with_capacity(bytes.next_multiple_of(8));
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    content.into()
}

#[cfg(test)]
mod tests;
