//! State as numbers, and state that goes to an optimizer for another layout.

use crate::common::{Random, lr};
use cpu_harness::CpuRun;
use harness::{Gpu, GpuRun};
use wgpu_optim::{
    Adam, AdamW, BindError, Bound, Ema, Error, Format, Group, Lamb, Layout, Master, NAdam, Optimizer,
    Options, Sgd, StateError, StateMismatch, View, cpu,
};

fn gpu_numbers(gpu: &Gpu, optimizer: &Optimizer, slot: &str, tensor: &str) -> Vec<f32> {
    let bytes = optimizer.stored_state(slot, tensor).unwrap().bytes();
    // Behind other bytes, which stay.
    let buffer = gpu.buffer(bytes + 8);
    let mut encoder = gpu.encoder();
    let stored = optimizer.copy_state(&mut encoder, slot, tensor, View::new(&buffer, 8)).unwrap();
    gpu.run(encoder);
    let words = gpu.read_bits(&buffer, 0, (buffer.size() / 4) as usize);
    assert_eq!(words[..2], [0, 0]);
    stored.decode(bytemuck::cast_slice(&words[2..])).unwrap()
}

fn layout() -> Layout {
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    Layout::new([
        Group::new("a", AdamW::default()).tensor("a0", [33]).tensor("a1", [5, 13]),
        Group::new("s", sgd).tensor("s0", [7]),
        Group::new("l", Lamb::default()).tensor("l0", [40]),
    ])
    .unwrap()
}

fn formats() -> Vec<Options> {
    let ema = Some(Ema { decay: 0.9, debias: false });
    let of = |states| Options { states, ema, ..Options::default() };
    let master = Options { params: Format::Bf16, master: Master::F32, ..of(Format::F32) };
    vec![of(Format::F32), of(Format::Bf16), of(Format::Q8), master]
}

/// The parameters of a tensor, which are stored in f32.
fn params(run: &GpuRun<'_>, tensor: &str) -> Vec<f32> {
    run.params()[run.optimizer.layout().tensor(tensor).unwrap().range()].to_vec()
}

#[test]
fn slots_are_read_and_written_as_numbers() {
    let Some(gpu) = harness::test_gpu() else { return };
    let (layout, mut random) = (layout(), Random::new(1));
    let len = layout.len() as usize;
    for options in formats() {
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &random.values(len));
        let mut host = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        run.step(&random.values(len), 1e-3);
        for tensor in layout.tensors() {
            let beside = [("ema", true), ("master", options.params != Format::F32)];
            let beside = beside.into_iter().filter_map(|(slot, kept)| kept.then_some(slot));
            for slot in layout.kept_slots(tensor).chain(beside) {
                let name = tensor.name.as_str();
                let before = gpu_numbers(&gpu, &run.optimizer, slot, name);
                assert_eq!(before.len() as u64, tensor.len, "{slot} of {name}");
                // The numbers go to the other engine and back without loss: they are of the format.
                host.write_state(slot, name, &before).unwrap();
                assert_eq!(host.read_state(slot, name).unwrap(), before, "{slot} of {name}");
                let numbers: Vec<f32> = (0..tensor.len).map(|_| random.value()).collect();
                run.optimizer.write_state(&gpu.queue, slot, name, &numbers).unwrap();
                host.write_state(slot, name, &numbers).unwrap();
            }
        }
        // Once all are written, so that one that strays is found.
        for tensor in layout.tensors() {
            for slot in layout.kept_slots(tensor).chain(["ema"]) {
                let name = tensor.name.as_str();
                let found = gpu_numbers(&gpu, &run.optimizer, slot, name);
                assert_eq!(found, host.read_state(slot, name).unwrap(), "{slot} of {name}");
            }
        }
    }
}

#[test]
fn slots_that_a_tensor_has_not_are_refused() {
    let Some(gpu) = harness::test_gpu() else { return };
    let bf16 = Options { states: Format::Bf16, ..Options::default() };
    let packed = [Group::new("all", AdamW::default()).tensor("a", [3]).tensor("b", [3])];
    let mut odd = Optimizer::with_options(&gpu.device, Layout::packed(packed).unwrap(), bf16).unwrap();
    let error = odd.write_state(&gpu.queue, "exp_avg", "a", &[0.0; 3]).unwrap_err();
    assert_eq!(error, StateError::SharedWord { slot: "exp_avg".into(), tensor: "a".into() });

    let remainder = Options { params: Format::Bf16, master: Master::Remainder, ..Options::default() };
    let mut device = Optimizer::with_options(&gpu.device, layout(), remainder).unwrap();
    let mut host = cpu::Optimizer::with_options(layout(), remainder).unwrap();
    let unknown =
        |slot: &str, tensor: &str| StateError::UnknownSlot { tensor: tensor.into(), slot: slot.into() };
    for (slot, tensor, error) in [
        ("exp_avg", "z", StateError::UnknownTensor { tensor: "z".into() }),
        ("exp_avg", "s0", unknown("exp_avg", "s0")),
        ("ema", "a0", unknown("ema", "a0")),
        ("max_exp_avg_sq", "a0", StateError::SlotNotKept { group: "a".into(), slot: "max_exp_avg_sq" }),
        ("remainder", "a0", StateError::NoNumbers { slot: "remainder", tensor: "a0".into() }),
    ] {
        assert_eq!(device.stored_state(slot, tensor).unwrap_err(), error);
        assert_eq!(host.read_state(slot, tensor).unwrap_err(), error);
        assert_eq!(device.write_state(&gpu.queue, slot, tensor, &[0.0; 33]).unwrap_err(), error);
        assert_eq!(host.write_state(slot, tensor, &[0.0; 33]).unwrap_err(), error);
    }
    let (slot, tensor) = ("exp_avg".into(), "a0".into());
    let length = StateError::Length { slot, tensor, found: 3, expected: 33 };
    assert_eq!(device.write_state(&gpu.queue, "exp_avg", "a0", &[0.0; 3]).unwrap_err(), length);
    assert_eq!(host.write_state("exp_avg", "a0", &[0.0; 3]).unwrap_err(), length);
    let stored = device.stored_state("exp_avg", "a0").unwrap();
    let error = stored.decode(&[0; 7]).unwrap_err();
    assert_eq!(error, StateError::Bytes { found: 7, bound: 132 });

    let small = gpu.buffer(128);
    let uniform = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 256,
        usage: wgpu::BufferUsages::UNIFORM,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.encoder();
    let mut copy = |to: View<'_>| match device.copy_state(&mut encoder, "exp_avg", "a0", to) {
        Err(StateError::Bind(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(copy(View::new(&small, 0)), BindError::OutOfBounds { end: 132, size: 128, .. }));
    assert!(matches!(copy(View::new(&small, u64::MAX - 3)), BindError::OutOfBounds { .. }));
    assert!(matches!(copy(View::new(&small, 2)), BindError::Misaligned { offset: 2, bound: 4, .. }));
    assert!(matches!(copy(View::new(&uniform, 0)), BindError::MissingUsage { usage: "COPY_DST", .. }));
}

/// The layout from before with its tensors in another order, without one of them, and with a group more.
fn other_layout() -> Layout {
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    Layout::new([
        Group::new("fresh", AdamW::default()).tensor("n0", [21]).tensor("n1", [9]),
        Group::new("l", Lamb::default()).tensor("l0", [40]),
        Group::new("rest", AdamW::default()).tensor_at("a1", [5, 13], 200),
        Group::new("s", sgd).tensor("s0", [7]),
    ])
    .unwrap()
}

/// Values of each of the layout's tensors, in the flat space.
fn flat(layout: &Layout, mut of: impl FnMut(&str, usize) -> Vec<f32>) -> Vec<f32> {
    let mut flat = vec![0.0; layout.len() as usize];
    for tensor in layout.tensors() {
        flat[tensor.range()].copy_from_slice(&of(&tensor.name, tensor.len as usize));
    }
    flat
}

/// Numbers that a tensor has in a step, whatever layout it is in.
fn numbers(tensor: &str, step: u64, len: usize) -> Vec<f32> {
    let seed = tensor.bytes().fold(step + 1, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    Random::new(seed).values(len)
}

/// Old tensors go on as if nothing had happened, bit for bit, and new ones as in a new optimizer.
#[test]
fn state_goes_to_another_layout() {
    let Some(gpu) = harness::test_gpu() else { return };
    let (old, new) = (layout(), other_layout());
    let skips = Options { skip_nonfinite: true, ..Options::default() };
    for options in [Options::default(), skips, formats()[0], formats()[1], formats()[2]] {
        let start = flat(&old, |name, len| numbers(name, 0, len));
        let mut run = GpuRun::new(&gpu, old.clone(), options, &start);
        let mut host = CpuRun::new(old.clone(), options, &start);
        let grads_of = |layout: &Layout, t: u64| {
            let mut grads = flat(layout, |name, len| numbers(name, t, len));
            if options.skips() && t == 2 {
                grads[layout.tensor("l0").unwrap().range().start] = f32::NAN;
            }
            grads
        };
        for t in 1..4 {
            let grads = grads_of(&old, t);
            run.step(&grads, lr(t as usize));
            host.step(&grads, lr(t as usize));
        }
        let before = |name: &str| params(&run, name);
        let known = |name: &str| old.tensor(name).is_ok();
        let start = flat(&new, |name, len| if known(name) { before(name) } else { numbers(name, 0, len) });
        let mut next = GpuRun::new(&gpu, new.clone(), options, &start);
        let mut encoder = gpu.encoder();
        next.optimizer.take_over(&gpu.queue, &mut encoder, &run.optimizer).unwrap();
        gpu.run(encoder);
        let mut next_host = CpuRun::new(new.clone(), options, &start);
        next_host.optimizer.take_over(&host.optimizer).unwrap();
        assert_eq!((next.optimizer.steps(), next_host.optimizer.steps()), (3, 3));

        let fresh = new.groups()[0].clone();
        let fresh = Layout::new([fresh]).unwrap();
        let mut alone =
            GpuRun::new(&gpu, fresh.clone(), options, &flat(&fresh, |name, len| numbers(name, 0, len)));
        for t in 4..7 {
            run.step(&grads_of(&old, t), lr(t as usize));
            let grads = grads_of(&new, t);
            next.step(&grads, lr(t as usize));
            next_host.step(&grads, lr(t as usize));
            alone.step(&flat(&fresh, |name, len| numbers(name, t, len)), lr(t as usize));
        }
        for tensor in new.tensors() {
            let name = tensor.name.as_str();
            let found = params(&next, name);
            let expected = if known(name) { params(&run, name) } else { params(&alone, name) };
            assert_eq!(found, expected, "{name} under {options:?}");
            let slots = new.kept_slots(tensor).chain(options.ema.map(|_| "ema"));
            for slot in slots {
                let found = gpu_numbers(&gpu, &next.optimizer, slot, name);
                let other = if known(name) { &run.optimizer } else { &alone.optimizer };
                assert_eq!(found, gpu_numbers(&gpu, other, slot, name), "{slot} of {name}");
                if name != "l0" {
                    // Norms of tensors are added up in another order on the CPU.
                    assert_eq!(found, next_host.state(slot, name), "{slot} of {name}");
                }
            }
        }
    }
}

#[test]
fn state_that_does_not_fit_is_listed_and_nothing_changes() {
    let Some(gpu) = harness::test_gpu() else { return };
    let amsgrad = AdamW { amsgrad: true, ..AdamW::default() };
    let old = Layout::new([
        Group::new("a", AdamW::default()).tensor("a0", [4]).tensor("a1", [8]).tensor("a2", [4]),
        Group::new("n", NAdam::default()).tensor("n0", [4]),
    ])
    .unwrap();
    let new = Layout::new([
        Group::new("a", AdamW::default()).tensor("a0", [2, 2]).tensor("late", [4]),
        Group::new("b", amsgrad).tensor("a1", [8]),
        Group::new("n", Adam::default()).tensor("n0", [4]),
    ])
    .unwrap();
    // Slots are kept for each rule of a layout.
    let kept = vec!["exp_avg", "exp_avg_sq"];
    let all = vec!["exp_avg", "exp_avg_sq", "max_exp_avg_sq"];
    let slots = |tensor: &str| StateMismatch::Slots {
        tensor: tensor.into(),
        found: kept.clone(),
        expected: all.clone(),
    };
    let expected = vec![
        StateMismatch::Shape { tensor: "a0".into(), found: vec![4], expected: vec![2, 2] },
        slots("a0"),
        StateMismatch::Age { tensor: "late".into(), group: "a".into(), steps: 1 },
        slots("a1"),
        StateMismatch::Rule { tensor: "n0".into(), found: "nadam", expected: "adam" },
    ];
    let mut run = GpuRun::new(&gpu, old.clone(), Options::default(), &[1.0; 20]);
    run.step(&[1.0; 20], 0.1);
    let mut host = cpu::Optimizer::new(old.clone()).unwrap();
    host.step(cpu::Tensors::flat(&mut [1.0; 20], &[1.0; 20]), 0.1).unwrap();

    let mut device = Optimizer::new(&gpu.device, new.clone()).unwrap();
    let mut encoder = gpu.encoder();
    let error = device.take_over(&gpu.queue, &mut encoder, &run.optimizer).unwrap_err();
    assert_eq!(error, StateError::Mismatches(expected.clone()));
    gpu.run(encoder);
    assert_eq!(device.steps(), 0);
    assert_eq!(gpu_numbers(&gpu, &device, "exp_avg", "a1"), [0.0; 8]);
    let mut next = cpu::Optimizer::new(new).unwrap();
    assert_eq!(next.take_over(&host).unwrap_err(), StateError::Mismatches(expected));
    assert_eq!((next.steps(), next.read_state("exp_avg", "a1").unwrap()), (0, vec![0.0; 8]));

    // Formats, and another device.
    let eight = Options { states: Format::Q8, ..Options::default() };
    let error = cpu::Optimizer::with_options(old.clone(), eight).unwrap().take_over(&host).unwrap_err();
    let StateError::Mismatches(list) = &error else { panic!("{error}") };
    assert_eq!(list.len(), 4);
    assert!(error.to_string().contains("states of tensor \"a0\": f32, must be q8"), "{error}");
    // wgpu tells devices of one instance apart.
    let adapter = harness::choose(&harness::instance()).unwrap();
    let open = || pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    let [(one, queue), (two, _)] = [open(), open()];
    let mut encoder = one.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let [mut here, there] = [one, two].map(|device| Optimizer::new(&device, old.clone()).unwrap());
    let error = here.take_over(&queue, &mut encoder, &there).unwrap_err();
    assert!(error.to_string().contains("device"), "{error}");
}

/// On the device too a tensor joins a group late if none of the group's scalars depends on the count: steps
/// of a velocity are −0.1 · (1, 1 + 0.9).
#[test]
fn tensors_join_late_where_nothing_is_counted() {
    let Some(gpu) = harness::test_gpu() else { return };
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    let dampened = Sgd { dampening: 0.5, ..sgd };
    let layout = |rule: Sgd, tensors: &[&str]| {
        let group = Group::new("g", rule);
        Layout::packed([tensors.iter().fold(group, |group, name| group.tensor(*name, [4]))]).unwrap()
    };
    for (rule, skips) in [(sgd, false), (sgd, true), (dampened, false)] {
        let options = Options { skip_nonfinite: skips, ..Options::default() };
        let mut old = GpuRun::new(&gpu, layout(rule, &["a"]), options, &[0.0; 4]);
        (0..3).for_each(|_| _ = old.step(&[1.0; 4], 0.1));
        let mut new = GpuRun::new(&gpu, layout(rule, &["late", "a"]), options, &[0.0; 8]);
        let mut encoder = gpu.encoder();
        let taken = new.optimizer.take_over(&gpu.queue, &mut encoder, &old.optimizer);
        gpu.run(encoder);
        if rule == dampened {
            let (tensor, group) = ("late".into(), "g".into());
            let age = StateMismatch::Age { tensor, group, steps: 3 };
            assert_eq!(taken, Err(StateError::Mismatches(vec![age])));
            continue;
        }
        taken.unwrap();
        new.step(&[1.0; 8], 0.1);
        assert_eq!(params(&new, "late"), [-0.1; 4]);
        new.step(&[1.0; 8], 0.1);
        params(&new, "late").iter().for_each(|p| approx::assert_relative_eq!(*p, -0.29, max_relative = 1e-6));
    }
}

/// An optimizer that has taken steps of its own takes over nothing.
#[test]
fn state_is_taken_over_before_the_first_step() {
    let Some(gpu) = harness::test_gpu() else { return };
    let new = || GpuRun::new(&gpu, layout(), Options::default(), &vec![1.0; layout().len() as usize]);
    let (mut run, other) = (new(), new());
    let grads = vec![0.5; layout().len() as usize];
    run.step(&grads, 0.1);
    let before = run.params();
    let mut encoder = gpu.encoder();
    let error = run.optimizer.take_over(&gpu.queue, &mut encoder, &other.optimizer).unwrap_err();
    assert!(error.to_string().contains("steps"), "{error}");
    assert_eq!((run.optimizer.steps(), run.params()), (1, before));

    let mut host = cpu::Optimizer::new(layout()).unwrap();
    let other = host.clone();
    host.step(cpu::Tensors::flat(&mut grads.clone(), &grads), 0.1).unwrap();
    assert_eq!(host.take_over(&other).unwrap_err(), error);
    assert_eq!(host.steps(), 1);
}

/// Optimizers go to other threads, and are shared between them.
#[test]
fn engines_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<Optimizer>();
    check::<Bound>();
    check::<Layout>();
    check::<Group>();
    check::<Options>();
    check::<cpu::Optimizer>();
    check::<cpu::Reference>();
    check::<wgpu_optim::check::Checker>();
    check::<wgpu_optim::offload::Offload>();
    check::<wgpu_optim::accumulate::Accumulator>();
    check::<wgpu_optim::Schedule>();
    check::<wgpu_optim::DynRule>();
    check::<wgpu_optim::AnyRule>();
    check::<wgpu_optim::Report>();
    check::<Error>();
}
