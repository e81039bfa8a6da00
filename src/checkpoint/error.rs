//! What can be wrong with a file, and between a file and an optimizer.

use super::location::Location;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a checkpoint was not saved or not loaded.
///
/// Whatever it is, the file of that name is whole, from before or (a directory that could not be flushed) the
/// new one, and so is the optimizer's state but after [`Torn`](Self::Torn).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system, or the caller's stream, refused: no such file, no room, no permission.
    #[error("cannot {what} {location}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file, directory or stream.
        location: Location,
        /// The answer.
        source: io::Error,
    },
    /// The file is no safetensors file, or is cut short or damaged; or is not to be written because it would
    /// not be read.
    #[error("{location}: {reason}")]
    Malformed {
        /// The file or stream.
        location: Location,
        /// What is wrong with it.
        reason: Malformed,
    },
    /// A path whose end says that it is something else.
    #[error("{path:?}: the name of {what} {bound}")]
    Name {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// What its name has to be.
        bound: &'static str,
    },
    /// [`Save::shard_bytes`](super::Save::shard_bytes) where there is one stream, which takes one file.
    #[error("shard_bytes = {found}, must be None: a stream takes one file")]
    Shards {
        /// Its value.
        found: u64,
    },
    /// A safetensors file without the optimizer's metadata: parameters, perhaps.
    #[error("{location} is no checkpoint of an optimizer: its metadata has no {key:?}")]
    NotACheckpoint {
        /// The file or stream.
        location: Location,
        /// What it lacks.
        key: &'static str,
    },
    /// A checkpoint of a later version of this crate.
    #[error("{location} has version {found} of the checkpoint format, this crate reads up to {bound}")]
    Version {
        /// The file or stream.
        location: Location,
        /// Its version.
        found: u32,
        /// The latest that is known.
        bound: u32,
    },
    /// The checkpoint is of another optimizer: all that differs.
    #[error("the checkpoint does not fit: {}", Listed(.0))]
    Mismatches(Vec<Mismatch>),
    /// Recorded steps whose commands are neither submitted nor dropped: what they will do to the state is not
    /// known.
    #[error("{steps} recorded steps are neither submitted nor dropped; submit them first")]
    Unsubmitted {
        /// How many.
        steps: usize,
    },
    /// A metadata key of the caller's that is the checkpoint's own.
    #[error("metadata {key:?} is taken")]
    Key {
        /// The key.
        key: String,
    },
    /// A rule whose hyperparameters cannot be written.
    #[error("{rule}: the rule cannot be saved: set `Rule::SAVED`")]
    NotSaved {
        /// The rule's name.
        rule: &'static str,
    },
    /// A tensor's parameters that were not handed over, or are too few.
    #[error("parameters of {tensor:?}: {found} elements, the layout has {expected}")]
    Parameters {
        /// The tensor.
        tensor: String,
        /// What was handed over.
        found: u64,
        /// What the layout has.
        expected: u64,
    },
    /// The device, or what was handed over for it.
    #[error(transparent)]
    Optimizer(#[from] crate::Error),
    /// Reading failed after writing to the optimizer had begun, so that its state is partly that of the
    /// checkpoint. Load again before the next step.
    #[error("the state is partly overwritten: {0}")]
    Torn(Box<Error>),
}

impl Error {
    pub(super) fn io(what: &'static str, location: impl Into<Location>) -> impl FnOnce(io::Error) -> Self {
        let location = location.into();
        move |source| Self::Io { what, location, source }
    }
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// Shorter than what it says it is.
    Truncated {
        /// Bytes that there are.
        len: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// Longer than what it says it is.
    Trailing {
        /// Bytes that there are.
        len: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// A header or index that would take more memory than is granted.
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size.
        found: u64,
        /// How large it may be.
        bound: u64,
    },
    /// More of something than is read.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many, as far as they were counted.
        found: u64,
        /// How many there may be.
        bound: u64,
    },
    /// Text that is not the JSON it should be.
    Json {
        /// Of what.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// Two tensors of one name.
    Duplicate {
        /// The name.
        name: String,
    },
    /// A tensor whose bytes do not begin where those before it end.
    Offset {
        /// The tensor.
        name: String,
        /// Where it begins.
        found: u64,
        /// Where it has to.
        expected: u64,
    },
    /// A tensor whose bytes are not as many as its shape and type say.
    Size {
        /// The tensor.
        name: String,
        /// Bytes that there are.
        found: u64,
        /// Bytes that there should be; `None` if they cannot be counted.
        expected: Option<u64>,
    },
    /// A name in an index that is not a file beside it.
    ShardName {
        /// The name.
        name: String,
    },
    /// A tensor that is not in the shard that the index says, or is in one and not in the index.
    Shard {
        /// The tensor.
        name: String,
        /// The shard.
        shard: String,
    },
    /// A value of the checkpoint's own metadata that cannot be.
    Value {
        /// Which.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it has to be.
        bound: &'static str,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { len, expected } => write!(f, "{len} bytes, cut short: must be {expected}"),
            Self::Trailing { len, expected } => write!(f, "{len} bytes, must be {expected}"),
            Self::TooLarge { what, found, bound } => {
                write!(f, "{what} of {found} bytes, must be at most {bound}")
            }
            Self::TooMany { what, found, bound } => write!(f, "{found} {what}, must be at most {bound}"),
            Self::Json { what, reason } => write!(f, "{what}: {reason}"),
            Self::Duplicate { name } => write!(f, "tensor {name:?} is there twice"),
            Self::Offset { name, found, expected } => {
                write!(f, "tensor {name:?} begins at byte {found} of the data, must be {expected}")
            }
            Self::Size { name, found, expected: Some(expected) } => {
                write!(f, "tensor {name:?} has {found} bytes, must be {expected}")
            }
            Self::Size { name, found, expected: None } => {
                write!(f, "tensor {name:?} has {found} bytes, its shape has more than can be counted")
            }
            Self::ShardName { name } => {
                write!(f, "shard {name:?}, must be the name of a file beside the index")
            }
            Self::Shard { name, shard } => {
                write!(f, "index and shard {shard:?} do not agree on tensor {name:?}")
            }
            Self::Value { field, value, bound } => write!(f, "{field} = {value}, must be {bound}"),
        }
    }
}

/// One thing in which a checkpoint and an optimizer differ.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mismatch {
    /// Another rule.
    Rule {
        /// The file's.
        found: String,
        /// The optimizer's.
        expected: &'static str,
    },
    /// A tensor of the layout that the file lacks.
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor of the file that the layout lacks.
    ExtraTensor {
        /// Its name.
        tensor: String,
    },
    /// A state slot, or the parameters, that the file lacks of a tensor.
    MissingSlot {
        /// The slot.
        slot: String,
        /// The tensor.
        tensor: String,
    },
    /// A slot of the file that the optimizer does not keep.
    ExtraSlot {
        /// The slot.
        slot: String,
        /// How many tensors have it.
        tensors: usize,
    },
    /// A tensor of another shape.
    Shape {
        /// Slot and tensor, as the file has them.
        tensor: String,
        /// The file's.
        found: Vec<u64>,
        /// The layout's.
        expected: Vec<u64>,
    },
    /// A tensor of another group.
    Group {
        /// The tensor.
        tensor: String,
        /// The file's.
        found: String,
        /// The layout's.
        expected: String,
    },
    /// A hyperparameter or the learning-rate factor of a group.
    Hyperparameter {
        /// The group.
        group: String,
        /// The field, or all of them where the file's cannot be read.
        field: String,
        /// The file's value.
        found: String,
        /// The optimizer's.
        expected: String,
    },
    /// An option.
    Option {
        /// The field.
        field: String,
        /// The file's value.
        found: String,
        /// The optimizer's.
        expected: String,
    },
    /// How a slot is stored.
    Format {
        /// The slot.
        slot: String,
        /// The file's type.
        found: String,
        /// The optimizer's.
        expected: String,
    },
    /// The optimizer rounds at random, and the file has no seed.
    Seed,
    /// The optimizer has a dynamic loss scale, and the file's cannot be its.
    LossScale {
        /// The file's, if it has one.
        found: Option<f64>,
        /// What is wrong with it.
        bound: &'static str,
    },
    /// The good steps of the file's loss scale are as many as the optimizer's grows after.
    GoodSteps {
        /// The file's.
        found: u32,
        /// The optimizer's [`growth_interval`](crate::LossScale::growth_interval), below which they have to
        /// be.
        bound: u32,
    },
    /// More than are listed.
    More {
        /// How many at least: of tensors that only the file has no more than 1 000 are counted.
        count: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { found, expected } => write!(f, "rule {found:?}, here {expected:?}"),
            Self::MissingTensor { tensor } => write!(f, "no tensor {tensor:?} in the file"),
            Self::ExtraTensor { tensor } => write!(f, "no tensor {tensor:?} here"),
            Self::MissingSlot { slot, tensor } => write!(f, "no {slot} of tensor {tensor:?} in the file"),
            Self::ExtraSlot { slot, tensors } => {
                write!(f, "no {slot} here, of {tensors} tensors in the file")
            }
            Self::Shape { tensor, found, expected } => {
                write!(f, "{tensor:?} of shape {found:?}, here {expected:?}")
            }
            Self::Group { tensor, found, expected } => {
                write!(f, "tensor {tensor:?} in group {found:?}, here in {expected:?}")
            }
            Self::Hyperparameter { group, field, found, expected } => {
                write!(f, "{field} of group {group:?} = {found}, here {expected}")
            }
            Self::Option { field, found, expected } => write!(f, "option {field} = {found}, here {expected}"),
            Self::Format { slot, found, expected } => {
                write!(f, "{slot} stored as {found}, here as {expected}")
            }
            Self::More { count } => write!(f, "and at least {count} more"),
            Self::Seed => f.write_str("no seed, and rounding is at random here"),
            Self::LossScale { found: Some(found), bound } => write!(f, "loss scale {found}, must be {bound}"),
            Self::GoodSteps { found, bound } => {
                write!(f, "{found} good steps of the loss scale, must be below growth_interval = {bound}")
            }
            Self::LossScale { found: None, .. } => f.write_str("no loss scale, and there is one here"),
        }
    }
}

struct Listed<'a>(&'a [Mismatch]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mismatch) in self.0.iter().enumerate() {
            write!(f, "{}{mismatch}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
