//! How much does it save to create partitions as one batch instead of one by one?
//!
//! One batch is one transaction and one Raft entry; one by one they are as many. Both go over the network, from a
//! client outside the nodes, to clusters of 1, 3 and 5 nodes, with round trips made longer by 0, 1 and 10 ms.
//! Each partition has one replica on each of three brokers. What would take too long one by one is left out, not
//! extrapolated. Writes `docs/batch_vs_sequential.md` and `.svg`.
//!
//! `cargo bench -p quorate-benches --bench batch_vs_sequential`; with `-- batch/3` or another filter, criterion's
//! statistics, on three nodes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use criterion::{BenchmarkId, Criterion, SamplingMode};
use plotters::prelude::*;
use quorate_benches::cluster::Cluster;
use quorate_benches::facts;
use quorate_kv::Client;
use quorate_meta::{Assignment, CreateTopic, MetaClient, NewPartition, RegisterBroker, TopicName};
use quorate_transport::delay::Alarm;
use tokio::runtime::Runtime;

const SIZES: [u32; 6] = [3, 10, 100, 1_000, 10_000, 100_000];
const NODES: [u64; 3] = [1, 3, 5];
const ROUND_TRIPS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(10),
];
const BROKERS: u64 = 3;

/// How often each size is measured: the small ones often, for a median that means something.
fn samples(size: u32, how: How) -> usize {
    match (how, size) {
        (_, 0..=10) => 15,
        (How::Batch, ..=1_000) => 9,
        (How::Batch, ..=10_000) => 5,
        (How::Batch, _) => 3,
        (How::Sequential, ..=100) => 5,
        (How::Sequential, _) => 1,
    }
}

/// What is measured at all: the whole takes some minutes.
fn measured(nodes: u64, round_trip: Duration, size: u32, how: How) -> bool {
    match how {
        How::Batch => size <= 10_000 || (nodes == 3 && round_trip.is_zero()),
        How::Sequential if round_trip.is_zero() => size <= 1_000,
        How::Sequential if round_trip <= Duration::from_millis(1) => {
            size <= 1_000 && (nodes == 3 || size <= 100)
        }
        How::Sequential => size <= 10 || (nodes == 3 && size <= 100),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Batch,
    Sequential,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Batch => "batch",
            How::Sequential => "sequential",
        }
    }
}

/// A cluster with its brokers, and topics that nobody has used.
struct Bench {
    cluster: Cluster,
    meta: MetaClient<Client>,
    topics: u64,
}

impl Bench {
    async fn start(nodes: u64, round_trip: Duration, alarm: &Alarm) -> Result<Self> {
        let cluster = Cluster::start(nodes, &facts::directory(), round_trip, alarm).await?;
        let meta = MetaClient::new(cluster.client().clone());
        for id in 1..=BROKERS {
            let register = RegisterBroker::new(id, format!("broker-{id}:9092"))?;
            meta.register_broker(register).await?;
        }
        Ok(Self {
            cluster,
            meta,
            topics: 0,
        })
    }

    /// Creates `size` partitions in a new topic; the time is theirs alone.
    async fn create(&mut self, size: u32, how: How) -> Result<Duration> {
        self.topics += 1;
        let topic = TopicName::new(&format!("topic-{}", self.topics))?;
        let everywhere = || Assignment::new(1..=BROKERS);
        self.meta
            .create_topic(CreateTopic::manual(topic.clone(), [everywhere()])?)
            .await?;
        let new = |index: u32| NewPartition::new(&topic, index, everywhere());
        let partitions: Vec<NewPartition> = (1..=size).map(new).collect::<Result<_, _>>()?;
        let begun = Instant::now();
        match how {
            How::Batch => {
                self.meta.create_partitions(partitions).await?;
            }
            How::Sequential => {
                for partition in partitions {
                    self.meta.create_partition(partition).await?;
                }
            }
        }
        Ok(begun.elapsed())
    }
}

/// A row of the table.
struct Row {
    nodes: u64,
    round_trip: Duration,
    size: u32,
    batch: Option<Duration>,
    sequential: Option<Duration>,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        Some(self.sequential?.as_secs_f64() / self.batch?.as_secs_f64())
    }
}

fn main() -> Result<()> {
    println!("How much does it save to create partitions as one batch instead of one by one?\n");
    let facts = facts::describe(&facts::directory())?;
    for fact in &facts {
        println!("{fact}");
    }
    let runtime = Runtime::new()?;
    let alarm = Alarm::start()?;
    // `cargo bench` itself passes `--bench`; whoever passes more wants criterion.
    if std::env::args().skip(1).any(|arg| arg != "--bench") {
        return statistics(&runtime, &alarm);
    }
    let rows = runtime.block_on(measure_all(&alarm))?;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let report = report(&facts, &rows)?;
    std::fs::write(docs.join("batch_vs_sequential.md"), &report)?;
    plot(&docs.join("batch_vs_sequential.svg"), &rows)?;
    println!("\n{report}\nwritten to docs/batch_vs_sequential.md and docs/batch_vs_sequential.svg");
    Ok(())
}

/// Criterion's view of what does not take long: its statistics, and its comparison with the run before.
fn statistics(runtime: &Runtime, alarm: &Alarm) -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut bench = runtime.block_on(Bench::start(3, Duration::ZERO, alarm))?;
    for how in [How::Batch, How::Sequential] {
        let mut group = criterion.benchmark_group(how.name());
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(500));
        let sizes: &[u32] = match how {
            How::Batch => &[3, 10, 100, 1_000, 10_000],
            How::Sequential => &[3, 10, 100],
        };
        for size in sizes.iter().copied() {
            group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
                bencher.iter_custom(|times| {
                    (0..times)
                        .map(|_| {
                            runtime
                                .block_on(bench.create(size, how))
                                .unwrap_or_else(|error| panic!("{} of {size}: {error:#}", how.name()))
                        })
                        .sum()
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
    runtime.block_on(bench.cluster.stop());
    Ok(())
}

async fn measure_all(alarm: &Alarm) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for nodes in NODES {
        for round_trip in ROUND_TRIPS {
            let mut bench = Bench::start(nodes, round_trip, alarm).await?;
            // Warm: connections, sessions, caches.
            bench.create(10, How::Batch).await?;
            bench.create(10, How::Sequential).await?;
            let before = bench.cluster.leader().await?;
            for size in SIZES {
                let batch = median(&mut bench, nodes, round_trip, size, How::Batch).await?;
                let sequential = median(&mut bench, nodes, round_trip, size, How::Sequential).await?;
                let row = Row {
                    nodes,
                    round_trip,
                    size,
                    batch,
                    sequential,
                };
                if row.batch.is_some() {
                    println!(
                        "{nodes} nodes, +{round_trip:?}, {size} partitions: batch {}, one by one {}",
                        text(batch),
                        text(sequential)
                    );
                    rows.push(row);
                }
            }
            let after = bench.cluster.leader().await?;
            ensure!(
                (before.term, before.leader) == (after.term, after.leader),
                "the leader changed under the load of {nodes} nodes at +{round_trip:?}: the figures would be its \
                 election's (term {} before, {} after)",
                before.term,
                after.term
            );
            bench.cluster.stop().await;
        }
    }
    Ok(rows)
}

async fn median(
    bench: &mut Bench,
    nodes: u64,
    round_trip: Duration,
    size: u32,
    how: How,
) -> Result<Option<Duration>> {
    if !measured(nodes, round_trip, size, how) {
        return Ok(None);
    }
    let mut took = Vec::new();
    for _ in 0..samples(size, how) {
        took.push(bench.create(size, how).await?);
    }
    took.sort_unstable();
    Ok(Some(facts::quantile(&took, 0.5)))
}

fn text(duration: Option<Duration>) -> String {
    match duration {
        None => "not measured".to_owned(),
        Some(duration) => {
            let millis = duration.as_secs_f64() * 1e3;
            match millis {
                0.0..10.0 => format!("{millis:.2} ms"),
                10.0..100.0 => format!("{millis:.1} ms"),
                _ => format!("{millis:.0} ms"),
            }
        }
    }
}

fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn report(facts: &[String], rows: &[Row]) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "# One batch against one by one\n")?;
    writeln!(
        out,
        "How much does it save to create partitions as one batch instead of one by one? One batch is one \
         transaction and one Raft entry, whatever its size; one by one, each partition is an entry and waits for \
         its own round trips and syncs.\n"
    )?;
    let find = |size| {
        let mut rows = rows.iter();
        rows.find(|row| row.nodes == 3 && row.round_trip.is_zero() && row.size == size)
    };
    let ratio = |size| find(size).and_then(Row::ratio);
    if let (Some(few), Some(many)) = (ratio(3), ratio(1_000)) {
        writeln!(
            out,
            "**On three nodes, 3 partitions as one batch take 1/{few:.1} of the time, and 1,000 take 1/{many:.0}. \
             10,000 in one transaction take {}, 100,000 take {}, and the leader stays.**\n",
            text(find(10_000).and_then(|row| row.batch)),
            text(find(100_000).and_then(|row| row.batch))
        )?;
    }
    writeln!(
        out,
        "![The time by the number of partitions](batch_vs_sequential.svg)\n"
    )?;
    for fact in facts {
        writeln!(out, "- {fact}")?;
    }
    writeln!(
        out,
        "- settings: the default ones; all nodes in one process, QUIC with mutual TLS on loopback, a client \
         outside the nodes; medians; \"round trip\" is what was added to each between two nodes and to the client"
    )?;
    writeln!(
        out,
        "- again: `cargo bench -p quorate-benches --bench batch_vs_sequential`\n"
    )?;
    writeln!(
        out,
        "| nodes | round trip | partitions | one batch | one by one | ratio |\n|--:|--:|--:|--:|--:|--:|"
    )?;
    for row in rows {
        let ratio = row.ratio().map_or(String::new(), |ratio| format!("{ratio:.1}"));
        writeln!(
            out,
            "| {} | +{} ms | {} | {} | {} | {ratio} |",
            row.nodes,
            row.round_trip.as_millis(),
            grouped(row.size),
            text(row.batch),
            text(row.sequential)
        )?;
    }
    writeln!(
        out,
        "\nNot measured is what would take the benchmark too long; nothing here is extrapolated."
    )?;
    Ok(out)
}

/// Three nodes: time over partitions, both axes logarithmic.
fn plot(path: &Path, rows: &[Row]) -> Result<()> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.nodes == 3).collect();
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    let all = rows.iter().flat_map(|row| [row.batch, row.sequential]).flatten();
    let highest = all.clone().map(millis).fold(1.0, f64::max);
    let lowest = all.map(millis).fold(highest, f64::min);
    let path: PathBuf = path.to_owned();
    let ink = RGBColor(40, 44, 52);
    let grid = RGBColor(225, 228, 233);
    let root = SVGBackend::new(&path, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Creating partitions on 3 nodes: one batch and one by one",
            ("sans-serif", 21).into_font().color(&ink),
        )
        .margin(18)
        .x_label_area_size(46)
        .y_label_area_size(72)
        .build_cartesian_2d(
            (2.5f64..130_000f64).log_scale(),
            (lowest / 1.6..highest * 2.0).log_scale(),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(grid)
        .light_line_style(TRANSPARENT)
        .axis_style(grid)
        .x_desc("partitions")
        .y_desc("milliseconds, median")
        .x_label_formatter(&|x| grouped(x.round() as u32))
        .y_label_formatter(&|y| {
            if *y < 1.0 {
                format!("{y}")
            } else {
                grouped(y.round() as u32)
            }
        })
        .label_style(("sans-serif", 14).into_font().color(&ink))
        .axis_desc_style(("sans-serif", 15).into_font().color(&ink))
        .draw()?;
    let batch_colours = [
        RGBColor(13, 110, 95),
        RGBColor(38, 166, 141),
        RGBColor(137, 208, 190),
    ];
    let sequential_colours = [
        RGBColor(183, 65, 14),
        RGBColor(230, 121, 55),
        RGBColor(246, 186, 140),
    ];
    for (how, colours) in [(How::Sequential, sequential_colours), (How::Batch, batch_colours)] {
        for (round_trip, colour) in ROUND_TRIPS.into_iter().zip(colours).rev() {
            let of = rows.iter().filter(|row| row.round_trip == round_trip);
            let points: Vec<(f64, f64)> = of
                .filter_map(|row| {
                    let took = match how {
                        How::Batch => row.batch,
                        How::Sequential => row.sequential,
                    };
                    Some((f64::from(row.size), millis(took?)))
                })
                .collect();
            let label = match how {
                How::Batch => format!("one batch, +{} ms", round_trip.as_millis()),
                How::Sequential => format!("one by one, +{} ms", round_trip.as_millis()),
            };
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(3)))?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
            chart.draw_series(points.into_iter().map(|at| Circle::new(at, 4, colour.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .margin(14)
        .background_style(WHITE.mix(0.85))
        .border_style(grid)
        .label_font(("sans-serif", 14).into_font().color(&ink))
        .draw()?;
    root.present().context("the plot was not written")?;
    Ok(())
}
