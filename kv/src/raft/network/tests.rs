use quorate_transport::memory::{MemoryNetwork, MemoryTransport, TokioClock};
use quorate_transport::{ClusterId, Identity};

use super::*;
use crate::env::RealDisk;
use crate::log::LogSettings;

/// A transport that bears a node's name and address.
fn transport(network: &MemoryNetwork, id: u64) -> Arc<MemoryTransport> {
    let cluster = ClusterId::new("links").expect("a legal name");
    network.transport(Identity::node(cluster, id), &format!("node-{id}"))
}

fn request() -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    }
}

/// The story: a follower's log failed, and its node ended the append stream without an answer. The stream went on
/// waiting for the next entry, and in a cluster without writes none came: the follower started anew and stayed behind
/// for ever.
#[tokio::test]
async fn an_append_stream_ends_when_the_peer_ends_it_though_there_is_nothing_more_to_send() {
    let network = MemoryNetwork::new(Arc::new(TokioClock::new(1)));
    let (one, two) = (transport(&network, 1), transport(&network, 2));
    let dir = tempfile::tempdir().expect("a directory");
    let log = Log::open(Arc::new(RealDisk), dir.path(), LogSettings::default().create()).expect("a log");
    let mut factory = NetworkFactory {
        own_id: 1,
        transport: one,
        log: log.clone(),
        stall_max: Duration::from_secs(3_600),
    };
    let member = Member {
        address: "node-2".to_owned(),
    };
    let mut link = factory.new_client(2, &member).await;
    let peer = async {
        let mut stream = two.accept().await.expect("a stream").stream;
        stream.receiver.receive().await.expect("a request");
    };
    // One request, and then nothing until the end of days.
    let input = Box::pin(stream::iter([request()]).chain(stream::pending()));
    let leader = async {
        let opened = openraft::RaftNetworkV2::stream_append(
            &mut link,
            input,
            RPCOption::new(Duration::from_secs(3_600)),
        );
        let answers = opened.await.expect("a stream");
        answers.collect::<Vec<_>>().await
    };
    let ended = env::timeout(Duration::from_secs(60), futures_util::future::join(leader, peer)).await;
    let (answers, ()) = ended.expect("the stream ends with the peer's");
    assert!(
        answers.iter().all(Result::is_err),
        "an answer that nobody gave: {answers:?}"
    );
    log.close().await.expect("a close");
}
