//! A step as data: kernels, bindings, dispatches and the contents of buffers, for an engine in another
//! language.

use super::control::Control;
use super::kernel::{Composed, Stage};
use super::optimizer::Optimizer;
use super::plan::{HEADER_BYTES, TENSOR_BYTES, WORKGROUP_SIZE};
use super::record::{Bound, BoundDispatch, Entry, Scalars};
use super::step::REQUEST_WORDS;
use crate::error::{BindError, StepError};
use crate::narrow::to_u32;
use crate::options::Clip;
use crate::rules::names::{AVERAGE_WEIGHT, GROUP_FACTOR};
use crate::step::Step;
use std::sync::Arc;

/// Everything that a step dispatches: see [`Optimizer::describe`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// The buffers that the dispatches bind.
    pub buffers: Vec<Buffer>,
    /// The dispatches, in order. Each sees the writes of earlier dispatches.
    pub dispatches: Vec<Dispatch>,
    /// The places of a step's scalars in the bytes of [`Optimizer::next_scalars`].
    pub scalars: ScalarsLayout,
    /// The words of every table of segments.
    pub table: TableWords,
}

/// The words of a table of segments, by name. A dispatch binds a table as `table`: its header, then its
/// segments.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TableWords {
    /// The words of the header. Words up to the first segment are padding.
    pub header: &'static [&'static str],
    /// The word at which the first segment begins.
    pub first_segment: u32,
    /// The words of a segment in a kernel with `parts/segments/aligned.wgsl`.
    pub aligned: &'static [&'static str],
    /// The words of a segment in a kernel with `parts/segments/shared.wgsl`.
    pub shared: &'static [&'static str],
    /// Number of words after each segment if numbers are rounded stochastically: the tensor's key, and four
    /// times the segment's first vector in the tensor, plus the lane of the tensor's first element.
    pub by_tensor: u32,
}

/// The words of tables.
#[allow(clippy::cast_possible_truncation, reason = "constants of some words")]
const TABLE_WORDS: TableWords = TableWords {
    header: &["segments", "shift", "stride", "p", "g", "p_last", "g_last", "partials", "scales"],
    first_segment: (HEADER_BYTES / 4) as u32,
    aligned: &["vector", "state", "vectors", "group"],
    shared: &["vector", "state", "vectors", "group", "first_xy", "first_zw", "last_xy", "last_zw"],
    by_tensor: (TENSOR_BYTES / 4) as u32,
};

/// A buffer of a described step.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Buffer {
    /// The name of the variable that it is bound to, with a number if several buffers have that name.
    pub name: String,
    /// The size in bytes.
    pub bytes: u64,
    /// The contents before the first step. Empty for zeros, for the caller's parameters and gradients, and
    /// for scalars, which differ in every step.
    pub contents: Vec<u8>,
}

/// A dispatch of a described step.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dispatch {
    /// The stage of the step.
    pub stage: Stage,
    /// The name of the rule, in a stage that has one.
    pub rule: Option<&'static str>,
    /// The text of the kernel and its entry point.
    pub kernel: Arc<Composed>,
    /// Threads of a workgroup.
    pub workgroup_size: u32,
    /// Workgroups in x and y.
    pub workgroups: [u32; 2],
    /// The bindings of the dispatch.
    pub bindings: Vec<Binding>,
}

/// A binding of a dispatch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Binding {
    /// The bind group.
    pub group: u32,
    /// The number in the group.
    pub binding: u32,
    /// The type, as WebGPU's `GPUBufferBindingType` names it.
    pub kind: &'static str,
    /// The name of the variable in the kernel.
    pub variable: String,
    /// The index of the buffer among [`Description::buffers`].
    pub buffer: usize,
    /// The first byte that is bound.
    pub offset: u64,
    /// The bytes that are bound.
    pub size: u64,
}

/// The places of a step's scalars, in words of 4 bytes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScalarsLayout {
    /// The index among [`Description::buffers`] of the buffer that the host writes before each step; `None`
    /// if all groups are frozen. A step that may be skipped writes one candidate per step without a report,
    /// so the buffer of a long run is larger than the described one.
    pub buffer: Option<usize>,
    /// The words of the request before the first candidate: 0 without a control kernel.
    pub request_words: u32,
    /// The words of the header of each candidate. They are the factor of the gradients, 1 if the step is
    /// skipped, 0, and the bound of the gradients; four more words hold the random key if there is one.
    pub header_words: u32,
    /// Words from one group's scalars to the next, after the header.
    pub group_words: u32,
    /// The groups, in order.
    pub groups: Vec<GroupScalars>,
}

/// The scalars of a group.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupScalars {
    /// The name of the group.
    pub group: String,
    /// The name of its rule.
    pub rule: &'static str,
    /// Each scalar, with its word among those of its group.
    pub scalars: Vec<(&'static str, u32)>,
}

impl Optimizer {
    /// Describes the dispatches of a step, completely enough to run the step without this crate.
    ///
    /// Parameters, gradients and state are bound as in `tensors`; the groups that are frozen now are left
    /// out.
    ///
    /// # Errors
    /// A [`BindError`] if a group was thawed since the binding was made, and the binding does not fit it, or
    /// if the device refuses.
    pub fn describe(&mut self, tensors: &Bound) -> Result<Description, BindError> {
        let recorded = self.plan(&tensors.parts, &tensors.scanned, true)?;
        let mut buffers = Buffers::default();
        let mut dispatches = Vec::new();
        recorded.in_order(self, |stage, rule, bound, scalars| {
            dispatches
                .extend(bound.iter().map(|bound| self.dispatch(stage, rule, bound, scalars, &mut buffers)));
        });
        for (buffer, contents) in recorded.contents {
            buffers.fill(&buffer, contents);
        }
        for layers in self.layers.iter().flatten() {
            buffers.fill(&layers.groups, bytemuck::cast_slice(&layers.group_of).to_vec());
        }
        if let Some(control) = &self.control {
            let state = Control::first_state(&self.options);
            buffers.fill(&control.state, bytemuck::bytes_of(&state).to_vec());
        }
        let sent = buffers.met.iter().position(Option::is_none);
        let (buffers, scalars) = (buffers.described, self.scalars_of_groups(sent));
        Ok(Description { buffers, dispatches, scalars, table: TABLE_WORDS })
    }

    /// Counts a step as recorded without recording it, and returns the bytes that it would upload: one
    /// candidate of the step's scalars, or a request with several for the control kernel.
    ///
    /// # Errors
    /// The errors of [`step`](Self::step).
    pub fn next_scalars(&mut self, tensors: &Bound, step: impl Into<Step>) -> Result<Vec<u8>, StepError> {
        self.write_scalars(tensors, step.into())?;
        self.count_step();
        Ok(bytemuck::cast_slice(&self.scratch).to_vec())
    }

    fn dispatch(
        &self,
        stage: Stage,
        rule: usize,
        bound: &BoundDispatch,
        scalars: Scalars,
        buffers: &mut Buffers,
    ) -> Dispatch {
        let has_rule = matches!(stage, Stage::LayerNorms | Stage::TrustRatio | Stage::Update);
        let of_rule = has_rule.then(|| self.layout.rules()[rule].spec.name);
        let bindings = variables(&bound.kernel.composed).map(|variable| {
            let entry = bound.entries.iter().find(|entry| entry.binding == variable.binding);
            let scalars_bytes = 16 * self.candidate.vectors(self.layout.groups().len()) as u64;
            let (buffer, offset, size) = match (variable.group, entry, scalars) {
                (0, Some(Entry { buffer, offset, size, .. }), _) => {
                    (buffers.index(buffer, variable.name), *offset, *size)
                }
                (_, _, Scalars::Live) => {
                    let control = self.control.as_ref().expect("only a control kernel writes live scalars");
                    (buffers.index(&control.live, variable.name), 0, control.live.size())
                }
                (_, _, Scalars::Tensors) => {
                    let layers = self.layers[rule]
                        .as_ref()
                        .expect("only tensors of a layer-wise rule have scalars of their own");
                    (buffers.index(&layers.scalars, variable.name), 0, layers.scalars.size())
                }
                (..) => {
                    let bytes = if self.control.is_some() { self.ring.slot_bytes() } else { scalars_bytes };
                    (buffers.sent(variable.name, bytes), 0, bytes)
                }
            };
            let (group, binding, kind) = (variable.group, variable.binding, variable.kind);
            Binding { group, binding, kind, variable: variable.name.into(), buffer, offset, size }
        });
        let bindings = bindings.collect();
        let (kernel, workgroups) = (bound.kernel.composed.clone(), bound.workgroups);
        Dispatch { stage, rule: of_rule, kernel, workgroup_size: WORKGROUP_SIZE, workgroups, bindings }
    }

    fn scalars_of_groups(&self, buffer: Option<usize>) -> ScalarsLayout {
        let weight = self.options.ema.map(|_| (AVERAGE_WEIGHT, self.candidate.weight));
        let factor = matches!(self.options.clip, Some(Clip::GroupNorm(_)))
            .then_some((GROUP_FACTOR, self.candidate.factor));
        let groups = self.layout.groups().iter().map(|group| {
            let spec = group.rule().spec();
            let own = (0..).zip(spec.scalars).map(|(word, name)| (*name, word));
            let scalars = own.chain(weight).chain(factor).collect();
            GroupScalars { group: group.name().into(), rule: spec.name, scalars }
        });
        ScalarsLayout {
            buffer,
            request_words: if self.control.is_some() { to_u32(REQUEST_WORDS) } else { 0 },
            header_words: 4 * self.candidate.header,
            group_words: 4 * self.candidate.stride,
            groups: groups.collect(),
        }
    }
}

/// Buffers in the order of their first use.
#[derive(Default)]
struct Buffers {
    met: Vec<Option<wgpu::Buffer>>,
    described: Vec<Buffer>,
}

impl Buffers {
    fn index(&mut self, buffer: &wgpu::Buffer, name: &str) -> usize {
        let met = self.met.iter().position(|other| other.as_ref() == Some(buffer));
        met.unwrap_or_else(|| self.add(Some(buffer.clone()), name, buffer.size()))
    }

    /// The buffer that the host writes in each step.
    fn sent(&mut self, name: &str, bytes: u64) -> usize {
        let met = self.met.iter().position(Option::is_none);
        met.unwrap_or_else(|| self.add(None, name, bytes))
    }

    fn add(&mut self, buffer: Option<wgpu::Buffer>, name: &str, bytes: u64) -> usize {
        let same = self.described.iter().filter(|other| {
            other.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        });
        let name = match same.count() {
            0 => name.to_string(),
            n => format!("{name}_{}", n + 1),
        };
        self.met.push(buffer);
        self.described.push(Buffer { name, bytes, contents: Vec::new() });
        self.met.len() - 1
    }

    fn fill(&mut self, buffer: &wgpu::Buffer, contents: Vec<u8>) {
        if let Some(met) = self.met.iter().position(|other| other.as_ref() == Some(buffer)) {
            self.described[met].contents = contents;
        }
    }
}

/// A variable of a kernel that is bound.
struct Variable<'a> {
    group: u32,
    binding: u32,
    kind: &'static str,
    name: &'a str,
}

/// The bound variables of a kernel. Each declaration takes one line.
fn variables(composed: &Composed) -> impl Iterator<Item = Variable<'_>> {
    composed.parts.iter().flat_map(|part| part.text.lines()).filter_map(|line| {
        let (group, rest) = line.strip_prefix("@group(")?.split_once(") @binding(")?;
        let (binding, rest) = rest.split_once(") var<")?;
        let (space, rest) = rest.split_once("> ")?;
        let kind = match space {
            "uniform" => "uniform",
            "storage, read" => "read-only-storage",
            _ => "storage",
        };
        let (name, _) = rest.split_once(':')?;
        Some(Variable { group: group.parse().ok()?, binding: binding.parse().ok()?, kind, name })
    })
}
