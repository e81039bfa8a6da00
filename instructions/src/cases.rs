//! The steps that are counted: of every rule in every format.

use cpu_harness::{CpuRun, Stored};
use wgpu_optim::{
    AnyRule, Clip, DynRule, Ema, Format, Group, Layout, Master, Options, Rounding, Sgd, StepError, cpu,
};

/// Elements of the smaller step: one task of the engine. The larger step has twice as many.
pub(crate) const ELEMENTS: usize = 16_384;

/// The learning rate.
const RATE: f64 = 1e-3;

/// A rule, and how its values are stored.
pub(crate) struct Case {
    pub(crate) rule: &'static str,
    pub(crate) format: &'static str,
    any: AnyRule,
    options: Options,
}

/// Every rule in every format.
pub(crate) fn cases() -> Vec<Case> {
    let of = |rule: AnyRule| {
        let any = match rule {
            // With the momentum that it is mostly used with.
            AnyRule::Sgd(plain) => Sgd { momentum: 0.9, ..plain }.into(),
            rule => rule,
        };
        formats().map(|(format, options)| Case { rule: rule.name(), format, any, options })
    };
    AnyRule::all().into_iter().flat_map(of).collect()
}

fn formats() -> [(&'static str, Options); 11] {
    let plain = Options::DEFAULT;
    let ema = Some(Ema { decay: 0.999, debias: true });
    let clip = Some(Clip::GlobalNorm(1.0));
    let around = Options { clip, skip_nonfinite: true, zero_gradients: true, ema, norms: true, ..plain };
    let bare = |params| Options { params, grads: params, master: Master::None, ..plain };
    let half = Options { states: Format::Bf16, ..bare(Format::Bf16) };
    let mixed = |master| Options { params: Format::Bf16, grads: Format::Bf16, master, ..plain };
    let blocks = Options { states: Format::Q8, ..plain };
    let stochastic = |options| Options { rounding: Rounding::Stochastic { seed: 0 }, ..options };
    [
        ("f32", plain),
        ("f32 around", around),
        ("f16", bare(Format::F16)),
        ("f16 stochastic", stochastic(bare(Format::F16))),
        ("bf16", half),
        ("bf16 stochastic", stochastic(half)),
        ("bf16 master", mixed(Master::F32)),
        ("bf16 remainder", mixed(Master::Remainder)),
        ("q8", blocks),
        ("q8 stochastic", stochastic(blocks)),
        ("bf16 q8 stochastic", stochastic(Options { states: Format::Q8, ..half })),
    ]
}

/// Takes two steps of `case` over so many elements, the second of which is counted.
pub(crate) fn run(case: &Case, elements: usize) -> Result<(), String> {
    let group = Group::new("group", DynRule::from(case.any)).tensor("tensor", [elements as u64]);
    let layout = Layout::packed([group]).map_err(|error| error.to_string())?;
    let mut run = CpuRun::new(layout, case.options, &numbers(elements, 0));
    let grads = numbers(elements, elements);
    run.step(&grads, RATE);
    run.grads = Stored::new(case.options.grads, &grads);
    counted_step(&mut run).map_err(|error| format!("{}, {}: {error}", case.rule, case.format))
}

/// Numbers of both signs and of many magnitudes.
fn numbers(elements: usize, from: usize) -> Vec<f32> {
    let hashes = (from..from + elements).map(|i| (i as u32).wrapping_mul(0x9e37_79b9));
    hashes.map(|hash| hash as i32 as f32 * (-32.0 - (hash & 7) as f32).exp2()).collect()
}

/// Callgrind counts the instructions of this function, and finds it by its name.
// SAFETY: no other function of the program has this name.
#[unsafe(no_mangle)]
#[inline(never)]
fn counted_step(run: &mut CpuRun) -> Result<(), StepError> {
    let tensors = cpu::Tensors::flat(run.params.params(), run.grads.grads_mut());
    run.optimizer.step(tensors, RATE).map(drop)
}
