//! What one caller may have, so that the others have theirs: by address while nobody knows who it is, by
//! identity from then on. Nothing here is counted for all together.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use crate::error::ControlError;

/// What is one peer as long as nobody knows who it is: an IPv4 address, or a network of IPv6, of which
/// one machine may have all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Host([u8; 16]);

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => {
                let mut bytes = address.octets();
                bytes[8..].fill(0);
                Self(bytes)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of places, shared out fairly: when all are taken, whoever has most of them gives one to
/// somebody who has fewer.
#[derive(Debug)]
pub struct Places<K>(Arc<Mutex<Table<K>>>);

#[derive(Debug)]
struct Table<K> {
    max: usize,
    max_of_one: usize,
    taken: usize,
    next: u64,
    holders: HashMap<K, BTreeMap<u64, Arc<Notify>>>,
}

/// One taken place; dropping it gives it back.
#[derive(Debug)]
pub struct Place<K: Copy + Eq + Hash> {
    places: Arc<Mutex<Table<K>>>,
    holder: K,
    number: u64,
    lost: Arc<Notify>,
}

impl<K: Copy + Eq + Hash> Places<K> {
    /// So many places, of which one holder has at most `max_of_one`.
    #[must_use]
    pub fn new(max: usize, max_of_one: usize) -> Self {
        let table = Table { max, max_of_one, taken: 0, next: 0, holders: HashMap::new() };
        Self(Arc::new(Mutex::new(table)))
    }

    /// Takes a place; none when all are taken and nobody has more than `holder` would have. A holder
    /// who has all that one may have gives the oldest of them up.
    #[must_use]
    pub fn enter(&self, holder: K) -> Option<Place<K>> {
        let mut table = lock(&self.0);
        let own = table.holders.get(&holder).map_or(0, BTreeMap::len);
        if own >= table.max_of_one {
            table.end_oldest(holder);
        } else if table.taken >= table.max && !table.make_room(own) {
            return None;
        }
        let (number, lost) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        table.taken += 1;
        table.holders.entry(holder).or_default().insert(number, lost.clone());
        Some(Place { places: self.0.clone(), holder, number, lost })
    }
}

impl<K: Copy + Eq + Hash> Table<K> {
    /// Ends the oldest place of the greediest holder, if it has more than one with `own` will have.
    fn make_room(&mut self, own: usize) -> bool {
        let greediest = self.holders.iter().max_by_key(|(_, places)| places.len());
        let greedy = greediest.filter(|(_, places)| places.len() > own + 1).map(|(who, _)| *who);
        greedy.inspect(|greedy| self.end_oldest(*greedy)).is_some()
    }

    fn end_oldest(&mut self, holder: K) {
        let oldest = self.holders.get(&holder).and_then(|places| {
            places.first_key_value().map(|(number, lost)| (*number, lost.clone()))
        });
        if let Some((number, lost)) = oldest {
            self.remove(holder, number);
            lost.notify_one();
        }
    }

    /// Removes a place, if it is still there.
    fn remove(&mut self, holder: K, number: u64) {
        let Some(places) = self.holders.get_mut(&holder) else { return };
        if places.remove(&number).is_some() {
            self.taken -= 1;
        }
        if places.is_empty() {
            self.holders.remove(&holder);
        }
    }
}

impl<K: Copy + Eq + Hash> Place<K> {
    /// Ends when the place was given to somebody else. Cancel-safe.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        lock(&self.places).remove(self.holder, self.number);
    }
}

/// So many calls at once, and so many a second after that.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// Calls of one agent or node, of whatever kind.
const CALLS: Rate = Rate { burst: 300.0, per_second: 20.0 };
/// Renewals: one in twelve hours is due.
const RENEWALS: Rate = Rate { burst: 10.0, per_second: 1.0 / 60.0 };
/// Registrations: one at each start.
const REGISTRATIONS: Rate = Rate { burst: 30.0, per_second: 1.0 / 5.0 };
/// Points that an agent tells of: as many volumes as it may have, with a mark every second, and what
/// gathered while the control plane was away.
const AGENT_POINTS: Rate = Rate { burst: 65_536.0, per_second: 256.0 };
/// Points that a node tells of: those of all its agents.
const NODE_POINTS: Rate = Rate { burst: 1_048_576.0, per_second: 8_192.0 };

/// Points of one machine that the catalogue takes: two a second, twice what marks every second make, and
/// what gathered while the control plane was away for a day. More is a flood, whoever tells of it.
const MACHINE_POINTS: Rate = Rate { burst: 131_072.0, per_second: 2.0 };
/// Events about what is refused without end.
const TOLD: Rate = Rate { burst: 1.0, per_second: 1.0 / 600.0 };

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asked {
    /// Any call.
    Call,
    /// Another certificate.
    Renewal,
    /// A registration.
    Registration,
    /// So many points of an agent.
    AgentPoints(u32),
    /// So many points of a node.
    NodePoints(u32),
    /// A point of a machine that the catalogue does not have yet.
    MachinePoint,
    /// An event that tells of refusals.
    Told,
}

impl Asked {
    /// Which bucket, its rate, and how much of it.
    fn bucket(self) -> (u8, Rate, f64) {
        match self {
            Self::Call => (0, CALLS, 1.0),
            Self::Renewal => (1, RENEWALS, 1.0),
            Self::Registration => (2, REGISTRATIONS, 1.0),
            Self::AgentPoints(count) => (3, AGENT_POINTS, f64::from(count)),
            Self::NodePoints(count) => (4, NODE_POINTS, f64::from(count)),
            Self::MachinePoint => (5, MACHINE_POINTS, 1.0),
            Self::Told => (6, TOLD, 1.0),
        }
    }
}

/// Any bucket is full again after so long.
const BUCKET_FULL_AFTER: Duration = Duration::from_secs(72_000);
/// Buckets that are remembered before those that nobody took from lately are forgotten: they are full.
const BUCKETS_MAX: usize = 65_536;

/// A bucket for each identity, or certificate, and kind of call.
#[derive(Debug, Default)]
pub struct Buckets(Mutex<HashMap<(Uuid, u8), (f64, Instant)>>);

impl Buckets {
    /// Takes what is asked for out of the identity's bucket.
    ///
    /// # Errors
    /// `TooManyRequests` if there is not enough in it, with the time until there is.
    pub fn take(&self, id: Uuid, asked: Asked) -> Result<(), ControlError> {
        self.take_at(id, asked, Instant::now())
    }

    fn take_at(&self, id: Uuid, asked: Asked, now: Instant) -> Result<(), ControlError> {
        let (kind, rate, amount) = asked.bucket();
        let mut buckets = lock(&self.0);
        if buckets.len() >= BUCKETS_MAX {
            buckets.retain(|_, (_, at)| now.duration_since(*at) < BUCKET_FULL_AFTER);
        }
        let (level, at) = buckets.entry((id, kind)).or_insert((rate.burst, now));
        let grown = now.duration_since(*at).as_secs_f64() * rate.per_second;
        (*level, *at) = ((*level + grown).min(rate.burst), now);
        if *level >= amount {
            *level -= amount;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((amount - *level) / rate.per_second);
        Err(ControlError::TooManyRequests { retry_after_s: wait.as_secs() + 1 })
    }
}

/// Failed enrolments of one host within [`PERIOD`] that are looked at.
const FAILURES_MAX: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);
/// Hosts that are remembered. The secret of a token is not to be guessed: a crowd of more hosts than
/// this costs work, and nothing else.
const HOSTS_MAX: usize = 4096;
/// Refusals are told once in this time, with their number.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Counts failed enrolments by host, and tells of them now and then.
#[derive(Debug, Default)]
pub struct Failures(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    hosts: HashMap<Host, (Instant, u32)>,
    untold: u64,
    told: Option<Instant>,
}

impl Failures {
    /// Whether another attempt of `host` is looked at.
    ///
    /// # Errors
    /// `TooManyRequests` if it has failed too often lately.
    pub fn check(&self, host: Host) -> Result<(), ControlError> {
        self.check_at(host, Instant::now())
    }

    fn check_at(&self, host: Host, now: Instant) -> Result<(), ControlError> {
        let mut counts = lock(&self.0);
        let Some((begun, count)) = counts.hosts.get(&host).copied() else { return Ok(()) };
        let age = now.duration_since(begun);
        if age >= PERIOD || count < FAILURES_MAX {
            return Ok(());
        }
        counts.untold += 1;
        Err(ControlError::TooManyRequests { retry_after_s: (PERIOD - age).as_secs() + 1 })
    }

    /// Counts a failure of `host`, and tells of those that were not told.
    pub fn count(&self, host: Host, error: &ControlError) {
        if let Some(number) = self.count_at(host, Instant::now()) {
            warn!(%error, number, "enrolments refused");
        }
    }

    /// Returns how many were not told, if it is time to tell.
    fn count_at(&self, host: Host, now: Instant) -> Option<u64> {
        let mut counts = lock(&self.0);
        if counts.hosts.len() >= HOSTS_MAX && !counts.hosts.contains_key(&host) {
            counts.hosts.retain(|_, (begun, _)| now.duration_since(*begun) < PERIOD);
        }
        if counts.hosts.len() < HOSTS_MAX || counts.hosts.contains_key(&host) {
            let (begun, count) = counts.hosts.entry(host).or_insert((now, 0));
            if now.duration_since(*begun) >= PERIOD {
                (*begun, *count) = (now, 0);
            }
            *count += 1;
        }
        counts.untold += 1;
        if counts.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return None;
        }
        counts.told = Some(now);
        Some(std::mem::take(&mut counts.untold))
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn host(last: u8) -> Host {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn is_lost<K: Copy + Eq + Hash>(place: &Place<K>) -> bool {
        let lost = pin!(place.lost());
        lost.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn a_flood_of_one_host_leaves_room_for_others() {
        let places = Places::new(4, 4);
        let flood: Vec<_> = (0..4).map(|_| places.enter(host(1)).unwrap()).collect();
        let good = places.enter(host(2)).expect("the greedy one gives a place");
        let lost: Vec<bool> = flood.iter().map(is_lost).collect();
        assert_eq!(lost, [true, false, false, false], "the oldest");
        let second = places.enter(host(2)).expect("two and two");
        assert!(places.enter(host(2)).is_none(), "even is even");
        assert!(places.enter(host(3)).is_some(), "whoever has none gets one");
        assert!(!is_lost(&good) || !is_lost(&second));
    }

    #[test]
    fn one_holder_has_no_more_than_one_may_and_places_come_back() {
        let places = Places::new(8, 2);
        let held: Vec<_> = (0..3).map(|_| places.enter(host(1)).unwrap()).collect();
        assert_eq!(held.iter().filter(|place| is_lost(place)).count(), 1);
        assert_eq!(lock(&places.0).taken, 2);
        drop(held);
        assert_eq!(lock(&places.0).taken, 0);
        assert!(lock(&places.0).holders.is_empty(), "nobody is remembered");
    }

    #[test]
    fn a_host_is_an_ipv4_address_or_a_network_of_ipv6() {
        let host = |text: &str| Host::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(host("10.0.0.1"), host("::ffff:10.0.0.1"));
        assert_ne!(host("10.0.0.1"), host("10.0.0.2"));
        assert_eq!(host("2001:db8::1"), host("2001:db8::ffff:0:2"));
        assert_ne!(host("2001:db8::1"), host("2001:db8:0:1::1"));
    }

    #[test]
    fn failed_enrolments_of_one_host_are_nobody_elses() {
        let (failures, now) = (Failures::default(), Instant::now());
        let mut told = 0;
        for _ in 0..FAILURES_MAX {
            assert!(failures.check_at(host(1), now).is_ok());
            told += u32::from(failures.count_at(host(1), now).is_some());
        }
        assert_eq!(told, 1, "one line, not ten");
        let refused = failures.check_at(host(1), now);
        assert!(matches!(refused, Err(ControlError::TooManyRequests { retry_after_s: 11 })));
        assert!(failures.check_at(host(2), now).is_ok());
        assert!(failures.check_at(host(1), now + PERIOD).is_ok());
        let number = failures.count_at(host(1), now + TELL_EVERY).unwrap();
        assert_eq!(number, u64::from(FAILURES_MAX) + 1, "with all that were not told");
    }

    #[test]
    fn a_crowd_of_hosts_is_not_remembered_for_ever() {
        let (failures, now) = (Failures::default(), Instant::now());
        for n in 0..u32::try_from(2 * HOSTS_MAX).unwrap() {
            failures.count_at(IpAddr::from(n.to_be_bytes()).into(), now);
        }
        assert_eq!(lock(&failures.0).hosts.len(), HOSTS_MAX);
        failures.count_at(host(1), now + PERIOD);
        assert_eq!(lock(&failures.0).hosts.len(), 1);
    }

    #[test]
    fn a_bucket_is_one_identitys_and_fills_again() {
        let (buckets, now) = (Buckets::default(), Instant::now());
        let (greedy, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let take = |id, asked, now| buckets.take_at(id, asked, now);
        while take(greedy, Asked::Renewal, now).is_ok() {}
        let Err(ControlError::TooManyRequests { retry_after_s }) =
            take(greedy, Asked::Renewal, now)
        else {
            panic!("it is empty");
        };
        assert!(take(other, Asked::Renewal, now).is_ok());
        assert!(take(greedy, Asked::Call, now).is_ok(), "another kind");
        let later = now + Duration::from_secs(retry_after_s);
        assert!(take(greedy, Asked::Renewal, later).is_ok(), "after the time that was told");
        assert!(take(greedy, Asked::AgentPoints(60_000), now).is_ok());
        assert!(take(greedy, Asked::AgentPoints(60_000), now).is_err());
    }

    #[test]
    fn what_is_due_is_never_refused() {
        let (buckets, id) = (Buckets::default(), Uuid::from_u128(1));
        let mut now = Instant::now();
        for _ in 0..3_600 {
            // A report and what else a second may bring, with a mark of each of 256 volumes.
            for asked in [Asked::Call, Asked::Call, Asked::Call, Asked::AgentPoints(256)] {
                buckets.take_at(id, asked, now).unwrap();
            }
            now += Duration::from_secs(1);
        }
    }
}
