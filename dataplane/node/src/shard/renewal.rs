//! A new log for a shard whose log was sealed.
//!
//! Which log it is must be durable before anything is written to it, and it must be in the vault's register. On a full disk that cannot be: then this
//! shard waits, and the others, whose journals have their room, go on.

use super::{Message, ShardParts};
use crate::rt::{Mail, Mailbox, Rt, within};
use crate::troubles::Work;
use farshore_engine::tenure::{self, Opening, Tenure};
use farshore_proto::LogId;
use futures::future::{Either, select};
use std::io;
use std::time::Duration;

/// Between two tries to enter a log into the vault's register.
const BIRTH_RETRY: Duration = Duration::from_secs(2);
/// Between two looks whether there is room.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// Leaves the sealed log, which is written no more, for a new one; none if the node stops before there is room.
///
/// # Errors
/// What the file system says, unless it is full.
pub(super) async fn renew<R: Rt>(
    parts: &ShardParts,
    tenure: &mut Tenure,
    inbox: &Mailbox<Message>,
) -> anyhow::Result<Option<Opening>> {
    let work = Work::Log(parts.id);
    let tell = |text: Option<String>| match text {
        Some(text) => parts.metrics.troubles().set(work, text),
        None => parts.metrics.troubles().clear(work),
    };
    let refused = || parts.metrics.refused("sealed");
    let mut todo = Vec::new();
    tenure.step(tenure::Input::AtRest, &mut todo);
    loop {
        match todo.pop() {
            Some(tenure::Output::Renew { sealed }) => {
                let attempt = || parts.new_log(sealed);
                let made = when_there_is_room::<R, _>(inbox, &tell, &refused, attempt).await?;
                let Some((log, files)) = made else { return Ok(None) };
                if !born::<R>(parts, inbox, &tell, &refused, log).await {
                    return Ok(None);
                }
                tenure.step(tenure::Input::Renewed { log, files }, &mut todo);
            }
            Some(tenure::Output::Open(opening)) => return Ok(Some(opening)),
            other => anyhow::bail!("a sealed log is left by a new one, not by {other:?}"),
        }
    }
}

/// Tries again as long as the disk is full. Who comes meanwhile is sent away: nothing can be taken.
async fn when_there_is_room<R: Rt, T>(
    inbox: &Mailbox<Message>,
    tell: impl Fn(Option<String>),
    refused: impl Fn(),
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let mut is_waiting = false;
    loop {
        let error = match attempt() {
            Ok(done) => {
                tell(None);
                return Ok(Some(done));
            }
            Err(error) if is_full(&error) => format!("{error:#}"),
            Err(error) => return Err(error),
        };
        if !is_waiting {
            tracing::warn!(error, "a shard whose log was sealed waits for room on the node's disk");
        }
        is_waiting = true;
        tell(Some(format!(
            "the node's disk is full, a new log cannot begin: {error}: make room there"
        )));
        if within::<R, _>(ROOM_RETRY, told_to_stop(inbox, &refused)).await.is_some() {
            return Ok(None);
        }
    }
}

/// Has a log entered into the vault's register, however long the store is away; false if the node stops before. Who comes
/// meanwhile is sent away.
async fn born<R: Rt>(
    parts: &ShardParts,
    inbox: &Mailbox<Message>,
    tell: impl Fn(Option<String>),
    refused: impl Fn(),
    log: LogId,
) -> bool {
    loop {
        let birth = std::pin::pin!(parts.register.bear(log));
        let stop = std::pin::pin!(told_to_stop(inbox, &refused));
        let error = match select(birth, stop).await {
            Either::Left((Ok(()), _)) => {
                tell(None);
                return true;
            }
            Either::Left((Err(error), _)) => format!("{error:#}"),
            Either::Right(((), _)) => return false,
        };
        tracing::warn!(shard = parts.id, %log, error, "a new log cannot begin yet");
        tell(Some(format!("a new log cannot begin: {error}")));
        if within::<R, _>(BIRTH_RETRY, told_to_stop(inbox, &refused)).await.is_some() {
            return false;
        }
    }
}

/// Ends when the node stops; who comes before is sent away.
async fn told_to_stop(inbox: &Mailbox<Message>, refused: &impl Fn()) {
    loop {
        match inbox.next().await {
            Mail::Message(Message::Accepted { .. } | Message::Greeted(_)) => refused(),
            // Of the log that was sealed, or of volumes that the next one asks for again.
            Mail::Message(_) => {}
            Mail::Finish | Mail::End => return,
        }
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| kinds.contains(&error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{Post, Threads, mailbox};
    use anyhow::Context;
    use crossbeam::channel::bounded;
    use farshore_proto::VolumeId;
    use std::cell::{Cell, RefCell};

    fn full() -> anyhow::Error {
        let error: anyhow::Result<()> =
            Err(io::Error::from(io::ErrorKind::StorageFull)).context("write state.json");
        error.unwrap_err()
    }

    /// On a thread as a shard's; gives what it ended with, and what was told.
    fn wait(
        failures: u32,
        act: impl Fn(u32, &Post<Message>) + Send + 'static,
        last: fn() -> anyhow::Result<u32>,
    ) -> (Result<Option<u32>, String>, Vec<Option<String>>) {
        let (said, listening) = bounded(1);
        let main = move || async move {
            let (post, inbox) = mailbox(4);
            let (attempts, told) = (Cell::new(0), RefCell::new(Vec::new()));
            let attempt = || {
                attempts.set(attempts.get() + 1);
                act(attempts.get(), &post);
                if attempts.get() <= failures { Err(full()) } else { last() }
            };
            let tell = |text| told.borrow_mut().push(text);
            let done = when_there_is_room::<Threads, _>(&inbox, tell, || {}, attempt).await;
            said.send((done.map_err(|error| error.to_string()), told.take())).unwrap();
        };
        Threads::prepare("renewal").unwrap().run(main).unwrap().join().unwrap();
        listening.recv().unwrap()
    }

    /// D45: the shard goes on when there is room, whatever came meanwhile.
    #[test]
    fn a_full_disk_is_waited_for_and_told() {
        let revoke = |_, post: &Post<Message>| {
            let volume = VolumeId([1; 16]);
            for _ in 0..2 {
                post.try_send(Message::Revoked { volume }).unwrap();
            }
        };
        let (done, told) = wait(2, revoke, || Ok(7));
        assert_eq!(done, Ok(Some(7)));
        let [Some(first), Some(_), None] = &told[..] else { panic!("{told:?}") };
        assert!(first.contains("state.json") && first.contains("make room"), "{first}");
    }

    #[test]
    fn a_node_that_stops_does_not_wait_and_other_errors_are_errors() {
        let stop = |attempt, post: &Post<Message>| {
            if attempt == 2 {
                post.finish();
            }
        };
        let (done, _) = wait(u32::MAX, stop, || Ok(7));
        assert_eq!(done, Ok(None));
        let broken = || Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into());
        let (done, told) = wait(0, |_, _| {}, broken);
        assert!(done.is_err() && told.is_empty());
    }
}
