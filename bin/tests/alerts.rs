//! The alert rules of docs/alerts.yml, held against the metrics that nodes offer.
//!
//! To add a rule: write it, give it a line in docs/operations.md, and where its metric is not offered by a healthy cluster,
//! let `a_cluster_to_look_at` do what makes it.

mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;

use program::{Home, Server, free_ports, http, until};
use promql_parser::label::Labels;
use promql_parser::parser::{self, AggregateExpr, Call, Expr, LabelModifier, VectorSelector};
use serde::Deserialize;

/// Prometheus gives it to every node: whether it answered.
const UP: &str = "up";

const RULES: &str = include_str!("../../docs/alerts.yml");
const MANUAL: &str = include_str!("../../docs/operations.md");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Alert>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alert {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    lasts: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn alerts() -> Vec<Alert> {
    let file: File = serde_yaml_ng::from_str(RULES).unwrap();
    assert!(file.groups.iter().all(|group| !group.name.is_empty()));
    file.groups.into_iter().flat_map(|group| group.rules).collect()
}

/// How a metric is used in an expression.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// As it is.
    Value,
    /// How it rises.
    Rise,
    /// How it was over a time.
    Course,
    /// By the place of a name.
    Label(String),
}

/// Every metric of an expression, with how it is used.
fn uses(expr: &Expr, how: &Use, found: &mut Vec<(String, Use)>) {
    let labels = |names: &Labels, of: &Expr, found: &mut Vec<(String, Use)>| {
        for name in &names.labels {
            uses(of, &Use::Label(name.clone()), found);
        }
    };
    match expr {
        Expr::VectorSelector(selector) => note(selector, how, found),
        Expr::MatrixSelector(matrix) => note(&matrix.vs, how, found),
        Expr::Call(Call { func, args }) => {
            let how = match func.name {
                // Now, of no metric.
                "time" => return,
                "rate" | "increase" | "irate" => &Use::Rise,
                name if name.ends_with("_over_time") || ["delta", "deriv"].contains(&name) => &Use::Course,
                "histogram_quantile" | "max" => how,
                other => panic!("{other}() is new here: what does it do with a metric?"),
            };
            args.args.iter().for_each(|arg| uses(arg, how, found));
        }
        Expr::Aggregate(AggregateExpr { expr, modifier, .. }) => {
            uses(expr, how, found);
            if let Some(LabelModifier::Include(names)) = modifier {
                labels(names, expr, found);
            }
        }
        Expr::Binary(binary) => {
            for side in [&binary.lhs, &binary.rhs] {
                uses(side, how, found);
            }
        }
        Expr::Paren(inner) => uses(&inner.expr, how, found),
        Expr::Unary(inner) => uses(&inner.expr, how, found),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => {}
        other => panic!("{other} is new here"),
    }
}

fn note(selector: &VectorSelector, how: &Use, found: &mut Vec<(String, Use)>) {
    let name = selector.name.clone().expect("a metric has a name");
    for matcher in &selector.matchers.matchers {
        found.push((name.clone(), Use::Label(matcher.name.clone())));
    }
    found.push((name, how.clone()));
}

/// What nodes offer: the kind of each metric, and the labels of its samples.
#[derive(Default, Debug)]
struct Offered {
    kinds: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<String>>,
}

impl Offered {
    fn read(&mut self, page: &str) {
        for line in page.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                self.kinds.insert(name.to_owned(), kind.to_owned());
            } else if let Some((name, rest)) = line.split_once('{') {
                let labels = self.labels.entry(name.to_owned()).or_default();
                let rest = rest.split('}').next().unwrap();
                labels.extend(
                    rest.split(',')
                        .filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())),
                );
            }
        }
    }

    /// The kind of what is behind a name in an expression: a histogram's buckets are counters.
    fn kind(&self, name: &str) -> Option<&str> {
        let histogram = ["_bucket", "_sum", "_count"].iter().any(|end| {
            let whole = name.strip_suffix(end);
            whole.is_some_and(|whole| self.kinds.get(whole).is_some_and(|kind| kind == "histogram"))
        });
        match histogram {
            true => Some("counter"),
            false => self.kinds.get(name).map(String::as_str),
        }
    }
}

/// What three nodes of a cluster offer, each of whose alerting metrics has been met.
fn a_cluster_to_look_at() -> Offered {
    let home = Home::new();
    home.line("certs init --dir c").ok();
    (1..=3).for_each(|id| drop(home.line(&format!("certs issue --dir c --node {id}")).ok().text()));
    home.line("certs issue --dir c --client me").ok();
    let (ports, metrics) = (free_ports(3), free_ports(3));
    let peers: Vec<String> = (1..)
        .zip(&ports)
        .map(|(id, port)| format!("{id}=127.0.0.1:{port}"))
        .collect();
    let peers = peers.join(",");
    let start = |id: usize| {
        let listen = format!("127.0.0.1:{}", ports[id - 1]);
        let offered = format!("127.0.0.1:{}", metrics[id - 1]);
        let (id, data) = (id.to_string(), format!("data{id}"));
        // The log of none can be written, so that lines of it are lost.
        let log = OpenOptions::new().write(true).open("/dev/full").unwrap();
        home.serve_logging_to(
            &[
                "--node-id",
                &id,
                "--data-dir",
                &data,
                "--listen",
                &listen,
                "--certs",
                "c",
                "--peers",
                &peers,
                "--metrics",
                &offered,
                "--profile",
                "low-latency",
            ],
            log,
        )
    };
    let _nodes: Vec<Server> = (1..=3).map(start).collect();
    until("a write", || {
        (home.line("kv put a 1 --deadline 5s").code == 0).then_some(())
    });
    // A stranger knocks.
    home.line("certs init --dir other").ok();
    home.line("certs issue --dir other --client eve").ok();
    for port in &ports {
        home.line(&format!(
            "kv get a --endpoints 127.0.0.1:{port} --certs other --deadline 2s"
        ))
        .fails(2, &["certificate"]);
    }
    until("all metrics", || {
        let mut offered = Offered::default();
        for port in &metrics {
            offered.read(&http(&format!("127.0.0.1:{port}"), "/metrics")?);
        }
        let wanted = metrics_of_all();
        let missing: Vec<&String> = wanted
            .iter()
            .filter(|name| offered.kind(name).is_none())
            .collect();
        missing.is_empty().then_some(offered)
    })
}

fn parsed(alert: &Alert) -> Expr {
    parser::parse(&alert.expr).unwrap_or_else(|error| panic!("{}: {error}", alert.alert))
}

fn metrics_of_all() -> BTreeSet<String> {
    let mut found = Vec::new();
    for alert in alerts() {
        uses(&parsed(&alert), &Use::Value, &mut found);
    }
    found
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name != UP)
        .collect()
}

#[test]
fn every_rule_is_written_in_full_and_stands_in_the_manual() {
    let mut names = BTreeSet::new();
    for Alert {
        alert,
        lasts,
        labels,
        annotations,
        ..
    } in alerts()
    {
        assert!(
            alert.starts_with("Quorate") && names.insert(alert.clone()),
            "{alert}"
        );
        assert!(
            ["critical", "warning"].contains(&labels["severity"].as_str()),
            "{alert}"
        );
        for text in ["summary", "description"] {
            assert!(annotations[text].len() > 20, "{alert}: {text}");
        }
        if let Some(lasts) = lasts {
            assert!(humantime::parse_duration(&lasts).is_ok(), "{alert}: {lasts}");
        }
        assert!(
            MANUAL.contains(&format!("| `{alert}` |")),
            "{alert} is not in docs/operations.md"
        );
    }
    let told = MANUAL
        .lines()
        .filter_map(|line| line.strip_prefix("| `Quorate")?.split('`').next());
    for told in told {
        assert!(
            names.contains(&format!("Quorate{told}")),
            "Quorate{told} is not in docs/alerts.yml"
        );
    }
}

#[test]
fn every_rule_is_about_metrics_that_nodes_offer() {
    let offered = a_cluster_to_look_at();
    for alert in alerts() {
        let mut found = Vec::new();
        uses(&parsed(&alert), &Use::Value, &mut found);
        assert!(!found.is_empty(), "{}", alert.alert);
        for (name, how) in found {
            if name == UP {
                assert_eq!(how, Use::Value, "{}", alert.alert);
                continue;
            }
            let kind = offered
                .kind(&name)
                .unwrap_or_else(|| panic!("{}: no node offers {name}", alert.alert));
            match how {
                Use::Rise => assert_eq!(
                    kind, "counter",
                    "{}: only counters rise, and {name} is none",
                    alert.alert
                ),
                Use::Value | Use::Course => {
                    assert_eq!(
                        kind, "gauge",
                        "{}: {name} is to be looked at by its rise",
                        alert.alert
                    );
                }
                // Prometheus gives these two to every sample.
                Use::Label(label) if ["job", "instance"].contains(&label.as_str()) => {}
                Use::Label(label) => {
                    let has = offered
                        .labels
                        .get(&name)
                        .is_some_and(|labels| labels.contains(&label));
                    assert!(
                        has,
                        "{}: {name} has no label {label}: {:?}",
                        alert.alert,
                        offered.labels.get(&name)
                    );
                }
            }
        }
    }
}

/// The story: the counter of lost lines appeared with the first loss, and `increase()` sees none in what appears.
#[test]
fn every_counter_whose_rise_alerts_is_there_before_it_rises() {
    let home = Home::new();
    let port = free_ports(1)[0];
    let metrics = format!("127.0.0.1:{port}");
    let args = [
        "--data-dir",
        "data",
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        &metrics,
    ];
    let _server = home.serve(&args);
    let has_all = |page: &str| {
        let has = |name: &String| {
            let sample = |line: &str| {
                line.strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            page.lines().any(sample)
        };
        let mut found = Vec::new();
        for alert in alerts() {
            uses(&parsed(&alert), &Use::Value, &mut found);
        }
        let rising = found
            .into_iter()
            .filter(|(_, how)| *how == Use::Rise)
            .map(|(name, _)| name);
        let rising: Vec<String> = rising.filter(|name| !name.ends_with("_bucket")).collect();
        assert!(rising.len() >= 5, "{rising:?}");
        let missing: Vec<&String> = rising.iter().filter(|name| !has(name)).collect();
        missing.is_empty()
    };
    // The status of a node is read soon after it serves.
    until("all counters", || {
        http(&metrics, "/metrics").filter(|page| has_all(page))
    });
}

#[test]
fn the_rules_are_understood_as_they_are_written() {
    let expr = parser::parse("max by (node) (increase(a_total{class=\"x\"}[1h])) > 3 and (b == 0)").unwrap();
    let mut found = Vec::new();
    uses(&expr, &Use::Value, &mut found);
    let label = |name: &str| Use::Label(name.to_owned());
    let a = |how| ("a_total".to_owned(), how);
    assert!(
        found.contains(&a(Use::Rise)) && found.contains(&a(label("class"))),
        "{found:?}"
    );
    assert!(found.contains(&("b".to_owned(), Use::Value)), "{found:?}");
    let offered = {
        let mut offered = Offered::default();
        offered.read("# TYPE h histogram\nh_bucket{le=\"1\",class=\"x\"} 1\n# TYPE g gauge\ng 1\n");
        offered
    };
    assert_eq!(
        [
            offered.kind("h_bucket"),
            offered.kind("g"),
            offered.kind("g_bucket"),
            offered.kind("h_buckets")
        ],
        [Some("counter"), Some("gauge"), None, None]
    );
    assert_eq!(
        offered.labels["h_bucket"],
        BTreeSet::from(["le".to_owned(), "class".to_owned()])
    );
}
