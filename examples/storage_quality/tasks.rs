//! The two tasks: their data, batches and networks.

use crate::Failure;
use crate::digits::{self, PIXELS, Random};
use crate::nets::mlp;
use crate::nets::transformer::{Shape, Transformer};
use ndarray::Array2;
use std::ops::Range;
use wgpu_optim::{Layout, Schedule, schedule};

const WARMUP_STEPS: usize = 50;

/// A task, with the same start and batches for every storage.
pub(crate) trait Task: Sync {
    fn layout(&self) -> &Layout;
    fn initial_parameters(&self) -> &[f32];
    fn lr(&self) -> &Schedule;
    fn steps(&self) -> usize;
    /// The gradients of a step's batch.
    fn gradients(&self, step: usize, params: &[f32], grads: &mut [f32]);
    /// The mean losses over the held-out data, and over the rest.
    fn losses(&self, params: &[f32]) -> Losses;
}

#[derive(Clone, Copy)]
pub(crate) struct Losses {
    pub held_out: f64,
    pub training: f64,
}

impl Losses {
    pub(crate) fn mean(of: &[Self]) -> Self {
        let mean = |field: fn(&Self) -> f64| of.iter().map(field).sum::<f64>() / of.len() as f64;
        Self { held_out: mean(|losses| losses.held_out), training: mean(|losses| losses.training) }
    }
}

pub(crate) struct Digits {
    layout: Layout,
    start: Vec<f32>,
    lr: Schedule,
    held_out: Images,
    training: Images,
    /// The training images of all steps.
    order: Vec<u32>,
}

struct Images {
    pixels: Array2<f32>,
    labels: Vec<u32>,
}

impl Images {
    fn select(&self, indices: &[u32]) -> Self {
        let indices: Vec<_> = indices.iter().map(|&i| i as usize).collect();
        let labels = indices.iter().map(|&i| self.labels[i]).collect();
        Self { pixels: self.pixels.select(ndarray::Axis(0), &indices), labels }
    }
}

impl Digits {
    /// Parts of the images. Each part is held out once, because a few of the 359 images of one part decide
    /// its loss.
    pub(crate) const PARTS: usize = 5;
    pub(crate) const STEPS: usize = 40 * 22; // 40 epochs
    const BATCH: usize = 64;
    const PEAK_LR: f64 = 1e-2;

    pub(crate) fn new(seed: u64, part: usize, steps: usize) -> Result<Self, Failure> {
        let mut random = Random(seed);
        let (pixels, labels) = digits::images().map_err(|error| error.to_string())?;
        let all = Images { pixels: Array2::from_shape_vec((labels.len(), PIXELS), pixels)?, labels };
        let mut training: Vec<_> = (0..all.labels.len() as u32).collect();
        random.shuffle(&mut training);
        let border = |part| part * all.labels.len() / Self::PARTS;
        let held_out: Vec<_> = training.drain(border(part)..border(part + 1)).collect();
        let (held_out, training) = (all.select(&held_out), all.select(&training));
        let layout = digits::layout()?;
        let start = digits::initial_parameters(&layout, &mut random);
        let mut epoch: Vec<_> = (0..training.labels.len() as u32).collect();
        let mut order = Vec::new();
        while order.len() < steps * Self::BATCH {
            random.shuffle(&mut epoch);
            // The rest is left out, a different rest in every epoch.
            order.extend(&epoch[..epoch.len() / Self::BATCH * Self::BATCH]);
        }
        order.truncate(steps * Self::BATCH);
        let lr = lr(Self::PEAK_LR, steps);
        Ok(Self { layout, start, lr, held_out, training, order })
    }

    fn loss(&self, params: &[f32], images: &Images, grads: Option<&mut [f32]>) -> f64 {
        mlp::loss(&self.layout, params, images.pixels.view(), &images.labels, grads)
    }
}

impl Task for Digits {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn initial_parameters(&self) -> &[f32] {
        &self.start
    }

    fn lr(&self) -> &Schedule {
        &self.lr
    }

    fn steps(&self) -> usize {
        self.order.len() / Self::BATCH
    }

    fn gradients(&self, step: usize, params: &[f32], grads: &mut [f32]) {
        let batch = self.training.select(&self.order[step * Self::BATCH..][..Self::BATCH]);
        self.loss(params, &batch, Some(grads));
    }

    fn losses(&self, params: &[f32]) -> Losses {
        let [held_out, training] =
            [&self.held_out, &self.training].map(|images| self.loss(params, images, None));
        Losses { held_out, training }
    }
}

pub(crate) struct Text {
    network: Transformer,
    start: Vec<f32>,
    lr: Schedule,
    /// Characters by their number in the vocabulary.
    characters: Vec<u8>,
    /// Start of the held-out data.
    held_out: usize,
    /// Starts of the windows of all steps.
    order: Vec<usize>,
}

impl Text {
    pub(crate) const STEPS: usize = 1_500;
    const BATCH: usize = 8;
    const CONTEXT: usize = 64;
    const PEAK_LR: f64 = 3e-3;

    pub(crate) fn new(seed: u64, steps: usize) -> Result<Self, Failure> {
        let text = include_str!("../text/persuasion.txt");
        let held_out = text.find("Chapter 10\n").ok_or("no last chapter")?;
        let mut vocabulary = text.as_bytes().to_vec();
        vocabulary.sort_unstable();
        vocabulary.dedup();
        let number = |c: &u8| vocabulary.binary_search(c).map(|i| i as u8);
        let characters = text.as_bytes().iter().map(number).collect::<Result<Vec<_>, _>>();
        let characters = characters.map_err(|_| "a character without a number")?;

        let shape =
            Shape { vocabulary: vocabulary.len(), context: Self::CONTEXT, width: 64, heads: 4, blocks: 2 };
        let network = Transformer::new(shape)?;
        let mut random = Random(seed);
        let start = network.initial_parameters(&mut random);
        let windows = held_out - Self::CONTEXT;
        let order = (0..steps * Self::BATCH).map(|_| (random.uniform() * windows as f64) as usize).collect();
        Ok(Self { network, start, lr: lr(Self::PEAK_LR, steps), characters, held_out, order })
    }

    /// A window's characters, and the next one.
    fn window(&self, start: usize) -> &[u8] {
        &self.characters[start..=start + Self::CONTEXT]
    }

    /// The mean loss over adjacent windows. The rest after the last window is too short for one.
    fn mean_loss(&self, params: &[f32], range: Range<usize>) -> f64 {
        let windows = (range.len() - 1) / Self::CONTEXT;
        let windows: Vec<_> = (0..windows).map(|i| self.window(range.start + i * Self::CONTEXT)).collect();
        let loss = |batch: &[&[u8]]| batch.len() as f64 * self.network.loss(params, batch, None);
        windows.chunks(Self::BATCH).map(loss).sum::<f64>() / windows.len() as f64
    }
}

impl Task for Text {
    fn layout(&self) -> &Layout {
        &self.network.layout
    }

    fn initial_parameters(&self) -> &[f32] {
        &self.start
    }

    fn lr(&self) -> &Schedule {
        &self.lr
    }

    fn steps(&self) -> usize {
        self.order.len() / Self::BATCH
    }

    fn gradients(&self, step: usize, params: &[f32], grads: &mut [f32]) {
        let batch: Vec<_> =
            self.order[step * Self::BATCH..][..Self::BATCH].iter().map(|&start| self.window(start)).collect();
        self.network.loss(params, &batch, Some(grads));
    }

    fn losses(&self, params: &[f32]) -> Losses {
        let held_out = self.held_out..self.characters.len();
        let training = 0..held_out.len();
        let [held_out, training] = [held_out, training].map(|range| self.mean_loss(params, range));
        Losses { held_out, training }
    }
}

/// A warm-up, and half a cosine down to 0.
fn lr(peak: f64, steps: usize) -> Schedule {
    let warmup = WARMUP_STEPS.min(steps / 10) as u64;
    schedule::cosine(peak, 0.0, steps as u64 - warmup).warmup(warmup)
}
