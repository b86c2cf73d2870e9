use super::*;
use farshore_codec::WrappingKey;
use farshore_codec::journal::JournalSealer;
use farshore_proto::frame::FrameHeader;
use farshore_proto::journal::{GroupSize, put_entry};
use farshore_proto::keys::WrapperKind;
use farshore_proto::limits::{BLOCK_BYTES, JOURNAL_GROUP_HEADER_BYTES};
use farshore_proto::{Epoch, Seq};
use farshore_vault::{Access, Store};
use std::ops::Range;

const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);

async fn vault(dir: &Path) -> Vault {
    let store = Store::open(dir.join("vault").to_str().unwrap(), Access::Make).unwrap();
    Vault::init(&store, &WrappingKey::draw(WrapperKind::Recovery).unwrap()).await.unwrap()
}

/// A journal file with a group for each of these seqs.
fn file(vault: &Vault, number: u64, seqs: Range<u64>) -> Vec<u8> {
    let (key_number, key) = vault.newest_key();
    let mut sealer = JournalSealer::create(vault.id(), LOG, number, key, key_number).unwrap();
    let mut bytes = sealer.header().encode();
    for seq in seqs {
        let body = vec![u8::try_from(seq).unwrap(); BLOCK_BYTES];
        let header = FrameHeader::write(Seq(seq), seq, &body).encode();
        let mut plain = Vec::new();
        put_entry(&mut plain, VOLUME, Epoch(1), &header, &body);
        let mut disk = vec![0; JournalSealer::disk_bytes(plain.len())];
        disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(&plain);
        sealer.seal_group(GroupSize { entries: 1, bytes: plain.len() }, &mut disk).unwrap();
        bytes.extend(disk);
    }
    bytes
}

struct Rig {
    dir: tempfile::TempDir,
    vault: Vault,
}

impl Rig {
    /// Files 7 and 8 hold seqs 3 to 6, of which the vault holds 3.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = vault(dir.path()).await;
        let rig = Self { dir, vault };
        std::fs::create_dir(rig.journal()).unwrap();
        rig.put("00000000000000000007.journal", &file(&rig.vault, 7, 3..5));
        rig.put("00000000000000000008.journal", &file(&rig.vault, 8, 5..7));
        rig
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.journal().join(name), bytes).unwrap();
    }

    fn edit(&self, number: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.journal().join(format!("{number:020}.journal"));
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    fn read(&self) -> (Vec<u64>, Vec<u64>, u64) {
        let known = RecoveredVolume {
            epoch: Epoch(1),
            size_bytes: 100 * 4096,
            committed: Seq(3),
            stamp: farshore_proto::Stamp::default(),
        };
        let volumes = BTreeMap::from([(VOLUME, known)]);
        let found = read_files(&self.journal(), &self.vault, LOG, &volumes).unwrap();
        let seqs = found.replayed.iter().map(|frame| {
            assert!(frame.frame.body.iter().all(|byte| u64::from(*byte) == frame.seq.0));
            frame.seq.0
        });
        (seqs.collect(), found.files, found.damages)
    }
}

#[tokio::test]
async fn reads_what_the_vault_does_not_hold_of_all_files() {
    let rig = Rig::new().await;
    // Not names of journal files: a copy, a backup, a note.
    for name in ["7.journal", "00000000000000000008.journal.bak", "README"] {
        rig.put(name, &file(&rig.vault, 7, 3..5));
    }
    assert_eq!(
        rig.read(),
        (vec![3, 4, 5, 6], vec![7, 8], 0),
        "3 is in the vault, its stamp is not"
    );
}

/// D1: the end of the last file is what a crash tears; the end of one before it is not.
#[tokio::test]
async fn a_torn_end_counts_as_damage_only_in_front_of_more() {
    let rig = Rig::new().await;
    rig.edit(8, |bytes| bytes.truncate(bytes.len() - 4096));
    assert_eq!(rig.read(), (vec![3, 4, 5], vec![7, 8], 0));
    rig.edit(7, |bytes| bytes.truncate(bytes.len() - 4096));
    assert_eq!(rig.read(), (vec![3], vec![7, 8], 1), "5 does not come behind 3");
}

/// D2, D3, D6.
#[tokio::test]
async fn damage_is_counted_and_what_follows_is_not_taken() {
    #[expect(clippy::type_complexity, reason = "a table of cases")]
    let damages: [(&str, fn(&Rig)); 4] = [
        ("a bit of a group", |rig| rig.edit(7, |bytes| bytes[4096 + 100] ^= 1)),
        ("a bit of a header", |rig| rig.edit(7, |bytes| bytes[30] ^= 1)),
        ("another's bytes", |rig| {
            let other = file(&rig.vault, 9, 3..5);
            rig.edit(7, |bytes| *bytes = other);
        }),
        ("a file that is gone", |rig| {
            std::fs::remove_file(rig.journal().join("00000000000000000007.journal")).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let rig = Rig::new().await;
        damage(&rig);
        let (seqs, _, damages) = rig.read();
        assert_eq!(seqs, [0; 0], "{what}");
        assert!(damages > 0, "{what}");
    }
}
