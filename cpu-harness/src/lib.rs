//! Shared code of tests without a GPU: every rule's options, data, layouts, runs of the CPU engine, and their
//! state in the flat space.

mod cases;
mod run;

pub use cases::{Case, Cases, cases, cases_of};
pub use run::{CpuRun, Form, Stored};
use wgpu_optim::check::{Checker, Deviation, Snapshot};
use wgpu_optim::{Clip, DynRule, Ema, Group, Layout, LossScale, Options, cpu};

/// SplitMix64 (Steele, Lea and Flood, 2014): the same data in every run.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from any seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// The next value: nine decades, both signs, one zero in sixteen.
    pub fn value(&mut self) -> f32 {
        if self.below(16) == 0 {
            return 0.0;
        }
        let sign = if self.below(2) == 0 { 1.0 } else { -1.0 };
        (sign * 10f64.powf(self.unit() * 9.0 - 6.0)) as f32
    }

    /// The next `len` [values](Self::value).
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// The learning rate of step `t`: all are different.
#[must_use]
pub fn lr(t: usize) -> f64 {
    0.01 / (1.0 + t as f64)
}

/// A layout with one tensor, `w`.
///
/// # Panics
/// Never.
#[must_use]
pub fn single(rule: impl Into<DynRule>, len: u64) -> Layout {
    Layout::new([Group::new("all", rule).tensor("w", [len])]).unwrap()
}

/// A layout of some ten tasks, in tensors of all sizes, in two alternating groups, with gaps.
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

/// All options around an update, in f32.
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

/// The budget of a layout's steps, in ulps: the largest budget of its rules.
///
/// # Panics
/// For a rule without a CPU implementation.
#[must_use]
pub fn budget(layout: &Layout) -> f64 {
    let ulps = layout.groups().iter().map(|group| group.rule().spec().max_ulps.expect("a CPU rule"));
    ulps.fold(0.0, f64::max)
}

/// Fails with the worst element if a step exceeds the rules' budget.
///
/// # Panics
/// So.
pub fn assert_within_budget(layout: &Layout, deviation: &Deviation, context: &str) {
    let (rule, budget) = (layout.groups()[0].rule().name(), budget(layout));
    assert!(deviation.ulps <= budget, "{rule} {context}: {deviation}, budget {budget}");
}

/// Parameters and state of an optimizer on the CPU, in the flat space.
///
/// # Panics
/// For parameters that are stored in blocks.
#[must_use]
pub fn cpu_snapshot(optimizer: &cpu::Optimizer, params: cpu::State<'_>) -> Snapshot {
    let (layout, format) = (optimizer.layout(), optimizer.options().params);
    let state = layout.slot_names().into_iter().map(|slot| {
        let mut flat = Vec::new();
        for tensor in layout.tensors() {
            // A tensor with a rule that lacks the slot has no such state.
            let Ok(Some(_)) = optimizer.state(slot, &tensor.name) else { continue };
            flat.resize(layout.len() as usize, 0.0);
            flat[tensor.range()].copy_from_slice(&optimizer.read_state(slot, &tensor.name).unwrap());
        }
        flat
    });
    let state = state.collect();
    let mut params = match params {
        cpu::State::F32(x) => x.to_vec(),
        cpu::State::U16(x) => x.iter().map(|&code| format.decode(code.into())).collect(),
        cpu::State::Q8(..) => unreachable!("parameters are not stored in blocks"),
    };
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

/// The stored values of a slot in the flat space, per element: codes of 2 bytes, otherwise the bits of the
/// numbers. Empty if the slot is not kept; `None` if there is no such slot.
///
/// # Panics
/// Never.
#[must_use]
pub fn cpu_slot(optimizer: &cpu::Optimizer, slot: &str) -> Option<Vec<u32>> {
    let layout = optimizer.layout();
    let (mut flat, mut known) = (Vec::new(), false);
    for tensor in layout.tensors() {
        // A tensor with a rule that lacks the slot has no such state.
        let Ok(part) = optimizer.state(slot, &tensor.name) else { continue };
        known = true;
        let Some(part) = part else { continue };
        flat.resize(layout.len() as usize, 0);
        let to = flat[tensor.range()].iter_mut();
        if let cpu::State::U16(codes) = part {
            to.zip(codes).for_each(|(to, &code)| *to = code.into());
        } else {
            let numbers = optimizer.read_state(slot, &tensor.name).unwrap();
            to.zip(numbers).for_each(|(to, x)| *to = x.to_bits());
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
/// rule's budget. Returns the worst error.
///
/// # Panics
/// If one is not.
pub fn check_cpu(layout: &Layout, seed: u64, steps: usize, context: &str) -> f64 {
    let mut random = Random::new(seed);
    let len = layout.len() as usize;
    let mut run = CpuRun::new(layout.clone(), Options::DEFAULT, &random.values(len));
    let mut checker = Checker::new(layout.clone());
    let mut worst = 0f64;
    for t in 0..steps {
        let before = run.snapshot();
        let grads = random.values(len);
        run.step(&grads, lr(t));
        let deviation = checker.step(&before, &grads, lr(t), &run.snapshot()).unwrap();
        assert_within_budget(layout, &deviation, &format!("{context} on the CPU, step {}", t + 1));
        worst = worst.max(deviation.ulps);
    }
    worst
}
