//! Runs that begin in PyTorch go on here, and those that begin here leave what `interop/golden.py --check` goes on from there.

use optim::bar::judge;
use optim::rules::{BuiltIn, RuleVisitor, by_name, configure};
use optim::trajectory::Trajectory;
use std::path::{Path, PathBuf};
use wgpu_optim::checkpoint::{self, Cpu, Gpu, Load, Parameters, Reader, Record, Save};
use wgpu_optim::rules::slots;
use wgpu_optim::{Group, Layout, Optimizer, Tensors, cpu};

/// The rules that PyTorch has too, and its files.
const RULES: [&str; 9] =
    ["sgd", "adam", "adamw", "adagrad", "rmsprop", "adadelta", "adamax", "nadam", "radam"];
/// Steps in PyTorch, before those here; and the other way round.
const HALF: usize = 10;

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

/// Ten steps there and ten here, on the CPU or on `gpu`.
struct Resume<'a>(Option<&'a harness::Gpu>);

impl RuleVisitor for Resume<'_> {
    type Output = ();

    fn visit<R: BuiltIn>(self) {
        let run = Trajectory::read(&file(&format!("{}.safetensors", R::NAME))).unwrap();
        let path = file(&format!("{}-{HALF}.safetensors", R::NAME));
        let layout = layout::<R>(&run);
        let mut params = vec![0.0; layout.len() as usize];
        let state: Vec<Vec<f32>> = match self.0 {
            None => {
                let mut optimizer = cpu::Optimizer::<R>::new(layout.clone()).unwrap();
                let mut engine = Cpu::new(&mut optimizer).parameters(&mut params);
                let loaded = checkpoint::load(&mut engine, &path, &Load::default(), &mut quiet).unwrap();
                assert_eq!(loaded.steps, HALF as u64);
                for t in HALF..run.steps() {
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
                for t in HALF..run.steps() {
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
        let verdict = judge(&run.targets, &ours, run.steps());
        assert!(verdict.pass, "{}: {:?}", R::NAME, verdict.failures());
        eprintln!(
            "{}: rms error {:.3} ulp, of PyTorch alone {:?}",
            R::NAME,
            verdict.rms_ulps,
            verdict.peer_rms_ulps
        );
    }
}

#[test]
fn a_run_of_pytorch_goes_on_on_the_cpu() {
    for rule in RULES {
        by_name(rule, Resume(None)).unwrap();
    }
}

#[test]
fn a_run_of_pytorch_goes_on_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    for rule in RULES {
        by_name(rule, Resume(Some(&gpu))).unwrap();
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
        // Both files have the same tensors, and say the same of the run but who has written it and how the options are.
        let [ours, theirs] =
            [path, file(&format!("{}-{HALF}.safetensors", R::NAME))].map(|path| Reader::open(path).unwrap());
        let form = |reader: &Reader| -> Vec<_> {
            reader.tensors().iter().map(|t| (t.name().to_owned(), t.dtype(), t.shape().to_vec())).collect()
        };
        assert_eq!(form(&ours), form(&theirs));
        let [ours, theirs] = [ours, theirs].map(|reader| Record::read(&reader).unwrap());
        assert_eq!((ours.steps, ours.taken), (theirs.steps, theirs.taken));
        for (ours, theirs) in ours.groups.0.iter().zip(&theirs.groups.0) {
            assert_eq!(ours.name, theirs.name);
            let rule = |json: &checkpoint::Json| serde_json::from_str::<R>(json.text()).unwrap();
            assert_eq!(rule(&ours.hyperparameters), rule(&theirs.hyperparameters));
            assert!(ours.tensors.iter().eq(theirs.tensors.iter()));
            // PyTorch has NAdam's product in f32.
            assert!((ours.carry - theirs.carry).abs() <= f64::from(f32::EPSILON) * ours.carry);
        }
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
}
