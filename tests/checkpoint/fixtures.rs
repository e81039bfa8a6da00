//! Files of the first version of the form, which every later version reads.

use crate::common::{
    Directory, Saves, assert_same_checkpoint, blocks_fixture, counters, layout, on_cpu, values,
};
use crate::gpu;
use cpu_harness::CpuRun;
use std::collections::BTreeMap;
use std::path::Path;
use wgpu_optim::checkpoint::{Load, Reader, Save};
use wgpu_optim::{Format, Group, Layout, Master, NAdam, Options};

/// A file of the first version of the form is read, and saved again with the same content.
#[test]
fn the_first_version_is_read() {
    let directory = Directory::new("fixture");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/v1.safetensors");
    if std::env::var_os("WGPU_OPTIM_WRITE_FIXTURE").is_some() {
        let metadata = BTreeMap::from([("epoch".to_owned(), "3".to_owned())]);
        on_cpu(layout()).steps(5).save(&fixture, &Save { metadata, ..Save::default() }).unwrap();
    }
    let mut run = on_cpu(layout());
    let loaded = run.load(&fixture, &Load::default()).unwrap();
    assert_eq!((loaded.steps, loaded.taken, loaded.metadata["epoch"].as_str()), (5, 5, "3"));
    let again = directory.file("again.safetensors");
    run.save(&again, &Save { metadata: loaded.metadata, ..Save::default() }).unwrap();
    assert_eq!(assert_same_checkpoint(&fixture, &again).len(), 9);
    // All fields are equal, except the writer, the digest and a former option.
    let record = |path: &Path| {
        let text = Reader::open(path).unwrap().metadata()["wgpu_optim"].clone();
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record.as_object_mut().unwrap().remove("writer");
        record.as_object_mut().unwrap().remove("crc32c");
        record["options"].as_object_mut().unwrap().remove("divide");
        record
    };
    assert_eq!(record(&again), record(&fixture));
}

/// The products of the momenta in the file.
const CARRIES: [f64; 2] = [0.041173782266795675, 0.003922209101775232];

/// A file with content that the other lacks: a carry, schedules, masters, two skipped steps.
#[test]
fn carries_and_schedules_of_the_first_version_are_read() {
    let directory = Directory::new("nadam-fixture");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/v1-nadam.safetensors");
    let nadam = NAdam { momentum_decay: 0.01, weight_decay: 0.1, ..NAdam::default() };
    let rising = wgpu_optim::schedule::cosine(0.5, 0.125, 10).warmup(2);
    let rule = NAdam { beta1: 0.5, ..nadam };
    let groups = [
        Group::new("body", nadam).lr_factor(rising).tensor("w", [3, 5]),
        Group::new("head", rule).lr_factor(0.25).tensor_at("h", [7], 20),
    ];
    let options = Options {
        params: Format::Bf16,
        grads: Format::F32,
        states: Format::Bf16,
        master: Master::F32,
        skip_nonfinite: true,
        ..Options::default()
    };
    let mut run = CpuRun::new(Layout::new(groups).unwrap(), options, &[0.5; 27]);
    if std::env::var_os("WGPU_OPTIM_WRITE_FIXTURE").is_some() {
        for step in 0..5 {
            let mut grads = values(step, 27);
            if step == 3 {
                grads[0] = f32::NAN;
            }
            run.step(&grads, 0.01);
        }
        run.save(&fixture, &Save::default()).unwrap();
    }
    let loaded = run.load(&fixture, &Load::default()).unwrap();
    assert_eq!((loaded.steps, loaded.taken), (5, 4));
    let groups = counters(&run.bytes()).groups;
    // Groups of the first version have taken the steps of all.
    assert_eq!(groups, CARRIES.map(|carry| (carry.to_bits(), 4)));
    let again = directory.file("again.safetensors");
    run.save(&again, &Save::default()).unwrap();
    // For two tensors: the parameters, masters and two slots.
    assert_eq!(assert_same_checkpoint(&fixture, &again).len(), 8);
}

/// A file with everything around a rule: blocks, small tensors without blocks, remainders, an average, a loss
/// scale and skipped steps.
#[test]
fn the_first_version_is_read_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("gpu-fixture");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/v1-gpu.safetensors");
    let run = || {
        let (layout, options) = blocks_fixture();
        gpu::on_gpu(&gpu, layout, options)
    };
    if std::env::var_os("WGPU_OPTIM_WRITE_FIXTURE").is_some() {
        let mut run = run().after(2);
        run.step(&vec![f32::INFINITY; run.optimizer.layout().len() as usize], 0.01);
        run.steps(1).save(&fixture, &Save::default()).unwrap();
    }
    let mut run = run();
    let loaded = run.load(&fixture, &Load::default()).unwrap();
    assert_eq!((loaded.steps, loaded.taken), (4, 3));
    let again = directory.file("again.safetensors");
    run.save(&again, &Save::default()).unwrap();
    let names = assert_same_checkpoint(&fixture, &again);
    let slots = ["ema", "exp_avg", "exp_avg.scale", "exp_avg_sq", "exp_avg_sq.scale", "param", "remainder"];
    let want = slots.iter().flat_map(|slot| {
        // The small tensor has no blocks.
        let tensors = if slot.ends_with(".scale") { &["w"][..] } else { &["b", "w"] };
        tensors.iter().map(move |tensor| format!("{slot}/{tensor}"))
    });
    let mut want: Vec<_> = want.collect();
    want.sort_unstable();
    assert_eq!(names, want);
    // On the CPU too.
    let (layout, options) = blocks_fixture();
    let start = vec![0.0; layout.len() as usize];
    let mut host = CpuRun::new(layout, options, &start);
    let loaded = host.load(&fixture, &Load::default()).unwrap();
    assert_eq!((loaded.steps, loaded.taken), (4, 3));
    host.save(&again, &Save::default()).unwrap();
    assert_eq!(assert_same_checkpoint(&fixture, &again), want);
    let scale = run.optimizer.loss_scale().unwrap();
    assert_eq!(gpu.read(scale, 0, 1), [32_768.0], "halved by the overflow");
}
