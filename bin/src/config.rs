//! `quorate config`: the limits of the cluster, shown and changed while it serves.

use std::time::Duration;

use comfy_table::Cell;
use quorate_kv::model::{Bounds, Limit, ReplicatedLimits, Unit};
use serde::Serialize;

use crate::cli::{ConfigArgs, ConfigCommand};
use crate::failure::Failure;
use crate::output::{Output, Report, columns, number, table};
use crate::reach::Reached;
use crate::text::{distance, exact_size, parse_size, set_time, thousands};

/// Runs the command.
pub async fn run(args: ConfigArgs, output: Output) -> Result<(), Failure> {
    // What can be refused without asking anybody is.
    let asked = match &args.command {
        ConfigCommand::Get { name: None } => None,
        ConfigCommand::Get { name: Some(name) } => Some((limit(name)?, None)),
        ConfigCommand::Set { name, value } => {
            let limit = limit(name)?;
            Some((limit, Some(parse(limit, value)?)))
        }
    };
    let client = Reached::find(&args.reach)?.client()?;
    match asked {
        None => output.show(&All::of(&client.limits().await?)),
        Some((limit, None)) => output.show(&One::of(limit, &client.limits().await?)),
        Some((limit, Some(value))) => {
            let before = client.limits().await?;
            let stand = client.set_limits([(limit, value)]).await?;
            output.show(&Changed {
                was: before.get(limit),
                one: One::of(limit, &stand),
            })
        }
    }
}

/// By its name, or by its key in the file.
fn limit(name: &str) -> Result<Limit, Failure> {
    let name = name.strip_prefix("store.").unwrap_or(name);
    name.parse().map_err(|unknown: quorate_kv::model::UnknownLimit| {
        let failure = Failure::refused(unknown.to_string());
        let near = Limit::ALL
            .into_iter()
            .map(|limit| (distance(name, limit.name()), limit))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        failure.hint(match near {
            Some((_, near)) => format!("did you mean {near}?"),
            None => "quorate config get shows them all".to_owned(),
        })
    })
}

/// A value as a person gives it: `10m`, `64 MiB`, `10000`, `none`.
fn parse(limit: Limit, text: &str) -> Result<u64, Failure> {
    let refused = |expected: String| {
        let message = format!("{limit}: {text:?} is not {expected}");
        Failure::refused(message).hint(bounds(limit))
    };
    let value = match (text.trim(), limit.unit()) {
        ("none", _) if limit.bounds().or_none => 0,
        (text, Unit::Bytes) => {
            parse_size(text).ok_or_else(|| refused("a size, such as 64MiB, of whole bytes".to_owned()))?
        }
        ("0", Unit::Millis) => 0,
        (text, Unit::Millis) => {
            let time = humantime::parse_duration(text)
                .map_err(|error| refused(format!("a time, such as 10m: {error}")))?;
            if !time.is_zero() && time.as_millis() == 0 {
                return Err(refused("a time of whole milliseconds".to_owned()));
            }
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        }
        (text, Unit::Count) => text
            .replace(['_', ','], "")
            .parse()
            .map_err(|_| refused("a whole number".to_owned()))?,
    };
    match limit.bounds().allow(value) {
        true => Ok(value),
        false => {
            let message = format!("{limit}: {} is out of range", show(limit, value));
            Err(Failure::refused(message).hint(bounds(limit)))
        }
    }
}

/// A value for people.
fn show(limit: Limit, value: u64) -> String {
    match limit.unit() {
        _ if value == 0 && limit.bounds().or_none => "none".to_owned(),
        Unit::Count => thousands(value),
        Unit::Bytes => exact_size(value),
        Unit::Millis => set_time(Duration::from_millis(value)),
    }
}

/// What a limit may be, for people.
fn bounds(limit: Limit) -> String {
    let Bounds { min, max, or_none } = limit.bounds();
    let none = if or_none { ", or none" } else { "" };
    match (min, max) {
        (0, u64::MAX) => "it may be any number".to_owned(),
        (min, u64::MAX) => format!("it may be {} or more{none}", show_number(limit, min)),
        (min, max) => format!(
            "it may be {} to {}{none}",
            show_number(limit, min),
            show_number(limit, max)
        ),
    }
}

fn show_number(limit: Limit, value: u64) -> String {
    match value {
        0 => "0".to_owned(),
        value => show(limit, value),
    }
}

/// A limit that stands.
#[derive(Debug, Serialize)]
struct One {
    name: &'static str,
    value: u64,
    /// What the value counts.
    unit: &'static str,
    default: u64,
    min: u64,
    max: u64,
    /// Whether it may be 0 besides, which is no limit.
    may_be_none: bool,
    meaning: String,
    #[serde(skip)]
    limit: Limit,
}

impl One {
    fn of(limit: Limit, stand: &ReplicatedLimits) -> Self {
        let Bounds { min, max, or_none } = limit.bounds();
        Self {
            name: limit.name(),
            value: stand.get(limit),
            unit: match limit.unit() {
                Unit::Count => "count",
                Unit::Bytes => "bytes",
                Unit::Millis => "milliseconds",
            },
            default: ReplicatedLimits::default().get(limit),
            min,
            max,
            may_be_none: or_none,
            meaning: meaning(limit),
            limit,
        }
    }

    /// What it means and may be, for people.
    fn about(&self) -> String {
        format!(
            "{}\n{}; {} by default",
            self.meaning,
            bounds(self.limit),
            show(self.limit, self.default)
        )
    }
}

/// How wide the table of all limits is where no terminal says how wide it is: as the help.
const COLUMNS: u16 = 80;

/// In one line.
fn meaning(limit: Limit) -> String {
    limit.meaning().split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Report for One {
    fn text(&self) -> String {
        format!(
            "{} = {}\n{}",
            self.name,
            show(self.limit, self.value),
            self.about()
        )
    }

    /// The value alone.
    fn raw(&self) -> Option<Vec<u8>> {
        Some(format!("{}\n", self.value).into_bytes())
    }
}

/// A limit that was set, with what stood before, as it was read just before.
#[derive(Debug, Serialize)]
struct Changed {
    was: u64,
    #[serde(flatten)]
    one: One,
}

impl Report for Changed {
    fn text(&self) -> String {
        let One {
            name, limit, value, ..
        } = self.one;
        format!(
            "{name} = {} (it was {})\n{}",
            show(limit, value),
            show(limit, self.was),
            self.one.about()
        )
    }

    fn raw(&self) -> Option<Vec<u8>> {
        self.one.raw()
    }
}

/// All limits that stand.
#[derive(Debug, Serialize)]
struct All {
    limits: Vec<One>,
}

impl All {
    fn of(stand: &ReplicatedLimits) -> Self {
        Self {
            limits: Limit::ALL
                .into_iter()
                .map(|limit| One::of(limit, stand))
                .collect(),
        }
    }
}

impl Report for All {
    fn text(&self) -> String {
        let mut table = table(["limit", "stands", "default", "meaning"]);
        if columns().is_none() {
            table.set_width(COLUMNS);
        }
        for one in &self.limits {
            table.add_row(vec![
                Cell::new(one.name),
                number(show(one.limit, one.value)),
                number(show(one.limit, one.default)),
                Cell::new(&one.meaning),
            ]);
        }
        table.to_string()
    }

    fn list(&self) -> Option<&'static str> {
        Some("limits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_people_write_them_and_shown_so_that_they_read_back() {
        for (limit, text, expected) in [
            (Limit::HistoryKept, "1h", 3_600_000),
            (Limit::HistoryKept, "none", 0),
            (Limit::HistoryKept, "0", 0),
            (Limit::StoreBytesMax, "64 MiB", 64 << 20),
            (Limit::StoreBytesMax, "none", 0),
            (Limit::StoreBytesMax, "1PiB", 1 << 50),
            (Limit::StoreBytesMax, "1500000", 1_500_000),
            (Limit::SessionsMax, "10_000", 10_000),
            (Limit::SessionsMax, "10,000", 10_000),
        ] {
            assert_eq!(
                parse(limit, text).expect("a legal value"),
                expected,
                "{limit} {text}"
            );
            let shown = show(limit, expected);
            assert_eq!(parse(limit, &shown).expect("it reads back"), expected, "{shown}");
        }
        for limit in Limit::ALL {
            let default = ReplicatedLimits::default().get(limit);
            assert_eq!(
                parse(limit, &show(limit, default)).expect("it reads back"),
                default,
                "{limit}"
            );
        }
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_with_what_can() {
        let told = |limit, text| parse(limit, text).expect_err("refused").to_string();
        assert_eq!(
            told(Limit::HistoryKept, "10ms"),
            "history_kept: 10ms is out of range\n  hint: it may be 1s to 365 days, or none"
        );
        assert_eq!(
            told(Limit::StoreBytesMax, "4095"),
            "store_bytes_max: 4095 B is out of range\n  hint: it may be 4 KiB to 1 PiB, or none"
        );
        assert!(told(Limit::SessionsMax, "none").contains("is not a whole number"));
        assert!(told(Limit::StoreBytesMax, "much").contains("a size, such as 64MiB"));
        assert!(
            told(Limit::HistoryKept, "500us").contains("whole milliseconds"),
            "not for ever"
        );
        assert!(told(Limit::SessionTtl, "1 apple").contains("a time, such as 10m"));
    }

    #[test]
    fn a_limit_is_known_by_its_key_in_the_file_too() {
        assert_eq!(limit("store.history_kept").unwrap(), Limit::HistoryKept);
        let told = limit("store.history_keep")
            .expect_err("no such limit")
            .to_string();
        assert!(told.ends_with("did you mean history_kept?"), "{told}");
    }

    #[test]
    fn the_table_says_all_of_what_a_limit_means_and_fits_where_no_terminal_is() {
        let text = All::of(&ReplicatedLimits::default()).text();
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= usize::from(COLUMNS), "{widest} columns:\n{text}");
        let words: std::collections::BTreeSet<&str> = text.split_whitespace().collect();
        for limit in Limit::ALL {
            for word in limit.meaning().split_whitespace() {
                assert!(words.contains(word), "{limit}: {word} is missing in\n{text}");
            }
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest() {
        let told = limit("history_keep").expect_err("no such limit").to_string();
        assert_eq!(
            told,
            "there is no limit \"history_keep\"\n  hint: did you mean history_kept?"
        );
        let told = limit("colour").expect_err("no such limit").to_string();
        assert!(told.ends_with("quorate config get shows them all"), "{told}");
    }
}
