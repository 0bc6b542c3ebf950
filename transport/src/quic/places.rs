//! The connections of peers who proved who they are: places for nodes apart from places for clients.
//!
//! Pure but for the tokens that end connections.
//!
//! Always: clients never take a node's place, however many they are; no client's name has more than its share; a node
//! that comes anew displaces its own oldest connection, which its earlier life may have left behind, and never another
//! node's.

use std::collections::{BTreeMap, VecDeque};

use tokio_util::sync::CancellationToken;

use crate::{Identity, Role};

/// The most connections of one node. It needs one for each name by which it knows this node, and one that its earlier
/// life left behind lasts until the idle timeout.
pub(super) const NODE_SHARE: usize = 8;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    Nodes,
    Clients,
    ClientShare,
}

/// Bounds of the places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) nodes: usize,
    pub(super) clients: usize,
    /// Of one client's name.
    pub(super) client_share: usize,
}

/// The connections that have a place.
#[derive(Debug)]
pub(super) struct Places {
    bounds: Bounds,
    next_id: u64,
    /// The oldest of each node first.
    nodes: BTreeMap<u64, VecDeque<Occupant>>,
    nodes_held: usize,
    clients: BTreeMap<String, usize>,
    clients_held: usize,
}

#[derive(Debug)]
struct Occupant {
    id: u64,
    end: CancellationToken,
}

/// A place that was taken, to be given back.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    /// Cancelled when another connection takes it.
    pub(super) displaced: CancellationToken,
}

impl Places {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            next_id: 0,
            nodes: BTreeMap::new(),
            nodes_held: 0,
            clients: BTreeMap::new(),
            clients_held: 0,
        }
    }

    /// Takes a place for a peer that proved who it is.
    pub(super) fn take(&mut self, peer: &Identity) -> Result<Place, NoPlace> {
        let displaced = CancellationToken::new();
        let id = self.next_id;
        match &peer.role {
            Role::Node(node) => {
                let held = self.nodes.entry(*node).or_default();
                let full = self.nodes_held >= self.bounds.nodes;
                if full || held.len() >= NODE_SHARE {
                    let Some(oldest) = held.pop_front() else {
                        self.nodes.remove(node);
                        return Err(NoPlace::Nodes);
                    };
                    self.nodes_held -= 1;
                    oldest.end.cancel();
                }
                let end = displaced.clone();
                held.push_back(Occupant { id, end });
                self.nodes_held += 1;
            }
            Role::Client(name) => {
                if self.clients_held >= self.bounds.clients {
                    return Err(NoPlace::Clients);
                }
                let held = self.clients.get(name).copied().unwrap_or_default();
                if held >= self.bounds.client_share {
                    return Err(NoPlace::ClientShare);
                }
                self.clients.insert(name.clone(), held + 1);
                self.clients_held += 1;
            }
        }
        self.next_id += 1;
        self.check();
        Ok(Place { id, displaced })
    }

    /// Gives a place back. One that was displaced is given back already.
    pub(super) fn give_back(&mut self, peer: &Identity, place: &Place) {
        match &peer.role {
            Role::Node(node) => {
                let Some(held) = self.nodes.get_mut(node) else {
                    return;
                };
                let before = held.len();
                held.retain(|held| held.id != place.id);
                self.nodes_held -= before - held.len();
                if held.is_empty() {
                    self.nodes.remove(node);
                }
            }
            Role::Client(name) => {
                if let Some(held) = self.clients.get_mut(name) {
                    *held -= 1;
                    self.clients_held -= 1;
                    if *held == 0 {
                        self.clients.remove(name);
                    }
                }
            }
        }
        self.check();
    }

    fn check(&self) {
        let (nodes, clients) = (self.nodes_held, self.clients_held);
        debug_assert!(nodes <= self.bounds.nodes, "{nodes} of nodes");
        debug_assert!(clients <= self.bounds.clients, "{clients} of clients");
        debug_assert_eq!(self.nodes.values().map(VecDeque::len).sum::<usize>(), nodes);
        debug_assert_eq!(self.clients.values().sum::<usize>(), clients);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterId;

    fn node(id: u64) -> Identity {
        Identity::node(ClusterId::new("tested").unwrap(), id)
    }

    fn client(name: &str) -> Identity {
        Identity::client(ClusterId::new("tested").unwrap(), name).unwrap()
    }

    fn places() -> Places {
        Places::new(Bounds {
            nodes: 10,
            clients: 4,
            client_share: 3,
        })
    }

    #[test]
    fn a_name_has_its_share_and_all_clients_their_bound_and_nodes_their_own() {
        let mut places = places();
        let held: Vec<Place> = (0..3).map(|_| places.take(&client("a")).unwrap()).collect();
        assert_eq!(places.take(&client("a")).unwrap_err(), NoPlace::ClientShare);
        places.take(&client("b")).unwrap();
        assert_eq!(places.take(&client("c")).unwrap_err(), NoPlace::Clients);
        places.take(&node(1)).unwrap();
        places.give_back(&client("a"), &held[0]);
        places.take(&client("c")).unwrap();
    }

    #[test]
    fn the_newest_connection_of_a_node_displaces_its_oldest() {
        let mut places = places();
        let mut held: Vec<Place> = (0..NODE_SHARE).map(|_| places.take(&node(1)).unwrap()).collect();
        held.push(places.take(&node(1)).unwrap());
        let displaced: Vec<bool> = held.iter().map(|place| place.displaced.is_cancelled()).collect();
        assert!(displaced[0] && !displaced[1..].contains(&true), "{displaced:?}");
        // It is given back already.
        places.give_back(&node(1), &held[0]);
        assert_eq!(places.nodes_held, NODE_SHARE);
    }

    #[test]
    fn a_node_never_displaces_another() {
        let mut places = places();
        for _ in 0..NODE_SHARE {
            places.take(&node(1)).unwrap();
        }
        let two = places.take(&node(2)).unwrap();
        places.take(&node(2)).unwrap();
        assert_eq!(places.take(&node(3)).unwrap_err(), NoPlace::Nodes);
        places.take(&node(2)).unwrap();
        assert!(two.displaced.is_cancelled());
        assert_eq!(places.nodes_held, 10);
        assert!(!places.nodes.contains_key(&3));
    }
}
