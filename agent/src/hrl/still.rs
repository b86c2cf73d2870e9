//! Marks over a stream that does not change.
//!
//! A mark costs an object in the vault. While nothing is written, none is appended: the newest one is the
//! disk still, and that is the agent's own word, given each time with nothing in doubt. The latest such
//! word is kept as a mark, and goes in front of the next change: so the vault has a point from just
//! before that change, as it would have with a mark at each interval.
//!
//! Invariant: a kept mark says what the log says up to its end, since nothing was appended since it was
//! given. It stays true whatever happens to the disk later.

use farshore_proto::mark::Mark;
use farshore_proto::{MarkKind, Seq};

/// What a mark promises, but for its name and time.
type Promise = (MarkKind, u32);

/// The newest mark of a log, if nothing came behind it.
#[derive(Debug, Default)]
pub(super) struct Still {
    newest: Option<(Seq, Promise)>,
    kept: Option<Mark>,
}

fn promise(mark: &Mark) -> Promise {
    (mark.kind, mark.unknown_blocks)
}

impl Still {
    /// The log ends with a mark at `seq`.
    pub(super) fn at(seq: Seq, mark: &Mark) -> Self {
        Self { newest: Some((seq, promise(mark))), kept: None }
    }

    /// Keeps a mark, if the log ends with one that promises the same; says where that is.
    pub(super) fn keep(&mut self, mark: Mark) -> Option<Seq> {
        let (seq, promised) = self.newest?;
        if promised != promise(&mark) {
            return None;
        }
        self.kept = Some(mark);
        Some(seq)
    }

    /// The latest mark that was kept, and where the one is that it stands for.
    pub(super) fn kept(&self) -> Option<(Seq, Mark)> {
        Some((self.newest?.0, self.kept?))
    }
}
