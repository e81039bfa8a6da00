//! What tests share that needs no GPU: every rule's options, data, layouts, and the state of the CPU engine
//! in the flat space.

mod cases;

pub use cases::{Case, Cases, cases, cases_of};
use wgpu_optim::check::{Checker, Deviation, Snapshot};
use wgpu_optim::{Clip, DynRule, Ema, Format, Group, Layout, LossScale, Options, Report, Step, cpu, q8};

/// SplitMix64 (Steele, Lea and Flood, 2014): data that is the same in every run.
pub struct Random(u64);

impl Random {
    /// Starts anywhere.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 of them.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// Nine decades, both signs, one zero in sixteen.
    pub fn value(&mut self) -> f32 {
        if self.below(16) == 0 {
            return 0.0;
        }
        let sign = if self.below(2) == 0 { 1.0 } else { -1.0 };
        (sign * 10f64.powf(self.unit() * 9.0 - 6.0)) as f32
    }

    /// So many [values](Self::value).
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// The learning rate of step `t`: no two alike.
#[must_use]
pub fn lr(t: usize) -> f64 {
    0.01 / (1.0 + t as f64)
}

/// One tensor, `w`.
///
/// # Panics
/// Never.
#[must_use]
pub fn single(rule: impl Into<DynRule>, len: u64) -> Layout {
    Layout::new([Group::new("all", rule).tensor("w", [len])]).unwrap()
}

/// Enough for some ten blocks, in tensors of all sizes, two groups by turns, with gaps.
///
/// # Panics
/// Never.
#[must_use]
pub fn many(rule: impl Into<DynRule>) -> Layout {
    let rule = rule.into();
    let mut groups = [Group::new("first", rule.clone()), Group::new("second", rule).lr_factor(0.5)];
    let sizes = [1, 40_001, 3, 127, 128, 129, 7, 16_384, 77_777, 2];
    let mut offset = 3;
    for (i, size) in sizes.into_iter().chain((0..600).map(|i| 1 + i % 50)).enumerate() {
        let group = &mut groups[i % 2];
        *group = group.clone().tensor_at(format!("t{i}"), [size], offset);
        offset += size + u64::from(i % 3 == 0);
    }
    Layout::new(groups).unwrap()
}

/// All that can stand around an update, in f32.
#[must_use]
pub fn all(clip: Clip) -> Options {
    Options {
        clip: Some(clip),
        loss_scale: Some(LossScale { initial: 8.0, growth_interval: 2, ..LossScale::default() }),
        zero_gradients: true,
        ema: Some(Ema { decay: 0.9, debias: true }),
        norms: true,
        ..Options::default()
    }
}

/// How a run is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// One slice.
    Flat,
    /// Slices of tensors, in the order of the flat space or backwards.
    Each {
        /// Which.
        backwards: bool,
    },
    /// One slice, with the instructions that everything is compiled for.
    Undispatched,
}

/// A step over codes of whatever format.
///
/// # Panics
/// If it is refused.
pub fn step(
    optimizer: &mut cpu::Optimizer,
    [params, grads]: [&mut Vec<u32>; 2],
    form: Form,
    step: Step,
) -> Option<Report> {
    let (layout, options) = (optimizer.layout().clone(), *optimizer.options());
    let mut stored = [(options.params, &*params), (options.grads, &*grads)].map(|(format, codes)| {
        let bits = codes.iter().map(|&code| f32::from_bits(code)).collect::<Vec<_>>();
        let halves = codes.iter().map(|&code| code as u16).collect::<Vec<_>>();
        (format, bits, halves)
    });
    let report = {
        let [(p, p4, p2), (g, g4, g2)] = &mut stored;
        let tensors = match form {
            Form::Each { backwards } => {
                let mut pieces = Vec::new();
                let (mut p4, mut p2, mut g4, mut g2) = (&mut p4[..], &mut p2[..], &mut g4[..], &mut g2[..]);
                let mut at = 0;
                for tensor in layout.by_offset() {
                    let (gap, len) = (tensor.offset as usize - at, tensor.len as usize);
                    at = tensor.end() as usize;
                    macro_rules! take {
                        ($slice:ident) => {{
                            let (piece, rest) = std::mem::take(&mut $slice)[gap..].split_at_mut(len);
                            $slice = rest;
                            piece
                        }};
                    }
                    let (p4, p2, g4, g2) = (take!(p4), take!(p2), take!(g4), take!(g2));
                    let p = if *p == Format::F32 { cpu::Params::from(p4) } else { p2.into() };
                    let g = if *g == Format::F32 { cpu::Grads::from(g4) } else { g2.into() };
                    pieces.push((tensor.name.as_str(), p, g));
                }
                if backwards {
                    pieces.reverse();
                }
                cpu::Tensors::each(pieces)
            }
            _ => {
                let p = if *p == Format::F32 { cpu::Params::from(p4) } else { p2.into() };
                let g = if *g == Format::F32 { cpu::Grads::from(g4) } else { g2.into() };
                cpu::Tensors::flat(p, g)
            }
        };
        optimizer.step(tensors, step).unwrap()
    };
    for ((format, bits, halves), codes) in stored.into_iter().zip([params, grads]) {
        *codes = match format {
            Format::F32 => bits.into_iter().map(f32::to_bits).collect(),
            _ => halves.into_iter().map(u32::from).collect(),
        };
    }
    report
}

/// Compares bit for bit, naming the first difference.
///
/// # Panics
/// If there is one.
pub fn assert_same_bits(a: &Snapshot, b: &Snapshot, context: &str) {
    let same = |what: &str, a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len(), "{context}: length of {what}");
        let different = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(i) = different {
            panic!("{context}: {what}[{i}] = {:e} and {:e}", a[i], b[i]);
        }
    };
    same("param", &a.params, &b.params);
    assert_eq!(a.state.len(), b.state.len());
    for (slot, (a, b)) in a.state.iter().zip(&b.state).enumerate() {
        same(&format!("slot {slot}"), a, b);
    }
}

/// The budget of a layout's steps, in ulps: that of the rule that allows the most.
///
/// # Panics
/// For a rule without a CPU implementation.
#[must_use]
pub fn budget(layout: &Layout) -> f64 {
    let ulps = layout.groups().iter().map(|group| group.rule().spec().max_ulps.expect("a CPU rule"));
    ulps.fold(0.0, f64::max)
}

/// Fails with the worst element if a step lies outside of the rules' budget.
///
/// # Panics
/// So.
pub fn assert_within_budget(layout: &Layout, deviation: &Deviation, context: &str) {
    let (rule, budget) = (layout.groups()[0].rule().name(), budget(layout));
    assert!(deviation.ulps <= budget, "{rule} {context}: {deviation}, budget {budget}");
}

/// The numbers of a slot, of which small tensors may have other codes than the rest; of no codes none.
#[must_use]
pub fn decoded(layout: &Layout, options: &Options, codes: &[u32]) -> Vec<f32> {
    let mut numbers = vec![0.0; codes.len()];
    for tensor in layout.tensors().iter().filter(|_| !codes.is_empty()) {
        let format = options.states_of(tensor.len);
        let pairs = numbers[tensor.range()].iter_mut().zip(&codes[tensor.range()]);
        pairs.for_each(|(x, &code)| *x = format.decode(code));
    }
    numbers
}

/// Parameters and state of an optimizer on the CPU, in the flat space as the harness has the GPU's.
#[must_use]
pub fn cpu_snapshot(optimizer: &cpu::Optimizer, params: cpu::State<'_>) -> Snapshot {
    let (layout, options) = (optimizer.layout(), optimizer.options());
    let numbers = |stored: cpu::State<'_>, format: Format| match stored {
        cpu::State::F32(x) => x.to_vec(),
        cpu::State::U16(x) => x.iter().map(|&code| format.decode(code.into())).collect(),
        cpu::State::Q8(..) => unreachable!("parameters are not stored in blocks"),
    };
    let state = layout
        .slot_names()
        .into_iter()
        .map(|slot| decoded(layout, options, &cpu_slot(optimizer, slot).unwrap_or_default()));
    let state = state.collect();
    let mut params = numbers(params, options.params);
    let (master, remainder) = (cpu_slot(optimizer, "master"), cpu_slot(optimizer, "remainder"));
    for i in layout.tensors().iter().flat_map(|tensor| tensor.range()) {
        if let Some(master) = &master {
            params[i] = f32::from_bits(master[i]);
        } else if let Some(remainder) = &remainder {
            params[i] = joined(params[i].to_bits() >> 16, remainder[i]);
        }
    }
    Snapshot { params, state }
}

/// The codes of a slot in the flat space, for each element that a tensor has; empty where it is not kept,
/// `None` if there is no such slot. Of what is stored in blocks, the bits of the numbers themselves.
#[must_use]
pub fn cpu_slot(optimizer: &cpu::Optimizer, slot: &str) -> Option<Vec<u32>> {
    let layout = optimizer.layout();
    let (mut flat, mut known) = (Vec::new(), false);
    for tensor in layout.tensors() {
        // A tensor whose rule lacks the slot has none of it.
        let Ok(part) = optimizer.state(slot, &tensor.name) else { continue };
        known = true;
        let Some(part) = part else { continue };
        flat.resize(layout.len() as usize, 0);
        let to = flat[tensor.range()].iter_mut();
        match part {
            cpu::State::F32(x) => to.zip(x).for_each(|(to, x)| *to = x.to_bits()),
            cpu::State::U16(x) => to.zip(x).for_each(|(to, &x)| *to = x.into()),
            cpu::State::Q8(x, scales) => {
                let first = tensor.offset as usize % 4;
                let number = |i: usize| q8::decode(x[i], scales[(first + i) / q8::BLOCK]);
                to.enumerate().for_each(|(i, to)| *to = number(i).to_bits());
            }
        }
    }
    known.then_some(flat)
}

/// A bf16 and its remainder.
#[must_use]
pub fn joined(code: u32, remainder: u32) -> f32 {
    f32::from_bits(code.wrapping_sub(remainder >> 15) << 16 | remainder)
}

/// Runs `steps` steps of the CPU engine on random gradients; every element of every step must be within the
/// rule's budget. Returns the worst.
///
/// # Panics
/// If one is not.
pub fn check_cpu(layout: &Layout, seed: u64, steps: usize, context: &str) -> f64 {
    let mut random = Random::new(seed);
    let len = layout.len() as usize;
    let mut optimizer = cpu::Optimizer::new(layout.clone()).unwrap();
    let mut params = random.values(len);
    let mut checker = Checker::new(layout.clone());
    let mut worst = 0f64;
    for t in 0..steps {
        let before = cpu_snapshot(&optimizer, cpu::State::F32(&params));
        let grads = random.values(len);
        optimizer.step(cpu::Tensors::flat(&mut params, &grads), lr(t)).unwrap();
        let after = cpu_snapshot(&optimizer, cpu::State::F32(&params));
        let deviation = checker.step(&before, &grads, lr(t), &after).unwrap();
        assert_within_budget(layout, &deviation, &format!("{context} on the CPU, step {}", t + 1));
        worst = worst.max(deviation.ulps);
    }
    worst
}
