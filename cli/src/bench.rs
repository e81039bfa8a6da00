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

/// Number of samples of step and copy. Their medians are reported.
pub const SAMPLES: usize = 11;
/// Approximate duration of a sample in seconds. A sample repeats its work, because submitting and waiting
/// take some tens of microseconds.
const SAMPLE_SECONDS: f64 = 0.02;
/// Largest number of repetitions: each keeps its scalars until the submission is done.
const MAX_REPEATS: u32 = 64;
/// Bytes of an f32.
const ELEMENT: u64 = 4;
/// The copy kernel's size is a multiple of this, in elements.
const COPY_MULTIPLE: u64 = 64;

/// Elements per task of the CPU's copy, as in a step.
const COPY_BLOCK: usize = 1 << 14;

/// The size and the storage of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Number of parameters.
    pub elements: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Storage of parameters, gradients and state.
    pub storage: Options,
}

/// Medians of one rule.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The rule.
    pub rule: &'static str,
    /// The rule's configuration.
    #[serde(skip)]
    pub variant: &'static str,
    /// Formats of parameters, gradients and state.
    pub format: String,
    /// The device.
    #[serde(flatten)]
    pub label: Label,
    /// Number of parameters.
    pub elements: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Parameters and kept state read and written once, gradients read once.
    pub bytes_per_step: u64,
    /// Seconds of a step, from submission to completion.
    pub seconds: f64,
    /// Billions of bytes per second of the step.
    pub gb_per_s: f64,
    /// Billions of bytes per second of a copy with the same number of elements; on the CPU by the same
    /// threads.
    pub copy_gb_per_s: f64,
    /// Seconds of a step of the same rule with all parameters in one tensor, measured in turn; only on the
    /// GPU, for several tensors.
    #[serde(skip)]
    pub one_tensor_seconds: Option<f64>,
    /// Microseconds of host time per call that records a step; 0 on the CPU, which records nothing.
    pub record_us: f64,
}

/// Measures a rule in its most common configuration; `tick` is called [`SAMPLES`] times.
///
/// # Errors
/// An [`Error`] if the device cannot take the steps.
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

/// Work to time, with a number of repetitions.
type Work<'a> = dyn FnMut(u32) -> Result<(), StepError> + 'a;

/// Names of the formats of parameters, gradients and state; one name if all are equal.
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

    /// Warms all works up, then samples them in turn, so that all see the same machine. Also returns the
    /// number of warm-up runs of the first work.
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

/// Work that submits steps and waits for them; the host times of the recording calls go to `record`.
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

/// Makes a layout of contiguous tensors with nearly equal sizes. Several tensors alternate between two
/// groups.
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

/// Numbers between −1 and 1. Their values do not change the time as long as they stay finite.
fn pattern(len: u64) -> Vec<f32> {
    (0..len).map(|i| (i.wrapping_mul(0x9E37_79B9) as u32 as i32) as f32 / i32::MAX as f32).collect()
}
