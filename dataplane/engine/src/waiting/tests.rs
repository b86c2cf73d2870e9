use super::*;
use crate::batch::tests::{entry_of, mark};
use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(u64),
    Zero,
    Mark,
}

fn op() -> impl Strategy<Value = (u8, Op)> {
    let op =
        prop_oneof![4 => (1..9_u64).prop_map(Op::Write), 2 => Just(Op::Zero), 1 => Just(Op::Mark)];
    // Half of all is of one volume.
    (prop_oneof![Just(0), 0..12_u8], op)
}

fn entry(number: u8, seq: u64, op: Op) -> Entry {
    let range = |count| BlockRange { block: seq * 7 % 512, count };
    let change = match op {
        Op::Write(count) => {
            (Change::Write(range(count)), usize::try_from(count).unwrap() * BLOCK_BYTES)
        }
        Op::Zero => (Change::Zero(range(3)), 0),
        Op::Mark => (mark(0, false), 32),
    };
    entry_of(VolumeId([number; 16]), seq, change)
}

fn limits() -> impl Strategy<Value = Limits> {
    (1..64_usize, 1..64_usize, 3..64_usize).prop_map(|(blocks, pieces, spans)| Limits {
        bytes: blocks * BLOCK_BYTES,
        pieces,
        spans,
    })
}

proptest! {
    /// W1 to W3, whatever waits and however small a batch is.
    #[test]
    fn each_batch_has_the_share_of_every_volume(ops in prop::collection::vec(op(), 1..300), limits in limits()) {
        let mut waiting = Waiting::new(limits);
        let mut seqs: BTreeMap<VolumeId, u64> = BTreeMap::new();
        for (number, op) in ops {
            let seq = seqs.entry(VolumeId([number; 16])).or_default();
            *seq += 1;
            waiting.add(&entry(number, *seq, op), 0);
        }
        let mut lasts: BTreeMap<VolumeId, u64> = BTreeMap::new();
        let mut passed_over: BTreeMap<VolumeId, usize> = BTreeMap::new();
        while !waiting.is_empty() {
            let share = waiting.share();
            let span = waiting.span_cost();
            let within = |queue: &Queue| queue.cost + span <= share;
            let small: Vec<VolumeId> =
                waiting.queues.iter().filter(|(_, queue)| within(queue)).map(|(id, _)| *id).collect();
            let before: Vec<VolumeId> = waiting.queues.keys().copied().collect();
            let batch = waiting.take();
            prop_assert!(waiting.is_empty() || batch.is_full(), "room was left");
            for id in small {
                prop_assert!(!waiting.holds(id), "less than its share, and it waits");
            }
            let (spans, _) = batch.close();
            for id in &before {
                let is_in = spans.iter().any(|span| span.volume == *id);
                let passed = passed_over.entry(*id).or_default();
                *passed = if is_in { 0 } else { *passed + 1 };
                prop_assert!(*passed < seqs.len(), "it waits behind who came later");
            }
            for span in spans {
                let last = lasts.entry(span.volume).or_default();
                prop_assert_eq!(*last + 1, span.first_seq.0);
                *last = span.last_seq.0;
            }
        }
        prop_assert_eq!(lasts, seqs);
    }
}
