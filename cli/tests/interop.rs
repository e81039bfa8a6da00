//! Runs that begin in PyTorch go on here, and those that begin here went on there, in `interop/golden.py --check`, from what is still saved here.

use optim::bar::judge;
use optim::rules::{BuiltIn, RuleVisitor, by_name, configure};
use optim::trajectory::Trajectory;
use std::path::{Path, PathBuf};
use wgpu_optim::checkpoint::{self, Cpu, Gpu, Load, Parameters, Reader, Record, Save};
use wgpu_optim::rules::slots;
use wgpu_optim::{Group, Layout, Optimizer, Schedule, Tensors, cpu};

/// The rules that PyTorch has too, and its files.
const RULES: [&str; 9] =
    ["sgd", "adam", "adamw", "adagrad", "rmsprop", "adadelta", "adamax", "nadam", "radam"];
/// Steps in PyTorch, before those here; and the other way round.
const HALF: usize = 10;
/// What a number after `HALF` steps may be off, of the largest of its tensor: powers and roots of scalars are what the system's library makes of them.
const AGAIN: f64 = 4.0 * f32::EPSILON as f64;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interop").join(name)
}

fn quiet(_: u64, _: u64) {}

fn layout<R: BuiltIn>(run: &Trajectory) -> Layout<R> {
    let groups = run.groups.iter().map(|group| {
        let mut hyper = run.hyper.clone();
        hyper.extend(group.overrides.clone());
        let empty = Group::new(&group.name, configure::<R>(&hyper).unwrap());
        group.tensors.iter().fold(empty, |group, (name, shape)| group.tensor(name, shape))
    });
    Layout::new(groups).unwrap()
}

/// So many steps there and the others here, on the CPU or on `gpu`.
struct Resume<'a>(usize, Option<&'a harness::Gpu>);

impl RuleVisitor for Resume<'_> {
    type Output = ();

    fn visit<R: BuiltIn>(self) {
        let run = Trajectory::read(&file(&format!("{}.safetensors", R::NAME))).unwrap();
        let Self(there, gpu) = self;
        let path = file(&format!("{}-{there}.safetensors", R::NAME));
        let layout = layout::<R>(&run);
        let mut params = vec![0.0; layout.len() as usize];
        let state: Vec<Vec<f32>> = match gpu {
            None => {
                let mut optimizer = cpu::Optimizer::<R>::new(layout.clone()).unwrap();
                let mut engine = Cpu::new(&mut optimizer).parameters(&mut params);
                let loaded = checkpoint::load(&mut engine, &path, &Load::default(), &mut quiet).unwrap();
                assert_eq!(loaded.steps, there as u64);
                for t in there..run.steps() {
                    optimizer.step(cpu::Tensors::flat(&mut params, &run.grads[t]), run.lr[t]).unwrap();
                }
                let slot = |slot: &&str| {
                    let mut flat = vec![0.0; layout.len() as usize];
                    for tensor in layout.tensors() {
                        if let Some(state) = optimizer.state(slot, &tensor.name).unwrap() {
                            flat[tensor.range()].copy_from_slice(state.as_f32().unwrap());
                        }
                    }
                    flat
                };
                slots::<R>().iter().map(slot).collect()
            }
            Some(gpu) => {
                let mut optimizer = Optimizer::<R>::new(&gpu.device, layout.clone()).unwrap();
                let (p, g) = (gpu.upload(&params), gpu.upload(&params));
                let mut engine = Gpu::new(&mut optimizer, &gpu.queue).parameters(Parameters::flat(&p));
                checkpoint::load(&mut engine, &path, &Load::default(), &mut quiet).unwrap();
                let bound = optimizer.bind(&Tensors::flat(&p, &g)).unwrap();
                for t in there..run.steps() {
                    gpu.write(&g, 0, &run.grads[t]);
                    let mut encoder = gpu.encoder();
                    optimizer.step(&gpu.queue, &mut encoder, &bound, run.lr[t]).unwrap();
                    gpu.run(encoder);
                }
                let snapshot = harness::snapshot(gpu, &optimizer, &p, 0);
                params = snapshot.params;
                snapshot.state
            }
        };
        let ours: Vec<Vec<f64>> = run
            .targets
            .iter()
            .map(|target| {
                let slot = slots::<R>().iter().position(|slot| *slot == target.slot);
                let flat = slot.map_or(&params, |slot| &state[slot]);
                let range = layout.tensor(&target.tensor).unwrap().range();
                flat[range].iter().map(|x| f64::from(*x)).collect()
            })
            .collect();
        hold::<R>(&run, &ours);
    }
}

/// The bar of the recorded runs.
fn hold<R: BuiltIn>(run: &Trajectory, ours: &[Vec<f64>]) {
    let verdict = judge(&run.targets, ours, run.steps());
    assert!(verdict.pass, "{}: {:?}", R::NAME, verdict.failures());
    let (rms, peer) = (verdict.rms_ulps, verdict.peer_rms_ulps);
    eprintln!("{}: rms error {rms:.3} ulp, of PyTorch alone {peer:?}", R::NAME);
}

/// All numbers of a tensor in a file.
fn all(reader: &mut Reader, name: &str) -> Vec<f32> {
    let len = reader.tensor(name).unwrap_or_else(|| panic!("no {name}")).len();
    reader.plain_numbers(name, 0, len).unwrap().unwrap()
}

#[test]
fn a_run_of_pytorch_goes_on_on_the_cpu() {
    for rule in RULES {
        by_name(rule, Resume(HALF, None)).unwrap();
    }
}

#[test]
fn a_run_of_pytorch_goes_on_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    for rule in RULES {
        by_name(rule, Resume(HALF, Some(&gpu))).unwrap();
    }
}

/// A model's files in the form of Hugging Face, and an optimizer of PyTorch's that has not stepped.
#[test]
fn a_run_begins_with_the_files_of_a_model() {
    by_name("adamw", Resume(0, None)).unwrap();
    if let Some(gpu) = harness::test_gpu() {
        by_name("adamw", Resume(0, Some(&gpu))).unwrap();
    }
}

/// Ten steps here, saved for PyTorch to go on from.
struct Begin<'a>(&'a Path);

impl RuleVisitor for Begin<'_> {
    type Output = ();

    fn visit<R: BuiltIn>(self) {
        let run = Trajectory::read(&file(&format!("{}.safetensors", R::NAME))).unwrap();
        let mut optimizer = cpu::Optimizer::<R>::new(layout(&run)).unwrap();
        let mut params = run.params.clone();
        for t in 0..HALF {
            optimizer.step(cpu::Tensors::flat(&mut params, &run.grads[t]), run.lr[t]).unwrap();
        }
        let path = self.0.join(format!("{}.safetensors", R::NAME));
        let mut engine = Cpu::new(&mut optimizer).parameters(&mut params);
        checkpoint::save(&mut engine, &path, &Save::default(), &mut quiet).unwrap();
        let [ours, theirs] =
            [path, file(&format!("{}-{HALF}.safetensors", R::NAME))].map(|path| Reader::open(path).unwrap());
        same_run::<R>(&ours, &theirs);
    }
}

/// The same tensors, and the same said of the run but who has written it and how the options are.
fn same_run<R: BuiltIn>(ours: &Reader, theirs: &Reader) {
    let form = |reader: &Reader| -> Vec<_> {
        reader.tensors().iter().map(|t| (t.name().to_owned(), t.dtype(), t.shape().to_vec())).collect()
    };
    assert_eq!(form(ours), form(theirs));
    let [ours, theirs] = [ours, theirs].map(|reader| Record::read(reader).unwrap());
    assert_eq!((&ours.rule, ours.steps, ours.taken), (&theirs.rule, theirs.steps, theirs.taken));
    assert_eq!(ours.loss_scale, theirs.loss_scale);
    assert_eq!(ours.groups.0.len(), theirs.groups.0.len());
    for (ours, theirs) in ours.groups.0.iter().zip(&theirs.groups.0) {
        assert_eq!(ours.name, theirs.name);
        let rule = |json: &checkpoint::Json| serde_json::from_str::<R>(json.text()).unwrap();
        assert_eq!(rule(&ours.hyperparameters), rule(&theirs.hyperparameters));
        let factor = |json: &Option<checkpoint::Json>| -> Schedule {
            serde_json::from_str(json.as_ref().unwrap().text()).unwrap()
        };
        assert_eq!(factor(&ours.lr_factor), factor(&theirs.lr_factor));
        assert!(ours.tensors.iter().eq(theirs.tensors.iter()));
        // PyTorch has NAdam's product in f32.
        assert!((ours.carry - theirs.carry).abs() <= f64::from(f32::EPSILON) * ours.carry);
    }
}

/// What PyTorch went on from is what is saved here, and where it came to is within the bar.
struct WentOn<'a>(&'a Path);

impl RuleVisitor for WentOn<'_> {
    type Output = ();

    fn visit<R: BuiltIn>(self) {
        let run = Trajectory::read(&file(&format!("{}.safetensors", R::NAME))).unwrap();
        let saved = self.0.join(format!("{}.safetensors", R::NAME));
        let open = |what: &str| Reader::open(file(&format!("{}-{what}.safetensors", R::NAME))).unwrap();
        let [mut saved, mut here] = [Reader::open(&saved).unwrap(), open("here")];
        same_run::<R>(&saved, &here);
        for tensor in here.tensors().to_vec() {
            let name = tensor.name();
            let [ours, kept] = [&mut saved, &mut here].map(|reader| all(reader, name));
            let size = kept.iter().fold(0f64, |size, x| size.max(x.abs().into()));
            for (ours, kept) in ours.iter().zip(&kept) {
                let off = (f64::from(*ours) - f64::from(*kept)).abs();
                assert!(off <= AGAIN * size, "{}: {name} {ours:e}, went on from {kept:e}", R::NAME);
            }
        }
        let mut back = open("back");
        let numbers = |target: &optim::trajectory::Target| {
            let numbers = all(&mut back, &target.name());
            numbers.into_iter().map(f64::from).collect()
        };
        let numbers: Vec<Vec<f64>> = run.targets.iter().map(numbers).collect();
        hold::<R>(&run, &numbers);
    }
}

/// What the script writes for Hugging Face are the parameters of the checkpoint, under their own names.
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
        by_name(rule, Begin(&directory)).unwrap();
    }
    eprintln!("python interop/golden.py --check {}", directory.display());
    for rule in RULES {
        by_name(rule, WentOn(&directory)).unwrap();
    }
}
