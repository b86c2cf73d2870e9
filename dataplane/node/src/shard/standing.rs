//! Whether those whose sessions are open may still have them: [`farshore_engine::standing`] decides.

use super::core::Core;
use crate::rt::Rt;
use farshore_client::Shown;
use farshore_engine::standing::{Holder, LOOK_EVERY_MS, Over};
use farshore_proto::VolumeId;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

impl<R: Rt> Core<R> {
    /// Lets one who showed this certificate say hello for a volume; or says why not.
    pub(crate) fn enter(&self, volume: VolumeId, shown: &Shown) -> Result<Holder<Uuid>, Over> {
        let Shown { id: agent, generation, ends_s, .. } = *shown;
        let shown = farshore_engine::standing::Shown { agent, generation, ends_s };
        let allowed = self.parts.assignments.allowed(volume);
        Holder::enter(volume, shown, allowed, |ends_s| self.parts.identity.takes(ends_s))
    }

    fn over(&self, holder: &Holder<Uuid>) -> Option<Over> {
        let allowed = self.parts.assignments.allowed(holder.volume);
        holder.over(allowed, |ends_s| self.parts.identity.takes(ends_s))
    }
}

/// Ends the sessions of those who may not have them any more.
pub(crate) async fn watch<R: Rt>(core: Rc<Core<R>>) {
    while !core.is_stopping() {
        R::sleep(Duration::from_millis(LOOK_EVERY_MS)).await;
        for outbox in core.outboxes() {
            let Some(holder) = outbox.holder.get() else { continue };
            let Some(over) = core.over(&holder).filter(|_| !outbox.is_closed()) else {
                continue;
            };
            let (word, reason) = over.reasons();
            core.parts.metrics.refused(word);
            let Holder { volume, shown } = holder;
            let agent = shown.agent;
            tracing::info!(%agent, %volume, reason = word, "session ended: {}", over.text());
            outbox.refuse(reason, over.text().to_owned());
        }
    }
}
