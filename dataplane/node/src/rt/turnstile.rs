//! Work that many may want at once, one after the other.

use super::Rt;
use tokio::sync::Mutex;

/// Lets one task of this thread through at a time, first come, first served; between two of them
/// everything else of the thread has its turn. So a thousand tasks with a little work each hold nobody up
/// for longer than one of them takes.
#[derive(Debug, Default)]
pub(crate) struct Turnstile(Mutex<()>);

impl Turnstile {
    /// Does `work` when it is this task's turn. Cancel-safe: a wait that is dropped has done nothing.
    pub(crate) async fn pass<R: Rt, T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.0.lock().await;
        R::breathe().await;
        work()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ring, Socket, Threads};
    use super::*;
    use crossbeam::channel::{Sender, bounded};
    use std::cell::Cell;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    const TURNS: usize = 60;
    const WORK: Duration = Duration::from_millis(1);
    /// The look at the socket, the read, and the wakings between them.
    const TURNS_MAX: usize = 8;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_nodelay(true).unwrap();
        (peer, listener.accept().unwrap().0)
    }

    fn work(turns: &Cell<usize>) {
        let begin = Instant::now();
        while begin.elapsed() < WORK {}
        turns.set(turns.get() + 1);
    }

    /// Many tasks with a little work each.
    fn crowd<R: Rt>(turns: &Rc<Cell<usize>>) {
        let turnstile = Rc::new(Turnstile::default());
        for _ in 0..TURNS {
            let (turnstile, turns) = (Rc::clone(&turnstile), Rc::clone(turns));
            R::spawn(async move { turnstile.pass::<R, _>(|| work(&turns)).await });
        }
    }

    /// One task that always has work, and is polite.
    fn glutton<R: Rt>(turns: &Rc<Cell<usize>>) {
        let turns = Rc::clone(turns);
        R::spawn(async move {
            for _ in 0..TURNS {
                work(&turns);
                R::yield_now().await;
            }
        });
    }

    /// A session waits for a byte, which comes at the same time as others with work: says how many turns
    /// they had before it was read.
    async fn session_beside<R: Rt>(others: fn(&Rc<Cell<usize>>), said: Sender<usize>) {
        let turns = Rc::new(Cell::new(0));
        let (mut peer, socket) = connected();
        let mut socket = R::adopt(socket).unwrap();
        let read_at = Rc::new(Cell::new(None));
        let (seen, at) = (Rc::clone(&turns), Rc::clone(&read_at));
        R::spawn(async move {
            assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 1);
            at.set(Some(seen.get()));
        });
        // So that the session waits already.
        R::sleep(10 * WORK).await;
        others(&turns);
        peer.write_all(&[1]).unwrap();
        while turns.get() < TURNS || read_at.get().is_none() {
            R::sleep(WORK).await;
        }
        said.send(read_at.get().unwrap()).unwrap();
    }

    fn on_plain_threads(others: fn(&Rc<Cell<usize>>)) {
        let (said, listening) = bounded(1);
        let main = move || session_beside::<Threads>(others, said);
        Threads::prepare("crowded").unwrap().run(main).unwrap().join().unwrap();
        let turns = listening.recv().unwrap();
        assert!(turns <= TURNS_MAX, "{turns} turns came first");
    }

    fn on_the_ring(others: fn(&Rc<Cell<usize>>)) {
        let (said, listening) = bounded(1);
        let main = move || session_beside::<Ring>(others, said);
        Ring::prepare("crowded", None).unwrap().run(main).unwrap().join().unwrap();
        let turns = listening.recv().unwrap();
        assert!(turns <= TURNS_MAX, "{turns} turns came first");
    }

    #[test]
    fn a_crowd_at_the_turnstile_lets_io_through() {
        on_plain_threads(crowd::<Threads>);
        on_the_ring(crowd::<Ring>);
    }

    #[test]
    fn a_task_that_always_has_work_lets_io_through() {
        on_plain_threads(glutton::<Threads>);
        on_the_ring(glutton::<Ring>);
    }
}
