//! Every crash of a small workload, and every flipped byte of a closed log.
//!
//! A workload is a list of steps. Whatever a crash leaves must open, and hold the outcome of some first steps:
//! at least of those that were answered, at most of those that were asked for. Then the log must go on.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;

use super::super::crash_disk::{CrashDisk, Depth, Event, Failures, Image, Moment, Note};
use super::super::recovery;
use super::super::view::View;
use super::super::writer::{Answer, Job, Work, Writer};
use super::super::{queued::Queued, reader::Reader, shared::Shared};
use super::*;
use crate::env::Owner as _;
use crate::fault::Faults;

/// What is asked of the log, one thing at a time.
#[derive(Debug, Clone)]
enum Step {
    Append(LogEntry),
    Vote(u64),
    Committed(u64),
    Truncate(Option<u64>),
    Purge(LogPosition),
}

/// What a log holds: the slow and obvious log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    purged: Option<LogPosition>,
    entries: Vec<LogEntry>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
}

impl Model {
    fn last(&self) -> Option<LogPosition> {
        self.entries.last().map(|entry| entry.position).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index.number() + 1)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(entry) => self.entries.push(entry.clone()),
            Step::Vote(vote) => self.vote = Some(blob(*vote)),
            Step::Committed(committed) => self.committed = Some(blob(*committed)),
            Step::Truncate(last) => self
                .entries
                .retain(|entry| last.is_some_and(|last| entry.position.index.number() <= last)),
            Step::Purge(upto) => {
                self.entries.retain(|entry| entry.position.index > upto.index);
                self.purged = Some(*upto);
            }
        }
    }

    /// The outcomes of the first 0, 1, 2, … steps.
    fn outcomes(steps: &[Step]) -> Vec<Model> {
        let mut model = Model::default();
        let mut outcomes = vec![model.clone()];
        for step in steps {
            model.step(step);
            outcomes.push(model.clone());
        }
        outcomes
    }

    /// Whether `found` is this one. What is committed becomes durable late, and is checked apart.
    fn is(&self, found: &Model) -> bool {
        self.purged == found.purged && self.entries == found.entries && self.vote == found.vote
    }
}

fn blob(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

/// Does steps on a real log, several at once, and notes what was sent and what was answered.
struct Run {
    disk: CrashDisk,
    log: Log,
    sent: usize,
}

impl Run {
    fn start(disk: CrashDisk, settings: LogSettings) -> Self {
        let log = Log::open(Arc::new(disk.clone()), &dir(), settings).expect("a log");
        Self { disk, log, sent: 0 }
    }

    /// Does a group of steps; appends within it are not waited for one by one.
    async fn group(&mut self, steps: &[Step]) {
        let mut waiting = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let through = self.sent + at + 1;
            // What is not there is not sent either: an answer would come from memory.
            self.disk.note(Note::Sent(through));
            let acknowledge = {
                let disk = self.disk.clone();
                move |result: Result<(), Fault>| {
                    result.expect("a disk that works");
                    disk.note(Note::Acknowledged(through));
                }
            };
            match step {
                Step::Append(entry) => {
                    let (tx, rx) = oneshot::channel();
                    let told = Box::new(move |result| {
                        acknowledge(result);
                        let _gone = tx.send(());
                    });
                    self.log.append(vec![entry.clone()], told).expect("an append");
                    waiting.push(rx);
                }
                Step::Vote(vote) => acknowledge(self.log.save_vote(blob(*vote)).await),
                Step::Committed(committed) => {
                    self.log.save_committed(blob(*committed)).expect("the log runs");
                }
                Step::Truncate(last) => acknowledge(truncate_after(&self.log, last.map(index)).await),
                Step::Purge(upto) => acknowledge(purge(&self.log, *upto).await),
            }
        }
        for told in waiting {
            told.await.expect("told");
        }
        self.sent += steps.len();
    }
}

/// A log opened without its threads: what it holds, and a pen.
struct Quiet {
    reader: Reader,
    shared: Arc<Shared>,
    appender: super::super::appender::Appender,
}

fn open_quietly(disk: &CrashDisk, settings: &LogSettings) -> Result<Quiet, LogOpenError> {
    let disk: Arc<dyn crate::env::Disk> = Arc::new(disk.clone());
    let opened = recovery::open(&disk, &dir(), settings)?;
    let shared = Arc::new(Shared {
        dir: dir(),
        next: std::sync::Mutex::default(),
        view: std::sync::Mutex::new(View::new(opened.recovered, 0)),
        queued: Queued::new(1),
        writing: std::sync::Mutex::default(),
    });
    Ok(Quiet {
        reader: Reader::new(shared.clone()),
        shared,
        appender: opened.appender,
    })
}

impl Quiet {
    fn model(&self) -> Result<Model, Fault> {
        let entries = self.reader.read(&(index(0)..index(u64::MAX)), usize::MAX)?;
        let view = self.shared.view();
        let model = Model {
            purged: view.purged(),
            entries,
            vote: view.vote(),
            committed: view.committed(),
        };
        assert_eq!(
            model.last(),
            view.last(),
            "the last position is that of the last entry"
        );
        Ok(model)
    }
}

/// Opens what a crash left, checks it, goes on, and opens it again. Answers how many steps were found.
fn check_image(
    settings: &LogSettings,
    image: &Image,
    outcomes: &[Model],
    moment: (usize, usize),
    what: &str,
) -> CrashDisk {
    let (acknowledged, sent) = moment;
    let disk = CrashDisk::from_image(image);
    let mut quiet = match open_quietly(&disk, settings) {
        Ok(quiet) => quiet,
        Err(LogOpenError::Missing { .. }) if sent == 0 => {
            // The start was interrupted, and is repeated.
            let again = open_quietly(&disk, &settings.clone().create());
            again.unwrap_or_else(|error| panic!("{what}: not made again: {error}"));
            return disk;
        }
        Err(error) => panic!("{what}: refused: {error}"),
    };
    let found = quiet.model().unwrap_or_else(|fault| panic!("{what}: {fault}"));
    let fits = outcomes[acknowledged..=sent].iter().any(|model| model.is(&found));
    assert!(
        fits,
        "{what}: found {found:#?}, which is no outcome of {acknowledged} to {sent} steps; after \
         {acknowledged}: {:#?}",
        outcomes[acknowledged]
    );
    let committed: Vec<_> = outcomes[..=sent].iter().map(|model| &model.committed).collect();
    assert!(committed.contains(&&found.committed), "{what}: {found:?}");

    // The log goes on, with entries of the shape that the torn ones had.
    let mut expected = found;
    for number in expected.next()..expected.next() + 3 {
        let entry = entry_of(99, number, 300);
        quiet
            .appender
            .entry(entry.position, &entry.payload)
            .expect("an entry");
        quiet.appender.commit().expect("a commit");
        expected.entries.push(entry);
    }
    drop(quiet);
    let again = open_quietly(&disk, settings).unwrap_or_else(|error| panic!("{what}: refused then: {error}"));
    assert_eq!(again.model().expect("a read"), expected, "{what}");
    disk
}

/// Checks every crash at every moment of a history.
fn check_all_crashes(
    settings: &LogSettings,
    start: &Image,
    history: &[Event],
    outcomes: &[Model],
    depth: Depth,
) -> usize {
    let mut moment = Moment::of_image(start);
    let mut checked = 0;
    let mut nested = 0;
    for (at, event) in history.iter().enumerate() {
        if !matches!(event, Event::Note(_)) {
            let bounds = (moment.acknowledged, moment.sent);
            let mut images = Vec::new();
            moment.images(depth, &mut |what, image| {
                images.push((what.to_owned(), image.clone()))
            });
            for (what, image) in images {
                let what = format!("before event {at} of {}: {what}", history.len());
                let disk = check_image(settings, &image, outcomes, bounds, &what);
                checked += 1;
                // Now and then a second crash, anywhere in what the first one's recovery did.
                if depth == Depth::Full && checked % 7 == 0 {
                    nested += check_second_crash(settings, &image, &disk.history(), outcomes, bounds, &what);
                }
            }
        }
        moment.step(event);
    }
    checked + nested
}

/// Crashes again while a log is opened that a crash had left.
fn check_second_crash(
    settings: &LogSettings,
    image: &Image,
    history: &[Event],
    outcomes: &[Model],
    bounds: (usize, usize),
    what: &str,
) -> usize {
    // The first sync of the mark's batch ends the opening; what follows is the test's own.
    let mut moment = Moment::of_image(image);
    let mut syncs = 0;
    let mut checked = 0;
    for event in history {
        let what = format!("{what}; and again at sync {syncs}");
        moment.images(Depth::Full, &mut |second, image| {
            check_image(settings, image, outcomes, bounds, &format!("{what}: {second}"));
            checked += 1;
        });
        moment.step(event);
        syncs += usize::from(matches!(event, Event::Sync { .. }));
        if syncs == 2 {
            break;
        }
    }
    checked
}

/// Runs groups of steps, closes the log or leaves it, and checks every crash.
async fn crash_everywhere(groups: &[Vec<Step>], depth: Depth) -> usize {
    crash_everywhere_with(&small(), groups, depth).await
}

async fn crash_everywhere_with(settings: &LogSettings, groups: &[Vec<Step>], depth: Depth) -> usize {
    let disk = CrashDisk::default();
    let mut run = Run::start(disk.clone(), settings.clone().create());
    for group in groups {
        run.group(group).await;
    }
    run.log.close().await.expect("a close");
    let steps: Vec<Step> = groups.concat();
    let outcomes = Model::outcomes(&steps);
    let last = outcomes.last().expect("at least the empty one");
    let closed = open_quietly(&CrashDisk::from_image(&disk.image()), settings).expect("a closed log");
    assert_eq!(
        &closed.model().expect("a read"),
        last,
        "a closed log holds everything, the committed too"
    );
    let images = check_all_crashes(settings, &Image::new(), &disk.history(), &outcomes, depth);
    println!("{images} images of {} events", disk.history().len());
    images
}

fn appends(term: u64, range: std::ops::Range<u64>, bytes: usize) -> Vec<Step> {
    range
        .map(|number| Step::Append(entry_of(term, number, bytes)))
        .collect()
}

#[tokio::test]
async fn a_crash_anywhere_loses_nothing_that_was_answered_and_refuses_nothing() {
    let groups = [
        vec![Step::Vote(1)],
        appends(1, 0..5, 100),
        vec![Step::Committed(3), Step::Append(entry(1, 5))],
        appends(1, 6..9, 600),
        vec![Step::Truncate(Some(6))],
        appends(2, 7..9, 600),
        vec![
            Step::Truncate(Some(6)),
            Step::Vote(2),
            Step::Append(entry_of(3, 7, 900)),
        ],
        vec![Step::Purge(position(1, 4)), Step::Committed(7)],
        appends(3, 8..10, 50),
        vec![Step::Truncate(Some(4))],
        vec![Step::Append(entry(4, 5))],
        vec![Step::Purge(position(5, 20)), Step::Append(entry(6, 21))],
    ];
    let images = crash_everywhere(&groups, Depth::Full).await;
    assert!(images > 500, "{images} images");
}

#[tokio::test]
async fn a_crash_while_segments_are_ended_made_and_recycled_loses_nothing() {
    // Some 12 KiB of room in a segment: five to six entries of 2 KiB.
    let mut groups = vec![vec![Step::Vote(1)]];
    for round in 0..6 {
        groups.push(appends(1, round * 4..(round + 1) * 4, 2000));
        groups.push(vec![Step::Committed(round)]);
        if round >= 2 {
            groups.push(vec![Step::Purge(position(1, round * 4 - 5))]);
        }
    }
    groups.push(vec![Step::Truncate(Some(18))]);
    groups.push(appends(2, 19..26, 2000));
    groups.push(vec![Step::Truncate(None)]);
    groups.push(appends(3, 16..24, 2000));
    let images = crash_everywhere(&groups, Depth::Full).await;
    assert!(images > 500, "{images} images");
}

#[tokio::test]
async fn a_crash_while_a_long_entry_gets_a_segment_of_its_own_loses_nothing() {
    let groups = [
        appends(1, 0..2, 3000),
        appends(1, 2..3, 20_000),
        appends(1, 3..4, 100),
        vec![Step::Purge(position(1, 2))],
        appends(1, 4..5, 30_000),
    ];
    crash_everywhere(&groups, Depth::Full).await;
}

/// The first segment is of 8 KiB, and each later one twice as long, up to 64 KiB. Those that were outgrown are removed, also the
/// one that was ready when a long entry asked for more; the full ones have further lives.
#[tokio::test]
async fn a_crash_while_segments_grow_loses_nothing() {
    let settings = LogSettings {
        segment_bytes: 64 << 10,
        ..LogSettings::default()
    };
    let growing = [
        vec![Step::Vote(1)],
        appends(1, 0..2, 2000),
        appends(1, 2..5, 3000),
        vec![Step::Purge(position(1, 1))],
        appends(1, 5..8, 5000),
        vec![Step::Purge(position(1, 6)), Step::Vote(2)],
        appends(1, 8..12, 9000),
        vec![Step::Truncate(Some(10))],
        appends(2, 11..13, 2000),
    ];
    let images = crash_everywhere_with(&settings, &growing, Depth::Prefixes).await;
    assert!(images > 100, "{images} images");

    let leaping = [
        appends(1, 0..1, 100),
        // The segment that is ready has 16 KiB.
        appends(1, 1..2, 20_000),
        vec![Step::Purge(position(1, 0)), Step::Vote(1)],
        appends(1, 2..4, 15_000),
    ];
    let images = crash_everywhere_with(&settings, &leaping, Depth::Prefixes).await;
    assert!(images > 50, "{images} images");
}

/// A workload in the making: bounded so that each step is one that Raft may ask for.
fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let choice = (0_u8..100, 0_u64..8, 1_usize..4000);
    proptest::collection::vec(proptest::collection::vec(choice, 1..6), 1..12).prop_map(|groups| {
        let mut model = Model::default();
        let mut term = 1;
        let mut made = Vec::new();
        for group in groups {
            let mut steps = Vec::new();
            for (kind, back, bytes) in group {
                let first = model.purged.map_or(0, |purged| purged.index.number() + 1);
                let step = match kind {
                    0..70 => Step::Append(entry_of(term, model.next(), bytes)),
                    70..78 => Step::Vote(bytes as u64),
                    78..84 => Step::Committed(bytes as u64),
                    84..92 => {
                        term += 1;
                        let keep = model.next().saturating_sub(back).max(first);
                        Step::Truncate(keep.checked_sub(1))
                    }
                    92..98 => match model.next().checked_sub(back + 1).filter(|upto| *upto >= first) {
                        Some(upto) => {
                            let at = (upto - first) as usize;
                            Step::Purge(model.entries[at].position)
                        }
                        None => Step::Vote(back),
                    },
                    _ => {
                        term += 1;
                        Step::Purge(position(term, model.next() + back))
                    }
                };
                model.step(&step);
                steps.push(step);
            }
            made.push(steps);
        }
        made
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_workload_survives_any_crash(groups in steps()) {
        block_on(crash_everywhere(&groups, Depth::Prefixes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Against the slow and obvious log: after every group, and after every opening.
    #[test]
    fn the_log_holds_what_the_model_holds(groups in steps(), cache in prop_oneof![Just(0_u64), Just(4000), Just(1 << 20)]) {
        block_on(async {
            let disk = CrashDisk::default();
            let settings = |create| LogSettings {
                cache_bytes_max: cache,
                ..if create { small().create() } else { small() }
            };
            let mut run = Run::start(disk.clone(), settings(true));
            let mut model = Model::default();
            for (at, group) in groups.iter().enumerate() {
                run.group(group).await;
                group.iter().for_each(|step| model.step(step));
                if at % 3 == 2 {
                    run.log.close().await.expect("a close");
                    run = Run { sent: run.sent, ..Run::start(disk.clone(), settings(false)) };
                }
                let found = Model {
                    purged: run.log.purged(),
                    entries: all(&run.log).await,
                    vote: run.log.vote(),
                    committed: run.log.committed(),
                };
                assert_eq!(found, model);
                assert_eq!(run.log.last(), model.last());
                for entry in &model.entries {
                    let position = entry.position;
                    assert_eq!(run.log.position(position.index), Some(position));
                }
            }
            run.log.close().await.expect("a close");
        });
    }
}

/// A byte rotted in a log that was closed: it is refused, or an entry's reading is, or nothing is lost.
#[tokio::test]
async fn a_flipped_byte_in_a_closed_log_never_shortens_it() {
    let disk = CrashDisk::default();
    let mut run = Run::start(disk.clone(), small().create());
    let groups = [
        vec![Step::Vote(1)],
        appends(1, 0..4, 300),
        vec![Step::Truncate(Some(2))],
        appends(2, 3..10, 2000),
        vec![Step::Purge(position(1, 1)), Step::Committed(9)],
    ];
    for group in &groups {
        run.group(group).await;
    }
    run.log.close().await.expect("a close");
    let outcomes = Model::outcomes(&groups.concat());
    let expected = outcomes.last().expect("at least one");

    let refused = flip_each_byte(&disk.image(), expected);
    assert!(
        refused.len() >= 2,
        "corruption is found in both segments: {refused:?}"
    );
}

/// The story: the mark of a close shared its batch with the entries that waited, and took them along when it rotted. Found
/// by the simulator's bit rot.
#[test]
fn a_flipped_byte_does_not_take_what_was_written_together_with_the_close() {
    let disk = CrashDisk::default();
    let quiet = open_quietly(&disk, &small().create()).expect("a log");
    let maker = super::super::segment::Maker::start(Arc::new(disk.clone()), dir(), &Faults::default());
    let mut writer = Writer::start(quiet.shared, maker, quiet.appender);
    let job = |work| Job {
        work,
        committed: None,
        answer: Answer::new(Box::new(drop), Queued::new(1).count(0)),
    };
    let entries: Vec<_> = (0..3).map(|number| entry_of(1, number, 300)).collect();
    let effects = writer.work(&mut vec![
        job(Work::Vote(blob(1))),
        job(Work::Append(entries.clone())),
        job(Work::Close),
    ]);
    drop(effects);
    drop(writer);
    let expected = Model {
        entries,
        vote: Some(blob(1)),
        ..Model::default()
    };
    assert!(!flip_each_byte(&disk.image(), &expected).is_empty());
}

/// Opens the log with each of its bytes flipped, which must be refused or show all of it. Answers in which files something was.
fn flip_each_byte(image: &Image, expected: &Model) -> BTreeSet<PathBuf> {
    let mut refused = BTreeSet::new();
    for (path, content) in image {
        for at in 0..content.len() {
            let mut rotten = image.clone();
            if let Some(content) = rotten.get_mut(path) {
                content[at] ^= 0x10;
            }
            match open_quietly(&CrashDisk::from_image(&rotten), &small()) {
                Err(LogOpenError::Corrupt { file, .. }) => {
                    refused.insert(file);
                }
                Err(other) => panic!("{} byte {at}: {other}", path.display()),
                Ok(quiet) => {
                    // The mark of the close is the very last batch. It carries what is committed, no more.
                    let found = quiet.model().expect("what opening verified");
                    assert!(
                        expected.is(&found),
                        "{} byte {at}: found {found:?}",
                        path.display()
                    );
                }
            }
        }
    }
    refused
}

/// Whole pages that rotted to zeros are as much corruption as a flipped bit.
#[tokio::test]
async fn a_zeroed_page_in_a_closed_log_never_shortens_it() {
    let disk = CrashDisk::default();
    let mut run = Run::start(disk.clone(), small().create());
    let groups: Vec<_> = (0..20)
        .map(|number| appends(1, number..number + 1, 900))
        .collect();
    for group in &groups {
        run.group(group).await;
    }
    run.log.close().await.expect("a close");
    let outcomes = Model::outcomes(&groups.concat());
    let image = disk.image();
    let expected = outcomes.last().expect("at least one");
    let mut refused = 0;
    for (path, content) in &image {
        // The last that was written is the mark of the close, a sector long. What goes down with it, and with
        // it all that would prove it, is not missed.
        let mark = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last / 512 * 512);
        for from in (0..content.len()).step_by(512) {
            for len in [512, 4096, 8192] {
                if from < mark && mark < from + len {
                    continue;
                }
                let mut rotten = image.clone();
                if let Some(content) = rotten.get_mut(path) {
                    let to = content.len().min(from + len);
                    content[from..to].fill(0);
                }
                match open_quietly(&CrashDisk::from_image(&rotten), &small()) {
                    Err(LogOpenError::Corrupt { .. }) => refused += 1,
                    Err(other) => panic!("{} byte {from}: {other}", path.display()),
                    Ok(quiet) => {
                        let found = quiet.model().expect("what opening verified");
                        assert!(
                            expected.is(&found),
                            "{} byte {from} len {len}: {found:?}",
                            path.display()
                        );
                    }
                }
            }
        }
    }
    assert!(refused > 40, "{refused}");
}

#[tokio::test]
async fn a_log_that_lost_a_file_is_refused() {
    let disk = CrashDisk::default();
    let mut run = Run::start(disk.clone(), small().create());
    for number in 0..20 {
        run.group(&appends(1, number..number + 1, 2000)).await;
    }
    let used = run.log.statistics().segments;
    run.log.close().await.expect("a close");
    let image = disk.image();
    let mut refused = 0;
    for path in image.keys() {
        let mut lacking = image.clone();
        lacking.remove(path);
        match open_quietly(&CrashDisk::from_image(&lacking), &small()) {
            Err(LogOpenError::Corrupt { .. }) => refused += 1,
            Err(other) => panic!("without {}: {other}", path.display()),
            Ok(quiet) => assert_eq!(quiet.model().expect("a read").entries.len(), 20),
        }
    }
    // All but the newest, whose loss shows in the one before it, and the spare ones, which hold nothing.
    assert_eq!(refused, used, "of {} files", image.len());
}

/// A disk that fails once is never written again, and everybody is told.
#[tokio::test]
async fn after_a_failed_sync_nothing_is_written_and_everything_answers_the_fault() {
    for failures in [
        Failures {
            syncs_from: Some(0),
            ..Failures::default()
        },
        Failures {
            writes_from: Some(0),
            ..Failures::default()
        },
    ] {
        let disk = CrashDisk::default();
        let mut run = Run::start(disk.clone(), small().create());
        run.group(&appends(1, 0..3, 100)).await;
        let log = run.log;
        // The maker is done with its spare segment: only the log is written from here on.
        log.maker.idle().await;
        disk.fail(failures);
        let (completion, told) = recorder();
        log.append(entries(1, 3..5), completion(1))
            .expect("entered in memory");
        let vote = log.save_vote(blob(1)).await;
        assert!(matches!(vote, Err(Fault::Disk { .. })), "{vote:?}");
        let writes = disk.history().len();
        disk.fail(Failures::default());

        let late = log.append(entries(1, 5..6), completion(2));
        assert!(matches!(late, Err(Fault::Disk { .. })), "{late:?}");
        for answer in [
            log.save_vote(blob(2)).await,
            log.save_committed(blob(2)),
            truncate_after(&log, None).await,
            purge(&log, position(1, 1)).await,
            log.close().await,
        ] {
            assert!(matches!(answer, Err(Fault::Disk { .. })), "{answer:?}");
        }
        let told: Vec<_> = told.try_iter().collect();
        assert_eq!(told.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [1, 2]);
        assert!(
            told.iter()
                .all(|(_, result)| matches!(result, Err(Fault::Disk { .. }))),
            "{told:?}"
        );
        drop(log);
        let after = disk.history();
        assert_eq!(after.len(), writes, "{:?}", &after[writes..]);
    }
}

/// The story: a sync failed and the process started again at once. Opening read the batch, which stood in the
/// page cache and nowhere else, synced the file, which succeeded since the pages counted as clean, and took the
/// batch for durable. Then the power failed, and the log behind the hole was refused as corrupt.
#[tokio::test]
async fn what_a_failed_sync_left_in_the_page_cache_is_durable_once_the_log_was_opened_again() {
    for entries in [1, 7, 30] {
        let disk = CrashDisk::default();
        let mut run = Run::start(disk.clone(), small().create());
        // The first is too long for the first segment; the second one has room for all that follows.
        let durable = [appends(1, 0..1, 2600), appends(1, 1..3, 100), vec![Step::Vote(1)]].concat();
        run.group(&durable).await;
        run.log.maker.idle().await;
        disk.fail(Failures {
            syncs_from: Some(0),
            ..Failures::default()
        });
        let lost = appends(1, 3..3 + entries, 150);
        let sent = lost.iter().filter_map(|step| match step {
            Step::Append(entry) => Some(entry.clone()),
            _ => None,
        });
        disk.note(Note::Sent(durable.len() + lost.len()));
        append(&run.log, sent.collect()).await.expect_err("a failed sync");
        let closed = run.log.close().await;
        assert!(matches!(closed, Err(Fault::Disk { .. })), "{closed:?}");
        disk.fail(Failures::default());

        let steps = [durable, lost].concat();
        let again = Run::start(disk.clone(), small());
        assert_eq!(
            again.log.last(),
            Some(position(1, 2 + entries)),
            "read from the page cache"
        );
        disk.note(Note::Acknowledged(steps.len()));
        let mut again = Run {
            sent: steps.len(),
            ..again
        };
        let later = appends(1, 3 + entries..6 + entries, 100);
        again.group(&later).await;
        again.log.close().await.expect("a close");

        let outcomes = Model::outcomes(&[steps, later].concat());
        let images = check_all_crashes(&small(), &Image::new(), &disk.history(), &outcomes, Depth::Full);
        assert!(images > 100, "{images} images");
    }
}

impl Quiet {
    /// Does steps one after the other, each made durable before the next, and notes which were; the steps before
    /// `from` were done before. Ends with the first fault.
    fn go(&mut self, disk: &CrashDisk, steps: &[Step], from: usize) -> Result<(), Fault> {
        for (at, step) in steps.iter().enumerate().skip(from) {
            disk.note(Note::Sent(at + 1));
            match step {
                Step::Append(entry) => {
                    self.shared.view().append(std::slice::from_ref(entry))?;
                    self.appender.entry(entry.position, &entry.payload)?;
                }
                Step::Vote(vote) => {
                    self.shared.view().set_vote(blob(*vote));
                    self.appender.vote(blob(*vote))?;
                }
                Step::Purge(upto) => {
                    self.shared.view().purge(*upto);
                    self.appender.purge(*upto)?;
                }
                Step::Committed(_) | Step::Truncate(_) => unreachable!("not in these workloads"),
            }
            self.appender.commit()?;
            let (changes, _, durable) = self.appender.take_changes();
            let retired = {
                let mut view = self.shared.view();
                view.publish(changes, durable);
                view.retire()
            };
            self.appender.recycle(retired);
            disk.note(Note::Acknowledged(at + 1));
        }
        Ok(())
    }
}

/// Each sync in turn fails, of batches as of segments that end, are made and headed anew; the process starts again
/// at once, reads what stands in the page cache only, and goes on; then the power fails.
#[test]
fn a_loss_of_power_after_any_sync_failed_and_the_process_started_again_loses_nothing() {
    /// So many events behind the failed sync are looked at: the opening, and some batches more.
    const EVENTS: usize = 24;
    let mut steps = vec![Step::Vote(1)];
    for round in 0..8 {
        steps.extend(appends(1, round * 4..(round + 1) * 4, 2000));
        if round >= 2 {
            steps.push(Step::Purge(position(1, round * 4 - 5)));
        }
    }
    let outcomes = Model::outcomes(&steps);
    let (mut failed, mut checked) = (0, 0);
    loop {
        let disk = CrashDisk::default();
        let mut quiet = open_quietly(&disk, &small().create()).expect("a new log");
        let begun = disk.history().len();
        disk.fail(Failures {
            syncs_from: Some(failed),
            ..Failures::default()
        });
        if quiet.go(&disk, &steps, 0).is_ok() {
            break;
        }
        let fault_at = disk.history().len() - 1;
        assert!(fault_at > begun && matches!(disk.history()[fault_at], Event::SyncFailed { .. }));
        drop(quiet);
        disk.fail(Failures::default());

        let mut quiet = open_quietly(&disk, &small()).expect("what the page cache holds");
        let found = quiet.model().expect("a read");
        let done = outcomes.iter().rposition(|outcome| outcome.is(&found));
        let done = done.unwrap_or_else(|| panic!("sync {failed}: found {found:?}"));
        disk.note(Note::Acknowledged(done));
        quiet.go(&disk, &steps, done).expect("a disk that works again");

        let mut moment = Moment::default();
        for (at, event) in disk.history().iter().enumerate() {
            if (fault_at..fault_at + EVENTS).contains(&at) && !matches!(event, Event::Note(_)) {
                let bounds = (moment.acknowledged, moment.sent.max(moment.acknowledged));
                moment.images(Depth::Full, &mut |what, image| {
                    let what = format!("sync {failed} failed, before event {at}: {what}");
                    check_image(&small(), image, &outcomes, bounds, &what);
                    checked += 1;
                });
            }
            moment.step(event);
        }
        failed += 1;
    }
    assert!(failed > 50 && checked > 1000, "{failed} syncs, {checked} images");
}

/// The story: a batch is torn so that its header is lost and later sectors of it stay. The log is cut there and
/// goes on with a batch whose records happen to lie where those of the torn one lay. If that one is torn too,
/// the old sectors must not pass for its own, or the log would hold a command that nobody had appended there.
#[test]
fn what_a_torn_batch_left_never_mixes_into_a_later_one() {
    // Records of one sector's length, so that both batches can have the same layout: the second starts a
    // sector later, behind the mark of the opening, and lacks the vote.
    let payload = 512 - super::super::format::RECORD_HEADER;
    let append = |quiet: &mut Quiet, term| {
        for number in 1..3 {
            let entry = entry_of(term, number, payload);
            quiet
                .appender
                .entry(entry.position, &entry.payload)
                .expect("an entry");
        }
        quiet.appender.commit().expect("a commit");
    };
    let disk = CrashDisk::default();
    let mut quiet = open_quietly(&disk, &small().create()).expect("a new log");
    quiet
        .appender
        .entry(position(1, 0), b"the first")
        .expect("an entry");
    quiet.appender.commit().expect("a commit");
    let before = disk.image();
    quiet
        .appender
        .vote(Bytes::from(vec![b'.'; payload]))
        .expect("a vote");
    append(&mut quiet, 1);
    let after = disk.image();

    // Of the torn batch all but the first sector is on the disk.
    let mut torn = before.clone();
    for (path, content) in &mut torn {
        let written = &after[path];
        let differs = (0..content.len()).find(|at| content[*at] != written[*at]);
        if let Some(first) = differs {
            let second_sector = (first / 512 + 1) * 512;
            content[second_sector..].copy_from_slice(&written[second_sector..]);
        }
    }
    assert_ne!(torn, before);
    let disk = CrashDisk::from_image(&torn);
    let mut quiet = open_quietly(&disk, &small()).expect("a log with a torn tail");
    assert_eq!(quiet.model().expect("a read").last(), Some(position(1, 0)));
    let reopened = disk.image();
    let events = disk.history().len();
    append(&mut quiet, 2);

    let mut moment = Moment::of_image(&reopened);
    let mut opened = 0;
    for event in &disk.history()[events..] {
        moment.images(Depth::Full, &mut |what, image| {
            let quiet = open_quietly(&CrashDisk::from_image(image), &small());
            let found = quiet
                .unwrap_or_else(|error| panic!("{what}: refused: {error}"))
                .model()
                .expect("a read");
            let terms: Vec<_> = found
                .entries
                .iter()
                .map(|entry| entry.position.term.number())
                .collect();
            assert!(terms == [1] || terms == [1, 2, 2], "{what}: found {terms:?}");
            opened += 1;
        });
        moment.step(event);
    }
    assert!(opened > 10, "{opened}");
}
