//! A queue of jobs and the workers that share it: each job has one owner at a time.
//!
//! A worker claims a job with a transaction whose guard says that the row is as the worker saw it: of two that try at once, one
//! gets the job.
//!
//! There are no leases yet, so the store does not notice when a worker dies. A claim therefore says until when it counts, by the
//! workers' own clocks, which must agree to a few seconds; after that anyone may claim the job. A worker that was only slow learns
//! this when it finishes: the row has changed since its claim, and the job is not its own any more. The work may then be done twice,
//! so a job must be safe to repeat.
//!
//! ```sh
//! cargo run -p quorate-kv --example job_queue
//! ```

use quorate_kv::client::Error;
use quorate_kv::model::{Guard, Revision};
use quorate_kv::table::Table;
use quorate_kv::{Client, Node};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Job {
    command: String,
    owner: Option<String>,
    /// In seconds since 1970; 0 for a job that nobody has claimed.
    claimed_until: u64,
}

/// By number, the oldest first.
const JOBS: Table<u64, Job> = Table::new("jobs/");

/// A job that is ours, as long as nobody has written its row since this revision.
struct Claim {
    number: u64,
    job: Job,
    revision: Revision,
}

/// Takes the oldest job that nobody holds.
async fn claim(client: &Client, worker: &str, now: u64) -> Result<Option<Claim>, Error> {
    for entry in client.table(JOBS).range(..).await? {
        let (number, mut job) = (entry.key, entry.value);
        if job.claimed_until > now {
            continue;
        }
        job.owner = Some(worker.to_owned());
        job.claimed_until = now + 30;
        let unchanged = Guard::unchanged(JOBS.key(number), entry.mod_revision);
        let answer = client.txn().when(unchanged).op(JOBS.put(number, &job)?).await?;
        if answer.succeeded {
            let revision = answer.revision;
            return Ok(Some(Claim {
                number,
                job,
                revision,
            }));
        }
        // Another worker was faster: on to the next job.
    }
    Ok(None)
}

/// Removes a job that is done. False where it was not ours any more.
async fn finish(client: &Client, claim: &Claim) -> Result<bool, Error> {
    let still_ours = Guard::unchanged(JOBS.key(claim.number), claim.revision);
    let remove = JOBS.delete(claim.number);
    // Both in one transaction: a count that is never wrong.
    let done = client
        .txn()
        .when(still_ours)
        .op(remove)
        .add("jobs done", 1)
        .await?;
    Ok(done.succeeded)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::builder().data_dir(dir.path()).start().await?;
    let client = node.client();
    for (number, command) in [(1, "send mail"), (2, "make thumbnails")] {
        let job = Job {
            command: command.to_owned(),
            owner: None,
            claimed_until: 0,
        };
        client.table(JOBS).put(number, &job).await?;
    }

    // Two workers at once never get the same job.
    let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
    let (ann, bob) = tokio::try_join!(claim(&client, "ann", now), claim(&client, "bob", now))?;
    let (ann, bob) = (ann.expect("there are two jobs"), bob.expect("there are two jobs"));
    println!("they have different jobs: {}", ann.number != bob.number);
    println!(
        "nothing is left for cid: {}",
        claim(&client, "cid", now).await?.is_none()
    );

    // Ann finishes. Bob hangs, and his claim ends.
    println!("ann is done: {}", finish(&client, &ann).await?);
    let later = now + 31;
    let cid = claim(&client, "cid", later).await?.expect("a claim that is over");
    println!("cid has bob's job: {}", cid.job.command == bob.job.command);

    // Bob comes back, too late.
    println!("bob is done: {}", finish(&client, &bob).await?);
    println!("cid is done: {}", finish(&client, &cid).await?);
    let done = client.get("jobs done").await?.and_then(|record| record.number());
    println!("jobs done: {done:?}");

    node.shutdown().await;
    Ok(())
}
