//! The CPU's side: state in the host's memory.

use super::error::Error;
use super::{Content, Counters, Engine, PARAM, Part, Plane, Sink, Source};
use crate::cpu::{Optimizer, Params};
use crate::layout::{Layout, Tensor};
use crate::options::Options;
use crate::rules::Twin;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes that are handed over at a time, so that progress is seen within a tensor: whole values of every kind.
const PART: usize = 4 << 20;

/// An optimizer on the CPU, and parameters if they are to be saved or loaded too.
#[derive(Debug)]
pub struct Cpu<'a, R: Twin> {
    optimizer: &'a mut Optimizer<R>,
    params: Form<'a>,
}

#[derive(Debug)]
enum Form<'a> {
    None,
    Flat(Params<'a>),
    /// By name; and a name that was there twice.
    Each(HashMap<&'a str, Params<'a>>, Option<&'a str>),
}

impl<'a, R: Twin> Cpu<'a, R> {
    /// An optimizer.
    pub fn new(optimizer: &'a mut Optimizer<R>) -> Self {
        Self { optimizer, params: Form::None }
    }

    /// An optimizer whose state is in host memory for a GPU, with its parameters. After a load, [`Offload::upload`](crate::offload::Offload::upload) brings them to the device.
    ///
    /// # Errors
    /// [`StepUnderWay`](crate::Error::StepUnderWay).
    #[cfg(feature = "gpu")]
    pub fn offloaded(offload: &'a mut crate::offload::Offload<R>) -> Result<Self, crate::Error> {
        let (optimizer, params) = offload.parts_mut()?;
        Ok(Self { optimizer, params: Form::Flat(params.into()) })
    }

    /// With parameters in one slice, each tensor at its layout's offset.
    #[must_use]
    pub fn parameters(self, params: impl Into<Params<'a>>) -> Self {
        Self { params: Form::Flat(params.into()), ..self }
    }

    /// With parameters in slices of single tensors, by name.
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
    (first * bytes) as usize..((first + len) * bytes) as usize
}

/// The `n`th part of a tensor.
fn part(tensor: usize, n: usize) -> Part {
    Part { tensor, start: (n * PART) as u64 }
}

impl<R: Twin> Engine for Cpu<'_, R> {
    type Rule = R;

    fn layout(&self) -> &Layout<R> {
        self.optimizer.layout()
    }

    fn options(&self) -> &Options {
        self.optimizer.options()
    }

    fn planes(&self) -> Vec<Plane> {
        let mut planes = self.optimizer.saved_slots();
        if !matches!(self.params, Form::None) {
            planes.push(Plane {
                slot: PARAM.into(),
                content: Content::Numbers(self.options().params),
                tensors: (0..self.layout().tensors().len()).collect(),
            });
        }
        planes
    }

    fn check(&self, _: bool) -> Result<(), Error> {
        let format = self.options().params;
        if let Form::Each(each, twice) = &self.params {
            for name in each.keys() {
                self.layout().tensor(name)?;
            }
            if let Some(name) = *twice {
                return Err(crate::Error::Duplicate { what: "tensor", name: name.into() }.into());
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
                return Err(crate::Error::Format { field: "params", format, bound }.into());
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

    fn read(&mut self, plane: usize, sink: &mut Sink<'_>) -> Result<(), Error> {
        let Plane { slot, content, tensors } = self.planes().swap_remove(plane);
        let by_offset: Vec<_> = self.optimizer.layout().by_offset().collect();
        for i in tensors {
            let tensor = by_offset[i];
            let mut all = |bytes: &[u8]| {
                let mut parts = bytes.chunks(PART).enumerate();
                parts.try_for_each(|(n, bytes)| sink(part(i, n), bytes))
            };
            if slot == PARAM {
                all(self.params.bytes_mut(tensor))?;
            } else if let Some(state) = self.optimizer.state(&slot, &tensor.name)? {
                all(state.bytes(content))?;
            }
        }
        Ok(())
    }

    fn write(&mut self, plane: usize, source: &mut Source<'_>) -> Result<(), Error> {
        let Plane { slot, content, tensors } = self.planes().swap_remove(plane);
        let by_offset: Vec<_> = self.layout().by_offset().cloned().collect();
        for i in tensors {
            let tensor = &by_offset[i];
            let mut all = |bytes: &mut [u8]| {
                let mut parts = bytes.chunks_mut(PART).enumerate();
                parts.try_for_each(|(n, bytes)| source(part(i, n), bytes).map(drop))
            };
            if slot == PARAM {
                all(self.params.bytes_mut(tensor))?;
            } else if let Some(mut state) = self.optimizer.state_mut(&slot, &tensor.name)? {
                all(state.bytes_mut(content))?;
            }
        }
        Ok(())
    }

    fn restore(&mut self, counters: &Counters) -> Result<(), Error> {
        self.optimizer.restore(counters);
        Ok(())
    }
}
