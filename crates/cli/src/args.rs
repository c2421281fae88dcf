//! What can be typed.

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

/// The values of a closed set, in lower case and with hyphens.
fn named<D: Named + Send + Sync>() -> impl TypedValueParser<Value = D> {
    fn word<D: Named>(value: D) -> String {
        value.name().to_ascii_lowercase().replace('_', "-")
    }
    let words = D::all().iter().map(|value| word(*value));
    PossibleValuesParser::new(words)
        .try_map(|text| D::all().iter().copied().find(|value| word(*value) == text).ok_or("is no such value"))
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
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The server
    ///
    /// http://host:port, or https://host:port where it has a certificate.
    #[arg(long, global = true, env = "INHERITUNE_SERVER", default_value = "http://127.0.0.1:7600", value_name = "URL")]
    pub server: String,
    /// Who may have signed the server's certificate
    ///
    /// Certificates of authorities, PEM; the system's own when absent.
    #[arg(long, global = true, env = "INHERITUNE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// A file with the server's token
    #[arg(long, global = true, env = "INHERITUNE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How results are printed
    ///
    /// Errors are printed likewise, to standard error: as JSON, one object on the last line with code, message,
    /// violations (field and description) and hints.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// No progress while waiting
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs: the reply as the API defines it, field names as in the .proto files, enum values without prefix
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs: recipes carried out
    #[command(subcommand)]
    Run(RunCommand),
    /// Jobs: the single steps of runs, or jobs of your own
    #[command(subcommand)]
    Job(JobCommand),
    /// Artifacts: token sets, checkpoints, training states, scores
    #[command(subcommand)]
    Artifact(ArtifactCommand),
    /// Look into checkpoints
    #[command(subcommand)]
    Slice(SliceCommand),
    /// What training takes
    #[command(subcommand)]
    Train(TrainCommand),
    /// Measure models, and compare them
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Recipe files, offline
    #[command(subcommand)]
    Recipe(RecipeCommand),
    /// Certificates for TLS
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Print a completion script
    Completions {
        /// For this shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Commands about certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make an authority of your own and a server certificate
    ///
    /// Writes ca.pem (for clients: --ca-file), ca.key (keep it away from the servers), server.pem and server.key
    /// (security.certificate_file and key_file of the services). With a ca.pem and ca.key in the folder, these sign
    /// the new certificate, so that clients need not change.
    Init(InitCerts),
}

/// `certs init`.
#[derive(Debug, Args)]
pub struct InitCerts {
    /// The folder; made when absent
    pub dir: PathBuf,
    /// A name or address that clients use for the server
    ///
    /// May be given more than once.
    #[arg(long = "host", required = true, value_name = "HOST")]
    pub hosts: Vec<String>,
    /// How long the server's certificate holds
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650), value_name = "DAYS")]
    pub days: u32,
    /// Replace a server certificate that is there
    #[arg(long)]
    pub force: bool,
}

/// Commands about runs.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Start a run of a recipe
    ///
    /// Relative paths in the recipe (`file:demo/corpus.txt`, `demo/corpus.txt`) are taken from the current folder and
    /// sent as absolute file:// URIs; the server must be able to read them.
    Create(CreateRun),
    /// Show one run with its models and decisions
    Get {
        /// The run
        id: Uuid,
    },
    /// List runs, newest first
    List(ListRuns),
    /// Follow a run to its end; exit code 1 if it fails or is cancelled
    Watch {
        /// The run
        id: Uuid,
        /// What to leave behind at the end
        #[command(flatten)]
        ending: Ending,
    },
    /// Stop a run for good
    Cancel {
        /// The run
        id: Uuid,
    },
    /// Let a run wait; its worker saves first
    Pause {
        /// The run
        id: Uuid,
    },
    /// Let a paused run go on
    Resume {
        /// The run
        id: Uuid,
    },
    /// Let a failed run go on from where it failed
    Retry {
        /// The run
        id: Uuid,
    },
    /// Write index.html, report.md and the plots of a run, finished or not
    Report {
        /// The run
        id: Uuid,
        /// The folder, made where needed
        #[arg(long, default_value = "report", value_name = "DIR")]
        output_dir: PathBuf,
    },
}

/// `run create`.
#[derive(Debug, Args)]
pub struct CreateRun {
    /// The recipe
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// Use this text instead of the recipe's corpus.sources
    ///
    /// May be given several times.
    #[arg(long, value_name = "SOURCE")]
    pub corpus: Vec<String>,
    /// Follow it to its end
    #[arg(long)]
    pub watch: bool,
    /// Make the call safe to repeat
    ///
    /// The same UUID with the same recipe gives the same run.
    #[arg(long, value_name = "UUID", conflicts_with = "request_id_from_recipe")]
    pub request_id: Option<Uuid>,
    /// Go on with the run of exactly this recipe
    ///
    /// If there is one that has not failed or been cancelled; else another is started.
    #[arg(long)]
    pub request_id_from_recipe: bool,
    /// What to leave behind at the end; implies --watch
    #[command(flatten)]
    pub ending: Ending,
}

/// What a watch leaves behind when the run has ended.
#[derive(Debug, Clone, Default, Args)]
pub struct Ending {
    /// Write the report there when the run has ended, however it ended
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Export the target there when the run has succeeded
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
    /// Export even into a folder that is not empty
    #[arg(long, requires = "export")]
    pub force: bool,
}

impl Ending {
    /// Something is to be left behind.
    pub fn is_something(&self) -> bool {
        self.report.is_some() || self.export.is_some()
    }
}

/// `run list`.
#[derive(Debug, Args)]
pub struct ListRuns {
    /// Only with this status
    #[arg(long, value_parser = named::<JobStatus>())]
    pub status: Option<JobStatus>,
    /// How many
    #[command(flatten)]
    pub page: PageArgs,
}

/// Which page of a list.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// Most entries, 1 to 1000
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=1000), value_name = "N")]
    pub limit: i32,
    /// Go on after a list that was cut
    ///
    /// The token that it ended with.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOKEN")]
    pub page_token: String,
}

/// Commands about jobs.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Submit one job
    ///
    /// The file is TOML or JSON: `kind = "tokenize" | "slice" | "train" | "evaluate"` and that kind's fields.
    /// Locations may be written as in recipes.
    Submit(SubmitJob),
    /// Show one job
    Get {
        /// The job
        id: Uuid,
    },
    /// List jobs, newest first
    List(ListJobs),
    /// Follow a job to its end; exit code 1 if it fails or is cancelled
    Watch {
        /// The job
        id: Uuid,
    },
    /// Show a training's curves, or an evaluation's scores
    ///
    /// Loss, learning rate, gradient norm, speed, memory and more. Follows a running job to its end. With --output json, every point.
    Metrics {
        /// The job
        id: Uuid,
        /// Write an event file for TensorBoard into this folder
        ///
        /// An earlier one of the same job is replaced.
        #[arg(long, value_name = "DIR")]
        tensorboard: Option<PathBuf>,
    },
    /// Stop a job for good
    Cancel {
        /// The job
        id: Uuid,
    },
    /// Let a job wait; its worker saves first
    Pause {
        /// The job
        id: Uuid,
    },
    /// Let a paused job go on
    Resume {
        /// The job
        id: Uuid,
    },
    /// Try a failed job anew, from what it saved
    Retry {
        /// The job
        id: Uuid,
    },
}

/// `job submit`.
#[derive(Debug, Args)]
pub struct SubmitJob {
    /// The job's spec
    #[arg(value_name = "FILE.toml|FILE.json")]
    pub spec: PathBuf,
    /// How it is handed in
    #[command(flatten)]
    pub submission: Submission,
}

/// How a job is handed in.
#[derive(Debug, Args)]
pub struct Submission {
    /// What it is for, in your words
    #[arg(long, default_value = "", hide_default_value = true)]
    pub label: String,
    /// Higher first
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(-100..=100), allow_negative_numbers = true)]
    pub priority: i32,
    /// Make the call safe to repeat
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<Uuid>,
    /// Follow it to its end
    #[arg(long)]
    pub watch: bool,
}

/// `job list`.
#[derive(Debug, Args)]
pub struct ListJobs {
    /// Only of this run
    #[arg(long, value_name = "ID")]
    pub run: Option<Uuid>,
    /// Only of this kind
    #[arg(long, value_parser = named::<JobKind>())]
    pub kind: Option<JobKind>,
    /// Only with this status
    #[arg(long, value_parser = named::<JobStatus>())]
    pub status: Option<JobStatus>,
    /// How many
    #[command(flatten)]
    pub page: PageArgs,
}

/// Commands about artifacts.
#[derive(Debug, Subcommand)]
pub enum ArtifactCommand {
    /// Register files that are there already, so that jobs can name them by id
    Register {
        /// What they are
        #[arg(value_parser = named::<ArtifactKind>())]
        kind: ArtifactKind,
        /// The folder
        ///
        /// A path or file:// URI that the server can read, or s3://bucket/key.
        location: String,
        /// A JSON object to keep with it
        #[arg(long, default_value = "", hide_default_value = true, value_name = "JSON")]
        metadata: String,
        /// Make the call safe to repeat
        #[arg(long, value_name = "UUID")]
        request_id: Option<Uuid>,
    },
    /// Make a checkpoint of another format an artifact of this one: a slice of all its layers
    ///
    /// Whatever a slice can be cut from can be imported, pytorch_model.bin included; the weights stay what they are,
    /// in safetensors. Needed before a model can be evaluated that was neither made nor trained here.
    Import(ImportCheckpoint),
    /// Show one artifact with its files
    Get {
        /// The artifact
        id: Uuid,
    },
    /// List artifacts, newest first
    List(ListArtifacts),
    /// Copy an artifact's files to a folder, checking every digest
    Export {
        /// The artifact
        id: Uuid,
        /// The folder, made where needed
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Even if the folder is not empty; files of the same name are replaced
        #[arg(long)]
        force: bool,
    },
    /// Keep an artifact: nothing deletes it while it is pinned
    ///
    /// A training deletes its older states as it goes on, and nearly all when it has ended; those that are pinned stay.
    Pin {
        /// The artifact
        id: Uuid,
    },
    /// Let go of a pinned artifact
    ///
    /// A training that goes on may delete its state then; of one that has ended it stays until `artifact delete`.
    Unpin {
        /// The artifact
        id: Uuid,
    },
    /// Delete an artifact that is not pinned; files that were registered stay
    ///
    /// There is no way back, and nothing is asked. Jobs that need it fail by its name.
    Delete {
        /// The artifact
        id: Uuid,
    },
}

/// `artifact import`.
#[derive(Debug, Args)]
pub struct ImportCheckpoint {
    /// The checkpoint
    ///
    /// A path or file:// URI that the server can read, or s3://bucket/key.
    pub checkpoint: String,
    /// Longest file of weights, 5GB when absent
    ///
    /// A larger checkpoint is sharded. 500MB, 1GiB and the like.
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub max_shard_size: Option<u64>,
    /// What it is for, in your words; `import CHECKPOINT` when absent
    #[arg(long, default_value = "", hide_default_value = true)]
    pub label: String,
    /// Make the call safe to repeat
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<Uuid>,
    /// Follow the import to its end and print the artifact
    #[arg(long)]
    pub watch: bool,
}

/// `artifact list`.
#[derive(Debug, Args)]
pub struct ListArtifacts {
    /// Only of this kind
    #[arg(long, value_parser = named::<ArtifactKind>())]
    pub kind: Option<ArtifactKind>,
    /// Only of this run
    #[arg(long, value_name = "ID")]
    pub run: Option<Uuid>,
    /// Only of this job
    #[arg(long, value_name = "ID")]
    pub job: Option<Uuid>,
    /// How many
    #[command(flatten)]
    pub page: PageArgs,
}

/// Commands about checkpoints.
#[derive(Debug, Subcommand)]
pub enum SliceCommand {
    /// Show the shape and the tensors of a checkpoint
    Inspect {
        /// The checkpoint
        ///
        /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
        checkpoint: String,
    },
    /// Show where every tensor of a target would come from, without making it
    Plan(PlanSlice),
}

/// `slice plan`.
#[derive(Debug, Args)]
pub struct PlanSlice {
    /// The reference
    ///
    /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
    pub checkpoint: String,
    /// Layers of the target
    #[arg(long, value_name = "N", required_unless_present = "layer_map")]
    pub layers: Option<u32>,
    /// Source layers in target order: 0,1,2,7
    ///
    /// The first ones when absent.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub layer_map: Vec<u32>,
    /// Which parts are inherited
    ///
    /// all, official-code (what the released code copies: blocks and head), blocks, nothing; or some of token_embedding,
    /// position_embedding, attention, mlp, norms, final_norm and head: attention,norms
    #[arg(long, default_value_t = InheritSet::ALL, value_name = "SET|PARTS")]
    pub inherit: InheritSet,
    /// Longest file of weights, 5GB when absent
    ///
    /// A larger target is sharded.
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub max_shard_size: Option<u64>,
}

/// Commands about training.
#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// Estimate steps, tokens, memory and time of training a checkpoint as a recipe says
    Estimate {
        /// The model
        ///
        /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
        checkpoint: String,
        /// The recipe whose [training] is used
        #[arg(long, value_name = "RECIPE.toml")]
        recipe: PathBuf,
        /// The token set to train on
        #[arg(long, value_name = "ID", conflicts_with = "train_tokens", required_unless_present = "train_tokens")]
        tokens: Option<Uuid>,
        /// Or just so many training tokens
        #[arg(long, value_name = "N")]
        train_tokens: Option<u64>,
    },
}

/// Commands about evaluation.
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// List what can be measured, or show single tasks in full
    ///
    /// In full: what data a task needs, and what a group holds.
    Tasks {
        /// Only these
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Measure a model on benchmarks of lm-evaluation-harness
    ///
    /// The label names the model on the leaderboard: its location when absent.
    Run(RunBenchmarks),
    /// Show the scores of an evaluation
    ///
    /// With their errors, chance, the majority class, and whether they differ from guessing.
    Scores {
        /// The evaluate job
        job: Uuid,
    },
    /// Hold two models' scores against each other
    ///
    /// Pair by pair where both were measured on the same document.
    Compare {
        /// An evaluate job, or its scores
        first: Uuid,
        /// Another one
        second: Uuid,
    },
    /// Show models by tasks: the newest scores of each, and published ones
    Leaderboard {
        /// Only the models of this run
        #[arg(long, value_name = "ID")]
        run: Option<Uuid>,
    },
    /// Write an evaluation's scores as lm-evaluation-harness does
    ///
    /// results.json and samples_TASK.jsonl.
    Export {
        /// The evaluate job
        job: Uuid,
        /// The folder, made where needed
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Even if the folder is not empty; files of the same name are replaced
        #[arg(long)]
        force: bool,
    },
}

/// `eval run`.
#[derive(Debug, Args)]
pub struct RunBenchmarks {
    /// The model
    ///
    /// artifact://ID, a path or file:// URI that the server can read, or s3://bucket/key.
    pub checkpoint: String,
    /// Benchmarks and groups: piqa,mmlu
    ///
    /// `poster` is all that the poster measures; `inheritune eval tasks` lists them.
    #[arg(long, value_delimiter = ',', required = true, value_name = "NAMES")]
    pub tasks: Vec<String>,
    /// A folder with the data sets
    ///
    /// Each in a folder of its own (piqa/validation.jsonl or .parquet); a path or file:// URI that the server can read,
    /// s3://bucket/key or artifact://ID.
    #[arg(long, value_name = "FOLDER")]
    pub data: String,
    /// Only the first so many rows of each benchmark
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Another model's scores to compare with
    ///
    /// Pair by pair.
    #[arg(long, value_name = "ID")]
    pub baseline: Option<Uuid>,
    /// Whether the tokenizer's special tokens are added
    ///
    /// Whatever it does by itself when absent.
    #[arg(long, value_name = "BOOL")]
    pub add_bos_token: Option<bool>,
    /// Tokens a forward pass at most, 2048 when absent
    ///
    /// But for a single longer request. It bounds the memory.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_tokens: Option<u32>,
    /// Read every request by itself: slow
    ///
    /// As the harness does with a batch size of 1.
    #[arg(long)]
    pub one_by_one: bool,
    /// How it is handed in
    #[command(flatten)]
    pub submission: Submission,
}

/// Commands about recipe files.
#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Read a recipe and name every bad field; exit code 2 if there is one
    Check {
        /// The recipe
        #[arg(value_name = "RECIPE.toml")]
        recipe: PathBuf,
        /// Say what would be run: models, rounds, tokens
        #[arg(long)]
        explain: bool,
    },
}
