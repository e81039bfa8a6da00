//! Cases, data and runners that the tests share.

use harness::{Gpu, cpu_snapshot, snapshot};
use wgpu_optim::check::{Checker, Deviation, Snapshot};
use wgpu_optim::rules::MomentumForm;
use wgpu_optim::{
    AdaBelief, Adadelta, Adagrad, Adam, AdamW, Adamax, Adan, Group, Lamb, Lars, Layout, Lion, NAdam,
    Optimizer, RAdam, RmsProp, Rule, Sgd, Step, Tensors, Twin, cpu,
};

/// Every option of a rule, by name. A rule of the list without this fails to compile.
pub trait Cases: Twin {
    fn cases() -> Vec<(&'static str, Self)>;
}

impl Cases for Sgd {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        let momentum = Self { momentum: 0.9, ..plain };
        vec![
            ("plain", plain),
            ("weight decay", Self { weight_decay: 0.1, ..plain }),
            ("maximize", Self { maximize: true, ..plain }),
            ("momentum", momentum),
            ("dampening", Self { dampening: 0.3, ..momentum }),
            ("nesterov", Self { nesterov: true, ..momentum }),
            ("nesterov and all", Self { nesterov: true, maximize: true, weight_decay: 0.1, ..momentum }),
            ("dampening and all", Self { dampening: 0.3, maximize: true, weight_decay: 0.1, ..momentum }),
            ("classic", Self { form: MomentumForm::Classic, ..momentum }),
            ("classic nesterov", Self { form: MomentumForm::Classic, nesterov: true, ..momentum }),
            ("averaged", Self { form: MomentumForm::Averaged, weight_decay: 0.1, ..momentum }),
            ("averaged nesterov", Self { form: MomentumForm::Averaged, nesterov: true, ..momentum }),
        ]
    }
}

impl Cases for Adam {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("weight decay", Self { weight_decay: 0.1, ..plain }),
            ("maximize", Self { maximize: true, ..plain }),
            ("no averages", Self { beta1: 0.0, beta2: 0.0, ..plain }),
            ("large eps", Self { eps: 0.1, beta2: 0.95, ..plain }),
            ("decoupled", Self { weight_decay: 0.1, decoupled_weight_decay: true, ..plain }),
            ("uncorrected eps", Self { eps: 1e-3, eps_corrected: false, ..plain }),
            ("amsgrad", Self { amsgrad: true, beta2: 0.5, ..plain }),
            ("amsgrad corrected", Self { amsgrad: true, amsgrad_corrected: true, beta2: 0.9, ..plain }),
        ]
    }
}

impl Cases for AdamW {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("no decay", Self { weight_decay: 0.0, ..plain }),
            ("maximize", Self { maximize: true, weight_decay: 0.3, ..plain }),
            ("llm", Self { beta2: 0.95, weight_decay: 0.1, ..plain }),
            ("uncorrected eps", Self { eps: 1e-3, eps_corrected: false, ..plain }),
            ("amsgrad", Self { amsgrad: true, beta2: 0.5, ..plain }),
            ("amsgrad corrected", Self { amsgrad: true, amsgrad_corrected: true, beta2: 0.9, ..plain }),
        ]
    }
}

impl Cases for Adagrad {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("decays", Self { weight_decay: 0.1, lr_decay: 0.5, ..plain }),
            ("maximize", Self { maximize: true, ..plain }),
            ("eps inside", Self { initial_accumulator_value: 0.1, eps: 0.0, eps_root: 1e-7, ..plain }),
        ]
    }
}

impl Cases for RmsProp {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("momentum", Self { momentum: 0.9, ..plain }),
            ("centered", Self { centered: true, alpha: 0.9, ..plain }),
            ("eps inside", Self { eps: 0.0, eps_root: 1e-8, alpha: 0.9, ..plain }),
            ("all", Self { momentum: 0.5, centered: true, weight_decay: 0.1, maximize: true, ..plain }),
        ]
    }
}

impl Cases for Adadelta {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { rho: 0.5, eps: 1e-3, weight_decay: 0.1, maximize: true }),
            ("tiny eps", Self { eps: 1e-12, ..plain }),
        ]
    }
}

impl Cases for Adamax {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { beta1: 0.5, beta2: 0.7, eps: 1e-3, weight_decay: 0.1, maximize: true, ..plain }),
            ("eps after", Self { eps: 1e-3, eps_after_max: true, ..plain }),
        ]
    }
}

impl Cases for NAdam {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { weight_decay: 0.1, momentum_decay: 0.1, maximize: true, ..plain }),
            ("decoupled", Self { weight_decay: 0.1, decoupled_weight_decay: true, ..plain }),
        ]
    }
}

impl Cases for RAdam {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            // ρₜ passes 4 at the third step.
            ("rectified", Self { beta2: 0.95, rectification_threshold: 4.0, eps: 1e-4, ..plain }),
            ("all", Self { weight_decay: 0.1, eps_corrected: true, maximize: true, beta2: 0.9, ..plain }),
            ("decoupled", Self { weight_decay: 0.1, decoupled_weight_decay: true, ..plain }),
        ]
    }
}

impl Cases for Lion {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { beta1: 0.5, beta2: 0.8, weight_decay: 0.3, maximize: true }),
            ("no decay", Self { weight_decay: 0.0, ..plain }),
        ]
    }
}

impl Cases for AdaBelief {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            (
                "all",
                Self { beta1: 0.5, beta2: 0.8, eps: 1e-6, eps_root: 1e-8, weight_decay: 0.3, maximize: true },
            ),
        ]
    }
}

impl Cases for Adan {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("decay", Self { weight_decay: 0.3, ..plain }),
            ("no prox", Self { weight_decay: 0.3, no_prox: true, maximize: true, ..plain }),
            ("complement", Self { complement_beta2: true, eps_root: 1e-8, ..plain }),
        ]
    }
}

impl Cases for Lamb {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("decay", Self { weight_decay: 0.1, ..plain }),
            ("not adapted", Self { adapt_undecayed: false, ..plain }),
            ("all", Self { beta1: 0.5, beta2: 0.8, eps: 1e-3, weight_decay: 0.3, maximize: true, ..plain }),
        ]
    }
}

impl Cases for Lars {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        let decay = Self { weight_decay: 0.1, trust_coefficient: 0.02, ..plain };
        vec![
            ("default", plain),
            ("plain", Self { momentum: 0.0, ..plain }),
            ("nesterov", Self { nesterov: true, eps: 0.1, ..decay }),
            ("joint", Self { joint_norm: true, form: MomentumForm::Classic, ..decay }),
            ("dampening and all", Self { dampening: 0.3, maximize: true, ..decay }),
        ]
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): data that is the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

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

    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// The learning rate of step `t`: no two alike.
pub fn lr(t: usize) -> f64 {
    0.01 / (1.0 + t as f64)
}

pub fn single<R: Rule>(rule: R, len: u64) -> Layout<R> {
    Layout::new([Group::new("all", rule).tensor("w", [len])]).unwrap()
}

/// A flat run on the GPU.
pub struct Run<'a, R> {
    pub gpu: &'a Gpu,
    pub optimizer: Optimizer<R>,
    pub params: wgpu::Buffer,
}

impl<'a, R: Rule> Run<'a, R> {
    pub fn new(gpu: &'a Gpu, layout: Layout<R>, params: &[f32]) -> Self {
        let optimizer = Optimizer::new(&gpu.device, layout).unwrap();
        Self { gpu, optimizer, params: gpu.upload(params) }
    }

    /// One submitted step.
    pub fn step(&mut self, grads: &[f32], step: impl Into<Step>) {
        let grads = self.gpu.upload(grads);
        let tensors = self.optimizer.bind(&Tensors::flat(&self.params, &grads)).unwrap();
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &tensors, step).unwrap();
        self.gpu.run(encoder);
    }

    pub fn snapshot(&self) -> Snapshot {
        snapshot(self.gpu, &self.optimizer, &self.params, 0)
    }
}

/// Fails with the worst element if a step lies outside of the rule's budget.
pub fn assert_within_budget<R: Twin>(deviation: &Deviation, context: &str) {
    assert!(deviation.ulps <= R::MAX_ULPS, "{} {context}: {deviation}, budget {}", R::NAME, R::MAX_ULPS);
}

/// Runs `steps` steps on random gradients; every element of every step must be within the rule's budget. Returns the worst.
pub fn check_gpu<R: Twin>(gpu: &Gpu, layout: &Layout<R>, seed: u64, steps: usize, context: &str) -> f64 {
    let mut random = Random::new(seed);
    let len = layout.len() as usize;
    let mut run = Run::new(gpu, layout.clone(), &random.values(len));
    let mut checker = Checker::new(layout.clone());
    let (mut before, mut worst) = (run.snapshot(), 0f64);
    for t in 0..steps {
        let grads = random.values(len);
        run.step(&grads, lr(t));
        let after = run.snapshot();
        let deviation = checker.step(&before, &grads, lr(t), &after).unwrap();
        assert_within_budget::<R>(&deviation, &format!("{context}, step {}", t + 1));
        worst = worst.max(deviation.ulps);
        before = after;
    }
    worst
}

/// The same on the CPU at f32.
pub fn check_cpu<R: Twin>(layout: &Layout<R>, seed: u64, steps: usize, context: &str) -> f64 {
    let mut random = Random::new(seed);
    let len = layout.len() as usize;
    let mut optimizer = cpu::Optimizer::<R>::new(layout.clone()).unwrap();
    let mut params = random.values(len);
    let mut checker = Checker::new(layout.clone());
    let mut worst = 0f64;
    for t in 0..steps {
        let before = cpu_snapshot(&optimizer, cpu::State::F32(&params));
        let grads = random.values(len);
        optimizer.step(cpu::Tensors::flat(&mut params, &grads), lr(t)).unwrap();
        let after = cpu_snapshot(&optimizer, cpu::State::F32(&params));
        let deviation = checker.step(&before, &grads, lr(t), &after).unwrap();
        assert_within_budget::<R>(&deviation, &format!("{context} on the CPU, step {}", t + 1));
        worst = worst.max(deviation.ulps);
    }
    worst
}

/// Compares bit for bit, naming the first difference.
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
