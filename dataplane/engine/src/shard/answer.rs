//! The answer of a log to a condemnation: a committed slot that says that it was applied.

use super::{Output, Shard};
use farshore_proto::register::At;

impl Shard {
    /// Whatever is begun from now on says so. A log that has nothing to say puts a segment without spans, for a condemnation
    /// waits for every log.
    pub(super) fn applied(&mut self, at: At, asked: u64, out: &mut Vec<Output>) {
        self.log.applied(at);
        let is_silent = self.waiting.is_empty() && self.log.is_idle();
        let is_answer = at.number >= asked && self.log.stated().number < asked;
        if is_silent && is_answer && !self.is_shipping {
            let writer = self.log.writer();
            let slot = self.log.begin(&mut [], Vec::new());
            out.push(Output::Build { slot, writer, spans: Vec::new() });
        }
    }
}
