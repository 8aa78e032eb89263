//! The command line of `tintype`, as it is typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::config::{Bytes, Span};
use super::control::helper::parse_kernel_option;

/// Consistent, incremental, verified snapshots of key-value store clusters in object storage.
#[derive(Debug, Parser)]
#[command(name = "tintype", version, max_term_width = 120, propagate_version = true, disable_help_subcommand = true)]
#[command(
    after_help = "First steps:\n  tintype --repository /srv/backups init\n  tintype --repository /srv/backups snapshot demo --redis 127.0.0.1:6379\n  tintype --repository /srv/backups mount /mnt/backups\n\nA snapshot is named CLUSTER/DATE[/NODE[/PATH]]; DATE may be short, `latest`, `@2h ago` or a UUID.\nExit codes: 0 done, 1 failed, 2 usage, 3 partly done, 4 nothing to do."
)]
pub struct ControlArgs {
    /// What everything shares.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Configuration file [default: ~/.config/tintype/tintype.toml, then /etc/tintype/tintype.toml]
    #[arg(long, global = true, value_name = "FILE", env = "TINTYPE_CONFIG")]
    pub config: Option<PathBuf>,
    /// A directory, file:///path or s3://bucket/prefix
    #[arg(long, short = 'r', global = true, value_name = "URL", env = "TINTYPE_REPOSITORY")]
    pub repository: Option<String>,
    /// A file whose first line is the passphrase
    #[arg(long, global = true, value_name = "FILE", env = "TINTYPE_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,
    /// A file of at least 32 random bytes, instead of a passphrase
    #[arg(long, global = true, value_name = "FILE", env = "TINTYPE_KEY_FILE", conflicts_with = "password_file")]
    pub key_file: Option<PathBuf>,
    /// One JSON object on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(long, short = 'q', global = true)]
    pub quiet: bool,
    /// Say more on standard error; twice for every request
    #[arg(long, short = 'v', global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What `tintype` does.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write a configuration from one address, asking what it cannot find out
    Setup(SetupArgs),
    /// Write a configuration from that of another program
    ImportConfig(ImportConfigArgs),
    /// Create a repository; try out what the object store can do and record it
    Init(InitArgs),
    /// Take a coordinated snapshot of a whole cluster
    Snapshot(SnapshotArgs),
    /// Show how a snapshot fared, or the newest good snapshot of every cluster
    Status(StatusArgs),
    /// List clusters, snapshots, nodes or files, without a mount
    List(ListArgs),
    /// Show a snapshot's manifest: nodes, slots, offsets, proof of the cut, sizes
    Show(ShowArgs),
    /// Show files added, removed and changed between two snapshots
    Diff(DiffArgs),
    /// Show all snapshots as a read-only tree; returns when it is served
    Mount(MountArgs),
    /// Take a mount away, whatever is stuck in it
    Unmount(UnmountArgs),
    /// Fetch a node of a snapshot into the cache on this host's disk
    Warm(WarmArgs),
    /// Make a writable copy-on-write clone of a node of a snapshot
    Clone(CloneArgs),
    /// List the clones of this host; serve those again that are not served
    Clones(ClonesArgs),
    /// Take a clone away, with everything that was written to it
    Unclone(UncloneArgs),
    /// Restore nodes from a snapshot; shows the plan, acts with --yes
    Restore(RestoreArgs),
    /// Make local files of the links of a restore, until the snapshot is not needed any more
    Hydrate(HydrateArgs),
    /// Refuse while links of a restored directory lead nowhere; else run a command
    Guard(GuardArgs),
    /// Put the directory from before a restore back
    Rollback(RollbackArgs),
    /// Let the directory from before a restore go
    Settle(RollbackArgs),
    /// Prove that snapshots are whole
    Verify(VerifyArgs),
    /// Write a node of a snapshot as a tar to standard output
    Export(ExportArgs),
    /// Manage the keys that open the repository
    Key(KeyArgs),
    /// Check configuration, object store, stores and mount, one line each, with the fix
    Doctor(DoctorArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
}

/// `setup`
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Any node, or a Sentinel: host:port, redis://… or rediss://…
    pub address: String,
    /// Name of the cluster
    #[arg(long, default_value = "main")]
    pub cluster: String,
    /// Where to write the configuration [default: ~/.config/tintype/tintype.toml]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Ask nothing; leave out what cannot be found out
    #[arg(long)]
    pub yes: bool,
}

/// `import-config`
#[derive(Debug, Args)]
pub struct ImportConfigArgs {
    /// Whose it is
    pub kind: ForeignConfig,
    /// Its file
    pub file: PathBuf,
    /// Name of the node that it is about [default: this host's]
    #[arg(long)]
    pub node: Option<String>,
    /// Its token in the ring
    #[arg(long)]
    pub token: Option<u64>,
    /// Where to write ours [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Programs whose configurations are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ForeignConfig {
    /// Properties of Netflix's Dynomite-manager, under any prefix that it ever had
    DynomiteManager,
}

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Store blocks and manifests unencrypted
    #[arg(long)]
    pub no_encryption: bool,
}

/// Where a cluster is, for clusters without configuration.
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// A Redis master, any node of a Redis Cluster, or a Sentinel: host:port or URL; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub redis: Vec<String>,
    /// ACL user for --redis
    #[arg(long, value_name = "USER")]
    pub redis_user: Option<String>,
    /// A file with the password for --redis
    #[arg(long, value_name = "FILE", env = "TINTYPE_REDIS_PASSWORD_FILE")]
    pub redis_password_file: Option<PathBuf>,
    /// A directory of this host as a node; may be repeated
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "redis")]
    pub files: Vec<PathBuf>,
}

/// `snapshot`
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Name of the cluster
    pub cluster: String,
    /// Where it is, when the configuration does not say
    #[command(flatten)]
    pub source: SourceArgs,
    /// Only these nodes; the cut is then theirs
    #[arg(long, value_name = "NODE")]
    pub node: Vec<String>,
    /// Keep KEY=VALUE with the snapshot
    #[arg(long, value_name = "KEY=VALUE")]
    pub tag: Vec<String>,
    /// How the data leaves the nodes: replication, save or aof
    #[arg(long, value_name = "MODE")]
    pub capture: Option<String>,
    /// Longest write pause [default: 2s]
    #[arg(long, value_name = "DURATION")]
    pub max_pause: Option<Span>,
    /// How long to wait for running saves before the pause [default: 5min]
    #[arg(long, value_name = "DURATION")]
    pub patience: Option<Span>,
    /// Publish without nodes that cannot be reached or break; exit code 3
    #[arg(long)]
    pub partial: bool,
    /// Bind the cluster's name to this cluster from now on
    #[arg(long)]
    pub adopt: bool,
}

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// UUID or CLUSTER/DATE; absent: the whole fleet
    pub snapshot: Option<String>,
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// CLUSTER[/DATE[/NODE[/PATH]]]; absent: clusters
    pub path: Option<String>,
    /// Sizes, times, owners
    #[arg(short = 'l', long)]
    pub long: bool,
}

/// `show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// CLUSTER/DATE
    pub snapshot: String,
}

/// `diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// CLUSTER/DATE[/NODE]
    pub before: String,
    /// CLUSTER/DATE[/NODE]
    pub after: String,
}

/// `mount`
#[derive(Debug, Clone, Args)]
pub struct MountArgs {
    /// An empty directory
    pub mountpoint: Option<PathBuf>,
    /// Let other users look, as far as owners and modes allow
    #[arg(long)]
    pub allow_other: bool,
    /// Show USER:GROUP as the owner of everything
    #[arg(long, value_name = "USER:GROUP")]
    pub owner: Option<String>,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Memory for blocks [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Keep blocks in this directory of the host, also over restarts [default: the configuration's]
    #[arg(long, value_name = "DIRECTORY")]
    pub cache_dir: Option<PathBuf>,
    /// The most that the cache directory takes on the disk
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<Bytes>,
    /// No call on the tree takes longer [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub deadline: Option<Span>,
    /// What the table of mounts shows as the source
    #[arg(long, hide = true, value_name = "NAME")]
    pub source_name: Option<String>,
    /// A security context for the kernel
    #[arg(long, hide = true, value_name = "OPTION", value_parser = parse_kernel_option)]
    pub kernel_option: Vec<String>,
}

/// `unmount`
#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
}

/// `warm`
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// CLUSTER/DATE/NODE[/PATH]
    pub source: String,
    /// The cache [default: the configuration's, else that of a mount of this repository]
    #[arg(long, value_name = "DIRECTORY")]
    pub cache_dir: Option<PathBuf>,
    /// The most that the cache directory takes on the disk, where no mount uses it
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<Bytes>,
}

/// `clone`
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// CLUSTER/DATE/NODE
    pub source: String,
    /// Where the clone appears: an empty directory, or one that is not there yet
    pub directory: PathBuf,
    /// A new directory on a local disk for what is written [default: one in the state directory]
    #[arg(long, value_name = "DIRECTORY")]
    pub upper: Option<PathBuf>,
    /// Let other users in, as far as owners and modes allow
    #[arg(long)]
    pub allow_other: bool,
    /// Give everything that was captured to USER:GROUP
    #[arg(long, value_name = "USER:GROUP")]
    pub owner: Option<String>,
    /// Memory for blocks of the snapshot [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Wait no longer for an object store that is away [default: until it is back]
    #[arg(long, value_name = "DURATION")]
    pub deadline: Option<Span>,
}

/// `clones`
#[derive(Debug, Args)]
pub struct ClonesArgs {
    /// Serve those again that are not served, as after a restart of the host
    #[arg(long)]
    pub serve: bool,
}

/// `unclone`
#[derive(Debug, Args)]
pub struct UncloneArgs {
    /// Where the clone is
    pub directory: PathBuf,
    /// Do it; without, show what would be lost
    #[arg(long)]
    pub yes: bool,
}

/// `restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// CLUSTER/DATE[/NODE]
    pub source: String,
    /// Configured cluster to restore into [default: the one that was stored]
    #[arg(long, value_name = "CLUSTER")]
    pub to: Option<String>,
    /// Only these nodes
    #[arg(long, value_name = "NODE")]
    pub node: Vec<String>,
    /// Put a stored node into a target node
    #[arg(long, value_name = "SOURCE=TARGET")]
    pub map: Vec<String>,
    /// How the files come to the target
    #[arg(long, default_value = "copy")]
    pub method: Method,
    /// With --method link: leave the links as they are; `tintype hydrate` makes files of them later
    #[arg(long)]
    pub no_hydrate: bool,
    /// With --method link: make files of the links no faster than SIZE a second
    #[arg(long, value_name = "SIZE", conflicts_with = "no_hydrate")]
    pub hydrate_rate: Option<Bytes>,
    /// Only place the files here, on this host; no store is stopped or started
    #[arg(long, value_name = "DIR", conflicts_with_all = ["to", "map"])]
    pub directory: Option<PathBuf>,
    /// Do not save the running store into the directory that is set aside
    #[arg(long)]
    pub discard_current: bool,
    /// Show the plan and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do it
    #[arg(long)]
    pub yes: bool,
    /// The target cluster's name, where it holds newer data than the snapshot
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<String>,
}

/// How a restore brings the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Whole files, straight from the object store
    Copy,
    /// Files that never change are links to the snapshot, fetched as they are read and made local in the background
    Link,
    /// The directory becomes a writable copy-on-write clone of the snapshot
    Clone,
}

/// `hydrate`
#[derive(Debug, Args)]
pub struct HydrateArgs {
    /// The data directory
    pub directory: PathBuf,
    /// No faster than SIZE a second
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<Bytes>,
    /// Do not wait for it
    #[arg(long)]
    pub detach: bool,
}

/// `guard`
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// The data directory
    pub directory: PathBuf,
    /// What to run when every link answers, behind --
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `rollback`, `settle`
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// CLUSTER[/NODE]
    pub target: String,
    /// Do it; without, show what would be done
    #[arg(long)]
    pub yes: bool,
}

/// `verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// CLUSTER[/DATE]; absent: all
    pub source: Option<String>,
    /// listed: everything is there; hashed: every byte is right
    #[arg(long, default_value = "hashed")]
    pub depth: Depth,
}

/// How deep `verify` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Depth {
    /// Manifests and pages are right, packs are there.
    Listed,
    /// Every block is read and compared.
    Hashed,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// CLUSTER/DATE/NODE
    pub source: String,
}

/// `key`
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// What to do with keys.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// What `key` does.
#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// List the key boxes
    List,
    /// Add a key box for another passphrase or key file
    Add {
        /// A file whose first line is the new passphrase
        #[arg(long, value_name = "FILE", conflicts_with = "new_key_file", required_unless_present = "new_key_file")]
        new_password_file: Option<PathBuf>,
        /// A new key file
        #[arg(long, value_name = "FILE")]
        new_key_file: Option<PathBuf>,
        /// For people
        #[arg(long, default_value = "")]
        label: String,
    },
    /// Remove a key box; the last one is refused
    Remove {
        /// As `key list` shows it
        id: uuid::Uuid,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Also check where this cluster is
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// bash, zsh, fish, …
    pub shell: clap_complete::Shell,
}
