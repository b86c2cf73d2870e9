//! Connections that have not yet shown what they want: how many there may be, and whose ends first
//! when there are too many.
//!
//! A place is held from the first byte of TLS to the request, and again from there to the hello. A
//! flood from a few hosts must not keep everybody else out, so at the limit a host with fewer places
//! than the greediest one takes the oldest place of that one.
//!
//! Invariants:
//!   - at most `max` places are taken;
//!   - nobody loses a place to a host that has as many.

use crate::rt::Signal;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

/// Who shares one budget: an IPv4 address, or an IPv6 network of /64, which one host has whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let octets = address.octets();
                Self::V6(std::array::from_fn(|n| octets[n]))
            }
        }
    }
}

/// The places of one shard.
#[derive(Debug, Clone)]
pub(crate) struct Strangers(Rc<RefCell<Table>>);

#[derive(Debug)]
struct Table {
    max: usize,
    taken: usize,
    next: u64,
    /// Places of each host, the oldest first.
    hosts: HashMap<Host, BTreeMap<u64, Signal>>,
}

/// One taken place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    strangers: Strangers,
    host: Host,
    number: u64,
    lost: Signal,
}

impl Strangers {
    /// So many places.
    pub(crate) fn new(max: usize) -> Self {
        let table = Table { max, taken: 0, next: 0, hosts: HashMap::new() };
        Self(Rc::new(RefCell::new(table)))
    }

    /// Takes a place for a host; none when all are taken and nobody has more than it would have.
    pub(crate) fn enter(&self, host: Host) -> Option<Place> {
        let mut table = self.0.borrow_mut();
        if table.taken >= table.max && !table.make_room(host) {
            return None;
        }
        let (number, lost) = (table.next, Signal::default());
        table.next += 1;
        table.taken += 1;
        table.hosts.entry(host).or_default().insert(number, lost.clone());
        assert!(table.taken <= table.max);
        Some(Place { strangers: self.clone(), host, number, lost })
    }

    fn leave(&self, host: Host, number: u64) {
        self.0.borrow_mut().remove(host, number);
    }
}

impl Table {
    /// Ends the oldest place of the greediest host, if it has more than `host` will have.
    fn make_room(&mut self, host: Host) -> bool {
        let own = self.hosts.get(&host).map_or(0, BTreeMap::len);
        let greediest = self.hosts.iter().max_by_key(|(_, places)| places.len());
        let Some((greedy, places)) = greediest.filter(|(_, places)| places.len() > own + 1) else {
            return false;
        };
        let oldest = places.first_key_value().map(|(number, lost)| (*number, lost.clone()));
        let (greedy, (number, lost)) = (*greedy, oldest.expect("it has more than one"));
        self.remove(greedy, number);
        lost.notify();
        true
    }

    /// Removes a place, if it is still there.
    fn remove(&mut self, host: Host, number: u64) {
        let Some(places) = self.hosts.get_mut(&host) else { return };
        if places.remove(&number).is_some() {
            self.taken -= 1;
        }
        if places.is_empty() {
            self.hosts.remove(&host);
        }
    }
}

impl Place {
    /// Ends when the place was given to somebody else. Cancel-safe.
    pub(crate) async fn lost(&self) {
        self.lost.wait().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.leave(self.host, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn host(last: u8) -> Host {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn is_lost(place: &Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[test]
    fn a_flood_of_one_host_leaves_room_for_others() {
        let strangers = Strangers::new(4);
        let flood: Vec<Place> = (0..4).filter_map(|_| strangers.enter(host(1))).collect();
        assert_eq!(flood.len(), 4);
        assert!(strangers.enter(host(1)).is_none(), "no host takes from itself");
        let good = strangers.enter(host(2)).expect("the greedy one gives a place");
        let lost: Vec<bool> = flood.iter().map(is_lost).collect();
        assert_eq!(lost, [true, false, false, false], "the oldest");
        // 3 to 1: another for the second host makes it even, and then it stays so.
        let second = strangers.enter(host(2)).expect("2 to 2");
        assert!(strangers.enter(host(2)).is_none());
        assert!(strangers.enter(host(1)).is_none());
        assert!(!is_lost(&good) && !is_lost(&second));
    }

    #[test]
    fn places_come_back_once_whoever_ended_them() {
        let strangers = Strangers::new(2);
        let first = strangers.enter(host(1));
        let second = strangers.enter(host(1));
        let third = strangers.enter(host(2)).expect("takes the first");
        drop(first);
        assert!(strangers.enter(host(3)).is_none(), "the lost place was not given back twice");
        drop(third);
        let third = strangers.enter(host(3));
        assert!(third.is_some());
        drop((second, third));
        assert_eq!(strangers.0.borrow().taken, 0);
        assert!(strangers.0.borrow().hosts.is_empty(), "no host is remembered");
    }

    #[test]
    fn many_hosts_share_what_there_is() {
        let strangers = Strangers::new(64);
        let mut places = Vec::new();
        for round in 0..64 {
            for last in 0..16 {
                places.extend(strangers.enter(host(last)).map(|place| (last, round, place)));
            }
        }
        let table = strangers.0.borrow();
        assert_eq!(table.taken, 64);
        assert!(table.hosts.values().all(|places| places.len() == 4));
    }

    #[test]
    fn a_host_is_an_ipv4_address_or_a_network_of_ipv6() {
        let host = |text: &str| Host::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(host("10.0.0.1"), host("::ffff:10.0.0.1"));
        assert_ne!(host("10.0.0.1"), host("10.0.0.2"));
        assert_eq!(host("2001:db8::1"), host("2001:db8::ffff:0:2"));
        assert_ne!(host("2001:db8::1"), host("2001:db8:0:1::1"));
    }
}
