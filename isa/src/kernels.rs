//! The compiled kernels.

use optim::kernel::bind;
use optim::presets;
use wgpu_optim::kernel::{Description, Dispatch, Stage, Target};
use wgpu_optim::{AnyRule, Clip, DynRule, Ema, Format, Group, Layout, Master, Options, Rounding};

/// A composed kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The rule, or `-` for a kernel of all rules.
    pub(crate) rule: String,
    pub(crate) variant: String,
    pub(crate) wgsl: String,
    pub(crate) entry_point: String,
    /// Bytes read and written per element of a tensor; 0 for a kernel that does not visit elements.
    pub(crate) bytes_per_element: f64,
}

impl Kernel {
    /// Whether a thread updates one vector after another, in a loop that the compiler counts eight times.
    pub(crate) fn in_rounds(&self) -> bool {
        self.wgsl.contains("fn rounds_of(")
    }
}

/// Elements of a tensor that is aligned.
const ALIGNED: u64 = 4_096;
/// Elements of a tensor that shares vectors with its neighbours.
const ODD: u64 = 1_001;

/// The kernels of every rule, and those without a rule.
pub(crate) fn kernels() -> Result<Vec<Kernel>, String> {
    let mut kernels = Vec::new();
    for rule in AnyRule::all() {
        // SGD with momentum, and the other rules in their most common configuration.
        kernels.extend(of_rule(presets::bench(rule).rule)?);
    }
    let clipped = Options { norms: true, report: true, ..clipped(Clip::GroupNorm(1.0)) };
    // Many partial sums of each group, and few.
    let many = describe(&tensors(AnyRule::all()[0], 2, 256 * ALIGNED), clipped)?;
    let few = describe(&tensors(AnyRule::all()[0], 2, ALIGNED), clipped)?;
    for (description, stage, variant, elements) in [
        (&many, Stage::Reduce, "reduce", 512 * ALIGNED),
        (&many, Stage::FoldGroups, "fold groups", 512 * ALIGNED),
        (&few, Stage::FoldGroups, "fold few groups", 2 * ALIGNED),
        (&many, Stage::Control, "control", 512 * ALIGNED),
        (&many, Stage::FoldNorms, "fold all", 512 * ALIGNED),
    ] {
        kernels.extend(kernel(description, stage, "-", variant, elements)?);
    }
    Ok(kernels)
}

fn of_rule(rule: AnyRule) -> Result<Vec<Kernel>, String> {
    let plain = Options::DEFAULT;
    let bf16 = Format::Bf16;
    let remainder = Options { params: bf16, grads: bf16, master: Master::Remainder, ..plain };
    let half = Options { params: bf16, grads: bf16, states: bf16, master: Master::None, ..plain };
    let blocks = Options { states: Format::Q8, ..plain };
    let stochastic = |options| Options { rounding: Rounding::Stochastic { seed: 0 }, ..options };
    let ema = Some(Ema { decay: 0.999, debias: true });
    let skips = Options { skip_nonfinite: true, zero_gradients: true, ema, ..plain };
    let around = Options { clip: Some(Clip::GlobalNorm(1.0)), norms: true, report: true, ..skips };
    let one = |options| ([1, ALIGNED], options);
    let mut kernels = Vec::new();
    for (variant, ([groups, len], options)) in [
        ("one group", one(plain)),
        ("two groups", ([2, ALIGNED], plain)),
        ("shared", ([8, ODD], plain)),
        ("around", one(around)),
        ("skip zero ema", one(skips)),
        ("bf16 remainder", one(remainder)),
        ("bf16 stochastic", one(stochastic(half))),
        ("q8", one(blocks)),
        ("q8 stochastic", one(stochastic(blocks))),
    ] {
        let description = describe(&tensors(rule, groups, len), options)?;
        kernels.extend(kernel(&description, Stage::Update, rule.name(), variant, groups * len)?);
        if variant == "one group" {
            let elements = groups * len;
            kernels.extend(kernel(&description, Stage::LayerNorms, rule.name(), "layer norms", elements)?);
            kernels.extend(kernel(&description, Stage::TrustRatio, rule.name(), "trust ratio", elements)?);
        }
    }
    Ok(kernels)
}

fn clipped(clip: Clip) -> Options {
    Options { clip: Some(clip), ..Options::DEFAULT }
}

/// A layout of groups with one tensor each, side by side.
fn tensors(rule: AnyRule, groups: u64, len: u64) -> Layout {
    let group =
        |i| Group::new(format!("group {i}"), DynRule::from(rule)).tensor(format!("tensor {i}"), [len]);
    Layout::packed((0..groups).map(group)).expect("names differ, and tensors have elements")
}

fn describe(layout: &Layout, options: Options) -> Result<Description, String> {
    let (mut optimizer, bound) =
        bind(layout.clone(), options, Target::Gpu).map_err(|error| error.to_string())?;
    optimizer.describe(&bound).map_err(|error| error.to_string())
}

/// The kernel of a stage of a step over `elements`, if the step has the stage.
fn kernel(
    description: &Description,
    stage: Stage,
    rule: &str,
    variant: &str,
    elements: u64,
) -> Result<Option<Kernel>, String> {
    let dispatches: Vec<_> = description.dispatches.iter().filter(|d| d.stage == stage).collect();
    let [dispatch] = dispatches[..] else {
        return if dispatches.is_empty() { Ok(None) } else { Err(format!("{rule}, {variant}: two kernels")) };
    };
    Ok(Some(Kernel {
        rule: rule.into(),
        variant: variant.into(),
        wgsl: dispatch.kernel.wgsl(),
        entry_point: dispatch.kernel.entry_point.into(),
        bytes_per_element: bytes(dispatch) as f64 / elements as f64,
    }))
}

/// Bytes of tensors that a dispatch reads and writes.
fn bytes(dispatch: &Dispatch) -> u64 {
    // A kernel of the other stages writes none of them.
    let written = u64::from(dispatch.stage == Stage::Update);
    let wgsl = dispatch.kernel.wgsl();
    let of_tensors = dispatch.bindings.iter().filter_map(|binding| {
        let name = binding.variable.strip_suffix("_buffer")?;
        // A first phase loads the slots that its direction reads.
        let loads = written == 1 || name == "g" || wgsl.contains(&format!("    fetch_{name}(at);\n"));
        let times = if binding.kind == "storage" { 1 + written } else { 1 };
        loads.then_some(binding.size * times)
    });
    of_tensors.sum()
}
