//! The code of docs/javascript.md, run by Node on Dawn, against the CPU engine and the reference in f64.

use harness::{CpuRun, packed};
use optim::bench::layout;
use optim::kernel::{Request, describe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use wgpu_optim::float::ulp;
use wgpu_optim::kernel::Target;
use wgpu_optim::{
    AdamW, AnyRule, Clip, DynRule, Ema, Format, Lamb, Layout, Lion, Master, Options, Rounding, cpu,
};

/// The folder in which npm has installed `webgpu`. `cargo xtask webgpu` sets it, and the driver's variables
/// beside it.
const NPM_VARIABLE: &str = "WGPU_OPTIM_NPM";
const STEPS: usize = 6;
/// A learning rate so large that a step moves a parameter of 2 bytes by several of its units.
const LR: f64 = 0.05;
/// The step with an infinite gradient, where steps may be skipped.
const SKIPPED: usize = 2;
/// Longer than a run takes on any machine.
const TIMEOUT: Duration = Duration::from_secs(120);
/// One element in this many may be rounded the other way: fewer than one f32 in a thousand lies that close to
/// the middle between two stored numbers.
const ROUNDED: usize = 200;

/// A run that JavaScript takes.
struct Case {
    rule: AnyRule,
    elements: u64,
    tensors: u64,
    options: Options,
    target: Target,
}

impl Case {
    fn new(rule: impl Into<AnyRule>, elements: u64, tensors: u64, options: Options) -> Self {
        Self { rule: rule.into(), elements, tensors, options, target: Target::Gpu }
    }

    fn layout(&self) -> Layout {
        layout(&DynRule::from(self.rule), self.elements, self.tensors).unwrap()
    }

    fn start(&self) -> Vec<f32> {
        (0..self.elements).map(|i| (i as f32 * 0.7).sin()).collect()
    }

    /// The gradients of each step. They are exact in every format, so that all sides read the same.
    fn grads(&self) -> Vec<Vec<f32>> {
        let grad = |t: usize, i: u64| ((i as f32 * 1.3 + t as f32 * 0.4).cos() * 64.0).round() / 64.0;
        let mut steps: Vec<Vec<f32>> =
            (0..STEPS).map(|t| (0..self.elements).map(|i| grad(t, i)).collect()).collect();
        if self.options.skip_nonfinite {
            steps[SKIPPED][self.elements as usize / 2] = f32::INFINITY;
        }
        steps
    }

    /// The parameters after all steps, by the code of the page.
    fn in_javascript(&self, npm: &Path, name: &str) -> Vec<f32> {
        let request = Request {
            rule: self.rule,
            elements: self.elements,
            tensors: self.tensors,
            options: self.options,
            target: self.target,
            steps: STEPS as u64,
            lr: LR,
        };
        let described = describe(&request).unwrap();
        let description = &described.description;
        let bytes = |name: &str| description.buffers.iter().find(|b| b.name == name).unwrap().bytes;
        let file = |format: Format, bytes: u64, values: &[f32]| {
            let words = packed(format, values);
            let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            file.resize(bytes as usize, 0);
            file
        };
        let grads = self.grads().into_iter();
        let grads = grads.flat_map(|grads| file(self.options.grads, bytes("g_buffer"), &grads)).collect();
        let json = described.json(&request).to_string().into_bytes();
        let params = file(self.options.params, bytes("p_buffer"), &self.start());
        let [json, params, grads] =
            [("json", json), ("params", params), ("grads", grads)].map(|(kind, bytes): (&str, Vec<u8>)| {
                let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{kind}"));
                std::fs::write(&path, bytes).unwrap();
                path
            });
        let mut node = Command::new("node");
        node.arg(npm.join("step.mjs")).args([&json, &params, &grads]);
        let mut node = node.spawn().expect("node starts");
        let start = Instant::now();
        let status = loop {
            match node.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() < TIMEOUT => std::thread::sleep(Duration::from_millis(5)),
                None => {
                    node.kill().unwrap();
                    panic!("{name}: node has not ended");
                }
            }
        };
        assert!(status.success(), "{name}: {status}");
        let bytes = std::fs::read(params).unwrap();
        let codes = bytes.chunks_exact(self.options.params.bytes() as usize).map(|code| {
            let mut word = [0; 4];
            word[..code.len()].copy_from_slice(code);
            u32::from_le_bytes(word)
        });
        codes.map(|code| self.options.params.decode(code)).take(self.elements as usize).collect()
    }

    /// The parameters by the engine in Rust: in f64 if no option goes beyond the rule.
    fn in_rust(&self) -> Vec<f64> {
        let (start, grads) = (self.start(), self.grads());
        if self.options == Options::default() {
            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let mut params = wide(&start);
            let mut reference = cpu::Reference::new(self.layout()).unwrap();
            grads.iter().for_each(|grads| reference.step(&mut params, &wide(grads), LR).unwrap());
            return params;
        }
        let mut run = CpuRun::new(self.layout(), self.options, &start);
        for grads in &grads {
            run.step(grads, LR);
        }
        run.params().into_iter().map(f64::from).collect()
    }

    /// A step of the rule errs by at most `max_ulps` of the largest term. Later steps do not enlarge the
    /// error in parameters and state, so errors at most add up. The terms are the parameter and its moves.
    /// Each move is as large as the learning rate.
    fn room(&self, start: f32, want: f64) -> f64 {
        let rule = DynRule::from(self.rule);
        let size = f64::from(start.abs()).max(want.abs()) + STEPS as f64 * LR;
        STEPS as f64 * rule.spec().max_ulps.unwrap() * ulp(size)
    }

    /// An error of an f32 that is about to be stored in fewer bytes may round it the other way: a parameter
    /// by one of its units, and a mean in 8 bits by a hundredth of the largest one in its block, which moves
    /// the parameter by less than this part of the learning rate.
    fn rounded_room(&self, start: f32, want: f64) -> f64 {
        let code = if self.options.params == Format::F32 { 0.0 } else { self.options.params.spacing(want) };
        let state = if self.options.states == Format::F32 { 0.0 } else { STEPS as f64 * LR / 32.0 };
        self.room(start, want) + code + state
    }

    fn check(&self, npm: &Path, name: &str) {
        let (got, want, start) = (self.in_javascript(npm, name), self.in_rust(), self.start());
        assert_eq!(got.len(), want.len());
        let mut rounded = 0;
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            let off = (f64::from(got) - want).abs();
            let room = self.rounded_room(start[i], want);
            assert!(
                off <= room,
                "{name}: parameter {i} is {got:e} and not {want:e}: off by {off:e} of {room:e}"
            );
            rounded += usize::from(off > self.room(start[i], want));
        }
        let bound = got.len() / ROUNDED;
        assert!(rounded <= bound, "{name}: {rounded} parameters are rounded otherwise, more than {bound}");
    }
}

/// The code of the page: its one block of JavaScript.
fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/javascript.md");
    let page = std::fs::read_to_string(path).unwrap();
    let blocks: Vec<_> = page.split("```js\n").skip(1).collect();
    let [block] = blocks[..] else { panic!("{} blocks of JavaScript", blocks.len()) };
    block.split_once("\n```").expect("the block ends").0.into()
}

#[test]
fn the_pages_code_takes_the_steps() {
    let Some(npm) = std::env::var_os(NPM_VARIABLE).map(PathBuf::from) else {
        println!("skipped, as {NPM_VARIABLE} is not set: `cargo xtask webgpu` sets it");
        return;
    };
    std::fs::write(npm.join("step.mjs"), page()).unwrap();
    let f32s = Options::default();
    let adamw = AdamW::default();
    let around = Options { clip: Some(Clip::GlobalNorm(1.0)), skip_nonfinite: true, norms: true, ..f32s };
    let averaged =
        Options { ema: Some(Ema { decay: 0.9, debias: true }), clip: Some(Clip::GroupNorm(2.0)), ..f32s };
    let remainder = Options { params: Format::Bf16, grads: Format::Bf16, master: Master::Remainder, ..f32s };
    let q8 = Options { states: Format::Q8, ..f32s };
    let random = Options { rounding: Rounding::Stochastic { seed: 7 }, ..q8 };
    for (name, case) in [
        ("adamw", Case::new(adamw, 1_000, 1, f32s)),
        ("groups", Case::new(adamw, 1_003, 3, f32s)),
        ("software", Case { target: Target::Software, ..Case::new(adamw, 1_003, 3, f32s) }),
        ("lion", Case::new(Lion::default(), 1_003, 3, f32s)),
        ("bf16", Case::new(adamw, 1_003, 3, remainder)),
        ("q8", Case::new(adamw, 5_003, 3, q8)),
        ("random", Case::new(adamw, 5_003, 3, random)),
        ("around", Case::new(adamw, 1_003, 3, around)),
        ("averaged", Case::new(adamw, 1_003, 3, averaged)),
        ("lamb", Case::new(Lamb::default(), 1_003, 3, f32s)),
        ("lamb-around", Case::new(Lamb::default(), 1_003, 3, around)),
    ] {
        case.check(&npm, name);
    }
}
