//! The CPU engine, candle-nn and a triad. Each line on standard input has a contender and its number of
//! steps; `compare.py` writes the lines and times PyTorch in turn.
//!
//! ```text
//! setup CONTENDER RULE TENSORS ELEMENTS     a case: ELEMENTS in each of TENSORS; answers "ready"
//! time STEPS                                answers seconds a step
//! ```
//!
//! Contenders: `flat` and `each` (ours, in one slice and in slices of tensors), `bf16`, `bf16-random`, `q8`
//! and `q8-random` (ours in one slice, all in bf16 or state in 8 bits), `clip` (ours with the norm clipped
//! and gradients set to zero, filled again before every step, which is not timed), `candle`, `triad`.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::optim::{Optimizer as _, ParamsAdamW};
use rayon::prelude::*;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};
use wgpu_optim::{AnyRule, Clip, Format, Group, Layout, Master, Options, Rounding, Sgd, cpu};

/// A step, which returns its time without its preparation.
type Work = Box<dyn FnMut() -> Duration>;

/// Elements per task of a thread.
const BLOCK: usize = 1 << 14;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The stepping thread is one of the pool's, so no thread has to be woken.
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global()?;
    let mut work: Option<Work> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["setup", contender, rule, tensors, elements] => {
                // The old contender is dropped first: memory may not suffice for two.
                drop(work.take());
                work = Some(setup(contender, rule, tensors.parse()?, elements.parse()?)?);
                println!("ready");
            }
            ["time", steps] => {
                let work = work.as_mut().ok_or("no case has been set up")?;
                let steps: u32 = steps.parse()?;
                let time: Duration = (0..steps).map(|_| work()).sum();
                println!("{:e}", time.as_secs_f64() / f64::from(steps));
            }
            _ => return Err(format!("no such line: {line:?}").into()),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn setup(
    contender: &str,
    rule: &str,
    tensors: usize,
    elements: usize,
) -> Result<Work, Box<dyn std::error::Error>> {
    match contender {
        "candle" => return candle(tensors, elements),
        "triad" => return Ok(triad(tensors * elements)),
        _ => {}
    }
    let rule = match rule {
        "momentum" => Sgd { momentum: 0.9, ..Sgd::default() }.into(),
        _ => AnyRule::by_name(rule)?,
    };
    ours(contender, rule, tensors, elements)
}

fn pattern(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as u32).wrapping_mul(0x9e37_79b9) as i32 as f32 / i32::MAX as f32).collect()
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn ours(
    contender: &str,
    rule: AnyRule,
    tensors: usize,
    elements: usize,
) -> Result<Work, Box<dyn std::error::Error>> {
    let names: Vec<String> = (0..tensors).map(|i| format!("tensor {i}")).collect();
    let group =
        names.iter().fold(Group::new("all", rule), |group, name| group.tensor(name, [elements as u64]));
    // One after the other, as `pattern` fills them.
    let layout = Layout::packed([group])?;
    let clips = Options { clip: Some(Clip::GlobalNorm(1.0)), zero_gradients: true, ..Options::default() };
    let clip = contender == "clip";
    let random = Rounding::Stochastic { seed: 0 };
    let bf16 = Format::Bf16;
    let bf16 =
        Options { params: bf16, grads: bf16, states: bf16, master: Master::None, ..Options::default() };
    let q8 = Options { states: Format::Q8, ..Options::default() };
    let options = match contender {
        "clip" => clips,
        "bf16" => bf16,
        "bf16-random" => Options { rounding: random, ..bf16 },
        "q8" => q8,
        "q8-random" => Options { rounding: random, ..q8 },
        _ => Options::default(),
    };
    let mut optimizer = cpu::Optimizer::with_options(layout, options)?;
    let len = tensors * elements;
    let (mut params, mut grads) = (pattern(len), pattern(len));
    if options.params == Format::Bf16 {
        let codes = |x: &[f32]| x.iter().map(|&x| Format::Bf16.encode(x) as u16).collect::<Vec<_>>();
        let (mut params, grads) = (codes(&params), codes(&grads));
        return Ok(Box::new(move || {
            time(|| {
                optimizer.step(cpu::Tensors::flat(&mut params, &grads), 1e-4).expect("a good step");
            })
        }));
    }
    Ok(if contender == "each" {
        Box::new(move || {
            time(|| {
                let slices = params.chunks_mut(elements).zip(grads.chunks(elements));
                let slices = names.iter().zip(slices).map(|(name, (p, g))| (name.as_str(), p, g));
                optimizer.step(cpu::Tensors::each(slices), 1e-4).expect("a good step");
            })
        })
    } else {
        let fresh = if clip { grads.clone() } else { Vec::new() };
        Box::new(move || {
            grads
                .par_chunks_mut(BLOCK)
                .zip(fresh.par_chunks(BLOCK))
                .for_each(|(g, fresh)| g.copy_from_slice(fresh));
            time(|| {
                let tensors = cpu::Tensors::flat(&mut params, &mut grads);
                optimizer.step(tensors, 1e-4).expect("a good step");
            })
        })
    })
}

/// candle-nn's AdamW, which takes its gradients from a store that only a backward pass makes: of `Σ x · c`,
/// whose gradient is `c`.
fn candle(tensors: usize, elements: usize) -> Result<Work, Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let vars = (0..tensors)
        .map(|_| Var::from_tensor(&Tensor::from_vec(pattern(elements), elements, &device)?))
        .collect::<Result<Vec<_>, _>>()?;
    let mut sum = Tensor::zeros((), DType::F32, &device)?;
    for var in &vars {
        sum = (sum
            + (var.as_tensor() * Tensor::from_vec(pattern(elements), elements, &device)?)?.sum_all()?)?;
    }
    let grads: GradStore = sum.backward()?;
    let mut adamw = candle_nn::AdamW::new(vars, ParamsAdamW { lr: 1e-4, ..ParamsAdamW::default() })?;
    Ok(Box::new(move || time(|| adamw.step(&grads).expect("a good step"))))
}

/// `a = a · s + b`: 12 bytes per element. Every written byte is also read.
fn triad(len: usize) -> Work {
    let (mut a, b) = (pattern(len), pattern(len));
    Box::new(move || {
        time(|| {
            a.par_chunks_mut(BLOCK).zip(b.par_chunks(BLOCK)).for_each(|(a, b)| {
                for (a, b) in a.iter_mut().zip(b) {
                    *a = *a * 0.5 + b;
                }
            });
        })
    })
}
