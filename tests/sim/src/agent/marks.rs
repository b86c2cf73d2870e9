//! Marks, as `agent/src/mark.rs` sets them, and the orderly stop.

use super::capture::Flusher;
use super::session::MARK_INTERVAL_MS;
use super::volume::Volume;
use super::{Ctx, Own as AgentOwn};
use farshore_agent::capture::progress::is_consistent;
use farshore_agent::hrl::Marked;
use farshore_engine::gathering::next_mark;
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{MarkKind, PointId, Timestamp};
use std::time::Duration;

/// Pause while a mark is due and the log is not the disk.
const RETRY: Duration = Duration::from_millis(20);
/// How long an orderly stop waits for the node to have everything.
const DRAIN_MS_MAX: u64 = 3_000;
/// Between two looks during an orderly stop.
const STOP_LOOK: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) enum Own {
    /// A mark is due.
    Due,
    /// What was lost to the log is counted: is the log the disk?
    Check { breaches: u64 },
    /// It is: set the mark.
    Set { breaches: u64 },
    /// An orderly stop looks whether the guest's requests have ended.
    Stop,
    /// It waits for the node.
    Drain { until: Timestamp },
}

/// When marks are due.
#[derive(Debug, Default)]
pub(super) struct Marks {
    due: Timestamp,
}

impl Volume {
    pub(super) fn mark_step(&mut self, ctx: &mut Ctx<'_>, own: Own) {
        match own {
            Own::Due => {
                if !self.is_stopping {
                    // In this order: what is lost to the log after this shows when the mark is set.
                    let breaches = self.stream.log.breaches();
                    ctx.soon(AgentOwn::Mark(Own::Check { breaches }));
                }
            }
            Own::Check { breaches } => {
                if self.is_log_the_disk() {
                    return ctx.soon(AgentOwn::Mark(Own::Set { breaches }));
                }
                ctx.after(RETRY, AgentOwn::Mark(Own::Due));
            }
            Own::Set { breaches } => {
                if !self.set_mark(ctx, breaches, false) {
                    return ctx.after(RETRY, AgentOwn::Mark(Own::Due));
                }
                let now = ctx.world.now();
                let Some(served) = &mut self.served else { return };
                let gathers_at = self.session.gathers_at();
                let due = next_mark(now, served.marks.due, MARK_INTERVAL_MS.into(), gathers_at);
                served.marks.due = due;
                let wait = Duration::from_millis(due.since_ms(now));
                ctx.after(wait, AgentOwn::Mark(Own::Due));
            }
            Own::Stop => self.stop_when_quiet(ctx),
            Own::Drain { until } => {
                let is_done = !self.session.is_streaming()
                    || self.session.journaled() >= self.last()
                    || ctx.world.now() >= until;
                if is_done {
                    return ctx.world.exit(ctx.process(), "stopped in order");
                }
                ctx.after(STOP_LOOK, AgentOwn::Mark(Own::Drain { until }));
            }
        }
    }

    fn is_log_the_disk(&self) -> bool {
        let Some(served) = &self.served else { return false };
        is_consistent(&self.stream.progress, served.gate.in_doubt())
    }

    /// Whether the log took it, or holds one that stands for it.
    fn set_mark(&mut self, ctx: &mut Ctx<'_>, breaches: u64, is_last: bool) -> bool {
        let mut point = [0; 16];
        ctx.world.rng.fill(&mut point);
        let time_unix_ms = ctx.world.wall_ms(ctx.process());
        let is_prompt = ctx.world.chance(100);
        let point = PointId(point);
        let mark = Mark {
            point,
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            is_prompt,
            time_unix_ms,
            group: MarkGroup::ALONE,
        };
        let set = match is_prompt || is_last {
            true => self.stream.log.append_mark(mark, breaches).map(Marked::At),
            false => self.stream.log.mark_or_keep(mark, breaches),
        };
        match set {
            Ok(Marked::Still(seq)) => {
                let busy = self.served.as_ref().map(|served| served.capture.busy());
                ctx.tell(|| format!("finds that the mark at {seq} is the disk still"));
                let busy = busy.unwrap_or_default();
                ctx.world.oracle.judge_mark(ctx.number, seq, &ctx.disk.seen, &busy);
                self.newest_mark = Some(seq);
                self.poke(ctx);
                true
            }
            Ok(Marked::At(seq)) => {
                let busy = self.served.as_ref().map(|served| served.capture.busy());
                ctx.tell(|| format!("sets a mark at {seq}"));
                let oracle = &mut ctx.world.oracle;
                oracle.appended(ctx.number, seq, &[]);
                let busy = busy.unwrap_or_default();
                oracle.marked(ctx.number, (seq, point), &ctx.disk.seen, &busy);
                self.newest_mark = Some(seq);
                self.has_appended(ctx, None);
                true
            }
            Err(error) => {
                ctx.tell(|| format!("no mark now: {error}"));
                false
            }
        }
    }

    /// Begins the orderly stop.
    pub(super) fn stop(&mut self, ctx: &mut Ctx<'_>) {
        if !self.is_stopping {
            self.is_stopping = true;
            ctx.tell(|| "stops in order".to_owned());
            ctx.soon(AgentOwn::Mark(Own::Stop));
        }
    }

    /// A last mark, everything durable, no intent left, and a note of that.
    fn stop_when_quiet(&mut self, ctx: &mut Ctx<'_>) {
        let Some(served) = &self.served else {
            return ctx.world.exit(ctx.process(), "stopped in order");
        };
        if !served.capture.is_quiet() || !served.gate.is_idle() {
            return ctx.after(STOP_LOOK, AgentOwn::Mark(Own::Stop));
        }
        self.halt_copy(ctx);
        let breaches = self.stream.log.breaches();
        if self.is_log_the_disk() {
            self.set_mark(ctx, breaches, true);
        }
        self.flush(ctx, Flusher::Stop);
    }

    pub(super) fn stop_gate(&mut self, ctx: &mut Ctx<'_>) {
        let Some(served) = &mut self.served else { return };
        if !served.gate.is_idle() {
            // The flush cleared intents; their errand comes first.
            return ctx.after(STOP_LOOK, AgentOwn::Mark(Own::Stop));
        }
        let durable = served.gate.durable();
        let noted = self.stream.progress.note_logged(durable.end, durable.restarts);
        let cleared = noted
            .and_then(|is_noted| if is_noted { served.gate.stop(ctx.world.now()) } else { Ok(()) });
        let stopped = cleared.and_then(|()| {
            self.stream.log.sync()?;
            ctx.disk.sync();
            self.stream.state.update(|state| state.stopped_ns = Some(0))
        });
        if let Err(error) = stopped {
            ctx.tell(|| format!("is not stopped in order: {error}"));
        }
        let until = ctx.world.now().plus_ms(DRAIN_MS_MAX);
        ctx.soon(AgentOwn::Mark(Own::Drain { until }));
    }
}
