//! Taking in the streams that peers and clients open.

use std::sync::Arc;

use quorate_transport::{Class, Transport};

use super::clients;
use super::front::Front;
use crate::raft::RaftNode;
use crate::tasks::Tasks;

/// Accepts streams until the transport is shut down, and serves each in a task of its own.
pub(super) async fn accept(
    front: Arc<Front>,
    raft: Arc<RaftNode>,
    transport: Arc<dyn Transport>,
    tasks: Tasks,
) {
    while let Some(incoming) = transport.accept().await {
        match incoming.class {
            Class::Client => {
                let serving = clients::serve(front.clone(), incoming.from, incoming.stream);
                tasks.spawn("client-stream", serving);
            }
            Class::Control | Class::Append | Class::Bulk => {
                let raft = Arc::clone(&raft);
                let serving = async move { raft.serve(incoming).await };
                tasks.spawn("peer-stream", serving);
            }
        }
    }
}
