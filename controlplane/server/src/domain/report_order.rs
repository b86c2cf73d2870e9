//! Which of an agent's or node's reports is its newest.
//!
//! A report may arrive late: a request that was given up hangs on its way, behind a partition or in a
//! queue, and is taken in after the ones that came later; also after the ones of the next run of a
//! process that died meanwhile. What it says of a state is over then. So each run of a process draws an
//! id and counts its reports, and a late one changes nothing that may have changed since. A run that was
//! followed by another one is over. One that lives all the same, as beside a copy of it, is told so by
//! the answer to its report and goes on as a new run; one that is dead reads no answers.

use std::collections::{BTreeMap, VecDeque};

use farshore_api::agent::ReportOrder;
use uuid::Uuid;

/// Runs of one reporter that are known to be over; older ones have nothing on its way any more.
const OVER_MAX: usize = 8;

/// The newest report of each agent and node, since this process began: a request does not outlive the
/// process that it was sent to.
#[derive(Debug, Default)]
pub struct ReportOrders {
    newest: BTreeMap<Uuid, Runs>,
}

#[derive(Debug)]
struct Runs {
    newest: ReportOrder,
    over: VecDeque<Uuid>,
}

impl ReportOrders {
    /// Takes in a report. Returns whether it is newer than all before it of its reporter. One without an
    /// order, of a program that counts none, is.
    pub fn take(&mut self, reporter: Uuid, order: ReportOrder) -> bool {
        if order.run.is_nil() {
            return true;
        }
        let Some(known) = self.newest.get_mut(&reporter) else {
            self.newest.insert(reporter, Runs { newest: order, over: VecDeque::new() });
            return true;
        };
        if known.newest.run == order.run {
            let is_newest = order.number > known.newest.number;
            known.newest.number = known.newest.number.max(order.number);
            return is_newest;
        }
        if known.over.contains(&order.run) {
            return false;
        }
        if known.over.len() == OVER_MAX {
            known.over.pop_front();
        }
        known.over.push_back(known.newest.run);
        known.newest = order;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(run: u128, number: u64) -> ReportOrder {
        ReportOrder { run: Uuid::from_u128(run), number }
    }

    const AGENT: Uuid = Uuid::from_u128(7);

    #[test]
    fn late_and_repeated_reports_are_not_the_newest() {
        let mut orders = ReportOrders::default();
        let taken = [1, 2, 5, 5, 3, 4, 6, 6, 1].map(|number| orders.take(AGENT, order(1, number)));
        assert_eq!(taken, [true, true, true, false, false, false, true, false, false]);
        assert!(orders.take(Uuid::from_u128(8), order(1, 1)), "each reporter counts for itself");
    }

    #[test]
    fn a_run_is_over_when_the_next_one_speaks_and_stays_so() {
        let mut orders = ReportOrders::default();
        for run in 1..=4 {
            assert!(orders.take(AGENT, order(run, 1)), "{run}");
            for before in 1..run {
                assert!(!orders.take(AGENT, order(before, 1_000)), "{before} after {run}");
            }
            assert!(orders.take(AGENT, order(run, 2)), "{run}");
        }
    }

    #[test]
    fn what_is_known_of_a_reporter_has_a_bound() {
        let mut orders = ReportOrders::default();
        for run in 1..100 {
            assert!(orders.take(AGENT, order(run, 1)));
        }
        assert_eq!(orders.newest[&AGENT].over.len(), OVER_MAX);
    }

    #[test]
    fn reports_without_an_order_are_taken_as_they_come() {
        let mut orders = ReportOrders::default();
        assert!(orders.take(AGENT, ReportOrder::default()));
        assert!(orders.take(AGENT, order(1, 9)));
        assert!(orders.take(AGENT, ReportOrder::default()));
        assert!(!orders.take(AGENT, order(1, 9)));
    }
}
