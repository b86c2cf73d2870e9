//! Batches become segments, on the shard's own thread: after each step other tasks get their turn, or a
//! frame that has come would wait for its ack as long as a whole segment takes.

use super::core::{Core, Plan};
use crate::fatal::Cause;
use crate::rt::{Rt, within};
use crate::services::Request;
use farshore_api::machine::VolumeStats;
use farshore_codec::{CodecError, SegmentBuilder};
use farshore_ingest::build::{Build, Progress, SpanStats};
use farshore_proto::Target;
use std::rc::Rc;
use std::time::Duration;

/// A segment does not wait longer for what is known of its chunks: they are stored again.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Builds segments as the engine asks, for as long as the shard has its log.
pub(crate) async fn run<R: Rt>(core: Rc<Core<R>>) {
    while let Some(plan) = core.next_plan().await {
        match build(&core, plan).await {
            Ok(None) => return,
            Ok(Some(request)) => {
                if !core.parts.services.put(request).await {
                    return core.parts.fatal.raise(Cause::ShardGone(core.id()));
                }
            }
            Err(error) => return core.parts.fatal.raise(Cause::Build(error.to_string())),
        }
    }
}

/// Builds one segment; none if the log was sealed meanwhile.
async fn build<R: Rt>(core: &Core<R>, plan: Plan) -> Result<Option<Request>, CodecError> {
    let (dedup, log) = (&core.parts.dedup, core.parts.log);
    let keys = core.parts.keys.sealing()?;
    let (vault, level) = (core.parts.keys.vault(), dedup.level());
    let builder = SegmentBuilder::new(vault, log, plan.slot, plan.writer, keys, level)?;
    let mut build = Build::new(dedup.chunker(), dedup.hasher(), builder, plan.spans);
    loop {
        match build.advance(|handle| core.frame(handle)) {
            Progress::Done => break,
            Progress::More => R::yield_now().await,
            Progress::Asks(ids) => {
                let answer = within::<R, _>(ANSWER_MAX, dedup.lookup(log, ids)).await;
                build.answer(&answer.unwrap_or_default());
            }
        }
        if core.is_retired() {
            return Ok(None);
        }
    }
    let (built, stats) = build.finish()?;
    for (volume, epoch, stats) in stats {
        let SpanStats { bytes_in, zero_bytes, duplicate_bytes, unique_bytes, stored_bytes } = stats;
        let stats =
            VolumeStats { bytes_in, zero_bytes, duplicate_bytes, unique_bytes, stored_bytes };
        core.parts.metrics.built(volume, epoch, &stats);
    }
    let attempt = built.header.attempt();
    dedup.built(Target { log, slot: plan.slot, attempt }, &built.table);
    core.parts.metrics.put(built.object_bytes());
    let spans = built.table.spans.iter().map(|span| (span.volume, span.extents.len())).collect();
    let (shard, slot, object) = (core.id(), plan.slot, built.pieces.into());
    Ok(Some(Request::Put { shard, log, slot, object, spans }))
}
