//! Small runs on the CPU, which need no device.

use cpu_harness::CpuRun;
pub(crate) use cpu_harness::Random;
use serde::de::DeserializeOwned;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use wgpu_optim::checkpoint::{
    self, Cpu, Engine, Error, GroupRecord, Json, Load, Loaded, LossScaleState, Metadata, Mismatch, Reader,
    Save,
};
use wgpu_optim::{
    AdamW, AnyRule, Ema, Format, Group, Layout, LossScale, Master, Options, Rounding, Schedule,
};

/// A directory of the test's own, removed at the end.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of all files, in order.
    pub(crate) fn names(&self) -> Vec<String> {
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

/// Uniform in [-1, 1).
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.bits() as i32 as f32 / 2f32.powi(31)).collect()
}

/// A run of either engine that is saved and loaded.
pub(crate) trait Saves {
    type Engine<'e>: Engine
    where
        Self: 'e;

    /// The optimizer with its parameters.
    fn engine(&mut self) -> Self::Engine<'_>;
    /// Takes steps on gradients that are functions of the step's number.
    fn steps(&mut self, n: usize) -> &mut Self;

    /// The run after `n` steps.
    fn after(mut self, n: usize) -> Self
    where
        Self: Sized,
    {
        self.steps(n);
        self
    }

    fn save(&mut self, path: &Path, save: &Save) -> Result<(), Error> {
        checkpoint::save(&mut self.engine(), path, save)
    }

    fn load(&mut self, path: &Path, load: &Load) -> Result<Loaded, Error> {
        checkpoint::load(&mut self.engine(), path, load)
    }

    /// The checkpoint in memory.
    fn bytes(&mut self) -> Vec<u8> {
        bytes(&mut self.engine())
    }
}

impl Saves for CpuRun {
    type Engine<'e> = Cpu<'e>;

    fn engine(&mut self) -> Cpu<'_> {
        Cpu::new(&mut self.optimizer).parameters(self.params.params())
    }

    /// Numbers count from the first step of the optimizer.
    fn steps(&mut self, n: usize) -> &mut Self {
        for _ in 0..n {
            let grads = values(self.optimizer.steps(), self.optimizer.layout().len() as usize);
            self.step(&grads, 0.01);
        }
        self
    }
}

/// A run on the CPU.
pub(crate) fn on_cpu(layout: Layout) -> CpuRun {
    let start = vec![0.5; layout.len() as usize];
    CpuRun::new(layout, Options::DEFAULT, &start)
}

/// Everything in a run on the CPU that a load can change, bit for bit.
pub(crate) fn bits(run: &CpuRun) -> Vec<Vec<u32>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    let layout = run.optimizer.layout();
    for tensor in layout.tensors() {
        let kept = layout.kept_slots(tensor).map(|slot| run.state(slot, &tensor.name));
        all.extend(kept.map(|numbers| numbers.into_iter().map(f32::to_bits).collect()));
    }
    all.push(run.codes());
    all.push(vec![run.optimizer.steps() as u32]);
    all
}

/// Two groups of three tensors.
pub(crate) fn layout() -> Layout {
    let decay = Group::new("decay", AdamW::default()).tensor("w", [3, 5]).tensor("v", [7]);
    let plain = Group::new("plain", AdamW { weight_decay: 0.0, ..AdamW::default() }).lr_factor(0.5);
    Layout::packed([decay, plain.tensor("b", [2])]).unwrap()
}

/// The mismatches of a refused load.
pub(crate) fn mismatches<T: std::fmt::Debug>(result: Result<T, Error>) -> Vec<Mismatch> {
    match result {
        Err(Error::Mismatches(mismatches)) => mismatches,
        other => panic!("{other:?}"),
    }
}

/// Layout and options of `tests/checkpoint/v1-gpu.safetensors`: blocks, a small tensor without them,
/// remainders, rounding at random, an average, a loss scale.
pub(crate) fn blocks_fixture() -> (Layout, Options) {
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
    (Layout::packed([group.tensor("b", [5])]).unwrap(), options)
}

/// All counts and carries of an engine in a checkpoint.
#[derive(Debug, PartialEq)]
pub(crate) struct Counters {
    pub steps: u64,
    pub taken: u64,
    pub loss_scale: Option<LossScaleState>,
    /// The bits of each group's carry, and the steps that the group has taken.
    pub groups: Vec<(u64, u64)>,
}

impl From<&Metadata> for Counters {
    fn from(record: &Metadata) -> Self {
        let group = |group: &GroupRecord| (group.carry.to_bits(), group.taken.unwrap_or(record.taken));
        Self {
            steps: record.steps,
            taken: record.taken,
            loss_scale: record.loss_scale,
            groups: record.groups.0.iter().map(group).collect(),
        }
    }
}

/// The checkpoint that an engine saves, in memory.
pub(crate) fn bytes<E: Engine>(engine: &mut E) -> Vec<u8> {
    let mut bytes = Vec::new();
    checkpoint::save_to(engine, &mut bytes, &Save::default()).unwrap();
    bytes
}

/// The counters of a checkpoint in memory.
pub(crate) fn counters(checkpoint: &[u8]) -> Counters {
    (&Metadata::read(&Reader::new(Cursor::new(checkpoint)).unwrap()).unwrap()).into()
}

/// The rule of a group in a checkpoint.
pub(crate) fn rule(record: &Metadata, group: &GroupRecord) -> AnyRule {
    let name = group.rule.as_ref().unwrap_or(&record.rule);
    serde_json::from_str(&format!("{{{name:?}: {}}}", group.hyperparameters.text())).unwrap()
}

/// Compares the tensors of two files and the meaning of their records, for any versions of the writers, with
/// a field left out equal to its default. Returns the names of the tensors.
pub(crate) fn assert_same_checkpoint(first: &Path, second: &Path) -> Vec<String> {
    fn parsed<T: DeserializeOwned>(json: &Json) -> T {
        serde_json::from_str(json.text()).unwrap()
    }
    let [a, b] = [first, second].map(|path| Metadata::read(&Reader::open(path).unwrap()).unwrap());
    assert_eq!((&a.rule, Counters::from(&a)), (&b.rule, Counters::from(&b)));
    let options = |record: &Metadata| record.options.as_ref().map(parsed::<Options>);
    assert_eq!(options(&a), options(&b));
    assert_eq!(a.groups.0.len(), b.groups.0.len());
    for (ours, theirs) in a.groups.0.iter().zip(&b.groups.0) {
        assert_eq!((&ours.name, ours.frozen), (&theirs.name, theirs.frozen));
        assert_eq!(rule(&a, ours), rule(&b, theirs));
        let factor = |json: &Option<Json>| json.as_ref().map(parsed::<Schedule>);
        assert_eq!(factor(&ours.lr_factor), factor(&theirs.lr_factor));
        let [ours, theirs] = [&ours.tensors, &theirs.tensors];
        assert!(ours.iter().eq(theirs.iter()), "{ours:?}, {theirs:?}");
    }
    assert_same_tensors(first, second, "")
}

/// Compares the tensors of two files in any order. Returns their names.
pub(crate) fn assert_same_tensors(first: &Path, second: &Path, context: &str) -> Vec<String> {
    let [first, second] = [first, second].map(|path| std::fs::read(path).unwrap());
    let [first, second] = [&first, &second].map(|bytes| {
        let mut tensors = safetensors::SafeTensors::deserialize(bytes).unwrap().tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    });
    assert!(first == second, "{context}: other tensors");
    first.into_iter().map(|(name, _)| name).collect()
}
