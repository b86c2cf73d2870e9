//! One shard: its engine, and what carries its outputs out.

use super::journal::{self, SimJournal};
use super::{Doom, Event, Fatal, Turn};
use crate::catalog::Told;
use crate::control::machine_of;
use crate::world;
use farshore_codec::SegmentBuilder;
use farshore_engine::batch::{Entry, Handle, SpanPlan};
use farshore_engine::claims::{self, Wanted};
use farshore_engine::log::CommittedPoint;
use farshore_engine::shard::{Input, Output, SessionId, Settings, Shard as Engine};
use farshore_engine::stream::Stream;
use farshore_engine::tenure::{self, Opening, PutEnd, Tenure};
use farshore_ingest::build::Build;
use farshore_ingest::claim::claim_with;
use farshore_ingest::frames::{Frame, Frames};
use farshore_ingest::journal::{JournalWriter, Written, lay_out, size_of};
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::frame::{Ack, Control, Refusal, RefusalReason};
use farshore_proto::segment::SlotWriter;
use farshore_proto::{LogId, Slot, Target, Timestamp, VolumeId};
use farshore_vault::checkpoint;
use farshore_vault::log::put_until_there;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A deadline that cannot be met now is looked at again after this.
const TICK_REST_MS: u64 = 5;
/// What the last frames of all sessions may take above the cache's limit, after a replay.
const REPLAYED_SLACK_BYTES: usize = 512 << 10;
/// How long the thread is busy before it builds, in microseconds.
const BUILD_US: std::ops::Range<u64> = 50..6_000;

/// A running shard.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) tenure: Tenure,
    settings: Settings,
    engine: Engine,
    frames: Frames,
    /// Away while it writes a group.
    journal: Option<Box<JournalWriter<SimJournal>>>,
    groups: VecDeque<(u64, Vec<Entry>)>,
    plans: VecDeque<(Slot, SlotWriter, Vec<SpanPlan>)>,
    is_building: bool,
    tick_at: Option<Timestamp>,
    /// No tick before this.
    rest_until: Timestamp,
}

impl Shard {
    pub(super) fn new(
        tenure: Tenure,
        settings: Settings,
        opening: &Opening,
        journal: JournalWriter<SimJournal>,
    ) -> Self {
        Self {
            tenure,
            settings,
            engine: Engine::new(settings, opening.log_end()),
            frames: Frames::default(),
            journal: Some(Box::new(journal)),
            groups: VecDeque::new(),
            plans: VecDeque::new(),
            is_building: false,
            tick_at: None,
            rest_until: Timestamp(0),
        }
    }

    pub(super) fn log(&self) -> LogId {
        self.tenure.log()
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings
    }

    pub(super) fn is_settled(&self) -> bool {
        self.engine.is_settled()
    }

    pub(super) fn is_held(&self, session: SessionId) -> bool {
        self.engine.is_held(session)
    }

    pub(super) fn streams(&self) -> Vec<(VolumeId, Stream)> {
        self.engine.streams().collect()
    }

    pub(super) fn stream(&self, volume: VolumeId) -> Option<Stream> {
        self.engine.stream(volume)
    }

    pub(super) fn keep(&mut self, frame: Frame) -> Handle {
        self.frames.insert(frame)
    }

    pub(super) fn standing(&self) -> String {
        let streams: Vec<String> = self
            .engine
            .streams()
            .map(|(volume, stream)| {
                let (received, committed) = (stream.received(), stream.committed());
                format!("volume {} at {received}/{committed}", machine_of(volume))
            })
            .collect();
        let held = self.engine.held_bytes();
        let paused = if self.engine.is_paused() { ", paused" } else { "" };
        format!("shard holds {held} bytes{paused} [{}]", streams.join(", "))
    }
}

impl Turn<'_> {
    /// Steps a shard's engine and carries out what it says.
    pub(super) fn input(&mut self, shard: usize, input: Input) -> Result<(), Fatal> {
        let now = self.world.now();
        let mut out = Vec::new();
        self.running.shards[shard].engine.step(now, input, &mut out);
        let held = self.running.shards[shard].engine.held_bytes();
        // After a start the sessions are those of the run before: their last frames are replayed too.
        let slack = self.running.sessions.slack_bytes().max(REPLAYED_SLACK_BYTES);
        let allowed = self.running.shards[shard].settings.cache_bytes + slack;
        self.world.oracle.held("a shard's cache", held, allowed);
        for output in out {
            self.perform(shard, output)?;
        }
        self.plan_tick(shard);
        Ok(())
    }

    fn perform(&mut self, shard: usize, output: Output) -> Result<(), Fatal> {
        match output {
            // Nothing begins in a log that was sealed.
            Output::Claim { .. } if !self.running.shards[shard].tenure.is_open() => {}
            Output::Claim { volume, epoch, size_bytes, first_slot } => {
                let log = self.running.shards[shard].log();
                let label = format!("server {}", machine_of(volume));
                let wanted = Wanted { volume, epoch, log, first_slot, size_bytes, label };
                self.step_claims(claims::Input::Wanted { shard, wanted })?;
            }
            Output::Welcome { session, welcome } => {
                let (journaled, committed) = (welcome.journaled, welcome.committed);
                self.judge(shard, session, Ack { journaled, committed, gathers_in_ms: None });
                self.say(session, &Control::Welcome(welcome));
            }
            Output::Refuse { session, reason, text } => {
                self.world.tell(self.process(), || format!("refuses: {text}"));
                self.say(session, &Control::Refusal(Refusal { reason, text }));
                self.close(shard, session)?;
            }
            Output::Passed { volume, newest } => {
                self.running.wishes.learn(volume, claims::Cause::Fenced(newest));
            }
            Output::Contested { volume, text } => {
                let machine = machine_of(volume);
                self.world.tell(self.process(), || format!("volume {machine}: {text:?}"));
            }
            Output::Journal { group, entries } => {
                self.running.shards[shard].groups.push_back((group, entries));
                self.write_group(shard);
            }
            Output::Ack { session, ack } => {
                self.judge(shard, session, ack);
                self.say(session, &Control::Ack(ack));
            }
            Output::Build { slot, writer, spans } => {
                self.running.shards[shard].plans.push_back((slot, writer, spans));
                self.plan_build(shard);
            }
            Output::Checkpoint { slot, body } => self.checkpoint(shard, slot, body),
            Output::Committed { slot, points, release, .. } => {
                let log = self.running.shards[shard].log();
                self.world.tell(self.process(), || {
                    format!("shard {shard}: slot {slot} is committed, with {} points", points.len())
                });
                for CommittedPoint { volume, seq, mark, .. } in points {
                    self.world.tell_of_point(Told {
                        machine: machine_of(volume),
                        point: mark.point,
                        seq,
                        time_ms: mark.time_unix_ms,
                    });
                }
                self.running.known.committed(log, slot);
                let frames = &mut self.running.shards[shard].frames;
                release.into_iter().for_each(|handle| frames.release(handle));
            }
            Output::DropJournal { file } => {
                // One that is left takes space until the next start, which removes it.
                let _removed = self.files.remove(&journal::path(shard, file));
            }
            Output::Drop { handle } => self.running.shards[shard].frames.release(handle),
            Output::Pause | Output::Hold { .. } => {}
            Output::Resume | Output::Release { .. } => self.resumed(shard)?,
        }
        Ok(())
    }

    /// Has the oracle judge watermarks that a session's agent is told.
    fn judge(&mut self, shard: usize, session: SessionId, ack: Ack) {
        let Some(machine) = self.running.sessions.machine(session) else { return };
        let shard = &self.running.shards[shard];
        let volume = shard.engine.volume_of(session);
        if let Some(stream) = volume.and_then(|volume| shard.engine.stream(volume)) {
            self.world.judge_ack(shard.log(), machine, stream.epoch(), ack);
        }
    }

    /// Steps the node's claims and carries out what they say.
    pub(super) fn step_claims(&mut self, input: claims::Input) -> Result<(), Fatal> {
        let mut out = Vec::new();
        self.running.claims.step(input, &mut out);
        for output in out {
            match output {
                claims::Output::Claim { number, wanted } => self.claim(number, wanted),
                claims::Output::Tell { shard, log, volume, outcome } => {
                    if outcome.is_ok() && self.running.doom == Some(Doom::Claim) {
                        self.running.doom = Some(Doom::Group(shard));
                    }
                    self.hold(shard, tenure::Input::ClaimEnded { log, volume, outcome })?;
                }
                claims::Output::Wish { volume, cause } => self.running.wishes.learn(volume, cause),
            }
        }
        Ok(())
    }

    fn claim(&mut self, number: u64, wanted: Wanted) {
        let (node, vault) = (self.number, self.world.store.vault());
        let sealed = Arc::clone(&self.running.sealed);
        self.world.spawn(self.process(), async move {
            let claimed = claim_with(&vault, &wanted, &sealed).await;
            let end = claimed
                .map(|claimed| (claimed.committed, claimed.stamp))
                .map_err(|error| (&error).into());
            world::Event::Node(node, Event::Claimed { number, end })
        });
    }

    /// Gives the tenure of a shard an input, and carries out what it says.
    pub(super) fn hold(&mut self, shard: usize, input: tenure::Input) -> Result<(), Fatal> {
        let mut out = Vec::new();
        self.running.shards[shard].tenure.step(input, &mut out);
        for output in out {
            match output {
                tenure::Output::Tell(input) => self.input(shard, input)?,
                tenure::Output::Retire => self.retire(shard)?,
                tenure::Output::Taken { log, slot } => {
                    return Err(format!("slot {slot} of log {log} is taken"));
                }
                other => panic!("{other:?} is for a log that is not open"),
            }
        }
        Ok(())
    }

    /// Puts a checkpoint of the log, as far as the store takes it.
    fn checkpoint(&mut self, shard: usize, slot: Slot, body: CheckpointBody) {
        let (vault, log) = (self.world.store.vault(), self.running.shards[shard].log());
        self.world.tell(self.process(), || {
            format!("shard {shard}: a checkpoint at slot {slot}, {} volumes", body.tails.len())
        });
        let node = self.number;
        self.world.spawn(self.process(), async move {
            let is_there = checkpoint::write(&vault, log, slot, body).await.is_ok();
            world::Event::Node(node, Event::Checkpointed { shard, log, slot, is_there })
        });
    }

    /// The log was sealed: ends all sessions, and leaves it once no group is being written.
    fn retire(&mut self, shard: usize) -> Result<(), Fatal> {
        let log = self.running.shards[shard].log();
        self.world.tell(self.process(), || format!("shard {shard}: log {log} was sealed"));
        for session in self.running.sessions.of_shard(shard) {
            let text = "the log was taken over; come back in a moment".to_owned();
            let reason = RefusalReason::Unavailable;
            self.say(session, &Control::Refusal(Refusal { reason, text }));
            self.close(shard, session)?;
        }
        if self.running.shards[shard].journal.is_some() { self.renew(shard) } else { Ok(()) }
    }

    /// Gives the next group to the journal's writer, if that is at home.
    fn write_group(&mut self, number: usize) {
        let shard = &mut self.running.shards[number];
        if shard.journal.is_none() || !shard.tenure.is_open() {
            return;
        }
        let Some((group, entries)) = shard.groups.pop_front() else { return };
        let Some(mut journal) = shard.journal.take() else { return };
        let size = size_of(&entries);
        let mut plain = vec![0; size.bytes];
        lay_out(&entries, |handle| shard.frames.get(handle), &mut plain);
        let node = self.number;
        self.world.spawn(self.process(), async move {
            let written = journal.write(size, |into| into.copy_from_slice(&plain)).await;
            world::Event::Node(node, Event::Grouped { shard: number, group, journal, written })
        });
    }

    /// A group is durable; or the journal has failed, which is the end (I8).
    pub(super) fn grouped(
        &mut self,
        shard: usize,
        group: u64,
        journal: Box<JournalWriter<SimJournal>>,
        written: io::Result<Written>,
    ) -> Result<(), Fatal> {
        let written = written.map_err(|error| format!("the journal failed: {error}"))?;
        if let Some(salt) = journal.salt() {
            let log = self.running.shards[shard].log();
            let content = format!(
                "node {} file {} life {}",
                self.number, written.file, self.running.incarnation
            );
            let content = [log.0.as_slice(), content.as_bytes()].concat();
            self.world.oracle.sealed("journal file", &salt, &content);
        }
        self.running.shards[shard].journal = Some(journal);
        self.input(shard, Input::GroupDone { group, file: written.file })?;
        if !self.running.shards[shard].tenure.is_open() {
            return self.renew(shard);
        }
        if self.running.doom == Some(Doom::Group(shard)) {
            return Err("it was doomed to die behind the first group after a claim".to_owned());
        }
        self.write_group(shard);
        Ok(())
    }

    fn plan_build(&mut self, shard: usize) {
        let it = &mut self.running.shards[shard];
        if !it.is_building && !it.plans.is_empty() {
            it.is_building = true;
            let wait = self.world.us(BUILD_US);
            self.after(wait, Event::Build { shard });
        }
    }

    /// Builds the next segment and sends it.
    pub(super) fn build(&mut self, number: usize) -> Result<(), Fatal> {
        let shard = &mut self.running.shards[number];
        shard.is_building = false;
        if !shard.tenure.is_open() {
            return Ok(());
        }
        let Some((slot, writer, spans)) = shard.plans.pop_front() else { return Ok(()) };
        let vault = self.world.store.vault();
        let keys = vault.seal_keys();
        let log = shard.log();
        let told = |error: farshore_codec::CodecError| format!("cannot build a segment: {error}");
        let mut builder =
            SegmentBuilder::new(vault.id(), log, slot, writer, keys, 1).map_err(told)?;
        builder.check_each_frame();
        let tools = &self.running.tools;
        let known = &mut self.running.known;
        let mut build = Build::new(&tools.chunker, &tools.hasher, builder, spans);
        let frame = |handle| shard.frames.get(handle);
        while build.step(frame, |ids| known.lookup(log, ids)) {}
        let (built, _) = build.finish().map_err(told)?;
        let attempt = built.header.attempt();
        known.built(Target { log, slot, attempt }, &built.table);
        self.look_at_segments();
        self.world.tell(self.process(), || {
            // Not its bytes: what a table compresses to differs with the salts that it names.
            let (spans, chunks) = (built.table.spans.len(), built.table.chunks.len());
            format!("shard {number}: puts slot {slot}, {spans} spans, {chunks} chunks")
        });
        let spans = built.table.spans.iter();
        let spans = spans.map(|span| (span.volume, span.extents.len() as u64)).collect();
        let (node, sleep) = (self.number, self.world.sleeper());
        self.world.spawn(self.process(), async move {
            let pause = |_, wait: Duration| sleep(wait);
            let end = put_until_there(&vault, log, slot, built.pieces, pause).await;
            let end = end.map_or_else(PutEnd::from, |()| PutEnd::There);
            world::Event::Node(node, Event::Put { shard: number, log, slot, end, spans })
        });
        if let Some(Doom::Puts(puts)) = self.running.doom
            && self.world.store.puts_on_way(log) >= puts
        {
            return Err("it was doomed to die with puts on their way".to_owned());
        }
        self.plan_build(number);
        Ok(())
    }

    /// Has the engine told the time when it wants to, but not again at once if that did not help.
    fn plan_tick(&mut self, shard: usize) {
        let now = self.world.now();
        let it = &mut self.running.shards[shard];
        let Some(deadline) = it.engine.next_deadline() else { return };
        let at = deadline.max(it.rest_until).max(now);
        if it.tick_at.is_none_or(|planned| planned > at) {
            it.tick_at = Some(at);
            self.after(Duration::from_millis(at.since_ms(now)), Event::Tick { shard });
        }
    }

    pub(super) fn tick(&mut self, shard: usize) -> Result<(), Fatal> {
        let now = self.world.now();
        let it = &mut self.running.shards[shard];
        if it.tick_at.is_some_and(|planned| planned > now) {
            // An earlier one was planned since, and this came of a plan that was given up.
            return Ok(());
        }
        it.tick_at = None;
        if it.engine.next_deadline().is_some_and(|deadline| deadline <= now) {
            it.rest_until = now.plus_ms(TICK_REST_MS);
            return self.input(shard, Input::Tick);
        }
        self.plan_tick(shard);
        Ok(())
    }
}
