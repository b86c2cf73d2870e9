//! Waking a task: from its own thread ([`Signal`]) and from others ([`Mailbox`]).

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use futures::task::AtomicWaker;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

/// Wakes the tasks of this thread that wait for it. Waking with nobody waiting is remembered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal(Rc<State>);

#[derive(Debug, Default)]
struct State {
    is_set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the waiting task, or lets the next wait end at once.
    pub(crate) fn notify(&self) {
        self.0.is_set.set(true);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits for the next notification; for one task at a time. Cancel-safe.
    pub(crate) async fn wait(&self) {
        poll_fn(|context| {
            if self.0.is_set.replace(false) {
                return Poll::Ready(());
            }
            *self.0.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A message that was not sent, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unsent<T> {
    /// The box is full: it may have room later.
    Full(T),
    /// The shard is gone, and never takes anything again.
    Gone(T),
}

/// What both ends of a mailbox share besides the messages.
#[derive(Debug, Default)]
struct Bell {
    waker: AtomicWaker,
    /// The receiver is told to finish, and has not seen it yet. Not a message: it needs no room.
    is_told_to_finish: AtomicBool,
}

/// The sending end of a mailbox; any thread.
#[derive(Debug)]
pub(crate) struct Post<T> {
    /// `None` only while it is being dropped.
    queue: Option<Sender<T>>,
    bell: Arc<Bell>,
}

impl<T> Drop for Post<T> {
    fn drop(&mut self) {
        // The last sender's end is something to wake up for: first gone, then told.
        drop(self.queue.take());
        self.bell.waker.wake();
    }
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Post<T> {
    /// As [`Self::try_send`], but leaves half of the box to others: for what strangers can cause as
    /// often as they like.
    pub(crate) fn offer(&self, message: T) -> Result<(), Unsent<T>> {
        let queue = self.queue.as_ref().expect("taken only when dropped");
        let is_crowded = queue.capacity().is_some_and(|capacity| queue.len() >= capacity / 2);
        if is_crowded { Err(Unsent::Full(message)) } else { self.try_send(message) }
    }

    /// Sends without waiting; gives the message back when the box is full or its shard is gone.
    pub(crate) fn try_send(&self, message: T) -> Result<(), Unsent<T>> {
        let queue = self.queue.as_ref().expect("taken only when dropped");
        let sent = queue.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => Unsent::Full(message),
            TrySendError::Disconnected(message) => Unsent::Gone(message),
        });
        self.bell.waker.wake();
        sent
    }

    /// Tells the receiver to finish, however full the box is.
    pub(crate) fn finish(&self) {
        self.bell.is_told_to_finish.store(true, Ordering::SeqCst);
        self.bell.waker.wake();
    }
}

/// The receiving end, owned by a shard.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: Receiver<T>,
    bell: Arc<Bell>,
}

/// What comes out of a mailbox.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mail<T> {
    /// A message.
    Message(T),
    /// Finish; messages may still follow.
    Finish,
    /// All senders are gone.
    End,
}

/// A bounded mailbox between threads.
pub(crate) fn mailbox<T>(capacity: usize) -> (Post<T>, Mailbox<T>) {
    let (sender, receiver) = bounded(capacity);
    let bell = Arc::new(Bell::default());
    (Post { queue: Some(sender), bell: Arc::clone(&bell) }, Mailbox { queue: receiver, bell })
}

impl<T> Mailbox<T> {
    /// What comes next; being told to finish overtakes the messages. Cancel-safe.
    pub(crate) async fn next(&self) -> Mail<T> {
        poll_fn(|context| {
            // Register first: a message sent between the look and the sleep then wakes us.
            self.bell.waker.register(context.waker());
            if self.bell.is_told_to_finish.swap(false, Ordering::SeqCst) {
                return Poll::Ready(Mail::Finish);
            }
            match self.queue.try_recv() {
                Ok(message) => Poll::Ready(Mail::Message(message)),
                Err(TryRecvError::Empty) => Poll::Pending,
                Err(TryRecvError::Disconnected) => Poll::Ready(Mail::End),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_mailbox_wakes_its_shard_from_another_thread() {
        let (post, inbox) = mailbox::<u32>(4);
        let sender = std::thread::spawn(move || {
            for n in 0..100 {
                while post.try_send(n).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let received = block_on(async {
            let mut all = Vec::new();
            while let Mail::Message(n) = inbox.next().await {
                all.push(n);
            }
            all
        });
        sender.join().unwrap();
        assert_eq!(received, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_offered_leaves_half_of_the_box_to_others() {
        let (post, _inbox) = mailbox::<u32>(4);
        let offered = [post.offer(0), post.offer(1), post.offer(2)];
        assert_eq!(offered, [Ok(()), Ok(()), Err(Unsent::Full(2))]);
        let sent = [post.try_send(3), post.try_send(4), post.try_send(5)];
        assert_eq!(sent, [Ok(()), Ok(()), Err(Unsent::Full(5))]);
    }

    #[test]
    fn a_box_that_is_full_still_tells_its_shard_to_finish() {
        let (post, inbox) = mailbox::<u32>(2);
        assert_eq!([post.try_send(0), post.try_send(1)], [Ok(()), Ok(())]);
        post.finish();
        let next = || block_on(inbox.next());
        assert_eq!(next(), Mail::Finish);
        // What was on its way is still taken.
        assert_eq!([next(), next()], [Mail::Message(0), Mail::Message(1)]);
        drop(post);
        assert_eq!(next(), Mail::End);
    }

    #[test]
    fn a_shard_that_is_gone_is_told_from_one_that_is_busy() {
        let (post, inbox) = mailbox::<u32>(1);
        post.try_send(0).unwrap();
        assert_eq!(post.try_send(1), Err(Unsent::Full(1)));
        drop(inbox);
        assert_eq!(post.try_send(2), Err(Unsent::Gone(2)));
    }

    #[test]
    fn a_notification_before_the_wait_is_not_lost() {
        let signal = Signal::default();
        signal.notify();
        block_on(signal.wait());
    }
}
