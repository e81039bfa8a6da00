//! Small runs on the CPU, which need no device.

use std::path::{Path, PathBuf};
use wgpu_optim::checkpoint::{self, Cpu, Error, Load, Loaded, Mismatch, Save};
use wgpu_optim::rules::slots;
use wgpu_optim::{AdamW, Group, Layout, Twin, cpu};

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

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.bits() as i32 as f32 / 2f32.powi(31)).collect()
    }
}

/// A run on the CPU.
pub struct Run<R: Twin> {
    pub optimizer: cpu::Optimizer<R>,
    pub params: Vec<f32>,
}

impl<R: Twin + serde::Serialize + serde::de::DeserializeOwned> Run<R> {
    pub fn new(layout: Layout<R>) -> Self {
        let params = vec![0.5; layout.len() as usize];
        Self { optimizer: cpu::Optimizer::new(layout).unwrap(), params }
    }

    /// Steps on gradients that follow from the number of steps so far.
    pub fn steps(&mut self, n: usize) -> &mut Self {
        for _ in 0..n {
            let grads = Random(self.optimizer.steps()).values(self.params.len());
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
