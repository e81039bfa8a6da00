//! Checkpoints: all state of an optimizer in a safetensors file, saved whole or not at all, and resumed bit
//! for bit.
//!
//! ```no_run
//! # use wgpu_optim::wgpu::{Buffer, Device, Queue};
//! # type Done = Result<(), Box<dyn std::error::Error>>;
//! # fn f(device: &Device, queue: &Queue, params: &Buffer) -> Done {
//! use wgpu_optim::checkpoint::{self, Gpu, Load, Parameters, Save};
//! use wgpu_optim::{AdamW, Group, Layout, Optimizer};
//! let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [64, 32])])?;
//! let mut optimizer = Optimizer::new(device, layout)?;
//! // … steps, all submitted …
//! let mut engine = Gpu::new(&mut optimizer, queue).parameters(Parameters::flat(params));
//! checkpoint::save(&mut engine, "run.safetensors", &Save::default())?;
//! // … in another process, with an optimizer of the same layout and options …
//! checkpoint::load(&mut engine, "run.safetensors", &Load::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! A checkpoint goes to a path ([`save`], [`load`]) or through a stream of the caller ([`save_to`],
//! [`load_from`]): a snapshot in memory, a socket, the storage of a browser. Bytes and checks are the same. A
//! stream cannot go back to the header for the digest, so saving to a stream reads the state twice. Each of
//! the four functions has a form that reports progress ([`save_with_progress`]).
//!
//! # What is saved
//!
//! Each state slot of each tensor is a tensor `SLOT/TENSOR` (`exp_avg/wte`) in its stored form. The
//! parameters are `param/TENSOR`, if the caller passes them. The metadata has a [`Metadata`] under
//! `wgpu_optim`: rule, hyperparameters, learning-rate factor, count of steps, carry and freezing of each
//! group, options with the seed, steps recorded and taken, and the loss scale. The values that the program
//! passes to each step, such as a schedule or a [`ReduceOnPlateau`](crate::schedule::ReduceOnPlateau), belong
//! to the program; [`Save::metadata`] has room for them. Reports that were not taken are not saved.
//!
//! # Guarantees
//!
//! * **Exact.** `n` steps, a save, a load elsewhere and `m` steps equal `n + m` steps bit for bit on the same
//!   device, including skipped steps and stochastic rounding. Tensors may be declared in another order and
//!   lie at other places: state keeps every bit. State in [blocks](crate::q8) does so only at the same
//!   remainder of the offset by 4, since blocks depend on it. The following steps are equal too, unless norms
//!   are taken: their squares are added in the order of the segments.
//! * **Atomic.** A save writes a file beside its target, flushes it and renames it. After any interruption
//!   the old file or the new one is there; the next save removes leftovers. Only one process at a time may
//!   save to a path. A save follows no symbolic link to a file: it replaces a link at its target, and the
//!   file behind the link does not change.
//! * **Checked.** A load compares names, shapes, groups, hyperparameters, options and formats, lists
//!   [differences](Error::Mismatches), and changes nothing unless everything fits or a policy of [`Load`]
//!   applies. A digest of the content detects bits that flipped after the save; [`Loaded::checked`] tells
//!   whether there was one. In a file of more than 1 MiB a flipped bit is found after state has been written,
//!   and the error is [`Error::Torn`]. A file without a digest loads unchecked. Untrusted files are safe to
//!   load: malformed content is an error, and memory stays below the size of the file plus 64 MiB.
//! * **Streamed.** Host memory does not grow with the size of the tensors. The CPU engine takes less than 8
//!   MiB, measured with 96 MB of state. The GPU's state goes through a few staging buffers of at most 8 MiB:
//!   on software Vulkan with 192 MiB of state, the process takes 24 MiB for saving and 32 MiB for loading.
//!
//! Unlike a step, saving and loading submit to the queue and wait for the device and the disk. A browser has
//! no files, and a program in it cannot wait for the device: save and load [`Cpu`] through streams there.
//! State of an `Offload` is saved and loaded between steps by [`Cpu::offloaded`], which neither submits nor
//! waits.
//!
//! # Several files
//!
//! With [`Save::shard_bytes`] the path is that of an index, `NAME.safetensors.index.json`, in the form of
//! Hugging Face, and the shards lie beside it. Shards have new names in every save, so the old index keeps
//! its shards until the new index replaces it. The save then removes all other files with names of this
//! index, also leftovers of interrupted saves. Files of other names are not touched. A copy of the index
//! under another name has the same shards, and the next save removes them. To keep a checkpoint, copy it with
//! its shards to another directory, or save it under a name of its own.

mod compare;
mod convert;
mod cpu;
mod digest;
mod engine;
mod fit;
#[cfg(feature = "gpu")]
mod gpu;
mod late;
mod limits;
mod load;
mod metadata;
mod reader;
mod save;
mod writer;

pub use crate::error::checkpoint::{Error, IoError, Location, Malformed, Mismatch};
pub use crate::state::LossScaleState;
pub use cpu::Cpu;
#[cfg(feature = "gpu")]
pub use gpu::{Gpu, Parameters};
pub use load::{load, load_from, load_from_with_progress, load_with_progress};
pub use metadata::{GroupRecord, Groups, Json, Metadata, Places};
pub use reader::{Reader, Stored};
pub use safetensors::Dtype;
pub use save::{save, save_to, save_to_with_progress, save_with_progress};

use std::collections::BTreeMap;

/// The slot of the parameters themselves.
const PARAM: &str = "param";
/// The end of a slot's name for the scales of its blocks.
const SCALE_END: &str = ".scale";

/// Settings of a save.
#[derive(Clone, Debug, Default)]
pub struct Save {
    /// Writes an index and several files, each with at most this many bytes of tensors.
    ///
    /// A larger tensor has a file of its own. A stream takes one file, so [`save_to`] refuses this setting.
    pub shard_bytes: Option<u64>,
    /// Texts of the program by key, which [`Loaded::metadata`] returns. The keys `wgpu_optim` and
    /// `total_size` are reserved.
    pub metadata: BTreeMap<String, String>,
}

/// Policies of a load. By default everything must fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Policy for tensors and slots that the file lacks.
    pub missing: Missing,
    /// Policy for tensors and slots that only the file has.
    pub extra: Extra,
    /// Policy for slots that are stored in another format.
    pub formats: Formats,
    /// Policy for hyperparameters, learning-rate factors and frozen groups that differ or cannot be read.
    pub hyperparameters: Differing,
    /// Policy for options, other than formats, that differ or cannot be read.
    pub options: Differing,
}

/// A policy for content that the file lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// The content is a mismatch.
    #[default]
    Error,
    /// State starts as in a new optimizer; parameters keep their values.
    ///
    /// If a group continues from the file's count of steps and its scalars depend on the count, new state
    /// would not get the updates of a new optimizer. This holds for bias corrections, an undamped first
    /// velocity, an initial sum and an average of the weights. Such state is a [mismatch](Mismatch::Age): put
    /// its tensors in a group of their own, which starts its own count.
    Zero,
}

/// A policy for content that only the file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extra {
    /// The content is a mismatch.
    #[default]
    Error,
    /// The content is left out.
    Ignore,
}

/// A policy for formats that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Formats {
    /// A difference is a mismatch.
    #[default]
    Same,
    /// Numbers are decoded, and encoded with rounding to nearest.
    Convert,
}

/// A policy for values that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Differing {
    /// A difference is a mismatch.
    #[default]
    Error,
    /// The optimizer keeps its values.
    Ignore,
    /// The optimizer takes the file's values that can change during a run: all hyperparameters, learning-rate
    /// factors and frozen groups, and of the options the bound of a clip. Other options that differ are a
    /// mismatch.
    Take,
}

/// The result of a load, beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// The number of recorded steps, including skipped ones.
    pub steps: u64,
    /// The number of taken steps.
    pub taken: u64,
    /// Whether the file has a digest, which was compared. Files of earlier versions, of PyTorch's converter
    /// and of other programs have none: changes in them are not detected.
    pub checked: bool,
    /// The texts of [`Save::metadata`].
    pub metadata: BTreeMap<String, String>,
}

/// An optimizer that checkpoints are saved from and loaded into: [`Cpu`] or [`Gpu`].
///
/// The trait is sealed: other types cannot implement it.
pub trait Engine: engine::Backend {}

impl<E: engine::Backend> Engine for E {}
