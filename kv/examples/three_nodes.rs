//! Three nodes over QUIC with certificates: here in one process, with the same code on three machines.
//!
//! Every node can be asked. The leader is killed; the other two elect another one, and nothing that was acknowledged is lost.
//! For tests there is a shorter way: see the example `testkit`.
//!
//! ```sh
//! cargo run -p quorate-kv --example three_nodes
//! ```

use quorate_kv::Node;
use quorate_transport::certs::Authority;
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{ClusterId, Identity, Transport as _};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cluster = ClusterId::new("example")?;

    // On three machines `quorate certs` makes the certificates, each node loads its own with `Credentials::load_from`,
    // and the addresses are known beforehand. Here the system chooses the ports.
    let authority = Authority::create(cluster.clone())?;
    let (mut peers, mut transports) = (Vec::new(), Vec::new());
    for id in 1..=3 {
        let credentials = authority.credentials(&Identity::node(cluster.clone(), id))?;
        let listen = "127.0.0.1:0".parse()?;
        let transport = QuicTransport::bind(Some(listen), &credentials, QuicSettings::default())?;
        let address = transport.local_address().expect("it listens");
        peers.push((id, address.to_string()));
        transports.push((id, transport));
    }

    // Each node is given the same list of all three.
    let mut nodes = Vec::new();
    for (id, transport) in transports {
        let node = Node::builder()
            .data_dir(dir.path().join(id.to_string()))
            .peers(peers.clone())
            .transport(transport);
        nodes.push(node.start().await?);
    }

    nodes[0].client().put("greeting", "hello").await?;
    for node in &nodes {
        let found = node.client().get("greeting").await?.expect("it was acknowledged");
        println!("node {} reads {:?}", node.id(), found.text());
    }

    let leader = nodes[0].client().status().await?.leader.expect("it took a write");
    let (killed, left): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.id() == leader);
    killed[0].abort().await;
    let written = left[0].client().put("greeting", "still here").await?;
    println!("one of three is gone, and revision {written} was written");
    for node in &left {
        let found = node.client().get("greeting").await?.expect("it was acknowledged");
        println!("a node that is left reads {:?}", found.text());
    }

    // Together: the last one alone would wait for a majority to take the leadership from it.
    tokio::join!(left[0].shutdown(), left[1].shutdown());
    Ok(())
}
