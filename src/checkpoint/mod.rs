//! Checkpoints: all state of an optimizer in a safetensors file, saved whole or not at all, and resumed bit
//! for bit.
//!
//! ```no_run
//! # fn f(device: &wgpu_optim::wgpu::Device, queue: &wgpu_optim::wgpu::Queue, params: &wgpu_optim::wgpu::Buffer) -> Result<(), Box<dyn std::error::Error>> {
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
//! A checkpoint goes to a path ([`save`], [`load`]) or through a stream of the caller's ([`save_to`],
//! [`load_from`]): a snapshot in memory, a socket, the storage of a browser. Bytes and checks are the same. A
//! stream cannot go back to the header for the digest, so that the state is read twice for one.
//! Each of the four has a form that reports its progress ([`save_with_progress`]).
//!
//! # What is saved
//!
//! Each state slot of each tensor as a tensor `SLOT/TENSOR` (`exp_avg/wte`), as it is stored; the parameters
//! as `param/TENSOR` if they are handed over; and in the metadata, under `wgpu_optim`, a [`Metadata`]: the
//! rule, hyperparameters, learning-rate factors, counts of steps, carries and freezing of each group, options
//! with the seed, steps recorded and taken, the loss scale. What the program passes to each step (a learning
//! rate's schedule, a [`ReduceOnPlateau`](crate::schedule::ReduceOnPlateau)) is the program's, and has room
//! in [`Save::metadata`]. Reports that nobody has taken are not kept.
//!
//! # What is promised
//!
//! * **Exact.** `n` steps, a save, a load elsewhere and `m` steps are bit for bit `n + m` steps, skipped
//!   steps and rounding at random included, on the same device. Tensors may be declared in another order and
//!   lie at other places: state is bit for bit what it was, in [blocks](crate::q8) only at the same remainder
//!   by 4, of which the blocks are a function. So are the steps that follow, unless norms are taken, whose
//!   squares are added in the order of the tiles.
//! * **Whole.** A save writes beside its target, has the disk keep it and renames it. Whatever ends it, the
//!   file from before is there, or the new one; what is left lying is removed by the next. One path is saved
//!   to by one process at a time. A save follows no symbolic link to a file: a link at its target is replaced
//!   by the file, and the file that the link points to stays as it is.
//! * **Checked.** A load compares names, shapes, groups, hyperparameters, options and formats, lists
//!   [everything that differs](Error::Mismatches), and changes nothing unless all fits or a policy of
//!   [`Load`] says what to do. A bit that has flipped since the save is found by a digest of the content, of
//!   which [`Loaded::checked`] tells; in more than 1 MiB it is found when state has been written already, and
//!   the error is [`Error::Torn`]. A file without a digest loads unchecked. A file is not believed: whatever
//!   is in it, an error is the worst, and memory stays below its size and 64 MiB more.
//! * **Streamed.** Either way takes memory on the host that does not grow with the size of the tensors: on
//!   the CPU engine less than 8 MiB, measured with 96 MB. The GPU's goes through staging buffers of at most 8
//!   MiB, a few at a time: the process, on software Vulkan with 192 MiB of state, takes 24 MiB for saving and
//!   32 MiB for loading.
//!
//! Unlike a step, saving and loading submit to the queue and wait for the device, and for the disk. A browser
//! has no files and does not let a program wait for the device: there [`Cpu`] is saved to streams and loaded
//! from them. State that is kept in host memory for a GPU, by `Offload`, is saved and loaded between steps,
//! by [`Cpu::offloaded`], which does neither.
//!
//! # Several files
//!
//! With [`Save::shard_bytes`] the path is that of an index, `NAME.safetensors.index.json`, in the form of
//! Hugging Face, beside which the shards lie. They have new names in every save, so that the index from
//! before has its shards until the new one takes its place. Then all others with names of this index are
//! removed, whole or not: what a save that was killed has left goes with the next, whenever that was. Files
//! of other names are not touched. A copy of the index under another name has the same shards, which the next
//! save removes: a checkpoint that is to stay is copied with them to another directory, or saved under a name
//! of its own.

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
/// What follows a slot's name where it is of the scales of its blocks.
const SCALE_END: &str = ".scale";

/// How to save.
#[derive(Clone, Debug, Default)]
pub struct Save {
    /// Writes several files, each with at most so many bytes of tensors (a larger tensor has one of its own),
    /// and an index. A stream takes one file, so that [`save_to`] refuses it.
    pub shard_bytes: Option<u64>,
    /// Texts of the program's own, by key; [`Loaded::metadata`] has them again. The keys `wgpu_optim` and
    /// `total_size` are taken.
    pub metadata: BTreeMap<String, String>,
}

/// How to load: by default, only what fits in everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tensors and slots that the file lacks.
    pub missing: Missing,
    /// Tensors and slots that only the file has.
    pub extra: Extra,
    /// Slots that are stored in another format.
    pub formats: Formats,
    /// Hyperparameters, learning-rate factors and frozen groups that differ, or cannot be read.
    pub hyperparameters: Differing,
    /// Options that differ, other than formats; or that cannot be read.
    pub options: Differing,
}

/// What becomes of what the file lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// It is a mismatch.
    #[default]
    Error,
    /// State starts as that of a new optimizer; parameters keep their values. In a group that goes on from
    /// the file's count of steps, and whose scalars depend on the count (bias corrections, a first velocity
    /// undamped, an initial sum, an average of the weights), it would not be updated so, and is a
    /// [mismatch](Mismatch::Age): put such tensors in a group of their own, which starts
    /// its count anew.
    Zero,
}

/// What becomes of what only the file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extra {
    /// It is a mismatch.
    #[default]
    Error,
    /// It is left out.
    Ignore,
}

/// What becomes of formats that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Formats {
    /// They are a mismatch.
    #[default]
    Same,
    /// Numbers are decoded, and encoded to the nearest.
    Convert,
}

/// What becomes of values that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Differing {
    /// They are a mismatch.
    #[default]
    Error,
    /// The optimizer's values hold.
    Ignore,
    /// The file's values hold: of hyperparameters, learning-rate factors and frozen groups all, and of
    /// options the bound of a clip. They are what can change during a run; other options that differ are a
    /// mismatch.
    Take,
}

/// What a load has found beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// Steps that were recorded, skipped ones included.
    pub steps: u64,
    /// Steps that were taken.
    pub taken: u64,
    /// Whether the file has a digest, which was compared then. Files of earlier versions, of PyTorch's
    /// converter and of others have none: what has changed in them since is not seen.
    pub checked: bool,
    /// [`Save::metadata`].
    pub metadata: BTreeMap<String, String>,
}

/// An optimizer that checkpoints are saved from and loaded into: [`Cpu`] or [`Gpu`].
///
/// The trait is sealed: other types cannot implement it.
pub trait Engine: engine::Backend {}

impl<E: engine::Backend> Engine for E {}
