//! The command line's grammar: every command, flag and help text.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

const AFTER_HELP: &str = r#"Exit codes:
  0  done
  1  this program or this machine failed
  2  refused: the same is refused again; nothing was changed
  3  not found
  4  unavailable: nobody answered in time, or what is in the way may pass by
     itself; nothing was changed, try again later
  5  unknown outcome: the write may have taken effect, or a part of it; read
     before you repeat it
  6  damaged: quorate check found files that are not whole

Formats:
  table  for people
  json   one JSON document; --json is short for it. A failure is then, on
         standard error, one object
           {"error":
             {"kind": ..., "message": ..., "details": [...], "hint": ...}}
         whose kind is failed, refused, not_found, unavailable,
         unknown_outcome or damaged
  raw    for pipes: nothing but the bytes of a value (kv get), or lines of
         fields with tabs between them, without headings: a line for each
         key, node, member, limit, broker, topic or partition, else one line.
         The fields are those of the JSON form, in its order (status: those of
         the table; kv: see quorate kv --help). An empty field is null, a list
         has commas; \t \n \r \\ in a field stand for those four bytes

Start here:
  quorate demo                      a cluster of three in this process
  quorate serve --data-dir ./data   one node, which the other commands find
  quorate kv put greeting hello"#;

/// How wide help is at most: as wide as the narrowest terminal in common use.
const COLUMNS_MAX: usize = 80;

/// A replicated, transactional key-value store with typed metadata for message brokers.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, after_help = AFTER_HELP, max_term_width = COLUMNS_MAX)]
pub struct Cli {
    /// How results are shown: table for people, json for programs, or raw for pipes; see quorate --help
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        env = "QUORATE_FORMAT",
        hide_env = true,
        global = true,
        display_order = 899,
        value_name = "FORMAT"
    )]
    pub format: Option<Format>,
    /// Short for --format json
    #[arg(long, env = "QUORATE_JSON", hide_env = true, global = true, display_order = 900,
          value_parser = clap::builder::BoolishValueParser::new())]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const STATUS_HELP: &str = "\
behind  entries that the leader does not yet know a node to have
level   how long ago a node had all that its leader told it was committed
sync    how long the node's log takes to become durable, in the median

Exit code 4 says that no node answered.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node until SIGTERM or SIGINT
    Serve(Box<ServeArgs>),
    /// Show every node of the cluster: its part, term, revision and lag
    #[command(after_help = STATUS_HELP)]
    Status(Reach),
    /// Read and write keys
    Kv(KvArgs),
    /// Brokers, topics and partitions
    Meta(MetaArgs),
    /// The nodes of the cluster: list, add, promote, remove, move the leadership
    Member(MemberArgs),
    /// The limits of the cluster, the same on every node: show them, change them
    Config(ConfigArgs),
    /// Have every node copy its state file into a smaller one, while it serves
    #[command(after_help = SHRINK_HELP)]
    Shrink(Reach),
    /// Make a cluster's authority and the certificates of its nodes and clients
    Certs(CertsArgs),
    /// Verify the files of a node that does not run, whole, and change nothing
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),
    /// Start a cluster in this process, run a broker's metadata through it, kill the leader
    Demo(DemoArgs),
    /// Measure a cluster under load; its keys, under bench/, stay in a cluster that ran before
    Bench(BenchArgs),
    /// Print a completion script: quorate completions bash > /etc/bash_completion.d/quorate
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// How the cluster is found and asked.
#[derive(Debug, Clone, Args)]
#[command(
    next_help_heading = "Reaching the cluster: by default the nodes that you run on this machine.\n\
                                Each of these is a variable too, such as QUORATE_ENDPOINTS"
)]
pub struct Reach {
    /// Nodes to ask, as host:port, comma-separated; one suffices, the others are learned from it
    #[arg(
        long,
        env = "QUORATE_ENDPOINTS",
        hide_env = true,
        value_delimiter = ',',
        value_name = "HOST:PORT",
        global = true
    )]
    pub endpoints: Vec<String>,
    /// Directory with ca.crt, client-NAME.crt and client-NAME.key
    #[arg(
        long,
        env = "QUORATE_CERTS",
        hide_env = true,
        value_name = "DIR",
        global = true
    )]
    pub certs: Option<PathBuf>,
    /// Whose certificate in that directory; needed where it holds several
    #[arg(long, env = "QUORATE_CLIENT", hide_env = true, value_name = "NAME", global = true,
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub client: Option<String>,
    /// Ask the node that runs on this data directory
    #[arg(
        long,
        env = "QUORATE_DATA_DIR",
        hide_env = true,
        value_name = "DIR",
        global = true
    )]
    pub data_dir: Option<PathBuf>,
    /// Ask this cluster: needed where nodes of several run on this machine, and refused where the certificate is of another
    #[arg(long, env = "QUORATE_CLUSTER", hide_env = true, value_name = "NAME", global = true,
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub cluster: Option<String>,
    /// How long a request may take, retries included
    #[arg(long, env = "QUORATE_DEADLINE", hide_env = true, value_name = "TIME", default_value = "15s", global = true,
          value_parser = humantime::parse_duration)]
    pub deadline: Duration,
}

const SHRINK_HELP: &str = "\
A copy of a large state takes its time: all nodes together have --deadline
(QUORATE_DEADLINE) where that is given, and ten minutes where it is not.

An endpoint that is no member of the cluster is named as such, and is no
failure. Exit code 4 says that a member has not shrunk its file.";

const SERVE_HELP: &str = "\
Every flag is also a variable QUORATE_<FLAG>, and all but --config, --check,
--format and --json are keys of the configuration file. A flag beats the
variable, the variable beats the file. An empty value is refused, and so is a
variable QUORATE_* that does not exist. docs/configuration.md lists all keys
with their units, ranges and defaults.

With nothing but a data directory it serves alone on 127.0.0.1:7001, with
certificates of its own making under <data-dir>/certs, and the other commands,
run by the same user on the same machine, find it.

A service manager may start it again after exit codes 1 and 4; after 2 somebody
must act first.

Three nodes: make the certificates once (quorate certs init, quorate certs
issue), then on each node n
  quorate serve --data-dir D --node-id n --listen 0.0.0.0:7001 --certs C \\
    --peers 1=a:7001,2=b:7001,3=c:7001";

/// Flags of `quorate serve`. Taken as text, so that all that is wrong with them and with the file is told at once.
#[derive(Debug, Default, Clone, Args)]
#[command(after_help = SERVE_HELP)]
pub struct ServeArgs {
    /// The configuration file (TOML)
    #[arg(long, short, env = "QUORATE_CONFIG", hide_env = true, value_name = "FILE")]
    pub config: Option<String>,
    /// Where the node keeps its files; made if missing
    #[arg(long, short, env = "QUORATE_DATA_DIR", hide_env = true, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// The cluster's name
    #[arg(long, env = "QUORATE_CLUSTER", hide_env = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// This node's id: a number from 1 on that no other member has; better one that none ever had
    #[arg(long, env = "QUORATE_NODE_ID", hide_env = true, value_name = "ID")]
    pub node_id: Option<String>,
    /// Address to listen on; port 0 takes any free one
    #[arg(long, env = "QUORATE_LISTEN", hide_env = true, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Where other nodes and clients reach this one, where that is not the address listened on
    #[arg(long, env = "QUORATE_ADVERTISE", hide_env = true, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// All nodes of a new cluster, this one included; the same list on each
    #[arg(long, env = "QUORATE_PEERS", hide_env = true, value_name = "ID=HOST:PORT,...")]
    pub peers: Option<String>,
    /// Wait to be added to a cluster that exists (quorate member add), instead of forming one
    #[arg(long, env = "QUORATE_JOIN", hide_env = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub join: Option<String>,
    /// Directory with ca.crt, node-ID.crt and node-ID.key
    #[arg(long, env = "QUORATE_CERTS", hide_env = true, value_name = "DIR")]
    pub certs: Option<String>,
    /// Heartbeats and failover times: development, production, low-latency or high-latency
    #[arg(long, env = "QUORATE_PROFILE", hide_env = true, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Offer metrics for Prometheus under http://ADDRESS:PORT/metrics
    #[arg(long, env = "QUORATE_METRICS", hide_env = true, value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// What to log: error, warn, info, debug, trace, or filters such as info,quorate_kv=debug
    #[arg(long, env = "QUORATE_LOG", hide_env = true, value_name = "LEVEL")]
    pub log: Option<String>,
    /// How to log: text or json
    #[arg(long, env = "QUORATE_LOG_FORMAT", hide_env = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Worker threads for the network and for clients; 1 by default, which looks for the next datagram before it sleeps
    #[arg(long, env = "QUORATE_WORKERS", hide_env = true, value_name = "N")]
    pub workers: Option<String>,
    /// How long the one worker thread looks for the next datagram before it sleeps; 500us by default, 0s is not at all
    #[arg(long, env = "QUORATE_BUSY_POLL", hide_env = true, value_name = "TIME")]
    pub busy_poll: Option<String>,
    /// Check the configuration, say what it amounts to, and end
    #[arg(long, env = "QUORATE_CHECK", hide_env = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub check: Option<String>,
}

const KV_HELP: &str = r#"Examples:
  quorate kv put greeting hello
  quorate kv get greeting --raw
  quorate kv put greeting goodbye --prev
  quorate kv cas greeting goodbye farewell
  quorate kv add hits 1
  quorate kv get hits --number
  quorate kv range --prefix config/ --keys-only
  quorate kv count --prefix config/
  quorate kv del config/ --prefix
  echo 'add hits 1' | quorate kv txn
  quorate kv export backup.jsonl
  quorate kv import backup.jsonl

With --format raw standard output has nothing but
  get      the value's bytes, without a line feed behind them
  exists   true
  count    how many keys there are
  range    KEY VALUE for each key; with --keys-only KEY
  put      REVISION, and true or false: whether the key existed;
           with --prev also the value that it had
  cas      the same
  add      the number
  del      REVISION, and how many keys were deleted (nothing with --in-steps
           but how many); with --prev also the value that was deleted
  compact  the oldest revision that is left
  txn      see quorate kv txn --help
  import   how many keys were written
Each is a line, but for the bytes of get; several fields have tabs between them.
Keys and values are their bytes, or what --hex and --number make of them; in
lines \t \n \r \\ stand for tab, line feed, carriage return and backslash.
export writes the same in every format."#;

/// `quorate kv`.
#[derive(Debug, Args)]
#[command(after_help = KV_HELP)]
pub struct KvArgs {
    /// Keys and values are given and shown as hexadecimal digits
    #[arg(long, global = true, display_order = 800)]
    pub hex: bool,
    /// Values are given and shown as the numbers that add and max keep, in 8 bytes
    #[arg(long, global = true, display_order = 801)]
    pub number: bool,
    /// How the cluster is found. Last, since its heading goes on.
    #[command(flatten)]
    pub reach: Reach,
    /// What to do.
    #[command(subcommand)]
    pub command: KvCommand,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Args)]
pub struct Freshness {
    /// Read the state as it was at this revision
    #[arg(long, alias = "rev", value_name = "N", conflicts_with_all = ["stale", "max_lag", "min_revision"])]
    pub revision: Option<u64>,
    /// Take what the node that is asked has, instead of asking the leader
    #[arg(long)]
    pub stale: bool,
    /// With --stale: what was acknowledged up to this long before is seen, or the read is refused
    #[arg(long, value_name = "TIME", requires = "stale", value_parser = humantime::parse_duration)]
    pub max_lag: Option<Duration>,
    /// With --stale: at least this revision is seen, for which the node waits
    #[arg(long, value_name = "N", requires = "stale")]
    pub min_revision: Option<u64>,
}

const CAS_HELP: &str = "\
Where the key has another value, or does not exist, nothing is written, the exit
code is 2, and what was found instead is shown. To write a key that nobody else
has written since you read it, see quorate kv put --if-revision.";

const EXPORT_HELP: &str = r#"Each line is a JSON object, in the order of the keys:
  {"key":"greeting","value":"hello"}
  {"key_hex":"00ff","value_hex":"c0de"}   where the bytes are not UTF-8
and the last one says that nothing is missing:
  {"end":{"keys":2,"revision":42}}

A FILE appears, or is replaced, when all is written; it is readable for its user
alone. What goes to standard output may break off: then the last line is
missing, the exit code is not 0, and quorate kv import refuses it.

The revision must stay readable meanwhile: history is kept as long as
history_kept and history_revisions_kept say (quorate config get).
Keys and values are exported; revisions, versions and leases are not."#;

const IMPORT_HELP: &str = r#"It takes what quorate kv export writes, or several of them one after the other,
and lines of the same form that another program made: those have no last line
{"end":{"keys":N}}, and need --partial.

A file is read twice: it is checked whole before anything is written. From
standard input lines are written as they come. They are written in batches, each
of them whole or not at all; where it ends early, exit code 5 and the message
say up to which line they were written. The same import can be repeated. It
deletes nothing. Keys that were there keep their create revision and count one
more version; others begin anew with version 1."#;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Show a key
    Get {
        /// The key
        key: String,
        /// Write the value alone, whatever --json says: its bytes as they are, or what --hex or --number make of them
        #[arg(long)]
        raw: bool,
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Say whether a key exists: by exit code 0 or 3
    Exists {
        /// The key
        key: String,
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Count the keys from START (inclusive) to END (exclusive); all keys without either
    Count {
        /// The first key
        #[arg(conflicts_with = "prefix")]
        start: Option<String>,
        /// The key before which to stop
        end: Option<String>,
        /// The keys that begin with this
        #[arg(long)]
        prefix: Option<String>,
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Show the keys from START (inclusive) to END (exclusive); all keys without either
    #[command(visible_aliases = ["list", "scan"])]
    Range {
        /// The first key
        #[arg(conflicts_with = "prefix")]
        start: Option<String>,
        /// The key before which to stop
        end: Option<String>,
        /// The keys that begin with this
        #[arg(long)]
        prefix: Option<String>,
        /// Show at most so many
        #[arg(long, value_name = "N", default_value_t = 1_000,
              value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// The highest key first
        #[arg(long)]
        descending: bool,
        /// Leave the values out
        #[arg(long)]
        keys_only: bool,
        /// Say only how many keys there are
        #[arg(long, alias = "count-only", conflicts_with_all = ["keys_only", "descending", "limit"])]
        count: bool,
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Write a key
    #[command(visible_alias = "set", group(clap::ArgGroup::new("expected").args(["if_absent", "if_revision"])))]
    Put {
        /// The key
        key: String,
        /// The value; - reads it from standard input, byte for byte, whatever --hex and --number say
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Refuse when the key exists
        #[arg(long, alias = "nx")]
        if_absent: bool,
        /// Refuse unless the key was last written at this revision
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        if_revision: Option<u64>,
        /// Show what the key was before
        #[arg(long, alias = "prev-kv", conflicts_with = "expected")]
        prev: bool,
    },
    /// Write a key that has the value OLD
    #[command(visible_alias = "compare-and-swap", after_help = CAS_HELP)]
    Cas {
        /// The key
        key: String,
        /// The value that it must have
        #[arg(allow_hyphen_values = true)]
        old: String,
        /// The value that it gets; - reads it from standard input, byte for byte, whatever --hex and --number say
        #[arg(allow_hyphen_values = true)]
        new: String,
    },
    /// Add to the number that a key holds in 8 bytes; a missing key counts as 0
    #[command(visible_aliases = ["incr", "incrby"])]
    Add {
        /// The key
        key: String,
        /// What is added; it may be below 0
        #[arg(value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
        delta: i64,
    },
    /// Delete a key, a range of keys, all keys with a prefix, or all keys
    #[command(visible_aliases = ["delete", "rm"],
              group(clap::ArgGroup::new("many").args(["until", "prefix", "all"])))]
    Del {
        /// The key; with --prefix what the keys begin with, with --until the first of them
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        key: Option<String>,
        /// Delete every key that begins with it, in one transaction
        #[arg(long)]
        prefix: bool,
        /// Delete every key from KEY on that is below END, in one transaction
        #[arg(long, value_name = "END")]
        until: Option<String>,
        /// Delete every key that there is, in one transaction
        #[arg(long)]
        all: bool,
        /// With --prefix, --until or --all: refuse when there are more keys than this, 10,000 by default
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        /// With --prefix, --until or --all: delete any number of keys, 1,000 in a transaction, the lowest first
        #[arg(long, conflicts_with = "limit")]
        in_steps: bool,
        /// Show what the key was; for one key
        #[arg(long, alias = "prev-kv", conflicts_with = "many")]
        prev: bool,
    },
    /// Run a transaction: conditions, and what to do if they hold or not
    #[command(after_help = crate::kv::form::HELP)]
    Txn {
        /// The transaction's file; standard input by default
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Write all keys and values of one revision as lines of JSON
    #[command(after_help = EXPORT_HELP)]
    Export {
        /// Where to; - is standard output
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Only the keys that begin with this
        #[arg(long)]
        prefix: Option<String>,
        /// Export the state as it was at this revision; as it is now by default
        #[arg(long, alias = "rev", value_name = "N")]
        revision: Option<u64>,
    },
    /// Write the keys and values of an export
    #[command(after_help = IMPORT_HELP)]
    Import {
        /// Where from; - is standard input
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Leave keys that exist as they are
        #[arg(long, alias = "nx")]
        if_absent: bool,
        /// Check the whole of it, ask no node, and write nothing
        #[arg(long)]
        dry_run: bool,
        /// Take lines without the last one of an export, or fewer or more of them than it says
        #[arg(long)]
        partial: bool,
    },
    /// Give up the history before a revision; reads below it are refused from then on
    Compact {
        /// The oldest revision that is to stay readable
        #[arg(conflicts_with = "keep", value_parser = clap::value_parser!(u64).range(1..))]
        revision: Option<u64>,
        /// Keep so many of the newest revisions, the present one included
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        keep: Option<u64>,
    },
}

const CONFIG_HELP: &str = "\
Examples:
  quorate config get                       all of them
  quorate config get history_kept          one, with its range
  quorate config set history_kept 1h
  quorate config set store_bytes_max 16GiB

They are part of the replicated state: what was set counts on every node from
one entry of the log on, whatever the nodes' files say, which count for the
first leader of a new cluster alone.";

/// `quorate config`.
#[derive(Debug, Args)]
#[command(after_help = CONFIG_HELP)]
pub struct ConfigArgs {
    /// How the cluster is found.
    #[command(flatten)]
    pub reach: Reach,
    /// What to do.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What to do with limits.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show a limit, or all
    Get {
        /// Which one
        name: Option<String>,
    },
    /// Change a limit
    Set {
        /// Which one
        name: String,
        /// What it is to be: a number, a size (64MiB), a time (10m), or none
        value: String,
    },
}

const META_HELP: &str = "\
Examples:
  quorate meta broker register 1 broker1.example:9092 --rack r1
  quorate meta topic create orders --partitions 12 --replication-factor 3
  quorate meta topic describe orders
  quorate meta broker fence 1
  quorate meta check

A change is one transaction, done whole or not at all; what stands in its way is
named, all of it. quorate meta broker --help and its like have more.";

/// `quorate meta`.
#[derive(Debug, Args)]
#[command(after_help = META_HELP)]
pub struct MetaArgs {
    /// Work on the metadata below this prefix of keys
    #[arg(
        long,
        env = "QUORATE_META_PREFIX",
        hide_env = true,
        value_name = "PREFIX",
        default_value = "meta/",
        global = true,
        display_order = 800
    )]
    pub meta_prefix: String,
    /// How the cluster is found.
    #[command(flatten)]
    pub reach: Reach,
    /// Of what.
    #[command(subcommand)]
    pub command: MetaCommand,
}

/// Of what.
#[derive(Debug, Subcommand)]
pub enum MetaCommand {
    /// Brokers: register, list, describe, fence, cordon, unregister
    #[command(subcommand, after_help = BROKER_HELP)]
    Broker(BrokerCommand),
    /// Topics: create, list, describe, delete
    #[command(subcommand, after_help = TOPIC_HELP)]
    Topic(TopicCommand),
    /// Partitions: create, describe, set the leader, set the ISR
    #[command(subcommand, after_help = PARTITION_HELP)]
    Partition(PartitionCommand),
    /// Hold all rows against the rules that always hold, and name every key among them that is no row
    Check {
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
}

const BROKER_HELP: &str = "\
Examples:
  quorate meta broker register 1 broker1.example:9092 --rack r1 --label zone=a
  quorate meta broker fence 1       it leads nothing and is in no ISR but alone
  quorate meta broker unfence 1     it may lead and join ISRs again
  quorate meta broker cordon 1      it gets no new replicas; what it has stays
  quorate meta broker unregister 1  refused while it holds replicas";

const TOPIC_HELP: &str = "\
Examples:
  quorate meta topic create orders --partitions 12 --replication-factor 3
  quorate meta topic create orders --assignment '1,2,3;2,3,1' --config a=b
  quorate meta topic delete orders";

const PARTITION_HELP: &str = "\
Examples:
  quorate meta partition create orders --total 24
  quorate meta partition set-leader orders/0 2
  quorate meta partition set-leader orders/0 3 --unclean
                                    what only the ISR had is lost
  quorate meta partition set-isr orders/0 1,2";

/// Which life of a broker is meant.
#[derive(Debug, Clone, Args)]
pub struct BrokerArgs {
    /// The broker's id
    pub id: u64,
    /// Refuse when its epoch is not this one: it was registered anew
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
}

/// What to do with brokers.
#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    /// Register a broker, or a new life of one
    Register {
        /// The broker's id
        id: u64,
        /// Where it is reached: host:port or LISTENER://host:port; may be given several times
        // Another name than `--endpoints` has, which is known here too.
        #[arg(required = true, value_name = "ENDPOINT")]
        listeners: Vec<String>,
        /// Its failure domain
        #[arg(long)]
        rack: Option<String>,
        /// A label; may be given several times
        #[arg(long = "label", value_name = "NAME=VALUE")]
        labels: Vec<String>,
        /// The most replicas that it can hold
        #[arg(long, value_name = "N")]
        replicas_max: Option<u32>,
        /// The size of its disks, such as 500GiB
        #[arg(long, value_name = "BYTES")]
        disk_bytes: Option<String>,
        /// The id of this life of the broker's process; a repeated register with it changes nothing
        #[arg(long, value_name = "UUID")]
        incarnation: Option<String>,
        /// Begin fenced, to be unfenced once it is ready
        #[arg(long)]
        fenced: bool,
        /// Take the id over from another life that is not fenced: you know that it is gone
        #[arg(long)]
        takeover: bool,
    },
    /// List the brokers
    List {
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Show a broker with the partitions that it holds and leads
    Describe {
        /// The broker's id
        id: u64,
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Take a broker out of every leadership and every ISR that has another member, until it is unfenced
    Fence(BrokerArgs),
    /// Let a broker lead and join ISRs again; it leads at once what nobody leads and it is in sync for
    Unfence(BrokerArgs),
    /// Give a broker no new replicas; those that it has stay
    Cordon(BrokerArgs),
    /// Let a broker take new replicas again
    Uncordon(BrokerArgs),
    /// Take a broker out of the cluster; refused while it holds replicas
    Unregister {
        /// Which.
        #[command(flatten)]
        broker: BrokerArgs,
        /// Although it holds replicas: they stay in their partitions, dead, until others replace them
        #[arg(long)]
        dangling: bool,
    },
}

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic with its partitions, in one transaction
    Create {
        /// Its name
        name: String,
        /// How many partitions, placed on the brokers automatically
        #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "assignment")]
        partitions: u32,
        /// How many replicas each
        #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "assignment")]
        replication_factor: u16,
        /// The replicas of each partition by hand, the leader first: 1,2,3;2,3,1
        #[arg(long, value_name = "BROKERS;...")]
        assignment: Option<String>,
        /// A setting; may be given several times
        #[arg(long = "config", value_name = "NAME=VALUE")]
        config: Vec<String>,
        /// The topic's id; a repeated create with it changes nothing
        #[arg(long, value_name = "UUID")]
        id: Option<String>,
    },
    /// List the topics
    List {
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Show a topic with its partitions
    Describe {
        /// Its name
        name: String,
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Delete a topic with its partitions
    Delete {
        /// Its name
        name: String,
        /// Only this life of the name
        #[arg(long, value_name = "UUID")]
        id: Option<String>,
    },
}

/// What to do with partitions.
#[derive(Debug, Subcommand)]
pub enum PartitionCommand {
    /// Add partitions to a topic, all in one transaction
    Create {
        /// The topic
        topic: String,
        /// How many the topic shall have in all, the new ones placed automatically
        #[arg(
            long,
            value_name = "N",
            required_unless_present = "assignment",
            conflicts_with = "assignment"
        )]
        total: Option<u32>,
        /// The replicas of each new partition by hand, the leader first: 1,2,3;2,3,1
        #[arg(long, value_name = "BROKERS;...")]
        assignment: Option<String>,
    },
    /// Show a partition
    Describe {
        /// TOPIC/INDEX
        partition: String,
        /// How fresh.
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Make a broker lead a partition
    SetLeader {
        /// TOPIC/INDEX
        partition: String,
        /// The broker; it must be in the ISR
        leader: u64,
        /// Also from outside the ISR: it becomes the whole ISR, and what only the others have is lost
        #[arg(long)]
        unclean: bool,
        /// Refuse when the leader epoch is not this one; by default the present one is read first
        #[arg(long, value_name = "N")]
        leader_epoch: Option<u64>,
        /// Refuse when the partition epoch is not this one; by default the present one is read first
        #[arg(long, value_name = "N")]
        partition_epoch: Option<u64>,
    },
    /// Set a partition's in-sync replicas
    SetIsr {
        /// TOPIC/INDEX
        partition: String,
        /// The brokers: 1,2,3
        #[arg(value_delimiter = ',', required = true)]
        isr: Vec<u64>,
        /// The leader has recovered from an unclean election
        #[arg(long)]
        recovered: bool,
        /// Refuse when the leader epoch is not this one; by default the present one is read first
        #[arg(long, value_name = "N")]
        leader_epoch: Option<u64>,
        /// Refuse when the partition epoch is not this one; by default the present one is read first
        #[arg(long, value_name = "N")]
        partition_epoch: Option<u64>,
    },
}

const MEMBER_HELP: &str = "\
To add a node, under an id that no member has, better one that none ever had:
  quorate serve --join --node-id 4 --data-dir D --certs C --listen 0.0.0.0:7001
  quorate member add 4 node4.example:7001   it receives the log, without a vote
  quorate member promote 4                  refused until it has caught up

To replace a node that is lost: remove it, then add another, better under a new
id. Under the old one it must have an empty directory.";

/// `quorate member`.
#[derive(Debug, Args)]
#[command(after_help = MEMBER_HELP)]
pub struct MemberArgs {
    /// How the cluster is found.
    #[command(flatten)]
    pub reach: Reach,
    /// What to do.
    #[command(subcommand)]
    pub command: MemberCommand,
}

/// What to do with the cluster's nodes.
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// List the nodes
    List,
    /// Add a node without a vote; it receives the log from then on (it runs with serve --join)
    Add {
        /// Its id, which no member has; better one that none ever had
        id: u64,
        /// Where it is reached, as host:port
        address: String,
    },
    /// Give a node that has caught up a vote
    Promote {
        /// Its id
        id: u64,
    },
    /// Take a node out of the cluster; whoever is added under its id later needs an empty directory
    Remove {
        /// Its id
        id: u64,
    },
    /// Hand the leadership to another node, by default to the one whose log is furthest
    MoveLeader {
        /// The id of the node that shall lead
        id: Option<u64>,
    },
}

const CERTS_HELP: &str = "\
Examples:
  quorate certs init --cluster orders --dir certs
  quorate certs issue --dir certs --node 1 --host node1.example
  quorate certs issue --dir certs --client admin --validity 90days";

/// `quorate certs`.
#[derive(Debug, Args)]
#[command(after_help = CERTS_HELP)]
pub struct CertsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CertsCommand,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make the authority of a cluster: ca.crt, which all nodes and clients need, and ca.key, which stays with you
    Init {
        /// The cluster's name
        #[arg(long, value_name = "NAME", default_value = "quorate")]
        cluster: String,
        /// Where to write them
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Issue the certificate and key of a node or a client
    #[command(group(clap::ArgGroup::new("holder").required(true).args(["node", "client"])))]
    Issue {
        /// The directory of the authority; the new files are written beside it
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Write the new files to this directory instead
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// For the node with this id
        #[arg(long, value_name = "ID")]
        node: Option<u64>,
        /// For the client of this name
        #[arg(long, value_name = "NAME")]
        client: Option<String>,
        /// A host name or address that the certificate carries besides; may be given several times
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it is valid
        #[arg(long, value_name = "TIME", default_value = "1year", value_parser = humantime::parse_duration)]
        validity: Duration,
    },
}

const CHECK_HELP: &str = "\
Reads identity, log, vote and state file, each byte that counts, and tells all
that is wrong by file, byte or key. While it runs, the node cannot start. The
files need not be this machine's: a copy of a data directory will do.

Exit codes: 0 whole, 6 damaged, 2 whole and of another node or cluster than was
said, 3 no node's directory, 4 a node runs on it.";

/// `quorate check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The node's data directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Also demand that it is of this cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Also demand that it is this node's
    #[arg(long, value_name = "ID")]
    pub node_id: Option<u64>,
}

/// `quorate demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub nodes: u64,
    /// How many partitions to create, once one by one and once as a batch
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub partitions: u32,
    /// Delay the messages between the nodes, so that a round trip takes so many milliseconds longer; the nodes' timing
    /// profile follows: low-latency up to 20, production up to 100, high-latency beyond
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=500))]
    pub rtt_ms: u64,
    /// What to log on standard error: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    pub log: String,
}

/// What a load consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BenchOp {
    /// A put of one key
    Put,
    /// A transaction of several puts
    Txn,
    /// A linearizable get
    Get,
    /// A get of whatever the node asked has
    StaleGet,
}

const BENCH_HELP: &str = "\
Examples:
  quorate bench --nodes 3 --clients 64 --total 50000
  quorate bench --nodes 3 --op txn --ops-per-txn 100 --clients 16 --total 2000
  quorate bench --endpoints node1:7001 --certs certs --op get --connections 4
  quorate bench --scale 1000000";

/// `quorate bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = BENCH_HELP, group(clap::ArgGroup::new("own").args(["nodes", "scale"]).multiple(true)))]
pub struct BenchArgs {
    /// Start a cluster of so many processes on this machine for the measurement, and stop it at the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=9))]
    pub nodes: Option<u64>,
    /// Grow a cluster of three (or --nodes) processes to so many keys of 100 bytes, and measure puts, a bulk load, a count, a
    /// restart, memory and disk on the way; other flags of the load do not count then
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u64).range(10_000..))]
    pub scale: Option<u64>,
    /// What to do, again and again: put, txn (several puts), get (linearizable) or stale-get (of the node asked)
    #[arg(long, value_enum, default_value_t = BenchOp::Put, hide_possible_values = true)]
    pub op: BenchOp,
    /// How many callers; each waits for its answer before it asks again
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// How many operations in all, the warm-up apart
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub total: u64,
    /// How many operations to run before, unmeasured
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub warm_up: u64,
    /// The size of a value in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub value_size: usize,
    /// How many different keys
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// With --op txn: how many puts a transaction has, 10 by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub ops_per_txn: Option<u32>,
    /// How many connections the callers share
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Worker threads of this process, and with --nodes of each node; 1 of each by default, as serve has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub workers: Option<u32>,
    /// With --nodes: the nodes' heartbeats and failover times
    #[arg(long, value_name = "PROFILE", default_value = "development", requires = "own")]
    pub profile: String,
    /// With --nodes: the directory in which the nodes' files are made and removed; the system's by default
    #[arg(long, value_name = "DIR", requires = "own")]
    pub dir: Option<PathBuf>,
    /// How the cluster is found. Last, since its heading goes on.
    #[command(flatten)]
    pub reach: Reach,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    /// The story: with 10 s a command failed while a cluster of the high-latency profile elected a leader in time.
    #[test]
    fn a_request_has_longer_than_any_profile_takes_to_elect_a_leader() {
        use quorate_kv::node::{Profile, Timing};
        let cli = Cli::try_parse_from(["quorate", "status"]).unwrap();
        let Command::Status(args) = cli.command else {
            panic!("{:?}", cli.command);
        };
        for profile in Profile::ALL {
            let promised = Timing::from(profile).failover_max;
            assert!(args.deadline > promised, "{}: {promised:?}", profile.name());
        }
    }

    /// Help is wrapped, and a text that was set by hand is not to be.
    #[test]
    fn what_stands_below_the_flags_is_not_wrapped_at_80_columns() {
        fn look(command: &clap::Command) {
            let text = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in text.lines() {
                assert!(
                    line.chars().count() <= COLUMNS_MAX,
                    "{}: {line}",
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(look);
        }
        look(&Cli::command());
    }

    #[test]
    fn the_help_of_every_command_fits_into_a_terminal_of_80_columns() {
        fn look(command: &mut clap::Command, path: &str, seen: &mut usize) {
            *seen += 1;
            for help in [command.render_long_help(), command.render_help()] {
                for line in help.to_string().lines() {
                    let columns = line.chars().count();
                    assert!(columns <= COLUMNS_MAX, "{path}: {columns} columns: {line}");
                }
            }
            for command in command.get_subcommands_mut() {
                let path = format!("{path} {}", command.get_name());
                look(command, &path, seen);
            }
        }
        let mut cli = Cli::command().term_width(COLUMNS_MAX);
        cli.build();
        let mut seen = 0;
        look(&mut cli, "quorate", &mut seen);
        assert!(seen > 40, "{seen} commands: those of kv and meta are among them");
    }
}
