use super::*;
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{MarkKind, PointId};
use proptest::prelude::*;

const VOLUME: VolumeId = VolumeId([3; 16]);
const BLOCKS: usize = 48;

#[derive(Debug, Clone)]
enum Op {
    Write(usize, usize),
    Zero(usize, usize),
    Mark,
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..BLOCKS, 1..BLOCKS).prop_map(|(at, count)| (at, count.min(BLOCKS - at)));
    prop_oneof![
        8 => range.clone().prop_map(|(at, count)| Op::Write(at, count)),
        3 => range.prop_map(|(at, count)| Op::Zero(at, count)),
        1 => Just(Op::Mark),
    ]
}

/// What a block holds: nothing yet, zeros, or block `.1` of write `.0`.
type Block = Option<Option<(u64, u64)>>;

fn apply_model(image: &mut [Block], seq: u64, op: &Op) {
    match *op {
        Op::Write(at, count) => {
            for n in 0..count {
                image[at + n] = Some(Some((seq, n as u64)));
            }
        }
        Op::Zero(at, count) => image[at..at + count].fill(Some(None)),
        Op::Mark => {}
    }
}

fn apply_span(image: &mut [Block], span: &SpanPlan) {
    for piece in &span.pieces {
        for n in 0..piece.range.count {
            let at = usize::try_from(piece.range.block + n).unwrap();
            image[at] = Some(match piece.content {
                Content::Zero => None,
                Content::Bytes { handle, first } => Some((handle.0, first + n)),
            });
        }
    }
}

/// A mark of a volume alone.
pub(crate) fn mark(point: u128, is_prompt: bool) -> Change {
    Change::Mark(Mark {
        point: PointId(point.to_be_bytes()),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt,
        time_unix_ms: 7,
        group: MarkGroup::ALONE,
    })
}

/// A frame of a volume under epoch 1.
pub(crate) fn entry_of(volume: VolumeId, seq: u64, (change, bytes): (Change, usize)) -> Entry {
    Entry {
        imprint: Imprint::default(),
        volume,
        epoch: Epoch(1),
        seq: Seq(seq),
        stamp: Stamp::default(),
        change,
        handle: Handle(seq),
        bytes,
    }
}

fn entry(seq: u64, op: &Op) -> Entry {
    let range = |at: usize, count: usize| BlockRange { block: at as u64, count: count as u64 };
    let change = match *op {
        Op::Write(at, count) => (Change::Write(range(at, count)), count * BLOCK_BYTES),
        Op::Zero(at, count) => (Change::Zero(range(at, count)), 0),
        Op::Mark => (mark(0, false), 32),
    };
    entry_of(VOLUME, seq, change)
}

proptest! {
    /// Applying the spans one by one gives, at each mark, the image of all writes up to it.
    #[test]
    fn spans_give_the_exact_prefix_at_every_mark(ops in prop::collection::vec(op(), 1..60)) {
        let mut batch = Batch::default();
        let mut model = vec![None; BLOCKS];
        let mut at_marks = Vec::new();
        for (n, op) in ops.iter().enumerate() {
            let seq = n as u64 + 1;
            batch.add(&entry(seq, op), 0);
            apply_model(&mut model, seq, op);
            if matches!(op, Op::Mark) {
                at_marks.push((seq, model.clone()));
            }
        }
        let (spans, held) = batch.close();
        prop_assert_eq!(held.len(), ops.len());
        let mut image = vec![None; BLOCKS];
        let mut seen = Vec::new();
        for span in &spans {
            apply_span(&mut image, span);
            if span.mark.is_some() {
                seen.push((span.last_seq.0, image.clone()));
            }
        }
        prop_assert_eq!(seen, at_marks);
        prop_assert_eq!(image, model);
    }
}
