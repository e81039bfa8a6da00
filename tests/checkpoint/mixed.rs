//! Layouts of several rules, whose values change during a run: resumed in another process bit for bit.

use crate::common::{Directory, Random, Saves, assert_same_tensors, counters, mismatches};
use cpu_harness::CpuRun;
use harness::{Gpu, GpuRun};
use std::path::Path;
use wgpu_optim::checkpoint::{
    self, Cpu, Differing, Extra, Formats, Load, Metadata, Mismatch, Missing, Reader, Save,
};
use wgpu_optim::{
    Adam, AdamW, Clip, Ema, Format, Group, Lamb, Layout, Lion, NAdam, Options, Rounding, Sgd, cpu, schedule,
};

/// Steps before the save, and after it.
const HALF: u64 = 8;
/// A step with gradients that are not finite, where they are skipped: while a group is frozen.
const OVERFLOW: u64 = 2;

/// Every value of a file.
pub(crate) const TAKE: Load = Load {
    missing: Missing::Error,
    extra: Extra::Error,
    formats: Formats::Same,
    hyperparameters: Differing::Take,
    options: Differing::Take,
};

fn adamw() -> AdamW {
    AdamW { weight_decay: 0.1, ..AdamW::default() }
}

/// Four groups of four rules, at a program's start.
pub(crate) fn layout() -> Layout {
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    Layout::new([
        Group::new("body", adamw()).tensor("w", [9, 14]).tensor("a", [33]),
        Group::new("head", sgd).lr_factor(0.5).tensor("h", [70]),
        Group::new("norm", Lamb::default()).tensor("l", [5, 13]).tensor("m", [7]),
        Group::new("tail", NAdam::default()).tensor("n", [41]),
    ])
    .unwrap()
}

/// Options around the rules: plain ones, and with everything that is counted or random.
fn options() -> [Options; 2] {
    let plain = Options { clip: Some(Clip::GlobalNorm(1.0)), ..Options::default() };
    let around = Options {
        skip_nonfinite: true,
        states: Format::Q8,
        f32_states_below: 40,
        rounding: Rounding::Stochastic { seed: 7 },
        ema: Some(Ema { decay: 0.5, debias: true }),
        ..plain
    };
    [plain, around]
}

/// The changes of a run before step `t`, on an optimizer of either engine.
macro_rules! change {
    ($optimizer:expr, $t:expr) => {
        match $t {
            1 => $optimizer.freeze("tail"),
            3 => $optimizer.set_rule("body", AdamW { beta2: 0.95, ..adamw() }),
            4 => $optimizer.unfreeze("tail"),
            5 => $optimizer.set_lr_factor("head", schedule::cosine(0.5, 0.0, 20)),
            6 => $optimizer.freeze("norm"),
            7 => $optimizer.set_clip(Clip::GlobalNorm(0.25)),
            // After the save.
            10 => $optimizer.unfreeze("norm"),
            12 => $optimizer.set_rule("tail", NAdam { weight_decay: 0.1, ..NAdam::default() }),
            _ => Ok(()),
        }
        .unwrap()
    };
}

/// All differences from the start at the save.
fn changes() -> [Mismatch; 4] {
    let value = |group: &str, field: &str, found: &str, expected: &str| Mismatch::Hyperparameter {
        group: group.into(),
        field: field.into(),
        found: found.into(),
        expected: expected.into(),
    };
    let cosine = r#"{"cosine":{"start":0.5,"end":0.0,"steps":20}}"#;
    [
        value("body", "beta2", "0.95", "0.999"),
        value("head", "lr_factor", cosine, r#"{"constant":0.5}"#),
        value("norm", "frozen", "true", "false"),
        Mismatch::Option {
            field: "clip".into(),
            found: r#"{"global_norm":0.25}"#.into(),
            expected: r#"{"global_norm":1.0}"#.into(),
        },
    ]
}

/// The gradients of step `t`.
fn gradients(t: u64, options: &Options) -> Vec<f32> {
    let mut random = Random::new(t);
    let mut grads = random.values(layout().len() as usize);
    if t == OVERFLOW && options.skips() {
        grads[0] = f32::NAN;
    }
    grads
}

/// A run on either engine, whose values change before some of its steps.
trait Changes: Saves {
    fn go(&mut self, n: u64);
}

macro_rules! changes_of {
    ($run:ty) => {
        impl Changes for $run {
            fn go(&mut self, n: u64) {
                for _ in 0..n {
                    let t = self.optimizer.steps();
                    change!(self.optimizer, t);
                    self.step(&gradients(t, self.optimizer.options()), 0.01);
                }
            }
        }
    };
}
changes_of!(CpuRun);
changes_of!(GpuRun<'_>);

fn cpu_run(options: Options) -> CpuRun {
    CpuRun::new(layout(), options, &vec![0.5; layout().len() as usize])
}

/// One binding serves from the beginning to the end.
fn gpu_run(gpu: &Gpu, options: Options) -> GpuRun<'_> {
    GpuRun::new(gpu, layout(), options, &vec![0.5; layout().len() as usize])
}

/// The variable that tells a test its directory, and that it is the process that begins.
const BEGINS: &str = "WGPU_OPTIM_TEST_BEGINS";

/// Runs a test in a process of its own, which saves at half of the steps; then continues each run from there.
fn goes_on<F: Fn(), R: Changes>(test: F, name: &str, new: impl Fn(Options) -> R) {
    let files = |directory: &Path, i: usize| ["half", "end"].map(|end| directory.join(format!("{i}.{end}")));
    if let Some(directory) = std::env::var_os(BEGINS) {
        for (i, options) in options().into_iter().enumerate() {
            let mut run = new(options);
            for file in files(directory.as_ref(), i) {
                run.go(HALF);
                std::fs::write(file, run.bytes()).unwrap();
            }
        }
        return;
    }
    let directory = Directory::new(name);
    let status = harness::again(&test).env(BEGINS, directory.file("")).status().unwrap();
    assert!(status.success());
    for (i, options) in options().into_iter().enumerate() {
        let [half, end] = files(&directory.file(""), i);
        let mut run = new(options);
        let before = run.bytes();
        // Without a policy each change is listed, and nothing else.
        assert_eq!(mismatches(run.load(&half, &Load::default())), changes());
        let values = Load { options: Differing::Error, ..TAKE };
        assert_eq!(mismatches(run.load(&half, &values)), changes()[3..]);
        let clip = Load { hyperparameters: Differing::Error, ..TAKE };
        assert_eq!(mismatches(run.load(&half, &clip)), changes()[..3]);
        assert!(run.bytes() == before, "a load that is refused changes something");
        let loaded = run.load(&half, &TAKE).unwrap();
        assert_eq!((loaded.steps, loaded.taken), (HALF, HALF - u64::from(options.skips())));
        assert!(run.bytes() == std::fs::read(&half).unwrap(), "{options:?}");
        run.go(HALF);
        assert!(run.bytes() == std::fs::read(&end).unwrap(), "{options:?}");
        // Values of the optimizer hold on request: the second half begins as the first did.
        let mut run = new(options);
        let ignore =
            Load { hyperparameters: Differing::Ignore, options: Differing::Ignore, ..Load::default() };
        run.load(&half, &ignore).unwrap();
        let saved = run.bytes();
        let reader = Reader::new(std::io::Cursor::new(&saved)).unwrap();
        let record = Metadata::read(&reader).unwrap();
        assert!(record.groups.0.iter().all(|group| !group.frozen));
        assert_eq!(record.options.unwrap().text(), serde_json::to_string(&options).unwrap());
    }
}

#[test]
fn a_mixed_run_goes_on_in_another_process_on_the_cpu() {
    goes_on(a_mixed_run_goes_on_in_another_process_on_the_cpu, "mixed-cpu", cpu_run);
}

#[test]
fn a_mixed_run_goes_on_in_another_process_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    goes_on(a_mixed_run_goes_on_in_another_process_on_the_gpu, "mixed-gpu", |options| gpu_run(&gpu, options));
}

/// A group that was frozen for three steps, one of them skipped, and one that is frozen for two so far.
#[test]
fn every_group_has_its_own_count() {
    for options in options() {
        let mut run = cpu_run(options);
        run.go(HALF);
        let counters = counters(&run.bytes());
        let skipped = u64::from(options.skips());
        let taken: Vec<_> = counters.groups.iter().map(|(_, taken)| *taken).collect();
        assert_eq!(taken, [8 - skipped, 8 - skipped, 6 - skipped, 5], "{options:?}");
    }
}

/// The record of a checkpoint in memory, as JSON.
fn record(checkpoint: &[u8]) -> serde_json::Value {
    let reader = Reader::new(std::io::Cursor::new(checkpoint)).unwrap();
    serde_json::from_str(&reader.metadata()["wgpu_optim"]).unwrap()
}

/// Fields of groups that have the values of the whole record are left out, so that files of one rule are as
/// they were before there were these fields.
#[test]
fn fields_of_a_group_are_there_where_they_differ() {
    let fields = |record: &serde_json::Value, group: usize| -> Vec<String> {
        let group = record["groups"][group].as_object().unwrap();
        group.keys().filter(|key| ["rule", "taken", "frozen"].contains(&&***key)).cloned().collect()
    };
    let mut run = crate::common::on_cpu(crate::common::layout());
    let record_of_one = record(&run.steps(2).bytes());
    for group in 0..2 {
        assert!(fields(&record_of_one, group).is_empty(), "{record_of_one}");
        assert_eq!(record_of_one["groups"][group].as_object().unwrap().len(), 5, "{record_of_one}");
    }
    let mut run = cpu_run(options()[0]);
    run.go(HALF);
    let mixed = record(&run.bytes());
    assert_eq!(mixed["rule"], "adamw");
    let groups: Vec<_> = (0..4).map(|group| fields(&mixed, group)).collect();
    assert_eq!(groups[0], [""; 0]);
    assert_eq!(groups[1], ["rule"]);
    assert_eq!(groups[2], ["frozen", "rule", "taken"]);
    assert_eq!(groups[3], ["rule", "taken"]);
    let rules = [1, 2, 3].map(|group| mixed["groups"][group]["rule"].clone());
    assert_eq!(rules, ["sgd", "lamb", "nadam"]);
}

/// Each engine takes the values of the other's file, and saves the same tensors again.
#[test]
fn engines_take_each_others_values() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("mixed-engines");
    let [first, second] = ["first.safetensors", "second.safetensors"].map(|name| directory.file(name));
    for options in options() {
        let paths = [first.as_path(), &second];
        across(gpu_run(&gpu, options), cpu_run(options), paths, "GPU to CPU");
        across(cpu_run(options), gpu_run(&gpu, options), paths, "CPU to GPU");
    }
}

fn across(mut from: impl Changes, mut to: impl Changes, [first, second]: [&Path; 2], context: &str) {
    from.go(HALF);
    std::fs::write(first, from.bytes()).unwrap();
    assert_eq!(mismatches(to.load(first, &Load::default())), changes(), "{context}");
    to.load(first, &TAKE).unwrap();
    std::fs::write(second, to.bytes()).unwrap();
    assert_same_tensors(first, second, context);
    let [a, b] = [first, second].map(|path| record(&std::fs::read(path).unwrap()));
    assert_eq!(a, b, "{context}");
    // It goes on from there.
    to.go(HALF);
}

/// A group's own rule is compared, and no policy accepts another rule.
#[test]
fn another_rule_of_a_group_is_refused() {
    let directory = Directory::new("mixed-rule");
    let path = directory.file("run.safetensors");
    let mixed = |body: wgpu_optim::DynRule, head: wgpu_optim::DynRule| {
        let body = Group::new("body", body).tensor("w", [4]);
        Layout::new([body, Group::new("head", head).tensor("h", [3])]).unwrap()
    };
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    let mut saved = cpu::Optimizer::new(mixed(adamw().into(), sgd.into())).unwrap();
    checkpoint::save(&mut Cpu::new(&mut saved), &path, &Save::default()).unwrap();
    let rule = |found: &str, expected| Mismatch::Rule { found: found.into(), expected };
    let lenient = Load { missing: Missing::Zero, extra: Extra::Ignore, ..TAKE };
    let load = |layout: Layout, load: &Load| {
        let mut optimizer = cpu::Optimizer::new(layout).unwrap();
        checkpoint::load(&mut Cpu::new(&mut optimizer), &path, load)
    };
    // The same slots.
    for policy in [Load::default(), TAKE, lenient] {
        let found = mismatches(load(mixed(Adam::default().into(), sgd.into()), &policy));
        assert_eq!(found, [rule("adamw", "adam")], "{policy:?}");
    }
    // Other slots, in the second group.
    let other = || mixed(adamw().into(), Lion::default().into());
    assert_eq!(mismatches(load(other(), &lenient)), [rule("sgd", "lion")]);
    let found = mismatches(load(other(), &Load::default()));
    let missing = Mismatch::MissingSlot { slot: "exp_avg".into(), tensor: "h".into() };
    let extra = Mismatch::ExtraSlot { slot: "momentum_buffer".into(), tensors: 1 };
    assert_eq!(found, [rule("sgd", "lion"), missing, extra]);
    // Both, each once.
    let found = mismatches(load(mixed(sgd.into(), adamw().into()), &lenient));
    assert_eq!(found, [rule("adamw", "sgd"), rule("sgd", "adamw")]);
    load(mixed(adamw().into(), sgd.into()), &Load::default()).unwrap();
}
