//! Runs whose state lies in host memory.

use super::*;

/// State in host memory for a GPU is saved, and continues in another engine. So does a checkpoint of the
/// GPU's own.
#[test]
fn a_resumed_run_is_the_run_offloaded() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("resume-offload");
    let layout = odd(NAdam::default());
    let len = layout.len() as usize;
    let start: Vec<f32> = (0..len).map(|i| i as f32 * 0.01).collect();
    for (nth, options) in arounds().into_iter().enumerate() {
        let options = Options { zero_gradients: false, ..options };
        let grads = gradients(len, Format::F32, if options.skips() { &OVERFLOWS[0] } else { &[] });
        let new = |start: &[f32]| {
            let offload = Offload::new(&gpu.device, layout.clone(), options, start.to_vec()).unwrap();
            (offload, gpu.upload(start), gpu.buffer(layout.buffer_size()))
        };
        let run = |(offload, p, g): &mut (Offload, wgpu::Buffer, wgpu::Buffer), t: usize| {
            gpu.write(g, 0, &grads[t]);
            crate::offload::step(&gpu, offload, p, g, lr(t))
        };
        let save = |offload: &mut Offload, name: &str| {
            let path = directory.file(&format!("{name}-{nth}.safetensors"));
            let mut engine = checkpoint::Cpu::offloaded(offload).unwrap();
            checkpoint::save(&mut engine, &path, &Save::default()).unwrap();
            path
        };
        let load = |(offload, p, _): &mut (Offload, wgpu::Buffer, wgpu::Buffer), path: &Path| {
            let mut engine = checkpoint::Cpu::offloaded(offload).unwrap();
            checkpoint::load(&mut engine, path, &Load::default()).unwrap();
            offload.upload(&gpu.queue, p).unwrap();
        };
        // A file has all state, so files are compared.
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
        // The device has the parameters of the host; a gap keeps its number.
        let device = gpu.read(&second.1, 0, len);
        for tensor in layout.tensors() {
            assert_eq!(device[tensor.range()], whole.0.params()[tensor.range()], "{}", tensor.name);
        }
        assert!(
            (0..len).any(|i| device[i] == 7.0 && !layout.tensors().iter().any(|t| t.range().contains(&i)))
        );

        // The GPU's run goes on here as it does on the CPU alone.
        let mut session = GpuRun::new(&gpu, layout.clone(), options, &start);
        grads[..HALF].iter().enumerate().for_each(|(t, g)| session.take(g, lr(t).into()));
        let path = directory.file(&format!("gpu-{nth}.safetensors"));
        session.save(&path);
        let mut offloaded = new(&vec![7.0; len]);
        load(&mut offloaded, &path);
        let mut alone = Host::new(layout.clone(), options, &vec![7.0; len]);
        alone.load(&path);
        for (t, grads) in grads.iter().enumerate().skip(HALF) {
            let want = alone.run.step(grads, lr(t));
            assert_eq!(run(&mut offloaded, t), want, "{options:?}, step {t}");
        }
        let want = directory.file(&format!("alone-{nth}.safetensors"));
        alone.save(&want);
        same(&save(&mut offloaded.0, "offloaded"), &want);
    }
}

/// A load that freezes and thaws groups, and chunks that are divided anew behind it; frozen groups are sent
/// to the device too.
#[test]
fn a_load_freezes_groups_offloaded() {
    let Some(gpu) = harness::test_gpu() else { return };
    let groups = |[a, b]: [bool; 2]| {
        let group = |name: &str, frozen| Group::new(name, AdamW::default()).frozen(frozen);
        Layout::new([
            group("a", a).tensor("a0", [40_000]).tensor("a1", [33]),
            group("b", b).tensor("b0", [70_000]),
        ])
        .unwrap()
    };
    let len = groups([false; 2]).len() as usize;
    let start: Vec<f32> = (0..len).map(|i| (i % 101) as f32 * 0.01).collect();
    let grads = gpu.upload(&gradients(len, Format::F32, &[])[0]);
    let transfers = wgpu_optim::offload::Transfers { chunk_blocks: 1, staged_chunks: 2 };
    for frozen in [[true, false], [false, true], [true, true]] {
        let new = |layout, start: &[f32]| {
            let options = Options::default();
            Offload::with_transfers(&gpu.device, layout, options, transfers, start.to_vec()).unwrap()
        };
        let (mut saved, params) = (new(groups(frozen), &start), gpu.upload(&start));
        crate::offload::step(&gpu, &mut saved, &params, &grads, 0.1);
        let mut file = Vec::new();
        let mut engine = checkpoint::Cpu::offloaded(&mut saved).unwrap();
        checkpoint::save_to(&mut engine, &mut file, &Save::default()).unwrap();
        for other in [[false, false], [false, true], [true, false]] {
            let (mut loaded, device) = (new(groups(other), &vec![0.0; len]), gpu.buffer(4 * len as u64));
            let take = Load { hyperparameters: checkpoint::Differing::Take, ..Load::default() };
            let mut engine = checkpoint::Cpu::offloaded(&mut loaded).unwrap();
            checkpoint::load_from(&mut engine, std::io::Cursor::new(&file), &take).unwrap();
            loaded.upload(&gpu.queue, &device).unwrap();
            let (mut whole, at) = (new(groups(frozen), &start), gpu.upload(&start));
            for _ in 0..2 {
                crate::offload::step(&gpu, &mut whole, &at, &grads, 0.1);
            }
            crate::offload::step(&gpu, &mut loaded, &device, &grads, 0.1);
            let sent = gpu.read(&device, 0, len);
            for tensor in loaded.optimizer().layout().tensors() {
                let (range, context) =
                    (tensor.range(), format!("{}, {frozen:?} from {other:?}", tensor.name));
                assert!(loaded.params()[range.clone()] == whole.params()[range.clone()], "{context}");
                assert!(sent[range.clone()] == whole.params()[range], "{context} on the device");
            }
        }
    }
}
