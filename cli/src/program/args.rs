//! The command line.

use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, value_parser};
use optim::device::Choice;
use std::path::PathBuf;
use wgpu_optim::kernel::{Stage, Target};
use wgpu_optim::{AnyRule, Clip, Ema, Format, LossScale, Master, Options, Rounding};

/// Largest number of elements. A larger allocation would only be killed.
const MAX_ELEMENTS: u64 = 1 << 30;
/// Largest number of steps in a table.
const MAX_SHOWN_STEPS: u64 = 10_000_000;

/// Fused optimizer kernels for wgpu: replays recorded training runs, verifies devices against an f64
/// reference, and measures speed.
///
/// Without a subcommand it replays the bundled runs, checks an AdamW update of a million parameters, and
/// times it beside a plain copy.
///
/// WGPU_BACKEND and WGPU_ADAPTER_NAME choose an adapter. The exit status is 0 for success, 1 for a failed
/// check, 2 for bad input.
#[derive(Debug, Parser)]
#[command(name = "optim", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Common {
    /// Device to run on
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) device: Choice,
    /// Print one JSON object per line on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List adapters with drivers and relevant limits, and mark the chosen one
    Devices,
    /// Check every rule on fresh random data against the f64 reference, on the GPU and on the CPU
    Verify(Verify),
    /// Replay recorded training runs and check their results
    Replay {
        /// Trajectory files (safetensors, optim-trajectory/1)
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Time a step of every rule beside a plain copy
    Bench(Bench),
    /// Show the content of a checkpoint or of another safetensors file
    ///
    /// Lists rules, steps, groups, tensors and formats. Each slot has its least and largest number, its rms
    /// and the count of numbers that are not finite.
    Inspect {
        /// A safetensors file, or the index (.index.json) of several files
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only compare the content of a checkpoint with its saved digest
        #[arg(long)]
        verify: bool,
    },
    /// Show the text of a step's kernels
    ///
    /// Each part stands under the name of its file. With --json it shows everything that an engine in another
    /// language needs to run the step.
    Kernel(Kernel),
    /// Minimize Rosenbrock's function from (-1, 1) with every rule, beside the f64 reference
    Race(Race),
    /// Show the values of a learning-rate schedule, or an example of every kind
    Schedules(Schedules),
}

/// Storage of parameters, gradients and state.
#[derive(Clone, Debug, Args)]
pub(crate) struct Storage {
    /// Format of the parameters
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = formats(Format::TENSORS))]
    pub(crate) params: String,
    /// Format of the gradients
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = formats(Format::TENSORS))]
    pub(crate) grads: String,
    /// Format of the state
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = formats(Format::STATES))]
    pub(crate) states: String,
    /// Precision kept beside parameters of 2 bytes
    #[arg(long, value_name = "MASTER", default_value = "f32", value_parser = masters())]
    pub(crate) master: String,
    /// Round numbers of fewer than 4 bytes stochastically
    #[arg(long)]
    pub(crate) stochastic: bool,
}

/// A number from 1 to `max`.
fn up_to(max: u64) -> RangedU64ValueParser {
    value_parser!(u64).range(1..=max)
}

fn masters() -> PossibleValuesParser {
    PossibleValuesParser::new(["f32", "remainder", "none"])
}

/// The built-in rules, each with its defaults.
fn rules() -> impl TypedValueParser<Value = AnyRule> {
    PossibleValuesParser::new(AnyRule::NAMES).try_map(|name| AnyRule::by_name(&name))
}

fn formats(formats: [Format; 3]) -> PossibleValuesParser {
    PossibleValuesParser::new(formats.map(Format::name))
}

impl Storage {
    pub(crate) fn options(&self) -> anyhow::Result<Options> {
        let format =
            |name: &str| Format::ALL.into_iter().find(|format| format.name() == name).unwrap_or_default();
        let master = match self.master.as_str() {
            "remainder" => Master::Remainder,
            "none" => Master::None,
            _ => Master::F32,
        };
        let rounding = if self.stochastic { Rounding::Stochastic { seed: 0 } } else { Rounding::Nearest };
        let [params, grads, states] = [&self.params, &self.grads, &self.states].map(|name| format(name));
        let options = Options { params, grads, states, master, rounding, ..Options::default() };
        options.validate()?;
        Ok(options)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Rules to check [default: all]
    #[arg(long = "rule", value_name = "R", value_parser = rules())]
    pub(crate) rules: Vec<AnyRule>,
    /// Number of parameters
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = up_to(MAX_ELEMENTS))]
    pub(crate) elements: u64,
    /// Number of steps
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = up_to(1_000_000))]
    pub(crate) steps: u64,
    /// Seed of the random numbers [default: from the clock]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

#[derive(Debug, Args)]
pub(crate) struct Kernel {
    /// A built-in rule, or a rule with hyperparameters, such as '{"adamw": {"weight_decay": 0.1}}'
    #[arg(long, value_name = "R", default_value = "adamw", value_parser = rule)]
    pub(crate) rule: AnyRule,
    /// Show one stage of the step [default: the update; with --json all stages]
    #[arg(long, value_name = "STAGE", value_parser = stages())]
    pub(crate) stage: Option<Stage>,
    /// Kind of device for the kernels
    #[arg(long, value_name = "TARGET", default_value = "gpu", value_parser = targets())]
    pub(crate) target: Target,
    /// Number of parameters
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = up_to(1 << 24))]
    pub(crate) elements: u64,
    /// Number of tensors; several tensors are in two groups
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = up_to(10_000))]
    pub(crate) tensors: u64,
    /// Number of steps with shown scalars
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = up_to(10_000))]
    pub(crate) steps: u64,
    /// Learning rate of these steps [default: the rule's]
    #[arg(long, value_name = "LR")]
    pub(crate) lr: Option<f64>,
    #[command(flatten)]
    pub(crate) storage: Storage,
    #[command(flatten)]
    pub(crate) around: Around,
}

/// The options around the update.
#[derive(Clone, Debug, Args)]
pub(crate) struct Around {
    /// Clip the norm of all gradients at this bound
    #[arg(long, value_name = "C", group = "clip")]
    pub(crate) clip_norm: Option<f64>,
    /// Clip the norm of each group's gradients at this bound
    #[arg(long, value_name = "C", group = "clip")]
    pub(crate) clip_group_norm: Option<f64>,
    /// Clip each gradient at this bound
    #[arg(long, value_name = "C", group = "clip")]
    pub(crate) clip_value: Option<f64>,
    /// Skip steps with gradients that are not finite
    #[arg(long)]
    pub(crate) skip: bool,
    /// Scale the loss dynamically
    #[arg(long)]
    pub(crate) loss_scale: bool,
    /// Set gradients to zero
    #[arg(long)]
    pub(crate) zero: bool,
    /// Keep an average of the parameters with this decay
    #[arg(long, value_name = "DECAY")]
    pub(crate) ema: Option<f64>,
    /// Take the norms of parameters and update
    #[arg(long)]
    pub(crate) norms: bool,
}

impl Kernel {
    pub(crate) fn options(&self) -> anyhow::Result<Options> {
        let Around { clip_norm, clip_group_norm, clip_value, skip, loss_scale, zero, ema, norms } =
            self.around.clone();
        let clip = clip_norm.map(Clip::GlobalNorm);
        let clip = clip.or(clip_group_norm.map(Clip::GroupNorm)).or(clip_value.map(Clip::Value));
        let options = Options {
            clip,
            skip_nonfinite: skip,
            loss_scale: loss_scale.then(LossScale::default),
            zero_gradients: zero,
            ema: ema.map(|decay| Ema { decay, debias: true }),
            norms,
            ..self.storage.options()?
        };
        options.validate()?;
        Ok(options)
    }
}

/// A rule by its name, or in its serde form.
fn rule(text: &str) -> anyhow::Result<AnyRule> {
    if text.starts_with('{') { Ok(serde_json::from_str(text)?) } else { Ok(AnyRule::by_name(text)?) }
}

fn stages() -> impl TypedValueParser<Value = Stage> {
    let find =
        |name: String| Stage::ALL.into_iter().find(|stage| stage.name() == name).unwrap_or(Stage::Update);
    PossibleValuesParser::new(Stage::ALL.map(Stage::name)).map(find)
}

fn targets() -> impl TypedValueParser<Value = Target> {
    let find =
        |name: String| Target::ALL.into_iter().find(|target| target.name() == name).unwrap_or(Target::Gpu);
    PossibleValuesParser::new(Target::ALL.map(Target::name)).map(find)
}

#[derive(Debug, Args)]
pub(crate) struct Race {
    /// Rules to run [default: all]
    #[arg(long = "rule", value_name = "R", value_parser = rules())]
    pub(crate) rules: Vec<AnyRule>,
    /// Number of steps
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = up_to(10_000_000))]
    pub(crate) steps: u64,
    /// Learning rate of all rules
    #[arg(long, value_name = "LR", default_value_t = 1e-3, conflicts_with = "default_lr")]
    pub(crate) lr: f64,
    /// Use each rule's default learning rate
    #[arg(long)]
    pub(crate) default_lr: bool,
    /// Write a picture of the paths over the function's level lines
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Rules to time [default: all]
    #[arg(long = "rule", value_name = "R", value_parser = rules())]
    pub(crate) rules: Vec<AnyRule>,
    /// Number of parameters
    #[arg(long, value_name = "N", default_value_t = 1 << 24, value_parser = up_to(MAX_ELEMENTS))]
    pub(crate) elements: u64,
    /// Number of tensors; several tensors are in two groups
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = up_to(1_000_000))]
    pub(crate) tensors: u64,
    #[command(flatten)]
    pub(crate) storage: Storage,
}

#[derive(Debug, Args)]
pub(crate) struct Schedules {
    /// One schedule, such as '{"cosine": {"start": 3e-4, "end": 3e-5, "steps": 100}}' [default: an example of
    /// every kind]
    #[arg(long, value_name = "JSON")]
    pub(crate) spec: Option<String>,
    /// Number of steps to show, from step 0 on
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = up_to(MAX_SHOWN_STEPS))]
    pub(crate) steps: u64,
    /// Also write a picture of the curves
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}
