use super::*;

/// A supervisor with a clock, and children that do as they are told.
struct Bench {
    supervisor: Supervisor,
    now: Timestamp,
    next_pid: u32,
    pids: [Option<u32>; 3],
}

impl Bench {
    fn new() -> Self {
        Self { supervisor: Supervisor::new(), now: Timestamp(0), next_pid: 100, pids: [None; 3] }
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.supervisor.step(self.now, input, &mut out);
        out
    }

    fn launched(&mut self, child: Child) -> u32 {
        self.next_pid += 1;
        let pid = self.next_pid;
        self.pids[child.index()] = Some(pid);
        assert_eq!(self.step(Input::Launched { child, pid }), []);
        pid
    }

    fn ready(&mut self, child: Child) -> Vec<Output> {
        let pid = self.pid(child);
        self.step(Input::Ready { child, pid })
    }

    fn pid(&self, child: Child) -> u32 {
        self.pids[child.index()].unwrap()
    }

    fn died(&mut self, child: Child, status: Option<u8>) -> Vec<Output> {
        let pid = self.pid(child);
        let last_words = Failure { code: status.unwrap_or(1), ..words() };
        self.step(Input::Died { child, pid, death: Death { status, last_words } })
    }

    /// Lets time pass until the next tick is due, and gives it.
    fn tick(&mut self) -> Vec<Output> {
        self.now = self.supervisor.next_tick().unwrap();
        self.step(Input::Tick)
    }

    /// Everything up.
    fn up() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.step(Input::Begin), [Output::Launch(Child::Control)]);
        bench.launched(Child::Control);
        assert_eq!(bench.ready(Child::Control), [Output::Launch(Child::Node)]);
        bench.launched(Child::Node);
        assert_eq!(bench.ready(Child::Node), [Output::Launch(Child::Agent)]);
        bench.launched(Child::Agent);
        let pids = bench.pids.map(Option::unwrap);
        let out = bench.ready(Child::Agent);
        assert_eq!(out, [Output::Publish { pids }, Output::Announce]);
        bench
    }
}

fn words() -> Failure {
    Failure::new(Exit::Failure, "last words").hint("look")
}

fn restart_pause(out: &[Output]) -> u64 {
    match out {
        [Output::Note { note: Note::Restart { after_ms, .. }, .. }] => *after_ms,
        other => panic!("no restart in {other:?}"),
    }
}

#[test]
fn children_start_one_after_another() {
    let bench = Bench::up();
    assert_eq!(bench.supervisor.next_tick(), None);
}

#[test]
fn a_killed_child_is_started_again_and_the_new_pid_is_published() {
    for child in Child::ALL {
        let mut bench = Bench::up();
        assert_eq!(restart_pause(&bench.died(child, None)), BACKOFF_MS_MIN, "{child}");
        assert_eq!(bench.tick(), [Output::Launch(child)]);
        let pid = bench.launched(child);
        let out = bench.ready(child);
        let pids = bench.pids.map(Option::unwrap);
        assert_eq!(pids[child.index()], pid);
        assert_eq!(out, [Output::Note { child, note: Note::Back }, Output::Publish { pids }]);
    }
}

#[test]
fn a_child_that_ends_without_being_asked_is_started_again_whatever_its_status() {
    let mut bench = Bench::up();
    restart_pause(&bench.died(Child::Node, Some(0)));
    let mut bench = Bench::up();
    // The port was ours a moment ago: it is no reason to give up.
    restart_pause(&bench.died(Child::Node, Some(Exit::Unavailable.code())));
}

#[test]
fn pauses_double_up_to_the_longest_and_are_forgotten_after_a_steady_while() {
    let mut bench = Bench::up();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        pauses.push(restart_pause(&bench.died(Child::Agent, None)));
        bench.tick();
        bench.launched(Child::Agent);
        bench.ready(Child::Agent);
    }
    assert_eq!(pauses, [200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
    bench.now = bench.now.plus_ms(STEADY_MS);
    assert_eq!(restart_pause(&bench.died(Child::Agent, None)), BACKOFF_MS_MIN);
}

#[test]
fn a_first_start_that_cannot_succeed_ends_everything_with_the_childs_own_error() {
    for exit in [Exit::Usage, Exit::WrongKey, Exit::NotFound, Exit::Unavailable, Exit::Denied] {
        let mut bench = Bench::new();
        bench.step(Input::Begin);
        bench.launched(Child::Control);
        bench.ready(Child::Control);
        bench.launched(Child::Node);
        let out = bench.died(Child::Node, Some(exit.code()));
        let pid = bench.pid(Child::Control);
        assert_eq!(out, [Output::Terminate { child: Child::Control, pid }], "{exit:?}");
        let out = bench.died(Child::Control, Some(0));
        let failure = Failure { code: exit.code(), ..words() };
        assert_eq!(out, [Output::Finish(Err(failure))], "{exit:?}");
    }
}

#[test]
fn a_wrong_key_ends_everything_even_later() {
    let mut bench = Bench::up();
    let out = bench.died(Child::Node, Some(Exit::WrongKey.code()));
    let pid = bench.pid(Child::Agent);
    assert_eq!(out, [Output::Terminate { child: Child::Agent, pid }]);
}

#[test]
fn a_child_that_missed_a_dying_one_before_it_is_tried_again() {
    let mut bench = Bench::new();
    bench.step(Input::Begin);
    bench.launched(Child::Control);
    bench.ready(Child::Control);
    bench.launched(Child::Node);
    restart_pause(&bench.died(Child::Control, None));
    restart_pause(&bench.died(Child::Node, Some(Exit::Unavailable.code())));
    // Both come back, in whatever order; then the agent has its turn.
    assert_eq!(bench.tick(), [Output::Launch(Child::Control), Output::Launch(Child::Node)]);
    bench.launched(Child::Control);
    bench.launched(Child::Node);
    assert_eq!(bench.ready(Child::Node), []);
    let out = bench.ready(Child::Control);
    assert_eq!(out[1..], [Output::Launch(Child::Agent)]);
}

#[test]
fn a_child_that_never_becomes_ready_is_given_up() {
    let mut bench = Bench::new();
    bench.step(Input::Begin);
    for _ in 1..FIRST_ATTEMPTS_MAX {
        bench.launched(Child::Control);
        restart_pause(&bench.died(Child::Control, Some(101)));
        bench.tick();
    }
    bench.launched(Child::Control);
    let failure = Failure { code: 101, ..words() };
    assert_eq!(bench.died(Child::Control, Some(101)), [Output::Finish(Err(failure))]);
}

#[test]
fn a_launch_that_cannot_succeed_ends_everything_and_another_is_tried_again() {
    let mut bench = Bench::new();
    bench.step(Input::Begin);
    let child = Child::Control;
    let out = bench.step(Input::NotLaunched { child, failure: words(), is_final: false });
    restart_pause(&out);
    assert_eq!(bench.tick(), [Output::Launch(child)]);
    let out = bench.step(Input::NotLaunched { child, failure: words(), is_final: true });
    assert_eq!(out, [Output::Finish(Err(words()))]);
}

#[test]
fn a_stop_goes_from_the_last_child_to_the_first() {
    let mut bench = Bench::up();
    let mut out = bench.step(Input::Stop);
    for child in [Child::Agent, Child::Node, Child::Control] {
        assert_eq!(out, [Output::Terminate { child, pid: bench.pid(child) }]);
        out = bench.died(child, Some(0));
    }
    assert_eq!(out, [Output::Finish(Ok(()))]);
}

#[test]
fn a_child_that_does_not_stop_in_time_is_killed() {
    let mut bench = Bench::up();
    bench.step(Input::Stop);
    let (child, pid) = (Child::Agent, bench.pid(Child::Agent));
    let killed = [Output::Kill { child, pid }, Output::Note { child, note: Note::Killed }];
    assert_eq!(bench.tick(), killed);
    assert_eq!(bench.supervisor.next_tick(), None);
    let pid = bench.pid(Child::Node);
    assert_eq!(bench.died(child, None), [Output::Terminate { child: Child::Node, pid }]);
}

#[test]
fn a_second_stop_kills_what_is_left() {
    let mut bench = Bench::up();
    bench.step(Input::Stop);
    bench.died(Child::Agent, Some(0));
    let out = bench.step(Input::Stop);
    let kill = |child| Output::Kill { child, pid: bench.pid(child) };
    assert_eq!(out, [kill(Child::Node), kill(Child::Control)]);
    assert_eq!(bench.died(Child::Control, None), []);
    assert_eq!(bench.died(Child::Node, None), [Output::Finish(Ok(()))]);
}

#[test]
fn a_stop_while_starting_or_pausing_launches_nothing_more() {
    let mut bench = Bench::up();
    bench.died(Child::Control, None);
    let out = bench.step(Input::Stop);
    assert_eq!(out, [Output::Terminate { child: Child::Agent, pid: bench.pid(Child::Agent) }]);
    bench.died(Child::Agent, Some(0));
    assert_eq!(bench.died(Child::Node, Some(0)), [Output::Finish(Ok(()))]);

    let mut bench = Bench::new();
    bench.step(Input::Begin);
    assert_eq!(bench.step(Input::Stop), []);
    let (child, failure) = (Child::Control, words());
    let out = bench.step(Input::NotLaunched { child, failure, is_final: false });
    assert_eq!(out, [Output::Finish(Ok(()))]);
}

#[test]
fn a_child_that_was_launched_while_a_stop_began_is_stopped() {
    let mut bench = Bench::new();
    bench.step(Input::Begin);
    assert_eq!(bench.step(Input::Stop), []);
    let (child, pid) = (Child::Control, 7);
    let out = bench.step(Input::Launched { child, pid });
    assert_eq!(out, [Output::Terminate { child, pid }]);
}

#[test]
fn a_slow_start_is_spoken_of() {
    let mut bench = Bench::new();
    bench.step(Input::Begin);
    bench.launched(Child::Control);
    let slow = |ms| [Output::Note { child: Child::Control, note: Note::SlowStart { ms } }];
    assert_eq!(bench.tick(), slow(SLOW_START_MS));
    assert_eq!(bench.tick(), slow(2 * SLOW_START_MS));
}

#[test]
fn words_of_processes_that_are_gone_change_nothing() {
    let mut bench = Bench::up();
    let old = bench.pid(Child::Node);
    bench.died(Child::Node, None);
    assert_eq!(bench.step(Input::Ready { child: Child::Node, pid: old }), []);
    assert_eq!(bench.died(Child::Node, None), []);
    assert_eq!(bench.tick(), [Output::Launch(Child::Node)]);
}
