//! Checkpoints: all state of an optimizer in a safetensors file, saved whole or not at all, and resumed bit for bit.
//!
//! ```no_run
//! # fn f(device: &wgpu_optim::wgpu::Device, queue: &wgpu_optim::wgpu::Queue, params: &wgpu_optim::wgpu::Buffer) -> Result<(), Box<dyn std::error::Error>> {
//! use wgpu_optim::checkpoint::{self, Gpu, Load, Parameters, Save};
//! use wgpu_optim::{AdamW, Group, Layout, Optimizer};
//! let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [64, 32])])?;
//! let mut optimizer = Optimizer::new(device, layout)?;
//! // … steps, all submitted …
//! let mut engine = Gpu::new(&mut optimizer, queue).parameters(Parameters::flat(params));
//! checkpoint::save(&mut engine, "run.safetensors", &Save::default(), &mut |done, total| eprintln!("{done} of {total} bytes"))?;
//! // … in another process, with an optimizer of the same layout and options …
//! checkpoint::load(&mut engine, "run.safetensors", &Load::default(), &mut |_, _| ())?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is saved
//!
//! Each state slot of each tensor as a tensor `SLOT/TENSOR` (`exp_avg/wte`), as it is stored; the parameters as `param/TENSOR` if they are handed over; and in the metadata, under
//! `wgpu_optim`, a [`Record`]: the rule, hyperparameters, learning-rate factors and carries of each group, options with the seed, steps recorded and taken, the loss scale. What
//! the program passes to each step (a learning rate's schedule, a [`ReduceOnPlateau`](crate::schedule::ReduceOnPlateau)) is the program's, and has room in [`Save::metadata`].
//! Reports that nobody has taken are not kept.
//!
//! # What is promised
//!
//! * **Exact.** `n` steps, a save, a load elsewhere and `m` steps are bit for bit `n + m` steps, skipped steps and rounding at random included, on the same device. Tensors may be declared in
//!   another order and lie at other places: state is bit for bit what it was, in [blocks](crate::q8) only at the same remainder by 4, of which the blocks are a function. So are the steps that follow, unless
//!   norms are taken, whose squares are added in the order of the tiles.
//! * **Whole.** A save writes beside its target, has the disk keep it and renames it. Whatever ends it, the file from before is there, or the new one; what is left lying is overwritten or removed by the next. One path is saved to by one process at a time.
//! * **Checked.** A load compares names, shapes, groups, hyperparameters, options and formats, lists [everything that differs](Error::Mismatches), and changes nothing unless all fits or a policy of [`Load`]
//!   says what to do. A file is not believed: whatever is in it, an error is the worst, and memory stays below its size and 64 MiB more.
//! * **Streamed.** Either way takes memory on the host that does not grow with the size of the tensors: on the CPU engine less than 8 MiB, measured with 96 MB. The GPU's goes through staging buffers of at most 8 MiB, a few at a time: the process, on software Vulkan with 192 MiB of state, takes 24 MiB for saving and 32 MiB for loading.
//!
//! Unlike a step, saving and loading submit to the queue and wait for the device, and for the disk. They are not for the browser.
//! State that is kept in host memory for a GPU, by `Offload`, is saved and loaded between steps, by [`Cpu::offloaded`], which does neither.
//!
//! # Several files
//!
//! With [`Save::shard_bytes`] the path is that of an index, `NAME.safetensors.index.json`, in the form of Hugging Face, beside which the shards lie. They have new names in every save, so that the index from before
//! has its shards until the new one takes its place. Then all others with names of this index are removed, whole or not: what a save that was killed has left goes with the next, whenever that was. Files of
//! other names are not touched. A copy of the index under another name has the same shards, which the next save removes: a checkpoint that is to stay is copied with them to another directory, or saved under a name of its own.

mod convert;
mod cpu;
mod error;
mod fit;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
mod reader;
mod record;
mod writer;

pub use cpu::Cpu;
pub use error::{Error, Malformed, Mismatch};
#[cfg(feature = "gpu")]
pub use gpu::{Gpu, Parameters};
pub use reader::{Reader, Stored};
pub use record::{GroupRecord, Groups, Json, Places, Record};
pub use safetensors::Dtype;

use crate::format::Format;
use crate::layout::{Layout, Tensor};
use crate::options::Options;
use crate::plan::QUAD;
use crate::q8;
use crate::rules::Rule;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use writer::{Planned, Writer};

/// The slot of the parameters themselves.
const PARAM: &str = "param";
/// What follows a slot's name where it is of the scales of its blocks.
const SCALE_END: &str = ".scale";

/// How to save.
#[derive(Clone, Debug, Default)]
pub struct Save {
    /// Writes several files, each with at most so many bytes of tensors (a larger tensor has one of its own), and an index.
    pub shard_bytes: Option<u64>,
    /// Texts of the program's own, by key; [`Loaded::metadata`] has them again. The keys `wgpu_optim` and `total_size` are taken.
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
    /// Hyperparameters and learning-rate factors that differ, or cannot be read.
    pub hyperparameters: Differing,
    /// Options that differ, other than formats; or that cannot be read.
    pub options: Differing,
}

/// What becomes of what the file lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// It is a mismatch.
    #[default]
    Error,
    /// State starts at zero, as that of a new optimizer; parameters keep their values.
    Zero,
}

/// What becomes of what only the file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extra {
    /// It is a mismatch.
    #[default]
    Error,
    /// It is left out.
    Ignore,
}

/// What becomes of formats that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Formats {
    /// They are a mismatch.
    #[default]
    Same,
    /// Numbers are decoded, and encoded to the nearest.
    Convert,
}

/// What becomes of values that differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Differing {
    /// They are a mismatch.
    #[default]
    Error,
    /// The optimizer's hold.
    Ignore,
}

/// What a load has found beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// Steps that were recorded, as [`Engine::counters`] has them now.
    pub steps: u64,
    /// Steps that were taken.
    pub taken: u64,
    /// [`Save::metadata`].
    pub metadata: BTreeMap<String, String>,
}

/// What an optimizer counts and carries from step to step, beside its slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Counters {
    /// Steps recorded.
    pub steps: u64,
    /// Steps taken: recorded and not skipped.
    pub taken: u64,
    /// What the rule carries, for each group.
    pub carries: Vec<f64>,
    /// The dynamic loss scale, if there is one.
    pub loss_scale: Option<LossScaleState>,
}

/// Where a dynamic loss scale is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScaleState {
    /// The scale of the next step.
    pub scale: f32,
    /// Good steps in a row.
    pub good_steps: u32,
}

/// Values that an engine keeps of some of its tensors, all stored in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    /// The slot's name.
    pub slot: String,
    /// What the values are.
    pub content: Content,
    /// Of which tensors, by their places in the order of the flat space: in the order in which the engine has them.
    pub tensors: Vec<usize>,
}

/// What the values of a [`Plane`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// Numbers, one for each element; not [`Format::Q8`].
    Numbers(Format),
    /// The lower halves of numbers whose upper halves are the parameters.
    Remainders,
    /// The codes of [`q8`].
    Codes,
    /// The scales of its blocks.
    Scales,
}

impl Content {
    fn dtype(self) -> Dtype {
        match self {
            Self::Numbers(format) => convert::dtype(format),
            Self::Remainders => Dtype::U16,
            Self::Codes => Dtype::U8,
            Self::Scales => Dtype::F32,
        }
    }

    /// Bytes of a value.
    #[must_use]
    pub fn value_bytes(self) -> u64 {
        self.dtype().bitsize() as u64 / 8
    }

    /// How many values there are of a tensor.
    #[must_use]
    pub fn values(self, tensor: &Tensor) -> u64 {
        if self == Self::Scales { blocks(tensor.offset, tensor.len) } else { tensor.len }
    }
}

/// Where the first element of a tensor at `offset` lies in its first block.
fn lead(offset: u64) -> u64 {
    offset % QUAD
}

/// Blocks of a tensor of `len` elements.
fn blocks(offset: u64, len: u64) -> u64 {
    (lead(offset) + len).div_ceil(q8::BLOCK as u64)
}

impl Plane {
    fn shape(&self, tensor: &Tensor) -> Vec<u64> {
        if self.content == Content::Scales { vec![self.content.values(tensor)] } else { tensor.shape.clone() }
    }

    fn bytes(&self, tensor: &Tensor) -> u64 {
        self.content.values(tensor) * self.content.value_bytes()
    }

    /// What the values are called in the file, behind which the tensor's name comes.
    fn prefix(&self) -> String {
        let end = if self.content == Content::Scales { SCALE_END } else { "" };
        [self.slot.as_str(), end, "/"].concat()
    }
}

/// Some of the bytes of one tensor in a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which one, in the order of the flat space.
    pub tensor: usize,
    /// The first byte.
    pub start: u64,
}

/// Takes a part's bytes.
pub type Sink<'a> = dyn FnMut(Part, &[u8]) -> Result<(), Error> + 'a;
/// Fills a part's bytes, or answers `false` and leaves them if they are to stay as they are.
pub type Source<'a> = dyn FnMut(Part, &mut [u8]) -> Result<bool, Error> + 'a;

/// What [`save`] and [`load`] ask of an optimizer.
pub trait Engine {
    /// Its rule.
    type Rule: Rule;
    /// Its layout.
    fn layout(&self) -> &Layout<Self::Rule>;
    /// Its options.
    fn options(&self) -> &Options;
    /// What it keeps.
    fn planes(&self) -> Vec<Plane>;
    /// Refuses what reading, or `writing`, all planes would be refused for.
    ///
    /// # Errors
    /// [`Error::Parameters`], [`Error::Optimizer`].
    fn check(&self, writing: bool) -> Result<(), Error>;
    /// What it counts, once all that was recorded is done.
    ///
    /// # Errors
    /// [`Error::Unsubmitted`], [`Error::Optimizer`].
    fn counters(&mut self) -> Result<Counters, Error>;
    /// Hands over all bytes of plane `plane` of [`planes`](Self::planes), in the order of its tensors.
    ///
    /// # Errors
    /// Those of `sink`, and [`Error::Optimizer`].
    fn read(&mut self, plane: usize, sink: &mut Sink<'_>) -> Result<(), Error>;
    /// Takes all bytes of plane `plane`, in the order of its tensors.
    ///
    /// # Errors
    /// Those of `source`, and [`Error::Optimizer`].
    fn write(&mut self, plane: usize, source: &mut Source<'_>) -> Result<(), Error>;
    /// Goes on from `counters`, after all planes have been written. A missing loss scale is the first one.
    ///
    /// # Errors
    /// [`Error::Optimizer`].
    fn restore(&mut self, counters: &Counters) -> Result<(), Error>;
}

/// Saves all of an optimizer's state to `path`. `progress` is told how many bytes of how many are done.
///
/// # Errors
/// [`Error::Io`], [`Error::Unsubmitted`], [`Error::Name`], [`Error::Key`], [`Error::Parameters`], [`Error::Optimizer`], [`Error::Engine`]; [`Error::Malformed`] if it would be more than is read: 512 files, 16 MiB of headers of all files together or of
/// the index (of AdamW with parameters that are about 40 000 tensors with names of 40 letters), 1 024 keys of metadata, 32 dimensions, schedules within each other without end. A file that was at `path` is still there then; but
/// where the directory could not be flushed ([`Error::Io`], "write" with the directory's path) the new one is in its place, whole, and whether a crash of the machine brings back the old one is not known.
pub fn save<E: Engine>(
    engine: &mut E,
    path: impl AsRef<Path>,
    save: &Save,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Error>
where
    E::Rule: Serialize,
{
    let mut metadata = save.metadata.clone();
    engine.check(false)?;
    let counters = engine.counters()?;
    let record = Record::new(engine.layout(), engine.options(), &counters);
    let text = record.text(path.as_ref())?;
    for key in [record::KEY, writer::TOTAL_SIZE] {
        if metadata.contains_key(key) {
            return Err(Error::Key { key: key.into() });
        }
    }
    metadata.insert(record::KEY.into(), text);
    let planes = engine.planes();
    // Wider values first, so that all are aligned.
    let mut order: Vec<_> = (0..planes.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(planes[i].content.value_bytes()));
    let tensors: Vec<_> = engine.layout().by_offset().collect();
    let mut planned = Vec::new();
    for plane in order.iter().map(|&i| &planes[i]) {
        let (prefix, dtype) = (plane.prefix(), plane.content.dtype());
        planned.extend(plane.tensors.iter().map(|&i| Planned {
            name: [prefix.as_str(), &tensors[i].name].concat(),
            dtype,
            shape: plane.shape(tensors[i]),
            bytes: plane.bytes(tensors[i]),
        }));
    }
    let total = planned.iter().map(|tensor| tensor.bytes).sum();
    let mut writer = Writer::create(path.as_ref(), planned, metadata, save.shard_bytes)?;
    let mut done = 0;
    progress(done, total);
    for i in order {
        engine.read(i, &mut |_, bytes| {
            writer.write(bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(())
        })?;
    }
    writer.finish()
}

/// Loads a checkpoint that [`save`] has written to `path`, or an index.
///
/// # Errors
/// [`Error::Io`], [`Error::Malformed`], [`Error::NotACheckpoint`], [`Error::Version`], [`Error::Mismatches`], [`Error::Unsubmitted`], [`Error::Optimizer`]: nothing has changed then.
/// [`Error::Torn`] if the file could not be read to its end although its length was right, or with [`Error::Engine`].
pub fn load<E: Engine>(
    engine: &mut E,
    path: impl AsRef<Path>,
    load: &Load,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, Error>
where
    E::Rule: Serialize + DeserializeOwned,
{
    let mut reader = Reader::open(path)?;
    let record = Record::read(&reader)?;
    let planes = engine.planes();
    let (sources, counters) = fit::fit(engine.layout(), engine.options(), &planes, &reader, &record, load)?;
    engine.check(true)?;
    // Refuses what is in flight.
    engine.counters()?;
    let total = sources.iter().flatten().map(|source| source.bytes).sum();
    let mut done = 0;
    progress(done, total);
    for (i, sources) in sources.iter().enumerate() {
        let mut fill = |part: Part, bytes: &mut [u8]| {
            let end = part.start.saturating_add(bytes.len() as u64);
            let expected = sources.get(part.tensor).map_or(0, |source| source.bytes);
            if end > expected {
                return Err(Error::Engine { found: end, expected });
            }
            let filled = sources[part.tensor].fill(&mut reader, part.start, bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(filled)
        };
        engine.write(i, &mut fill).map_err(|error| Error::Torn(error.into()))?;
    }
    if done != total {
        return Err(Error::Torn(Error::Engine { found: done, expected: total }.into()));
    }
    engine.restore(&counters).map_err(|error| Error::Torn(error.into()))?;
    let mut metadata = reader.metadata().clone();
    metadata.remove(record::KEY);
    Ok(Loaded { steps: counters.steps, taken: counters.taken, metadata })
}
