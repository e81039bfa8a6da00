//! The interface of saving and loading to an optimizer.

use super::SCALE_END;
use super::convert;
use crate::error::checkpoint::Error;
use crate::layout::Layout;
use crate::options::Options;
use crate::state::{Content, Counters, Stream};
use safetensors::Dtype;

/// Some of the bytes of one tensor in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The tensor, as an index in the order of the flat space.
    pub tensor: usize,
    /// The first byte.
    pub start: u64,
}

/// A function that takes a part's bytes.
pub(super) type Sink<'a> = dyn FnMut(Part, &[u8]) -> Result<(), Error> + 'a;
/// A function that fills a part's bytes, or returns `false` if they do not change.
pub(super) type Source<'a> = dyn FnMut(Part, &mut [u8]) -> Result<bool, Error> + 'a;

/// An optimizer with its state, in any memory.
pub trait Backend {
    fn layout(&self) -> &Layout;
    fn options(&self) -> &Options;
    /// The streams of state, and of parameters if they are handed over.
    fn streams(&self) -> Vec<Stream>;
    /// Checks every condition of reading, or `writing`, all streams.
    fn check(&self, writing: bool) -> Result<(), Error>;
    /// The counters after all recorded work is done.
    fn counters(&mut self) -> Result<Counters, Error>;
    /// Hands over all bytes of stream `stream`, in the order of its tensors.
    fn read(&mut self, stream: usize, sink: &mut Sink<'_>) -> Result<(), Error>;
    /// Takes all bytes of stream `stream`, in the order of its tensors.
    fn write(&mut self, stream: usize, source: &mut Source<'_>) -> Result<(), Error>;
    /// Takes the hyperparameters, factors and frozen groups of a layout, and the clip's bound of options.
    /// Layout and options equal the engine's own otherwise.
    fn configure(&mut self, layout: Layout, options: Options) -> Result<(), Error>;
    /// Continues from `counters`, after all streams have been written. A missing loss scale means the initial
    /// one.
    fn restore(&mut self, counters: &Counters) -> Result<(), Error>;
}

impl Content {
    /// The type of the values in a file.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::Numbers(format) => convert::dtype(format),
            Self::Remainders => Dtype::U16,
            Self::Codes => Dtype::U8,
            Self::Scales => Dtype::F32,
        }
    }
}

impl Stream {
    /// The name of the values in a file, up to the tensor's name.
    pub(super) fn prefix(&self) -> String {
        let end = if self.content == Content::Scales { SCALE_END } else { "" };
        [self.slot.as_str(), end, "/"].concat()
    }
}
