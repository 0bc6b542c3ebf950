//! What names stand for, asked beside everything else.
//!
//! Always: about one name at most one question is under way, however often it is asked again; whoever waits for one
//! name waits for no other; an answer that comes when nobody waits any more serves whoever asks next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::names::{Answer, Question};
use super::shared::Shared;
use crate::{Address, Host, HostName};

/// How long an answer that came too late is kept for the next who asks. Longer than any rest between attempts, and
/// shorter than names are usually good for.
const LATE_ANSWER_KEPT: Duration = Duration::from_secs(10);

/// Where an address leads, the preferred places first and at least one; or why nowhere.
pub(super) async fn places(shared: &Arc<Shared>, address: &Address) -> Result<Vec<SocketAddr>, String> {
    let name = match address.host() {
        Host::Name(name) => name,
        Host::V4(ip) => return Ok(vec![SocketAddr::new((*ip).into(), address.port())]),
        Host::V6(ip) => return Ok(vec![SocketAddr::new((*ip).into(), address.port())]),
    };
    let within = shared.settings.resolve_timeout;
    let answer = timeout(within, ask(shared, name)).await;
    let answer =
        answer.unwrap_or_else(|_| Err(format!("no answer about the name {name} within {within:?}")))?;
    if answer.is_empty() {
        return Err(format!("the name {name} has no address"));
    }
    let place = |ip| SocketAddr::new(ip, address.port());
    Ok(answer.into_iter().map(place).collect())
}

async fn ask(shared: &Arc<Shared>, name: &HostName) -> Answer {
    let mut asked = {
        let mut questions = shared.names.questions();
        match questions.remove(name) {
            Some(Question::AnsweredLate { at, answer }) if at.elapsed() < LATE_ANSWER_KEPT => return answer,
            Some(Question::Asked(asked)) => {
                questions.insert(name.clone(), Question::Asked(asked.clone()));
                asked
            }
            Some(Question::AnsweredLate { .. }) | None => {
                let (tell, asked) = watch::channel(None);
                questions.insert(name.clone(), Question::Asked(asked.clone()));
                let looking = look_up(Arc::clone(shared), name.clone(), tell);
                shared
                    .tasks
                    .spawn(shared.closing.clone().run_until_cancelled_owned(looking));
                asked
            }
        }
    };
    // The sender is dropped without an answer only when the transport closes.
    match asked.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(answer)) => answer.clone(),
        Ok(None) | Err(_) => Err("the transport was shut down".to_owned()),
    }
}

async fn look_up(shared: Arc<Shared>, name: HostName, tell: watch::Sender<Option<Answer>>) {
    let begun = Instant::now();
    let answer = shared.names.resolver.addresses(&name).await;
    let answer = answer.map_err(|error| format!("the name {name} is not known: {error}"));
    let mut questions = shared.names.questions();
    if begun.elapsed() < shared.settings.resolve_timeout {
        questions.remove(&name);
    } else {
        let at = Instant::now();
        let answer = answer.clone();
        questions.insert(name, Question::AnsweredLate { at, answer });
    }
    drop(questions);
    // Nobody may be waiting any more.
    let _ = tell.send(Some(answer));
}
