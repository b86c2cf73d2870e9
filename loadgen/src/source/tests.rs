use super::*;
use crate::content::Recipe;
use crate::dial::{DialError, Transport};
use crate::tally::Window;
use farshore_proto::frame::{
    Ack, Control, FrameHeader, FrameKind, Refusal, RefusalReason, Welcome,
};
use farshore_proto::limits::FRAME_HEADER_BYTES;
use farshore_proto::{Epoch, Seq, VolumeId};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const MS: Duration = Duration::from_millis(1);

/// A node that does what a test says. What it has received survives connections.
#[derive(Debug, Default)]
struct Fake {
    window: u32,
    /// After this many frames of a connection it does nothing for this long, once.
    stall: Option<(u64, Duration)>,
    /// After this many frames it hangs up, once.
    hang_up: Option<u64>,
    /// What it says to the first hellos instead of a welcome.
    refusals: Vec<RefusalReason>,
    received: u64,
    committed: u64,
    hellos: Vec<(u64, u64)>,
    /// Body of every write, by seq.
    writes: Vec<(u64, Vec<u8>)>,
    /// It gathers marks at each of these intervals of its clock.
    gathers: Option<Duration>,
    began: Option<Instant>,
    /// Seq of every mark, and when it came.
    marks: Vec<(u64, Duration)>,
    /// How often the source said that it is there.
    alive: u64,
}

impl Fake {
    fn ack(&self) -> Ack {
        let wait = self.gathers.map(|every| {
            let since = self.began.map_or(0, |began| began.elapsed().as_millis());
            every.as_millis() - since % every.as_millis()
        });
        Ack {
            journaled: Seq(self.received),
            committed: Seq(self.committed),
            gathers_in_ms: wait.map(|ms| u32::try_from(ms).unwrap()),
        }
    }

    fn take(&mut self, header: &FrameHeader, body: Vec<u8>) {
        if header.kind == FrameKind::Alive {
            self.alive += 1;
            return;
        }
        assert_eq!(header.seq.0, self.received + 1, "the stream has no gap");
        self.received = header.seq.0;
        if header.kind == FrameKind::Mark {
            self.committed = self.received;
            let since = self.began.map_or(Duration::ZERO, |began| began.elapsed());
            self.marks.push((self.received, since));
        } else {
            self.writes.push((self.received, body));
        }
    }
}

#[derive(Debug, Clone)]
struct FakeDial(Arc<Mutex<Fake>>);

impl Dial for FakeDial {
    fn dial(&self, _: Route) -> BoxFuture<'static, Result<Box<dyn Transport>, DialError>> {
        let (ours, theirs) = duplex(1 << 20);
        let fake = Arc::clone(&self.0);
        tokio::spawn(async move { serve(fake, theirs).await });
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Transport>) })
    }
}

async fn frame(stream: &mut DuplexStream) -> Option<(FrameHeader, Vec<u8>)> {
    let mut head = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut head).await.ok()?;
    let header = FrameHeader::decode(&head).unwrap();
    let mut body = vec![0; header.body_bytes];
    stream.read_exact(&mut body).await.ok()?;
    header.check_body(&body).unwrap();
    Some((header, body))
}

async fn serve(fake: Arc<Mutex<Fake>>, mut stream: DuplexStream) -> Option<()> {
    let (header, body) = frame(&mut stream).await?;
    let Control::Hello(hello) = Control::decode(&header, &body).unwrap() else { panic!() };
    let answer = {
        let mut fake = fake.lock().unwrap();
        fake.hellos.push((hello.first_seq.0, hello.last_seq.0));
        fake.began.get_or_insert_with(Instant::now);
        let (received, committed) = (Seq(fake.received), Seq(fake.committed));
        match fake.refusals.pop() {
            Some(reason) => Control::Refusal(Refusal { reason, text: "not now".to_owned() }),
            None => Control::Welcome(Welcome {
                imprint: farshore_proto::Imprint::default(),
                received,
                journaled: received,
                committed,
                window_bytes: fake.window,
                stamp: farshore_proto::Stamp::default(),
            }),
        }
    };
    stream.write_all(&answer.encode()).await.ok()?;
    if matches!(answer, Control::Refusal(_)) {
        return None;
    }
    let mut frames = 0;
    loop {
        let (header, body) = frame(&mut stream).await?;
        frames += 1;
        let (ack, pause, hang_up) = {
            let mut fake = fake.lock().unwrap();
            fake.take(&header, body);
            let ack = fake.ack();
            let pause = fake.stall.take_if(|(after, _)| *after == frames);
            (ack, pause, fake.hang_up.take_if(|after| *after == frames).is_some())
        };
        if hang_up {
            return None;
        }
        if let Some((_, pause)) = pause {
            sleep(pause).await;
        }
        stream.write_all(&Control::Ack(ack).encode()).await.ok()?;
    }
}

struct Here;

impl Locate for Here {
    fn locate(&self) -> BoxFuture<'static, Result<Route, String>> {
        Box::pin(async { Ok(route()) })
    }
}

fn route() -> Route {
    let (volume, epoch) = (VolumeId([1; 16]), Epoch(1));
    Route { address: "a:1".to_owned(), server_name: "n".to_owned(), volume, epoch }
}

/// 100 writes of a block each second for four seconds, marks each second.
async fn ran(fake: &Arc<Mutex<Fake>>) -> (Outcome, Arc<Load>) {
    let fake = Arc::clone(fake);
    ran_for(&fake, (1, 10 * MS), 4000 * MS).await
}

/// The first source of so many busy ones; none is an idle one.
async fn ran_for(
    fake: &Arc<Mutex<Fake>>,
    (sources, interval): (u32, Duration),
    end: Duration,
) -> (Outcome, Arc<Load>) {
    let recipe = Recipe {
        seed: 1,
        sources,
        mix: "4KiB".parse().unwrap(),
        zeros: 0,
        duplicates: 0,
        compressible: 50,
        volume_blocks: 1 << 10,
    };
    let load = Arc::new(Load {
        content: Content::new(recipe),
        interval,
        end,
        mark_interval: 1000 * MS,
        tally: Tally::new(Window { begin: Duration::ZERO, end }),
        connecting: Semaphore::new(1),
    });
    let (ready, mut welcomed) = mpsc::channel(1);
    let (starter, start) = watch::channel(None);
    let source = Source {
        number: 0,
        load: Arc::clone(&load),
        route: route(),
        dial: Arc::new(FakeDial(Arc::clone(fake))),
        locate: Arc::new(Here),
        ready,
        start,
    };
    let task = tokio::spawn(source.run());
    let told = welcomed.recv().await.unwrap();
    if told.is_ok() {
        starter.send_replace(Some(Instant::now()));
    }
    (task.await.unwrap(), load)
}

fn fake(fake: Fake) -> Arc<Mutex<Fake>> {
    Arc::new(Mutex::new(fake))
}

const WIDE: u32 = 8 << 20;

#[tokio::test(start_paused = true)]
async fn a_prompt_node_gives_short_times_and_everything_is_committed() {
    let node = fake(Fake { window: WIDE, ..Fake::default() });
    let (outcome, load) = ran(&node).await;
    let expected = Outcome { source: 0, due: 400, committed: 400, journaled: 400, failure: None };
    assert_eq!(outcome, expected);
    let times = load.tally.times();
    assert_eq!((times.journaled.len(), times.committed.len(), times.late.len()), (400, 400, 400));
    // The timer's grain is a millisecond.
    assert!(times.journaled.max() <= 2_100, "{}", times.journaled.max());
    // Half a mark interval, about.
    let median = times.committed.value_at_percentile(50.0);
    assert!((400_000..600_000).contains(&median), "{median}");
}

/// A source that waited for the node would have one long time; an open loop has as many as were due.
#[tokio::test(start_paused = true)]
async fn a_stall_of_the_node_shows_in_every_write_that_was_due_meanwhile() {
    // With a wide window writes wait at the node, with a narrow one in the source.
    for (window, is_narrow) in [(WIDE, false), (2 * 4144, true)] {
        let stall = Some((100, 1000 * MS));
        let node = fake(Fake { window, stall, ..Fake::default() });
        let (outcome, load) = ran(&node).await;
        assert_eq!((outcome.committed, outcome.failure), (400, None));
        let times = load.tally.times();
        let long = times.journaled.count_between(100_000, 2_000_000);
        assert!((85..=95).contains(&long), "{long} of 400 waited for 100 ms or more");
        assert!((980_000..1_030_000).contains(&times.journaled.max()), "{}", times.journaled.max());
        let late = times.late.max();
        assert_eq!(late > 900_000, is_narrow, "late by {late} us");
        let backlog = load.tally.sums.backlog_of_one_max.load(Relaxed);
        assert_eq!((90..=110).contains(&backlog), is_narrow, "{backlog} waited in the source");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_costs_time_and_no_write() {
    let node = fake(Fake { window: WIDE, hang_up: Some(150), ..Fake::default() });
    let (outcome, load) = ran(&node).await;
    assert_eq!((outcome.committed, outcome.failure), (400, None));
    let troubles = load.tally.troubles();
    assert_eq!((troubles.reconnects, troubles.errors.values().sum::<u64>()), (1, 1));
    let node = node.lock().unwrap();
    assert_eq!(node.hellos.len(), 2);
    assert_eq!(node.hellos[0], (1, 0));
    let mut expected = Vec::new();
    for write in 0..400 {
        let mut body = Vec::new();
        load.content.append(&load.content.write(0, write), &mut body);
        expected.push(body);
    }
    let found: Vec<_> = node.writes.iter().map(|(_, body)| body.clone()).collect();
    assert!(found == expected, "every write came once, in order, with its own bytes");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_journal_gets_it_again() {
    let node = fake(Fake { window: WIDE, hang_up: Some(150), ..Fake::default() });
    let forgetful = Arc::clone(&node);
    tokio::spawn(async move {
        loop {
            sleep(MS).await;
            let mut fake = forgetful.lock().unwrap();
            if fake.hang_up.is_none() {
                let committed = fake.committed;
                fake.received = committed;
                fake.writes.retain(|(seq, _)| *seq <= committed);
                return;
            }
        }
    });
    let (outcome, load) = ran(&node).await;
    assert_eq!((outcome.committed, outcome.failure), (400, None));
    assert!(load.tally.sums.resent_frames.load(Relaxed) > 10);
    assert_eq!(load.tally.times().journaled.len(), 400, "each is counted once");
    assert_eq!(node.lock().unwrap().writes.len(), 400);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_counted_and_tried_again_or_are_the_end() {
    let refusals = vec![RefusalReason::Unavailable, RefusalReason::Limit];
    let node = fake(Fake { window: WIDE, refusals, ..Fake::default() });
    let (outcome, load) = ran(&node).await;
    assert_eq!((outcome.committed, outcome.failure), (400, None));
    let told = load.tally.troubles();
    assert_eq!((told.refusals["unavailable"], told.refusals["limit"], told.reconnects), (1, 1, 0));

    let refusals = vec![RefusalReason::Size];
    let node = fake(Fake { window: WIDE, refusals, ..Fake::default() });
    let (outcome, _) = ran(&node).await;
    assert!(outcome.failure.unwrap().contains("--volume-size"));
}

/// As an agent over a disk that nobody writes to.
#[tokio::test(start_paused = true)]
async fn an_idle_source_writes_once_sets_one_mark_and_says_that_it_is_there() {
    let node = fake(Fake { window: WIDE, gathers: Some(1000 * MS), ..Fake::default() });
    let (outcome, _) = ran_for(&node, (0, Duration::ZERO), 60_000 * MS).await;
    assert_eq!((outcome.due, outcome.committed, outcome.failure), (1, 1, None));
    let node = node.lock().unwrap();
    assert_eq!((node.writes.len(), node.marks.len(), node.received), (1, 1, 2));
    assert!((20..=31).contains(&node.alive), "every two marks: {} times", node.alive);
    assert_eq!(node.hellos.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn marks_come_when_the_node_gathers_them() {
    let node = fake(Fake { window: WIDE, gathers: Some(1000 * MS), ..Fake::default() });
    let (outcome, _) = ran_for(&node, (1, 10 * MS), 8500 * MS).await;
    assert_eq!((outcome.committed, outcome.failure), (850, None));
    let node = node.lock().unwrap();
    // The first comes before the node has said anything, the last at the end.
    let between = &node.marks[1..node.marks.len() - 1];
    assert!(between.len() >= 7, "{:?}", node.marks);
    for (_, at) in between {
        let off = at.as_millis() % 1000;
        assert!(off <= 10 || off >= 990, "{off} ms off: {:?}", node.marks);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_over_a_still_stream_comes_in_front_of_the_next_write() {
    let node = fake(Fake { window: WIDE, ..Fake::default() });
    let (outcome, _) = ran_for(&node, (1, 3700 * MS), 15_000 * MS).await;
    assert_eq!((outcome.due, outcome.committed, outcome.failure), (4, 4, None));
    let node = node.lock().unwrap();
    let marks: Vec<u64> = node.marks.iter().map(|(seq, _)| *seq).collect();
    let writes: Vec<u64> = node.writes.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(writes.len(), 4);
    for pair in writes.windows(2) {
        let between: Vec<_> =
            marks.iter().filter(|seq| (pair[0]..pair[1]).contains(*seq)).collect();
        assert_eq!(between, [&(pair[0] + 1), &(pair[0] + 2)], "one behind it, one in front");
    }
}

#[test]
fn pauses_double_up_to_their_limit_and_differ_by_source() {
    let mut backoff = Backoff::default();
    let pauses: Vec<_> = (0..10).map(|_| backoff.pause(1)).collect();
    assert!(pauses[0] >= BACKOFF_MIN * 3 / 4 && pauses[0] <= BACKOFF_MIN);
    assert!(pauses[9] >= BACKOFF_MAX * 3 / 4 && pauses[9] <= BACKOFF_MAX);
    assert_ne!(Backoff::default().pause(1), Backoff::default().pause(2));
}
