//! Three `quorate serve`.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use quorate_kv::Client;
use quorate_kv::model::Limits;
use quorate_transport::certs::{Authority, Credentials};
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{ClusterId, Identity};

use crate::load::Store;
use crate::programs::{Process, command};

const NODES: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    nodes: Vec<Process>,
    addresses: Vec<SocketAddr>,
    credentials: Credentials,
}

impl Cluster {
    /// Starts them, and waits until a write succeeds.
    pub async fn start(program: &Path, dir: &Path, workers: Option<u32>) -> Result<Self> {
        let name = ClusterId::new("versus")?;
        let authority = Authority::create(name.clone())?;
        let certs = dir.join("certs");
        authority.write(&certs)?;
        let validity = Duration::from_secs(7 * 86_400);
        for id in 1..=NODES {
            authority
                .issue(&Identity::node(name.clone(), id), &[], validity)?
                .write(&certs)?;
        }
        let credentials = authority.credentials(&Identity::client(name, "versus")?)?;
        // All are held until all are found.
        let sockets: Vec<UdpSocket> = (0..NODES)
            .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()?;
        let addresses: Vec<SocketAddr> = sockets
            .iter()
            .map(UdpSocket::local_addr)
            .collect::<Result<_, _>>()?;
        drop(sockets);
        let peers: Vec<String> = (1..)
            .zip(&addresses)
            .map(|(id, address)| format!("{id}={address}"))
            .collect();
        let mut nodes = Vec::new();
        for (id, address) in (1..).zip(&addresses) {
            let dir = dir.join(format!("node-{id}"));
            let mut command = command(program, "QUORATE");
            command
                .env("QUORATE_RUN_DIR", &dir)
                .arg("serve")
                .args(["--cluster", "versus", "--node-id", &id.to_string()])
                .args(["--listen", &address.to_string(), "--peers", &peers.join(",")])
                .arg("--certs")
                .arg(&certs)
                .arg("--data-dir")
                .arg(dir.join("data"));
            if let Some(workers) = workers {
                command.args(["--workers", &workers.to_string()]);
            }
            nodes.push(Process::start(command, &dir)?);
        }
        let mut cluster = Self {
            nodes,
            addresses,
            credentials,
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// So many connections.
    pub async fn connect(&self, count: usize) -> Result<Vec<Store>> {
        let mut stores = Vec::new();
        for _ in 0..count {
            let client = self.client()?;
            client.put("bench/ready", "").await?;
            stores.push(Store::Quorate(client));
        }
        Ok(stores)
    }

    fn client(&self) -> Result<Client> {
        let transport = QuicTransport::bind(None, &self.credentials, QuicSettings::default())?;
        let endpoints: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        Ok(Client::connect(endpoints, transport, Limits::default())?)
    }

    async fn ready(&mut self) -> Result<()> {
        let client = self.client()?.with_deadline(Duration::from_millis(500));
        let begun = Instant::now();
        loop {
            let last = match client.put("bench/ready", "").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            self.nodes.iter_mut().try_for_each(Process::check)?;
            if begun.elapsed() > PATIENCE {
                bail!("quorate did not serve within {PATIENCE:?}: {last}");
            }
        }
    }
}
