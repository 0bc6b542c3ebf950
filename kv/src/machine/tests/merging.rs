//! Merging: runs of heads become one, and nothing is ever told of it.

use std::collections::BTreeSet;

use super::disk::MemoryDisk;
use super::*;
use crate::damage::Damages;
use crate::machine::upkeep::examine;
use crate::model::{KeyRange, Op, RangeRead, ReadOp, ReadResult};

/// A store each of whose checkpoints makes a run of its own, and whose steps of merging write so many rows.
fn store(merge_rows: usize) -> Store {
    store_with(merging(merge_rows, 1))
}

fn store_with(settings: MachineSettings) -> Store {
    let disk: Arc<dyn Disk> = Arc::<MemoryDisk>::default();
    Store::with(disk, OpenMode::Create, settings)
}

fn merging(merge_rows: usize, run_rows: u64) -> MachineSettings {
    let mut settings = settings();
    settings.tuning.merge_rows = merge_rows;
    settings.tuning.run_rows = run_rows;
    settings.tuning.rest_rows = run_rows;
    settings.tuning.runs_merged = 2;
    // A few heads each.
    settings.tuning.block_bytes = 150;
    settings
}

fn name(number: u64) -> Key {
    key(&format!("k{number:04}"))
}

/// Writes keys in one transaction, and makes them durable.
fn put(store: &mut Store, numbers: impl IntoIterator<Item = u64>) {
    let puts = numbers
        .into_iter()
        .map(|number| Op::put(name(number), value("v")));
    store.txn(Txn::new(puts)).unwrap();
    store.machine.make_durable().unwrap();
}

fn delete(store: &mut Store, numbers: impl IntoIterator<Item = u64>) {
    store
        .txn(Txn::new(
            numbers.into_iter().map(|number| Op::delete(name(number))),
        ))
        .unwrap();
    store.machine.make_durable().unwrap();
}

fn forget_all(store: &mut Store) {
    let revision = store.machine.applied().revision;
    store.one(0, Command::Compact { revision });
    store.machine.make_durable().unwrap();
    while let Some(step) = store.machine.begin_forgetting() {
        store.machine.end_checkpoint(step.write()).unwrap();
    }
}

/// One step of merging; whether there was one.
fn merge_a_step(store: &mut Store) -> bool {
    let Some(step) = store.machine.begin_merging() else {
        return false;
    };
    store.machine.end_checkpoint(step.write()).unwrap();
    true
}

/// Merges to the end, and demands the same of the store before, after each step, and behind the last.
fn merge_all(store: &mut Store, expected: impl Iterator<Item = u64> + Clone) {
    has(store, expected.clone());
    while merge_a_step(store) {
        has(store, expected.clone());
    }
}

/// Demands that these keys exist and no others, by a scan, by gets, and by all that is proven of a state and of its file.
fn has(store: &Store, expected: impl IntoIterator<Item = u64>) {
    let expected: BTreeSet<Key> = expected.into_iter().map(name).collect();
    let view = store.reader.view().unwrap();
    let all = [ReadOp::Range(RangeRead::new(KeyRange::all()))];
    let ReadResult::Range { records, .. } = view.read(&all, None).unwrap().unwrap().remove(0) else {
        panic!("a range answers no range");
    };
    let scanned: BTreeSet<Key> = records.into_iter().map(|found| found.key).collect();
    assert_eq!(scanned, expected);
    for number in 0..200 {
        let got = view
            .read(&[ReadOp::Get(name(number))], None)
            .unwrap()
            .unwrap()
            .remove(0);
        let is_there = matches!(got, ReadResult::Get(Some(_)));
        assert_eq!(is_there, expected.contains(&name(number)), "{number}");
    }
    store.verify();
    let mut damages = Damages::default();
    let examined = examine::examine(&*store.disk, dir(), &mut damages);
    assert!(damages.is_empty(), "{damages:?}");
    assert!(examined.held.is_some());
}

/// The gravest of the bugs that a saboteur planted: keys came back whose deletion was merged away above an older run.
#[test]
fn what_was_deleted_stays_deleted_while_an_older_run_has_it_though_its_history_is_forgotten() {
    for merge_rows in [1, 2, 1_000] {
        let mut store = store(merge_rows);
        put(&mut store, 0..100);
        delete(&mut store, [3, 50, 99]);
        put(&mut store, [100, 101, 102]);
        forget_all(&mut store);
        assert_eq!(store.machine.runs(), 3);
        let living = || (0..103).filter(|number| ![3, 50, 99].contains(number));
        has(&store, living());
        assert!(
            merge_a_step(&mut store),
            "the two newest runs are as large as each other"
        );
        merge_all(&mut store, living());
        assert_eq!(store.machine.runs(), 2, "the oldest is far larger than both");
        let store = store.reopened(merging(merge_rows, 1));
        has(&store, living());
    }
}

#[test]
fn where_nothing_is_written_runs_are_merged_that_stay_beside_writers() {
    for merge_rows in [1, 7, 1_000] {
        let mut settings = merging(merge_rows, 2);
        settings.tuning.runs_merged = 8;
        let mut store = store_with(settings);
        put(&mut store, 0..40);
        put(&mut store, 40..50);
        delete(&mut store, [3, 45, 49]);
        forget_all(&mut store);
        let living = || (0..50).filter(|number| ![3, 45, 49].contains(number));
        has(&store, living());
        let runs = store.machine.runs();
        assert!(
            runs > 1 && store.machine.begin_merging().is_none(),
            "{runs} runs are few"
        );
        while let Some(step) = store.machine.begin_merging_at_rest() {
            store.machine.end_checkpoint(step.write()).unwrap();
            has(&store, living());
        }
        assert_eq!(store.machine.runs(), 1);
        // What comes then is far smaller, and is left alone.
        put(&mut store, [50, 51, 52]);
        assert_eq!(store.machine.runs(), 2);
        assert!(store.machine.begin_merging_at_rest().is_none());
    }
}

#[test]
fn beside_writers_no_merge_begins_that_is_one_for_times_of_rest() {
    let mut settings = merging(1, 1);
    settings.tuning.runs_merged = 3;
    let mut store = store_with(settings);
    put(&mut store, 0..20);
    put(&mut store, 20..30);
    // The two are one, and go, one block a step.
    while store.machine.runs() > 1 {
        let step = store
            .machine
            .begin_merging_at_rest()
            .expect("one is half the other");
        store.machine.end_checkpoint(step.write()).unwrap();
    }
    put(&mut store, 30..40);
    assert!(merge_a_step(&mut store), "what was merged is removed");
    merge_all(&mut store, 0..40);
    assert_eq!(store.machine.runs(), 2);
}

#[test]
fn a_checkpoint_between_two_steps_takes_no_run_that_is_being_merged() {
    let mut store = store(2);
    put(&mut store, [0, 1, 2]);
    put(&mut store, [3, 4]);
    assert!(merge_a_step(&mut store));
    // From here on a checkpoint writes small runs anew together with its own.
    let mut store = store.reopened(merging(2, 1_000));
    assert!(merge_a_step(&mut store), "begun anew");
    put(&mut store, [5]);
    merge_all(&mut store, 0..6);
    let store = store.reopened(merging(2, 1_000));
    has(&store, 0..6);
}

/// What it had made is begun anew, and removed before.
#[test]
fn a_merge_that_a_crash_broke_off_leaves_no_run_and_no_filter_behind() {
    let mut store = store(3);
    put(&mut store, 0..20);
    put(&mut store, 20..40);
    for _ in 0..3 {
        assert!(merge_a_step(&mut store));
    }
    let mut store = store.reopened(merging(1_000, 1));
    has(&store, 0..40);
    while merge_a_step(&mut store) {}
    assert_eq!(store.machine.runs(), 1);
    has(&store, 0..40);
}

/// A filter has a part for each 64 KiB.
#[test]
fn a_run_that_was_merged_takes_all_parts_of_its_filter_along() {
    let mut store = store(1_000_000);
    const MANY: u64 = 60_000;
    put(&mut store, 0..MANY);
    put(&mut store, MANY..2 * MANY);
    assert_eq!(store.machine.runs(), 2);
    while merge_a_step(&mut store) {}
    assert_eq!(store.machine.runs(), 1);
    let mut damages = Damages::default();
    examine::examine(&*store.disk, dir(), &mut damages);
    assert!(damages.is_empty(), "{damages:?}");
}

/// What a snapshot, or a copy, lists of its runs decides when their dead heads go.
#[test]
fn what_is_listed_of_a_copys_runs_is_what_they_have() {
    let mut store = store(1_000);
    put(&mut store, 0..100);
    delete(&mut store, 0..60);
    let copy = store.machine.begin_shrinking().unwrap().expect("there is room");
    store.machine.end_checkpoint(copy.write()).unwrap();
    assert!(matches!(store.machine.take_shrunk(), Some(Ok(_))));
    has(&store, 60..100);
    forget_all(&mut store);
    assert!(
        merge_a_step(&mut store),
        "most heads are of deleted keys whose history has gone"
    );
    while merge_a_step(&mut store) {}
    has(&store, 60..100);
}

fn unlisted(store: &Store) -> usize {
    store.machine.state.base.runs.unlisted.len()
}

/// The story: a merge of millions takes as long as a hundred checkpoints. Each left a run, and in the end everybody waited for it.
#[test]
fn newer_runs_are_merged_before_a_merge_of_older_ones_goes_on() {
    let mut store = store(3);
    put(&mut store, 0..40);
    put(&mut store, 40..60);
    assert!(merge_a_step(&mut store));
    assert_eq!((store.machine.runs(), unlisted(&store)), (2, 1), "under way");
    for number in 60..64 {
        put(&mut store, [number]);
        delete(&mut store, [number - 50]);
        while store.machine.runs() > 3 {
            assert!(merge_a_step(&mut store));
            assert!(unlisted(&store) > 0, "the older merge is not done");
        }
    }
    let living = || (0..64).filter(|number| !(10..14).contains(number));
    merge_all(&mut store, living());
    assert_eq!(unlisted(&store), 0);
}

#[test]
fn whatever_a_crash_breaks_off_of_two_merges_and_of_what_is_removed_nothing_is_left_of_it() {
    let begun = || {
        let mut store = store(3);
        put(&mut store, 0..30);
        put(&mut store, 30..50);
        assert!(merge_a_step(&mut store));
        put(&mut store, [50, 51]);
        put(&mut store, [52, 53]);
        store
    };
    let mut all = begun();
    let mut steps = 0;
    while merge_a_step(&mut all) {
        steps += 1;
    }
    assert!(steps > 20);
    for until in 0..steps {
        let mut store = begun();
        for _ in 0..until {
            assert!(merge_a_step(&mut store));
        }
        let mut store = store.reopened(merging(1_000, 1));
        has(&store, 0..54);
        while merge_a_step(&mut store) {}
        assert_eq!(unlisted(&store), 0);
        has(&store, 0..54);
    }
}

/// All at once it took as long as reading all of its pages: apply waited for that.
#[test]
fn what_was_merged_is_removed_a_few_blocks_at_a_time() {
    let mut store = store(1_000);
    put(&mut store, 0..100);
    put(&mut store, 100..200);
    assert!(merge_a_step(&mut store));
    assert_eq!((store.machine.runs(), unlisted(&store)), (1, 2));
    // Two blocks a step.
    let mut store = store.reopened(merging(16, 1));
    let blocks = |store: &Store| -> usize {
        let (base, mut blocks) = (&store.machine.state.base, 0);
        for number in &base.runs.unlisted {
            let run = crate::machine::file::runs::open(base.file(), &base.txn, *number).unwrap();
            blocks += redb::ReadableTable::iter(&run).unwrap().count();
        }
        blocks
    };
    let mut left = blocks(&store);
    assert!(left > 20, "{left}");
    while unlisted(&store) > 0 {
        assert!(merge_a_step(&mut store));
        assert!(left - blocks(&store) <= 2);
        left = blocks(&store);
        has(&store, 0..200);
    }
    assert!(!merge_a_step(&mut store));
}

/// However much is written: what is written is merged first, and could take all steps.
#[test]
fn a_merge_of_old_runs_ends_though_new_ones_come_all_the_time() {
    let mut store = store(2);
    put(&mut store, 0..100);
    put(&mut store, 100..160);
    assert!(merge_a_step(&mut store));
    let oldest = store.machine.state.base.runs.list[0].number;
    let mut writes = 0;
    while store.machine.state.base.runs.list[0].number == oldest {
        // Each write makes a run of one head, and each head is written anew some six times, for each of which it is removed once.
        put(&mut store, [writes % 160]);
        for _ in 0..8 {
            merge_a_step(&mut store);
        }
        writes += 1;
        assert!(writes < 400, "{:?}", store.machine.state.base.runs);
    }
    has(&store, 0..160);
}

/// Each would make a look-up miss a key that is there.
#[test]
fn blocks_and_filters_that_are_not_as_they_must_be_are_damage() {
    use crate::machine::file::filter::Filter;
    use crate::machine::file::runs;
    use redb::{Durability, ReadableTable as _};

    type Spoil = fn(&mut Vec<u8>, &mut Vec<u8>);
    let spoils: [(Spoil, &str); 5] = [
        (
            |_, block| block.truncate(block.len() - 1),
            "a block does not end where it says",
        ),
        (|_, block| block.clear(), "a block is shorter than it says"),
        (|_, block| *block = vec![0, 0, 0, 0], "a block is empty"),
        (
            |key, _| key.truncate(key.len() - 1),
            "its last key is above its bound",
        ),
        // The first letter of the first key.
        (
            |_, block| {
                let begin = 2 * (usize::from(block[1]) + 1);
                block[begin + 2] = b'z';
            },
            "its keys are not in order",
        ),
    ];
    let damaged = |spoil: &dyn Fn(&Store, &redb::WriteTransaction, u64)| {
        let mut store = store(1_000);
        put(&mut store, 0..10);
        let number = store.machine.state.base.runs.list[0].number;
        let state = &store.machine.state.base.state;
        let txn = state.begin_write(Durability::Immediate).unwrap();
        spoil(&store, &txn, number);
        state.commit(txn).unwrap();
        let mut damages = Damages::default();
        examine::examine(&*store.disk, dir(), &mut damages);
        format!("{damages:?}")
    };
    for (spoil, told) in spoils {
        let damages = damaged(&|store, txn, number| {
            let file = store.machine.state.base.file();
            let mut run = runs::open_within(file, txn, number).unwrap();
            let (mut key, mut block) = {
                let (key, block) = run.first().unwrap().unwrap();
                (key.value().to_vec(), block.value().to_vec())
            };
            run.remove(&key[..]).unwrap();
            spoil(&mut key, &mut block);
            run.insert(&key[..], &block[..]).unwrap();
        });
        assert!(damages.contains(told), "{told}: {damages}");
    }
    let damages = damaged(&|store, txn, number| {
        let file = store.machine.state.base.file();
        let mut run = runs::open_within(file, txn, number).unwrap();
        let (key, mut block) = {
            let (key, block) = run.last().unwrap().unwrap();
            (key.value().to_vec(), block.value().to_vec())
        };
        assert!(block[1] > 1, "within itself it is in order");
        let begin = 2 * (usize::from(block[1]) + 1);
        block[begin + 2] = b'a';
        run.insert(&key[..], &block[..]).unwrap();
    });
    assert!(
        damages.contains("its keys are not in order"),
        "the first key of a block comes before the last of the one before it: {damages}"
    );
    let damages = damaged(&|store, txn, number| {
        let file = store.machine.state.base.file();
        let mut run = runs::open_within(file, txn, number).unwrap();
        let rows = run.iter().unwrap().take(2).map(|row| {
            let (bound, block) = row.unwrap();
            (bound.value().to_vec(), block.value().to_vec())
        });
        let [(bound, block), (_, next)] = rows.collect::<Vec<_>>().try_into().unwrap();
        // Its length, and the key itself.
        let begin = 2 * (usize::from(next[1]) + 1);
        let first_of_next = &next[begin + 2..begin + 2 + usize::from(next[begin + 1])];
        run.remove(&bound[..]).unwrap();
        run.insert(first_of_next, &block[..]).unwrap();
    });
    assert!(
        damages.contains("a key of it is not above the bound of the block before"),
        "a look-up of that key would end in the block before: {damages}"
    );
    let damages = damaged(&|store, txn, number| {
        let file = store.machine.state.base.file();
        runs::write_filter(file, txn, number, &Filter::for_keys(10)).unwrap();
    });
    assert!(damages.contains("is not in the run's filter"), "{damages}");
}

/// The runs that it absorbs are the newest, and none that is being merged.
#[test]
fn a_checkpoint_beside_a_merge_takes_no_older_run_either() {
    let mut store = store(2);
    put(&mut store, 0..100);
    put(&mut store, 100..110);
    put(&mut store, 110..120);
    let mut store = store.reopened(merging(2, 1_000));
    assert!(merge_a_step(&mut store));
    let inputs = store.machine.state.base.state.runs.merging()[0].inputs.len();
    assert_eq!((store.machine.runs(), inputs), (3, 2), "the oldest is too large");
    put(&mut store, [120]);
    merge_all(&mut store, 0..121);
    let store = store.reopened(merging(2, 1_000));
    has(&store, 0..121);
}

/// However many of its heads count for nothing any more.
#[test]
fn a_step_looks_at_so_many_keys_also_where_all_are_deleted_and_forgotten() {
    let mut store = store(3);
    put(&mut store, 0..100);
    delete(&mut store, 0..100);
    forget_all(&mut store);
    let mut steps = 0;
    while store.machine.runs() > 0 {
        assert!(merge_a_step(&mut store));
        steps += 1;
    }
    assert!(steps >= 33, "{steps}");
    while merge_a_step(&mut store) {}
    assert_eq!(unlisted(&store), 0);
    has(&store, []);
}

/// One that is nearly done soon makes one run of many, whatever it had to do in the beginning.
#[test]
fn the_merge_that_has_least_left_goes_on_first() {
    let mut store = store(10);
    put(&mut store, 0..60);
    put(&mut store, 60..90);
    for _ in 0..8 {
        assert!(merge_a_step(&mut store));
    }
    put(&mut store, 100..130);
    put(&mut store, 130..150);
    let left = |store: &Store| -> Vec<u64> {
        let merging = store.machine.state.base.state.runs.merging();
        merging.iter().map(|merging| merging.left).collect()
    };
    assert_eq!(left(&store), [10]);
    let (mut steps, mut first_done) = (0, None);
    while merge_a_step(&mut store) {
        steps += 1;
        if store.machine.runs() == 3 {
            first_done.get_or_insert(steps);
        }
    }
    // One to its last row, and one that finds none behind that.
    assert_eq!(first_done, Some(2), "of {steps} steps");
}

/// A merge that has less left comes first, and there may always be one.
#[test]
fn the_oldest_merge_has_a_turn_also_while_shorter_ones_are_under_way() {
    let mut store = store(10);
    put(&mut store, 0..60);
    put(&mut store, 60..90);
    assert!(merge_a_step(&mut store));
    let oldest = |store: &Store| store.machine.state.base.state.runs.merging()[0].left;
    assert_eq!(oldest(&store), 80);
    // Two runs each time, whose merge takes more than the three steps.
    for round in 0..14 {
        let from = 90 + 15 * (round % 6);
        put(&mut store, from..from + 15);
        put(&mut store, from..from + 15);
        for _ in 0..3 {
            assert!(merge_a_step(&mut store));
        }
    }
    assert!(oldest(&store) <= 60, "{} are left", oldest(&store));
    merge_all(&mut store, 0..180);
}
