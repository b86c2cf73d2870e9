//! Sorting what a restore writes, in bounded memory: what is too much goes to files without names, sorted, and is read
//! back from all of them side by side.
//!
//! The files live as long as the restore and are read by the process that wrote them: their layout is nobody else's.

use super::plan::Place;
use crate::limits::{SORT_BUFFER_BYTES, SORT_FILES_MAX, SORT_PLACES_MAX};
use farshore_proto::map::{CHECK_BYTES, FrameAt};
use farshore_proto::segment::{Compression, SegmentFrame};
use farshore_proto::wire::{Put, Reader};
use farshore_proto::{Attempt, DecodeError, KeyNumber, LogId, Slot, Target};
use farshore_vault::view::Stored;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const RECORD_BYTES: usize = 32 + 5 * 4 + 1 + 4 * 4 + CHECK_BYTES + 8 + 4;

/// Takes places in any order.
#[derive(Debug)]
pub(super) struct Sorter {
    directory: PathBuf,
    places: Vec<Place>,
    most: usize,
    spilled: Vec<File>,
}

impl Sorter {
    pub(super) fn new(directory: &Path) -> Self {
        Self::with_room(directory, SORT_PLACES_MAX)
    }

    fn with_room(directory: &Path, most: usize) -> Self {
        let directory = directory.to_owned();
        Self { directory, places: Vec::new(), most, spilled: Vec::new() }
    }

    pub(super) fn push(&mut self, place: Place) {
        self.places.push(place);
    }

    /// Whether it should spill before it takes more.
    pub(super) fn is_full(&self) -> bool {
        self.places.len() >= self.most
    }

    /// Writes what is in memory to a file.
    pub(super) fn spill(&mut self) -> io::Result<()> {
        self.places.sort_unstable();
        let mut out = self.file()?;
        for place in self.places.drain(..) {
            write(&mut out, &place)?;
        }
        self.spilled.push(rewound(out)?);
        if self.spilled.len() < SORT_FILES_MAX {
            return Ok(());
        }
        let mut sorted = Sorted::of(Vec::new(), std::mem::take(&mut self.spilled))?;
        let mut out = self.file()?;
        while let Some(place) = sorted.next()? {
            write(&mut out, &place)?;
        }
        self.spilled.push(rewound(out)?);
        Ok(())
    }

    fn file(&self) -> io::Result<BufWriter<File>> {
        tempfile::tempfile_in(&self.directory).map(BufWriter::new)
    }

    /// Ends taking.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        self.places.sort_unstable_by(|a, b| b.cmp(a));
        Sorted::of(self.places, self.spilled)
    }
}

fn write(out: &mut BufWriter<File>, place: &Place) -> io::Result<()> {
    let mut record = Vec::with_capacity(RECORD_BYTES);
    put(&mut record, place);
    out.write_all(&record)
}

fn rewound(out: BufWriter<File>) -> io::Result<File> {
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Gives places in order.
#[derive(Debug)]
pub(super) struct Sorted {
    /// What never left memory, last first.
    places: Vec<Place>,
    files: Vec<BufReader<File>>,
    /// The next place of each file that has one.
    heads: BinaryHeap<Reverse<(Place, usize)>>,
}

impl Sorted {
    /// Of places in memory, last first, and files.
    fn of(places: Vec<Place>, files: Vec<File>) -> io::Result<Self> {
        let files = files.into_iter();
        let files = files.map(|file| BufReader::with_capacity(SORT_BUFFER_BYTES, file)).collect();
        let mut sorted = Self { places, files, heads: BinaryHeap::new() };
        for file in 0..sorted.files.len() {
            sorted.refill(file)?;
        }
        Ok(sorted)
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Place>> {
        let is_in_memory = match (self.places.last(), self.heads.peek()) {
            (Some(place), Some(Reverse((head, _)))) => place <= head,
            (place, _) => place.is_some(),
        };
        if is_in_memory {
            return Ok(self.places.pop());
        }
        let Some(Reverse((place, file))) = self.heads.pop() else { return Ok(None) };
        self.refill(file)?;
        Ok(Some(place))
    }

    fn refill(&mut self, file: usize) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES];
        match self.files[file].read_exact(&mut record) {
            Ok(()) => {
                let place = take(&record).map_err(io::Error::other)?;
                self.heads.push(Reverse((place, file)));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn put(out: &mut Vec<u8>, place: &Place) {
    let Place { stored, block, count } = place;
    let Stored { frame, chunk, offset, blocks, first, check } = stored;
    let FrameAt { target, number, offset: start, key, frame: shape } = frame;
    out.put_bytes(&target.log.0);
    out.put_u64(target.slot.0);
    out.put_bytes(&target.attempt.0);
    out.put_u32(*number);
    out.put_u32(*start);
    out.put_u32(key.0);
    out.put_u32(shape.stored_bytes);
    out.put_u32(shape.raw_bytes);
    out.put_u8(shape.compression.code());
    out.put_u32(*chunk);
    out.put_u32(*offset);
    out.put_u32(*blocks);
    out.put_u32(*first);
    out.put_bytes(check);
    out.put_u64(*block);
    out.put_u32(*count);
}

fn take(record: &[u8]) -> Result<Place, DecodeError> {
    let mut reader = Reader::new("sorted place", record);
    let (log, slot) = (LogId(reader.array()?), Slot(reader.u64()?));
    let target = Target { log, slot, attempt: Attempt(reader.array()?) };
    let (number, start, key) = (reader.u32()?, reader.u32()?, KeyNumber(reader.u32()?));
    let (stored_bytes, raw_bytes) = (reader.u32()?, reader.u32()?);
    let compression = match reader.u8()? {
        0 => Compression::Raw,
        _ => Compression::Zstd,
    };
    let shape = SegmentFrame { stored_bytes, raw_bytes, compression };
    let frame = FrameAt { target, number, offset: start, key, frame: shape };
    let (chunk, offset) = (reader.u32()?, reader.u32()?);
    let (blocks, first, check) = (reader.u32()?, reader.u32()?, reader.array()?);
    let stored = Stored { frame, chunk, offset, blocks, first, check };
    Ok(Place { stored, block: reader.u64()?, count: reader.u32()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(slot: u8, number: u8, block: u16) -> Place {
        let attempt = Attempt([slot; 8]);
        let target = Target { log: LogId([3; 16]), slot: Slot(slot.into()), attempt };
        let compression =
            if number.is_multiple_of(2) { Compression::Raw } else { Compression::Zstd };
        let shape = SegmentFrame { stored_bytes: 9, raw_bytes: 10, compression };
        let (offset, key) = (77, KeyNumber(2));
        let frame = FrameAt { target, number: number.into(), offset, key, frame: shape };
        let stored = Stored { frame, chunk: 5, offset: 6, blocks: 7, first: 1, check: [8; 8] };
        Place { stored, block: block.into(), count: 3 }
    }

    proptest! {
        #[test]
        fn all_places_come_back_in_order_whatever_was_spilled(
            places in prop::collection::vec((0_u8..4, 0_u8..4, any::<u16>()), 0..400),
            most in prop_oneof![1_usize..3, 3_usize..50],
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::with_room(directory.path(), most);
            let mut expected = Vec::new();
            for (slot, number, block) in places {
                let place = place(slot, number, block);
                expected.push(place);
                sorter.push(place);
                if sorter.is_full() {
                    sorter.spill().unwrap();
                }
            }
            // With so few to a file, some are merged.
            let spills = expected.len() / most;
            let merged = spills / SORT_FILES_MAX * (SORT_FILES_MAX - 1);
            prop_assert!(sorter.spilled.len() <= spills && sorter.spilled.len() < SORT_FILES_MAX);
            prop_assert_eq!(merged > 0, sorter.spilled.len() < spills);
            let mut sorted = sorter.finish().unwrap();
            let mut found = Vec::new();
            while let Some(place) = sorted.next().unwrap() {
                found.push(place);
            }
            expected.sort();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "no names");
        }
    }
}
