//! `quorate member`: who belongs to the cluster.

use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::NodeId;
use quorate_kv::node::Status;
use quorate_transport::{Address, InvalidAddress};
use serde::Serialize;
use uuid::Uuid;

use crate::cli::{MemberArgs, MemberCommand};
use crate::failure::Failure;
use crate::output::{Line, Output, Report, maybe, number, table};
use crate::reach::Reached;
use crate::text::{duration, short, with_brackets};

/// Runs the command.
pub async fn run(args: MemberArgs, output: Output) -> Result<(), Failure> {
    let client = Reached::find(&args.reach)?.client()?;
    match args.command {
        MemberCommand::List => output.show(&Members::of(&leader(&client).await?)),
        MemberCommand::Add { id, address } => {
            if id == 0 {
                return Err(Failure::refused("0 is no node's id; the first is 1"));
            }
            let address: Address = address
                .parse()
                .map_err(|error: InvalidAddress| Failure::refused(with_brackets(error).to_string()))?;
            let added = client.add_learner(NodeId::new(id), address.as_str()).await;
            added.map_err(not_changed)?;
            let status = leader(&client).await;
            let line = added_line(id, &address, status.as_ref().ok());
            show(status, output, line)
        }
        MemberCommand::Promote { id } => {
            known(&client, id).await?;
            client.promote(NodeId::new(id)).await.map_err(not_changed)?;
            done(&client, output, format!("node {id} has a vote")).await
        }
        MemberCommand::Remove { id } => {
            let was_member = is_member(&leader(&client).await?, id);
            // Also of one that is none, as far as the node knows that was asked: the leader decides, and whom it does not
            // know is out. So a removal that is given again ends well.
            client.remove(NodeId::new(id)).await.map_err(not_changed)?;
            let line = match was_member {
                true => format!(
                    "node {id} is out of the cluster, and its directory of no more use; a new node has better a new id, and \
                     under this one needs an empty directory"
                ),
                false => format!("node {id} is no member of the cluster: nothing is to be done"),
            };
            done(&client, output, line).await
        }
        MemberCommand::MoveLeader { id } => {
            if let Some(id) = id {
                known(&client, id).await?;
            }
            client
                .move_leader(id.map(NodeId::new))
                .await
                .map_err(not_changed)?;
            let status = leader(&client).await;
            let asked = id.map(NodeId::new);
            let now = status.as_ref().map_or(asked, |status| status.leader);
            let line = match (now, &status) {
                (Some(now), _) => format!("node {now} leads"),
                (None, Ok(_)) => "nobody leads".to_owned(),
                (None, Err(_)) => "another node leads".to_owned(),
            };
            show(status, output, line)
        }
    }
}

/// The status that the leader tells; that of any node while there is none.
async fn leader(client: &Client) -> Result<Status, Failure> {
    let status = client.status().await?;
    if status.leader == Some(status.node) {
        return Ok(status);
    }
    let mut all = client.statuses().await.into_values().filter_map(Result::ok);
    Ok(all
        .find(|status| status.leader == Some(status.node))
        .unwrap_or(status))
}

async fn known(client: &Client, id: u64) -> Result<(), Failure> {
    match is_member(&leader(client).await?, id) {
        true => Ok(()),
        false => Err(
            Failure::not_found(format!("node {id} is no member of the cluster"))
                .hint("quorate member list shows the members"),
        ),
    }
}

fn is_member(status: &Status, id: u64) -> bool {
    status.members.iter().any(|member| member.id.number() == id)
}

/// What is said of a node that was added, or was there already, as far as its leader knows it.
fn added_line(id: u64, address: &Address, status: Option<&Status>) -> String {
    let mut members = status.into_iter().flat_map(|status| &status.members);
    match members.any(|member| member.id.number() == id && member.voter) {
        true => format!("node {id} at {address} is a member with a vote already: nothing is to be done"),
        false => format!("node {id} at {address} receives the log; promote it once it has caught up"),
    }
}

/// How a change of members that was not told to be done is told.
fn not_changed(error: Error) -> Failure {
    match &error {
        Error::OutcomeUnknown(_) => Failure::from(error).hint(
            "quorate member list shows what became of it; the same command, given again, finishes what was begun",
        ),
        Error::MemberNotReady { reason, .. } => Failure::unavailable(reason.clone()),
        _ => error.into(),
    }
}

async fn done(client: &Client, output: Output, line: String) -> Result<(), Failure> {
    show(leader(client).await, output, line)
}

/// Shows what was changed. The status alone comes from another request: where that one failed, it is missing, and the
/// change was made all the same.
fn show(status: Result<Status, Failure>, output: Output, line: String) -> Result<(), Failure> {
    let (changed, missing) = changed(status, line);
    if let Some(missing) = missing {
        output.warn(missing);
    }
    output.show(&changed)
}

/// What is shown of a change, and what is said of a status that is missing.
fn changed(status: Result<Status, Failure>, line: String) -> (Line<Option<Members>>, Option<String>) {
    match status {
        Ok(status) => (Line::new(Some(Members::of(&status)), line).listing(MEMBERS), None),
        Err(failure) => {
            let missing = format!("warning: the change was made; the members cannot be shown: {failure}");
            (Line::new(None, line).listing(MEMBERS), Some(missing))
        }
    }
}

/// The list in [`Members`].
const MEMBERS: &str = "members";

/// The members, as one node knows them.
#[derive(Debug, Serialize)]
struct Members {
    cluster: String,
    cluster_uuid: Option<Uuid>,
    leader: Option<u64>,
    members: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    id: u64,
    address: String,
    /// Which directory it is; nothing for one that has not appeared yet.
    uuid: Option<Uuid>,
    voter: bool,
    leader: bool,
    lag_entries: Option<u64>,
    round_trip_micros: Option<u64>,
}

impl Members {
    fn of(status: &Status) -> Self {
        let members = status.members.iter().map(|member| Member {
            id: member.id.number(),
            address: member.address.clone(),
            uuid: member.uuid,
            voter: member.voter,
            leader: status.leader == Some(member.id),
            lag_entries: member.lag_entries,
            round_trip_micros: member
                .round_trip
                .and_then(|time| u64::try_from(time.as_micros()).ok()),
        });
        Self {
            cluster: status.cluster.clone(),
            cluster_uuid: status.cluster_uuid,
            leader: status.leader.map(NodeId::number),
            members: members.collect(),
        }
    }
}

impl Report for Members {
    fn text(&self) -> String {
        let mut table = table([
            "node",
            "address",
            "directory",
            "vote",
            "leads",
            "behind",
            "round trip",
        ]);
        for member in &self.members {
            let yes = |yes: bool| if yes { "yes" } else { "" }.into();
            let round_trip = member
                .round_trip_micros
                .map(|m| duration(std::time::Duration::from_micros(m)));
            table.add_row(vec![
                number(member.id),
                (&member.address).into(),
                member.uuid.map_or_else(|| "not met".to_owned(), short).into(),
                yes(member.voter),
                yes(member.leader),
                maybe(member.lag_entries),
                maybe(round_trip),
            ]);
        }
        format!("cluster {}\n{table}", self.cluster)
    }

    fn list(&self) -> Option<&'static str> {
        Some(MEMBERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;
    use quorate_kv::client::OutcomeUnknown;

    #[test]
    fn a_change_whose_outcome_is_unknown_says_where_to_look() {
        let reason = "its answer was lost".to_owned();
        let failure = not_changed(OutcomeUnknown { node: None, reason }.into());
        assert_eq!(failure.kind(), Kind::UnknownOutcome);
        assert!(failure.to_string().contains("quorate member list"), "{failure}");
        assert!(!failure.to_string().contains("the write"), "{failure}");
    }

    /// The story: exit code 4, "nothing was changed", after a node was removed and its removal took the connection along.
    #[test]
    fn a_change_that_was_made_is_told_though_nobody_shows_the_members_any_more() {
        let line = "node 2 is out of the cluster";
        let silence = Failure::unavailable("nobody answered");
        let (changed, missing) = changed(Err(silence.clone()), line.to_owned());
        assert_eq!(changed.text(), line);
        assert_eq!(serde_json::to_string(&changed).unwrap(), "null");
        assert!(missing.unwrap().contains("nobody answered"));
        show(
            Err(silence),
            Output::new(crate::output::Format::Table),
            line.to_owned(),
        )
        .expect("the change was made");
    }
}
