//! What nodes say to each other. `docs/formats/peers.md` lists the bytes.
//!
//! Control messages are small and encoded whole. An append message carries its entries' payloads behind a
//! header, as they stand in the log, so that neither side copies them.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::log_store::{decode_entry, encode_entry};
use super::types::{LogId, SnapshotMeta, TypeConfig, Vote};
use crate::log::LogEntry;
use crate::model::{self, DecodeError, LogIndex, LogPosition, StateHash};

/// A request on a control stream; each gets one [`ControlResponse`], in order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ControlRequest {
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Heartbeat(Heartbeat),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// From a follower that serves a linearizable read: the index that the read must have applied.
    ReadIndex,
    /// From a voter that found the process ended which led by this vote: has the receiver found the same?
    LeaderEnded {
        vote: Vote,
    },
    /// What the receiver's state hashed to behind the agreed entries applied last.
    StateHashes,
}

/// An append message without entries.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Heartbeat {
    pub vote: Vote,
    pub prev: Option<LogId>,
    pub commit: Option<LogId>,
    pub confirmed: Option<Confirmed>,
}

/// What a leader's quorum has confirmed since the receiver's answers on the same stream.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Confirmed {
    /// So many of them had come when the quorum was asked.
    pub answers: u64,
    /// Everything that was acknowledged anywhere before the last of them left stands at or below this.
    pub index: LogIndex,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ControlResponse {
    Vote(VoteResponse<TypeConfig>),
    Append(StreamAppendResult<TypeConfig>),
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    ReadIndex(Option<LogIndex>),
    /// The leader could not confirm that it leads; ask again.
    NotLeader,
    /// The node has stopped; it serves no more.
    Stopped(String),
    /// The sender is not who the message says.
    Refused(String),
    /// Whether the receiver, by its own evidence, has found the process of the leader that it follows ended, and where its
    /// own log ends.
    LeaderEnded {
        ended: bool,
        last: Option<LogId>,
    },
    StateHashes(Vec<(LogPosition, StateHash)>),
}

/// The first message of a bulk stream. It is answered by [`SnapshotAnswer::From`]; the chunks from there on follow, then
/// the sender finishes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    /// What all its chunks bear.
    pub tag: u64,
}

/// The receiver's answers to a snapshot: to its header, and to the whole.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SnapshotAnswer {
    Installed(SnapshotResponse<TypeConfig>),
    Failed(String),
    /// The chunks before that number are here: to the header.
    From(u32),
}

#[derive(Serialize, Deserialize)]
struct AppendHeader {
    vote: Vote,
    prev: Option<LogId>,
    commit: Option<LogId>,
    /// Position and payload size of each entry, in order.
    entries: Vec<(LogPosition, u32)>,
}

/// Encodes an append message: 4 bytes of header size (little-endian), the header, the payloads.
pub(crate) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let records: Vec<LogEntry> = request.entries.iter().map(encode_entry).collect();
    let header = AppendHeader {
        vote: request.vote,
        prev: request.prev_log_id,
        commit: request.leader_commit,
        entries: records
            .iter()
            .map(|r| (r.position, u32::try_from(r.payload.len()).unwrap_or(u32::MAX)))
            .collect(),
    };
    let payloads: usize = records.iter().map(|r| r.payload.len()).sum();
    let mut bytes = Vec::with_capacity(64 + 24 * records.len() + payloads);
    bytes.extend_from_slice(&[0; 4]);
    model::encode_onto(&header, &mut bytes);
    let header_size = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&header_size.to_le_bytes());
    for record in &records {
        bytes.extend_from_slice(&record.payload);
    }
    bytes.into()
}

/// Decodes an append message; the entries share its bytes.
pub(crate) fn decode_append(bytes: &Bytes) -> Result<AppendEntriesRequest<TypeConfig>, DecodeError> {
    let malformed = |reason: &str| DecodeError::Malformed {
        reason: reason.to_owned(),
    };
    let size = bytes.first_chunk::<4>().ok_or(DecodeError::Empty)?;
    let header_end = (u32::from_le_bytes(*size) as usize).saturating_add(4);
    let header = bytes
        .get(4..header_end)
        .ok_or_else(|| malformed("the header is cut short"))?;
    let header: AppendHeader = model::decode(header)?;
    let mut start = header_end;
    let mut entries = Vec::with_capacity(header.entries.len());
    for (position, size) in header.entries {
        let end = start.saturating_add(size as usize);
        if end > bytes.len() {
            return Err(malformed("an entry's payload is cut short"));
        }
        let entry = decode_entry(LogEntry {
            position,
            payload: bytes.slice(start..end),
        })
        .map_err(|e| DecodeError::Malformed {
            reason: e.to_string(),
        })?;
        entries.push(entry);
        start = end;
    }
    if start != bytes.len() {
        return Err(DecodeError::TrailingBytes {
            count: bytes.len() - start,
        });
    }
    Ok(AppendEntriesRequest {
        vote: header.vote,
        prev_log_id: header.prev,
        entries,
        leader_commit: header.commit,
    })
}
