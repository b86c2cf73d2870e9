//! A shard: the driver around `farshore_engine::shard`.
//!
//! One thread owns the engine, the frames in memory and the sessions of its volumes. Tasks on that
//! thread carry out what the engine says: [`journal`] writes groups, [`build`] makes segments,
//! [`session`] moves frames; puts and claims are done by [`crate::services`] on other threads and come back through the mailbox.
//! No lock is taken on the way of a frame.

mod arrivals;
mod build;
mod core;
mod greet;
mod journal;
mod outbox;
mod refusals;
mod renewal;
mod replay;
mod session;
mod standing;
mod strangers;
mod upgrade;

pub(crate) use self::core::{Core, ShardParts};
pub(crate) use journal::JournalDir;
pub(crate) use replay::{Journaled, Recovery, journal_files, journaled_volumes, read_files};

use crate::fatal::Cause;
use crate::rt::{Mail, Mailbox, Rt};
use crate::tls::Parked;
use farshore_client::Shown;
use farshore_engine::shard::Input;
use farshore_engine::silence::Patience;
use farshore_engine::tenure::{self, PutEnd, Tenure};
use farshore_proto::frame::RefusalReason;
use farshore_proto::register::At;
use farshore_proto::{LogId, Seq, Slot, Stamp, VolumeId};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// From accept to the request, and from the answer to the hello; longer is slow on purpose.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// A frame that takes longer to arrive, while others wait for a place, is not waited for.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);
/// Connections of one shard between accept and hello; each holds at most about 100 KiB.
const STRANGERS_MAX: usize = 1024;
/// Messages taken before sessions and the journal have a turn: a new connection costs some ten system calls.
const MESSAGES_PER_TURN: usize = 16;

/// How silent a peer may be, with so much time between two frames.
pub(crate) fn patience(idle_max: Duration) -> Patience {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (hello_ms, arrival_ms) = (ms(GREETING_MAX), ms(ARRIVAL_MAX));
    Patience { hello_ms, arrival_ms, idle_ms: ms(idle_max) }
}

/// What other threads tell a shard.
#[derive(Debug)]
pub(crate) enum Message {
    /// A new connection, for any shard to greet.
    Accepted { socket: TcpStream, peer: SocketAddr },
    /// A greeted connection whose volume this shard owns.
    Greeted(Box<Greeted>),
    /// A put of a segment ended.
    PutEnded { log: LogId, slot: Slot, end: PutEnd },
    /// A claim for a log ended.
    Claimed { log: LogId, volume: VolumeId, outcome: Result<(Seq, Stamp), (RefusalReason, String)> },
    /// A put of a checkpoint of a log ended.
    Checkpointed { log: LogId, slot: Slot, is_there: bool },
    /// The vault's register is applied, which asks a log to say so up to an entry.
    Applied { log: LogId, at: At, asked: u64 },
    /// The control plane took a volume away.
    Revoked { volume: VolumeId },
    /// Is a volume that is not in the table of assignments let go? Answered with the shard's log if nothing
    /// of it can reach the vault any more.
    IsLetGo { volume: VolumeId, answer: oneshot::Sender<Option<LogId>> },
}

/// A connection that has shown who it is and which volume it is about.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) parked: Parked,
    pub(crate) peer: SocketAddr,
    pub(crate) agent: Shown,
    pub(crate) volume: VolumeId,
}

/// How a run of a shard ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It was told to finish.
    Finished,
    /// Its log was sealed.
    Sealed,
}

/// Runs the shard until it is told to stop and everything it took is in the vault, or `drain` ends. When
/// its log is sealed it goes on with a new one; the other shards of the node notice nothing.
pub(crate) async fn run<R: Rt>(
    mut parts: ShardParts,
    recovery: Recovery,
    inbox: Mailbox<Message>,
    drain: Duration,
) {
    let Recovery { mut tenure, mut opening, mut replayed, .. } = recovery;
    loop {
        parts.open(&opening);
        let core = Rc::new(Core::<R>::new(parts.clone(), &opening));
        core.input(Input::Applied { at: parts.register.applied(), asked: 0 });
        replay::apply(&core, opening, std::mem::take(&mut replayed));
        if run_log(&core, &mut tenure, &inbox, drain).await == End::Finished {
            return;
        }
        let (shard, sealed) = (parts.id, parts.log);
        opening = match renewal::renew::<R>(&parts, &mut tenure, &inbox).await {
            Ok(Some(opening)) => opening,
            Ok(None) => return,
            Err(error) => {
                let error = format!("{error:#}");
                return parts.fatal.raise(Cause::Sealed { log: sealed, error });
            }
        };
        let log = opening.log;
        tracing::warn!(shard, %sealed, %log, "the log was sealed: volumes were taken over; the shard goes on with a new one");
    }
}

/// Runs the shard on one log.
async fn run_log<R: Rt>(
    core: &Rc<Core<R>>,
    tenure: &mut Tenure,
    inbox: &Mailbox<Message>,
    drain: Duration,
) -> End {
    R::spawn(journal::run(Rc::clone(core)));
    R::spawn(build::run(Rc::clone(core)));
    R::spawn(tick(Rc::clone(core)));
    R::spawn(session::sweep(Rc::clone(core)));
    R::spawn(standing::watch(Rc::clone(core)));
    let mut taken = 0_usize;
    while let Mail::Message(message) = inbox.next().await {
        taken += 1;
        if taken.is_multiple_of(MESSAGES_PER_TURN) {
            R::breathe().await;
        }
        let step = match message {
            Message::Accepted { socket, peer } => {
                greet::begin(core, socket, peer);
                Step::GoOn
            }
            Message::Greeted(greeted) => {
                R::spawn(session::run(Rc::clone(core), *greeted));
                Step::GoOn
            }
            Message::PutEnded { log, slot, end } => {
                hold(core, tenure, tenure::Input::PutEnded { log, slot, end })
            }
            Message::Claimed { log, volume, outcome } => {
                hold(core, tenure, tenure::Input::ClaimEnded { log, volume, outcome })
            }
            Message::Checkpointed { log, slot, is_there } => {
                hold(core, tenure, tenure::Input::CheckpointEnded { log, slot, is_there })
            }
            Message::Applied { log, at, asked } => {
                // One that was left is asked nothing any more.
                let asked = if log == core.parts.log { asked } else { 0 };
                core.input(Input::Applied { at, asked });
                Step::GoOn
            }
            Message::Revoked { volume } => {
                core.input(Input::Revoked { volume });
                Step::GoOn
            }
            Message::IsLetGo { volume, answer } => {
                let let_go = (!core.holds(volume)).then_some(core.parts.log);
                // Whoever asked asks again.
                let _unheard = answer.send(let_go);
                Step::GoOn
            }
        };
        if step == Step::Leave {
            core.retire().await;
            return End::Sealed;
        }
    }
    core.stop();
    let settle = async {
        while !core.is_settled() {
            match inbox.next().await {
                Mail::Message(Message::PutEnded { log, slot, end }) => {
                    let step = hold(core, tenure, tenure::Input::PutEnded { log, slot, end });
                    if step == Step::Leave {
                        // What is not committed is its agents' to send, to whoever has their volumes.
                        return;
                    }
                }
                Mail::Message(_) | Mail::Finish => {}
                Mail::End => return,
            }
        }
    };
    if crate::rt::within::<R, _>(drain, settle).await.is_none() {
        tracing::warn!(shard = core.id(), "stopped with frames still in the journal only");
    }
    End::Finished
}

/// What an input of the tenure leads to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing but what was done.
    GoOn,
    /// The log was sealed: it is to be left.
    Leave,
}

/// Gives the tenure of an open log an input, and carries out what it says.
fn hold<R: Rt>(core: &Core<R>, tenure: &mut Tenure, input: tenure::Input) -> Step {
    let mut out = Vec::new();
    tenure.step(input, &mut out);
    let mut step = Step::GoOn;
    for output in out {
        match output {
            tenure::Output::Tell(input) => core.input(input),
            tenure::Output::Retire => step = Step::Leave,
            tenure::Output::Taken { log, slot } => {
                core.parts.fatal.raise(Cause::Foreign { log, slot });
            }
            other => panic!("{other:?} is for a log that is not open"),
        }
    }
    step
}

async fn tick<R: Rt>(core: Rc<Core<R>>) {
    while !core.is_retired() {
        let Some(wait) = core.until_deadline() else {
            core.deadline_moved().await;
            continue;
        };
        if wait > Duration::ZERO {
            let _slept = crate::rt::within::<R, _>(wait, core.deadline_moved()).await;
        }
        if core.until_deadline().is_some_and(|wait| wait.is_zero()) {
            core.input(Input::Tick);
            // A deadline that cannot be met now (no slot is free) is looked at again, not at once.
            R::sleep(Duration::from_millis(5)).await;
        }
    }
}
