//! What the machines of this node's volumes are made of, put into the vault beside its work: a few at a time, so that it
//! takes nothing from claims and puts. Nothing waits for it.
//!
//! What is to be said is a set of volumes: one that was claimed, and each whose machine or disk the control plane says
//! something else of than was said last. Nothing falls out of it but by being said.

use crate::assignments::Assignments;
use crate::services::chain;
use farshore_proto::VolumeId;
use farshore_vault::Vault;
use farshore_vault::limits::MACHINES_AT_ONCE;
use farshore_vault::machine::{Described, OneDisk, describe};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Between two attempts while the store is away, or others say something else of the machine.
const RETRY: Duration = Duration::from_secs(10);

/// What is to be said, and what was.
#[derive(Debug, Default)]
pub(crate) struct Machines {
    state: Mutex<State>,
    woken: Notify,
}

/// Of volumes that are assigned to this node only: no more than that.
#[derive(Debug, Default)]
struct State {
    /// Those that were claimed, and the sizes of their disks.
    held: BTreeMap<VolumeId, u64>,
    /// Those of which something is to be said, and not before when.
    pending: BTreeMap<VolumeId, Instant>,
    /// Those of which it is being said.
    running: BTreeSet<VolumeId>,
    /// What was said of each, or refused.
    said: HashMap<VolumeId, (OneDisk, End)>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The vault says it.
    Said,
    /// To be tried again after a while.
    Later,
    /// To be tried again at the volume's next claim, or when there is something else to say.
    Refused,
}

impl Machines {
    /// A volume of this size was claimed.
    pub(crate) fn claimed(&self, volume: VolumeId, size_bytes: u64) {
        let mut state = self.lock();
        state.held.insert(volume, size_bytes);
        state.pending.insert(volume, Instant::now());
        if state.said.get(&volume).is_some_and(|(_, end)| *end == End::Refused) {
            state.said.remove(&volume);
        }
        drop(state);
        self.woken.notify_one();
    }

    /// The control plane says anew which volumes there are, and of which machines.
    fn assigned(&self, assignments: &Assignments) {
        let mut state = self.lock();
        let State { held, pending, said, .. } = &mut *state;
        held.retain(|volume, _| assignments.epoch(*volume).is_some());
        pending.retain(|volume, _| held.contains_key(volume));
        said.retain(|volume, _| held.contains_key(volume));
        for (volume, size_bytes) in held {
            let one = assignments.machine(*volume, *size_bytes);
            if one.is_some_and(|one| !is_said(said, &one)) {
                pending.entry(*volume).or_insert_with(Instant::now);
            }
        }
    }

    /// What is to be said next; it is being said then.
    fn next(&self, assignments: &Assignments) -> Option<OneDisk> {
        let (mut state, now) = (self.lock(), Instant::now());
        loop {
            let State { pending, running, .. } = &*state;
            let mut due = pending.iter().filter(|(_, due)| **due <= now);
            let volume = *due.find(|(volume, _)| !running.contains(volume))?.0;
            state.pending.remove(&volume);
            let size_bytes = state.held.get(&volume).copied();
            let one = size_bytes.and_then(|size_bytes| assignments.machine(volume, size_bytes));
            if let Some(one) = one.filter(|one| !is_said(&state.said, one)) {
                state.running.insert(volume);
                return Some(one);
            }
        }
    }

    fn ended(&self, one: OneDisk, end: End) {
        let mut state = self.lock();
        state.running.remove(&one.volume);
        match end {
            End::Later => {
                state.pending.entry(one.volume).or_insert_with(|| Instant::now() + RETRY);
            }
            End::Said | End::Refused => {
                state.said.insert(one.volume, (one, end));
            }
        }
    }

    /// When the next one is due that nobody works at.
    fn due(&self) -> Option<Instant> {
        let state = self.lock();
        let idle = state.pending.iter().filter(|(volume, _)| !state.running.contains(volume));
        idle.map(|(_, due)| *due).min()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_said(said: &HashMap<VolumeId, (OneDisk, End)>, one: &OneDisk) -> bool {
    let OneDisk { time_unix_ms, .. } = *one;
    let is_same = |(said, _): &(OneDisk, End)| OneDisk { time_unix_ms, ..said.clone() } == *one;
    said.get(&one.volume).is_some_and(is_same)
}

/// Describes machines for as long as the node lives.
pub(crate) async fn run(vault: Vault, machines: Arc<Machines>, assignments: Arc<Assignments>) {
    let (vault, mut running) = (&vault, FuturesUnordered::new());
    loop {
        while running.len() < MACHINES_AT_ONCE {
            let Some(one) = machines.next(&assignments) else { break };
            running.push(async move { (say(vault, &one).await, one) });
        }
        // With all hands at work nothing is begun before one of them is done.
        let due = machines.due().filter(|_| running.len() < MACHINES_AT_ONCE);
        tokio::select! {
            Some((end, one)) = running.next() => machines.ended(one, end),
            () = machines.woken.notified() => {}
            () = assignments.changed() => machines.assigned(&assignments),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

/// Has the vault say it, if that can be.
async fn say(vault: &Vault, one: &OneDisk) -> End {
    let OneDisk { machine, volume, .. } = one;
    match describe(vault, one).await {
        Ok(Described::Put { revision }) => {
            tracing::info!(%machine, %volume, revision, "the vault says what the machine is made of");
            End::Said
        }
        Ok(Described::Known) => End::Said,
        Ok(Described::Others) => {
            tracing::warn!(%machine, %volume, "the vault says that the machine has other disks; left as it is");
            End::Refused
        }
        Ok(Described::Newer) => {
            tracing::warn!(%machine, %volume, "a newer version of Farshore says more of the machine than this one knows; left as it is");
            End::Refused
        }
        Ok(Described::Outrun) => {
            tracing::debug!(%machine, %volume, "others describe the machine; it is tried again");
            End::Later
        }
        Err(error) if error.is_unavailable() => {
            let error = chain(&error);
            tracing::debug!(%machine, %volume, %error, "a machine cannot be described now; it is tried again");
            End::Later
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%machine, %volume, %error, "cannot say in the vault what a machine is made of");
            End::Refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_api::node::{Assignments as Told, NodeVolume};
    use farshore_proto::MachineId;
    use farshore_proto::machine::MachineBody;
    use farshore_vault::layout::ObjectName;
    use farshore_vault::machine::{Revised, find, find_all};
    use farshore_vault::testing::{World, counted};
    use uuid::Uuid;

    const SIZE: u64 = 1 << 20;

    /// Volume and machine have one number.
    fn given(number: u16, name: &str) -> NodeVolume {
        let id = Uuid::from_u128(u128::from(number) + 1);
        NodeVolume {
            volume: id,
            epoch: 1,
            parent_epoch: None,
            agent: Uuid::from_u128(9),
            agent_generation_min: 0,
            machine: name.to_owned(),
            machine_id: Some(id),
            disk: "/dev/vda".to_owned(),
            mark_interval_ms: 1000,
        }
    }

    fn id(number: u16) -> (MachineId, VolumeId) {
        let id = Uuid::from_u128(u128::from(number) + 1);
        (id.into(), id.into())
    }

    fn told(volumes: Vec<NodeVolume>) -> Told {
        Told { version: 1, volumes, to_let_go: Vec::new() }
    }

    /// A node that describes, and its table.
    fn node(vault: &Vault, volumes: Vec<NodeVolume>) -> (Arc<Machines>, Arc<Assignments>) {
        let (machines, assignments) = (Arc::new(Machines::default()), Assignments::new(1));
        let assignments = Arc::new(assignments);
        assignments.replace(&told(volumes));
        tokio::spawn(run(vault.clone(), Arc::clone(&machines), Arc::clone(&assignments)));
        (machines, assignments)
    }

    async fn newest(vault: &Vault, machine: MachineId) -> MachineBody {
        let found = find::<MachineBody>(vault, machine).await.unwrap().unwrap();
        found.into_newest().unwrap().unwrap().body
    }

    /// Waits for what is being said.
    async fn until_idle(machines: &Machines) {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let state = machines.lock();
            if state.pending.is_empty() && state.running.is_empty() {
                return;
            }
        }
    }

    /// More than ever fitted a queue, claimed at one moment.
    #[tokio::test]
    async fn all_that_are_claimed_at_once_are_described() {
        const CLAIMED: u16 = 1_200;
        let world = World::new(1, 1).await;
        let volumes = (0..CLAIMED).map(|number| given(number, "web")).collect();
        let (machines, _) = node(&world.vault, volumes);
        (0..CLAIMED).for_each(|number| machines.claimed(id(number).1, SIZE));
        until_idle(&machines).await;
        let found = find_all::<MachineBody>(&world.vault).await.unwrap();
        assert_eq!(found.len(), usize::from(CLAIMED));
    }

    #[tokio::test]
    async fn a_new_name_is_said_without_a_claim_and_only_of_the_machine_that_has_it() {
        let world = World::new(1, 1).await;
        let (machines, assignments) = node(&world.vault, vec![given(0, "old"), given(1, "other")]);
        machines.claimed(id(0).1, SIZE);
        machines.claimed(id(1).1, SIZE);
        until_idle(&machines).await;
        let volumes = vec![given(0, "new"), given(1, "other"), given(2, "not claimed")];
        assignments.replace(&told(volumes));
        let renamed = async {
            while newest(&world.vault, id(0).0).await.name != "new" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), renamed).await.unwrap();
        until_idle(&machines).await;
        let other = find::<MachineBody>(&world.vault, id(1).0).await.unwrap().unwrap();
        assert_eq!(other.newest, 1);
        assert!(find::<MachineBody>(&world.vault, id(2).0).await.unwrap().is_none());
        // What is this node's no more is forgotten.
        assignments.replace(&told(vec![given(1, "other")]));
        while machines.lock().held.len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(machines.lock().said.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_description_that_others_outrun_is_put_later() {
        let world = World::new(1, 1).await;
        let (store, others) = counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        let (machine, volume) = id(0);
        let (name, disk) = ("web-1".to_owned(), "/dev/vda".to_owned());
        let one = OneDisk { machine, name, volume, size_bytes: SIZE, disk, time_unix_ms: 7 };
        assert_eq!(say(&world.vault, &one).await, End::Said);
        let mut body = newest(&vault, machine).await;
        body.name = "theirs".to_owned();
        for revision in 2..12 {
            body.memory_bytes = revision;
            let keys = vault.seal_keys();
            let sealed = body.seal(vault.id(), machine, revision, keys).unwrap();
            let name = ObjectName::machine(machine, revision);
            others.outrun(&name, world.file(&name), sealed);
        }
        let (machines, _) = node(&vault, vec![given(0, "web-1")]);
        machines.claimed(volume, 2 * SIZE);
        until_idle(&machines).await;
        let body = newest(&vault, machine).await;
        assert_eq!((body.memory_bytes, body.name.as_str()), (11, "web-1"));
        assert_eq!(body.disks[0].size_bytes, 2 * SIZE);
    }
}
