//! Three `etcd`, and what is asked of them: the few messages of etcd's gRPC that the loads need.
//!
//! Over tonic, as the crate etcd-client is, with these messages written out: that crate generates all of etcd's when it is
//! built, for which whoever builds this workspace would need `protoc`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use quorate_transport::certs::Authority;
use quorate_transport::{ClusterId, Host, Identity};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};
use tonic_prost::ProstCodec;

use crate::load::Store;
use crate::programs::{Process, command};

const NODES: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    nodes: Vec<Process>,
    clients: Vec<u16>,
    tls: ClientTlsConfig,
}

impl Cluster {
    /// Starts them, and waits for a leader.
    pub async fn start(program: &Path, dir: &Path) -> Result<Self> {
        let certs = dir.join("certs");
        let name = ClusterId::new("versus")?;
        let authority = Authority::create(name.clone())?;
        authority.write(&certs)?;
        // One certificate for all of them, and for us: it may serve and ask.
        let issued = authority.issue(
            &Identity::node(name, 1),
            &[Host::V4(Ipv4Addr::LOCALHOST)],
            Duration::from_secs(7 * 86_400),
        )?;
        let (certificate, key) = issued.write(&certs)?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority.certificate_pem()))
            .identity(TlsIdentity::from_pem(issued.certificate_pem(), issued.key_pem()))
            .domain_name("127.0.0.1");
        // All are held until all are found.
        let listeners: Vec<TcpListener> = (0..2 * NODES)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()?;
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr()?.port()))
            .collect::<Result<_>>()?;
        drop(listeners);
        let (clients, peers) = ports.split_at(NODES as usize);
        let url = |port: &u16| format!("https://127.0.0.1:{port}");
        let members: Vec<String> = (1..)
            .zip(peers)
            .map(|(id, port)| format!("node-{id}={}", url(port)))
            .collect();
        let members = members.join(",");
        let mut nodes = Vec::new();
        for ((id, client), peer) in (1..).zip(clients).zip(peers) {
            let dir = dir.join(format!("node-{id}"));
            let mut command = command(program, "ETCD");
            command.args(["--name", &format!("node-{id}"), "--initial-cluster", &members]);
            for (flag, port) in [
                ("--listen-client-urls", client),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer),
                ("--initial-advertise-peer-urls", peer),
            ] {
                command.args([flag, &url(port)]);
            }
            let authority: PathBuf = certs.join("ca.crt");
            for (flag, file) in [
                ("--trusted-ca-file", &authority),
                ("--cert-file", &certificate),
                ("--key-file", &key),
                ("--peer-trusted-ca-file", &authority),
                ("--peer-cert-file", &certificate),
                ("--peer-key-file", &key),
            ] {
                command.arg(flag).arg(file);
            }
            command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
            command.arg("--data-dir").arg(dir.join("data"));
            nodes.push(Process::start(command, &dir)?);
        }
        let mut cluster = Self {
            nodes,
            clients: clients.to_vec(),
            tls,
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// So many connections to the leader.
    pub async fn connect(&self, count: usize) -> Result<Vec<Store>> {
        for port in &self.clients {
            let status = self.client(*port)?.status().await?;
            if status
                .header
                .is_some_and(|header| header.member_id == status.leader)
            {
                let client = |_| Ok(Store::Etcd(self.client(*port)?));
                return (0..count).map(client).collect();
            }
        }
        bail!("no etcd leads")
    }

    fn client(&self, port: u16) -> Result<Client> {
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?;
        let endpoint = endpoint.tls_config(self.tls.clone())?.tcp_nodelay(true);
        Ok(Client {
            channel: endpoint.connect_lazy(),
        })
    }

    async fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut leaders = BTreeSet::new();
            let mut last = None;
            for port in &self.clients {
                match self.client(*port)?.status().await {
                    Ok(status) => drop(leaders.insert(status.leader)),
                    Err(error) => last = Some(error),
                }
            }
            if last.is_none() && leaders.len() == 1 && !leaders.contains(&0) {
                return Ok(());
            }
            self.nodes.iter_mut().try_for_each(Process::check)?;
            if begun.elapsed() > PATIENCE {
                let last = last.map_or("they agree on no leader".to_owned(), |error| format!("{error:#}"));
                bail!("etcd did not serve within {PATIENCE:?}: {last}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A connection.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.context("no connection")?;
        let codec = ProstCodec::default();
        let path = PathAndQuery::from_static(path);
        let answer = grpc.unary(tonic::Request::new(question), path, codec).await?;
        Ok(answer.into_inner())
    }

    pub async fn put(&self, key: &str, value: &Bytes) -> Result<()> {
        let _put: Header = self.call("/etcdserverpb.KV/Put", put(key, value)).await?;
        Ok(())
    }

    /// All of them, in one transaction.
    pub async fn put_all(&self, keys: &[String], value: &Bytes) -> Result<()> {
        let request_put = |key: &String| RequestOp {
            request_put: Some(put(key, value)),
        };
        let txn = TxnRequest {
            success: keys.iter().map(request_put).collect(),
        };
        let answer: TxnResponse = self.call("/etcdserverpb.KV/Txn", txn).await?;
        anyhow::ensure!(answer.succeeded, "a transaction without conditions failed");
        Ok(())
    }

    /// How long the value is, if there is one.
    pub async fn get(&self, key: &str) -> Result<Option<usize>> {
        let range = RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
        };
        let answer: RangeResponse = self.call("/etcdserverpb.KV/Range", range).await?;
        Ok(answer.kvs.first().map(|pair| pair.value.len()))
    }

    async fn status(&self) -> Result<StatusResponse> {
        self.call("/etcdserverpb.Maintenance/Status", StatusRequest {})
            .await
    }
}

fn put(key: &str, value: &Bytes) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.clone(),
    }
}

// Of etcd's `rpc.proto` and `kv.proto`, with their numbers; fields that are not here are skipped when they are read, and have
// their defaults when they are written: a range that is linearizable, a transaction without conditions.

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// Every answer begins with it; that to a put has nothing else that counts here.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    request_put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}
