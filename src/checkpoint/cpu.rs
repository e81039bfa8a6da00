//! The CPU side of checkpoints: state in host memory.

use super::PARAM;
use super::engine::{Backend, Part, Sink, Source};
use crate::cpu::{Optimizer, Params};
use crate::error::BindError;
use crate::error::checkpoint::Error;
use crate::layout::{Layout, Tensor};
use crate::narrow::to_usize;
use crate::options::Options;
use crate::state::{Content, Counters, Stream};
use std::collections::HashMap;
use std::ops::Range;

/// Bytes per part, so that progress is visible within a tensor: whole values of every kind.
const PART: usize = 4 << 20;
/// The reason that a lookup of state succeeds.
const KNOWN: &str = "streams have slots and tensors of the optimizer";

/// An optimizer on the CPU, and parameters if they are to be saved or loaded too.
#[derive(Debug)]
pub struct Cpu<'a> {
    optimizer: &'a mut Optimizer,
    params: Form<'a>,
}

#[derive(Debug)]
enum Form<'a> {
    None,
    Flat(Params<'a>),
    /// Slices by name, and a name that occurred twice.
    Each(HashMap<&'a str, Params<'a>>, Option<&'a str>),
}

impl<'a> Cpu<'a> {
    /// Makes an engine for checkpoints of `optimizer`.
    pub fn new(optimizer: &'a mut Optimizer) -> Self {
        Self { optimizer, params: Form::None }
    }

    /// Makes an engine for checkpoints of an offloaded optimizer, with its parameters.
    ///
    /// After a load, [`Offload::upload`](crate::offload::Offload::upload) sends the parameters to the device.
    ///
    /// # Errors
    /// An [`OffloadError`](crate::OffloadError) if a step is in progress.
    #[cfg(feature = "gpu")]
    pub fn offloaded(offload: &'a mut crate::offload::Offload) -> Result<Self, crate::OffloadError> {
        let (optimizer, params) = offload.parts_mut()?;
        Ok(Self { optimizer, params: Form::Flat(params.into()) })
    }

    /// Adds parameters in one slice, each tensor at its layout's offset.
    #[must_use]
    pub fn parameters(self, params: impl Into<Params<'a>>) -> Self {
        Self { params: Form::Flat(params.into()), ..self }
    }

    /// Adds parameters in one slice per tensor, by name.
    #[must_use]
    pub fn each_parameters<P: Into<Params<'a>>>(
        self,
        tensors: impl IntoIterator<Item = (&'a str, P)>,
    ) -> Self {
        let (mut each, mut twice) = (HashMap::new(), None);
        for (name, params) in tensors {
            if each.insert(name, params.into()).is_some() {
                twice = Some(name);
            }
        }
        Self { params: Form::Each(each, twice), ..self }
    }
}

impl Form<'_> {
    /// The bytes of a tensor's parameters.
    fn bytes_mut(&mut self, tensor: &Tensor) -> &mut [u8] {
        let (bytes, range) = match self {
            Self::None => return &mut [],
            Self::Flat(params) => {
                let range = byte_range(params, tensor.offset, tensor.len);
                (params.bytes_mut(), range)
            }
            Self::Each(each, _) => match each.get_mut(tensor.name.as_str()) {
                Some(params) => {
                    let range = byte_range(params, 0, tensor.len);
                    (params.bytes_mut(), range)
                }
                None => return &mut [],
            },
        };
        bytes.get_mut(range).unwrap_or_default()
    }
}

fn byte_range(params: &Params<'_>, first: u64, len: u64) -> Range<usize> {
    let bytes = params.element_bytes();
    to_usize(first * bytes)..to_usize((first + len) * bytes)
}

/// The `n`th part of a tensor.
fn part(tensor: usize, n: usize) -> Part {
    Part { tensor, start: (n * PART) as u64 }
}

impl Backend for Cpu<'_> {
    fn layout(&self) -> &Layout {
        self.optimizer.layout()
    }

    fn options(&self) -> &Options {
        self.optimizer.options()
    }

    fn streams(&self) -> Vec<Stream> {
        let mut streams = self.optimizer.streams();
        if !matches!(self.params, Form::None) {
            streams.push(Stream {
                slot: PARAM.into(),
                content: Content::Numbers(self.options().params),
                tensors: (0..self.layout().by_offset().len()).collect(),
            });
        }
        streams
    }

    fn check(&self, _: bool) -> Result<(), Error> {
        let format = self.options().params;
        if let Form::Each(each, twice) = &self.params {
            for name in each.keys() {
                self.layout().find(name, |tensor| BindError::UnknownTensor { tensor })?;
            }
            if let Some(name) = *twice {
                return Err(BindError::DuplicateTensor { tensor: name.into() }.into());
            }
        }
        for tensor in self.layout().by_offset() {
            let (found, bytes, expected) = match &self.params {
                Form::None => return Ok(()),
                Form::Flat(params) => (params.len() as u64, params.element_bytes(), tensor.end()),
                Form::Each(each, _) => {
                    each.get(tensor.name.as_str()).map_or((0, format.bytes(), tensor.len), |params| {
                        (params.len() as u64, params.element_bytes(), tensor.len)
                    })
                }
            };
            if bytes != format.bytes() {
                let (format, bound) = (if bytes == 4 { "f32" } else { "u16" }, "as the options say");
                return Err(BindError::Format { field: "params", format, bound }.into());
            }
            if found < expected {
                return Err(Error::Parameters { tensor: tensor.name.clone(), found, expected });
            }
        }
        Ok(())
    }

    fn counters(&mut self) -> Result<Counters, Error> {
        Ok(self.optimizer.counters())
    }

    fn read(&mut self, stream: usize, sink: &mut Sink<'_>) -> Result<(), Error> {
        let Stream { slot, content, tensors } = self.streams().swap_remove(stream);
        let by_offset: Vec<_> = self.optimizer.layout().by_offset().collect();
        for i in tensors {
            let tensor = by_offset[i];
            let mut all = |bytes: &[u8]| {
                let mut parts = bytes.chunks(PART).enumerate();
                parts.try_for_each(|(n, bytes)| sink(part(i, n), bytes))
            };
            if slot == PARAM {
                all(self.params.bytes_mut(tensor))?;
            } else if let Some(state) = self.optimizer.state(&slot, &tensor.name).expect(KNOWN) {
                all(state.bytes(content))?;
            }
        }
        Ok(())
    }

    fn write(&mut self, stream: usize, source: &mut Source<'_>) -> Result<(), Error> {
        let Stream { slot, content, tensors } = self.streams().swap_remove(stream);
        let by_offset: Vec<_> = self.layout().by_offset().cloned().collect();
        for i in tensors {
            let tensor = &by_offset[i];
            let mut all = |bytes: &mut [u8]| {
                let mut parts = bytes.chunks_mut(PART).enumerate();
                parts.try_for_each(|(n, bytes)| source(part(i, n), bytes).map(drop))
            };
            if slot == PARAM {
                all(self.params.bytes_mut(tensor))?;
            } else if let Some(mut state) = self.optimizer.state_mut(&slot, &tensor.name).expect(KNOWN) {
                all(state.bytes_mut(content))?;
            }
        }
        Ok(())
    }

    fn configure(&mut self, layout: Layout, options: Options) -> Result<(), Error> {
        Ok(self.optimizer.configure(layout, options)?)
    }

    fn restore(&mut self, counters: &Counters) -> Result<(), Error> {
        self.optimizer.restore(counters);
        Ok(())
    }
}
