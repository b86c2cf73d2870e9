//! Who may write: hellos, claims, revocations, and the check of every frame.

use super::contest::Holder;
use super::{BLOCK_BYTES, Bug, Claim, Output, SHARD_VOLUMES_MAX, SessionId, Shard, Volume, is_on};
use super::{
    Change, Hello, RefusalReason, Seq, Stream, Timestamp, VolumeId, WINDOW_BYTES, Welcome,
};
use super::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};
use farshore_proto::frame::Link;
use farshore_proto::{Epoch, Stamp};

/// Wire bytes of one volume that may wait for the journal. An agent that connects again does not
/// know how much of what it sent before still waits, so it may send up to a window more.
const UNJOURNALED_BYTES_MAX: usize = 2 * WINDOW_BYTES;

const _: () = assert!(UNJOURNALED_BYTES_MAX >= FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX);

/// `None`: the session was refused before; its late frames are dropped without another word.
type FrameRefusal = Option<(RefusalReason, String)>;

impl Shard {
    pub(super) fn hello(
        &mut self,
        now: Timestamp,
        session: SessionId,
        (hello, from): (&Hello, &str),
        assigned: Option<Epoch>,
        out: &mut Vec<Output>,
    ) {
        if let Err((reason, text)) = check_assignment(hello, assigned) {
            return self.refuse(session, reason, text, out);
        }
        let blocks_max = self.settings.volume_blocks_max;
        if hello.size_bytes.div_ceil(BLOCK_BYTES as u64) > blocks_max {
            // Before anything of it is taken: points that do not restore are worse than none.
            let text = format!(
                "volume {} has {} bytes, and what has more than {} cannot be restored yet: nothing of \
                 it is taken",
                hello.volume,
                hello.size_bytes,
                blocks_max * BLOCK_BYTES as u64
            );
            return self.refuse(session, RefusalReason::Limit, text, out);
        }
        if self.claims.contains_key(&hello.volume) {
            // One claim at a time, for the hello that it began with; others try again.
            let text = format!("volume {} is being claimed", hello.volume);
            return self.refuse(session, RefusalReason::Unavailable, text, out);
        }
        let Some(volume) = self.volumes.get(&hello.volume) else {
            if !self.has_room() {
                let text = format!("this shard serves {SHARD_VOLUMES_MAX} volumes already");
                return self.refuse(session, RefusalReason::Limit, text, out);
            }
            return self.claim(session, (hello, from), out);
        };
        let stream = volume.stream;
        if hello.epoch < stream.epoch() && is_on(Bug::EpochCheckDropped) {
            return self.open(session, (hello, from), out);
        }
        if hello.epoch < stream.epoch() {
            out.push(Output::Passed { volume: hello.volume, newest: stream.epoch() });
            let text = format!("volume {} is at epoch {}", hello.volume, stream.epoch());
            return self.refuse(session, RefusalReason::Fenced, text, out);
        }
        if hello.epoch == stream.epoch() {
            if self.is_uncontested(now, session, hello, from, out) {
                self.open(session, (hello, from), out);
            }
            return;
        }
        // A newer epoch begins where the old one ends: first all of the old one is committed.
        if stream.is_settled() {
            if let Some(old) = volume.session {
                // From here on nothing may join the old epoch's stream: the claim counts on its end.
                let text = format!("epoch {} of volume {} began", hello.epoch, hello.volume);
                self.refuse(old, RefusalReason::Fenced, text, out);
            }
            return self.claim(session, (hello, from), out);
        }
        if self.waiting.holds(hello.volume) {
            self.deadline = Some(now);
        }
        let text = format!("finishing epoch {} of volume {}", stream.epoch(), hello.volume);
        self.refuse(session, RefusalReason::Unavailable, text, out);
    }

    fn claim(&mut self, session: SessionId, (hello, from): (&Hello, &str), out: &mut Vec<Output>) {
        let from = from.to_owned();
        let claim = Claim { session: Some(session), hello: *hello, from, is_revoked: false };
        self.claims.insert(hello.volume, claim);
        out.push(Output::Claim {
            volume: hello.volume,
            epoch: hello.epoch,
            size_bytes: hello.size_bytes,
            first_slot: self.log.next_slot(),
        });
    }

    pub(super) fn claimed(
        &mut self,
        volume: VolumeId,
        outcome: Result<(Seq, Stamp), (RefusalReason, String)>,
        out: &mut Vec<Output>,
    ) {
        let Claim { session, hello, from, is_revoked } =
            self.claims.remove(&volume).expect("a claim ends once");
        if is_revoked {
            // What the claim began in the vault holds nothing, and whoever comes next claims anew.
            if let Some(session) = session {
                // Its next hello is told how the volume is assigned now.
                let text = format!("volume {volume} was taken away while it was claimed");
                self.refuse(session, RefusalReason::Unavailable, text, out);
            }
            return self.forget_if_revoked(volume);
        }
        if let Ok((committed, stamp)) = outcome {
            let stream = Stream::new(hello.epoch, hello.size_bytes, committed);
            let before = self.volumes.insert(volume, Volume::new(stream, stamp));
            let had_session = before.as_ref().is_some_and(|before| before.session.is_some());
            assert!(!had_session, "H4: the old epoch's session ended before the claim");
            if before.is_some_and(|before| before.contest.is_some()) {
                // A new epoch has new holders.
                out.push(Output::Contested { volume, text: None });
            }
        }
        // Whoever asked may be gone; the volume is this shard's all the same.
        let Some(session) = session else { return };
        match outcome {
            Ok(_) => self.open(session, (&hello, &from), out),
            Err((reason, text)) => self.refuse(session, reason, text, out),
        }
    }

    fn open(&mut self, session: SessionId, (hello, from): (&Hello, &str), out: &mut Vec<Output>) {
        let Some(volume) = self.volumes.get_mut(&hello.volume) else { return };
        let stream = volume.stream;
        if hello.size_bytes != stream.size_bytes() {
            let text = format!(
                "the disk has {} bytes, the vault recorded {} for volume {}",
                hello.size_bytes,
                stream.size_bytes(),
                hello.volume
            );
            return self.refuse(session, RefusalReason::Size, text, out);
        }
        if hello.first_seq > stream.expected() {
            let text = format!(
                "the agent's log begins at seq {}, the node needs {}",
                hello.first_seq,
                stream.expected()
            );
            return self.refuse(session, RefusalReason::Gap, text, out);
        }
        let interval_ms = u64::from(hello.mark_interval_ms);
        volume.interval_ms = interval_ms;
        volume.linger_ms = (interval_ms / 4).min(self.settings.linger_ms);
        volume.spacing_ms = (interval_ms / 2).min(self.settings.spacing_ms);
        let before = volume.session.replace(session);
        volume.is_revoked = false;
        let is_held = volume.is_held;
        volume.holder = Some(Holder { life: hello.life, from: from.to_owned() });
        let (stamp, imprint) = (volume.stamp, volume.imprint);
        if let Some(old) = before {
            self.sessions.remove(&old);
            let text = format!("another session took over volume {}: {from}", hello.volume);
            out.push(Output::Refuse { session: old, reason: RefusalReason::Overtaken, text });
        }
        self.sessions.insert(session, hello.volume);
        let welcome = Welcome {
            received: stream.received(),
            journaled: stream.journaled(),
            committed: stream.committed(),
            window_bytes: u32::try_from(self.settings.window_bytes).expect("checked when made"),
            stamp,
            imprint,
        };
        out.push(Output::Welcome { session, welcome });
        if is_held {
            out.push(Output::Hold { session });
        }
    }

    /// Whether the session may add this frame now; to which volume and epoch.
    pub(super) fn admit_frame(
        &mut self,
        session: SessionId,
        (seq, stamp, link): (Seq, Stamp, Link),
        change: Change,
        bytes: usize,
    ) -> Result<(VolumeId, Epoch), FrameRefusal> {
        let Some(id) = self.sessions.get(&session).copied() else {
            let is_early = self.claims.values().any(|claim| claim.session == Some(session));
            let text = "a frame came before the welcome".to_owned();
            return Err(is_early.then_some((RefusalReason::Protocol, text)));
        };
        let volume = self.volumes.get_mut(&id).expect("H4: a session's volume exists");
        if seq != volume.stream.expected() {
            let text = format!("seq {seq} came, {} was expected", volume.stream.expected());
            return Err(Some((RefusalReason::Protocol, text)));
        }
        if link.previous.differs(volume.imprint) && !is_on(Bug::OthersFramesJoin) {
            let text = format!(
                "seq {seq} comes behind another frame than the {} that is here: the server was set back, or this \
                 is a copy of it",
                volume.stream.received()
            );
            return Err(Some((RefusalReason::Gap, text)));
        }
        if let Change::Write(range) | Change::Zero(range) = change
            && range.end() > volume.stream.size_blocks()
        {
            let text = format!(
                "blocks {}..{} are beyond the volume's end at {}",
                range.block,
                range.end(),
                volume.stream.size_blocks()
            );
            return Err(Some((RefusalReason::Protocol, text)));
        }
        let unjournaled = volume.unjournaled_bytes + FRAME_HEADER_BYTES + bytes;
        if unjournaled > UNJOURNALED_BYTES_MAX {
            let text =
                format!("{unjournaled} bytes wait for the journal, the window is {WINDOW_BYTES}");
            return Err(Some((RefusalReason::Limit, text)));
        }
        volume.unjournaled_bytes = unjournaled;
        volume.stream.receive(seq);
        (volume.stamp, volume.imprint) = (stamp, link.imprint);
        Ok((id, volume.stream.epoch()))
    }

    /// Tells a session that has nothing to send that it was heard.
    pub(super) fn alive(&mut self, session: SessionId, out: &mut Vec<Output>) {
        if let Some(volume) = self.sessions.get(&session) {
            self.ack(*volume, out);
        }
    }

    pub(super) fn gone(&mut self, session: SessionId) {
        if let Some(volume) = self.sessions.remove(&session)
            && let Some(volume) = self.volumes.get_mut(&volume)
        {
            volume.session = None;
        }
        for claim in self.claims.values_mut().filter(|claim| claim.session == Some(session)) {
            claim.session = None;
        }
    }

    pub(super) fn revoked(&mut self, now: Timestamp, volume: VolumeId, out: &mut Vec<Output>) {
        if let Some(session) = self.volumes.get(&volume).and_then(|volume| volume.session) {
            // This may come late, when the session is the newer epoch's own: the next hello is judged by what
            // is assigned then.
            let text = format!("volume {volume} was given to a newer epoch");
            self.refuse(session, RefusalReason::Unavailable, text, out);
        }
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.is_revoked = true;
            if known.contest.take().is_some() {
                // Whoever has the volume now judges anew.
                out.push(Output::Contested { volume, text: None });
            }
        }
        if let Some(claim) = self.claims.get_mut(&volume) {
            claim.is_revoked = true;
        }
        if self.waiting.holds(volume) {
            self.deadline = Some(now);
        }
        self.forget_if_revoked(volume);
    }

    pub(super) fn refuse(
        &mut self,
        session: SessionId,
        reason: RefusalReason,
        text: String,
        out: &mut Vec<Output>,
    ) {
        self.gone(session);
        out.push(Output::Refuse { session, reason, text });
    }
}

fn check_assignment(hello: &Hello, assigned: Option<Epoch>) -> Result<(), (RefusalReason, String)> {
    let Some(assigned) = assigned else {
        let text = format!("volume {} is not assigned to this node and agent", hello.volume);
        return Err((RefusalReason::NotAssigned, text));
    };
    if hello.epoch < assigned && !is_on(Bug::EpochCheckDropped) {
        let text = format!("epoch {} is over; {assigned} owns the volume", hello.epoch);
        return Err((RefusalReason::Fenced, text));
    }
    if hello.epoch > assigned {
        let text = format!("epoch {} is not known here yet", hello.epoch);
        return Err((RefusalReason::Unavailable, text));
    }
    Ok(())
}
