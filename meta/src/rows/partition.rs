//! `p/<topic id><partition index>` → who holds the partition, who leads it, and its epochs.
//!
//! Lifetime: from the creation of its topic (or of itself, when the topic grows) to the topic's deletion.
//!
//! Always: the replicas are distinct, 1 to [`Partition::REPLICAS_MAX`]; every other set is a bit mask over
//! them and the leader is a position in them, so that a row cannot even say a leader outside the replicas;
//! a row of three replicas has 22 bytes.

use quorate_kv::model::{Key, LogTime, Record, Revision, decode, encode};
use serde::{Deserialize, Serialize};

use super::{CorruptReason, CorruptRow};
use crate::ids::{BrokerId, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId};

/// A partition. Its sets are in the order of the replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partition {
    /// Its topic.
    pub topic: TopicId,
    /// Its place in the topic.
    pub index: PartitionIndex,
    /// The brokers that hold it, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The replicas that have everything that was acknowledged.
    pub isr: Vec<BrokerId>,
    /// Replicas outside the ISR that may lead without loss while the ISR is empty.
    pub eligible_leaders: Vec<BrokerId>,
    /// Former members of ISR and eligible leaders, for the last resort.
    pub last_known_leaders: Vec<BrokerId>,
    /// The leader, a member of the ISR; `None` while nobody can lead.
    pub leader: Option<BrokerId>,
    /// Rises by 1 whenever the leader is set.
    pub leader_epoch: LeaderEpoch,
    /// Rises by exactly 1 with each commit that changes the partition.
    pub partition_epoch: PartitionEpoch,
    /// Whether the leader was elected without having been in sync.
    pub recovery: Recovery,
    /// Replicas that a reassignment adds.
    pub adding: Vec<BrokerId>,
    /// Replicas that a reassignment will remove.
    pub removing: Vec<BrokerId>,
    /// When it was created, by the proposer's clock.
    pub created_at: LogTime,
    /// When the row was last written, by the proposer's clock; never before `created_at`.
    pub modified_at: LogTime,
    /// The revision that last wrote the row.
    pub revision: Revision,
}

/// Whether a partition may have lost acknowledged records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recovery {
    /// The leader was in sync when it was elected, or has recovered since.
    #[default]
    Recovered,
    /// The leader was not in sync when it was elected; it says when it has recovered.
    Recovering,
}

#[derive(Serialize, Deserialize)]
enum Stored {
    V1(StoredV1),
}

#[derive(Serialize, Deserialize)]
struct StoredV1 {
    replicas: Vec<BrokerId>,
    isr: u32,
    eligible_leaders: u32,
    last_known_leaders: u32,
    adding: u32,
    removing: u32,
    /// 0 for none, else the position in the replicas and 1.
    leader: u8,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    recovery: Recovery,
    created_at: LogTime,
    /// Milliseconds from `created_at`: one byte instead of six for a row that never changed.
    modified_after: u64,
}

impl Partition {
    /// The most replicas of one partition: the width of a mask.
    pub const REPLICAS_MAX: usize = 32;

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mask = |members: &[BrokerId]| {
            (0..).zip(&self.replicas).fold(0, |mask, (position, replica)| {
                mask | u32::from(members.contains(replica))
                    .checked_shl(position)
                    .unwrap_or(0)
            })
        };
        let position = |leader| self.replicas.iter().position(|r| *r == leader);
        let leader = self
            .leader
            .and_then(position)
            .and_then(|p| u8::try_from(p + 1).ok());
        debug_assert_eq!(self.leader.is_some(), leader.is_some(), "the leader is a replica");
        encode(&Stored::V1(StoredV1 {
            replicas: self.replicas.clone(),
            isr: mask(&self.isr),
            eligible_leaders: mask(&self.eligible_leaders),
            last_known_leaders: mask(&self.last_known_leaders),
            adding: mask(&self.adding),
            removing: mask(&self.removing),
            leader: leader.unwrap_or(0),
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            recovery: self.recovery,
            created_at: self.created_at,
            modified_after: self.modified_at.millis().saturating_sub(self.created_at.millis()),
        }))
    }

    pub(crate) fn decode(
        key: &Key,
        topic: TopicId,
        index: PartitionIndex,
        record: &Record,
    ) -> Result<Self, CorruptRow> {
        let stored = decode(&record.value).map_err(|e| CorruptRow::new(key, e))?;
        let Stored::V1(row) = stored;
        let replicas = row.replicas;
        let count = replicas.len();
        // Else a set's mask could be read in two ways. So few are compared faster than sorted.
        let twice = |at: usize| replicas[..at].contains(&replicas[at]);
        if count > Self::REPLICAS_MAX || (1..count).any(twice) {
            let max = Self::REPLICAS_MAX;
            return Err(CorruptRow::new(key, CorruptReason::Replicas { count, max }));
        }
        let outside = |field, position| {
            CorruptRow::new(
                key,
                CorruptReason::Position {
                    field,
                    position,
                    replicas: replicas.len(),
                },
            )
        };
        let members = |field, mask: u32| {
            let width = u32::BITS - mask.leading_zeros();
            if width as usize > replicas.len() {
                return Err(outside(field, width - 1));
            }
            let set = (0..width)
                .zip(&replicas)
                .filter(|(position, _)| mask & (1 << position) != 0);
            Ok(set.map(|(_, replica)| *replica).collect())
        };
        let leader = match row.leader.checked_sub(1) {
            None => None,
            Some(position) => match replicas.get(usize::from(position)) {
                Some(leader) => Some(*leader),
                None => return Err(outside("leader", position.into())),
            },
        };
        Ok(Self {
            topic,
            index,
            isr: members("isr", row.isr)?,
            eligible_leaders: members("eligible_leaders", row.eligible_leaders)?,
            last_known_leaders: members("last_known_leaders", row.last_known_leaders)?,
            adding: members("adding", row.adding)?,
            removing: members("removing", row.removing)?,
            leader,
            leader_epoch: row.leader_epoch,
            partition_epoch: row.partition_epoch,
            recovery: row.recovery,
            created_at: row.created_at,
            modified_at: LogTime::from_millis(row.created_at.millis().saturating_add(row.modified_after)),
            revision: record.mod_revision,
            replicas,
        })
    }

    /// The same brokers in the order of the replicas; those that are no replica are left out.
    pub(crate) fn in_order(&self, members: &[BrokerId]) -> Vec<BrokerId> {
        self.replicas
            .iter()
            .copied()
            .filter(|r| members.contains(r))
            .collect()
    }
}
