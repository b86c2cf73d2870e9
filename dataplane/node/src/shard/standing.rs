//! Whether those whose sessions are open may still have them.
//!
//! Who somebody is, is found out when a connection begins; sessions last for weeks. So each is looked
//! at every second: its certificate may have ended, or the identity may have been revoked or enrolled
//! again.

use super::core::Core;
use crate::rt::Rt;
use farshore_client::Shown;
use farshore_proto::VolumeId;
use farshore_proto::frame::RefusalReason;
use std::rc::Rc;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a holder may not have a session any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// The identity was revoked, or has newer certificates.
    Revoked,
    /// The certificate has ended, and there was time to renew it.
    Ended,
}

impl Over {
    /// For counters and logs, and for the peer.
    pub(crate) fn reasons(self) -> (&'static str, RefusalReason) {
        match self {
            Self::Revoked => ("revoked", RefusalReason::NotAssigned),
            Self::Ended => ("expired", RefusalReason::Unavailable),
        }
    }

    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Revoked => {
                "the certificate is over: the agent was revoked, or enrolled again since"
            }
            Self::Ended => "the certificate has ended; come back with the renewed one",
        }
    }
}

impl<R: Rt> Core<R> {
    /// Why `shown` may not send `volume` any more, if so.
    pub(crate) fn over(&self, volume: VolumeId, shown: &Shown) -> Option<Over> {
        if self.parts.assignments.is_over(volume, shown) {
            Some(Over::Revoked)
        } else if !self.parts.identity.takes(shown.ends_s) {
            Some(Over::Ended)
        } else {
            None
        }
    }
}

/// Ends the sessions of those who may not have them any more.
pub(crate) async fn watch<R: Rt>(core: Rc<Core<R>>) {
    while !core.is_stopping() {
        R::sleep(LOOK_EVERY).await;
        for outbox in core.outboxes() {
            let Some((volume, shown)) = outbox.holder.get() else { continue };
            let Some(over) = core.over(volume, &shown).filter(|_| !outbox.is_closed()) else {
                continue;
            };
            let (word, reason) = over.reasons();
            core.parts.metrics.refused(word);
            let agent = shown.id;
            tracing::info!(%agent, %volume, reason = word, "session ended: {}", over.text());
            outbox.refuse(reason, over.text().to_owned());
        }
    }
}
