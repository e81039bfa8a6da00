//! Small runs on the CPU, which need no device.

pub use cpu_harness::Random;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use wgpu_optim::checkpoint::{self, Cpu, Error, Json, Load, Loaded, Mismatch, Reader, Record, Save};
use wgpu_optim::rules::slots;
use wgpu_optim::{
    AdamW, Ema, Format, Group, Layout, LossScale, Master, Options, Rounding, Schedule, Twin, cpu,
};

/// A directory of its own, gone at the end.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of all files, in order.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn quiet(_: u64, _: u64) {}

/// Uniform in [-1, 1).
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.bits() as i32 as f32 / 2f32.powi(31)).collect()
}

/// A run on the CPU.
pub struct Run<R: Twin> {
    pub optimizer: cpu::Optimizer<R>,
    pub params: Vec<f32>,
}

impl<R: Twin + serde::Serialize + DeserializeOwned> Run<R> {
    pub fn new(layout: Layout<R>) -> Self {
        let params = vec![0.5; layout.len() as usize];
        Self { optimizer: cpu::Optimizer::new(layout).unwrap(), params }
    }

    /// Steps on gradients that follow from the number of steps so far.
    pub fn steps(&mut self, n: usize) -> &mut Self {
        for _ in 0..n {
            let grads = values(self.optimizer.steps(), self.params.len());
            self.optimizer.step(cpu::Tensors::flat(&mut self.params, &grads), 0.01).unwrap();
        }
        self
    }

    pub fn engine(&mut self) -> Cpu<'_, R> {
        Cpu::new(&mut self.optimizer).parameters(&mut self.params)
    }

    pub fn save(&mut self, path: &Path, save: &Save) -> Result<(), Error> {
        checkpoint::save(&mut self.engine(), path, save, &mut quiet)
    }

    pub fn load(&mut self, path: &Path, load: &Load) -> Result<Loaded, Error> {
        checkpoint::load(&mut self.engine(), path, load, &mut quiet)
    }

    /// A slot of a tensor; empty if it is not kept.
    pub fn state(&self, slot: &str, tensor: &str) -> &[f32] {
        self.optimizer.state(slot, tensor).unwrap().map_or(&[], |state| state.as_f32().unwrap())
    }

    /// All that a load could change.
    pub fn bits(&mut self) -> Vec<Vec<u32>> {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
        let mut all: Vec<Vec<u32>> = Vec::new();
        for slot in slots::<R>() {
            let tensors = self.optimizer.layout().tensors().iter();
            all.extend(tensors.map(|tensor| bits(self.state(slot, &tensor.name))));
        }
        all.push(bits(&self.params));
        all.push(vec![self.optimizer.steps() as u32]);
        all
    }
}

/// Two groups of three tensors.
pub fn layout() -> Layout<AdamW> {
    let decay = Group::new("decay", AdamW::default()).tensor("w", [3, 5]).tensor("v", [7]);
    let plain = Group::new("plain", AdamW { weight_decay: 0.0, ..AdamW::default() }).lr_factor(0.5);
    Layout::new([decay, plain.tensor("b", [2])]).unwrap()
}

/// What a load is refused for.
pub fn mismatches(result: Result<Loaded, Error>) -> Vec<Mismatch> {
    match result {
        Err(Error::Mismatches(mismatches)) => mismatches,
        other => panic!("{other:?}"),
    }
}

/// Of `tests/checkpoint/v1-gpu.safetensors`: blocks, a small tensor without them, remainders, rounding at random, an average, a loss scale.
pub fn blocks_fixture() -> (Layout<AdamW>, Options) {
    let options = Options {
        params: Format::Bf16,
        grads: Format::Bf16,
        states: Format::Q8,
        f32_states_below: 16,
        master: Master::Remainder,
        rounding: Rounding::Stochastic { seed: u64::MAX },
        ema: Some(Ema { decay: 0.75, debias: true }),
        loss_scale: Some(LossScale::default()),
        ..Options::default()
    };
    let group = Group::new("all", AdamW::default()).tensor_at("w", [11, 7], 3);
    (Layout::new([group.tensor("b", [5])]).unwrap(), options)
}

/// That two files have the same tensors and say the same of their runs, whatever version wrote it and whatever has its default; the names of the tensors.
pub fn assert_same_checkpoint<R: DeserializeOwned + PartialEq + std::fmt::Debug>(
    first: &Path,
    second: &Path,
) -> Vec<String> {
    fn parsed<T: DeserializeOwned>(json: &Json) -> T {
        serde_json::from_str(json.text()).unwrap()
    }
    let [a, b] = [first, second].map(|path| Record::read(&Reader::open(path).unwrap()).unwrap());
    assert_eq!((&a.rule, a.steps, a.taken, a.loss_scale), (&b.rule, b.steps, b.taken, b.loss_scale));
    let options = |record: &Record| record.options.as_ref().map(parsed::<Options>);
    assert_eq!(options(&a), options(&b));
    assert_eq!(a.groups.0.len(), b.groups.0.len());
    for (a, b) in a.groups.0.iter().zip(&b.groups.0) {
        assert_eq!((&a.name, a.carry.to_bits()), (&b.name, b.carry.to_bits()));
        assert_eq!(parsed::<R>(&a.hyperparameters), parsed::<R>(&b.hyperparameters));
        let factor = |json: &Option<Json>| json.as_ref().map(parsed::<Schedule>);
        assert_eq!(factor(&a.lr_factor), factor(&b.lr_factor));
        assert!(a.tensors.iter().eq(b.tensors.iter()), "{:?}, {:?}", a.tensors, b.tensors);
    }
    let [first, second] = [first, second].map(|path| std::fs::read(path).unwrap());
    let [first, second] = [&first, &second].map(|bytes| {
        let mut tensors = safetensors::SafeTensors::deserialize(bytes).unwrap().tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    });
    assert_eq!(first, second);
    first.into_iter().map(|(name, _)| name).collect()
}
