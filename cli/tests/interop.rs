//! Runs that begin in PyTorch continue here. Runs that began here were continued there by `interop/golden.py
//! --check`, from files that are still saved the same way.

use harness::{CpuRun, GpuRun};
use optim::bar::judge;
use optim::rules::configure;
use optim::trajectory::Trajectory;
use std::path::{Path, PathBuf};
use wgpu_optim::check::Snapshot;
use wgpu_optim::checkpoint::{self, Cpu, Gpu, Load, Metadata, Parameters, Reader, Save};
use wgpu_optim::{Group, Layout, Options, Schedule};

/// The rules that PyTorch has too, and their files.
const RULES: [&str; 9] =
    ["sgd", "adam", "adamw", "adagrad", "rmsprop", "adadelta", "adamax", "nadam", "radam"];
/// Steps in PyTorch before the steps here, and the other way round.
const HALF: usize = 10;
/// The largest difference of a number after `HALF` steps, in units of the largest of its tensor: powers and
/// roots of scalars depend on the system's library.
const AGAIN: f64 = 4.0 * f32::EPSILON as f64;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interop").join(name)
}

fn layout(run: &Trajectory) -> Layout {
    let groups = run.groups.iter().map(|group| {
        let empty = Group::new(&group.name, group.rule);
        group.tensors.iter().fold(empty, |group, (name, shape)| group.tensor(name, shape))
    });
    Layout::packed(groups).unwrap()
}

/// `there` steps of `rule` in PyTorch and the others here, on the CPU or on `gpu`.
fn resume(rule: &str, there: usize, gpu: Option<&harness::Gpu>) {
    resume_from(&format!("{rule}-{there}.safetensors"), rule, there, gpu);
}

/// [`resume`] from the file `name`.
fn resume_from(name: &str, rule: &str, there: usize, gpu: Option<&harness::Gpu>) {
    let run = Trajectory::read(&file(&format!("{rule}.safetensors"))).unwrap();
    let path = file(name);
    let layout = layout(&run);
    let zeros = vec![0.0; layout.len() as usize];
    let Snapshot { params, state } = match gpu {
        None => {
            let mut host = CpuRun::new(layout.clone(), Options::DEFAULT, &zeros);
            let mut engine = Cpu::new(&mut host.optimizer).parameters(host.params.params());
            let loaded = checkpoint::load(&mut engine, &path, &Load::default()).unwrap();
            assert_eq!(loaded.steps, there as u64);
            for t in there..run.steps() {
                host.step(&run.grads[t], run.lr[t]);
            }
            host.snapshot()
        }
        Some(gpu) => {
            let mut device = GpuRun::new(gpu, layout.clone(), Options::DEFAULT, &zeros);
            let params = Parameters::flat(&device.params);
            let mut engine = Gpu::new(&mut device.optimizer, &gpu.queue).parameters(params);
            checkpoint::load(&mut engine, &path, &Load::default()).unwrap();
            for t in there..run.steps() {
                device.step(&run.grads[t], run.lr[t]);
            }
            device.snapshot()
        }
    };
    let ours: Vec<Vec<f64>> = run
        .targets
        .iter()
        .map(|target| {
            let slot = layout.slot_names().iter().position(|slot| *slot == target.slot);
            let flat = slot.map_or(&params, |slot| &state[slot]);
            let range = layout.tensor(&target.tensor).unwrap().range();
            flat[range].iter().map(|x| f64::from(*x)).collect()
        })
        .collect();
    hold(rule, &run, &ours);
}

/// The bar of the recorded runs.
fn hold(rule: &str, run: &Trajectory, ours: &[Vec<f64>]) {
    let verdict = judge(&run.targets, ours, run.steps());
    assert!(verdict.pass, "{rule}: {:?}", verdict.failures());
    let (rms, peer) = (verdict.rms_ulps, verdict.peer_rms_ulps);
    eprintln!("{rule}: rms error {rms:.3} ulp, of PyTorch alone {peer:?}");
}

/// All numbers of a tensor in a file.
fn all(reader: &mut Reader, name: &str) -> Vec<f32> {
    let len = reader.tensor(name).unwrap_or_else(|| panic!("no {name}")).len();
    reader.plain_numbers(name, 0, len).unwrap().unwrap()
}

#[test]
fn a_run_of_pytorch_goes_on_on_the_cpu() {
    for rule in RULES {
        resume(rule, HALF, None);
    }
}

#[test]
fn a_run_of_pytorch_goes_on_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    for rule in RULES {
        resume(rule, HALF, Some(&gpu));
    }
}

/// A model's files in the form of Hugging Face, and an optimizer of PyTorch's that has not stepped.
#[test]
fn a_run_begins_with_the_files_of_a_model() {
    resume("adamw", 0, None);
    if let Some(gpu) = harness::test_gpu() {
        resume("adamw", 0, Some(&gpu));
    }
}

/// The state of apex, TransformerEngine, Megatron, DCP and Lightning, with numpy's numbers and with further
/// keys, loads strictly and continues: it equals PyTorch's.
#[test]
fn a_run_goes_on_from_every_form() {
    let forms = [
        "apex",
        "transformer-engine",
        "megatron",
        "megatron-sharded",
        "dcp",
        "dcp-numbers",
        "dcp-flat",
        "lightning",
        "numpy",
        "further-keys",
    ];
    for form in forms {
        let name = format!("form-{form}.safetensors");
        let [mut ours, mut plain] =
            [&name[..], "adamw-10.safetensors"].map(|name| Reader::open(file(name)).unwrap());
        same_run(&ours, &plain);
        for tensor in plain.tensors().to_vec() {
            assert_eq!(
                all(&mut ours, tensor.name()),
                all(&mut plain, tensor.name()),
                "{form}: {}",
                tensor.name()
            );
        }
        resume_from(&name, "adamw", HALF, None);
    }
}

/// A run on the CPU whose parameters and state are those of a file, which loads strictly.
fn loaded(name: &str, layout: Layout) -> CpuRun {
    let zeros = vec![0.0; layout.len() as usize];
    let mut host = CpuRun::new(layout, Options::DEFAULT, &zeros);
    let mut engine = Cpu::new(&mut host.optimizer).parameters(host.params.params());
    let loaded = checkpoint::load(&mut engine, file(name), &Load::default()).unwrap();
    assert_eq!((loaded.steps, loaded.checked), (HALF as u64, false), "{name}");
    host
}

/// A parameter that never had a gradient is left out, or starts at zero.
#[test]
fn a_parameter_without_state_is_left_out_or_zero() {
    let run = Trajectory::read(&file("adamw.safetensors")).unwrap();
    let groups = run.groups.iter().map(|group| {
        let tensors = group.tensors.iter().filter(|(name, _)| name != "v");
        tensors.fold(Group::new(&group.name, group.rule), |group, (name, shape)| group.tensor(name, shape))
    });
    let less = loaded("without-leave.safetensors", Layout::packed(groups).unwrap());
    let whole = loaded("without-zero.safetensors", layout(&run));
    for slot in ["exp_avg", "exp_avg_sq"] {
        assert_eq!(whole.state(slot, "v"), [0.0; 5]);
        for tensor in ["w", "b"] {
            assert_eq!(less.state(slot, tensor), whole.state(slot, tensor));
        }
    }
    let range = whole.optimizer.layout().tensor("v").unwrap().range();
    // Weight decay needs a gradient too.
    assert_eq!(whole.params()[range.clone()], run.params[range]);
}

/// A group that had no gradients counts its steps from its first, as its parameters do in PyTorch, and
/// reaches the same result.
#[test]
fn a_group_without_state_begins_late() {
    /// Ten steps of AdamW in f32, from f32: a few units in the last place of the largest parameter.
    const BOUND: f64 = 16.0 * f32::EPSILON as f64;
    let run = Trajectory::read(&file("adamw.safetensors")).unwrap();
    let mut host = loaded("without-group.safetensors", layout(&run));
    for t in HALF..run.steps() {
        host.step(&run.grads[t], run.lr[t]);
    }
    let end = std::fs::read(file("without-group-end.safetensors")).unwrap();
    let end = safetensors::SafeTensors::deserialize(&end).unwrap();
    for name in ["w", "v", "b"] {
        let want = end.tensor(name).unwrap().data().chunks_exact(8);
        let want: Vec<f64> = want.map(|x| f64::from_le_bytes(x.try_into().unwrap())).collect();
        let ours = &host.params()[host.optimizer.layout().tensor(name).unwrap().range()];
        assert_eq!(ours.len(), want.len());
        let size = want.iter().fold(0f64, |size, x| size.max(x.abs()));
        for (ours, want) in ours.iter().zip(want) {
            let off = (f64::from(*ours) - want).abs();
            assert!(off <= BOUND * size, "{name}: {ours:e}, {want:e}: {off:e} of {size:e}");
        }
    }
}

/// Ten steps here, saved for PyTorch to go on from.
fn begin(rule: &str, directory: &Path) {
    let run = Trajectory::read(&file(&format!("{rule}.safetensors"))).unwrap();
    let mut host = CpuRun::new(layout(&run), Options::DEFAULT, &run.params);
    for t in 0..HALF {
        host.step(&run.grads[t], run.lr[t]);
    }
    let path = directory.join(format!("{rule}.safetensors"));
    let mut engine = Cpu::new(&mut host.optimizer).parameters(host.params.params());
    checkpoint::save(&mut engine, &path, &Save::default()).unwrap();
    let [ours, theirs] =
        [path, file(&format!("{rule}-{HALF}.safetensors"))].map(|path| Reader::open(path).unwrap());
    same_run(&ours, &theirs);
}

/// Asserts that two checkpoints have the same tensors and the same record, except writer and options.
fn same_run(ours: &Reader, theirs: &Reader) {
    let form = |reader: &Reader| -> Vec<_> {
        reader.tensors().iter().map(|t| (t.name().to_owned(), t.dtype(), t.shape().to_vec())).collect()
    };
    assert_eq!(form(ours), form(theirs));
    let [ours, theirs] = [ours, theirs].map(|reader| Metadata::read(reader).unwrap());
    assert_eq!((&ours.rule, ours.steps, ours.taken), (&theirs.rule, theirs.steps, theirs.taken));
    assert_eq!(ours.loss_scale, theirs.loss_scale);
    assert_eq!(ours.groups.0.len(), theirs.groups.0.len());
    for (one, other) in ours.groups.0.iter().zip(&theirs.groups.0) {
        assert_eq!(one.name, other.name);
        assert_eq!((&one.rule, &other.rule), (&None, &None));
        let rule = |json: &checkpoint::Json| {
            let hyper = serde_json::from_str(json.text()).unwrap();
            configure(&ours.rule, &hyper).unwrap()
        };
        assert_eq!(rule(&one.hyperparameters), rule(&other.hyperparameters));
        let factor = |json: &Option<checkpoint::Json>| -> Schedule {
            serde_json::from_str(json.as_ref().unwrap().text()).unwrap()
        };
        assert_eq!(factor(&one.lr_factor), factor(&other.lr_factor));
        assert!(one.tensors.iter().eq(other.tensors.iter()));
        // PyTorch has NAdam's product in f32.
        assert!((one.carry - other.carry).abs() <= f64::from(f32::EPSILON) * one.carry);
    }
}

/// Asserts that PyTorch continued from the values that are saved here, and that its result is within the bar.
fn went_on(rule: &str, directory: &Path) {
    let run = Trajectory::read(&file(&format!("{rule}.safetensors"))).unwrap();
    let saved = directory.join(format!("{rule}.safetensors"));
    let open = |part: &str| Reader::open(file(&format!("{rule}-{part}.safetensors"))).unwrap();
    let [mut saved, mut here] = [Reader::open(&saved).unwrap(), open("here")];
    same_run(&saved, &here);
    for tensor in here.tensors().to_vec() {
        let name = tensor.name();
        let [ours, kept] = [&mut saved, &mut here].map(|reader| all(reader, name));
        let size = kept.iter().fold(0f64, |size, x| size.max(x.abs().into()));
        for (ours, kept) in ours.iter().zip(&kept) {
            let off = (f64::from(*ours) - f64::from(*kept)).abs();
            assert!(off <= AGAIN * size, "{rule}: {name} {ours:e}, went on from {kept:e}");
        }
    }
    let mut back = open("back");
    let numbers = |target: &optim::trajectory::Target| {
        let numbers = all(&mut back, &target.name());
        numbers.into_iter().map(f64::from).collect()
    };
    let numbers: Vec<Vec<f64>> = run.targets.iter().map(numbers).collect();
    hold(rule, &run, &numbers);
}

/// The script's file for Hugging Face has the parameters of the checkpoint under their own names.
#[test]
fn parameters_leave_by_their_names() {
    let [mut model, mut here] =
        ["model", "here"].map(|what| Reader::open(file(&format!("adamw-{what}.safetensors"))).unwrap());
    assert_eq!(model.tensors().len(), 3);
    for tensor in model.tensors().to_vec() {
        let name = tensor.name();
        assert_eq!(all(&mut model, name), all(&mut here, &format!("param/{name}")));
    }
}

#[test]
fn runs_begin_here() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
    std::fs::create_dir_all(&directory).unwrap();
    for rule in RULES {
        begin(rule, &directory);
    }
    eprintln!("python interop/golden.py --check {}", directory.display());
    for rule in RULES {
        went_on(rule, &directory);
    }
}
