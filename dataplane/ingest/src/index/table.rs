//! From a chunk id to the numbers of the entries that may be its own, in 6 bytes a chunk.
//!
//! An id is a keyed hash, so its bits are as good as random: the first 10 choose one of 1,024 parts,
//! the next 20 are its tag there. A slot is 48 bits: the tag and the entry's number plus one; zero is
//! free. The tag alone also decides where in its part a slot belongs, so a part grows without
//! reading any entry. At 22 million chunks (1 TiB of unique data) one lookup in fifty reads an
//! entry in vain.
//!
//! Parts are open-addressed with robin-hood order: a slot gives way to one that is further from
//! home. At 95 % full a search for an absent tag then ends after about ten slots. A full part grows
//! by a fifth: 6 bytes / 0.95 × 1.2 is at most 7.6 bytes a chunk.

use farshore_proto::ChunkId;

const PART_BITS: u32 = 10;
const TAG_BITS: u32 = 20;
const ENTRY_BITS: u32 = 28;
const SLOT_BYTES: usize = 6;
const _: () = assert!((TAG_BITS + ENTRY_BITS) as usize == 8 * SLOT_BYTES);

/// Entries that can be numbered: about 12 TiB of unique data.
pub(super) const ENTRIES_MAX: usize = (1 << ENTRY_BITS) - 1;

/// Slots of a part when it gets its first.
const FIRST_SLOTS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tag(u32);

/// Part and tag of an id.
fn place(id: &ChunkId) -> (usize, Tag) {
    let bits = u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]);
    let part = bits >> (u32::BITS - PART_BITS);
    let tag = (bits >> (u32::BITS - PART_BITS - TAG_BITS)) & ((1 << TAG_BITS) - 1);
    (part as usize, Tag(tag))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    tag: Tag,
    entry: u32,
}

impl Taken {
    fn pack(self) -> [u8; SLOT_BYTES] {
        let bits = u64::from(self.tag.0) << ENTRY_BITS | (u64::from(self.entry) + 1);
        let mut out = [0; SLOT_BYTES];
        out.copy_from_slice(&bits.to_le_bytes()[..SLOT_BYTES]);
        out
    }

    fn unpack(slot: [u8; SLOT_BYTES]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes[..SLOT_BYTES].copy_from_slice(&slot);
        let bits = u64::from_le_bytes(bytes);
        let low = |bits: u64| u32::try_from(bits).expect("tags and entries have under 32 bits");
        let entry = low(bits & ((1 << ENTRY_BITS) - 1)).checked_sub(1)?;
        Some(Self { tag: Tag(low(bits >> ENTRY_BITS)), entry })
    }
}

#[derive(Debug, Default)]
struct Part {
    slots: Box<[[u8; SLOT_BYTES]]>,
    taken: usize,
}

impl Part {
    fn home(&self, tag: Tag) -> usize {
        // The product has under 20 + 32 bits, and the result is below the number of slots.
        let home = (u64::from(tag.0) * self.slots.len() as u64) >> TAG_BITS;
        usize::try_from(home).expect("below the number of slots")
    }

    /// How far the slot at `at` is behind its home.
    fn distance(&self, at: usize, tag: Tag) -> usize {
        let home = self.home(tag);
        if at >= home { at - home } else { at + self.slots.len() - home }
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    fn insert(&mut self, new: Taken) {
        if (self.taken + 1) * 20 > self.slots.len() * 19 {
            self.grow();
        }
        self.place(new);
        self.taken += 1;
    }

    fn place(&mut self, mut new: Taken) {
        let mut at = self.home(new.tag);
        let mut distance = 0;
        while let Some(there) = Taken::unpack(self.slots[at]) {
            let other = self.distance(at, there.tag);
            if other < distance {
                self.slots[at] = new.pack();
                new = there;
                distance = other;
            }
            at = self.after(at);
            distance += 1;
        }
        self.slots[at] = new.pack();
    }

    /// Lets go of all entries that are gone; returns how many those were.
    fn sweep(&mut self, is_gone: &impl Fn(u32) -> bool) -> usize {
        let is_gone = |taken: &Taken| is_gone(taken.entry);
        let taken = self.slots.iter().filter_map(|slot| Taken::unpack(*slot));
        let gone = taken.filter(is_gone).count();
        if gone > 0 {
            let free = vec![[0; SLOT_BYTES]; self.slots.len()].into();
            let old = std::mem::replace(&mut self.slots, free);
            let taken = old.iter().filter_map(|slot| Taken::unpack(*slot));
            taken.filter(|taken| !is_gone(taken)).for_each(|taken| self.place(taken));
            self.taken -= gone;
        }
        gone
    }

    fn grow(&mut self) {
        let slots = (self.slots.len() * 6 / 5 + 1).max(FIRST_SLOTS);
        let old = std::mem::replace(&mut self.slots, vec![[0; SLOT_BYTES]; slots].into());
        for taken in old.iter().filter_map(|slot| Taken::unpack(*slot)) {
            self.place(taken);
        }
    }

    /// Where the slots of `tag` are, in search order.
    fn search(&self, tag: Tag) -> impl Iterator<Item = (usize, Taken)> + '_ {
        let mut at = if self.slots.is_empty() { 0 } else { self.home(tag) };
        let mut distance = 0;
        std::iter::from_fn(move || {
            while distance < self.slots.len() {
                let there = Taken::unpack(self.slots[at])?;
                if self.distance(at, there.tag) < distance {
                    return None;
                }
                let here = at;
                at = self.after(at);
                distance += 1;
                if there.tag == tag {
                    return Some((here, there));
                }
            }
            None
        })
    }
}

/// The tables of all parts.
#[derive(Debug)]
pub(super) struct Table {
    parts: Box<[Part]>,
    len: usize,
}

impl Table {
    /// An empty table that takes `count` chunks with little growing. What it takes at once is a
    /// little less than they need, so that superseded entries among them cost no memory.
    pub(super) fn for_count(count: usize) -> Self {
        let slots = (count >> PART_BITS) * 9 / 10;
        let part = || Part { slots: vec![[0; SLOT_BYTES]; slots].into(), taken: 0 };
        Self { parts: std::iter::repeat_with(part).take(1 << PART_BITS).collect(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let slots: usize = self.parts.iter().map(|part| part.slots.len()).sum();
        slots * SLOT_BYTES + self.parts.len() * size_of::<Part>()
    }

    /// Numbers of the entries that may be that of `id`: all with its tag. Seldom more than one.
    pub(super) fn candidates(&self, id: &ChunkId) -> Vec<u32> {
        let (part, tag) = place(id);
        self.parts[part].search(tag).map(|(_, taken)| taken.entry).collect()
    }

    /// Adds entry `entry` for `id`; `entry` is below `ENTRIES_MAX`.
    pub(super) fn insert(&mut self, id: &ChunkId, entry: u32) {
        assert!((entry as usize) < ENTRIES_MAX, "entries are counted before");
        let (part, tag) = place(id);
        self.parts[part].insert(Taken { tag, entry });
        self.len += 1;
    }

    /// Lets go of the entries of one part that are gone; false if there is no such part.
    pub(super) fn sweep(&mut self, part: usize, is_gone: impl Fn(u32) -> bool) -> bool {
        let Some(part) = self.parts.get_mut(part) else { return false };
        self.len -= part.sweep(&is_gone);
        true
    }

    /// Puts entry `new` in the place of `old`; false if `id` has no such entry.
    pub(super) fn replace(&mut self, id: &ChunkId, old: u32, new: u32) -> bool {
        assert!((new as usize) < ENTRIES_MAX, "entries are counted before");
        let (part, tag) = place(id);
        let part = &mut self.parts[part];
        let Some((at, taken)) = part.search(tag).find(|(_, taken)| taken.entry == old) else {
            return false;
        };
        part.slots[at] = Taken { entry: new, ..taken }.pack();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(bits: u64) -> ChunkId {
        let mut id = [0; 32];
        // Spread as a hash does; the low bits come last, so that they tell ids of one tag apart.
        let mixed = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ bits;
        let mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id[..8].copy_from_slice(&mixed.to_be_bytes());
        id[24..].copy_from_slice(&bits.to_be_bytes());
        ChunkId(id)
    }

    #[test]
    fn a_slot_holds_the_largest_tag_and_entry() {
        let entry = u32::try_from(ENTRIES_MAX - 1).unwrap();
        for taken in [
            Taken { tag: Tag(0), entry: 0 },
            Taken { tag: Tag((1 << TAG_BITS) - 1), entry },
            Taken { tag: Tag(0x5_a5a5), entry: 0x0a5_a5a5 },
        ] {
            assert_eq!(Taken::unpack(taken.pack()), Some(taken));
        }
        assert_eq!(Taken::unpack([0; SLOT_BYTES]), None);
    }

    #[test]
    fn every_entry_stays_a_candidate_while_the_table_grows() {
        let mut table = Table::for_count(0);
        let count = 300_000;
        for entry in 0..count {
            table.insert(&id(entry.into()), entry);
            if entry % 37 == 0 {
                let earlier = entry / 2;
                assert!(table.candidates(&id(earlier.into())).contains(&earlier));
            }
        }
        for entry in 0..count {
            assert!(table.candidates(&id(entry.into())).contains(&entry), "entry {entry}");
        }
        let strays: usize =
            (0..count).map(|n| table.candidates(&id(u64::from(n) + (1 << 40))).len()).sum();
        assert!(strays < 300, "{strays} of {count} absent ids have candidates");
    }

    #[test]
    fn ids_of_one_tag_are_all_candidates_and_replaced_one_by_one() {
        let mut table = Table::for_count(0);
        let same = |last: u8| {
            let mut id = [0xee; 32];
            id[31] = last;
            ChunkId(id)
        };
        for entry in 0..200 {
            table.insert(&same(u8::try_from(entry).unwrap()), entry);
        }
        table.replace(&same(7), 7, 1000);
        let mut found = table.candidates(&same(0));
        found.sort_unstable();
        let expected: Vec<u32> = (0..200).filter(|entry| *entry != 7).chain([1000]).collect();
        assert_eq!(found, expected);
        assert_eq!(table.len(), 200);
    }

    #[test]
    fn what_is_swept_is_gone_and_nothing_else() {
        let mut table = Table::for_count(0);
        let count = 300_000;
        (0..count).for_each(|entry| table.insert(&id(entry.into()), entry));
        let gone = 100_000..200_000;
        let mut part = 0;
        while table.sweep(part, |entry| gone.contains(&entry)) {
            part += 1;
        }
        assert_eq!(table.len(), 200_000);
        for entry in 0..count {
            let is_there = table.candidates(&id(entry.into())).contains(&entry);
            assert_eq!(is_there, !gone.contains(&entry), "entry {entry}");
        }
    }

    #[test]
    fn memory_stays_under_8_bytes_a_chunk_at_every_size() {
        let mut table = Table::for_count(0);
        let mut worst = 0.0_f64;
        for entry in 0..1_500_000_u32 {
            table.insert(&id(entry.into()), entry);
            if table.len() >= 64 << 10 && table.len().is_multiple_of(4096) {
                worst = worst.max(table.memory_bytes() as f64 / table.len() as f64);
            }
        }
        assert!(worst <= 8.0, "{worst} bytes a chunk");
        println!("at most {worst:.2} bytes a chunk");
    }
}
