//! Which node takes which volume.
//!
//! A volume without a node goes to the node with the fewest volumes among those heard lately. A
//! volume on a lost node moves as soon as there is another one; if there is none it stays, because
//! the node's journal may hold what the vault does not have yet.
//!
//! Nothing here raises an epoch: the database does so in the transaction that carries a move out,
//! before any writer is told.

use uuid::Uuid;

/// A volume as placement sees it. Fenced ones are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSite {
    /// The volume.
    pub volume: Uuid,
    /// Where it is now.
    pub node: Option<Uuid>,
}

/// A node as placement sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSite {
    /// The node.
    pub node: Uuid,
    /// Milliseconds since it was heard.
    pub silent_ms: u64,
}

/// Gives a volume to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The volume.
    pub volume: Uuid,
    /// Its new node.
    pub to: Uuid,
    /// Where it was.
    pub from: Option<Uuid>,
}

/// Decides all moves.
///
/// `silent_after_ms` is how long a node may be silent. `listening_ms` is how long the control plane
/// itself has been listening: before it has listened for as long as a node may be silent, a node's
/// silence says nothing, and no volume is taken away.
#[must_use]
pub fn place(
    volumes: &[VolumeSite],
    nodes: &[NodeSite],
    silent_after_ms: u64,
    listening_ms: u64,
) -> Vec<Move> {
    let is_fresh = |site: &NodeSite| {
        site.silent_ms <= silent_after_ms && site.silent_ms <= listening_ms.max(1)
    };
    let mut targets: Vec<(usize, Uuid)> = nodes
        .iter()
        .filter(|site| is_fresh(site))
        .map(|site| (volumes.iter().filter(|v| v.node == Some(site.node)).count(), site.node))
        .collect();
    let is_lost = |node: Uuid| {
        listening_ms > silent_after_ms
            && nodes.iter().all(|site| site.node != node || site.silent_ms > silent_after_ms)
    };
    let mut moves = Vec::new();
    for volume in volumes {
        if volume.node.is_some_and(|node| !is_lost(node)) {
            continue;
        }
        let Some(target) = targets.iter_mut().min() else { break };
        target.0 += 1;
        moves.push(Move { volume: volume.volume, to: target.1, from: volume.node });
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: u64 = 15_000;
    const LONG: u64 = 60_000;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn volume(number: u128, node: Option<u128>) -> VolumeSite {
        VolumeSite { volume: id(number), node: node.map(id) }
    }

    fn node(number: u128, silent_ms: u64) -> NodeSite {
        NodeSite { node: id(number), silent_ms }
    }

    #[test]
    fn new_volumes_spread_over_the_emptiest_nodes() {
        let volumes = [volume(10, Some(1)), volume(11, None), volume(12, None), volume(13, None)];
        let moves = place(&volumes, &[node(1, 100), node(2, 100)], SILENT, LONG);
        let to: Vec<Uuid> = moves.iter().map(|m| m.to).collect();
        assert_eq!(to, [id(2), id(1), id(2)]);
    }

    #[test]
    fn without_a_node_volumes_wait() {
        assert!(place(&[volume(10, None)], &[], SILENT, LONG).is_empty());
        assert!(place(&[volume(10, None)], &[node(1, SILENT + 1)], SILENT, LONG).is_empty());
    }

    #[test]
    fn volumes_of_a_lost_node_move_only_if_another_lives() {
        let volumes = [volume(10, Some(1))];
        let lost = node(1, SILENT + 1);
        assert!(place(&volumes, &[lost], SILENT, LONG).is_empty());
        let moves = place(&volumes, &[lost, node(2, 0)], SILENT, LONG);
        assert_eq!(moves, [Move { volume: id(10), to: id(2), from: Some(id(1)) }]);
    }

    #[test]
    fn nothing_is_taken_away_right_after_a_start() {
        let volumes = [volume(10, Some(1))];
        let nodes = [node(1, 3_600_000), node(2, 0)];
        assert!(place(&volumes, &nodes, SILENT, 1_000).is_empty());
        assert_eq!(place(&volumes, &nodes, SILENT, SILENT + 1).len(), 1);
    }

    #[test]
    fn a_node_heard_only_before_the_start_gets_nothing_new() {
        assert!(place(&[volume(10, None)], &[node(1, 5_000)], SILENT, 1_000).is_empty());
        assert_eq!(place(&[volume(10, None)], &[node(1, 500)], SILENT, 1_000).len(), 1);
    }
}
