//! Checkpoints: what one process saves another goes on from, as if nothing had happened.

use crate::common::{Cases, Random, lr};
use crate::formats::{SEED, odd};
use harness::Gpu;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use wgpu_optim::checkpoint::{self, Counters, Engine, Load, Loaded, Parameters, Save};
use wgpu_optim::offload::Offload;
use wgpu_optim::rules::slots;
use wgpu_optim::{
    Bound, Clip, Ema, Format, Group, Layout, LossScale, Master, Optimizer, Options, Report, Rounding, Rule,
    Step, Tensors, Twin, cpu, for_each_rule, wgpu,
};

/// Steps before the save, and after it.
const HALF: usize = 10;
/// Of 2 × `HALF` steps, those with a gradient that is not finite, in one case and the next: with one right before the save, and with good steps before it.
const OVERFLOWS: [[usize; 4]; 2] = [[0, 4, 9, 12], [0, 4, 7, 12]];
/// What gradients are divided by where they are.
const DIVISOR: f64 = 8.0;

/// A directory of its own, gone at the end. In memory where there is one: every save waits for the disk, which is not what is tested here.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
        let path = parent.join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn quiet(_: u64, _: u64) {}

/// What a step depends on or changes, bit for bit, by name.
type Bits = BTreeMap<String, Vec<u32>>;

/// A run on either engine.
trait Run {
    fn step(&mut self, grads: &[f32], step: Step);
    fn save(&mut self, path: &Path);
    fn load(&mut self, path: &Path) -> Loaded;
    fn bits(&mut self) -> Bits;
}

/// Every slot that a rule or an option keeps.
fn names<R: Rule>() -> impl Iterator<Item = &'static str> {
    slots::<R>().iter().copied().chain(["master", "remainder", "ema"])
}

/// Counters and carries; and reports of the second half.
fn others(counters: &Counters, reports: &[Report]) -> impl Iterator<Item = (String, Vec<u32>)> {
    let wide = |x: u64| [x as u32, (x >> 32) as u32];
    let Counters { steps, taken, carries, loss_scale } = counters;
    let carries = carries.iter().flat_map(|carry| wide(carry.to_bits())).collect();
    let scale = loss_scale.map_or(vec![], |state| vec![state.scale.to_bits(), state.good_steps]);
    let reports: Vec<_> = reports.iter().filter(|report| report.step >= HALF as u64).collect();
    let reports = format!("{reports:?}").bytes().map(u32::from).collect();
    let counts = [wide(*steps), wide(*taken)].concat();
    [("steps", counts), ("carries", carries), ("loss scale", scale), ("reports", reports)]
        .into_iter()
        .map(|(name, bits)| (name.to_owned(), bits))
}

/// A run on the GPU in flat buffers.
struct Session<'a, R> {
    gpu: &'a Gpu,
    optimizer: Optimizer<R>,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl<'a, R: Rule + Serialize + DeserializeOwned> Session<'a, R> {
    fn new(gpu: &'a Gpu, layout: &Layout<R>, options: Options, params: &[f32]) -> Self {
        let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
        let p = gpu.upload_as(options.params, params);
        let g = gpu.upload_as(options.grads, &vec![0.0; params.len()]);
        let bound = optimizer.bind(&Tensors::flat(&p, &g)).unwrap();
        Self { gpu, optimizer, params: p, grads: g, bound }
    }

    fn engine(&mut self) -> checkpoint::Gpu<'_, R> {
        checkpoint::Gpu::new(&mut self.optimizer, &self.gpu.queue).parameters(Parameters::flat(&self.params))
    }
}

impl<R: Rule + Serialize + DeserializeOwned> Run for Session<'_, R> {
    /// Submits and does not wait.
    fn step(&mut self, grads: &[f32], step: Step) {
        self.gpu.write_as(self.optimizer.options().grads, &self.grads, grads);
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, step).unwrap();
        self.gpu.queue.submit([encoder.finish()]);
    }

    fn save(&mut self, path: &Path) {
        checkpoint::save(&mut self.engine(), path, &Save::default(), &mut quiet).unwrap();
    }

    fn load(&mut self, path: &Path) -> Loaded {
        checkpoint::load(&mut self.engine(), path, &Load::default(), &mut quiet).unwrap()
    }

    fn bits(&mut self) -> Bits {
        let counters = self.engine().counters().unwrap();
        let params = harness::param_codes(self.gpu, &self.optimizer, &self.params, 0);
        let mut bits = Bits::from([("param".to_owned(), params)]);
        for name in names::<R>() {
            // All words of all buffers: codes and scales of blocks are among them.
            let mut seen: Vec<wgpu::Buffer> = Vec::new();
            for tensor in self.optimizer.layout().tensors() {
                for range in self.optimizer.state(name, &tensor.name).into_iter().flatten() {
                    if !seen.contains(range.buffer) {
                        let words = self.gpu.read_bits(range.buffer, 0, (range.buffer.size() / 4) as usize);
                        bits.entry(name.to_owned()).or_default().extend(words);
                        seen.push(range.buffer.clone());
                    }
                }
            }
        }
        let reports: Vec<_> = std::iter::from_fn(|| self.optimizer.take_report()).collect();
        bits.extend(others(&counters, &reports));
        bits
    }
}

/// A run on the CPU, with parameters of 4 bytes or of 2.
struct Host<R: Twin> {
    optimizer: cpu::Optimizer<R>,
    wide: Vec<f32>,
    narrow: Vec<u16>,
    reports: Vec<Report>,
}

fn codes(format: Format, values: &[f32]) -> Vec<u16> {
    values.iter().map(|x| format.encode(*x) as u16).collect()
}

impl<R: Twin + Serialize + DeserializeOwned> Host<R> {
    fn new(layout: &Layout<R>, options: Options, params: &[f32]) -> Self {
        let optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        Self { optimizer, wide: params.to_vec(), narrow: codes(options.params, params), reports: Vec::new() }
    }

    fn engine(&mut self) -> checkpoint::Cpu<'_, R> {
        let wide = self.optimizer.options().params == Format::F32;
        let engine = checkpoint::Cpu::new(&mut self.optimizer);
        if wide { engine.parameters(&mut self.wide) } else { engine.parameters(&mut self.narrow) }
    }
}

impl<R: Twin + Serialize + DeserializeOwned> Run for Host<R> {
    fn step(&mut self, grads: &[f32], step: Step) {
        let Options { params, grads: format, .. } = *self.optimizer.options();
        // Gradients may be set to zero.
        let (mut g4, mut g2) = (grads.to_vec(), codes(format, grads));
        let (p4, p2) = (&mut self.wide, &mut self.narrow);
        let tensors = match (params == Format::F32, format == Format::F32) {
            (true, true) => cpu::Tensors::flat(p4, &mut g4),
            (true, false) => cpu::Tensors::flat(p4, &mut g2),
            (false, true) => cpu::Tensors::flat(p2, &mut g4),
            (false, false) => cpu::Tensors::flat(p2, &mut g2),
        };
        self.reports.extend(self.optimizer.step(tensors, step).unwrap());
    }

    fn save(&mut self, path: &Path) {
        checkpoint::save(&mut self.engine(), path, &Save::default(), &mut quiet).unwrap();
    }

    fn load(&mut self, path: &Path) -> Loaded {
        checkpoint::load(&mut self.engine(), path, &Load::default(), &mut quiet).unwrap()
    }

    fn bits(&mut self) -> Bits {
        let counters = self.engine().counters().unwrap();
        let floats = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let halves = |x: &[u16]| x.iter().map(|&x| x.into()).collect::<Vec<_>>();
        let wide = self.optimizer.options().params == Format::F32;
        let params = if wide { floats(&self.wide) } else { halves(&self.narrow) };
        let mut bits = Bits::from([("param".to_owned(), params)]);
        for name in names::<R>() {
            for tensor in self.optimizer.layout().tensors() {
                let Ok(Some(state)) = self.optimizer.state(name, &tensor.name) else { continue };
                bits.entry(name.to_owned()).or_default().extend(match state {
                    cpu::State::F32(x) => floats(x),
                    cpu::State::U16(x) => halves(x),
                    cpu::State::Q8(x, scales) => {
                        x.iter().map(|&x| x.into()).chain(scales.iter().copied()).collect()
                    }
                });
            }
        }
        bits.extend(others(&counters, &self.reports));
        bits
    }
}

fn assert_same(got: &Bits, want: &Bits, context: &str) {
    assert!(got.keys().eq(want.keys()), "{context}: {:?} and {:?}", got.keys(), want.keys());
    for (name, want) in want {
        let got = &got[name];
        assert_eq!(got.len(), want.len(), "{context}: {name}");
        if let Some(i) = got.iter().zip(want).position(|(got, want)| got != want) {
            panic!("{context}: {name}[{i}] = {:#x}, in one run {:#x}", got[i], want[i]);
        }
    }
}

fn gradients(len: usize, format: Format, overflows: &[usize]) -> Vec<Vec<f32>> {
    let mut random = Random::new(17);
    let of_step = |t| {
        let mut grads: Vec<f32> =
            (0..len).map(|_| format.decode(format.encode(random.value() * 0.1))).collect();
        if overflows.contains(&t) {
            grads[3] = f32::INFINITY;
        }
        grads
    };
    (0..2 * HALF).map(of_step).collect()
}

/// What stands around the rule. That every option is in one of them, or in `stored`, has a test of its own.
fn arounds() -> [Options; 5] {
    let none = Options::default();
    [
        Options {
            skip_nonfinite: true,
            ema: Some(Ema { decay: 0.9, debias: true }),
            f32_states_below: 20,
            ..none
        },
        Options {
            loss_scale: Some(LossScale { growth_interval: 3, ..LossScale::default() }),
            clip: Some(Clip::GlobalNorm(1.0)),
            norms: true,
            zero_gradients: true,
            ..none
        },
        Options {
            clip: Some(Clip::GroupNorm(1.0)),
            ema: Some(Ema { decay: 0.5, debias: false }),
            report: true,
            ..none
        },
        Options { divide: true, clip: Some(Clip::Value(0.01)), skip_nonfinite: true, ..none },
        Options {
            loss_scale: Some(LossScale { growth_interval: 4, ..LossScale::default() }),
            ema: Some(Ema { decay: 0.9, debias: true }),
            clip: Some(Clip::GlobalNorm(0.5)),
            divide: true,
            ..none
        },
    ]
}

/// Ways to store that differ in what the kernels read of the gradients and in how they round.
const ALIKE: usize = Format::TENSORS.len() * 2;

/// All ways to store, by the lists of the crate; `ALIKE` side by side.
fn stored() -> Vec<Options> {
    let mut all = Vec::new();
    for (params, master) in Format::TENSORS.into_iter().flat_map(|p| Master::ALL.map(|master| (p, master))) {
        for (states, grads) in
            Format::STATES.into_iter().flat_map(|s| Format::TENSORS.map(|grads| (s, grads)))
        {
            for rounding in [Rounding::Nearest, SEED] {
                let options = Options { params, grads, states, master, rounding, ..Options::default() };
                // Of parameters of 4 bytes there is nothing more to keep.
                let other = params != Format::F32 || master == Master::default();
                if other && options.validate().is_ok() {
                    all.push(options);
                }
            }
        }
    }
    all
}

/// What stands around the rule in the `i`th way to store.
fn with_around(i: usize, stored: Options) -> Options {
    let arounds = arounds();
    let Options { params, grads, states, master, rounding, .. } = stored;
    Options { params, grads, states, master, rounding, ..arounds[i % arounds.len()] }
}

/// For rule `rule` on the CPU: plain, with all that stands around it, and in all ways to store.
fn host_options(rule: usize) -> Vec<Options> {
    let stored = stored().into_iter().enumerate().map(|(i, stored)| with_around(i + rule, stored));
    arounds().into_iter().chain(stored).collect()
}

/// The same on the GPU, where each takes kernels that have to be compiled: of those that are alike one, and of those every other, by turns.
fn device_options(rule: usize) -> Vec<Options> {
    let stored = stored();
    let of_alike = stored.chunks(ALIKE).enumerate().skip(rule % 2).step_by(2);
    let ways = of_alike.map(|(i, of)| with_around(i + rule, of[(i / 2 + rule) % of.len()]));
    arounds().into_iter().chain(ways).collect()
}

/// A field of the options that no run has would be one that nobody knows to be resumed.
#[test]
fn every_option_is_in_a_resumed_run() {
    let fields = |options: &Options| match serde_json::to_value(options).unwrap() {
        serde_json::Value::Object(fields) => fields,
        other => panic!("{other}"),
    };
    let plain = fields(&Options::default());
    // Two rules in a row have all turns of the second.
    for all in [host_options(0), device_options(0), device_options(1)] {
        for (name, value) in &plain {
            assert!(all.iter().any(|options| fields(options)[name] != *value), "{name} is always {value}");
            assert!(all.iter().any(|options| fields(options)[name] == *value), "{name} is never {value}");
        }
        let all = || all.iter();
        for format in Format::ALL {
            let used = |o: &Options| [o.params, o.grads, o.states].contains(&format);
            assert!(all().any(used), "{format:?}");
        }
        assert!(
            Master::ALL.iter().all(|master| all().any(|o| o.master == *master && o.params == Format::Bf16))
        );
    }
}

/// Says where the process that begins puts its files, and that this is it.
const BEGINS: &str = "WGPU_OPTIM_TEST_BEGINS";

/// One of two processes that go through the same cases: one begins each run, the other goes on from what that has saved.
struct Process {
    directory: PathBuf,
    cases: usize,
    /// The one that begins, for the one that goes on.
    begins: Option<(Child, Lines<BufReader<ChildStdout>>)>,
    _temporary: Option<Directory>,
}

impl Process {
    /// Of a test, which the other process runs too.
    fn new<F: Fn()>(test: F) -> Self {
        if let Some(directory) = std::env::var_os(BEGINS) {
            return Self { directory: directory.into(), cases: 0, begins: None, _temporary: None };
        }
        let mut again = harness::again(&test);
        let temporary = Directory::new(harness::name(&test).rsplit(':').next().unwrap());
        let mut child = again.env(BEGINS, &temporary.0).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let directory = temporary.0.clone();
        Self { directory, cases: 0, begins: Some((child, lines)), _temporary: Some(temporary) }
    }

    /// Twenty steps in one run, and ten and ten in two processes. `new` begins from parameters.
    fn check<S: Run, R: Rule>(
        &mut self,
        layout: &Layout<R>,
        options: Options,
        context: &str,
        new: impl Fn(&[f32]) -> S,
        whole_saves: bool,
    ) {
        let context = format!("{} {context} {options:?}", R::NAME);
        let len = layout.len() as usize;
        let case = self.cases;
        self.cases += 1;
        let overflows = if options.skips() { &OVERFLOWS[case % OVERFLOWS.len()][..] } else { &[] };
        let grads = gradients(len, options.grads, overflows);
        let divisor = if options.divide { DIVISOR } else { 1.0 };
        let steps = |run: &mut S, steps: Range<usize>| {
            steps.for_each(|t| run.step(&grads[t], Step { divisor, ..Step::from(lr(t)) }));
        };
        let mut random = Random::new(5);
        let mut start: Vec<f32> = (0..len).map(|_| random.value() * 0.1).collect();
        let file = |end: &str| self.directory.join(format!("{case}.{end}"));
        let (path, end) = (file("safetensors"), file("bits"));
        let Some((_, lines)) = &mut self.begins else {
            let mut run = new(&start);
            steps(&mut run, 0..HALF);
            run.save(&path);
            if !whole_saves {
                run = new(&start);
                steps(&mut run, 0..HALF);
            }
            steps(&mut run, HALF..2 * HALF);
            write(&end, &run.bits());
            // Whatever else is in the line.
            println!("\n{case}");
            return;
        };
        let said = lines.map_while(Result::ok).find(|line| line.parse() == Ok(case));
        assert!(said.is_some(), "{context}: the process that begins has ended");
        // Other parameters to begin with; what lies between tensors is not in the file.
        layout.tensors().iter().for_each(|tensor| start[tensor.range()].fill(1.0));
        let mut run = new(&start);
        let loaded = run.load(&path);
        let skipped = overflows.iter().filter(|&&t| t < HALF).count();
        assert_eq!((loaded.steps, loaded.taken), (HALF as u64, (HALF - skipped) as u64), "{context}");
        steps(&mut run, HALF..2 * HALF);
        assert_same(&run.bits(), &read(&end), &context);
        [path, end].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }

    /// Whether there were cases, and the other process has gone through the same.
    fn finish(self) {
        assert!(self.cases > 0);
        if let Some((mut child, lines)) = self.begins {
            lines.for_each(drop);
            assert!(child.wait().unwrap().success());
        }
    }
}

fn write(path: &Path, bits: &Bits) {
    let view = |(name, bits): (&String, &Vec<u32>)| {
        let (dtype, bytes) = (safetensors::Dtype::U32, bytemuck::cast_slice(bits).to_vec());
        (name.clone(), (dtype, vec![bits.len()], bytes))
    };
    let owned: Vec<_> = bits.iter().map(view).collect();
    let views = owned.iter().map(|(name, (dtype, shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn read(path: &Path) -> Bits {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    let words = |bytes: &[u8]| bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect();
    tensors.into_iter().map(|(name, tensor)| (name, words(tensor.data()))).collect()
}

/// All rules and their options, with all that stands around them, in all formats: on the CPU every combination of formats.
#[test]
fn a_run_goes_on_in_another_process_on_the_cpu() {
    fn check<R: Cases + Serialize + DeserializeOwned>(
        process: &mut Process,
        case: (&str, R),
        options: Options,
    ) {
        let layout = odd(case.1);
        process.check(&layout, options, case.0, |start| Host::new(&layout, options, start), false);
    }
    let mut process = Process::new(a_run_goes_on_in_another_process_on_the_cpu);
    let mut rule = 0;
    macro_rules! all {
        ($($rule:ty),*) => { $(
            for case in <$rule as Cases>::cases() {
                check(&mut process, case, Options::default());
            }
            for options in host_options(rule) {
                check(&mut process, <$rule as Cases>::cases().pop().unwrap(), options);
            }
            rule += 1;
        )* };
    }
    for_each_rule!(all);
    assert!(rule > 0);
    process.finish();
}

/// Kernels that are compiled for a run that does not save in between: one of so many.
const WITHOUT_SAVE: usize = 8;

/// On the GPU every rule with every option and every format, whose combinations take turns.
#[test]
fn a_run_goes_on_in_another_process_on_the_gpu() {
    fn check<R: Cases + Serialize + DeserializeOwned>(
        gpu: &Gpu,
        process: &mut Process,
        case: (&str, R),
        options: Options,
    ) {
        let layout = odd(case.1);
        let saves = !process.cases.is_multiple_of(WITHOUT_SAVE);
        process.check(&layout, options, case.0, |start| Session::new(gpu, &layout, options, start), saves);
    }
    let Some(gpu) = harness::test_gpu() else { return };
    let mut process = Process::new(a_run_goes_on_in_another_process_on_the_gpu);
    let mut rule = 0;
    macro_rules! all {
        ($($rule:ty),*) => { $(
            for case in <$rule as Cases>::cases() {
                check(&gpu, &mut process, case, Options::default());
            }
            for options in device_options(rule) {
                check(&gpu, &mut process, <$rule as Cases>::cases().pop().unwrap(), options);
            }
            rule += 1;
        )* };
    }
    for_each_rule!(all);
    assert!(rule > 0);
    process.finish();
}

/// Bytes that are bound at once, so that there are many chunks.
const CHUNK: u64 = 1 << 16;

/// Tensors in more than one chunk and small ones, in this order or from the last to the first; each at the same remainder by 4, of which blocks are a function.
fn many<R: Rule>(rule: R, backwards: bool) -> Layout<R> {
    let mut tensors: Vec<(usize, u64)> =
        [40_001, 9_000, 3, 33, 12_000, 1, 700].into_iter().chain(1..20).enumerate().collect();
    if backwards {
        tensors.reverse();
    }
    let mut groups = ["first", "second"].map(|name| Group::new(name, rule));
    let mut end = 0u64;
    for (i, len) in tensors {
        let offset = end.next_multiple_of(4) + i as u64 % 4;
        end = offset + len;
        groups[i % 2] = groups[i % 2].clone().tensor_at(format!("t{i}"), [len], offset);
    }
    let [first, second] = groups;
    Layout::new([first.lr_factor(0.5), second]).unwrap()
}

/// State in many buffers, some of it in f32 and some not, goes on where tensors are declared in another order and lie elsewhere. Rules that take norms add up their squares in the order of the tiles.
#[test]
fn chunks_go_on_in_another_order() {
    fn test<R: Cases + Serialize + DeserializeOwned>(gpu: &Gpu, options: Options, path: &Path) {
        let rule = R::cases().pop().unwrap().1;
        let layouts = [many(rule, false), many(rule, true)];
        // Of each tensor by its name.
        let fill = |layout: &Layout<R>, seed: u64, format: Format| {
            let mut flat = vec![0.0; layout.len() as usize];
            for tensor in layout.tensors() {
                let mut random = Random::new(seed << 32 | tensor.name[1..].parse::<u64>().unwrap());
                let value = |x: &mut f32| *x = format.decode(format.encode(random.value() * 0.1));
                flat[tensor.range()].iter_mut().for_each(value);
            }
            flat
        };
        let steps = |run: &mut Session<'_, R>, layout: &Layout<R>, steps: Range<usize>| {
            for t in steps {
                let mut grads = fill(layout, 1 + t as u64, options.grads);
                if OVERFLOWS[1].contains(&t) {
                    grads[layout.tensor("t2").unwrap().range()].fill(f32::NAN);
                }
                run.step(&grads, lr(t).into());
            }
        };
        let [here, there] = &layouts;
        let mut whole = Session::new(gpu, here, options, &fill(here, 0, options.params));
        steps(&mut whole, here, 0..HALF);
        whole.save(path);
        let mut moved = Session::new(gpu, there, options, &vec![1.0; there.len() as usize]);
        moved.load(path);
        steps(&mut whole, here, HALF..2 * HALF);
        steps(&mut moved, there, HALF..2 * HALF);
        let chunks = whole.optimizer.state("ema", "t0").unwrap();
        assert!(chunks.len() > 2, "{} chunks", chunks.len());
        let [want, got] = [&mut whole, &mut moved].map(|run| run.engine().counters().unwrap());
        assert_eq!(got, want, "{}", R::NAME);
        let numbers = |run: &Session<'_, R>, name: &str| match name {
            "param" => harness::param_codes(gpu, &run.optimizer, &run.params, 0),
            slot => harness::slot(gpu, &run.optimizer, slot).unwrap_or_default(),
        };
        for name in names::<R>().chain(["param"]) {
            let [want, got] = [&whole, &moved].map(|run| numbers(run, name));
            assert_eq!(got.is_empty(), want.is_empty(), "{} {name}", R::NAME);
            for tensor in here.tensors().iter().filter(|_| !want.is_empty()) {
                let other = there.tensor(&tensor.name).unwrap();
                let context = || format!("{} {name}/{} {options:?}", R::NAME, tensor.name);
                assert!(got[other.range()] == want[tensor.range()], "{}", context());
            }
        }
    }
    let Some(gpu) = harness::test_gpu_with(|limits| limits.max_storage_buffer_binding_size = CHUNK) else {
        return;
    };
    let directory = Directory::new("chunks-elsewhere");
    let path = directory.file("run.safetensors");
    let both = Options { ema: Some(Ema { decay: 0.5, debias: true }), rounding: SEED, ..Options::default() };
    let ways = [
        Options {
            params: Format::Bf16,
            master: Master::Remainder,
            states: Format::Q8,
            f32_states_below: 16,
            loss_scale: Some(LossScale { growth_interval: 3, ..LossScale::default() }),
            ..both
        },
        Options {
            states: Format::Bf16,
            f32_states_below: 1_000,
            skip_nonfinite: true,
            clip: Some(Clip::Value(0.01)),
            ..both
        },
    ];
    let mut rule = 0;
    macro_rules! all {
        ($($rule:ty),*) => { $(
            if <$rule>::RATIO.is_none() {
                test::<$rule>(&gpu, ways[rule % 2], &path);
                rule += 1;
            }
        )* };
    }
    for_each_rule!(all);
    assert!(rule > 2);
}

/// State in host memory for a GPU: saved, loaded into another one, and gone on with; and a file of the GPU's own.
#[test]
fn a_resumed_run_is_the_run_offloaded() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("resume-offload");
    let layout = odd(wgpu_optim::NAdam::default());
    let len = layout.len() as usize;
    let start: Vec<f32> = (0..len).map(|i| i as f32 * 0.01).collect();
    type Engine = Offload<wgpu_optim::NAdam>;
    for (nth, options) in arounds().into_iter().enumerate() {
        let options = Options { zero_gradients: false, ..options };
        let grads = gradients(len, Format::F32, if options.skips() { &OVERFLOWS[0] } else { &[] });
        let new = |start: &[f32]| {
            let offload = Offload::new(&gpu.device, layout.clone(), options, start.to_vec()).unwrap();
            (offload, gpu.upload(start), gpu.buffer(layout.buffer_size()))
        };
        let run = |(offload, p, g): &mut (Engine, wgpu::Buffer, wgpu::Buffer), t: usize| {
            gpu.write(g, 0, &grads[t]);
            crate::offload::step(&gpu, offload, p, g, lr(t))
        };
        let save = |offload: &mut Engine, name: &str| {
            let path = directory.file(&format!("{name}-{nth}.safetensors"));
            let mut engine = checkpoint::Cpu::offloaded(offload).unwrap();
            checkpoint::save(&mut engine, &path, &Save::default(), &mut quiet).unwrap();
            path
        };
        let load = |(offload, p, _): &mut (Engine, wgpu::Buffer, wgpu::Buffer), path: &Path| {
            let mut engine = checkpoint::Cpu::offloaded(offload).unwrap();
            checkpoint::load(&mut engine, path, &Load::default(), &mut quiet).unwrap();
            offload.upload(&gpu.queue, p).unwrap();
        };
        // All that there is, so files are compared.
        let same = |a: &Path, b: &Path| assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
        let mut whole = new(&start);
        for t in 0..HALF {
            run(&mut whole, t);
        }
        let half = save(&mut whole.0, "half");
        let mut second = new(&vec![7.0; len]);
        load(&mut second, &half);
        same(&save(&mut second.0, "again"), &half);
        for t in HALF..2 * HALF {
            assert_eq!(run(&mut second, t), run(&mut whole, t), "{options:?}, step {t}");
        }
        same(&save(&mut second.0, "second"), &save(&mut whole.0, "whole"));
        // What the device has is what the host has, but for what is nobody's.
        let device = gpu.read(&second.1, 0, len);
        for tensor in layout.tensors() {
            assert_eq!(device[tensor.range()], whole.0.params()[tensor.range()], "{}", tensor.name);
        }
        assert!(
            (0..len).any(|i| device[i] == 7.0 && !layout.tensors().iter().any(|t| t.range().contains(&i)))
        );

        // The GPU's run goes on here as it does on the CPU alone.
        let mut session = Session::new(&gpu, &layout, options, &start);
        grads[..HALF].iter().enumerate().for_each(|(t, g)| session.step(g, lr(t).into()));
        let path = directory.file(&format!("gpu-{nth}.safetensors"));
        session.save(&path);
        let mut offloaded = new(&vec![7.0; len]);
        load(&mut offloaded, &path);
        let mut alone = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        let mut params = vec![7.0; len];
        let mut engine = checkpoint::Cpu::new(&mut alone).parameters(&mut params);
        checkpoint::load(&mut engine, &path, &Load::default(), &mut quiet).unwrap();
        for (t, grads) in grads.iter().enumerate().skip(HALF) {
            let want = alone.step(cpu::Tensors::flat(&mut params, grads), lr(t)).unwrap();
            assert_eq!(run(&mut offloaded, t), want, "{options:?}, step {t}");
        }
        let want = directory.file(&format!("alone-{nth}.safetensors"));
        let mut engine = checkpoint::Cpu::new(&mut alone).parameters(&mut params);
        checkpoint::save(&mut engine, &want, &Save::default(), &mut quiet).unwrap();
        same(&save(&mut offloaded.0, "offloaded"), &want);
    }
}
