//! Waking a task: from its own thread ([`Signal`]) and from others ([`Mailbox`]).

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use futures::task::AtomicWaker;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
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

/// The sending end of a mailbox; any thread.
#[derive(Debug)]
pub(crate) struct Post<T> {
    /// `None` only while it is being dropped.
    queue: Option<Sender<T>>,
    waker: Arc<AtomicWaker>,
}

impl<T> Drop for Post<T> {
    fn drop(&mut self) {
        // The last sender's end is something to wake up for: first gone, then told.
        drop(self.queue.take());
        self.waker.wake();
    }
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<T> Post<T> {
    /// As [`Self::try_send`], but leaves half of the box to others: for what strangers can cause as
    /// often as they like.
    pub(crate) fn offer(&self, message: T) -> Result<(), T> {
        let queue = self.queue.as_ref().expect("taken only when dropped");
        let is_crowded = queue.capacity().is_some_and(|capacity| queue.len() >= capacity / 2);
        if is_crowded { Err(message) } else { self.try_send(message) }
    }

    /// Sends without waiting; gives the message back when the box is full or its shard is gone.
    pub(crate) fn try_send(&self, message: T) -> Result<(), T> {
        let queue = self.queue.as_ref().expect("taken only when dropped");
        let sent = queue.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
        });
        self.waker.wake();
        sent
    }
}

/// The receiving end, owned by a shard.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: Receiver<T>,
    waker: Arc<AtomicWaker>,
}

/// A bounded mailbox between threads.
pub(crate) fn mailbox<T>(capacity: usize) -> (Post<T>, Mailbox<T>) {
    let (sender, receiver) = bounded(capacity);
    let waker = Arc::new(AtomicWaker::new());
    (Post { queue: Some(sender), waker: Arc::clone(&waker) }, Mailbox { queue: receiver, waker })
}

impl<T> Mailbox<T> {
    /// The next message; `None` when all senders are gone. Cancel-safe.
    pub(crate) async fn next(&self) -> Option<T> {
        poll_fn(|context| {
            // Register first: a message sent between the look and the sleep then wakes us.
            self.waker.register(context.waker());
            match self.queue.try_recv() {
                Ok(message) => Poll::Ready(Some(message)),
                Err(crossbeam::channel::TryRecvError::Empty) => Poll::Pending,
                Err(crossbeam::channel::TryRecvError::Disconnected) => Poll::Ready(None),
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
            while let Some(n) = inbox.next().await {
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
        assert_eq!([post.offer(0), post.offer(1), post.offer(2)], [Ok(()), Ok(()), Err(2)]);
        assert_eq!(
            [post.try_send(3), post.try_send(4), post.try_send(5)],
            [Ok(()), Ok(()), Err(5)]
        );
    }

    #[test]
    fn a_notification_before_the_wait_is_not_lost() {
        let signal = Signal::default();
        signal.notify();
        block_on(signal.wait());
    }
}
