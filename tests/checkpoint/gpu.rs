//! On the GPU: both engines, parameters in many buffers, and steps in flight.

use crate::common::{Directory, assert_same_tensors, mismatches, values};
use harness::Gpu;
use std::path::Path;
use wgpu_optim::checkpoint::{self, Cpu, Error, Gpu as Engine, Load, Mismatch, Parameters, Save};
use wgpu_optim::{AdamW, Format, Group, Layout, Master, Optimizer, Options, Rounding, Tensors, View, cpu};

/// Tensors of odd lengths with gaps between them; `shift` elements further on.
pub fn layout(shift: u64) -> Layout {
    let group = |name: &str| Group::new(name, AdamW { weight_decay: 0.1, ..AdamW::default() });
    let first = group("first").tensor_at("a", [301], shift).tensor_at("c", [1_030], 310 + shift);
    let second = group("second").tensor_at("b", [7], 302 + shift).tensor_at("d", [5], 1_342 + shift);
    Layout::new([first, second]).unwrap()
}

pub struct Run<'a> {
    gpu: &'a Gpu,
    pub optimizer: Optimizer,
    pub params: wgpu::Buffer,
}

impl<'a> Run<'a> {
    pub fn new(gpu: &'a Gpu, layout: Layout, options: Options) -> Self {
        let params = gpu.upload_as(options.params, &vec![0.25; layout.len() as usize]);
        let optimizer = Optimizer::with_options(&gpu.device, layout, options).unwrap();
        Self { gpu, optimizer, params }
    }

    pub fn steps(mut self, n: u64) -> Self {
        for t in 0..n {
            let grads = values(t, self.optimizer.layout().len() as usize);
            let grads = self.gpu.upload_as(self.optimizer.options().grads, &grads);
            let tensors = self.optimizer.bind(&Tensors::flat(&self.params, &grads)).unwrap();
            let mut encoder = self.gpu.encoder();
            self.optimizer.step(&self.gpu.queue, &mut encoder, &tensors, 0.01).unwrap();
            self.gpu.run(encoder);
        }
        self
    }

    pub fn engine(&mut self) -> Engine<'_> {
        Engine::new(&mut self.optimizer, &self.gpu.queue).parameters(Parameters::flat(&self.params))
    }

    pub fn save(&mut self, path: &Path) {
        checkpoint::save(&mut self.engine(), path, &Save::default()).unwrap();
    }

    pub fn load(&mut self, path: &Path, load: &Load) -> Result<checkpoint::Loaded, Error> {
        checkpoint::load(&mut self.engine(), path, load)
    }

    /// The numbers of each slot of each tensor, and of the parameters with all digits that are kept.
    pub fn numbers(&self) -> Vec<(String, Vec<f32>)> {
        let layout = self.optimizer.layout();
        let snapshot = harness::snapshot(self.gpu, &self.optimizer, &self.params, 0);
        let named =
            ["exp_avg", "exp_avg_sq"].iter().zip(&snapshot.state).chain([(&"param", &snapshot.params)]);
        let all = named.flat_map(|(slot, values)| {
            layout.tensors().iter().map(move |t| (format!("{slot}/{}", t.name), values[t.range()].to_vec()))
        });
        all.collect()
    }
}

/// What the GPU saves, the CPU goes on from, and the other way round: the same files, in all formats.
#[test]
fn engines_read_each_other() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("engines");
    let [first, second] = ["gpu.safetensors", "cpu.safetensors"].map(|name| directory.file(name));
    let around = Options {
        ema: Some(wgpu_optim::Ema { decay: 0.5, debias: false }),
        loss_scale: Some(wgpu_optim::LossScale::default()),
        ..Options::default()
    };
    let mut all = vec![Options::default()];
    for (params, states) in Format::TENSORS.into_iter().flat_map(|p| Format::STATES.map(|s| (p, s))) {
        for master in Master::ALL {
            let rounding = Rounding::Stochastic { seed: 3 };
            let options = Options { params, grads: params, states, master, rounding, ..around };
            // Of parameters of 4 bytes there is nothing more to keep.
            let other = params != Format::F32 || master == Master::default();
            if other && options.validate().is_ok() {
                all.push(options);
            }
        }
    }
    let bf16 = Options { params: Format::Bf16, grads: Format::Bf16, states: Format::Bf16, ..around };
    all.push(Options { states: Format::Q8, f32_states_below: 100, ..around });
    all.push(Options { f32_states_below: u64::MAX, ..bf16 });
    for options in all {
        let mut run = Run::new(&gpu, layout(0), options).steps(3);
        run.save(&first);
        let mut optimizer = cpu::Optimizer::with_options(layout(0), options).unwrap();
        let len = optimizer.layout().len() as usize;
        let (mut wide, mut narrow) = (vec![0.0f32; len], vec![0u16; len]);
        let engine = Cpu::new(&mut optimizer);
        let mut engine = if options.params == Format::F32 {
            engine.parameters(&mut wide)
        } else {
            engine.parameters(&mut narrow)
        };
        let loaded = checkpoint::load(&mut engine, &first, &Load::default()).unwrap();
        assert_eq!(loaded.steps, 3, "{options:?}");
        checkpoint::save(&mut engine, &second, &Save::default()).unwrap();
        assert_same_tensors(&first, &second, &format!("{options:?}"));
        let mut back = Run::new(&gpu, layout(0), options);
        back.load(&second, &Load::default()).unwrap();
        assert_eq!((back.numbers(), back.optimizer.steps()), (run.numbers(), 3), "{options:?}");
    }
    // Parameters of the wrong type or length, or none of a tensor.
    Run::new(&gpu, layout(0), Options::default()).save(&first);
    let refused = |mut engine: Cpu<'_>| {
        let saving = checkpoint::save(&mut engine, &second, &Save::default()).unwrap_err();
        let loading = checkpoint::load(&mut engine, &first, &Load::default()).unwrap_err();
        assert_eq!(saving.to_string(), loading.to_string());
        loading
    };
    let mut optimizer = cpu::Optimizer::new(layout(0)).unwrap();
    let error = refused(Cpu::new(&mut optimizer).parameters(&mut [0u16; 2_000]));
    assert!(matches!(error, Error::Bind(wgpu_optim::BindError::Format { .. })), "{error}");
    let error = refused(Cpu::new(&mut optimizer).parameters(&mut [0.0; 1_346]));
    assert!(matches!(&error, Error::Parameters { tensor, .. } if tensor == "d"), "{error}");
    let error = refused(Cpu::new(&mut optimizer).each_parameters([("a", &mut [0.0; 301])]));
    assert!(matches!(&error, Error::Parameters { tensor, found: 0, .. } if tensor == "b"), "{error}");
}

/// Parameters lie in a pooled buffer in any order; what lies between them is left alone, also where it shares
/// a word.
#[test]
fn parameters_lie_anywhere() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("pool");
    let path = directory.file("run.safetensors");
    let options =
        Options { params: Format::Bf16, grads: Format::Bf16, master: Master::None, ..Options::default() };
    let mut saved = Run::new(&gpu, layout(0), options).steps(2);
    saved.save(&path);
    let codes = harness::param_codes(&gpu, &saved.optimizer, &saved.params, 0);
    const OTHER: u32 = 0xabcd_abcd;
    let mut optimizer = Optimizer::with_options(&gpu.device, layout(0), options).unwrap();
    let pool = gpu.upload(&vec![f32::from_bits(OTHER); 2_000]);
    let places = [("d", 0), ("c", 16), ("a", 4_096), ("b", 4_096 + 604)];
    let each = Parameters::each(places.map(|(name, offset)| (name, View::new(&pool, offset))));
    let mut engine = Engine::new(&mut optimizer, &gpu.queue).parameters(each);
    checkpoint::load(&mut engine, &path, &Load::default()).unwrap();
    let words = gpu.read_bits(&pool, 0, 2_000);
    let halves: Vec<u32> = words.iter().flat_map(|word| [word & 0xffff, word >> 16]).collect();
    let mut want = vec![OTHER & 0xffff; 4_000];
    for (name, offset) in places {
        let tensor = optimizer.layout().tensor(name).unwrap();
        want[offset as usize / 2..][..tensor.len as usize].copy_from_slice(&codes[tensor.range()]);
    }
    assert_eq!(halves, want);
    // And they are saved from there.
    let again = directory.file("again.safetensors");
    let each = Parameters::each(places.map(|(name, offset)| (name, View::new(&pool, offset))));
    let mut engine = Engine::new(&mut optimizer, &gpu.queue).parameters(each);
    checkpoint::save(&mut engine, &again, &Save::default()).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap());
    for (what, name, offset) in
        [("one place", "c", 0), ("a part", "c", 4), ("unknown", "e", 6_000), ("twice", "a", 6_000)]
    {
        let mut places = places.to_vec();
        places.retain(|(other, _)| *other != name || what == "twice");
        places.push((name, offset));
        let each = Parameters::each(places.iter().map(|&(name, offset)| (name, View::new(&pool, offset))));
        let mut engine = Engine::new(&mut optimizer, &gpu.queue).parameters(each);
        let error = checkpoint::load(&mut engine, &path, &Load::default()).unwrap_err();
        let Error::Bind(error) = error else { panic!("{what}: {error}") };
        use wgpu_optim::BindError::{DuplicateTensor, Overlap, UnknownTensor};
        let right = match what {
            "unknown" => matches!(error, UnknownTensor { .. }),
            "twice" => matches!(error, DuplicateTensor { .. }),
            _ => matches!(error, Overlap { .. }),
        };
        assert!(right, "{what}: {error}");
    }
    let some =
        Parameters::each(places.into_iter().skip(1).map(|(name, offset)| (name, View::new(&pool, offset))));
    let mut engine = Engine::new(&mut optimizer, &gpu.queue).parameters(some);
    let error = checkpoint::save(&mut engine, &again, &Save::default()).unwrap_err();
    assert!(matches!(&error, Error::Parameters { tensor, .. } if tensor == "d"), "{error}");
}

/// State that crosses chunks, and is larger than a staging buffer.
#[test]
fn many_chunks_and_batches() {
    let Some(gpu) = harness::test_gpu_with(|limits| limits.max_storage_buffer_binding_size = 1 << 22) else {
        return;
    };
    let directory = Directory::new("chunks");
    let path = directory.file("run.safetensors");
    for states in Format::STATES {
        let options = Options { states, ..Options::default() };
        let layout = || {
            let group = Group::new("all", AdamW::default()).tensor("w", [2_500_001]);
            let small = (0..300).fold(group, |group, i| group.tensor(format!("t{i}"), [1 + i % 50]));
            Layout::new([small.tensor("v", [1_200, 1_000])]).unwrap()
        };
        let mut saved = Run::new(&gpu, layout(), options).steps(1);
        saved.save(&path);
        let mut run = Run::new(&gpu, layout(), options);
        run.load(&path, &Load::default()).unwrap();
        assert!(run.numbers() == saved.numbers(), "{states:?}");
    }
}

/// What the process may take beside what it has, whichever way: with 192 MiB of state.
#[cfg(target_os = "linux")]
const BOUND: u64 = 64 << 20;

/// All memory of the process is counted, that of the driver too, which has the state in it; so it is a
/// process of its own.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_bounded() {
    const CHILD: &str = "WGPU_OPTIM_TEST_MEMORY";
    let Some(gpu) = harness::test_gpu() else { return };
    if std::env::var_os(CHILD).is_none() {
        let status = harness::again(&memory_is_bounded).env(CHILD, "").status().unwrap();
        assert!(status.success());
        return;
    }
    let status = |field: &str| -> u64 {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap() << 10
    };
    let directory = Directory::new("gpu-memory");
    let path = directory.file("run.safetensors");
    let group = Group::new("all", AdamW::default()).tensor("w", [16 << 20]).tensor("v", [8 << 20]);
    // A step, so that all state is in memory.
    let mut run = Run::new(&gpu, Layout::new([group]).unwrap(), Options::default()).steps(1);
    let before = status("VmRSS:");
    let peak = |f: &mut dyn FnMut()| {
        // The most that the process has at a time begins anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        f();
        status("VmHWM:").saturating_sub(before)
    };
    let saving = peak(&mut || run.save(&path));
    let loading = peak(&mut || drop(run.load(&path, &Load::default()).unwrap()));
    eprintln!("saving {} MiB, loading {} MiB", saving >> 20, loading >> 20);
    assert!(saving < BOUND && loading < BOUND, "{saving} and {loading} bytes");
}

#[test]
fn what_is_in_flight_is_refused() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("flight");
    let path = directory.file("run.safetensors");
    for skip_nonfinite in [false, true] {
        let options = Options { skip_nonfinite, ..Options::default() };
        let mut run = Run::new(&gpu, layout(0), options).steps(2);
        run.save(&path);
        let grads = gpu.upload(&vec![1.0; 2_000]);
        let tensors = run.optimizer.bind(&Tensors::flat(&run.params, &grads)).unwrap();
        let mut encoder = gpu.encoder();
        // More sets of scalars than there is room for at first.
        for _ in 0..20 {
            run.optimizer.step(&gpu.queue, &mut encoder, &tensors, 0.01).unwrap();
        }
        let commands = encoder.finish();
        let error = checkpoint::save(&mut run.engine(), &path, &Save::default()).unwrap_err();
        assert!(matches!(error, Error::Unsubmitted { steps: 20 }), "{error}");
        let error = run.load(&path, &Load::default()).unwrap_err();
        assert!(matches!(error, Error::Unsubmitted { steps: 20 }), "{error}");
        assert_eq!(run.optimizer.steps(), 22);
        drop(commands);
        run.save(&path);
        let loaded = run.load(&path, &Load::default()).unwrap();
        // Commands that were dropped are steps that were not taken, where that is counted.
        assert_eq!((loaded.steps, loaded.taken), (22, if skip_nonfinite { 2 } else { 22 }));
    }
}

/// Back to an earlier step, in the same optimizer: reports from before do not count.
#[test]
fn a_run_goes_back() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("back");
    let path = directory.file("run.safetensors");
    let options = Options {
        skip_nonfinite: true,
        loss_scale: Some(wgpu_optim::LossScale::default()),
        ..Options::default()
    };
    let mut run = Run::new(&gpu, layout(0), options).steps(3);
    run.save(&path);
    let mut run = run.steps(5);
    let want = run.numbers();
    run.load(&path, &Load::default()).unwrap();
    assert_eq!((run.optimizer.steps(), run.optimizer.take_report()), (3, None));
    let mut run = run.steps(5);
    assert_eq!(run.numbers(), want);
    let reports: Vec<_> =
        std::iter::from_fn(|| run.optimizer.take_report()).map(|r| (r.step, r.skipped)).collect();
    assert_eq!(reports, (3..8).map(|step| (step, 0)).collect::<Vec<_>>());
}

#[test]
fn a_seed_is_wanted_where_rounding_is_at_random() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("seed");
    let path = directory.file("run.safetensors");
    let options = |rounding| Options { states: Format::Bf16, rounding, ..Options::default() };
    Run::new(&gpu, layout(0), options(Rounding::Nearest)).steps(1).save(&path);
    let mut run = Run::new(&gpu, layout(0), options(Rounding::Stochastic { seed: 1 }));
    assert_eq!(mismatches(run.load(&path, &Load::default())), [Mismatch::Seed]);
    Run::new(&gpu, layout(0), options(Rounding::Stochastic { seed: 2 })).steps(1).save(&path);
    let found = mismatches(run.load(&path, &Load::default()));
    assert!(matches!(&found[..], [Mismatch::Option { field, .. }] if field == "rounding"), "{found:?}");
}
