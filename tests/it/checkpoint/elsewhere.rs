//! Runs that continue in a layout of another order.

use super::*;

/// Bytes that are bound at once, so that there are many chunks.
const CHUNK: u64 = 1 << 16;

/// Tensors in more than one chunk and small ones, in this order or from the last to the first; each at the
/// same remainder by 4, of which blocks are a function.
fn many(rule: &DynRule, backwards: bool) -> Layout {
    let mut tensors: Vec<(usize, u64)> =
        [40_001, 9_000, 3, 33, 12_000, 1, 700].into_iter().chain(1..20).enumerate().collect();
    if backwards {
        tensors.reverse();
    }
    let mut groups = ["first", "second"].map(|name| Group::new(name, rule.clone()));
    let mut end = 0u64;
    for (i, len) in tensors {
        let offset = end.next_multiple_of(4) + i as u64 % 4;
        end = offset + len;
        groups[i % 2] = groups[i % 2].clone().tensor_at(format!("t{i}"), [len], offset);
    }
    let [first, second] = groups;
    Layout::new([first.lr_factor(0.5), second]).unwrap()
}

/// State in many buffers, in f32 and in other formats, continues where tensors are declared in another order
/// and lie elsewhere. Layer-wise rules are left out: they add up squares in the order of the tiles.
#[test]
fn chunks_go_on_in_another_order() {
    fn test(gpu: &Gpu, rule: &DynRule, options: Options, path: &Path) {
        let layouts = [many(rule, false), many(rule, true)];
        // The numbers of a tensor follow from its name.
        let fill = |layout: &Layout, seed: u64, format: Format| {
            let mut flat = vec![0.0; layout.len() as usize];
            for tensor in layout.tensors() {
                let mut random = Random::new(seed << 32 | tensor.name[1..].parse::<u64>().unwrap());
                let value = |x: &mut f32| *x = format.decode(format.encode(random.value() * 0.1));
                flat[tensor.range()].iter_mut().for_each(value);
            }
            flat
        };
        let steps = |run: &mut GpuRun<'_>, layout: &Layout, steps: Range<usize>| {
            for t in steps {
                let mut grads = fill(layout, 1 + t as u64, options.grads);
                if OVERFLOWS[1].contains(&t) {
                    grads[layout.tensor("t2").unwrap().range()].fill(f32::NAN);
                }
                run.take(&grads, lr(t).into());
            }
        };
        let [here, there] = &layouts;
        let mut whole = GpuRun::new(gpu, here.clone(), options, &fill(here, 0, options.params));
        steps(&mut whole, here, 0..HALF);
        whole.save(path);
        let mut moved = GpuRun::new(gpu, there.clone(), options, &vec![1.0; there.len() as usize]);
        moved.load(path);
        steps(&mut whole, here, HALF..2 * HALF);
        steps(&mut moved, there, HALF..2 * HALF);
        let chunks = whole.optimizer.state("ema", "t0").unwrap();
        assert!(chunks.len() > 2, "{} chunks", chunks.len());
        let [want, got] = [&mut whole, &mut moved].map(|run| record(&mut run.engine()));
        assert_eq!(got, want, "{}", rule.name());
        let numbers = |run: &GpuRun<'_>, name: &str| match name {
            "param" => run.codes(),
            slot => harness::slot(gpu, &run.optimizer, slot).unwrap_or_default(),
        };
        for name in names(here).into_iter().chain(["param"]) {
            let [want, got] = [&whole, &moved].map(|run| numbers(run, name));
            assert_eq!(got.is_empty(), want.is_empty(), "{} {name}", rule.name());
            for tensor in here.tensors().iter().filter(|_| !want.is_empty()) {
                let other = there.tensor(&tensor.name).unwrap();
                let context = || format!("{} {name}/{} {options:?}", rule.name(), tensor.name);
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
    let rules = AnyRule::NAMES.iter().map(|rule| cases_of(rule).pop().unwrap().rule);
    let rules: Vec<_> = rules.filter(|rule| rule.spec().kind() == Kind::ElementWise).collect();
    assert!(rules.len() > 2);
    for (nth, rule) in rules.iter().enumerate() {
        test(&gpu, rule, ways[nth % 2], &path);
    }
}
