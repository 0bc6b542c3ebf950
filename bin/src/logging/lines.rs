//! Lines on their way to a log that may be slow, broken, full or unread: a bounded queue, and the thread that empties it.
//!
//! Whoever logs puts a line into the queue and goes on. Only the thread touches the log, so only it can wait for it.
//! tracing-appender has the same shape. It counts lines and not bytes, says nothing of a write that failed, and prints
//! to standard output when its queue is full at the end, which is one more log that may be broken.
//!
//! Always: who logs neither waits nor fails; lines are written whole and in order, or counted as lost; the queue holds
//! at most [`QUEUE_BYTES_MAX`].

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Some thousands of lines: what a busy node logs while its log stalls for some seconds.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// How many lines did not reach the log, for the process's metrics.
pub const LOST: &str = "quorate_log_lines_lost_total";

/// Where lines are put. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is a line to write, or the end was asked for.
    filled: Condvar,
    /// All lines were written or lost.
    emptied: Condvar,
}

/// Invariant: `bytes` is what the lines in `lines` have together, and at most [`QUEUE_BYTES_MAX`].
#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line was taken out and is being written.
    writing: bool,
    /// Lines that were lost since the log last said so.
    lost: u64,
    ended: bool,
}

/// Ends the writing when it is dropped, with what waits written, as far as the log takes it in time.
#[derive(Debug)]
#[must_use = "dropped at once, nothing is logged"]
pub struct Writing {
    lines: Lines,
    patience: Duration,
}

/// Starts the thread that writes to `log`, which has `patience` at the end to write what waits. `notice` makes the line
/// that says how many were lost.
pub fn write_to(
    log: impl Write + Send + 'static,
    notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
    patience: Duration,
) -> io::Result<(Lines, Writing)> {
    let lines = Lines(Arc::default());
    let shared = Arc::clone(&lines.0);
    let writer = Writer { log, torn: false };
    std::thread::Builder::new()
        .name("quorate-log-lines".to_owned())
        .spawn(move || shared.write(writer, notice))?;
    let writing = Writing {
        lines: lines.clone(),
        patience,
    };
    Ok((lines, writing))
}

impl Lines {
    fn put(&self, line: &[u8]) {
        let mut queue = self.0.lock();
        if queue.ended || queue.bytes + line.len() > QUEUE_BYTES_MAX {
            queue.lose();
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.0.filled.notify_one();
    }
}

impl Shared {
    /// A thread that panicked with the lock held has left nothing half done: no line between takes more than one.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut writer: Writer<impl Write>, notice: impl Fn(u64) -> Vec<u8>) {
        while let Some(line) = self.next() {
            let written = writer.write(&line);
            let mut queue = self.lock();
            if written.is_err() {
                queue.lose();
                continue;
            }
            // Said once the log has caught up: the lines behind which others were lost are all written then.
            let lost = queue.lost;
            if lost > 0 && queue.lines.is_empty() {
                drop(queue);
                if writer.write(&notice(lost)).is_ok() {
                    self.lock().lost -= lost;
                }
            }
        }
    }

    /// The next line; waits for one. `None` at the end.
    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = self.lock();
        queue.writing = false;
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.writing = true;
                return Some(line);
            }
            self.emptied.notify_all();
            if queue.ended {
                return None;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn lose(&mut self) {
        self.lost = self.lost.saturating_add(1);
        metrics::counter!(LOST).increment(1);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let shared = &self.lines.0;
        let mut queue = shared.lock();
        queue.ended = true;
        shared.filled.notify_one();
        let on_their_way = |queue: &mut Queue| queue.writing || !queue.lines.is_empty();
        // A thread that still waits for the log after this ends with the process.
        drop(
            shared
                .emptied
                .wait_timeout_while(queue, self.patience, on_their_way),
        );
    }
}

/// One write is one line.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Writes lines, and begins on a new one after a line that broke off.
struct Writer<W> {
    log: W,
    torn: bool,
}

impl<W: Write> Writer<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.log.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.log.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    rest = &rest[count..];
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.log.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn notice(lost: u64) -> Vec<u8> {
        format!("lost {lost}\n").into_bytes()
    }

    fn written(log: &Arc<Mutex<Vec<u8>>>) -> String {
        String::from_utf8(log.lock().unwrap().clone()).unwrap()
    }

    /// A log that takes so many bytes of each write as it is told next, and fails at a 0.
    struct Told {
        takes: Vec<usize>,
        log: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let most = if self.takes.is_empty() {
                usize::MAX
            } else {
                self.takes.remove(0)
            };
            if most == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = most.min(bytes.len());
            self.log.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(takes: &[usize], lines: &[&str]) -> String {
        let log = Arc::default();
        let told = Told {
            takes: takes.to_vec(),
            log: Arc::clone(&log),
        };
        let (queue, writing) = write_to(told, notice, PATIENCE).unwrap();
        // One after the other, so that the log is level after each.
        for line in lines {
            queue.put(line.as_bytes());
            let shared = &queue.0;
            let emptied = shared
                .emptied
                .wait_timeout_while(shared.lock(), PATIENCE, |queue| {
                    queue.writing || !queue.lines.is_empty()
                });
            drop(emptied);
        }
        drop(writing);
        written(&log)
    }

    #[test]
    fn lines_arrive_whole_and_in_order_also_where_a_write_takes_a_part() {
        assert_eq!(log(&[], &["a\n", "b\n"]), "a\nb\n");
        assert_eq!(log(&[1, 2, 1], &["abcd\n", "e\n"]), "abcd\ne\n");
    }

    #[test]
    fn a_log_that_works_again_says_how_many_lines_are_missing() {
        assert_eq!(
            log(&[usize::MAX, 0, 0], &["a\n", "b\n", "c\n", "d\n", "e\n"]),
            "a\nd\nlost 2\ne\n"
        );
    }

    #[test]
    fn a_line_that_broke_off_ends_before_the_next_begins() {
        assert_eq!(log(&[1, 0], &["abc\n", "d\n"]), "a\nd\nlost 1\n");
    }

    #[test]
    fn how_many_are_missing_is_said_again_where_that_line_was_lost_too() {
        assert_eq!(log(&[0, usize::MAX, 0], &["a\n", "b\n", "c\n"]), "b\nc\nlost 1\n");
    }

    /// A log that waits at each write until it is let go on.
    struct Stuck {
        begun: SyncSender<()>,
        go_on: Receiver<()>,
        log: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.begun.send(());
            let _ = self.go_on.recv();
            self.log.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_log_that_is_stuck_and_what_it_cannot_take_is_bounded() {
        let log = Arc::default();
        let (begun, begins) = sync_channel(0);
        let (go_on, may_go_on) = sync_channel(0);
        let stuck = Stuck {
            begun,
            go_on: may_go_on,
            log: Arc::clone(&log),
        };
        let (queue, writing) = write_to(stuck, notice, Duration::from_millis(1)).unwrap();
        queue.put(b"first\n");
        begins.recv().unwrap();
        let line = [b'x'; 1024];
        for _ in 0..1_030 {
            queue.put(&line);
        }
        assert_eq!(queue.0.lock().bytes, QUEUE_BYTES_MAX);
        assert_eq!(queue.0.lock().lost, 6);
        // Nor does the end wait for it for longer than was said.
        drop(writing);
        queue.put(b"after the end\n");
        assert_eq!(queue.0.lock().lost, 7);
        // Once it goes on, everything that was taken arrives.
        drop((begins, go_on));
        let shared = &queue.0;
        drop(
            shared
                .emptied
                .wait_timeout_while(shared.lock(), PATIENCE, |queue| {
                    queue.writing || !queue.lines.is_empty()
                }),
        );
        let log = written(&log);
        assert_eq!(log.len(), 6 + QUEUE_BYTES_MAX + "lost 7\n".len());
        assert!(log.starts_with("first\nxxx") && log.ends_with("xxxlost 7\n"));
    }
}
