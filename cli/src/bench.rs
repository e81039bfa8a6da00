//! Times a step beside a plain copy.

use crate::device::{Device, Error, Label, fits, guarded};
use crate::presets;
use harness::{Gpu, Stored, median};
use rayon::prelude::*;
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;
use wgpu_optim::{
    AnyRule, DynRule, Format, Group, Layout, LayoutError, Optimizer, Options, StepError, Tensors, cpu,
};

/// Samples of step and copy each, of which the medians are reported.
pub const SAMPLES: usize = 11;
/// A sample repeats its work until it takes about this long, in seconds: submitting and waiting cost some
/// tens of microseconds.
const SAMPLE_SECONDS: f64 = 0.02;
/// The most repetitions: each keeps its scalars until the submission is done.
const MAX_REPEATS: u32 = 64;
/// Bytes of an f32.
const ELEMENT: u64 = 4;
/// The copy kernel's size is a multiple of this, in elements.
const COPY_MULTIPLE: u64 = 64;

/// Elements that a thread of the CPU's copy takes at a time, as in a step.
const COPY_BLOCK: usize = 1 << 14;

/// The size and the storage of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Parameters.
    pub elements: u64,
    /// Tensors that they are split into.
    pub tensors: u64,
    /// How everything is stored.
    pub storage: Options,
}

/// Medians of one rule.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The rule.
    pub rule: &'static str,
    /// Which configuration of it.
    #[serde(skip)]
    pub variant: &'static str,
    /// How parameters, gradients and state are stored.
    pub format: String,
    /// Where it ran.
    #[serde(flatten)]
    pub label: Label,
    /// Parameters.
    pub elements: u64,
    /// Tensors that they are split into.
    pub tensors: u64,
    /// Parameters and kept state read and written once, gradients read once.
    pub bytes_per_step: u64,
    /// A step, from submission to completion.
    pub seconds: f64,
    /// Billions of bytes a second of the step.
    pub gb_per_s: f64,
    /// Those of a copy of as many elements; on the CPU by the same threads.
    pub copy_gb_per_s: f64,
    /// The time of a step of the same rule where all parameters are one tensor, measured in turn; only on the
    /// GPU, for several tensors.
    #[serde(skip)]
    pub one_tensor_seconds: Option<f64>,
    /// Microseconds of host time of the call that records a step; 0 on the CPU, where nothing is recorded.
    pub record_us: f64,
}

/// Measures a rule in the configuration that it is mostly used with; `tick` is called [`SAMPLES`] times.
///
/// # Errors
/// [`Error`] says why the device cannot take the steps.
pub fn bench(
    rule: AnyRule,
    device: &Device,
    request: Request,
    tick: &mut dyn FnMut(),
) -> Result<Measurement, Error> {
    let Request { elements, tensors, storage } = request;
    let preset = presets::bench(rule);
    let rule = DynRule::from(preset.rule);
    let layout = layout(&rule, elements, tensors)?;
    let bytes_per_step = layout.bytes_moved(&storage);
    let mut bench = Bench { rule: &rule, request, tick };
    let samples = match device {
        Device::Gpu(gpu) => bench.on_gpu(gpu, layout)?,
        Device::Cpu => bench.on_cpu(layout)?,
    };
    let seconds = median(samples.step);
    Ok(Measurement {
        rule: rule.name(),
        variant: preset.name,
        format: stored(&storage),
        label: device.label(),
        elements,
        tensors,
        bytes_per_step,
        seconds,
        gb_per_s: bytes_per_step as f64 / seconds / 1e9,
        copy_gb_per_s: (2 * ELEMENT * elements) as f64 / median(samples.copy) / 1e9,
        one_tensor_seconds: samples.one_tensor.map(median),
        record_us: median(samples.record) * 1e6,
    })
}

struct Bench<'a> {
    rule: &'a DynRule,
    request: Request,
    tick: &'a mut dyn FnMut(),
}

/// Seconds of every sample.
struct Samples {
    step: Vec<f64>,
    copy: Vec<f64>,
    one_tensor: Option<Vec<f64>>,
    record: Vec<f64>,
}

/// Something to time, so many times in a row.
type Work<'a> = dyn FnMut(u32) -> Result<(), StepError> + 'a;

/// Names of the formats of parameters, gradients and state; one if they are the same.
#[must_use]
pub fn stored(storage: &Options) -> String {
    let names = [storage.params, storage.grads, storage.states].map(Format::name);
    if names == [names[0]; 3] { names[0].into() } else { names.join(", ") }
}

impl Bench<'_> {
    fn on_gpu(&mut self, gpu: &Gpu, layout: Layout) -> Result<Samples, Error> {
        let storage = self.request.storage;
        let padded = self.request.elements.next_multiple_of(COPY_MULTIPLE);
        fits(gpu, padded)?;
        let (params, grads, copy) = guarded(gpu, || {
            let [params, grads] =
                [storage.params, storage.grads].map(|format| gpu.upload_as(format, &pattern(padded)));
            let (source, target) = (gpu.upload(&pattern(padded)), gpu.buffer(padded * ELEMENT));
            let copy = harness::Copy::new(gpu, &source, &target, padded);
            (params, grads, copy)
        })?;
        let views = Tensors::flat(&params, &grads);
        let (mut record, mut unread) = (Vec::new(), Vec::new());
        let mut step = stepper(gpu, layout, storage, &views, &mut record)?;
        let mut one_tensor =
            stepper(gpu, self::layout(self.rule, self.request.elements, 1)?, storage, &views, &mut unread)?;
        let mut copy = |repeats: u32| {
            let mut encoder = gpu.encoder();
            (0..repeats).for_each(|_| copy.record(&mut encoder));
            gpu.run(encoder);
            Ok(())
        };
        let mut work: Vec<&mut Work<'_>> = vec![&mut step, &mut copy];
        if self.request.tensors > 1 {
            work.push(&mut one_tensor);
        }
        let (samples, warm) = self.sample(&mut work)?;
        drop((step, one_tensor));
        let mut samples = samples.into_iter();
        Ok(Samples {
            step: samples.next().unwrap_or_default(),
            copy: samples.next().unwrap_or_default(),
            one_tensor: samples.next(),
            // The first steps allocate, later ones do not.
            record: record.split_off(warm),
        })
    }

    fn on_cpu(&mut self, layout: Layout) -> Result<Samples, Error> {
        let storage = self.request.storage;
        let source = pattern(self.request.elements);
        let mut params = Stored::new(storage.params, &source);
        let grads = Stored::new(storage.grads, &source);
        let mut target = vec![0.0; source.len()];
        let mut optimizer = cpu::Optimizer::with_options(layout, storage)?;
        let lr = self.rule.spec().default_lr;
        let mut step = |repeats: u32| {
            (0..repeats).try_for_each(|_| {
                let tensors = cpu::Tensors::flat(params.params(), grads.grads());
                optimizer.step(tensors, lr).map(drop)
            })
        };
        let mut copy = |repeats: u32| {
            for _ in 0..repeats {
                let (target, source) = (black_box(&mut target), black_box(&source));
                let blocks = target.par_chunks_mut(COPY_BLOCK).zip(source.par_chunks(COPY_BLOCK));
                blocks.for_each(|(target, source)| target.copy_from_slice(source));
            }
            Ok(())
        };
        let (samples, _) = self.sample(&mut [&mut step, &mut copy])?;
        let mut samples = samples.into_iter();
        let (step, copy) = (samples.next().unwrap_or_default(), samples.next().unwrap_or_default());
        Ok(Samples { step, copy, one_tensor: None, record: vec![0.0] })
    }

    /// Warms all up, then takes samples of them in turn, so that all see the same machine. Also returns how
    /// often the first one was run to warm up.
    fn sample(&mut self, work: &mut [&mut Work<'_>]) -> Result<(Vec<Vec<f64>>, usize), Error> {
        let time = |work: &mut Work<'_>, repeats: u32| -> Result<f64, Error> {
            let start = Instant::now();
            work(repeats)?;
            Ok(start.elapsed().as_secs_f64() / f64::from(repeats))
        };
        let mut repeats = Vec::new();
        for work in &mut *work {
            time(work, 1)?;
            repeats.push((SAMPLE_SECONDS / time(work, 1)?).clamp(1.0, MAX_REPEATS.into()) as u32);
            time(work, repeats[repeats.len() - 1])?;
        }
        let mut samples = vec![Vec::new(); work.len()];
        for _ in 0..SAMPLES {
            for ((work, repeats), samples) in work.iter_mut().zip(&repeats).zip(&mut samples) {
                samples.push(time(work, *repeats)?);
            }
            (self.tick)();
        }
        Ok((samples, 2 + repeats[0] as usize))
    }
}

/// Something that submits steps and waits for them; the host times of the recording calls go to `record`.
fn stepper<'a>(
    gpu: &'a Gpu,
    layout: Layout,
    storage: Options,
    views: &Tensors<'_>,
    record: &'a mut Vec<f64>,
) -> Result<impl FnMut(u32) -> Result<(), StepError> + use<'a>, Error> {
    let lr = layout.groups()[0].rule().spec().default_lr;
    let mut optimizer = Optimizer::with_options(&gpu.device, layout, storage)?;
    let bound = optimizer.bind(views)?;
    Ok(move |repeats: u32| {
        let mut encoder = gpu.encoder();
        for _ in 0..repeats {
            let start = Instant::now();
            optimizer.step(&gpu.queue, &mut encoder, &bound, lr)?;
            record.push(start.elapsed().as_secs_f64());
        }
        gpu.run(encoder);
        Ok(())
    })
}

/// Contiguous tensors of nearly equal size; more than one are in two groups by turns.
/// A layout of so many parameters in so many tensors, which take turns in two groups if there are several.
///
/// # Errors
/// A [`LayoutError`] if the rule's hyperparameters are out of range.
pub fn layout(rule: &DynRule, elements: u64, tensors: u64) -> Result<Layout, LayoutError> {
    let empty = |name| Group::new(name, rule.clone());
    let (mut even, mut odd) = (empty("even"), empty("odd").lr_factor(0.5));
    let mut offset = 0;
    for i in 0..tensors {
        let size = elements / tensors + u64::from(i < elements % tensors);
        let group = if i % 2 == 0 { &mut even } else { &mut odd };
        let begun = std::mem::replace(group, empty(""));
        *group = begun.tensor_at(format!("tensor {i}"), [size], offset);
        offset += size;
    }
    Layout::new([even, odd].into_iter().take(tensors.min(2) as usize))
}

/// Numbers between −1 and 1. Their values do not matter to the time, as long as they stay finite.
fn pattern(len: u64) -> Vec<f32> {
    (0..len).map(|i| (i.wrapping_mul(0x9E37_79B9) as u32 as i32) as f32 / i32::MAX as f32).collect()
}
