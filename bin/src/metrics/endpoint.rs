//! Where Prometheus fetches metrics: as much of HTTP/1.1 as that takes.
//!
//! A connection asks once and is closed. The exporter's own server holds each connection for as long as its peer likes,
//! and as many as come: a scraper that leaves them open would take the node's descriptors.
//!
//! Always: no more than [`CONNECTIONS_MAX`] connections are held, and none longer than [`PATIENCE`] has it; a new one
//! displaces the oldest, so that silent ones keep nobody from an answer.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Some scrapers, and people who look.
const CONNECTIONS_MAX: usize = 16;

/// How long a connection is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until its request is here.
    head: Duration,
    /// Until it has taken its answer in.
    answer: Duration,
}

/// Who takes its answer in has as long as Prometheus waits for it.
const PATIENCE: Patience = Patience {
    head: Duration::from_secs(5),
    answer: Duration::from_secs(10),
};

/// More than any scraper sends: its request line and its headers.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Before the next try, after a connection could not be accepted: without descriptors each try fails at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often samples of histograms are put into their buckets, which else happens at a scrape alone.
const UPKEEP: Duration = Duration::from_secs(5);

/// The endpoint; it ends when it is dropped, with its connections.
#[derive(Debug)]
pub(super) struct Endpoint {
    _task: AbortOnDropHandle<()>,
}

impl Endpoint {
    /// Answers who comes to the listener. Must be called inside a runtime.
    pub(super) fn open(listener: std::net::TcpListener, page: PrometheusHandle) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let task = tokio::spawn(run(listener, page));
        Ok(Self {
            _task: AbortOnDropHandle::new(task),
        })
    }
}

async fn run(listener: TcpListener, page: PrometheusHandle) {
    let mut connections = Connections::default();
    let mut upkeep = interval(UPKEEP);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let page = page.clone();
                    connections.take(async move { converse(stream, PATIENCE, move || page.render()).await }).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection for metrics was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            () = connections.ended() => {}
            _ = upkeep.tick() => page.run_upkeep(),
        }
    }
}

/// Those that are held, the oldest first. Dropped, all end.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Connections {
    /// Takes one more, in the place of the oldest where there is none free.
    async fn take(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.order.retain(|held| !held.is_finished());
        while self.tasks.len() >= CONNECTIONS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                oldest.abort();
            }
            self.tasks.join_next().await;
        }
        self.order.push_back(self.tasks.spawn(connection));
    }

    /// Waits for the next one to end; for ever while there is none.
    async fn ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }
}

/// One request and its answer. Who breaks off, or is too slow, gets none.
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    patience: Patience,
    page: impl FnOnce() -> String + Send + 'static,
) {
    let Ok(Ok(asked)) = timeout(patience.head, ask(&mut stream)).await else {
        return;
    };
    // The page is made on a thread of its own: a worker of the node has other things to do.
    let answer = match asked {
        Asked::Metrics { body } => match tokio::task::spawn_blocking(page).await {
            Ok(page) => answer("200 OK", &page, body),
            Err(_) => answer("500 Internal Server Error", "", true),
        },
        Asked::Health { body } => answer("200 OK", "OK", body),
        Asked::Nothing(status) => answer(status, "", true),
    };
    let written = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    // Who is gone needs no answer.
    let _ = timeout(patience.answer, written).await;
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// `body`: it is to come, and not its length alone.
    Metrics {
        body: bool,
    },
    Health {
        body: bool,
    },
    /// Nothing that there is: the status to answer with.
    Nothing(&'static str),
}

/// Reads a request to the end of its head.
async fn ask(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Asked> {
    let mut head = Vec::new();
    let mut limited = stream.take(HEAD_BYTES_MAX as u64);
    while !ends(&head) {
        if limited.read_buf(&mut head).await? == 0 {
            return match limited.limit() {
                0 => Ok(Asked::Nothing("431 Request Header Fields Too Large")),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
    Ok(asked(&head))
}

/// Whether the empty line after the headers is there.
fn ends(head: &[u8]) -> bool {
    let holds = |end: &[u8]| head.windows(end.len()).any(|part| part == end);
    holds(b"\r\n\r\n") || holds(b"\n\n")
}

fn asked(head: &[u8]) -> Asked {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default().trim_end();
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Asked::Nothing("400 Bad Request");
    };
    if !version.starts_with("HTTP/1.") {
        return Asked::Nothing("505 HTTP Version Not Supported");
    }
    let body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return Asked::Nothing("405 Method Not Allowed"),
    };
    // Prometheus adds parameters where its configuration says so; they change nothing.
    match target.split('?').next() {
        Some("/metrics") => Asked::Metrics { body },
        Some("/health") => Asked::Health { body },
        _ => Asked::Nothing("404 Not Found"),
    }
}

fn answer(status: &str, body: &str, whole: bool) -> String {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    if whole { head + body } else { head }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    /// The answer to what was sent, as far as there is one.
    async fn told(sent: &[u8], patience: Patience) -> String {
        let (mut here, there) = tokio::io::duplex(1 << 20);
        here.write_all(sent).await.unwrap();
        converse(there, patience, || "a_total 1\n".to_owned()).await;
        let mut answer = String::new();
        here.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_is_answered_by_what_it_asks_for() {
        let long = format!("GET /metrics HTTP/1.1\r\nx: {}", "y".repeat(HEAD_BYTES_MAX));
        for (request, status, body) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                "200 OK",
                "a_total 1\n",
            ),
            ("GET /metrics?name=x HTTP/1.1\r\n\r\n", "200 OK", "a_total 1\n"),
            ("GET /metrics HTTP/1.0\n\n", "200 OK", "a_total 1\n"),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK", ""),
            ("GET /health HTTP/1.1\r\n\r\n", "200 OK", "OK"),
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found", ""),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", ""),
            (
                "GET /metrics HTTP/2\r\n\r\n",
                "505 HTTP Version Not Supported",
                "",
            ),
            ("\r\n\r\n", "400 Bad Request", ""),
            (&long, "431 Request Header Fields Too Large", ""),
        ] {
            let answer = told(request.as_bytes(), PATIENCE).await;
            let (head, told) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{request}: {head}"
            );
            assert_eq!(told, body, "{request}");
        }
        let head = told(b"HEAD /metrics HTTP/1.1\r\n\r\n", PATIENCE).await;
        assert!(head.contains("Content-Length: 10\r\n"), "{head}");
    }

    #[tokio::test]
    async fn who_says_nothing_or_half_of_it_gets_no_answer_and_is_closed_in_time() {
        let hasty = Patience {
            head: Duration::from_millis(20),
            ..PATIENCE
        };
        for sent in ["", "GET /metrics HTTP/1.1\r\n"] {
            let begun = Instant::now();
            assert_eq!(told(sent.as_bytes(), hasty).await, "");
            assert!(begun.elapsed() >= hasty.head, "{sent:?}");
        }
    }

    #[tokio::test]
    async fn who_does_not_take_the_answer_in_is_closed_in_time() {
        let (mut here, there) = tokio::io::duplex(64);
        here.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        let hasty = Patience {
            answer: Duration::from_millis(20),
            ..PATIENCE
        };
        converse(there, hasty, || "x".repeat(1_000)).await;
        assert!(begun.elapsed() >= hasty.answer);
    }

    /// The story: the exporter's server held whatever came, and the node had no descriptors left for its files.
    #[tokio::test]
    async fn connections_that_say_nothing_are_few_and_keep_nobody_from_an_answer() {
        let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let page = PrometheusBuilder::new().build_recorder().handle();
        let _endpoint = Endpoint::open(listener, page).unwrap();
        let mut silent = Vec::new();
        for _ in 0..64 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut scrape = TcpStream::connect(address).await.unwrap();
        scrape.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        scrape.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        // The scrape came last: of those before it, all that are not held were closed by then.
        let mut held = 0;
        for stream in &mut silent {
            let closed = timeout(Duration::from_millis(1), stream.read_u8()).await;
            held += usize::from(closed.is_err());
        }
        assert!(held < CONNECTIONS_MAX, "{held} are held, and the scrape was");
    }
}
