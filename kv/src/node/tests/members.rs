//! Changes of the members that meet.

use quorate_transport::Identity;

use super::World;
use crate::model::NodeId;
use crate::node::Node;

/// A node that waits to be added, in a directory of its own.
async fn joining(world: &World, id: u64, address: &str) -> (Node, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let identity = Identity::node(world.cluster.clone(), id);
    let node = Node::builder()
        .cluster("test")
        .node_id(id)
        .data_dir(dir.path())
        .transport(world.network.transport(identity, address))
        .join()
        .start()
        .await
        .expect("it waits");
    (node, dir)
}

/// Both calls find the id free; the second must look again once it may change anything. openraft leaves a member that it
/// knows as it is, and says that it is done.
#[tokio::test]
async fn of_two_nodes_that_are_added_under_one_id_at_once_one_is_refused() {
    let world = World::start(|_| {}).await;
    let (one, other) = ("one:4", "other:4");
    let _nodes = [joining(&world, 4, one).await, joining(&world, 4, other).await];
    let client = world.node.client();
    let add = |address: &'static str| client.add_learner(NodeId::new(4), address);
    let (first, second) = tokio::join!(add(one), add(other));
    let (added, refused) = match (first, second) {
        (Ok(()), Err(refused)) => (one, refused),
        (Err(refused), Ok(())) => (other, refused),
        both => panic!("one is added and one is refused: {both:?}"),
    };
    assert!(refused.to_string().contains(added), "{refused}");
    let members = world.node.status().members;
    let member = members.iter().find(|member| member.id == NodeId::new(4));
    assert_eq!(member.map(|member| member.address.as_str()), Some(added));
}
