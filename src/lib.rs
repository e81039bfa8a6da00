//! Fused optimizer kernels for [wgpu]: a whole optimizer step (SGD, Adam, AdamW and the other common rules)
//! recorded into the command encoder of the training engine that embeds it.
//!
//! The engine owns device, queue, encoder, parameters and gradients. This crate owns the optimizer's state
//! and kernels. A step neither submits nor waits. After the first steps it allocates nothing of its own; wgpu
//! allocates while it records.
//!
//! ```no_run
//! use wgpu_optim::{AdamW, Group, Layout, Optimizer, Tensors, schedule, wgpu};
//!
//! fn train(device: &wgpu::Device, queue: &wgpu::Queue) -> Result<(), wgpu_optim::Error> {
//!     // Named tensors in one flat buffer, in two groups with hyperparameters of their own.
//!     let adamw = AdamW { beta2: 0.95, weight_decay: 0.1, ..AdamW::default() };
//!     let layout = Layout::new([
//!         Group::new("decay", adamw).tensor("wte", [50257, 768]).tensor("h.0.attn.w", [768, 2304]),
//!         Group::new("no_decay", AdamW { weight_decay: 0.0, ..adamw }).tensor("h.0.ln.b", [768]),
//!     ])?;
//!     let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
//!     let size = layout.buffer_size();
//!     let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
//!     let (params, grads) = (device.create_buffer(&descriptor), device.create_buffer(&descriptor));
//!
//!     let mut optimizer = Optimizer::new(device, layout)?;
//!     let tensors = optimizer.bind(&Tensors::flat(&params, &grads))?;
//!     let lr = schedule::cosine(3e-4, 3e-5, 8_000).warmup(2_000);
//!     for step in 0..10_000 {
//!         let mut encoder = device.create_command_encoder(&Default::default());
//!         // … the engine's forward and backward passes write `grads` …
//!         optimizer.step(queue, &mut encoder, &tensors, lr.at(step)?)?;
//!         queue.submit([encoder.finish()]);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Overview
//!
//! * [`Sgd`], [`Adam`], [`AdamW`], [`Adagrad`], [`RmsProp`], [`Adadelta`], [`Adamax`], [`NAdam`], [`RAdam`],
//!   [`Lion`], [`AdaBelief`], [`Adan`], [`Lamb`], [`Lars`]: the rules, each with its equations, defaults and
//!   deviations; [`Rule`] to write one.
//! * [`Group`], [`Layout`]: tensors, their places, their rules and hyperparameters.
//! * [`Optimizer`], [`Tensors`], [`Bound`]: the GPU.
//! * [`Options`]: clipping, skipped steps, loss scale, averages; [`Report`]: the outcome of a step;
//!   [`accumulate`]: micro-batches.
//! * [`Format`], [`Master`], [`Rounding`]: storage of parameters, gradients and state; [`q8`]: state in 8
//!   bits.
//! * [`Schedule`], [`schedule`]: learning rates as functions of the step; [`recipes`]: a rule and a schedule
//!   to begin with.
//! * [`cpu`]: the engine for slices, in `f32` (on all cores with feature `rayon`) and in `f64` as the
//!   [reference](cpu::Reference); [`offload`]: state in host memory, parameters on the GPU.
#![cfg_attr(feature = "checkpoint", doc = "* [`checkpoint`]: state in files, and runs that go on from them.")]
//! * [`check`]: a device's step against the reference, in ulps.
//!
//! # Features
//!
//! | feature | adds |
//! | --- | --- |
//! | `native` (default) | `gpu` with wgpu's Vulkan, Metal and DX12 backends |
//! | `web` | `gpu` with the browser's WebGPU |
//! | `gpu` | [`Optimizer`]; the host program picks wgpu's backends |
//! | `rayon` | threads for the [`cpu`] engine |
//! | `serde` | hyperparameters and schedules that serialise, with unknown names refused |
//! | `checkpoint` | state in safetensors files or streams, and runs that go on from them |
//!
//! Without features the crate is the CPU half only: no wgpu, threads, files or clocks.
//!
//! # A lost device
//!
//! An engine loses its device when it destroys it, or when the driver gives it up. From then on each call
//! that needs the device returns [`DeviceError::Lost`], inside the error of its stage, as
//! `StepError::Device(DeviceError::Lost)`. It changes nothing. None of these calls reaches the error handler
//! of the device, and neither does the submission of a step that was recorded before the loss. In a browser
//! the library cannot see the loss: the promise `lost` of the device tells the engine.
//!
//! State on the device is lost with it. To recover: open another device, create its buffers, create the
//! optimizer again with the same layout and options, load the last checkpoint with its parameters, and bind.
//! The run then goes on bit for bit, if the adapter is the same. State of an [`offload`]ed optimizer is in
//! host memory and stays whole. Between steps it can be saved after the loss too, and loaded into a new one;
//! a step that was in progress is lost with its gradients.
//!
//! # One device
//!
//! An optimizer, its buffers, the queue and the encoders are of one device. Each call
//! that takes a buffer refuses one of another device of the same instance ([`BindError::OtherDevice`]), and
//! [`Optimizer::take_over`] refuses an optimizer of another device. wgpu tells neither the objects of two
//! instances apart nor the device of a queue or an encoder. The crate does not refuse those: wgpu's
//! validation or a panic of wgpu stops them.
//!
//! # Guarantees about numbers
//!
//! Two runs on one adapter are equal bit for bit. Each step of each element lies within [`CpuRule::MAX_ULPS`]
//! of the f64 reference, on every device that computes as WGSL requires. Equality between different adapters
//! is not promised: WGSL leaves roundings open.

// Only docs.rs sets this; the feature needs a nightly compiler.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::missing_assert_message)]
#![cfg_attr(not(feature = "checkpoint"), allow(unreachable_pub, reason = "`checkpoint` exports them"))]
// A cast that loses digits of an index reads other elements. Tests build their indices from small numbers.
#![cfg_attr(
    not(test),
    warn(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]

mod bytes;
pub mod check;
#[cfg(feature = "checkpoint")]
pub mod checkpoint;
pub mod cpu;
mod error;
pub mod float;
mod formats;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(feature = "gpu")]
pub mod kernel {
    //! The kernels of a step as data: their text by file, and everything else that an engine in another
    //! language needs to run them.

    pub use crate::gpu::{
        Binding, Buffer, Composed, Description, Dispatch, GroupScalars, Part, ScalarsLayout, Stage,
        TableWords, Target,
    };
}
mod layout;
mod narrow;
#[cfg(feature = "gpu")]
pub mod offload;
mod options;
mod random;
pub mod recipes;
mod report;
pub mod rules;
pub mod schedule;
mod state;
mod step;

pub use error::{
    BindError, ChangeError, DeviceError, Error, LayoutError, OffloadError, OptionsError, RuleError,
    ScheduleError, StateError, StateMismatch, StepError,
};
pub use formats::{Format, q8};
#[cfg(feature = "gpu")]
pub use gpu::{Bound, Optimizer, StateRange, StoredState, Tensors, View, accumulate};
pub use layout::{Group, Layout, Tensor};
pub use options::{Clip, Ema, LossScale, Master, Options, Rounding};
pub use report::Report;
pub use rules::{
    AdaBelief, Adadelta, Adagrad, Adam, AdamW, Adamax, Adan, AnyRule, CpuRule, DynRule, Lamb, Lars, Lion,
    NAdam, RAdam, RmsProp, Rule, Sgd,
};
pub use schedule::Schedule;
pub use step::Step;
#[cfg(feature = "gpu")]
pub use wgpu;
