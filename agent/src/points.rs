//! Recovery points that the control plane has not heard of yet.

use farshore_api::agent::PointReport;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Points kept while the control plane does not answer; the oldest go first. The nodes report
/// points as well, so none is lost for good.
const POINTS_MAX: usize = 1 << 16;

/// Points waiting for a report, of all volumes.
#[derive(Debug, Default)]
pub struct Points {
    waiting: Mutex<VecDeque<PointReport>>,
}

impl Points {
    fn lock(&self) -> MutexGuard<'_, VecDeque<PointReport>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a point.
    pub fn push(&self, point: PointReport) {
        let mut waiting = self.lock();
        if waiting.len() == POINTS_MAX {
            waiting.pop_front();
        }
        waiting.push_back(point);
    }

    /// The oldest points, at most `count`.
    #[must_use]
    pub fn oldest(&self, count: usize) -> Vec<PointReport> {
        self.lock().iter().take(count).copied().collect()
    }

    /// Forgets points that were reported.
    pub fn forget(&self, reported: &[PointReport]) {
        self.lock().retain(|point| !reported.contains(point));
    }
}
