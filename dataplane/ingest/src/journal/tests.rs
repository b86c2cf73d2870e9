use super::*;
use farshore_proto::frame::FrameHeader;
use farshore_proto::journal::{GroupSize, put_entry};
use farshore_proto::limits::{BLOCK_BYTES, JOURNAL_FILE_BYTES};
use std::cell::RefCell;

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);
const NUMBER: KeyNumber = KeyNumber(1);

fn keys() -> KeyRing {
    let mut keys = KeyRing::new(VAULT);
    keys.insert(NUMBER, DataKey::from_bytes([7; 32]));
    keys
}

const ONE_BLOCK: GroupSize = GroupSize { entries: 1, bytes: BLOCK_BYTES };

/// A journal file whose group `n` holds the write of seq `n + 1`.
fn file(number: u64, groups: u64) -> Vec<u8> {
    let ring = keys();
    let key = ring.get(NUMBER).unwrap();
    let mut sealer = JournalSealer::create(VAULT, LOG, number, key, NUMBER).unwrap();
    let mut bytes = sealer.header().encode();
    for group in 0..groups {
        let body = vec![u8::try_from(group).unwrap() + 1; BLOCK_BYTES];
        let header = FrameHeader::write(Seq(group + 1), group, &body).encode();
        let mut plain = Vec::new();
        put_entry(&mut plain, VOLUME, Epoch(1), &header, &body);
        let mut disk = vec![0; JournalSealer::disk_bytes(plain.len())];
        disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(&plain);
        sealer.seal_group(GroupSize { entries: 1, bytes: plain.len() }, &mut disk).unwrap();
        bytes.extend(disk);
    }
    bytes
}

fn replay(number: u64, bytes: &[u8], committed: u64) -> (Vec<u64>, FileEnd) {
    let volume = RecoveredVolume {
        epoch: Epoch(1),
        size_bytes: 100 * 4096,
        committed: Seq(committed),
        stamp: Stamp::default(),
    };
    let volumes = BTreeMap::from([(VOLUME, volume)]);
    let mut bytes = bytes.to_vec();
    let mut replayed = Vec::new();
    let file = (number, bytes.as_mut_slice());
    let end = replay_file((VAULT, LOG), &keys(), file, &volumes, &mut replayed);
    for frame in &replayed {
        let byte = u8::try_from(frame.seq.0).unwrap();
        assert!(frame.frame.body.iter().all(|found| *found == byte), "bytes of another frame");
    }
    (replayed.into_iter().map(|frame| frame.seq.0).collect(), end)
}

fn read_back(bytes: &[u8], committed: u64) -> Vec<u64> {
    replay(5, bytes, committed).0
}

#[test]
fn replays_what_the_vault_does_not_hold() {
    let bytes = file(5, 4);
    assert_eq!(read_back(&bytes, 0), [1, 2, 3, 4]);
    // And the newest that it holds: nothing else says what that was made under.
    assert_eq!(read_back(&bytes, 2), [2, 3, 4]);
    assert_eq!(replay(5, &bytes, 4), (vec![4], FileEnd::Read(GroupsEnd::Whole)));
    assert_eq!(replay(5, &bytes, 5), (vec![], FileEnd::Read(GroupsEnd::Whole)));
    let volumes = volumes_in((VAULT, LOG), &keys(), (5, &mut bytes.clone()));
    assert_eq!(volumes, BTreeSet::from([VOLUME]));
}

/// D1.
#[test]
fn a_torn_tail_costs_only_the_group_it_tears() {
    let bytes = file(5, 2);
    let group = (bytes.len() - JOURNAL_ALIGN_BYTES) / 2;
    // Padding behind the second group is not part of it: cut inside what was sealed.
    let sealed = JOURNAL_GROUP_HEADER_BYTES + 24 + FRAME_HEADER_BYTES + BLOCK_BYTES + 16;
    let second = JOURNAL_ALIGN_BYTES + group;
    for cut in (second..second + sealed).step_by(97) {
        let (seqs, end) = replay(5, &bytes[..cut], 0);
        assert_eq!(seqs, [1], "cut at {cut}");
        let is_told = matches!(end, FileEnd::Read(GroupsEnd::Torn { group: 1, .. }));
        assert!(is_told || cut == second, "cut at {cut}: {end:?}");
    }
    assert!(
        matches!(replay(5, &bytes[..100], 0), (seqs, FileEnd::Empty { .. }) if seqs.is_empty())
    );
    let header_only = replay(5, &bytes[..JOURNAL_ALIGN_BYTES], 0);
    assert_eq!(header_only, (vec![], FileEnd::Read(GroupsEnd::Whole)));
}

/// D2.
#[test]
fn a_damaged_group_is_never_returned_and_nothing_behind_it_is() {
    let bytes = file(5, 3);
    let group = (bytes.len() - JOURNAL_ALIGN_BYTES) / 3;
    let sealed = JOURNAL_GROUP_HEADER_BYTES + 24 + FRAME_HEADER_BYTES + BLOCK_BYTES + 16;
    let second = JOURNAL_ALIGN_BYTES + group;
    for at in (second..second + sealed).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let (seqs, end) = replay(5, &damaged, 0);
        assert_eq!(seqs, [1], "flipped byte {at}");
        let is_named = matches!(
            end,
            FileEnd::Read(GroupsEnd::Damaged { group: 1, offset, .. }) if offset == second
        );
        assert!(is_named, "flipped byte {at}: {end:?}");
    }
}

/// D3.
#[test]
fn a_group_or_file_from_another_place_is_not_taken() {
    let mut mixed = file(5, 1);
    let other = file(6, 2);
    mixed.extend_from_slice(&other[other.len() - (other.len() - JOURNAL_ALIGN_BYTES) / 2..]);
    assert_eq!(read_back(&mixed, 0), [1]);
    // Under another file's name: its groups would come at another place of the stream.
    assert!(
        matches!(replay(6, &file(5, 2), 0), (seqs, FileEnd::Unopened { .. }) if seqs.is_empty())
    );
    let mut bytes = file(5, 2);
    let (volumes, mut replayed) = (BTreeMap::new(), Vec::new());
    let elsewhere = (VAULT, LogId([9; 16]));
    let end = replay_file(elsewhere, &keys(), (5, &mut bytes), &volumes, &mut replayed);
    assert!(matches!(end, FileEnd::Unopened { .. }), "{end:?}");
    assert!(replayed.is_empty());
}

/// A disk that notes what it is asked, and fails at one step.
#[derive(Debug, Default)]
struct Noted {
    steps: RefCell<Vec<String>>,
    fail_at: Option<usize>,
}

impl Noted {
    fn note(&self, step: String) -> io::Result<()> {
        let mut steps = self.steps.borrow_mut();
        steps.push(step);
        match self.fail_at == Some(steps.len()) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
struct NotedFile(Rc<Noted>, u64);

impl JournalDisk for Rc<Noted> {
    type File = NotedFile;

    async fn create(&self, file: u64) -> io::Result<NotedFile> {
        self.note(format!("create {file}"))?;
        Ok(NotedFile(Self::clone(self), file))
    }

    async fn sync_names(&self) -> io::Result<()> {
        self.note("sync names".to_owned())
    }
}

impl JournalFile for NotedFile {
    type Buffer = Vec<u8>;

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        vec![0xee; bytes]
    }

    async fn write_at(&self, _: Vec<u8>, offset: u64) -> io::Result<()> {
        self.0.note(format!("write {} at {offset}", self.1))
    }

    async fn sync(&self) -> io::Result<()> {
        self.0.note(format!("sync {}", self.1))
    }
}

async fn write_three(disk: &Rc<Noted>) -> Vec<io::Result<u64>> {
    let key = Arc::new(DataKey::from_bytes([7; 32]));
    let owner = Owner { vault: VAULT, log: LOG, number: NUMBER, key };
    // Room for one group of a block beside the header block, not for two.
    let mut journal = JournalWriter::new(Rc::clone(disk), owner, 7, 4 * JOURNAL_ALIGN_BYTES as u64);
    let mut ends = Vec::new();
    for _ in 0..3 {
        let written = journal.write(ONE_BLOCK, |plain| plain.fill(1)).await;
        ends.push(written.map(|written| written.file));
        if ends.last().is_some_and(Result::is_err) {
            break;
        }
    }
    ends
}

/// M5, D4: nothing is told before it and the name of its file are durable.
#[tokio::test]
async fn a_group_is_told_only_after_file_name_and_group_are_synced() {
    let disk = Rc::new(Noted::default());
    let ends = write_three(&disk).await;
    assert_eq!(ends.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [7, 8, 9]);
    let of_file = |file: u64| {
        [
            format!("create {file}"),
            format!("write {file} at 0"),
            format!("sync {file}"),
            "sync names".to_owned(),
            format!("write {file} at 4096"),
            format!("sync {file}"),
        ]
    };
    let expected: Vec<String> = (7..10).flat_map(of_file).collect();
    assert_eq!(*disk.steps.borrow(), expected);
}

/// D4, I8.
#[tokio::test]
async fn whatever_fails_the_group_is_not_told() {
    for fail_at in 1..=18 {
        let disk = Rc::new(Noted { fail_at: Some(fail_at), ..Noted::default() });
        let ends = write_three(&disk).await;
        assert!(ends.last().unwrap().is_err(), "step {fail_at}");
        assert_eq!(ends.len(), fail_at.div_ceil(6), "step {fail_at}");
        assert_eq!(disk.steps.borrow().len(), fail_at, "nothing is tried again");
    }
}

#[tokio::test]
async fn what_was_written_is_read_back() {
    let dir = Rc::new(RefCell::new(BTreeMap::new()));
    let key = Arc::new(DataKey::from_bytes([7; 32]));
    let owner = Owner { vault: VAULT, log: LOG, number: NUMBER, key };
    let mut journal = JournalWriter::new(Memory(Rc::clone(&dir)), owner, 5, JOURNAL_FILE_BYTES);
    let mut frames = crate::frames::Frames::default();
    for seq in 1..=3_u8 {
        let body = vec![seq; BLOCK_BYTES];
        let header = FrameHeader::write(Seq(seq.into()), seq.into(), &body);
        let change = Change::decode(&header, &body).unwrap().unwrap();
        let handle = frames.insert(Frame { header: header.encode(), body });
        let (epoch, seq, bytes) = (Epoch(1), header.seq, BLOCK_BYTES);
        let group = [Entry {
            imprint: farshore_proto::Imprint::default(),
            stamp: Stamp::default(),
            volume: VOLUME,
            epoch,
            seq,
            change,
            handle,
            bytes,
        }];
        let fill = |plain: &mut [u8]| lay_out(&group, |handle| frames.get(handle), plain);
        journal.write(size_of(&group), fill).await.unwrap();
    }
    let bytes = dir.borrow()[&5].clone();
    assert_eq!(replay(5, &bytes, 0), (vec![1, 2, 3], FileEnd::Read(GroupsEnd::Whole)));
}

/// A disk in memory.
struct Memory(Rc<RefCell<BTreeMap<u64, Vec<u8>>>>);

struct MemoryFile(Rc<RefCell<BTreeMap<u64, Vec<u8>>>>, u64);

impl JournalDisk for Memory {
    type File = MemoryFile;

    async fn create(&self, file: u64) -> io::Result<MemoryFile> {
        self.0.borrow_mut().insert(file, Vec::new());
        Ok(MemoryFile(Rc::clone(&self.0), file))
    }

    async fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl JournalFile for MemoryFile {
    type Buffer = Vec<u8>;

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        vec![0xee; bytes]
    }

    async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let file = files.get_mut(&self.1).unwrap();
        assert_eq!(file.len() as u64, offset, "appended");
        file.extend(buffer);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with room for so many bytes of a file; what is done to it is noted.
#[derive(Default)]
struct Small {
    room: std::cell::Cell<u64>,
    noted: Noted,
}

struct SmallFile(Rc<Small>, u64);

impl JournalDisk for Rc<Small> {
    type File = SmallFile;

    async fn create(&self, file: u64) -> io::Result<SmallFile> {
        self.noted.note(format!("create {file}"))?;
        Ok(SmallFile(Self::clone(self), file))
    }

    async fn sync_names(&self) -> io::Result<()> {
        self.noted.note("sync names".to_owned())
    }

    async fn discard(&self, file: u64) -> io::Result<()> {
        self.noted.note(format!("discard {file}"))
    }
}

impl JournalFile for SmallFile {
    type Buffer = Vec<u8>;

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        vec![0xee; bytes]
    }

    async fn write_at(&self, _: Vec<u8>, offset: u64) -> io::Result<()> {
        self.0.noted.note(format!("write {} at {offset}", self.1))
    }

    async fn sync(&self) -> io::Result<()> {
        self.0.noted.note(format!("sync {}", self.1))
    }

    async fn reserve(&self, bytes: u64) -> io::Result<()> {
        match bytes <= self.0.room.get() {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

/// D9: a full disk is met before anything is written, and the journal goes on when there is room.
#[tokio::test]
async fn a_full_disk_is_waited_for_and_nothing_was_written_to_it() {
    let disk = Rc::new(Small::default());
    let key = Arc::new(DataKey::from_bytes([7; 32]));
    let owner = Owner { vault: VAULT, log: LOG, number: NUMBER, key };
    let mut journal = JournalWriter::new(Rc::clone(&disk), owner, 7, JOURNAL_FILE_BYTES);
    let block = JOURNAL_ALIGN_BYTES as u64;
    let is_full = |made: Result<(), RoomError>| matches!(made, Err(RoomError::NoSpace { .. }));
    // Not even the header has room, then it has and no group, then one group, then all.
    for _ in 0..2 {
        assert!(is_full(journal.make_room(BLOCK_BYTES).await));
    }
    disk.room.set(2 * block);
    for _ in 0..2 {
        assert!(is_full(journal.make_room(BLOCK_BYTES).await));
    }
    for room in [4 * block, JOURNAL_FILE_BYTES] {
        disk.room.set(room);
        journal.make_room(BLOCK_BYTES).await.unwrap();
        let written = journal.write(ONE_BLOCK, |plain| plain.fill(1)).await.unwrap();
        assert_eq!(written.file, 9);
    }
    let steps = disk.noted.steps.borrow();
    let expected = [
        "create 7",
        "discard 7",
        "create 8",
        "discard 8",
        "create 9",
        "write 9 at 0",
        "sync 9",
        "sync names",
        "write 9 at 4096",
        "sync 9",
        "write 9 at 12288",
        "sync 9",
    ];
    assert_eq!(*steps, expected);
}
