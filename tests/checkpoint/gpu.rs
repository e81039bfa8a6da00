//! On the GPU: both engines, parameters in many buffers, and steps in flight.

use crate::common::{Directory, Saves, assert_same_tensors, mismatches, values};
use cpu_harness::CpuRun;
use harness::{Gpu, GpuRun};
use wgpu_optim::checkpoint::{self, Cpu, Error, Gpu as Engine, Load, Mismatch, Parameters, Save};
use wgpu_optim::{AdamW, BindError, Format, Group, Layout, Master, Optimizer, Options, Rounding, View, cpu};

/// Tensors of odd lengths with gaps between them; `shift` elements further on.
pub(crate) fn layout(shift: u64) -> Layout {
    let group = |name: &str| Group::new(name, AdamW { weight_decay: 0.1, ..AdamW::default() });
    let first = group("first").tensor_at("a", [301], shift).tensor_at("c", [1_030], 310 + shift);
    let second = group("second").tensor_at("b", [7], 302 + shift).tensor_at("d", [5], 1_342 + shift);
    Layout::new([first, second]).unwrap()
}

/// A run on the GPU.
pub(crate) fn on_gpu(gpu: &Gpu, layout: Layout, options: Options) -> GpuRun<'_> {
    let start = vec![0.25; layout.len() as usize];
    GpuRun::new(gpu, layout, options, &start)
}

impl Saves for GpuRun<'_> {
    type Engine<'e>
        = Engine<'e>
    where
        Self: 'e;

    fn engine(&mut self) -> Engine<'_> {
        Engine::new(&mut self.optimizer, &self.gpu.queue).parameters(Parameters::flat(&self.params))
    }

    /// Numbers count from 0 in every call. Reports stay with the optimizer.
    fn steps(&mut self, n: usize) -> &mut Self {
        for t in 0..n {
            let grads = values(t as u64, self.optimizer.layout().len() as usize);
            self.submit(&grads, 0.01);
            self.gpu.wait();
        }
        self
    }
}

/// The numbers of each slot of each tensor, and the parameters with all kept digits.
pub(crate) fn numbers(run: &GpuRun<'_>) -> Vec<(String, Vec<f32>)> {
    let layout = run.optimizer.layout();
    let snapshot = run.snapshot();
    let named = ["exp_avg", "exp_avg_sq"].iter().zip(&snapshot.state).chain([(&"param", &snapshot.params)]);
    let all = named.flat_map(|(slot, values)| {
        layout.tensors().iter().map(move |t| (format!("{slot}/{}", t.name), values[t.range()].to_vec()))
    });
    all.collect()
}

/// The CPU continues from files of the GPU, and the other way round: the same files, in all formats.
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
            // Parameters of 4 bytes have no master.
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
        let mut run = on_gpu(&gpu, layout(0), options).after(3);
        run.save(&first, &Save::default()).unwrap();
        let start = vec![0.0; run.optimizer.layout().len() as usize];
        let mut host = CpuRun::new(layout(0), options, &start);
        let loaded = host.load(&first, &Load::default()).unwrap();
        assert_eq!(loaded.steps, 3, "{options:?}");
        host.save(&second, &Save::default()).unwrap();
        assert_same_tensors(&first, &second, &format!("{options:?}"));
        let mut back = on_gpu(&gpu, layout(0), options);
        back.load(&second, &Load::default()).unwrap();
        assert_eq!((numbers(&back), back.optimizer.steps()), (numbers(&run), 3), "{options:?}");
    }
    // Parameters of the wrong type or length, or none of a tensor.
    on_gpu(&gpu, layout(0), Options::default()).save(&first, &Save::default()).unwrap();
    let refused = |mut engine: Cpu<'_>| {
        let saving = checkpoint::save(&mut engine, &second, &Save::default()).unwrap_err();
        let loading = checkpoint::load(&mut engine, &first, &Load::default()).unwrap_err();
        assert_eq!(saving.to_string(), loading.to_string());
        loading
    };
    let mut optimizer = cpu::Optimizer::new(layout(0)).unwrap();
    let error = refused(Cpu::new(&mut optimizer).parameters(&mut [0u16; 2_000]));
    assert!(matches!(error, Error::Bind(BindError::Format { .. })), "{error}");
    let error = refused(Cpu::new(&mut optimizer).parameters(&mut [0.0; 1_346]));
    assert!(matches!(&error, Error::Parameters { tensor, .. } if tensor == "d"), "{error}");
    let error = refused(Cpu::new(&mut optimizer).each_parameters([("a", &mut [0.0; 301])]));
    assert!(matches!(&error, Error::Parameters { tensor, found: 0, .. } if tensor == "b"), "{error}");
}

/// Parameters from an offset that no buffer has: an error, and no sum that overflows.
#[test]
fn parameters_far_beyond_their_buffer() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut run = on_gpu(&gpu, layout(0), Options::default());
    let params = run.params.clone();
    for offset in (0..16).map(|n| u64::MAX - n).chain([1 << 63, 1 << 32, params.size()]) {
        let far = Parameters::flat(View::new(&params, offset));
        let mut engine = Engine::new(&mut run.optimizer, &gpu.queue).parameters(far);
        let error = checkpoint::save_to(&mut engine, std::io::sink(), &Save::default()).unwrap_err();
        let named =
            matches!(error, Error::Bind(BindError::OutOfBounds { .. } | BindError::Misaligned { .. }));
        assert!(named, "{offset}: {error}");
    }
}

/// Parameters lie in a pooled buffer in any order. Bytes between them do not change, also in a shared word.
#[test]
fn parameters_lie_anywhere() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("pool");
    let path = directory.file("run.safetensors");
    let options =
        Options { params: Format::Bf16, grads: Format::Bf16, master: Master::None, ..Options::default() };
    let mut saved = on_gpu(&gpu, layout(0), options).after(2);
    saved.save(&path, &Save::default()).unwrap();
    let codes = saved.codes();
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
        let mut saved = on_gpu(&gpu, layout(), options).after(1);
        saved.save(&path, &Save::default()).unwrap();
        let mut run = on_gpu(&gpu, layout(), options);
        run.load(&path, &Load::default()).unwrap();
        assert!(numbers(&run) == numbers(&saved), "{states:?}");
    }
}

/// The largest additional memory of the process for saving and for loading, with 192 MiB of state.
#[cfg(target_os = "linux")]
const BOUND: u64 = 64 << 20;

/// All memory of the process is counted, including the driver's with the state; so the test runs in a process
/// of its own.
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
    let mut run = on_gpu(&gpu, Layout::new([group]).unwrap(), Options::default()).after(1);
    let before = status("VmRSS:");
    let peak = |f: &mut dyn FnMut()| {
        // The most that the process has at a time begins anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        f();
        status("VmHWM:").saturating_sub(before)
    };
    let saving = peak(&mut || run.save(&path, &Save::default()).unwrap());
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
        let mut run = on_gpu(&gpu, layout(0), options).after(2);
        run.save(&path, &Save::default()).unwrap();
        run.write_grads(&vec![1.0; run.optimizer.layout().len() as usize]);
        let mut encoder = gpu.encoder();
        // More sets of scalars than there is room for at first.
        for _ in 0..20 {
            run.record(&mut encoder, 0.01).unwrap();
        }
        let commands = encoder.finish();
        let error = checkpoint::save(&mut run.engine(), &path, &Save::default()).unwrap_err();
        assert!(matches!(error, Error::Unsubmitted { steps: 20 }), "{error}");
        let error = run.load(&path, &Load::default()).unwrap_err();
        assert!(matches!(error, Error::Unsubmitted { steps: 20 }), "{error}");
        assert_eq!(run.optimizer.steps(), 22);
        drop(commands);
        run.save(&path, &Save::default()).unwrap();
        let loaded = run.load(&path, &Load::default()).unwrap();
        // Dropped commands are steps that were not taken, if the device counts steps.
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
    let mut run = on_gpu(&gpu, layout(0), options).after(3);
    run.save(&path, &Save::default()).unwrap();
    run.steps(5);
    let want = numbers(&run);
    run.load(&path, &Load::default()).unwrap();
    assert_eq!((run.optimizer.steps(), run.optimizer.take_report()), (3, None));
    run.steps(5);
    assert_eq!(numbers(&run), want);
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
    on_gpu(&gpu, layout(0), options(Rounding::Nearest)).after(1).save(&path, &Save::default()).unwrap();
    let mut run = on_gpu(&gpu, layout(0), options(Rounding::Stochastic { seed: 1 }));
    assert_eq!(mismatches(run.load(&path, &Load::default())), [Mismatch::Seed]);
    on_gpu(&gpu, layout(0), options(Rounding::Stochastic { seed: 2 }))
        .after(1)
        .save(&path, &Save::default())
        .unwrap();
    let found = mismatches(run.load(&path, &Load::default()));
    assert!(matches!(&found[..], [Mismatch::Option { field, .. }] if field == "rounding"), "{found:?}");
}
