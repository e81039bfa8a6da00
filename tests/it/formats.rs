//! Storage formats on the GPU: the same bits as on the CPU.

use crate::common::{Cases, Random, assert_within_budget, lr, single};
use harness::Gpu;
use wgpu_optim::accumulate::Accumulator;
use wgpu_optim::check::{Checker, Snapshot};
use wgpu_optim::kernel::format_source;
use wgpu_optim::{
    AdamW, Bound, Error, Format, Group, Lamb, Layout, Master, Optimizer, Options, Rounding, Rule, Sgd, Step,
    Tensors, View, for_each_rule,
};

/// Runs `body`, a function of `code: vec4<u32>` and `random: vec4<u32>` that returns as many words as `input` has, four at a time.
pub fn map(gpu: &Gpu, format: Format, body: &str, input: &[u32], random: &[u32]) -> Vec<u32> {
    let text = format!(
        "{}
@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> random: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<u32>>;
fn body(x: vec4<u32>, random: vec4<u32>) -> vec4<u32> {{ {body} }}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    if id.x < arrayLength(&input) {{ output[id.x] = body(input[id.x], random[id.x]); }}
}}",
        format_source(format)
    );
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let upload = |words: &[u32]| gpu.upload(bytemuck::cast_slice(words));
    let buffers = [upload(input), upload(random), gpu.buffer(input.len() as u64 * 4)];
    let entries: Vec<_> = (0..)
        .zip(&buffers)
        .map(|(binding, b)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() })
        .collect();
    let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = gpu.encoder();
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups((input.len() as u32 / 4).div_ceil(64), 1, 1);
    }
    gpu.run(encoder);
    gpu.read_bits(&buffers[2], 0, input.len())
}

const HALVES: [Format; 2] = [Format::F16, Format::Bf16];

fn assert_same(got: &[u32], want: impl Fn(usize) -> u32, context: &str) {
    for (i, &got) in got.iter().enumerate() {
        let want = want(i);
        assert_eq!(got, want, "{context}: word {i} is {got:#x}, on the CPU {want:#x}");
    }
}

#[test]
fn every_code_is_decoded_as_on_the_cpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let codes: Vec<u32> = (0..1 << 16).collect();
    for format in HALVES {
        let body = format!("return bitcast<vec4<u32>>(decode_{}(packed(x)));", format.name());
        let got = map(&gpu, format, &body, &codes, &codes);
        assert_same(&got, |i| format.decode(codes[i]).to_bits(), &format!("{format:?}"));
    }
}

/// Every exponent, sign and leading digit, with the lower digits around every tie, and random ones for rounding at random.
#[test]
fn every_number_is_encoded_as_on_the_cpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut random = Random::new(3);
    for format in HALVES {
        for low in
            [0, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff, random.bits() as u32 & 0xffff]
        {
            let bits: Vec<u32> = (0..1 << 16).map(|high: u32| high << 16 | low).collect();
            let draws: Vec<u32> = bits.iter().map(|_| random.bits() as u32).collect();
            let context = format!("{format:?}, lower half {low:#x}");
            let name = format.name();
            let body = format!("return unpacked(encode_{name}(bitcast<vec4<f32>>(x)));");
            let got = map(&gpu, format, &body, &bits, &draws);
            assert_same(&got, |i| format.encode(f32::from_bits(bits[i])), &context);
            let body = format!("return unpacked(encode_{name}_stochastic(bitcast<vec4<f32>>(x), random));");
            let got = map(&gpu, format, &body, &bits, &draws);
            let want = |i: usize| format.encode_stochastic(f32::from_bits(bits[i]), draws[i]);
            assert_same(&got, want, &format!("{context}, at random"));
        }
    }
}

/// A run in one buffer of parameters and one of gradients, stored as the options say.
pub struct Stored<'a, R> {
    gpu: &'a Gpu,
    pub optimizer: Optimizer<R>,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl<'a, R: Rule> Stored<'a, R> {
    /// `each`: as tensors of their own, and not as flat buffers.
    pub fn new(gpu: &'a Gpu, layout: Layout<R>, options: Options, params: &[f32], each: bool) -> Self {
        let mut optimizer = Optimizer::with_options(&gpu.device, layout, options).unwrap();
        let p = gpu.upload_as(options.params, params);
        let g = gpu.upload_as(options.grads, &vec![0.0; params.len()]);
        let layout = optimizer.layout().clone();
        let bound = if each {
            let tensors = layout.tensors().iter().map(|t| {
                let view = |buffer, format: Format| View::new(buffer, t.offset * format.bytes());
                (t.name.as_str(), view(&p, options.params), view(&g, options.grads))
            });
            optimizer.bind(&Tensors::each(tensors)).unwrap()
        } else {
            optimizer.bind(&Tensors::flat(&p, &g)).unwrap()
        };
        Self { gpu, optimizer, params: p, grads: g, bound }
    }

    pub fn step(&mut self, grads: &[f32], step: impl Into<Step>) {
        self.gpu.write_as(self.optimizer.options().grads, &self.grads, grads);
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, step).unwrap();
        self.gpu.run(encoder);
    }

    pub fn codes(&self) -> Vec<u32> {
        harness::param_codes(self.gpu, &self.optimizer, &self.params, 0)
    }

    pub fn slot(&self, slot: &str) -> Vec<u32> {
        harness::slot(self.gpu, &self.optimizer, slot).unwrap()
    }

    pub fn snapshot(&self) -> Snapshot {
        harness::snapshot(self.gpu, &self.optimizer, &self.params, 0)
    }

    fn has(&self, slot: &str) -> bool {
        harness::slot(self.gpu, &self.optimizer, slot).is_some()
    }
}

/// Tensors of odd lengths in two groups, and gaps.
pub fn odd<R: Rule>(rule: R) -> Layout<R> {
    let first = Group::new("first", rule).tensor_at("a", [301], 0).tensor_at("c", [1_030], 310);
    let second =
        Group::new("second", rule).lr_factor(0.5).tensor_at("b", [7], 302).tensor_at("d", [5], 1_342);
    Layout::new([first, second]).unwrap()
}

pub const SEED: Rounding = Rounding::Stochastic { seed: 7 };

/// Ways to store: every format in every place, and every way to keep more of the parameters.
pub fn ways() -> Vec<Options> {
    use Format::{Bf16, F16, F32, Q8};
    let ways = [
        (F32, Bf16, F32, Master::F32, Rounding::Nearest),
        (F32, F32, Bf16, Master::F32, Rounding::Nearest),
        (F32, F16, Bf16, Master::F32, SEED),
        (Bf16, Bf16, F32, Master::F32, Rounding::Nearest),
        (F16, F16, F32, Master::F32, SEED),
        (Bf16, F32, Bf16, Master::Remainder, SEED),
        (Bf16, F16, F32, Master::Remainder, Rounding::Nearest),
        (Bf16, Bf16, Bf16, Master::None, SEED),
        (F16, Bf16, F32, Master::None, SEED),
        (Bf16, F32, F32, Master::None, Rounding::Nearest),
        (F16, F32, Bf16, Master::None, Rounding::Nearest),
        (F32, F32, Q8, Master::F32, Rounding::Nearest),
        (F32, Bf16, Q8, Master::F32, SEED),
        (Bf16, F16, Q8, Master::Remainder, Rounding::Nearest),
        (Bf16, Bf16, Q8, Master::None, SEED),
        (F16, F32, Q8, Master::F32, Rounding::Nearest),
    ];
    let options = |(params, grads, states, master, rounding)| Options {
        params,
        grads,
        states,
        master,
        rounding,
        ..Options::default()
    };
    ways.into_iter().map(options).collect()
}

/// Each step lies within the rule's budget and the rounding of what is stored, and what the caller gets is the nearest of what is kept.
fn check<R: Cases>(gpu: &Gpu, options: Options, each: bool) {
    let (name, rule) = R::cases()[0];
    let layout = odd(rule);
    let len = layout.len() as usize;
    let Options { params, grads, states, master, rounding, .. } = options;
    let context =
        format!("{} {name}, {params:?} {grads:?} {states:?} {master:?} {rounding:?}, each: {each}", R::NAME);
    let mut random = Random::new(61);
    // Within the range of f16, and at places on both sides of its normal numbers.
    let mut values = |format: Format| -> Vec<f32> {
        (0..len).map(|_| format.decode(format.encode(random.value() * 0.1))).collect()
    };
    let start = values(params);
    let mut run = Stored::new(gpu, layout.clone(), options, &start, each);
    let kept = run.has("master") || run.has("remainder");
    let mut checker = Checker::new(layout.clone()).stored(options);
    let mut before = run.snapshot();
    // There is none before the first step.
    before.params.clone_from(&start);
    for t in 0..3 {
        let g = values(grads);
        run.step(&g, lr(t));
        let after = run.snapshot();
        let deviation = checker.step(&before, &g, lr(t), &after).unwrap();
        assert_within_budget::<R>(&deviation, &format!("{context}, step {}", t + 1));
        if kept {
            let codes = run.codes();
            for i in layout.tensors().iter().flat_map(|t| t.range()) {
                let x = after.params[i];
                let split = (x.to_bits() + 0x8000) >> 16;
                let want = if master == Master::Remainder { split } else { params.encode(x) };
                assert_eq!(codes[i], want, "{context}: parameter {i} of {x:e}");
            }
        }
        before = after;
    }
    let moved = |tensor: &wgpu_optim::Tensor| tensor.range().any(|i| before.params[i] != start[i]);
    assert!(layout.tensors().iter().any(moved), "{context}: nothing has moved");
    // Gaps keep their bits.
    let codes = run.codes();
    for i in [301, 309, 1_340, 1_341] {
        assert_eq!(codes[i], params.encode(start[i]), "{context}: element {i} is no tensor's");
    }
}

/// Views that are no multiples of a vector, buffers that end inside one, and all that stands around the rule: the same bits as where everything is aligned and nothing is
/// near.
#[test]
fn words_one_by_one_and_everything_around() {
    fn test<R: Cases>(gpu: &Gpu, storage: Options) {
        let layout = || {
            let group = |name: &str, names: [&str; 2], lens: [u64; 2]| {
                let group = Group::new(name, R::cases()[0].1);
                group.tensor(names[0], [lens[0]]).tensor(names[1], [lens[1]])
            };
            Layout::new([group("g", ["a", "b"], [302, 2]), group("h", ["c", "d"], [32, 5])]).unwrap()
        };
        let len = layout().len() as usize;
        let options = Options {
            divide: true,
            clip: Some(wgpu_optim::Clip::Value(0.5)),
            skip_nonfinite: true,
            zero_gradients: true,
            ema: Some(wgpu_optim::Ema { decay: 0.5, debias: false }),
            norms: R::RATIO.is_some(),
            ..storage
        };
        let format = options.params;
        let mut random = Random::new(91);
        let start: Vec<f32> = (0..len).map(|_| format.decode(format.encode(random.value() * 0.1))).collect();
        let grads: Vec<Vec<f32>> = (0..4).map(|_| random.values(len)).collect();
        // Bytes before the parameters and the gradients, whether tensors are bound one by one, and whether steps are skipped.
        let run = |before: [u64; 2], each: bool, skips: bool| {
            let mut optimizer = Optimizer::with_options(&gpu.device, layout(), options).unwrap();
            let side = |format: Format, before: u64| {
                // It ends where the tensors do, inside of a vector.
                let bytes = (len as u64 * format.bytes()).next_multiple_of(4);
                let buffer = gpu.buffer(before + bytes);
                gpu.write(&buffer, 0, &vec![f32::from_bits(0x4dcd_abcd); ((before + bytes) / 4) as usize]);
                buffer
            };
            let (p, g) = (side(options.params, before[0]), side(options.grads, before[1]));
            let write = |buffer: &wgpu::Buffer, format: Format, before: u64, values: &[f32]| {
                gpu.write(buffer, before, bytemuck::cast_slice(&harness::packed(format, values)));
            };
            write(&p, options.params, before[0], &start);
            let tensors = layout();
            let bound = if each {
                let views = tensors.tensors().iter().map(|t| {
                    let at = |format: Format, before| before + t.offset * format.bytes();
                    let (p, g) = (
                        View::new(&p, at(options.params, before[0])),
                        View::new(&g, at(options.grads, before[1])),
                    );
                    (t.name.as_str(), p, g)
                });
                optimizer.bind(&Tensors::each(views)).unwrap()
            } else {
                optimizer.bind(&Tensors::flat(View::new(&p, before[0]), View::new(&g, before[1]))).unwrap()
            };
            for (t, grads) in grads.iter().enumerate() {
                let mut bad = grads.clone();
                bad[303] = f32::INFINITY;
                // The first step too is tried with what is not finite, and commands are dropped.
                for grads in [&bad, grads].into_iter().skip(usize::from(!skips)) {
                    let mut encoder = gpu.encoder();
                    optimizer
                        .step(&gpu.queue, &mut encoder, &bound, Step::from(lr(t)).divided_by(2.0))
                        .unwrap();
                    drop(encoder);
                    write(&g, options.grads, before[1], grads);
                    let mut encoder = gpu.encoder();
                    optimizer
                        .step(&gpu.queue, &mut encoder, &bound, Step::from(lr(t)).divided_by(2.0))
                        .unwrap();
                    gpu.run(encoder);
                    let zeroed =
                        gpu.read_bits(&g, before[1], (len as u64 * options.grads.bytes() / 4) as usize);
                    assert!(zeroed.iter().all(|&word| word == 0));
                }
            }
            for (buffer, before) in [(&p, before[0]), (&g, before[1])] {
                let outside = gpu.read_bits(buffer, 0, (before / 4) as usize);
                assert!(outside.iter().all(|&word| word == 0x4dcd_abcd), "what lies before is not ours");
            }
            let ema = harness::slot(gpu, &optimizer, "ema").unwrap();
            (
                harness::snapshot(gpu, &optimizer, &p, before[0]),
                harness::param_codes(gpu, &optimizer, &p, before[0]),
                ema,
            )
        };
        let first = run([256, 256], false, false);
        assert!(first.0.params.iter().all(|p| p.is_finite()));
        assert!(first.0.params.iter().zip(&start).any(|(a, b)| a != b));
        let ways =
            [([256, 256], false), ([4, 256], false), ([12, 8], false), ([0, 0], true), ([4, 20], true)];
        for (before, each) in ways {
            assert!(run(before, each, true) == first, "{} {storage:?} {before:?} {each}", R::NAME);
        }
    }
    let Some(gpu) = harness::test_gpu() else { return };
    for options in ways() {
        test::<AdamW>(&gpu, options);
        test::<Lamb>(&gpu, options);
    }
}

/// Of a layer-wise rule the first phase reads what is kept of the parameters, and not the average that is bound beside it.
#[test]
fn layer_wise_rules_measure_the_master() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = || odd(Lamb { weight_decay: 0.1, ..Lamb::default() });
    let len = layout().len() as usize;
    let format = Format::Bf16;
    let start: Vec<f32> =
        Random::new(73).values(len).iter().map(|&x| format.decode(format.encode(x))).collect();
    let ends = [(Format::F32, Master::F32), (format, Master::F32), (format, Master::Remainder)].map(
        |(params, master)| {
            let ema = Some(wgpu_optim::Ema { decay: 0.9, debias: false });
            let mut run = Stored::new(
                &gpu,
                layout(),
                Options { params, master, ema, ..Options::default() },
                &start,
                false,
            );
            let mut random = Random::new(74);
            (0..20).for_each(|t| run.step(&random.values(len), lr(t)));
            (
                layout()
                    .tensors()
                    .iter()
                    .flat_map(|t| run.snapshot().params[t.range()].to_vec())
                    .collect::<Vec<_>>(),
                run.slot("ema"),
            )
        },
    );
    assert!(ends[1] == ends[0] && ends[2] == ends[0]);
}

/// Micro-batches in bf16 add up in f32, exactly where the sum has the digits.
#[test]
fn micro_batches_of_two_bytes_add_up() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    for (sums, grads) in [(Format::F32, Format::Bf16), (Format::Bf16, Format::F16)] {
        let mut accumulator = Accumulator::stored(&gpu.device, &layout, sums, grads).unwrap();
        let (sum, micro) = (gpu.upload_as(sums, &vec![0.0; len]), gpu.upload_as(grads, &vec![0.0; len]));
        let bound = accumulator.bind(&Tensors::flat(&sum, &micro)).unwrap();
        // Whole numbers, whose sums have no more digits than bf16.
        for scale in [1.0, 2.0, 4.0] {
            gpu.write_as(grads, &micro, &(0..len).map(|i| scale * (i % 32) as f32).collect::<Vec<_>>());
            let mut encoder = gpu.encoder();
            accumulator.add(&gpu.queue, &mut encoder, &bound).unwrap();
            gpu.run(encoder);
        }
        let words = gpu.read_bits(&sum, 0, (sum.size() / 4) as usize);
        let want: Vec<f32> = (0..len).map(|i| 7.0 * (i % 32) as f32).collect();
        let owned = |i: usize| layout.tensors().iter().any(|t| t.range().contains(&i));
        let want: Vec<f32> = want.iter().enumerate().map(|(i, &x)| if owned(i) { x } else { 0.0 }).collect();
        assert!(words.starts_with(&harness::packed(sums, &want)), "{sums:?} {grads:?}");
    }
}

/// Zeros that the caller writes are zeros, whatever remains of what was there.
#[test]
fn a_remainder_of_zero_is_none() {
    let Some(gpu) = harness::test_gpu() else { return };
    let options = Options { params: Format::Bf16, master: Master::Remainder, ..Options::default() };
    let mut run = Stored::new(&gpu, single(Sgd::default(), 4_096), options, &vec![1.0; 4_096], false);
    run.step(&Random::new(75).values(4_096), 1e-3);
    gpu.write_as(Format::Bf16, &run.params, &vec![0.0; 4_096]);
    run.step(&vec![-1.0; 4_096], 1.0);
    assert!(run.snapshot().params.iter().all(|p| (p - 1.0).abs() < 1e-30));
}

macro_rules! in_every_way {
    ($($rule:ty),*) => {
        $({
            let Some(gpu) = harness::test_gpu() else { return };
            for (i, options) in ways().into_iter().enumerate() {
                check::<$rule>(&gpu, options, i % 3 == 1);
            }
        })*
    };
}

#[test]
fn every_rule_in_every_format() {
    for_each_rule!(in_every_way);
}

/// A bf16 and its remainder, and an f32 beside what is stored, are f32 parameters: bit for bit after a thousand steps.
#[test]
fn a_master_is_exact() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW { weight_decay: 0.1, ..AdamW::default() });
    let len = layout.len() as usize;
    let start: Vec<f32> =
        Random::new(71).values(len).iter().map(|&x| Format::Bf16.decode(Format::Bf16.encode(x))).collect();
    let ends = [(Format::F32, Master::F32), (Format::Bf16, Master::Remainder), (Format::Bf16, Master::F32)]
        .map(|(params, master)| {
            let options = Options { params, master, ..Options::default() };
            let mut run = Stored::new(&gpu, layout.clone(), options, &start, false);
            let mut random = Random::new(72);
            for t in 0..1_000 {
                run.step(&random.values(len), 1e-3 / (1.0 + t as f64 / 100.0));
            }
            run.snapshot()
        });
    for end in &ends[1..] {
        for i in layout.tensors().iter().flat_map(|t| t.range()) {
            assert_eq!(ends[0].params[i].to_bits(), end.params[i].to_bits(), "element {i}");
        }
        assert_eq!(ends[0].state, end.state);
    }
}

/// Random rounding is of the element and the step: neither chunks nor buffers, nor steps that were skipped, make a difference.
#[test]
fn stochastic_rounding_does_not_know_of_buffers() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let (Some(roomy), Some(cramped)) = (harness::test_gpu(), harness::test_gpu_with(limit)) else { return };
    let layout = || {
        let group = Group::new("g", AdamW::default());
        Layout::aligned([group.tensor("a", [40_001]).tensor("b", [3]).tensor("c", [333])]).unwrap()
    };
    let len = layout().len() as usize;
    let start = vec![1.0; len];
    let options = Options {
        params: Format::Bf16,
        grads: Format::F16,
        states: Format::Bf16,
        master: Master::None,
        rounding: SEED,
        skip_nonfinite: true,
        ..Options::default()
    };
    let run = |gpu: &Gpu, each: bool, options: Options, skipped: &[usize]| {
        let mut run = Stored::new(gpu, layout(), options, &start, each);
        let mut random = Random::new(81);
        for t in 0..4 {
            let mut grads = random.values(len);
            grads.iter_mut().for_each(|g| *g *= 1e-2);
            if skipped.contains(&t) {
                let mut bad = grads.clone();
                bad[40_004] = f32::NAN;
                run.step(&bad, lr(t));
            }
            run.step(&grads, lr(t));
        }
        (run.codes(), run.slot("exp_avg"), run.slot("exp_avg_sq"))
    };
    let first = run(&roomy, false, options, &[]);
    assert!(run(&roomy, true, options, &[]) == first, "buffers of single tensors");
    assert!(run(&cramped, false, options, &[]) == first, "chunks");
    assert!(run(&roomy, false, options, &[0, 2]) == first, "skipped steps");
    let other = Options { rounding: Rounding::Stochastic { seed: 8 }, ..options };
    assert!(run(&roomy, false, other, &[]) != first, "another seed");
}

/// And neither does the layout: a tensor's numbers are drawn by its name and the place in it, wherever it lies, whatever is before it and whichever group it is in.
#[test]
fn stochastic_rounding_does_not_know_of_layouts() {
    let Some(gpu) = harness::test_gpu() else { return };
    let lens = [("a", 2_001), ("b", 3), ("c", 333), ("d", 1), ("e", 2), ("f", 70_000)];
    let adamw = AdamW::default();
    let of = |names: &str, group: &str| {
        let tensors = names.chars().map(|name| lens[name as usize - 'a' as usize]);
        tensors.fold(Group::new(group, adamw), |group, (name, len)| group.tensor(name, [len]))
    };
    let layouts = [
        Layout::new([of("abcdef", "g")]),
        Layout::aligned([of("abcdef", "g")]),
        Layout::new([of("fd", "g"), of("ecba", "h")]),
        // Each at another lane of its vector.
        Layout::new([Group::new("g", adamw)
            .tensor_at("d", [1], 2)
            .tensor_at("a", [2_001], 3)
            .tensor_at("f", [70_000], 2_105)
            .tensor_at("e", [2], 72_106)
            .tensor_at("c", [333], 72_109)
            .tensor_at("b", [3], 72_443)]),
    ];
    let options = Options {
        params: Format::Bf16,
        states: Format::Bf16,
        master: Master::None,
        rounding: SEED,
        ..Options::default()
    };
    let ends = layouts.map(|layout| {
        let layout = layout.unwrap();
        let len = layout.len() as usize;
        let mut run = Stored::new(&gpu, layout.clone(), options, &vec![1.0; len], false);
        for t in 0..3 {
            let mut grads = vec![0.0; len];
            for (name, len) in lens {
                let values = Random::new(40 + t + 10 * len).values(len as usize);
                grads[layout.tensor(name).unwrap().range()].copy_from_slice(&values);
            }
            run.step(&grads, 1e-3);
        }
        let all = [run.codes(), run.slot("exp_avg"), run.slot("exp_avg_sq")];
        lens.map(|(name, _)| all.each_ref().map(|all| all[layout.tensor(name).unwrap().range()].to_vec()))
    });
    for (nth, end) in ends.iter().enumerate().skip(1) {
        for (tensor, (got, want)) in lens.iter().zip(end.iter().zip(&ends[0])) {
            assert!(got == want, "layout {nth}, tensor {}", tensor.0);
        }
    }
    assert_ne!(ends[0][0][0][..300], ends[0][5][0][..300], "two tensors draw the same");
}

/// 10⁵ draws a value: their mean is the value within three standard errors, and neighbours and steps know nothing of each other.
#[test]
fn stochastic_rounding_is_unbiased_and_independent() {
    let Some(gpu) = harness::test_gpu() else { return };
    const DRAWS: usize = 100_000;
    for params in [Format::Bf16, Format::F16] {
        for value in [1.0 + 1.0 / 1_300.0, -3.1e-3, 0.7, 5e-6, 1e3] {
            let options = Options { params, master: Master::None, rounding: SEED, ..Options::default() };
            let low = params.decode(params.encode(value * (1.0 - 1e-9)));
            // From a stored number by a gradient to the value: p − 1 · (p − value), exactly but for one rounding of f32.
            let mut run =
                Stored::new(&gpu, single(Sgd::default(), DRAWS as u64), options, &vec![low; DRAWS], false);
            let mut ups = Vec::new();
            let target = f64::from(low - (low - value));
            for _ in 0..2 {
                gpu.write_as(params, &run.params, &vec![low; DRAWS]);
                run.step(&vec![low - value; DRAWS], 1.0);
                let got: Vec<f64> = run.snapshot().params.into_iter().map(f64::from).collect();
                let spacing = params.spacing(target);
                assert!(
                    got.iter().all(|x| (x - target).abs() < spacing),
                    "{params:?} {value:e}: no neighbour"
                );
                let mean = got.iter().sum::<f64>() / DRAWS as f64;
                let variance = got.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / DRAWS as f64;
                let error = (variance / DRAWS as f64).sqrt();
                assert!(
                    (mean - target).abs() <= 3.0 * error + 1e-9 * target.abs(),
                    "{params:?}: mean {mean:e} of {target:e}, standard error {error:e}"
                );
                ups.push(got.iter().map(|x| *x > target).collect::<Vec<_>>());
            }
            let pairs = |pairs: &mut dyn Iterator<Item = (bool, bool)>| {
                let mut table = [[0f64; 2]; 2];
                pairs.for_each(|(a, b)| table[usize::from(a)][usize::from(b)] += 1.0);
                table
            };
            let neighbours =
                |apart: usize| pairs(&mut ups[0].iter().copied().zip(ups[0][apart..].iter().copied()));
            let tables = [
                ("next", neighbours(1)),
                ("of the next vector", neighbours(4)),
                ("of the next workgroup", neighbours(1_024)),
                ("of the next step", pairs(&mut ups[0].iter().copied().zip(ups[1].iter().copied()))),
            ];
            for (what, table) in tables {
                let chi_square = chi_square(table);
                // One degree of freedom: 10.83 is exceeded once in a thousand, and there are forty of these.
                assert!(
                    chi_square < 15.0,
                    "{params:?} {value:e}: the element {what} depends on it, {chi_square}"
                );
            }
        }
    }
}

/// Pearson's statistic of a table of two by two, of independence; 0 where there is nothing to compare.
pub fn chi_square(table: [[f64; 2]; 2]) -> f64 {
    let total: f64 = table.iter().flatten().sum();
    let of = |row: usize, column: usize| {
        let rows: f64 = table[row].iter().sum();
        let expected = rows * (table[0][column] + table[1][column]) / total;
        if expected == 0.0 { 0.0 } else { (table[row][column] - expected).powi(2) / expected }
    };
    of(0, 0) + of(0, 1) + of(1, 0) + of(1, 1)
}

#[test]
fn formats_that_do_not_go_there() {
    let Some(gpu) = harness::test_gpu() else { return };
    let refused = |options: Options| {
        Optimizer::with_options(&gpu.device, single(AdamW::default(), 8), options).unwrap_err()
    };
    let states = Options { states: Format::F16, ..Options::default() };
    assert!(matches!(refused(states), Error::Format { field: "states", format: "f16", .. }));
    let remainder = Options { params: Format::F16, master: Master::Remainder, ..Options::default() };
    assert!(matches!(refused(remainder), Error::Format { field: "params", format: "f16", .. }));
    // A tensor that shares a word with the one before it, in a buffer of its own.
    let group = Group::new("g", AdamW::default()).tensor("a", [3]).tensor("b", [4]);
    let options = Options { grads: Format::Bf16, ..Options::default() };
    let mut optimizer = Optimizer::with_options(&gpu.device, Layout::new([group]).unwrap(), options).unwrap();
    let buffer = || gpu.buffer(64);
    let (pa, ga, pb, gb) = (buffer(), buffer(), buffer(), buffer());
    let error = optimizer.bind(&Tensors::each([("a", &pa, &ga), ("b", &pb, &gb)])).unwrap_err();
    assert_eq!(error, Error::OddElement { what: "gradients of tensor \"b\"".into(), offset: 3 });
    // And in flat buffers it shares them with nobody else.
    assert!(optimizer.bind(&Tensors::flat(&pa, &ga)).is_ok());
}
