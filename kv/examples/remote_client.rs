//! A client of a cluster that runs elsewhere: of one node, of three, it is the same program.
//!
//! In one terminal a server, which makes certificates for clients on the same machine:
//!
//! ```sh
//! cargo run -- serve --data-dir ./data
//! ```
//!
//! In another one the client. It takes the certificates' directory and the addresses of some nodes; the others are learned from
//! these:
//!
//! ```sh
//! cargo run -p quorate-kv --example remote_client -- ./data/certs 127.0.0.1:7001
//! ```

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use quorate_kv::Client;
use quorate_kv::model::Limits;
use quorate_transport::certs::Credentials;
use quorate_transport::quic::{QuicSettings, QuicTransport};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let certs = args.next().context("which directory has the certificates?")?;
    let nodes: Vec<String> = args.collect();

    // The certificate says who we are. `quorate certs issue --client NAME` makes others.
    let file = |name| Path::new(&certs).join(name);
    let credentials = Credentials::load(
        &file("ca.crt"),
        &file("client-local.crt"),
        &file("client-local.key"),
    )?;
    // Without an address: it opens connections and takes none.
    let transport = QuicTransport::bind(None, &credentials, QuicSettings::default())?;
    // Nothing is sent before the first call. It finds the leader, and finds the next one when it falls.
    let client = Client::connect(nodes, transport, Limits::default())?.with_deadline(Duration::from_secs(5));

    let starts = client.add("examples/remote_client", 1).await?;
    println!("this program has run {starts} times against this cluster");
    for (address, status) in client.statuses().await {
        match status {
            Ok(status) => println!("node {} at {address}: {}", status.node, status.role),
            Err(reason) => println!("{address}: {reason}"),
        }
    }

    client.close().await;
    Ok(())
}
