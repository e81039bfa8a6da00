//! Binding: checks the caller's buffers against the layout and prepares them for recording.

mod build;
mod partials;
mod plan;
mod tables;

use super::buffers::{ByteRange, Form, Named, Part, Tensors, View};
use super::device::ELEMENT;
use super::optimizer::Optimizer;
use super::plan::{self as planner, Chunk, Span};
use super::record::{Bound, Recorded};
use super::state::spans;
use crate::error::BindError;
use crate::formats::Format;
use crate::layout::{Tensor, VECTOR};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The dispatches of a binding. Steps may be recorded while the binding is planned again.
#[allow(
    clippy::arc_with_non_send_sync,
    reason = "the browser's buffers stay on their thread, and so does this"
)]
fn shared(recorded: Recorded) -> Arc<Recorded> {
    Arc::new(recorded)
}

impl Optimizer {
    /// Checks the caller's buffers against the layout and prepares them for recording.
    ///
    /// Compiles kernels on first use. Call it outside of the training loop, and again when buffers change.
    ///
    /// # Errors
    /// A [`BindError`] if the tensors are not the layout's, if a buffer is too short, misaligned, without
    /// usage `STORAGE` or of [another device](BindError::OtherDevice), if ranges of one buffer overlap, or if
    /// the device refuses. Parameters and gradients of one buffer overlap if they lie in one block of 256
    /// bytes.
    pub fn bind(&mut self, tensors: &Tensors<'_>) -> Result<Bound, BindError> {
        let state: Vec<_> = self.state.iter().map(|state| &state.chunk).collect();
        let scanned = self.scanned_chunks();
        let scanned: Vec<_> = scanned.iter().collect();
        let [parts, scanned] = match &tensors.0 {
            Form::Flat(p, g) => self.flat_parts(*p, *g, [&state, &scanned])?,
            Form::Each(each) => self.each_parts(each, [&state, &scanned])?,
        };
        let recorded = Mutex::new(shared(self.plan(&parts, &scanned, false)?));
        Ok(Bound { owner: self.identity.clone(), parts, scanned, recorded })
    }

    /// The dispatches of a binding for the groups that are frozen now.
    pub(super) fn current(&mut self, bound: &Bound) -> Result<Arc<Recorded>, BindError> {
        let recorded = bound.recorded();
        if recorded.revision == self.revision {
            return Ok(recorded);
        }
        let recorded = shared(self.plan(&bound.parts, &bound.scanned, false)?);
        *bound.recorded.lock().unwrap_or_else(PoisonError::into_inner) = recorded.clone();
        Ok(recorded)
    }

    /// The chunks of all tensors of all rules and formats, in which gradients are scanned.
    fn scanned_chunks(&self) -> Vec<Chunk> {
        if self.control.is_none() {
            return Vec::new();
        }
        let spans: Vec<Span> = spans(&self.layout).map(|(_, span)| span).collect();
        planner::chunks(&spans, self.limits.chunk_elements, 1)
    }

    fn flat_parts<'a>(
        &self,
        p: View<'a>,
        g: View<'a>,
        chunks: [&[&Chunk]; 2],
    ) -> Result<[Vec<Part>; 2], BindError> {
        let (params, grads) = (self.options.params, self.options.grads);
        let [p_bytes, g_bytes] = [params, grads].map(|format| self.layout.len() * format.bytes());
        let p = Named::new("parameters", p, p_bytes)?;
        let g = Named::new("gradients", g, g_bytes)?;
        self.check_ranges(vec![p.range(p_bytes), g.range(g_bytes)])?;
        #[allow(clippy::cast_possible_wrap, reason = "elements of a layout lie far below 2⁶³")]
        let part = |(i, chunk): (usize, &&Chunk)| Part {
            chunk: i,
            base: chunk.start,
            state: chunk.state_vectors,
            tensor_ranges: chunk.tensor_ranges.clone(),
            p: p.at(chunk.start as i64, params),
            g: g.at(chunk.start as i64, grads),
        };
        Ok(chunks.map(|chunks| chunks.iter().enumerate().map(part).collect()))
    }

    fn each_parts<'a>(
        &self,
        each: &[(&str, View<'a>, View<'a>)],
        chunks: [&[&Chunk]; 2],
    ) -> Result<[Vec<Part>; 2], BindError> {
        let mut views = HashMap::new();
        for (name, p, g) in each {
            let tensor = self.layout.find(name, |tensor| BindError::UnknownTensor { tensor })?;
            if views.insert(tensor.name.as_str(), (*p, *g)).is_some() {
                return Err(BindError::DuplicateTensor { tensor: (*name).into() });
            }
        }
        if views.len() != self.layout.tensors().len() {
            let (found, expected) = (views.len() as u64, self.layout.tensors().len() as u64);
            return Err(BindError::TensorCount { found, expected });
        }
        let tensors: Vec<&Tensor> = self.layout.by_offset().collect();
        let (params, grads) = (self.options.params, self.options.grads);
        let mut named = Vec::new();
        let mut ranges = Vec::new();
        for tensor in &tensors {
            let (p, g) = views[tensor.name.as_str()];
            let check = |side, view, format: Format| {
                let (what, offset) = (format!("{side} of tensor {:?}", tensor.name), tensor.offset);
                if format.bytes() < ELEMENT && !offset.is_multiple_of(2) {
                    return Err(BindError::OddElement { what, offset });
                }
                let bytes = tensor.len * format.bytes();
                let named = Named::new(&what, view, bytes)?;
                let range = named.range(bytes);
                Ok((named, range))
            };
            let (p, p_range) = check("parameters", p, params)?;
            let (g, g_range) = check("gradients", g, grads)?;
            ranges.extend([p_range, g_range]);
            named.push((p, g));
        }
        self.check_ranges(ranges)?;
        let parts = |chunks: &[&Chunk]| {
            let mut parts = Vec::new();
            for (i, chunk) in chunks.iter().enumerate() {
                for tensor_range in &chunk.tensor_ranges {
                    let (p, g) = &named[tensor_range.tensor];
                    let base = tensor_range.start / VECTOR * VECTOR;
                    #[allow(clippy::cast_possible_wrap, reason = "elements of a layout lie far below 2⁶³")]
                    let first = base as i64 - tensors[tensor_range.tensor].offset as i64;
                    parts.push(Part {
                        chunk: i,
                        base,
                        state: chunk.state_vectors,
                        tensor_ranges: vec![*tensor_range],
                        p: p.at(first, params),
                        g: g.at(first, grads),
                    });
                }
            }
            parts
        };
        Ok(chunks.map(parts))
    }

    /// Refuses ranges of buffers of another device, and ranges of one buffer that share bytes, with each
    /// other or with the optimizer's own state.
    pub(crate) fn check_ranges(&self, mut ranges: Vec<ByteRange>) -> Result<(), BindError> {
        ranges.sort_by(|a, b| a.buffer.cmp(&b.buffer));
        for same in ranges.chunk_by(|a, b| a.buffer == b.buffer) {
            let ByteRange { buffer, what, .. } = &same[0];
            self.probe.check(buffer, || what.clone())?;
        }
        ranges.extend(self.buffers().map(|buffer| ByteRange {
            what: "optimizer state".into(),
            buffer: buffer.clone(),
            start: 0,
            end: buffer.size(),
        }));
        ranges.extend(self.control.iter().map(|control| ByteRange {
            what: "the loss scale".into(),
            buffer: control.state.clone(),
            start: 0,
            end: control.state.size(),
        }));
        ranges.sort_by(|a, b| (&a.buffer, a.start).cmp(&(&b.buffer, b.start)));
        for pair in ranges.windows(2) {
            pair[0].refuse_overlap(&pair[1])?;
        }
        Ok(())
    }
}
