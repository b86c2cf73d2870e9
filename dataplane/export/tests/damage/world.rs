//! One vault with everything in it that a vault can hold, in memory.
//!
//! ```text
//! log 0   0: a b c    1: a    2: a b c    (3: void)    4: a b c    5: seal
//! log 1   0: a b    1: a    2: a b
//! ```
//!
//! Volume a is in log 0 under its epoch 1, then in log 1 under epochs 2 and 3; b in both under two; c in log 0
//! only. Slots 0 and 1 are of run 1 of the writer of log 0 under key 2, slot 3 was left by run 1 behind the
//! hole at 2, which run 2 filled. Log 1 refers to chunks of log 0. There are two maps of a, whose layers are in several
//! parts: a full layer, and a delta over it; one map of b, a checkpoint of each log, and one index run.

use crate::write::Writer;
use bytes::Bytes;
use farshore_codec::{DataKey, RootKey, VaultKey, WrappingKey};
use farshore_proto::revision::RevisionBody;
use farshore_proto::vault::{DomainKeys, OWN_KEY, VaultObject};
use farshore_proto::{Domain, KeyNumber, Slot, VaultId, VolumeId};
use farshore_vault::checkpoint::read_ledger;
use farshore_vault::layout::ObjectName;
use farshore_vault::log::{LogEnd, find_end, put_segment};
use farshore_vault::testing::write_map_in_parts;
use farshore_vault::{Store, Vault, checkpoint, map, revision, runs};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const C: usize = 2;
/// The hole that run 1 left, the slot that it left behind it, the last one, the seal.
pub(crate) const REFILLED: Slot = Slot(2);
pub(crate) const VOID: Slot = Slot(3);
pub(crate) const LAST: Slot = Slot(4);
pub(crate) const SEAL: Slot = Slot(5);

/// The same for every world, so that two differ in the vault's id only.
const KEYS: [[u8; 32]; 4] = [[0x50; 32], [0x51; 32], [0x52; 32], [0x53; 32]];
const RECOVERY: &str = "4242424242424242424242424242424242424242424242424242424242424242";

/// A finished vault.
pub(crate) struct World {
    pub(crate) recovery: WrappingKey,
    pub(crate) writer: Writer,
    /// Every object.
    pub(crate) objects: BTreeMap<String, Bytes>,
    /// What run 1 built for the slot that run 2 filled, and never put.
    pub(crate) stale: Bytes,
}

pub(crate) fn recovery_key() -> WrappingKey {
    // The check is part of the text.
    WrappingKey::parse(&format!("FSRK2-{RECOVERY}-fad428ec")).unwrap()
}

/// The name of the object of a key.
pub(crate) fn key_name(number: u32) -> String {
    ObjectName::key(KeyNumber(number), recovery_key().wrapper().fingerprint).to_string()
}

/// A store in memory that holds these objects.
pub(crate) async fn memory(objects: &BTreeMap<String, Bytes>) -> Arc<InMemory> {
    let memory = Arc::new(InMemory::new());
    for (name, bytes) in objects {
        memory.put(&Path::from(name.as_str()), bytes.clone().into()).await.unwrap();
    }
    memory
}

pub(crate) async fn open(memory: &Arc<InMemory>) -> Vault {
    let store = Store::over(Arc::clone(memory) as Arc<dyn ObjectStore>, "memory:");
    Vault::open(&store, &recovery_key()).await.unwrap()
}

async fn add_key(store: &Store, vault: VaultId, number: u32) {
    let bytes = KEYS[number as usize - 1];
    let key = match number {
        1 => VaultKey::Root(RootKey::from_bytes(bytes)),
        _ => VaultKey::Data(DataKey::from_bytes(bytes)),
    };
    let (number, own) = (KeyNumber(number), OWN_KEY);
    let domain = if number == own { Domain::OWN } else { Domain::FIRST };
    let object = recovery_key().wrap(vault, number, domain, &key).unwrap().encode();
    let name = ObjectName::key(number, recovery_key().wrapper().fingerprint);
    store.create(&name, object).await.unwrap();
}

/// What both runs of log 0 have ready behind the hole: the same stream.
fn behind_the_hole(writer: &mut Writer) {
    writer.mark(A, 12, &[30, 32]);
    writer.write(B, 6, &[34]);
    writer.end(B, false);
    writer.mark(C, 20, &[0; 8]);
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::of(VaultId([0x77; 16])).await
    }

    /// A world with a vault of this id; everything else in it is the same.
    pub(crate) async fn of(id: VaultId) -> Self {
        let memory = Arc::new(InMemory::new());
        let store = Store::over(Arc::clone(&memory) as Arc<dyn ObjectStore>, "memory:");
        add_key(&store, id, 1).await;
        add_key(&store, id, 2).await;
        add_key(&store, id, 3).await;
        let object = VaultObject::new(id);
        store.create(&ObjectName::vault(), object.encode()).await.unwrap();
        let mut writer = Writer::new(open(&memory).await, &[24, 24, 168], 2);
        let stale = fill(&mut writer, &memory, &store, id).await;
        let mut objects = BTreeMap::new();
        let listed: Vec<_> = memory.list(None).try_collect().await.unwrap();
        for object in listed {
            let bytes = memory.get(&object.location).await.unwrap().bytes().await.unwrap();
            objects.insert(object.location.to_string(), bytes);
        }
        Self { recovery: recovery_key(), writer, objects, stale }
    }

    pub(crate) fn volume(&self, number: usize) -> VolumeId {
        self.writer.volumes[number].id
    }

    pub(crate) fn slot(&self, log: usize, slot: u64) -> String {
        ObjectName::slot(self.writer.logs[log].id, Slot(slot)).to_string()
    }

    pub(crate) fn epoch(&self, volume: usize, ordinal: u64) -> String {
        ObjectName::epoch(self.volume(volume), ordinal).to_string()
    }

    /// Names that begin so.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        self.objects.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }
}

/// Writes everything; returns what run 1 built for the slot that run 2 filled.
async fn fill(writer: &mut Writer, memory: &Arc<InMemory>, store: &Store, id: VaultId) -> Bytes {
    for volume in [A, B, C] {
        writer.claim(volume, 0).await;
    }
    let big: Vec<u32> = (0..160).map(|block| 1000 + 2 * block).collect();
    writer.mark(A, 0, &[2, 4, 6, 8]);
    writer.mark(B, 4, &[10, 12, 14]);
    writer.mark(C, 0, &big);
    writer.commit(0).await;
    writer.write(A, 1, &[0]);
    writer.mark(A, 2, &[16, 18]);
    writer.commit(0).await;
    add_key(store, id, 4).await;
    let rotated = RevisionBody {
        time_unix_ms: 1_767_225_600_000,
        own_key: OWN_KEY,
        last_key: KeyNumber(4),
        domains: vec![DomainKeys { data: KeyNumber(4), ..DomainKeys::FIRST }],
        erased: Vec::new(),
    };
    assert_eq!(revision::put(&writer.vault, &rotated).await.unwrap(), 1);
    writer.vault = open(memory).await;
    writer.write(A, 8, &[20, 22]);
    writer.end(A, false);
    // What volume a wrote first: its chunk is referred to.
    writer.mark(B, 0, &[2, 4, 6, 8]);
    writer.mark(C, 162, &[24, 26]);
    let mut run = writer.clone();
    let stale = run.build(0);
    behind_the_hole(&mut run);
    let void = run.build(0);
    put_segment(&run.vault, run.logs[0].id, VOID, void).await.unwrap();
    writer.logs[0].incarnation = 2;
    assert_eq!(writer.commit(0).await, REFILLED);
    writer.logs[0].runs.insert(VOID, 1);
    writer.logs[0].next = LAST;
    behind_the_hole(writer);
    writer.commit(0).await;
    assert_eq!(writer.seal(0).await, SEAL);
    writer.claim(A, 1).await;
    writer.claim(B, 1).await;
    let part_of_c: Vec<u32> = (32..48).map(|block| 1000 + 2 * block).collect();
    writer.mark(A, 10, &[2, 4, 6, 8]);
    writer.write(B, 8, &part_of_c);
    writer.mark(B, 7, &[1001]);
    writer.commit(1).await;
    write_map_in_parts(&writer.vault, writer.volumes[A].id).await;
    map::write(&writer.vault, writer.volumes[B].id).await.unwrap().unwrap();
    writer.mark(A, 16, &[40, 42]);
    writer.commit(1).await;
    writer.claim(A, 1).await;
    writer.mark(A, 20, &[44, 0, 0, 46]);
    writer.mark(B, 0, &[48]);
    writer.commit(1).await;
    let delta = write_map_in_parts(&writer.vault, writer.volumes[A].id).await;
    assert_eq!(delta.layers, 2, "{delta:?}");
    write_checkpoint(writer, 0, REFILLED.next()).await;
    write_checkpoint(writer, 1, Slot(2)).await;
    assert_eq!(runs::write(&writer.vault, 1, &writer.known()).await.unwrap(), 1);
    assert!(writer.references > 1, "{}", writer.references);
    stale
}

/// Writes what a log says of its slots in front of one.
async fn write_checkpoint(writer: &Writer, log: usize, slot: Slot) {
    let (vault, log) = (&writer.vault, writer.logs[log].id);
    let end = LogEnd { next: slot, ..find_end(vault, log, Slot(0)).await.unwrap() };
    let ledger = read_ledger(vault, log, &end, |_| {}).await.unwrap();
    checkpoint::write(vault, log, slot, ledger.body().unwrap().clone()).await.unwrap();
}
