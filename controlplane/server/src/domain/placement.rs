//! Which node takes which volume.
//!
//! A volume without a node goes to the node with the fewest volumes among those that are heard and
//! can work; one that was taken from its node, by a failover that was not kept, goes back there if
//! that node lives, and waits for it while nobody knows. A volume on a lost node moves as soon as
//! there is another one; if there is none it stays, because the node's journal may hold what the
//! vault does not have yet. Who is lost is decided in [`super::liveness`].
//!
//! Nothing here raises an epoch: the database does so in the transaction that carries a move out,
//! before any writer is told.

use farshore_api::node::NodeLife;
use uuid::Uuid;

/// A volume as placement sees it. Fenced ones are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSite {
    /// The volume.
    pub volume: Uuid,
    /// Where it is now.
    pub node: Option<Uuid>,
    /// Where it was last, if it is nowhere now.
    pub last_node: Option<Uuid>,
}

/// A node as placement sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSite {
    /// The node.
    pub node: Uuid,
    /// Whether it lives.
    pub life: NodeLife,
    /// Whether something keeps it from its work.
    pub has_trouble: bool,
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

/// A node that can be given volumes; the least one is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    has_trouble: bool,
    volumes: usize,
    node: Uuid,
}

/// Decides all moves.
#[must_use]
pub fn place(volumes: &[VolumeSite], nodes: &[NodeSite]) -> Vec<Move> {
    let life = |node: Uuid| {
        // A node that nobody knows any more is not coming back.
        nodes.iter().find(|site| site.node == node).map_or(NodeLife::Lost, |site| site.life)
    };
    let mut targets: Vec<Target> = nodes
        .iter()
        .filter(|site| site.life == NodeLife::Heard)
        .map(|site| Target {
            has_trouble: site.has_trouble,
            volumes: volumes.iter().filter(|v| v.node == Some(site.node)).count(),
            node: site.node,
        })
        .collect();
    let mut moves = Vec::new();
    for volume in volumes {
        let home = match (volume.node, volume.last_node) {
            (Some(node), _) if life(node) != NodeLife::Lost => continue,
            (None, Some(last)) => match life(last) {
                NodeLife::Lost => None,
                NodeLife::Heard => Some(last),
                _ => continue,
            },
            _ => None,
        };
        let target = match home {
            Some(home) => targets.iter_mut().find(|target| target.node == home),
            None => targets.iter_mut().min(),
        };
        let Some(target) = target else { continue };
        target.volumes += 1;
        moves.push(Move { volume: volume.volume, to: target.node, from: volume.node });
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn volume(number: u128, node: Option<u128>) -> VolumeSite {
        VolumeSite { volume: id(number), node: node.map(id), last_node: None }
    }

    fn node(number: u128, life: NodeLife) -> NodeSite {
        NodeSite { node: id(number), life, has_trouble: false }
    }

    fn to(moves: &[Move]) -> Vec<Uuid> {
        moves.iter().map(|m| m.to).collect()
    }

    #[test]
    fn new_volumes_spread_over_the_emptiest_nodes() {
        let volumes = [volume(10, Some(1)), volume(11, None), volume(12, None), volume(13, None)];
        let nodes = [node(1, NodeLife::Heard), node(2, NodeLife::Heard)];
        assert_eq!(to(&place(&volumes, &nodes)), [id(2), id(1), id(2)]);
    }

    #[test]
    fn without_a_node_volumes_wait() {
        assert!(place(&[volume(10, None)], &[]).is_empty());
        for life in [NodeLife::Silent, NodeLife::Asked, NodeLife::Lost] {
            assert!(place(&[volume(10, None)], &[node(1, life)]).is_empty(), "{life:?}");
        }
    }

    #[test]
    fn volumes_of_a_lost_node_move_only_if_another_lives() {
        let volumes = [volume(10, Some(1))];
        let lost = node(1, NodeLife::Lost);
        assert!(place(&volumes, &[lost]).is_empty());
        assert!(place(&volumes, &[lost, node(2, NodeLife::Silent)]).is_empty());
        let moves = place(&volumes, &[lost, node(2, NodeLife::Heard)]);
        assert_eq!(moves, [Move { volume: id(10), to: id(2), from: Some(id(1)) }]);
    }

    #[test]
    fn volumes_of_a_node_that_is_silent_or_asked_for_stay() {
        for life in [NodeLife::Silent, NodeLife::Asked, NodeLife::Unknown] {
            let nodes = [node(1, life), node(2, NodeLife::Heard)];
            assert!(place(&[volume(10, Some(1))], &nodes).is_empty(), "{life:?}");
        }
    }

    #[test]
    fn a_node_that_cannot_work_is_taken_last() {
        let troubled = NodeSite { has_trouble: true, ..node(1, NodeLife::Heard) };
        let volumes = [volume(10, Some(2)), volume(11, Some(2)), volume(12, None)];
        let nodes = [troubled, node(2, NodeLife::Heard)];
        assert_eq!(to(&place(&volumes, &nodes)), [id(2)], "though the other is emptier");
        assert_eq!(to(&place(&volumes[2..], &[troubled])), [id(1)], "better than none");
    }

    /// To be given to another node would end the log of the one that has it, which lives.
    #[test]
    fn a_volume_that_was_fenced_goes_back_to_its_node() {
        let fenced = VolumeSite { last_node: Some(id(1)), ..volume(10, None) };
        let volumes = [volume(11, Some(1)), volume(12, Some(1)), fenced];
        let other = node(2, NodeLife::Heard);
        assert_eq!(to(&place(&volumes, &[node(1, NodeLife::Heard), other])), [id(1)]);
        let troubled = NodeSite { has_trouble: true, ..node(1, NodeLife::Heard) };
        assert_eq!(to(&place(&volumes, &[troubled, other])), [id(1)]);
        assert!(place(&volumes, &[node(1, NodeLife::Silent), other]).is_empty(), "it waits");
        assert_eq!(to(&place(&volumes[2..], &[node(1, NodeLife::Lost), other])), [id(2)]);
        assert_eq!(to(&place(&volumes[2..], &[other])), [id(2)], "nobody knows it any more");
    }
}
