//! C5: what silences nodes and is not their end, in virtual time.

use super::*;

const LIMIT: Duration = Duration::from_secs(6);
const TICK: Duration = Duration::from_secs(1);

/// A control plane with nodes that speak every second, unless something keeps them from it.
struct World {
    liveness: Liveness,
    now: Duration,
    nodes: Vec<Uuid>,
    owners: Vec<Uuid>,
    out: Vec<Output>,
}

/// A word about volume 100.
fn told(node: u128, epoch: u64, journaled: u64, committed: u64) -> Input<'static> {
    Input::Told(Told { node: id(node), volume: id(100), epoch, journaled, committed })
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

impl World {
    fn of(nodes: u128) -> Self {
        let nodes: Vec<Uuid> = (1..=nodes).map(id).collect();
        Self {
            liveness: Liveness::new(LIMIT),
            now: Duration::from_secs(1_000),
            owners: nodes.clone(),
            nodes,
            out: Vec::new(),
        }
    }

    fn say(&mut self, input: &Input<'_>) {
        self.liveness.step(self.now, input, &mut self.out).unwrap();
    }

    fn tick(&mut self) {
        let input = Input::Tick { nodes: &self.nodes, owners: &self.owners };
        self.liveness.step(self.now, &input, &mut self.out).unwrap();
    }

    /// Lets seconds pass; nodes that `speaks` says so of are heard.
    fn pass(&mut self, seconds: u32, speaks: impl Fn(Uuid) -> bool) {
        for _ in 0..seconds {
            self.now += TICK;
            for node in self.nodes.clone().into_iter().filter(|node| speaks(*node)) {
                self.say(&Input::Heard(node));
            }
            self.tick();
        }
    }

    fn lost(&self) -> Vec<Uuid> {
        let lost = |output: &Output| match output {
            Output::Lost { node, .. } => Some(*node),
            _ => None,
        };
        self.out.iter().filter_map(lost).collect()
    }

    fn asked(&self) -> Vec<Uuid> {
        let asked = |output: &Output| match output {
            Output::Asked { node, .. } => Some(*node),
            _ => None,
        };
        self.out.iter().filter_map(asked).collect()
    }
}

#[test]
fn a_node_that_falls_silent_is_lost_at_the_limit_and_no_sooner() {
    let mut world = World::of(2);
    world.pass(60, |_| true);
    world.pass(6, |node| node != id(1));
    assert!(world.lost().is_empty());
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Heard);
    world.pass(1, |node| node != id(1));
    assert_eq!(world.lost(), [id(1)]);
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Lost);
    world.pass(1, |_| true);
    assert_eq!(world.out.last(), Some(&Output::Back { node: id(1) }));
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Heard);
}

/// Its report hangs; its poll, which comes now and then, or an agent's progress is life enough.
#[test]
fn one_hung_connection_is_no_loss() {
    for is_own in [true, false] {
        let mut world = World::of(2);
        world.pass(60, |_| true);
        world.say(&told(1, 1, 10, 5));
        for step in 1..=10 {
            world.pass(5, |node| node != id(1));
            let input = if is_own { Input::Heard(id(1)) } else { told(1, 1, 10 + step, 5) };
            world.say(&input);
        }
        assert!(world.lost().is_empty(), "{is_own}");
        world.pass(7, |node| node != id(1));
        assert_eq!(world.lost(), [id(1)], "no word of anybody is a loss");
    }
}

/// A paused control plane, a snapshot of its machine, or swap: it wakes up and nobody was heard.
#[test]
fn a_pause_of_the_control_plane_voids_all_leases() {
    for pause in [4, 10, 600, 86_400] {
        for heard_before in [0, 3, 6] {
            let mut world = World::of(4);
            world.pass(60, |_| true);
            world.pass(heard_before, |_| false);
            world.now += Duration::from_secs(pause);
            world.tick();
            assert!(matches!(world.out.last(), Some(Output::Void { .. })), "{pause}");
            assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Silent);
            // They come back one by one.
            world.pass(2, |node| node == id(1));
            world.pass(2, |node| node != id(4));
            world.pass(20, |_| true);
            assert!(world.lost().is_empty() && world.asked().is_empty(), "{pause} {heard_before}");
            assert_eq!(world.liveness.life(world.now, id(4)), NodeLife::Heard);
        }
    }
}

/// The writer is slow or the accept loop is full: nobody gets through, then one after the other does.
#[test]
fn a_control_plane_that_hears_nobody_loses_nobody() {
    let mut world = World::of(4);
    world.pass(60, |_| true);
    world.pass(30, |_| false);
    assert!(world.lost().is_empty() && world.asked().is_empty());
    // The first that gets through is not the heir of all others.
    world.pass(5, |node| node == id(1));
    world.pass(30, |_| true);
    assert!(world.lost().is_empty() && world.asked().is_empty());
}

/// A blip that is a little shorter than the limit ends for one a little sooner than for another, whose last
/// word before it was a little older: who was silent for just as long is no witness against it.
#[test]
fn a_blip_of_about_the_limit_loses_nobody() {
    const STEP: Duration = Duration::from_millis(100);
    for (blip, phase) in (40..80).flat_map(|blip| (0..10).map(move |phase| (blip, phase))) {
        let mut world = World::of(4);
        for step in 0..400_u32 {
            world.now += STEP;
            // Words once a second each, at moments of their own.
            let is_blip = (100..100 + blip).contains(&step);
            let speaks = |node: u32| !is_blip && (step + node * phase).is_multiple_of(10);
            for node in (1..=4).filter(|node| speaks(*node)) {
                world.say(&Input::Heard(id(node.into())));
            }
            if step.is_multiple_of(10) {
                world.tick();
            }
        }
        assert!(world.lost().is_empty() && world.asked().is_empty(), "{blip} {phase}");
    }
}

/// Last words never come at one moment: who spoke a little later than another is no witness that it is
/// gone.
#[test]
fn last_words_at_different_moments_lose_nobody() {
    for apart in 1..=4 {
        let mut world = World::of(4);
        world.pass(60, |_| true);
        world.pass(apart, |node| node != id(1));
        world.pass(60, |_| false);
        assert!(world.lost().is_empty() && world.asked().is_empty(), "{apart}");
    }
}

#[test]
fn nothing_is_lost_right_after_a_start_and_nothing_is_fresh_that_was_not_heard() {
    let mut world = World::of(2);
    world.pass(6, |node| node != id(1));
    assert!(world.lost().is_empty());
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Silent);
    world.pass(4, |node| node != id(1));
    assert_eq!(world.lost(), [id(1)], "it had as long as everybody");
}

#[test]
fn few_nodes_are_lost_at_once_and_a_person_is_asked_for_the_others() {
    let mut world = World::of(8);
    world.pass(60, |_| true);
    world.pass(30, |node| node > id(5));
    assert_eq!((world.lost().len(), world.asked().len()), (2, 3));
    world.pass(3_600, |node| node > id(5));
    assert_eq!((world.lost().len(), world.asked().len()), (2, 3), "waiting is no answer");
    let asked = world.asked()[0];
    assert_eq!(world.liveness.life(world.now, asked), NodeLife::Asked);
    world.say(&Input::Confirmed(asked));
    assert_eq!(world.liveness.life(world.now, asked), NodeLife::Lost);
    assert_eq!(world.lost().len(), 3);
    world.pass(1, |_| true);
    let back = world.out.iter().filter(|output| matches!(output, Output::Back { .. })).count();
    assert_eq!(back, 5);
}

#[test]
fn a_loss_long_ago_leaves_room_for_another() {
    let mut world = World::of(3);
    world.pass(60, |_| true);
    world.pass(20, |node| node != id(1));
    assert_eq!(world.lost(), [id(1)]);
    world.owners = vec![id(2), id(3)];
    world.pass(700, |node| node != id(1));
    world.pass(20, |node| node == id(3));
    assert_eq!(world.lost(), [id(1), id(2)]);
    let mut world = World::of(2);
    world.pass(60, |_| true);
    world.pass(20, |node| node != id(1));
    world.pass(61, |_| true);
    world.pass(20, |node| node != id(2));
    assert_eq!(world.lost(), [id(1), id(2)], "the one that came back took no place");
}

#[test]
fn a_node_is_asked_for_only_until_those_lost_before_are_back_for_good() {
    let mut world = World::of(2);
    world.pass(60, |_| true);
    world.pass(8, |node| node != id(1));
    assert_eq!(world.lost(), [id(1)]);
    // It comes back, and the other falls silent at once, and stays so.
    world.pass(1, |_| true);
    world.pass(40, |node| node != id(2));
    assert_eq!((world.lost().len(), world.asked().len()), (1, 1), "the network may be to blame");
    world.pass(40, |node| node != id(2));
    assert_eq!(world.lost(), [id(1), id(2)], "only this one is silent");
    assert_eq!(world.asked().len(), 1);
}

#[test]
fn nobody_gives_up_a_node_that_speaks_for_itself() {
    let mut world = World::of(2);
    world.pass(60, |_| true);
    let mut out = Vec::new();
    let refused = world.liveness.step(world.now, &Input::Confirmed(id(1)), &mut out);
    assert_eq!(refused, Err(StillHeard { ago: Duration::ZERO }));
    // An agent's word is not the node's: a person may know better.
    for step in 0..10 {
        world.pass(1, |node| node != id(1));
        world.say(&told(1, 1, step, step));
    }
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Heard);
    world.say(&Input::Confirmed(id(1)));
    assert_eq!(world.lost(), [id(1)]);
}

#[test]
fn a_node_without_volumes_is_not_lost_and_takes_no_place() {
    let mut world = World::of(3);
    world.owners = vec![id(1)];
    world.pass(60, |_| true);
    world.pass(60, |node| node == id(3));
    assert_eq!(world.lost(), [id(1)]);
    assert!(world.asked().is_empty());
}

#[test]
fn a_pause_takes_back_what_was_decided_and_not_carried_out() {
    let mut world = World::of(2);
    world.pass(60, |_| true);
    world.pass(7, |node| node != id(1));
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Lost);
    world.now += Duration::from_secs(60);
    world.tick();
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Silent);
}

/// Words that come late, twice or out of order bring nothing further, whatever was told in between.
#[test]
fn a_late_word_of_an_agent_vouches_for_nobody() {
    let mut world = World::of(2);
    world.pass(60, |_| true);
    for (journaled, committed) in [(10, 5), (20, 15)] {
        world.say(&told(1, 1, journaled, committed));
    }
    let words = [(10, 5), (20, 15), (15, 15), (20, 10), (0, 0), (20, 15)];
    for (journaled, committed) in words {
        world.pass(1, |node| node != id(1));
        world.say(&told(1, 1, journaled, committed));
    }
    assert!(world.lost().is_empty());
    world.pass(1, |node| node != id(1));
    assert_eq!(world.lost(), [id(1)], "nothing got on since");
}

#[test]
fn the_first_word_under_a_node_or_an_epoch_vouches_for_nobody() {
    for word in [told(1, 2, 30, 30), told(1, 1, 30, 30)] {
        let mut world = World::of(3);
        world.pass(60, |_| true);
        world.say(&told(2, 1, 10, 10));
        world.pass(6, |node| node != id(1));
        world.say(&word);
        world.pass(1, |node| node != id(1));
        assert_eq!(world.lost(), [id(1)], "{word:?}");
    }
}

/// Agents' words hold a node for a while, then a person is asked; they neither lose it nor take that back.
#[test]
fn for_a_node_that_only_agents_speak_for_a_person_is_asked() {
    let mut world = World::of(3);
    world.pass(60, |_| true);
    let spoke = world.now;
    let mut step = 0;
    let mut vouched = |world: &mut World, seconds: u32| {
        for _ in 0..seconds {
            step += 1;
            world.say(&told(1, 1, step, step));
            world.pass(1, |node| node != id(1));
        }
    };
    vouched(&mut world, 600);
    assert!(world.out.is_empty());
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Heard);
    vouched(&mut world, 3_000);
    let silent = VOUCHED_MAX + TICK;
    assert_eq!(world.out, [Output::Asked { node: id(1), silent, is_vouched_for: true }]);
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Asked);
    assert_eq!(world.liveness.own_silence(world.now, id(1)), world.now - spoke);
    // It speaks for itself.
    world.pass(1, |_| true);
    assert_eq!(world.out.last(), Some(&Output::Back { node: id(1) }));
    vouched(&mut world, 700);
    assert_eq!(world.asked().len(), 2);
    // The agents fall silent too: nobody's word is a loss as ever.
    world.pass(20, |node| node != id(1));
    assert_eq!(world.lost(), [id(1)]);
}

#[test]
fn a_person_gives_up_a_node_that_only_agents_speak_for() {
    let mut world = World::of(3);
    world.pass(60, |_| true);
    for step in 0..700 {
        world.say(&told(1, 1, step, step));
        world.pass(1, |node| node != id(1));
    }
    world.say(&Input::Confirmed(id(1)));
    assert_eq!(world.liveness.life(world.now, id(1)), NodeLife::Lost);
    world.say(&told(1, 1, 9_999, 9_999));
    assert_eq!(
        world.liveness.life(world.now, id(1)),
        NodeLife::Lost,
        "only itself takes that back"
    );
}
