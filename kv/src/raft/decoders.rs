//! The decoders of what nodes send each other and of what openraft keeps in the log; see [`crate::fuzzing`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use uuid::Uuid;

use super::hello::{Hello, Known, Records, Stage};
use super::log_store::{decode_entry, encode_entry};
use super::types::{
    Entry, EntryPayload, Introduced, LeaderId, LogId, Member, Membership, ProposalData, SnapshotMeta,
    StoredMembership, TypeConfig, Vote,
};
use super::wire::{
    Confirmed, ControlRequest, ControlResponse, Heartbeat, SnapshotAnswer, SnapshotHeader, decode_append,
    encode_append,
};
use crate::decoder::{Decoder, decoder_of, one_form};
use crate::identity::{ClusterUuid, MemberUuid};
use crate::log::LogEntry;
use crate::model::{LogIndex, LogPosition, LogTime, NodeId, Proposal, Term};

pub(crate) fn decoders() -> Vec<Decoder> {
    let samples = entries()
        .into_iter()
        .map(|entry| encode_entry(&entry).payload.to_vec());
    vec![
        decoder_of(
            "control request",
            &[
                ControlRequest::Vote(VoteRequest::new(vote(), Some(log_id(7)))),
                ControlRequest::PreVote(VoteRequest::new(vote(), None)),
                ControlRequest::Heartbeat(Heartbeat {
                    vote: vote(),
                    prev: Some(log_id(7)),
                    commit: Some(log_id(6)),
                    confirmed: Some(Confirmed {
                        answers: 5,
                        index: LogIndex::new(6),
                    }),
                }),
                ControlRequest::TransferLeader(TransferLeaderRequest::new(vote(), 3, Some(log_id(7)))),
                ControlRequest::ReadIndex,
                ControlRequest::LeaderEnded { vote: vote() },
                ControlRequest::StateHashes,
            ],
        ),
        decoder_of(
            "control response",
            &[
                ControlResponse::Vote(VoteResponse::new(vote(), Some(log_id(7)), true)),
                ControlResponse::Append(Ok(Some(log_id(9)))),
                ControlResponse::TransferLeader(Ok(())),
                ControlResponse::ReadIndex(Some(LogIndex::new(300))),
                ControlResponse::NotLeader,
                ControlResponse::Stopped("a full disk".to_owned()),
                ControlResponse::LeaderEnded {
                    ended: true,
                    last: Some(log_id(9)),
                },
            ],
        ),
        Decoder {
            name: "greeting",
            check: greeting,
            samples: vec![hello().encode()],
        },
        decoder_of("vote", &[vote()]),
        decoder_of("membership", &[membership()]),
        decoder_of(
            "snapshot header",
            &[SnapshotHeader {
                vote: vote(),
                meta: SnapshotMeta {
                    last_log_id: Some(log_id(300)),
                    last_membership: StoredMembership::new(Some(log_id(1)), membership()),
                },
                tag: 0x0123_4567_89ab_cdef,
            }],
        ),
        decoder_of(
            "snapshot answer",
            &[
                SnapshotAnswer::Installed(SnapshotResponse::new(vote())),
                SnapshotAnswer::Failed("a chunk is corrupt".to_owned()),
                SnapshotAnswer::From(300),
            ],
        ),
        Decoder {
            name: "append message",
            check: append,
            samples: vec![
                encode_append(&request(entries())).to_vec(),
                encode_append(&request(Vec::new())).to_vec(),
            ],
        },
        Decoder {
            name: "log entry",
            check: entry,
            samples: samples.collect(),
        },
    ]
}

/// What a greeting says reads back; the versions that it offers are the sender's own.
fn greeting(bytes: &[u8]) {
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
}

fn hello() -> Hello {
    let (member, cluster) = (
        MemberUuid::new(Uuid::from_u128(2)),
        ClusterUuid::new(Uuid::from_u128(7)),
    );
    Hello {
        node: 2,
        member,
        process: 300,
        cluster: Some(cluster),
        records: Some(Records {
            cluster,
            at: 300,
            settled: true,
        }),
        is_member: true,
        you: Known::Is(member),
        stage: Stage::Formed,
    }
}

/// Entries are carried as they are, and the message has one form.
fn append(bytes: &[u8]) {
    let decode = |bytes: &[u8]| decode_append(&Bytes::copy_from_slice(bytes));
    if let Some((request, again)) = one_form(bytes, decode, |request| encode_append(request).to_vec()) {
        assert_eq!(again.entries, request.entries);
    }
}

fn entry(bytes: &[u8]) {
    let position = LogPosition {
        term: Term::new(1),
        leader: NodeId::new(1),
        index: LogIndex::new(1),
    };
    let decode = |bytes: &[u8]| {
        let payload = Bytes::copy_from_slice(bytes);
        decode_entry(LogEntry { position, payload })
    };
    let encode = |entry: &Entry| {
        let written = encode_entry(entry);
        assert_eq!(written.position, position);
        written.payload.to_vec()
    };
    if let Some((entry, again)) = one_form(bytes, decode, encode) {
        assert_eq!(again, entry);
    }
}

fn vote() -> Vote {
    Vote {
        leader_id: LeaderId { term: 3, node_id: 2 },
        committed: true,
    }
}

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderId { term: 3, node_id: 2 }, index)
}

fn membership() -> Membership {
    let member = |id: u64| {
        let address = format!("node-{id}:7000").parse().ok();
        // One that has never taken part is among them.
        let introduced = (id != 4).then(|| Introduced {
            member: MemberUuid::new(Uuid::from_u128(u128::from(id))),
            cluster: ClusterUuid::new(Uuid::from_u128(7)),
        });
        (id, Member { address, introduced })
    };
    let nodes: BTreeMap<u64, Member> = (1..=4).map(member).collect();
    #[allow(clippy::expect_used, reason = "a sample's voters are all nodes")]
    Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).expect("every voter is a node")
}

fn entries() -> Vec<Entry> {
    let proposal = Proposal {
        stamp: LogTime::from_millis(5),
        full_at: None,
        commands: Vec::new(),
    };
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(ProposalData::encode(&proposal)),
        EntryPayload::Membership(membership()),
    ];
    let entries = (8..).zip(payloads).map(|(index, payload)| Entry {
        log_id: log_id(index),
        payload,
    });
    entries.collect()
}

fn request(entries: Vec<Entry>) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: vote(),
        prev_log_id: Some(log_id(7)),
        entries,
        leader_commit: Some(log_id(6)),
    }
}
