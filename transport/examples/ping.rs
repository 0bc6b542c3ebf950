//! How fast are messages over QUIC on this machine?
//!
//! Round trips of one small message, messages with many outstanding, bulk, and the round trip while bulk
//! fills the link. `cargo run --release -p quorate-transport --example ping -- [datagram_bytes_max]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_transport::certs::Authority;
use quorate_transport::quic::{QuicSettings, QuicTransport};
use quorate_transport::{Class, ClusterId, Identity, Peer, Stream, Transport};

type Error = Box<dyn std::error::Error + Send + Sync>;

const WARM_UP: usize = 2_000;
const ROUND_TRIPS: usize = 20_000;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut settings = QuicSettings::default();
    if let Some(bytes) = std::env::args().nth(1) {
        settings.datagram_bytes_max = bytes.parse()?;
    }
    println!("datagrams of up to {} bytes", settings.datagram_bytes_max);
    let cluster = ClusterId::new("ping")?;
    let authority = Authority::create(cluster.clone())?;
    let start = |id| -> Result<Arc<QuicTransport>, Error> {
        let credentials = authority.credentials(&Identity::node(cluster.clone(), id))?;
        let listen = "127.0.0.1:0".parse()?;
        Ok(QuicTransport::bind(Some(listen), &credentials, settings.clone())?)
    };
    let (one, two) = (start(1)?, start(2)?);
    let address = two.local_address().ok_or("no address")?.try_into()?;
    let peer = Peer {
        node_id: Some(2),
        address,
    };
    tokio::spawn(answer(Arc::clone(&two)));

    let begun = Instant::now();
    let stream = one.open(&peer, Class::Control).await?;
    println!("connect: {:?}", begun.elapsed());
    drop(stream);
    // Let the path's MTU be found first.
    tokio::time::sleep(Duration::from_millis(500)).await;

    round_trips(&*one, &peer, "one outstanding", ROUND_TRIPS).await?;
    outstanding(&*one, &peer, 64).await?;
    outstanding(&*one, &peer, 512).await?;
    requests(Arc::clone(&one), &peer).await?;
    bulk(&*one, &peer).await?;
    let filling = fill(&*one, &peer).await?;
    round_trips(&*one, &peer, "one outstanding, link full of bulk", 3_000).await?;
    let filled = filling.await??;
    println!("bulk meanwhile: {} MB", filled / 1_000_000);
    one.shutdown().await;
    two.shutdown().await;
    Ok(())
}

/// Sends back what is no bulk.
async fn answer(transport: Arc<QuicTransport>) {
    while let Some(incoming) = transport.accept().await {
        tokio::spawn(async move {
            let mut stream = incoming.stream;
            let mut messages = Vec::new();
            while let Ok(1..) = stream.receiver.receive_many(&mut messages).await {
                if incoming.class == Class::Bulk {
                    messages.clear();
                } else if stream.sender.send_all(&mut messages).await.is_err() {
                    return;
                }
            }
            let _ = stream.sender.finish().await;
        });
    }
}

fn message() -> Bytes {
    Bytes::from_static(&[7; 256])
}

async fn round_trips(transport: &dyn Transport, peer: &Peer, what: &str, count: usize) -> Result<(), Error> {
    let mut stream = transport.open(peer, Class::Control).await?;
    let mut times = Vec::with_capacity(count);
    for n in 0..count + WARM_UP {
        let begun = Instant::now();
        stream.sender.send(message()).await?;
        stream.receiver.receive().await?;
        if n >= WARM_UP {
            times.push(begun.elapsed());
        }
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: p50 {:?}, p99 {:?}, p99.9 {:?}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
    Ok(())
}

async fn outstanding(transport: &dyn Transport, peer: &Peer, window: usize) -> Result<(), Error> {
    const COUNT: usize = 300_000;
    let Stream {
        mut sender,
        mut receiver,
    } = transport.open(peer, Class::Append).await?;
    sender.send_all(&mut vec![message(); window]).await?;
    let begun = Instant::now();
    let (mut received, mut messages, mut batches) = (0, Vec::new(), 0);
    while received < COUNT {
        received += receiver.receive_many(&mut messages).await?;
        batches += 1;
        sender.send_all(&mut messages).await?;
    }
    let rate = received as f64 / begun.elapsed().as_secs_f64();
    let batch = received as f64 / f64::from(batches);
    println!("{window} outstanding on a stream: {rate:.0} messages/s, {batch:.1} a batch");
    Ok(())
}

/// A stream for each request, as clients do where they have no session stream.
async fn requests(transport: Arc<QuicTransport>, peer: &Peer) -> Result<(), Error> {
    const COUNT: usize = 1_000;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (transport, peer) = (Arc::clone(&transport), peer.clone());
        tasks.spawn(async move {
            for _ in 0..COUNT {
                let mut stream = transport.open(&peer, Class::Client).await?;
                stream.sender.send(message()).await?;
                stream.sender.finish().await?;
                stream.receiver.receive().await?;
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let rate = (32 * COUNT) as f64 / begun.elapsed().as_secs_f64();
    println!("32 outstanding, a stream each: {rate:.0} requests/s");
    Ok(())
}

async fn bulk(transport: &dyn Transport, peer: &Peer) -> Result<(), Error> {
    const CHUNKS: usize = 1_000;
    let chunk = Bytes::from(vec![1; 1 << 20]);
    let mut stream = transport.open(peer, Class::Bulk).await?;
    let begun = Instant::now();
    for _ in 0..CHUNKS {
        stream.sender.send(chunk.clone()).await?;
    }
    stream.sender.finish().await?;
    stream.receiver.receive().await?;
    let rate = CHUNKS as f64 * 1.048_576 / begun.elapsed().as_secs_f64();
    println!("bulk: {rate:.0} MB/s");
    Ok(())
}

/// Fills the link until two seconds have passed.
async fn fill(
    transport: &dyn Transport,
    peer: &Peer,
) -> Result<tokio::task::JoinHandle<Result<usize, Error>>, Error> {
    let mut stream = transport.open(peer, Class::Bulk).await?;
    Ok(tokio::spawn(async move {
        let chunk = Bytes::from(vec![1; 1 << 20]);
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < Duration::from_secs(2) {
            stream.sender.send(chunk.clone()).await?;
            sent += chunk.len();
        }
        Ok(sent)
    }))
}
