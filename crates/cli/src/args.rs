//! The command line: commands, their arguments and their help texts.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::job::JobStatus;
use inheritune_domain::names::Named;
use inheritune_domain::spec::JobKind;
use uuid::Uuid;

use crate::failure::EXIT_CODES;
use crate::size;

/// A parser for the names of a closed set, in lower case with hyphens.
fn named<D: Named + Send + Sync>() -> impl TypedValueParser<Value = D> {
    fn word<D: Named>(value: D) -> String {
        value.name().to_ascii_lowercase().replace('_', "-")
    }
    let words = D::all().iter().map(|value| word(*value));
    PossibleValuesParser::new(words)
        .try_map(|text| D::all().iter().copied().find(|value| word(*value) == text).ok_or("not a valid value"))
}

/// `inheritune`.
#[derive(Debug, Parser)]
#[command(
    name = "inheritune",
    version,
    about = "Derive a small language model from a large one: inherit its first layers, train, grow until it matches",
    after_help = EXIT_CODES,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Options that every command accepts.
    #[command(flatten)]
    pub global: Global,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command accepts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// URL of the server
    ///
    /// http://host:port, or https://host:port if the server uses TLS.
    #[arg(long, global = true, env = "INHERITUNE_SERVER", default_value = "http://127.0.0.1:7600", value_name = "URL")]
    pub server: String,
    /// PEM file with the CA certificates to trust
    ///
    /// The system's CA certificates are used by default.
    #[arg(long, global = true, env = "INHERITUNE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File with the server's bearer token
    #[arg(long, global = true, env = "INHERITUNE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Output format
    ///
    /// Errors use the same format and go to standard error. In JSON, an error is one object on the
    /// last line, with code, message, violations (field and description) and hints.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Do not show progress while waiting
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables and plain text
    Table,
    /// The API's reply: field names of the .proto files, enum values without prefix
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and manage runs
    #[command(subcommand)]
    Run(RunCommand),
    /// Submit and manage jobs: steps of runs, or jobs of your own
    #[command(subcommand)]
    Job(JobCommand),
    /// Manage artifacts: token sets, checkpoints, states and scores
    #[command(subcommand)]
    Artifact(ArtifactCommand),
    /// Inspect checkpoints and plan slices
    #[command(subcommand)]
    Slice(SliceCommand),
    /// Estimate the cost of training
    #[command(subcommand)]
    Train(TrainCommand),
    /// Measure and compare models
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Check recipe files without a server
    #[command(subcommand)]
    Recipe(RecipeCommand),
    /// Create certificates for TLS
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Print a shell completion script
    Completions {
        /// Shell to print the script for
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Commands for certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Create a certificate authority and a server certificate
    ///
    /// Writes ca.pem (for clients: --ca-file), ca.key (keep it off the servers), server.pem and
    /// server.key (security.certificate_file and security.key_file of the services). If the folder
    /// already contains ca.pem and ca.key, they sign the new certificate and clients need no
    /// change.
    Init(InitCerts),
}

/// `certs init`.
#[derive(Debug, Args)]
pub struct InitCerts {
    /// Output folder, created if missing
    pub dir: PathBuf,
    /// Host name or address that clients use for the server
    ///
    /// Can be given more than once.
    #[arg(long = "host", required = true, value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Days until the server certificate expires
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650), value_name = "DAYS")]
    pub days: u32,
    /// Replace an existing server certificate
    #[arg(long)]
    pub force: bool,
}

/// Commands for runs.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Create a run from a recipe
    ///
    /// Relative paths in the recipe (`file:demo/corpus.txt`, `demo/corpus.txt`) are resolved
    /// against the current folder and sent as absolute file:// URIs. The server must be able to
    /// read them.
    Create(CreateRun),
    /// Show a run with its models and decisions
    Get {
        /// ID of the run
        id: Uuid,
    },
    /// List runs, newest first
    List(ListRuns),
    /// Follow a run until it ends; exit code 1 if it fails or is cancelled
    Watch {
        /// ID of the run
        id: Uuid,
        /// What to write when the run has ended.
        #[command(flatten)]
        ending: Ending,
    },
    /// Cancel a run permanently
    Cancel {
        /// ID of the run
        id: Uuid,
    },
    /// Pause a run; its worker saves its state first
    Pause {
        /// ID of the run
        id: Uuid,
    },
    /// Resume a paused run
    Resume {
        /// ID of the run
        id: Uuid,
    },
    /// Retry a failed run from where it failed
    Retry {
        /// ID of the run
        id: Uuid,
    },
    /// Write the report of a run, finished or not: index.html, report.md and plots
    Report {
        /// ID of the run
        id: Uuid,
        /// Output folder, created if missing
        #[arg(long, default_value = "report", value_name = "DIR")]
        output_dir: PathBuf,
    },
}

/// `run create`.
#[derive(Debug, Args)]
pub struct CreateRun {
    /// Recipe file
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// Text to use instead of the recipe's corpus.sources
    ///
    /// Can be given more than once.
    #[arg(long, value_name = "SOURCE")]
    pub corpus: Vec<String>,
    /// Follow the run until it ends
    #[arg(long)]
    pub watch: bool,
    /// Make the request safe to retry
    ///
    /// The same UUID with the same recipe returns the same run.
    #[arg(long, value_name = "UUID", conflicts_with = "request_id_from_recipe")]
    pub request_id: Option<Uuid>,
    /// Continue the existing run of this exact recipe
    ///
    /// Creates a new run if there is none, or if all of them failed or were cancelled.
    #[arg(long)]
    pub request_id_from_recipe: bool,
    /// What to write when the run has ended; implies `--watch`.
    #[command(flatten)]
    pub ending: Ending,
}

/// What a watch writes when the run has ended.
#[derive(Debug, Clone, Default, Args)]
pub struct Ending {
    /// Write the report to DIR when the run ends
    ///
    /// Also written if the run fails or is cancelled.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Export the target to DIR when the run succeeds
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
    /// Export even if the folder is not empty
    #[arg(long, requires = "export")]
    pub force: bool,
}

impl Ending {
    /// Whether there is anything to write.
    pub fn is_something(&self) -> bool {
        self.report.is_some() || self.export.is_some()
    }
}

/// `run list`.
#[derive(Debug, Args)]
pub struct ListRuns {
    /// Only runs with this status
    #[arg(long, value_parser = named::<JobStatus>())]
    pub status: Option<JobStatus>,
    /// Which page to show.
    #[command(flatten)]
    pub page: PageArgs,
}

/// Which page of a list.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// Maximum number of entries, 1 to 1000
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=1000), value_name = "N")]
    pub limit: i32,
    /// Show the next page of a list
    ///
    /// Takes the token that the previous page ended with.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOKEN")]
    pub page_token: String,
}

/// Commands for jobs.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Submit a job
    ///
    /// The file is TOML or JSON: `kind = "tokenize" | "slice" | "train" | "evaluate"` and the
    /// fields of that kind. Locations can be written as in recipes.
    Submit(SubmitJob),
    /// Show a job
    Get {
        /// ID of the job
        id: Uuid,
    },
    /// List jobs, newest first
    List(ListJobs),
    /// Follow a job until it ends; exit code 1 if it fails or is cancelled
    Watch {
        /// ID of the job
        id: Uuid,
    },
    /// Show the curves of a training or the scores of an evaluation
    ///
    /// Curves are loss, learning rate, gradient norm, speed, memory and more. Follows a running job
    /// until it ends. With --output json, prints every point.
    Metrics {
        /// ID of the job
        id: Uuid,
        /// Write an event file for TensorBoard to this folder
        ///
        /// Replaces an earlier event file of the same job.
        #[arg(long, value_name = "DIR")]
        tensorboard: Option<PathBuf>,
    },
    /// Cancel a job permanently
    Cancel {
        /// ID of the job
        id: Uuid,
    },
    /// Pause a job; its worker saves its state first
    Pause {
        /// ID of the job
        id: Uuid,
    },
    /// Resume a paused job
    Resume {
        /// ID of the job
        id: Uuid,
    },
    /// Retry a failed job from its last saved state
    Retry {
        /// ID of the job
        id: Uuid,
    },
}

/// `job submit`.
#[derive(Debug, Args)]
pub struct SubmitJob {
    /// Job file
    #[arg(value_name = "FILE.toml|FILE.json")]
    pub spec: PathBuf,
    /// How the job is submitted.
    #[command(flatten)]
    pub submission: Submission,
}

/// How a job is submitted.
#[derive(Debug, Args)]
pub struct Submission {
    /// Label for the job
    #[arg(long, default_value = "", hide_default_value = true)]
    pub label: String,
    /// Higher priorities run first
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(-100..=100), allow_negative_numbers = true)]
    pub priority: i32,
    /// Make the request safe to retry
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<Uuid>,
    /// Follow the job until it ends
    #[arg(long)]
    pub watch: bool,
}

/// `job list`.
#[derive(Debug, Args)]
pub struct ListJobs {
    /// Only jobs of this run
    #[arg(long, value_name = "ID")]
    pub run: Option<Uuid>,
    /// Only jobs of this kind
    #[arg(long, value_parser = named::<JobKind>())]
    pub kind: Option<JobKind>,
    /// Only jobs with this status
    #[arg(long, value_parser = named::<JobStatus>())]
    pub status: Option<JobStatus>,
    /// Which page to show.
    #[command(flatten)]
    pub page: PageArgs,
}

/// Commands for artifacts.
#[derive(Debug, Subcommand)]
pub enum ArtifactCommand {
    /// Register existing files, so that jobs can refer to them by ID
    Register {
        /// Kind of the artifact
        #[arg(value_parser = named::<ArtifactKind>())]
        kind: ArtifactKind,
        /// Folder with the files
        ///
        /// A path or file:// URI that the server can read, or s3://bucket/key.
        location: String,
        /// JSON object to store with the artifact
        #[arg(long, default_value = "", hide_default_value = true, value_name = "JSON")]
        metadata: String,
        /// Make the request safe to retry
        #[arg(long, value_name = "UUID")]
        request_id: Option<Uuid>,
    },
    /// Import a checkpoint of any supported format as a slice of all its layers
    ///
    /// Accepts every format that can be sliced, including pytorch_model.bin. The weights keep their
    /// values and are stored as safetensors. Models that were not sliced or trained here must be
    /// imported before they can be evaluated.
    Import(ImportCheckpoint),
    /// Show an artifact with its files
    Get {
        /// ID of the artifact
        id: Uuid,
    },
    /// List artifacts, newest first
    List(ListArtifacts),
    /// Copy an artifact's files to a folder and verify every digest
    Export {
        /// ID of the artifact
        id: Uuid,
        /// Output folder, created if missing
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Write even if the folder is not empty, replacing files of the same name
        #[arg(long)]
        force: bool,
    },
    /// Pin an artifact so that nothing deletes it
    ///
    /// A training deletes older states while it runs, and nearly all of them when it ends. Pinned
    /// states are kept.
    Pin {
        /// ID of the artifact
        id: Uuid,
    },
    /// Unpin an artifact
    ///
    /// A training that is still running may then delete its state. The state of a training that has
    /// ended stays until `artifact delete`.
    Unpin {
        /// ID of the artifact
        id: Uuid,
    },
    /// Delete an artifact that is not pinned; registered files stay
    ///
    /// This cannot be undone and asks for no confirmation. Jobs that need the artifact fail with
    /// its ID in the error.
    Delete {
        /// ID of the artifact
        id: Uuid,
    },
}

/// `artifact import`.
#[derive(Debug, Args)]
pub struct ImportCheckpoint {
    /// Checkpoint to import
    ///
    /// A path or file:// URI that the server can read, or s3://bucket/key.
    pub checkpoint: String,
    /// Maximum size of a weights file, 5GB by default
    ///
    /// Larger checkpoints are sharded. Takes sizes such as 500MB or 1GiB.
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub max_shard_size: Option<u64>,
    /// Label for the job; `import CHECKPOINT` by default
    #[arg(long, default_value = "", hide_default_value = true)]
    pub label: String,
    /// Make the request safe to retry
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<Uuid>,
    /// Follow the import until it ends and print the artifact
    #[arg(long)]
    pub watch: bool,
}

/// `artifact list`.
#[derive(Debug, Args)]
pub struct ListArtifacts {
    /// Only artifacts of this kind
    #[arg(long, value_parser = named::<ArtifactKind>())]
    pub kind: Option<ArtifactKind>,
    /// Only artifacts of this run
    #[arg(long, value_name = "ID")]
    pub run: Option<Uuid>,
    /// Only artifacts of this job
    #[arg(long, value_name = "ID")]
    pub job: Option<Uuid>,
    /// Which page to show.
    #[command(flatten)]
    pub page: PageArgs,
}

/// Commands for checkpoints.
#[derive(Debug, Subcommand)]
pub enum SliceCommand {
    /// Show the shape and tensors of a checkpoint
    Inspect {
        /// Checkpoint to inspect
        ///
        /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
        checkpoint: String,
    },
    /// Show where each tensor of a target would come from, without creating the target
    Plan(PlanSlice),
}

/// `slice plan`.
#[derive(Debug, Args)]
pub struct PlanSlice {
    /// Reference model
    ///
    /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
    pub checkpoint: String,
    /// Number of layers of the target
    #[arg(long, value_name = "N", required_unless_present = "layer_map")]
    pub layers: Option<u32>,
    /// Reference layers in target order, such as 0,1,2,7
    ///
    /// The first layers by default.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub layer_map: Vec<u32>,
    /// Parts to inherit
    ///
    /// One of all, official-code (what the released code copies: blocks and head), blocks and
    /// nothing; or a list of token_embedding, position_embedding, attention, mlp, norms, final_norm
    /// and head, such as attention,norms.
    #[arg(long, default_value_t = InheritSet::ALL, value_name = "SET|PARTS")]
    pub inherit: InheritSet,
    /// Maximum size of a weights file, 5GB by default
    ///
    /// Larger targets are sharded.
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub max_shard_size: Option<u64>,
}

/// Commands for training.
#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// Estimate steps, tokens, memory and time of training a checkpoint with a recipe
    Estimate {
        /// Model to train
        ///
        /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
        checkpoint: String,
        /// Recipe whose [training] section is used
        #[arg(long, value_name = "RECIPE.toml")]
        recipe: PathBuf,
        /// Token set to train on
        #[arg(long, value_name = "ID", conflicts_with = "train_tokens", required_unless_present = "train_tokens")]
        tokens: Option<Uuid>,
        /// Number of training tokens, instead of a token set
        #[arg(long, value_name = "N")]
        train_tokens: Option<u64>,
    },
}

/// Commands for evaluation.
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// List the available tasks, or show some of them in detail
    ///
    /// The details are the data that a task needs and the tasks that a group contains.
    Tasks {
        /// Tasks to show in detail
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Measure a model on benchmarks of lm-evaluation-harness
    ///
    /// The label is the model's name on the leaderboard. It defaults to the model's location.
    Run(RunBenchmarks),
    /// Show the scores of an evaluation
    ///
    /// Includes standard errors, chance, the majority class, and whether each score differs from
    /// guessing.
    Scores {
        /// ID of the evaluate job
        job: Uuid,
    },
    /// Compare the scores of two models
    ///
    /// Compares pair by pair where both models were measured on the same document.
    Compare {
        /// ID of an evaluate job or its scores
        first: Uuid,
        /// ID of another evaluate job or its scores
        second: Uuid,
    },
    /// Show the newest scores of all models by task, and published ones
    Leaderboard {
        /// Only the models of this run
        #[arg(long, value_name = "ID")]
        run: Option<Uuid>,
    },
    /// Export an evaluation in the format of lm-evaluation-harness
    ///
    /// Writes results.json and samples_TASK.jsonl.
    Export {
        /// ID of the evaluate job
        job: Uuid,
        /// Output folder, created if missing
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Write even if the folder is not empty, replacing files of the same name
        #[arg(long)]
        force: bool,
    },
}

/// `eval run`.
#[derive(Debug, Args)]
pub struct RunBenchmarks {
    /// Model to measure
    ///
    /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
    pub checkpoint: String,
    /// Benchmarks and groups, such as piqa,mmlu
    ///
    /// `poster` selects everything that the poster measures. `inheritune eval tasks` lists all
    /// names.
    #[arg(long, value_delimiter = ',', required = true, value_name = "NAMES")]
    pub tasks: Vec<String>,
    /// Folder with the data sets
    ///
    /// Each data set has its own folder in it (piqa/validation.jsonl or .parquet). A path or
    /// file:// URI that the server can read, s3://bucket/key or artifact://ID.
    #[arg(long, value_name = "FOLDER")]
    pub data: String,
    /// Use only the first N rows of each benchmark
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Scores of another model to compare with
    ///
    /// Compares pair by pair.
    #[arg(long, value_name = "ID")]
    pub baseline: Option<Uuid>,
    /// Whether to add the tokenizer's special tokens
    ///
    /// By default, the tokenizer's own setting applies.
    #[arg(long, value_name = "BOOL")]
    pub add_bos_token: Option<bool>,
    /// Maximum tokens per forward pass, 2048 by default
    ///
    /// Bounds the memory. A single longer request exceeds it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_tokens: Option<u32>,
    /// Run one request at a time (slow)
    ///
    /// Matches the harness with a batch size of 1.
    #[arg(long)]
    pub one_by_one: bool,
    /// How the job is submitted.
    #[command(flatten)]
    pub submission: Submission,
}

/// Commands for recipe files.
#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Check a recipe and list every invalid field; exit code 2 if there is one
    Check {
        /// Recipe file
        #[arg(value_name = "RECIPE.toml")]
        recipe: PathBuf,
        /// Show the models, rounds and tokens of the run
        #[arg(long)]
        explain: bool,
    },
}
